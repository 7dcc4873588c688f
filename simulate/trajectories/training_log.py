"""Logs of anyone's training: CSV, TensorBoard or columns in memory, read into a data set like a trajectory."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import described
from simulate.trajectories.folder import load
from theory.arguments import FloatArray, one_real
from theory.optimizers import checked_optimizer, optimizer_text

# Names under which a column is found, in lower case with single underscores; the first is its own.
NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter", "update", "updates"),
    "loss": ("loss", "train_loss", "training_loss", "loss_train", "batch_loss", "train_batch_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_sgd", "lr_adamw", "bnwd_lr"),
    "wd": ("wd", "weight_decay"),
    "norm": ("norm", "weight_norm", "weights_norm", "param_norm", "params_norm", "parameter_norm", "bnwd_norm"),
    "gradient": ("grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "grad_norm_total"),
}
# What a monitor writes is measured at norm 1 already.
_OF_THE_MONITOR = {"loss": "bnwd_loss", "grad_norm": "bnwd_grad_norm", "rotation": "bnwd_rotation"}
_EVENTS = "events.out.tfevents"


def training_log(
    columns: Mapping[str, npt.ArrayLike],
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: theory.Optimizer | None = None,
    names: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Make a data set of a log's columns, in the units of a trajectory.

    Parameters
    ----------
    columns : by name, all of one length, or a data frame; NaN where a number was not logged. Understood are the loss,
        the learning rate, the weight decay, the norm of the weights, the norm of their gradient as it is (the data set
        has g̃: norm times gradient norm) and the step number, under their usual names.
    lr, wd : where they are constant and no column.
    optimizer : `theory.SGD(momentum=0.9)`, …; without it nothing is said, and plain SGD assumed.
    names : other names of columns, such as ``{"loss": "my loss", "norm": "w", "gradient": "g"}``.

    Returns
    -------
    xarray.Dataset with the dimension `step`, and those of loss, lr, wd, norm and grad_norm that are known.

    Raises
    ------
    TypeError, ValueError : columns of different lengths, or none that is understood; numbers that are none.

    Examples
    --------
    >>> log = training_log({"train/loss": [2.0, 1.5], "weight_norm": [3.0, 3.1], "grad_norm": [0.5, 0.4]}, wd=0.01)
    >>> log.grad_norm.values.round(2).tolist()
    [1.5, 1.24]
    """
    if not hasattr(columns, "keys"):
        raise TypeError(f"columns must be a mapping of names to numbers, got {type(columns).__name__}")
    held = {str(name): _numbers(str(name), columns[name]) for name in columns.keys()}  # noqa: SIM118
    lengths = {name: len(values) for name, values in held.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    found = _found(held, names or {})
    if "loss" not in found and "norm" not in found:
        raise ValueError(
            f"columns must have a loss or a norm of the weights, got {sorted(held)}; tell by `names` which they are"
        )
    count = len(next(iter(held.values())))
    step = found.pop("step", np.arange(count, dtype=float))
    if not (np.isfinite(step).all() and (np.diff(step) > 0).all()):
        raise ValueError("step must grow from row to row")
    attributes: dict[str, Any] = {}
    for name, value in (("lr", lr), ("wd", wd)):
        if value is not None:
            attributes[name] = one_real(name, value, at_least=0)
            found.pop(name, None)
    if optimizer is not None:
        attributes["optimizer"] = optimizer_text(checked_optimizer(optimizer))
    if "gradient" in found:
        gradient = found.pop("gradient")
        if "norm" in found:
            found.setdefault("grad_norm", gradient * found["norm"])
    return xr.Dataset(
        {name: ("step", values, described(name)) for name, values in found.items()},
        coords={"step": ("step", step.astype(np.int64), described("step"))},
        attrs=attributes,
    )


def read_log(
    path: str | os.PathLike[str],
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: theory.Optimizer | None = None,
    names: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Read the log of a training: a CSV file, an event file of TensorBoard or a folder of them, or a run of `bnwd`.

    Parameters
    ----------
    path : of the file or folder.
    lr, wd, optimizer, names : as in `training_log`.

    Returns
    -------
    xarray.Dataset, as of `training_log`; of a run of `bnwd` its trajectory.

    Raises
    ------
    ValueError : there is no such log, or it has no columns that are understood.
    ImportError : TensorBoard is not installed, and it is one of its files.

    Examples
    --------
    >>> read_log("no such file")
    Traceback (most recent call last):
    ...
    ValueError: path must be a CSV file, an event file of TensorBoard or a folder of a run, got 'no such file'
    """
    place = Path(path)
    known = {"lr": lr, "wd": wd, "optimizer": optimizer, "names": names}
    if place.is_dir() and not any(_EVENTS in each.name for each in place.iterdir()):
        return with_settings(load(place), lr=lr, wd=wd, optimizer=optimizer)
    if place.is_dir() or (place.is_file() and _EVENTS in place.name):
        return training_log(_of_tensorboard(place), **known)  # type: ignore[arg-type]
    if not place.is_file():
        raise ValueError(
            f"path must be a CSV file, an event file of TensorBoard or a folder of a run, got {str(path)!r}"
        )
    return training_log(_of_csv(place), **known)  # type: ignore[arg-type]


def with_settings(
    log: xr.Dataset, *, lr: float | None = None, wd: float | None = None, optimizer: theory.Optimizer | None = None
) -> xr.Dataset:
    """Replace what a data set says of learning rate, weight decay and optimizer, by what is given.

    Examples
    --------
    >>> with_settings(xr.Dataset(attrs={"lr": 0.1}), lr=0.5, wd=0.01).attrs
    {'lr': 0.5, 'wd': 0.01}
    """
    for name, value in (("lr", lr), ("wd", wd)):
        if value is not None:
            log = log.drop_vars(name, errors="ignore").assign_attrs({name: one_real(name, value, at_least=0)})
    return log if optimizer is None else log.assign_attrs(optimizer=optimizer_text(checked_optimizer(optimizer)))


def _found(held: Mapping[str, FloatArray], names: Mapping[str, str]) -> dict[str, FloatArray]:
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in held}
    found = {}
    for meaning, usual in NAMES.items():
        if meaning in names:
            if names[meaning] not in held:
                raise ValueError(f"names must be of columns, {sorted(held)}, got {names[meaning]!r}")
            found[meaning] = held[names[meaning]]
        elif column := next((plain[name] for name in usual if name in plain), None):
            found[meaning] = held[column]
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"names must be for {', '.join(NAMES)}, got {unknown}")
    for meaning, name in _OF_THE_MONITOR.items():
        if name in plain and meaning not in found:
            found[meaning] = held[plain[name]]
    return found


def _numbers(name: str, values: npt.ArrayLike) -> FloatArray:
    try:
        return np.asarray(values, dtype=float).reshape(-1)
    except (TypeError, ValueError):
        # a column of words is no number's; it may be the name of a phase
        return np.full(len(values), np.nan)  # type: ignore[arg-type]


def _of_csv(place: Path) -> dict[str, FloatArray]:
    with place.open(newline="") as file:
        start = file.read(4096)
        file.seek(0)
        delimiter = max(",;\t", key=start.split("\n", 1)[0].count)
        rows = csv.reader(file, delimiter=delimiter)
        header = next(rows, None)
        if not header:
            raise ValueError(f"path must be a CSV file with a line of names, got an empty one, {str(place)!r}")
        cells = [row for row in rows if row]
    for number, row in enumerate(cells):
        if len(row) != len(header):
            raise ValueError(f"path must have {len(header)} cells in each line, got {len(row)} in line {number + 2}")
    return {name.strip(): np.array([_cell(row[at]) for row in cells]) for at, name in enumerate(header)}


def _cell(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _of_tensorboard(place: Path) -> dict[str, FloatArray]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ImportError("event files need TensorBoard: pip install tensorboard, or export them as CSV") from None
    read = EventAccumulator(str(place), size_guidance={"scalars": 0})
    read.Reload()
    scalars = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    if not scalars:
        raise ValueError(f"path must have scalars, got an event file without any, {str(place)!r}")
    # a step that was logged again, after a restart, counts as it was logged last
    seen = {tag: {event.step: event.value for event in events} for tag, events in scalars.items()}
    steps = sorted(set().union(*seen.values()))
    columns = {tag: np.array([values.get(step, math.nan) for step in steps]) for tag, values in seen.items()}
    return {**columns, "step": np.array(steps, dtype=float)}
