"""The norm under a learning-rate schedule (docs/mathematics.md §9)."""

from __future__ import annotations

import sympy
from sympy import Derivative, Integral, Rational, exp, sqrt

from theory.derivations._derivation import Derivation, Eq, Lt
from theory.derivations._symbols import effective_lr, grad_norm, lr, norm, wd

time, moment = sympy.symbols("time moment", nonnegative=True)
start = sympy.Symbol("start", positive=True)


def norm_under_schedule() -> Derivation:
    """Derive ρ⁴(t) under any learning rate η(t) as an integral."""
    learning_rate = sympy.Function("eta", positive=True)
    integrated_lr = Integral(learning_rate(moment), (moment, 0, time))
    later = sympy.Symbol("later", nonnegative=True)
    integrated_until = Integral(learning_rate(moment), (moment, 0, later))
    growth = Integral(learning_rate(later) ** 2 * exp(4 * wd * integrated_until), (later, 0, time))
    solution = exp(-4 * wd * integrated_lr) * (start**4 + 2 * grad_norm**2 * growth)
    fourth = sympy.Symbol("fourth", positive=True)
    result = Derivation(
        "Norm under a learning-rate schedule, in continuous time.",
        "Constant g̃; any learning rate η(t) > 0; u = ρ⁴ is `fourth` at `time`, and `start` is ρ at time 0.",
        [wd, grad_norm, time, start, fourth],
        {fourth: solution},
    )
    result.step(
        Eq(Derivative(integrated_lr, time), learning_rate(time)),
        "The derivative of the integrated learning rate is the learning rate.",
    )
    result.step(
        Eq(
            Derivative(solution, time),
            -4 * wd * learning_rate(time) * solution + 2 * (learning_rate(time) * grad_norm) ** 2,
        ),
        "By variation of constants this function solves the linear equation d(ρ⁴)/dt = -4ηλρ⁴ + 2(ηg̃)².",
    )
    result.step(Eq(solution.subs(time, 0), start**4), "It starts at the initial norm.")
    result.step(
        Eq(fourth, exp(-4 * wd * integrated_lr) * (start**4 + 2 * grad_norm**2 * growth)),
        "The norm at any time is one integral.",
    )
    return result


def small_steps() -> Derivation:
    """Derive the law of the norm for small steps under SGD, under decoupled decay with fixed steps, and under Adam."""
    rate, slope, small = sympy.symbols("rate slope small", real=True)
    scale, sq_norm, spread, dim = sympy.symbols("epsilon r S d", positive=True)
    power, exponent, settled, lag = sympy.symbols("p q settled lag", positive=True)
    decay, kept = lr * wd, (1 - scale * lr * wd) ** 2
    plain = (kept * sq_norm + scale * (lr * grad_norm) ** 2 / sq_norm - sq_norm) / scale
    decoupled = (kept * sq_norm + scale * lr**2 * dim * spread - sq_norm) / scale
    adam = -2 * (lr * wd * sqrt(sq_norm) * sqrt(dim) / grad_norm) * sq_norm + lr**2 * dim * spread
    (solution,) = sympy.solve(rate * settled**exponent * small + slope / power, small)
    result = Derivation(
        "Norm for small steps under every optimizer, and its lag.",
        "r = ρ² is `r`; D of the directions is `d`, and S their summed correlations; ηλ, and the growth in one step, "
        "are of first order in ε = `epsilon`; ρ^p = `settled`^p (1 + p·`lag`) with `slope` = d ln `settled`^p/dt.",
        [lr, wd, grad_norm, sq_norm, dim, spread, rate, settled, power, exponent, slope, lag],
        {lag: solution},
    )
    result.step(
        Eq(sympy.Limit(sympy.expand(plain), scale, 0), -2 * decay * sq_norm + (lr * grad_norm) ** 2 / sq_norm),
        "Plain SGD: the change of r in one step, over ε.",
    )
    result.step(
        Eq(
            2 * sq_norm * (-2 * decay * sq_norm + (lr * grad_norm) ** 2 / sq_norm),
            2 * (lr * grad_norm) ** 2 - 4 * decay * sq_norm**2,
        ),
        "Its fourth power has a linear law: p = 4, ω = 4ηλ, b = 2(ηg̃)².",
    )
    result.step(
        Eq(sympy.Limit(sympy.expand(decoupled), scale, 0), lr**2 * dim * spread - 2 * decay * sq_norm),
        "Decoupled decay with steps of fixed size, as under AdamW, Lion and Muon: p = 2, ω = 2ηλ, b = η²dS. "
        "The correlations of the steps end long before the norm changes.",
    )
    result.step(
        Eq(
            Rational(3, 2) * sqrt(sq_norm) * adam,
            (Rational(3, 2) * lr**2 * dim * spread - 3 * lr * wd * sqrt(dim) / grad_norm * sqrt(sq_norm) ** 3)
            * sqrt(sq_norm),
        ),
        "Adam divides the decay by the root of the mean square, g̃/(ρ√d), so its decay per step is ηλρ√d/g̃. "
        "This gives p = 3, q = 1, ω = 3ηλ√d/g̃, b = 3η²dS/2.",
    )
    perturbed = settled**power * (1 + power * small)
    change = (rate * settled**power - rate * perturbed) * settled**exponent * (1 + small) ** exponent
    result.step(
        Eq(sympy.Limit(change / (power * settled**power * small), small, 0), -rate * settled**exponent),
        "At equilibrium b = ω·`settled`^p. A `small` deviation of ln ρ decays at the rate 1/τ = ω·`settled`^q.",
    )
    result.step(
        Eq(rate * settled**exponent * lag + slope / power, 0),
        "While the equilibrium moves slowly, the lag is constant to first order, as in `tracking_lag`.",
    )
    result.step(
        Eq(lag, -slope / (power * rate * settled**exponent)),
        "`slope` is d ln(η/λ)/dt, since b/ω is proportional to η/λ. For SGD this is -`slope`/(16ηλ), and for AdamW, "
        "Lion and Muon -`slope`/(4ηλ).",
    )
    return result


def tracking_lag() -> Derivation:
    """Derive the lag ρ/ρ*(η_t) - 1 = -(d ln η/dt)/(16ηλ) of a slow schedule."""
    learning_rate, z = sympy.Function("eta", positive=True), sympy.Function("z")
    slope, small, lag = sympy.symbols("slope small lag", real=True)
    equilibrium = learning_rate(time) * grad_norm**2 / (2 * wd)
    terms = Derivative(equilibrium * (1 + z(time)), time) + 4 * learning_rate(time) * wd * equilibrium * (1 + z(time))
    equation = (terms - 2 * (learning_rate(time) * grad_norm) ** 2) / equilibrium
    drift = Derivative(learning_rate(time), time) / learning_rate(time)
    (small_solution,) = sympy.solve(4 * lr * wd * small + slope, small)
    result = Derivation(
        "Lag of the norm behind its equilibrium.",
        "Constant g̃; η changes slowly, so that `slope` = d ln η/dt is much smaller than ηλ; ρ⁴ = ρ*⁴(1+z).",
        [lr, wd, slope, small, lag],
        {lag: sympy.series((1 + small) ** sympy.Rational(1, 4), small, 0, 2).removeO() - 1, small: small_solution},
    )
    result.step(
        Eq(equation, Derivative(z(time), time) + 4 * learning_rate(time) * wd * z(time) + drift * (1 + z(time))),
        "This is the equation of ρ⁴, divided by the current equilibrium ρ*⁴ = η(t)g̃²/(2λ).",
    )
    slowness, first = sympy.Symbol("slowness", positive=True), sympy.Function("z_1")
    scaled_equation = slowness**2 * Derivative(first(time), time) + 4 * lr * wd * slowness * first(time)
    scaled_equation += slowness * slope * (1 + slowness * first(time))
    result.step(
        Eq(
            sympy.Limit(sympy.expand(scaled_equation / slowness).doit(), slowness, 0), 4 * lr * wd * first(time) + slope
        ),
        "Slow change: in the time ε·t the slope is ε·`slope`, and z = ε z₁. The terms of first order in ε remain, "
        "and their sum vanishes.",
    )
    result.step(Eq(small, -slope / (4 * lr * wd)), "Solve for z.")
    result.step(Eq(lag, small / 4), "To first order ρ = ρ*(1+z)^¼ gives a quarter of z.")
    result.step(
        Eq(lag, -slope / (16 * lr * wd)), "Insert z. The lag is positive while η decreases: the norm is too large."
    )
    return result


def tracked_steps() -> Derivation:
    """Derive that the lag of a linear schedule exceeds ε in the last √(N/(16 ε η₀ λ)) steps."""
    steps, left, tolerance, first = sympy.symbols("steps left tolerance lr_max", positive=True)
    learning_rate = first * left / steps
    lag = tracking_lag()
    slope = lag.symbols["slope"]
    # derivative in the remaining steps, which decrease with time: the sign changes
    lag_value = lag[-1].rhs.subs({lr: learning_rate, slope: -sympy.diff(sympy.log(learning_rate), left)})
    (left_solution,) = sympy.solve(Eq(lag_value, tolerance), left)
    lag_symbol = lag.symbols["lag"]
    result = Derivation(
        "Steps in which a linear schedule loses the equilibrium.",
        "η decreases linearly from `lr_max` to 0 over N = `steps` steps, of which `left` remain; ε = `tolerance`; "
        "the lag is that of slow change (`tracking_lag`).",
        [wd, first, steps, left, tolerance, lag_symbol],
        {lag_symbol: lag_value},
    )
    result.step(
        Eq(-sympy.Derivative(sympy.log(learning_rate), left), -1 / left), "d ln η/dt for η = `lr_max`·`left`/N."
    )
    result.step(Eq(lag_symbol, steps / (16 * first * wd * left**2)), "Insert it into the lag -(d ln η/dt)/(16ηλ).")
    result.step(
        Lt(sympy.Derivative(lag_value, left), 0),
        "The lag grows as fewer steps remain, so it exceeds ε from one step on.",
    )
    result.step(Eq(lag_symbol, tolerance), "At this step the lag is ε. Solve for `left`.", {left: left_solution})
    result.step(
        Eq(left, sympy.sqrt(steps / (16 * tolerance * first * wd))),
        "The solution is the number of steps that remain.",
        {left: left_solution},
    )
    return result


def corrected_decay() -> Derivation:
    """Derive the weight decay λη_t/η_max, which keeps the equilibrium norm and the gradient norm of the weights."""
    largest, decay, weight_gradient = sympy.symbols("lr_max decay weight_gradient", positive=True)
    fourth = lr * grad_norm**2 / (2 * wd)
    (decay_solution,) = sympy.solve(Eq(fourth.subs(wd, decay), fourth.subs(lr, largest)), decay)
    result = Derivation(
        "Weight decay that keeps the norm constant when the learning rate decreases.",
        "Constant g̃; small ηλ, so that ρ*⁴ = ηg̃²/(2λ); λ = `wd` at the largest learning rate `lr_max`; "
        "`weight_gradient` = ‖∇f‖ = g̃/ρ*.",
        [lr, wd, grad_norm, norm, largest, decay, weight_gradient],
        {weight_gradient: grad_norm / norm, norm: fourth ** sympy.Rational(1, 4), decay: decay_solution},
    )
    result.step(Eq(norm**4, fourth), "The equilibrium for small ηλ.")
    result.step(
        Eq(weight_gradient**4, 2 * wd * grad_norm**2 / lr),
        "At constant λ the gradient norm of the weights grows as η^-¼ when η decreases, although the loss does not "
        "change.",
    )
    result.step(
        Eq(lr * grad_norm**2 / (2 * decay), largest * grad_norm**2 / (2 * wd)),
        "Require the equilibrium norm of the largest learning rate at all times.",
    )
    result.step(Eq(decay, wd * lr / largest), "Solve for the weight decay.")
    return result


def settings_for_effective_lr() -> Derivation:
    """Derive the settings that give a wanted effective learning rate under plain SGD."""
    inverse, settled, decay = sympy.symbols("inverse settled decay", positive=True)
    square = sympy.Symbol("square", positive=True)
    learning_rate = effective_lr * square
    # half of the law of ρ⁴, divided by ρ²
    change = -2 * learning_rate * wd * square + (learning_rate * grad_norm) ** 2 / square
    (fixed_point,) = sympy.solve(2 * effective_lr * wd - (effective_lr * grad_norm) ** 2 * inverse, inverse)
    (constant_norm,) = sympy.solve(change.subs(wd, decay), decay)
    result = Derivation(
        "Settings for a wanted effective learning rate.",
        "Plain SGD, small ηλ; `effective_lr` is η/ρ² at each step; r = ρ² is `square` and 1/r is `inverse`.",
        [effective_lr, wd, grad_norm, square, inverse, settled, decay],
        {settled: fixed_point, decay: constant_norm},
    )
    result.step(
        Eq(change, -2 * effective_lr * wd * square**2 + (effective_lr * grad_norm) ** 2 * square),
        "Insert η = `effective_lr`·r into the law of the norm, dr/dt = -2ηλr + (ηg̃)²/r.",
    )
    result.step(
        Eq(
            -change / square**2,
            (2 * effective_lr * wd - (effective_lr * grad_norm) ** 2 * inverse).subs(inverse, 1 / square),
        ),
        "Hence 1/r obeys a linear law whose rate does not depend on λ, with e = `effective_lr`: d(1/r)/dt = 2eλ - "
        "(eg̃)²/r.",
    )
    result.step(
        Eq(1 / settled, effective_lr * grad_norm**2 / (2 * wd)),
        "At its equilibrium, r² = ηg̃²/(2λ) with η = `effective_lr`·r: the same as with a constant learning rate.",
    )
    result.step(
        Eq(decay, effective_lr * grad_norm**2 / (2 * square)),
        "The norm stays constant if decay balances growth at every step: solve dr/dt = 0 for λ.",
    )
    return result


def modulation() -> Derivation:
    """Derive how much of a modulation of the learning rate reaches the effective learning rate."""
    ratio = sympy.Symbol("ratio", positive=True)
    response, gain, squared_gain = sympy.symbols("response gain squared_gain")
    (norm_response,) = sympy.solve(sympy.I * ratio * response + response - 1, response)
    amplitude = 1 - response / 2
    result = Derivation(
        "Modulation of the learning rate.",
        "Constant g̃ and λ; ln η oscillates with a small amplitude at ω; `ratio` = ωτ with the relaxation time τ; "
        "`response` is the complex amplitude of ln ρ^p over that of ln η, with p = 4 for SGD and p = 2 for AdamW.",
        [ratio, response, gain, squared_gain],
        {
            squared_gain: sympy.expand(gain * sympy.conjugate(gain)),
            gain: amplitude,
            response: norm_response,
        },
    )
    result.step(
        Eq(response, 1 / (1 + sympy.I * ratio)),
        "ln ρ^p relaxes towards ln η + const. with the time τ, so iωτ·`response` = 1 - `response`.",
    )
    result.step(
        Eq(gain, 1 - 1 / (2 * (1 + sympy.I * ratio))),
        "η/ρ² under SGD and η/ρ under AdamW are both η/(ρ^p)^½, so `gain` is 1 minus half of the response.",
    )
    result.step(
        Eq(squared_gain, (1 + 4 * ratio**2) / (4 * (1 + ratio**2))),
        "The squared size of the gain: ¼ for slow and 1 for fast modulation. A slow change of η reaches the effective "
        "learning rate as its square root, and a fast one in full.",
    )
    return result
