"""The norm in continuous time, and the time of a fall (docs/mathematics.md §4, §5)."""

from __future__ import annotations

import sympy
from sympy import Derivative, Limit, exp, log, oo

from theory.derivations._derivation import Derivation, Eq
from theory.derivations._equilibrium import fixed_square
from theory.derivations._one_step import square_map
from theory.derivations._symbols import a, b, grad_norm, lr, norm, sq_norm, wd

time = sympy.Symbol("time", nonnegative=True)
k = sympy.Symbol("k", positive=True)
fourth, first_fourth, rest_fourth = sympy.symbols("fourth first_fourth rest_fourth", positive=True)


def norm_flow() -> Derivation:
    """Derive ρ⁴(t) = ρ*⁴ + (ρ₀⁴-ρ*⁴)exp(-4ηλt) with ρ*⁴ = ηg̃²/(2λ), and that its error is of first order in ηλ.

    Examples
    --------
    >>> norm_flow().unproved()
    []
    """
    start = sympy.Symbol("start", positive=True)
    slope = -2 * k * sq_norm + b / sq_norm
    # the scale on which decay and growth balance: b = 2k ρ*⁴
    balanced = {b: 2 * k * rest_fourth}
    solution = rest_fourth + (fourth - rest_fourth) * exp(-4 * k * time)
    mapped = sympy.expand(square_map((1 - k) ** 2, b) ** 2).subs(balanced)
    flowed = solution.subs({fourth: sq_norm**2, time: 1})
    rest = lr * grad_norm**2 / (2 * wd)
    result = Derivation(
        "The norm in continuous time.",
        "Constant g̃; time in steps; k = ηλ; b = (ηg̃)² = 2k ρ*⁴; `fourth` is ρ⁴, `start` ρ₀, `rest_fourth` ρ*⁴.",
        {
            "lr": lr,
            "wd": wd,
            "grad_norm": grad_norm,
            "time": time,
            "start": start,
            "norm": norm,
            "rest_fourth": rest_fourth,
        },
        {norm: solution.subs(fourth, start**4) ** sympy.Rational(1, 4), rest_fourth: rest, k: lr * wd},
    )
    result.step(
        Eq(
            Limit((square_map((1 - k) ** 2, b) - sq_norm).subs(balanced) / k, k, 0),
            -2 * sq_norm + 2 * rest_fourth / sq_norm,
        ),
        "Steps become a flow as k → 0: dr/dt = -2kr + b/r.",
    )
    result.step(
        Eq(2 * sq_norm * slope, -4 * k * sq_norm**2 + 2 * b),
        "d(r²)/dt = 2r dr/dt: with u = r² = ρ⁴ the equation is linear.",
    )
    result.step(
        Eq(Derivative(solution, time), -4 * k * solution + (2 * b).subs(balanced)), "This solves the equation …"
    )
    result.step(Eq(solution.subs(time, 0), fourth), "… from ρ₀⁴ at t = 0 …")
    result.step(Eq(Limit(solution.subs(k, 1), time, oo), rest_fourth), "… to ρ*⁴ in the end.")
    result.step(
        Eq(Limit((mapped - flowed) / k**2, k, 0), 4 * rest_fourth**2 / sq_norm**2 - 2 * sq_norm**2),
        "One step of the map differs from the flow by a multiple of k², hence 1/k steps by a multiple of k.",
    )
    result.step(Eq(rest_fourth, rest), "ρ*⁴ = b/(2k): the exact equilibrium with 2 in place of 2-ηλ.")
    result.step(
        Eq(norm**4, rest + (start**4 - rest) * exp(-4 * lr * wd * time)),
        "The solution, with ρ* inserted.",
    )
    return result


def decay_time() -> Derivation:
    """Derive the time of a fall in a flow that has the fixed point and the rates of the map.

    Examples
    --------
    >>> decay_time().unproved()
    []
    """
    near, far, other, small = sympy.symbols("near far other small", positive=True)
    start, end = sympy.symbols("start end", positive=True)
    rest = rest_fourth
    image = sympy.expand(square_map(a, b) ** 2).subs(sq_norm, sympy.sqrt(fourth))
    # rates per step, as times: deviations from rest shrink by 2a-1, large u by a²
    speed = -1 / (near / (fourth - rest) + (far - near) / (fourth + other))
    taken = near * log((start - rest) / (end - rest)) + (far - near) * log((start + other) / (end + other))
    result = Derivation(
        "Time of a fall under constant g̃.",
        "a > 1/2; u = ρ⁴ = `fourth` falls from `start` to `end` above its rest u* = `rest_fourth`; `other` is -1 "
        "times the "
        "second zero of u⁺-u; N = `near`, F = `far`.",
        {
            "a": a,
            "b": b,
            "rest_fourth": rest,
            "other": other,
            "near": near,
            "far": far,
            "start": start,
            "end": end,
            "time": time,
        },
        {
            time: taken,
            rest: fixed_square(),
            other: b / (1 + a),
            near: -1 / log(2 * a - 1),
            far: -1 / (2 * log(a)),
        },
    )
    result.step(
        Eq(fourth * (image - fourth), (b - (1 - a) * fourth) * (b + (1 + a) * fourth)),
        "The change of u in a step has two zeros.",
    )
    result.step(Eq(rest, b / (1 - a)), "One is the equilibrium …")
    result.step(Eq((image - fourth).subs(fourth, -b / (1 + a)), 0), "… the other is -b/(1+a).")
    result.step(
        Eq(Derivative(image, fourth).doit().subs(fourth, b / (1 - a)), 2 * a - 1),
        "Near rest the distance shrinks by 2a-1 a step, that is by exp(-1/N) …",
    )
    result.step(Eq(Limit(image / fourth, fourth, oo), a**2), "… and far away u shrinks by a² = exp(-1/F).")
    result.step(Eq(exp(-1 / near), 2 * a - 1), "N in terms of a …", {a: (2 + small) / (2 + 2 * small)})
    result.step(Eq(exp(-1 / far), a**2), "… and F likewise.")
    n, f, w, u_rest = sympy.symbols("n f w u_rest", positive=True)
    general = speed.subs({near: n, far: f, other: w, rest: u_rest})
    result.step(
        Eq(Limit(general / (fourth - u_rest), fourth, u_rest), -1 / n),
        "The flow du/dt = -1/(N/(u-u*) + (F-N)/(u+w)) has the first rate …",
    )
    result.step(Eq(Limit(general / fourth, fourth, oo), -1 / f), "… and the second.")
    result.step(
        Eq(Derivative(taken, end), 1 / speed.subs(fourth, end)),
        "Its time is the integral of dt/du, because the derivative in the end is dt/du there …",
    )
    result.step(Eq(taken.subs(end, start), 0), "… and it vanishes for end = start.")
    result.step(
        Eq(time, near * log((start - rest) / (end - rest)) + (far - near) * log((start + other) / (end + other))),
        "The time, with both rates.",
    )
    return result
