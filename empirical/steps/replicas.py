"""Training steps of many replicas at once with PyTorch's fused layers; on a GPU as a captured graph."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from empirical.networks.normalization import fuse_layers
from empirical.steps.contract import Hyper, Problem, TrainingState
from empirical.steps.telemetry import records, scalar_products
from empirical.steps.update import Update

# number of steps for which the buffers of a captured step are filled at once
_CAPACITY = 256
# number of weights that a CPU updates and measures together, so that they fit into its cache
_IN_CACHE = 2**17


class ReplicaEngine:
    """Engine with all replicas in the same tensors. The number of PyTorch calls does not depend on that of replicas.

    A single replica is a plain module with PyTorch's fused normalization and channels-last images. Several replicas use
    `torch.func.vmap`. No operation inside a call waits for the device.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps.contract import WeightLayout
    >>> model = torch.nn.Linear(3, 2, bias=False)
    >>> layout = WeightLayout.of(model, {"weight": ("weight",)})
    >>> problem = Problem(model, layout, torch.randn(8, 3), torch.zeros(8).long(), theory.SGD())
    >>> one = TrainingState.of(problem)
    >>> state = TrainingState(one.weights.repeat(4, 1), {})
    >>> lrs = torch.tensor([[0.1], [0.2], [0.3], [0.4]]).expand(4, 5)
    >>> state, rows = ReplicaEngine(problem).advance(state, Hyper(lrs, lrs, torch.zeros(4)),
    ...                                              torch.zeros(4, 5, 6).long())
    >>> rows.shape
    (4, 5)
    """

    def __init__(self, problem: Problem) -> None:
        inputs = problem.inputs
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        self._problem = dataclasses.replace(problem, inputs=inputs)
        self._replicas: dict[int, Replicas] = {}
        self._captured: dict[tuple[int, ...], _CapturedStep] = {}

    def advance(self, state: TrainingState, hyper: Hyper, indices: Tensor) -> tuple[TrainingState, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        count, steps = indices.shape[:2]
        if count not in self._replicas:
            self._replicas[count] = self._new_replicas(count)
        replicas = self._replicas[count]
        replicas.load(state)
        device, batches = replicas.weights.device, indices.transpose(0, 1)
        lrs, other_lrs = hyper.lrs(replicas.weights)
        for own, new in zip(replicas.decays, hyper.wds(replicas.weights), strict=True):
            own.copy_(new)
        groups = len(self._problem.layout.groups)
        products = torch.empty(steps, count, groups, 3, 3, dtype=torch.float64, device=device)
        losses = torch.empty(steps, count, dtype=torch.float64, device=device)
        if self._is_captured():
            shape = (count, indices.shape[2])
            if shape not in self._captured:
                self._captured[shape] = _CapturedStep(replicas, *shape, groups)
            self._captured[shape].run(batches, lrs, other_lrs, products, losses)
        else:
            for t in range(steps):
                replicas.step(batches[t], lrs[t], other_lrs[t], products[t], losses[t])
        rows = records(
            products.transpose(0, 1).cpu().numpy(), losses.T.cpu().numpy(), hyper.lr[:, :steps].cpu().numpy()
        )
        return replicas.state(), rows

    def _is_captured(self) -> bool:
        return self._problem.inputs.device.type == "cuda"

    def _new_replicas(self, count: int) -> Replicas:
        return Replicas(self._problem, count)


class Replicas:
    """Tensors of K replicas. They are updated in place, so that a GPU can capture a step."""

    def __init__(self, problem: Problem, count: int, *, fused: bool = True) -> None:
        layout, device = problem.layout, problem.inputs.device
        start = TrainingState.of(problem)
        self.count, self.problem = count, problem
        model = copy.deepcopy(problem.model).train()
        self.model = fuse_layers(model) if fused else model
        self.weights = start.weights.repeat(count, 1)
        self._gradient = torch.zeros_like(self.weights)
        self.slots = tuple(slot.repeat(count, 1) for slot in start.slots)
        self._buffers = {
            name: buffer.repeat(count, *(1 for _ in buffer.shape[1:])) for name, buffer in start.buffers.items()
        }
        self.optimize = Update(problem)
        at_once = count if device.type == "cuda" else max(1, _IN_CACHE // max(layout.size, 1))
        self._parts = [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]
        self.decays = tuple(torch.empty(count, 1, dtype=self.weights.dtype, device=device) for _ in "ab")
        self._leaves: dict[str, Tensor] = {}
        self._slopes: dict[str, Tensor] = {}
        parameters = dict(self.model.named_parameters())
        for name, (place, shape) in layout.places.items():
            value = self.weights[:, place].view(count, *shape)
            slope = self._gradient[:, place].view(count, *shape)
            if count == 1:
                parameters[name].data, parameters[name].grad = value[0], slope[0]
            else:
                self._leaves[name] = value.requires_grad_()
                self._slopes[name] = slope

    def load(self, state: TrainingState) -> None:
        """Set the tensors to a state."""
        for own, new in ((self.weights, state.weights), *zip(self.slots, state.slots, strict=True)):
            own.data.copy_(new)
        for name, buffer in self.model.named_buffers() if self.count == 1 else self._buffers.items():
            buffer.copy_(state.buffers[name][0] if self.count == 1 else state.buffers[name])

    def state(self) -> TrainingState:
        """Return a copy of the current state."""
        buffers = self._buffers
        if self.count == 1:
            buffers = {name: buffer[None] for name, buffer in self.model.named_buffers()}
        return TrainingState(
            self.weights.detach().clone(),
            {name: buffer.detach().clone() for name, buffer in buffers.items()},
            tuple(slot.clone() for slot in self.slots),
        )

    def step(self, batch: Tensor, lr: Tensor, other_lr: Tensor, products: Tensor, losses: Tensor) -> None:
        """Make one step of every replica, and write its telemetry into `products` and `losses`.

        Shapes: `batch` (K, samples), `lr` and `other_lr` (K, 1), `products` (K, groups, 3, 3), `losses` (K,).
        """
        losses.zero_()
        for number, part in enumerate(self.problem.parts(batch)):
            loss = self.loss(part) * (part.shape[1] / batch.shape[1])
            self._backward(loss.sum(), is_first=number == 0)
            losses.add_(loss.detach())
        with torch.no_grad():
            self.update(lr, other_lr, products)

    def _backward(self, loss: Tensor, *, is_first: bool) -> None:
        """Write the gradient of the first part of the mini-batch, or add that of a later part."""
        if self.count == 1:
            if is_first:
                self._gradient.zero_()
            loss.backward()
            return
        gradients = torch.autograd.grad(loss, list(self._leaves.values()), allow_unused=True)
        for own, new in zip(self._slopes.values(), gradients, strict=True):
            if is_first:
                own.zero_()
            if new is not None:
                own.add_(new)

    def loss(self, batch: Tensor) -> Tensor:
        """Mini-batch loss of every replica, shape (K,)."""
        targets, samples = self.problem.targets[batch].reshape(-1), batch.shape[1]
        with self.problem.precision():
            if self.count == 1:
                scores = self.model(self.problem.samples(batch[0]))
            else:
                scores = vmap(self._scores, randomness="different")(
                    self._leaves, self._buffers, self.problem.samples(batch)
                ).flatten(0, 1)
        # with classes before samples, the inner loops of the softmax run along the samples
        columns = scores.to(self.weights.dtype).T.contiguous()
        sample_losses = cross_entropy(columns[None], targets[None], reduction="none")
        return sample_losses.view(self.count, samples).mean(dim=1)

    def _scores(self, leaves: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Any:
        return functional_call(self.model, (leaves, buffers), (inputs,))

    def update(self, lr: Tensor, other_lr: Tensor, products: Tensor) -> None:
        """Apply the optimizer to the gradient, and measure the step."""
        groups = list(self.problem.layout.groups.values())
        for part in self._parts:
            weights, gradient, slots = self.weights[part], self._gradient[part], tuple(s[part] for s in self.slots)
            lrs, wds = (lr[part], other_lr[part]), (self.decays[0][part], self.decays[1][part])
            following, changed = self.optimize(weights, gradient, slots, lrs, wds)
            scalar_products(weights, gradient, following, groups, products[part])
            weights.copy_(following)
            for own, new in zip(slots, changed, strict=True):
                own.copy_(new)


class _CapturedStep:
    """One step as a CUDA graph. A counter on the device selects the row of the buffers.

    Without a GPU the same step runs uncaptured, for tests.
    """

    def __init__(self, replicas: Replicas, count: int, samples: int, groups: int) -> None:
        device, dtype = replicas.weights.device, replicas.weights.dtype
        self._replicas = replicas
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._batches = torch.zeros(_CAPACITY, count, samples, dtype=torch.int64, device=device)
        self._lrs, self._other_lrs = (torch.zeros(_CAPACITY, count, 1, dtype=dtype, device=device) for _ in "ab")
        self._products = torch.zeros(_CAPACITY, count, groups, 3, 3, dtype=torch.float64, device=device)
        self._losses = torch.zeros(_CAPACITY, count, dtype=torch.float64, device=device)
        self._graph: Any = None
        if device.type == "cuda":
            self._capture()

    def _capture(self) -> None:
        before = self._replicas.state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # libraries select algorithms and allocate memory in the first calls
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()
        self._replicas.load(before)

    def _step(self) -> None:
        replicas, at = self._replicas, self._at
        batch, lr, other_lr = (b.index_select(0, at)[0] for b in (self._batches, self._lrs, self._other_lrs))
        products, losses = torch.empty_like(self._products[0]), torch.empty_like(self._losses[0])
        replicas.step(batch, lr, other_lr, products, losses)
        self._products.index_copy_(0, at, products[None])
        self._losses.index_copy_(0, at, losses[None])
        self._at += 1

    def run(self, batches: Tensor, lrs: Tensor, other_lrs: Tensor, products: Tensor, losses: Tensor) -> None:
        """Make one step per row of the arguments, and write the telemetry into `products` and `losses`."""
        for start in range(0, len(batches), _CAPACITY):
            part = slice(start, start + _CAPACITY)
            count = len(batches[part])
            for buffer, new in ((self._batches, batches), (self._lrs, lrs), (self._other_lrs, other_lrs)):
                buffer[:count] = new[part]
            self._at.zero_()
            for _ in range(count):
                if self._graph is None:
                    self._step()
                else:
                    self._graph.replay()
            products[part] = self._products[:count]
            losses[part] = self._losses[:count]
