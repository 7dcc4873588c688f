"""Balance of decay and growth, and what it says about falls, jumps and periods (docs/mathematics.md §4, §5)."""

from __future__ import annotations

import sympy
from sympy import Derivative, Limit, cos, exp, log, oo

from theory.derivations import _one_step
from theory.derivations._derivation import Derivation, Eq, Ge, Gt
from theory.derivations._symbols import BELOW_ONE, c, delta, lr, next_norm, norm, s, t, wd
from theory.derivations._symbols import momentum as mu
from theory.derivations._symbols import rotation as theta

steps, grown, change, cosine = sympy.symbols("steps grown change cosine", positive=True)
DECAY = -log(1 - lr * wd)


def balance() -> Derivation:
    """Derive -N ln(1-ηλ) = Σ(-ln cos θ) - ln(ρ_N/ρ₀), and that the geometric mean of cos θ is 1-ηλ.

    Examples
    --------
    >>> print(balance()[-1].rhs)
    -change + grown
    """
    so_far = steps * log(1 - lr * wd) + grown
    step = _one_step.rotation()
    after = next(relation for relation in step if relation.lhs == next_norm)
    result = Derivation(
        "Balance of decay and growth.",
        "Any gradients; 0 < ηλ < 1; N = `steps`; `grown` = Σ(-ln cos θ), `change` = ln(ρ_N/ρ₀).",
        {"lr": lr, "wd": wd, "norm": norm, "rotation": theta, "steps": steps, "grown": grown, "change": change},
        {next_norm: after.rhs, change: so_far},
    )
    with_cosine = {cos(theta): cosine, **BELOW_ONE}
    result.step(Eq(next_norm, (1 - lr * wd) * norm / cos(theta)), "One step, from `rotation`.")
    result.step(
        Eq(log(next_norm / norm), log(1 - lr * wd) - log(cos(theta))),
        "Its logarithm: decay takes the same every step, the angle gives.",
        with_cosine,
    )
    result.step(Eq(change.subs(change, so_far).subs({steps: 0, grown: 0}), 0), "The identity holds for no steps, …")
    result.step(
        Eq(so_far + log(next_norm / norm), (grown - log(cos(theta))) + (steps + 1) * log(1 - lr * wd)),
        "… and if it holds for N steps, ln(ρ_N/ρ₀) = `grown` + N ln(1-ηλ), one more step adds to both sides alike.",
        with_cosine,
    )
    result.step(
        Eq(exp(-grown / steps).subs(grown, steps * DECAY), 1 - lr * wd),
        "Without net change the geometric mean of cos θ is 1-ηλ, at equilibrium and over whole periods alike.",
    )
    result.step(Eq(steps * DECAY, grown - change), "The identity, by induction.")
    return result


def balance_law() -> Derivation:
    """Derive T·(-ln(1-ηλ)) = J/(1-φ).

    Examples
    --------
    >>> print(balance_law()[-1].rhs)
    -norm_rise/((1 - outside_growth)*log(-lr*wd + 1))
    """
    period, norm_rise, outside_growth = sympy.symbols("period norm_rise outside_growth", positive=True)
    (length,) = sympy.solve(Eq(period * DECAY, norm_rise + outside_growth * period * DECAY), period)
    result = Derivation(
        "Length of a period.",
        "A stationary trace; J = `norm_rise` is the mean rise of ln ρ in a destabilization, φ = `outside_growth` the "
        "share of growth outside the detected rises, 0 <= φ < 1; 0 < ηλ < 1.",
        {
            "lr": lr,
            "wd": wd,
            "norm_rise": norm_rise,
            "outside_growth": outside_growth,
            "period": period,
            "grown": grown,
        },
        {grown: period * DECAY, period: length},
    )
    result.step(Eq(grown, period * DECAY), "Over a mean period the growth makes up for the decay (`balance`).")
    result.step(
        Eq(grown, norm_rise + outside_growth * grown), "Growth is the rise of the destabilization and the rest."
    )
    result.step(Eq(grown, norm_rise / (1 - outside_growth)), "Solve for the growth.")
    result.step(
        Eq(period, norm_rise / (1 - outside_growth) / DECAY),
        "The law; it defines φ, and predicts T once J and φ are known.",
    )
    return result


def free_decay() -> Derivation:
    """Derive how fast weights fall without gradients, under coupled decay with momentum.

    Examples
    --------
    >>> free_decay().unproved()
    []
    """
    weights, pushed, slow, linear = sympy.symbols("weights pushed slow linear", positive=True)
    z, k = sympy.Symbol("z"), lr * wd
    # ηv of the buffer v; each row gives the next of (weights, ηv)
    steps_of = {
        "heavy_ball": sympy.Matrix([[1 - k, -mu], [k, mu]]),
        "nesterov": sympy.Matrix([[1 - k - mu * k, -(mu**2)], [k, mu]]),
    }
    after = {name: list(matrix * sympy.Matrix([weights, pushed])) for name, matrix in steps_of.items()}
    result = Derivation(
        "Decay of weights without gradients, with momentum.",
        "0 < ηλ < 1, coupled decay; `weights` is any component x, `pushed` its buffer times η; 1-u is a root z of the "
        "polynomial; `linear` = 1-μ+ηλ for heavy ball, 1-μ+ηλ(1+μ) for Nesterov.",
        {"lr": lr, "wd": wd, "momentum": mu, "linear": linear, "slow": slow},
        {slow: -log(1 - 2 * k / (linear + sympy.sqrt(linear**2 - 4 * k)))},
    )
    buffer = mu * pushed + k * weights
    result.step(Eq(weights - buffer, after["heavy_ball"][0]), "A step of heavy ball is linear in (x, ηv), …")
    result.step(
        Eq(weights - k * weights - mu * buffer, after["nesterov"][0]), "… one of Nesterov too; the buffer moves alike."
    )
    polynomials = {name: matrix.charpoly(z).as_expr() for name, matrix in steps_of.items()}
    result.step(Eq(polynomials["heavy_ball"], z**2 - (1 + mu - k) * z + mu), "Roots of heavy ball.")
    result.step(Eq(polynomials["nesterov"], z**2 - (1 + mu) * (1 - k) * z + mu * (1 - k)), "Roots of Nesterov.")
    for name, middle in (("heavy_ball", 1 - mu + k), ("nesterov", 1 - mu + k * (1 + mu))):
        result.step(
            Eq(polynomials[name].subs(z, 1 - z), z**2 - middle * z + k),
            "With z = 1-u (written z again): the smaller u keeps its digits.",
        )
    result.step(
        Eq((z**2 - linear * z + k).subs(z, 2 * k / (linear + sympy.sqrt(linear**2 - 4 * k))), 0), "The smaller root."
    )
    result.step(
        Eq(slow, -log(1 - 2 * k / (linear + sympy.sqrt(linear**2 - 4 * k)))),
        "After the other root has died out ln ρ falls by this in each step; complex roots have the size of the root of "
        "their product.",
    )
    return result


def least_decay_steps() -> Derivation:
    """Derive that a fall from one norm to another takes at least ln(ratio)/(-ln(1-ηλ)) steps.

    Examples
    --------
    >>> print(least_decay_steps()[-1].rhs)
    -log(ratio)/log(-lr*wd + 1)
    """
    ratio, least = sympy.symbols("ratio least", positive=True)
    after = (1 - lr * wd) * norm / cosine
    (found,) = sympy.solve(Eq(least * log(1 - lr * wd), -log(ratio)), least)
    result = Derivation(
        "Least length of a fall.",
        "Any gradients; 0 < ηλ < 1; `cosine` = cos θ in (0, 1]; `ratio` = norm before over norm after.",
        {"lr": lr, "wd": wd, "ratio": ratio, "least": least},
        {next_norm: after, least: found},
    )
    result.step(
        Ge(next_norm / norm, 1 - lr * wd),
        "No step shrinks the norm by more than decay alone does: cos θ = 1/(1+c).",
        {cosine: 1 / (1 + c), **BELOW_ONE},
    )
    result.step(Eq((1 - lr * wd) ** least, 1 / ratio), "So n steps shrink it at most by (1-ηλ)^n.", BELOW_ONE)
    result.step(Eq(least, -log(ratio) / log(1 - lr * wd)), "Solve for n; the number is rounded up.")
    return result


def least_time_between_angular_jumps() -> Derivation:
    """Derive that δ-jumps are on average at least ln(1-δ)/ln(1-ηλ) steps apart.

    Examples
    --------
    >>> print(least_time_between_angular_jumps()[-1].rhs)
    log(1 - delta)/log(-lr*wd + 1)
    """
    jumps, least, excess = sympy.symbols("jumps least excess", positive=True)
    identity = balance()[-1]
    (net,) = sympy.solve(identity, change)
    most = (steps * DECAY + change) / -log(1 - delta)
    result = Derivation(
        "Least mean time between δ-jumps.",
        "Any gradients; 0 < ηλ < 1; 0 < δ < 1; N = `steps`, `change` = ln(ρ_N/ρ₀); `jumps` steps are δ-jumps; "
        "`excess` is "
        "what they grow above -ln(1-δ) each, and what all other steps grow.",
        {"lr": lr, "wd": wd, "delta": delta, "steps": steps, "change": change, "jumps": jumps, "least": least},
        {least: 1 / Limit(most / steps, steps, oo).doit(), change: net, grown: jumps * -log(1 - delta) + excess},
    )
    norm_rise = {cosine: (1 - delta) / (1 + t), delta: 1 / (1 + s)}
    result.step(
        Gt(1 / cosine, 1 / (1 - delta)), "A δ-jump has cos θ < 1-δ: it adds more than -ln(1-δ) to ln ρ, …", norm_rise
    )
    result.step(Ge(1 / cosine, 1), "… and no step takes growth away: the excess is positive.", {cosine: 1 / (1 + c)})
    result.step(
        Ge(steps * DECAY + change, jumps * -log(1 - delta)),
        "By `balance` all growth is -N ln(1-ηλ) + ln(ρ_N/ρ₀): so many jumps at the most.",
    )
    result.step(
        Eq(least, log(1 - delta) / log(1 - lr * wd)),
        "Steps per jump in a long run of bounded norm, in which ln(ρ_N/ρ₀)/N vanishes.",
    )
    return result


def decay_phase_product() -> Derivation:
    """Derive how loss times effective learning rate moves in a fall.

    Examples
    --------
    >>> decay_phase_product().unproved()
    []
    """
    loss, effective, tail, inverse, start, product = sympy.symbols(
        "loss effective_lr tail inverse start product", positive=True
    )
    tau, ratio = sympy.symbols("tau a", positive=True)
    course = loss / (1 + tail * loss * tau)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    solution = ratio**number * inverse + tail * ratio * (1 - ratio**number) / (1 - ratio)
    k = sympy.Symbol("k", positive=True)
    result = Derivation(
        "Loss times effective learning rate in a fall.",
        "Gradients too small to move the norm: η̃⁺ = η̃/a with a = (1-ηλ)²; a loss with dL/dτ = -`tail`·L² in the time "
        "dτ = η̃dt of the sphere; `inverse` = 1/(Lη̃), `start` = Lη̃ at the beginning, `number` of steps; 0 < ηλ < 1.",
        {"lr": lr, "wd": wd, "tail": tail, "start": start, "number": number, "product": product, "a": ratio},
        {product: 1 / solution.subs(inverse, 1 / start), ratio: (1 - lr * wd) ** 2},
    )
    result.step(Eq(Derivative(course, tau), -tail * course**2), "The course of the loss on the sphere, exactly.")
    after = course.subs(tau, effective)
    result.step(
        Eq(1 / (after * effective / ratio), ratio * (1 / (loss * effective) + tail)),
        "One step has τ = η̃, and η̃ grows by 1/a: the inverse of Lη̃ obeys a linear recursion.",
    )
    result.step(
        Eq(solution.subs(number, number + 1), ratio * (solution + tail)),
        "This solves the recursion …",
    )
    result.step(Eq(solution.subs(number, 0), inverse), "… from its first value.")
    result.step(
        Eq(Limit((tail * ratio / (1 - ratio)).subs(ratio, (1 - k) ** 2) * 2 * k / tail, k, 0), 1),
        "It tends to c a/(1-a) = c/κ(ηλ)², so Lη̃ to about 2ηλ/c.",
    )
    result.step(
        Eq(product, start / (ratio**number + start * tail * ratio * (1 - ratio**number) / (1 - ratio))),
        "The inverse of the solution: a logistic curve in the number of steps.",
    )
    return result
