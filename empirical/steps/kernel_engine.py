"""Training steps in compiled code, for fully scale-invariant networks of this package, plain SGD and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl
import torch
from torch import Tensor, nn

import theory
from empirical.networks.normalization import BatchNorm
from empirical.steps._kernels import ConvWork, make_work, train_convnet, train_mlp
from empirical.steps.contract import Hyper, Problem, TrainingState
from empirical.steps.telemetry import records

_MLP = [
    ("flatten", nn.Flatten),
    ("linear1", nn.Linear),
    ("norm1", BatchNorm),
    ("relu1", nn.ReLU),
    ("linear2", nn.Linear),
    ("norm2", BatchNorm),
    ("relu2", nn.ReLU),
    ("head", nn.Linear),
]
_CONVOLUTION = (("conv", nn.Conv2d), ("norm", BatchNorm), ("relu", nn.ReLU))

# Above these numbers PyTorch's convolutions are faster, measured on two kinds of processors.
_FEW_CHANNELS, _FITS_CACHE = 64, 2**20


class KernelEngine:
    """Engine for `networks.mlp` and `networks.convnet` with batch normalization and a frozen head.

    Raises
    ------
    ValueError : the engine cannot train the problem; the message names the condition that is not met.
    """

    def __init__(self, problem: Problem) -> None:
        trouble = _obstacle(problem)
        if trouble:
            raise ValueError(f"engine must be one that can train this network, got 'kernel', but {trouble}")
        model, inputs = problem.model, problem.inputs
        names = _hidden_weights(model)
        self._places = [problem.layout.places[name] for name in names]
        self._order = [names.index(name) for name in problem.layout.groups]
        self._targets = _array(problem.targets)
        head: Any = model.get_submodule("head")
        self._head = _array(head.weight)
        self._bias = np.zeros(len(self._head), self._head.dtype) if head.bias is None else _array(head.bias)
        is_mlp = _parts(model) == _MLP
        self._inputs = _array(inputs.reshape(len(inputs), -1) if is_mlp else inputs)
        self._eps = self._inputs.dtype.type(_normalizations(model)[0].eps)
        self.train_steps = self._train_mlp if is_mlp else self._train_convnet
        self._poolings = [] if is_mlp else _poolings(model)
        self._window = (1, 1) if is_mlp else _last_window(model)
        # work arrays by batch size
        self._work: dict[int, ConvWork] = {}
        # slow, because it searches for the loaded BLAS libraries
        self._blas = threadpoolctl.ThreadpoolController()

    def advance(self, state: TrainingState, hyper: Hyper, indices: Tensor) -> tuple[TrainingState, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        replicas, steps = indices.shape[:2]
        weights = state.weights.numpy().copy()
        samples = np.ascontiguousarray(indices.numpy())
        lrs = np.ascontiguousarray(hyper.lr.numpy(), dtype=np.float64)
        losses = np.empty((replicas, steps))
        products = np.empty((replicas, steps, len(self._places), 3, 3))
        # by default numba's BLAS uses all processors, and their number changes the rounding
        with self._blas.limit(limits=torch.get_num_threads(), user_api="blas"):
            for number in range(replicas):
                layers = tuple(weights[number, place].reshape(shape) for place, shape in self._places)
                decay = float(hyper.wd[number])
                self.train_steps(layers, samples[number], lrs[number], decay, losses[number], products[number])
        after = TrainingState(torch.from_numpy(weights), state.buffers, state.slots)
        return after, records(products[:, :, self._order], losses, lrs[:, :steps])

    def _train_mlp(self, layers: tuple[npt.NDArray[Any], ...], *steps: Any) -> None:
        compiled: Any = train_mlp
        compiled(*layers, self._head, self._inputs, self._targets, self._eps, *steps)

    def _train_convnet(self, layers: tuple[npt.NDArray[Any], ...], *steps: Any) -> None:
        compiled: Any = train_convnet
        batch = steps[0].shape[1]
        if batch not in self._work:
            self._work[batch] = make_work(layers, self._poolings, self._window, self._inputs.shape[1:], batch)
        head = self._head, self._bias
        compiled(layers, self._work[batch], *head, self._inputs, self._targets, self._eps, *steps)


def _obstacle(problem: Problem) -> str:
    """Return the reason why the kernel engine cannot train a problem; '' if it can."""
    model, layout, inputs = problem.model, problem.layout, problem.inputs
    is_mlp = _parts(model) == _MLP
    if not (is_mlp or _is_convnet(model)):
        return "the network is not the MLP or the ConvNet of this package"
    hidden = list(model.children())[:-1]
    if any(part.bias is not None for part in hidden if isinstance(part, (nn.Linear, nn.Conv2d))):
        return "its layers have biases"
    for part in hidden:
        if isinstance(part, nn.Conv2d) and (
            (part.kernel_size, part.stride, part.padding, part.dilation, part.groups, part.padding_mode)
            != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        ):
            return "its convolutions are not plain 3×3 ones"
    if is_mlp and model.get_submodule("head").bias is not None:
        return "its layers have biases"
    layers = sorted(_hidden_weights(model))
    if sorted(layout.places) != layers or sorted(layout.groups) != layers:
        return "more is trained than the scale-invariant weights of its hidden layers"
    if len({layer.eps for layer in _normalizations(model)}) > 1:
        return "its normalizations differ"
    if problem.optimizer != theory.SGD():
        return f"the optimizer is {problem.optimizer!r}, not SGD()"
    if problem.fixed is not None:
        return f"its {problem.fixed} is fixed"
    if problem.micro_batch is not None:
        return "its mini-batches go through the network in parts"
    if problem.transform is not None:
        return "its samples are transformed in every mini-batch"
    if problem.autocast is not None:
        return f"its matrix products are in {problem.autocast}"
    if inputs.device.type != "cpu":
        return f"the device is {inputs.device}, not the cpu"
    if inputs.dtype not in (torch.float32, torch.float64) or {p.dtype for p in model.parameters()} != {inputs.dtype}:
        return "its numbers are not all float32 or all float64"
    return ""


def is_fastest(problem: Problem, batch_size: int) -> bool:
    """Whether the kernel engine can train a problem and is the fastest engine for it.

    PyTorch's convolutions are faster with many channels, or if the output of a layer does not fit into the cache.
    """
    if _obstacle(problem):
        return False
    if _parts(problem.model) == _MLP:
        return True
    widest = max(layer.out_channels for layer in problem.model.modules() if isinstance(layer, nn.Conv2d))
    # the first two convolutions have the largest images
    height, breadth = problem.inputs.shape[2:]
    outputs = [len(problem.model.get_parameter(name)) for name in _hidden_weights(problem.model)[:2]]
    return widest <= _FEW_CHANNELS and max(outputs) * height * breadth * batch_size <= _FITS_CACHE


def _parts(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    return [(name, type(part)) for name, part in model.named_children()] if isinstance(model, nn.Sequential) else []


def _is_convnet(model: nn.Module) -> bool:
    """Whether a model has the layers of `networks.architectures.convnet` in their order."""
    parts, count = _parts(model), sum(isinstance(part, nn.Conv2d) for part in model.children())
    expected: list[tuple[str, type[nn.Module]]] = []
    for number in range(1, count + 1):
        expected += [(f"{name}{number}", kind) for name, kind in _CONVOLUTION]
        if (f"pool{number}", nn.MaxPool2d) in parts:
            expected.append((f"pool{number}", nn.MaxPool2d))
    expected += [("pool", nn.MaxPool2d), ("flatten", nn.Flatten), ("head", nn.Linear)]
    windows = [part for name, part in model.named_children() if isinstance(part, nn.MaxPool2d) and name != "pool"]
    sizes = {(part.kernel_size, part.stride, part.padding, part.dilation, part.ceil_mode) for part in windows}
    return count > 0 and parts == expected and sizes <= {(2, 2, 0, 1, False)}


def _hidden_weights(model: nn.Module) -> list[str]:
    return [f"{name}.weight" for name, part in model.named_children() if isinstance(part, (nn.Linear, nn.Conv2d))][:-1]


def _poolings(model: nn.Module) -> list[bool]:
    """Whether 2×2 pooling follows each convolution of a ConvNet."""
    names = dict(model.named_children())
    return [f"pool{number}" in names for number in range(1, len(_hidden_weights(model)) + 1)]


def _last_window(model: nn.Module) -> tuple[int, int]:
    """Height and breadth of the last pooling."""
    size: Any = model.get_submodule("pool").kernel_size
    height, breadth = (size, size) if isinstance(size, int) else size
    return height, breadth


def _normalizations(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def _array(values: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values.detach().numpy())
