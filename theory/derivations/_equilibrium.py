"""Equilibrium for constant g̃: norm, effective learning rate, rotation and relaxation time (docs/mathematics.md §2)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Abs, Derivative, Limit, cos, exp, log, sqrt, tan

from theory.derivations import _one_step
from theory.derivations._derivation import Derivation, Eq, Gt
from theory.derivations._symbols import (
    BELOW_ONE,
    BELOW_TWO,
    a,
    b,
    grad_norm,
    intrinsic_lr,
    lr,
    multiplier,
    norm,
    sq_norm,
    t,
    wd,
)
from theory.derivations._symbols import effective_lr as eta_eff
from theory.derivations._symbols import relaxation_time as tau
from theory.derivations._symbols import rotation as theta

A, B = (1 - lr * wd) ** 2, (lr * grad_norm) ** 2


def fixed_square() -> Any:
    """Return u = r² at the fixed point of r⁺ = a r + b/r.

    Multiplied by r, the equation of the fixed point is linear in u.
    """
    u = sympy.Symbol("u")
    (solution,) = sympy.solve(Eq(u, sympy.expand(_one_step.square_map(a, b) * sq_norm).subs(sq_norm**2, u)), u)
    return solution


def _equilibrium() -> dict[Any, Any]:
    square = fixed_square().subs({a: A, b: B})
    return {sq_norm: sqrt(square), norm: sqrt(sqrt(square))}


def equilibrium_norm() -> Derivation:
    """Derive ρ*⁴ = ηg̃²/(λ(2-ηλ))."""
    result = Derivation(
        "Norm at equilibrium.", "Constant g̃ > 0; 0 < ηλ < 2.", [lr, wd, grad_norm, norm], _equilibrium()
    )
    result.step(
        Eq(sq_norm, _one_step.square_map(A, B)),
        "At equilibrium the step r⁺ = (1-ηλ)² r + (ηg̃)²/r leaves r unchanged.",
        BELOW_TWO,
    )
    result.step(
        Eq(sq_norm**2, fixed_square().subs({a: A, b: B})),
        "Multiplied by r, the equation is linear in r², so it has one solution.",
        BELOW_TWO,
    )
    result.step(
        Eq(1 - A, sympy.factor(1 - A)),
        "The difference of two squares is positive for 0 < ηλ < 2, so the equilibrium exists.",
    )
    formula = lr * grad_norm**2 / (wd * (2 - lr * wd))
    result.step(Eq(norm**4, formula), "Insert ρ⁴ = r² and cancel η.", BELOW_TWO)
    result.step(Eq(norm, formula ** sympy.Rational(1, 4)), "The norm is the positive root.", BELOW_TWO)
    return result


def equilibrium_effective_lr() -> Derivation:
    """Derive η̃* = √(ηλ(2-ηλ))/g̃."""
    result = Derivation(
        "Effective learning rate at equilibrium.",
        "Constant g̃ > 0; 0 < ηλ < 2.",
        [lr, wd, grad_norm, norm, eta_eff],
        {**_equilibrium(), eta_eff: lr / sqrt(fixed_square().subs({a: A, b: B}))},
    )
    result.step(Eq(norm**4, equilibrium_norm()[-2].rhs), "Norm at equilibrium.", BELOW_TWO)
    result.step(
        Eq(eta_eff, lr / norm**2),
        "A step at norm ρ with η moves the direction as much as a step at norm 1 with η/ρ².",
        BELOW_TWO,
    )
    result.step(
        Eq(eta_eff**2, sympy.cancel(lr**2 / equilibrium_norm()[-2].rhs)), "Insert the norm and square.", BELOW_TWO
    )
    result.step(
        Eq(eta_eff, sqrt(lr * wd * (2 - lr * wd)) / grad_norm),
        "The effective learning rate is the positive root.",
        BELOW_TWO,
    )
    return result


def equilibrium_rotation() -> Derivation:
    """Derive cos θ* = 1-ηλ."""
    angle = _one_step.rotation()[-1].rhs
    result = Derivation(
        "Rotation per step at equilibrium.",
        "Constant g̃ > 0; 0 < ηλ < 1.",
        [lr, wd, theta],
        {**_equilibrium(), theta: angle.subs(norm, sqrt(sqrt(fixed_square().subs({a: A, b: B}))))},
    )
    effective = equilibrium_effective_lr()[-1].rhs
    result.step(Eq(tan(theta), tan(angle)), "Angle of one step at the equilibrium norm.", BELOW_ONE)
    tangent = effective * grad_norm / (1 - lr * wd)
    result.step(Eq(tan(theta), tangent), "Insert η̃*: the gradient norm cancels.", BELOW_ONE)
    result.step(
        Eq(1 / cos(theta) ** 2, sympy.factor(sympy.cancel(1 + tangent**2))), "Use 1/cos² θ = 1 + tan² θ.", BELOW_ONE
    )
    result.step(Eq(cos(theta), 1 - lr * wd), "The cosine is the positive root, because θ < π/2.", BELOW_ONE)
    result.step(
        Eq(Limit(sympy.acos(1 - intrinsic_lr) / sqrt(2 * intrinsic_lr), intrinsic_lr, 0), 1),
        "For small ηλ the angle is √(2ηλ) to first order.",
    )
    result.step(Eq(theta, sympy.acos(1 - lr * wd)), "Invert the cosine on (0, π/2).", BELOW_ONE)
    return result


def relaxation_time() -> Derivation:
    """Derive the multiplier 1 - 4ηλ + 2(ηλ)² of the fixed point and the relaxation time -1/ln|multiplier|."""
    image = _one_step.square_map(a, b)
    slope = sympy.diff(image, sq_norm)
    magnitude, time = sympy.symbols("magnitude time", positive=True)
    (steps,) = sympy.solve(Eq(log(magnitude**time).expand(force=True), -1), time)
    value = sympy.expand((2 * a - 1).subs(a, A))
    result = Derivation(
        "Relaxation time of the norm.",
        "Constant g̃ > 0; 0 < ηλ < 2, ηλ ≠ 1, multiplier ≠ 0.",
        [lr, wd, multiplier, tau],
        {
            tau: steps.subs(magnitude, Abs(multiplier)),
            multiplier: sympy.cancel(slope.subs(sq_norm, sqrt(fixed_square()))).subs({a: A, b: B}),
        },
    )
    result.step(Eq(Derivative(image, sq_norm), slope), "The slope of the map r⁺ = a r + b/r.")
    result.step(
        Eq(Derivative(image, sq_norm).doit().subs(sq_norm, sqrt(b / (1 - a))), 2 * a - 1),
        "Its value at the fixed point r² = b/(1-a) is the multiplier.",
    )
    twice = _one_step.square_map(a, b, image) - sq_norm
    u = sq_norm**2
    cycle = a * (a * u + b - u) * (a * u + b + u) / (sq_norm * (a * u + b))
    result.step(
        Eq(twice, cycle),
        "A 2-cycle would be a zero of the second iterate minus r, and the only zero is the fixed point a r² + b = "
        "r². A continuous map of an interval without 2-cycles brings every orbit to a fixed point.",
    )
    result.step(Eq(multiplier, value), "Insert a = (1-ηλ)² and expand.")
    result.step(Gt(1, 2 * a - 1), "The multiplier is below 1.", {a: 1 / (1 + t)})
    result.step(Gt(2 * a - 1, -1), "It is above -1, so small deviations shrink.", {a: 1 / (1 + t)})
    result.step(
        Eq(Abs(multiplier) ** tau, exp(-1)),
        "A deviation shrinks by the factor |multiplier| per step. Solve for the number of steps in which it shrinks "
        "by e.",
    )
    small = -1 / log(value.subs(lr, intrinsic_lr / wd).expand())
    result.step(
        Eq(Limit(4 * intrinsic_lr * small, intrinsic_lr, 0), 1), "For small ηλ the time is 1/(4ηλ) to first order."
    )
    result.step(Eq(tau, -1 / log(Abs(value))), "Insert the multiplier.")
    return result
