"""One step of SGD: the map of the squared norm and the angle of the step (docs/mathematics.md §1)."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Derivative, Matrix, atan, atan2, cos, tan

from theory.derivations._derivation import Derivation, Eq, Ge
from theory.derivations._symbols import (
    BELOW_ONE,
    effective_lr,
    grad_norm,
    lr,
    next_norm,
    next_sq_norm,
    norm,
    sq_norm,
    wd,
)
from theory.derivations._symbols import rotation as theta


def step_vectors() -> tuple[Any, Any]:
    """Return the weights before and after one step. The axes are along the weights and along the gradient."""
    weights, gradient = Matrix([norm, 0]), Matrix([0, grad_norm / norm])
    return weights, weights - lr * (gradient + wd * weights)


def square_map(a: Any, b: Any, r: Any = sq_norm) -> Any:
    """Return the right-hand side of r⁺ = a r + b/r."""
    return a * r + b / r


def rotation() -> Derivation:
    """Derive the map r⁺ = (1-ηλ)² r + (ηg̃)²/r and the angle of one step, tan θ = η̃g̃/(1-ηλ)."""
    before, after = step_vectors()
    result = Derivation(
        "Angle of one SGD step.",
        "The loss is scale-invariant; 0 < ηλ < 1.",
        [lr, wd, grad_norm, norm, theta],
        {
            next_sq_norm: after.dot(after),
            next_norm: sympy.sqrt(after.dot(after)),
            sq_norm: norm**2,
            effective_lr: lr / norm**2,
            theta: atan2(sympy.Abs(before[0] * after[1] - before[1] * after[0]), before.dot(after)),
        },
    )
    x, y = sympy.symbols("x y", positive=True)
    loss = sympy.Function("f")(y / x)
    result.step(
        Eq(x * Derivative(loss, x) + y * Derivative(loss, y), 0),
        "In any plane through the origin a scale-invariant loss depends on the direction y/x only. By "
        "differentiation in the scale, the gradient is orthogonal to the weights.",
    )
    scale = sympy.Symbol("scale", positive=True)
    result.step(
        Eq(Derivative(loss.subs({x: scale * x, y: scale * y}), x), Derivative(loss, x)),
        "Scaling the weights does not change the loss. By the chain rule ∇f(cx) = ∇f(x)/c, so the gradient norm at "
        "norm ρ is g̃/ρ.",
    )
    result.step(
        Eq(next_sq_norm, sympy.expand(after.dot(after))),
        "Pythagoras for x⁺ = (1-ηλ)x - η∇f, because the gradient is orthogonal to the weights.",
    )
    result.step(
        Eq(next_sq_norm, square_map((1 - lr * wd) ** 2, (lr * grad_norm) ** 2)),
        "In terms of r = ρ² the step is a map of one number.",
    )
    result.step(
        Ge(next_sq_norm, 2 * (1 - lr * wd) * lr * grad_norm),
        "The difference of the two sides is ((1-ηλ)ρ - ηg̃/ρ)². Hence no step leads below this bound, whatever the "
        "norm was.",
        BELOW_ONE,
    )
    cosine = before.dot(after) / (norm * sympy.sqrt(after.dot(after)))
    result.step(
        Eq(cos(theta), cosine),
        "The cosine follows from the scalar product of the weights before and after the step.",
        BELOW_ONE,
    )
    result.step(
        Eq(next_norm, (1 - lr * wd) * norm / cos(theta)),
        "In the right triangle of the step the decayed weights are the adjacent side and the new weights the "
        "hypotenuse.",
        BELOW_ONE,
    )
    result.step(
        Eq(tan(theta), effective_lr * grad_norm / (1 - lr * wd)),
        "The tangent is the opposite side ηg̃/ρ over the adjacent side (1-ηλ)ρ, with η̃ = η/ρ².",
        BELOW_ONE,
    )
    result.step(
        Eq(theta, atan(lr * grad_norm / (norm**2 * (1 - lr * wd)))),
        "The angle lies between 0 and π/2, because the decayed weights keep their direction.",
        BELOW_ONE,
    )
    return result
