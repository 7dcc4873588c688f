"""Statistics of studies, computed from trajectories by group: one number per seed, or a comparison with predictions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

import simulate
import theory
from empirical.config import RunConfig
from empirical.measures.minima import minimum_steps
from empirical.runs.snapshots import networks_at
from empirical.studies.study import Numbers, Trajectories
from simulate.trajectories.periods import after_transient
from simulate.trajectories.setting import Setting
from simulate.trajectories.statistics import power_mean
from simulate.trajectories.verdicts import PERIODIC, TRANSIENT, UNDETERMINED

_MINIMA = 3
PERIODS_NEEDED = 60
PLAIN_GRADIENT = "plain_gradient"  # a curve that can be drawn besides the variables of a trajectory

SeedStatistic = Callable[[Trajectories], list[float]]


def _of_each(number: Callable[[xr.Dataset], float]) -> SeedStatistic:
    """Statistic that is a number of each run of the group "all"."""
    return lambda runs: [number(run) for run in runs["all"]]


def _indicator(
    condition: Callable[[simulate.Classification], float],
    discard: Callable[[xr.Dataset], int | None] = lambda run: None,
) -> SeedStatistic:
    """Indicator of a condition on `simulate.classify`: 1 or 0, NaN for a run too short."""

    def number(run: xr.Dataset) -> float:
        classification = classify_or_none(run, discard(run))
        return math.nan if classification is None else float(condition(classification))

    return _of_each(number)


def classify_or_none(run: xr.Dataset, discard: int | None = None) -> simulate.Classification | None:
    """Classification by `simulate.classify`, or None for a run that is too short."""
    try:
        classification = simulate.classify(run, discard=discard)
    except ValueError:
        return None
    return None if classification.verdict == TRANSIENT else classification


def verdict_indicator(verdict: str) -> SeedStatistic:
    """Indicator of a verdict of `simulate.classify`; NaN also for a run whose verdict is undetermined."""

    def condition(classification: simulate.Classification) -> float:
        # without a test for feedback, a run may be periodic, but is not at equilibrium
        if classification.verdict == UNDETERMINED and (verdict == PERIODIC or classification.obstacle):
            return math.nan
        return classification.verdict == verdict

    return _indicator(condition)


def oscillation_indicator() -> SeedStatistic:
    """Indicator of an oscillating norm.

    It is 1 for at least five periods (ln ρ rises by 0.1 and falls again), a spread of ln ρ above 0.05, and a rotation
    below 0.8 of equilibrium. The first quarter of the run is left out. The decay of the optimizer plays no role.
    """
    return _indicator(
        lambda result: result.periods.count >= 5 and result.log_norm_sd > 0.05 and result.rotation_ratio < 0.8,
        # the usual transient, 2/ηλ, is not the time scale of Adam
        discard=lambda run: run.sizes["step"] // 4,
    )


def periods_indicator() -> SeedStatistic:
    """Indicator of at least two periods (ln ρ rises by 0.1 and falls again)."""
    return _indicator(lambda classification: classification.periods.count >= 2, discard=lambda run: 0)


def negation(indicator: SeedStatistic) -> SeedStatistic:
    """Return 1 minus an indicator."""
    return lambda runs: [1 - value for value in indicator(runs)]


def _log_ratio(number: Callable[[xr.Dataset], float], first: str, second: str, power: float = 1.0) -> SeedStatistic:
    """ln(a/b)/power of a number of two runs, one of each group, paired by seed."""
    return lambda runs: [
        math.log(number(a) / number(b)) / power for a, b in zip(runs[first], runs[second], strict=True)
    ]


def log_period_ratio(first: str, second: str, power: float = 1.0) -> SeedStatistic:
    """ln(T₁/T₂)/power, where T₁ and T₂ are the mean periods of two runs: one of each group, paired by seed."""

    def mean_period(run: xr.Dataset) -> float:
        classification = classify_or_none(run)
        return math.nan if classification is None else classification.periods.mean

    return _log_ratio(mean_period, first, second, power)


def log_loss_ratio(first: str, second: str) -> SeedStatistic:
    """ln(L₁/L₂), where L₁ and L₂ are the mean losses in the second halves of two runs, paired by seed."""
    return _log_ratio(lambda run: float(_second_half(run).loss.mean()), first, second)


def smallest_of(*statistics: SeedStatistic) -> SeedStatistic:
    """Smallest of several statistics, for each seed."""
    return lambda runs: [min(values) for values in zip(*(statistic(runs) for statistic in statistics), strict=True)]


def largest_norm_decrease() -> SeedStatistic:
    """Largest decrease of ln ρ from an earlier maximum."""

    def decrease(run: xr.Dataset) -> float:
        log_norm = np.log(run.norm.values)
        return float((np.maximum.accumulate(log_norm) - log_norm).max())

    return _of_each(decrease)


def rotation_over_formula(formula: Callable[[xr.Dataset], float]) -> SeedStatistic:
    """Root-mean-square rotation in the second half of a run, over the value of a formula."""
    return _of_each(lambda run: math.sqrt(float((_second_half(run).rotation ** 2).mean())) / formula(_second_half(run)))


def sgd_equilibrium_angle(run: xr.Dataset) -> float:
    """√(2ηλ/(1+μ)), the angle per step at equilibrium of SGD with momentum μ, for small ηλ.

    Examples
    --------
    >>> round(sgd_equilibrium_angle(xr.Dataset(attrs={"lr": 0.1, "wd": 0.05, "optimizer": "SGD(momentum=0.6)"})), 4)
    0.0791
    """
    setting = Setting.of(run)
    momentum = getattr(setting.law(), "momentum", 0.0)
    return math.sqrt(2 * setting.intrinsic_lr / (1 + momentum))


def equilibrium_angle(run: xr.Dataset) -> float:
    """Angle per step at equilibrium by `theory.equilibrium_rotation`, for the optimizer of a run.

    Examples
    --------
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=50)
    >>> round(equilibrium_angle(settled), 4)
    0.0447
    """
    gradient, setting = math.sqrt(float((run.grad_norm**2).mean())), Setting.of(run)
    return float(theory.equilibrium_rotation(*setting.constants(), grad_norm=gradient, optimizer=setting.law()))


def ideal_gas_indicator(tolerance: float) -> SeedStatistic:
    """Whether 2λ⟨ρ²⟩² is within a relative tolerance of η⟨g̃²⟩ after the transient: 1 or 0."""

    def is_near(run: xr.Dataset) -> float:
        (lr, wd), late = Setting.of(run).constants(), after_transient(run)
        ratio = float(2 * wd * (late.norm**2).mean() ** 2 / (lr * (late.grad_norm**2).mean()))
        return float(abs(ratio - 1) < tolerance)

    return _of_each(is_near)


def late_gradient_growth() -> SeedStatistic:
    """ln(g₂/g₁), where g₁ and g₂ are the root-mean-square ‖∇f‖ at 45 to 50 % and at 90 to 95 % of a run."""

    def growth(run: xr.Dataset) -> float:
        squares = (plain_grad_norm(run) ** 2).values
        late, middle = (
            squares[int(a * squares.size) : int(b * squares.size)].mean() for a, b in ((0.9, 0.95), (0.45, 0.5))
        )
        return math.log(late / middle) / 2

    return _of_each(growth)


def plain_grad_norm(run: xr.Dataset) -> xr.DataArray:
    """Gradient norm ‖∇f‖ = g̃/ρ at the current weights, not scaled to the unit sphere."""
    gradient: xr.DataArray = run.grad_norm / run.norm
    return gradient


def angle_between_minima() -> SeedStatistic:
    """Mean angle in degrees between the weights at the last three minima of the loss, one per period.

    A run with at most three periods is compared at half, three quarters and all of its steps. Runs are repeated up to
    these steps. Networks are kept in the folder that the attribute `folder` of a trajectory names.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.runs.loop import train
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=60))
    >>> 0 < angle_between_minima()({"all": [run.assign_attrs(folder=tempfile.mkdtemp())]})[0] < 90
    True
    """

    def mean_angle(run: xr.Dataset) -> float:
        config, steps = RunConfig.from_dict(json.loads(run.attrs["config"])), run.sizes["step"]
        if simulate.classify(run, discard=0).periods.count > _MINIMA:
            steps_to_compare = minimum_steps(run, _MINIMA)
        else:
            steps_to_compare = [steps // 2, 3 * steps // 4, steps]
        folder = Path(run.attrs["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        weights = [
            torch.cat([p.detach().double().flatten() for p in network.parameters() if p.requires_grad])
            for network in networks_at(config, steps_to_compare, folder, progress=False)
        ]
        return math.degrees(float(np.mean([_angle(a, b) for a, b in itertools.pairwise(weights)])))

    return _of_each(mean_angle)


def _angle(first: Tensor, second: Tensor) -> float:
    cosine = float(first @ second) / (float(first.norm()) * float(second.norm()))
    return math.acos(min(1.0, max(-1.0, cosine)))


def _second_half(run: xr.Dataset) -> xr.Dataset:
    return run.isel(step=slice(run.sizes["step"] // 2, None))


def equilibrium_norm_numbers(runs: Trajectories) -> Numbers:
    """Relative difference of the norm from the equilibrium predicted from the gradients of the group "other".

    The norm alone also fits periodic runs (docs/mathematics.md §2), so rotation and spread are compared too.
    """
    (run,), (other,) = runs["run"], runs["other"]
    gradient, gradient_error = power_mean(after_transient(other).grad_norm.values, 2)
    predicted = theory.equilibrium_norm(*Setting.of(run).constants(), gradient)
    measured, measured_error = power_mean(after_transient(run).norm.values, 4)
    return Numbers(
        values=[abs(measured / predicted - 1)],
        predicted=predicted,
        simulated=power_mean(_driven(runs).norm.values, 4)[0],
        measured=measured,
        difference=measured / predicted - 1,
        # ρ* is proportional to the square root of the gradient norm
        error=math.hypot(measured_error / measured, gradient_error / gradient / 2),
    )


def equilibrium_rotation_numbers(runs: Trajectories) -> Numbers:
    """Median rotation over its value at equilibrium."""
    (run,) = runs["run"]
    ratio = simulate.classify(run).rotation_ratio
    angle = theory.equilibrium_rotation(*Setting.of(run).constants())
    return Numbers(
        values=[ratio],
        predicted=angle,
        simulated=float(np.median(_driven(runs).rotation.values)) if "other" in runs else math.nan,
        measured=ratio * angle,
        difference=ratio - 1,
    )


def log_norm_spread(runs: Trajectories) -> Numbers:
    """Standard deviation of ln ρ."""
    spread = simulate.classify(runs["run"][0]).log_norm_sd
    simulated = float(np.log(_driven(runs).norm.values).std()) if "other" in runs else math.nan
    return Numbers(values=[spread], simulated=simulated, measured=spread)


def _driven(runs: Trajectories) -> xr.Dataset:
    """Simulation from the first norm of a run with the gradient norms of another, after its transient."""
    (run,), (other,) = runs["run"], runs["other"]
    gradient = simulate.RecordedGradient(other.grad_norm.values)
    norm, steps = float(run.norm[0]), other.sizes["step"]
    return after_transient(simulate.norm_map(*Setting.of(run).constants(), gradient, norm=norm, steps=steps, seed=0))


def replay_deviation(run: xr.Dataset) -> npt.NDArray[np.float64]:
    """Relative deviation of the replayed norm from the measured norm, at every step."""
    return np.asarray(np.abs(simulate.replay(run).norm.values / run.norm.values - 1))


def largest_replay_deviation(runs: Trajectories) -> Numbers:
    """Largest deviation of the norm from its replay by the measured gradient norms, over the whole run."""
    (run,) = runs["run"]
    worst = float(np.max(replay_deviation(run)))
    return Numbers(
        values=[worst],
        simulated=float(simulate.replay(run).norm[-1]),
        measured=float(run.norm[-1]),
        difference=worst,
    )


def distance_from_envelope(
    runs: Trajectories, *, raise_low: float = 0.0, lower_high: float = 0.0, show_width: bool = True
) -> Numbers:
    """Largest relative distance of the norm from envelopes that start at every step and last 1/ηλ steps.

    Each envelope uses the smallest and largest g̃ of its window, ℓ and L, which controls raise and lower by a share of
    it. The distance is 0 if the norm stays inside. `show_width` adds the median relative width to the claim.
    """
    (run,) = runs["run"]
    lr, wd = Setting.of(run).constants()
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
    width = float(np.median(np.concatenate(widths)[:, 1:]))
    return Numbers(
        values=[outside],
        predicted=0.0,
        measured=outside,
        difference=outside,
        note=f"median width {width:.1%}" if show_width else "",
    )


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


def in_random_order(statistic: Callable[[Trajectories], Numbers]) -> Callable[[Trajectories], Numbers]:
    """Statistic of the same runs without feedback: their gradient norms, in random order, drive the norm."""

    def number(runs: Trajectories) -> Numbers:
        return statistic({name: [shuffle_gradients(run) for run in group] for name, group in runs.items()})

    return number


def shuffle_gradients(run: xr.Dataset, block: int = 1) -> xr.Dataset:
    """Simulate the norm of a run of plain SGD with its gradient norms after the transient, in random order.

    `block` is the number of successive gradient norms that stay together.
    """
    grad_norm, steps = after_transient(run).grad_norm.values, run.sizes["step"]
    blocks = grad_norm[: grad_norm.size // block * block].reshape(-1, block)
    gradient = simulate.RecordedGradient(np.resize(np.random.default_rng(0).permutation(blocks), steps))
    return simulate.norm_map(*Setting.of(run).constants(), gradient, norm=float(run.norm[0]), steps=steps)


def _are_periodic(*groups: Sequence[xr.Dataset]) -> bool:
    """Whether most runs of each group are periodic.

    One irregular run of three is no failure: a run of a periodic network is called irregular by chance, depending on
    the seed and on the rounding of the processor.
    """
    return all(sum(simulate.classify(run).verdict == PERIODIC for run in runs) > len(runs) / 2 for runs in groups)


def period_over_bound(runs: Trajectories) -> Numbers:
    """Mean T·ηλ of all runs over its lower bound (docs/mathematics.md §5).

    It is 0 unless most runs are periodic, and NaN for fewer than 60 periods.
    """
    lengths, periods = _lengths(runs["all"]), simulate.find_periods(runs["all"][0])
    bound = -periods.rise * periods.intrinsic_lr / math.log1p(-periods.intrinsic_lr)
    ratio = lengths.mean / bound if lengths.count >= PERIODS_NEEDED else math.nan
    return Numbers(
        values=[ratio if _are_periodic(runs["all"]) else 0.0],
        predicted=bound,
        simulated=_lengths(_replays(runs["all"])).mean,
        measured=lengths.mean,
        error=lengths.error,
        note=f"{lengths.count} periods",
    )


def period_difference(runs: Trajectories, *, of_any_runs: bool = False) -> Numbers:
    """Difference of the mean T·ηλ of two groups in standard errors. By symmetry it is 0 for equal ηλ.

    It is infinite unless most runs of each group are periodic, or `of_any_runs` is true: the time between the rises of
    any noise has this symmetry, too.
    """
    groups = list(runs.values())
    first, second = (_lengths(group) for group in groups)
    error, difference = math.hypot(first.error, second.error), second.mean - first.mean
    distance = abs(difference) / error if error or math.isnan(difference) else math.inf if difference else 0.0
    return Numbers(
        values=[distance if of_any_runs or _are_periodic(*groups) else math.inf],
        predicted=first.mean,
        simulated=_lengths(_replays(groups[1])).mean,
        measured=second.mean,
        difference=difference,
        error=error,
    )


def peak_ratio(runs: Trajectories) -> Numbers:
    """Ratio of the geometric-mean peaks of ρ of two groups with equal ηλ. By symmetry it is that of √η.

    Its deviation is infinite unless most runs of each group are periodic, as in `period_difference`.
    """
    groups = list(runs.values())
    predicted = math.sqrt(float(Setting.of(groups[0][0]).lr / Setting.of(groups[1][0]).lr))
    first, second = (_log_peaks(group) for group in groups)
    replayed = [_log_peaks(_replays(group)) for group in groups]
    measured = math.exp(first.mean - second.mean)
    return Numbers(
        values=[abs(measured / predicted - 1) if _are_periodic(*groups) else math.inf],
        predicted=predicted,
        simulated=math.exp(replayed[0].mean - replayed[1].mean),
        measured=measured,
        difference=measured / predicted - 1,
        error=math.hypot(first.error, second.error),
    )


def largest_loss_difference(runs: Trajectories) -> Numbers:
    """Largest difference of the losses of two runs with equal ηλ, initial direction and ρ₀/√η. By symmetry it is 0."""
    (first,), (second,) = runs.values()
    worst = float(np.max(np.abs(first.loss.values - second.loss.values)))
    return Numbers(values=[worst], predicted=float(first.loss[-1]), measured=float(second.loss[-1]), difference=worst)
