"""Test whether the norms of a log obey the one-step law of plain SGD, and find what makes them obey it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import theory
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import LEAST_ROWS_BEFORE
from theory.arguments import FloatArray

# In a correct log, 99 % of the steps deviate by less than a hundredth of this.
_OFF = 0.1  # deviation of the norm from the law, over growth and decay of the step
_OFTEN = 0.1  # share of deviating steps above which the log contradicts the law
_REGULAR = 0.9  # share of equal distances between changes of the norm, if each step has several rows


def contradiction(rows: Rows) -> str:
    """Say how many logged steps contradict the SGD update, and which correction makes them match.

    Corrections tried: norms logged after the step, another weight decay, scaled or clipped gradients, several rows per
    step. Rounded norms may deviate by their smallest change.

    Parameters
    ----------
    rows : rows of a training.

    Returns
    -------
    str : sentences; empty if the log obeys the law or has too little data to test it.

    Examples
    --------
    >>> import simulate
    >>> gradients = simulate.RecordedGradient(np.random.default_rng(0).uniform(1, 3, 300))
    >>> run = simulate.norm_map(0.5, 0.01, gradients, norm=8.0, steps=300)
    >>> log = run.assign(loss=("step", np.ones(300))).assign_attrs(source="training")
    >>> contradiction(Rows.of(log))
    ''
    >>> print(contradiction(Rows.of(log.assign_attrs(wd=0.02))))
    All logged steps contradict the SGD update for wd = 0.02. They match it for wd = 0.01.
    """
    has_columns = all(column is not None for column in (rows.lr, rows.wd, rows.norm, rows.grad_norm, rows.decay))
    if not has_columns or rows.rule != theory.SGD() or rows.simulation is not None or not rows.is_dense:
        return ""
    with np.errstate(all="ignore"):
        steps = _Steps.of(rows)
        if steps.moved.size < LEAST_ROWS_BEFORE or not (share := steps.off(steps.predicted, steps.decay)) > _OFTEN:
            return ""
        quantity = "All" if share == 1 else f"{share:.0%} of the"
        wd = float(np.median(steps.wd))
        return f"{quantity} logged steps contradict the SGD update for wd = {wd:.3g}. {_correction(steps)}"


@dataclass(frozen=True)
class _Steps:
    """Columns of all steps but the last; `moved` are the rows at which a logged norm changes."""

    rows: Rows
    lr: FloatArray
    wd: FloatArray
    norm: FloatArray
    gradients: FloatArray
    decay: FloatArray
    measured: FloatArray
    predicted: FloatArray
    usable: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.int64]
    rounding: FloatArray

    @classmethod
    def of(cls, rows: Rows) -> _Steps:
        assert rows.lr is not None
        assert rows.wd is not None
        assert rows.norm is not None
        assert rows.grad_norm is not None
        assert rows.decay is not None
        norm = rows.norm[:-1]
        predicted = rows.predicted_growth(slice(0, norm.size))
        usable = rows.has_norm[:-1] & rows.has_norm[1:] & (np.diff(rows.step) == 1) & np.isfinite(predicted)
        change = np.abs(np.diff(rows.norm))
        moved = np.flatnonzero(usable & (change > 0))
        # norms may be rounded to significant digits or to decimals: find the smallest change of each decade
        decades = np.floor(np.log10(norm))
        rounding = np.full(norm.size, np.inf)
        for decade in np.unique(decades[moved]):
            rounding[decades == decade] = change[moved[decades[moved] == decade]].min()
        columns = rows.lr[:-1], rows.wd[:-1], norm, rows.grad_norm[:-1] / norm, rows.decay[:-1]
        return cls(rows, *columns, np.diff(np.log(rows.norm)), predicted, usable, moved, rounding / norm)

    def off(self, predicted: FloatArray, decay: FloatArray) -> float:
        """Share of the steps whose growth differs from the prediction by too much."""
        off = np.abs(self.measured - predicted) > _OFF * (predicted + 2 * decay) + self.rounding
        tested = off[self.usable & np.isfinite(predicted)]
        return float(tested.mean()) if tested.size else 1.0

    def obey(self, predicted: FloatArray, decay: FloatArray | None = None) -> bool:
        """Whether most steps match the prediction."""
        return self.off(predicted, self.decay if decay is None else decay) <= _OFTEN

    def with_gradients(self, gradients: FloatArray) -> FloatArray:
        """Growth of ln ρ by the one-step law with these gradient norms."""
        return self.rows.predicted_growth(slice(0, self.norm.size), gradients * self.norm)

    @property
    def implied(self) -> FloatArray:
        """Gradient norm that explains the measured growth."""
        tangent: FloatArray = np.sqrt(np.expm1(2 * np.maximum(self.measured + self.decay, 0)))
        return tangent * (1 - self.lr * self.wd) * self.norm / self.lr


def _correction(steps: _Steps) -> str:
    """Say which correction of the log makes it match the SGD update."""
    distances = np.diff(steps.moved)
    rows_per_step = int(np.median(distances))
    if rows_per_step > 1 and (distances == rows_per_step).mean() >= _REGULAR:
        return f"The norm changes at every {rows_per_step}th row only: log one row for each step of the optimizer."
    if steps.obey(np.append(steps.predicted[1:], np.nan)):
        return "They match it if each norm is the one after its step: log the norm before the step."
    grown = steps.predicted + steps.decay
    wd = float(np.median((-np.expm1(steps.measured - grown) / steps.lr)[steps.usable]))
    decay = -np.log1p(-steps.lr * max(wd, 0.0))
    if steps.obey(grown - decay, decay):
        faster = bool(np.median(steps.wd) < wd)
        return f"They match it for wd = {max(wd, 0.0):.3g}{'; momentum also makes decay faster' if faster else ''}."
    rotating = steps.usable & (steps.gradients > 0)
    ratio = steps.implied / steps.gradients
    factor = float(np.median(ratio[rotating])) if rotating.any() else 1.0
    if steps.obey(steps.with_gradients(factor * steps.gradients)):
        return (
            f"They match it with gradients {factor:.3g} times as large. Check whether gradients were logged while "
            "scaled, from one of several micro-batches, or before clipping."
        )
    clipped = rotating & (ratio < 1 - _OFF)
    bound = float(np.median(steps.implied[clipped])) if clipped.any() else np.inf
    if steps.obey(steps.with_gradients(np.minimum(steps.gradients, bound))):
        return f"They match it with gradients clipped at {bound:.3g}: log the gradient norm after clipping."
    return (
        "Check the optimizer, the learning rate and the weight decay; whether gradients were clipped or averaged over "
        "micro-batches after they were logged; and whether all weights are scale-invariant."
    )
