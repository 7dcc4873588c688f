"""Comparisons of measured trajectories with theory and simulation; each gives rows of the validation table."""

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
    """One line of the validation table; numbers that a claim does not have are NaN.

    Attributes
    ----------
    claim : what is claimed, and of which runs.
    rule : what must be true of the numbers.
    holds : whether it is.
    predicted, simulated, measured : by `theory`, by `simulate`, in training.
    difference, error : between measured and predicted, and its standard error.
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
        """In one word: "holds" or "FAILS"."""
        return "holds" if self.holds else "FAILS"


def equilibrium(name: str, run: xr.Dataset, other: xr.Dataset) -> list[Row]:
    """Hold a run against the equilibrium that the gradients of *another* run predict: norm, rotation, spread.

    All three are needed: the norm alone fits on periodic traces too (docs/mathematics.md §2).

    Examples
    --------
    >>> run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.8, 2.2), norm=2.0, steps=5000, seed=0)
    >>> other = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.8, 2.2), norm=2.0, steps=5000, seed=1)
    >>> [row.verdict for row in equilibrium("map", run, other)]
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
    # ρ* goes with the square root of the gradient norm
    error = math.hypot(measured_error / measured, gradient_error / gradient / 2)
    judged = simulate.classify(run)
    angle = theory.equilibrium_rotation(lr, wd)
    return [
        Row(
            f"equilibrium norm from another seed's gradients: {name}",
            f"|difference| <= {EQUILIBRIUM_TOLERANCE:.0%}",
            abs(measured / predicted - 1) <= EQUILIBRIUM_TOLERANCE,
            predicted,
            power_mean(simulated.norm.values, 4)[0],
            measured,
            measured / predicted - 1,
            error,
        ),
        Row(
            f"equilibrium rotation, median: {name}",
            f"measured >= {ROTATION_RATIO_MIN} of predicted",
            judged.rotation_ratio >= ROTATION_RATIO_MIN,
            angle,
            float(np.median(simulated.rotation.values)),
            judged.rotation_ratio * angle,
            judged.rotation_ratio - 1,
        ),
        Row(
            f"equilibrium spread of ln ρ: {name}",
            f"measured <= {LOG_NORM_SD_MAX}",
            judged.log_norm_sd <= LOG_NORM_SD_MAX,
            simulated=float(np.log(simulated.norm.values).std()),
            measured=judged.log_norm_sd,
        ),
    ]


def not_equilibrium(name: str, run: xr.Dataset) -> Row:
    """Control: a run that must fail the equilibrium test.

    Examples
    --------
    >>> at_rest = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=5000)
    >>> not_equilibrium("at rest", at_rest).verdict
    'FAILS'
    """
    judged = simulate.classify(run)
    angle = theory.equilibrium_rotation(float(setting_variable(run, "lr")), float(setting_variable(run, "wd")))
    return Row(
        f"control, fails the equilibrium test: {name}",
        f"rotation < {ROTATION_RATIO_MIN} of equilibrium, or spread > {LOG_NORM_SD_MAX}",
        judged.verdict != EQUILIBRIUM,
        predicted=angle,
        measured=judged.rotation_ratio * angle,
        difference=judged.rotation_ratio - 1,
    )


def replay_deviation(run: xr.Dataset) -> npt.NDArray[np.float64]:
    """Relative deviation of the replayed norm from the measured one at every step.

    Examples
    --------
    >>> float(replay_deviation(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=50)).max()) < 1e-12
    True
    """
    return np.asarray(np.abs(simulate.replay(run).norm.values / run.norm.values - 1))


def replay(name: str, run: xr.Dataset, *, control: bool = False) -> Row:
    """Feed the one-step law with the run's own gradients and compare the norms over the whole run.

    Parameters
    ----------
    name, run : the run.
    control : the law must be seen to fail.

    Examples
    --------
    >>> replay("map", simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=50)).verdict
    'holds'
    """
    worst = float(np.max(replay_deviation(run)))
    return Row(
        f"{'control, replay fails' if control else 'replay of the norm'}: {name}",
        f"largest deviation {'>' if control else '<='} {REPLAY_TOLERANCE:g}",
        worst > REPLAY_TOLERANCE if control else worst <= REPLAY_TOLERANCE,
        simulated=float(simulate.replay(run).norm[-1]),
        measured=float(run.norm[-1]),
        difference=worst,
    )


@dataclass(frozen=True)
class EnvelopeFit:
    """How the norm lies in its envelopes.

    Attributes
    ----------
    outside : largest relative distance of ρ outside the envelope, 0 if it never leaves.
    width : median width of the envelope relative to its middle.
    """

    outside: float
    width: float


def envelope_fit(run: xr.Dataset, *, raise_low: float = 0.0, lower_high: float = 0.0) -> EnvelopeFit:
    """Start an envelope at every step, over 1/ηλ steps, with the smallest and largest g̃ of that window.

    These windows contain the ones that begin every 1/ηλ steps.

    Parameters
    ----------
    run : one trajectory with all steps.
    raise_low, lower_high : controls: shares by which ℓ is raised and L is lowered.

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
    # a few windows at a time: all envelopes at once would take gigabytes
    for part in np.array_split(np.arange(len(low)), max(1, len(low) * window // 2_000_000)):
        bounds = theory.norm_envelope(window, norms[part, 0], lr, wd, low[part], high[part])
        inside = np.maximum(norms[part] / bounds.upper, bounds.lower / norms[part])
        outside = max(outside, float(inside.max()) - 1)
        widths.append(2 * (bounds.upper - bounds.lower) / (bounds.upper + bounds.lower))
    return EnvelopeFit(max(outside, 0.0), float(np.median(np.concatenate(widths)[:, 1:])))


def bounds(name: str, run: xr.Dataset, *, controls: bool) -> list[Row]:
    """The norm stays inside its envelopes; with ℓ raised or L lowered by 10 % it does not.

    Examples
    --------
    >>> noisy = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 2.0), norm=2.0, steps=500, seed=0)
    >>> [row.verdict for row in bounds("map", noisy, controls=True)]
    ['holds', 'holds', 'holds']
    """
    fit = envelope_fit(run)
    rows = [
        Row(
            f"norm inside its envelope (median width {fit.width:.1%}): {name}",
            f"never outside by more than {BOUNDS_TOLERANCE:g}",
            fit.outside <= BOUNDS_TOLERANCE,
            predicted=0.0,
            measured=fit.outside,
            difference=fit.outside,
        )
    ]
    shifts = {"ℓ raised": {"raise_low": CONTROL_SHIFT}, "L lowered": {"lower_high": CONTROL_SHIFT}} if controls else {}
    for what, shift in shifts.items():
        outside = envelope_fit(run, **shift).outside
        rows.append(
            Row(
                f"control, envelope with {what} by {CONTROL_SHIFT:.0%} is left: {name}",
                f"outside by more than {BOUNDS_TOLERANCE:g}",
                outside > BOUNDS_TOLERANCE,
                predicted=0.0,
                measured=outside,
                difference=outside,
            )
        )
    return rows


@dataclass(frozen=True)
class _Pooled:
    """A quantity of every period of several runs of one setting."""

    values: list[npt.NDArray[np.float64]]

    @property
    def count(self) -> int:
        return sum(run.size for run in self.values)

    @property
    def mean(self) -> float:
        return float(np.concatenate(self.values).mean()) if self.count else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean, from the scatter of periods or of runs, whichever is larger."""
        if self.count < 2:
            return math.nan
        within = float(np.concatenate(self.values).std(ddof=1)) / math.sqrt(self.count)
        means = [float(run.mean()) for run in self.values if run.size]
        return max(within, float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0)


def _lengths(runs: Sequence[xr.Dataset]) -> _Pooled:
    """T·ηλ of every period."""
    return _Pooled([found.lengths * found.intrinsic_lr for found in map(simulate.find_periods, runs)])


def _log_peaks(runs: Sequence[xr.Dataset]) -> _Pooled:
    return _Pooled([np.log(simulate.find_periods(run).peak_norms) for run in runs])


def _replays(runs: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return [simulate.replay(run) for run in runs]


def periodic(name: str, runs: Sequence[xr.Dataset]) -> Row:
    """All runs of a setting are periodic, with enough periods for a mean, above the lower bound on T·ηλ.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> periodic("at rest", [simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=5000)]).verdict
    'FAILS'
    """
    judged = [simulate.classify(run) for run in runs]
    found = _lengths(runs)
    k = judged[0].periods.intrinsic_lr
    bound = -judged[0].periods.rise * k / math.log1p(-k)
    return Row(
        f"periodic, T·ηλ of {found.count} periods above its bound: {name}",
        f"periodic, >= {PERIODS_NEEDED} periods, measured >= predicted",
        all(j.verdict == PERIODIC for j in judged) and found.count >= PERIODS_NEEDED and found.mean >= bound,
        predicted=bound,
        simulated=_lengths(_replays(runs)).mean,
        measured=found.mean,
        error=found.error,
    )


def equal_periods(names: Sequence[str], groups: Sequence[Sequence[xr.Dataset]], *, equal: bool = True) -> Row:
    """Compare T·ηλ of two settings: symmetry says equal for equal ηλ; with `equal` False they must be seen to differ.

    Parameters
    ----------
    names, groups : of two settings, each with the runs of several seeds.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(4000) % 100 - 50) / 50)
    >>> run = xr.Dataset({"norm": ("step", wave), "grad_norm": ("step", 0 * wave)}, coords={"step": np.arange(4000)},
    ...                  attrs={"lr": 0.1, "wd": 0.1})
    >>> equal_periods(["a", "b"], [[run], [run]]).verdict
    'holds'
    """
    first, second = (_lengths(runs) for runs in groups)
    error = math.hypot(first.error, second.error)
    close = abs(second.mean - first.mean) <= STANDARD_ERRORS * error
    return Row(
        f"{'T·ηλ equal' if equal else 'control, T·ηλ differs'}: {names[0]} and {names[1]}",
        f"|difference| {'<=' if equal else '>'} {STANDARD_ERRORS:g} standard errors",
        close if equal else not close and math.isfinite(error),
        first.mean,
        _lengths(_replays(groups[1])).mean,
        second.mean,
        second.mean - first.mean,
        error,
    )


def peak_ratio(names: Sequence[str], groups: Sequence[Sequence[xr.Dataset]]) -> Row:
    """Symmetry: the geometric-mean peaks of ρ of two periodic settings with equal ηλ are in the ratio of √η.

    Examples
    --------
    >>> wave = np.exp(np.abs(np.arange(4000) % 100 - 50) / 50)
    >>> runs = [xr.Dataset({"norm": ("step", scale * wave), "grad_norm": ("step", 0 * wave)},
    ...                    coords={"step": np.arange(4000)}, attrs={"lr": scale**2, "wd": 0.01 / scale**2})
    ...         for scale in (1.0, 2.0)]
    >>> row = peak_ratio(["a", "b"], [[run] for run in runs])
    >>> row.predicted, round(row.measured, 12)
    (0.5, 0.5)
    """
    predicted = math.sqrt(float(setting_variable(groups[0][0], "lr")) / float(setting_variable(groups[1][0], "lr")))
    first, second = (_log_peaks(runs) for runs in groups)
    again = [_log_peaks(_replays(runs)) for runs in groups]
    measured = math.exp(first.mean - second.mean)
    return Row(
        f"ratio of the peaks of ρ: {names[0]} to {names[1]}",
        f"|difference| <= {PEAK_TOLERANCE:.0%}",
        abs(measured / predicted - 1) <= PEAK_TOLERANCE,
        predicted,
        math.exp(again[0].mean - again[1].mean),
        measured,
        measured / predicted - 1,
        math.hypot(first.error, second.error),
    )


def same_losses(name: str, first: xr.Dataset, second: xr.Dataset, *, control: bool = False) -> Row:
    """Symmetry: runs with equal ηλ, direction and ρ₀/√η have the same losses; with `control` they must part.

    Examples
    --------
    >>> run = xr.Dataset({"loss": ("step", [1.0, 0.5])})
    >>> same_losses("a", run, run + 1e-9).verdict
    'holds'
    """
    worst = float(np.max(np.abs(first.loss.values - second.loss.values)))
    return Row(
        f"{'control, losses part' if control else 'same losses by symmetry'}: {name}, {first.sizes['step']} steps",
        f"largest difference {'>' if control else '<='} {SYMMETRY_TOLERANCE:g}",
        worst > SYMMETRY_TOLERANCE if control else worst <= SYMMETRY_TOLERANCE,
        predicted=float(first.loss[-1]),
        measured=float(second.loss[-1]),
        difference=worst,
    )
