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
from empirical.steps._kernels import train_convnet, train_mlp
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
_CONVNET = [
    ("conv1", nn.Conv2d),
    ("norm1", BatchNorm),
    ("relu1", nn.ReLU),
    ("conv2", nn.Conv2d),
    ("norm2", BatchNorm),
    ("relu2", nn.ReLU),
    ("pool2", nn.MaxPool2d),
    ("conv3", nn.Conv2d),
    ("norm3", BatchNorm),
    ("relu3", nn.ReLU),
    ("pool3", nn.MaxPool2d),
    ("flatten", nn.Flatten),
    ("head", nn.Linear),
]

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
        model = problem.model
        self._layout = problem.layout
        convolutional = _parts(model) == _CONVNET
        self.train_steps: Any = train_convnet if convolutional else train_mlp
        self._inputs = _array(problem.inputs if convolutional else problem.inputs.reshape(len(problem.inputs), -1))
        self._targets = _array(problem.targets)
        self._head = _array(model.get_submodule("head").get_parameter("weight"))
        # slow, because it searches for the loaded BLAS libraries
        self._blas = threadpoolctl.ThreadpoolController()
        self._eps = self._inputs.dtype.type(_normalizations(model)[0].eps)

    def advance(self, state: TrainingState, hyper: Hyper, indices: Tensor) -> tuple[TrainingState, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        replicas, steps = indices.shape[:2]
        weights = state.weights.numpy().copy()
        samples = np.ascontiguousarray(indices.numpy())
        lrs = np.ascontiguousarray(hyper.lr.numpy(), dtype=np.float64)
        layers = sorted(self._layout.places)
        order = [layers.index(name) for name in self._layout.groups]
        losses = np.empty((replicas, steps))
        products = np.empty((replicas, steps, len(layers), 3, 3))
        # by default numba's BLAS uses all processors, and their number changes the rounding
        with self._blas.limit(limits=torch.get_num_threads(), user_api="blas"):
            for number in range(replicas):
                places = (self._layout.places[name] for name in layers)
                self.train_steps(
                    *(weights[number, place].reshape(shape) for place, shape in places),
                    self._head,
                    self._inputs,
                    self._targets,
                    self._eps,
                    samples[number],
                    lrs[number],
                    float(hyper.wd[number]),
                    losses[number],
                    products[number],
                )
        after = TrainingState(torch.from_numpy(weights), state.buffers, state.slots)
        return after, records(products[:, :, order], losses, lrs[:, :steps])


def _obstacle(problem: Problem) -> str:
    """Return the reason why the kernel engine cannot train a problem; '' if it can."""
    model, layout, inputs = problem.model, problem.layout, problem.inputs
    if _parts(model) not in (_MLP, _CONVNET):
        return "the network is not the MLP or the ConvNet of this package"
    if any(part.bias is not None for part in model.children() if isinstance(part, (nn.Linear, nn.Conv2d))):
        return "its layers have biases"
    for part in model.children():
        if isinstance(part, nn.Conv2d) and (
            (part.kernel_size, part.stride, part.padding, part.dilation, part.groups, part.padding_mode)
            != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        ):
            return "its convolutions are not plain 3×3 ones"
        if isinstance(part, nn.MaxPool2d) and (part.kernel_size, part.stride, part.padding) != (2, 2, 0):
            return "its pooling is not over 2×2 pixels"
    if _parts(model) == _CONVNET and (inputs.shape[2] % 4 or inputs.shape[3] % 4):
        return f"the height and breadth of its images, {tuple(inputs.shape[2:])}, are not divisible by 4"
    layers = [f"{name}.weight" for name, part in model.named_children() if isinstance(part, (nn.Linear, nn.Conv2d))]
    if sorted(layout.places) != layers[:-1] or sorted(layout.groups) != layers[:-1]:
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
    widest = problem.model.get_parameter("conv2.weight").shape[0]
    height, breadth = problem.inputs.shape[2:]
    return widest <= _FEW_CHANNELS and widest * height * breadth * batch_size <= _FITS_CACHE


def _parts(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    return [(name, type(part)) for name, part in model.named_children()] if isinstance(model, nn.Sequential) else []


def _normalizations(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def _array(values: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values.detach().numpy())
