"""Rows of a log as the diagnosis of its spikes needs them: what is known, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.trajectories.contract import unfixed_optimizer
from theory.arguments import FloatArray
from theory.destabilization import step_angle
from theory.optimizers import optimizer_if_known

_SPARSE = 0.2  # share of rows without a loss, from which it is logged at some rows only


@dataclass(frozen=True)
class Rows:
    """Columns of a log at the rows that have a loss; those that are not known are None.

    Attributes
    ----------
    log : the rows that are looked at.
    step : their numbers.
    logged_loss, loss : as logged; and with the number before in the place of what is none.
    lr, wd, norm, grad_norm : η, λ, ρ and g̃.
    decay : fall of ln ρ to the next row without gradients.
    rotation : angle of each step, radians.
    rule : the optimizer; None for one that `theory` does not know.
    missing : what the log lacks.

    Examples
    --------
    >>> rows = Rows.of(xr.Dataset({"loss": ("step", [2.0, np.nan, 1.0])}, {"step": [0, 1, 2]}, {"lr": 0.1}))
    >>> rows.loss.tolist(), rows.missing[0]
    ([2.0, 1.0], 'the weight decay')
    """

    log: xr.Dataset
    step: npt.NDArray[np.int64]
    logged_loss: FloatArray
    loss: FloatArray
    lr: FloatArray | None
    wd: FloatArray | None
    norm: FloatArray | None
    grad_norm: FloatArray | None
    decay: FloatArray | None
    rotation: FloatArray | None
    rule: theory.Optimizer | None
    missing: tuple[str, ...]

    @classmethod
    def of(cls, log: xr.Dataset) -> Rows:
        """Take the columns of a log that has a loss.

        Raises
        ------
        ValueError : no loss is a number, or something is held fixed in the run.
        """
        log = _logged(log)
        count = log.sizes["step"]
        step = log.step.values
        lr, wd, norm, grad_norm = (_column(log, name, count) for name in ("lr", "wd", "norm", "grad_norm"))
        rule = optimizer_if_known(unfixed_optimizer(log, "log"))
        gap = float(np.median(np.diff(step))) if count > 1 else 1.0
        missing = [
            text
            for text, value in (
                ("the learning rate", lr),
                ("the weight decay", wd),
                ("the norm of the scale-invariant weights", norm),
            )
            if value is None
        ]
        decay = None
        if lr is not None and wd is not None and rule is not None:
            rate = lr * wd
            with np.errstate(invalid="ignore"):
                known = np.where((rate >= 0) & (rate < 1), rate, np.nan)
            decay = np.full(count, np.nan)
            usable = np.isfinite(known)
            decay[usable] = theory.free_decay(np.ones(usable.sum()), known[usable], optimizer=rule)
            decay = decay * np.diff(step, append=step[-1] + gap)
            if np.isnan(decay).any():
                missing.append("a known rate of decay: that of Adam goes through its normalized gradient")
                decay = None
        elif rule is None:
            missing.append("an optimizer whose law of the norm is known")
        if gap > 1:
            missing.append(f"every step: rows lie {gap:.0f} steps apart")
        rotation = _rotation(log, rule, lr, wd, norm, grad_norm, decay, gap)
        if rotation is None and norm is not None:
            missing.append("what tells how far steps turn the weights: the norm of their gradient")
        logged = log.loss.values.astype(float)
        known = np.maximum.accumulate(np.where(np.isfinite(logged), np.arange(count), -1))
        loss = np.where(known >= 0, logged[np.maximum(known, 0)], logged[np.isfinite(logged)][0])
        return cls(log, step, logged, loss, lr, wd, norm, grad_norm, decay, rotation, rule, tuple(missing))

    @property
    def is_dense(self) -> bool:
        """Whether there is a row for each step."""
        return self.step.size < 2 or float(np.median(np.diff(self.step))) <= 1


def _logged(log: xr.Dataset) -> xr.Dataset:
    """Rows that have a loss, and those after the last of them, where most rows have one."""
    loss = log.loss.values.astype(float)
    seen = np.flatnonzero(~np.isnan(loss))
    if not np.isfinite(loss).any():
        raise ValueError("log must have a loss that is a number, got none")
    # a loss that is missing between others was not logged; at the end it is no number any more
    if seen.size < loss.size:
        kept = np.append(seen, np.arange(seen[-1] + 1, loss.size))
        kept = seen if np.isnan(loss[: seen[-1] + 1]).mean() > _SPARSE else kept
        log, loss = log.isel(step=kept), loss[kept]
    if "norm" in log:
        has = np.isfinite(log.norm.values) & np.isfinite(loss)
        # norms at some rows only
        if 0.01 < has.mean() < 1 - _SPARSE and np.isfinite(log.norm.values[np.isfinite(loss)]).mean() < 1 - _SPARSE:
            log = log.isel(step=np.flatnonzero(has))
    return log


def _column(log: xr.Dataset, name: str, count: int) -> FloatArray | None:
    if name in log.variables:
        values = np.broadcast_to(log[name].values.astype(float), (count,)).copy()
        if name in ("lr", "wd"):
            # logged when it changes
            known = np.flatnonzero(np.isfinite(values))
            if known.size:
                at = np.maximum(np.searchsorted(known, np.arange(count), side="right") - 1, 0)
                values = values[known[at]]
        positive = np.isfinite(values) & (values > 0)
        if name == "norm" and positive.any():
            # between two norms it is somewhere between; after the last there is none
            known = np.flatnonzero(positive)
            gaps = np.flatnonzero(np.isnan(values[: known[-1]]) | (values[: known[-1]] <= 0))
            values[gaps] = np.exp(np.interp(gaps, known, np.log(values[known])))
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
    gap: float,
) -> FloatArray | None:
    """Angle of each step: as measured, by the law of a step of plain SGD, or by the growth of the norm."""
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
        if decay is None or gap > 1:
            return None
        growth = np.diff(np.log(norm), append=np.nan) + decay
        grown: FloatArray = np.sqrt(np.maximum(2 * growth, 0))
        return grown
