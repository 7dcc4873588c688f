"""The folder of a sweep: its runs, one log of what became of them, and all of it as one data set."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from empirical.config import RunConfig
from empirical.sweeps.grid import different, swept, swept_value
from empirical.sweeps.task import FAILED, RUNS, SESSION, Summary, Terms, identity_path, lacking, run_path
from empirical.sweeps.traces import Trace, with_traces
from simulate._files import LOCK, lock_folder, write_json
from simulate.trajectories.contract import variable_attributes
from simulate.trajectories.folder import count_steps
from theory.optimizers import format_optimizer

_SWEEP, _SUMMARIES, _DROPPED = "sweep.json", "summaries.log", ".dropped"
PENDING = "pending"
# columns of the overview
_SHOWN = ("status", "status_step", "verdict", "period", "period_stderr", "norm_min", "norm_max", "test_error")


class SweepFolder:
    """A sweep on disk, written by one process at a time.

    Parameters
    ----------
    path : the folder; made if it does not exist. Runs of another sweep in it stay there, and are used again.

    Raises
    ------
    ValueError : the folder cannot be written, holds something else, or is being written by another process.

    Examples
    --------
    >>> import tempfile
    >>> folder = SweepFolder(Path(tempfile.mkdtemp()) / "sweep")
    >>> read_summaries(folder.path)
    {}
    >>> folder.close()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        ours = {LOCK, _SWEEP, _SWEEP + ".partial", _SUMMARIES, RUNS, SESSION, SESSION + ".partial"}
        self._lock = lock_folder(self.path, "a sweep", lambda names: names <= ours)

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def begin(self, configs: Sequence[RunConfig]) -> str:
        """Write what the sweep is, in place of what it was, and return the word by which its runs know that it goes on.

        Runs of a process that was killed, wherever they still are, stop when they see another word.
        """
        _cut_to_whole_lines(self.path / _SUMMARIES)
        for left in self.path.glob(f"{RUNS}/*/*{_DROPPED}"):
            shutil.rmtree(left, ignore_errors=True)
        write_json(self.path / _SWEEP, _table([config.to_dict() for config in different(configs)]), indent=None)
        word = uuid.uuid4().hex
        write_json(self.path / SESSION, word)
        return word

    def stop(self) -> None:
        """Let the runs stop, wherever they are."""
        (self.path / SESSION).unlink(missing_ok=True)

    def append(self, *summaries: Summary) -> None:
        """Add what became of runs."""
        lines = [json.dumps(summary.to_dict(), allow_nan=False).encode() + b"\n" for summary in summaries]
        with open(self.path / _SUMMARIES, "ab") as file:
            file.write(b"".join(lines))

    def drop(self, summaries: Iterable[Summary]) -> None:
        """Delete the folders of runs of which nothing but the summary is wanted."""
        for summary in summaries:
            folder = identity_path(self.path, summary.identity)
            aside = folder.with_name(folder.name + _DROPPED)
            # a folder of which half is deleted is none that a run could go on from
            with suppress(FileNotFoundError):
                os.rename(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _table(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of many runs: those of all once, the others as rows."""
    first = settings[0]
    varied = [name for name in first if any(other[name] != first[name] for other in settings)]
    return {
        "common": {name: value for name, value in first.items() if name not in varied},
        "varied": varied,
        "runs": [[one[name] for name in varied] for one in settings],
    }


def read_summaries(path: Path) -> dict[str, Summary]:
    """Read the last summary of each run of a sweep, by identity; a line that was cut while it was written is left out.

    Examples
    --------
    >>> read_summaries(Path("no such folder"))
    {}
    """
    file = path / _SUMMARIES
    if not file.exists():
        return {}
    found = {}
    for line in file.read_bytes().split(b"\n")[:-1]:
        summary = Summary.from_dict(json.loads(line))
        found[summary.identity] = summary
    return found


def _cut_to_whole_lines(file: Path) -> None:
    """Drop what a killed process left of a last line, so that the next one begins a new line."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)


def read_configs(path: Path) -> tuple[RunConfig, ...]:
    """Read the runs of a sweep.

    Raises
    ------
    ValueError : no folder of a sweep.

    Examples
    --------
    >>> read_configs(Path("no such folder"))
    Traceback (most recent call last):
    ...
    ValueError: path must be the folder of a sweep, got 'no such folder'
    """
    file = path / _SWEEP
    if not file.is_file():
        raise ValueError(f"path must be the folder of a sweep, got {str(path)!r}")
    table = json.loads(file.read_text(encoding="utf-8"))
    common, varied = table["common"], table["varied"]
    return tuple(RunConfig.from_dict({**common, **dict(zip(varied, row, strict=True))}) for row in table["runs"])


def open_sweep(path: str | os.PathLike[str], *, traces: bool = False) -> xr.Dataset:
    """Open a sweep as one data set, also while it runs.

    Parameters
    ----------
    path : folder of the sweep.
    traces : with the trajectories, as variables along the settings and `step`, NaN where a run has no row. They are
        read from the logs of the runs when they are used: select before computing. The last evaluations become all of
        them, along `eval_step`. Where optimizers are swept, they are then named as in the trajectories, whose `dim` is
        the number of weights that were measured, unless it differs by another setting.

    Returns
    -------
    Dataset whose dimensions are the settings in which the runs differ, if all their combinations are there, else `run`
    with these settings as coordinates. Variables: `status` ("pending" where nothing is known yet), `status_step`,
    `seconds`, `verdict` (of `simulate.classify`, "" where the run is too short to be judged, or has not ended),
    `error`, `folder` (for `simulate.load`), and the numbers of `Summary`, NaN where unknown.

    Raises
    ------
    ValueError : no folder of a sweep.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> word = folder.begin(grid(lr=[0.1, 0.5], wd=0.01, seed=range(3)))
    >>> dict(open_sweep(folder.path).sizes)
    {'lr': 2, 'seed': 3}
    """
    place = Path(path)
    configs, summaries = read_configs(place), read_summaries(place)
    axes = {name: [_label(value) for value in values] for name, values in swept(configs).items()}
    shape = tuple(len(values) for values in axes.values())
    order = [tuple(_label(swept_value(config, name)) for name in axes) for config in configs]
    # runs differ, so that as many as there are combinations are all of them
    if math.prod(shape) == len(configs):
        numbers = {name: {label: i for i, label in enumerate(labels)} for name, labels in axes.items()}
        at = [tuple(numbers[name][label] for name, label in zip(axes, labels, strict=True)) for labels in order]
        dims, coords = tuple(axes), {name: (name, _array(labels)) for name, labels in axes.items()}
    else:
        at, shape, dims = [(i,) for i in range(len(configs))], (len(configs),), ("run",)
        coords = {name: ("run", _array(labels)) for name, labels in zip(axes, zip(*order, strict=True), strict=True)}
    columns = _columns(place, configs, summaries)
    variables = {}
    for name, values in columns.items():
        flat = _array(values)
        filled = np.empty(shape, dtype=flat.dtype)
        for where, value in zip(at, flat, strict=True):
            filled[where] = value
        variables[name] = (dims, filled, variable_attributes(name))
    opened = xr.Dataset(variables, coords)
    for name in axes:
        opened[name].attrs.update(variable_attributes(name))
    if not traces:
        return opened
    return with_traces(opened, configs, at, [_trace(place, config, summaries) for config in configs])


def _trace(place: Path, config: RunConfig, summaries: Mapping[str, Summary]) -> Trace:
    folder, summary = run_path(place, config), summaries.get(config.identity)
    if summary is not None and summary.is_final:
        return Trace(folder, summary.status_step)
    return Trace(folder, count_steps(folder))


def _columns(
    place: Path, configs: Sequence[RunConfig], summaries: Mapping[str, Summary]
) -> dict[str, list[str] | list[float] | list[int]]:
    found = [summaries.get(config.identity) for config in configs]
    names = sorted({name for summary in found if summary for name in summary.numbers})
    columns: dict[str, list[str] | list[float] | list[int]] = {
        "status": [summary.status if summary else PENDING for summary in found],
        "status_step": [summary.status_step if summary else 0 for summary in found],
        "seconds": [summary.seconds if summary else 0.0 for summary in found],
        "verdict": [summary.verdict if summary else "" for summary in found],
        "error": [summary.error if summary else "" for summary in found],
        "folder": [str(run_path(place, config)) for config in configs],
    }
    for name in names:
        columns[name] = [summary.numbers.get(name, math.nan) if summary else math.nan for summary in found]
    return columns


def overview(opened: xr.Dataset, most: int = 40) -> str:
    """Write a sweep as a table with a line for each run, failures and periods first to be seen.

    Parameters
    ----------
    opened : by `open_sweep`.
    most : lines; beyond that, only how many runs have which status.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> word = folder.begin(grid(lr=[0.1, 0.5], wd=0.01))
    >>> print(overview(open_sweep(folder.path)))
     lr  status  status_step
    0.1 pending            0
    0.5 pending            0
    2 pending
    """
    is_told = (opened.verdict != "") | opened.status.isin([PENDING, FAILED])
    told = opened.assign(verdict=opened.verdict.where(is_told, "too short"))
    shown = [name for name in _SHOWN if name in told and not (name == "verdict" and not (told.verdict != "").any())]
    table = told[shown].to_dataframe().reset_index() if told.sizes else told[shown].expand_dims("run").to_dataframe()
    table = table[[*told.coords, *shown]]
    counts = ", ".join(f"{count} {status}" for status, count in table.status.value_counts().items())
    if len(table) > most:
        return counts
    return f"{table.to_string(index=False, float_format='{:.4g}'.format, na_rep='')}\n{counts}"


def goal_line(path: str | os.PathLike[str], until: float | None, periods: int | None) -> str:
    """How many runs of a sweep have the wanted precision, in words.

    Parameters
    ----------
    path : folder of the sweep.
    until, periods : as in `sweep`.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> word = folder.begin(grid(lr=[0.1, 0.5], wd=0.01))
    >>> goal_line(folder.path, until=0.05, periods=None)
    'not reached by 2 of 2 runs'
    """
    place = Path(path)
    terms, known = Terms(out=place, until=until, periods=periods), read_summaries(place)
    found = [known.get(config.identity) for config in read_configs(place)]
    at_rest = sum(summary is not None and summary.rests for summary in found)
    short = sum(summary is None or not (summary.rests or lacking(summary, terms) <= 1) for summary in found)
    rest = f"; {at_rest} left at equilibrium" if at_rest else ""
    return f"not reached by {short} of {len(found)} runs{rest}"


def _label(value: Any) -> Any:
    """What a coordinate can hold: numbers and words as they are, anything else as it is written."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    return format_optimizer(value) if hasattr(value, "update") else repr(value)


def _array(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    if all(isinstance(value, (int, float)) for value in values):
        return np.asarray(values)
    # text of fixed length has no stable form in zarr
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
