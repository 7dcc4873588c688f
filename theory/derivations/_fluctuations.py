"""Moments of the norm when the gradient norm fluctuates (docs/mathematics.md §2)."""

from __future__ import annotations

import sympy
from sympy import Derivative, sqrt

from theory.derivations import _equilibrium
from theory.derivations._derivation import Derivation, Eq
from theory.derivations._one_step import square_map
from theory.derivations._symbols import BELOW_ONE, a, b, lr, next_sq_norm, sq_norm, wd

variation, mean_ratio, deviation, correlation = sympy.symbols(
    "variation mean_ratio deviation correlation", positive=True
)


def moment_identities() -> Derivation:
    """Derive (1-a)E[ρ²] = η²E‖∇f‖² and (1-a)E[ρ⁴] = η²E[g̃²] + ½E[(r⁺-r)²] for stationary traces."""
    mean_r, mean_u, mean_push, mean_b, mean_change = sympy.symbols(
        "mean_sq_norm mean_fourth mean_push mean_b mean_sq_change", positive=True
    )
    product = sympy.Symbol("mean_product", positive=True)
    # E[r⁺] = E[r], and E[(r⁺)²] = E[r²]
    (push,) = sympy.solve(Eq(mean_r, a * mean_r + mean_push), mean_push)
    (along,) = sympy.solve(Eq(mean_change, 2 * mean_u - 2 * product), product)
    (drive,) = sympy.solve(Eq(along, a * mean_u + mean_b), mean_b)
    result = Derivation(
        "Moments of a stationary trace for any sequence of g̃.",
        "r = ρ² and r⁺ have the same distribution; `mean_push` = η²E‖∇f‖², `mean_b` = η²E[g̃²], `mean_product` = E[r "
        "r⁺], `mean_sq_change` = E[(r⁺-r)²].",
        [a, b, sq_norm, next_sq_norm, mean_r, mean_u, mean_push, mean_b, product, mean_change],
        {next_sq_norm: square_map(a, b), mean_push: push, mean_b: drive, product: along},
    )
    result.step(
        Eq((1 - a) * mean_r, mean_push), "The mean of r⁺ = a r + b/r, with b/r = η²‖∇f‖², is the first identity."
    )
    result.step(Eq(sq_norm * next_sq_norm, a * sq_norm**2 + b), "Multiplied by r, the map is linear in r² = ρ⁴.")
    result.step(
        Eq(sq_norm * next_sq_norm, (sq_norm**2 + next_sq_norm**2 - (next_sq_norm - sq_norm) ** 2) / 2),
        "The product r r⁺ is a combination of squares.",
    )
    result.step(Eq(product, mean_u - mean_change / 2), "The mean of the product follows with E[(r⁺)²] = E[r²].")
    result.step(
        Eq((1 - a) * mean_u, mean_b + mean_change / 2),
        "The two expressions of the mean product give the second identity.",
    )
    return result


def moments_of_a_window() -> Derivation:
    """Derive the moment identities over N steps of any trace, with the end terms (r_N-r_0)/N and (r_N²-r_0²)/2N."""
    total_r, total_u, total_change, steps = sympy.symbols("sum_r sum_sq_r sum_sq_change steps", positive=True)
    first = sympy.Symbol("first_sq_norm", positive=True)
    pushes, drives = sympy.symbols("sum_push sum_b", positive=True)
    after = square_map(a, b)
    result = Derivation(
        "Moments over a window of any trace.",
        "N = `steps` updates from r_0 = `first_sq_norm` to r = r_N; `sum_r` = Σr, `sum_sq_r` = Σr², `sum_push` = "
        "Ση²‖∇f‖² = Σb/r, `sum_b` = Ση²g̃², `sum_sq_change` = Σ(r⁺-r)², each over the N updates.",
        [a, b, sq_norm, next_sq_norm, total_r, total_u, pushes, drives, total_change, first, steps],
        {
            next_sq_norm: after,
            pushes: (1 - a) * total_r + sq_norm - first,
            drives: (1 - a) * total_u + (sq_norm**2 - first**2) / 2 - total_change / 2,
        },
    )
    result.step(
        Eq((1 - a) * (total_r + sq_norm) + next_sq_norm - first, pushes + b / sq_norm),
        "The identity Σpush = (1-a)Σr + r_N - r_0 holds for N = 0. If it holds for N steps, it holds for N+1.",
    )
    next_total_change = total_change + (next_sq_norm - sq_norm) ** 2
    result.step(
        Eq((1 - a) * (total_u + sq_norm**2) + (next_sq_norm**2 - first**2) / 2, drives + b + next_total_change / 2),
        "The same is true of Σb = (1-a)Σr² + (r_N²-r_0²)/2 - ½Σ(r⁺-r)².",
    )
    result.step(
        Eq((1 - a) * total_r / steps + (sq_norm - first) / steps, pushes / steps),
        "By induction the first identity holds for every N. Divided by N, it has the term (r_N-r_0)/N of the two ends.",
    )
    result.step(
        Eq((1 - a) * total_u / steps + (sq_norm**2 - first**2) / (2 * steps), (drives + total_change / 2) / steps),
        "The second identity likewise. Both end terms vanish for N → ∞ if r stays bounded.",
    )
    return result


def equilibrium_spread() -> Derivation:
    """Derive E[ρ⁴]/ρ*⁴ = 1+(1-a)V²/(2a), correlation 2a-1 and sd(ln ρ) = κ(ηλ)V/4 for independent g̃."""
    y, xi = sympy.symbols("y xi", real=True)
    variance, change = sympy.symbols("variance sq_change", positive=True)
    equilibrium = sqrt(_equilibrium.fixed_square())
    next_deviation = square_map(a, b * (1 + xi), equilibrium * (1 + y)) / equilibrium - 1
    slope, kick = (sympy.simplify(next_deviation.diff(x).subs({y: 0, xi: 0})) for x in (y, xi))
    (spread,) = sympy.solve(Eq(variance, slope**2 * variance + kick**2 * variation**2), variance)
    kappa = sqrt((1 - lr * wd) ** -2 - 1)
    # second moment identity in units of ρ*⁴, where (1-a)ρ*⁴ = η²E[g̃²]
    identity = moment_identities()
    names = identity.symbols
    units = {names["mean_fourth"]: mean_ratio, names["mean_b"]: 1 - a, names["mean_sq_change"]: change}
    (ratio,) = sympy.solve(identity[-1].subs(units), mean_ratio)
    half = (sympy.log(sq_norm * (1 + y)) / 2).diff(y).subs(y, 0)
    result = Derivation(
        "Spread of the norm at equilibrium.",
        "g̃ independent in time; V = `variation` is the standard deviation of g̃² over its mean; first order in "
        "κ(ηλ)²V²; r = r*(1+y); b = (ηg̃)² is multiplied by 1+ξ, where ξ has mean 0; 0 < ηλ < 1, a = (1-ηλ)².",
        [lr, wd, a, variation, variance, change, mean_ratio, deviation, correlation],
        {
            mean_ratio: ratio,
            deviation: half * sqrt(variance),
            correlation: slope,
            change: (slope - 1) ** 2 * variance + kick**2 * variation**2,
            variance: spread,
            a: (1 - lr * wd) ** 2,
        },
    )
    at_equilibrium = {y: 0, xi: 0}
    result.step(
        Eq(Derivative(next_deviation, y).doit().subs(at_equilibrium), 2 * a - 1),
        "To first order one step multiplies a deviation of r by the multiplier 2a-1.",
    )
    result.step(
        Eq(Derivative(next_deviation, xi).doit().subs(at_equilibrium), 1 - a),
        "A deviation of g̃² enters with the weight 1-a.",
    )
    result.step(
        Eq(variance, (2 * a - 1) ** 2 * variance + (1 - a) ** 2 * variation**2),
        "The two parts are independent, so their variances add. The sum does not change from step to step.",
    )
    result.step(Eq(variance, (1 - a) * variation**2 / (4 * a)), "Solve for the variance with 1-(2a-1)² = 4a(1-a).")
    result.step(
        Eq(change, (2 * a - 2) ** 2 * variance + (1 - a) ** 2 * variation**2),
        "The mean square of (r⁺-r)/r* has the same two independent parts.",
    )
    result.step(Eq(change, (1 - a) ** 2 * variation**2 / a), "Insert the variance.")
    result.step(
        Eq(mean_ratio, 1 + change / (2 * (1 - a))),
        "This is the second identity of `moment_identities`, divided by (1-a)r*² = η²E[g̃²].",
    )
    result.step(
        Eq(deviation, sqrt(variance) / 2),
        "Since ln ρ = ½ ln r, the standard deviation of ln ρ is half that of y.",
        BELOW_ONE,
    )
    result.step(
        Eq(mean_ratio, 1 + (1 - a) * variation**2 / (2 * a)), "Insert the mean square change: the mean of ρ⁴ over ρ*⁴."
    )
    result.step(
        Eq(correlation, 2 * a - 1), "A linear recursion with independent input has its multiplier as correlation."
    )
    result.step(Eq(deviation, kappa * variation / 4), "Use (1-a)/a = κ(ηλ)².", BELOW_ONE)
    return result
