"""Decision rules: what the figures of several seeds say of a statement. They are fixed before any run is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from theory.arguments import check_number

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "not decided"
SEEDS_MIN = 3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Judged:
    """What a rule made of figures.

    Attributes
    ----------
    verdict : "holds", "does not hold here" or "not decided".
    figure, error : mean of the seeds and its standard error.
    count : number of seeds.
    """

    verdict: str
    figure: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.figure:.3g} ± {self.error:.2g} (n = {self.count}): {self.verdict}"


@dataclass(frozen=True)
class Between:
    """The mean over all seeds lies between two limits; decided where its 95 % interval lies on one side of each.

    Attributes
    ----------
    low, high : the limits.

    Examples
    --------
    >>> rule = Between(high=0.15, low=-0.15)
    >>> str(rule), rule.judge([0.01, 0.02, -0.01]).verdict, rule.judge([0.3, 0.31, 0.32]).verdict
    ('-0.15 < mean < 0.15', 'holds', 'does not hold here')
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be a number below high, got {self.low} and {self.high}")

    def __str__(self) -> str:
        left = "" if math.isinf(self.low) else f"{self.low:g} < "
        right = "" if math.isinf(self.high) else f" < {self.high:g}"
        return f"{left}mean{right}"

    def judge(self, figures: npt.ArrayLike) -> Judged:
        """Judge the figures of the seeds.

        Raises
        ------
        ValueError : fewer than three.
        """
        values = _figures(figures)
        mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))
        # imported here: half a second that the command line should not pay
        from scipy.stats import t

        reach = float(t.ppf((1 + _CONFIDENCE) / 2, values.size - 1)) * error
        if not math.isfinite(mean):
            verdict = UNDECIDED
        elif mean - reach > self.low and mean + reach < self.high:
            verdict = HOLDS
        elif mean + reach <= self.low or mean - reach >= self.high:
            verdict = FAILS
        else:
            verdict = UNDECIDED
        return Judged(verdict, mean, error, values.size)


@dataclass(frozen=True)
class EverySeed:
    """The figure, 1 for yes and 0 for no, is yes for every seed; it does not hold if it is no for all but one or more.

    NaN, of a run of which it could not be told, leaves it undecided.

    Attributes
    ----------
    seeds : that are needed. Of five that say yes or no by chance, all say yes in 3 % of cases.

    Examples
    --------
    >>> rule = EverySeed()
    >>> [rule.judge(figures).verdict for figures in ([1] * 5, [1, 1, 1, 1, 0], [0, 0, 0, 0, 1])]
    ['holds', 'not decided', 'does not hold here']
    """

    seeds: int = 5

    def __str__(self) -> str:
        return f"yes for each of {self.seeds} seeds"

    def judge(self, figures: npt.ArrayLike) -> Judged:
        """Judge the figures of the seeds.

        Raises
        ------
        ValueError : fewer than three, or a figure that is neither yes nor no.
        """
        values = _figures(figures)
        if not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise ValueError(f"figures must be 0, 1 or NaN, got {values.tolist()}")
        if np.isnan(values).any():
            return Judged(UNDECIDED, math.nan, math.nan, values.size)
        yes = int(values.sum())
        share = yes / values.size
        enough = values.size >= self.seeds
        verdict = HOLDS if yes == values.size and enough else FAILS if yes <= 1 and enough else UNDECIDED
        return Judged(verdict, share, math.sqrt(share * (1 - share) / values.size), values.size)


Rule = Between | EverySeed


def _figures(figures: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(figures, dtype=float).reshape(-1)
    if values.size < SEEDS_MIN:
        raise ValueError(f"figures must be of at least {SEEDS_MIN} seeds, got {values.size}")
    for value in values:
        if not math.isnan(value):
            check_number("figures", value)
    return values
