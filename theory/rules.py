"""What an optimizer must tell, so that formula, simulation and training can use it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

from theory.arguments import FloatArray


class Optimizer(Protocol):
    """What an optimizer must tell.

    To add one: write these methods as a frozen dataclass that inherits `ShortRepr` (docs/add_an_optimizer.md).

    1. `start` and `update` use only ``+ - * / **`` and comparisons, which NumPy arrays, torch tensors and sympy symbols
       share, so that one rule moves a random walk and a network and is what the derivations start from.
    2. The closed forms take checked arrays of one shape and return arrays; the public functions of
       `theory.equilibrium` validate once.
    """

    wd_exponent: ClassVar[int]
    """The directions do not change when λ ∝ η^-wd_exponent …"""
    norm_exponent: ClassVar[float]
    """… and ρ₀ ∝ η^norm_exponent."""

    @property
    def intrinsic_lr_limit(self) -> float:
        """ηλ must lie below this for an equilibrium."""

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: arrays that broadcast against `weights`, whose last axis is flat."""

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step; `gradient` is that of the loss alone, without decay."""

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the norm at which decay and growth balance."""

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ of one step at equilibrium."""


class ShortRepr:
    """Shows only what differs from the default.

    Examples
    --------
    >>> from theory import SGD
    >>> SGD(), SGD(momentum=0.9)
    (SGD(), SGD(momentum=0.9))
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = [f"{f.name}={v!r}" for f in fields if (v := getattr(self, f.name)) != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"
