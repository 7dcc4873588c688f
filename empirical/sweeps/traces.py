"""The trajectories of a sweep as variables of one data set, which are read from the logs when they are used."""

from __future__ import annotations

import functools
import json
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
from simulate.trajectories.contract import variable_attributes
from simulate.trajectories.folder import CONFIG, EVALS, STEPS
from simulate.trajectories.log import column, column_names, evaluation_log, read_records, step_log

Grid = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Where the rows of a run are.

    Attributes
    ----------
    folder : of the run.
    rows : so many of them are valid.
    """

    folder: Path
    rows: int


class _OfRuns(BackendArray):
    """One variable of all runs, NaN where a run has no value.

    Parameters
    ----------
    traces : of the runs, an array of objects in the shape of the sweep's dimensions; None where there is nothing.
    name : of the variable.
    shape : of the variable of one run.
    """

    def __init__(self, traces: Grid, name: str, shape: tuple[int, ...]) -> None:
        self._traces, self._name = traces, name
        self.shape, self.dtype = (*traces.shape, *shape), np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Floats:
        wanted = [np.atleast_1d(np.arange(size)[part]) for part, size in zip(key, self.shape, strict=True)]
        of_runs, of_values = wanted[: self._traces.ndim], wanted[self._traces.ndim :]
        values = np.full([len(numbers) for numbers in wanted], np.nan)
        for place in np.ndindex(*values.shape[: self._traces.ndim]):
            trace = self._traces[tuple(numbers[i] for numbers, i in zip(of_runs, place, strict=True))]
            if trace is not None:
                self._fill(values[place], trace, *of_values)
        # a single number drops its dimension
        return values[tuple(0 if isinstance(part, (int, np.integer)) else slice(None) for part in key)]

    @abstractmethod
    def _fill(self, values: Floats, trace: Trace, *wanted: Numbers) -> None:
        """Write what a run has of the wanted values; `wanted` are their numbers along each dimension."""


class _Rows(_OfRuns):
    """One variable along the steps, and the groups if it has such."""

    def _fill(self, values: Floats, trace: Trace, *wanted: Numbers) -> None:
        steps = wanted[0]
        there = np.flatnonzero(steps < trace.rows)
        if not len(there):
            return
        first, last = int(steps[there].min()), int(steps[there].max())
        content = _description(trace.folder)
        records = read_records(trace.folder / STEPS, step_log(content), first, last + 1)
        # a damaged log ends earlier than it should
        there = there[steps[there] < first + len(records)]
        found = column(records, self._name, content["attributes"])[steps[there] - first]
        values[there] = found[:, wanted[1]] if len(wanted) > 1 else found


class _Evaluations(_OfRuns):
    """One evaluation."""

    def __init__(self, traces: Grid, name: str, eval_steps: Numbers) -> None:
        super().__init__(traces, name, eval_steps.shape)
        self._steps = eval_steps

    def _fill(self, values: Floats, trace: Trace, *wanted: Numbers) -> None:
        records = read_records(trace.folder / EVALS, evaluation_log(_description(trace.folder)))
        records = records[records["eval_step"] <= trace.rows]
        known = dict(zip(records["eval_step"].tolist(), records[self._name].tolist(), strict=True))
        values[:] = [known.get(step, np.nan) for step in self._steps[wanted[0]].tolist()]


@functools.lru_cache(maxsize=4096)
def _description(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return content


def with_traces(
    opened: xr.Dataset, configs: Sequence[RunConfig], places: Sequence[tuple[int, ...]], traces: Sequence[Trace]
) -> xr.Dataset:
    """Add the trajectories to the summaries of a sweep.

    Parameters
    ----------
    opened : the summaries.
    configs : the runs.
    places : of each along the dimensions of `opened`.
    traces : of each; runs without rows have no trace.

    Returns
    -------
    The same with the variables of the trajectory contract along (swept settings …, `step`), and evaluations along
    `eval_step`; nothing is read but one description of each kind of run.

    Examples
    --------
    >>> empty = with_traces(xr.Dataset(), [RunConfig(lr=0.1, wd=0.01)], [()], [Trace(Path("nothing"), 0)])
    >>> dict(empty.sizes)
    {}
    """
    shape = tuple(opened.sizes.values())
    grid: Grid = np.full(shape, None, dtype=object)
    kinds: dict[str, dict[str, Any]] = {}
    eval_steps: set[int] = set()
    for config, place, trace in zip(configs, places, traces, strict=True):
        if not (trace.folder / CONFIG).is_file():
            continue
        grid[place] = trace
        kinds.setdefault(config.shape, _description(trace.folder))
        eval_steps.update(range(0, trace.rows + 1, config.evaluate_every), [trace.rows])
    if not kinds:
        return opened
    steps = max(trace.rows for trace in grid.flat if trace is not None)
    first, *others = kinds.values()
    groups = first["groups"] if all(other["groups"] == first["groups"] for other in others) else None
    coords: dict[str, Any] = {"step": np.arange(steps), "eval_step": np.array(sorted(eval_steps))}
    variables: dict[str, Any] = {}
    for name in column_names(first["attributes"]):
        if name in opened.variables or (name.startswith("group_") and groups is None):
            # the rates of a schedule have the name of the dimension where schedules are compared
            continue
        sizes = {"step": steps, **({"group": len(groups or ())} if name.startswith("group_") else {})}
        lazy = indexing.LazilyIndexedArray(_Rows(grid, name, tuple(sizes.values())))
        variables[name] = ((*opened.dims, *sizes), lazy, variable_attributes(name))
    if groups is not None:
        coords["group"] = np.array(groups, dtype=object)
    for name in first["evaluations"]:
        if all(name in other["evaluations"] for other in others):
            lazy = indexing.LazilyIndexedArray(_Evaluations(grid, name, coords["eval_step"]))
            variables[name] = ((*opened.dims, "eval_step"), lazy, variable_attributes(name))
    rules = {shape_of_run: kind["attributes"]["optimizer"] for shape_of_run, kind in kinds.items()}
    opened = _with_rules(opened, configs, places, rules)
    attributes = {name: value for name, value in first["attributes"].items() if name not in opened.coords}
    common = {
        name: value
        for name, value in attributes.items()
        if name != "config" and all(other["attributes"].get(name) == value for other in others)
    }
    last = [name for name in variables if name in opened]
    return (
        opened.drop_vars(last)
        .assign(variables)
        .assign_coords({name: ((name,), values, variable_attributes(name)) for name, values in coords.items()})
        .assign_attrs({"source": "training", "schema": first["schema"], **common})
    )


def _with_rules(
    opened: xr.Dataset, configs: Sequence[RunConfig], places: Sequence[tuple[int, ...]], rules: Mapping[str, str]
) -> xr.Dataset:
    """Name the optimizers as the trajectories do, with what is held fixed and the number of measured weights.

    `rules` are their names by the shape of a run. Labels of a dimension stay what they are where they would not be
    different, or where a further setting makes several of one.
    """
    is_given = "optimizer" in opened.coords
    if not is_given and len(set(rules.values())) == 1:
        return opened
    sizes = opened.optimizer.sizes if is_given else opened.sizes
    axes = [list(opened.sizes).index(dim) for dim in sizes]
    found: dict[tuple[int, ...], str] = {}
    for config, place in zip(configs, places, strict=True):
        at, rule = tuple(place[axis] for axis in axes), rules.get(config.shape)
        if rule is not None and found.setdefault(at, rule) != rule:
            return opened
    told: Grid = opened.optimizer.values.copy() if is_given else np.full(tuple(sizes.values()), "", dtype=object)
    for at, rule in found.items():
        told[at] = rule
    if "optimizer" in opened.dims and len(set(told)) < len(told):
        return opened
    return opened.assign_coords(optimizer=(tuple(sizes), told))
