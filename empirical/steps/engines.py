"""Engines: the reference with plain autograd, replicas in fused tensors or captured graphs, and compiled steps."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from empirical.networks.normalization import BatchNorm, fuse_layers
from empirical.steps.contract import Hyper, Problem, TrainingState
from empirical.steps.telemetry import records, scalar_products

# number of weights that a CPU updates and measures together, so that they fit into its cache
_IN_CACHE = 2**17
# values for the measured and for the other weights
_Pair = tuple[Tensor, Tensor]


class _Update:
    """Step of the optimizer for all trained weights of K replicas, with the constraints of `RunConfig.fixed`."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        self._optimizer, self._fixed, self._measured = problem.optimizer, problem.fixed, layout.measured_size
        others = torch.arange(layout.size, device=problem.inputs.device) >= layout.measured_size
        self._others = others if layout.measured_size < layout.size else None

    def __call__(
        self, weights: Tensor, gradient: Tensor, slots: tuple[Tensor, ...], lr: _Pair, wd: _Pair
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return weights (K, P) and slots after the step; `lr` and `wd` have values of shape (K, 1)."""
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


class EagerEngine:
    """Engine with one module per replica, whose parameters and gradients are views of flat vectors."""

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
        weights, update = torch.empty_like(state.weights), _Update(problem)
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


class ReplicaEngine:
    """Engine with all replicas in the same tensors. The number of PyTorch calls does not depend on that of replicas.

    A single replica is a plain module with PyTorch's fused normalization and channels-last images. Several replicas use
    `torch.func.vmap`. No operation inside a call waits for the device.

    A captured step takes its values from buffers for `capacity` steps. Without a GPU, `captures` makes the same steps
    uncaptured, for tests.
    """

    def __init__(self, problem: Problem, *, captures: bool | None = None, capacity: int = 256) -> None:
        inputs = problem.inputs
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        self._problem = dataclasses.replace(problem, inputs=inputs)
        self._replicas: dict[int, _Replicas] = {}
        self._captures = inputs.device.type == "cuda" if captures is None else captures
        self._capacity = capacity
        self._captured: dict[tuple[int, int], _CapturedStep] = {}

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
        if self._captures:
            shape = (count, indices.shape[2])
            if shape not in self._captured:
                self._captured[shape] = _CapturedStep(replicas, shape[1], groups, self._capacity)
            self._captured[shape].run(batches, lrs, other_lrs, products, losses)
        else:
            for t in range(steps):
                replicas.step(batches[t], lrs[t], other_lrs[t], products[t], losses[t])
        rows = records(
            products.transpose(0, 1).cpu().numpy(), losses.T.cpu().numpy(), hyper.lr[:, :steps].cpu().numpy()
        )
        return replicas.state(), rows

    def _new_replicas(self, count: int) -> _Replicas:
        return _Replicas(self._problem, count)


class _Replicas:
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
        self.optimize = _Update(problem)
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
    """One step as a CUDA graph. A counter on the device selects the row of the buffers."""

    def __init__(self, replicas: _Replicas, samples: int, groups: int, capacity: int) -> None:
        device, dtype, count = replicas.weights.device, replicas.weights.dtype, replicas.count
        self._replicas = replicas
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._batches = torch.zeros(capacity, count, samples, dtype=torch.int64, device=device)
        self._lrs, self._other_lrs = (torch.zeros(capacity, count, 1, dtype=dtype, device=device) for _ in "ab")
        self._products = torch.zeros(capacity, count, groups, 3, 3, dtype=torch.float64, device=device)
        self._losses = torch.zeros(capacity, count, dtype=torch.float64, device=device)
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
        capacity = len(self._batches)
        for start in range(0, len(batches), capacity):
            part = slice(start, start + capacity)
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


class CompiledEngine(ReplicaEngine):
    """Steps of `ReplicaEngine` as one compiled function of the weights. The first step takes ten seconds or more.

    It needs a compiler, and a model without micro-batches whose buffers do not change in training.
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

    def _new_replicas(self, count: int) -> _Replicas:
        return _CompiledReplicas(self._problem, count)


@functools.cache
def compiler_error(device: str) -> str:
    """Return the reason why `torch.compile` does not work here; '' if it works."""
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing or broken compiler may raise anything
        first = str(error).strip().partition("\n")[0]
        return f"torch.compile does not work on this machine ({type(error).__name__}: {first})"
    return ""


class _CompiledReplicas(_Replicas):
    def __init__(self, problem: Problem, count: int) -> None:
        # the compiler optimizes plain layers better than fused ones
        super().__init__(problem, count, fused=False)
        self._compiled: Any = torch.compile(self._compute_step)

    def step(self, batch: Tensor, lr: Tensor, other_lr: Tensor, products: Tensor, losses: Tensor) -> None:
        """Make one step of every replica; see `_Replicas.step`."""
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
        self, weights: Tensor, slots: tuple[Tensor, ...], inputs: Tensor, targets: Tensor, lrs: _Pair
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        gradient, loss = vmap(grad_and_value(self._loss), randomness="different")(weights, inputs, targets)
        following, slots = self.optimize(weights, gradient, slots, lrs, (self.decays[0], self.decays[1]))
        return following, slots, loss, gradient
