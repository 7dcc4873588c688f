"""Logs of anyone's training: CSV, TensorBoard or columns in memory, read into a data set like a trajectory."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.diagnosis.log_rows import between_known
from simulate.trajectories.contract import variable_attributes
from simulate.trajectories.folder import load
from theory.arguments import FloatArray, check_number
from theory.optimizers import check_optimizer, format_optimizer

# Names under which a column is found, in lower case with single underscores; the first is its own.
NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter", "update", "updates"),
    "loss": ("loss", "train_loss", "train_loss_step", "training_loss", "loss_train", "batch_loss", "train_batch_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_sgd", "lr_adamw", "bnwd_lr"),
    "wd": ("wd", "weight_decay"),
    "norm": ("norm", "weight_norm", "weights_norm", "param_norm", "params_norm", "parameter_norm", "bnwd_norm"),
    "gradient": ("grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "grad_norm_total"),
}
# What a monitor writes is measured at norm 1 already.
_OF_THE_MONITOR = {"loss": "bnwd_loss", "grad_norm": "bnwd_grad_norm", "rotation": "bnwd_rotation"}
_EVENTS = "events.out.tfevents"
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_NAMES_SHOWN = 20
_LARGEST_STEP = 2.0**53
# A training is restarted now and then, and most of what it did stays; steps that go back more often than once in
# twenty rows, or each time after as many, count something else.
_RESTARTS = 3
_SHARE_OF_RESTARTS = 0.05


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
    columns : by name, all of one length or one number, or a data frame; NaN where a number was not logged. Understood
        are the loss, the learning rate, the weight decay, the norm of the weights, the norm of their gradient as it is
        (the data set has g̃: norm times gradient norm, with the norm between its neighbours where it was not logged)
        and the step number, under their usual names. Rows of one step become one; where steps go back, as after a
        restart, the later rows count. A step that counts within an epoch is none: leave it out.
    lr, wd : where they are constant and no column.
    optimizer : `theory.SGD(momentum=0.9)`, …; without it nothing is said, and plain SGD assumed.
    names : other names of columns, such as ``{"loss": "my loss", "norm": "w", "gradient": "g"}``.

    Returns
    -------
    xarray.Dataset with the dimension `step`, and those of loss, lr, wd, norm and grad_norm that are known.

    Raises
    ------
    TypeError, ValueError : columns of different lengths or of more than one dimension; none that is understood, or two
        that are the same; numbers that are none; steps that are not whole, or go back too far, too often or regularly.

    Examples
    --------
    >>> log = training_log({"train/loss": [2.0, 1.5], "weight_norm": [3.0, 3.1], "grad_norm": [0.5, 0.4]}, wd=0.01)
    >>> log.grad_norm.values.round(2).tolist()
    [1.5, 1.24]
    """
    if not hasattr(columns, "keys"):
        raise TypeError(f"columns must be a mapping of names to numbers, got {type(columns).__name__}")
    held = {str(name): _numbers(columns[name]) for name in columns.keys()}  # noqa: SIM118
    if deep := next((name for name, values in held.items() if values.ndim > 1), None):
        raise ValueError(f"columns must have one dimension, got the shape {held[deep].shape} of column {deep!r}")
    count = max((values.size for values in held.values()), default=0)
    held = {name: np.repeat(values, count) if values.ndim == 0 else values for name, values in held.items()}
    lengths = {name: len(values) for name, values in held.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    column = _found(held, names or {})
    found = {meaning: held[name] for meaning, name in column.items()}
    if "loss" not in found and "norm" not in found:
        raise ValueError(
            f"columns must have a loss or a norm of the weights, got {_listed(held)}; tell by `names` which they are"
        )
    if "step" in found:
        found = _in_order(found, column["step"])
    step = found.pop("step", np.arange(count, dtype=float))
    attributes: dict[str, Any] = {}
    for name, value in (("lr", lr), ("wd", wd)):
        if value is not None:
            attributes[name] = check_number(name, value, at_least=0)
            found.pop(name, None)
    if optimizer is not None:
        attributes["optimizer"] = format_optimizer(check_optimizer(optimizer))
    if "gradient" in found:
        gradient = found.pop("gradient")
        # next to these a gradient norm is that of a trajectory
        if {"rotation", "effective_lr"} & set(map(_plain_name, held)):
            found.setdefault("grad_norm", gradient)
        elif "norm" in found:
            found.setdefault("grad_norm", _times(gradient, found["norm"]))
    log = xr.Dataset(
        {name: ("step", values, variable_attributes(name)) for name, values in found.items()},
        coords={"step": ("step", step.astype(np.int64), variable_attributes("step"))},
        attrs=attributes,
    )
    if "grad_norm" in log and "gradient" in column and "grad_norm" not in column:
        log.grad_norm.attrs["column"] = column["gradient"]
    return log


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
    lr, wd, optimizer, names : as in `training_log`; a run of `bnwd` takes no names.

    Returns
    -------
    xarray.Dataset, as of `training_log`; of a run of `bnwd` its trajectory.

    Raises
    ------
    ValueError : there is no such log, or it has no columns that are understood, or other faults as in `training_log`.
    ImportError : TensorBoard is not installed, and it is one of its files.

    Examples
    --------
    >>> read_log("no such file")
    Traceback (most recent call last):
    ...
    ValueError: path must be a CSV file, an event file of TensorBoard or a folder of a run, got 'no such file'
    """
    place = Path(path)
    if place.is_dir() and next(place.rglob(f"*{_EVENTS}*"), None) is None:
        refuse_names(names)
        return with_settings(load(place), lr=lr, wd=wd, optimizer=optimizer)
    if not place.exists():
        raise ValueError(
            f"path must be a CSV file, an event file of TensorBoard or a folder of a run, got {str(path)!r}"
        )
    columns = _of_tensorboard(place, names or {}) if place.is_dir() or _EVENTS in place.name else _of_csv(place)
    return training_log(columns, lr=lr, wd=wd, optimizer=optimizer, names=names)


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
            log = log.drop_vars(name, errors="ignore").assign_attrs({name: check_number(name, value, at_least=0)})
    return log if optimizer is None else log.assign_attrs(optimizer=format_optimizer(check_optimizer(optimizer)))


def refuse_names(names: Mapping[str, str] | None) -> None:
    """Refuse names of columns, where a trajectory is given.

    Raises
    ------
    ValueError : there are some.

    Examples
    --------
    >>> refuse_names({"loss": "train_loss"})
    Traceback (most recent call last):
    ...
    ValueError: names must be left out with a trajectory, whose columns have theirs, got {'loss': 'train_loss'}
    """
    if names:
        raise ValueError(f"names must be left out with a trajectory, whose columns have theirs, got {dict(names)}")


def _times(gradient: FloatArray, norm: FloatArray) -> FloatArray:
    """g̃, no number only where the gradient is none: norms that were not logged are like those next to them."""
    known = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    near = between_known(norm)
    if known.size:
        near[known[-1] :] = norm[known[-1]]
    return gradient * near


def _found(held: Collection[str], names: Mapping[str, str]) -> dict[str, str]:
    """Name of the column of each meaning that is found."""
    plain: dict[str, list[str]] = {}
    for name in held:
        plain.setdefault(_plain_name(name), []).append(name)
    found = {}
    for meaning, usual in NAMES.items():
        if meaning in names:
            if names[meaning] not in held:
                raise ValueError(f"names must be of columns, {_listed(held)}, got {names[meaning]!r}")
            found[meaning] = names[meaning]
        elif alike := next((plain[name] for name in usual if name in plain), None):
            if len(alike) > 1:
                raise ValueError(f"columns must have one {meaning}, got {alike}; tell by `names` which it is")
            found[meaning] = alike[0]
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"names must be for {', '.join(NAMES)}, got {unknown}")
    for meaning, name in _OF_THE_MONITOR.items():
        if name in plain and meaning not in found:
            found[meaning] = plain[name][0]
    return found


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _listed(names: Collection[str]) -> list[str]:
    return sorted(names) if len(names) <= _NAMES_SHOWN else [*sorted(names)[:_NAMES_SHOWN], "…"]


def _in_order(columns: Mapping[str, FloatArray], name: str) -> dict[str, FloatArray]:
    """Rows with growing steps: those of one step together, and of what was done again the last."""
    step = columns["step"]
    known = np.isfinite(step)
    odd = step[known & ((step != np.round(step)) | (np.abs(step) > _LARGEST_STEP))]
    if odd.size or (step.size and not known.any()):
        got = f"{odd[0]:g}" if odd.size else "none"
        raise ValueError(f"step must be of whole numbers, got {got} in column {name!r}: leave it out to count the rows")
    rows = np.flatnonzero(known)
    merged: dict[float, dict[str, float]] = {}
    for row in rows[_last_course(step[rows], f"column {name!r}")].tolist():
        into = merged.setdefault(float(step[row]), {})
        into.update({key: float(v[row]) for key, v in columns.items() if key not in into or not np.isnan(v[row])})
    return {key: np.array([held[key] for held in merged.values()]) for key in columns}


def _last_course(step: FloatArray, place: str) -> npt.NDArray[np.bool_]:
    """Of each row, whether it was not done again: after it steps go back neither to its own nor to an earlier one."""
    back = np.flatnonzero(np.diff(step) < 0) + 1
    later = np.full(step.size + 1, np.inf)
    later[back] = step[back]
    counts: npt.NDArray[np.bool_] = step < np.minimum.accumulate(later[::-1])[::-1][1:]
    dropped = int((~counts).sum())
    often = back.size > max(_RESTARTS, _SHARE_OF_RESTARTS * step.size)
    regular = back.size >= _RESTARTS and np.ptp(np.diff(back)) <= 1
    if 2 * dropped >= max(step.size, 1) or often or regular:
        times = "once" if back.size == 1 else f"{back.size} times"
        first = f"{step[back[0] - 1]:.0f} to {step[back[0]]:.0f}"
        raise ValueError(
            f"step must go on, but for a few restarts; in {place} it goes back {times}, first from {first}, by which "
            f"{dropped} of {step.size} rows would be left out: give a step that goes on from epoch to epoch, or leave "
            "the column out to count the rows"
        )
    return counts


def _numbers(values: npt.ArrayLike) -> FloatArray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        # a column of words is no number's; it may be the name of a phase
        words = np.asarray(values, dtype=object)
        return np.array([_number(value) for value in words.flat]).reshape(words.shape)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _of_csv(place: Path) -> dict[str, FloatArray]:
    try:
        text = place.read_text(encoding="utf-8-sig")
        start = text.lstrip().split("\n", 1)[0]
        delimiter = max(",;\t", key=start.count)
        lines = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
        rows = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"path must be a CSV file in UTF-8, got {str(place)!r} ({error})") from None
    if not rows:
        raise ValueError(f"path must be a CSV file with a line of names, got an empty one, {str(place)!r}")
    header = [name.strip() for name in rows[0][1]]
    if doubled := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"path must have a name of its own for each column, got {doubled!r} more than once")
    cells = [(number, row) for number, row in rows[1:] if [cell.strip() for cell in row] != header]
    # the last line of a log that is being written
    if cells and len(cells[-1][1]) < len(header):
        cells.pop()
    for number, row in cells:
        if len(row) != len(header):
            raise ValueError(f"path must have {len(header)} cells in each line, got {len(row)} in line {number}")
    for at, name in enumerate(header):
        texts = [row[at].strip() for _, row in cells if row[at].strip()]
        commas = [each for each in texts if _DECIMAL_COMMA.fullmatch(each)]
        if len(commas) > len(texts) / 2:
            raise ValueError(f"path must have numbers with a point, got {commas[0]!r} in column {name!r}")
    return {name: np.array([_cell(row[at]) for _, row in cells]) for at, name in enumerate(header)}


def _cell(text: str) -> float:
    number = _number(text)
    # what was logged as no number is another thing than what was not logged
    return math.inf if math.isnan(number) and text.strip().lower().lstrip("+-") == "nan" else number


def _of_tensorboard(place: Path, names: Mapping[str, str]) -> dict[str, FloatArray]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ImportError("event files need TensorBoard: pip install tensorboard, or export them as CSV") from None
    folders = sorted({found.parent for found in place.rglob(f"*{_EVENTS}*")}) if place.is_dir() else [place]
    if len(folders) > 1:
        some = ", ".join(str(each) for each in folders[:_NAMES_SHOWN])
        raise ValueError(f"path must be of one run, got one with event files in {some}; choose one of them")
    read = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0})
    read.Reload()
    scalars = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    if not scalars:
        raise ValueError(f"path must have scalars, got event files without any, {str(place)!r}")
    used = set(_found([*scalars, "step"], names).values())
    seen = {tag: _of_events(tag, events, tag in used) for tag, events in scalars.items()}
    steps = sorted(set().union(*seen.values()))
    columns = {tag: np.array([values.get(step, math.nan) for step in steps]) for tag, values in seen.items()}
    return {**columns, "step": np.array(steps, dtype=float)}


def _of_events(tag: str, events: Sequence[Any], used: bool) -> dict[int, float]:
    """Value of each step; one that was logged again, after a restart, counts as it was logged last."""
    if used:
        counts = _last_course(np.array([event.step for event in events], dtype=float), f"tag {tag!r}")
        events = [event for event, kept in zip(events, counts, strict=True) if kept]
    return {event.step: math.inf if math.isnan(event.value) else event.value for event in events}
