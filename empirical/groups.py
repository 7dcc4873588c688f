"""Find the scale-invariant weights of a model by measurement, not by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from empirical._model_copy import (
    Inputs,
    ModelCopy,
    count_samples,
    draw_samples,
    preserved_global_state,
    sample_size,
    tensors_of,
)
from theory.arguments import check_flag

_MOST_SAMPLES, _SAMPLES_PER_LOSS, _FEWEST_SAMPLES, _MOST_NUMBERS = 16, 4, 4, 2**14
# losses whose derivatives are computed together: bounded by the size of their gradients
_EXTRA_LOSSES, _MOST_LOSSES, _MOST_GRADIENTS = 6, 64, 2**26
_CONFIRMATIONS, _FEW_LOSSES = 3, 2
# Double precision leaves 1e-12 on invariant weights; weights that are not invariant have defects of 1e-3 to 1.
_TOLERANCE = 1e-8
# largest distance of an exponent from a multiple of ½; symmetries are confirmed by equal outputs
_SLACK = 1e-3
# size of ⟨gradient, weights⟩ over the largest below which a parameter may be inert
_MAY_BE_INERT = 1e-6
# the same, of parameters whose gradient is rounding errors
_NO_GRADIENT = 1e-11
# An ε that stays as it is changes the output by a share that decreases as scale⁻², and the slope by about itself.
_NEAR_SLOPE, _NEAR_DEFECT, _LARGE_SCALES, _POWER, _POWER_SLACK = 0.01, 0.01, (8.0, 16.0, 32.0, 64.0), 2.0, 0.1


@dataclass(frozen=True)
class Group:
    """Parameters that can be scaled together without changing the output of the model in train mode.

    Attributes
    ----------
    weights : names of the parameters.
    defect : largest absolute cosine between gradient and weights over random losses, at the model's own weights and ε.
        It is 0 for perfect scale invariance and grows with the influence of ε. Above some percent the ε is not small
        against the variance that it is added to, and formulas for scale-invariant weights do not hold.
    """

    weights: tuple[str, ...]
    defect: float


def scale_invariant_groups(
    model: nn.Module, inputs: Inputs, *, vectors: bool = False, per_filter: bool = False
) -> dict[str, Group]:
    """Find the trained parameters of a model that are scale-invariant, alone or together.

    Scaling the weights w_i by 1 + c_i t changes a loss with slope Σc_i⟨∂f/∂w_i, w_i⟩ in t. The scaling symmetries of
    the model are the vectors c for which this slope vanishes for random losses and random mini-batches. All parameters
    are random too, so that a zero initialization hides nothing. The ε of every normalization is tiny, also where it is
    a number in the code. Where compiled code hides ε, single parameters are found by how its effect decreases with
    their scale.

    Groups are small symmetries of zeros and ones, confirmed by equal outputs at ½w and 2w. Single parameters come
    first, then sets that must be scaled together, as in networks with residual streams. No parameter is in two groups.
    Of two sets the smaller one is taken, then the one whose parameters are used later. Inert parameters, whose value
    does not change the output (a bias before a normalization), are left out.

    The measurement uses a copy in double precision on the CPU. Each module keeps its mode, so that a frozen
    normalization counts as one; a model in eval mode is measured in train mode. Model, buffers and random state do not
    change.

    Parameters
    ----------
    model : module whose output is a tensor, or tensors in tuples, dicts or data classes. All of them count, except the
        caches and hidden states of Hugging Face models.
    inputs : at least 2 samples: a tensor, a tuple of arguments, or a dict of keyword arguments. Arguments may be
        containers of tensors. Some samples are drawn along the first axis; all are used if the model rejects fewer.
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
    TypeError, ValueError : `model` is not a module, `inputs` has fewer than two samples, or the model does not accept
        them, does not return tensors, or returns different numbers in two equal passes.

    Source: docs/mathematics.md §1 (Euler's relation) and §10.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> list(scale_invariant_groups(model, torch.randn(16, 5)))
    ['0.weight']
    """
    return find_groups(model, inputs, vectors=vectors, per_filter=per_filter)[0]


def find_groups(
    model: nn.Module, inputs: Inputs, *, vectors: bool = False, per_filter: bool = False
) -> tuple[dict[str, Group], bool]:
    """Return `scale_invariant_groups`, and whether the model has any normalization."""
    _check(model, inputs)
    vectors, per_filter = check_flag("vectors", vectors), check_flag("per_filter", per_filter)
    with preserved_global_state(model):
        measurement = _Measurement(model, inputs, per_filter)
        return measurement.groups(vectors), measurement.is_normalizing


def scaling_symmetries(model: nn.Module, inputs: Inputs, *, per_filter: bool = False) -> list[dict[str, float]]:
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
    per_filter = check_flag("per_filter", per_filter)
    with preserved_global_state(model):
        return _Measurement(model, inputs, per_filter).symmetries()


def measure_symmetries(
    model: nn.Module, inputs: Inputs
) -> tuple[dict[str, Group], list[dict[str, float]], frozenset[str]]:
    """Return `scale_invariant_groups` with vectors, `scaling_symmetries`, and the parameters that are not inert."""
    _check(model, inputs)
    with preserved_global_state(model):
        measurement = _Measurement(model, inputs, per_filter=False)
        return measurement.groups(vectors=True), measurement.symmetries(), measurement.active_parameters


def _check(model: Any, inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters()):
        raise ValueError("model has lazy parameters without a shape. Run it once on the inputs before")
    if not isinstance(inputs, (Tensor, tuple, list, Mapping)) or count_samples(inputs) < 2:
        got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"inputs must be a tensor of at least 2 samples, or a tuple or dict of such tensors, got {got}"
        )
    if any(tensor.is_meta for tensor in tensors_of(inputs)):
        raise ValueError("inputs must hold data, got a tensor on the device 'meta'")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model must hold data, got parameters on the device 'meta'")


def _name(members: Sequence[str]) -> str:
    return members[0] if len(members) == 1 else f"{members[0]} and {len(members) - 1} more"


# ⟨gradient, weights⟩ and both squared norms of every unit for one loss
_Products = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


class _Measurement:
    """Radial derivatives of random losses. A unit is a parameter or, with `per_filter`, one filter of a parameter."""

    def __init__(self, model: nn.Module, inputs: Inputs, per_filter: bool) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._inputs, self._per_filter = inputs, per_filter
        self._own, self._random = ModelCopy(model), ModelCopy(model, has_tiny_eps=True)
        self._random.randomize(self._generator)
        self._needs_all_samples, self._has_batched_gradients = False, True
        try:
            self._random.output(self._draw_samples(_SAMPLES_PER_LOSS))
        except ValueError:  # for example the nodes of a graph, or a mask of all samples
            self._needs_all_samples = True
        self._samples = self._draw_samples()
        self._random.check_repeats(self._samples)
        self._order = self._random.forward_order()
        self.units = [
            (name, index)
            for name in self._order
            for index in (range(len(self._random.parameters[name])) if self._is_divided(name) else (None,))
        ]
        self._derivatives, self._size = self._radial_derivatives()
        self._reference = self._random.output(self._samples)
        self._own_products = self._radial_products(self._own, _EXTRA_LOSSES) if self.units else []

    @property
    def is_normalizing(self) -> bool:
        """Whether the model normalizes anything."""
        return self._random.is_normalizing

    @property
    def active_parameters(self) -> frozenset[str]:
        """Names of the parameters that are not inert."""
        return frozenset(self.units[unit][0] for unit in self._active_units())

    def groups(self, vectors: bool) -> dict[str, Group]:
        """Scale-invariant groups by name."""
        groups = {}
        for members in self.invariant_sets(vectors):
            names = tuple(self.name_of(unit) for unit in members)
            groups[_name(names)] = Group(names, self.defect(members))
        return groups

    def invariant_sets(self, vectors: bool) -> list[list[int]]:
        """Units of each group, in forward order. Groups without a matrix need `vectors`."""
        has_no_slope = np.abs(self._derivatives).max(axis=0, initial=0.0) <= _TOLERANCE
        active = self._active_units()
        groups = [[unit] for unit in active if has_no_slope[unit] and self._is_scale_invariant([unit])]
        alone = {unit for (unit,) in groups}
        remaining = [unit for unit in active if unit not in alone]
        is_matrix = np.array([self._is_matrix(unit) for unit in remaining], dtype=bool)
        null = _null_space(self._derivatives[:, remaining], self._size[remaining])
        for members in _small_sets(null, is_matrix):
            joint = [remaining[member] for member in members]
            if self._is_scale_invariant(joint):
                groups.append(joint)
        grouped = {unit for members in groups for unit in members}
        groups += [[unit] for unit in remaining if unit not in grouped and self._is_nearly_invariant(unit)]
        return [members for members in sorted(groups) if vectors or any(map(self._is_matrix, members))]

    def symmetries(self) -> list[dict[str, float]]:
        """Basis of the scaling symmetries of all units that are not inert."""
        active = self._active_units()
        return [
            {self.name_of(active[i]): float(exponent) for i, exponent in enumerate(vector) if exponent != 0}
            for vector in _echelon(_null_space(self._derivatives[:, active], self._size[active]))
        ]

    def defect(self, members: Sequence[int]) -> float:
        """Largest absolute cosine between weights and gradient of some units, at the model's own weights and ε."""
        worst = 0.0
        for along, weights, gradients in self._own_products:
            size = float(np.sqrt(weights[members].sum() * gradients[members].sum()))
            if size > 0:
                worst = max(worst, abs(float(along[members].sum())) / size)
        return worst

    def name_of(self, unit: int) -> str:
        """Name of a unit: that of its parameter, with the number of the filter."""
        name, index = self.units[unit]
        return name if index is None else f"{name}[{index}]"

    def _radial_derivatives(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return ⟨∂f/∂w, w⟩ of random losses divided by the typical size of each unit's product, and that size.

        Shapes (losses, units) and (units,). Each pass has other weights and samples, until three in a row add no
        independent row.
        """
        numbers = sum(parameter.numel() for parameter in self._random.parameters.values())
        most = max(1, min(_MOST_LOSSES, len(self.units) // 2 + _EXTRA_LOSSES, _MOST_GRADIENTS // max(1, numbers)))
        rows: list[_Products] = []
        rank, losses, confirmations = -1, most, 0
        while True:
            rows += self._radial_products(self._random, losses)
            along, weights, gradients = (np.array(values).reshape(len(rows), -1) for values in zip(*rows, strict=True))
            size = np.sqrt((weights * gradients).mean(axis=0))
            derivatives = np.divide(along, size, out=np.zeros_like(along), where=size > 0)
            rank_before, rank = rank, _rank(derivatives)
            gained = rank - rank_before
            confirmations = confirmations + 1 if gained == 0 else 0
            if confirmations == _CONFIRMATIONS or rank == len(self.units):
                return derivatives, size
            # few losses suffice to see whether other weights and samples add anything
            losses = most if gained >= losses else _FEW_LOSSES
            self._random.randomize(self._generator)

    def _radial_products(self, model: ModelCopy, losses: int) -> list[_Products]:
        """Return ⟨gradient, weights⟩ and both squared norms of every unit, for random losses on random samples."""
        parameters = [model.parameters[name] for name in self._order]
        with model.pass_of(self._draw_samples(_SAMPLES_PER_LOSS)) as output:
            linear, quadratic = torch.randn((2, losses, output.numel()), generator=self._generator, dtype=torch.float64)
            # gradients of linear·output + quadratic·output²
            directions = linear + 2 * quadratic * output.detach()
            gradients: Sequence[Tensor | None] = [None] * len(parameters)
            if output.requires_grad and parameters:
                gradients = self._gradients(output, parameters, directions)
        sums: tuple[list[Tensor], ...] = ([], [], [])
        for name, parameter, gradient in zip(self._order, parameters, gradients, strict=True):
            rows = len(parameter) if self._is_divided(name) else 1
            w = _real(parameter.detach()).reshape(rows, -1)
            g = w.new_zeros(losses, *w.shape) if gradient is None else _real(gradient).reshape(losses, *w.shape)
            sums[0].append(torch.einsum("lrn,rn->lr", g, w))
            sums[1].append(torch.linalg.vector_norm(w, dim=1).square().expand(losses, rows))
            sums[2].append(torch.linalg.vector_norm(g, dim=2).square())
        products = [torch.cat(total, dim=1).numpy() if total else np.zeros((losses, 0)) for total in sums]
        return list(zip(*products, strict=True))

    def _gradients(self, output: Tensor, parameters: Sequence[Tensor], directions: Tensor) -> Sequence[Tensor | None]:
        """Derivatives of `output` along each of the `directions`, stacked; None for parameters without influence.

        They are computed together where that gives the right numbers. It does not where the backward pass runs parts
        of the model again (checkpoints), or where an operation has no batched derivative.
        """
        if self._has_batched_gradients:
            try:
                batched = torch.autograd.grad(
                    output, parameters, directions, is_grads_batched=True, allow_unused=True, retain_graph=True
                )
                row = [None if gradient is None else gradient[0] for gradient in batched]
                (expected,) = _gradients_by_backward(output, parameters, directions[:1])
                if _are_close(row, expected):
                    return batched
            except RuntimeError:
                pass
            self._has_batched_gradients = False
        rows = _gradients_by_backward(output, parameters, directions)
        return [
            None if any(gradient is None for gradient in of_parameter) else torch.stack(of_parameter)
            for of_parameter in zip(*rows, strict=True)
        ]

    def _active_units(self) -> list[int]:
        """Units that have a gradient and whose values change the output."""
        smallest = _NO_GRADIENT * self._size.max(initial=0.0)
        return [unit for unit in range(len(self.units)) if self._size[unit] > smallest and not self._is_inert(unit)]

    def _is_scale_invariant(self, units: Sequence[int]) -> bool:
        return all(self._is_unchanged_by(dict.fromkeys(units, partial(torch.mul, other=c))) for c in (0.5, 2.0))

    def _is_inert(self, unit: int) -> bool:
        if self._size[unit] > _MAY_BE_INERT * self._size.max():
            return False

        def replace(weights: Tensor) -> Tensor:
            # factors from ½ to 1½ keep the signs: a factor of one channel before its batch norm is inert up to its sign
            return weights * (0.5 + torch.rand(weights.shape, generator=self._generator, dtype=torch.float64))

        return self._is_unchanged_by({unit: replace})

    def _is_nearly_invariant(self, unit: int) -> bool:
        """Whether a unit is invariant up to an ε that could not be made tiny.

        Then the change of the output from s·w to 2s·w decreases as s⁻², because ε adds to the variance s²σ².
        """
        slope = float(np.abs(self._derivatives[:, unit]).max(initial=0.0))
        if not self._is_matrix(unit) or slope > _NEAR_SLOPE or self.defect([unit]) > _NEAR_DEFECT:
            return False
        outputs = [self._output_with({unit: partial(torch.mul, other=s)}) for s in _LARGE_SCALES]
        changes = np.array([float((b - a).norm()) for a, b in itertools.pairwise(outputs)])
        if not (changes > 0).all():
            return False
        return bool(np.allclose(np.log2(changes[:-1] / changes[1:]), _POWER, atol=_POWER_SLACK))

    def _is_unchanged_by(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> bool:
        """Whether the output stays equal when some units are changed."""
        output = self._output_with(changes)
        return bool((output - self._reference).abs().max() <= _TOLERANCE * self._reference.abs().max())

    def _output_with(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Tensor:
        """Output with some units changed for this pass."""
        before: dict[int, Tensor] = {}
        with torch.no_grad():
            for unit, change in changes.items():
                values = self._values(unit)
                before[unit] = values.clone()
                values.copy_(change(before[unit]))
            output = self._random.output(self._samples)
            for unit, values in before.items():
                self._values(unit).copy_(values)
        return output

    def _values(self, unit: int) -> Tensor:
        name, index = self.units[unit]
        parameter = self._random.parameters[name].detach()
        return parameter if index is None else parameter[index]

    def _is_matrix(self, unit: int) -> bool:
        return self._random.parameters[self.units[unit][0]].ndim > 1

    def _is_divided(self, name: str) -> bool:
        return self._per_filter and self._random.parameters[name].ndim > 0

    def _draw_samples(self, most: int = _MOST_SAMPLES) -> Inputs:
        if self._needs_all_samples:
            return draw_samples(self._inputs, self._generator, count_samples(self._inputs))
        fitting = max(_FEWEST_SAMPLES, min(most, _MOST_NUMBERS // max(1, sample_size(self._inputs))))
        return draw_samples(self._inputs, self._generator, fitting)


def _gradients_by_backward(
    output: Tensor, parameters: Sequence[Tensor], directions: Tensor
) -> list[tuple[Tensor | None, ...]]:
    """Derivatives of `output` along each of the `directions`, by the pass that training uses."""
    engine, rows = torch.autograd.Variable._execution_engine, []
    for direction in directions:
        for parameter in parameters:
            parameter.grad = None
        # torch.autograd.backward would run checkpointed parts outside the mode of the model copy
        engine.run_backward((output,), (direction,), True, False, (), allow_unreachable=True, accumulate_grad=True)
        rows.append(tuple(_dense(parameter.grad) for parameter in parameters))
    for parameter in parameters:
        parameter.grad = None
    return rows


def _dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _are_close(gradients: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether gradients agree up to rounding; None is zero."""
    differences, sizes = [], []
    for a, b in zip(gradients, others, strict=True):
        pair = [tensor for tensor in (a, b) if tensor is not None]
        difference = a - b if a is not None and b is not None else sum(pair, torch.zeros(()))
        differences.append(float(difference.norm()))
        sizes.append(max((float(tensor.norm()) for tensor in pair), default=0.0))
    rounding = _NO_GRADIENT * max(sizes, default=0.0)  # the whole gradient of an inert parameter
    return all(difference <= _TOLERANCE * size + rounding for difference, size in zip(differences, sizes, strict=True))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _rank(derivatives: npt.NDArray[np.float64]) -> int:
    return 0 if derivatives.size == 0 else _rank_of(np.linalg.svd(derivatives, compute_uv=False))


def _rank_of(values: npt.NDArray[np.floating[Any]]) -> int:
    return int((values > _TOLERANCE * max(values.max(), 1.0)).sum())


def _null_space(derivatives: npt.NDArray[np.float64], size: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Orthonormal basis, shape (units, symmetries), of the exponents c with Σ c_i ⟨∂f/∂w_i, w_i⟩ = 0 in every row."""
    if derivatives.shape[1] == 0:
        return np.zeros((0, 0))
    _, values, vectors = np.linalg.svd(derivatives, full_matrices=len(derivatives) < derivatives.shape[1])
    basis: npt.NDArray[np.float64] = np.linalg.qr(vectors[_rank_of(values) :].T / size[:, None])[0]
    return basis


def _small_sets(null: npt.NDArray[np.float64], is_matrix: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Disjoint small sets of rows whose indicator vector lies in the column space of `null`.

    In the echelon basis with the earliest possible pivots, the later rows depend on the earlier ones. So the vector of
    a residual stream holds the weights that write into it last, not those before them in the same branch. Sums and
    differences with other vectors of the basis make a set smaller, or make it one of zeros and ones. Sets with a matrix
    are chosen before others, then smaller and later ones.
    """
    sets: list[list[int]] = []
    while null.size:
        vectors = _echelon(null)
        simplified = [_simplify(vector, np.delete(vectors, number, axis=0)) for number, vector in enumerate(vectors)]
        candidates = [np.flatnonzero(vector).tolist() for vector in simplified if np.isin(vector, (0, 1)).all()]
        candidates.sort(key=lambda rows: (not is_matrix[rows].any(), len(rows), -sum(rows)))
        used: set[int] = set()
        for rows in candidates:
            if not used & set(rows):
                used |= set(rows)
                sets.append(rows)
        if not used:
            break
        # keep the vectors that are zero at all used rows
        _, values, directions = np.linalg.svd(null[sorted(used)])
        null = null @ directions[int((values > _SLACK).sum()) :].T
    return sets


def _simplify(vector: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add or subtract other vectors while that leaves fewer entries besides 0 and 1, or then fewer entries."""

    def cost(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        wrong = np.minimum(np.abs(sums), np.abs(sums - 1)).sum(axis=-1)
        return wrong * sums.shape[-1] + (sums != 0).mean(axis=-1)  # type: ignore[no-any-return]

    while len(others):
        sums = np.concatenate([vector + others, vector - others])
        costs = cost(sums)
        best = int(np.argmin(costs))
        if costs[best] >= cost(vector):
            break
        vector = sums[best]
    return vector


def _echelon(null: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Reduced echelon basis of the column space, shape (symmetries, units), entries near a multiple of ½ rounded."""
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
    return np.where(np.abs(basis - halves) < _SLACK, halves, basis) + 0.0
