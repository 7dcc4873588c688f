"""δ-jumps: steps that turn the weights by more than a given angle (docs/mathematics.md §4)."""

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
    """Derive the norm ρ² = ηg̃/((1-ηλ)κ(δ)) below which a step has 1 - cos θ > δ, with κ(δ) = √((1-δ)⁻²-1).

    Examples
    --------
    >>> print(angular_jump_norm()[-2].lhs)
    norm**2
    """
    ranges = {**BELOW_ONE, delta: 1 / (1 + t)}
    angle = _one_step.rotation()[-1].rhs
    tangent = tan(angle)
    kappa = sqrt((1 - delta) ** -2 - 1)
    (square,) = sympy.solve(Eq(tangent.subs(norm, sqrt(sq_norm)), kappa), sq_norm)
    result = Derivation(
        "Norm below which a step is a δ-jump.",
        "g̃ > 0; 0 < ηλ < 1; 0 < δ < 1.",
        {"lr": lr, "wd": wd, "grad_norm": grad_norm, "delta": delta, "norm": norm, "rotation": theta},
        {theta: angle, norm: sqrt(square)},
    )
    result.step(
        Lt(Derivative(tangent, norm), 0),
        "The angle falls as the norm grows, so the δ-jumps are exactly the steps from below one threshold.",
        ranges,
    )
    result.step(Eq(1 - cos(theta), delta), "At the threshold 1 - cos θ equals δ.", ranges)
    result.step(Eq(tan(theta), kappa), "tan θ = √(1/cos² θ - 1) with cos θ = 1-δ.", ranges)
    result.step(Eq(lr * grad_norm / (norm**2 * (1 - lr * wd)), kappa), "Angle of one step; solve for the norm.", ranges)
    at_rest = sqrt(_equilibrium.fixed_square()).subs(
        {sympy.Symbol("a", positive=True): _equilibrium.A, sympy.Symbol("b", positive=True): _equilibrium.B}
    )
    result.step(
        Eq(norm**2, at_rest * kappa.subs(delta, lr * wd) / kappa),
        "In units of the equilibrium: at δ = ηλ the threshold is the equilibrium itself.",
        ranges,
    )
    formula = lr * grad_norm / ((1 - lr * wd) * kappa)
    result.step(Eq(norm**2, formula), "The solution.", ranges)
    result.step(Eq(norm, sqrt(formula)), "The norm is the positive root.", ranges)
    return result


def angular_jump_regime() -> Derivation:
    """Derive where δ-jumps are impossible, L/ℓ <= κ(δ)/κ(ηλ), and that they can be avoided for ever unless δ < ηλ.

    Examples
    --------
    >>> print(angular_jump_regime()[-1])
    Eq(border, sqrt(-1 + (1 - delta)**(-2))/sqrt(-1 + (-lr*wd + 1)**(-2)))
    """
    threshold, border, over = sympy.symbols("sq_threshold border over", positive=True)
    at, kappa = (1 - lr * wd) ** 2, sqrt((1 - delta) ** -2 - 1)
    kappa_decay = kappa.subs(delta, lr * wd)
    needed = lr * grad_norm / ((1 - lr * wd) * kappa)  # r below which g̃ jumps: the result of `angular_jump_norm`
    lowest = sqrt(_equilibrium.fixed_square()).subs({a: at, b: (lr * grad_norm_min) ** 2})
    (equal,) = sympy.solve(Eq(lowest, border * needed.subs(grad_norm, grad_norm_min)), border)
    largest_quiet = sympy.solve(Eq(needed, sq_norm), grad_norm)[0]

    def after(r: Any, g: Any) -> Any:
        return _one_step.square_map(at, (lr * g) ** 2, r)

    any_delta = {delta: 1 / (1 + t), **BELOW_ONE}
    below_decay = {delta: lr * wd / (1 + t), **BELOW_ONE}
    above_decay = {delta: 1 - (1 - lr * wd) / (1 + c), **BELOW_ONE}
    result = Derivation(
        "When a δ-jump is impossible, possible or certain.",
        "ℓ <= g̃ <= L; 0 < ηλ < 1 with (1-ηλ)² >= 1/2; 0 < δ < 1; r = ρ² starts at or above the threshold of L.",
        {
            "lr": lr,
            "wd": wd,
            "delta": delta,
            "grad_norm_min": grad_norm_min,
            "grad_norm_max": grad_norm_max,
            "grad_norm": grad_norm,
            "sq_norm": sq_norm,
            "next_sq_norm": next_sq_norm,
            "sq_lower": sq_lower,
            "sq_threshold": threshold,
            "border": border,
        },
        {
            next_sq_norm: after(sq_norm, grad_norm),
            grad_norm: largest_quiet,
            sq_lower: lowest,
            threshold: needed.subs(grad_norm, grad_norm_max),
            border: equal,
        },
    )
    result.step(
        Eq(after(sq_lower, grad_norm_min), sq_lower),
        "Under constant g̃ = ℓ the norm rests at r_ℓ; from above no g̃ >= ℓ leads below it (norm_bounds).",
        any_delta,
    )
    result.step(
        Ge(after(sq_norm, grad_norm_min), sq_norm),
        "From below, r = r_ℓ/(1+c), no g̃ >= ℓ leads further down either.",
        {sq_norm: lowest / (1 + c), **any_delta},
    )
    result.step(
        Eq(sq_lower / threshold, grad_norm_min / grad_norm_max * border),
        "The lowest norm in units of the threshold of L, from `angular_jump_norm`.",
        any_delta,
    )
    result.step(
        Ge(sq_lower, threshold),
        "Impossible: for L/ℓ = border/(1+c) the norm never gets below the threshold of L.",
        {grad_norm_max: grad_norm_min * equal / (1 + c), **any_delta},
    )
    result.step(
        Lt(sq_lower, threshold),
        "For L/ℓ = border (1+over) the fall with g̃ = ℓ towards r_ℓ gets below it, and a step with L jumps.",
        {grad_norm_max: grad_norm_min * equal * (1 + over), **any_delta},
    )
    result.step(
        Eq(lr * grad_norm / (sq_norm * (1 - lr * wd)), kappa),
        "The avoider takes the largest g̃ that does not jump, whose tan θ is κ(δ), unless L is smaller.",
        any_delta,
    )
    result.step(
        Eq(next_sq_norm, sq_norm * ((1 - lr * wd) / (1 - delta)) ** 2),
        "Its step: a r + (ηg̃)²/r = a r (1+κ(δ)²), with cos θ = 1-δ.",
        any_delta,
    )
    result.step(
        Lt(next_sq_norm, sq_norm),
        "Certain: for δ < ηλ this norm falls by a constant factor, and below the threshold of ℓ every step jumps.",
        below_decay,
    )
    result.step(
        Ge(next_sq_norm, sq_norm),
        "For δ >= ηλ, 1-δ = (1-ηλ)/(1+c), it never falls: the jump is avoided for ever.",
        above_decay,
    )
    result.step(
        Ge(sq_norm * ((1 - lr * wd) / (1 - delta)) ** 2, after(sq_norm, grad_norm_max)),
        "From the threshold of L upwards, r = (1+c) threshold, L is the smaller of the two.",
        {sq_norm: needed.subs(grad_norm, grad_norm_max) * (1 + c), **any_delta},
    )
    result.step(
        Eq(border, kappa / kappa_decay),
        "The border of L/ℓ: the largest one at which no jump is possible.",
        any_delta,
    )
    return result


def angular_jumps_while_ringing() -> Derivation:
    """Derive when δ-jumps are impossible from every start for (1-ηλ)² < 1/2: L/ℓ <= 2(1-ηλ)²κ(δ).

    Examples
    --------
    >>> print(angular_jumps_while_ringing()[-1])
    Eq(border, 2*a*kappa)
    """
    kappa, b_min, over, border, threshold, turning = sympy.symbols(
        "kappa b_min over border sq_threshold turning", positive=True
    )
    below_half = {a: 1 / (2 + s)}
    low, rest = _one_step.square_map(a, b_min), sqrt(_equilibrium.fixed_square()).subs(b, b_min)
    (point,) = sympy.solve(sympy.diff(low, sq_norm), sq_norm)
    least = low.subs(sq_norm, point)
    needed = sqrt(b) / (sqrt(a) * kappa)  # r below which a step with b = (ηg̃)² jumps
    (equal,) = sympy.solve(Eq(least, border * needed.subs(b, b_min)), border)
    result = Derivation(
        "When a δ-jump is impossible although the norm swings.",
        "ℓ <= g̃ <= L; a = (1-ηλ)² < 1/2; b_min = (ηℓ)²; κ = κ(δ); r = ρ² starts at or above the threshold of L, "
        "`sq_threshold`; `border` is a value of L/ℓ.",
        {
            "a": a,
            "b": b,
            "b_min": b_min,
            "kappa": kappa,
            "sq_norm": sq_norm,
            "turning": turning,
            "sq_threshold": threshold,
            "border": border,
        },
        {turning: point, border: equal},
    )
    result.step(
        Gt(turning**2, rest**2),
        "Under ℓ the least r⁺ is that of r = ηℓ/(1-ηλ), above the rest of ℓ: from there one step leads below rest.",
        below_half,
    )
    result.step(Eq(low.subs(sq_norm, turning), 2 * sqrt(a * b_min)), "That least r⁺.")
    result.step(
        Ge(low, 2 * sqrt(a * b_min)),
        "No step with ℓ from any norm leads lower: the difference is (√a r - √b_min)²/r, …",
        {a: s**2, b_min: t**2},
    )
    result.step(Ge(_one_step.square_map(a, b_min + c), low), "… nor does one with a larger g̃, b = b_min + c.")
    result.step(
        Ge(2 * sqrt(a * b_min), threshold),
        "Impossible: for L/ℓ = border/(1+c) that is at or above the threshold of L.",
        {threshold: needed.subs(b, b_min) * equal / (1 + c)},
    )
    result.step(
        Lt(2 * sqrt(a * b_min), threshold),
        "For L/ℓ = border (1+over) the step from the turning point leads below it, and L jumps then, …",
        {threshold: needed.subs(b, b_min) * equal * (1 + over)},
    )
    result.step(
        Ge(turning, threshold),
        "… provided the turning point itself is quiet, L/ℓ = κ/(1+c). Where it is not, κ < L/ℓ, the fall with ℓ from "
        "any quiet norm ends below the threshold, which is above the rest of ℓ.",
        {threshold: needed.subs(b, b_min) * kappa / (1 + c)},
    )
    speed = sq_norm * sympy.diff(_one_step.square_map(a, b), sq_norm) / _one_step.square_map(a, b)
    result.step(Lt(speed, 1), "d ln r⁺/d ln r is below 1 …")
    result.step(
        Gt(speed, -1),
        "… and above -1: no step lengthens the distance of ln r from a rest, nor from the attractor (norm_bounds).",
    )
    result.step(
        Eq(border, kappa / sqrt(1 / a - 1)),
        "At a = 1/2 the border is κ(δ)/κ(ηλ), that of slower decay.",
        {a: sympy.Rational(1, 2)},
    )
    result.step(Eq(border, 2 * a * kappa), "The border of L/ℓ.")
    return result


def critical_norm() -> Derivation:
    """Derive the largest stable η̃h, 2(1+μ) for the heavy ball and (2+2μ)/(1+2μ) for Nesterov, and the norm at it.

    Examples
    --------
    >>> print(critical_norm()[-1])
    Eq(norm, sqrt(lr)*sqrt(sharpness)/sqrt(limit))
    """
    sharpness, limit, rate = sympy.symbols("sharpness limit rate", positive=True)
    z, x, v = sympy.symbols("z x v")
    buffer = momentum * v + rate * x  # in units in which the step of the heavy ball is x - buffer
    rules = {"heavy ball": x - buffer, "Nesterov": x - (rate * x + momentum * buffer)}
    limits = {name: sympy.Symbol("limit_" + name.split()[0].lower(), positive=True) for name in rules}
    determinants = {name: sympy.Symbol("determinant_" + name.split()[0].lower(), real=True) for name in rules}
    matrices = {name: Matrix([step, buffer]).jacobian([x, v]) for name, step in rules.items()}
    at_edge = {
        name: sympy.solve(matrix.charpoly(z).as_expr().subs(z, -1), rate)[0] for name, matrix in matrices.items()
    }
    edge = sympy.solve(Eq(lr * sharpness / sq_norm, limit), sq_norm)[0]
    result = Derivation(
        "Norm at the edge of stability.",
        "A quadratic of curvature h on the unit sphere; no decay; 0 <= μ < 1. η̃h = `rate`.",
        {"lr": lr, "sharpness": sharpness, "momentum": momentum, "limit": limit, "rate": rate, "norm": norm},
        {
            **{determinants[name]: matrix.det() for name, matrix in matrices.items()},
            **{limits[name]: at_edge[name] for name in rules},
            norm: sqrt(edge),
        },
    )
    any_momentum = {momentum: c / (1 + c)}
    formulas = {"heavy ball": 2 * (1 + momentum), "Nesterov": (2 + 2 * momentum) / (1 + 2 * momentum)}
    traces = {"heavy ball": 1 + momentum - rate, "Nesterov": 1 + momentum - rate * (1 + momentum)}
    for name, matrix in matrices.items():
        polynomial, last = matrix.charpoly(z).as_expr(), determinants[name]
        below = {rate: at_edge[name] / (1 + s), **any_momentum}
        result.step(
            Eq(polynomial, z**2 - traces[name] * z + last),
            f"{name}: the eigenvalues z of one step of (weight, buffer) are the zeros of this polynomial.",
        )
        result.step(Gt(polynomial.subs(z, 1), 0), "At z = 1 it is positive for every η̃h.", any_momentum)
        result.step(Gt(polynomial.subs(z, -1), 0), "At z = -1 it is positive for η̃h = limit/(1+s), …", below)
        result.step(Lt(last, 1), "… and the product of the zeros is below 1 …", below)
        result.step(Gt(last, -1), "… and above -1: both eigenvalues are inside the unit circle.", below)
        result.step(
            Eq(
                polynomial.subs(rate, limits[name]),
                (z + 1) * (z + matrix.det().subs(rate, at_edge[name])),
            ),
            "At the limit one eigenvalue is -1, and the other, minus their product, is still inside …",
        )
        result.step(
            Lt(last**2, 1), "… because the square of the product is below 1.", {rate: at_edge[name], **any_momentum}
        )
        result.step(
            Lt(polynomial.subs(z, -1), 0),
            "Beyond the limit the polynomial is negative at -1: a real eigenvalue is below -1 and the steps grow.",
            {rate: at_edge[name] * (1 + s), **any_momentum},
        )
        result.step(Eq(limits[name], formulas[name]), f"The limit of η̃h ({name}); 2 for μ = 0.")
    result.step(Eq(lr * sharpness / norm**2, limit), "η̃h = ηh/ρ² reaches the limit.")
    result.step(Eq(norm, sqrt(lr * sharpness / limit)), "The norm is the positive root.")
    return result


def steps_to_angular_jump() -> Derivation:
    """Derive along which orbits the first δ-jump comes earliest and latest.

    Examples
    --------
    >>> steps_to_angular_jump().unproved()
    []
    """
    kappa = sympy.Symbol("kappa", positive=True)  # κ(δ); 1 + κ² = (1-δ)⁻²
    growth_min, growth_max = (sympy.Symbol(name, positive=True) for name in ("b_min", "b_max"))
    further = sympy.Symbol("further", nonnegative=True)
    next_upper = sympy.Symbol("next_sq_upper", positive=True)
    threshold = sqrt(b) / (sqrt(a) * kappa)
    half_or_more = {a: (1 + s) / (2 + s)}
    rest = sqrt(_equilibrium.fixed_square()).subs(b, growth_min)
    low = _one_step.square_map(a, growth_min)
    high = _one_step.square_map(a, growth_max)
    border = threshold.subs(b, growth_max)
    result = Derivation(
        "Orbits with the earliest and the latest δ-jump.",
        "ℓ <= g̃ <= L, a = (1-ηλ)² >= 1/2, b_min = (ηℓ)², b_max = (ηL)², κ = κ(δ); for the latest δ < ηλ, so that κ "
        "<= 1; "
        "r = ρ², `next_sq_upper` is the highest norm after one more step without a jump.",
        {
            "a": a,
            "b_min": growth_min,
            "b_max": growth_max,
            "kappa": kappa,
            "sq_norm": sq_norm,
            "next_sq_upper": next_upper,
        },
    )
    result.step(
        Gt(Derivative(threshold, b), 0), "The norm below which a step jumps grows with g̃: L jumps first, ℓ last."
    )
    result.step(Ge(_one_step.square_map(a, growth_min + c), low), "From the same norm ℓ leads lowest: b = b_min + c.")
    higher = low.subs(sq_norm, sq_lower + further) - low.subs(sq_norm, sq_lower)
    result.step(
        Ge(higher, 0),
        "Above the fixed point of ℓ, r = r_ℓ + c, a higher norm stays higher: no orbit sinks faster than that of ℓ. "
        "The "
        "earliest jump is that of L from it.",
        {sq_lower: rest.subs(half_or_more) + c, **half_or_more},
    )
    largest = kappa**2 * a * sq_norm**2  # b at the threshold
    result.step(
        Eq(_one_step.square_map(a, largest), a * sq_norm * (1 + kappa**2)),
        "The largest g̃ that does not jump has b = κ² a r², and leads to a r (1+κ²) = a r/(1-δ)².",
    )
    result.step(
        Ge(Derivative(high, sq_norm), 0),
        "From the threshold of L upwards, r = (1+c) threshold with κ <= 1, a higher norm stays higher under L too.",
        {sq_norm: border * (1 + c), kappa: 1 / (1 + t)},
    )
    result.step(
        Le(high, a * sq_norm * (1 + kappa**2)),
        "There L itself does not jump, and leads no higher than that bound …",
        {sq_norm: border * (1 + c)},
    )
    result.step(
        Ge(high, a * sq_norm * (1 + kappa**2)),
        "… while below the threshold L would jump.",
        {sq_norm: border / (1 + c)},
    )
    cases = [
        (
            "At or above the threshold of L the highest step is that of L …",
            sq_norm >= border,
            a * sq_norm + growth_max / sq_norm,
            high,
        ),
        (
            "… and below it that of the largest g̃ without a jump.",
            sympy.true,
            a * sq_norm * (1 + kappa**2),
            _one_step.square_map(a, largest),
        ),
    ]
    for words, condition, formula, value in cases:
        result.step(Eq(next_upper, formula), words, {next_upper: value}, case=condition)
    result.step(
        Eq(next_upper, sympy.Piecewise(*((formula, condition) for _, condition, formula, _ in cases))),
        "By induction no orbit without a jump is above this one: the latest jump comes when it is below the "
        "threshold of ℓ.",
    )
    return result


def critical_norm_with_decay() -> Derivation:
    """Derive how decay moves the edge of stability, where growth holds the norm and where it falls freely.

    Examples
    --------
    >>> critical_norm_with_decay().unproved()
    []
    """
    rate, q, held, falling = sympy.symbols("rate q held falling", positive=True)
    z, x, v = sympy.symbols("z x v")
    k, mu = lr * wd, momentum
    result = Derivation(
        "Edge of stability with weight decay.",
        "A quadratic of curvature h across the weights, η̃h = `rate`; 0 <= μ < 1; 0 < ηλ < 1. Across: one step of "
        "weight "
        "and buffer with h; along: the same with h = 0, whose largest eigenvalue q is the factor of a free fall. "
        "`held`, "
        "`falling`: the edge where the norm is constant, and where it falls by q a step.",
        {"lr": lr, "wd": wd, "momentum": mu, "rate": rate, "q": q, "held": held, "falling": falling},
    )

    def polynomial(nesterov: bool, decoupled: bool, h: Any) -> Any:
        after, (buffer,) = sgd_update(x, h * x / lr, v, lr, wd, mu, nesterov, decoupled)
        return Matrix([after, buffer]).jacobian([x, v]).charpoly(z).as_expr()

    s_ = 1 - k
    formulas = {
        "heavy ball": (False, False, 2 * (1 + mu) - k, 2 * (1 + mu - k)),
        "Nesterov": (True, False, (2 + 2 * mu) / (1 + 2 * mu) - k, (1 + q) * (mu + q) / (mu + (1 + mu) * q) - k),
        "decoupled heavy ball": (False, True, (1 + mu) * (2 - k), 2 * (s_ + mu)),
        "decoupled Nesterov": (
            True,
            True,
            (1 + mu) * (2 - k) / (1 + 2 * mu),
            2 * s_ * (s_ + mu) / (s_ * (1 + mu) + mu),
        ),
    }
    for name, (nesterov, decoupled, at_rest, in_fall) in formulas.items():
        across = polynomial(nesterov, decoupled, rate)
        along = polynomial(nesterov, decoupled, 0)
        (edge,) = sympy.solve(across.subs(z, -1), rate)
        result.step(Eq(held, at_rest), f"{name}, constant norm: an eigenvalue across reaches -1.", {held: edge})
        if decoupled:
            result.step(Eq(along.subs(z, s_), 0), "The weights fall by q = 1-ηλ …")
            result.step(
                Eq(across.subs({z: -s_, rate: falling}), 0),
                "… and turn over once an eigenvalue across is -q.",
                {falling: in_fall},
            )
            continue
        (decay,) = sympy.solve(along.subs(z, q), wd)
        result.step(Eq(along.subs(z, q), 0), "The weights fall by q, a zero of this polynomial …", {wd: decay})
        (edge,) = sympy.solve(across.subs(z, -q), rate)
        result.step(
            Eq(falling, in_fall), "… and turn over once an eigenvalue across is -q.", {falling: edge, wd: decay}
        )
    result.step(
        Eq(falling, 2 * (1 - k)),
        "Without momentum: 2-ηλ at constant norm, 2(1-ηλ) in a fall.",
        {falling: 2 * (1 + mu - k), mu: 0},
    )
    return result
