"""Optimizers: one frozen object each, for formula, simulation and training alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from theory.arguments import FloatArray


class Optimizer(Protocol):
    """What an optimizer must tell. To add one: write these three methods and list it in `OPTIMIZERS`.

    1. `update` uses only ``+ - * /`` and methods that NumPy arrays and torch tensors share, so that the same rule
       moves a random walk and a network.
    2. The closed forms take checked arrays and return arrays; validation is done once, by the public functions.
    """

    def update(self, weights: Any, gradient: Any, lr: Any, wd: Any) -> Any:
        """Return the weights after one step."""

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the norm at which decay and growth balance."""

    def equilibrium_rotation(self, lr: FloatArray, wd: FloatArray) -> FloatArray:
        """Return the angle of one step at equilibrium, in radians."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with coupled weight decay, x⁺ = x - η(∇f + λx), as `torch.optim.SGD`.

    Source: docs/mathematics.md §1, §2.

    Examples
    --------
    >>> float(SGD().update(np.array(2.0), np.array(1.0), lr=0.1, wd=0.5))
    1.8
    """

    def update(self, weights: Any, gradient: Any, lr: Any, wd: Any) -> Any:
        """Return the weights after one step.

        Parameters
        ----------
        weights, gradient : arrays or tensors of one shape (gradient of the loss alone, without decay).
        lr, wd : numbers, or arrays that broadcast against `weights`.

        The decay is added to the gradient, not factored out as (1 - ηλ): that factor is rounded before it is used,
        which in float32 would bias the decay by up to 3e-8/ηλ.

        Examples
        --------
        >>> float(SGD().update(np.array(1.0), np.array(0.0), lr=0.1, wd=0.5))
        0.95
        """
        return weights - lr * (gradient + wd * weights)

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ* with ρ*⁴ = ηg̃²/(λ(2-ηλ)); checked arrays in, array out.

        Examples
        --------
        >>> float(SGD().equilibrium_norm(np.array(1.0), np.array(1.0), np.array(4.0)))
        2.0
        """
        with np.errstate(divide="ignore"):
            return np.sqrt(grad_norm) * (lr / (wd * (2 - lr * wd))) ** 0.25

    def equilibrium_rotation(self, lr: FloatArray, wd: FloatArray) -> FloatArray:
        """Return θ* with cos θ* = 1 - ηλ, as 2 asin √(ηλ/2): exact also where 1 - ηλ rounds to 1.

        Examples
        --------
        >>> round(float(SGD().equilibrium_rotation(np.array(0.5), np.array(1.0))), 12)  # π/3
        1.047197551197
        """
        return 2 * np.arcsin(np.sqrt(lr * wd / 2))


OPTIMIZERS: dict[str, type[SGD]] = {"SGD": SGD}
