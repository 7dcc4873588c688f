"""Rules that decide a claim from the statistics of several seeds. They are fixed before any run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from theory.arguments import check_number

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SEEDS_MIN = 3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Judgement:
    """Verdict of a rule.

    Attributes
    ----------
    verdict : "holds", "fails" or "undecided".
    mean, error : mean over the seeds and its standard error.
    count : number of seeds.
    """

    verdict: str
    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.error:.2g} (n = {self.count}): {self.verdict}"


@dataclass(frozen=True)
class Between:
    """The mean over all seeds lies between two limits.

    The claim holds if the 95 % interval of the mean lies between the limits. It fails if the interval lies outside.

    Attributes
    ----------
    low, high : the limits.

    Examples
    --------
    >>> rule = Between(high=0.15, low=-0.15)
    >>> str(rule), rule.judge([0.01, 0.02, -0.01]).verdict, rule.judge([0.3, 0.31, 0.32]).verdict
    ('-0.15 < mean < 0.15', 'holds', 'fails')
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got {self.low} and {self.high}")

    def __str__(self) -> str:
        left = "" if math.isinf(self.low) else f"{self.low:g} < "
        right = "" if math.isinf(self.high) else f" < {self.high:g}"
        return f"{left}mean{right}"

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on the statistics of the seeds.

        Raises
        ------
        ValueError : fewer than three seeds.
        """
        numbers = _checked_values(values)
        mean, error = float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(numbers.size))
        # imported here because it takes half a second
        from scipy.stats import t

        half_width = float(t.ppf((1 + _CONFIDENCE) / 2, numbers.size - 1)) * error
        if not math.isfinite(mean):
            verdict = UNDECIDED
        elif mean - half_width > self.low and mean + half_width < self.high:
            verdict = HOLDS
        elif mean + half_width <= self.low or mean - half_width >= self.high:
            verdict = FAILS
        else:
            verdict = UNDECIDED
        return Judgement(verdict, mean, error, numbers.size)


@dataclass(frozen=True)
class EverySeed:
    """The indicator, 1 for yes and 0 for no, is 1 for every seed.

    The claim holds if every seed gives 1. It fails if at most one seed does. NaN, from a run too short to classify,
    leaves it undecided.

    Attributes
    ----------
    seeds : number of seeds needed. Five seeds that are 0 or 1 by chance are all 1 in 3 % of cases.

    Examples
    --------
    >>> rule = EverySeed()
    >>> [rule.judge(values).verdict for values in ([1] * 5, [1, 1, 1, 1, 0], [0, 0, 0, 0, 1])]
    ['holds', 'undecided', 'fails']
    """

    seeds: int = 5

    def __str__(self) -> str:
        return f"yes for each of {self.seeds} seeds"

    def judge(self, values: npt.ArrayLike) -> Judgement:
        """Return the verdict on the statistics of the seeds.

        Raises
        ------
        ValueError : fewer than three seeds, or a value that is not 0, 1 or NaN.
        """
        indicators = _checked_values(values)
        if not np.isin(indicators[~np.isnan(indicators)], (0, 1)).all():
            raise ValueError(f"values must be 0, 1 or NaN, got {indicators.tolist()}")
        if np.isnan(indicators).any():
            return Judgement(UNDECIDED, math.nan, math.nan, indicators.size)
        ones = int(indicators.sum())
        share = ones / indicators.size
        enough = indicators.size >= self.seeds
        verdict = HOLDS if ones == indicators.size and enough else FAILS if ones <= 1 and enough else UNDECIDED
        return Judgement(verdict, share, math.sqrt(share * (1 - share) / indicators.size), indicators.size)


DecisionRule = Between | EverySeed


def _checked_values(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float).reshape(-1)
    if numbers.size < SEEDS_MIN:
        raise ValueError(f"values must be from at least {SEEDS_MIN} seeds, got {numbers.size}")
    for number in numbers:
        if not math.isnan(number):
            check_number("values", number)
    return numbers
