"""The contract of training steps: many replicas of one network advance side by side, and every step is measured."""

from __future__ import annotations

from collections.abc import Mapping
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

    With `autocast` the matrix products of the network are done in that type; the weights keep theirs.
    """

    model: nn.Module
    layout: Layout
    inputs: Tensor
    targets: Tensor
    optimizer: theory.Optimizer
    autocast: torch.dtype | None = None

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
    slots : the optimizer's state, each of shape (K, P) or (K, 1).
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
        return cls(weights, buffers, problem.optimizer.start(weights))

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
    wd : λ, float64 of shape (K,).
    """

    lr: Tensor
    other_lr: Tensor
    wd: Tensor


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
