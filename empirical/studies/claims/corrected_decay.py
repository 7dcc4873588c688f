"""SGD with a weight decay proportional to the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from theory.arguments import FloatArray, check_number
from theory.rules import ShortRepr
from theory.sgd import SGD


@dataclass(frozen=True, repr=False)
class CorrectedSGD(ShortRepr):
    """Plain SGD with the weight decay λη_t/η_max of `theory.corrected_decay`; λ is the decay at the largest lr.

    Parameters
    ----------
    lr_max : η_max > 0, the largest learning rate of the schedule.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> CorrectedSGD(lr_max=0.5).update(1.0, 0.0, (), lr=0.1, wd=0.5)[0]
    0.99
    """

    intrinsic_lr_limit: ClassVar[float] = 2.0
    wd_exponent: ClassVar[int] = 2
    norm_exponent: ClassVar[float] = 0.5

    lr_max: float

    def __post_init__(self) -> None:
        check_number("lr_max", self.lr_max, above=0)

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step, which is empty.

        Examples
        --------
        >>> CorrectedSGD(lr_max=0.5).start(1.0)
        ()
        """
        return SGD().start(weights)

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step of `theory.SGD` with the corrected decay.

        Examples
        --------
        >>> CorrectedSGD(lr_max=0.5).update(1.0, 0.0, (), lr=0.5, wd=0.1)[0]
        0.95
        """
        return SGD().update(weights, gradient, state, lr, wd * (lr / self.lr_max))

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ*, which hardly depends on the learning rate: ρ*⁴ = η_max g̃²/(λ(2-η²λ/η_max)).

        Examples
        --------
        >>> import theory
        >>> rule = CorrectedSGD(lr_max=0.5)
        >>> theory.equilibrium_norm([0.05, 0.5], 0.01, optimizer=rule).round(2).tolist()
        [2.24, 2.24]
        """
        return SGD().equilibrium_norm(lr, wd * lr / self.lr_max, grad_norm)

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ*, which is proportional to the square of the learning rate.

        Examples
        --------
        >>> CorrectedSGD(lr_max=0.5).equilibrium_turn(0.25, 0.04, 1.0).round(6).item()
        0.005
        """
        return SGD().equilibrium_turn(lr, wd * lr / self.lr_max, grad_norm)
