"""The norm in continuous time, and the decay time (docs/mathematics.md §4, §5)."""

from __future__ import annotations

import sympy
from sympy import Derivative, Limit, exp, log, oo

from theory.derivations._derivation import Derivation, Eq
from theory.derivations._equilibrium import fixed_square
from theory.derivations._one_step import square_map
from theory.derivations._symbols import a, b, grad_norm, intrinsic_lr, lr, norm, sq_norm, wd

time = sympy.Symbol("time", nonnegative=True)
fourth, first_fourth, equilibrium_fourth = sympy.symbols("fourth first_fourth equilibrium_fourth", positive=True)


def norm_flow() -> Derivation:
    """Derive ρ⁴(t) = ρ*⁴ + (ρ₀⁴-ρ*⁴)exp(-4ηλt) with ρ*⁴ = ηg̃²/(2λ), and the order of its error, which is ηλ."""
    start = sympy.Symbol("start", positive=True)
    slope = -2 * intrinsic_lr * sq_norm + b / sq_norm
    # decay and growth balance where b = 2ηλρ*⁴
    balanced = {b: 2 * intrinsic_lr * equilibrium_fourth}
    solution = equilibrium_fourth + (fourth - equilibrium_fourth) * exp(-4 * intrinsic_lr * time)
    mapped = sympy.expand(square_map((1 - intrinsic_lr) ** 2, b) ** 2).subs(balanced)
    flowed = solution.subs({fourth: sq_norm**2, time: 1})
    equilibrium = lr * grad_norm**2 / (2 * wd)
    result = Derivation(
        "The norm in continuous time.",
        "Constant g̃; time in steps; b = (ηg̃)² = 2ηλρ*⁴; u = ρ⁴ is `fourth`, ρ₀ is `start`, u* = ρ*⁴ is "
        "`equilibrium_fourth`.",
        [lr, wd, grad_norm, time, start, norm, equilibrium_fourth],
        {
            norm: solution.subs(fourth, start**4) ** sympy.Rational(1, 4),
            equilibrium_fourth: equilibrium,
            intrinsic_lr: lr * wd,
        },
    )
    result.step(
        Eq(
            Limit((square_map((1 - intrinsic_lr) ** 2, b) - sq_norm).subs(balanced) / intrinsic_lr, intrinsic_lr, 0),
            -2 * sq_norm + 2 * equilibrium_fourth / sq_norm,
        ),
        "For ηλ → 0 the map becomes the flow dr/dt = -2ηλr + b/r.",
    )
    result.step(
        Eq(2 * sq_norm * slope, -4 * intrinsic_lr * sq_norm**2 + 2 * b),
        "With u = r² = ρ⁴ the equation is linear, because du/dt = 2r dr/dt.",
    )
    result.step(
        Eq(Derivative(solution, time), -4 * intrinsic_lr * solution + (2 * b).subs(balanced)),
        "This function solves the equation.",
    )
    result.step(Eq(solution.subs(time, 0), fourth), "It starts at ρ₀⁴ for t = 0.")
    result.step(Eq(Limit(solution.subs(intrinsic_lr, 1), time, oo), equilibrium_fourth), "It tends to ρ*⁴ for t → ∞.")
    result.step(
        Eq(
            Limit((mapped - flowed) / intrinsic_lr**2, intrinsic_lr, 0),
            4 * equilibrium_fourth**2 / sq_norm**2 - 2 * sq_norm**2,
        ),
        "One step of the map differs from the flow by a multiple of (ηλ)². Hence 1/ηλ steps differ by a multiple of "
        "ηλ.",
    )
    result.step(Eq(equilibrium_fourth, equilibrium), "ρ*⁴ = b/(2ηλ) is the exact equilibrium with 2 in place of 2-ηλ.")
    result.step(
        Eq(norm**4, equilibrium + (start**4 - equilibrium) * exp(-4 * lr * wd * time)), "Insert ρ*⁴ into the solution."
    )
    return result


def decay_time() -> Derivation:
    """Derive the decay time in a flow with the same fixed point and the same decay as the map, near and far from it."""
    near, far, other, small = sympy.symbols("near far other small", positive=True)
    start, end = sympy.symbols("start end", positive=True)
    equilibrium = equilibrium_fourth
    next_fourth = sympy.expand(square_map(a, b) ** 2).subs(sq_norm, sympy.sqrt(fourth))
    # relaxation times in steps: deviations from the equilibrium shrink by 2a-1, large u by a²
    slope = -1 / (near / (fourth - equilibrium) + (far - near) / (fourth + other))
    decay_steps = near * log((start - equilibrium) / (end - equilibrium)) + (far - near) * log(
        (start + other) / (end + other)
    )
    result = Derivation(
        "Decay time under constant g̃.",
        "a > 1/2; u = ρ⁴ = `fourth` decays from `start` to `end`, both above the equilibrium u* = "
        "`equilibrium_fourth`; -`other` is the second zero of u⁺-u; N = `near`, F = `far`.",
        [a, b, equilibrium, other, near, far, start, end, time],
        {
            time: decay_steps,
            equilibrium: fixed_square(),
            other: b / (1 + a),
            near: -1 / log(2 * a - 1),
            far: -1 / (2 * log(a)),
        },
    )
    result.step(
        Eq(fourth * (next_fourth - fourth), (b - (1 - a) * fourth) * (b + (1 + a) * fourth)),
        "The change of u in one step has two zeros.",
    )
    result.step(Eq(equilibrium, b / (1 - a)), "One zero is the equilibrium.")
    result.step(Eq((next_fourth - fourth).subs(fourth, -b / (1 + a)), 0), "The other zero is -b/(1+a).")
    result.step(
        Eq(Derivative(next_fourth, fourth).doit().subs(fourth, b / (1 - a)), 2 * a - 1),
        "Near the equilibrium a deviation shrinks by the factor 2a-1 = exp(-1/N) per step.",
    )
    result.step(
        Eq(Limit(next_fourth / fourth, fourth, oo), a**2),
        "Far above the equilibrium u shrinks by the factor a² = exp(-1/F) per step.",
    )
    result.step(Eq(exp(-1 / near), 2 * a - 1), "This is N in terms of a.", {a: (2 + small) / (2 + 2 * small)})
    result.step(Eq(exp(-1 / far), a**2), "This is F in terms of a.")
    n, f, w, u_equilibrium = sympy.symbols("n f w u_equilibrium", positive=True)
    general = slope.subs({near: n, far: f, other: w, equilibrium: u_equilibrium})
    result.step(
        Eq(Limit(general / (fourth - u_equilibrium), fourth, u_equilibrium), -1 / n),
        "Near the equilibrium the flow du/dt = -1/(N/(u-u*) + (F-N)/(u+w)) decays like the map, with the relaxation "
        "time N.",
    )
    result.step(
        Eq(Limit(general / fourth, fourth, oo), -1 / f),
        "Far above the equilibrium it also decays like the map, with the time F.",
    )
    result.step(
        Eq(Derivative(decay_steps, end), 1 / slope.subs(fourth, end)),
        "The time is the integral of dt/du, because its derivative with respect to the end is dt/du there.",
    )
    result.step(Eq(decay_steps.subs(end, start), 0), "The time vanishes for end = start.")
    result.step(
        Eq(
            time,
            near * log((start - equilibrium) / (end - equilibrium))
            + (far - near) * log((start + other) / (end + other)),
        ),
        "The decay time of this flow.",
    )
    return result
