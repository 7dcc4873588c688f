"""Several groups of scale-invariant weights, and the ε of a normalization layer (docs/mathematics.md §10)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, sqrt

from theory.derivations._derivation import Derivation, Eq, Ge
from theory.derivations._symbols import a, lr, norm, sq_norm, wd

eps, variance, tolerance = sympy.symbols("eps variance tolerance", positive=True)


def total_grad_norm() -> Derivation:
    """Derive g̃² = rΣg̃ᵢ²/rᵢ for the total of several groups, g̃ >= Σg̃ᵢ, and the law of joint groups and symmetries."""
    r1, r2, g1, g2, total = sympy.symbols("r_1 r_2 g_1 g_2 total", positive=True)
    c1, c2, m1, m2, n1, n2 = sympy.symbols("c_1 c_2 m_1 m_2 n_1 n_2", real=True)
    decay_factor = 1 - lr * wd

    def after(r: Any, m: Any, n: Any) -> Any:
        return decay_factor**2 * r - 2 * lr * decay_factor * m + lr**2 * n

    result = Derivation(
        "Effective gradient norm of several groups.",
        "Two groups (add further ones one by one) with squared norms rᵢ and effective gradient norms g̃ᵢ = `g_i`; "
        "coupled decay; mᵢ = ⟨∇ᵢ,xᵢ⟩, nᵢ = ‖∇ᵢ‖²; a combination Σcᵢrᵢ whose radial derivative Σcᵢmᵢ vanishes.",
        [lr, wd, a, r1, r2, g1, g2, total],
        {total: sqrt((r1 + r2) * (g1**2 / r1 + g2**2 / r2)), m2: -c1 * m1 / c2, a: decay_factor**2},
    )
    result.step(
        Eq(c1 * after(r1, m1, n1) + c2 * after(r2, m2, n2), a * (c1 * r1 + c2 * r2) + lr**2 * (c1 * n1 + c2 * n2)),
        "Sum one step of every rᵢ. Q = Σcᵢrᵢ obeys Q⁺ = aQ + η²Σcᵢ‖∇ᵢ‖² for single groups (cᵢ = 1, all others 0), "
        "for joint groups and for rescaling symmetries (+1, -1).",
    )
    result.step(
        Eq(total**2, (r1 + r2) * (g1**2 / r1 + g2**2 / r2)),
        "The total has r = Σrᵢ and ‖∇‖² = Σg̃ᵢ²/rᵢ, which gives g̃² = r‖∇‖².",
    )
    result.step(
        Eq(total**2 - (g1 + g2) ** 2, (r2 * g1 - r1 * g2) ** 2 / (r1 * r2)), "The difference from (Σg̃ᵢ)² is a square."
    )
    result.step(Ge(total**2, (g1 + g2) ** 2), "Hence g̃ is at least the sum of the g̃ᵢ.")
    result.step(
        Eq(total**2, (g1 + g2) ** 2),
        "It equals the sum if rᵢ ∝ g̃ᵢ, which is the case when every group is at equilibrium (r* ∝ g̃).",
        {r1: r2 * g1 / g2},
    )
    result.step(
        Eq(total, sqrt((r1 + r2) * (g1**2 / r1 + g2**2 / r2))),
        "The effective gradient norm of the total is the positive root.",
    )
    return result


def invariance_norm() -> Derivation:
    """Derive the share k/(1+k), k = ε/(σ²ρ²), of a change of scale that passes a normalization layer."""
    scale, output, share, fraction = sympy.symbols("scale output share k", positive=True)
    normalized = scale * output / sqrt(scale**2 * variance * norm**2 + eps)
    passed_share = scale * Derivative(normalized, scale).doit() / normalized
    (square,) = sympy.solve(
        Eq(sympy.simplify(passed_share.subs(scale, 1)).subs(norm, sqrt(sq_norm)), tolerance), sq_norm
    )
    result = Derivation(
        "Norm at which ε breaks scale invariance.",
        "One channel; `scale` multiplies the weights; σ² = `variance` of the centred input at weights of norm 1; k = "
        "ε/(σ²ρ²); `share` is the relative change of the normalized output per relative change of the scale.",
        [eps, variance, tolerance, norm, fraction, share],
        {share: passed_share.subs(scale, 1), fraction: eps / (variance * norm**2), norm: sqrt(square)},
    )
    result.step(
        Eq(passed_share, eps / (scale**2 * variance * norm**2 + eps)),
        "This is the logarithmic derivative of the normalized output. It is 0 for ε = 0.",
    )
    result.step(
        Eq(share, fraction / (1 + fraction)),
        "In terms of k the share is k/(1+k). By the chain rule ⟨∇f,w⟩ = ⟨∂f/∂z,z⟩ k/(1+k).",
    )
    result.step(Eq(share, tolerance), "The share decreases with ρ, so it equals the tolerance at one norm.")
    result.step(Eq(norm**2, eps * (1 - tolerance) / (variance * tolerance)), "Solve for ρ².")
    result.step(Eq(norm, sqrt(eps / variance) * sqrt((1 - tolerance) / tolerance)), "The norm is the positive root.")
    return result


def decay_invariance_norm() -> Derivation:
    """Derive the norm at which the radial gradient due to ε is a certain fraction of the decay."""
    slope, fraction, ratio = sympy.symbols("output_slope k ratio", positive=True)
    radial_gradient, decay = slope * eps / (variance * sq_norm + eps), tolerance * wd * sq_norm
    square = max(
        sympy.solve(sympy.numer(sympy.together(radial_gradient - decay)), sq_norm),
        key=lambda root: root.subs({eps: 1, variance: 1, slope: 1, tolerance: 1, wd: 1}),
    )
    result = Derivation(
        "Norm at which ε competes with weight decay.",
        "One channel; `output_slope` = |⟨∂f/∂z,z⟩| of the normalized output z; k = ε/(σ²ρ²); `tolerance` is the "
        "largest ratio of radial gradient to decay λρ².",
        [eps, variance, wd, slope, tolerance, sq_norm, norm],
        {norm: sqrt(square), fraction: eps / (variance * sq_norm)},
    )
    result.step(
        Eq(slope * fraction / (1 + fraction), radial_gradient),
        "The radial gradient ⟨∇f,w⟩ follows from `invariance_norm`. It competes with λρ².",
    )
    result.step(
        Eq(variance * norm**4 + eps * norm**2, slope * eps / (tolerance * wd)),
        "Their ratio is the tolerance where this quadratic in ρ² holds.",
    )
    root = sqrt(1 + 4 * slope * variance / (tolerance * wd * eps))
    large = {slope: ratio * eps * wd * tolerance / variance}
    result.step(
        Eq(sympy.Limit((square**2 * variance * tolerance * wd / (slope * eps)).subs(large), ratio, sympy.oo), 1),
        "For small k the solution is ρ⁴ = ε|⟨∂f/∂z,z⟩|/(tolerance·λσ²). This is far above the norm at which k is of "
        "order 1.",
    )
    result.step(Eq(norm**2, eps / (2 * variance) * (root - 1)), "ρ² is the positive root of the quadratic.")
    return result
