"""Trajectories on disk: saving, loading, and the layout of run folders (read here, written by training)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import xarray as xr

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

EVALUATION_RECORD = np.dtype([("eval_step", "<i8"), *((name, "<f8") for name in EVALUATIONS)])


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


def read_records(path: Path, record: np.dtype[Any]) -> npt.NDArray[Any]:
    """Whole records of an append-only log; a last one that was cut is left out.

    Examples
    --------
    >>> read_records(Path("no such file"), step_record(1)).size
    0
    """
    if not path.exists():
        return np.empty(0, dtype=record)
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size // record.itemsize
        return np.frombuffer(file.read(whole * record.itemsize), dtype=record)


def steps_written(folder: Path) -> int:
    """Whole records in the log of a run folder; 0 where no run has begun.

    Examples
    --------
    >>> steps_written(Path("no such folder"))
    0
    """
    try:
        groups = len(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["groups"])
        return (folder / STEPS).stat().st_size // step_record(groups).itemsize
    except FileNotFoundError:
        return 0


def write_json(path: Path, content: Any) -> None:
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
        json.dump(content, file, indent=1)
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


def _read_run(folder: Path) -> xr.Dataset:
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    _check_schema(described.get("schema"), folder)
    status = json.loads((folder / STATUS).read_text(encoding="utf-8")) if (folder / STATUS).exists() else {}
    word = status.get("status", RUNNING)
    if word == RUNNING and not is_locked(folder):
        word = INTERRUPTED
    groups = described["groups"]
    records = read_records(folder / STEPS, step_record(len(groups)))
    if word not in (RUNNING, INTERRUPTED):
        records = records[: status["status_step"]]
    evaluated = read_records(folder / EVALS, EVALUATION_RECORD)
    evaluated = evaluated[evaluated["eval_step"] <= len(records)]
    return trajectory_of_records(
        records,
        status=word,
        first_norm=described["first_norm"],
        groups=groups,
        attributes=described["attributes"],
        epochs_per_step=described["epochs_per_step"],
        evaluations={name: evaluated[name] for name in EVALUATION_RECORD.names or ()} if len(evaluated) else None,
    )


def trajectory_of_records(
    records: npt.NDArray[Any],
    *,
    status: str,
    first_norm: float,
    groups: Sequence[str],
    attributes: Mapping[str, Any],
    epochs_per_step: float | None = None,
    evaluations: Mapping[str, npt.ArrayLike] | None = None,
) -> xr.Dataset:
    """Assemble the trajectory of a training from its log records.

    Parameters
    ----------
    records : shape (steps,), of `step_record`.
    status : word of the contract.
    first_norm : ρ before the first step, for a run without steps.
    groups, attributes, evaluations : as in `make_trajectory`; where `lr` is no attribute it becomes a variable.
    epochs_per_step : for the coordinate `epoch`; None where there are no epochs.

    Examples
    --------
    >>> rows = np.zeros(2, dtype=step_record(1))
    >>> rows["norm"], rows["lr"] = [2.0, 1.0], 0.1
    >>> trajectory_of_records(rows, status="complete", first_norm=2.0, groups=["w"], attributes={}).lr.values.tolist()
    [0.1, 0.1]
    """
    columns = {name: records[name] for name in records.dtype.names or () if name not in ("lr", "next_norm")}
    columns["effective_lr"] = records["lr"] / records["norm"] ** 2
    if "lr" not in attributes:
        columns["lr"] = records["lr"]
    step = np.arange(len(records))
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
