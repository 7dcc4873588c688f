"""Interface that every optimizer implements, for formulas, simulation and training."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

from theory.arguments import FloatArray


class Optimizer(Protocol):
    """Interface that every optimizer implements.

    To add an optimizer, write these methods in a frozen dataclass that inherits `ShortRepr` (docs/add_an_optimizer.md).

    1. `start` and `update` use only ``+ - * / **`` and comparisons. NumPy arrays, torch tensors and sympy symbols share
       these operations, so one rule serves simulation, training and the derivations.
    2. The closed forms take checked arrays of one shape and return arrays. The public functions of
       `theory.equilibrium` check the arguments.
    """

    wd_exponent: ClassVar[int]
    """Symmetry: the directions are the same for all η with λ ∝ η^-wd_exponent and ρ₀ ∝ η^norm_exponent."""
    norm_exponent: ClassVar[float]
    """Exponent of the initial norm ρ₀ in this symmetry."""
    norm_power: ClassVar[int]
    """Power p in the law of the norm for small steps, d(ρ^p)/dt = (growth - rate·ρ^p) ρ^rate_exponent."""
    rate_exponent: ClassVar[int]
    """Exponent of the norm in this law; 0 for most optimizers."""

    @property
    def intrinsic_lr_limit(self) -> float:
        """Limit of ηλ, below which an equilibrium exists."""

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: arrays that broadcast against `weights`, flat along the last axis."""

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step; `gradient` is the gradient of the loss without decay."""

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the norm at which decay and growth balance."""

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ of one step at equilibrium."""

    def norm_rate(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the rate per step in the law of `norm_power`."""

    def norm_growth(self, lr: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the growth per step in the law of `norm_power`."""


class ShortRepr:
    """Representation that shows only the fields that differ from their defaults.

    Examples
    --------
    >>> from theory import SGD
    >>> SGD(), SGD(momentum=0.9)
    (SGD(), SGD(momentum=0.9))
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        changed = [f"{f.name}={v!r}" for f in fields if (v := getattr(self, f.name)) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"
