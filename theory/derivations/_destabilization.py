"""Angular jumps, and the edge of stability (docs/mathematics.md §4)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Matrix, cos, sqrt, tan

from theory.derivations import _equilibrium, _one_step
from theory.derivations._derivation import Derivation, Eq, Ge, Gt, Le, Lt
from theory.derivations._symbols import (
    BELOW_ONE,
    a,
    b,
    c,
    delta,
    grad_norm,
    grad_norm_max,
    grad_norm_min,
    lr,
    momentum,
    next_sq_norm,
    norm,
    s,
    sq_lower,
    sq_norm,
    t,
    wd,
)
from theory.derivations._symbols import rotation as theta
from theory.optimizers import sgd_update


def angular_jump_norm() -> Derivation:
    """Derive the norm ρ² = ηg̃/((1-ηλ)κ(δ)) below which a step has 1 - cos θ > δ, with κ(δ) = √((1-δ)⁻²-1)."""
    ranges = {**BELOW_ONE, delta: 1 / (1 + t)}
    angle = _one_step.rotation()[-1].rhs
    tangent = tan(angle)
    kappa = sqrt((1 - delta) ** -2 - 1)
    (square,) = sympy.solve(Eq(tangent.subs(norm, sqrt(sq_norm)), kappa), sq_norm)
    result = Derivation(
        "Norm below which a step is an angular jump.",
        "g̃ > 0; 0 < ηλ < 1; 0 < δ < 1.",
        [lr, wd, grad_norm, delta, norm, theta],
        {theta: angle, norm: sqrt(square)},
    )
    result.step(
        Lt(Derivative(tangent, norm), 0),
        "The angle decreases as the norm grows, so the angular jumps are exactly the steps that start below one "
        "threshold.",
        ranges,
    )
    result.step(Eq(1 - cos(theta), delta), "At the threshold 1 - cos θ equals δ.", ranges)
    result.step(Eq(tan(theta), kappa), "Insert cos θ = 1-δ into tan θ = √(1/cos² θ - 1).", ranges)
    result.step(
        Eq(lr * grad_norm / (norm**2 * (1 - lr * wd)), kappa),
        "Insert the angle of one step and solve for the norm.",
        ranges,
    )
    at_equilibrium = sqrt(_equilibrium.fixed_square()).subs(
        {sympy.Symbol("a", positive=True): _equilibrium.A, sympy.Symbol("b", positive=True): _equilibrium.B}
    )
    result.step(
        Eq(norm**2, at_equilibrium * kappa.subs(delta, lr * wd) / kappa),
        "In units of the equilibrium: for δ = ηλ the threshold is the equilibrium itself.",
        ranges,
    )
    formula = lr * grad_norm / ((1 - lr * wd) * kappa)
    result.step(Eq(norm**2, formula), "The solution is the square of the threshold.", ranges)
    result.step(Eq(norm, sqrt(formula)), "The norm is the positive root.", ranges)
    return result


def angular_jump_regime() -> Derivation:
    """Derive that angular jumps are impossible for L/ℓ <= κ(δ)/κ(ηλ), and avoidable for ever unless δ < ηλ."""
    threshold, border, over = sympy.symbols("sq_threshold border over", positive=True)
    decay_square, kappa = (1 - lr * wd) ** 2, sqrt((1 - delta) ** -2 - 1)
    kappa_decay = kappa.subs(delta, lr * wd)
    threshold_formula = lr * grad_norm / ((1 - lr * wd) * kappa)  # threshold of g̃ in r, from `angular_jump_norm`
    lowest = sqrt(_equilibrium.fixed_square()).subs({a: decay_square, b: (lr * grad_norm_min) ** 2})
    (equal,) = sympy.solve(Eq(lowest, border * threshold_formula.subs(grad_norm, grad_norm_min)), border)
    largest_without_angular_jump = sympy.solve(Eq(threshold_formula, sq_norm), grad_norm)[0]

    def next_square(r: Any, g: Any) -> Any:
        return _one_step.square_map(decay_square, (lr * g) ** 2, r)

    any_delta = {delta: 1 / (1 + t), **BELOW_ONE}
    below_decay = {delta: lr * wd / (1 + t), **BELOW_ONE}
    above_decay = {delta: 1 - (1 - lr * wd) / (1 + c), **BELOW_ONE}
    result = Derivation(
        "When an angular jump is impossible, possible or certain.",
        "ℓ <= g̃ <= L; 0 < ηλ < 1 with (1-ηλ)² >= 1/2; 0 < δ < 1; r = ρ² starts at or above the threshold of L.",
        [lr, wd, delta, grad_norm_min, grad_norm_max, grad_norm, sq_norm, next_sq_norm, sq_lower, threshold, border],
        {
            next_sq_norm: next_square(sq_norm, grad_norm),
            grad_norm: largest_without_angular_jump,
            sq_lower: lowest,
            threshold: threshold_formula.subs(grad_norm, grad_norm_max),
            border: equal,
        },
    )
    result.step(
        Eq(next_square(sq_lower, grad_norm_min), sq_lower),
        "For constant g̃ = ℓ the equilibrium is r_ℓ. No g̃ >= ℓ leads below it from above (`norm_bounds`).",
        any_delta,
    )
    result.step(
        Ge(next_square(sq_norm, grad_norm_min), sq_norm),
        "From below, r = r_ℓ/(1+c), no g̃ >= ℓ leads further down.",
        {sq_norm: lowest / (1 + c), **any_delta},
    )
    result.step(
        Eq(sq_lower / threshold, grad_norm_min / grad_norm_max * border),
        "This is the lowest norm in units of the threshold of L (`angular_jump_norm`).",
        any_delta,
    )
    result.step(
        Ge(sq_lower, threshold),
        "Impossible: for L/ℓ = border/(1+c) the norm is never below the threshold of L.",
        {grad_norm_max: grad_norm_min * equal / (1 + c), **any_delta},
    )
    result.step(
        Lt(sq_lower, threshold),
        "Possible: for L/ℓ = border (1+over) the norm decays with g̃ = ℓ towards r_ℓ and below the threshold of L. A "
        "step with L is then an angular jump.",
        {grad_norm_max: grad_norm_min * equal * (1 + over), **any_delta},
    )
    result.step(
        Eq(lr * grad_norm / (sq_norm * (1 - lr * wd)), kappa),
        "To avoid angular jumps, take the largest g̃ without one, for which tan θ is κ(δ), unless L is smaller.",
        any_delta,
    )
    result.step(
        Eq(next_sq_norm, sq_norm * ((1 - lr * wd) / (1 - delta)) ** 2),
        "The step with this g̃ is a r + (ηg̃)²/r = a r (1+κ(δ)²), where cos θ = 1-δ.",
        any_delta,
    )
    result.step(
        Lt(next_sq_norm, sq_norm),
        "Certain: for δ < ηλ this norm decreases by a constant factor per step. Below the threshold of ℓ every step "
        "is an angular jump.",
        below_decay,
    )
    result.step(
        Ge(next_sq_norm, sq_norm),
        "For δ >= ηλ, with 1-δ = (1-ηλ)/(1+c), this norm never decreases, so the angular jump can be avoided for ever.",
        above_decay,
    )
    result.step(
        Ge(sq_norm * ((1 - lr * wd) / (1 - delta)) ** 2, next_square(sq_norm, grad_norm_max)),
        "At or above the threshold of L, r = (1+c) threshold, L is the smaller of the two gradient norms.",
        {sq_norm: threshold_formula.subs(grad_norm, grad_norm_max) * (1 + c), **any_delta},
    )
    result.step(Eq(border, kappa / kappa_decay), "The border is the largest L/ℓ without angular jumps.", any_delta)
    return result


def angular_jumps_while_ringing() -> Derivation:
    """Derive that for (1-ηλ)² < 1/2 angular jumps are impossible from every start if L/ℓ <= 2(1-ηλ)²κ(δ)."""
    kappa, b_min, over, border, threshold, turning = sympy.symbols(
        "kappa b_min over border sq_threshold turning", positive=True
    )
    below_half = {a: 1 / (2 + s)}
    low, equilibrium = _one_step.square_map(a, b_min), sqrt(_equilibrium.fixed_square()).subs(b, b_min)
    (point,) = sympy.solve(sympy.diff(low, sq_norm), sq_norm)
    least = low.subs(sq_norm, point)
    threshold_formula = sqrt(b) / (sqrt(a) * kappa)  # threshold of b = (ηg̃)² in r
    (equal,) = sympy.solve(Eq(least, border * threshold_formula.subs(b, b_min)), border)
    result = Derivation(
        "When an angular jump is impossible although the norm overshoots.",
        "ℓ <= g̃ <= L; a = (1-ηλ)² < 1/2; b_min = (ηℓ)²; κ = κ(δ); r = ρ² starts at or above the threshold of L, "
        "`sq_threshold`; `border` is a value of L/ℓ.",
        [a, b, b_min, kappa, sq_norm, turning, threshold, border],
        {turning: point, border: equal},
    )
    result.step(
        Gt(turning**2, equilibrium**2),
        "For g̃ = ℓ the least r⁺ is that of r = ηℓ/(1-ηλ), which is above the equilibrium of ℓ. One step from there "
        "leads below the equilibrium.",
        below_half,
    )
    result.step(Eq(low.subs(sq_norm, turning), 2 * sqrt(a * b_min)), "This is the value of the least r⁺.")
    result.step(
        Ge(low, 2 * sqrt(a * b_min)),
        "No step with ℓ leads lower from any norm: the difference is (√a r - √b_min)²/r.",
        {a: s**2, b_min: t**2},
    )
    result.step(
        Ge(_one_step.square_map(a, b_min + c), low), "No step with a larger g̃, b = b_min + c, leads lower either."
    )
    result.step(
        Ge(2 * sqrt(a * b_min), threshold),
        "Impossible: for L/ℓ = border/(1+c) the least r⁺ is at or above the threshold of L.",
        {threshold: threshold_formula.subs(b, b_min) * equal / (1 + c)},
    )
    result.step(
        Lt(2 * sqrt(a * b_min), threshold),
        "Possible: for L/ℓ = border (1+over) the step from the turning point leads below the threshold. A step with "
        "L is then an angular jump.",
        {threshold: threshold_formula.subs(b, b_min) * equal * (1 + over)},
    )
    result.step(
        Ge(turning, threshold),
        "This requires that the step from the turning point is no angular jump, L/ℓ = κ/(1+c). Otherwise κ < L/ℓ, "
        "and decay with ℓ from any norm above the threshold ends below it, because the threshold is above the "
        "equilibrium of ℓ.",
        {threshold: threshold_formula.subs(b, b_min) * kappa / (1 + c)},
    )
    log_slope = sq_norm * sympy.diff(_one_step.square_map(a, b), sq_norm) / _one_step.square_map(a, b)
    result.step(Lt(log_slope, 1), "The derivative d ln r⁺/d ln r is below 1.")
    result.step(
        Gt(log_slope, -1),
        "It is above -1. Hence no step increases the distance of ln r from an equilibrium or from the attractor "
        "(`norm_bounds`).",
    )
    result.step(
        Eq(border, kappa / sqrt(1 / a - 1)),
        "At a = 1/2 the border is κ(δ)/κ(ηλ), as for slower decay.",
        {a: sympy.Rational(1, 2)},
    )
    result.step(Eq(border, 2 * a * kappa), "The border in terms of a and κ.")
    return result


def critical_norm() -> Derivation:
    """Derive the largest stable η̃h, 2(1+μ) for heavy ball and (2+2μ)/(1+2μ) for Nesterov, and the critical norm."""
    sharpness, limit, scaled_sharpness = sympy.symbols("sharpness limit scaled_sharpness", positive=True)
    z, x, v = sympy.symbols("z x v")
    buffer = momentum * v + scaled_sharpness * x  # in units in which a step of heavy ball is x - buffer
    rules = {"heavy ball": x - buffer, "Nesterov": x - (scaled_sharpness * x + momentum * buffer)}
    limits = {name: sympy.Symbol("limit_" + name.split()[0].lower(), positive=True) for name in rules}
    determinants = {name: sympy.Symbol("determinant_" + name.split()[0].lower(), real=True) for name in rules}
    matrices = {name: Matrix([step, buffer]).jacobian([x, v]) for name, step in rules.items()}
    at_edge = {
        name: sympy.solve(matrix.charpoly(z).as_expr().subs(z, -1), scaled_sharpness)[0]
        for name, matrix in matrices.items()
    }
    edge = sympy.solve(Eq(lr * sharpness / sq_norm, limit), sq_norm)[0]
    result = Derivation(
        "Norm at the edge of stability.",
        "A quadratic loss of curvature h = `sharpness` on the unit sphere; no weight decay; 0 <= μ < 1; η̃h = "
        "`scaled_sharpness`.",
        [lr, sharpness, momentum, limit, scaled_sharpness, norm],
        {
            **{determinants[name]: matrix.det() for name, matrix in matrices.items()},
            **{limits[name]: at_edge[name] for name in rules},
            norm: sqrt(edge),
        },
    )
    any_momentum = {momentum: c / (1 + c)}
    formulas = {"heavy ball": 2 * (1 + momentum), "Nesterov": (2 + 2 * momentum) / (1 + 2 * momentum)}
    traces = {
        "heavy ball": 1 + momentum - scaled_sharpness,
        "Nesterov": 1 + momentum - scaled_sharpness * (1 + momentum),
    }
    for name, matrix in matrices.items():
        polynomial, last = matrix.charpoly(z).as_expr(), determinants[name]
        below = {scaled_sharpness: at_edge[name] / (1 + s), **any_momentum}
        result.step(
            Eq(polynomial, z**2 - traces[name] * z + last),
            f"{name}: the eigenvalues z of one step of (weight, buffer) are the zeros of this polynomial.",
        )
        result.step(Gt(polynomial.subs(z, 1), 0), "At z = 1 the polynomial is positive for every η̃h.", any_momentum)
        result.step(Gt(polynomial.subs(z, -1), 0), "At z = -1 it is positive for η̃h = limit/(1+s).", below)
        result.step(Lt(last, 1), "The product of the zeros is below 1.", below)
        result.step(Gt(last, -1), "The product is above -1, so both eigenvalues are inside the unit circle.", below)
        result.step(
            Eq(
                polynomial.subs(scaled_sharpness, limits[name]),
                (z + 1) * (z + matrix.det().subs(scaled_sharpness, at_edge[name])),
            ),
            "At the limit one eigenvalue is -1. The other is minus their product.",
        )
        result.step(
            Lt(last**2, 1),
            "The square of the product is below 1, so the other eigenvalue is still inside the unit circle.",
            {scaled_sharpness: at_edge[name], **any_momentum},
        )
        result.step(
            Lt(polynomial.subs(z, -1), 0),
            "Beyond the limit the polynomial is negative at -1. A real eigenvalue is below -1, and the steps grow.",
            {scaled_sharpness: at_edge[name] * (1 + s), **any_momentum},
        )
        result.step(Eq(limits[name], formulas[name]), f"The limit of η̃h for {name}. It is 2 for μ = 0.")
    result.step(Eq(lr * sharpness / norm**2, limit), "At the critical norm η̃h = ηh/ρ² equals the limit.")
    result.step(Eq(norm, sqrt(lr * sharpness / limit)), "The norm is the positive root.")
    return result


def steps_to_angular_jump() -> Derivation:
    """Derive the orbits along which the first angular jump comes earliest and latest."""
    kappa = sympy.Symbol("kappa", positive=True)  # κ(δ); 1 + κ² = (1-δ)⁻²
    growth_min, growth_max = (sympy.Symbol(name, positive=True) for name in ("b_min", "b_max"))
    increment = sympy.Symbol("increment", nonnegative=True)
    next_upper = sympy.Symbol("next_sq_upper", positive=True)
    threshold = sqrt(b) / (sqrt(a) * kappa)
    half_or_more = {a: (1 + s) / (2 + s)}
    equilibrium = sqrt(_equilibrium.fixed_square()).subs(b, growth_min)
    low = _one_step.square_map(a, growth_min)
    high = _one_step.square_map(a, growth_max)
    border = threshold.subs(b, growth_max)
    result = Derivation(
        "Orbits with the earliest and the latest angular jump.",
        "ℓ <= g̃ <= L; a = (1-ηλ)² >= 1/2; b_min = (ηℓ)², b_max = (ηL)²; κ = κ(δ); for the latest angular jump δ < "
        "ηλ, so that κ <= 1; r = ρ²; `next_sq_upper` is the highest norm after one more step without an angular "
        "jump.",
        [a, growth_min, growth_max, kappa, sq_norm, next_upper],
    )
    result.step(
        Gt(Derivative(threshold, b), 0),
        "The threshold of an angular jump increases with g̃. While the norm decays, L causes the first one and ℓ the "
        "last.",
    )
    result.step(Ge(_one_step.square_map(a, growth_min + c), low), "From the same norm ℓ leads lowest: b = b_min + c.")
    higher = low.subs(sq_norm, sq_lower + increment) - low.subs(sq_norm, sq_lower)
    result.step(
        Ge(higher, 0),
        "Above the fixed point of ℓ, r = r_ℓ + c, a higher norm stays higher, so no orbit decays faster than that of "
        "ℓ. The earliest angular jump is a step with L from this orbit.",
        {sq_lower: equilibrium.subs(half_or_more) + c, **half_or_more},
    )
    largest = kappa**2 * a * sq_norm**2  # b at the threshold
    result.step(
        Eq(_one_step.square_map(a, largest), a * sq_norm * (1 + kappa**2)),
        "The largest g̃ without an angular jump has b = κ² a r². It leads to a r (1+κ²) = a r/(1-δ)².",
    )
    result.step(
        Ge(Derivative(high, sq_norm), 0),
        "At or above the threshold of L, r = (1+c) threshold with κ <= 1, a higher norm also stays higher under L.",
        {sq_norm: border * (1 + c), kappa: 1 / (1 + t)},
    )
    result.step(
        Le(high, a * sq_norm * (1 + kappa**2)),
        "There L itself causes no angular jump, and it leads at most to that value.",
        {sq_norm: border * (1 + c)},
    )
    result.step(
        Ge(high, a * sq_norm * (1 + kappa**2)),
        "Below the threshold a step with L would be an angular jump.",
        {sq_norm: border / (1 + c)},
    )
    cases = [
        (
            "At or above the threshold of L the highest step is that of L.",
            sq_norm >= border,
            a * sq_norm + growth_max / sq_norm,
            high,
        ),
        (
            "Below the threshold the highest step is that of the largest g̃ without an angular jump.",
            sympy.true,
            a * sq_norm * (1 + kappa**2),
            _one_step.square_map(a, largest),
        ),
    ]
    for reason, condition, formula, value in cases:
        result.step(Eq(next_upper, formula), reason, {next_upper: value}, case=condition)
    result.step(
        Eq(next_upper, sympy.Piecewise(*((formula, condition) for _, condition, formula, _ in cases))),
        "By induction no orbit without an angular jump is above this one. The latest angular jump comes when this "
        "orbit is below the threshold of ℓ.",
    )
    return result


def critical_norm_with_decay() -> Derivation:
    """Derive the edge of stability with weight decay, at constant norm and while the norm decays without gradients."""
    scaled_sharpness, q, edge_constant, edge_decaying = sympy.symbols(
        "scaled_sharpness q edge_constant edge_decaying", positive=True
    )
    z, x, v = sympy.symbols("z x v")
    intrinsic_lr, mu = lr * wd, momentum
    result = Derivation(
        "Edge of stability with weight decay.",
        "A quadratic loss of curvature h across the weights, η̃h = `scaled_sharpness`; 0 <= μ < 1; 0 < ηλ < 1. "
        "Across the weights: one step of weight and buffer with h. Along the weights: the same step with h = 0; its "
        "largest eigenvalue q is the factor of decay without gradients. `edge_constant` is the edge at constant "
        "norm, `edge_decaying` the edge while the norm decays by q per step.",
        [lr, wd, mu, scaled_sharpness, q, edge_constant, edge_decaying],
    )

    def polynomial(nesterov: bool, decoupled: bool, h: Any) -> Any:
        after, (buffer,) = sgd_update(x, h * x / lr, v, lr, wd, mu, nesterov, decoupled)
        return Matrix([after, buffer]).jacobian([x, v]).charpoly(z).as_expr()

    s_ = 1 - intrinsic_lr
    formulas = {
        "heavy ball": (False, False, 2 * (1 + mu) - intrinsic_lr, 2 * (1 + mu - intrinsic_lr)),
        "Nesterov": (
            True,
            False,
            (2 + 2 * mu) / (1 + 2 * mu) - intrinsic_lr,
            (1 + q) * (mu + q) / (mu + (1 + mu) * q) - intrinsic_lr,
        ),
        "decoupled heavy ball": (False, True, (1 + mu) * (2 - intrinsic_lr), 2 * (s_ + mu)),
        "decoupled Nesterov": (
            True,
            True,
            (1 + mu) * (2 - intrinsic_lr) / (1 + 2 * mu),
            2 * s_ * (s_ + mu) / (s_ * (1 + mu) + mu),
        ),
    }
    for name, (nesterov, decoupled, at_constant_norm, during_decay) in formulas.items():
        across = polynomial(nesterov, decoupled, scaled_sharpness)
        along = polynomial(nesterov, decoupled, 0)
        (edge,) = sympy.solve(across.subs(z, -1), scaled_sharpness)
        result.step(
            Eq(edge_constant, at_constant_norm),
            f"{name}, constant norm: at the edge an eigenvalue across the weights is -1.",
            {edge_constant: edge},
        )
        if decoupled:
            result.step(Eq(along.subs(z, s_), 0), "The weights decay by the factor q = 1-ηλ per step.")
            result.step(
                Eq(across.subs({z: -s_, scaled_sharpness: edge_decaying}), 0),
                "While the norm decays, the edge is reached when an eigenvalue across the weights is -q.",
                {edge_decaying: during_decay},
            )
            continue
        (decay,) = sympy.solve(along.subs(z, q), wd)
        result.step(
            Eq(along.subs(z, q), 0),
            "The weights decay by the factor q per step, where q is a zero of this polynomial.",
            {wd: decay},
        )
        (edge,) = sympy.solve(across.subs(z, -q), scaled_sharpness)
        result.step(
            Eq(edge_decaying, during_decay),
            "While the norm decays, the edge is reached when an eigenvalue across the weights is -q.",
            {edge_decaying: edge, wd: decay},
        )
    result.step(
        Eq(edge_decaying, 2 * (1 - intrinsic_lr)),
        "Without momentum the edge is 2-ηλ at constant norm and 2(1-ηλ) while the norm decays.",
        {edge_decaying: 2 * (1 + mu - intrinsic_lr), mu: 0},
    )
    return result
