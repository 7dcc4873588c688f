"""Trajectories on disk: saving, loading, and the layout of run folders (read here, written by training)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import xarray as xr
from numpy.lib import recfunctions

from simulate.trajectories.contract import EVALUATIONS, INTERRUPTED, RUNNING, SCHEMA, make_trajectory

# The files of a run folder.
CONFIG, STATUS, STEPS, EVALS, STORE, LOCK = (
    "config.json",
    "status.json",
    "steps.log",
    "evaluations.log",
    "trajectory.zarr",
    "lock",
)

CHECK = "check"
# records that are held in memory at a time while a run is stored: some ten megabytes
BLOCK = 2**16


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


def evaluation_record(names: Sequence[str] = EVALUATIONS) -> np.dtype[Any]:
    """Record of one evaluation in its log.

    Examples
    --------
    >>> evaluation_record().itemsize
    40
    """
    return np.dtype([("eval_step", "<i8"), *((name, "<f8") for name in names)])


def step_record(groups: int) -> np.dtype[Any]:
    """Record of one training step in the log; record t is row t. `next_norm` is the norm after the update.

    Examples
    --------
    >>> step_record(groups=3).itemsize
    128
    """
    scalars = ("loss", "lr", "norm", "next_norm", "grad_norm", "rotation", "radial_defect")
    vectors = ("group_norm", "group_grad_norm", "group_rotation")
    return np.dtype([*((n, "<f8") for n in scalars), *((n, "<f8", (groups,)) for n in vectors)])


def checked(record: np.dtype[Any]) -> np.dtype[Any]:
    """Record of a log with a check over its numbers and its place.

    Examples
    --------
    >>> checked(step_record(groups=3)).itemsize
    136
    """
    return np.dtype([*record.descr, (CHECK, "<u8")])


def sealed(records: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """Records as they are appended to a log whose records are checked; the first of them is number `first` there.

    Examples
    --------
    >>> sealed(np.zeros(2, dtype=step_record(1)), first=5).dtype.names[-1]
    'check'
    """
    log = np.empty(len(records), dtype=checked(records.dtype))
    for name in records.dtype.names or ():
        log[name] = records[name]
    log[CHECK] = _checks(log, first)
    return log


def _checks(records: npt.NDArray[Any], first: int) -> npt.NDArray[np.uint64]:
    words = np.ascontiguousarray(records).view("<u8").reshape(len(records), records.dtype.itemsize // 8)
    # odd factors, so that a change of any single bit of a number changes the sum
    factors = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    factors[-1] = 0
    number = np.arange(first + 1, first + 1 + len(records), dtype=np.uint64)
    return np.asarray((words * factors).sum(axis=1, dtype=np.uint64) + number * np.uint64(0xBF58476D1CE4E5B9))


def read_records(path: Path, record: np.dtype[Any], start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Whole records of an append-only log, up to the first that is damaged; a last one that was cut is left out.

    Parameters
    ----------
    path : the log.
    record : with `checked`, damage is found and the check is left out of the result.
    start, stop : numbers of the first record and of the one after the last.

    Examples
    --------
    >>> read_records(Path("no such file"), step_record(1)).size
    0
    """
    plain = np.dtype([field for field in record.descr if field[0] != CHECK])
    if not path.exists():
        return np.empty(0, dtype=plain)
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size // record.itemsize
        file.seek(start * record.itemsize)
        count = max(0, (whole if stop is None else min(whole, stop)) - start)
        records: npt.NDArray[Any] = np.frombuffer(file.read(count * record.itemsize), dtype=record)
    if plain == record:
        return records
    sound = records[CHECK] == _checks(records, start)
    return recfunctions.repack_fields(records[list(plain.names or ())])[: len(sound) if sound.all() else sound.argmin()]


def count_records(path: Path, record: np.dtype[Any]) -> int:
    """Number of records that `read_records` gives, in constant memory.

    Examples
    --------
    >>> count_records(Path("no such file"), step_record(1))
    0
    """
    count = 0
    while True:
        found = len(read_records(path, record, count, count + BLOCK))
        count += found
        if found < BLOCK:
            return count


def step_log(described: Mapping[str, Any]) -> np.dtype[Any]:
    """Record of the log of steps of a described run; the first runs had no checks.

    Examples
    --------
    >>> step_log({"groups": ["a"], "checked": True}).names[-1]
    'check'
    """
    record = step_record(len(described["groups"]))
    return checked(record) if described.get("checked") else record


def evaluation_log(described: Mapping[str, Any]) -> np.dtype[Any]:
    """Record of the log of evaluations of a described run.

    Examples
    --------
    >>> evaluation_log({"checked": False}) == evaluation_record()
    True
    """
    record = evaluation_record(described.get("evaluations", EVALUATIONS))
    return checked(record) if described.get("checked") else record


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


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    r"""Write JSON aside and rename, so that a reader never sees half a file.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(target, {"a": 1}); target.read_text()
    '{\n "a": 1\n}'
    """
    aside = path.with_name(path.name + ".partial")
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


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
    target = Path(path)
    if target.exists():
        raise ValueError(f"path must not exist yet, got {str(target)!r}")
    write_store(trajectory, target)


def write_store(trajectory: xr.Dataset, target: Path) -> None:
    """Write the zarr store aside and rename it to `target`, which must not exist.

    Examples
    --------
    >>> import tempfile
    >>> write_store(xr.Dataset({"a": 1}), Path(tempfile.mkdtemp()) / "a.zarr")
    """
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    trajectory.drop_encoding().to_zarr(aside, mode="w-", consolidated=False)
    os.replace(aside, target)


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
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    described, word, count = _state_of_run(folder)
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
    os.replace(aside, target)


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
    >>> rows = np.zeros(2, dtype=step_record(1))
    >>> rows["norm"], rows["lr"] = [2.0, 1.0], 0.1
    >>> trajectory_of_records(rows, status="complete", first_norm=2.0, groups=["w"], attributes={}).lr.values.tolist()
    [0.1, 0.1]
    """
    columns = {name: records[name] for name in records.dtype.names or () if name not in ("lr", "next_norm")}
    is_held = str(attributes.get("optimizer", "")).endswith("with fixed effective_lr")
    columns["effective_lr"] = records["lr"] / (1.0 if is_held else records["norm"] ** 2)
    if "lr" not in attributes:
        columns["lr"] = records["lr"]
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
