"""Equilibrium of linear update rules, from their second moments (docs/mathematics.md §7).

The update rule `theory.optimizers.sgd_update` is applied to symbols. Its coefficients give the recursion of E‖x‖²,
E⟨x,v⟩ and E‖v‖² for gradients that are orthogonal to the weights and independent in time. Its stationary solution is
the equilibrium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from sympy import Matrix

from theory.derivations._derivation import Derivation, Eq
from theory.derivations._symbols import grad_norm, lr, momentum, norm, turn, wd
from theory.optimizers import sgd_update

_LinearRule = Callable[[Any, Any, Any], tuple[Any, Any]]


def second_moments(rule: _LinearRule) -> tuple[Any, Any]:
    """Return stationary E‖x‖² for E‖∇f‖² = 1, and 1 - E⟨x⁺,x⟩/E‖x‖², of a linear rule (weights, gradient, velocity)."""
    columns = [rule(1, 0, 0), rule(0, 0, 1)]
    transition = Matrix([[columns[0][0], columns[1][0]], [columns[0][1], columns[1][1]]])
    input_vector = Matrix(rule(0, 1, 0))
    unknowns = sympy.symbols("xx xv vv")
    moments = Matrix([[unknowns[0], unknowns[1]], [unknowns[1], unknowns[2]]])
    (solution,) = sympy.solve(
        list(moments - transition * moments * transition.T - input_vector * input_vector.T), unknowns, dict=True
    )
    square = sympy.factor(solution[unknowns[0]])
    along = (transition * moments.subs(solution))[0, 0]
    return square, sympy.factor(1 - along / square)


def _sgd(title: str, nesterov: bool, decoupled: bool, fourth: Any, turn_formula: Any) -> Derivation:
    def rule(weights: Any, gradient: Any, velocity: Any) -> tuple[Any, Any]:
        weights, (velocity,) = sgd_update(weights, gradient, velocity, lr, wd, momentum, nesterov, decoupled)
        return weights, velocity

    square, turn_value = second_moments(rule)
    growth = sympy.Symbol("grad_square", positive=True)
    result = Derivation(
        title,
        "Gradients orthogonal to the weights and independent in time; many dimensions; 0 < ηλ < the limit of the rule.",
        [lr, wd, grad_norm, momentum, norm, turn],
        {turn: turn_value},
    )
    result.step(
        Eq(norm**2, square * growth),
        "Stationary solution of the recursion of E‖x‖², E⟨x,v⟩, E‖v‖². It is linear in E‖∇f‖².",
        {norm: sympy.sqrt(square * growth)},
    )
    result.step(
        Eq(norm**4, square * grad_norm**2),
        "Insert E‖∇f‖² = g̃²/ρ².",
        {norm: (square * grad_norm**2) ** sympy.Rational(1, 4)},
    )
    result.step(Eq(turn, turn_formula), "In many dimensions 1 - cos θ = 1 - E⟨x⁺,x⟩/E‖x‖².")
    result.step(
        Eq(norm**4, fourth), "The factored form of the norm.", {norm: (square * grad_norm**2) ** sympy.Rational(1, 4)}
    )
    return result


def heavy_ball() -> Derivation:
    """Derive the equilibrium of heavy-ball SGD with coupled decay."""
    intrinsic_lr, mu = lr * wd, momentum
    fourth = lr * grad_norm**2 / (wd * (1 - mu) * (2 - intrinsic_lr / (1 + mu)))
    return _sgd("Equilibrium of heavy-ball SGD.", False, False, fourth, intrinsic_lr / (1 + mu))


def nesterov() -> Derivation:
    """Derive the equilibrium of Nesterov SGD (PyTorch's form) with coupled decay."""
    intrinsic_lr, mu = lr * wd, momentum
    growth = 1 + mu + intrinsic_lr * mu + 2 * intrinsic_lr * mu**2
    fourth = (
        lr * grad_norm**2 * growth / (wd * (1 - mu + intrinsic_lr * mu) * (2 + 2 * mu - intrinsic_lr * (1 + 2 * mu)))
    )
    turn_formula = (
        intrinsic_lr
        * (1 + 2 * mu - 2 * mu**3 + intrinsic_lr * mu * (1 + 3 * mu + 2 * mu**2))
        / (1 + mu + intrinsic_lr * mu * (1 + 2 * mu))
    )
    return _sgd("Equilibrium of Nesterov SGD.", True, False, fourth, turn_formula)


def decoupled_heavy_ball() -> Derivation:
    """Derive the equilibrium of heavy-ball SGD with decoupled decay."""
    intrinsic_lr, mu = lr * wd, momentum
    s = 1 - intrinsic_lr
    fourth = lr**2 * grad_norm**2 * (1 + s * mu) / ((1 - s * mu) * (1 - s**2) * (1 - mu**2))
    return _sgd("Equilibrium of decoupled heavy-ball SGD.", False, True, fourth, intrinsic_lr * (1 - mu) / (1 + s * mu))


def decoupled_nesterov() -> Derivation:
    """Derive the equilibrium of Nesterov SGD with decoupled decay."""
    intrinsic_lr, mu = lr * wd, momentum
    growth = 1 + mu + intrinsic_lr * mu - 2 * intrinsic_lr * mu**3
    fourth = lr * grad_norm**2 * growth / (wd * (1 - mu**2) * (2 - intrinsic_lr) * (1 - mu + intrinsic_lr * mu))
    turn_formula = intrinsic_lr * (1 - mu) * (1 + 2 * mu - 2 * mu**3 + intrinsic_lr * mu * (1 + mu) ** 2) / growth
    return _sgd("Equilibrium of decoupled Nesterov SGD.", True, True, fourth, turn_formula)
