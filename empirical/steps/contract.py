"""Interface of training steps: replicas of one network train side by side, and every step is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

import theory


@dataclass(frozen=True)
class WeightLayout:
    """Position of each trained parameter in the flat vector of weights.

    The measured (scale-invariant) weights come first, group by group. They use `lr` and `wd`, the others `other_lr` and
    `other_wd`.

    Attributes
    ----------
    places : slice of the flat vector and shape of each parameter, by name, in flat order.
    groups : slice of each measured group, by name.
    """

    places: Mapping[str, tuple[slice, torch.Size]]
    groups: Mapping[str, slice]

    @classmethod
    def of(cls, model: nn.Module, groups: Mapping[str, tuple[str, ...]]) -> WeightLayout:
        """Build the layout of the parameters of a model that require a gradient.

        `groups` has the names of the parameters of each measured group. A parameter is in at most one group.
        """
        shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        grouped = [name for members in groups.values() for name in members]
        places: dict[str, tuple[slice, torch.Size]] = {}
        start = 0
        for name in [*grouped, *(name for name in shapes if name not in grouped)]:
            places[name] = (slice(start, start + shapes[name].numel()), shapes[name])
            start += shapes[name].numel()
        slices = {g: slice(places[names[0]][0].start, places[names[-1]][0].stop) for g, names in groups.items()}
        return cls(places, slices)

    @property
    def size(self) -> int:
        """Number of trained weights P."""
        return max((place.stop for place, _ in self.places.values()), default=0)

    @property
    def measured_size(self) -> int:
        """Number of measured weights, which are the first of the flat vector."""
        return max((place.stop for place in self.groups.values()), default=0)


@dataclass(frozen=True)
class Problem:
    """Training problem: a network, the layout of its weights, the training samples and the optimizer.

    Attributes
    ----------
    model, layout, inputs, targets, optimizer : the parts of the problem; `inputs` and `targets` are all samples.
    autocast : type of matrix products; None for the type of the weights.
    fixed : None, "norm" or "effective_lr", see `RunConfig`.
    micro_batch : number of samples per forward pass; None for the whole mini-batch.
    transform : function applied to the samples of a mini-batch before the network; None for no change.
    """

    model: nn.Module
    layout: WeightLayout
    inputs: Tensor
    targets: Tensor
    optimizer: theory.Optimizer
    autocast: torch.dtype | None = None
    fixed: str | None = None
    micro_batch: int | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def samples(self, batch: Tensor) -> Tensor:
        """Samples of a mini-batch as network input. `batch` holds sample numbers and can have any shape."""
        gathered = self.inputs[batch.reshape(-1)]
        if self.transform is not None:
            gathered = self.transform(gathered)
        return gathered if batch.ndim == 1 else gathered.unflatten(0, batch.shape)

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Split mini-batches (…, samples) into the parts of one forward pass."""
        parts: tuple[Tensor, ...] = batch.split(self.micro_batch or batch.shape[-1], dim=-1)
        return parts

    def precision(self) -> torch.autocast:
        """Context manager for calls of the network, with the right autocast."""
        return torch.autocast(
            self.inputs.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )


@dataclass(frozen=True)
class TrainingState:
    """State of training: everything that a step changes. The first axis is that of the K replicas.

    Attributes
    ----------
    weights : flat trained weights, shape (K, P).
    buffers : buffers of the model, each of shape (K, …).
    slots : state of the optimizer, each of shape (K, P) or (K, 1). If the norm is fixed, the last slot is that norm.
    """

    weights: Tensor
    buffers: Mapping[str, Tensor]
    slots: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> TrainingState:
        """Read the state of one replica (K = 1) from the model of a problem."""
        parameters = dict(problem.model.named_parameters())
        flat = [parameters[name].detach().reshape(-1) for name in problem.layout.places]
        buffers = {name: buffer.detach().clone()[None] for name, buffer in problem.model.named_buffers()}
        weights = torch.cat(flat)[None].clone() if flat else torch.empty(1, 0)
        slots = problem.optimizer.start(weights)
        if problem.fixed == "norm":
            slots = (*slots, weights[:, : problem.layout.measured_size].norm(dim=1, keepdim=True))
        return cls(weights, buffers, slots)

    @classmethod
    def join(cls, states: Sequence[TrainingState]) -> TrainingState:
        """Join the states of several replicas to one."""
        return cls(
            torch.cat([state.weights for state in states]),
            {name: torch.cat([state.buffers[name] for state in states]) for name in states[0].buffers},
            tuple(torch.cat(slots) for slots in zip(*(state.slots for state in states), strict=True)),
        )

    def replica(self, number: int) -> TrainingState:
        """State of one replica."""
        own = slice(number, number + 1)
        # cloned, because saving a view would save the whole tensor
        buffers = {name: buffer[own].clone() for name, buffer in self.buffers.items()}
        return TrainingState(self.weights[own].clone(), buffers, tuple(slot[own].clone() for slot in self.slots))

    def write_into(self, model: nn.Module, layout: WeightLayout, replica: int = 0) -> None:
        """Copy weights and buffers of one replica into a model of the same architecture."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, (place, shape) in layout.places.items():
                parameters[name].copy_(self.weights[replica, place].view(shape))
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][replica])


@dataclass(frozen=True)
class Hyper:
    """Learning rates and weight decay of the steps of one call.

    Attributes
    ----------
    lr, other_lr : η of each step for the measured and the other weights, float64 of shape (K, steps).
    wd, other_wd : λ for the measured and the other weights, float64 of shape (K,). `other_wd=None` means `wd`.
    """

    lr: Tensor
    other_lr: Tensor
    wd: Tensor
    other_wd: Tensor | None = None

    @classmethod
    def join(cls, hypers: Sequence[Hyper]) -> Hyper:
        """Join the settings of several replicas to one."""
        return cls(
            torch.cat([hyper.lr for hyper in hypers]),
            torch.cat([hyper.other_lr for hyper in hypers]),
            torch.cat([hyper.wd for hyper in hypers]),
            torch.cat([hyper.wd if hyper.other_wd is None else hyper.other_wd for hyper in hypers]),
        )

    def lrs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both learning rates with the type and device of a tensor, each of shape (steps, K, 1)."""
        of_measured, of_others = (
            lr.T.to(device=like.device, dtype=like.dtype)[..., None].contiguous() for lr in (self.lr, self.other_lr)
        )
        return of_measured, of_others

    def wds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both weight decays with the type and device of a tensor, each of shape (K, 1)."""
        of_measured, of_others = (
            wd.to(device=like.device, dtype=like.dtype)[:, None]
            for wd in (self.wd, self.wd if self.other_wd is None else self.other_wd)
        )
        return of_measured, of_others


class Engine(Protocol):
    """Interface that every engine implements. An engine makes training steps.

    To add an engine:

    1. `advance` must be a pure function. Equal calls give equal results, it does not change its arguments, and the
       result does not depend on how the steps are split into calls.
    2. It returns the state after the last step and one log record per step. `steps.telemetry` computes the record from
       the weights before the step, the gradient of the mini-batch loss, and the weights after the step.
    3. Add the engine to `ENGINES`. The conformance tests then compare it with the eager engine.
    """

    def __init__(self, problem: Problem) -> None: ...

    def advance(self, state: TrainingState, hyper: Hyper, indices: Tensor) -> tuple[TrainingState, npt.NDArray[Any]]:
        """Make one step for each mini-batch of `indices`.

        Parameters
        ----------
        state : state of K replicas.
        hyper : learning rates and weight decay.
        indices : sample numbers of the mini-batches, shape (K, steps, batch).

        Returns
        -------
        state after the steps, and log records of shape (K, steps).
        """
