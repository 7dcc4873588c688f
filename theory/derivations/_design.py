"""Inverse design for plain SGD: settings for a wanted rotation, norm or relaxation time (docs/mathematics.md §8)."""

from __future__ import annotations

import sympy
from sympy import cos, exp, sqrt

from theory.derivations import _equilibrium
from theory.derivations._derivation import Derivation, Eq
from theory.derivations._symbols import BELOW_ONE, a, grad_norm, lr, norm, relaxation_time, t, wd
from theory.derivations._symbols import rotation as theta


def inverse_design() -> Derivation:
    """Derive λ and η for a wanted rotation, norm or relaxation time.

    Examples
    --------
    >>> inverse_design().unproved()
    []
    """
    formula = _equilibrium.equilibrium_norm()[-2].rhs
    decay, rate, k = sympy.symbols("wd_for lr_for k", positive=True)
    fourth = norm**4
    (for_lr,) = sympy.solve(Eq(fourth, formula.subs(lr, rate)), rate)
    for_wd = (1 - sqrt(1 - lr**2 * grad_norm**2 / fourth)) / lr
    multiplier = exp(-1 / relaxation_time)
    (kept,) = sympy.solve(Eq(2 * a - 1, multiplier), a)
    result = Derivation(
        "Inverse design.",
        "Plain SGD; 0 < ηλ < 1; for relaxation a = (1-ηλ)² > 1/2. k stands for ηλ.",
        {
            "lr": lr,
            "wd": wd,
            "grad_norm": grad_norm,
            "norm": norm,
            "rotation": theta,
            "relaxation_time": relaxation_time,
        },
        {k: 1 - sqrt(kept)},
    )
    turned = _equilibrium.equilibrium_rotation()[-3]
    result.step(
        Eq(cos(theta).subs(theta, sympy.acos(1 - lr * wd)), turned.rhs if turned.lhs == cos(theta) else 1 - lr * wd),
        "Rotation: cos θ* = 1-ηλ, so ηλ = 1-cos θ*; divide by η for λ, by λ for η.",
        BELOW_ONE,
    )
    result.step(
        Eq(for_lr, 2 * wd * fourth / (grad_norm**2 + wd**2 * fourth)),
        "Norm: ρ*⁴ = ηg̃²/(λ(2-ηλ)) is linear in η once multiplied out.",
    )
    at_rest = {norm: (formula.subs(wd, decay)) ** sympy.Rational(1, 4), decay: 1 / (lr * (1 + t))}
    result.step(
        Eq((for_wd - decay).subs(at_rest), 0),
        "For λ it is quadratic, with the root λ = (1-√(1-η²g̃²/ρ⁴))/η below 1/η; a norm with ρ² < ηg̃ has none.",
    )
    result.step(Eq(2 * (1 - k) ** 2 - 1, multiplier), "Relaxation: the multiplier 2a-1 is exp(-1/τ) …")
    result.step(Eq(k, 1 - sqrt((1 + exp(-1 / relaxation_time)) / 2)), "… so a = (1+exp(-1/τ))/2, and ηλ is 1-√a.")
    return result
