"""The contract of training steps: many replicas of one network advance side by side, and every step is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

import theory


@dataclass(frozen=True)
class Layout:
    """Where each trained parameter lies in the flat vector of weights.

    The measured (scale-invariant) weights come first, group by group; they move with `lr`, the rest with `other_lr`.

    Attributes
    ----------
    places : slice of the flat vector and shape, by parameter name, in flat order.
    groups : slice of each measured group, by name.
    """

    places: Mapping[str, tuple[slice, torch.Size]]
    groups: Mapping[str, slice]

    @classmethod
    def of(cls, model: nn.Module, groups: Mapping[str, tuple[str, ...]]) -> Layout:
        """Lay out the parameters of a model that require a gradient.

        Parameters
        ----------
        model : its parameters.
        groups : names of the parameters of each measured group; a parameter belongs to one group at most.

        Examples
        --------
        >>> layout = Layout.of(nn.Linear(3, 2), {"weight": ("weight",)})
        >>> layout.size, layout.measured, layout.places["bias"][0]
        (8, 6, slice(6, 8, None))
        """
        shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        grouped = [name for members in groups.values() for name in members]
        places: dict[str, tuple[slice, torch.Size]] = {}
        at = 0
        for name in [*grouped, *(name for name in shapes if name not in grouped)]:
            places[name] = (slice(at, at + shapes[name].numel()), shapes[name])
            at += shapes[name].numel()
        slices = {g: slice(places[names[0]][0].start, places[names[-1]][0].stop) for g, names in groups.items()}
        return cls(places, slices)

    @property
    def size(self) -> int:
        """Number of trained weights P."""
        return max((place.stop for place, _ in self.places.values()), default=0)

    @property
    def measured(self) -> int:
        """Number of measured weights, the first of the flat vector."""
        return max((place.stop for place in self.groups.values()), default=0)


@dataclass(frozen=True)
class Problem:
    """What is trained: a network, its layout, the training samples, the optimizer.

    Attributes
    ----------
    autocast : type of the matrix products of the network, if not that of the weights.
    fixed : None, "norm" or "effective_lr" of the measured weights; see `RunConfig`.
    micro_batch : samples of a mini-batch that go through the network at a time; None: all.
    prepare : what is done to the gathered samples of a mini-batch before the network gets them.
    """

    model: nn.Module
    layout: Layout
    inputs: Tensor
    targets: Tensor
    optimizer: theory.Optimizer
    autocast: torch.dtype | None = None
    fixed: str | None = None
    micro_batch: int | None = None
    prepare: Callable[[Tensor], Tensor] | None = None

    def samples(self, batch: Tensor) -> Tensor:
        """Samples of a mini-batch, as the network gets them; `batch` holds sample numbers, of any shape.

        Examples
        --------
        >>> model = nn.Linear(1, 1)
        >>> problem = Problem(model, Layout.of(model, {}), torch.tensor([[1.0], [2.0]]), torch.zeros(2), theory.SGD())
        >>> problem.samples(torch.tensor([1, 1]))
        tensor([[2.],
                [2.]])
        """
        gathered = self.inputs[batch.reshape(-1)]
        if self.prepare is not None:
            gathered = self.prepare(gathered)
        return gathered if batch.ndim == 1 else gathered.unflatten(0, batch.shape)

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Cut mini-batches (…, samples) into what goes through the network at a time.

        Examples
        --------
        >>> model = nn.Linear(1, 1)
        >>> layout, inputs = Layout.of(model, {}), torch.zeros(9, 1)
        >>> problem = Problem(model, layout, inputs, torch.zeros(9), theory.SGD(), micro_batch=4)
        >>> [len(part) for part in problem.parts(torch.arange(9))]
        [4, 4, 1]
        """
        parts: tuple[Tensor, ...] = batch.split(self.micro_batch or batch.shape[-1], dim=-1)
        return parts

    def precision(self) -> torch.autocast:
        """Context in which the network has to be called.

        Examples
        --------
        >>> model = nn.Linear(3, 2)
        >>> layout, one = Layout.of(model, {}), torch.zeros(1, 3)
        >>> problem = Problem(model, layout, one, torch.zeros(1), theory.SGD(), autocast=torch.bfloat16)
        >>> with problem.precision():
        ...     problem.model(problem.inputs).dtype
        torch.bfloat16
        """
        return torch.autocast(
            self.inputs.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )


@dataclass(frozen=True)
class State:
    """All that a step changes, with the replicas as leading axis K.

    Attributes
    ----------
    weights : flat trained weights, shape (K, P).
    buffers : the model's buffers, each of shape (K, …).
    slots : the optimizer's state, each of shape (K, P) or (K, 1); where the norm is fixed, it is the last.
    """

    weights: Tensor
    buffers: Mapping[str, Tensor]
    slots: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> State:
        """State of one replica (K = 1), read from the problem's model.

        Examples
        --------
        >>> model = nn.Linear(3, 2)
        >>> problem = Problem(model, Layout.of(model, {}), torch.zeros(1, 3), torch.zeros(1), theory.SGD())
        >>> State.of(problem).weights.shape
        torch.Size([1, 8])
        """
        parameters = dict(problem.model.named_parameters())
        flat = [parameters[name].detach().reshape(-1) for name in problem.layout.places]
        buffers = {name: buffer.detach().clone()[None] for name, buffer in problem.model.named_buffers()}
        weights = torch.cat(flat)[None].clone() if flat else torch.empty(1, 0)
        slots = problem.optimizer.start(weights)
        if problem.fixed == "norm":
            slots = (*slots, weights[:, : problem.layout.measured].norm(dim=1, keepdim=True))
        return cls(weights, buffers, slots)

    @classmethod
    def joined(cls, states: Sequence[State]) -> State:
        """States of several replicas as one.

        Examples
        --------
        >>> one = State(torch.tensor([[1.0, 2.0]]), {})
        >>> State.joined([one, one]).weights.shape
        torch.Size([2, 2])
        """
        return cls(
            torch.cat([state.weights for state in states]),
            {name: torch.cat([state.buffers[name] for state in states]) for name in states[0].buffers},
            tuple(torch.cat(slots) for slots in zip(*(state.slots for state in states), strict=True)),
        )

    def replica(self, number: int) -> State:
        """State of one replica.

        Examples
        --------
        >>> State(torch.tensor([[1.0], [2.0]]), {}).replica(1).weights
        tensor([[2.]])
        """
        own = slice(number, number + 1)
        # a view would be saved with all that it is a view of
        buffers = {name: buffer[own].clone() for name, buffer in self.buffers.items()}
        return State(self.weights[own].clone(), buffers, tuple(slot[own].clone() for slot in self.slots))

    def write_into(self, model: nn.Module, layout: Layout, replica: int = 0) -> None:
        """Copy weights and buffers of one replica into a model of the same architecture.

        Examples
        --------
        >>> model = nn.Linear(2, 1, bias=False)
        >>> State(torch.tensor([[1.0, 2.0]]), {}).write_into(model, Layout.of(model, {}))
        >>> model.weight.tolist()
        [[1.0, 2.0]]
        """
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, (place, shape) in layout.places.items():
                parameters[name].copy_(self.weights[replica, place].view(shape))
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][replica])


@dataclass(frozen=True)
class Hyper:
    """Settings of the steps of one call.

    Attributes
    ----------
    lr, other_lr : η of each step of the measured and of the other weights, float64 of shape (K, steps).
    wd, other_wd : λ, float64 of shape (K,); `other_wd` None is that of the measured weights.
    """

    lr: Tensor
    other_lr: Tensor
    wd: Tensor
    other_wd: Tensor | None = None

    @classmethod
    def joined(cls, hypers: Sequence[Hyper]) -> Hyper:
        """Settings of several replicas as one.

        Examples
        --------
        >>> rates = torch.full((1, 5), 0.1)
        >>> Hyper.joined([Hyper(rates, rates, torch.zeros(1))] * 3).lr.shape
        torch.Size([3, 5])
        """
        return cls(
            torch.cat([hyper.lr for hyper in hypers]),
            torch.cat([hyper.other_lr for hyper in hypers]),
            torch.cat([hyper.wd for hyper in hypers]),
            torch.cat([hyper.wd if hyper.other_wd is None else hyper.other_wd for hyper in hypers]),
        )

    def rates(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both learning rates, of the type and device of a tensor, each of shape (steps, K, 1)."""
        of_measured, of_others = (
            rates.T.to(device=like.device, dtype=like.dtype)[..., None].contiguous()
            for rates in (self.lr, self.other_lr)
        )
        return of_measured, of_others

    def decays(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both weight decays, of the type and device of a tensor, each of shape (K, 1)."""
        of_measured, of_others = (
            decay.to(device=like.device, dtype=like.dtype)[:, None]
            for decay in (self.wd, self.wd if self.other_wd is None else self.other_wd)
        )
        return of_measured, of_others


class Engine(Protocol):
    """A way to make training steps.

    To add one:

    1. `advance` is a function of its arguments: the same call gives the same result, however the steps are cut into
       calls, and it changes none of its arguments.
    2. It returns the state after the last step and one log record for each step, computed by `steps.telemetry` from
       the weights before the step, the gradient of the mini-batch loss there and the change.
    3. List it in `ENGINES`; the conformance tests of engines then hold it against the eager one.
    """

    def __init__(self, problem: Problem) -> None: ...

    def advance(self, state: State, hyper: Hyper, indices: Tensor) -> tuple[State, npt.NDArray[Any]]:
        """Make as many steps as `indices` has.

        Parameters
        ----------
        state : of K replicas.
        hyper : learning rates and weight decay.
        indices : sample numbers of the mini-batches, shape (K, steps, batch).

        Returns
        -------
        state after the steps, and records of shape (K, steps).
        """
