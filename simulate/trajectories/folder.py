"""Save and load trajectories, and read run folders, which training writes."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from simulate._files import (
    DIGEST,
    SCHEMA_WITH_DIGESTS,
    DamagedFileError,
    atomic_write,
    check_unused,
    is_locked,
    read_json,
    write_json,
)
from simulate.trajectories.contract import (
    COLLAPSED,
    COMPLETE,
    DIVERGED,
    EVALUATIONS,
    INTERRUPTED,
    RUNNING,
    SCHEMA,
    make_trajectory,
    upgrade,
    upgrade_attributes,
)
from simulate.trajectories.log import (
    BLOCK_RECORDS,
    column,
    column_names,
    count_records,
    evaluation_record,
    read_records,
    record_with_check,
    size_of_log,
    step_record,
)
from simulate.trajectories.store_digest import ROOT, add_digest, check_digest
from theory.arguments import check_flag, check_path, check_rows, quote

# files of a run folder
CONFIG, STATUS, STEPS, EVALS, STORE = (
    "config.json",
    "status.json",
    "steps.log",
    "evaluations.log",
    "trajectory.zarr",
)


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """Description of a run, which `config.json` stores in its folder before the first step.

    Attributes
    ----------
    identity : hash of everything that determines the trajectory.
    config : settings of the run as plain values.
    attributes : attributes of the trajectory.
    groups : names of the weights of each group. Runs of the first versions have the names of groups only.
    evaluations : names of the recorded evaluations.
    first_norm : norm before the first step.
    epochs_per_step : passes over the training set per step; None without epochs.
    place : place of the run among its replicas.
    checked : whether the records of the logs have checksums; those of the first versions have none.
    schema : schema of the folder; those below 3 have no digests.
    """

    identity: str
    config: Mapping[str, Any]
    attributes: Mapping[str, Any]
    groups: Mapping[str, Sequence[str]]
    evaluations: Sequence[str]
    first_norm: float
    epochs_per_step: float | None
    place: int = 0
    checked: bool = True
    schema: int = SCHEMA

    @classmethod
    def read(cls, folder: Path) -> RunDescription:
        """Read the description of a run folder. Raise ValueError if it is damaged, or of a newer schema."""
        content = read_json(folder / CONFIG, "path")
        schema = _check_schema(content.get("schema"), folder)
        for name, (kind, is_needed) in _FIELDS.items():
            if name not in content and is_needed:
                raise DamagedFileError("path", folder / CONFIG, f"it has no {name}")
            if name in content and not isinstance(content[name], kind):
                raise DamagedFileError("path", folder / CONFIG, f"its {name} is {quote(content[name])}")
        attributes = content["attributes"]
        if schema < SCHEMA:
            attributes = upgrade_attributes({**attributes, "schema": schema})
        weights = content.get("group_weights", {})
        return cls(
            identity=content.get("identity", ""),
            config=content.get("config", {}),
            attributes=attributes,
            groups={name: weights.get(name, ()) for name in content["groups"]},
            evaluations=content.get("evaluations", EVALUATIONS),
            first_norm=content["first_norm"],
            epochs_per_step=content["epochs_per_step"],
            place=content.get("place", 0),
            checked=content.get("checked", False),
            schema=schema,
        )

    def write(self, folder: Path) -> None:
        """Write the description into a run folder."""
        weights = {name: list(members) for name, members in self.groups.items()}
        content = {**vars(self), "groups": list(self.groups), "group_weights": weights, "schema": SCHEMA}
        write_json(folder / CONFIG, content)

    @property
    def step_log(self) -> np.dtype[Any]:
        """Record type of the log of steps."""
        record = step_record(len(self.groups))
        return record_with_check(record) if self.checked else record

    @property
    def evaluation_log(self) -> np.dtype[Any]:
        """Record type of the log of evaluations."""
        record = evaluation_record(self.evaluations)
        return record_with_check(record) if self.checked else record


# types of what `config.json` holds, and whether it must
_FIELDS: dict[str, tuple[Any, bool]] = {
    "identity": (str, False),
    "config": (dict, False),
    "attributes": (dict, True),
    "groups": (list, True),
    "group_weights": (dict, False),
    "evaluations": (list, False),
    "first_norm": ((int, float), True),
    "epochs_per_step": ((int, float, type(None)), True),
    "place": (int, False),
    "checked": (bool, False),
}


def count_steps(folder: Path) -> int:
    """Number of complete records in the log of a run folder; 0 before the run begins."""
    try:
        return (folder / STEPS).stat().st_size // RunDescription.read(folder).step_log.itemsize
    except FileNotFoundError:
        return 0


def save(trajectory: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Save a trajectory as a zarr store in a new folder.

    The store appears at `path` only when it is complete.

    Parameters
    ----------
    trajectory : any dataset of the contract.
    path : folder of the store; must not exist.
    overwrite : True to replace a saved trajectory at `path`. It is removed after the new one took its place.

    Raises
    ------
    TypeError : `trajectory` is no dataset.
    ValueError : `path` exists, or is no saved trajectory.

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
    if not check_flag("overwrite", overwrite):
        write_store(trajectory, check_unused("path", path))
        return
    target = check_path("path", path).resolve()
    if target.exists() and not _is_saved_trajectory(target):
        raise ValueError(f"path must be a saved trajectory or not exist yet, got {str(target)!r}")
    before = target.with_name(f"{target.name}.before")
    with atomic_write(target) as aside:
        _write_parts(trajectory, aside)
        if target.exists():
            shutil.rmtree(before, ignore_errors=True)
            os.replace(target, before)
    shutil.rmtree(before, ignore_errors=True)


def _is_saved_trajectory(path: Path) -> bool:
    """Whether a folder is a store that `save` wrote, with nothing else in it."""
    try:
        root = json.loads((path / ROOT).read_text(encoding="utf-8"))
        is_ours = "schema" in root["attributes"] and "step" in os.listdir(path)
        return is_ours and all((entry / ROOT).is_file() for entry in path.iterdir() if entry.name != ROOT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_store(trajectory: xr.Dataset, target: Path) -> None:
    """Write a zarr store under another name and rename it to `target`, which must not exist."""
    with atomic_write(target) as aside:
        _write_parts(trajectory, aside)


def _write_parts(trajectory: xr.Dataset, aside: Path) -> None:
    trajectory.drop_encoding().to_zarr(aside, mode="w-", consolidated=False)
    add_digest(aside)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Load a saved trajectory, or the trajectory of a run folder, whether the run is finished or not.

    Parameters
    ----------
    path : folder written by `save` or by a training run.

    Returns
    -------
    xarray.Dataset: the trajectory. For a killed run it has the complete rows that were written, and the status
    "interrupted". Every number is checked against a digest or checksum. If the store of a run is damaged, its logs are
    read, with a warning. If a log is damaged, the rows before the damage are returned, with a warning.

    Raises
    ------
    ValueError : `path` holds no trajectory, a damaged one, or one of a newer schema.

    Examples
    --------
    >>> load("no such folder")
    Traceback (most recent call last):
    ...
    ValueError: path must be a saved trajectory or a run folder, got 'no such folder'
    """
    folder = check_path("path", path)
    if not (folder / CONFIG).is_file():
        return _read_store(folder, str(path))
    if (folder / STORE).is_dir():
        try:
            return _read_store(folder / STORE, str(path))
        except DamagedFileError as error:
            if not (folder / STEPS).is_file():
                raise
            warnings.warn(
                f"{str(error.path)!r} is damaged ({error.reason}), and the logs of the run are read in its place",
                stacklevel=2,
            )
    return _read_run(folder)


def _read_store(folder: Path, shown: str) -> xr.Dataset:
    if not (folder / ROOT).is_file():
        raise ValueError(f"path must be a saved trajectory or a run folder, got {quote(shown)}")
    has_digest = check_digest(folder, "path")
    try:
        dataset: xr.Dataset = xr.open_zarr(folder, consolidated=False, chunks=None).load()
    except Exception as error:
        # zarr raises errors of many kinds, some of them inside its own code
        raise DamagedFileError("path", folder, f"it cannot be read ({type(error).__name__})") from error
    schema = _check_schema(dataset.attrs.get("schema"), folder)
    if not has_digest and schema >= SCHEMA_WITH_DIGESTS:
        raise DamagedFileError("path", folder, "its digest is missing")
    if not has_digest:
        _warn_of_missing_digest(schema, folder)
    dataset.attrs.pop(DIGEST, None)
    dataset = upgrade(dataset)
    # zarr reads text as another type than object, and empty text as no text at all
    texts = ("status", "group", "group_optimizer", "verdict", "oscillation")
    text = [name for name in texts if name in dataset.variables]
    return dataset.assign({name: dataset[name].astype(object) for name in text}).drop_encoding()


def _warn_of_missing_digest(schema: int, folder: Path) -> None:
    warnings.warn(
        f"{str(folder)!r} is of schema {schema}, which has no digests, so damage to its files may go unnoticed. "
        "simulate.save stores it with them",
        stacklevel=4,
    )


def _check_schema(schema: Any, folder: Path) -> int:
    # whole numbers are stored as such, but old files may hold them as integers of NumPy
    if isinstance(schema, bool) or not isinstance(schema, (int, np.integer)) or schema > SCHEMA:
        raise ValueError(f"path must hold a trajectory of schema <= {SCHEMA}, got {quote(schema)} in {str(folder)!r}")
    return int(schema)


def _state_of_run(folder: Path) -> tuple[RunDescription, str, int]:
    """Return description, status and number of valid rows of a run folder."""
    description = RunDescription.read(folder)
    content = read_status(folder, description)
    status = content.get("status", RUNNING)
    if status == RUNNING and not is_locked(folder):
        status = INTERRUPTED
    _check_sizes(folder, description)
    count = count_records(folder / STEPS, description.step_log)
    if status not in (RUNNING, INTERRUPTED):
        if count < content["status_step"]:
            # of a finished run, so rows are missing
            status = INTERRUPTED
        count = min(count, content["status_step"])
    return description, status, count


def _check_sizes(folder: Path, description: RunDescription) -> None:
    """Check that the logs are no longer than the settings allow, before they are read."""
    steps = description.config.get("steps")
    # an evaluation precedes the first step, and one may follow the last
    for name, log, most in ((STEPS, description.step_log, 0), (EVALS, description.evaluation_log, 2)):
        count = size_of_log(folder / name) // log.itemsize
        if isinstance(steps, int) and count > steps + most:
            raise DamagedFileError("path", folder / name, f"it has {count} records for {steps} steps")


def read_status(folder: Path, description: RunDescription) -> dict[str, Any]:
    """Read the last status of a run; empty if it has none yet. Raise ValueError if it is damaged."""
    path = folder / STATUS
    if not os.path.lexists(path):
        return {}
    try:
        content = read_json(path, "path", schema=description.schema)
        status, step = content.get("status"), content.get("status_step")
        if status not in (RUNNING, INTERRUPTED, COMPLETE, DIVERGED, COLLAPSED):
            raise DamagedFileError("path", path, f"its status is {quote(status)}")
        if status not in (RUNNING, INTERRUPTED) and not (type(step) is int and step >= 0):
            raise DamagedFileError("path", path, f"its status_step is {quote(step)}")
    except DamagedFileError as error:
        advice = "Delete it, and the run counts as interrupted"
        raise DamagedFileError(error.name, path, error.reason, advice) from None
    return content


def _rows_of_run(
    folder: Path, description: RunDescription, status: str, count: int, start: int = 0, stop: int | None = None
) -> xr.Dataset:
    """Return rows `start` to `stop` of a run with `count` valid rows; evaluations and final state are complete."""
    record = description.step_log
    evaluations = read_records(folder / EVALS, description.evaluation_log)
    evaluations = evaluations[evaluations["eval_step"] <= count]
    part = trajectory_of_records(
        read_records(folder / STEPS, record, start, count if stop is None else min(stop, count)),
        status=status,
        first_norm=description.first_norm,
        groups=list(description.groups),
        attributes=description.attributes,
        epochs_per_step=description.epochs_per_step,
        evaluations={name: evaluations[name] for name in evaluations.dtype.names or ()} if len(evaluations) else None,
        first_step=start,
    )
    last = read_records(folder / STEPS, record, count - 1, count) if count else None
    final = part.final_norm.values if last is None else last["next_norm"][0]
    return part.assign(
        final_norm=part.final_norm.copy(data=np.asarray(final)),
        status_step=part.status_step.copy(data=np.asarray(count)),
    )


def _read_run(folder: Path) -> xr.Dataset:
    description, status, count = _state_of_run(folder)
    check_rows("path", count, description.step_log.itemsize // 8)
    _warn_of_missing_records(folder, description, count)
    if description.schema < SCHEMA_WITH_DIGESTS:
        _warn_of_missing_digest(description.schema, folder)
    return _rows_of_run(folder, description, status, count)


def _warn_of_missing_records(folder: Path, description: RunDescription, count: int) -> None:
    """Warn if a log is damaged, or ends before the last checkpoint, which is written after it."""
    numbers = [file.stem.rpartition("-")[2] for file in folder.glob("checkpoint-*.pt")]
    saved = max((int(number) for number in numbers if number.isdecimal()), default=0)
    every = description.config.get("evaluate_every")
    evaluations = saved // every + 1 if numbers and isinstance(every, int) and every > 0 else 0
    for name, log, least in (
        (STEPS, description.step_log, saved),
        (EVALS, description.evaluation_log, evaluations),
    ):
        whole = size_of_log(folder / name) // log.itemsize
        sound = whole if name == STEPS and count == whole else count_records(folder / name, log)
        if sound < max(whole, least):
            warnings.warn(
                f"{str(folder / name)!r} is damaged after {sound} records, and what follows is left out", stacklevel=4
            )


def store_run(folder: Path) -> None:
    """Write the trajectory of a finished run folder as a zarr store, in constant memory.

    Raises
    ------
    OSError : the store cannot be written, for example on a full disk. The logs still hold the trajectory.
    """
    target = folder / STORE
    shutil.rmtree(target, ignore_errors=True)
    description, status, count = _state_of_run(folder)
    with atomic_write(target) as aside:
        for start in range(0, max(count, 1), BLOCK_RECORDS):
            part = _rows_of_run(folder, description, status, count, start, start + BLOCK_RECORDS)
            if start == 0:
                chunks = {
                    name: {"chunks": tuple(max(1, min(size, BLOCK_RECORDS)) for size in part[name].shape)}
                    for name in part.variables
                    if "step" in part[name].dims
                }
                part.to_zarr(aside, mode="w-", consolidated=False, encoding=chunks)
            else:
                along = part.drop_vars([name for name in part.variables if "step" not in part[name].dims])
                along.to_zarr(aside, append_dim="step", consolidated=False)
        add_digest(aside)


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
    """Assemble the trajectory of a training run from its log records.

    Parameters
    ----------
    records : records of type `step_record`, shape (steps,).
    status : status of the run, as in the contract.
    first_norm : ρ before the first step; the final norm of a run without steps.
    groups, attributes, evaluations : as in `make_trajectory`. If `lr` is no attribute, it becomes a variable.
    epochs_per_step : for the coordinate `epoch`; None without epochs.
    first_step : number of the first record, if the records are part of a run.
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
