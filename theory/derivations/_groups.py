"""Several groups of scale-invariant weights, and the ε of a normalization layer (docs/mathematics.md §10)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, sqrt

from theory.derivations._derivation import Derivation, Eq, Ge
from theory.derivations._symbols import a, lr, norm, sq_norm, wd

eps, variance, tolerance = sympy.symbols("eps variance tolerance", positive=True)


def total_grad_norm() -> Derivation:
    """Derive g̃² = rΣg̃ᵢ²/rᵢ of the total, g̃ >= Σg̃ᵢ, and the law of any conserved combination of squared norms.

    Examples
    --------
    >>> total_grad_norm().unproved()
    []
    """
    r1, r2, g1, g2, total = sympy.symbols("r_1 r_2 g_1 g_2 total", positive=True)
    c1, c2, m1, m2, n1, n2 = sympy.symbols("c_1 c_2 m_1 m_2 n_1 n_2", real=True)
    kept = 1 - lr * wd

    def after(r: Any, m: Any, n: Any) -> Any:
        return kept**2 * r - 2 * lr * kept * m + lr**2 * n

    result = Derivation(
        "Groups and their total.",
        "Two groups (more follow one by one) with squared norms rᵢ, effective gradient norms g̃ᵢ = `g_i`, coupled "
        "decay; "
        "mᵢ = ⟨∇ᵢ,xᵢ⟩, nᵢ = ‖∇ᵢ‖²; a combination Σcᵢrᵢ whose radial derivative Σcᵢmᵢ vanishes.",
        {"lr": lr, "wd": wd, "a": a, "r_1": r1, "r_2": r2, "g_1": g1, "g_2": g2, "total": total},
        {total: sqrt((r1 + r2) * (g1**2 / r1 + g2**2 / r2)), m2: -c1 * m1 / c2, a: kept**2},
    )
    result.step(
        Eq(c1 * after(r1, m1, n1) + c2 * after(r2, m2, n2), a * (c1 * r1 + c2 * r2) + lr**2 * (c1 * n1 + c2 * n2)),
        "One step of every rᵢ, summed: single groups (cᵢ = 1, all others 0), joint groups and rescaling symmetries "
        "(+1, -1) obey Q⁺ = aQ + η²Σcᵢ‖∇ᵢ‖² alike.",
    )
    result.step(
        Eq(total**2, (r1 + r2) * (g1**2 / r1 + g2**2 / r2)), "The total has r = Σrᵢ and ‖∇‖² = Σg̃ᵢ²/rᵢ, so g̃² = r‖∇‖²."
    )
    result.step(
        Eq(total**2 - (g1 + g2) ** 2, (r2 * g1 - r1 * g2) ** 2 / (r1 * r2)),
        "Its distance from (Σg̃ᵢ)² is a square …",
    )
    result.step(Ge(total**2, (g1 + g2) ** 2), "… so g̃ is at least the sum …")
    result.step(
        Eq(total**2, (g1 + g2) ** 2),
        "… and is the sum where rᵢ ∝ g̃ᵢ, as at the equilibrium of each group (r* ∝ g̃).",
        {r1: r2 * g1 / g2},
    )
    result.step(Eq(total, sqrt((r1 + r2) * (g1**2 / r1 + g2**2 / r2))), "The effective gradient norm of the total.")
    return result


def invariance_norm() -> Derivation:
    """Derive the share k/(1+k), k = ε/(σ²ρ²), of the weights' scale that a normalization layer lets through.

    Examples
    --------
    >>> print(invariance_norm()[-1].rhs)
    sqrt(eps)*sqrt(1 - tolerance)/(sqrt(tolerance)*sqrt(variance))
    """
    scale, output, share, fraction = sympy.symbols("scale output share k", positive=True)
    normalized = scale * output / sqrt(scale**2 * variance * norm**2 + eps)
    through = scale * Derivative(normalized, scale).doit() / normalized
    (square,) = sympy.solve(Eq(sympy.simplify(through.subs(scale, 1)).subs(norm, sqrt(sq_norm)), tolerance), sq_norm)
    result = Derivation(
        "Where ε ends scale invariance.",
        "One channel, centred input of variance σ² = `variance` at weights of norm 1, `scale` times the weights; k = "
        "ε/(σ²ρ²); `share` is the relative change of the normalized output per relative change of the weights' scale.",
        {"eps": eps, "variance": variance, "tolerance": tolerance, "norm": norm, "k": fraction, "share": share},
        {share: through.subs(scale, 1), fraction: eps / (variance * norm**2), norm: sqrt(square)},
    )
    result.step(
        Eq(through, eps / (scale**2 * variance * norm**2 + eps)),
        "Logarithmic derivative of the normalized output; 0 for ε = 0.",
    )
    result.step(Eq(share, fraction / (1 + fraction)), "In terms of k: so ⟨∇f,w⟩ = ⟨∂f/∂z,z⟩ k/(1+k) by the chain rule.")
    result.step(Eq(share, tolerance), "It falls with ρ: the tolerance is reached at one norm.")
    result.step(Eq(norm**2, eps * (1 - tolerance) / (variance * tolerance)), "Solve for ρ².")
    result.step(Eq(norm, sqrt(eps / variance) * sqrt((1 - tolerance) / tolerance)), "The positive root.")
    return result


def decay_invariance_norm() -> Derivation:
    """Derive the norm at which the radial gradient that ε lets through is a given share of the decay.

    Examples
    --------
    >>> decay_invariance_norm().unproved()
    []
    """
    slope, fraction, ratio = sympy.symbols("output_slope k ratio", positive=True)
    force, decay = slope * eps / (variance * sq_norm + eps), tolerance * wd * sq_norm
    square = max(
        sympy.solve(sympy.numer(sympy.together(force - decay)), sq_norm),
        key=lambda root: root.subs({eps: 1, variance: 1, slope: 1, tolerance: 1, wd: 1}),
    )
    result = Derivation(
        "Where ε competes with weight decay.",
        "One channel; `output_slope` = |⟨∂f/∂z,z⟩| of its normalized output; k = ε/(σ²ρ²); `tolerance` is the "
        "allowed share.",
        {
            "eps": eps,
            "variance": variance,
            "wd": wd,
            "output_slope": slope,
            "tolerance": tolerance,
            "sq_norm": sq_norm,
            "norm": norm,
        },
        {norm: sqrt(square), fraction: eps / (variance * sq_norm)},
    )
    result.step(
        Eq(slope * fraction / (1 + fraction), force), "The radial gradient ⟨∇f,w⟩, from `invariance_norm`, against λρ²."
    )
    result.step(
        Eq(variance * norm**4 + eps * norm**2, slope * eps / (tolerance * wd)),
        "They are in the ratio of the tolerance where this quadratic in ρ² vanishes.",
    )
    ends = sqrt(1 + 4 * slope * variance / (tolerance * wd * eps))
    large = {slope: ratio * eps * wd * tolerance / variance}
    result.step(
        Eq(sympy.Limit((square**2 * variance * tolerance * wd / (slope * eps)).subs(large), ratio, sympy.oo), 1),
        "Where k is small this is ρ⁴ = ε|⟨∂f/∂z,z⟩|/(tolerance·λσ²): far above the norm at which k is of the order "
        "of 1.",
    )
    result.step(Eq(norm**2, eps / (2 * variance) * (ends - 1)), "The positive root of the quadratic.")
    return result
