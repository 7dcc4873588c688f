"""Check whether the norms of a log obey the update of its optimizer, and find the correction that makes them match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulate.diagnosis.log_rows import Rows, growth_by_law, has_values
from simulate.diagnosis.rules import THRESHOLDS, Thresholds
from simulate.trajectories.classification import impossible_decrease
from simulate.trajectories.feedback import BUFFER_MAX, buffer_steps
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray


@dataclass(frozen=True)
class Contradiction:
    """How logged norms contradict the optimizer's update.

    Attributes
    ----------
    text : sentences with the correction that makes them match; empty without a contradiction.
    is_by_gradients : whether norms and weight decay fit, and only large gradients do not, as after clipping. The norms
        can be used without the gradients.
    is_small : whether the deviations of all steps together change the norm little beside weight decay.
    """

    text: str = ""
    is_by_gradients: bool = False
    is_small: bool = False

    @property
    def is_serious(self) -> bool:
        """Whether the log supports no cause."""
        return bool(self.text) and not (self.is_by_gradients or self.is_small)


def find_contradiction(rows: Rows, t: Thresholds = THRESHOLDS) -> Contradiction:
    """Find how the logged norms contradict the optimizer's update, and which correction makes them match.

    For plain SGD with gradients each step is compared with its law. Corrections tried: norms logged after the step,
    another weight decay, scaled or clipped gradients, several rows per step, weights that are not scale-invariant.
    Rounded norms may deviate by their smallest change. For other logs the norm must not decrease faster than weight
    decay allows.

    The text is empty if the log obeys the law, is not of a training, or has too little data to test it.
    """
    if rows.simulation:
        return Contradiction()
    with np.errstate(all="ignore"):
        if impossible := _describe_impossible_decrease(rows, t):
            # the law of single steps says more, if the log has what it needs
            return Contradiction(_contradiction(rows, t).text or impossible)
        return _contradiction(rows, t)


def _describe_impossible_decrease(rows: Rows, t: Thresholds) -> str:
    """Say that the norm decreases faster than weight decay allows; empty if it does not, or if that is not known."""
    rule = Setting.of(rows.log).optimizer
    usable = rows.has_norm & np.isfinite(rows.free_decay)
    is_known = rule is not None and not rows.are_epochs and usable.sum() > 1
    if not is_known or buffer_steps(rule) * float(rows.free_decay[usable].mean()) > BUFFER_MAX:
        return ""
    assert rule is not None
    step, log_norm, decay = rows.step[usable], np.log(rows.norm[usable]), rows.free_decay[usable]
    # weights that were replaced or reset once contradict the law at that row alone
    change = np.diff(log_norm) + decay[:-1] * np.diff(step)
    resets = change < -t.step_tolerance
    if resets.sum() <= t.most_resets:
        log_norm = log_norm - np.append(0.0, np.cumsum(np.where(resets, change, 0.0)))
    decayed = np.append(0.0, np.cumsum(decay[:-1] * np.diff(step)))
    growth = log_norm + decayed
    first = last = 0
    if impossible_decrease(step, log_norm, decay, rule):
        last = int(np.argmax(np.maximum.accumulate(growth) - growth))
        first = int(np.argmax(growth[: last + 1]))
    for count, most in t.fast_rows if not last else ():
        # excess over weight decay in so many rows, where the norm decreases far faster
        excess, free = growth[:-count] - growth[count:], decayed[count:] - decayed[:-count]
        excess = np.where(excess > (t.fast_ratio - 1) * free, excess, 0.0)
        if excess.max(initial=0.0) > most:
            first = int(np.argmax(excess))
            last = first + count
    if not last:
        return ""
    ratio = (log_norm[first] - log_norm[last]) / (decayed[last] - decayed[first])
    return (
        f"From step {step[first]} to step {step[last]} the norm decreases {ratio:.3g} times as fast as weight decay "
        "allows. Either each row is several steps, such as an epoch (steps_per_row=, or --steps-per-row); or lr or wd "
        "are others; or this is not the norm of the scale-invariant weights."
    )


def _contradiction(rows: Rows, t: Thresholds) -> Contradiction:
    if not rows.is_dense or not has_values(rows.predicted_growth):
        return Contradiction()
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
        return Contradiction()
    quantity = "All" if share == 1 else f"{share:.0%} of the"
    contradicts = f"{quantity} logged steps contradict the SGD update for wd = {float(np.median(wd)):.3g}."
    distances = np.diff(moved)
    rows_per_step = int(np.median(distances))
    if rows_per_step > 1 and (distances == rows_per_step).mean() >= t.law_regular:
        which = f"at every {rows_per_step}th row only"
        return Contradiction(f"{contradicts} The norm changes {which}: log one row for each step of the optimizer.")
    if obey(np.append(predicted[1:], np.nan), decay):
        late = "They match it if each norm is the one after its step: log the norm before the step."
        return Contradiction(f"{contradicts} {late}")
    grown = predicted + decay
    fitted_wd = max(float(np.median((-np.expm1(measured - grown) / lr)[usable])), 0.0)
    fitted_decay = -np.log1p(-lr * fitted_wd)
    if obey(grown - fitted_decay, fitted_decay):
        momentum = "; momentum also makes decay faster" if np.median(wd) < fitted_wd else ""
        # a decay that differs by a few percent is that of weights that are nearly scale-invariant, as with a large ε
        is_near = bool(abs(fitted_wd - np.median(wd)) <= t.law_tolerance * np.median(wd))
        return Contradiction(f"{contradicts} They match it for wd = {fitted_wd:.3g}{momentum}.", is_small=is_near)
    rotating = usable & (gradients > 0)
    # gradient norm that explains the measured growth
    implied = np.sqrt(np.expm1(2 * np.maximum(measured + decay, 0))) * (1 - lr * wd) * norm / lr
    ratio = implied / gradients
    factor = float(np.median(ratio[rotating])) if rotating.any() else 1.0
    if obey_with(factor * gradients):
        return Contradiction(
            f"{contradicts} They match it with gradients {factor:.3g} times as large. Check whether gradients were "
            "logged while scaled, from one of several micro-batches, or before clipping."
        )
    clipped = rotating & (ratio < 1 - t.law_tolerance)
    bound = float(np.median(implied[clipped])) if clipped.any() else np.inf
    if obey_with(np.minimum(gradients, bound)):
        after = f"They match it with gradients clipped at {bound:.3g}: log the gradient norm after clipping."
        # if nearly all gradients are clipped, none shows that norms and weight decay fit
        return Contradiction(f"{contradicts} {after}", is_by_gradients=share <= t.most_clipped)
    # small gradients obey the law, larger ones explain more growth than there is
    calm = np.where(gradients <= np.median(gradients[rotating]), predicted, np.nan) if rotating.any() else predicted
    if rotating.any() and obey(calm, decay) and np.mean(ratio[rotating] <= 1 + t.law_tolerance) >= t.law_regular:
        large = "Steps with small gradients match it, larger ones are shorter than their gradients say"
        return Contradiction(
            f"{contradicts} {large}, as after clipping. Log the gradient norm after clipping.", is_by_gradients=True
        )
    # cosine of the angle between gradient and weights, which is 0 for scale-invariant weights
    length = lr * gradients / norm
    cosine = ((1 - lr * wd) ** 2 + length**2 - np.exp(2 * measured)) / (2 * (1 - lr * wd) * length)
    cosine = np.abs(cosine[rotating])
    tested = usable & np.isfinite(predicted)
    is_small = bool(np.abs((measured - predicted)[tested].sum()) <= t.law_total * decay[tested].sum())
    if cosine.size and np.quantile(cosine, 0.95) <= t.largest_cosine:
        return Contradiction(
            f"{contradicts} They match it for weights that are not scale-invariant, such as the last layer or biases: "
            f"the gradient has a part along the weights (median cosine {np.median(cosine):.2g}). Log the norm of the "
            "scale-invariant weights alone.",
            is_small=is_small,
        )
    return Contradiction(
        f"{contradicts} Check the optimizer, the learning rate and the weight decay; whether gradients were clipped or "
        "averaged over micro-batches after they were logged; and whether all weights are scale-invariant."
    )
