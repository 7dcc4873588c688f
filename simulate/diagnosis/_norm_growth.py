"""Growth of the norm that a run measures, and the norm that follows from it at other learning rates.

Without gradients ρ² shrinks by s² per step; `theory.free_decay` is -ln s. What a step adds to s²ρ² is its squared size.
It is η²q for normalized optimizers, with p = 2, and η²q/ρ² for SGD, with p = 4. The growth constant q is independent of
η, λ and ρ. The norm settles where ρ*^p = η²q/(1-s²), and ρ^p approaches ρ*^p by s^p per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

import theory
from theory.arguments import FloatArray

_MUON_MEMORY = 20.0  # steps, with the default momentum 0.95 of torch.optim.Muon
_LAG_MAX = 0.2  # memory of the momentum over the relaxation time of ρ^p, above which the norm lags
_RAMP_MEMORIES = 3  # memories at the start of a run that are left out
_BLOCKS, _BLOCKS_MIN = 20, 4
_BLOCK_MEMORIES = 2  # least length of a block, in memories
_SHARES = (0.25, 0.35, 0.5, 0.7, 1.0)  # of the window, where steps have a fixed size
_LONGER = (2, 4)  # windows that are tried where the error of one is too large
_ERROR_AIM = 0.03  # relative standard error of ρ* that is small enough
ERROR_MAX = 0.1  # relative standard error of ρ* above which it is undetermined


@dataclass(frozen=True)
class GrowthLaw:
    """Law of the norm of an optimizer.

    Attributes
    ----------
    power : p, so that ρ^p relaxes exponentially: 4 for SGD, 2 where steps have a fixed size.
    memory : number of steps over which momentum averages; 0 without momentum.
    rule : optimizer whose `theory.free_decay` is that of the norm.
    """

    power: int
    memory: float
    rule: theory.Optimizer

    @classmethod
    def of(cls, rule: theory.Optimizer | None, text: str) -> GrowthLaw | None:
        """Return the law of an optimizer, or of its text if `theory` does not know it; None if no law is known.

        Examples
        --------
        >>> GrowthLaw.of(theory.AdamW(dim=10), "AdamW(dim=10)").power, GrowthLaw.of(None, "Adagrad") is None
        (2, True)
        """
        if isinstance(rule, theory.SGD):
            return cls(4, 1 / (1 - rule.momentum) if rule.momentum else 0.0, rule)
        if isinstance(rule, theory.AdamW):
            return cls(2, 1 / (1 - rule.betas[0]), rule)
        if isinstance(rule, theory.Lion):
            return cls(2, 1 / (1 - rule.betas[1]), rule)
        if isinstance(rule, theory.Muon):
            return cls(2, 1 / (1 - rule.momentum), rule)
        if rule is None and text.partition("(")[0] == "Muon":
            # its decay is that of plain SGD
            return cls(2, _MUON_MEMORY, theory.SGD())
        return None

    def decay(self, intrinsic_lr: FloatArray) -> FloatArray:
        """Return the decay of ln ρ per step at each ηλ; NaN where ηλ >= 1."""
        allowed = (intrinsic_lr > 0) & (intrinsic_lr < 1)
        decay = np.where(intrinsic_lr == 0, 0.0, math.nan)
        decay[allowed] = theory.free_decay(1.0, intrinsic_lr[allowed], optimizer=self.rule)
        return decay


@dataclass(frozen=True)
class MeasuredGrowth:
    """Growth constant q of the last rows of a run, for norms in units of the last norm.

    Attributes
    ----------
    constant, error : q and its standard error; NaN if undetermined.
    steps : number of steps that were used.
    obstacle : why q is NaN; empty otherwise.
    more_steps : number of further steps that may determine q; NaN if it is determined, or no number is known.
    relative_error : standard error over q, as measured; inf without a value.
    """

    constant: float = math.nan
    error: float = math.nan
    steps: int = 0
    obstacle: str = ""
    more_steps: float = math.nan
    relative_error: float = math.inf


def measure_recent_growth(
    norms: FloatArray, lrs: FloatArray, wds: FloatArray, distances: FloatArray, law: GrowthLaw, window: int
) -> MeasuredGrowth:
    """Measure the growth constant in the last rows of a run.

    Where ρ^p has p = 4 the rows are those of the window. Where steps have a fixed size the norm approaches ρ* more
    slowly, and growth often decreases meanwhile. The rows are then the last share of the window whose standard error is
    small enough, or else the share whose error is smallest. Momentum that lasts nearly as long makes the window longer.
    Where the error is too large, up to four windows with constant lr and wd are used.

    Parameters
    ----------
    norms : ρ before each row, and after the last one.
    lrs, wds, distances : lr, wd and number of steps of each row.
    law : law of the norm of the optimizer.
    window : number of last rows that span a memory of weight decay, or all rows.
    """
    decays = law.decay(lrs * wds)
    if not np.isfinite(decays[-window:]).all():
        largest = float((lrs * wds)[-window:].max())
        return MeasuredGrowth(obstacle=f"not known for lr * wd = {largest:.3g}: it must be below 1")
    relaxation = float(decays[-1]) * law.power
    if isinstance(law.rule, theory.SGD) and law.power == 4 and law.memory * relaxation > _LAG_MAX:
        return MeasuredGrowth(
            obstacle=f"not known for {law.rule}: momentum averages over {law.memory:.0f} steps, too many for a "
            f"relaxation time of {1 / relaxation:.0f} steps"
        )
    # at the start of a run the moments of the optimizer are not filled yet
    ramp = int(np.searchsorted(np.cumsum(distances), _RAMP_MEMORIES * law.memory))
    # where momentum lasts nearly as long as the memory of weight decay, that is too short for an error
    window = max(window, math.ceil(2 * _BLOCKS_MIN * _BLOCK_MEMORIES * law.memory / distances[0]))
    usable = min(window, max(distances.size - ramp, distances.size // 2))
    shares = _SHARES if law.power == 2 else (1.0,)
    best = MeasuredGrowth()
    for share in shares:
        count = max(1, math.ceil(share * usable))
        with np.errstate(all="ignore"):
            growth = _measure_growth(norms[-count - 1 :], lrs[-count:], decays[-count:], distances[-count:], law)
        if growth.relative_error <= _ERROR_AIM * law.power:
            return growth
        if growth.relative_error < best.relative_error or math.isinf(best.relative_error):
            best = growth
    # with constant settings, rows before the window help if their gradients were similar
    for factor in _LONGER:
        count = factor * window
        if best.relative_error <= ERROR_MAX * law.power or count > distances.size - ramp:
            break
        if np.ptp(lrs[-count:]) == 0 == np.ptp(wds[-count:]):
            with np.errstate(all="ignore"):
                growth = _measure_growth(norms[-count - 1 :], lrs[-count:], decays[-count:], distances[-count:], law)
            best = min(best, growth, key=lambda one: one.relative_error)
    if best.relative_error <= ERROR_MAX * law.power:
        return best
    # if the window spans a memory, further steps do not make it longer
    is_full = usable == window and float((decays * distances)[-window:].sum()) >= 1 - 1e-9
    more = math.nan if is_full else best.more_steps
    return replace(best, constant=math.nan, error=math.nan, more_steps=more)


def _measure_growth(
    norms: FloatArray, lrs: FloatArray, decays: FloatArray, distances: FloatArray, law: GrowthLaw
) -> MeasuredGrowth:
    """Growth constant of rows: their growth over their η² per step, with a standard error from the means of blocks."""
    steps, half = int(distances.sum()), law.power // 2
    # the powers of norms in other units may leave the range of floats
    squares = (norms / norms[-1]) ** 2
    before, after = squares[:-1], squares[1:]
    growth = after**half - np.exp(-law.power * decays * distances) * before**half
    if law.power == 4:
        # exact for one step
        growth /= (after / before) ** (1 / distances) + np.exp(-2 * decays)
    weights = lrs**2 * _power_sum(law.power * decays, distances)
    if not weights.sum() > 0:
        return MeasuredGrowth(steps=steps, obstacle="undetermined: the learning rate was 0")
    least = max(1, math.ceil(_BLOCK_MEMORIES * law.memory))
    count = min(_BLOCKS, steps // least, distances.size)
    if count < _BLOCKS_MIN:
        needed = _BLOCKS_MIN * max(least, int(distances[0]))
        return MeasuredGrowth(
            steps=steps,
            obstacle=f"undetermined: only {steps} steps can be used",
            more_steps=float(max(1, needed - steps)),
        )
    constant = float(growth.sum() / weights.sum())
    edges = np.linspace(0, distances.size, count, endpoint=False).astype(int)
    deviations = np.add.reduceat(growth - constant * weights, edges)
    error = float(np.sqrt(count / (count - 1) * (deviations**2).sum()) / weights.sum())
    allowed = ERROR_MAX * law.power
    if not math.isfinite(constant) or not math.isfinite(error):
        return MeasuredGrowth(steps=steps, obstacle="undetermined: norm or lr varies by too many orders of magnitude")
    if constant > 0 and error <= allowed * constant:
        return MeasuredGrowth(constant, error, steps, relative_error=error / constant)
    reason = "the measured growth of the norm is not positive"
    if constant > 0:
        reason = f"its standard error would be {error / constant / law.power:.0%}"
    size = max(abs(constant), error)
    return MeasuredGrowth(
        constant=constant,
        error=error,
        steps=steps,
        obstacle=f"undetermined: {reason}",
        more_steps=max(1.0, steps * ((error / size / allowed) ** 2 - 1)) if size > 0 else math.nan,
        relative_error=error / constant if constant > 0 else math.inf,
    )


def equilibrium_of(norm: float, constant: float, lr: float, wd: float, law: GrowthLaw) -> float:
    """Return ρ* for a growth constant in units of `norm`; inf without decay, NaN where ηλ >= 1.

    Examples
    --------
    >>> law = GrowthLaw.of(theory.SGD(), "SGD()")
    >>> norms, lrs, wds = np.full(11, 2.0), np.full(10, 0.5), np.full(10, 0.02)
    >>> growth = measure_recent_growth(norms, lrs, wds, np.ones(10), law, window=10)
    >>> round(equilibrium_of(2.0, growth.constant, 0.5, 0.02, law), 9)
    2.0
    """
    decay = float(law.decay(np.array([lr * wd]))[0])
    if decay == 0:
        return math.inf
    return float(norm * (lr * lr * constant / -math.expm1(-2 * decay)) ** (1 / law.power))


def norms_ahead(
    norm: float, constant: float, wd: float, lrs: FloatArray, distances: FloatArray, law: GrowthLaw
) -> FloatArray:
    """Return the norm after each of the blocks of steps ahead; NaN from where ηλ >= 1.

    Parameters
    ----------
    norm, constant, wd : present norm, growth constant in its units, and weight decay.
    lrs, distances : learning rate and number of steps of each block.
    law : law of the norm of the optimizer.
    """
    decays = law.decay(lrs * wd)
    factors = np.exp(-law.power * decays * distances)
    growth = constant * lrs**2 * _power_sum(law.power * decays, distances)
    if law.power == 4:
        growth = growth * (1 + np.exp(-2 * decays))
    powers, present = np.empty(lrs.size), 1.0
    for block, (factor, added) in enumerate(zip(factors.tolist(), growth.tolist(), strict=True)):
        present = present * factor + added
        powers[block] = present
    return np.asarray(norm * powers ** (1 / law.power))


def _power_sum(decays: FloatArray, counts: FloatArray) -> FloatArray:
    """Sum of exp(-decay·j) over 0 <= j < count."""
    positive = decays > 0
    safe = np.where(positive, decays, 1.0)
    return np.where(positive, np.expm1(-safe * counts) / np.expm1(-safe), counts)
