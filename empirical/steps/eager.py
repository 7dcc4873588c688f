"""Training steps with plain autograd: slow, for any model, and the oracle of every faster engine."""

from __future__ import annotations

import copy
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical.steps.contract import Hyper, Problem, State
from empirical.steps.telemetry import records, scalar_products


class EagerEngine:
    """One module for each replica, whose parameters and gradients are views into flat vectors.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps.contract import Layout
    >>> model = nn.Linear(3, 2, bias=False)
    >>> problem = Problem(model, Layout.of(model, {"weight": ("weight",)}), torch.randn(8, 3), torch.zeros(8).long(),
    ...                   theory.SGD())
    >>> state = State.of(problem)
    >>> hyper = Hyper(torch.full((1, 5), 0.1), torch.full((1, 5), 0.1), torch.tensor([0.01]))
    >>> state, rows = EagerEngine(problem).advance(state, hyper, torch.zeros(1, 5, 4).long())
    >>> rows.shape
    (1, 5)
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._replicas: list[_Replica] = []

    def advance(self, state: State, hyper: Hyper, indices: Tensor) -> tuple[State, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        replicas, steps = indices.shape[:2]
        while len(self._replicas) < replicas:
            self._replicas.append(_Replica(self.problem))
        layout, inputs, targets = self.problem.layout, self.problem.inputs, self.problem.targets
        slices = list(layout.groups.values())
        device, measured = inputs.device, layout.measured
        products = torch.empty(replicas, steps, len(slices), 3, 3, dtype=torch.float64, device=device)
        losses = torch.empty(replicas, steps, dtype=torch.float64, device=device)
        update = self.problem.optimizer.update
        weights = torch.empty_like(state.weights)
        buffers: list[dict[str, Tensor]] = []
        all_slots: list[tuple[Tensor, ...]] = []
        for k, replica in enumerate(self._replicas[:replicas]):
            state.write_into(replica.model, layout, k)
            flat, gradient, decay = replica.weights, replica.gradient, float(hyper.wd[k])
            rates, other_rates = hyper.lr[k].tolist(), hyper.other_lr[k].tolist()
            others = torch.arange(layout.size, device=device) >= measured
            slots = tuple(slot[k] for slot in state.slots)
            for t in range(steps):
                batch = indices[k, t]
                gradient.zero_()
                with self.problem.precision():
                    scores = replica.model(inputs[batch])
                loss = cross_entropy(scores.to(flat.dtype), targets[batch])
                loss.backward()
                with torch.no_grad():
                    losses[k, t] = loss.detach()
                    rate = rates[t] if rates[t] == other_rates[t] else torch.where(others, other_rates[t], rates[t])
                    following, slots = update(flat, gradient, slots, rate, decay)
                    scalar_products(flat[None], gradient[None], following[None], slices, products[k, t][None])
                    flat.copy_(following)
            weights[k] = flat
            all_slots.append(slots)
            buffers.append({name: buffer.detach().clone() for name, buffer in replica.model.named_buffers()})
        after = State(
            weights,
            {name: torch.stack([b[name] for b in buffers]) for name in state.buffers},
            tuple(torch.stack(slot) for slot in zip(*all_slots, strict=True)),
        )
        return after, records(products.cpu().numpy(), losses.cpu().numpy(), hyper.lr[:, :steps].cpu().numpy())


class _Replica:
    """A module whose trained parameters are views of `weights`, their gradients views of `gradient`."""

    def __init__(self, problem: Problem) -> None:
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
