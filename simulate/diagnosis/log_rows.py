"""Rows of a log for the diagnosis of spikes: its columns, and what it lacks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.diagnosis.rules import THRESHOLDS, Thresholds
from simulate.logs._steps import epoch_length
from simulate.logs.read import fill_norm_gaps
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray
from theory.destabilization import step_angle
from theory.optimizers import format_optimizer

_TRAINING = "training"  # source of a trajectory with data


@dataclass(frozen=True)
class Rows:
    """Columns of a log at the rows with a loss; a column that the log lacks is NaN."""

    log: xr.Dataset  # these rows
    step: npt.NDArray[np.int64]
    logged_loss: FloatArray
    loss: FloatArray  # values that are not finite are replaced by the last finite one
    lr: FloatArray
    wd: FloatArray
    grad_norm: FloatArray
    logged_norm: FloatArray
    norm: FloatArray  # missing values are interpolated
    free_decay: FloatArray  # of ln ρ per step, without gradients
    decay: FloatArray  # that to the next row; NaN if it is not known at all rows
    rotation: FloatArray  # of the step, in radians; if rows lie apart, mean per step since the row before
    predicted_growth: FloatArray  # of ln ρ in each step by the one-step law; NaN except for plain SGD
    gradient: FloatArray  # gradient norm as logged, of whichever weights
    update: FloatArray  # norm of the step; NaN if it is neither logged nor implied
    epoch_length: float  # in steps; NaN if it is not known
    are_epochs: bool  # whether rows are epochs with an unknown number of steps
    optimizer: str  # empty if `theory` does not know it
    simulation: str  # what made the log; empty for a training
    lacking: tuple[str, ...]  # for finding causes
    limits: tuple[str, ...]  # what is lacking for finding spikes

    @classmethod
    def of(cls, log: xr.Dataset, t: Thresholds = THRESHOLDS) -> Rows:
        """Read the columns. Raise ValueError if no loss is finite, or the run was constrained."""
        whole, log = log, _rows_with_loss(log, t)
        count, step = log.sizes["step"], log.step.values
        setting = Setting.of(log)
        setting.check_free("log")
        rule = setting.optimizer
        lr, wd = (_fill_forward(_column(setting.variables.get(name), count)) for name in ("lr", "wd"))
        logged_norm, grad_norm = (_column(log.get(name), count) for name in ("norm", "grad_norm"))
        norm = fill_norm_gaps(logged_norm)
        intrinsic_lr, free_decay = lr * wd, np.full(count, np.nan)
        usable = (intrinsic_lr >= 0) & (intrinsic_lr < 1)
        if rule is not None and usable.any():
            free_decay[usable] = theory.free_decay(1.0, intrinsic_lr[usable], optimizer=rule)
        # rows that are epochs have an unknown number of steps
        are_epochs = log.attrs.get("row_unit") == "epochs"
        is_known = np.isfinite(free_decay).all() and not are_epochs
        decay = free_decay * _row_distances(step) if is_known else np.full(count, np.nan)
        predicted_growth = np.full(count, np.nan)
        with np.errstate(all="ignore"):
            if rule == theory.SGD():
                predicted_growth = growth_by_law(lr, wd, norm, grad_norm)
            if are_epochs:
                rotation = np.full(count, np.nan)
            elif "rotation" in log:
                rotation = log.rotation.values.astype(float)
            elif rule == theory.SGD() and has_values(lr) and has_values(grad_norm):
                decayed = np.where(np.isnan(wd), 0.0, intrinsic_lr)
                turn = np.where(np.isfinite(grad_norm), lr * grad_norm / norm**2, np.nan)
                rotation = step_angle(turn, decayed)
            else:
                rotation = rotation_by_growth(norm, decay, _row_distances(step))
            gradient = _column(log.get("gradient_norm"), count)
            if not has_values(gradient):
                gradient = grad_norm / norm
            update = _column(log.get("update_norm"), count)
            if not has_values(update):
                update = lr * gradient if rule == theory.SGD() else rotation * norm
        logged = log.loss.values.astype(float)
        last_finite = np.maximum.accumulate(np.where(np.isfinite(logged), np.arange(count), -1))
        loss = np.where(last_finite >= 0, logged[np.maximum(last_finite, 0)], logged[np.isfinite(logged)][0])
        source = str(log.attrs.get("source", _TRAINING))
        is_adam = rule is not None and has_values(intrinsic_lr) and not has_values(free_decay)
        norm_name = "the norm of the scale-invariant weights (names=, or --column norm=…)"
        lacking = {
            "the learning rate (lr=, or --lr)": not has_values(lr),
            "the weight decay (wd=, or --wd)": not has_values(wd),
            norm_name: not has_values(norm),
            "the number of steps in an epoch, because rows are epochs (steps_per_row=, or --steps-per-row)": are_epochs,
            "a known decay of the norm: Adam normalizes weight decay together with the gradient": is_adam,
            "an optimizer whose one-step law is known (optimizer=, or --optimizer)": rule is None,
        }
        return cls(
            log=log,
            step=step,
            logged_loss=logged,
            loss=loss,
            lr=lr,
            wd=wd,
            grad_norm=grad_norm,
            logged_norm=logged_norm,
            norm=norm,
            free_decay=free_decay,
            decay=decay,
            rotation=rotation,
            predicted_growth=predicted_growth,
            gradient=gradient,
            update=update,
            epoch_length=_epoch_length(log),
            are_epochs=are_epochs,
            optimizer="" if rule is None else format_optimizer(rule),
            simulation=source if "schema" in log.attrs and source != _TRAINING else "",
            lacking=tuple(text for text, is_lacking in lacking.items() if is_lacking),
            limits=_limits(whole, step, t),
        )

    @cached_property
    def is_dense(self) -> bool:
        """Whether every step has a row."""
        return row_spacing(self.step) <= 1 and not self.are_epochs

    def without_gradients(self) -> Rows:
        """The same rows, with rotations that follow from the norms alone."""
        nothing = np.full(self.norm.size, np.nan)
        rotation = rotation_by_growth(self.norm, self.decay, _row_distances(self.step))
        return replace(
            self, grad_norm=nothing, predicted_growth=nothing, rotation=rotation, update=rotation * self.norm
        )

    @cached_property
    def gradient_cap(self) -> float:
        """Gradient norm at which the logged gradients are clipped; inf if they are not."""
        gradient = self.gradient[np.isfinite(self.gradient)]
        if not gradient.size:
            return math.inf
        largest = float(gradient.max())
        below = gradient[gradient < largest * (1 - 1e-3)]
        # in a log of norms before clipping, the largest one occurs once; rounded norms all occur often
        is_often = gradient.size - below.size >= THRESHOLDS.least_capped
        are_different = below.size and 2 * np.unique(below).size > below.size
        return largest if is_often and are_different else math.inf

    @cached_property
    def decay_per_step(self) -> FloatArray:
        """Decay of ln ρ per step without gradients, at each row; NaN if it is not known at all rows."""
        per_step: FloatArray = self.decay / _row_distances(self.step)
        return per_step

    @cached_property
    def certain_decay(self) -> FloatArray:
        """Decay of ln ρ to the next row; NaN also if the optimizer was assumed, as momentum makes decay faster."""
        return self.decay if "optimizer" in self.log.attrs else np.full(self.decay.size, np.nan)

    @cached_property
    def has_norm(self) -> npt.NDArray[np.bool_]:
        """Whether each row has a logged norm."""
        has: npt.NDArray[np.bool_] = np.isfinite(self.logged_norm) & (self.logged_norm > 0)
        return has


def has_values(column: FloatArray) -> bool:
    """Whether any value is finite: a column that the log lacks is NaN."""
    return bool(np.isfinite(column).any())


def growth_by_law(lr: FloatArray, wd: FloatArray, norm: FloatArray, grad_norm: FloatArray) -> FloatArray:
    """Growth of ln ρ in each step by the one-step law of plain SGD: ρ⁺ = (1-ηλ)ρ/cos θ."""
    angle = step_angle(lr * grad_norm / norm**2, lr * wd)
    growth: FloatArray = np.log1p(-lr * wd) - np.log(np.cos(angle))
    return growth


def rotation_by_growth(norm: FloatArray, decay: FloatArray, distances: FloatArray) -> FloatArray:
    """Rotation in each step, in radians, from the growth of ln ρ that gradients cause.

    If rows lie several steps apart, it is the mean per step since the row before, so that it precedes the row's loss.
    """
    with np.errstate(all="ignore"):
        growth = np.diff(np.log(norm), append=np.nan) + decay
        rotation: FloatArray = np.sqrt(np.maximum(2 * growth / distances, 0))
    return rotation if np.median(distances) <= 1 else np.append(np.nan, rotation[:-1])


def is_read(log: xr.Dataset) -> bool:
    """Whether `read_log` made this data set, in which NaN is a value that was not logged, and inf one that was lost."""
    return "form" in log.attrs


def _rows_with_loss(log: xr.Dataset, t: Thresholds) -> xr.Dataset:
    """Rows with a loss. In a trajectory, also the rows after the last loss, if most rows have one."""
    loss = log.loss.values.astype(float)
    logged = np.flatnonzero(~np.isnan(loss))
    if not np.isfinite(loss).any():
        raise ValueError("log must have at least one finite loss, got none")
    if is_read(log):
        log, loss = log.isel(step=logged), loss[logged]
        logged = np.arange(logged.size)
    # a loss missing between others was not logged; at the end it is NaN
    if logged.size < loss.size:
        is_sparse = np.isnan(loss[: logged[-1] + 1]).mean() > t.sparse_share
        kept = logged if is_sparse else np.append(logged, np.arange(logged[-1] + 1, loss.size))
        log, loss = log.isel(step=kept), loss[kept]
    if "norm" in log:
        finite = np.isfinite(log.norm.values)
        has = finite & np.isfinite(loss)
        # norms logged at some rows only
        if t.ignored_share < has.mean() < 1 - t.sparse_share and finite[np.isfinite(loss)].mean() < 1 - t.sparse_share:
            # norms that are infinite up to the end are lost, not missing
            lost = np.isinf(log.norm.values) & (np.arange(has.size) > np.flatnonzero(finite)[-1])
            log = log.isel(step=np.flatnonzero(has | lost))
    return log


def row_spacing(step: npt.NDArray[np.int64]) -> float:
    """Median distance of rows in steps."""
    return float(np.median(np.diff(step))) if step.size > 1 else 1.0


def _row_distances(step: npt.NDArray[np.int64]) -> FloatArray:
    """Steps from each row to the next; after the last row as in the median."""
    return np.diff(step, append=step[-1] + row_spacing(step))


def _limits(whole: xr.Dataset, step: npt.NDArray[np.int64], t: Thresholds) -> tuple[str, ...]:
    """What the whole log lacks for finding spikes; `step` are the steps of the rows with a loss."""
    limits = []
    loss = whole.loss.values.astype(float)
    without_loss = np.isnan(loss) & (np.arange(loss.size) < np.flatnonzero(~np.isnan(loss))[-1])
    if is_read(whole):
        # rows of an evaluation are no steps
        columns = [whole[name].values for name in ("norm", "gradient_norm") if name in whole]
        without_loss &= np.isfinite(columns).any(axis=0) if columns else False
    if without := int(without_loss.sum()):
        limits.append(f"a loss in {without} of {loss.size} rows")
    if step.size < t.compared_rows:
        limits.append(
            f"enough rows: it has {step.size}; a spike needs {t.least_rows} earlier rows, and {t.compared_rows} are "
            "better"
        )
    if whole.attrs.get("row_unit") == "epochs":
        limits.append("every step: rows are epochs")
    elif (spacing := row_spacing(step)) > 1:
        limits.append(f"every step: rows lie {spacing:.0f} steps apart")
    elif skipped := int((np.maximum(np.diff(whole.step.values), 1) - 1).sum()):
        limits.append(f"{skipped} of {int(step[-1] - step[0]) + 1} steps")
    finite = np.flatnonzero(np.isfinite(whole.norm.values)) if "norm" in whole else np.array([], dtype=int)
    if finite.size and np.isfinite(loss[finite[-1] + 1 :]).sum() >= t.least_rows:
        limits.append(f"norms after step {whole.step.values[finite[-1]]}, so later spikes are not found")
    return tuple(limits)


def _column(values: xr.DataArray | None, count: int) -> FloatArray:
    if values is None or not has_values(values.values.astype(float)):
        return np.full(count, np.nan)
    return np.broadcast_to(values.values.astype(float), (count,)).copy()


def _fill_forward(values: FloatArray) -> FloatArray:
    """Values of a setting, which may be logged only when it changes."""
    logged = np.flatnonzero(np.isfinite(values))
    if not logged.size:
        return values
    return values[logged[np.maximum(np.searchsorted(logged, np.arange(values.size), side="right") - 1, 0)]]


def _epoch_length(log: xr.Dataset) -> float:
    """Steps per epoch, as stored by the reader of a log, or from the epochs of a trajectory; NaN if unknown."""
    if "epoch_length" in log.attrs or "epoch" not in log:
        return float(log.attrs.get("epoch_length", math.nan))
    has_loss = np.isfinite(log.loss.values)
    return float(epoch_length(log.step.values.astype(float), log.epoch.values.astype(float), has_loss) or math.nan)
