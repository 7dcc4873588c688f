"""Find the scale-invariant weights of a model by measurement, not by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# ε of all normalizations during the measurement; PyTorch's layers reject 0
_TINY_EPS = 1e-30
_MOST_SAMPLES, _FEWEST_SAMPLES, _MOST_NUMBERS, _EXTRA_LOSSES = 16, 4, 2**14, 6
# Float64 leaves 1e-12 on invariant weights; weights that are not invariant have defects of 1e-3 to 1.
_TOLERANCE = 1e-8
# largest distance of an exponent from a multiple of ½
_SLACK = 1e-6


@dataclass(frozen=True)
class Group:
    """Parameters that can be scaled together without changing the output of the model in train mode.

    Attributes
    ----------
    weights : names of the parameters.
    defect : largest absolute cosine between gradient and weights over random losses, at the model's own weights and ε.
        It is 0 for perfect scale invariance and grows with the influence of ε.
    """

    weights: tuple[str, ...]
    defect: float


def scale_invariant_groups(
    model: nn.Module, inputs: Tensor, *, vectors: bool = False, per_filter: bool = False
) -> dict[str, Group]:
    """Find the trained parameters of a model that are scale-invariant, alone or together.

    Scaling the weights w_i by 1 + c_i t changes a loss with slope Σc_i⟨∂f/∂w_i, w_i⟩ in t. The scaling symmetries of
    the model are the vectors c for which this slope vanishes for random losses and random mini-batches. All parameters
    are random too, so that a zero initialization hides nothing, and the ε of every normalization is tiny.

    Groups are the smallest symmetries of zeros and ones, confirmed by equal outputs at ½w and 2w. Single parameters
    come first, then sets that must be scaled together, as in networks with residual streams. No parameter is in two
    groups. Inert parameters, whose value does not change the output (a bias before a normalization), are left out.

    The measurement uses a float64 copy. Model, buffers and random state do not change.

    Parameters
    ----------
    model : module whose output is a tensor.
    inputs : at least 2 samples.
    vectors : also return groups of parameters with a single axis. For example, γ and β of a normalization are
        scale-invariant together if another normalization follows.
    per_filter : treat every filter (slice along axis 0) of every parameter separately. This takes as many backward
        passes as there are filters.

    Returns
    -------
    dict of Group by name, in the order of use in the forward pass; empty if there are none. A group of one parameter
    has its name. A larger group has the name of its first parameter and the number of the others.

    Raises
    ------
    TypeError, ValueError : `model` is not a module, or `inputs` is not a tensor of at least two samples.

    Source: docs/mathematics.md §1 (Euler's relation) and §10.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> list(scale_invariant_groups(model, torch.randn(16, 5)))
    ['0.weight']
    """
    _check(model, inputs)
    with torch.random.fork_rng(devices=[]):
        measurement = _Measurement(model, inputs, per_filter)
        sets = measurement.invariant_sets(vectors)
        defects = measurement.defects(sets)
    return {_name(members): Group(members, defect) for members, defect in zip(sets, defects, strict=True)}


def scaling_symmetries(model: nn.Module, inputs: Tensor, *, per_filter: bool = False) -> list[dict[str, float]]:
    """Find all scalings of the trained parameters that do not change the output of a model in train mode.

    Besides scale invariance these are rescalings. For example, two linear layers around a ReLU can be scaled by a
    factor and its inverse.

    Parameters
    ----------
    model, inputs, per_filter : as in `scale_invariant_groups`.

    Returns
    -------
    Basis of the symmetries, each a dict of exponents by parameter name. Scaling every parameter by s to the power of
    its exponent does not change the output.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    >>> scaling_symmetries(model, torch.randn(16, 5))
    [{'0.weight': 1.0, '2.weight': -1.0}]
    """
    _check(model, inputs)
    with torch.random.fork_rng(devices=[]):
        return _Measurement(model, inputs, per_filter).symmetries()


def _check(model: Any, inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(inputs, Tensor) or inputs.ndim == 0 or len(inputs) < 2:
        got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a tensor of at least 2 samples, got {got}")


def _name(members: Sequence[str]) -> str:
    return members[0] if len(members) == 1 else f"{members[0]} and {len(members) - 1} more"


class _Measurement:
    """Radial derivatives of random losses. A unit is a parameter or, with `per_filter`, one filter of a parameter."""

    def __init__(self, model: nn.Module, inputs: Tensor, per_filter: bool) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._inputs, self._per_filter = inputs.detach(), per_filter
        self._own = copy.deepcopy(model).cpu().double().train()
        self._random = copy.deepcopy(self._own)
        self._samples = self._draw_samples()
        _randomize(self._random, self._generator)
        for module in self._random.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = _TINY_EPS  # type: ignore[assignment]
        self._order = _forward_order(self._own, self._samples)
        self.units = [
            (name, index)
            for name in self._order
            for index in (range(len(self._own.get_parameter(name))) if self._is_divided(name) else (None,))
        ]
        self._reference = _output(self._random, self._samples)

    def invariant_sets(self, vectors: bool) -> list[tuple[str, ...]]:
        """Names of the units of each group, in forward order. Groups without a matrix need `vectors`."""
        derivatives, size = self._radial_derivatives()
        has_no_slope = np.abs(derivatives).max(axis=0, initial=0.0) <= _TOLERANCE
        groups: list[list[int]] = []
        remaining: list[int] = []
        for unit in range(len(self.units)):
            if self._is_inert(unit):
                continue
            if has_no_slope[unit] and self._is_scale_invariant([unit]):
                groups.append([unit])
            else:
                remaining.append(unit)
        are_weights = np.array(
            [self._random.get_parameter(self.units[unit][0]).ndim > 1 for unit in remaining], dtype=bool
        )
        for members in _smallest_sets(_null_space(derivatives[:, remaining], size[remaining]), are_weights):
            joint = [remaining[member] for member in members]
            if self._is_scale_invariant(joint):
                groups.append(joint)
        return [
            tuple(self._unit_name(unit) for unit in members)
            for members in sorted(groups)
            if vectors or any(self._random.get_parameter(self.units[unit][0]).ndim > 1 for unit in members)
        ]

    def symmetries(self) -> list[dict[str, float]]:
        """Basis of the scaling symmetries of all units that are not inert."""
        derivatives, size = self._radial_derivatives()
        active = [unit for unit in range(len(self.units)) if not self._is_inert(unit)]
        return [
            {self._unit_name(active[i]): float(exponent) for i, exponent in enumerate(vector) if exponent != 0}
            for vector in _echelon(_null_space(derivatives[:, active], size[active]))
        ]

    def defects(self, sets: Sequence[tuple[str, ...]]) -> list[float]:
        """Largest absolute cosine between weights and gradient for each set, at the model's own weights and ε."""
        numbers = {self._unit_name(unit): unit for unit in range(len(self.units))}
        worst = [0.0] * len(sets)
        for _ in range(_EXTRA_LOSSES if sets else 0):
            along, weights, gradients = self._radial_products(self._own)
            for number, members in enumerate(sets):
                own = [numbers[name] for name in members]
                size = np.sqrt(weights[own].sum() * gradients[own].sum())
                if size > 0:
                    worst[number] = max(worst[number], abs(float(along[own].sum())) / size)
        return worst

    def _radial_derivatives(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return ⟨∂f/∂w, w⟩ of random losses divided by the typical size of each unit's product, and that size.

        Shapes (losses, units), with more losses than units, and (units,).
        """
        losses = len(self.units) + _EXTRA_LOSSES
        rows = [self._radial_products(self._random) for _ in range(losses)]
        along, weights, gradients = (np.array(values).reshape(losses, -1) for values in zip(*rows, strict=True))
        size = np.sqrt((weights * gradients).mean(axis=0))
        return np.divide(along, size, out=np.zeros_like(along), where=size > 0), size

    def _radial_products(self, model: nn.Module) -> tuple[npt.NDArray[np.float64], ...]:
        """Return ⟨gradient, weights⟩ and both squared norms of every unit, for a random loss on random samples."""
        output = _output(model, self._draw_samples())
        linear, quadratic = (torch.randn(output.shape, generator=self._generator, dtype=torch.float64) for _ in "ab")
        loss = (linear * output + quadratic * output * output).sum()
        parameters = [model.get_parameter(name) for name in self._order]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        sums: tuple[list[Tensor], ...] = ([], [], [])
        for name, parameter, gradient in zip(self._order, parameters, gradients, strict=True):
            rows = len(parameter) if self._is_divided(name) else 1
            w = parameter.detach().reshape(rows, -1)
            g = torch.zeros_like(w) if gradient is None else gradient.reshape(rows, -1)
            for total, product in zip(sums, (g * w, w * w, g * g), strict=True):
                total.append(product.sum(dim=1))
        return tuple(torch.cat(total).numpy() for total in sums)

    def _is_scale_invariant(self, units: Sequence[int]) -> bool:
        return all(self._is_unchanged_by(dict.fromkeys(units, partial(torch.mul, other=c))) for c in (0.5, 2.0))

    def _is_inert(self, unit: int) -> bool:
        def replace(weights: Tensor) -> Tensor:
            noise = torch.randn(weights.shape, generator=self._generator, dtype=torch.float64)
            return torch.mul(noise, weights.norm() / max(1, weights.numel()) ** 0.5)

        return self._is_unchanged_by({unit: replace})

    def _is_unchanged_by(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> bool:
        """Whether the output stays equal when some units are changed."""
        before: dict[int, Tensor] = {}
        with torch.no_grad():
            for unit, change in changes.items():
                values = self._values(unit)
                before[unit] = values.clone()
                values.copy_(change(before[unit]))
            output = _output(self._random, self._samples)
            for unit, values in before.items():
                self._values(unit).copy_(values)
        return bool((output - self._reference).abs().max() <= _TOLERANCE * self._reference.abs().max())

    def _values(self, unit: int) -> Tensor:
        name, index = self.units[unit]
        parameter = self._random.get_parameter(name).detach()
        return parameter if index is None else parameter[index]

    def _unit_name(self, unit: int) -> str:
        name, index = self.units[unit]
        return name if index is None else f"{name}[{index}]"

    def _is_divided(self, name: str) -> bool:
        return self._per_filter and self._own.get_parameter(name).ndim > 0

    def _draw_samples(self) -> Tensor:
        most = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _MOST_NUMBERS // max(1, self._inputs[0].numel())))
        chosen = torch.randperm(len(self._inputs), generator=self._generator)[:most]
        samples = self._inputs[chosen.to(self._inputs.device)].cpu()
        return samples.double() if samples.is_floating_point() else samples


def _output(model: nn.Module, samples: Tensor) -> Tensor:
    # equal random numbers in every call, so that dropout does not look like a change of the function
    torch.manual_seed(0)
    output: Tensor = model(samples)
    return output


def _forward_order(model: nn.Module, samples: Tensor) -> list[str]:
    """Names of the trained parameters, in the order in which their modules are first used."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    used: dict[str, None] = {}

    def record_use(prefix: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            used[prefix] = None

        return hook

    hooks = [module.register_forward_pre_hook(record_use(prefix)) for prefix, module in model.named_modules()]
    with torch.no_grad():
        _output(model, samples)
    for hook in hooks:
        hook.remove()
    rank = {prefix: number for number, prefix in enumerate(used)}
    return sorted(trained, key=lambda name: rank.get(name.rpartition(".")[0], len(rank)))


def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(1 + 0.5 * noise)


def _null_space(derivatives: npt.NDArray[np.float64], size: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Orthonormal basis, shape (units, symmetries), of the exponents c with Σ c_i ⟨∂f/∂w_i, w_i⟩ = 0 in every row."""
    if derivatives.shape[1] == 0:
        return np.zeros((0, 0))
    _, values, vectors = np.linalg.svd(derivatives)
    null = vectors[int((values > _TOLERANCE * max(values.max(), 1.0)).sum()) :].T
    basis: npt.NDArray[np.float64] = np.linalg.qr(null / size[:, None])[0]
    return basis


def _smallest_sets(null: npt.NDArray[np.float64], first: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Disjoint minimal sets of rows whose indicator vector lies in the column space of `null`.

    Of equally small sets the one with later rows wins: the weights that write into a residual stream, not those before
    them in the same branch. Sets of the rows `first` are chosen before the others.
    """
    rows = len(null)
    if null.size == 0:
        return []
    # scipy.optimize is slow to import
    from scipy.optimize import Bounds, LinearConstraint, milp

    outside = np.eye(rows) - null @ null.T
    cost = 1 - np.arange(rows) / (2.0 * rows**2)
    free, sets = np.ones(rows), []
    for row in [*np.flatnonzero(first), *np.flatnonzero(~first)]:
        if not free[row]:
            continue
        chosen = np.zeros(rows)
        chosen[row] = 1
        answer = milp(
            cost,
            integrality=np.ones(rows),
            bounds=Bounds(chosen, free),
            constraints=LinearConstraint(outside, -_SLACK, _SLACK),
        )
        if answer.x is not None:
            members = np.flatnonzero(np.round(answer.x))
            free[members] = 0
            sets.append([int(member) for member in members])
    return sets


def _echelon(null: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Reduced echelon basis of the column space, with exponents near a multiple of ½ rounded to it."""
    basis, pivot = null.T.copy(), 0
    for column in range(null.shape[0]):
        if pivot == len(basis):
            break
        row = pivot + int(np.argmax(np.abs(basis[pivot:, column])))
        if abs(basis[row, column]) > _SLACK:
            basis[[pivot, row]] = basis[[row, pivot]]
            basis[pivot] /= basis[pivot, column]
            others = np.arange(len(basis)) != pivot
            basis[others] -= np.outer(basis[others, column], basis[pivot])
            pivot += 1
    halves = np.round(2 * basis) / 2
    return list(np.where(np.abs(basis - halves) < _SLACK, halves, basis) + 0.0)
