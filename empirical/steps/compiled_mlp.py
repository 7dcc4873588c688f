"""Training steps of the BN-MLP in compiled code: the fully scale-invariant network, plain SGD, CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import theory
from empirical.networks.normalization import BatchNorm
from empirical.steps import kernels
from empirical.steps.contract import Hyper, Problem, State
from empirical.steps.telemetry import records

_PARTS = [
    ("flatten", nn.Flatten),
    ("linear1", nn.Linear),
    ("norm1", BatchNorm),
    ("relu1", nn.ReLU),
    ("linear2", nn.Linear),
    ("norm2", BatchNorm),
    ("relu2", nn.ReLU),
    ("head", nn.Linear),
]


class CompiledMlpEngine:
    """Steps of `networks.mlp` with batch normalization and a frozen head, without PyTorch in the loop.

    Raises
    ------
    ValueError : the problem is another one; the message says which condition it does not meet.

    Examples
    --------
    >>> from empirical.networks.mlp import mlp
    >>> from empirical.steps.contract import Layout
    >>> model = mlp(4, 3, width=8, normalization="batch", eps=1e-12, scale_invariant=True)
    >>> layout = Layout.of(model, {name: (name,) for name in ("linear1.weight", "linear2.weight")})
    >>> problem = Problem(model, layout, torch.randn(9, 4), torch.zeros(9).long(), theory.SGD())
    >>> hyper = Hyper(torch.full((1, 5), 0.1), torch.full((1, 5), 0.1), torch.tensor([0.01]))
    >>> state, rows = CompiledMlpEngine(problem).advance(State.of(problem), hyper, torch.arange(15).view(1, 5, 3) % 9)
    >>> rows.shape
    (1, 5)
    """

    def __init__(self, problem: Problem) -> None:
        trouble = obstacle(problem)
        if trouble:
            raise ValueError(f"engine must be one that can train this network, got 'compiled', but {trouble}")
        model = problem.model
        self._layout = problem.layout
        self._inputs = _array(problem.inputs.reshape(len(problem.inputs), -1))
        self._targets = _array(problem.targets)
        self._head = _array(model.get_submodule("head").get_parameter("weight"))
        self._eps = self._inputs.dtype.type(_normalizations(model)[0].eps)

    def advance(self, state: State, hyper: Hyper, indices: Tensor) -> tuple[State, npt.NDArray[Any]]:
        """Make the steps of `indices` (K, steps, batch); see `Engine.advance`."""
        replicas, steps = indices.shape[:2]
        weights = state.weights.numpy().copy()
        samples = np.ascontiguousarray(indices.numpy())
        rates = np.ascontiguousarray(hyper.lr.numpy(), dtype=np.float64)
        losses = np.empty((replicas, steps))
        products = np.empty((replicas, steps, 2, 3, 3))
        places = [self._layout.places[name] for name in ("linear1.weight", "linear2.weight")]
        order = [list(self._layout.groups).index(name) for name in ("linear1.weight", "linear2.weight")]
        for k in range(replicas):
            first, second = (weights[k, place].reshape(shape) for place, shape in places)
            kernels.train_mlp(
                first,
                second,
                self._head,
                self._inputs,
                self._targets,
                self._eps,
                samples[k],
                rates[k],
                float(hyper.wd[k]),
                losses[k],
                products[k],
            )
        return State(torch.from_numpy(weights), state.buffers, state.slots), records(
            products[:, :, np.argsort(order)], losses, rates[:, :steps]
        )


def obstacle(problem: Problem) -> str:
    """Say why a problem cannot be trained by the compiled steps; '' where it can.

    Examples
    --------
    >>> from empirical.steps.contract import Layout
    >>> model = nn.Linear(3, 2)
    >>> obstacle(Problem(model, Layout.of(model, {}), torch.zeros(1, 3), torch.zeros(1).long(), theory.SGD()))
    'the network is not the MLP of this package'
    """
    model, layout = problem.model, problem.layout
    if not isinstance(model, nn.Sequential) or [(name, type(part)) for name, part in model.named_children()] != _PARTS:
        return "the network is not the MLP of this package"
    if any(part.bias is not None for part in model if isinstance(part, nn.Linear)):
        return "its layers have biases"
    if sorted(layout.places) != ["linear1.weight", "linear2.weight"] or sorted(layout.groups) != sorted(layout.places):
        return "more is trained than scale-invariant weights of its two hidden layers"
    if len({layer.eps for layer in _normalizations(model)}) > 1:
        return "its two normalizations differ"
    if repr(problem.optimizer) != repr(theory.SGD()):
        return f"the optimizer is {problem.optimizer!r}, not SGD()"
    if problem.inputs.device.type != "cpu":
        return f"the device is {problem.inputs.device}, not the cpu"
    if problem.inputs.dtype not in (torch.float32, torch.float64):
        return f"the numbers are {problem.inputs.dtype}"
    return ""


def _normalizations(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def _array(values: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values.detach().numpy())
