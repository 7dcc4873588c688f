"""Equilibrium of Adam, AdamW and Lion (docs/mathematics.md §7).

A step is x⁺ = x - ηu plus decay, with a direction u per coordinate that is stationary and of known autocorrelation.
Gradients are Gaussian, independent in time, of unit variance per coordinate.
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
    """Return 1 + ratio + ratio² + … = 1/(1 - ratio).

    Examples
    --------
    >>> geometric(sympy.Rational(1, 2))
    2
    """
    return 1 / (1 - ratio)


def decoupled_decay() -> Derivation:
    """Derive norm and rotation of x⁺ = (1-ηλ)x - ηu from the variance and the summed autocorrelation of u.

    Examples
    --------
    >>> print(decoupled_decay()[-2].rhs)
    dim*lr*summed/(wd*(-lr*wd + 2))
    """
    instant, summed, along = sympy.symbols("instant summed along", positive=True)
    kept, square = sympy.symbols("kept square", positive=True)
    # E[xu]: x = -η(u₁ + s u₂ + …) of earlier directions, so E[xu] = -η Σ s^(n-1) c_n, and S = c₀ + 2 Σ s^n c_n
    product = -lr * (summed - instant) / (2 * kept)
    (stationary,) = sympy.solve(
        Eq(square, kept**2 * square - 2 * kept * lr * along + lr**2 * instant).subs(along, product), square
    )
    result = Derivation(
        "Norm and rotation under decoupled decay.",
        "u independent of x but for the past; `instant` = E[u²], `summed` = Σ_n s^|n| E[u_t u_(t+n)] over all n, s = "
        "`kept` = 1-ηλ; 0 < ηλ < 1.",
        {"lr": lr, "wd": wd, "dim": dim, "instant": instant, "summed": summed, "norm": norm, "turn": turn},
        {
            along: product,
            square: stationary,
            turn: 1 - (kept * stationary - lr * product) / stationary,
            norm: sqrt(dim * stationary),
            kept: S,
        },
    )
    # an autocorrelation E[u²] ratio^n, of which others are sums: both sides are linear in it
    ratio = sympy.Symbol("ratio", positive=True)
    all_lags = instant * (2 * geometric(ratio * kept) - 1)
    result.step(
        Eq(-lr * instant * ratio * geometric(ratio * kept), -lr * (all_lags - instant) / (2 * kept)),
        "x = -η(u₁ + s u₂ + …) is the sum of the earlier directions, so E[xu] = -η Σ_n s^(n-1) c_n over n >= 1: "
        "for every "
        "c_n = E[u²] ratio^n, and by linearity for all sums of such, it is minus η times half the sum over n ≠ "
        "0, per s.",
    )
    result.step(
        Eq(square, kept**2 * square - 2 * kept * lr * along + lr**2 * instant),
        "Square x⁺ = sx - ηu and take the mean: it does not change.",
    )
    result.step(Eq(square, lr**2 * summed / (1 - kept**2)), "Insert E[xu] and solve: E[u²] cancels.")
    result.step(
        Eq(turn, 1 - kept + lr * along / square),
        "1 - cos θ = 1 - E[x⁺x]/E[x²], in many dimensions.",
    )
    result.step(
        Eq(turn, (lr**2 * instant / square - (lr * wd) ** 2) / (2 * kept)),
        "Eliminate E[xu] by the second line.",
    )
    result.step(Eq(norm**2, dim * lr * summed / (wd * (2 - lr * wd))), "d coordinates, and 1-s² = ηλ(2-ηλ).")
    repeated = (summed - instant) / kept
    result.step(
        Eq(turn, lr * wd * (2 * instant - lr * wd * repeated) / (2 * summed)),
        "Insert E[x²], in a form without cancellation: (S - E[u²])/s is the sum without its first term, per s.",
    )
    return result


def _variance(s: Any) -> tuple[Any, Any]:
    """E[u²] and Σ s^|n| E[u_t u_(t+n)] of Adam's direction, from its terms at every lag."""
    w = sympy.cancel(2 * E**2 * geometric(beta2**2))
    known = 2 * E * (1 - beta1) ** 2 * geometric(beta1**2 * beta2)  # 2e Σ_j β₂^j h_j²
    own = (1 - beta1) ** 2 * geometric(beta1**2)

    def both_sides(ratio: Any) -> Any:
        return 2 * geometric(ratio * s) - 1

    summed = own * (1 + Rational(3, 4) * w) * both_sides(beta1) + own * w / 4 * both_sides(beta1 * beta2)
    summed -= known * (geometric(beta1 * s) + geometric(beta1 * beta2 * s) - 1)
    return own * (1 + w) - known, summed


def adamw() -> Derivation:
    """Derive the equilibrium of AdamW to first order in 1-β₂.

    Examples
    --------
    >>> adamw().unproved()
    []
    """
    z, i = sympy.Symbol("z", real=True), sympy.Symbol("i", integer=True, nonnegative=True)
    w, kept = fluctuation, sympy.Symbol("kept", positive=True)
    instant, summed = sympy.symbols("instant summed", positive=True)
    correlation, known, known_back = sympy.symbols("correlation known known_back", positive=True)
    weight = (1 - beta1) * beta1**i  # of the gradient i steps ago in the mean
    instant_value, summed_value = _variance(kept)
    published = decoupled_decay()
    inserted = {published.symbols["instant"]: instant, published.symbols["summed"]: summed}
    square = published[-2].rhs.subs(inserted) / dim
    result = Derivation(
        "Equilibrium of AdamW, to first order in 1-β₂.",
        "Gaussian gradients independent in time and alike in all of many dimensions; 0 < ηλ < 1. `kept` is s = 1-ηλ, "
        "`fluctuation` the variance w of the mean square, `instant` E[u²], `summed` Σ_n s^|n| E[u_t u_(t+n)].",
        {
            "lr": lr,
            "wd": wd,
            "beta1": beta1,
            "beta2": beta2,
            "dim": dim,
            "kept": kept,
            "fluctuation": w,
            "instant": instant,
            "summed": summed,
            "norm": norm,
            "turn": turn,
        },
        {
            norm: sqrt(dim * square),
            turn: published[-1].rhs.subs(inserted),
            correlation: (1 - beta1) ** 2 * beta1**lag * geometric(beta1**2),
            known: 2 * E * (1 - beta1) ** 2 * beta1**lag * geometric(beta1**2 * beta2),
            known_back: 2 * E * (1 - beta1) ** 2 * (beta1 * beta2) ** lag * geometric(beta1**2 * beta2),
            summed: summed_value,
            instant: instant_value,
            w: 2 * E**2 * geometric(beta2**2),
            kept: S,
        },
    )
    root = 1 / sqrt(1 + z)
    result.step(
        Eq(Derivative(root, z).doit().subs(z, 0), -Rational(1, 2)),
        "The mean square v of gradients of variance 1 fluctuates by z: 1/√v = 1 - z/2 + …",
    )
    result.step(Eq(Derivative(root, z, 2).doit().subs(z, 0) / 2, Rational(3, 8)), "… + 3z²/8, and so on.")
    gauss = exp(-(z**2) / 2) / sqrt(2 * pi)
    result.step(
        Eq(Integral(z**2 * (z**2 - 1) * gauss, (z, -oo, oo)), 2),
        "The square of a Gaussian of variance 1 has the variance 2, and this covariance with itself.",
    )
    result.step(
        Eq(w, 2 * E / (1 + beta2)),
        "v is a sum of squares with weights (1-β₂)β₂^j: its variance is 2(1-β₂)²(1 + β₂² + β₂⁴ + …) …",
    )
    result.step(
        Eq(weight * weight.subs(i, i + lag), (1 - beta1) ** 2 * beta1**lag * (beta1**2) ** i),
        "The mean m has the weights (1-β₁)β₁^i; two of its values n steps apart share the gradients of these pairs …",
    )
    result.step(Eq(correlation, OWN * beta1**lag), "… so that E[m_t m_(t+n)], summed over i, is this.")
    result.step(
        Eq(
            E * beta2**i * 2 * weight * weight.subs(i, i + lag),
            2 * E * (1 - beta1) ** 2 * beta1**lag * (beta1**2 * beta2) ** i,
        ),
        "A gradient that is in both means and in v contributes 2 times its three weights to E[m_t m_(t+n) z_t].",
    )
    result.step(
        Eq(known, 2 * E * (1 - beta1) ** 2 * beta1**lag / (1 - beta1**2 * beta2)), "Sum over i, for m n steps later …"
    )
    result.step(
        Eq(known_back, 2 * E * (1 - beta1) ** 2 * (beta1 * beta2) ** lag / (1 - beta1**2 * beta2)),
        "… and n steps earlier, where only gradients at least n steps old are shared: each has β₂^n more.",
    )
    result.step(
        Eq(instant, OWN * (1 + w) - 2 * E * (1 - beta1) ** 2 / (1 - beta1**2 * beta2)),
        "u = m/√v: E[u²] = E[m²(1 - z + z²)], to first order in 1-β₂.",
    )
    both, far = beta1 * kept, beta1 * beta2 * kept
    result.step(
        Eq(
            summed,
            OWN * ((1 + 3 * w / 4) * (1 + both) / (1 - both) + w / 4 * (1 + far) / (1 - far))
            - 2 * E * (1 - beta1) ** 2 / (1 - beta1**2 * beta2) * (1 / (1 - both) + far / (1 - far)),
        ),
        "E[u_t u_(t+n)] = E[m_t m_(t+n)](1 + 3w/4 + wβ₂^n/4) - E[m_t m_(t+n)(z_t + z_(t+n))]/2, summed with s^|n|.",
    )
    result.step(
        Eq(
            (square / lr**2).subs(summed, summed_value).subs({kept: S, beta2: 1}),
            OWN * (1 + beta1 * S) / (1 - beta1 * S) / (lr * wd * (2 - lr * wd)),
        ),
        "At β₂ = 1 the denominator is the root mean square itself, and ρ²/(η²d) is this.",
    )
    result.step(Eq(norm**2, lr * dim * summed / (wd * (2 - lr * wd))), "From `decoupled_decay`.")
    result.step(
        Eq(turn, lr * wd * (2 * instant - lr * wd * (summed - instant) / kept) / (2 * summed)),
        "From `decoupled_decay`.",
    )
    return result


def adam() -> Derivation:
    """Derive the equilibrium of Adam with L2 regularization, to first order in 1-β₂.

    Examples
    --------
    >>> adam().unproved()
    []
    """

    def rule(weights: Any, gradient: Any, mean: Any) -> tuple[Any, Any]:
        mean = beta1 * mean + (1 - beta1) * (gradient + shrink * weights)
        return weights - mean, mean

    own, per_noise, noise, drift, summed = sympy.symbols("own per_noise noise drift summed", positive=True)
    square, turned = second_moments(rule)
    (variance,) = sympy.solve(Eq(noise * (1 + shrink**2 * square), lr**2), noise)
    (gradient,) = sympy.solve(Eq(noise, (shrink / (drift * wd)) ** 2 * grad_norm**2 / (norm**2 * dim)), grad_norm)
    fluctuations = {
        drift: 1 + Rational(3, 8) * 2 * E**2 * geometric(beta2**2) - E * (1 - beta1) * geometric(beta1 * beta2),
        summed: _variance(1)[1],
    }
    result = Derivation(
        "Equilibrium of Adam with L2 regularization, to first order in 1-β₂.",
        "Gaussian gradients independent in time and alike in all of many dimensions. `shrink` is the decay per step, "
        "`own` is (1-β₁)/(1+β₁); `drift` and `summed` are 1 for β₂ → 1.",
        {
            "lr": lr,
            "wd": wd,
            "grad_norm": grad_norm,
            "beta1": beta1,
            "beta2": beta2,
            "dim": dim,
            "shrink": shrink,
            "own": own,
            "drift": drift,
            "summed": summed,
            "norm": norm,
            "turn": turn,
        },
        {
            grad_norm: gradient,
            norm: sqrt(dim * variance * square * summed),
            noise: variance,
            per_noise: square,
            turn: turned,
            **fluctuations,
            own: OWN,
        },
    )
    result.step(
        Eq(turn, own * shrink),
        "x⁺ = x - m with m⁺ = β₁m + (1-β₁)(noise + Ex) is a linear rule: 1 - cos θ from its second moments, …",
    )
    result.step(
        Eq(per_noise, 1 / (shrink * (2 - own * shrink))),
        "… and E[x²] per variance of the noise.",
    )
    result.step(
        Eq(noise * (1 + shrink**2 * per_noise), lr**2),
        "The denominator √v is the root mean square of gradient and decay term: together they have the variance η².",
    )
    result.step(Eq(noise, lr**2 * (2 - own * shrink) / (2 + (1 - own) * shrink)), "Solve for the noise.")
    result.step(
        Eq(drift, 1 + Rational(3, 4) * E / (1 + beta2) - E * (1 - beta1) / (1 - beta1 * beta2)),
        "v fluctuates (see `adamw`): E[1/√v] is 1 + 3w/8, and the products of gradient and decay term that v contains "
        "are in the mean too, each with -½ · 2 of its two weights; the decay is ηλ/√v times this.",
    )
    cross = E * (1 - beta1) / (1 - beta1 * beta2)
    result.step(
        Eq(
            summed,
            1 + 3 * E / (2 * (1 + beta2)) + cross * (1 + beta1 * beta2) / (2 * (1 + beta1) * (1 + beta2)) - 2 * cross,
        ),
        "The growth is that of `adamw` for s = 1, because weights remember longer than the mean.",
    )
    result.step(
        Eq(noise, (shrink / (drift * wd)) ** 2 * grad_norm**2 / (norm**2 * dim)),
        "The noise is the gradient, of variance g̃²/(ρ²d) per coordinate, times η/√v = E/(λ · drift).",
    )
    result.step(
        Eq(norm**2, lr**2 * dim * summed / (shrink * (2 + (1 - own) * shrink))), "ρ² = d E[x²], with the growth."
    )
    result.step(
        Eq(
            shrink**3 * (2 + (1 - own) * shrink) ** 2 / (2 - own * shrink),
            drift**2 * summed * (lr**2 * wd * dim / grad_norm) ** 2,
        ),
        "Eliminate noise and norm: an equation for the decay per step.",
    )
    return result


def lion() -> Derivation:
    """Derive the equilibrium of Lion.

    Examples
    --------
    >>> lion().unproved()
    []
    """
    c, kept, q = sympy.symbols("c kept repetition", positive=True)
    variance, covariance, correlation = sympy.symbols("variance covariance correlation", positive=True)
    fresh, old = 1 - beta1, beta1 * (1 - beta2)
    values = {
        variance: fresh**2 + old**2 * geometric(beta2**2),
        covariance: fresh * old * beta2 ** (lag - 1) + old**2 * beta2**lag * geometric(beta2**2),
        correlation: (fresh * old + old**2 * beta2 * geometric(beta2**2)) / (fresh**2 + old**2 * geometric(beta2**2)),
    }
    published = decoupled_decay()
    inserted = {published.symbols["instant"]: 1, published.symbols["summed"]: q}
    result = Derivation(
        "Equilibrium of Lion.",
        "Gaussian gradients independent in time and alike in all of many dimensions; 0 < ηλ < 1. `kept` is s = 1-ηλ, "
        "`repetition` is q = Σ_n s^|n| E[sign b_t sign b_(t+n)] over all n, `correlation` that of successive blends.",
        {
            "lr": lr,
            "wd": wd,
            "beta1": beta1,
            "beta2": beta2,
            "dim": dim,
            "kept": kept,
            "correlation": correlation,
            "repetition": q,
            "norm": norm,
            "turn": turn,
        },
        {
            norm: sqrt(published[-2].rhs.subs(inserted)),
            turn: published[-1].rhs.subs(inserted),
            **values,
            kept: S,
        },
    )
    result.step(
        Eq(variance, fresh**2 + old**2 / (1 - beta2**2)),
        "The blend is (1-β₁) of the present gradient and β₁(1-β₂)β₂^(j-1) of the one j steps ago.",
    )
    result.step(
        Eq(covariance, beta2 ** (lag - 1) * (fresh * old + beta2 * old**2 / (1 - beta2**2))),
        "n steps apart two blends share all gradients up to the earlier one.",
    )
    result.step(Eq(covariance / variance, correlation * beta2 ** (lag - 1)), "So correlations fall like β₂^(n-1).")
    density = 1 / (2 * pi * sqrt(sympy.Matrix([[1, c], [c, 1]]).det()))
    result.step(
        Eq(Derivative(2 / pi * asin(c), c), 4 * density),
        "Price: the derivative of E[sign b sign b'] in their correlation c is E[2δ(b) 2δ(b')], four times the joint "
        "density at 0; at c = 0 both sides vanish, so E[sign b sign b'] = (2/π) asin c.",
    )
    odd = sympy.Symbol("odd", integer=True, positive=True)
    result.step(
        Eq(correlation**odd * kept * geometric(beta2**odd * kept), correlation**odd * kept / (1 - beta2**odd * kept)),
        "q = 1 + 2 Σ_n (2/π) asin(c_n) s^n; in each odd power of the arcsine's series the terms are geometric in n, "
        "with this sum.",
    )
    result.step(Eq(norm**2, lr * dim * q / (wd * (2 - lr * wd))), "From `decoupled_decay`, with E[u²] = 1.")
    result.step(
        Eq(1 - turn, kept + (1 - kept**2) * (q - 1) / (2 * kept * q)), "The same, for the angle: cos θ in terms of s."
    )
    return result
