"""The append-only logs of a run: records of steps and of evaluations, each with a check."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import recfunctions

from simulate.trajectories.contract import EVALUATIONS

CHECK = "check"
# records that are held in memory at a time while a run is stored: some ten megabytes
BLOCK_RECORDS = 2**16


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
        found = len(read_records(path, record, count, count + BLOCK_RECORDS))
        count += found
        if found < BLOCK_RECORDS:
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


def column_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the variables along the steps of a run with these attributes.

    Examples
    --------
    >>> column_names({"lr": 0.5})[:3]
    ('loss', 'norm', 'grad_norm')
    """
    logged = (name for name in step_record(1).names or () if name not in ("lr", "next_norm"))
    return (*logged, "effective_lr", *(() if "lr" in attributes else ("lr",)))


def column(records: npt.NDArray[Any], name: str, attributes: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Values of one of these variables.

    Parameters
    ----------
    records : of `step_record`, shape (steps,).
    name : one of `column_names`.
    attributes : of the run.

    Examples
    --------
    >>> rows = np.zeros(1, dtype=step_record(1))
    >>> rows["norm"], rows["lr"] = 2.0, 0.1
    >>> column(rows, "effective_lr", {"optimizer": "SGD()"})
    array([0.025])
    """
    if name != "effective_lr":
        return np.asarray(records[name])
    is_held = str(attributes.get("optimizer", "")).endswith("with fixed effective_lr")
    return np.asarray(records["lr"] / (1.0 if is_held else records["norm"] ** 2))
