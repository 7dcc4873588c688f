"""Read training logs from CSV, TensorBoard or memory into a data set like a trajectory."""

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
from simulate.diagnosis.log_rows import fill_norm_gaps
from simulate.trajectories.contract import variable_attributes
from simulate.trajectories.folder import load
from theory.arguments import FloatArray, check_number
from theory.optimizers import check_optimizer, format_optimizer

# Names of each column, in lower case with single underscores; the first is our own.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter", "update", "updates"),
    "loss": ("loss", "train_loss", "train_loss_step", "training_loss", "loss_train", "batch_loss", "train_batch_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_sgd", "lr_adamw", "bnwd_lr"),
    "wd": ("wd", "weight_decay"),
    "norm": ("norm", "weight_norm", "weights_norm", "param_norm", "params_norm", "parameter_norm", "bnwd_norm"),
    "gradient": ("grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "grad_norm_total"),
}
# A monitor writes g̃, not the gradient norm.
_MONITOR_NAMES = {"loss": "bnwd_loss", "grad_norm": "bnwd_grad_norm", "rotation": "bnwd_rotation"}
_EVENT_FILE = "events.out.tfevents"
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_MOST_NAMES = 20
_LARGEST_STEP = 2.0**53
# A training may restart a few times and keeps most of its steps. A step column that goes back more often, or after
# equally many rows each time, counts something else.
_RESTARTS = 3  # at most
_SHARE_OF_RESTARTS = 0.05  # of the rows, at most


def training_log(
    columns: Mapping[str, npt.ArrayLike],
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: theory.Optimizer | None = None,
    names: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Make a data set from the columns of a log, in the units of a trajectory.

    Loss, learning rate, weight decay, weight norm, gradient norm and step number are recognized by their usual names.
    The data set has g̃, the product of weight norm and gradient norm; missing weight norms are interpolated for it. Rows
    with the same step are merged. After a restart, rows that were repeated count as in the last repetition.

    Parameters
    ----------
    columns : columns by name, or a data frame. All have one length, or are one number. NaN means not logged. Leave out
        a step that starts again in each epoch.
    lr, wd : constant values; they replace columns.
    optimizer : `theory.SGD(momentum=0.9)`, …; without it plain SGD is assumed.
    names : other names of columns, such as ``{"loss": "my loss", "norm": "w", "gradient": "g"}``.

    Returns
    -------
    xarray.Dataset with dimension `step` and those of loss, lr, wd, norm and grad_norm that the log has.

    Raises
    ------
    TypeError, ValueError : columns differ in length or have several dimensions; no column is recognized, or two have
        the same meaning; a number is invalid; steps are not whole numbers, or go back too far, too often or regularly.

    Examples
    --------
    >>> log = training_log({"train/loss": [2.0, 1.5], "weight_norm": [3.0, 3.1], "grad_norm": [0.5, 0.4]}, wd=0.01)
    >>> log.grad_norm.values.round(2).tolist()
    [1.5, 1.24]
    """
    if not hasattr(columns, "keys"):
        raise TypeError(f"columns must be a mapping of names to numbers, got {type(columns).__name__}")
    raw_columns = {str(name): _to_floats(columns[name]) for name in columns.keys()}  # noqa: SIM118
    if nested := next((name for name, values in raw_columns.items() if values.ndim > 1), None):
        raise ValueError(
            f"columns must have one dimension, got the shape {raw_columns[nested].shape} of column {nested!r}"
        )
    count = max((values.size for values in raw_columns.values()), default=0)
    raw_columns = {name: values if values.ndim else np.repeat(values, count) for name, values in raw_columns.items()}
    lengths = {name: values.size for name, values in raw_columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    names_found = _find_columns(raw_columns, names or {})
    variables = {meaning: raw_columns[name] for meaning, name in names_found.items()}
    if "loss" not in variables and "norm" not in variables:
        raise ValueError(
            f"columns must have a loss or a norm of the weights, got {_format_names(raw_columns)}; name one by `names`"
        )
    if "step" in variables:
        variables = _sort_steps(variables, names_found["step"])
    step = variables.pop("step", np.arange(count, dtype=float))
    if "gradient" in variables:
        gradient = variables.pop("gradient")
        # a log with these columns is a trajectory and has g̃ already
        if {"rotation", "effective_lr"} & set(map(_normalize_name, raw_columns)):
            variables.setdefault("grad_norm", gradient)
        elif "norm" in variables:
            variables.setdefault("grad_norm", _effective_gradient(gradient, variables["norm"]))
    log = xr.Dataset(
        {name: ("step", values, variable_attributes(name)) for name, values in variables.items()},
        coords={"step": ("step", step.astype(np.int64), variable_attributes("step"))},
    )
    if "grad_norm" in log and "gradient" in names_found and "grad_norm" not in names_found:
        log.grad_norm.attrs["column"] = names_found["gradient"]
    return override_settings(log, lr=lr, wd=wd, optimizer=optimizer)


def read_log(
    path: str | os.PathLike[str],
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: theory.Optimizer | None = None,
    names: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Read a training log: a CSV file, an event file of TensorBoard or a folder of them, or a run of `bnwd`.

    Parameters
    ----------
    path : file or folder.
    lr, wd, optimizer, names : as in `training_log`; a run of `bnwd` takes no names.

    Returns
    -------
    xarray.Dataset as of `training_log`; the trajectory of a run of `bnwd`.

    Raises
    ------
    ValueError : no such log exists, no column is recognized, or as in `training_log`.
    ImportError : the log is an event file and TensorBoard is not installed.

    Examples
    --------
    >>> read_log("no such file")
    Traceback (most recent call last):
    ...
    ValueError: path must be a CSV file, an event file of TensorBoard or a folder of a run, got 'no such file'
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(
            f"path must be a CSV file, an event file of TensorBoard or a folder of a run, got {str(path)!r}"
        )
    if place.is_dir() and next(place.rglob(f"*{_EVENT_FILE}*"), None) is None:
        reject_names(names)
        return override_settings(load(place), lr=lr, wd=wd, optimizer=optimizer)
    columns = _read_tensorboard(place, names or {}) if place.is_dir() or _EVENT_FILE in place.name else _read_csv(place)
    return training_log(columns, lr=lr, wd=wd, optimizer=optimizer, names=names)


def override_settings(
    log: xr.Dataset, *, lr: float | None = None, wd: float | None = None, optimizer: theory.Optimizer | None = None
) -> xr.Dataset:
    """Replace learning rate, weight decay and optimizer of a data set by those that are not None."""
    for name, value in (("lr", lr), ("wd", wd)):
        if value is not None:
            log = log.drop_vars(name, errors="ignore").assign_attrs({name: check_number(name, value, at_least=0)})
    return log if optimizer is None else log.assign_attrs(optimizer=format_optimizer(check_optimizer(optimizer)))


def reject_names(names: Mapping[str, str] | None) -> None:
    """Raise ValueError if names of columns accompany a trajectory."""
    if names:
        raise ValueError(
            f"names must be left out with a trajectory, whose variables have fixed names, got {dict(names)}"
        )


def _effective_gradient(gradient: FloatArray, norm: FloatArray) -> FloatArray:
    """Effective gradient norm g̃, with missing norms interpolated or equal to the last valid one."""
    filled, valid = fill_norm_gaps(norm), np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if valid.size:
        filled[valid[-1] :] = norm[valid[-1]]
    return gradient * filled


def _find_columns(columns: Collection[str], names: Mapping[str, str]) -> dict[str, str]:
    """Find the name of the column of each meaning."""
    normalized: dict[str, list[str]] = {}
    for name in columns:
        normalized.setdefault(_normalize_name(name), []).append(name)
    names_found = {}
    for meaning, usual_names in COLUMN_NAMES.items():
        if meaning in names:
            if names[meaning] not in columns:
                raise ValueError(f"names must be of columns, {_format_names(columns)}, got {names[meaning]!r}")
            names_found[meaning] = names[meaning]
        elif candidates := next((normalized[name] for name in usual_names if name in normalized), None):
            if len(candidates) > 1:
                raise ValueError(f"columns must have one {meaning}, got {candidates}; choose one by `names`")
            names_found[meaning] = candidates[0]
    if unknown := sorted(set(names) - set(COLUMN_NAMES)):
        raise ValueError(f"names must be for {', '.join(COLUMN_NAMES)}, got {unknown}")
    for meaning, name in _MONITOR_NAMES.items():
        if name in normalized and meaning not in names_found:
            names_found[meaning] = normalized[name][0]
    return names_found


def _normalize_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _format_names(names: Collection[str]) -> list[str]:
    return sorted(names) if len(names) <= _MOST_NAMES else [*sorted(names)[:_MOST_NAMES], "…"]


def _sort_steps(columns: Mapping[str, FloatArray], name: str) -> dict[str, FloatArray]:
    """Make steps grow: merge rows of the same step, and of repeated steps keep the last repetition."""
    step = columns["step"]
    finite = np.isfinite(step)
    invalid = step[finite & ((step != np.round(step)) | (np.abs(step) > _LARGEST_STEP))]
    if invalid.size or (step.size and not finite.any()):
        got = f"{invalid[0]:g}" if invalid.size else "none"
        raise ValueError(f"step must be of whole numbers, got {got} in column {name!r}: leave it out to count the rows")
    rows = np.flatnonzero(finite)
    merged: dict[float, dict[str, float]] = {}
    for row in rows[_is_last_repetition(step[rows], f"column {name!r}")].tolist():
        into = merged.setdefault(float(step[row]), {})
        into.update({key: float(v[row]) for key, v in columns.items() if key not in into or not np.isnan(v[row])})
    return {key: np.array([values[key] for values in merged.values()]) for key in columns}


def _is_last_repetition(step: FloatArray, place: str) -> npt.NDArray[np.bool_]:
    """Whether no later row repeats the step of each row: steps do not go back to it or to an earlier one."""
    back = np.flatnonzero(np.diff(step) < 0) + 1
    later = np.full(step.size + 1, np.inf)
    later[back] = step[back]
    is_last: npt.NDArray[np.bool_] = step < np.minimum.accumulate(later[::-1])[::-1][1:]
    dropped = int((~is_last).sum())
    is_often = back.size > max(_RESTARTS, _SHARE_OF_RESTARTS * step.size)
    is_regular = back.size >= _RESTARTS and np.ptp(np.diff(back)) <= 1
    if 2 * dropped >= max(step.size, 1) or is_often or is_regular:
        times = "once" if back.size == 1 else f"{back.size} times"
        first = f"{step[back[0] - 1]:.0f} to {step[back[0]]:.0f}"
        raise ValueError(
            f"step must grow, except for a few restarts: in {place} it goes back {times}, first from {first}, and "
            f"{dropped} of {step.size} rows would be lost. Pass a step that grows across epochs, or leave the column "
            "out to count the rows"
        )
    return is_last


def _to_floats(values: npt.ArrayLike) -> FloatArray:
    """Numbers of a column; a text, such as the name of a phase, becomes NaN."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        texts = np.asarray(values, dtype=object)
        return np.array([_to_float(value) for value in texts.flat]).reshape(texts.shape)


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _read_csv(place: Path) -> dict[str, FloatArray]:
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
    if repeated := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"path must have different column names, got {repeated!r} more than once")
    cells = [(number, row) for number, row in rows[1:] if [cell.strip() for cell in row] != header]
    # the last line may still be being written
    if cells and len(cells[-1][1]) < len(header):
        cells.pop()
    for number, row in cells:
        if len(row) != len(header):
            raise ValueError(f"path must have {len(header)} cells in each line, got {len(row)} in line {number}")
    for at, name in enumerate(header):
        texts = [row[at].strip() for _, row in cells if row[at].strip()]
        commas = [text for text in texts if _DECIMAL_COMMA.fullmatch(text)]
        if len(commas) > len(texts) / 2:
            raise ValueError(f"path must have numbers with a decimal point, got {commas[0]!r} in column {name!r}")
    return {name: np.array([_cell(row[at]) for _, row in cells]) for at, name in enumerate(header)}


def _cell(text: str) -> float:
    number = _to_float(text)
    # a logged NaN differs from a missing value
    return math.inf if math.isnan(number) and text.strip().lower().lstrip("+-") == "nan" else number


def _read_tensorboard(place: Path, names: Mapping[str, str]) -> dict[str, FloatArray]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ImportError("event files need TensorBoard: pip install tensorboard, or export them as CSV") from None
    folders = sorted({file.parent for file in place.rglob(f"*{_EVENT_FILE}*")}) if place.is_dir() else [place]
    if len(folders) > 1:
        examples = ", ".join(str(folder) for folder in folders[:_MOST_NAMES])
        raise ValueError(f"path must be of one run, got one with event files in {examples}; choose one of them")
    accumulator = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0})
    accumulator.Reload()
    scalars = {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}
    if not scalars:
        raise ValueError(f"path must have scalars, got event files without any, {str(place)!r}")
    used = set(_find_columns([*scalars, "step"], names).values())
    values_by_tag = {tag: _values_by_step(tag, events, tag in used) for tag, events in scalars.items()}
    steps = sorted(set().union(*values_by_tag.values()))
    columns = {tag: np.array([values.get(step, math.nan) for step in steps]) for tag, values in values_by_tag.items()}
    return {**columns, "step": np.array(steps, dtype=float)}


def _values_by_step(tag: str, events: Sequence[Any], used: bool) -> dict[int, float]:
    """Value of each step; a step that was logged again after a restart has its last value."""
    if used:
        is_last = _is_last_repetition(np.array([event.step for event in events], dtype=float), f"tag {tag!r}")
        events = [event for event, kept in zip(events, is_last, strict=True) if kept]
    return {event.step: math.inf if math.isnan(event.value) else event.value for event in events}
