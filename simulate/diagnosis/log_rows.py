"""Rows of a log for the diagnosis of spikes: columns, what is lacking, and whether norms obey the one-step law."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.diagnosis.rules import THRESHOLDS, Thresholds
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
    rotation: FloatArray  # radians
    predicted_growth: FloatArray  # of ln ρ in each step by the one-step law; NaN except for plain SGD
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
        decay = free_decay * _row_distances(step) if np.isfinite(free_decay).all() else np.full(count, np.nan)
        predicted_growth = np.full(count, np.nan)
        with np.errstate(all="ignore"):
            if rule == theory.SGD():
                predicted_growth = growth_by_law(lr, wd, norm, grad_norm)
            if "rotation" in log:
                rotation = log.rotation.values.astype(float)
            elif rule == theory.SGD() and has_values(lr) and has_values(grad_norm):
                decayed = np.where(np.isnan(wd), 0.0, intrinsic_lr)
                turn = np.where(np.isfinite(grad_norm), lr * grad_norm / norm**2, np.nan)
                rotation = step_angle(turn, decayed)
            else:
                growth = np.diff(np.log(norm), append=np.nan) + decay
                # the growth of several steps gives no rotation
                rotation = np.sqrt(np.maximum(2 * growth, 0)) if _row_spacing(step) <= 1 else np.full(count, np.nan)
        logged = log.loss.values.astype(float)
        last_finite = np.maximum.accumulate(np.where(np.isfinite(logged), np.arange(count), -1))
        loss = np.where(last_finite >= 0, logged[np.maximum(last_finite, 0)], logged[np.isfinite(logged)][0])
        source = str(log.attrs.get("source", _TRAINING))
        is_adam = rule is not None and has_values(intrinsic_lr) and not has_values(decay)
        norm_name = "the norm of the scale-invariant weights (names=, or --column norm=…)"
        lacking = {
            "the learning rate (lr=, or --lr)": not has_values(lr),
            "the weight decay (wd=, or --wd)": not has_values(wd),
            norm_name: not has_values(norm),
            "a known decay of the norm: Adam normalizes weight decay together with the gradient": is_adam,
            "an optimizer whose one-step law is known (optimizer=, or --optimizer)": rule is None,
            "the gradient norm of the scale-invariant weights, for the rotation of each step": has_values(norm)
            and not has_values(rotation),
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
            optimizer="" if rule is None else format_optimizer(rule),
            simulation=source if "schema" in log.attrs and source != _TRAINING else "",
            lacking=tuple(text for text, is_lacking in lacking.items() if is_lacking),
            limits=_limits(whole, step, t),
        )

    @cached_property
    def is_dense(self) -> bool:
        """Whether every step has a row."""
        return _row_spacing(self.step) <= 1

    @cached_property
    def decay_per_step(self) -> FloatArray:
        """Decay of ln ρ per step without gradients, at each row; NaN if it is not known at all rows."""
        per_step: FloatArray = self.decay / _row_distances(self.step)
        return per_step

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


def fill_norm_gaps(norm: FloatArray) -> FloatArray:
    """Interpolate missing norms up to the last valid one, linearly in ln ρ."""
    filled = norm.copy()
    valid = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if valid.size:
        gaps = np.setdiff1d(np.arange(valid[-1]), valid)
        filled[gaps] = np.exp(np.interp(gaps, valid, np.log(norm[valid])))
    return filled


def _rows_with_loss(log: xr.Dataset, t: Thresholds) -> xr.Dataset:
    """Rows with a loss; also the rows after the last loss, if most rows have one."""
    loss = log.loss.values.astype(float)
    logged = np.flatnonzero(~np.isnan(loss))
    if not np.isfinite(loss).any():
        raise ValueError("log must have at least one finite loss, got none")
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


def _row_spacing(step: npt.NDArray[np.int64]) -> float:
    """Median distance of rows in steps."""
    return float(np.median(np.diff(step))) if step.size > 1 else 1.0


def _row_distances(step: npt.NDArray[np.int64]) -> FloatArray:
    """Steps from each row to the next; after the last row as in the median."""
    return np.diff(step, append=step[-1] + _row_spacing(step))


def _limits(whole: xr.Dataset, step: npt.NDArray[np.int64], t: Thresholds) -> tuple[str, ...]:
    """What the whole log lacks for finding spikes; `step` are the steps of the rows with a loss."""
    limits = []
    loss = whole.loss.values.astype(float)
    if without := int(np.isnan(loss[: np.flatnonzero(~np.isnan(loss))[-1]]).sum()):
        limits.append(f"a loss in {without} of {loss.size} rows")
    if step.size < t.compared_rows:
        limits.append(
            f"enough rows: it has {step.size}; a spike needs {t.least_rows} earlier rows, and {t.compared_rows} are "
            "better"
        )
    if (spacing := _row_spacing(step)) > 1:
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


def contradiction(rows: Rows, t: Thresholds = THRESHOLDS) -> str:
    """Say how many logged steps contradict the SGD update, and which correction makes them match.

    Corrections tried: norms logged after the step, another weight decay, scaled or clipped gradients, several rows per
    step. Rounded norms may deviate by their smallest change.

    The text is empty if the log obeys the law, is not of a training, or has too little data to test it.
    """
    if rows.simulation or not rows.is_dense or not has_values(rows.predicted_growth):
        return ""
    with np.errstate(all="ignore"):
        return _contradiction(rows, t)


def _contradiction(rows: Rows, t: Thresholds) -> str:
    # all steps but the last
    lr, wd, norm, decay = rows.lr[:-1], rows.wd[:-1], rows.norm[:-1], rows.decay[:-1]
    gradients, predicted, measured = rows.grad_norm[:-1] / norm, rows.predicted_growth[:-1], np.diff(np.log(rows.norm))
    usable = rows.has_norm[:-1] & rows.has_norm[1:] & (np.diff(rows.step) == 1) & np.isfinite(predicted)
    change = np.abs(np.diff(rows.norm))
    moved = np.flatnonzero(usable & (change > 0))
    # norms may be rounded to significant digits or to decimals: find the smallest change of each decade
    decades, rounding = np.floor(np.log10(norm)), np.full(norm.size, np.inf)
    for decade in np.unique(decades[moved]):
        rounding[decades == decade] = change[moved[decades[moved] == decade]].min()

    def share_off(predicted: FloatArray, decay: FloatArray) -> float:
        """Share of the steps whose growth differs from the prediction by too much."""
        off = np.abs(measured - predicted) > t.law_tolerance * (predicted + 2 * decay) + rounding / norm
        tested = off[usable & np.isfinite(predicted)]
        return float(tested.mean()) if tested.size else 1.0

    def obey(predicted: FloatArray, decay: FloatArray) -> bool:
        return share_off(predicted, decay) <= t.law_share

    def obey_with(gradients: FloatArray) -> bool:
        return obey(growth_by_law(lr, wd, norm, gradients * norm), decay)

    share = share_off(predicted, decay)
    if moved.size < t.least_rows or not share > t.law_share:
        return ""
    quantity = "All" if share == 1 else f"{share:.0%} of the"
    contradicts = f"{quantity} logged steps contradict the SGD update for wd = {float(np.median(wd)):.3g}."
    distances = np.diff(moved)
    rows_per_step = int(np.median(distances))
    if rows_per_step > 1 and (distances == rows_per_step).mean() >= t.law_regular:
        which = f"at every {rows_per_step}th row only"
        return f"{contradicts} The norm changes {which}: log one row for each step of the optimizer."
    if obey(np.append(predicted[1:], np.nan), decay):
        return f"{contradicts} They match it if each norm is the one after its step: log the norm before the step."
    grown = predicted + decay
    fitted_wd = max(float(np.median((-np.expm1(measured - grown) / lr)[usable])), 0.0)
    fitted_decay = -np.log1p(-lr * fitted_wd)
    if obey(grown - fitted_decay, fitted_decay):
        momentum = "; momentum also makes decay faster" if np.median(wd) < fitted_wd else ""
        return f"{contradicts} They match it for wd = {fitted_wd:.3g}{momentum}."
    rotating = usable & (gradients > 0)
    # gradient norm that explains the measured growth
    implied = np.sqrt(np.expm1(2 * np.maximum(measured + decay, 0))) * (1 - lr * wd) * norm / lr
    ratio = implied / gradients
    factor = float(np.median(ratio[rotating])) if rotating.any() else 1.0
    if obey_with(factor * gradients):
        return (
            f"{contradicts} They match it with gradients {factor:.3g} times as large. Check whether gradients were "
            "logged while scaled, from one of several micro-batches, or before clipping."
        )
    clipped = rotating & (ratio < 1 - t.law_tolerance)
    bound = float(np.median(implied[clipped])) if clipped.any() else np.inf
    if obey_with(np.minimum(gradients, bound)):
        return (
            f"{contradicts} They match it with gradients clipped at {bound:.3g}: log the gradient norm after clipping."
        )
    return (
        f"{contradicts} Check the optimizer, the learning rate and the weight decay; whether gradients were clipped or "
        "averaged over micro-batches after they were logged; and whether all weights are scale-invariant."
    )
