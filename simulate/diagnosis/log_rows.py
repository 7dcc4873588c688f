"""Rows of a log as the diagnosis of its spikes needs them: what is known, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate.diagnosis.spikes import FEWEST, LOOKED_BACK
from simulate.trajectories.contract import unconstrained_optimizer
from theory.arguments import FloatArray
from theory.destabilization import step_angle
from theory.optimizers import parse_if_known

_TRAINING = "training"  # source of a trajectory that has data
_SPARSE = 0.2  # share of rows without a loss, from which it is logged at some rows only


@dataclass(frozen=True)
class Rows:
    """Columns of a log at the rows that have a loss; those that are not known are None.

    Attributes
    ----------
    log : the rows that are looked at.
    step : their numbers.
    logged_loss, loss : as logged; and with the number before in the place of what is none.
    logged_norm, norm : as logged; and with numbers between its neighbours in the place of what is none.
    lr, wd, grad_norm : η, λ and g̃.
    decay : fall of ln ρ to the next row without gradients.
    rotation : angle of each step, radians.
    rule : the optimizer; None for one that `theory` does not know.
    limits, missing : what the log lacks for spikes to be seen; and for their causes to be told.

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
        """Take the columns of a log that has a loss.

        Raises
        ------
        ValueError : no loss is a number, or something is held fixed in the run.
        """
        whole, log = log, _logged(log)
        count = log.sizes["step"]
        step = log.step.values
        lr, wd, logged_norm, grad_norm = (_column(log, name, count) for name in ("lr", "wd", "norm", "grad_norm"))
        norm = None if logged_norm is None else between_known(logged_norm)
        rule = parse_if_known(unconstrained_optimizer(log, "log"))
        gap = _gap(step)
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
            missing.append("an optimizer whose law of the norm is known (optimizer=, or --optimizer)")
        rotation = _rotation(log, rule, lr, wd, norm, grad_norm, decay, gap)
        if rotation is None and norm is not None:
            missing.append("what tells how far steps turn the weights: the norm of their gradient")
        logged = log.loss.values.astype(float)
        known = np.maximum.accumulate(np.where(np.isfinite(logged), np.arange(count), -1))
        loss = np.where(known >= 0, logged[np.maximum(known, 0)], logged[np.isfinite(logged)][0])
        limits = _limits(whole, step)
        columns = (lr, wd, logged_norm, norm, grad_norm, decay, rotation)
        return cls(log, step, logged, loss, *columns, rule, limits, (*missing, *limits))

    @property
    def is_dense(self) -> bool:
        """Whether there is a row for each step."""
        return _gap(self.step) <= 1

    @property
    def decay_per_step(self) -> FloatArray | None:
        """Fall of ln ρ in one step without gradients, from each row."""
        if self.decay is None:
            return None
        per_step: FloatArray = self.decay / np.diff(self.step, append=self.step[-1] + _gap(self.step))
        return per_step

    @property
    def has_norm(self) -> npt.NDArray[np.bool_]:
        """Of each row, whether its norm was logged."""
        assert self.logged_norm is not None
        has: npt.NDArray[np.bool_] = np.isfinite(self.logged_norm) & (self.logged_norm > 0)
        return has

    @property
    def simulation(self) -> str | None:
        """What simulated the log; None for a training, which alone has data."""
        source = str(self.log.attrs.get("source", _TRAINING))
        return source if "schema" in self.log.attrs and source != _TRAINING else None

    def lawful_growth(self, here: slice, grad_norm: FloatArray | None = None) -> FloatArray:
        """Growth of ln ρ in each of these steps of plain SGD by the law of a step: ρ⁺ = (1-ηλ)ρ/cos θ.

        Parameters
        ----------
        here : rows of a log with lr, wd, norm and grad_norm.
        grad_norm : of each, in place of those that were logged.
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
            # those that are infinite to the end are lost, not missing
            last = int(np.flatnonzero(np.isfinite(log.norm.values))[-1])
            lost = np.isinf(log.norm.values) & (np.arange(has.size) > last)
            log = log.isel(step=np.flatnonzero(has | lost))
    return log


def _gap(step: npt.NDArray[np.int64]) -> float:
    """Distance of rows, as it mostly is, in steps."""
    return float(np.median(np.diff(step))) if step.size > 1 else 1.0


def _limits(whole: xr.Dataset, step: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """What keeps spikes from being seen, in a log of which the rows with these steps are looked at."""
    found = []
    lost = np.isnan(whole.loss.values.astype(float))
    without = int(lost[: np.flatnonzero(~lost)[-1]].sum())
    if without:
        found.append(f"a loss in {without} of {lost.size} rows")
    if step.size < LOOKED_BACK:
        found.append(f"enough rows: it has {step.size}, and the first {FEWEST} of a log are not judged")
    if (gap := _gap(step)) > 1:
        found.append(f"every step: rows lie {gap:.0f} steps apart")
    elif skipped := int((np.maximum(np.diff(whole.step.values), 1) - 1).sum()):
        found.append(f"{skipped} of {int(step[-1] - step[0]) + 1} steps")
    if "norm" in whole and (known := np.flatnonzero(np.isfinite(whole.norm.values))).size:
        after = whole.loss.values[known[-1] + 1 :]
        if np.isfinite(after.astype(float)).sum() >= FEWEST:
            found.append(f"norms after step {whole.step.values[known[-1]]}, from where no spikes are looked for")
    return tuple(found)


def between_known(norm: FloatArray) -> FloatArray:
    """Put numbers in the place of norms that are none: between its neighbours, up to the last that is one.

    Examples
    --------
    >>> between_known(np.array([np.nan, 1.0, np.inf, 4.0, np.nan])).tolist()
    [1.0, 1.0, 2.0, 4.0, nan]
    """
    filled = norm.copy()
    known = np.flatnonzero(np.isfinite(norm) & (norm > 0))
    if known.size:
        gaps = np.setdiff1d(np.arange(known[-1]), known)
        filled[gaps] = np.exp(np.interp(gaps, known, np.log(norm[known])))
    return filled


def _column(log: xr.Dataset, name: str, count: int) -> FloatArray | None:
    if name in log.variables:
        values = np.broadcast_to(log[name].values.astype(float), (count,)).copy()
        if name in ("lr", "wd"):
            # logged when it changes
            known = np.flatnonzero(np.isfinite(values))
            if known.size:
                at = np.maximum(np.searchsorted(known, np.arange(count), side="right") - 1, 0)
                values = values[known[at]]
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
