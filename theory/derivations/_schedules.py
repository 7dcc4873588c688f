"""The norm under a learning rate that changes (docs/mathematics.md §9)."""

from __future__ import annotations

import sympy
from sympy import Derivative, Integral, exp

from theory.derivations._derivation import Derivation, Eq, Lt
from theory.derivations._symbols import grad_norm, lr, norm, wd

time, moment = sympy.symbols("time moment", nonnegative=True)
start = sympy.Symbol("start", positive=True)


def norm_under_schedule() -> Derivation:
    """Derive ρ⁴(t) under any learning rate η(t), as an integral.

    Examples
    --------
    >>> norm_under_schedule().unproved()
    []
    """
    rate = sympy.Function("eta", positive=True)
    spent = Integral(rate(moment), (moment, 0, time))
    later = sympy.Symbol("later", nonnegative=True)
    until = Integral(rate(moment), (moment, 0, later))
    grown = Integral(rate(later) ** 2 * exp(4 * wd * until), (later, 0, time))
    solution = exp(-4 * wd * spent) * (start**4 + 2 * grad_norm**2 * grown)
    fourth = sympy.Symbol("fourth", positive=True)
    result = Derivation(
        "The norm under a learning-rate schedule, in continuous time.",
        "Constant g̃, any learning rate η(t) > 0; `fourth` is ρ⁴ at `time`, `start` ρ at 0.",
        {"wd": wd, "grad_norm": grad_norm, "time": time, "start": start, "fourth": fourth},
        {fourth: solution},
    )
    result.step(
        Eq(Derivative(spent, time), rate(time)), "The decay that has been felt is the integral of the learning rate."
    )
    result.step(
        Eq(Derivative(solution, time), -4 * wd * rate(time) * solution + 2 * (rate(time) * grad_norm) ** 2),
        "The solution of the linear equation d(ρ⁴)/dt = -4ηλρ⁴ + 2(ηg̃)², by variation of constants …",
    )
    result.step(Eq(solution.subs(time, 0), start**4), "… from the first norm.")
    result.step(
        Eq(fourth, exp(-4 * wd * spent) * (start**4 + 2 * grad_norm**2 * grown)),
        "The norm at any time, in one integral.",
    )
    return result


def tracking_lag() -> Derivation:
    """Derive the lag ρ/ρ*(η_t) - 1 = -(d ln η/dt)/(16ηλ) of a slow schedule.

    Examples
    --------
    >>> print(tracking_lag()[-1])
    Eq(lag, -slope/(16*lr*wd))
    """
    rate, z = sympy.Function("eta", positive=True), sympy.Function("z")
    slope, small, lag = sympy.symbols("slope small lag", real=True)
    rest = rate(time) * grad_norm**2 / (2 * wd)
    moving = Derivative(rest * (1 + z(time)), time) + 4 * rate(time) * wd * rest * (1 + z(time))
    equation = (moving - 2 * (rate(time) * grad_norm) ** 2) / rest
    drift = Derivative(rate(time), time) / rate(time)
    (found,) = sympy.solve(4 * lr * wd * small + slope, small)
    result = Derivation(
        "Lag of the norm behind its equilibrium.",
        "Constant g̃; η changes slowly: `slope` = d ln η/dt is much smaller than ηλ. ρ⁴ = ρ*⁴(1+z).",
        {"lr": lr, "wd": wd, "slope": slope, "small": small, "lag": lag},
        {lag: sympy.series((1 + small) ** sympy.Rational(1, 4), small, 0, 2).removeO() - 1, small: found},
    )
    result.step(
        Eq(equation, Derivative(z(time), time) + 4 * rate(time) * wd * z(time) + drift * (1 + z(time))),
        "The equation of ρ⁴, divided by the present equilibrium ρ*⁴ = η(t)g̃²/(2λ).",
    )
    slowness, first = sympy.Symbol("slowness", positive=True), sympy.Function("z_1")
    scaled = slowness**2 * Derivative(first(time), time) + 4 * lr * wd * slowness * first(time)
    scaled += slowness * slope * (1 + slowness * first(time))
    result.step(
        Eq(sympy.Limit(sympy.expand(scaled / slowness).doit(), slowness, 0), 4 * lr * wd * first(time) + slope),
        "Slow change: in the time ε·t the slope is ε·`slope` and z = ε z₁; what is of first order in ε remains, "
        "and vanishes.",
    )
    result.step(Eq(small, -slope / (4 * lr * wd)), "Solve for z.")
    result.step(Eq(lag, small / 4), "ρ = ρ*(1+z)^¼, to first order.")
    result.step(Eq(lag, -slope / (16 * lr * wd)), "The lag: positive, the norm too large, while η falls.")
    return result


def tracked_steps() -> Derivation:
    """Derive that under a linear decay to 0 the lag exceeds ε in the last √(N/(16 ε η₀ λ)) steps.

    Examples
    --------
    >>> print(tracked_steps()[-1].lhs)
    left
    """
    steps, left, tolerance, first = sympy.symbols("steps left tolerance lr_max", positive=True)
    rate = first * left / steps
    lag = tracking_lag()
    slope = lag.symbols["slope"]
    # as a function of the remaining steps: time runs the other way
    behind = lag[-1].rhs.subs({lr: rate, slope: -sympy.diff(sympy.log(rate), left)})
    (found,) = sympy.solve(Eq(behind, tolerance), left)
    name = lag.symbols["lag"]
    result = Derivation(
        "Where a linear schedule loses the norm.",
        "η falls from `lr_max` linearly to 0 over N = `steps` steps, `left` of which remain; ε = `tolerance`; the lag "
        "is that of slow change (`tracking_lag`).",
        {"wd": wd, "lr_max": first, "steps": steps, "left": left, "tolerance": tolerance, "lag": name},
        {name: behind},
    )
    result.step(Eq(-sympy.Derivative(sympy.log(rate), left), -1 / left), "d ln η/dt of η = `lr_max`·`left`/N.")
    result.step(Eq(name, steps / (16 * first * wd * left**2)), "The lag, -(d ln η/dt)/(16ηλ), …")
    result.step(Lt(sympy.Derivative(behind, left), 0), "… grows as steps run out, so that there is one border.")
    result.step(Eq(name, tolerance), "At the border it is ε; solve for `left`.", {left: found})
    result.step(Eq(left, sympy.sqrt(steps / (16 * tolerance * first * wd))), "The solution.", {left: found})
    return result


def corrected_decay() -> Derivation:
    """Derive the decay λη_t/η_max, under which the equilibrium norm and the gradient norm of the weights stay.

    Examples
    --------
    >>> print(corrected_decay()[-1])
    Eq(decay, lr*wd/lr_max)
    """
    largest, decay, pull = sympy.symbols("lr_max decay weight_gradient", positive=True)
    fourth = lr * grad_norm**2 / (2 * wd)
    (found,) = sympy.solve(Eq(fourth.subs(wd, decay), fourth.subs(lr, largest)), decay)
    result = Derivation(
        "Decay that keeps the norm when the learning rate falls.",
        "Constant g̃; ηλ small, so that ρ*⁴ = ηg̃²/(2λ); λ = `wd` at the largest rate `lr_max`; `weight_gradient` = "
        "‖∇f‖ = g̃/ρ*.",
        {
            "lr": lr,
            "wd": wd,
            "grad_norm": grad_norm,
            "norm": norm,
            "lr_max": largest,
            "decay": decay,
            "weight_gradient": pull,
        },
        {pull: grad_norm / norm, norm: fourth ** sympy.Rational(1, 4), decay: found},
    )
    result.step(Eq(norm**4, fourth), "Equilibrium for small ηλ.")
    result.step(
        Eq(pull**4, 2 * wd * grad_norm**2 / lr),
        "At constant λ the gradient norm of the weights grows as η falls, by η^-¼, with no change of the loss.",
    )
    result.step(
        Eq(lr * grad_norm**2 / (2 * decay), largest * grad_norm**2 / (2 * wd)),
        "Ask for the norm of the largest learning rate at all times …",
    )
    result.step(Eq(decay, wd * lr / largest), "… and solve for the decay.")
    return result
