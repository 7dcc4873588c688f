"""Heavy-ball momentum: bounds of the norm, decay phases and relaxation (docs/mathematics.md §7).

The update rule `theory.optimizers.sgd_update` is applied to symbols. The velocity is (older - weights)/η, so a run is
determined by its sequence of weights. Two consecutive steps lie in a space of three dimensions, spanned by the weights
(first axis), the older weights and the gradient. The gradient has no component along the weights.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Matrix, Piecewise, exp, log, sqrt

from theory.derivations._derivation import Derivation, Eq, Ge, Gt, Le
from theory.derivations._symbols import c, d, grad_norm_min, lower, lr, momentum, norm, s, sq_norm, t, upper, wd
from theory.derivations._symbols import relaxation_time as tau
from theory.optimizers import sgd_update

mu, intrinsic_lr = momentum, lr * wd

# γ = ηλ(2 - ηλ/(1+μ)) and m = (1-√μ)²: the real roots of z² - (1+μ-γ)z + μ end at γ = m
gamma = sympy.Symbol("gamma", positive=True)
GAMMA = {gamma: intrinsic_lr * (2 - intrinsic_lr / (1 + mu))}
LARGEST = (1 - sqrt(mu)) ** 2
# β = (ηℓ)²/(1+μ); gradients add at least β/r to r⁺
BETA = (lr * grad_norm_min) ** 2 / (1 + mu)
older_sq, sq_bound = sympy.symbols("older_sq sq_bound", positive=True)
root = sympy.Symbol("root", positive=True)

# ranges: 0 < √μ < 1 with μ = root², and γ in (0, m/2], in (0, m] and in [m/2, m)
SMALL_GAMMA = {mu: root**2, gamma: (1 - root) ** 2 / (2 + c), root: 1 / (1 + s)}
REAL_ROOTS = {mu: root**2, gamma: (1 - root) ** 2 / (1 + c), root: 1 / (1 + s)}
MIDDLE_GAMMA = {mu: root**2, gamma: (1 - root) ** 2 * (1 + c) / (2 + c), root: 1 / (1 + s)}


def two_steps() -> tuple[Any, Any, Any, Any]:
    """Return as vectors the weights one step ago, now and one step ahead, and the current gradient."""
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
    """Return R⁺ = (1+μ-γ) R - μ R⁻ + β/R, a recursion that is a lower bound of r = ρ²."""
    return (1 + mu - gamma) * current - mu * older + BETA / current


def _length(vector: Any) -> Any:
    return vector.dot(vector)


def _step_of_the_square(result: Derivation) -> None:
    older, now, ahead, gradient = two_steps()
    result.step(
        Eq(_length(ahead + mu * older), (1 + mu - intrinsic_lr) ** 2 * _length(now) + lr**2 * _length(gradient)),
        "With the velocity (older - now)/η eliminated, the rule reads x⁺ + μx⁻ = (1+μ-ηλ)x - η∇f. The two terms on "
        "the right are orthogonal.",
    )
    result.step(
        Eq(
            (1 + mu) * (_length(ahead) + mu * _length(older)) - mu * _length(ahead - older), _length(ahead + mu * older)
        ),
        "Expand the square of a sum of vectors with the weights 1 and μ in terms of their distance.",
    )
    result.step(
        Eq(
            _length(ahead) - (1 + mu - gamma) * _length(now) + mu * _length(older),
            (lr**2 * _length(gradient) + mu * _length(ahead - older)) / (1 + mu),
        ),
        "Combine both lines with (1+μ-ηλ)² = (1+μ)(1+μ-γ). The right-hand side is not negative.",
        GAMMA,
    )


def momentum_lower_bound() -> Derivation:
    """Derive the lower bound of the norm of heavy-ball SGD, whose square is r = √(ηℓ²/(λ(2(1+μ)-ηλ)))."""
    slope = Derivative(_next_square(sq_norm, older_sq), sq_norm).doit()
    fixed_point, turning = sqrt(BETA / gamma), sqrt(BETA / (LARGEST - gamma))
    point = sympy.Symbol("point", positive=True)
    result = Derivation(
        "Lower bound of the norm of heavy-ball SGD.",
        "Gradients orthogonal to the weights, g̃ >= ℓ > 0; 0 < ηλ < 2(1+μ), 0 < μ < 1; γ = ηλ(2-ηλ/(1+μ)) < (1-√μ)²; "
        "r = ρ²; `sq_bound` is the fixed point of the recursion in r.",
        [lr, wd, mu, grad_norm_min, gamma, lower],
    )
    _step_of_the_square(result)
    # comparison
    result.step(
        Eq(
            _next_square(sq_norm + c, older_sq + d) - _next_square(sq_norm, older_sq),
            (1 + mu - gamma - BETA / (sq_norm * (sq_norm + c))) * c - mu * d,
        ),
        "Hence r⁺ >= (1+μ-γ)r - μr⁻ + β/r with β = (ηℓ)²/(1+μ). The distance c of two solutions follows a linear "
        "recursion.",
    )
    result.step(
        Ge(-BETA / (sq_norm * (sq_norm + c)), -BETA / sq_norm**2),
        "The coefficient of this recursion is at least the slope at the lower solution, because the slope "
        "increases with r.",
    )
    coefficient = sympy.Symbol("coefficient", nonnegative=True)
    result.step(
        Eq((2 * sqrt(mu) + coefficient) * c - mu * d - sqrt(mu) * c, sqrt(mu) * (c - sqrt(mu) * d) + coefficient * c),
        "If this slope is at least 2√μ, c >= √μ d in one step implies the same in the next. A solution that starts "
        "with the same norm and the least second norm stays below.",
    )
    # where the slope is large enough
    result.step(
        Eq(slope.subs(sq_norm, turning), 2 * sqrt(mu)),
        "The slope is 2√μ at r = √(β/(m-γ)) and larger above, with m = (1-√μ)².",
        MIDDLE_GAMMA,
        SMALL_GAMMA,
    )
    tangent = _next_square(point, older_sq) + slope.subs(sq_norm, point) * (sq_norm - point)
    result.step(
        Ge(_next_square(sq_norm, older_sq), tangent),
        "Below this point, replace the recursion by its tangent. It is convex in r, so it lies above each tangent.",
    )
    # the linear recursion
    result.step(
        Eq(_next_square(fixed_point, fixed_point), fixed_point), "The recursion has a fixed point where γr = β/r."
    )
    linear = tangent.subs(point, sq_bound).subs({sq_norm: sq_bound + c, older_sq: sq_bound + d})
    result.step(
        Eq(linear - sq_bound, (1 + mu - 2 * gamma) * c - mu * d),
        "The tangent at the fixed point is the linear recursion e⁺ = (1+μ-2γ)e - μe⁻ of the distance e from it.",
        {grad_norm_min: sq_bound * sqrt(gamma * (1 + mu)) / lr},
    )
    result.step(
        Ge(1 + mu - 2 * gamma, 2 * sqrt(mu)),
        "For 2γ <= m solutions of the linear recursion stay positive once they are positive, and they tend to zero. "
        "Hence r comes to the fixed point or above.",
        SMALL_GAMMA,
    )
    result.step(
        Ge(fixed_point**2, turning**2),
        "For 2γ <= m the fixed point is at or above the point where the slope is 2√μ.",
        SMALL_GAMMA,
    )
    middle = 2 * sqrt(BETA * (LARGEST - gamma)) / LARGEST
    line = _next_square(turning, older_sq) + 2 * sqrt(mu) * (sq_norm - turning)
    result.step(
        Le(middle, turning),
        "For m/2 < γ < m the point of slope 2√μ lies above the fixed point of its tangent.",
        MIDDLE_GAMMA,
    )
    result.step(
        Eq(line.subs({sq_norm: middle, older_sq: middle}), middle),
        "This tangent has the fixed point 2√(β(m-γ))/m. Both roots of its recursion are √μ < 1.",
        MIDDLE_GAMMA,
    )
    # the bound is attained
    before, after = _alternating_points()
    gradient = ((1 + mu - intrinsic_lr) * before - (1 + mu) * after) / lr
    result.step(
        Eq(gradient.dot(before), 0),
        "The bound is attained: weights that alternate between two points need a gradient orthogonal to them.",
    )
    result.step(
        Eq(_length(gradient) * lr**2, intrinsic_lr * (2 * (1 + mu) - intrinsic_lr) * _length(before)),
        "The square of this gradient is proportional to that of the weights. With ‖∇f‖² = ℓ²/r this is the fixed "
        "point, so gradients of alternating sign keep the norm there for ever.",
    )
    # start with zero velocity
    first_step = (1 - intrinsic_lr) ** 2 * (sq_bound + c) + lr**2 * grad_norm_min**2 / sq_bound * (1 - c / sq_bound)
    result.step(
        Eq(
            first_step - sq_bound,
            2 * mu * intrinsic_lr * sq_bound
            + (1 - 2 * (1 + mu) * intrinsic_lr - 2 * intrinsic_lr + 2 * intrinsic_lr**2) * c,
        ),
        "The first step of a run with zero velocity at r = `sq_bound` + c has r⁺ >= (1-ηλ)²r + (ηℓ)²/r. This lies "
        "above its tangent at `sq_bound`.",
        {grad_norm_min: sq_bound * sqrt(intrinsic_lr * (2 * (1 + mu) - intrinsic_lr)) / lr},
    )
    result.step(
        Eq(
            1 - 2 * (1 + mu) * intrinsic_lr - 2 * intrinsic_lr + 2 * intrinsic_lr**2 - sqrt(mu),
            (LARGEST - 2 * gamma)
            + sqrt(mu) * (1 - sqrt(mu) - 2 * sqrt(mu) * intrinsic_lr + 2 * intrinsic_lr**2 * sqrt(mu) / (1 + mu)),
        ),
        "The slope of this tangent exceeds √μ for 2γ <= m and ηλ < 1, so this run is never below the bound. The next "
        "two lines show it.",
        GAMMA,
    )
    result.step(Ge(GAMMA[gamma], intrinsic_lr), "First, ηλ <= γ, hence 2ηλ <= m.", {wd: (1 + mu) / (lr * (1 + c))})
    result.step(
        Ge(1 - sqrt(mu) - 2 * sqrt(mu) * intrinsic_lr, 0),
        "Hence the last bracket is not negative.",
        {wd: LARGEST / (2 * lr * (1 + c)), mu: root**2, root: 1 / (1 + s)},
    )
    # the result
    small = gamma <= LARGEST / 2
    formula = (lr * grad_norm_min**2 / (wd * (2 * (1 + mu) - intrinsic_lr))) ** sympy.Rational(1, 4)
    overshooting = sqrt(2 * lr * grad_norm_min * sqrt((LARGEST - gamma) / (1 + mu)) / LARGEST)
    coupled = {lower: sqrt(fixed_point), **GAMMA, wd: 2 * (1 + mu) / (lr * (1 + s))}
    result.step(Eq(lower, formula), "The norm is the root of `sq_bound`. Insert β and γ.", coupled, case=small)
    result.step(
        Eq(lower, overshooting),
        "The norm is the root of the fixed point of the tangent. Insert β.",
        {lower: sqrt(middle), **MIDDLE_GAMMA},
        case=sympy.true,
    )
    result.step(Eq(lower, Piecewise((formula, small), (overshooting, sympy.true))), "Collect the cases in this order.")
    return result


def _alternating_points() -> tuple[Any, Any]:
    """Return two points of equal norm, one step of heavy ball apart, between which the weights alternate."""
    return (
        Matrix([sqrt(2 * (1 + mu) - intrinsic_lr), sqrt(intrinsic_lr)]) * norm,
        Matrix([sqrt(2 * (1 + mu) - intrinsic_lr), -sqrt(intrinsic_lr)]) * norm,
    )


def momentum_least_decay_steps() -> Derivation:
    """Derive the least number of steps in which the norm decays by a ratio, 2 ln(ratio)/(-ln p)."""
    steps, ratio, larger, smaller = sympy.symbols("steps ratio larger smaller", positive=True)
    trace = 1 + mu - gamma
    discriminant = sqrt(trace**2 - 4 * mu)
    high, low = (trace + discriminant) / 2, (trace - discriminant) / 2
    z = sympy.Symbol("z", positive=True)
    result = Derivation(
        "Least number of steps in which the norm of heavy-ball SGD decays by a factor.",
        "Gradients orthogonal to the weights; 0 < ηλ < 2(1+μ), γ = ηλ(2-ηλ/(1+μ)) <= (1-√μ)²; the first norm is not "
        "below the norm of the step before; r = ρ²; p and q are the larger and the smaller root of z² - (1+μ-γ)z + "
        "μ; `ratio` is the norm before over the norm after.",
        [mu, gamma, ratio, steps],
        {steps: log(ratio**2) / -log(larger), larger: high, smaller: low},
    )
    _step_of_the_square(result)
    result.step(
        Eq(larger + smaller, 1 + mu - gamma),
        "Hence r⁺ >= (1+μ-γ)r - μr⁻. The roots p and q of the polynomial have this sum.",
    )
    result.step(Eq(larger * smaller, mu), "The roots have this product.")
    result.step(
        Eq(trace**2 - 4 * mu, (LARGEST - gamma) * ((1 + sqrt(mu)) ** 2 - gamma)), "The roots are real for γ <= (1-√μ)²."
    )
    result.step(
        Eq((1 + mu - gamma) * sq_norm - mu * older_sq - larger * sq_norm, smaller * (sq_norm - larger * older_sq)),
        "A norm with r >= p r⁻ is followed by one with r⁺ >= p r, and so for ever.",
    )
    result.step(
        Eq((z**2 - trace * z + mu).subs(z, 1), gamma),
        "The polynomial is positive at 1 and not positive at √μ < 1. Hence p < 1, and a peak, r >= r⁻, has r >= p r⁻.",
    )
    result.step(
        Le((z**2 - trace * z + mu).subs(z, sqrt(mu)), 0),
        "At √μ the polynomial is not positive, so √μ lies between the roots.",
        REAL_ROOTS,
    )
    first_factor = (1 - intrinsic_lr) ** 2
    result.step(
        Ge((z**2 - trace * z + mu).subs({**GAMMA}).subs(z, first_factor), 0),
        "At (1-ηλ)², the least r⁺/r of a first step with zero velocity, the polynomial is not negative for ηλ < 1.",
        {wd: 1 / (lr * (1 + s))},
    )
    result.step(
        Ge(first_factor - sqrt(mu), LARGEST - GAMMA[gamma]),
        "Moreover (1-ηλ)² >= √μ if γ <= (1-√μ)². A run with zero velocity thus has r >= p r⁻ from the start.",
        {mu: root**2, root: 1 / (1 + s)},
    )
    result.step(Eq(larger**steps, 1 / ratio**2), "n steps multiply r by at least pⁿ. Solve for n.")
    result.step(
        Eq(high.subs({mu: 0, **GAMMA}).subs(mu, 0), (1 - intrinsic_lr) ** 2),
        "Without momentum p = (1-ηλ)², the factor of one step without a gradient.",
        {wd: 1 / (lr * (1 + s))},
    )
    result.step(
        Eq(steps, 2 * log(ratio) / -log((1 + mu - gamma + sqrt((1 + mu - gamma) ** 2 - 4 * mu)) / 2)),
        "Insert the larger root.",
    )
    return result


def momentum_stationary_bounds() -> Derivation:
    """Derive the interval of √E‖x‖² for stationary traces with known E‖∇f‖²."""
    older, now, ahead, _ = two_steps()
    square, distance, grad_square = sympy.symbols("square distance mean_sq_gradient", positive=True)
    along = sympy.Symbol("product", real=True)
    bend, slope = sympy.symbols("bend slope", real=True)
    mean_product = {along: (1 + mu - intrinsic_lr) / (1 + mu) * square}
    balance = (intrinsic_lr * (2 * (1 + mu) - intrinsic_lr) * square - mu * distance) / lr**2
    largest = 4 * (2 * square - 2 * along) - (2 * along - 2 * square) ** 2 / square
    least_square = lr * grad_square / (wd * (2 * (1 + mu) - intrinsic_lr))
    most_square = least_square * ((1 + mu) / (1 - mu)) ** 2
    result = Derivation(
        "Norm of stationary traces of heavy-ball SGD.",
        "Gradients orthogonal to the weights, with any distribution; 0 < ηλ < 2(1+μ), 0 <= μ < 1; means over a "
        "stationary trace.",
        [lr, wd, mu, grad_square, lower, upper],
        {lower: sqrt(least_square), upper: sqrt(most_square)},
    )
    result.step(
        Eq(ahead.dot(now), (1 + mu - intrinsic_lr) * _length(now) - mu * older.dot(now)),
        "The scalar product of x⁺ = (1+μ-ηλ)x - μx⁻ - η∇f with x.",
    )
    result.step(
        Eq(along, (1 + mu - intrinsic_lr) * square - mu * along), "Take its mean, with E⟨x⁺,x⟩ = E⟨x,x⁻⟩.", mean_product
    )
    _step_of_the_square(result)
    result.step(
        Eq(square - (1 + mu - gamma) * square + mu * square, (lr**2 * grad_square + mu * distance) / (1 + mu)),
        "Take the mean of this line too. E‖x⁺-x⁻‖² is unknown, and it determines E‖∇f‖².",
        {grad_square: balance, **GAMMA},
    )
    result.step(
        Ge(square - least_square, 0),
        "E‖x⁺-x⁻‖² is not negative, which gives the lower end. It vanishes if the weights turn back at every step.",
        {grad_square: balance, wd: 2 * (1 + mu) / (lr * (1 + s))},
    )
    bend_vector = ahead - 2 * now + older
    result.step(
        Eq(_length(ahead - older), 2 * _length(ahead - now) + 2 * _length(now - older) - _length(bend_vector)),
        "E‖x⁺-x⁻‖² is largest for a straight path, by the parallelogram of two steps.",
    )
    across = bend_vector - now * bend_vector.dot(now) / _length(now)
    result.step(
        Eq(_length(bend_vector) - bend_vector.dot(now) ** 2 / _length(now), _length(across)),
        "The path bends at least by the component of the bend along the weights.",
    )
    result.step(
        Ge(bend**2 / sq_norm, 2 * slope * bend - slope**2 * sq_norm),
        "The mean square of this component is at least the square of its mean over E‖x‖². Take the mean of this line "
        "with `slope` = E[bend]/E‖x‖².",
    )
    result.step(
        Eq(largest, 4 * intrinsic_lr * (2 * (1 + mu) - intrinsic_lr) / (1 + mu) ** 2 * square),
        "Hence E‖x⁺-x⁻‖² is at most 8(E‖x‖² - E⟨x,x⁻⟩) - 4(E⟨x,x⁻⟩ - E‖x‖²)²/E‖x‖². Insert the mean product from "
        "above.",
        mean_product,
    )
    result.step(
        Ge(most_square - square, 0),
        "Inserted into E‖∇f‖², this bound gives the upper end.",
        {
            grad_square: balance,
            distance: 4 * intrinsic_lr * (2 * (1 + mu) - intrinsic_lr) / (1 + mu) ** 2 * square / (1 + c),
            wd: 2 * (1 + mu) / (lr * (1 + t)),
            mu: 1 / (1 + s),
        },
    )
    angle = sympy.Symbol("angle", real=True)
    cosine, sine = sympy.cos(angle), sympy.sin(angle)
    circle = [Matrix([cosine, -sine]) * norm, Matrix([1, 0]) * norm, Matrix([cosine, sine]) * norm]
    circle_gradient = ((1 + mu - intrinsic_lr) * circle[1] - circle[2] - mu * circle[0]) / lr
    uniform_rotation = {wd: (1 + mu) * (1 - cosine) / lr}
    result.step(
        Eq(circle_gradient.dot(circle[1]), 0),
        "The upper end is attained on a circle. A rotation with (1+μ)cos(angle) = 1+μ-ηλ needs a gradient orthogonal "
        "to the weights.",
        uniform_rotation,
    )
    result.step(
        Eq(most_square.subs(grad_square, _length(circle_gradient)), norm**2),
        "This gradient gives the upper end.",
        uniform_rotation,
    )
    before, after = _alternating_points()
    alternating_gradient = ((1 + mu - intrinsic_lr) * before - (1 + mu) * after) / lr
    result.step(
        Eq(least_square.subs(grad_square, _length(alternating_gradient)), _length(before)),
        "The lower end is attained by weights that alternate between two points.",
    )
    result.step(Eq(lower, sqrt(lr * grad_square / (wd * (2 * (1 + mu) - intrinsic_lr)))), "The lower end as a norm.")
    result.step(Eq(upper, (1 + mu) / (1 - mu) * lower), "The upper end as a norm.", {mu: 1 / (1 + s)})
    return result


def moment_polynomial(decoupled: bool) -> Any:
    """Return the characteristic polynomial in z of (E‖x‖², E⟨x,v⟩, E‖v‖²), linearised at equilibrium."""

    def rule(weights: Any, gradient: Any, velocity: Any) -> tuple[Any, Any]:
        weights, (velocity,) = sgd_update(weights, gradient, velocity, lr, wd, mu, False, decoupled)
        return weights, velocity

    (xx, vx), (xg, vg), (xv, vv) = rule(1, 0, 0), rule(0, 1, 0), rule(0, 0, 1)
    linear = Matrix([[xx**2, 2 * xx * xv, xv**2], [xx * vx, xx * vv + xv * vx, xv * vv], [vx**2, 2 * vx * vv, vv**2]])
    input_vector = Matrix([xg**2, xg * vg, vg**2])
    # stationary E‖x‖² for E‖∇f‖² = 1; the slope of E‖∇f‖² = g̃²/E‖x‖² is -E‖∇f‖²/E‖x‖² = -1/stationary
    stationary = sympy.factor((sympy.eye(3) - linear).LUsolve(input_vector)[0])
    feedback = input_vector * Matrix([[-1 / stationary, 0, 0]])
    z = sympy.Symbol("z")
    return (z * sympy.eye(3) - linear - feedback).det()


def momentum_relaxation() -> Derivation:
    """Derive the eigenvalues of the second moments at equilibrium, and the relaxation time of the norm."""
    z = sympy.Symbol("z")
    own, change, larger, magnitude = sympy.symbols("own change larger magnitude", positive=True)
    other = 1 - intrinsic_lr
    trace = 1 + own - change
    discriminant = trace**2 - 4 * own
    (steps,) = sympy.solve(Eq(log(magnitude**z).expand(force=True), -1), z)
    result = Derivation(
        "Relaxation of the norm of heavy-ball SGD.",
        "Gradients orthogonal to the weights and independent in time; many dimensions; 0 < ηλ < 1, 0 < π < 1 and K "
        "<= (1+√π)²; π = `own` is μ and K = `change`; for decoupled decay, π and K depend on s = 1-ηλ.",
        [own, change, tau],
    )
    coupled = {own: mu, change: 4 * intrinsic_lr - 2 * intrinsic_lr**2 / (1 + mu)}
    decoupled = {own: other * mu, change: 2 * (1 - other**2) * (1 - mu**2) / (1 + other * mu)}
    factors = (z - own**2) * (z**2 - (1 + own - change) * z + own)
    result.step(
        Eq(moment_polynomial(False), factors.subs(coupled)),
        "Linearise the recursion of E‖x‖², E⟨x,v⟩, E‖v‖² about the equilibrium, with E‖∇f‖² = g̃²/E‖x‖². Its "
        "eigenvalues are π² and the roots of z² - (1+π-K)z + π, with π = μ and K = 4ηλ - 2(ηλ)²/(1+μ).",
    )
    result.step(
        Eq(moment_polynomial(True), factors.subs(decoupled)),
        "For decoupled decay the same holds with π = sμ and K = 2(1-s²)(1-μ²)/(1+sμ).",
    )
    result.step(
        Eq(coupled[change], 2 * GAMMA[gamma]),
        "K is 2γ. The linear recursion in `momentum_lower_bound` has the same roots.",
    )
    result.step(
        Eq(discriminant, ((1 - sqrt(own)) ** 2 - change) * ((1 + sqrt(own)) ** 2 - change)),
        "The roots are complex, and the norm rings, for K between (1-√π)² and (1+√π)².",
    )
    real_root = (trace + sqrt(discriminant)) / 2
    result.step(
        Eq(larger * (trace - larger), own),
        "Otherwise the roots are real, and this is the larger one.",
        {larger: real_root},
    )
    result.step(
        Gt(trace**2, own * 4),
        "Its square exceeds the product π of the roots, and thus the eigenvalue π² even more. Hence it is the "
        "largest eigenvalue.",
        {own: root**2, change: (1 - root) ** 2 / (1 + t), root: 1 / (1 + s)},
    )
    shift = sympy.Symbol("imaginary_part", positive=True)
    result.step(
        Eq((trace / 2 + sympy.I * shift) * (trace / 2 - sympy.I * shift), own),
        "Complex roots are conjugate and have the modulus √π.",
        {shift: sqrt(-discriminant) / 2},
    )
    result.step(
        Eq(magnitude**tau, exp(-1)),
        "A deviation shrinks by the largest modulus per step. Solve for the number of steps in which it shrinks by e.",
        {tau: steps},
    )
    result.step(
        Eq(real_root.subs(own, 0), 1 - change),
        "Without momentum the multiplier is 1 - K = 1 - 4ηλ + 2(ηλ)², as for plain SGD.",
        {change: 1 / (1 + s)},
    )
    real_time, complex_time = -1 / log(real_root), -2 / log(own)
    is_real = change <= (1 - sqrt(own)) ** 2
    result.step(
        Eq(tau, real_time), "Relaxation time for real roots.", {tau: steps.subs(magnitude, real_root)}, case=is_real
    )
    result.step(
        Eq(tau, complex_time),
        "Relaxation time for complex roots.",
        {tau: steps.subs(magnitude, sqrt(own))},
        case=sympy.true,
    )
    result.step(
        Eq(tau, Piecewise((real_time, is_real), (complex_time, sympy.true))), "Collect the cases in this order."
    )
    return result
