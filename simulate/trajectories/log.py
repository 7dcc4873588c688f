"""Append-only logs of a run: records of steps and of evaluations, each with a checksum."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import recfunctions

from simulate._files import check_regular
from simulate.trajectories.contract import EVALUATIONS, FIXED_EFFECTIVE_LR, effective_lr_names, effective_lrs

CHECK = "check"
# records in memory at a time while a run is stored, some ten megabytes
BLOCK_RECORDS = 2**16


def evaluation_record(names: Sequence[str] = EVALUATIONS) -> np.dtype[Any]:
    """Record type of one evaluation."""
    return np.dtype([("eval_step", "<i8"), *((name, "<f8") for name in names)])


def step_record(groups: int) -> np.dtype[Any]:
    """Record type of one training step; record t is row t. `next_norm` is the norm after the update."""
    scalars = ("loss", "lr", "norm", "next_norm", "grad_norm", "rotation", "radial_defect")
    vectors = ("group_norm", "group_grad_norm", "group_rotation")
    return np.dtype([*((n, "<f8") for n in scalars), *((n, "<f8", (groups,)) for n in vectors)])


def record_with_check(record: np.dtype[Any]) -> np.dtype[Any]:
    """Record type with a checksum of its numbers and its position in the log."""
    return np.dtype([*record.descr, (CHECK, "<u8")])


def records_with_checks(records: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """Records with their checksums, as they are appended to a log; the first gets the number `first`.

    Examples
    --------
    >>> records_with_checks(np.zeros(2, dtype=step_record(1)), first=5).dtype.names[-1]
    'check'
    """
    log = np.empty(len(records), dtype=record_with_check(records.dtype))
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


def size_of_log(path: Path) -> int:
    """Size of a log in bytes, 0 if there is none. Raise ValueError if it is not a regular file."""
    return check_regular(path, "path") if os.path.lexists(path) else 0


def read_records(path: Path, record: np.dtype[Any], start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Read the complete records of an append-only log, up to the first damaged one.

    Parameters
    ----------
    path : log file.
    record : record type. With `record_with_check` damage is detected; the result has no checksums.
    start, stop : numbers of the first record and of the one after the last.
    """
    plain = np.dtype([field for field in record.descr if field[0] != CHECK])
    whole = size_of_log(path) // record.itemsize
    if not whole:
        return np.empty(0, dtype=plain)
    with open(path, "rb") as file:
        file.seek(start * record.itemsize)
        count = max(0, (whole if stop is None else min(whole, stop)) - start)
        records: npt.NDArray[Any] = np.frombuffer(file.read(count * record.itemsize), dtype=record)
    if plain == record:
        return records
    sound = records[CHECK] == _checks(records, start)
    return recfunctions.repack_fields(records[list(plain.names or ())])[: len(sound) if sound.all() else sound.argmin()]


def count_records(path: Path, record: np.dtype[Any]) -> int:
    """Number of records that `read_records` returns, counted in constant memory."""
    if CHECK not in (record.names or ()):
        return size_of_log(path) // record.itemsize
    count = 0
    while True:
        block = len(read_records(path, record, count, count + BLOCK_RECORDS))
        count += block
        if block < BLOCK_RECORDS:
            return count


def column_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the per-step variables of a run with these attributes."""
    logged = (name for name in step_record(1).names or () if name not in ("lr", "next_norm"))
    effective = effective_lr_names(str(attributes.get("optimizer", "")))
    return (*logged, *effective, *(() if "lr" in attributes else ("lr",)))


def column(records: npt.NDArray[Any], name: str, attributes: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Values of one per-step variable."""
    optimizer = str(attributes.get("optimizer", ""))
    if name not in effective_lr_names(optimizer):
        return np.asarray(records[name])
    is_fixed = attributes.get("constraint") == FIXED_EFFECTIVE_LR
    return np.asarray(effective_lrs(records["lr"], 1.0 if is_fixed else records["norm"], optimizer)[name])
