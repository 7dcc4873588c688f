"""Training steps with plain autograd: slow, for any model, and the reference for faster engines."""

from __future__ import annotations

import copy
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical.steps.contract import Hyper, Problem, TrainingState
from empirical.steps.telemetry import records, scalar_products
from empirical.steps.update import Update


class EagerEngine:
    """Engine with one module per replica, whose parameters and gradients are views of flat vectors.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps.contract import WeightLayout
    >>> model = nn.Linear(3, 2, bias=False)
    >>> layout = WeightLayout.of(model, {"weight": ("weight",)})
    >>> problem = Problem(model, layout, torch.randn(8, 3), torch.zeros(8).long(), theory.SGD())
    >>> state = TrainingState.of(problem)
    >>> hyper = Hyper(torch.full((1, 5), 0.1), torch.full((1, 5), 0.1), torch.tensor([0.01]))
    >>> state, rows = EagerEngine(problem).advance(state, hyper, torch.zeros(1, 5, 4).long())
    >>> rows.shape
    (1, 5)
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._replicas: list[_Replica] = []

    def advance(self, state: TrainingState, hyper: Hyper, indices: Tensor) -> tuple[TrainingState, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        replicas, steps = indices.shape[:2]
        while len(self._replicas) < replicas:
            self._replicas.append(_Replica(self.problem))
        problem, layout = self.problem, self.problem.layout
        slices, device = list(layout.groups.values()), problem.inputs.device
        products = torch.empty(replicas, steps, len(slices), 3, 3, dtype=torch.float64, device=device)
        losses = torch.zeros(replicas, steps, dtype=torch.float64, device=device)
        weights, update = torch.empty_like(state.weights), Update(problem)
        (lr, other_lr), decays = hyper.lrs(weights), hyper.wds(weights)
        buffers: list[dict[str, Tensor]] = []
        all_slots: list[tuple[Tensor, ...]] = []
        for number, replica in enumerate(self._replicas[:replicas]):
            state.write_into(replica.model, layout, number)
            own, flat, gradient = slice(number, number + 1), replica.weights[None], replica.gradient[None]
            slots, decay = tuple(slot[own] for slot in state.slots), (decays[0][own], decays[1][own])
            for t in range(steps):
                gradient.zero_()
                for part in problem.parts(indices[number, t]):
                    losses[number, t] += replica.backward(part, share=len(part) / indices.shape[2])
                with torch.no_grad():
                    following, slots = update(flat, gradient, slots, (lr[t, own], other_lr[t, own]), decay)
                    scalar_products(flat, gradient, following, slices, products[own, t])
                    flat.copy_(following)
            weights[number] = flat[0]
            all_slots.append(slots)
            buffers.append({name: buffer.detach().clone() for name, buffer in replica.model.named_buffers()})
        after = TrainingState(
            weights,
            {name: torch.stack([b[name] for b in buffers]) for name in state.buffers},
            tuple(torch.cat(slot) for slot in zip(*all_slots, strict=True)),
        )
        return after, records(products.cpu().numpy(), losses.cpu().numpy(), hyper.lr[:, :steps].cpu().numpy())


class _Replica:
    """Module whose trained parameters are views of `weights` and whose gradients are views of `gradient`."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.model: nn.Module = copy.deepcopy(problem.model).train()
        size, like = problem.layout.size, problem.inputs
        dtypes = {p.dtype for p in self.model.parameters() if p.requires_grad}
        dtype = dtypes.pop() if dtypes else like.dtype
        self.weights = torch.empty(size, dtype=dtype, device=like.device)
        self.gradient = torch.zeros(size, dtype=dtype, device=like.device)
        parameters = dict(self.model.named_parameters())
        for name, (place, shape) in problem.layout.places.items():
            parameters[name].data = self.weights[place].view(shape)
            parameters[name].grad = self.gradient[place].view(shape)

    def backward(self, batch: Tensor, share: float) -> Tensor:
        """Add the gradient of `share` times the mean loss of some samples; return this loss."""
        with self._problem.precision():
            scores = self.model(self._problem.samples(batch))
        loss = share * cross_entropy(scores.to(self.weights.dtype), self._problem.targets[batch])
        loss.backward()
        return loss.detach()
