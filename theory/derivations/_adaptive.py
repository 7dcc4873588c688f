"""Equilibrium of Adam, AdamW and Lion (docs/mathematics.md §7).

A step is x⁺ = x - ηu plus decay. The direction u of each coordinate is stationary with known autocorrelation. Gradients
are Gaussian, independent in time, with unit variance per coordinate.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Integral, Rational, asin, exp, oo, pi, sqrt

from theory.derivations._derivation import Derivation, Eq
from theory.derivations._optimizers import second_moments
from theory.derivations._symbols import beta1, beta2, dim, grad_norm, lr, norm, shrink, turn, wd

lag = sympy.Symbol("lag", integer=True, positive=True)
fluctuation = sympy.Symbol("fluctuation", positive=True)
S = 1 - lr * wd
E = 1 - beta2
OWN = (1 - beta1) / (1 + beta1)


def geometric(ratio: Any) -> Any:
    """Return 1 + ratio + ratio² + … = 1/(1 - ratio)."""
    return 1 / (1 - ratio)


def decoupled_decay() -> Derivation:
    """Derive norm and rotation of x⁺ = (1-ηλ)x - ηu from the variance and the summed autocorrelation of u."""
    instant, summed, along = sympy.symbols("instant summed along", positive=True)
    decay_factor, square = sympy.symbols("decay_factor square", positive=True)
    # x = -η(u₁ + s u₂ + …) sums earlier directions, so E[xu] = -η Σ s^(n-1) c_n, and S = c₀ + 2 Σ s^n c_n
    product = -lr * (summed - instant) / (2 * decay_factor)
    (stationary,) = sympy.solve(
        Eq(square, decay_factor**2 * square - 2 * decay_factor * lr * along + lr**2 * instant).subs(along, product),
        square,
    )
    result = Derivation(
        "Norm and rotation under decoupled decay.",
        "u depends on x only through the past; `instant` = E[u²], `summed` = Σ_n s^|n| E[u_t u_(t+n)] over all n; s "
        "= `decay_factor` = 1-ηλ; 0 < ηλ < 1.",
        [lr, wd, dim, instant, summed, norm, turn],
        {
            along: product,
            square: stationary,
            turn: 1 - (decay_factor * stationary - lr * product) / stationary,
            norm: sqrt(dim * stationary),
            decay_factor: S,
        },
    )
    # one autocorrelation E[u²] ratio^n; others are sums of such, and both sides are linear in it
    ratio = sympy.Symbol("ratio", positive=True)
    all_lags = instant * (2 * geometric(ratio * decay_factor) - 1)
    result.step(
        Eq(-lr * instant * ratio * geometric(ratio * decay_factor), -lr * (all_lags - instant) / (2 * decay_factor)),
        "x = -η(u₁ + s u₂ + …) is the sum of the earlier directions, so E[xu] = -η Σ_n s^(n-1) c_n over n >= 1. For "
        "every c_n = E[u²] ratio^n, and by linearity for all sums of these, E[xu] is -η/s times half the sum over n "
        "≠ 0.",
    )
    result.step(
        Eq(square, decay_factor**2 * square - 2 * decay_factor * lr * along + lr**2 * instant),
        "Square x⁺ = sx - ηu and take the mean, which is stationary.",
    )
    result.step(Eq(square, lr**2 * summed / (1 - decay_factor**2)), "Insert E[xu] and solve. E[u²] cancels.")
    result.step(Eq(turn, 1 - decay_factor + lr * along / square), "In many dimensions 1 - cos θ = 1 - E[x⁺x]/E[x²].")
    result.step(
        Eq(turn, (lr**2 * instant / square - (lr * wd) ** 2) / (2 * decay_factor)),
        "Eliminate E[xu] by the second line.",
    )
    result.step(Eq(norm**2, dim * lr * summed / (wd * (2 - lr * wd))), "Sum over d coordinates, with 1-s² = ηλ(2-ηλ).")
    repeated = (summed - instant) / decay_factor
    result.step(
        Eq(turn, lr * wd * (2 * instant - lr * wd * repeated) / (2 * summed)),
        "Insert E[x²] in a form without cancellation. (S - E[u²])/s is the sum without its first term, divided by s.",
    )
    return result


def _variance(s: Any) -> tuple[Any, Any]:
    """Return E[u²] and Σ s^|n| E[u_t u_(t+n)] of the direction of Adam, from its terms at every lag."""
    w = sympy.cancel(2 * E**2 * geometric(beta2**2))
    overlap = 2 * E * (1 - beta1) ** 2 * geometric(beta1**2 * beta2)  # 2e Σ_j β₂^j h_j²
    own = (1 - beta1) ** 2 * geometric(beta1**2)

    def both_sides(ratio: Any) -> Any:
        return 2 * geometric(ratio * s) - 1

    summed = own * (1 + Rational(3, 4) * w) * both_sides(beta1) + own * w / 4 * both_sides(beta1 * beta2)
    summed -= overlap * (geometric(beta1 * s) + geometric(beta1 * beta2 * s) - 1)
    return own * (1 + w) - overlap, summed


def adamw() -> Derivation:
    """Derive the equilibrium of AdamW to first order in 1-β₂."""
    z, i = sympy.Symbol("z", real=True), sympy.Symbol("i", integer=True, nonnegative=True)
    w, decay_factor = fluctuation, sympy.Symbol("decay_factor", positive=True)
    instant, summed = sympy.symbols("instant summed", positive=True)
    correlation, overlap, overlap_back = sympy.symbols("correlation overlap overlap_back", positive=True)
    weight = (1 - beta1) * beta1**i  # weight of the gradient i steps ago in the mean
    instant_value, summed_value = _variance(decay_factor)
    decoupled = decoupled_decay()
    values_of_moments = {decoupled.symbols["instant"]: instant, decoupled.symbols["summed"]: summed}
    square = decoupled[-2].rhs.subs(values_of_moments) / dim
    result = Derivation(
        "Equilibrium of AdamW, to first order in 1-β₂.",
        "Gaussian gradients, independent in time, with the same distribution in all of many dimensions; 0 < ηλ < 1; "
        "s = `decay_factor` = 1-ηλ; w = `fluctuation` is the variance of the mean square; `instant` = E[u²]; "
        "`summed` = Σ_n s^|n| E[u_t u_(t+n)].",
        [lr, wd, beta1, beta2, dim, decay_factor, w, instant, summed, norm, turn],
        {
            norm: sqrt(dim * square),
            turn: decoupled[-1].rhs.subs(values_of_moments),
            correlation: (1 - beta1) ** 2 * beta1**lag * geometric(beta1**2),
            overlap: 2 * E * (1 - beta1) ** 2 * beta1**lag * geometric(beta1**2 * beta2),
            overlap_back: 2 * E * (1 - beta1) ** 2 * (beta1 * beta2) ** lag * geometric(beta1**2 * beta2),
            summed: summed_value,
            instant: instant_value,
            w: 2 * E**2 * geometric(beta2**2),
            decay_factor: S,
        },
    )
    root = 1 / sqrt(1 + z)
    result.step(
        Eq(Derivative(root, z).doit().subs(z, 0), -Rational(1, 2)),
        "For gradients of variance 1 the mean square is v = 1 + z with a small fluctuation z: 1/√v = 1 - z/2 + …",
    )
    result.step(Eq(Derivative(root, z, 2).doit().subs(z, 0) / 2, Rational(3, 8)), "The next term of 1/√v is 3z²/8.")
    gauss = exp(-(z**2) / 2) / sqrt(2 * pi)
    result.step(
        Eq(Integral(z**2 * (z**2 - 1) * gauss, (z, -oo, oo)), 2),
        "The square of a Gaussian of variance 1 has the variance 2, and the covariance 2 with itself.",
    )
    result.step(
        Eq(w, 2 * E / (1 + beta2)),
        "v is a sum of squares with weights (1-β₂)β₂^j, so its variance is w = 2(1-β₂)²(1 + β₂² + β₂⁴ + …).",
    )
    result.step(
        Eq(weight * weight.subs(i, i + lag), (1 - beta1) ** 2 * beta1**lag * (beta1**2) ** i),
        "The mean m has the weights (1-β₁)β₁^i. Two of its values n steps apart share gradients with these products "
        "of weights.",
    )
    result.step(Eq(correlation, OWN * beta1**lag), "Summed over i, the products give E[m_t m_(t+n)].")
    result.step(
        Eq(
            E * beta2**i * 2 * weight * weight.subs(i, i + lag),
            2 * E * (1 - beta1) ** 2 * beta1**lag * (beta1**2 * beta2) ** i,
        ),
        "A gradient that is in both means and in v contributes 2 times its three weights to E[m_t m_(t+n) z_t].",
    )
    result.step(
        Eq(overlap, 2 * E * (1 - beta1) ** 2 * beta1**lag / (1 - beta1**2 * beta2)),
        "Sum over i, for m taken n steps later.",
    )
    result.step(
        Eq(overlap_back, 2 * E * (1 - beta1) ** 2 * (beta1 * beta2) ** lag / (1 - beta1**2 * beta2)),
        "For m taken n steps earlier only gradients at least n steps old are shared. Each has the further weight β₂^n.",
    )
    result.step(
        Eq(instant, OWN * (1 + w) - 2 * E * (1 - beta1) ** 2 / (1 - beta1**2 * beta2)),
        "For u = m/√v, E[u²] = E[m²(1 - z + z²)] to first order in 1-β₂.",
    )
    both, far = beta1 * decay_factor, beta1 * beta2 * decay_factor
    result.step(
        Eq(
            summed,
            OWN * ((1 + 3 * w / 4) * (1 + both) / (1 - both) + w / 4 * (1 + far) / (1 - far))
            - 2 * E * (1 - beta1) ** 2 / (1 - beta1**2 * beta2) * (1 / (1 - both) + far / (1 - far)),
        ),
        "Sum E[u_t u_(t+n)] = E[m_t m_(t+n)](1 + 3w/4 + wβ₂^n/4) - E[m_t m_(t+n)(z_t + z_(t+n))]/2 with the weights "
        "s^|n|.",
    )
    result.step(
        Eq(
            (square / lr**2).subs(summed, summed_value).subs({decay_factor: S, beta2: 1}),
            OWN * (1 + beta1 * S) / (1 - beta1 * S) / (lr * wd * (2 - lr * wd)),
        ),
        "For β₂ = 1 the denominator is the root mean square itself, and ρ²/(η²d) has this form.",
    )
    result.step(Eq(norm**2, lr * dim * summed / (wd * (2 - lr * wd))), "From `decoupled_decay`.")
    result.step(
        Eq(turn, lr * wd * (2 * instant - lr * wd * (summed - instant) / decay_factor) / (2 * summed)),
        "From `decoupled_decay`.",
    )
    return result


def adam() -> Derivation:
    """Derive the equilibrium of Adam with L2 regularization, to first order in 1-β₂."""

    def rule(weights: Any, gradient: Any, mean: Any) -> tuple[Any, Any]:
        mean = beta1 * mean + (1 - beta1) * (gradient + shrink * weights)
        return weights - mean, mean

    own, per_noise, noise, drift, summed = sympy.symbols("own per_noise noise drift summed", positive=True)
    square, turn_value = second_moments(rule)
    (variance,) = sympy.solve(Eq(noise * (1 + shrink**2 * square), lr**2), noise)
    (gradient,) = sympy.solve(Eq(noise, (shrink / (drift * wd)) ** 2 * grad_norm**2 / (norm**2 * dim)), grad_norm)
    fluctuations = {
        drift: 1 + Rational(3, 8) * 2 * E**2 * geometric(beta2**2) - E * (1 - beta1) * geometric(beta1 * beta2),
        summed: _variance(1)[1],
    }
    result = Derivation(
        "Equilibrium of Adam with L2 regularization, to first order in 1-β₂.",
        "Gaussian gradients, independent in time, with the same distribution in all of many dimensions; E = `shrink` "
        "is the decay per step; `own` = (1-β₁)/(1+β₁); `drift` and `summed` tend to 1 for β₂ → 1.",
        [lr, wd, grad_norm, beta1, beta2, dim, shrink, own, drift, summed, norm, turn],
        {
            grad_norm: gradient,
            norm: sqrt(dim * variance * square * summed),
            noise: variance,
            per_noise: square,
            turn: turn_value,
            **fluctuations,
            own: OWN,
        },
    )
    result.step(
        Eq(turn, own * shrink),
        "x⁺ = x - m with m⁺ = β₁m + (1-β₁)(noise + Ex) is a linear rule. Its second moments give 1 - cos θ.",
    )
    result.step(Eq(per_noise, 1 / (shrink * (2 - own * shrink))), "They also give E[x²] per variance of the noise.")
    result.step(
        Eq(noise * (1 + shrink**2 * per_noise), lr**2),
        "The denominator √v is the root mean square of gradient plus decay term, so both together have the variance "
        "η².",
    )
    result.step(
        Eq(noise, lr**2 * (2 - own * shrink) / (2 + (1 - own) * shrink)), "Solve for the variance of the noise."
    )
    result.step(
        Eq(drift, 1 + Rational(3, 4) * E / (1 + beta2) - E * (1 - beta1) / (1 - beta1 * beta2)),
        "v fluctuates (see `adamw`), so E[1/√v] is 1 + 3w/8. The products of gradient and decay term that v contains "
        "are in the mean too, each with -½ · 2 times its two weights. The decay is ηλ/√v times this factor.",
    )
    cross = E * (1 - beta1) / (1 - beta1 * beta2)
    result.step(
        Eq(
            summed,
            1 + 3 * E / (2 * (1 + beta2)) + cross * (1 + beta1 * beta2) / (2 * (1 + beta1) * (1 + beta2)) - 2 * cross,
        ),
        "The growth is that of `adamw` for s = 1, because the weights have a longer memory than the mean.",
    )
    result.step(
        Eq(noise, (shrink / (drift * wd)) ** 2 * grad_norm**2 / (norm**2 * dim)),
        "The noise is the gradient, of variance g̃²/(ρ²d) per coordinate, times η/√v = E/(λ · drift).",
    )
    result.step(
        Eq(norm**2, lr**2 * dim * summed / (shrink * (2 + (1 - own) * shrink))), "Insert the growth into ρ² = d E[x²]."
    )
    result.step(
        Eq(
            shrink**3 * (2 + (1 - own) * shrink) ** 2 / (2 - own * shrink),
            drift**2 * summed * (lr**2 * wd * dim / grad_norm) ** 2,
        ),
        "Eliminate noise and norm. This is an equation for the decay per step.",
    )
    return result


def lion() -> Derivation:
    """Derive the equilibrium of Lion."""
    c, decay_factor, q = sympy.symbols("c decay_factor repetition", positive=True)
    variance, covariance, correlation = sympy.symbols("variance covariance correlation", positive=True)
    new_weight, old_weight = 1 - beta1, beta1 * (1 - beta2)
    values = {
        variance: new_weight**2 + old_weight**2 * geometric(beta2**2),
        covariance: new_weight * old_weight * beta2 ** (lag - 1) + old_weight**2 * beta2**lag * geometric(beta2**2),
        correlation: (new_weight * old_weight + old_weight**2 * beta2 * geometric(beta2**2))
        / (new_weight**2 + old_weight**2 * geometric(beta2**2)),
    }
    decoupled = decoupled_decay()
    values_of_moments = {decoupled.symbols["instant"]: 1, decoupled.symbols["summed"]: q}
    result = Derivation(
        "Equilibrium of Lion.",
        "Gaussian gradients, independent in time, with the same distribution in all of many dimensions; 0 < ηλ < 1; "
        "s = `decay_factor` = 1-ηλ; q = `repetition` = Σ_n s^|n| E[sign b_t sign b_(t+n)] over all n; `correlation` "
        "is that of successive blends b.",
        [lr, wd, beta1, beta2, dim, decay_factor, correlation, q, norm, turn],
        {
            norm: sqrt(decoupled[-2].rhs.subs(values_of_moments)),
            turn: decoupled[-1].rhs.subs(values_of_moments),
            **values,
            decay_factor: S,
        },
    )
    result.step(
        Eq(variance, new_weight**2 + old_weight**2 / (1 - beta2**2)),
        "The blend has the weight 1-β₁ of the current gradient and β₁(1-β₂)β₂^(j-1) of the gradient j steps ago.",
    )
    result.step(
        Eq(covariance, beta2 ** (lag - 1) * (new_weight * old_weight + beta2 * old_weight**2 / (1 - beta2**2))),
        "Two blends n steps apart share all gradients up to the earlier blend.",
    )
    result.step(
        Eq(covariance / variance, correlation * beta2 ** (lag - 1)), "Hence the correlations decay like β₂^(n-1)."
    )
    density = 1 / (2 * pi * sqrt(sympy.Matrix([[1, c], [c, 1]]).det()))
    result.step(
        Eq(Derivative(2 / pi * asin(c), c), 4 * density),
        "By Price's theorem the derivative of E[sign b sign b'] in the correlation c is E[2δ(b) 2δ(b')], four times "
        "the joint density at 0. Both sides vanish at c = 0, so E[sign b sign b'] = (2/π) asin c.",
    )
    odd = sympy.Symbol("odd", integer=True, positive=True)
    result.step(
        Eq(
            correlation**odd * decay_factor * geometric(beta2**odd * decay_factor),
            correlation**odd * decay_factor / (1 - beta2**odd * decay_factor),
        ),
        "q = 1 + 2 Σ_n (2/π) asin(c_n) s^n. In each odd power of the series of the arcsine the terms are geometric "
        "in n and have this sum.",
    )
    result.step(Eq(norm**2, lr * dim * q / (wd * (2 - lr * wd))), "From `decoupled_decay` with E[u²] = 1.")
    result.step(
        Eq(1 - turn, decay_factor + (1 - decay_factor**2) * (q - 1) / (2 * decay_factor * q)),
        "From `decoupled_decay`, with cos θ in terms of s.",
    )
    return result
