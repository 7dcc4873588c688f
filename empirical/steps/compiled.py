"""Training steps through `torch.compile`: optional, because it needs a compiler on the machine."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from empirical.networks.normalization import BatchNorm
from empirical.steps.contract import Problem
from empirical.steps.replicas import ReplicaEngine, Replicas
from empirical.steps.telemetry import scalar_products
from empirical.steps.update import Rates


class CompiledEngine(ReplicaEngine):
    """The steps of `ReplicaEngine` as one compiled function of the weights; its first step takes ten seconds or more.

    Raises
    ------
    ValueError : there is no working compiler here, or training changes buffers of the model.
    """

    def __init__(self, problem: Problem) -> None:
        remembering = [
            f"{owner}.{name}".lstrip(".")
            for owner, module in problem.model.named_modules()
            if not isinstance(module, BatchNorm)
            for name, _ in module.named_buffers(recurse=False)
        ]
        trouble = f"training may change its buffer {remembering[0]!r}" if remembering else ""
        trouble = trouble or ("its mini-batches go through the network in parts" if problem.micro_batch else "")
        trouble = trouble or compiler_trouble(problem.inputs.device.type)
        if trouble:
            raise ValueError(f"engine must be one that can train this network here, got 'compiled', but {trouble}")
        super().__init__(problem)

    def _new_replicas(self, count: int) -> Replicas:
        return _CompiledReplicas(self._problem, count)


@functools.cache
def compiler_trouble(device: str) -> str:
    """Say what keeps `torch.compile` from working; '' where it works.

    Examples
    --------
    >>> isinstance(compiler_trouble("cpu"), str)
    True
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        first = str(error).strip().partition("\n")[0]
        return f"torch.compile does not work on this machine ({type(error).__name__}: {first})"
    return ""


class _CompiledReplicas(Replicas):
    def __init__(self, problem: Problem, count: int) -> None:
        # plain layers, which the compiler merges better than fused ones
        super().__init__(problem, count, fused=False)
        self._compiled: Any = torch.compile(self._stepped)

    def step(self, batch: Tensor, rate: Tensor, other_rate: Tensor, products: Tensor, losses: Tensor) -> None:
        """Make one step of each replica; see `Replicas.step`."""
        weights = self.weights.detach()
        following, slots, loss, gradient = self._compiled(
            weights, self.slots, self.problem.samples(batch), self.problem.targets[batch], (rate, other_rate)
        )
        scalar_products(weights, gradient, following, list(self.problem.layout.groups.values()), products)
        losses.copy_(loss)
        weights.copy_(following)
        for own, new in zip(self.slots, slots, strict=True):
            own.copy_(new)

    def _loss(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parts = {name: weights[place].view(shape) for name, (place, shape) in self.problem.layout.places.items()}
        with self.problem.precision():
            scores = functional_call(self.model, parts, (inputs,))
        return cross_entropy(scores.to(weights.dtype), targets)

    def _stepped(
        self, weights: Tensor, slots: tuple[Tensor, ...], inputs: Tensor, targets: Tensor, rates: Rates
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        gradient, loss = vmap(grad_and_value(self._loss), randomness="different")(weights, inputs, targets)
        following, slots = self.optimize(weights, gradient, slots, rates, (self.decays[0], self.decays[1]))
        return following, slots, loss, gradient
