"""δ-jumps: steps that turn the weights by more than a given angle (docs/mathematics.md §4)."""

from __future__ import annotations

import sympy
from sympy import Derivative, cos, sqrt, tan

from theory.derivations import equilibrium, one_step
from theory.derivations.derivation import Derivation, Eq, Lt
from theory.derivations.symbols import BELOW_ONE, delta, grad_norm, lr, norm, sq_norm, t, wd
from theory.derivations.symbols import rotation as theta


def jump_norm() -> Derivation:
    """Derive the norm ρ² = ηg̃/((1-ηλ)κ(δ)) below which a step has 1 - cos θ > δ, with κ(δ) = √((1-δ)⁻²-1).

    Examples
    --------
    >>> print(jump_norm()[-2].lhs)
    norm**2
    """
    ranges = {**BELOW_ONE, delta: 1 / (1 + t)}
    angle = one_step.rotation()[-1].rhs
    tangent = tan(angle)
    kappa = sqrt((1 - delta) ** -2 - 1)
    (square,) = sympy.solve(Eq(tangent.subs(norm, sqrt(sq_norm)), kappa), sq_norm)
    result = Derivation(
        "Norm below which a step is a δ-jump.",
        "g̃ > 0; 0 < ηλ < 1; 0 < δ < 1.",
        {"lr": lr, "wd": wd, "grad_norm": grad_norm, "delta": delta, "norm": norm, "rotation": theta},
        {theta: angle, norm: sqrt(square)},
    )
    result.step(
        Lt(Derivative(tangent, norm), 0),
        "The angle falls as the norm grows, so the δ-jumps are exactly the steps from below one threshold.",
        ranges,
    )
    result.step(Eq(1 - cos(theta), delta), "At the threshold 1 - cos θ equals δ.", ranges)
    result.step(Eq(tan(theta), kappa), "tan θ = √(1/cos² θ - 1) with cos θ = 1-δ.", ranges)
    result.step(Eq(lr * grad_norm / (norm**2 * (1 - lr * wd)), kappa), "Angle of one step; solve for the norm.", ranges)
    at_rest = sqrt(equilibrium.fixed_square()).subs(
        {sympy.Symbol("a", positive=True): equilibrium.A, sympy.Symbol("b", positive=True): equilibrium.B}
    )
    result.step(
        Eq(norm**2, at_rest * kappa.subs(delta, lr * wd) / kappa),
        "In units of the equilibrium: at δ = ηλ the threshold is the equilibrium itself.",
        ranges,
    )
    formula = lr * grad_norm / ((1 - lr * wd) * kappa)
    result.step(Eq(norm**2, formula), "The solution.", ranges)
    result.step(Eq(norm, sqrt(formula)), "The norm is the positive root.", ranges)
    return result
