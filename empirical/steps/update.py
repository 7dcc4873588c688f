"""Step of an optimizer for all trained weights, including the constraints of `RunConfig.fixed`."""

from __future__ import annotations

import torch
from torch import Tensor

from empirical.steps.contract import Problem

# values for the measured and for the other weights
Pair = tuple[Tensor, Tensor]


class Update:
    """One step of the optimizer of a problem for K replicas, as a pure function.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps.contract import WeightLayout
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> problem = Problem(model, WeightLayout.of(model, {}), torch.zeros(1, 1), torch.zeros(1).long(), theory.SGD())
    >>> lr, wd = torch.tensor([[0.5]]), torch.tensor([[0.0]])
    >>> Update(problem)(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]]), (), (lr, lr), (wd, wd))[0]
    tensor([[0., 2.]])
    """

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        self._optimizer, self._fixed, self._measured = problem.optimizer, problem.fixed, layout.measured_size
        others = torch.arange(layout.size, device=problem.inputs.device) >= layout.measured_size
        self._others = others if layout.measured_size < layout.size else None

    def __call__(
        self, weights: Tensor, gradient: Tensor, slots: tuple[Tensor, ...], lr: Pair, wd: Pair
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return weights and slots after the step.

        Parameters
        ----------
        weights, gradient : shape (K, P).
        slots : as in `TrainingState`.
        lr, wd : values for the measured and the other weights, each of shape (K, 1).
        """
        lrs, wds = self._per_weight(*lr), self._per_weight(*wd)
        if self._fixed == "effective_lr":
            square = weights[:, : self._measured].square().sum(dim=1, keepdim=True)
            gradient = gradient * self._per_weight(square, torch.ones_like(square))
        if self._fixed != "norm":
            return self._optimizer.update(weights, gradient, slots, lrs, wds)
        *own, initial_norm = slots
        following, own = self._optimizer.update(weights, gradient, tuple(own), lrs, wds)
        norm = following[:, : self._measured].norm(dim=1, keepdim=True)
        return following * self._per_weight(initial_norm / norm, torch.ones_like(norm)), (*own, initial_norm)

    def _per_weight(self, measured: Tensor, other: Tensor) -> Tensor:
        """Value for each weight, or one value if all weights are measured."""
        return measured if self._others is None else torch.where(self._others, other, measured)
