"""Bounds of the norm for ℓ <= g̃ <= L: the attracting interval and the reachable interval (docs/mathematics.md §3)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Max, Piecewise, sqrt

from theory.derivations._derivation import Derivation, Eq, Ge, Gt, Le, Lt
from theory.derivations._equilibrium import fixed_square
from theory.derivations._one_step import square_map
from theory.derivations._symbols import (
    a,
    b,
    b_max,
    b_min,
    c,
    d,
    grad_norm,
    grad_norm_max,
    grad_norm_min,
    lr,
    next_sq_lower,
    next_sq_upper,
    product,
    s,
    sq_lower,
    sq_norm,
    sq_upper,
    t,
)

HALF = sympy.Rational(1, 2)


def turning_point() -> Any:
    """Return √(b/a), the r at which r⁺ = a r + b/r is least."""
    (point,) = sympy.solve(sympy.diff(square_map(a, b), sq_norm), sq_norm)
    return sympy.powdenest(point, force=True)


def norm_bounds() -> Derivation:
    """Derive the interval that attracts every orbit with ℓ <= g̃ <= L. No orbit leaves it."""
    low, high = square_map(a, b_min), square_map(a, b_max)
    fixed_low, fixed_high = (sqrt(fixed_square().subs(b, value)) for value in (b_min, b_max))
    least = square_map(a, b_min, turning_point().subs(b, b_min))
    quadratic = product**2 * a**2 - (product - b_min) * (product - b_max)
    larger = max(sympy.solve(quadratic, product), key=lambda root: root.subs({a: HALF, b_min: 1, b_max: 4}))
    upper_end = sqrt((larger - b_min) / a)
    result = Derivation(
        "Interval of norms that attracts every orbit.",
        "ℓ <= g̃ <= L in any order, 0 < ℓ <= L; 0 < ηλ < 2, ηλ ≠ 1; a = (1-ηλ)², b_min = (ηℓ)², b_max = (ηL)²; r = ρ².",
        [a, b_min, b_max, sq_lower, sq_upper],
    )
    below_one, half_or_more, below_half = {a: 1 / (1 + s)}, {a: (1 + c) / (2 + c)}, {a: 1 / (2 + s)}
    # the lower end
    result.step(
        Ge(low, 2 * sqrt(a * b_min)),
        "By the inequality of arithmetic and geometric mean: the difference is (√a r - √b_min)²/r.",
        {a: s**2, b_min: t**2},
    )
    result.step(
        Eq(low - fixed_low, (sq_norm - fixed_low) * (a - b_min / (sq_norm * fixed_low))),
        "One step with ℓ multiplies the distance from the fixed point of ℓ by a factor.",
        below_one,
    )
    result.step(
        Ge(a - b_min / (sq_norm * fixed_low), 2 * a - 1),
        "Above the fixed point this factor is at least the multiplier 2a-1.",
        {**below_one, sq_norm: fixed_low.subs(below_one) + d},
    )
    result.step(
        Ge(low, fixed_low),
        "For a >= 1/2 the factor is not negative, so no step crosses the fixed point of ℓ from above.",
        {**half_or_more, sq_norm: fixed_low.subs(half_or_more) + d},
    )
    result.step(
        Eq(square_map(a, b_min, sq_lower), sq_lower),
        "Constant g̃ = ℓ reaches this fixed point in the limit, so it is the lower end.",
        {sq_lower: fixed_low, **half_or_more},
    )
    # the upper end
    result.step(
        Gt(Derivative(high, sq_norm, 2), 0), "The map is convex in r, so its maximum over an interval is at an end."
    )
    result.step(
        Eq(high - sq_norm, (1 - a) * (fixed_high**2 - sq_norm**2) / sq_norm),
        "A step with L raises the norm below the fixed point of L and lowers it above.",
        below_one,
    )
    result.step(
        Le(high**2 - fixed_high**2, a**2 * (sq_norm**2 - fixed_high**2)),
        "Above the fixed point of L the distance in r² shrinks at least by a² per step for any gradients. Hence "
        "every orbit decays towards it.",
        {**below_one, sq_norm: fixed_high.subs(below_one) + d},
    )
    result.step(
        Le(square_map(a, b_max, sq_upper), sq_upper),
        "An upper end at or above the fixed point of L maps into the interval. The lower end maps into it if the "
        "upper end is at least its image. Hence the least upper end is the larger of the two numbers.",
        {**below_one, sq_upper: fixed_high.subs(below_one) + d},
    )
    result.step(
        Eq(
            square_map(a, b_max, fixed_low) - fixed_high,
            (fixed_low - fixed_high) * (a - (1 - a) * sqrt(b_max) / sqrt(b_min)),
        ),
        "For a >= 1/2 the fixed point of L is the larger number exactly if ℓ/L >= (1-a)/a.",
        below_one,
    )
    # overshooting: a < 1/2
    result.step(
        Eq(Derivative(low, sq_norm).doit().subs(sq_norm, turning_point().subs(b, b_min)), 0),
        "The map has its least value where its slope vanishes.",
    )
    result.step(
        Gt(turning_point().subs(b, b_min) ** 2, fixed_low**2),
        "For a < 1/2 this turning point lies above the fixed point of ℓ, so orbits overshoot.",
        below_half,
    )
    result.step(
        Eq(least, 2 * sqrt(a * b_min)),
        "The least value equals the bound from the two means, so this bound is attained.",
    )
    result.step(
        Le(least, turning_point().subs(b, b_min)),
        "The least value is at or below the turning point. The turning point thus lies inside the interval if the "
        "upper end reaches it.",
        {a: 1 / (2 + c)},
    )
    result.step(
        Eq(
            square_map(a, b_max, least) - turning_point().subs(b, b_min),
            sqrt(b_min) / (2 * sqrt(a)) * (b_max / b_min - (2 - 4 * a**2)),
        ),
        "The image of the least value under L reaches the turning point exactly if (L/ℓ)² >= 2 - 4a².",
    )
    exchange = {sq_lower: larger / upper_end, sq_upper: upper_end}
    result.step(
        Eq(sq_lower, square_map(a, b_min, sq_upper)),
        "Otherwise the map decreases on the whole interval and exchanges its ends: ℓ maps the upper end to the lower "
        "end.",
        exchange,
    )
    result.step(Eq(sq_upper, square_map(a, b_max, sq_lower)), "L maps the lower end to the upper end.", exchange)
    result.step(
        Eq(quadratic, 0),
        "The product p of the ends satisfies p = a r₊² + b_min = a r₋² + b_max. Multiplied, the two equations give a "
        "quadratic in p.",
        {product: larger},
    )
    result.step(
        Lt(-quadratic.subs(product, b_max), 0),
        "The quadratic (1-a²)p² - (b_min + b_max)p + b_min b_max is negative at p = b_max, so b_max lies between its "
        "roots. Since r₋² = (p - b_max)/a > 0, p is the larger root.",
    )
    # range of this case: a < 1/2 and 1 < (L/ℓ)² < 2 - 4a²
    overshooting_range = {b_max: b_min * (1 + (1 - 4 * a**2) / (1 + s)), a: 1 / (2 + t)}
    result.step(
        Gt(-quadratic.subs(product, 2 * b_min), 0),
        "For (L/ℓ)² < 2 - 4a² the quadratic is positive at p = 2 b_min.",
        overshooting_range,
    )
    result.step(
        Gt(-Derivative(quadratic, product).doit().subs(product, 2 * b_min), 0),
        "It increases there, so the larger root is below 2 b_min and r₊² = (p - b_min)/a is below b_min/a. The whole "
        "interval lies below the turning point, where the map decreases.",
        overshooting_range,
    )
    # b_min and b_max in terms of the exchanged ends
    exchanged = {b_min: sq_upper * (sq_lower - a * sq_upper), b_max: sq_lower * (sq_upper - a * sq_lower)}
    slope = Derivative(square_map(a, b_max, sq_lower), sq_lower).doit()
    slope *= Derivative(square_map(a, b_min, sq_upper), sq_upper).doit()
    result.step(
        Lt(slope, 1),
        "A step with L and a step with ℓ together have a slope below 1 at the ends, so the exchanged pair attracts.",
        {**exchanged, sq_upper: sq_lower + d, a: 1 / (2 + s)},
    )
    root = sqrt((b_max - b_min) ** 2 + 4 * a**2 * b_min * b_max)
    published = (b_min + b_max + root) / (2 * (1 - a**2))
    result.step(Eq(product, published), "The larger root of the quadratic.", {product: larger})
    result.step(Eq(sq_upper, sqrt((published - b_min) / a)), "Solve p = a r₊² + b_min for the upper end.", exchange)
    result.step(Eq(sq_lower, published / sqrt((published - b_min) / a)), "The lower end is p/r₊.", exchange)
    # published formulas, compared with the solutions above
    highest = sqrt((published - b_min) / a)

    def larger_of(fixed_point: Any, start: Any) -> Any:
        return Max(fixed_point, a * start + b_max / start)

    formulas = [
        (a >= HALF, sqrt(b_min / (1 - a)), larger_of(sqrt(b_max / (1 - a)), sqrt(b_min / (1 - a)))),
        (b_max < (2 - 4 * a**2) * b_min, published / highest, highest),
        (sympy.true, 2 * sqrt(a * b_min), larger_of(sqrt(b_max / (1 - a)), 2 * sqrt(a * b_min))),
    ]
    solutions = [(fixed_low, Max(fixed_high, square_map(a, b_max, fixed_low))), (larger / upper_end, upper_end)]
    solutions.append((least, Max(fixed_high, square_map(a, b_max, least))))
    descriptions = ["a >= 1/2", "a < 1/2 and (L/ℓ)² < 2 - 4a²", "a < 1/2 and (L/ℓ)² >= 2 - 4a²"]
    for (condition, *ends), solution, description in zip(formulas, solutions, descriptions, strict=True):
        for name, end, formula, value in zip(("Lower", "Upper"), (sq_lower, sq_upper), ends, solution, strict=True):
            result.step(Eq(end, formula), f"{name} end for {description}.", {end: value}, case=condition)
    for position, end in enumerate((sq_lower, sq_upper), start=1):
        branches = [(formula[position], formula[0]) for formula in formulas]
        result.step(Eq(end, Piecewise(*branches)), "Collect the cases in this order.")
    return result


def norm_envelope() -> Derivation:
    """Derive one step of the two ends of the set of reachable r = ρ²."""
    growth = (lr * grad_norm) ** 2
    image = square_map(a, growth)
    turning = turning_point().subs(b, growth)
    low_turning = turning.subs(grad_norm, grad_norm_min)
    result = Derivation(
        "Reachable interval of r = ρ² after one more step.",
        "ℓ <= g̃ <= L in any order, 0 < ℓ <= L; a = (1-ηλ)² > 0; the reachable r form the interval from r₋ to r₊.",
        [lr, a, grad_norm_min, grad_norm_max, sq_lower, sq_upper, next_sq_lower, next_sq_upper],
    )
    result.step(
        Gt(Derivative(image, grad_norm), 0),
        "The map increases with g̃: the least value needs g̃ = ℓ, the largest needs g̃ = L.",
    )
    result.step(
        Eq(Derivative(image, sq_norm).doit().subs(sq_norm, turning), 0),
        "The slope of the map in r vanishes at the turning point r = ηg̃/√a.",
    )
    result.step(
        Le(Derivative(image, sq_norm), 0),
        "The slope is not positive below the turning point.",
        {sq_norm: turning / (1 + c)},
    )
    result.step(
        Ge(Derivative(image, sq_norm), 0), "The slope is not negative above the turning point.", {sq_norm: turning + c}
    )
    result.step(
        Eq(image.subs(sq_norm, turning), 2 * sqrt(a) * lr * grad_norm), "This is the least value of the map over all r."
    )
    low, high = image.subs(grad_norm, grad_norm_min), image.subs(grad_norm, grad_norm_max)
    below = {sq_lower: low_turning / ((1 + c) * (1 + d)), sq_upper: low_turning / (1 + c)}
    above = {sq_lower: low_turning + c, sq_upper: low_turning + c + d}
    result.step(
        Ge(low, low.subs(sq_norm, sq_upper)),
        "If the interval lies below the turning point, its upper end has the least image.",
        {sq_norm: sq_upper / (1 + d), **below},
    )
    result.step(
        Ge(low, low.subs(sq_norm, sq_lower)),
        "If the interval lies above the turning point, its lower end has the least image.",
        {sq_norm: sq_lower + d, **above},
    )
    result.step(
        Ge(low, low.subs(sq_norm, low_turning)),
        "If the turning point lies inside, it has the least image: the difference is (√a r - ηℓ)²/r.",
        {a: t**2},
    )
    chord = (sq_upper - sq_norm) * high.subs(sq_norm, sq_lower) + (sq_norm - sq_lower) * high.subs(sq_norm, sq_upper)
    result.step(
        Le(high, chord / (sq_upper - sq_lower)),
        "The map is convex in r, so it lies below its chord and is largest at an end of the interval.",
        {sq_upper: sq_norm + t, sq_norm: sq_lower + s},
    )
    result.step(
        Eq(next_sq_upper, Max(high.subs(sq_norm, sq_lower), high.subs(sq_norm, sq_upper))),
        "The upper end is the larger image of the two ends for g̃ = L.",
        {next_sq_upper: Max(*(square_map(a, (lr * grad_norm_max) ** 2, end) for end in (sq_lower, sq_upper)))},
    )
    least = (lr * grad_norm_min) ** 2
    cases = [
        (
            "Lower end if the interval lies below the turning point.",
            sq_upper <= low_turning,
            a * sq_upper + least / sq_upper,
            sq_upper,
        ),
        (
            "Lower end if the interval lies above the turning point.",
            sq_lower >= low_turning,
            a * sq_lower + least / sq_lower,
            sq_lower,
        ),
        ("Lower end if the turning point lies inside.", sympy.true, 2 * sqrt(a) * lr * grad_norm_min, low_turning),
    ]
    for reason, condition, formula, point in cases:
        result.step(Eq(next_sq_lower, formula), reason, {next_sq_lower: low.subs(sq_norm, point)}, case=condition)
    result.step(
        Eq(next_sq_lower, Piecewise(*((formula, condition) for _, condition, formula, _ in cases))),
        "The lower end is the least image for g̃ = ℓ. Collect the cases in this order.",
    )
    return result


def attraction() -> Derivation:
    """Derive the speed of attraction to the bounds of the norm, and closed forms that enclose the envelope."""
    u, start, bound = sympy.symbols("fourth start bound", positive=True)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    image = sympy.expand(square_map(a, b) ** 2).subs(sq_norm, sqrt(u))
    equilibrium = fixed_square()
    linear = a ** (2 * number) * start + 2 * a * b * (1 - a ** (2 * number)) / (1 - a**2)
    below_one, half_or_more = {a: 1 / (1 + s)}, {a: (1 + c) / (2 + c)}
    result = Derivation(
        "Speed of attraction, and closed forms of the envelope.",
        "0 < ηλ < 2, ηλ ≠ 1; a = (1-ηλ)²; b = (ηg̃)² with g̃ = ℓ below and g̃ = L above; u = ρ⁴ = `fourth`; `number` "
        "of steps since `start`.",
        [a, b, u, start, number, bound],
        {bound: linear},
    )
    result.step(
        Eq(image - equilibrium, (u - equilibrium) * (a**2 - b**2 / (u * equilibrium))),
        "A step with constant g̃ multiplies the distance from the fixed point u* = b/(1-a) by a factor.",
        below_one,
    )
    result.step(
        Le(image - equilibrium, a**2 * (u - equilibrium)),
        "From above, the distance shrinks at least by a². Smaller g̃ lead even lower.",
        {**below_one, u: equilibrium.subs(below_one) + d},
    )
    near = ((1 - a) / a) ** 2 * equilibrium
    result.step(
        Ge(image, equilibrium),
        "From r <= r*(1-a)/a one step leads to r* or above. Larger g̃ lead even higher.",
        {a: 1 - 1 / (2 + c), u: near.subs(a, 1 - 1 / (2 + c)) / (1 + d)},
    )
    result.step(
        Le(equilibrium - image, a**2 * (equilibrium - u)),
        "From any u below u* the distance shrinks at least by a².",
        {**half_or_more, u: equilibrium.subs(half_or_more) / (1 + d)},
    )
    result.step(
        Eq(image - (a**2 * u + 2 * a * b), b**2 / u),
        "Without its last, positive term a step is linear in u. This is a lower bound.",
    )
    result.step(
        Eq(linear.subs(number, number + 1), a**2 * linear + 2 * a * b), "This expression solves the linear recursion."
    )
    result.step(Eq(linear.subs(number, 0), start), "It begins at the start.")
    result.step(Gt(Derivative(image, u, 2), 0), "A step is convex in u, so it lies above its tangent at u*.")
    result.step(
        Eq(Derivative(image, u).doit().subs(u, equilibrium), 2 * a - 1),
        "The tangent has the slope 2a-1. For a >= 1/2 the distance from u_ℓ after t steps is at least (2a-1)^t times "
        "the initial one.",
        below_one,
    )
    result.step(
        Eq(bound, a ** (2 * number) * start + 2 * a * b * (1 - a ** (2 * number)) / (1 - a**2)),
        "The closed lower bound of u after this number of steps.",
    )
    return result


def probable_norm_bounds() -> Derivation:
    """Derive bounds of the norm that hold with high probability, from the mean square of the gradient norm."""
    u, low, mean, deviation = sympy.symbols("fourth least mean deviation", positive=True)
    number, back = sympy.symbols("number back", integer=True, nonnegative=True)
    variance, span, log_chance = sympy.symbols("variance span log_chance", positive=True)
    lower_fourth, upper_fourth = sympy.symbols("lower_fourth upper_fourth", positive=True)
    image = sympy.expand(square_map(a, b) ** 2).subs(sq_norm, sqrt(u))
    below_one = {a: 1 / (1 + s)}
    weights = (1 - a**2) * a ** (2 * back)
    squares = sympy.summation(sympy.expand(a ** (4 * back)), (back, 0, number - 1)).subs(a ** (4 * number), 0)
    root = max(
        sympy.solve(deviation**2 - 2 * log_chance * (variance + span * deviation / 3), deviation),
        key=lambda value: value.subs({variance: 1, span: 1, log_chance: 1}),
    )
    slope = 2 * a + b_max / low
    result = Derivation(
        "Bounds of the norm with high probability.",
        "E[g̃² | past] is `mean` below or above, g̃ <= L; 0 < ηλ < 1; a = (1-ηλ)², b = (ηg̃)², b_max = (ηL)²; u = ρ⁴ is "
        "`fourth`, and `least` is a lower bound of u; `deviation` of the weighted mean of g̃², `variance` its variance, "
        "`span` its largest step, `log_chance` = -ln of the chance of a larger deviation.",
        [a, b, b_max, lr, grad_norm, u, low, mean, variance, span, log_chance, deviation, lower_fourth, upper_fourth],
        {
            lower_fourth: 2 * a * lr**2 * (mean - deviation) / (1 - a**2),
            upper_fourth: slope * lr**2 * (mean + deviation) / (1 - a**2),
            deviation: root,
        },
    )
    result.step(
        Ge(image, a**2 * u + 2 * a * b),
        "A step without its positive term b²/u. So u is at least a sum of 2ab over the past, with the weights a^(2n).",
    )
    result.step(
        Le(image, a**2 * u + (2 * a + b_max / low) * b),
        "With b <= b_max and u >= `least` the same sum, with another factor, is an upper bound.",
        {b_max: b + c, u: low + d},
    )
    result.step(
        Eq(
            sympy.summation(weights, (back, 0, number - 1)).simplify(),
            1 - a ** (2 * number),
        ),
        "Times 1-a² these weights have the sum 1, once the start is forgotten: the sum is a mean of g̃².",
        below_one,
    )
    result.step(
        Eq((1 - a**2) ** 2 * squares, (1 - a**2) / (1 + a**2)),
        "The sum of the squared weights, for many steps, is about 2ηλ. So the mean hardly deviates if ηλ is small.",
        below_one,
    )
    result.step(
        Eq(deviation**2, 2 * log_chance * (variance + span * deviation / 3)),
        "Freedman's inequality for martingales: the chance is at most exp(-deviation²/(2(variance + "
        "span·deviation/3))).",
    )
    result.step(
        Eq(deviation, span * log_chance / 3 + sqrt((span * log_chance / 3) ** 2 + 2 * variance * log_chance)),
        "Solve for the deviation. Hoeffding's inequality gives another one; the smaller of the two is used.",
    )
    result.step(
        Eq(lower_fourth, 2 * a * lr**2 * (mean - deviation) / (1 - a**2)),
        "The lower bound of ρ⁴, with the least mean.",
    )
    result.step(
        Eq(upper_fourth, (2 * a + b_max / low) * lr**2 * (mean + deviation) / (1 - a**2)),
        "The upper bound of ρ⁴, with the largest mean.",
    )
    return result
