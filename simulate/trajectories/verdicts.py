"""Verdicts on the behaviour of a run, and the rules that give them for measured or predicted numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

EQUILIBRIUM, PERIODIC, NO_CLEAR_PERIOD = "equilibrium", "periodic", "no clear period"
TRANSIENT, UNDETERMINED = "transient", "undetermined"

# Thresholds of `verdict_from`; the docstring of `classify` explains them.
ROTATION_RATIO_MIN, LOG_NORM_SD_MAX, PERIODS_MIN = 0.8, 0.05, 5
THRESHOLD_RATIO_MAX, OUTSIDE_GROWTH_SMALL = 2.0, 0.25
OUTSIDE_GROWTH_MAX = 0.9  # with a larger share of the growth outside the rises no period is clear
SCORE_MIN = 2.33  # with the limits below, fewer than 1 in 100 runs of plain SGD without feedback reach it


def has_clear_period(outside_growth: float, threshold_ratio: float) -> bool:
    """Whether the period does not merely reflect the threshold of detection."""
    return outside_growth <= OUTSIDE_GROWTH_MAX and (
        threshold_ratio < THRESHOLD_RATIO_MAX or outside_growth <= OUTSIDE_GROWTH_SMALL
    )


def verdict_from(
    rotation_ratio: float,
    log_norm_sd: float,
    periods: float,
    outside_growth: float,
    threshold_ratio: float,
    feedback_score: float,
) -> str:
    """Return the verdict for measured or predicted numbers, by the rules of `classify`.

    Examples
    --------
    >>> verdict_from(0.3, 0.1, periods=60, outside_growth=0.4, threshold_ratio=1.4, feedback_score=6.0)
    'periodic'
    >>> verdict_from(0.3, 0.1, periods=60, outside_growth=0.4, threshold_ratio=1.4, feedback_score=0.3)
    'no clear period'
    """
    if ROTATION_RATIO_MIN <= rotation_ratio < math.inf and log_norm_sd <= LOG_NORM_SD_MAX:
        return EQUILIBRIUM
    if periods < PERIODS_MIN or not has_clear_period(outside_growth, threshold_ratio):
        return NO_CLEAR_PERIOD
    if math.isnan(feedback_score):
        return UNDETERMINED
    return PERIODIC if feedback_score >= SCORE_MIN else NO_CLEAR_PERIOD


def pool_scores(scores: Sequence[float]) -> float:
    """Score of several independent runs together: their sum over the root of their number, without NaN.

    The error rate of a single run does not apply to it.

    Examples
    --------
    >>> pool_scores([2.0, 2.0, 2.0, 2.0, math.nan])
    4.0
    """
    finite = [score for score in scores if not math.isnan(score)]
    return sum(finite) / math.sqrt(len(finite)) if finite else math.nan
