"""What an optimizer does to all trained weights in one step, with what a run holds fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from empirical.steps.contract import Problem

Rates = tuple[Tensor, Tensor]


class Update:
    """One step of a problem's optimizer for K replicas, as a function of its arguments.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps.contract import Layout
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> problem = Problem(model, Layout.of(model, {}), torch.zeros(1, 1), torch.zeros(1).long(), theory.SGD())
    >>> rate, decay = torch.tensor([[0.5]]), torch.tensor([[0.0]])
    >>> Update(problem)(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]]), (), (rate, rate), (decay, decay))[0]
    tensor([[0., 2.]])
    """

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        self._optimizer, self._fixed, self._measured = problem.optimizer, problem.fixed, layout.measured
        others = torch.arange(layout.size, device=problem.inputs.device) >= layout.measured
        self._others = others if layout.measured < layout.size else None

    def __call__(
        self, weights: Tensor, gradient: Tensor, slots: tuple[Tensor, ...], lr: Rates, wd: Rates
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return weights and slots after the step.

        Parameters
        ----------
        weights, gradient : shape (K, P).
        slots : as in `State`.
        lr, wd : of the measured and of the other weights, each of shape (K, 1).
        """
        rates, decays = self._of_each(*lr), self._of_each(*wd)
        if self._fixed == "effective_lr":
            square = weights[:, : self._measured].square().sum(dim=1, keepdim=True)
            gradient = gradient * self._of_each(square, torch.ones_like(square))
        if self._fixed != "norm":
            return self._optimizer.update(weights, gradient, slots, rates, decays)
        *own, held = slots
        following, own = self._optimizer.update(weights, gradient, tuple(own), rates, decays)
        norm = following[:, : self._measured].norm(dim=1, keepdim=True)
        return following * self._of_each(held / norm, torch.ones_like(norm)), (*own, held)

    def _of_each(self, measured: Tensor, other: Tensor) -> Tensor:
        """Values of every weight, or the one of all."""
        return measured if self._others is None else torch.where(self._others, other, measured)
