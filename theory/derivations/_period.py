"""Balance of decay and growth: decay phases, angular jumps and periods (docs/mathematics.md §4, §5)."""

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
    """Derive -N ln(1-ηλ) = Σ(-ln cos θ) - ln(ρ_N/ρ₀), and the geometric mean 1-ηλ of cos θ."""
    total_change = steps * log(1 - lr * wd) + grown
    step = _one_step.rotation()
    after = next(relation for relation in step if relation.lhs == next_norm)
    result = Derivation(
        "Balance of decay and growth.",
        "Any gradients; 0 < ηλ < 1; N = `steps`; `grown` = Σ(-ln cos θ); `change` = ln(ρ_N/ρ₀).",
        [lr, wd, norm, theta, steps, grown, change],
        {next_norm: after.rhs, change: total_change},
    )
    with_cosine = {cos(theta): cosine, **BELOW_ONE}
    result.step(
        Eq(next_norm, (1 - lr * wd) * norm / cos(theta)), "One step changes the norm by this factor (`rotation`)."
    )
    result.step(
        Eq(log(next_norm / norm), log(1 - lr * wd) - log(cos(theta))),
        "In ln ρ every step loses the same amount by decay and gains -ln cos θ.",
        with_cosine,
    )
    result.step(Eq(change.subs(change, total_change).subs({steps: 0, grown: 0}), 0), "The identity holds for N = 0.")
    result.step(
        Eq(total_change + log(next_norm / norm), (grown - log(cos(theta))) + (steps + 1) * log(1 - lr * wd)),
        "If ln(ρ_N/ρ₀) = `grown` + N ln(1-ηλ) holds for N steps, it holds for N+1: one more step adds the same to "
        "both sides.",
        with_cosine,
    )
    result.step(
        Eq(exp(-grown / steps).subs(grown, steps * DECAY), 1 - lr * wd),
        "Without net change of the norm the geometric mean of cos θ is 1-ηλ, at equilibrium and over whole periods.",
    )
    result.step(Eq(steps * DECAY, grown - change), "The identity follows by induction.")
    return result


def balance_law() -> Derivation:
    """Derive T·(-ln(1-ηλ)) = J/(1-φ)."""
    period, norm_rise, outside_growth = sympy.symbols("period norm_rise outside_growth", positive=True)
    (length,) = sympy.solve(Eq(period * DECAY, norm_rise + outside_growth * period * DECAY), period)
    result = Derivation(
        "Length of a period.",
        "A stationary trace; J = `norm_rise` is the mean rise of ln ρ in a destabilization; φ = `outside_growth` is "
        "the share of growth outside the detected destabilizations, 0 <= φ < 1; 0 < ηλ < 1.",
        [lr, wd, norm_rise, outside_growth, period, grown],
        {grown: period * DECAY, period: length},
    )
    result.step(Eq(grown, period * DECAY), "Over a mean period growth equals decay (`balance`).")
    result.step(
        Eq(grown, norm_rise + outside_growth * grown),
        "Growth is the norm rise plus the growth outside the destabilizations.",
    )
    result.step(Eq(grown, norm_rise / (1 - outside_growth)), "Solve for the growth.")
    result.step(
        Eq(period, norm_rise / (1 - outside_growth) / DECAY),
        "Solve for T. This equation defines φ, and it predicts T if J and φ are known.",
    )
    return result


def free_decay() -> Derivation:
    """Derive how fast weights decay without gradients, for coupled weight decay with momentum."""
    weights, pushed, slow, linear = sympy.symbols("weights pushed slow linear", positive=True)
    z, intrinsic_lr = sympy.Symbol("z"), lr * wd
    # matrices of one step of (weights, ηv), where v is the buffer
    steps_of = {
        "heavy_ball": sympy.Matrix([[1 - intrinsic_lr, -mu], [intrinsic_lr, mu]]),
        "nesterov": sympy.Matrix([[1 - intrinsic_lr - mu * intrinsic_lr, -(mu**2)], [intrinsic_lr, mu]]),
    }
    after = {name: list(matrix * sympy.Matrix([weights, pushed])) for name, matrix in steps_of.items()}
    result = Derivation(
        "Decay of weights without gradients, with momentum.",
        "0 < ηλ < 1; coupled decay; `weights` is any component x, `pushed` is its buffer times η; 1-u is a root z of "
        "the polynomial; `linear` = 1-μ+ηλ for heavy ball, 1-μ+ηλ(1+μ) for Nesterov.",
        [lr, wd, mu, linear, slow],
        {slow: -log(1 - 2 * intrinsic_lr / (linear + sympy.sqrt(linear**2 - 4 * intrinsic_lr)))},
    )
    buffer = mu * pushed + intrinsic_lr * weights
    result.step(Eq(weights - buffer, after["heavy_ball"][0]), "A step of heavy ball is linear in (x, ηv).")
    result.step(
        Eq(weights - intrinsic_lr * weights - mu * buffer, after["nesterov"][0]),
        "So is a step of Nesterov, with the same update of the buffer.",
    )
    polynomials = {name: matrix.charpoly(z).as_expr() for name, matrix in steps_of.items()}
    result.step(
        Eq(polynomials["heavy_ball"], z**2 - (1 + mu - intrinsic_lr) * z + mu),
        "Characteristic polynomial of heavy ball.",
    )
    result.step(
        Eq(polynomials["nesterov"], z**2 - (1 + mu) * (1 - intrinsic_lr) * z + mu * (1 - intrinsic_lr)),
        "Characteristic polynomial of Nesterov.",
    )
    for name, coefficient in (("heavy_ball", 1 - mu + intrinsic_lr), ("nesterov", 1 - mu + intrinsic_lr * (1 + mu))):
        result.step(
            Eq(polynomials[name].subs(z, 1 - z), z**2 - coefficient * z + intrinsic_lr),
            "Insert z = 1-u, where u is written z again. The smaller u has no rounding error from cancellation.",
        )
    result.step(
        Eq(
            (z**2 - linear * z + intrinsic_lr).subs(
                z, 2 * intrinsic_lr / (linear + sympy.sqrt(linear**2 - 4 * intrinsic_lr))
            ),
            0,
        ),
        "The smaller root u.",
    )
    result.step(
        Eq(slow, -log(1 - 2 * intrinsic_lr / (linear + sympy.sqrt(linear**2 - 4 * intrinsic_lr)))),
        "When the other root has died out, ln ρ decreases by this amount per step. Complex roots have the square "
        "root of their product as modulus.",
    )
    return result


def least_decay_steps() -> Derivation:
    """Derive that the norm needs at least ln(ratio)/(-ln(1-ηλ)) steps to decay from one value to another."""
    ratio, least = sympy.symbols("ratio least", positive=True)
    after = (1 - lr * wd) * norm / cosine
    (least_solution,) = sympy.solve(Eq(least * log(1 - lr * wd), -log(ratio)), least)
    result = Derivation(
        "Least number of steps of a decay phase.",
        "Any gradients; 0 < ηλ < 1; `cosine` = cos θ in (0, 1]; `ratio` = norm before over norm after.",
        [lr, wd, ratio, least],
        {next_norm: after, least: least_solution},
    )
    result.step(
        Ge(next_norm / norm, 1 - lr * wd),
        "No step shrinks the norm by more than decay alone: cos θ = 1/(1+c).",
        {cosine: 1 / (1 + c), **BELOW_ONE},
    )
    result.step(Eq((1 - lr * wd) ** least, 1 / ratio), "Hence n steps shrink it at most by (1-ηλ)^n.", BELOW_ONE)
    result.step(Eq(least, -log(ratio) / log(1 - lr * wd)), "Solve for n and round up.")
    return result


def least_time_between_angular_jumps() -> Derivation:
    """Derive that angular jumps are on average at least ln(1-δ)/ln(1-ηλ) steps apart."""
    angular_jumps, least, excess = sympy.symbols("angular_jumps least excess", positive=True)
    identity = balance()[-1]
    (net,) = sympy.solve(identity, change)
    most_angular_jumps = (steps * DECAY + change) / -log(1 - delta)
    result = Derivation(
        "Least mean time between angular jumps.",
        "Any gradients; 0 < ηλ < 1; 0 < δ < 1; N = `steps`; `change` = ln(ρ_N/ρ₀); `angular_jumps` steps have 1 - "
        "cos θ > δ; `excess` is their growth above -ln(1-δ) each plus the growth of all other steps.",
        [lr, wd, delta, steps, change, angular_jumps, least],
        {
            least: 1 / Limit(most_angular_jumps / steps, steps, oo).doit(),
            change: net,
            grown: angular_jumps * -log(1 - delta) + excess,
        },
    )
    angular_jump = {cosine: (1 - delta) / (1 + t), delta: 1 / (1 + s)}
    result.step(
        Gt(1 / cosine, 1 / (1 - delta)),
        "An angular jump has cos θ < 1-δ, so it adds more than -ln(1-δ) to ln ρ.",
        angular_jump,
    )
    result.step(
        Ge(1 / cosine, 1), "Every other step adds at least 0, so the excess is positive.", {cosine: 1 / (1 + c)}
    )
    result.step(
        Ge(steps * DECAY + change, angular_jumps * -log(1 - delta)),
        "By `balance` the total growth is -N ln(1-ηλ) + ln(ρ_N/ρ₀). This bounds the number of angular jumps.",
    )
    result.step(
        Eq(least, log(1 - delta) / log(1 - lr * wd)),
        "In a long run of bounded norm ln(ρ_N/ρ₀)/N vanishes, which gives the least number of steps per angular jump.",
    )
    return result


def decay_phase_product() -> Derivation:
    """Derive the course of loss times effective learning rate in a decay phase."""
    loss, effective, tail, inverse, start, product = sympy.symbols(
        "loss effective_lr tail inverse start product", positive=True
    )
    tau, ratio = sympy.symbols("tau a", positive=True)
    loss_at_time = loss / (1 + tail * loss * tau)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    solution = ratio**number * inverse + tail * ratio * (1 - ratio**number) / (1 - ratio)
    intrinsic_lr = sympy.Symbol("intrinsic_lr", positive=True)
    result = Derivation(
        "Loss times effective learning rate in a decay phase.",
        "Gradients too small to change the norm: η̃⁺ = η̃/a with a = (1-ηλ)²; a loss with dL/dτ = -`tail`·L² in the "
        "time dτ = η̃dt of the sphere; `inverse` = 1/(Lη̃); `start` = Lη̃ at the beginning; `number` of steps; 0 < "
        "ηλ < 1.",
        [lr, wd, tail, start, number, product, ratio],
        {product: 1 / solution.subs(inverse, 1 / start), ratio: (1 - lr * wd) ** 2},
    )
    result.step(
        Eq(Derivative(loss_at_time, tau), -tail * loss_at_time**2),
        "The loss on the sphere solves its equation exactly.",
    )
    after = loss_at_time.subs(tau, effective)
    result.step(
        Eq(1 / (after * effective / ratio), ratio * (1 / (loss * effective) + tail)),
        "One step takes the time τ = η̃, and η̃ grows by 1/a. Hence 1/(Lη̃) obeys a linear recursion.",
    )
    result.step(Eq(solution.subs(number, number + 1), ratio * (solution + tail)), "This function solves the recursion.")
    result.step(Eq(solution.subs(number, 0), inverse), "It starts at the first value.")
    result.step(
        Eq(
            Limit(
                (tail * ratio / (1 - ratio)).subs(ratio, (1 - intrinsic_lr) ** 2) * 2 * intrinsic_lr / tail,
                intrinsic_lr,
                0,
            ),
            1,
        ),
        "The solution tends to c a/(1-a) = c/κ(ηλ)² with c = `tail`, so Lη̃ tends to about 2ηλ/c.",
    )
    result.step(
        Eq(product, start / (ratio**number + start * tail * ratio * (1 - ratio**number) / (1 - ratio))),
        "The inverse of the solution is a logistic curve in the number of steps.",
    )
    return result
