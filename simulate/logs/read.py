"""Read training logs of all forms into a data set like a trajectory, and describe what was read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from simulate.logs._column_names import MEANINGS, normalize
from simulate.logs._columns import Columns, all_names, check_names, find_columns
from simulate.logs._folder import read_path
from simulate.logs._join import join_tables
from simulate.logs._objects import find_lost_values, read_object
from simulate.logs._steps import EPOCHS, ROWS, STEPS, Rows, Steps, count_rows, find_steps, merge_rows, scale_epochs
from simulate.logs._table import Table, format_names
from simulate.trajectories.contract import variable_attributes
from theory.arguments import FloatArray, check_flag, check_integer, check_number, quote
from theory.optimizers import OptimizerLike, check_optimizer, format_optimizer

_KERAS_TAG = "epoch_loss"  # whose steps are epochs
_UNITS = {"gradient_norm": "loss/weight", "update_norm": "weight", "all_weights_norm": "weight"}
_LONG_NAMES = {
    "gradient_norm": "gradient norm as logged",
    "update_norm": "norm of the step as logged",
    "all_weights_norm": "norm of all weights as logged",
}


def read_log(
    source: Any,
    *,
    lr: float | None = None,
    wd: float | None = None,
    optimizer: OptimizerLike = None,
    names: Mapping[str, str] | None = None,
    steps_by_row: bool = False,
    steps_per_row: int | None = None,
) -> xr.Dataset:
    """Read a training log of any usual form into a data set like a trajectory.

    The form is recognized by its content: logs of trainers, tables, JSON, texts that a training printed, event files of
    TensorBoard, runs of `bnwd`, and objects in memory. Columns are recognized by their usual names. Of steps that were
    repeated after a restart the last repetition counts.

    Parameters
    ----------
    source : path of a file or folder; list of paths, whose rows are joined by step; columns by name; data frame; list
        of dicts; an object with `log_history`, as of Hugging Face; a history of Keras; or a trajectory, whose settings
        are replaced. In columns NaN means not logged, unless the losses end with it.
    lr, wd : constant values; they replace columns.
    optimizer : `theory.SGD(momentum=0.9)`, …, or its text form, such as "AdamW"; without it plain SGD is assumed.
    names : names of columns by meaning: step, loss, lr, wd, norm, gradient, update_norm, all_weights_norm, epoch. An
        empty name leaves the meaning out. For example ``{"loss": "my loss", "norm": "w", "step": ""}``.
    steps_by_row : number the rows, and ignore the steps in the log.
    steps_per_row : steps from each row to the next, for a log without steps or with one row per epoch.

    Returns
    -------
    xarray.Dataset with dimension `step` and those of loss, lr, wd, norm, grad_norm (weight norm times gradient norm),
    gradient_norm, update_norm, all_weights_norm and epoch that the log has. NaN was not logged; inf was lost: nan or
    inf in the log. Attributes: `form`, `columns` (names by meaning), `remarks`, `row_unit` ("steps", "epochs" or
    "rows"), `epoch_length` (steps), lr, wd and optimizer.

    Raises
    ------
    TypeError, ValueError : there is no such log, no loss is recognized, columns differ in length or have one meaning, a
        number is invalid, or steps go back too far, too often or regularly.
    ImportError : the log is an event file and TensorBoard is not installed.

    Source: docs/logs.md

    Examples
    --------
    >>> log = read_log({"train/loss": [2.0, 1.5], "weight_norm": [3.0, 3.1], "grad_norm": [0.5, 0.4]}, wd=0.01)
    >>> log.grad_norm.values.round(2).tolist()
    [1.5, 1.24]
    """
    checked, steps_by_row = check_names(names), check_flag("steps_by_row", steps_by_row)
    if steps_per_row is not None:
        check_integer("steps_per_row", steps_per_row, at_least=1)
    settings: dict[str, Any] = {"lr": lr, "wd": wd, "optimizer": optimizer}
    log = _read(source, checked)
    if isinstance(log, xr.Dataset):
        _reject_options(names=names, steps_by_row=steps_by_row, steps_per_row=steps_per_row)
        return override_settings(log, **settings)
    dataset = _make_dataset(log, checked, steps_by_row=steps_by_row, steps_per_row=steps_per_row)
    return override_settings(dataset, **settings)


def _read(source: Any, names: Mapping[str, str]) -> Table | xr.Dataset:
    if isinstance(source, (str, os.PathLike)):
        return read_path(Path(source), names)
    is_list = isinstance(source, (list, tuple)) and len(source) > 0
    if not (is_list and all(isinstance(path, (str, os.PathLike)) for path in source)):
        return read_object(source)
    if len(source) == 1:
        return read_path(Path(source[0]), names)
    logs = {os.fspath(path): read_path(Path(path), names) for path in source}
    for path, log in logs.items():
        if isinstance(log, xr.Dataset):
            raise ValueError(f"path must be of logs to join, and {quote(path)} is a trajectory, which is complete")
    return join_tables({path: log for path, log in logs.items() if isinstance(log, Table)}, names)


def override_settings(
    log: xr.Dataset, *, lr: float | None = None, wd: float | None = None, optimizer: OptimizerLike = None
) -> xr.Dataset:
    """Replace learning rate, weight decay and optimizer of a data set by those that are not None."""
    for name, value in (("lr", lr), ("wd", wd)):
        if value is not None:
            log = log.drop_vars(name, errors="ignore").assign_attrs({name: check_number(name, value, at_least=0)})
            if "columns" in log.attrs:
                kept = {meaning: column for meaning, column in log.attrs["columns"].items() if meaning != name}
                log = log.assign_attrs(columns=kept)
    return log if optimizer is None else log.assign_attrs(optimizer=format_optimizer(check_optimizer(optimizer)))


def _reject_options(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value is not False and not (isinstance(value, Mapping) and not value):
            raise ValueError(
                f"{name} must be left out with a trajectory, which has names and steps, got {quote(value)}"
            )


def _make_dataset(
    table: Table, names: Mapping[str, str], *, steps_by_row: bool, steps_per_row: int | None
) -> xr.Dataset:
    columns = find_columns(table, names)
    is_training_row = find_lost_values(table, columns.names)
    variables = {meaning: table.numbers(name) for meaning, name in columns.names.items()}
    if columns.loss_parts:
        variables["loss"] = np.sum([table.numbers(name) for name in columns.loss_parts], axis=0)
    if "loss" not in variables and "norm" not in variables:
        raise ValueError(_no_loss(table))
    variables.update({name: table.numbers(column) for name, column in columns.variables.items()})
    quantities = {name: values for name, values in variables.items() if name != "epoch"}
    has_values = np.any([~np.isnan(values) for values in quantities.values()], axis=0)
    has_loss = ~np.isnan(variables["loss" if "loss" in variables else "norm"])
    rows = has_values | is_training_row
    steps = _find_steps(table, columns, rows, has_loss, steps_by_row=steps_by_row, steps_per_row=steps_per_row)
    steps.step[~rows] = np.nan
    if table.kind == "events" and normalize(columns.names.get("loss", "")) == _KERAS_TAG and not steps.remarks:
        steps.unit = EPOCHS
    step, merged = merge_rows(variables, steps.step)
    if repeated := int((has_loss & np.isfinite(steps.step)).sum()) - step.size:
        _remark_on_repeated_steps(steps, repeated)
    if not step.size:
        raise ValueError("columns must have at least one finite loss in a row with a step, got none")
    return _assemble(step, merged, table, columns, steps)


def _remark_on_repeated_steps(steps: Steps, count: int) -> None:
    if count > 0:
        rows = "1 row has" if count == 1 else f"{count} rows have"
        steps.remarks.append(f"{rows} the step of another row; the last loss of each step counts.")


def _find_steps(
    table: Table, columns: Columns, rows: Rows, has_loss: Rows, *, steps_by_row: bool, steps_per_row: int | None
) -> Steps:
    if steps_by_row:
        return count_rows(rows, steps_per_row)
    epoch_name = columns.names.get("epoch", "")
    candidates = {name: table.numbers(name) for name in columns.steps} if steps_per_row is None else {}
    steps = find_steps(
        candidates,
        has_loss,
        rows,
        table.numbers(epoch_name) if epoch_name else None,
        epoch_name=epoch_name,
        totals=table.totals,
        rows_are_epochs=table.rows_are_epochs,
    )
    if steps_per_row is None:
        return steps
    return scale_epochs(steps, steps_per_row) if steps.unit == EPOCHS else count_rows(rows, steps_per_row)


def _assemble(
    step: np.ndarray[Any, np.dtype[np.int64]],
    merged: dict[str, FloatArray],
    table: Table,
    columns: Columns,
    steps: Steps,
) -> xr.Dataset:
    gradient = merged.pop("gradient", None)
    if gradient is not None and columns.has_effective_gradient:
        merged.setdefault("grad_norm", gradient)
    elif gradient is not None:
        merged["gradient_norm"] = gradient
        if "norm" in merged:
            merged.setdefault("grad_norm", _effective_gradient(gradient, merged["norm"]))
    dataset = xr.Dataset(
        {name: ("step", values, _attributes(name)) for name, values in merged.items()},
        coords={"step": ("step", step, variable_attributes("step"))},
    )
    used = _used_names(table, columns, steps)
    for name in dataset.variables:
        meaning = "gradient" if name in ("gradient_norm", "grad_norm") else str(name)
        column = columns.variables.get(str(name)) or used.get(meaning)
        if column:
            dataset[name].attrs["column"] = table.original_names.get(column, column)
    attributes: dict[str, Any] = {
        "form": columns.title or table.form,
        "columns": used,
        "remarks": [*table.remarks, *steps.remarks],
        "row_unit": steps.unit,
    }
    if steps.epoch_length:
        attributes["epoch_length"] = steps.epoch_length
    return dataset.assign_attrs(attributes)


def _used_names(table: Table, columns: Columns, steps: Steps) -> dict[str, str]:
    """Names of the columns in the log, by meaning."""
    used = dict(columns.names)
    if steps.column:
        used["step"] = steps.column
    if columns.loss_parts:
        used["loss"] = " + ".join(columns.loss_parts)
    used.update(columns.variables)
    order = [*MEANINGS, *columns.variables]
    return {meaning: table.original_names.get(used[meaning], used[meaning]) for meaning in order if meaning in used}


def _attributes(name: str) -> dict[str, str]:
    if name in _UNITS:
        return {"units": _UNITS[name], "long_name": _LONG_NAMES[name]}
    return variable_attributes(name)


def _effective_gradient(gradient: FloatArray, norm: FloatArray) -> FloatArray:
    """Effective gradient norm g̃, with missing norms interpolated or equal to the last valid one."""
    valid = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if valid.size == norm.size:
        return gradient * norm
    filled = fill_norm_gaps(norm)
    if valid.size:
        filled[valid[-1] :] = norm[valid[-1]]
    return gradient * filled


def fill_norm_gaps(norm: FloatArray) -> FloatArray:
    """Interpolate missing norms up to the last valid one, linearly in ln ρ."""
    filled = norm.copy()
    is_valid = np.isfinite(norm) & (norm > 0)
    valid = np.flatnonzero(is_valid)
    if valid.size:
        gaps = np.flatnonzero(~is_valid[: valid[-1]])
        filled[gaps] = np.exp(np.interp(gaps, valid, np.log(norm[valid])))
    return filled


def _no_loss(table: Table) -> str:
    names = format_names(all_names(table))
    problem = "columns must have a loss or a norm of the weights" if names else "path must be a log with a loss"
    hint = "; name one by `names`" if names else ", but no line has a number after a name such as loss"
    return f"{problem}, got {names or 'none'}{hint}"


def describe_log(log: xr.Dataset) -> str:
    """Describe in one line what was read: form, rows, steps, and which column was taken for what.

    Examples
    --------
    >>> print(describe_log(read_log({"step": [0, 10, 20], "loss": [2.0, 1.5, 1.2]}, lr=0.1)))
    columns in memory: 3 rows, every 10 steps (0 to 20); loss from 'loss', lr 0.1; no weight norm, no gradient norm.
    """
    if not isinstance(log, xr.Dataset):
        raise TypeError(f"log must be an xarray.Dataset of read_log, got {type(log).__name__}")
    if "step" not in log.coords:
        raise ValueError(f"log must have the coordinate 'step', got {quote(list(log.coords))}")
    form = str(log.attrs.get("form", "trajectory"))
    columns: Mapping[str, str] = log.attrs.get("columns") or _names_of_variables(log)
    parts = [
        f"{title} from {columns[meaning]!r}{_doubt(meaning, columns[meaning])}"
        for meaning, title in MEANINGS.items()
        if meaning in columns and meaning != "step"
    ]
    parts += [
        f"{MEANINGS[name]} {log.attrs[name]:g}" for name in ("lr", "wd") if isinstance(log.attrs.get(name), float)
    ]
    lacking = [
        f"no {MEANINGS[meaning]}"
        for meaning in ("loss", "lr", "norm", "gradient")
        if meaning not in columns and meaning not in log.attrs
    ]
    count = log.sizes.get("step", 0)
    rows = "1 row" if count == 1 else f"{count} rows"
    sentences = [f"{rows}, {_describe_steps(log)}", ", ".join(parts), ", ".join(lacking)]
    return f"{form}: {'; '.join(filter(None, sentences))}."


def _doubt(meaning: str, column: str) -> str:
    """Note that a column is often the norm of all weights."""
    if meaning != "norm" or not normalize(column).startswith(("weight", "train_weight", "norm_weight", "w_norm")):
        return ""
    return " (taken to be that of the scale-invariant weights, not of all weights)"


def _names_of_variables(log: xr.Dataset) -> dict[str, str]:
    names = {"gradient": "grad_norm"}
    return {
        meaning: names.get(meaning, meaning) for meaning in MEANINGS if names.get(meaning, meaning) in log.variables
    }


def _describe_steps(log: xr.Dataset) -> str:
    step = log.step.values
    if not step.size:
        return "no steps"
    bounds = f"{step[0]} to {step[-1]}"
    unit = log.attrs.get("row_unit", STEPS)
    if unit == EPOCHS:
        return f"one per epoch ({bounds})"
    if unit == ROWS:
        return f"counted from {bounds}"
    if step.size == 1:
        return f"step {step[0]}"
    distances = np.diff(step)
    spacing = int(np.median(distances))
    about = "" if (distances == spacing).all() else "about "
    return f"{about}every {f'{spacing} steps' if spacing > 1 else 'step'} ({bounds})"
