"""Heavy-ball momentum: bounds of the norm, falls and relaxation (docs/mathematics.md §7).

The rule, `theory.optimizers.sgd_update`, is applied to symbols. Its velocity is (older - weights)/η, so that a run is a
sequence of weights alone; two consecutive steps lie in the space of three dimensions that is spanned by the weights
(first axis), the older weights and the gradient, which has no component along the weights.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Matrix, Piecewise, exp, log, sqrt

from theory.derivations._derivation import Derivation, Eq, Ge, Gt, Le
from theory.derivations._symbols import c, d, grad_norm_min, lower, lr, momentum, norm, s, sq_norm, t, upper, wd
from theory.derivations._symbols import relaxation_time as tau
from theory.optimizers import sgd_update

mu, k = momentum, lr * wd

# γ = ηλ(2 - ηλ/(1+μ)) and m = (1-√μ)²: the real roots of z² - (1+μ-γ)z + μ end at γ = m
fall = sympy.Symbol("fall", positive=True)
FALL = {fall: k * (2 - k / (1 + mu))}
LARGEST = (1 - sqrt(mu)) ** 2
# β = (ηℓ)²/(1+μ), the least that gradients add to r⁺, times r
BETA = (lr * grad_norm_min) ** 2 / (1 + mu)
older_sq, floor = sympy.symbols("older_sq floor", positive=True)
root = sympy.Symbol("root", positive=True)

# ranges: 0 < √μ < 1 with μ = root², and γ below m/2, at it or below m, between m/2 and m
SMALL_FALL = {mu: root**2, fall: (1 - root) ** 2 / (2 + c), root: 1 / (1 + s)}
REAL_ROOTS = {mu: root**2, fall: (1 - root) ** 2 / (1 + c), root: 1 / (1 + s)}
MIDDLE_FALL = {mu: root**2, fall: (1 - root) ** 2 * (1 + c) / (2 + c), root: 1 / (1 + s)}


def two_steps() -> tuple[Any, Any, Any, Any]:
    """Weights one step ago, now and one step ahead, and the gradient now, as vectors.

    Examples
    --------
    >>> older, now, ahead, gradient = two_steps()
    >>> now.dot(gradient)
    0
    """
    along, across, beside, gradient_across, gradient_beside = sympy.symbols(
        "along across beside gradient_across gradient_beside", real=True
    )
    older, now = Matrix([along, across, beside]), Matrix([norm, 0, 0])
    gradient = Matrix([0, gradient_across, gradient_beside])
    ahead = [_ahead(*components) for components in zip(older, now, gradient, strict=True)]
    return older, now, Matrix(ahead), gradient


def _ahead(older: Any, now: Any, gradient: Any) -> Any:
    velocity = (older - now) / lr
    return sgd_update(now, gradient, velocity, lr, wd, mu, nesterov=False, decoupled=False)[0]


def _next_square(current: Any, older: Any) -> Any:
    """R⁺ = (1+μ-γ) R - μ R⁻ + β/R, the recursion that r = ρ² never undercuts."""
    return (1 + mu - fall) * current - mu * older + BETA / current


def _length(vector: Any) -> Any:
    return vector.dot(vector)


def _step_of_the_square(result: Derivation) -> None:
    older, now, ahead, gradient = two_steps()
    result.step(
        Eq(_length(ahead + mu * older), (1 + mu - k) ** 2 * _length(now) + lr**2 * _length(gradient)),
        "Without the velocity, (older - now)/η, the rule reads x⁺ + μx⁻ = (1+μ-ηλ)x - η∇f, a right triangle.",
    )
    result.step(
        Eq(
            (1 + mu) * (_length(ahead) + mu * _length(older)) - mu * _length(ahead - older), _length(ahead + mu * older)
        ),
        "The square of a sum of vectors with the weights 1 and μ: what is missing is their distance.",
    )
    result.step(
        Eq(
            _length(ahead) - (1 + mu - fall) * _length(now) + mu * _length(older),
            (lr**2 * _length(gradient) + mu * _length(ahead - older)) / (1 + mu),
        ),
        "Both together, with (1+μ-ηλ)² = (1+μ)(1+μ-γ): the right-hand side is not negative.",
        FALL,
    )


def momentum_lower_bound() -> Derivation:
    """Derive the norm below which heavy-ball SGD cannot stay, r = √(ηℓ²/(λ(2(1+μ)-ηλ))) as a square.

    Examples
    --------
    >>> print(momentum_lower_bound()[-1].lhs)
    lower
    """
    slope = Derivative(_next_square(sq_norm, older_sq), sq_norm).doit()
    resting, turning = sqrt(BETA / fall), sqrt(BETA / (LARGEST - fall))
    point = sympy.Symbol("point", positive=True)
    result = Derivation(
        "Floor of the norm of heavy-ball SGD.",
        "Gradients orthogonal to the weights, g̃ >= ℓ > 0; 0 < ηλ < 2(1+μ), 0 < μ < 1, γ = ηλ(2-ηλ/(1+μ)) < (1-√μ)²; "
        "r = ρ².",
        {
            "lr": lr,
            "wd": wd,
            "momentum": mu,
            "grad_norm_min": grad_norm_min,
            "fall": fall,
            "lower": lower,
        },
    )
    _step_of_the_square(result)
    # comparison
    result.step(
        Eq(
            _next_square(sq_norm + c, older_sq + d) - _next_square(sq_norm, older_sq),
            (1 + mu - fall - BETA / (sq_norm * (sq_norm + c))) * c - mu * d,
        ),
        "So r⁺ >= (1+μ-γ)r - μr⁻ + β/r with β = (ηℓ)²/(1+μ). The distance c of two solutions follows a linear "
        "recursion, whose coefficient is at least the slope at the lower one …",
    )
    result.step(
        Ge(-BETA / (sq_norm * (sq_norm + c)), -BETA / sq_norm**2), "… because the slope of the recursion grows with r."
    )
    coefficient = sympy.Symbol("coefficient", nonnegative=True)
    result.step(
        Eq(
            (2 * sqrt(mu) + coefficient) * c - mu * d - sqrt(mu) * c,
            sqrt(mu) * (c - sqrt(mu) * d) + coefficient * c,
        ),
        "Where this slope is at least 2√μ, c >= √μ d for one step gives the same for the next: a solution that starts "
        "with the same norm and the least second norm stays below.",
    )
    # where the slope suffices
    result.step(
        Eq(slope.subs(sq_norm, turning), 2 * sqrt(mu)),
        "The slope is 2√μ at r = √(β/(m-γ)) and larger above, with m = (1-√μ)².",
        MIDDLE_FALL,
        SMALL_FALL,
    )
    tangent = _next_square(point, older_sq) + slope.subs(sq_norm, point) * (sq_norm - point)
    result.step(
        Ge(_next_square(sq_norm, older_sq), tangent),
        "Below, its tangent there takes its place: the recursion is convex in r and lies above each of its tangents.",
    )
    # the linear recursion
    result.step(
        Eq(_next_square(resting, resting), resting),
        "The recursion rests where γr = β/r.",
    )
    linear = tangent.subs(point, floor).subs({sq_norm: floor + c, older_sq: floor + d})
    result.step(
        Eq(linear - floor, (1 + mu - 2 * fall) * c - mu * d),
        "The tangent there is the linear recursion e⁺ = (1+μ-2γ)e - μe⁻ of the distance e from it.",
        {grad_norm_min: floor * sqrt(fall * (1 + mu)) / lr},
    )
    result.step(
        Ge(1 + mu - 2 * fall, 2 * sqrt(mu)),
        "For 2γ <= m the solutions of this recursion stay above zero once they are, and they vanish in time: so r "
        "comes to the resting point or above.",
        SMALL_FALL,
    )
    result.step(
        Ge(resting**2, turning**2),
        "The resting point is then not below the point where the slope is 2√μ …",
        SMALL_FALL,
    )
    middle = 2 * sqrt(BETA * (LARGEST - fall)) / LARGEST
    line = _next_square(turning, older_sq) + 2 * sqrt(mu) * (sq_norm - turning)
    result.step(
        Le(middle, turning),
        "… but above it for m/2 < γ < m, where the tangent of slope 2√μ …",
        MIDDLE_FALL,
    )
    result.step(
        Eq(line.subs({sq_norm: middle, older_sq: middle}), middle),
        "… rests below, at 2√(β(m-γ))/m; both roots of its recursion are √μ < 1.",
        MIDDLE_FALL,
    )
    # attained
    before, after = _turning_back()
    gradient = ((1 + mu - k) * before - (1 + mu) * after) / lr
    result.step(
        Eq(gradient.dot(before), 0),
        "Weights that go to and fro between two points need a gradient at a right angle to them …",
    )
    result.step(
        Eq(_length(gradient) * lr**2, k * (2 * (1 + mu) - k) * _length(before)),
        "… whose square is proportional to theirs: with ‖∇f‖² = ℓ²/r this is the resting point, which gradients of "
        "changing sign thus hold for ever.",
    )
    # at rest
    rest = (1 - k) ** 2 * (floor + c) + lr**2 * grad_norm_min**2 / floor * (1 - c / floor)
    result.step(
        Eq(rest - floor, 2 * mu * k * floor + (1 - 2 * (1 + mu) * k - 2 * k + 2 * k**2) * c),
        "The first step of a run from rest at r = floor + c has r⁺ >= (1-ηλ)²r + (ηℓ)²/r, above its tangent at the "
        "floor, …",
        {grad_norm_min: floor * sqrt(k * (2 * (1 + mu) - k)) / lr},
    )
    result.step(
        Eq(
            1 - 2 * (1 + mu) * k - 2 * k + 2 * k**2 - sqrt(mu),
            (LARGEST - 2 * fall) + sqrt(mu) * (1 - sqrt(mu) - 2 * sqrt(mu) * k + 2 * k**2 * sqrt(mu) / (1 + mu)),
        ),
        "… whose factor exceeds √μ for 2γ <= m and ηλ < 1: such a run is never below the floor. For there …",
        FALL,
    )
    result.step(Ge(FALL[fall], k), "… ηλ <= γ, hence 2ηλ <= m, …", {wd: (1 + mu) / (lr * (1 + c))})
    result.step(
        Ge(1 - sqrt(mu) - 2 * sqrt(mu) * k, 0),
        "… so the last bracket is not negative.",
        {wd: LARGEST / (2 * lr * (1 + c)), mu: root**2, root: 1 / (1 + s)},
    )
    # the result
    small = fall <= LARGEST / 2
    formula = (lr * grad_norm_min**2 / (wd * (2 * (1 + mu) - k))) ** sympy.Rational(1, 4)
    overshooting = sqrt(2 * lr * grad_norm_min * sqrt((LARGEST - fall) / (1 + mu)) / LARGEST)
    at_rest = {lower: sqrt(resting), **FALL, wd: 2 * (1 + mu) / (lr * (1 + s))}
    result.step(Eq(lower, formula), "The norm is the root: insert β and γ.", at_rest, case=small)
    result.step(
        Eq(lower, overshooting),
        "The norm is the root: insert β.",
        {lower: sqrt(middle), **MIDDLE_FALL},
        case=sympy.true,
    )
    result.step(Eq(lower, Piecewise((formula, small), (overshooting, sympy.true))), "Collect the cases, in this order.")
    return result


def _turning_back() -> tuple[Any, Any]:
    """Two points of one norm, a step of heavy ball apart, between which the weights go to and fro."""
    return (
        Matrix([sqrt(2 * (1 + mu) - k), sqrt(k)]) * norm,
        Matrix([sqrt(2 * (1 + mu) - k), -sqrt(k)]) * norm,
    )


def momentum_least_decay_steps() -> Derivation:
    """Derive the least number of steps of a fall, 2 ln(ratio)/(-ln p).

    Examples
    --------
    >>> print(momentum_least_decay_steps()[-1].lhs)
    steps
    """
    steps, ratio, larger, smaller = sympy.symbols("steps ratio larger smaller", positive=True)
    trace = 1 + mu - fall
    discriminant = sqrt(trace**2 - 4 * mu)
    high, low = (trace + discriminant) / 2, (trace - discriminant) / 2
    z = sympy.Symbol("z", positive=True)
    result = Derivation(
        "Least number of steps in which the norm of heavy-ball SGD falls by a factor.",
        "Gradients orthogonal to the weights; 0 < ηλ < 2(1+μ), γ = ηλ(2-ηλ/(1+μ)) <= (1-√μ)²; the peak is not below "
        "the norm of the step before; r = ρ², p and q the larger and the smaller root of z² - (1+μ-γ)z + μ.",
        {"momentum": mu, "fall": fall, "ratio": ratio, "steps": steps},
        {steps: log(ratio**2) / -log(larger), larger: high, smaller: low},
    )
    _step_of_the_square(result)
    result.step(Eq(larger + smaller, 1 + mu - fall), "So r⁺ >= (1+μ-γ)r - μr⁻. The roots: their sum …")
    result.step(Eq(larger * smaller, mu), "… and product.")
    result.step(
        Eq(trace**2 - 4 * mu, (LARGEST - fall) * ((1 + sqrt(mu)) ** 2 - fall)),
        "They are real for γ <= (1-√μ)².",
    )
    result.step(
        Eq((1 + mu - fall) * sq_norm - mu * older_sq - larger * sq_norm, smaller * (sq_norm - larger * older_sq)),
        "A norm with r >= p r⁻ is followed by one with r⁺ >= p r, and so for ever.",
    )
    result.step(
        Eq((z**2 - trace * z + mu).subs(z, 1), fall),
        "The polynomial is positive at 1 and at √μ < 1 not: p < 1, and a peak, r >= r⁻, has r >= p r⁻.",
    )
    result.step(
        Le((z**2 - trace * z + mu).subs(z, sqrt(mu)), 0),
        "At √μ it is not positive, so √μ lies between the roots.",
        REAL_ROOTS,
    )
    shrunk = (1 - k) ** 2
    result.step(
        Ge((z**2 - trace * z + mu).subs({**FALL}).subs(z, shrunk), 0),
        "At (1-ηλ)², the least r⁺/r of the first step from rest, it is not negative for ηλ < 1 …",
        {wd: 1 / (lr * (1 + s))},
    )
    result.step(
        Ge(shrunk - sqrt(mu), LARGEST - FALL[fall]),
        "… and (1-ηλ)² >= √μ where γ <= (1-√μ)²: a run from rest has r >= p r⁻ from the start.",
        {mu: root**2, root: 1 / (1 + s)},
    )
    result.step(Eq(larger**steps, 1 / ratio**2), "n steps multiply r by pⁿ at least; solve for n.")
    result.step(
        Eq(high.subs({mu: 0, **FALL}).subs(mu, 0), (1 - k) ** 2),
        "Without momentum p = (1-ηλ)², the factor of one step without a gradient.",
        {wd: 1 / (lr * (1 + s))},
    )
    result.step(
        Eq(steps, 2 * log(ratio) / -log((1 + mu - fall + sqrt((1 + mu - fall) ** 2 - 4 * mu)) / 2)),
        "Insert the larger root.",
    )
    return result


def momentum_stationary_bounds() -> Derivation:
    """Derive the interval of √E‖x‖² of stationary traces from E‖∇f‖².

    Examples
    --------
    >>> [relation.lhs for relation in momentum_stationary_bounds()[-2:]]
    [lower, upper]
    """
    older, now, ahead, _ = two_steps()
    square, distance, grad_square = sympy.symbols("square distance mean_sq_gradient", positive=True)
    along = sympy.Symbol("product", real=True)
    bend, slope = sympy.symbols("bend slope", real=True)
    found = {along: (1 + mu - k) / (1 + mu) * square}
    balance = (k * (2 * (1 + mu) - k) * square - mu * distance) / lr**2
    largest = 4 * (2 * square - 2 * along) - (2 * along - 2 * square) ** 2 / square
    least_square = lr * grad_square / (wd * (2 * (1 + mu) - k))
    most_square = least_square * ((1 + mu) / (1 - mu)) ** 2
    result = Derivation(
        "Norm of stationary traces of heavy-ball SGD.",
        "Gradients orthogonal to the weights, of any law; 0 < ηλ < 2(1+μ), 0 <= μ < 1; means over a stationary trace.",
        {
            "lr": lr,
            "wd": wd,
            "momentum": mu,
            "mean_sq_gradient": grad_square,
            "lower": lower,
            "upper": upper,
        },
        {lower: sqrt(least_square), upper: sqrt(most_square)},
    )
    result.step(
        Eq(ahead.dot(now), (1 + mu - k) * _length(now) - mu * older.dot(now)),
        "Product of x⁺ = (1+μ-ηλ)x - μx⁻ - η∇f with x.",
    )
    result.step(Eq(along, (1 + mu - k) * square - mu * along), "Its mean: with E⟨x⁺,x⟩ = E⟨x,x⁻⟩ …", found)
    _step_of_the_square(result)
    result.step(
        Eq(square - (1 + mu - fall) * square + mu * square, (lr**2 * grad_square + mu * distance) / (1 + mu)),
        "The mean of this too, where E‖x⁺-x⁻‖² is unknown: it gives E‖∇f‖².",
        {grad_square: balance, **FALL},
    )
    result.step(
        Ge(square - least_square, 0),
        "It is not negative, which is the lower end; it vanishes when the gradients turn back at every step.",
        {grad_square: balance, wd: 2 * (1 + mu) / (lr * (1 + s))},
    )
    turn = ahead - 2 * now + older
    result.step(
        Eq(_length(ahead - older), 2 * _length(ahead - now) + 2 * _length(now - older) - _length(turn)),
        "It is largest when the path is straight: parallelogram of two steps.",
    )
    across = turn - now * turn.dot(now) / _length(now)
    result.step(
        Eq(_length(turn) - turn.dot(now) ** 2 / _length(now), _length(across)),
        "But the path bends at least by its component along the weights, …",
    )
    result.step(
        Ge(bend**2 / sq_norm, 2 * slope * bend - slope**2 * sq_norm),
        "… whose mean square is at least the square of its mean over E‖x‖²: take the mean of this, with "
        "slope = E[bend]/E‖x‖².",
    )
    result.step(
        Eq(largest, 4 * k * (2 * (1 + mu) - k) / (1 + mu) ** 2 * square),
        "So E‖x⁺-x⁻‖² is at most 8(E‖x‖² - E⟨x,x⁻⟩) - 4(E⟨x,x⁻⟩ - E‖x‖²)²/E‖x‖², with the mean product from above.",
        found,
    )
    result.step(
        Ge(most_square - square, 0),
        "Inserted into E‖∇f‖² this is the upper end.",
        {
            grad_square: balance,
            distance: 4 * k * (2 * (1 + mu) - k) / (1 + mu) ** 2 * square / (1 + c),
            wd: 2 * (1 + mu) / (lr * (1 + t)),
            mu: 1 / (1 + s),
        },
    )
    angle = sympy.Symbol("angle", real=True)
    cosine, sine = sympy.cos(angle), sympy.sin(angle)
    circle = [Matrix([cosine, -sine]) * norm, Matrix([1, 0]) * norm, Matrix([cosine, sine]) * norm]
    pull = ((1 + mu - k) * circle[1] - circle[2] - mu * circle[0]) / lr
    whirl = {wd: (1 + mu) * (1 - cosine) / lr}
    result.step(
        Eq(pull.dot(circle[1]), 0),
        "It is attained on a circle, where a turn with (1+μ)cos(angle) = 1+μ-ηλ needs a gradient at a right angle …",
        whirl,
    )
    result.step(
        Eq(most_square.subs(grad_square, _length(pull)), norm**2),
        "… that gives the upper end.",
        whirl,
    )
    before, after = _turning_back()
    back = ((1 + mu - k) * before - (1 + mu) * after) / lr
    result.step(
        Eq(least_square.subs(grad_square, _length(back)), _length(before)),
        "The lower end is attained by weights that go to and fro between two points.",
    )
    result.step(Eq(lower, sqrt(lr * grad_square / (wd * (2 * (1 + mu) - k)))), "Lower end, as a norm.")
    result.step(Eq(upper, (1 + mu) / (1 - mu) * lower), "Upper end, as a norm.", {mu: 1 / (1 + s)})
    return result


def moment_polynomial(decoupled: bool) -> Any:
    """Characteristic polynomial in z of the recursion of (E‖x‖², E⟨x,v⟩, E‖v‖²), linearised at equilibrium.

    Examples
    --------
    >>> z = sympy.Symbol("z")
    >>> sympy.factor(moment_polynomial(False).subs(wd, 0).subs(z, 1))
    0
    """

    def rule(weights: Any, gradient: Any, velocity: Any) -> tuple[Any, Any]:
        weights, (velocity,) = sgd_update(weights, gradient, velocity, lr, wd, mu, False, decoupled)
        return weights, velocity

    (xx, vx), (xg, vg), (xv, vv) = rule(1, 0, 0), rule(0, 1, 0), rule(0, 0, 1)
    linear = Matrix(
        [
            [xx**2, 2 * xx * xv, xv**2],
            [xx * vx, xx * vv + xv * vx, xv * vv],
            [vx**2, 2 * vx * vv, vv**2],
        ]
    )
    kick = Matrix([xg**2, xg * vg, vg**2])
    # the stationary E‖x‖² for E‖∇f‖² = 1; with E‖∇f‖² = g̃²/E‖x‖² its slope is -E‖∇f‖²/E‖x‖² = -1/stationary
    stationary = sympy.factor((sympy.eye(3) - linear).LUsolve(kick)[0])
    feedback = kick * Matrix([[-1 / stationary, 0, 0]])
    z = sympy.Symbol("z")
    return (z * sympy.eye(3) - linear - feedback).det()


def momentum_relaxation() -> Derivation:
    """Derive the eigenvalues of the second moments about equilibrium, and the time in which the norm relaxes.

    Examples
    --------
    >>> print(momentum_relaxation()[-1].lhs)
    relaxation_time
    """
    z = sympy.Symbol("z")
    own, change, larger, magnitude = sympy.symbols("own change larger magnitude", positive=True)
    other = 1 - k
    trace = 1 + own - change
    discriminant = trace**2 - 4 * own
    (steps,) = sympy.solve(Eq(log(magnitude**z).expand(force=True), -1), z)
    result = Derivation(
        "Relaxation of the norm of heavy-ball SGD.",
        "Gradients orthogonal to the weights, independent in time, many dimensions; 0 < ηλ < 1, 0 < π < 1 and "
        "K <= (1+√π)², where `own` is π = μ and `change` K, for decoupled decay those with s = 1-ηλ.",
        {"own": own, "change": change, "relaxation_time": tau},
    )
    coupled = {own: mu, change: 4 * k - 2 * k**2 / (1 + mu)}
    decoupled = {own: other * mu, change: 2 * (1 - other**2) * (1 - mu**2) / (1 + other * mu)}
    factors = (z - own**2) * (z**2 - (1 + own - change) * z + own)
    result.step(
        Eq(moment_polynomial(False), factors.subs(coupled)),
        "The recursion of E‖x‖², E⟨x,v⟩, E‖v‖², with E‖∇f‖² = g̃²/E‖x‖² linearised about the equilibrium, has the "
        "eigenvalue π² and the roots of z² - (1+π-K)z + π, with π = μ and K = 4ηλ - 2(ηλ)²/(1+μ) …",
    )
    result.step(
        Eq(moment_polynomial(True), factors.subs(decoupled)),
        "… and for decoupled decay with π = sμ and K = 2(1-s²)(1-μ²)/(1+sμ).",
    )
    result.step(
        Eq(coupled[change], 2 * FALL[fall]), "K is 2γ: the recursion of the floor of the norm has these roots too."
    )
    result.step(
        Eq(discriminant, ((1 - sqrt(own)) ** 2 - change) * ((1 + sqrt(own)) ** 2 - change)),
        "The roots are complex, and the norm rings, for K between (1-√π)² and (1+√π)².",
    )
    real_root = (trace + sqrt(discriminant)) / 2
    result.step(Eq(larger * (trace - larger), own), "Otherwise the larger one is …", {larger: real_root})
    result.step(
        Gt(trace**2, own * 4),
        "… and its square exceeds their product π, the eigenvalue π² even more: it leads.",
        {own: root**2, change: (1 - root) ** 2 / (1 + t), root: 1 / (1 + s)},
    )
    shift = sympy.Symbol("imaginary_part", positive=True)
    result.step(
        Eq((trace / 2 + sympy.I * shift) * (trace / 2 - sympy.I * shift), own),
        "Complex roots are conjugate, of modulus √π.",
        {shift: sqrt(-discriminant) / 2},
    )
    result.step(
        Eq(magnitude**tau, exp(-1)),
        "A deviation shrinks by the largest modulus a step; solve for the number of steps in which it shrinks by e.",
        {tau: steps},
    )
    result.step(
        Eq(real_root.subs(own, 0), 1 - change),
        "Without momentum the multiplier is 1 - K = 1 - 4ηλ + 2(ηλ)² again.",
        {change: 1 / (1 + s)},
    )
    quiet, ringing = -1 / log(real_root), -2 / log(own)
    at_rest = change <= (1 - sqrt(own)) ** 2
    result.step(Eq(tau, quiet), "Real roots.", {tau: steps.subs(magnitude, real_root)}, case=at_rest)
    result.step(Eq(tau, ringing), "Complex roots.", {tau: steps.subs(magnitude, sqrt(own))}, case=sympy.true)
    result.step(Eq(tau, Piecewise((quiet, at_rest), (ringing, sympy.true))), "Collect the cases, in this order.")
    return result
