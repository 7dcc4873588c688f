"""Causes of a loss spike: the numbers that decide, the features of a spike, and the rules in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

NORM_DRIVEN, BAD_BATCH, LR_STEP = "norm-driven", "bad batch", "lr step"
DATA_SHIFT, OVERFLOW, UNKNOWN = "data shift", "overflow", "unknown"
DATA_ORDER, LARGE_UPDATE, CLIPPING = "data order", "large update", "clipping"
_REDUCED_MODEL = "period_model"  # source of its trajectories


@dataclass(frozen=True)
class Thresholds:
    """Every number of the diagnosis, with its source.

    - *Runs*: chosen on the development runs of `empirical.studies.diagnosis`, and checked on its held-out runs. Where
      numbers follow, they were measured on the first 116 development runs.
    - *Convention*: a round number, not fitted.
    """

    # Which losses are a spike: excess over the median of the rows before, over the largest excess among them
    compared_rows: int = 200  # convention: rows before, with which a row is compared
    least_rows: int = 50  # convention: fewest of them
    # Runs: at equilibrium nine in ten have no ratio above 1.9, 2.2 and 2.7 for single losses and means of 5 and 20.
    outlier_ratios: tuple[tuple[int, float], ...] = ((1, 2.5), (5, 3.0), (20, 4.5))
    # Runs: a network that has learned its samples has single batches with any ratio, but a small loss.
    least_of_largest: float = 0.1  # least excess over that of the largest loss of the log
    least_of_usual: float = 0.1  # or over the usual loss, if that is so large a share of the largest loss
    least_of_single: float = 0.6  # runs: a mean of 20 is noise if its excess is smaller beside the largest single one
    usual_quantile: float = 0.95  # convention: up to this quantile of the rows before, loss and rotation are usual
    nearby_rows: int = 5  # convention: rows of a short mean
    rise_gap: int = 3  # convention: usual losses in a row that separate an earlier high loss from the rise
    longest_rows: int = 300  # convention: rows in which the end of a spike is sought
    over_share: float = 0.1  # convention: below this share of its peak a spike is over, if usual losses are very low
    over_medians: float = 2.0  # convention: or below so many medians,
    over_excess: float = 0.5  # convention: if that is at most such a share of its excess above the median

    # A quick rise of the norm is a spike, too. Runs: at equilibrium it takes longer, or the loss stays as before.
    norm_rise: float = 0.1  # of ln ρ: detection threshold of `find_periods`
    quick_relaxations: float = 0.35  # runs: times 1/ηλ that it takes at most
    often_high: float = 3.0  # runs: least median of the loss in it, over the median before
    once_high: float = 15.0  # runs: or least largest loss
    usual_relaxations: float = 0.5  # convention: times 1/ηλ before it in which the loss is usual
    usual_rows: int = 2000  # convention: but at most so many rows

    # lr step
    lr_rise: float = 1.5  # convention: the learning rate rose by half or more; in the runs by a factor of 4 to 20
    lr_rows: int = 30  # convention: rows before the spike in which it rose
    lr_excess: float = 1.5  # runs: least excess ratio of a spike after such a rise, since a spike is expected there

    # Rotation in the steps before the loss rose, over the usual quantile
    far_rotation: float = 2.0  # runs: exceeded in half of the norm-driven spikes, and in no bad batch or data shift
    usual_rotation: float = 1.2  # runs: at most 1.06 in 21 bad batches, above 1.2 in 1 of 23 data shifts
    rotation_rows: int = 3  # convention: steps before the loss arrives that count
    rotation_gap: int = 10  # convention: steps before it that are not usual any more; spikes this close are merged
    least_rotations: int = 20  # convention: fewest usual rotations for a comparison

    # Decay phase before a norm-driven spike
    least_decay: float = 0.05  # of ln ρ
    usual_decay: float = 0.11  # of ln ρ; runs: exceeded in 19 of 20 norm-driven spikes
    least_decay_ratio: float = 0.2  # of its speed to that of weight decay alone; runs: exceeds 0.42 in 19 of 20
    free_decay_ratio: float = 0.3  # runs: from here, gradients hardly slow the decay
    deep_decay: float = 0.1  # of ln ρ; runs: deeper than fluctuations at equilibrium
    trough_before: int = 20  # convention: rows before the spike in which the phase may end
    trough_after: int = 3  # convention: or in so many from its first row on
    relaxations: float = 2.0  # convention: times 1/ηλ in which the phase began
    least_phase_rows: int = 10  # convention: but at least so many rows

    # Growth of the norm in a norm-driven spike
    least_growth: float = 0.015  # of ln ρ; runs: exceeds 0.1 in 19 of 20 norm-driven spikes
    least_explained: float = 0.7  # share that the one-step law explains; runs: 1.00 in all 323 spikes of plain SGD
    most_explained: float = 1.4  # its reciprocal

    # Loss after the spike, over its largest and over the usual loss. Runs: at most 0.25 in 294 norm-driven spikes; in a
    # slow rise of the loss 0.87 and 97.
    most_left: float = 0.5
    most_above_usual: float = 10.0

    # Chance. Drives: 22 077 spikes of simulated gradients that do not depend on the norm, as in docs/diagnosis.md.
    least_similar: int = 3  # convention: spikes that look norm-driven count together from this number on
    least_reference: int = 50  # convention: fewest usual rows for a comparison
    single_chance: float = 0.01  # convention: error rate for a single spike
    typical_chance: float = 0.05  # the median of three independent chances is smaller with probability 0.7 %
    rise_rows: tuple[int, ...] = (5, 20)  # convention: rows of the means of ln loss that have risen
    earlier_rows: int = 20  # convention: rows of the mean with which they are compared
    single_rise: float = 6.0  # drives: larger in 3 of them
    typical_rise: float = 3.5  # drives: all medians of a log are at most 2.8
    member_rise: float = 4.0  # runs: among similar spikes, a single batch rarely rises so far

    # A loss that the data raised arrives at once, after steps with usual rotation
    arrival_share: float = 0.4  # of the peak; runs: at least 0.8 in bad batches and data shifts
    level: float = 0.8  # first mean of five over the largest; runs: at least 0.93 in bad batches and data shifts
    level_rows: int = 30  # convention: means among which that is the largest
    excess: float = 1.5  # runs: least excess ratio, if no mean is an outlier
    excess_at_low_norm: float = 5.0  # runs: a low norm alone raises the loss, and a batch may begin such a spike
    excess_far: float = 10.0  # runs: from here rotation may be above usual, up to `far_rotation`

    # Bad batch or data shift: mean excess of the loss some rows later, over that at the arrival
    bad_batch_left: float = 0.048  # up to here a bad batch; runs: at most 0.038 was left in 21
    data_shift_left: float = 0.072  # from here a data shift; runs: at least that was left in 23
    # A trained head learns new labels within few steps, so less is left. It is then large beside usual losses.
    bad_batch_ratio: float = 1.0  # convention: what is left over the largest excess of usual losses, in a bad batch
    bad_batch_little: float = 0.015  # or up to here; runs: at most 0.011 in 24 bad batches with a larger ratio
    data_shift_little: float = 0.03  # runs: at least 0.035 in 12 data shifts
    data_shift_ratio: float = 4.0  # runs: at least 4.4 times in these
    # After deep decay one batch may begin a destabilization, and its loss lasts. In a shift the next batch is bad, too.
    next_share: float = 0.5  # convention: the next loss is closer to that of the arrival than to usual losses
    most_data_shifts: int = 1  # convention: in one log
    data_of_largest: float = 0.13  # least excess over that of the largest loss; runs: 0.09 without an event, else 0.32
    data_growth: float = 0.5  # of ln ρ after a decay phase; runs: at most 0.36 in bad batches and data shifts
    data_rise: float = 1.5  # runs: rise of ln loss over its usual changes; at least 1.6, and 1.1 without an event
    left_first: int = 5  # runs: a network forgets a batch within so many rows
    left_last: int = 20  # convention: last row of the mean
    clip_quantile: float = 0.99  # convention: usual gradient norms reach this quantile
    clip_factor: float = 2.0  # convention: clipping is advised at so many times that

    # One-step law of plain SGD. Runs: in a correct log 99 % of the steps deviate by less than a hundredth of this.
    law_tolerance: float = 0.1  # deviation over growth and decay of the step
    law_share: float = 0.1  # convention: share of deviating steps above which the log contradicts the law
    largest_cosine: float = 0.5  # convention: between gradient and weights that are not scale-invariant
    law_total: float = 0.2  # runs: deviation of all steps together over their decay; 0.1 for batch norm with large ε
    most_clipped: float = 0.9  # convention: share of clipped steps up to which the others confirm the weight decay
    law_regular: float = 0.9  # convention: share of equal distances between changes, if a step has several rows
    # rows in which the norm decreases faster than by weight decay, and how much of ln ρ; runs: in 250 correct logs at
    # most 0.0055 in 50 rows, and nothing in more
    fast_rows: tuple[tuple[int, float], ...] = ((50, 0.008), (200, 0.003), (800, 0.003))
    fast_ratio: float = 1.5  # convention: so many times as fast
    most_resets: int = 3  # convention: rows at which weights may have been replaced
    step_rows: int = 3  # convention: rows before the arrival in which a single step is tested
    step_tolerance: float = 0.02  # of ln ρ; convention: a single step contradicts the law
    step_relative: float = 0.5  # convention: plus this share of its growth

    # What the loss does apart from spikes
    trend_blocks: int = 40  # convention: blocks of rows whose medians are compared
    least_block_rows: int = 10  # convention
    trend_least_blocks: int = 3  # convention: blocks in which the loss rises, and in which it stays high
    trend_scatter: float = 12.0  # runs: rise over the scatter of neighbouring blocks; up to 9 without an event
    trend_rise: float = 1.2  # convention: highest over lowest level
    least_lag: int = 13  # convention: rows of the shortest repetition; an oscillation as short has as sharp peaks
    repetitions: int = 4  # convention: multiples of the lag at which the loss repeats, too
    repetition_score: float = 4.0  # convention: lowest of these peaks over its standard error
    sharpness: float = 0.5  # convention: height of the peak over its neighbours, relative to the autocorrelation
    places: int = 40  # convention: most parts of an epoch whose mean losses are compared
    place_epochs: int = 8  # convention: epochs of a log in which places are compared
    place_share: float = 0.1  # convention: share of the changes of the loss that the place in the epoch explains
    place_contrast: float = 3.0  # convention: this share over that for other lengths
    other_lengths: tuple[float, ...] = (0.71, 0.77, 0.83, 0.89, 0.94, 1.07, 1.13, 1.19, 1.27, 1.37)  # of an epoch
    oscillation_samples: int = 500  # convention: means of rows whose autocorrelation is computed
    oscillation_depth: float = 0.1  # convention: the autocorrelation is that negative between its peaks
    oscillation_height: float = 0.3  # runs: of its first peak
    oscillation_periods: float = 6.0  # convention: fewest periods
    slow_blocks: int = 5  # convention: blocks of rows whose medians are the slow change of the loss

    # Data order, and clipping
    lock_chance: float = 0.002  # convention: largest chance of spikes at the same place in every epoch
    most_regular: float = 0.02  # convention: spread of distances below which something recurs by the clock
    least_regular: int = 5  # convention: fewest spikes for that
    least_capped: int = 10  # convention: rows with the largest gradient norm, if gradients are clipped
    often_capped: float = 0.9  # convention: share of clipped rows from which clipping determines the length of steps

    # Logs
    overflow_rise: float = 10.0  # convention: loss over the usual loss at which an overflow was announced
    sparse_share: float = 0.2  # convention: share of missing values above which a column is logged at some rows only
    ignored_share: float = 0.01  # convention: share of norms below which they are ignored for that


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Spacing:
    """Distances of the spikes of a log and their positions in the epoch; NaN if they are not known."""

    count: int  # of spikes
    distance: float  # steps since the spike before, or since the first row
    possible_decay: float  # of ln ρ by weight decay in this distance; NaN if it is not known
    total_decay: float  # the same since the start of training
    typical_distance: float  # median over all spikes
    distance_spread: float  # standard deviation over mean
    epoch_length: float  # in steps; NaN if it is not known
    epoch_share: float  # share of the epoch that contains all spikes
    epoch_chance: float  # chance of such a share


@dataclass(frozen=True)
class SpikeFeatures:
    """Features of one spike; NaN if the log lacks the columns.

    The *arrival* is the row from which the loss is closer to its peak than to the usual loss.
    """

    # The log
    has_columns: bool  # whether it has every column on which causes depend
    is_dense: bool  # whether every step has a row
    simulation: str  # what made it; empty for a training
    optimizer: str  # empty if the one-step law is not known
    gradient_column: str  # empty if `grad_norm` is that of a trajectory
    span: int  # steps
    # The loss
    usual_loss: float  # median of the rows before
    largest_loss: float  # largest finite loss of the spike
    arrival_step: int
    arrival_loss: float
    excess_ratio: float  # of the arrival, among losses outside spikes
    mean_excess_ratios: tuple[float, ...]  # of the means in `Thresholds.outlier_ratios` that begin at the arrival
    first_mean: float  # mean of the first five losses from the arrival on
    largest_mean: float  # largest of such means
    next_share: float  # excess of the next loss, over that of the arrival
    share_left: float  # the same for the mean loss 5 to 20 rows later
    left_ratio: float  # excess of that mean, over the largest excess of usual losses
    recovery: float  # steps from the arrival until the loss is usual again; NaN if the log ends before
    loss_after: float  # median of the loss then
    log_largest: float  # largest mean of five losses of the log
    # The learning rate in the rows before the arrival
    lr: float  # at the arrival
    lowest_lr: float
    compared_lr: float  # lowest one in the rows with which the spike is compared
    lr_step: float  # where it rose most
    lr_steps: float  # in which ρ² decays by a factor e
    spacing: Spacing
    # Gradient and step in the rows before the arrival, over the 95 % quantile of usual ones
    gradient_before: float
    gradient_then: float  # in the rows from the arrival on
    update_before: float
    cap: float  # gradient norm at which logged gradients are clipped; inf if they are not
    capped_before: float  # share of the rows before that are clipped
    # Rotation and norm
    turned_before: float  # largest rotation before the arrival, over the 95 % quantile of usual rotations
    trough: int  # row with the lowest norm, at which the spike begins
    norm_decay: float  # of ln ρ in the decay phase before
    decay_ratio: float  # its speed over that without gradients
    effective_lr: float  # at the trough
    norm_growth: float  # of ln ρ from the trough to the largest norm in the spike
    growth_explained: float  # growth of ln ρ by the one-step law, over the measured growth
    chance_before: (
        float  # share of usual rows before which steps rotated the weights as far; without norms, were as long
    )
    rise_ratio: float  # rise of ln loss at the arrival, over the standard deviation of its usual changes
    similar_spikes: int  # spikes of the log that are norm-driven unless chance explains them
    typical_chance: float  # median of `chance_before` among them
    typical_rise: float  # median of `rise_ratio` among them
    data_shifts: int  # spikes of the log that are data shifts unless they recur
    advised_wd: float  # with which this decay takes as long as the log
    gradient: float  # gradient norm at the arrival
    usual_gradient: float  # 99 % quantile of the rows before
    # A step near the arrival that contradicts the one-step law, and growth of ln ρ in it
    contradicting_step: float
    measured_growth: float
    predicted_growth: float
    free_growth: float  # without gradients
    contradicts_law: bool  # whether many steps of the log contradict the law

    @property
    def lr_factor(self) -> float:
        """Factor by which the learning rate rose."""
        return self.lr / self.lowest_lr

    @property
    def decayed_share(self) -> float:
        """Share of the norm that was lost in the decay phase."""
        return -math.expm1(-self.norm_decay)

    @property
    def grown_share(self) -> float:
        """Growth of the norm in the spike, over the norm at the trough."""
        return math.expm1(self.norm_growth)


# A text with features {s.…} and thresholds {t.…}, or a function that writes it; an empty text is left out.
_Sentence = str | Callable[[SpikeFeatures, Thresholds], str]
_DECAY = ("turned_before", "trough", "norm_decay", "decay_ratio")
_GROWTH = (*_DECAY, "growth_explained")


@dataclass(frozen=True)
class CauseRule:
    """A cause, the condition under which it is the cause if no earlier rule applies, and what the report says.

    `numbers` are the features that the spike reports, because this rule or an earlier one used them.
    """

    cause: str
    condition: Callable[[SpikeFeatures, Thresholds], bool]
    evidence: tuple[_Sentence, ...]
    advice: tuple[_Sentence, ...] = ()
    numbers: tuple[str, ...] = _DECAY


@dataclass(frozen=True)
class Explanation:
    """Cause of a spike, sentences, and the features that the spike reports, by name."""

    cause: str
    evidence: tuple[str, ...]
    advice: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def explain(s: SpikeFeatures, t: Thresholds = THRESHOLDS) -> Explanation:
    """Apply the first rule whose condition holds."""
    rule = next(rule for rule in RULES if rule.condition(s, t))

    def format_sentences(sentences: tuple[_Sentence, ...]) -> tuple[str, ...]:
        texts = (text.format(s=s, t=t) if isinstance(text, str) else text(s, t) for text in sentences)
        return tuple(filter(None, texts))

    rose = "The loss rose from {s.usual_loss:.3g} to {s.largest_loss:.3g}."
    numbers = {name: getattr(s, name) for name in rule.numbers}
    return Explanation(
        rule.cause, format_sentences((rose, *rule.evidence)), " ".join(format_sentences(rule.advice)), numbers
    )


def _has_lr_risen(s: SpikeFeatures, t: Thresholds) -> bool:
    # an lr step that did not make steps rotate the weights farther is not the cause
    return s.lr >= t.lr_rise * s.lowest_lr and not (s.is_dense and s.turned_before < t.usual_rotation)


def _is_from_norm(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether steps were too long for the norm: they rotated the weights far, or the norm grew at a high loss."""
    has_grown = s.norm_growth >= t.norm_rise and _has_decayed_freely(s, t, t.least_decay)
    return s.turned_before >= t.far_rotation or (has_grown and not _has_arrived_at_once(s, t))


def _has_decayed_freely(s: SpikeFeatures, t: Thresholds, depth: float) -> bool:
    return s.norm_decay >= depth and s.decay_ratio >= t.free_decay_ratio


def _has_decayed(s: SpikeFeatures, t: Thresholds) -> bool:
    return s.norm_decay >= t.least_decay and s.decay_ratio >= t.least_decay_ratio


def _is_unexplained(s: SpikeFeatures, t: Thresholds) -> bool:
    return s.growth_explained < t.least_explained or s.growth_explained > t.most_explained


def _may_be_chance(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether gradients that do not depend on the norm may explain the spike; the reduced model has none."""
    is_unlikely = s.chance_before <= t.single_chance and s.rise_ratio >= t.single_rise
    are_similar_unlikely = (
        s.similar_spikes >= t.least_similar
        and s.typical_chance <= t.typical_chance
        and s.typical_rise >= t.typical_rise
        and (s.chance_before <= t.typical_chance or s.rise_ratio >= t.member_rise)
    )
    return s.simulation != _REDUCED_MODEL and not (is_unlikely or are_similar_unlikely)


def _has_arrived_at_once(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether the data raised the loss: it is high from its arrival on, after steps with usual rotation."""
    turned_at_most = t.far_rotation if s.excess_ratio >= t.excess_far else t.usual_rotation
    if _has_decayed_freely(s, t, t.deep_decay) or (_has_decayed(s, t) and s.norm_growth >= t.norm_rise):
        is_outlier = s.excess_ratio >= t.excess_at_low_norm
    else:
        means = zip(s.mean_excess_ratios, t.outlier_ratios, strict=True)
        is_outlier = s.excess_ratio >= t.excess or any(ratio >= limit for ratio, (_, limit) in means)
    return (
        not s.simulation
        and s.turned_before <= turned_at_most
        and s.arrival_loss >= t.arrival_share * s.largest_loss
        and s.first_mean >= t.level * s.largest_mean
        and is_outlier
    )


def _is_over(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether so little of the rise is left that one batch explains it."""
    # if the next loss is usual, later ones follow from the step
    is_usual = s.left_ratio <= t.bad_batch_ratio or s.next_share * s.excess_ratio <= t.bad_batch_ratio
    return (s.share_left <= t.bad_batch_left and is_usual) or s.share_left <= t.bad_batch_little


def _stays(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether so much of the rise is left that the data have changed."""
    is_large = s.share_left > t.data_shift_little and s.left_ratio > t.data_shift_ratio
    return (s.share_left > t.data_shift_left or is_large) and not _may_last_by_norm(s, t)


def _may_last_by_norm(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether a single batch may have begun a destabilization: the norm had decayed, and the next loss is lower."""
    return _has_decayed_freely(s, t, t.deep_decay) and s.next_share < t.next_share


def _is_from_data(s: SpikeFeatures, t: Thresholds) -> bool:
    may_be_norm = _has_decayed(s, t) and s.norm_growth > t.data_growth
    return s.is_dense and _has_arrived_at_once(s, t) and not s.rise_ratio < t.data_rise and not may_be_norm


def _has_not_recovered(s: SpikeFeatures, t: Thresholds) -> bool:
    return s.loss_after > t.most_left * s.largest_loss and s.loss_after > t.most_above_usual * s.usual_loss


def _is_small(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether the spike is small beside the largest loss of the log, and the usual loss is tiny."""
    is_tiny = s.usual_loss < t.least_of_usual * s.log_largest
    return is_tiny and s.largest_loss - s.usual_loss < t.data_of_largest * (s.log_largest - s.usual_loss)


def _has_rare_rotation(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether the rotation before a small spike is as rare as before norm-driven ones, so that the data are unsure."""
    return s.excess_ratio < t.excess_far and s.chance_before <= t.typical_chance


def _why_from_norm(s: SpikeFeatures, t: Thresholds) -> str:
    if s.turned_before >= t.far_rotation:
        times = f"{s.turned_before:.1f} times as far as the 95 % quantile of usual steps"
        return f"Before the loss rose, a step rotated the weights {times}."
    return "The norm grew while the loss was high, as it does when steps are too long for the norm."


def _is_locked(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether all spikes come at the same place in the epoch."""
    return s.spacing.epoch_chance <= t.lock_chance


def _has_large_update(s: SpikeFeatures, t: Thresholds) -> bool:
    """Whether steps grew before the loss, although weight decay had no time to reduce the norm."""
    # without a norm, a large gradient is a large step
    grew = s.update_before >= t.far_rotation or (not s.has_columns and s.gradient_before >= t.far_rotation)
    return s.is_dense and grew and s.spacing.total_decay < t.least_decay


def _why_locked(s: SpikeFeatures, t: Thresholds) -> str:
    place = f"{s.spacing.epoch_share:.1%} of the epoch of {s.spacing.epoch_length:.0f} steps"
    return f"All {s.spacing.count} spikes come within {place}, so the order of the data causes them."


def _why_large_update(s: SpikeFeatures, t: Thresholds) -> str:
    if not s.update_before >= t.far_rotation:
        return ""
    return f"Before the loss rose, a step was {s.update_before:.1f} times as long as the 95 % quantile of usual steps."


def _advise_smaller_update(s: SpikeFeatures, t: Thresholds) -> str:
    if s.optimizer.startswith("Adam"):
        return (
            "The second moment follows the gradient too slowly. A smaller β₂ (0.95), a longer warm-up, or a limit for "
            "the norm of the update shortens such steps."
        )
    return "A smaller learning rate or a limit for the norm of the update shortens such steps."


def _how_it_recovered(s: SpikeFeatures, t: Thresholds) -> str:
    if math.isnan(s.recovery):
        return "It did not return to usual before the end of the log."
    level = "" if s.loss_after <= 1.2 * s.usual_loss or s.usual_loss <= 0 else f", at {s.loss_after:.3g}"
    return f"It was usual again {s.recovery:.0f} step{'s' if s.recovery > 1 else ''} later{level}."


def _how_gradient_rose(s: SpikeFeatures, t: Thresholds) -> str:
    quantile = "times the 95 % quantile of usual rows"
    if s.gradient_before >= t.far_rotation:
        return f"The gradient norm rose before the loss, to {s.gradient_before:.1f} {quantile}."
    if s.gradient_then >= t.far_rotation:
        return f"The gradient norm rose together with the loss, to {s.gradient_then:.1f} {quantile}."
    return (
        "" if math.isnan(s.gradient_before + s.gradient_then) else "The gradient norm was usual before the loss rose."
    )


def _how_lr_changed(s: SpikeFeatures, t: Thresholds) -> str:
    return "" if not s.lr_factor > 1.1 else f"The learning rate rose by a factor of {s.lr_factor:.3g} shortly before."


def _whether_norm_is_possible(s: SpikeFeatures, t: Thresholds) -> str:
    if math.isnan(s.spacing.possible_decay) or s.simulation:
        return ""
    if s.spacing.total_decay < t.least_decay:
        share = -math.expm1(-s.spacing.total_decay)
        return f"Since the start weight decay reduces the norm by at most {share:.1%}, so the norm is not the cause."
    share = -math.expm1(-s.spacing.possible_decay)
    since = f"In the {s.spacing.distance:.0f} steps before, weight decay reduces the norm by at most {share:.1%}"
    if s.spacing.possible_decay < t.least_decay:
        return f"{since}. That is too little for a period of the norm."
    if s.spacing.possible_decay < t.usual_decay:
        return f"{since}. In our runs, 19 of 20 norm-driven spikes had more."
    return f"{since}, so the norm may be the cause."


def _how_regular(s: SpikeFeatures, t: Thresholds) -> str:
    if s.spacing.count < t.least_regular or not s.spacing.distance_spread <= t.most_regular:
        return ""
    return (
        f"The spikes come every {s.spacing.typical_distance:.0f} steps, with a spread of "
        f"{s.spacing.distance_spread:.1%}: look for what recurs "
        "then, such as an epoch, a file of the data, or an evaluation."
    )


def _how_capped(s: SpikeFeatures, t: Thresholds) -> str:
    if not s.capped_before >= t.often_capped:
        return ""
    return (
        f"In {s.capped_before:.0%} of the rows before, the gradient norm is {s.cap:.3g}: clipping determines the "
        "length of the steps."
    )


def _why_unexplained(s: SpikeFeatures, t: Thresholds) -> str:
    reason = "the gradients were clipped, or " if s.growth_explained > 1 else ""
    return (
        f"But the gradients explain {s.growth_explained:.0%} of that growth: {reason}something else changed the norm."
    )


def _how_unlikely(s: SpikeFeatures, t: Thresholds) -> str:
    if math.isnan(s.chance_before + s.rise_ratio):
        return ""
    return (
        f"Rotation as large came before only {s.chance_before:.1%} of the usual rows, and the loss rose by "
        f"{s.rise_ratio:.1f} standard deviations of its usual changes."
    )


def _why_by_chance(s: SpikeFeatures, t: Thresholds) -> str:
    if math.isnan(s.chance_before + s.rise_ratio):
        return "But there are too few usual rows before it to exclude chance."
    return (
        f"But chance may explain that. The norm is named for a share up to {t.single_chance:.0%} and a rise of at "
        f"least {t.single_rise} standard deviations, or for {t.least_similar} such spikes with medians of "
        f"{t.typical_chance:.0%} and {t.typical_rise}."
    )


def _similar_medians(s: SpikeFeatures, t: Thresholds) -> str:
    if s.similar_spikes < t.least_similar:
        return ""
    return f"The medians of {s.similar_spikes} such spikes are {s.typical_chance:.1%} and {s.typical_rise:.1f}."


def _why_contradicting(s: SpikeFeatures, t: Thresholds) -> str:
    changed = f"At step {s.contradicting_step:.0f} the change of the norm contradicts the SGD update"
    if s.contradicts_law:
        return f"{changed}, as at many steps of this log."
    # clipping can explain growth that is too small
    is_clipped = s.free_growth <= s.measured_growth < s.predicted_growth
    clipped = "gradients were clipped after they were logged, or " if is_clipped else ""
    return f"{changed}: {clipped}weights were reset, loaded or rescaled."


def _why_unknown(s: SpikeFeatures, t: Thresholds) -> str:
    no_data = f"a simulation ({s.simulation}) has no data that could cause it"
    reason = no_data if s.simulation else "the loss did not rise at once"
    return f"The weights did not rotate unusually far before, and {reason}."


def _how_much_explained(s: SpikeFeatures, t: Thresholds) -> str:
    is_known = not math.isnan(s.growth_explained)
    return f"The gradients explain {s.growth_explained:.0%} of that growth." if is_known else ""


def _how_much_left(s: SpikeFeatures, t: Thresholds) -> str:
    return f"{t.left_first} to {t.left_last} steps later, {max(s.share_left, 0.0):.1%} of it was left."


def _why_not_lasting(s: SpikeFeatures, t: Thresholds) -> str:
    if s.share_left > t.data_shift_little and _may_last_by_norm(s, t):
        left = (
            f"The norm had decayed by {s.decayed_share:.0%}, and after one step {max(s.next_share, 0.0):.0%} was left"
        )
        return f"{left}: one batch may have begun a destabilization."
    return "That is more than one batch leaves and less than a data shift leaves."


def _advise_slower_lr(s: SpikeFeatures, t: Thresholds) -> str:
    if math.isnan(s.lr_steps):
        return "A smaller rise rotates the weights less."
    return (
        f"Raise the learning rate over about {s.lr_steps:.0f} steps, in which ρ² decays by a factor e under "
        f"{s.optimizer}, so that the norm can follow. Or raise it less, because rotation grows with "
        "it at once, whatever wd is."
    )


def _advise_clipping(s: SpikeFeatures, t: Thresholds) -> str:
    clip = t.clip_factor * s.usual_gradient
    if not s.gradient > clip:
        return ""
    which = f"in column {s.gradient_column!r}" if s.gradient_column else "of the scale-invariant weights"
    # many tools log the norm before clipping
    is_checked = not math.isnan(s.growth_explained)
    start = "Clipping" if is_checked else "Unless gradients are clipped already, clipping"
    return f"{start} the gradient norm {which} at {clip:.2g} would have reduced the rotation."


_DECAYED = (
    "The norm had decayed by {s.decayed_share:.0%}, at {s.decay_ratio:.0%} of the speed of weight decay alone, and "
    "the effective learning rate had risen to {s.effective_lr:.3g}."
)
_GREW = "In the spike the norm grew by {s.grown_share:.0%}."
_DECIDES = "A run with half the weight decay decides it: norm-driven spikes then come about half as often."
_AT_ONCE = "It rose at once, at step {s.arrival_step}, after steps with usual rotation."

# The first rule whose condition holds gives the cause, so a condition may rely on those above it not to hold.
RULES = (
    CauseRule(
        LR_STEP,
        _has_lr_risen,
        (
            "The learning rate rose by a factor of {s.lr_factor:.3g} in the {t.lr_rows} steps before step "
            "{s.arrival_step}, most at step {s.lr_step:.0f}.",
        ),
        (_advise_slower_lr,),
        numbers=("turned_before",),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: s.contradicts_law,
        ("The log contradicts the law of the norm, so it supports no cause.", _how_it_recovered),
        numbers=(),
    ),
    CauseRule(
        DATA_ORDER,
        lambda s, t: _is_locked(s, t) and not (s.has_columns and _is_from_norm(s, t)),
        (_why_locked, _how_it_recovered),
        ("Shuffle the data in every epoch, and check the batches at this place.",),
        numbers=(),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_locked(s, t),
        (_why_locked, "But steps rotated the weights far before, as in a norm-driven spike."),
    ),
    CauseRule(
        LARGE_UPDATE,
        lambda s, t: not s.has_columns and _has_large_update(s, t) and not _may_be_chance(s, t),
        (_why_large_update, _how_gradient_rose, _whether_norm_is_possible, _how_unlikely, _how_it_recovered),
        (_advise_smaller_update,),
        numbers=(),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: not s.has_columns,
        (_how_it_recovered, _how_gradient_rose, _how_lr_changed, _whether_norm_is_possible, _how_regular, _how_capped),
        numbers=(),
    ),
    CauseRule(
        UNKNOWN, lambda s, t: math.isnan(s.turned_before), ("There are too few steps before it for a comparison.",)
    ),
    # the norm
    CauseRule(
        LARGE_UPDATE,
        lambda s, t: _has_large_update(s, t) and s.turned_before >= t.far_rotation and not _may_be_chance(s, t),
        (_why_large_update, _whether_norm_is_possible, _how_unlikely),
        (_advise_smaller_update,),
        numbers=_GROWTH,
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_norm(s, t) and not _has_decayed(s, t),
        (_why_from_norm, "But the norm had not decayed before, or far more slowly than by weight decay."),
        numbers=_GROWTH,
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_norm(s, t) and not s.norm_growth >= t.least_growth,
        (_why_from_norm, _DECAYED, "But the norm did not grow in the spike."),
        numbers=_GROWTH,
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_norm(s, t) and _is_unexplained(s, t),
        (_why_from_norm, _DECAYED, _GREW, _why_unexplained),
        numbers=_GROWTH,
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_norm(s, t) and _has_not_recovered(s, t),
        (
            _why_from_norm,
            _DECAYED,
            _GREW,
            "But the loss stays at {s.loss_after:.3g}. After a destabilization it decreases again.",
        ),
        numbers=_GROWTH,
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_norm(s, t) and _may_be_chance(s, t),
        (_why_from_norm, _DECAYED, _GREW, _how_unlikely, _why_by_chance, _similar_medians, _DECIDES),
        numbers=_GROWTH,
    ),
    CauseRule(
        NORM_DRIVEN,
        _is_from_norm,
        (_why_from_norm, _DECAYED, _GREW, _how_much_explained, _how_unlikely),
        (
            "Halve the weight decay or the learning rate: such spikes then come about half as often. With wd below "
            "{s.advised_wd:.2g} the norm needs more than the {s.span} steps of this log to decay as far again.",
        ),
        numbers=_GROWTH,
    ),
    # the data
    CauseRule(
        UNKNOWN, lambda s, t: _is_from_data(s, t) and not math.isnan(s.contradicting_step), (_why_contradicting,)
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and _has_rare_rotation(s, t),
        (
            "It rose at once, at step {s.arrival_step}. But rotation as large came before "
            "only {s.chance_before:.1%} of the usual rows, so the norm is not excluded.",
        ),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and _is_small(s, t),
        (
            _AT_ONCE,
            "But it is small beside the loss of {s.log_largest:.3g} that the log reaches: single samples that the "
            "network has not learned raise it as far.",
        ),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and s.lr >= t.lr_rise * s.compared_lr,
        (
            _AT_ONCE,
            "But the learning rate rose from {s.compared_lr:.3g} to {s.lr:.3g} in the rows before, so what was usual "
            "there does not exclude it as the cause.",
        ),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and math.isnan(s.share_left),
        (_AT_ONCE, "The log ends too soon after it to separate one batch from a lasting change."),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and _stays(s, t) and s.data_shifts > t.most_data_shifts,
        (
            _AT_ONCE,
            _how_much_left,
            "But the log has {s.data_shifts} such spikes. Data rarely change so often, and destabilizations recur.",
        ),
    ),
    CauseRule(
        DATA_SHIFT,
        lambda s, t: _is_from_data(s, t) and _stays(s, t),
        (_AT_ONCE, _how_much_left),
        ("Check the data and labels from step {s.arrival_step} on; lr and wd are probably not the cause.",),
    ),
    CauseRule(
        UNKNOWN,
        lambda s, t: _is_from_data(s, t) and not _is_over(s, t),
        (_AT_ONCE, _how_much_left, _why_not_lasting),
    ),
    CauseRule(
        BAD_BATCH,
        _is_from_data,
        (_AT_ONCE, _how_much_left),
        ("Check the batch of step {s.arrival_step}; lr and wd are probably not the cause.", _advise_clipping),
    ),
    CauseRule(
        CLIPPING,
        lambda s, t: s.capped_before >= t.often_capped,
        (_how_capped,),
        ("Raise the limit of clipping, or lower the learning rate.",),
    ),
    CauseRule(UNKNOWN, lambda s, t: True, (_why_unknown, _how_regular)),
)
