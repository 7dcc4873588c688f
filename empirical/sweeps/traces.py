"""Trajectories of a sweep as variables of one data set. Values are read from the logs when they are used."""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from empirical.config import RunConfig
from simulate.trajectories.contract import SCHEMA, variable_attributes
from simulate.trajectories.folder import CONFIG, EVALS, STEPS, RunDescription
from simulate.trajectories.log import column, column_names, read_records, size_of_log

_Grid = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]
_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoredTrajectory:
    """Folder of a run, and number of valid rows of its trajectory."""

    folder: Path
    rows: int


class _RunVariable(BackendArray):
    """Variable of all runs, NaN where a run has no value.

    `stored` is an array of StoredTrajectory with the dimensions of the sweep, None where a run has no rows. `shape` is
    that of the variable of one run.
    """

    def __init__(self, stored: _Grid, name: str, shape: tuple[int, ...]) -> None:
        self._stored, self._name = stored, name
        self.shape, self.dtype = (*stored.shape, *shape), np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> _Floats:
        indices = [np.atleast_1d(np.arange(size)[part]) for part, size in zip(key, self.shape, strict=True)]
        of_runs, of_values = indices[: self._stored.ndim], indices[self._stored.ndim :]
        values = np.full([len(numbers) for numbers in indices], np.nan)
        for place in np.ndindex(*values.shape[: self._stored.ndim]):
            run = self._stored[tuple(numbers[i] for numbers, i in zip(of_runs, place, strict=True))]
            if run is not None:
                self._fill(values[place], run, *of_values)
        # a single number drops its dimension
        return values[tuple(0 if isinstance(part, (int, np.integer)) else slice(None) for part in key)]

    @abstractmethod
    def _fill(self, values: _Floats, run: StoredTrajectory, *indices: _Numbers) -> None:
        """Fill `values` with those of a run at the indices along each dimension."""


class _StepVariable(_RunVariable):
    """Variable along the steps, and along the groups if it has that dimension."""

    def _fill(self, values: _Floats, run: StoredTrajectory, *indices: _Numbers) -> None:
        steps = indices[0]
        available = np.flatnonzero(steps < run.rows)
        if not len(available):
            return
        first, last = int(steps[available].min()), int(steps[available].max())
        description = _read_description(run.folder)
        records = read_records(run.folder / STEPS, description.step_log, first, last + 1)
        if len(records) < last + 1 - first:
            _warn_of_damage(run.folder / STEPS)
        available = available[steps[available] < first + len(records)]
        recorded = column(records, self._name, description.attributes)[steps[available] - first]
        values[available] = recorded[:, indices[1]] if len(indices) > 1 else recorded


class _EvaluationVariable(_RunVariable):
    """Evaluation along the evaluation steps."""

    def __init__(self, stored: _Grid, name: str, eval_steps: _Numbers) -> None:
        super().__init__(stored, name, eval_steps.shape)
        self._steps = eval_steps

    def _fill(self, values: _Floats, run: StoredTrajectory, *indices: _Numbers) -> None:
        description = _read_description(run.folder)
        records = read_records(run.folder / EVALS, description.evaluation_log)
        least = -(-run.rows // int(description.config.get("evaluate_every", run.rows + 1)))
        if len(records) < max(least, size_of_log(run.folder / EVALS) // description.evaluation_log.itemsize):
            _warn_of_damage(run.folder / EVALS)
        records = records[records["eval_step"] <= run.rows]
        by_step = dict(zip(records["eval_step"].tolist(), records[self._name].tolist(), strict=True))
        values[:] = [by_step.get(step, np.nan) for step in self._steps[indices[0]].tolist()]


def _warn_of_damage(log: Path) -> None:
    warnings.warn(f"{str(log)!r} is damaged; values that it should have are NaN", stacklevel=2)


@functools.lru_cache(maxsize=4096)
def _read_description(folder: Path) -> RunDescription:
    return RunDescription.read(folder)


def add_trajectories(
    opened: xr.Dataset,
    configs: Sequence[RunConfig],
    places: Sequence[tuple[int, ...]],
    stored: Sequence[StoredTrajectory],
) -> xr.Dataset:
    """Add the trajectories to the summaries of a sweep.

    `places` has the indices of each run along the dimensions of `opened`, `stored` its trajectory. Variables of
    trajectories are along (swept settings …, `step`), evaluations along `eval_step`. Only one description of each kind
    of run is read.
    """
    shape = tuple(opened.sizes.values())
    grid: _Grid = np.full(shape, None, dtype=object)
    kinds: dict[str, RunDescription] = {}
    eval_steps: set[int] = set()
    for config, place, run in zip(configs, places, stored, strict=True):
        if not (run.folder / CONFIG).is_file():
            # folders of runs may be deleted, or not be there yet
            if run.rows and run.folder.is_dir():
                _warn_of_damage(run.folder / CONFIG)
            continue
        grid[place] = run
        if config.shape not in kinds:
            kinds[config.shape] = _read_description(run.folder)
        eval_steps.update(range(0, run.rows + 1, config.evaluate_every), [run.rows])
    if not kinds:
        return opened
    steps = max(run.rows for run in grid.flat if run is not None)
    first, *others = kinds.values()
    groups = list(first.groups) if all(list(other.groups) == list(first.groups) for other in others) else None
    coords: dict[str, Any] = {"step": np.arange(steps), "eval_step": np.array(sorted(eval_steps))}
    variables: dict[str, Any] = {}
    for name in column_names(first.attributes):
        if name in opened.variables or (name.startswith("group_") and groups is None):
            # in a sweep of schedules the dimension is already called lr
            continue
        sizes = {"step": steps, **({"group": len(groups or ())} if name.startswith("group_") else {})}
        lazy = indexing.LazilyIndexedArray(_StepVariable(grid, name, tuple(sizes.values())))
        variables[name] = ((*opened.dims, *sizes), lazy, variable_attributes(name))
    if groups is not None:
        coords["group"] = np.array(groups, dtype=object)
    for name in first.evaluations:
        if all(name in other.evaluations for other in others):
            lazy = indexing.LazilyIndexedArray(_EvaluationVariable(grid, name, coords["eval_step"]))
            variables[name] = ((*opened.dims, "eval_step"), lazy, variable_attributes(name))
    for name in ("optimizer", "constraint"):
        texts = {shape_of_run: str(kind.attributes[name]) for shape_of_run, kind in kinds.items()}
        opened = _add_labels(opened, configs, places, name, texts)
    attributes = {name: value for name, value in first.attributes.items() if name not in opened.coords}
    common = {
        name: value
        for name, value in attributes.items()
        if name != "config" and all(other.attributes.get(name) == value for other in others)
    }
    last = [name for name in variables if name in opened]
    return (
        opened.drop_vars(last)
        .assign(variables)
        .assign_coords({name: ((name,), values, variable_attributes(name)) for name, values in coords.items()})
        .assign_attrs({"source": "training", "schema": SCHEMA, **common})
    )


def _add_labels(
    opened: xr.Dataset,
    configs: Sequence[RunConfig],
    places: Sequence[tuple[int, ...]],
    name: str,
    texts: Mapping[str, str],
) -> xr.Dataset:
    """Name the optimizers, or the constraints, as the trajectories do, if they differ between the runs.

    `texts` has the labels by the shape of a run. The labels of a dimension stay unchanged if the new labels would not
    be distinct, or if one label would need several texts.
    """
    is_known = name in opened.coords
    if not is_known and len(set(texts.values())) == 1:
        return opened
    sizes = opened[name].sizes if is_known else opened.sizes
    axes = [list(opened.sizes).index(dim) for dim in sizes]
    by_place: dict[tuple[int, ...], str] = {}
    for config, place in zip(configs, places, strict=True):
        at, text = tuple(place[axis] for axis in axes), texts.get(config.shape)
        if text is not None and by_place.setdefault(at, text) != text:
            return opened
    labels: _Grid = opened[name].values.copy() if is_known else np.full(tuple(sizes.values()), "", dtype=object)
    for at, text in by_place.items():
        labels[at] = text
    if name in opened.dims and len(set(labels)) < len(labels):
        return opened
    return opened.assign_coords({name: (tuple(sizes), labels)})
