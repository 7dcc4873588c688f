"""Which weights of a model are scale-invariant: found by measurement, never by name."""

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

# ε of the normalizations while measuring; PyTorch's own layers refuse 0
_TINY_EPS = 1e-30
_MOST_SAMPLES, _FEWEST_SAMPLES, _MOST_NUMBERS, _MORE_PROBES = 16, 4, 2**14, 6
# Float64 leaves 1e-12 on invariant weights; weights that are not invariant have defects of 1e-3 to 1.
_TOLERANCE = 1e-8
# how far from whole an exponent may be
_SLACK = 1e-6


@dataclass(frozen=True)
class Group:
    """Parameters that can be scaled together without changing the output of the model in train mode.

    Attributes
    ----------
    weights : names of the parameters.
    defect : largest absolute cosine between gradient and weights over random losses, with the model's own weights
        and ε: 0 for perfect scale invariance, larger where ε is felt.
    """

    weights: tuple[str, ...]
    defect: float


def scale_invariant_groups(
    model: nn.Module, inputs: Tensor, *, vectors: bool = False, per_filter: bool = False
) -> dict[str, Group]:
    """Find the trained parameters of a model that are scale-invariant, alone or together.

    Scaling the weights w_i by 1 + c_i t changes a loss at the rate Σc_i⟨∂f/∂w_i, w_i⟩. The vectors c for which this
    vanishes for random losses, random mini-batches and random values of all parameters (so that nothing hides behind a
    zero initialization), with the ε of every normalization made tiny, are the scaling symmetries of the model. Groups
    are its smallest vectors of zeros and ones, each confirmed by equal outputs at ½w and 2w: single parameters first,
    then, as in networks with residual streams, sets that are scaled together; no parameter is in two groups.
    Parameters whose value does not matter at all (such as a bias before a normalization) are inert and left out. The
    measurement runs on a float64 copy; model, buffers and the random state are not touched.

    Parameters
    ----------
    model : any module whose output is a tensor.
    inputs : some samples, at least 2.
    vectors : also give groups of parameters with one axis only: γ and β of a normalization are scale-invariant
        together where another normalization follows, but are not what is meant by the weights of a network.
    per_filter : look at every filter (slice along axis 0) of every parameter on its own; takes as many backward passes
        as there are filters.

    Returns
    -------
    dict of Group by name, in the order in which the forward pass uses them; empty if there are none. A group of one
    parameter has its name, a larger one that of its first with the number of the others.

    Raises
    ------
    TypeError, ValueError : `model` is no module, or `inputs` no tensor of at least two samples.

    Source: docs/mathematics.md §1 (Euler's relation) and §10.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> list(scale_invariant_groups(model, torch.randn(16, 5)))
    ['0.weight']
    """
    _check(model, inputs)
    with torch.random.fork_rng(devices=[]):
        measured = _Measurement(model, inputs, per_filter)
        sets = measured.invariant_sets(vectors)
        defects = measured.defects(sets)
    return {_name(members): Group(members, defect) for members, defect in zip(sets, defects, strict=True)}


def scaling_symmetries(model: nn.Module, inputs: Tensor, *, per_filter: bool = False) -> list[dict[str, float]]:
    """Find all ways to scale the trained parameters of a model that leave its output in train mode as it is.

    Besides scale invariance these are rescalings, such as of two linear layers around a ReLU, one by a factor and the
    other by its inverse.

    Parameters
    ----------
    model, inputs, per_filter : as in `scale_invariant_groups`.

    Returns
    -------
    A basis: dicts of exponents by name; scaling each parameter by s to the power of its exponent changes nothing.

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
    """Radial derivatives of random losses, by unit: a parameter, or a filter of one."""

    def __init__(self, model: nn.Module, inputs: Tensor, per_filter: bool) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._inputs, self._per_filter = inputs.detach(), per_filter
        self._own = copy.deepcopy(model).cpu().double().train()
        self._random = copy.deepcopy(self._own)
        self._samples = self._drawn()
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
        """Names of the units of each group, in forward order; groups of vectors alone only if they are asked for."""
        derivatives, size = self._radial_derivatives()
        alone = np.abs(derivatives).max(axis=0, initial=0.0) <= _TOLERANCE
        found: list[list[int]] = []
        left: list[int] = []
        for unit in range(len(self.units)):
            if self._is_inert(unit):
                continue
            if alone[unit] and self._is_same_when_scaled([unit]):
                found.append([unit])
            else:
                left.append(unit)
        are_weights = np.array([self._random.get_parameter(self.units[unit][0]).ndim > 1 for unit in left], dtype=bool)
        for members in _smallest_sets(_null_space(derivatives[:, left], size[left]), are_weights):
            joint = [left[member] for member in members]
            if self._is_same_when_scaled(joint):
                found.append(joint)
        return [
            tuple(self._named(unit) for unit in members)
            for members in sorted(found)
            if vectors or any(self._random.get_parameter(self.units[unit][0]).ndim > 1 for unit in members)
        ]

    def symmetries(self) -> list[dict[str, float]]:
        """Basis of the scaling symmetries of the units that matter."""
        derivatives, size = self._radial_derivatives()
        active = [unit for unit in range(len(self.units)) if not self._is_inert(unit)]
        return [
            {self._named(active[i]): float(exponent) for i, exponent in enumerate(vector) if exponent != 0}
            for vector in _echelon(_null_space(derivatives[:, active], size[active]))
        ]

    def defects(self, sets: Sequence[tuple[str, ...]]) -> list[float]:
        """Largest absolute cosine between weights and gradient of each set, at the model's own weights and ε."""
        numbers = {self._named(unit): unit for unit in range(len(self.units))}
        worst = [0.0] * len(sets)
        for _ in range(_MORE_PROBES if sets else 0):
            along, weights, gradients = self._probe(self._own)
            for number, members in enumerate(sets):
                own = [numbers[name] for name in members]
                size = np.sqrt(weights[own].sum() * gradients[own].sum())
                if size > 0:
                    worst[number] = max(worst[number], abs(float(along[own].sum())) / size)
        return worst

    def _radial_derivatives(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Rows of ⟨∂f/∂w, w⟩ of random losses over the size of the vectors of each unit, and that size.

        Shapes (probes, units), with more probes than units, and (units,).
        """
        probes = len(self.units) + _MORE_PROBES
        rows = [self._probe(self._random) for _ in range(probes)]
        along, weights, gradients = (np.array(values).reshape(probes, -1) for values in zip(*rows, strict=True))
        size = np.sqrt((weights * gradients).mean(axis=0))
        return np.divide(along, size, out=np.zeros_like(along), where=size > 0), size

    def _probe(self, model: nn.Module) -> tuple[npt.NDArray[np.float64], ...]:
        """⟨gradient, weights⟩ and both squared norms of every unit, for a random loss of random samples."""
        output = _output(model, self._drawn())
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

    def _is_same_when_scaled(self, units: Sequence[int]) -> bool:
        return all(self._is_same_with(dict.fromkeys(units, partial(torch.mul, other=c))) for c in (0.5, 2.0))

    def _is_inert(self, unit: int) -> bool:
        def other(weights: Tensor) -> Tensor:
            noise = torch.randn(weights.shape, generator=self._generator, dtype=torch.float64)
            return torch.mul(noise, weights.norm() / max(1, weights.numel()) ** 0.5)

        return self._is_same_with({unit: other})

    def _is_same_with(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> bool:
        """Whether the output stays as it is with some units changed."""
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

    def _named(self, unit: int) -> str:
        name, index = self.units[unit]
        return name if index is None else f"{name}[{index}]"

    def _is_divided(self, name: str) -> bool:
        return self._per_filter and self._own.get_parameter(name).ndim > 0

    def _drawn(self) -> Tensor:
        most = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _MOST_NUMBERS // max(1, self._inputs[0].numel())))
        chosen = torch.randperm(len(self._inputs), generator=self._generator)[:most]
        samples = self._inputs[chosen.to(self._inputs.device)].cpu()
        return samples.double() if samples.is_floating_point() else samples


def _output(model: nn.Module, samples: Tensor) -> Tensor:
    # the same random numbers in every call: dropout must not look like a change of the function
    torch.manual_seed(0)
    output: Tensor = model(samples)
    return output


def _forward_order(model: nn.Module, samples: Tensor) -> list[str]:
    """Names of the trained parameters, by the first use of the module that owns them."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    used: dict[str, None] = {}

    def note(prefix: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            used[prefix] = None

        return hook

    hooks = [module.register_forward_pre_hook(note(prefix)) for prefix, module in model.named_modules()]
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
    """Orthonormal basis, shape (units, k), of the exponents c with Σ c_i ⟨∂f/∂w_i, w_i⟩ = 0 in every row."""
    if derivatives.shape[1] == 0:
        return np.zeros((0, 0))
    _, values, vectors = np.linalg.svd(derivatives)
    null = vectors[int((values > _TOLERANCE * max(values.max(), 1.0)).sum()) :].T
    basis: npt.NDArray[np.float64] = np.linalg.qr(null / size[:, None])[0]
    return basis


def _smallest_sets(null: npt.NDArray[np.float64], ahead: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Disjoint sets of rows whose vector of zeros and ones lies in the space of the columns, each as small as can be.

    Of equally small sets the one with the later rows is taken: what writes into a residual stream, not what comes
    before it in the same branch. The rows `ahead` choose first.
    """
    rows = len(null)
    if null.size == 0:
        return []
    # scipy.optimize takes a while to import
    from scipy.optimize import Bounds, LinearConstraint, milp

    outside = np.eye(rows) - null @ null.T
    cost = 1 - np.arange(rows) / (2.0 * rows**2)
    free, found = np.ones(rows), []
    for row in [*np.flatnonzero(ahead), *np.flatnonzero(~ahead)]:
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
            found.append([int(member) for member in members])
    return found


def _echelon(null: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Reduced basis of the space of the columns, with exponents that are whole multiples of a half made exact."""
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
