"""Inverse design for plain SGD: lr and wd for a required rotation, norm or relaxation time (docs/mathematics.md §8)."""

from __future__ import annotations

import sympy
from sympy import cos, exp, sqrt

from theory.derivations import _equilibrium
from theory.derivations._derivation import Derivation, Eq
from theory.derivations._symbols import BELOW_ONE, a, grad_norm, intrinsic_lr, lr, norm, relaxation_time, t, wd
from theory.derivations._symbols import rotation as theta


def inverse_design() -> Derivation:
    """Derive λ and η for a required rotation, norm or relaxation time."""
    formula = _equilibrium.equilibrium_norm()[-2].rhs
    decay, learning_rate = sympy.symbols("wd_for lr_for", positive=True)
    fourth = norm**4
    (for_lr,) = sympy.solve(Eq(fourth, formula.subs(lr, learning_rate)), learning_rate)
    for_wd = (1 - sqrt(1 - lr**2 * grad_norm**2 / fourth)) / lr
    multiplier = exp(-1 / relaxation_time)
    (kept,) = sympy.solve(Eq(2 * a - 1, multiplier), a)
    result = Derivation(
        "Inverse design.",
        "Plain SGD; 0 < ηλ < 1; for the relaxation time a = (1-ηλ)² > 1/2.",
        [lr, wd, grad_norm, norm, theta, relaxation_time],
        {intrinsic_lr: 1 - sqrt(kept)},
    )
    cosine_relation = _equilibrium.equilibrium_rotation()[-3]
    result.step(
        Eq(
            cos(theta).subs(theta, sympy.acos(1 - lr * wd)),
            cosine_relation.rhs if cosine_relation.lhs == cos(theta) else 1 - lr * wd,
        ),
        "Rotation: cos θ* = 1-ηλ gives ηλ = 1-cos θ*. Divide by η for λ, or by λ for η.",
        BELOW_ONE,
    )
    result.step(
        Eq(for_lr, 2 * wd * fourth / (grad_norm**2 + wd**2 * fourth)),
        "Norm: multiplied out, ρ*⁴ = ηg̃²/(λ(2-ηλ)) is linear in η.",
    )
    at_equilibrium = {norm: (formula.subs(wd, decay)) ** sympy.Rational(1, 4), decay: 1 / (lr * (1 + t))}
    result.step(
        Eq((for_wd - decay).subs(at_equilibrium), 0),
        "For λ the equation is quadratic. Its root below 1/η is λ = (1-√(1-η²g̃²/ρ⁴))/η. There is none if ρ² < ηg̃.",
    )
    result.step(
        Eq(2 * (1 - intrinsic_lr) ** 2 - 1, multiplier), "Relaxation time: the multiplier 2a-1 equals exp(-1/τ)."
    )
    result.step(
        Eq(intrinsic_lr, 1 - sqrt((1 + exp(-1 / relaxation_time)) / 2)), "Hence a = (1+exp(-1/τ))/2, and ηλ = 1-√a."
    )
    return result
