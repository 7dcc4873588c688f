"""Rows of a log for the diagnosis of spikes: the columns that it has, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.diagnosis.spikes import COMPARED_ROWS, LEAST_ROWS_BEFORE
from simulate.trajectories.contract import unconstrained_optimizer
from theory.arguments import FloatArray
from theory.destabilization import step_angle
from theory.optimizers import parse_if_known

_TRAINING = "training"  # source of a trajectory with data
_SPARSE = 0.2  # share of missing values above which a column is logged at some rows only


@dataclass(frozen=True)
class Rows:
    """Columns of a log at the rows with a loss; columns that the log lacks are None.

    Attributes
    ----------
    log : these rows of the log.
    step : step numbers.
    logged_loss, loss : loss as logged, and with values that are not finite replaced by the last finite one.
    logged_norm, norm : ρ as logged, and with missing values interpolated.
    lr, wd, grad_norm : η, λ and g̃.
    decay : decay of ln ρ to the next row without gradients.
    rotation : angle of each step, radians.
    rule : the optimizer; None if `theory` does not know it.
    limits : what the log lacks for finding spikes.
    missing : what the log lacks for finding their causes, `limits` included.

    Examples
    --------
    >>> rows = Rows.of(xr.Dataset({"loss": ("step", [2.0, np.nan, 1.0])}, {"step": [0, 1, 2]}, {"lr": 0.1}))
    >>> rows.loss.tolist(), rows.limits[0], rows.missing[0]
    ([2.0, 1.0], 'a loss in 1 of 3 rows', 'the weight decay (wd=, or --wd)')
    """

    log: xr.Dataset
    step: npt.NDArray[np.int64]
    logged_loss: FloatArray
    loss: FloatArray
    lr: FloatArray | None
    wd: FloatArray | None
    logged_norm: FloatArray | None
    norm: FloatArray | None
    grad_norm: FloatArray | None
    decay: FloatArray | None
    rotation: FloatArray | None
    rule: theory.Optimizer | None
    limits: tuple[str, ...]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, log: xr.Dataset) -> Rows:
        """Read the columns of a log that has a loss.

        Raises
        ------
        ValueError : no loss is finite, or the run was constrained.
        """
        whole, log = log, _rows_with_loss(log)
        count = log.sizes["step"]
        step = log.step.values
        lr, wd, logged_norm, grad_norm = (_column(log, name, count) for name in ("lr", "wd", "norm", "grad_norm"))
        norm = None if logged_norm is None else fill_norm_gaps(logged_norm)
        rule = parse_if_known(unconstrained_optimizer(log, "log"))
        spacing = _row_spacing(step)
        missing = [
            text
            for text, value in (
                ("the learning rate (lr=, or --lr)", lr),
                ("the weight decay (wd=, or --wd)", wd),
                ("the norm of the scale-invariant weights (names=, or --column norm=…)", norm),
            )
            if value is None
        ]
        decay = None
        if lr is not None and wd is not None and rule is not None:
            product = lr * wd
            with np.errstate(invalid="ignore"):
                intrinsic_lr = np.where((product >= 0) & (product < 1), product, np.nan)
            decay = np.full(count, np.nan)
            usable = np.isfinite(intrinsic_lr)
            decay[usable] = theory.free_decay(np.ones(usable.sum()), intrinsic_lr[usable], optimizer=rule)
            decay = decay * np.diff(step, append=step[-1] + spacing)
            if np.isnan(decay).any():
                missing.append("a known decay of the norm: Adam normalizes weight decay together with the gradient")
                decay = None
        elif rule is None:
            missing.append("an optimizer whose one-step law is known (optimizer=, or --optimizer)")
        rotation = _rotation(log, rule, lr, wd, norm, grad_norm, decay, spacing)
        if rotation is None and norm is not None:
            missing.append("the gradient norm of the scale-invariant weights, for the rotation of each step")
        logged = log.loss.values.astype(float)
        last_finite = np.maximum.accumulate(np.where(np.isfinite(logged), np.arange(count), -1))
        loss = np.where(last_finite >= 0, logged[np.maximum(last_finite, 0)], logged[np.isfinite(logged)][0])
        limits = _limits(whole, step)
        columns = (lr, wd, logged_norm, norm, grad_norm, decay, rotation)
        return cls(log, step, logged, loss, *columns, rule, limits, (*missing, *limits))

    @property
    def is_dense(self) -> bool:
        """Whether every step has a row."""
        return _row_spacing(self.step) <= 1

    @property
    def decay_per_step(self) -> FloatArray | None:
        """Decay of ln ρ per step without gradients, at each row."""
        if self.decay is None:
            return None
        per_step: FloatArray = self.decay / np.diff(self.step, append=self.step[-1] + _row_spacing(self.step))
        return per_step

    @property
    def has_norm(self) -> npt.NDArray[np.bool_]:
        """Whether each row has a logged norm."""
        assert self.logged_norm is not None
        has: npt.NDArray[np.bool_] = np.isfinite(self.logged_norm) & (self.logged_norm > 0)
        return has

    @property
    def simulation(self) -> str | None:
        """Name of the simulation that made the log; None for a training."""
        source = str(self.log.attrs.get("source", _TRAINING))
        return source if "schema" in self.log.attrs and source != _TRAINING else None

    def predicted_growth(self, here: slice, grad_norm: FloatArray | None = None) -> FloatArray:
        """Growth of ln ρ in each step by the one-step law of plain SGD: ρ⁺ = (1-ηλ)ρ/cos θ.

        Parameters
        ----------
        here : rows of a log with lr, wd, norm and grad_norm.
        grad_norm : g̃ of these rows; default the logged ones.
        """
        assert self.lr is not None
        assert self.wd is not None
        assert self.norm is not None
        assert self.grad_norm is not None
        intrinsic_lr = self.lr[here] * self.wd[here]
        gradients = self.grad_norm[here] if grad_norm is None else grad_norm
        angle = step_angle(self.lr[here] * gradients / self.norm[here] ** 2, intrinsic_lr)
        growth: FloatArray = np.log1p(-intrinsic_lr) - np.log(np.cos(angle))
        return growth


def _rows_with_loss(log: xr.Dataset) -> xr.Dataset:
    """Rows with a loss; also the rows after the last loss, if most rows have one."""
    loss = log.loss.values.astype(float)
    logged = np.flatnonzero(~np.isnan(loss))
    if not np.isfinite(loss).any():
        raise ValueError("log must have at least one finite loss, got none")
    # a loss missing between others was not logged; at the end it is NaN
    if logged.size < loss.size:
        kept = np.append(logged, np.arange(logged[-1] + 1, loss.size))
        kept = logged if np.isnan(loss[: logged[-1] + 1]).mean() > _SPARSE else kept
        log, loss = log.isel(step=kept), loss[kept]
    if "norm" in log:
        has = np.isfinite(log.norm.values) & np.isfinite(loss)
        # norms logged at some rows only
        if 0.01 < has.mean() < 1 - _SPARSE and np.isfinite(log.norm.values[np.isfinite(loss)]).mean() < 1 - _SPARSE:
            # norms that are infinite up to the end are lost, not missing
            last = int(np.flatnonzero(np.isfinite(log.norm.values))[-1])
            lost = np.isinf(log.norm.values) & (np.arange(has.size) > last)
            log = log.isel(step=np.flatnonzero(has | lost))
    return log


def _row_spacing(step: npt.NDArray[np.int64]) -> float:
    """Median distance of rows in steps."""
    return float(np.median(np.diff(step))) if step.size > 1 else 1.0


def _limits(whole: xr.Dataset, step: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """What the whole log lacks for finding spikes; `step` are the steps of the rows with a loss."""
    limits = []
    lost = np.isnan(whole.loss.values.astype(float))
    without = int(lost[: np.flatnonzero(~lost)[-1]].sum())
    if without:
        limits.append(f"a loss in {without} of {lost.size} rows")
    if step.size < COMPARED_ROWS:
        limits.append(
            f"enough rows: it has {step.size}; a spike needs {LEAST_ROWS_BEFORE} earlier rows, and {COMPARED_ROWS} are "
            "better"
        )
    if (spacing := _row_spacing(step)) > 1:
        limits.append(f"every step: rows lie {spacing:.0f} steps apart")
    elif skipped := int((np.maximum(np.diff(whole.step.values), 1) - 1).sum()):
        limits.append(f"{skipped} of {int(step[-1] - step[0]) + 1} steps")
    if "norm" in whole and (finite := np.flatnonzero(np.isfinite(whole.norm.values))).size:
        after = whole.loss.values[finite[-1] + 1 :]
        if np.isfinite(after.astype(float)).sum() >= LEAST_ROWS_BEFORE:
            limits.append(f"norms after step {whole.step.values[finite[-1]]}, so later spikes are not found")
    return tuple(limits)


def fill_norm_gaps(norm: FloatArray) -> FloatArray:
    """Interpolate missing norms up to the last valid one, linearly in ln ρ.

    Examples
    --------
    >>> fill_norm_gaps(np.array([np.nan, 1.0, np.inf, 4.0, np.nan])).tolist()
    [1.0, 1.0, 2.0, 4.0, nan]
    """
    filled = norm.copy()
    valid = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if valid.size:
        gaps = np.setdiff1d(np.arange(valid[-1]), valid)
        filled[gaps] = np.exp(np.interp(gaps, valid, np.log(norm[valid])))
    return filled


def _column(log: xr.Dataset, name: str, count: int) -> FloatArray | None:
    if name in log.variables:
        values = np.broadcast_to(log[name].values.astype(float), (count,)).copy()
        if name in ("lr", "wd"):
            # may be logged only when it changes
            logged = np.flatnonzero(np.isfinite(values))
            if logged.size:
                at = np.maximum(np.searchsorted(logged, np.arange(count), side="right") - 1, 0)
                values = values[logged[at]]
        return values if np.isfinite(values).any() else None
    return np.full(count, float(log.attrs[name])) if name in log.attrs else None


def _rotation(
    log: xr.Dataset,
    rule: theory.Optimizer | None,
    lr: FloatArray | None,
    wd: FloatArray | None,
    norm: FloatArray | None,
    grad_norm: FloatArray | None,
    decay: FloatArray | None,
    spacing: float,
) -> FloatArray | None:
    """Angle of each step: measured, else by the one-step law of plain SGD, else from the growth of the norm."""
    if "rotation" in log:
        measured: FloatArray = log.rotation.values.astype(float)
        return measured
    if norm is None:
        return None
    with np.errstate(all="ignore"):
        if rule == theory.SGD() and lr is not None and grad_norm is not None:
            decayed = 0.0 if wd is None else lr * wd
            turned: FloatArray = np.where(np.isfinite(grad_norm), step_angle(lr * grad_norm / norm**2, decayed), np.nan)
            return turned
        if decay is None or spacing > 1:
            return None
        growth = np.diff(np.log(norm), append=np.nan) + decay
        grown: FloatArray = np.sqrt(np.maximum(2 * growth, 0))
        return grown
