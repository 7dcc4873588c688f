"""Bounds of the norm when ℓ <= g̃ <= L: the attracting interval and the reachable interval (docs/mathematics.md §3)."""

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
    """Return the r at which r⁺ = a r + b/r is least: √(b/a).

    Examples
    --------
    >>> print(turning_point())
    sqrt(b)/sqrt(a)
    """
    (point,) = sympy.solve(sympy.diff(square_map(a, b), sq_norm), sq_norm)
    return sympy.powdenest(point, force=True)


def norm_bounds() -> Derivation:
    """Derive the interval that attracts every orbit with ℓ <= g̃ <= L and is never left.

    Examples
    --------
    >>> [relation.lhs for relation in norm_bounds()[-2:]]
    [sq_lower, sq_upper]
    """
    low, high = square_map(a, b_min), square_map(a, b_max)
    rest_low, rest_high = (sqrt(fixed_square().subs(b, value)) for value in (b_min, b_max))
    least = square_map(a, b_min, turning_point().subs(b, b_min))
    quadratic = product**2 * a**2 - (product - b_min) * (product - b_max)
    larger = max(sympy.solve(quadratic, product), key=lambda root: root.subs({a: HALF, b_min: 1, b_max: 4}))
    far = sqrt((larger - b_min) / a)
    result = Derivation(
        "Interval of norms that attracts every orbit.",
        "ℓ <= g̃ <= L in any order, 0 < ℓ <= L; 0 < ηλ < 2, ηλ ≠ 1; a = (1-ηλ)², b_min = (ηℓ)², b_max = (ηL)²; r = ρ².",
        {"a": a, "b_min": b_min, "b_max": b_max, "sq_lower": sq_lower, "sq_upper": sq_upper},
    )
    below_one, half_or_more, below_half = {a: 1 / (1 + s)}, {a: (1 + c) / (2 + c)}, {a: 1 / (2 + s)}
    # the lower end
    result.step(
        Ge(low, 2 * sqrt(a * b_min)),
        "Arithmetic and geometric mean: the difference is (√a r - √b_min)²/r.",
        {a: s**2, b_min: t**2},
    )
    result.step(
        Eq(low - rest_low, (sq_norm - rest_low) * (a - b_min / (sq_norm * rest_low))),
        "One step with ℓ multiplies the distance from the fixed point of ℓ by a factor.",
        below_one,
    )
    result.step(
        Ge(a - b_min / (sq_norm * rest_low), 2 * a - 1),
        "Above the fixed point the factor is at least the multiplier 2a-1.",
        {**below_one, sq_norm: rest_low.subs(below_one) + d},
    )
    result.step(
        Ge(low, rest_low),
        "For a >= 1/2 the factor is not negative: the fixed point of ℓ is never crossed from above.",
        {**half_or_more, sq_norm: rest_low.subs(half_or_more) + d},
    )
    result.step(
        Eq(square_map(a, b_min, sq_lower), sq_lower),
        "It is also reached in the limit, by g̃ = ℓ for ever, so it is the lower end.",
        {sq_lower: rest_low, **half_or_more},
    )
    # the upper end
    result.step(
        Gt(Derivative(high, sq_norm, 2), 0), "The map is convex in r: its maximum over an interval is at an end."
    )
    result.step(
        Eq(high - sq_norm, (1 - a) * (rest_high**2 - sq_norm**2) / sq_norm),
        "A step with L raises the norm below the fixed point of L and lowers it above.",
        below_one,
    )
    result.step(
        Le(high**2 - rest_high**2, a**2 * (sq_norm**2 - rest_high**2)),
        "Above it the distance in r² shrinks at least by a² a step, whatever the gradients: every orbit comes down.",
        {**below_one, sq_norm: rest_high.subs(below_one) + d},
    )
    result.step(
        Le(square_map(a, b_max, sq_upper), sq_upper),
        "So an upper end at or above the fixed point of L maps into the interval; the lower end does when the upper "
        "end is at least its image: the larger of the two numbers is the least upper end.",
        {**below_one, sq_upper: rest_high.subs(below_one) + d},
    )
    result.step(
        Eq(
            square_map(a, b_max, rest_low) - rest_high,
            (rest_low - rest_high) * (a - (1 - a) * sqrt(b_max) / sqrt(b_min)),
        ),
        "For a >= 1/2 the fixed point of L is the larger one exactly when ℓ/L >= (1-a)/a.",
        below_one,
    )
    # the overshooting map
    result.step(
        Eq(Derivative(low, sq_norm).doit().subs(sq_norm, turning_point().subs(b, b_min)), 0),
        "The least value of the map is taken where its slope vanishes.",
    )
    result.step(
        Gt(turning_point().subs(b, b_min) ** 2, rest_low**2),
        "For a < 1/2 this point lies above the fixed point of ℓ: orbits overshoot.",
        below_half,
    )
    result.step(Eq(least, 2 * sqrt(a * b_min)), "The value there is the bound of the means, so that bound is attained.")
    result.step(
        Le(least, turning_point().subs(b, b_min)),
        "It lies at or below the turning point, which is thus inside the interval when the upper end reaches it.",
        {a: 1 / (2 + c)},
    )
    result.step(
        Eq(
            square_map(a, b_max, least) - turning_point().subs(b, b_min),
            sqrt(b_min) / (2 * sqrt(a)) * (b_max / b_min - (2 - 4 * a**2)),
        ),
        "The image under L of that least value reaches the turning point exactly when (L/ℓ)² >= 2 - 4a².",
    )
    exchange = {sq_lower: larger / far, sq_upper: far}
    result.step(
        Eq(sq_lower, square_map(a, b_min, sq_upper)),
        "Otherwise the map falls on the whole interval, whose ends are exchanged: ℓ takes the upper end to the lower …",
        exchange,
    )
    result.step(Eq(sq_upper, square_map(a, b_max, sq_lower)), "… and L takes the lower end to the upper.", exchange)
    result.step(
        Eq(quadratic, 0),
        "With p the product of the ends, p = a r₊² + b_min = a r₋² + b_max; multiplied, these give a quadratic in p.",
        {product: larger},
    )
    result.step(
        Lt(-quadratic.subs(product, b_max), 0),
        "At p = b_max the quadratic (1-a²)p² - (b_min + b_max)p + b_min b_max is negative, so b_max lies between its "
        "roots, and r₋² = (p - b_max)/a > 0 asks for the larger root.",
    )
    # the range of this case: a < 1/2 and 1 < (L/ℓ)² < 2 - 4a²
    falling = {b_max: b_min * (1 + (1 - 4 * a**2) / (1 + s)), a: 1 / (2 + t)}
    result.step(
        Gt(-quadratic.subs(product, 2 * b_min), 0),
        "Where (L/ℓ)² < 2 - 4a² it is positive at p = 2 b_min …",
        falling,
    )
    result.step(
        Gt(-Derivative(quadratic, product).doit().subs(product, 2 * b_min), 0),
        "… and rises there, so the larger root is below 2 b_min and r₊² = (p - b_min)/a below b_min/a: the whole "
        "interval lies below the turning point, where the map falls.",
        falling,
    )
    # b_min and b_max by the ends that they exchange
    exchanged = {b_min: sq_upper * (sq_lower - a * sq_upper), b_max: sq_lower * (sq_upper - a * sq_lower)}
    slope = Derivative(square_map(a, b_max, sq_lower), sq_lower).doit()
    slope *= Derivative(square_map(a, b_min, sq_upper), sq_upper).doit()
    result.step(
        Lt(slope, 1),
        "A step with L and one with ℓ have together a slope below 1 at the ends: the exchanged pair attracts.",
        {**exchanged, sq_upper: sq_lower + d, a: 1 / (2 + s)},
    )
    root = sqrt((b_max - b_min) ** 2 + 4 * a**2 * b_min * b_max)
    published = (b_min + b_max + root) / (2 * (1 - a**2))
    result.step(Eq(product, published), "Larger root.", {product: larger})
    result.step(Eq(sq_upper, sqrt((published - b_min) / a)), "Solve p = a r₊² + b_min for the upper end.", exchange)
    result.step(Eq(sq_lower, published / sqrt((published - b_min) / a)), "The lower end is p/r₊.", exchange)
    # the result: published formulas, held against what was solved for above
    highest = sqrt((published - b_min) / a)

    def larger_of(rest: Any, start: Any) -> Any:
        return Max(rest, a * start + b_max / start)

    formulas = [
        (a >= HALF, sqrt(b_min / (1 - a)), larger_of(sqrt(b_max / (1 - a)), sqrt(b_min / (1 - a)))),
        (b_max < (2 - 4 * a**2) * b_min, published / highest, highest),
        (sympy.true, 2 * sqrt(a * b_min), larger_of(sqrt(b_max / (1 - a)), 2 * sqrt(a * b_min))),
    ]
    solved = [(rest_low, Max(rest_high, square_map(a, b_max, rest_low))), (larger / far, far)]
    solved.append((least, Max(rest_high, square_map(a, b_max, least))))
    words = ["a >= 1/2", "a < 1/2 and (L/ℓ)² < 2 - 4a²", "a < 1/2 and (L/ℓ)² >= 2 - 4a²"]
    for (condition, *ends), found, when in zip(formulas, solved, words, strict=True):
        for name, end, formula, value in zip(("Lower", "Upper"), (sq_lower, sq_upper), ends, found, strict=True):
            result.step(Eq(end, formula), f"{name} end for {when}.", {end: value}, case=condition)
    for position, end in enumerate((sq_lower, sq_upper), start=1):
        branches = [(formula[position], formula[0]) for formula in formulas]
        result.step(Eq(end, Piecewise(*branches)), "Collect the cases, in this order.")
    return result


def norm_envelope() -> Derivation:
    """Derive how the two ends of the set of reachable r = ρ² move in one step.

    Examples
    --------
    >>> print(norm_envelope()[-1].lhs)
    next_sq_lower
    """
    growth = (lr * grad_norm) ** 2
    image = square_map(a, growth)
    turning = turning_point().subs(b, growth)
    low_turning = turning.subs(grad_norm, grad_norm_min)
    result = Derivation(
        "Reachable interval of r = ρ² after one more step.",
        "ℓ <= g̃ <= L in any order, 0 < ℓ <= L; a = (1-ηλ)² > 0; the reachable r fill the interval from r₋ to r₊.",
        {
            "lr": lr,
            "a": a,
            "grad_norm_min": grad_norm_min,
            "grad_norm_max": grad_norm_max,
            "sq_lower": sq_lower,
            "sq_upper": sq_upper,
            "next_sq_lower": next_sq_lower,
            "next_sq_upper": next_sq_upper,
        },
    )
    result.step(
        Gt(Derivative(image, grad_norm), 0), "The map grows with g̃: the least value needs g̃ = ℓ, the largest g̃ = L."
    )
    result.step(
        Eq(Derivative(image, sq_norm).doit().subs(sq_norm, turning), 0), "Its slope in r vanishes at r = ηg̃/√a …"
    )
    result.step(Le(Derivative(image, sq_norm), 0), "… is not positive before …", {sq_norm: turning / (1 + c)})
    result.step(Ge(Derivative(image, sq_norm), 0), "… and not negative after.", {sq_norm: turning + c})
    result.step(
        Eq(image.subs(sq_norm, turning), 2 * sqrt(a) * lr * grad_norm), "The least value of the map over all r."
    )
    low, high = image.subs(grad_norm, grad_norm_min), image.subs(grad_norm, grad_norm_max)
    below = {sq_lower: low_turning / ((1 + c) * (1 + d)), sq_upper: low_turning / (1 + c)}
    above = {sq_lower: low_turning + c, sq_upper: low_turning + c + d}
    result.step(
        Ge(low, low.subs(sq_norm, sq_upper)),
        "If the whole interval lies below the turning point, its upper end has the least image.",
        {sq_norm: sq_upper / (1 + d), **below},
    )
    result.step(
        Ge(low, low.subs(sq_norm, sq_lower)),
        "If it lies above, the lower end has the least image.",
        {sq_norm: sq_lower + d, **above},
    )
    result.step(
        Ge(low, low.subs(sq_norm, low_turning)),
        "If the turning point is inside, it has the least image: the difference is (√a r - ηℓ)²/r.",
        {a: t**2},
    )
    chord = (sq_upper - sq_norm) * high.subs(sq_norm, sq_lower) + (sq_norm - sq_lower) * high.subs(sq_norm, sq_upper)
    result.step(
        Le(high, chord / (sq_upper - sq_lower)),
        "The map is convex in r, so it stays below its chord and is largest at an end of the interval.",
        {sq_upper: sq_norm + t, sq_norm: sq_lower + s},
    )
    result.step(
        Eq(next_sq_upper, Max(high.subs(sq_norm, sq_lower), high.subs(sq_norm, sq_upper))),
        "The larger image of the two ends under g̃ = L.",
        {next_sq_upper: Max(*(square_map(a, (lr * grad_norm_max) ** 2, end) for end in (sq_lower, sq_upper)))},
    )
    least = (lr * grad_norm_min) ** 2
    cases = [
        (
            "The interval lies below the turning point.",
            sq_upper <= low_turning,
            a * sq_upper + least / sq_upper,
            sq_upper,
        ),
        ("The turning point is below.", sq_lower >= low_turning, a * sq_lower + least / sq_lower, sq_lower),
        ("The turning point is inside.", sympy.true, 2 * sqrt(a) * lr * grad_norm_min, low_turning),
    ]
    for words, condition, formula, where in cases:
        result.step(Eq(next_sq_lower, formula), words, {next_sq_lower: low.subs(sq_norm, where)}, case=condition)
    result.step(
        Eq(next_sq_lower, Piecewise(*((formula, condition) for _, condition, formula, _ in cases))),
        "The least image under g̃ = ℓ: collect the cases, in this order.",
    )
    return result


def attraction() -> Derivation:
    """Derive how fast the norm comes into its bounds, and closed forms that enclose the envelope.

    Examples
    --------
    >>> attraction().unproved()
    []
    """
    u, start, bound = sympy.symbols("fourth start bound", positive=True)
    number = sympy.Symbol("number", integer=True, nonnegative=True)
    image = sympy.expand(square_map(a, b) ** 2).subs(sq_norm, sqrt(u))
    rest = fixed_square()
    linear = a ** (2 * number) * start + 2 * a * b * (1 - a ** (2 * number)) / (1 - a**2)
    below_one, half_or_more = {a: 1 / (1 + s)}, {a: (1 + c) / (2 + c)}
    result = Derivation(
        "Attraction by the bounds, and closed forms of the envelope.",
        "0 < ηλ < 2, ηλ ≠ 1; a = (1-ηλ)², b = (ηg̃)² with g̃ = ℓ below and g̃ = L above; u = ρ⁴ = `fourth`; `number` "
        "of "
        "steps since `start`.",
        {"a": a, "b": b, "fourth": u, "start": start, "number": number, "bound": bound},
        {bound: linear},
    )
    result.step(
        Eq(image - rest, (u - rest) * (a**2 - b**2 / (u * rest))),
        "A step under constant g̃ multiplies the distance from the fixed point u* = b/(1-a) by a factor.",
        below_one,
    )
    result.step(
        Le(image - rest, a**2 * (u - rest)),
        "From above it shrinks at least by a²; smaller g̃ lead lower still.",
        {**below_one, u: rest.subs(below_one) + d},
    )
    near = ((1 - a) / a) ** 2 * rest
    result.step(
        Ge(image, rest),
        "From r <= r*(1-a)/a one step leads to r* or above it, and larger g̃ lead higher still.",
        {a: 1 - 1 / (2 + c), u: near.subs(a, 1 - 1 / (2 + c)) / (1 + d)},
    )
    result.step(
        Le(rest - image, a**2 * (rest - u)),
        "From anywhere below the distance shrinks at least by a².",
        {**half_or_more, u: rest.subs(half_or_more) / (1 + d)},
    )
    result.step(
        Eq(image - (a**2 * u + 2 * a * b), b**2 / u),
        "Without its last, positive term a step is linear in u: a lower bound.",
    )
    result.step(
        Eq(linear.subs(number, number + 1), a**2 * linear + 2 * a * b), "The linear recursion is solved by this …"
    )
    result.step(Eq(linear.subs(number, 0), start), "… from the start.")
    result.step(Gt(Derivative(image, u, 2), 0), "A step is convex in u, so it lies above its tangent at u*, …")
    result.step(
        Eq(Derivative(image, u).doit().subs(u, rest), 2 * a - 1),
        "… whose slope is 2a-1: for a >= 1/2 the distance from u_ℓ is at least (2a-1)^t times that of the start.",
        below_one,
    )
    result.step(
        Eq(bound, a ** (2 * number) * start + 2 * a * b * (1 - a ** (2 * number)) / (1 - a**2)),
        "The closed lower bound of u after so many steps.",
    )
    return result
