"""Comparisons of training with theory and simulation. Each returns rows of the validation table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

import simulate
import theory
from simulate.trajectories.contract import setting_variable
from simulate.trajectories.periods import EQUILIBRIUM, LOG_NORM_SD_MAX, PERIODIC, ROTATION_RATIO_MIN, after_transient
from simulate.trajectories.statistics import power_mean

REPLAY_TOLERANCE = 1e-4
EQUILIBRIUM_TOLERANCE = 0.02
BOUNDS_TOLERANCE = 1e-4
CONTROL_SHIFT = 0.1
PERIODS_NEEDED = 60
STANDARD_ERRORS = 3.0
PEAK_TOLERANCE = 0.1
SYMMETRY_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Row:
    """One row of the validation table. Numbers that do not apply are NaN.

    Attributes
    ----------
    claim : the claim and the runs that it is about.
    rule : condition on the numbers.
    holds : whether the condition is true.
    predicted, simulated, measured : value from `theory`, from `simulate` and from training.
    difference, error : difference of measured and predicted, and its standard error.
    """

    claim: str
    rule: str
    holds: bool
    predicted: float = math.nan
    simulated: float = math.nan
    measured: float = math.nan
    difference: float = math.nan
    error: float = math.nan

    @property
    def verdict(self) -> str:
        """Either "holds" or "FAILS"."""
        return "holds" if self.holds else "FAILS"


def equilibrium_rows(name: str, run: xr.Dataset, other: xr.Dataset) -> list[Row]:
    """Compare norm, rotation and spread of a run with the equilibrium predicted from *another* run's gradients.

    All three are needed, since the norm alone also fits periodic runs (docs/mathematics.md §2).

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.8, 2.2), norm=2.0, steps=5000, seed=0)
    >>> other = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.8, 2.2), norm=2.0, steps=5000, seed=1)
    >>> [row.verdict for row in equilibrium_rows("map", run, other)]
    ['holds', 'holds', 'holds']
    """
    lr, wd = float(setting_variable(run, "lr")), float(setting_variable(run, "wd"))
    settled, settled_other = after_transient(run), after_transient(other)
    gradient, gradient_error = power_mean(settled_other.grad_norm.values, 2)
    predicted = theory.equilibrium_norm(lr, wd, gradient)
    driven = simulate.norm_map(
        lr,
        wd,
        simulate.RecordedGradient(other.grad_norm.values),
        norm=float(run.norm[0]),
        steps=other.sizes["step"],
        seed=0,
    )
    simulated = after_transient(driven)
    measured, measured_error = power_mean(settled.norm.values, 4)
    # ρ* is proportional to the square root of the gradient norm
    error = math.hypot(measured_error / measured, gradient_error / gradient / 2)
    classification = simulate.classify(run)
    angle = theory.equilibrium_rotation(lr, wd)
    return [
        Row(
            f"equilibrium norm, predicted from another seed: {name}",
            f"|difference| <= {EQUILIBRIUM_TOLERANCE:.0%}",
            abs(measured / predicted - 1) <= EQUILIBRIUM_TOLERANCE,
            predicted,
            power_mean(simulated.norm.values, 4)[0],
            measured,
            measured / predicted - 1,
            error,
        ),
        Row(
            f"median rotation at equilibrium: {name}",
            f"measured >= {ROTATION_RATIO_MIN} × predicted",
            classification.rotation_ratio >= ROTATION_RATIO_MIN,
            angle,
            float(np.median(simulated.rotation.values)),
            classification.rotation_ratio * angle,
            classification.rotation_ratio - 1,
        ),
        Row(
            f"spread of ln ρ at equilibrium: {name}",
            f"measured <= {LOG_NORM_SD_MAX}",
            classification.log_norm_sd <= LOG_NORM_SD_MAX,
            simulated=float(np.log(simulated.norm.values).std()),
            measured=classification.log_norm_sd,
        ),
    ]


def equilibrium_control_row(name: str, run: xr.Dataset) -> Row:
    """Control: check that a run fails the equilibrium test.

    Examples
    --------
    >>> settled = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=5000)
    >>> equilibrium_control_row("at equilibrium", settled).verdict
    'FAILS'
    """
    classification = simulate.classify(run)
    angle = theory.equilibrium_rotation(float(setting_variable(run, "lr")), float(setting_variable(run, "wd")))
    return Row(
        f"control, not at equilibrium: {name}",
        f"rotation < {ROTATION_RATIO_MIN} × predicted, or spread > {LOG_NORM_SD_MAX}",
        classification.verdict != EQUILIBRIUM,
        predicted=angle,
        measured=classification.rotation_ratio * angle,
        difference=classification.rotation_ratio - 1,
    )


def replay_deviation(run: xr.Dataset) -> npt.NDArray[np.float64]:
    """Relative deviation of the replayed norm from the measured norm, at every step.

    Examples
    --------
    >>> float(replay_deviation(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=50)).max()) < 1e-12
    True
    """
    return np.asarray(np.abs(simulate.replay(run).norm.values / run.norm.values - 1))


def replay_row(name: str, run: xr.Dataset, *, control: bool = False) -> Row:
    """Compare the norm with its replay from the measured gradient norms, over the whole run.

    Parameters
    ----------
    name, run : name and trajectory of the run.
    control : whether the replay must fail.

    Examples
    --------
    >>> replay_row("map", simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=50)).verdict
    'holds'
    """
    worst = float(np.max(replay_deviation(run)))
    return Row(
        f"{'control, replay of the norm fails' if control else 'replay of the norm'}: {name}",
        f"largest relative deviation {'>' if control else '<='} {REPLAY_TOLERANCE:g}",
        worst > REPLAY_TOLERANCE if control else worst <= REPLAY_TOLERANCE,
        simulated=float(simulate.replay(run).norm[-1]),
        measured=float(run.norm[-1]),
        difference=worst,
    )


@dataclass(frozen=True)
class EnvelopeFit:
    """Position of the norm relative to its envelopes.

    Attributes
    ----------
    outside : largest relative distance of ρ from the envelope, 0 if ρ never leaves it.
    width : median width of the envelope, relative to its middle.
    """

    outside: float
    width: float


def envelope_fit(run: xr.Dataset, *, raise_low: float = 0.0, lower_high: float = 0.0) -> EnvelopeFit:
    """Compare the norm with envelopes that start at every step and last 1/ηλ steps.

    Each envelope uses the smallest and largest g̃ of its window, ℓ and L.

    Parameters
    ----------
    run : one trajectory with all steps.
    raise_low, lower_high : relative changes that raise ℓ and lower L, for controls.

    Examples
    --------
    >>> noisy = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 2.0), norm=2.0, steps=500, seed=0)
    >>> envelope_fit(noisy).outside < 1e-12 < envelope_fit(noisy, lower_high=0.1).outside
    True
    """
    lr, wd = float(setting_variable(run, "lr")), float(setting_variable(run, "wd"))
    window = round(1 / (lr * wd))
    norm = np.append(run.norm.values, run.final_norm.item())
    gradients = np.lib.stride_tricks.sliding_window_view(run.grad_norm.values, window)
    norms = np.lib.stride_tricks.sliding_window_view(norm, window + 1)
    low = gradients.min(axis=1) * (1 + raise_low)
    high = np.maximum(gradients.max(axis=1) * (1 - lower_high), low)
    outside, widths = 0.0, []
    # in parts, since all envelopes at once would take gigabytes
    for part in np.array_split(np.arange(len(low)), max(1, len(low) * window // 2_000_000)):
        bounds = theory.norm_envelope(window, norms[part, 0], lr, wd, low[part], high[part])
        inside = np.maximum(norms[part] / bounds.upper, bounds.lower / norms[part])
        outside = max(outside, float(inside.max()) - 1)
        widths.append(2 * (bounds.upper - bounds.lower) / (bounds.upper + bounds.lower))
    return EnvelopeFit(max(outside, 0.0), float(np.median(np.concatenate(widths)[:, 1:])))


def envelope_rows(name: str, run: xr.Dataset, *, controls: bool) -> list[Row]:
    """Check that the norm stays inside its envelopes, and that it leaves them if ℓ is raised or L lowered by 10 %.

    Examples
    --------
    >>> noisy = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 2.0), norm=2.0, steps=500, seed=0)
    >>> [row.verdict for row in envelope_rows("map", noisy, controls=True)]
    ['holds', 'holds', 'holds']
    """
    fit = envelope_fit(run)
    rows = [
        Row(
            f"norm inside its envelope (median width {fit.width:.1%}): {name}",
            f"largest relative distance <= {BOUNDS_TOLERANCE:g}",
            fit.outside <= BOUNDS_TOLERANCE,
            predicted=0.0,
            measured=fit.outside,
            difference=fit.outside,
        )
    ]
    shifts = {"ℓ raised": {"raise_low": CONTROL_SHIFT}, "L lowered": {"lower_high": CONTROL_SHIFT}} if controls else {}
    for change, shift in shifts.items():
        outside = envelope_fit(run, **shift).outside
        rows.append(
            Row(
                f"control, norm leaves the envelope with {change} by {CONTROL_SHIFT:.0%}: {name}",
                f"largest relative distance > {BOUNDS_TOLERANCE:g}",
                outside > BOUNDS_TOLERANCE,
                predicted=0.0,
                measured=outside,
                difference=outside,
            )
        )
    return rows


@dataclass(frozen=True)
class _Pooled:
    """One number per period, from several runs of one setting."""

    values: list[npt.NDArray[np.float64]]

    @property
    def count(self) -> int:
        return sum(run.size for run in self.values)

    @property
    def mean(self) -> float:
        return float(np.concatenate(self.values).mean()) if self.count else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean: the larger of those from the scatter of periods and of runs."""
        if self.count < 2:
            return math.nan
        within = float(np.concatenate(self.values).std(ddof=1)) / math.sqrt(self.count)
        means = [float(run.mean()) for run in self.values if run.size]
        return max(within, float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0)


def _lengths(runs: Sequence[xr.Dataset]) -> _Pooled:
    """T·ηλ of every period."""
    return _Pooled([periods.lengths * periods.intrinsic_lr for periods in map(simulate.find_periods, runs)])


def _log_peaks(runs: Sequence[xr.Dataset]) -> _Pooled:
    return _Pooled([np.log(simulate.find_periods(run).peak_norms) for run in runs])


def _replays(runs: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return [simulate.replay(run) for run in runs]


def periodic_row(name: str, runs: Sequence[xr.Dataset]) -> Row:
    """Check that all runs of a setting are periodic and that the mean T·ηλ exceeds its lower bound.

    At least 60 periods are needed for the mean.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> periodic_row("at equilibrium", [simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=5000)]).verdict
    'FAILS'
    """
    classifications = [simulate.classify(run) for run in runs]
    lengths = _lengths(runs)
    intrinsic_lr = classifications[0].periods.intrinsic_lr
    bound = -classifications[0].periods.rise * intrinsic_lr / math.log1p(-intrinsic_lr)
    all_periodic = all(classification.verdict == PERIODIC for classification in classifications)
    return Row(
        f"periodic, mean T·ηλ of {lengths.count} periods above its lower bound: {name}",
        f"periodic, >= {PERIODS_NEEDED} periods, measured >= predicted",
        all_periodic and lengths.count >= PERIODS_NEEDED and lengths.mean >= bound,
        predicted=bound,
        simulated=_lengths(_replays(runs)).mean,
        measured=lengths.mean,
        error=lengths.error,
    )


def equal_periods_row(names: Sequence[str], groups: Sequence[Sequence[xr.Dataset]], *, equal: bool = True) -> Row:
    """Compare the mean T·ηλ of two settings, which are equal for equal ηλ by symmetry.

    Parameters
    ----------
    names, groups : names of two settings, and the runs of each.
    equal : whether they must agree; otherwise they must differ.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(4000) % 100 - 50) / 50)
    >>> run = xr.Dataset({"norm": ("step", wave), "grad_norm": ("step", 0 * wave)}, coords={"step": np.arange(4000)},
    ...                  attrs={"lr": 0.1, "wd": 0.1})
    >>> equal_periods_row(["a", "b"], [[run], [run]]).verdict
    'holds'
    """
    first, second = (_lengths(runs) for runs in groups)
    error = math.hypot(first.error, second.error)
    close = abs(second.mean - first.mean) <= STANDARD_ERRORS * error
    return Row(
        f"{'equal T·ηλ' if equal else 'control, different T·ηλ'}: {names[0]} and {names[1]}",
        f"|difference| {'<=' if equal else '>'} {STANDARD_ERRORS:g} standard errors",
        close if equal else not close and math.isfinite(error),
        first.mean,
        _lengths(_replays(groups[1])).mean,
        second.mean,
        second.mean - first.mean,
        error,
    )


def peak_ratio_row(names: Sequence[str], groups: Sequence[Sequence[xr.Dataset]]) -> Row:
    """Compare the geometric-mean peaks of ρ of two settings with equal ηλ, whose ratio is that of √η by symmetry.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(4000) % 100 - 50) / 50)
    >>> runs = [xr.Dataset({"norm": ("step", scale * wave), "grad_norm": ("step", 0 * wave)},
    ...                    coords={"step": np.arange(4000)}, attrs={"lr": scale**2, "wd": 0.01 / scale**2})
    ...         for scale in (1.0, 2.0)]
    >>> row = peak_ratio_row(["a", "b"], [[run] for run in runs])
    >>> row.predicted, round(row.measured, 12)
    (0.5, 0.5)
    """
    predicted = math.sqrt(float(setting_variable(groups[0][0], "lr")) / float(setting_variable(groups[1][0], "lr")))
    first, second = (_log_peaks(runs) for runs in groups)
    replayed = [_log_peaks(_replays(runs)) for runs in groups]
    measured = math.exp(first.mean - second.mean)
    return Row(
        f"ratio of peak norms: {names[0]} to {names[1]}",
        f"|difference| <= {PEAK_TOLERANCE:.0%}",
        abs(measured / predicted - 1) <= PEAK_TOLERANCE,
        predicted,
        math.exp(replayed[0].mean - replayed[1].mean),
        measured,
        measured / predicted - 1,
        math.hypot(first.error, second.error),
    )


def equal_losses_row(name: str, first: xr.Dataset, second: xr.Dataset, *, control: bool = False) -> Row:
    """Compare the losses of runs with equal ηλ, initial direction and ρ₀/√η, which are equal by symmetry.

    With `control` the losses must differ.

    Examples
    --------
    >>> run = xr.Dataset({"loss": ("step", [1.0, 0.5])})
    >>> equal_losses_row("a", run, run + 1e-9).verdict
    'holds'
    """
    worst = float(np.max(np.abs(first.loss.values - second.loss.values)))
    return Row(
        f"{'control, losses differ' if control else 'equal losses by symmetry'}: {name}, {first.sizes['step']} steps",
        f"largest difference {'>' if control else '<='} {SYMMETRY_TOLERANCE:g}",
        worst > SYMMETRY_TOLERANCE if control else worst <= SYMMETRY_TOLERANCE,
        predicted=float(first.loss[-1]),
        measured=float(second.loss[-1]),
        difference=worst,
    )
