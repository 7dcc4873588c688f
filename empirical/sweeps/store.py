"""Folder of a sweep: its settings, a log of run summaries, and all of it as one data set."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from empirical.config import RunConfig
from empirical.sweeps.grid import check_different, setting_value, swept_settings
from empirical.sweeps.task import (
    FAILED,
    RUNS_FOLDER,
    SESSION_FILE,
    Summary,
    SweepOptions,
    identity_path,
    required_growth,
    run_path,
)
from empirical.sweeps.traces import StoredTrajectory, add_trajectories
from simulate._files import LOCK, DamagedFileError, check_regular, lock_folder, read_json, write_json
from simulate.trajectories.contract import SCHEMA, variable_attributes
from simulate.trajectories.folder import count_steps
from simulate.trajectories.log import CHECK
from theory.arguments import check_path
from theory.optimizers import format_optimizer

_SWEEP, _SUMMARIES, _DROPPED = "sweep.json", "summaries.log", ".dropped"
# digest of the module and arrays of all runs that use some
_OWN = "own"
PENDING = "pending"
# columns of the overview
_OVERVIEW = ("status", "status_step", "verdict", "period", "period_stderr", "norm_min", "norm_max", "test_error")


class SweepFolder:
    """Folder of a sweep, locked by one process at a time. Runs of an earlier sweep in it are kept and reused."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path("out", path)
        written = {name + end for name in (_SWEEP, SESSION_FILE) for end in ("", ".partial")}
        own_files = {LOCK, _SUMMARIES, RUNS_FOLDER, *written}
        self._lock = lock_folder(self.path, "a sweep", lambda names: names <= own_files)

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def check_own(self, own: str) -> None:
        """Raise ValueError if there are runs of another module or of other arrays; `own` is the digest of these."""
        stored = self._stored_own()
        if own and stored and own != stored:
            raise ValueError(
                f"out must hold runs of this model and data, but {str(self.path)!r} holds others; choose another"
            )

    def _stored_own(self) -> str:
        file = self.path / _SWEEP
        return str(read_json(file, "path").get(_OWN, "")) if os.path.lexists(file) else ""

    def begin(self, configs: Sequence[RunConfig], own: str = "") -> str:
        """Write the settings of the sweep and a new session key. Return the key.

        Runs continue while the session file has their key. Runs of a killed process therefore stop. `own` is the digest
        of a module and arrays that the runs use.
        """
        _cut_to_whole_lines(self.path / _SUMMARIES)
        for folder in self.path.glob(f"{RUNS_FOLDER}/*/*{_DROPPED}"):
            shutil.rmtree(folder, ignore_errors=True)
        settings = [config.to_dict() for config in check_different(configs)]
        # settings that all runs share once, the others as one row per run
        varied = [name for name in settings[0] if any(other[name] != settings[0][name] for other in settings)]
        table: dict[str, Any] = {
            "schema": SCHEMA,
            "common": {name: value for name, value in settings[0].items() if name not in varied},
            "varied": varied,
            "runs": [[run[name] for name in varied] for run in settings],
        }
        if own := own or self._stored_own():
            table[_OWN] = own
        write_json(self.path / _SWEEP, table, indent=None)
        session = uuid.uuid4().hex
        write_json(self.path / SESSION_FILE, session)
        return session

    def stop(self) -> None:
        """Make all runs of the sweep stop, on every worker."""
        (self.path / SESSION_FILE).unlink(missing_ok=True)

    def append(self, *summaries: Summary) -> None:
        """Append summaries to the log."""
        lines = [_with_check(json.dumps(summary.to_dict(), allow_nan=False)) + b"\n" for summary in summaries]
        with open(self.path / _SUMMARIES, "ab") as file:
            file.write(b"".join(lines))

    def drop(self, summaries: Iterable[Summary]) -> None:
        """Delete the folders of runs, whose summaries stay in the log."""
        for summary in summaries:
            folder = identity_path(self.path, summary.identity)
            dropped = folder.with_name(folder.name + _DROPPED)
            # rename first: a run must not continue in a partly deleted folder
            with suppress(FileNotFoundError):
                os.rename(folder, dropped)
            shutil.rmtree(dropped, ignore_errors=True)


def _with_check(line: str) -> bytes:
    """Line of JSON with a checksum of the rest as its first entry."""
    return f'{{"{CHECK}": "{zlib.crc32(line.encode()):08x}", {line[1:]}'.encode()


_CHECK_SIZE = len(_with_check("{"))


def read_summaries(path: Path) -> dict[str, Summary]:
    """Read the last summary of each run of a sweep, by identity.

    An incomplete last line is ignored, and a damaged line too, with a warning: its run counts as not ended.
    """
    file = path / _SUMMARIES
    if not os.path.lexists(file):
        return {}
    check_regular(file, "path")
    summaries, bad = {}, []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            content = json.loads(line)
            # lines of earlier versions have no checksum
            if content.pop(CHECK, None) is not None and _with_check("{" + line[_CHECK_SIZE:].decode()) != line:
                raise ValueError
            summary = Summary.from_dict(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            bad.append(number)
        else:
            summaries[summary.identity] = summary
    if bad:
        warnings.warn(
            f"{str(file)!r} is damaged in line {', '.join(map(str, bad[:5]))}{' …' if bad[5:] else ''}; the runs of "
            "these lines count as not ended",
            stacklevel=3,
        )
    return summaries


def _cut_to_whole_lines(file: Path) -> None:
    """Cut off an incomplete last line, so that the next line starts correctly."""
    if file.exists():
        content = file.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(file, complete)


def read_configs(path: Path) -> tuple[RunConfig, ...]:
    """Read the settings of all runs of a sweep."""
    file = path / _SWEEP
    if not file.is_file():
        raise ValueError(f"path must be the folder of a sweep, got {str(path)!r}")
    table = read_json(file, "path")
    try:
        common, varied = table["common"], table["varied"]
        settings = [{**common, **dict(zip(varied, row, strict=True))} for row in table["runs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError("path", file, f"it has no settings of runs ({type(error).__name__})") from None
    return tuple(RunConfig.from_dict(run) for run in settings)


def open_sweep(path: str | os.PathLike[str], *, traces: bool = False) -> xr.Dataset:
    """Open a sweep as one data set, also while it is under way.

    Parameters
    ----------
    path : folder of the sweep.
    traces : include the trajectories as variables along the settings and `step`, NaN where a run has no row. Values
        are read from the logs only when they are used, so select before computing. Evaluations then have the dimension
        `eval_step`. Swept optimizers are named as in the trajectories, with `dim` the number of measured weights,
        unless that number depends on another setting.

    Returns
    -------
    Dataset. If all combinations of the swept settings exist, these settings are its dimensions. Otherwise the dimension
    is `run`, with the settings as coordinates. Variables: `status` ("pending" before the run has ended), `status_step`,
    `seconds`, `verdict` (of `simulate.classify`, "" if there is none), `error`, `folder` (for `simulate.load`), and the
    numbers of `Summary`, NaN if undetermined.

    Raises
    ------
    ValueError : `path` is not the folder of a sweep.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> folder = SweepFolder(tempfile.mkdtemp())
    >>> session = folder.begin(grid(lr=[0.1, 0.5], wd=0.01, seed=range(3)))
    >>> dict(open_sweep(folder.path).sizes)
    {'lr': 2, 'seed': 3}
    """
    folder = check_path("path", path)
    configs, summaries = read_configs(folder), read_summaries(folder)
    axes = {name: [_to_label(value) for value in values] for name, values in swept_settings(configs).items()}
    shape = tuple(len(values) for values in axes.values())
    order = [tuple(_to_label(setting_value(config, name)) for name in axes) for config in configs]
    # runs differ, so this many runs are all combinations
    if math.prod(shape) == len(configs):
        numbers = {name: {label: i for i, label in enumerate(labels)} for name, labels in axes.items()}
        at = [tuple(numbers[name][label] for name, label in zip(axes, labels, strict=True)) for labels in order]
        dims, coords = tuple(axes), {name: (name, _to_array(labels)) for name, labels in axes.items()}
    else:
        at, shape, dims = [(i,) for i in range(len(configs))], (len(configs),), ("run",)
        coords = {name: ("run", _to_array(labels)) for name, labels in zip(axes, zip(*order, strict=True), strict=True)}
    columns = _columns(folder, configs, summaries)
    variables = {}
    for name, values in columns.items():
        flat = _to_array(values)
        array = np.empty(shape, dtype=flat.dtype)
        for indices, value in zip(at, flat, strict=True):
            array[indices] = value
        variables[name] = (dims, array, variable_attributes(name))
    opened = xr.Dataset(variables, coords)
    for name in axes:
        opened[name].attrs.update(variable_attributes(name))
    if not traces:
        return opened
    stored = [_stored_trajectory(folder, config, summaries) for config in configs]
    return add_trajectories(opened, configs, at, stored)


def _stored_trajectory(path: Path, config: RunConfig, summaries: Mapping[str, Summary]) -> StoredTrajectory:
    folder, summary = run_path(path, config), summaries.get(config.identity)
    if summary is not None and summary.is_final:
        return StoredTrajectory(folder, summary.status_step)
    return StoredTrajectory(folder, count_steps(folder))


def _columns(path: Path, configs: Sequence[RunConfig], summaries: Mapping[str, Summary]) -> dict[str, list[Any]]:
    by_run = [
        summaries.get(config.identity)
        or Summary(identity=config.identity, steps=config.steps, status=PENDING, status_step=0, seconds=0.0)
        for config in configs
    ]
    fields = ("status", "status_step", "seconds", "verdict", "error")
    columns = {name: [getattr(summary, name) for summary in by_run] for name in fields}
    columns["folder"] = [str(run_path(path, config)) for config in configs]
    for name in sorted({name for summary in by_run for name in summary.numbers}):
        columns[name] = [summary.numbers.get(name, math.nan) for summary in by_run]
    return columns


def format_overview(opened: xr.Dataset, most: int = 40) -> str:
    """Format the result of `open_sweep` with one line per run; for more than `most` runs, count them by status."""
    has_verdict = (opened.verdict != "") | opened.status.isin([PENDING, FAILED])
    labelled = opened.assign(verdict=opened.verdict.where(has_verdict, "none"))
    columns = [name for name in _OVERVIEW if name in labelled]
    columns = [name for name in columns if not (name == "verdict" and not (labelled.verdict != "").any())]
    data = labelled[columns]
    table = data.to_dataframe().reset_index() if labelled.sizes else data.expand_dims("run").to_dataframe()
    table = table[[*labelled.coords, *columns]]
    counts = ", ".join(f"{count} {status}" for status, count in table.status.value_counts().items())
    if len(table) > most:
        return counts
    return f"{table.to_string(index=False, float_format='{:.4g}'.format, na_rep='')}\n{counts}"


def format_goal(path: str | os.PathLike[str], until: float | None, periods: int | None) -> str:
    """Return a text that says how many runs of a sweep have not reached a goal, with `until`, `periods` of `sweep`."""
    folder = Path(path)
    options, by_identity = SweepOptions(out=folder, until=until, periods=periods), read_summaries(folder)
    summaries = [by_identity.get(config.identity) for config in read_configs(folder)]
    at_equilibrium = sum(summary is not None and summary.is_at_equilibrium for summary in summaries)
    missed = sum(
        summary is None or not (summary.is_at_equilibrium or required_growth(summary, options) <= 1)
        for summary in summaries
    )
    note = f"; {at_equilibrium} at equilibrium, without periods" if at_equilibrium else ""
    return f"not reached by {missed} of {len(summaries)} runs{note}"


def _to_label(value: Any) -> Any:
    """Return a coordinate label: numbers and text unchanged, anything else as text."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    return format_optimizer(value) if hasattr(value, "update") else repr(value)


def _to_array(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    if all(isinstance(value, (int, float)) for value in values):
        return np.asarray(values)
    # zarr has no stable format for text of fixed length
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
