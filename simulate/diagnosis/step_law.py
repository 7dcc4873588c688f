"""Whether the norms of a log obey the law of a step of plain SGD, and what they obey if they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import theory
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import FEWEST
from theory.arguments import FloatArray

# Where norm and gradient were logged as they should be, 99 in 100 steps are off by less than a hundredth of this.
_OFF = 0.1  # of growth and decay in a step, by which the norm may be off the law
_OFTEN = 0.1  # share of steps that are off, from which the log contradicts the law
_REGULAR = 0.9  # share of the changes of the norm that lie equally far apart, where a step takes several rows


def contradiction(rows: Rows) -> str:
    """How the norms contradict the law of a step all over the log, and with what they would obey it.

    Tried are norms logged after the step, another weight decay, gradients of another size or clipped, and steps that
    take several rows. Norms that were rounded may be off by the least of their changes.

    Parameters
    ----------
    rows : of a training.

    Returns
    -------
    str : sentences; empty where they obey it, or where the log has too little to tell.

    Examples
    --------
    >>> import simulate
    >>> gradients = simulate.RecordedGradient(np.random.default_rng(0).uniform(1, 3, 300))
    >>> run = simulate.norm_map(0.5, 0.01, gradients, norm=8.0, steps=300)
    >>> log = run.assign(loss=("step", np.ones(300))).assign_attrs(source="training")
    >>> contradiction(Rows.of(log))
    ''
    >>> print(contradiction(Rows.of(log.assign_attrs(wd=0.02))))
    In 100% of the steps the norm does not follow the law of a step of plain SGD. It does with wd = 0.01.
    """
    known = all(each is not None for each in (rows.lr, rows.wd, rows.norm, rows.grad_norm, rows.decay))
    if not known or rows.rule != theory.SGD() or rows.simulation is not None or not rows.is_dense:
        return ""
    with np.errstate(all="ignore"):
        steps = _Steps.of(rows)
        if steps.moved.size < FEWEST or not (share := steps.off(steps.lawful, steps.decay)) > _OFTEN:
            return ""
        return f"In {share:.0%} of the steps the norm does not follow the law of a step of plain SGD. {_reason(steps)}"


@dataclass(frozen=True)
class _Steps:
    """Columns of all steps but the last; `moved` are the rows at which a norm that was logged changes."""

    rows: Rows
    lr: FloatArray
    wd: FloatArray
    norm: FloatArray
    gradients: FloatArray
    decay: FloatArray
    measured: FloatArray
    lawful: FloatArray
    usable: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.int64]
    rounded: FloatArray

    @classmethod
    def of(cls, rows: Rows) -> _Steps:
        assert rows.lr is not None
        assert rows.wd is not None
        assert rows.norm is not None
        assert rows.grad_norm is not None
        assert rows.decay is not None
        norm = rows.norm[:-1]
        lawful = rows.lawful_growth(slice(0, norm.size))
        usable = rows.has_norm[:-1] & rows.has_norm[1:] & (np.diff(rows.step) == 1) & np.isfinite(lawful)
        change = np.abs(np.diff(rows.norm))
        moved = np.flatnonzero(usable & (change > 0))
        # to so many digits in all, or after the point
        decade = np.floor(np.log10(norm))
        rounded = np.full(norm.size, np.inf)
        for each in np.unique(decade[moved]):
            rounded[decade == each] = change[moved[decade[moved] == each]].min()
        columns = rows.lr[:-1], rows.wd[:-1], norm, rows.grad_norm[:-1] / norm, rows.decay[:-1]
        return cls(rows, *columns, np.diff(np.log(rows.norm)), lawful, usable, moved, rounded / norm)

    def off(self, predicted: FloatArray, decay: FloatArray) -> float:
        """Share of the steps in which the norm grew otherwise, by more than a part of growth and decay."""
        off = np.abs(self.measured - predicted) > _OFF * (predicted + 2 * decay) + self.rounded
        judged = off[self.usable & np.isfinite(predicted)]
        return float(judged.mean()) if judged.size else 1.0

    def obey(self, predicted: FloatArray, decay: FloatArray | None = None) -> bool:
        """Whether most steps are such."""
        return self.off(predicted, self.decay if decay is None else decay) <= _OFTEN

    def with_gradients(self, gradients: FloatArray) -> FloatArray:
        """Growth that these gradient norms would make."""
        return self.rows.lawful_growth(slice(0, self.norm.size), gradients * self.norm)

    @property
    def implied(self) -> FloatArray:
        """Norm of the gradient that would have made the growth."""
        tangent: FloatArray = np.sqrt(np.expm1(2 * np.maximum(self.measured + self.decay, 0)))
        return tangent * (1 - self.lr * self.wd) * self.norm / self.lr


def _reason(steps: _Steps) -> str:
    apart = np.diff(steps.moved)
    rows_a_step = int(np.median(apart))
    if rows_a_step > 1 and (apart == rows_a_step).mean() >= _REGULAR:
        return f"It changes at every {rows_a_step}th row only: log one row for each step of the optimizer."
    if steps.obey(np.append(steps.lawful[1:], np.nan)):
        return "It does if each norm is taken for the one after its step: log it before the step."
    grown = steps.lawful + steps.decay
    wd = float(np.median((-np.expm1(steps.measured - grown) / steps.lr)[steps.usable]))
    decay = -np.log1p(-steps.lr * max(wd, 0.0))
    if steps.obey(grown - decay, decay):
        faster = bool(np.median(steps.wd) < wd)
        return f"It does with wd = {max(wd, 0.0):.3g}{'; momentum makes decay faster, too' if faster else ''}."
    turning = steps.usable & (steps.gradients > 0)
    ratio = steps.implied / steps.gradients
    factor = float(np.median(ratio[turning])) if turning.any() else 1.0
    if steps.obey(steps.with_gradients(factor * steps.gradients)):
        return (
            f"It does with gradients {factor:.3g} times as large: they may have been logged scaled, of one batch of "
            "several, or before they were clipped."
        )
    clipped = turning & (ratio < 1 - _OFF)
    bound = float(np.median(steps.implied[clipped])) if clipped.any() else np.inf
    if steps.obey(steps.with_gradients(np.minimum(steps.gradients, bound))):
        return f"It does with gradients clipped at {bound:.3g}: log their norm after they are clipped."
    return (
        "Reasons may be another optimizer, learning rate or weight decay, gradients that were clipped after their norm "
        "was logged or are the mean of several batches, or weights that are not scale-invariant."
    )
