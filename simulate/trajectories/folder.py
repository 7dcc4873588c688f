"""Trajectories on disk: saving, loading, and the layout of run folders (read here, written by training)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import xarray as xr

from simulate.trajectories.contract import INTERRUPTED, RUNNING, SCHEMA, make_trajectory
from simulate.trajectories.logs import (
    BLOCK,
    column,
    column_names,
    count_records,
    evaluation_log,
    read_records,
    step_log,
)

# The files of a run folder.
CONFIG, STATUS, STEPS, EVALS, STORE, LOCK = (
    "config.json",
    "status.json",
    "steps.log",
    "evaluations.log",
    "trajectory.zarr",
    "lock",
)


class FolderInUseError(ValueError):
    """Another process is writing the folder."""


def held_folder(path: Path, wanted: str, is_ours: Callable[[set[str]], bool]) -> filelock.BaseFileLock:
    """Make a folder if there is none, and hold it against other processes until the lock is released.

    Parameters
    ----------
    path : the folder.
    wanted : what it may be besides new or empty, for the message.
    is_ours : whether the names in it, if any, are those of what is wanted.

    Raises
    ------
    ValueError : the folder cannot be written, or holds something else.
    FolderInUseError : it is being written by another process.

    Examples
    --------
    >>> import tempfile
    >>> held_folder(Path(tempfile.mkdtemp()), "a run", lambda names: not names).release()
    """
    shown = str(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_ours({file.name for file in path.iterdir()}):
            raise ValueError(f"out must be a new or empty folder or {wanted}, got {shown!r}")
        lock = filelock.FileLock(path / LOCK)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(f"out must not be in use, but another process is writing {shown!r} now") from None
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {shown!r} ({error.strerror})") from None
    return lock


def steps_written(folder: Path) -> int:
    """Whole records in the log of a run folder; 0 where no run has begun.

    Examples
    --------
    >>> steps_written(Path("no such folder"))
    0
    """
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return (folder / STEPS).stat().st_size // step_log(described).itemsize
    except FileNotFoundError:
        return 0


def writable_file(name: str, path: str | os.PathLike[str]) -> Path:
    """Check, before any work, that a file can be written, aside and renamed.

    Parameters
    ----------
    name : of the argument.
    path : of the file; its folder must exist.

    Raises
    ------
    ValueError : it is a folder, is in none, or cannot be written.

    Examples
    --------
    >>> writable_file("out", "no such folder/model.json")
    Traceback (most recent call last):
    ...
    ValueError: out must be a file in an existing folder, got 'no such folder/model.json'
    """
    target = Path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ValueError(f"{name} must be a file in an existing folder, got {os.fspath(path)!r}")
    aside = target.with_name(target.name + ".partial")
    try:
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise ValueError(
            f"{name} must be a file that can be written, got {os.fspath(path)!r}: {error.strerror}"
        ) from None
    return target


def unused_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Check, before any work, that there is nothing at a path yet.

    Examples
    --------
    >>> unused_path("out", "no such folder").name
    'no such folder'
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"{name} must not exist yet, got {str(target)!r}")
    return target


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Where to write what then becomes `path`, a file or a new folder; dropped if the writing fails.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with written_aside(target) as aside:
    ...     _ = aside.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    aside = path.with_name(path.name + ".partial")
    # of a process that was killed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            (shutil.rmtree if aside.is_dir() else os.unlink)(aside)
        raise


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    r"""Write JSON aside and rename, so that a reader never sees half a file.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(target, {"a": 1}); target.read_text()
    '{\n "a": 1\n}'
    """
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.flush()
        os.fsync(file.fileno())


def save(trajectory: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Save a trajectory as a zarr store; written aside and renamed, never over something else.

    Parameters
    ----------
    trajectory : any dataset of the contract.
    path : the store's folder; must not exist.

    Raises
    ------
    TypeError : no dataset.
    ValueError : `path` exists.

    Examples
    --------
    >>> import tempfile
    >>> from simulate.maps.norm_map import norm_map
    >>> target = Path(tempfile.mkdtemp()) / "run.zarr"
    >>> save(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=3), target)
    >>> load(target).norm.size
    3
    """
    if not isinstance(trajectory, xr.Dataset):
        raise TypeError(f"trajectory must be an xarray.Dataset, got {type(trajectory).__name__}")
    write_store(trajectory, unused_path("path", path))


def write_store(trajectory: xr.Dataset, target: Path) -> None:
    """Write the zarr store aside and rename it to `target`, which must not exist.

    Examples
    --------
    >>> import tempfile
    >>> write_store(xr.Dataset({"a": 1}), Path(tempfile.mkdtemp()) / "a.zarr")
    """
    with written_aside(target) as aside:
        trajectory.drop_encoding().to_zarr(aside, mode="w-", consolidated=False)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Load a saved trajectory, or the trajectory of a run folder: running, killed or finished.

    Parameters
    ----------
    path : folder that `save` or a training made.

    Returns
    -------
    Trajectory; of a run that was killed the whole rows that it wrote, with status "interrupted".

    Raises
    ------
    ValueError : `path` holds no trajectory, or one of a newer schema.

    Examples
    --------
    >>> load("no such folder")
    Traceback (most recent call last):
    ...
    ValueError: path must be a saved trajectory or a run folder, got 'no such folder'
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        if not (folder / STORE).is_dir():
            return _read_run(folder)
        folder = folder / STORE
    if not (folder / "zarr.json").is_file():
        raise ValueError(f"path must be a saved trajectory or a run folder, got {str(path)!r}")
    dataset: xr.Dataset = xr.open_zarr(folder, consolidated=False, chunks=None).load()
    _check_schema(dataset.attrs.get("schema"), folder)
    # the store has its own type for text (and none for text of size zero)
    text = [name for name in ("status", "group", "verdict", "oscillation") if name in dataset.variables]
    return dataset.assign({name: dataset[name].astype(object) for name in text}).drop_encoding()


def _check_schema(schema: Any, folder: Path) -> None:
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(f"path must hold a trajectory of schema <= {SCHEMA}, got {schema!r} in {str(folder)!r}")


def is_locked(folder: Path) -> bool:
    """Tell whether a process is writing the run folder now.

    Examples
    --------
    >>> is_locked(Path("no such folder"))
    False
    """
    path = folder / LOCK
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def _state_of_run(folder: Path) -> tuple[dict[str, Any], str, int]:
    """Description, status and number of valid rows of a run folder."""
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    _check_schema(described.get("schema"), folder)
    status = json.loads((folder / STATUS).read_text(encoding="utf-8")) if (folder / STATUS).exists() else {}
    word = status.get("status", RUNNING)
    if word == RUNNING and not is_locked(folder):
        word = INTERRUPTED
    count = count_records(folder / STEPS, step_log(described))
    if word not in (RUNNING, INTERRUPTED):
        count = min(count, status["status_step"])
    return described, word, count


def _rows_of_run(
    folder: Path, described: Mapping[str, Any], word: str, count: int, start: int = 0, stop: int | None = None
) -> xr.Dataset:
    """Part of the trajectory of a run of `count` valid rows; evaluations and final state are those of the whole."""
    record = step_log(described)
    evaluated = read_records(folder / EVALS, evaluation_log(described))
    evaluated = evaluated[evaluated["eval_step"] <= count]
    part = trajectory_of_records(
        read_records(folder / STEPS, record, start, count if stop is None else min(stop, count)),
        status=word,
        first_norm=described["first_norm"],
        groups=described["groups"],
        attributes=described["attributes"],
        epochs_per_step=described["epochs_per_step"],
        evaluations={name: evaluated[name] for name in evaluated.dtype.names or ()} if len(evaluated) else None,
        first_step=start,
    )
    last = read_records(folder / STEPS, record, count - 1, count) if count else None
    final = part.final_norm.values if last is None else last["next_norm"][0]
    return part.assign(
        final_norm=part.final_norm.copy(data=np.asarray(final)),
        status_step=part.status_step.copy(data=np.asarray(count)),
    )


def _read_run(folder: Path) -> xr.Dataset:
    return _rows_of_run(folder, *_state_of_run(folder))


def store_run(folder: Path) -> None:
    """Write the trajectory of a finished run folder as its labelled store, in constant memory.

    Raises
    ------
    OSError : the disk is full, or such; the logs hold the trajectory then.
    """
    target = folder / STORE
    shutil.rmtree(target, ignore_errors=True)
    described, word, count = _state_of_run(folder)
    with written_aside(target) as aside:
        for start in range(0, max(count, 1), BLOCK):
            part = _rows_of_run(folder, described, word, count, start, start + BLOCK)
            if start == 0:
                chunks = {
                    name: {"chunks": tuple(max(1, min(size, BLOCK)) for size in part[name].shape)}
                    for name in part.variables
                    if "step" in part[name].dims
                }
                part.to_zarr(aside, mode="w-", consolidated=False, encoding=chunks)
            else:
                along = part.drop_vars([name for name in part.variables if "step" not in part[name].dims])
                along.to_zarr(aside, append_dim="step", consolidated=False)


def trajectory_of_records(
    records: npt.NDArray[Any],
    *,
    status: str,
    first_norm: float,
    groups: Sequence[str],
    attributes: Mapping[str, Any],
    epochs_per_step: float | None = None,
    evaluations: Mapping[str, npt.ArrayLike] | None = None,
    first_step: int = 0,
) -> xr.Dataset:
    """Assemble the trajectory of a training from its log records.

    Parameters
    ----------
    records : shape (steps,), of `step_record`.
    status : word of the contract.
    first_norm : ρ before the first step, for a run without steps.
    groups, attributes, evaluations : as in `make_trajectory`; where `lr` is no attribute it becomes a variable.
    epochs_per_step : for the coordinate `epoch`; None where there are no epochs.
    first_step : number of the first record, where the records are a part of a run.

    Examples
    --------
    >>> from simulate.trajectories.logs import step_record
    >>> rows = np.zeros(2, dtype=step_record(1))
    >>> rows["norm"], rows["lr"] = [2.0, 1.0], 0.1
    >>> trajectory_of_records(rows, status="complete", first_norm=2.0, groups=["w"], attributes={}).lr.values.tolist()
    [0.1, 0.1]
    """
    columns = {name: column(records, name, attributes) for name in column_names(attributes)}
    step = first_step + np.arange(len(records))
    return make_trajectory(
        columns,
        step=step,
        source="training",
        final_norm=records["next_norm"][-1] if len(records) else first_norm,
        status=status,
        status_step=len(records),
        coords={"epoch": (("step",), step * epochs_per_step)} if epochs_per_step else None,
        groups=groups,
        evaluations=evaluations,
        attributes=attributes,
    )
