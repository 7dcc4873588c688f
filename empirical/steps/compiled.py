"""Training steps with `torch.compile`: optional, because it needs a compiler."""

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
from empirical.steps.update import Pair


class CompiledEngine(ReplicaEngine):
    """Steps of `ReplicaEngine` as one compiled function of the weights. The first step takes ten seconds or more.

    Raises
    ------
    ValueError : no compiler works, training changes buffers of the model, or micro-batches are used.
    """

    def __init__(self, problem: Problem) -> None:
        changing_buffers = [
            f"{owner}.{name}".lstrip(".")
            for owner, module in problem.model.named_modules()
            if not isinstance(module, BatchNorm)
            for name, _ in module.named_buffers(recurse=False)
        ]
        trouble = f"training may change its buffer {changing_buffers[0]!r}" if changing_buffers else ""
        trouble = trouble or ("its mini-batches go through the network in parts" if problem.micro_batch else "")
        trouble = trouble or compiler_error(problem.inputs.device.type)
        if trouble:
            raise ValueError(f"engine must be one that can train this network here, got 'compiled', but {trouble}")
        super().__init__(problem)

    def _new_replicas(self, count: int) -> Replicas:
        return _CompiledReplicas(self._problem, count)


@functools.cache
def compiler_error(device: str) -> str:
    """Return the reason why `torch.compile` does not work here; '' if it works.

    Examples
    --------
    >>> isinstance(compiler_error("cpu"), str)
    True
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing or broken compiler may raise anything
        first = str(error).strip().partition("\n")[0]
        return f"torch.compile does not work on this machine ({type(error).__name__}: {first})"
    return ""


class _CompiledReplicas(Replicas):
    def __init__(self, problem: Problem, count: int) -> None:
        # the compiler optimizes plain layers better than fused ones
        super().__init__(problem, count, fused=False)
        self._compiled: Any = torch.compile(self._compute_step)

    def step(self, batch: Tensor, lr: Tensor, other_lr: Tensor, products: Tensor, losses: Tensor) -> None:
        """Make one step of every replica; see `Replicas.step`."""
        weights = self.weights.detach()
        following, slots, loss, gradient = self._compiled(
            weights, self.slots, self.problem.samples(batch), self.problem.targets[batch], (lr, other_lr)
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

    def _compute_step(
        self, weights: Tensor, slots: tuple[Tensor, ...], inputs: Tensor, targets: Tensor, lrs: Pair
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        gradient, loss = vmap(grad_and_value(self._loss), randomness="different")(weights, inputs, targets)
        following, slots = self.optimize(weights, gradient, slots, lrs, (self.decays[0], self.decays[1]))
        return following, slots, loss, gradient
