"""Statistics that decide claims: one number per seed, computed from trajectories."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import simulate
import theory
from empirical.config import RunConfig
from empirical.measures.minima import minimum_steps
from empirical.runs.snapshots import networks_at
from simulate.trajectories.contract import setting_variable, unconstrained_optimizer
from theory.optimizers import parse_optimizer

_MINIMA = 3
PLAIN_GRADIENT = "plain_gradient"  # a curve that can be drawn besides the variables of a trajectory

Trajectories = Mapping[str, Sequence[xr.Dataset]]
Statistic = Callable[[Trajectories], list[float]]


def verdict_indicator(verdict: str) -> Statistic:
    """Indicator of a verdict of `simulate.classify`: 1 for this verdict, 0 for another, NaN for a run too short.

    Examples
    --------
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> verdict_indicator("equilibrium")({"all": [settled]})
    [1.0]
    """
    return lambda runs: [
        math.nan if classification is None else float(classification.verdict == verdict)
        for classification in map(classify_or_none, runs["all"])
    ]


def oscillation_indicator() -> Statistic:
    """Indicator of an oscillating norm: 1 or 0, NaN for a run too short.

    It is 1 for at least five periods (ln ρ rises by 0.1 and falls again), a spread of ln ρ above 0.05, and a rotation
    below 0.8 of equilibrium. The first quarter of the run is left out. The decay of the optimizer plays no role.

    Examples
    --------
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> oscillation_indicator()({"all": [settled]})
    [0.0]
    """

    def statistic(runs: Trajectories) -> list[float]:
        indicators = []
        for run in runs["all"]:
            # the usual transient, 2/ηλ, is not the time scale of Adam
            result = classify_or_none(run, run.sizes["step"] // 4)
            if result is None:
                indicators.append(math.nan)
                continue
            indicators.append(
                float(result.periods.count >= 5 and result.log_norm_sd > 0.05 and result.rotation_ratio < 0.8)
            )
        return indicators

    return statistic


def log_period_ratio(first: str, second: str, power: float = 1.0) -> Statistic:
    """ln(T₁/T₂)/power, where T₁ and T₂ are the mean periods of two runs: one of each group, paired by seed.

    Examples
    --------
    >>> from simulate import oscillate
    >>> a, b = (oscillate(0.5, wd, steps=round(40 / wd), seed=1) for wd in (0.02, 0.01))
    >>> round(log_period_ratio("b", "a", math.log(2))({"a": [a], "b": [b]})[0])
    1
    """

    def statistic(runs: Trajectories) -> list[float]:
        means = {
            name: [math.nan if result is None else result.periods.mean for result in map(classify_or_none, runs[name])]
            for name in (first, second)
        }
        return [math.log(a / b) / power for a, b in zip(means[first], means[second], strict=True)]

    return statistic


def largest_norm_decrease() -> Statistic:
    """Largest decrease of ln ρ from an earlier maximum.

    Examples
    --------
    >>> largest_norm_decrease()({"all": [xr.Dataset({"norm": ("step", [1.0, math.e, 1.0])})]})
    [1.0]
    """

    def statistic(runs: Trajectories) -> list[float]:
        log_norms = [np.log(run.norm.values) for run in runs["all"]]
        return [float((np.maximum.accumulate(log_norm) - log_norm).max()) for log_norm in log_norms]

    return statistic


def periods_indicator() -> Statistic:
    """Indicator of periods: 1 for at least two periods (ln ρ rises by 0.1 and falls again), 0 for fewer.

    Examples
    --------
    >>> periods_indicator()({"all": [simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)]})
    [0.0]
    """
    return lambda runs: [
        math.nan if classification is None else float(classification.periods.count >= 2)
        for classification in (classify_or_none(run, 0) for run in runs["all"])
    ]


def negation(indicator: Statistic) -> Statistic:
    """Return 1 minus an indicator.

    Examples
    --------
    >>> negation(lambda runs: [0.0, 1.0])({})
    [1.0, 0.0]
    """
    return lambda runs: [1 - value for value in indicator(runs)]


def rotation_over_formula(formula: Callable[[xr.Dataset], float]) -> Statistic:
    """Root-mean-square rotation in the second half of a run, over the value of a formula.

    Examples
    --------
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> [round(ratio, 3) for ratio in rotation_over_formula(sgd_equilibrium_angle)({"all": [settled]})]
    [1.0]
    """

    def statistic(runs: Trajectories) -> list[float]:
        return [
            math.sqrt(float((_second_half(run).rotation ** 2).mean())) / formula(_second_half(run))
            for run in runs["all"]
        ]

    return statistic


def sgd_equilibrium_angle(run: xr.Dataset) -> float:
    """√(2ηλ/(1+μ)), the angle per step at equilibrium of SGD with momentum μ, for small ηλ.

    Examples
    --------
    >>> round(sgd_equilibrium_angle(xr.Dataset(attrs={"lr": 0.1, "wd": 0.05, "optimizer": "SGD(momentum=0.6)"})), 4)
    0.0791
    """
    rule = parse_optimizer(unconstrained_optimizer(run))
    momentum = rule.momentum if isinstance(rule, theory.SGD) else 0.0
    return math.sqrt(2 * float(setting_variable(run, "lr")) * float(setting_variable(run, "wd")) / (1 + momentum))


def equilibrium_angle(run: xr.Dataset) -> float:
    """Angle per step at equilibrium by `theory.equilibrium_rotation`, for the optimizer of a run.

    Examples
    --------
    >>> settled = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=50)
    >>> round(equilibrium_angle(settled), 4)
    0.0447
    """
    gradient = math.sqrt(float((run.grad_norm**2).mean()))
    rule = parse_optimizer(unconstrained_optimizer(run))
    lr, wd = float(setting_variable(run, "lr")), float(setting_variable(run, "wd"))
    return float(theory.equilibrium_rotation(lr, wd, grad_norm=gradient, optimizer=rule))


def log_loss_ratio(first: str, second: str) -> Statistic:
    """ln(L₁/L₂), where L₁ and L₂ are the mean losses in the second halves of two runs, paired by seed.

    Examples
    --------
    >>> runs = [xr.Dataset({"loss": ("step", [9.0, 9.0, value, value])}) for value in (2.0, 1.0)]
    >>> round(log_loss_ratio("a", "b")({"a": runs[:1], "b": runs[1:]})[0], 3)
    0.693
    """

    def statistic(runs: Trajectories) -> list[float]:
        means = {name: [_late_loss(run) for run in runs[name]] for name in (first, second)}
        return [math.log(a / b) for a, b in zip(means[first], means[second], strict=True)]

    return statistic


def smallest_of(*statistics: Statistic) -> Statistic:
    """Smallest of several statistics, for each seed.

    Examples
    --------
    >>> smallest_of(lambda runs: [1.0, 5.0], lambda runs: [2.0, 3.0])({})
    [1.0, 3.0]
    """
    return lambda runs: [min(values) for values in zip(*(statistic(runs) for statistic in statistics), strict=True)]


def late_gradient_growth() -> Statistic:
    """ln(g₂/g₁), where g₁ and g₂ are the root-mean-square ‖∇f‖ at 45 to 50 % and at 90 to 95 % of a run.

    Examples
    --------
    >>> run = xr.Dataset({"grad_norm": ("step", np.ones(100)), "norm": ("step", np.linspace(2, 1, 100))})
    >>> late_gradient_growth()({"all": [run]})[0] > 0
    True
    """

    def statistic(runs: Trajectories) -> list[float]:
        growths = []
        for run in runs["all"]:
            squares = (plain_grad_norm(run) ** 2).values
            late, middle = (
                squares[int(a * squares.size) : int(b * squares.size)].mean() for a, b in ((0.9, 0.95), (0.45, 0.5))
            )
            growths.append(math.log(late / middle) / 2)
        return growths

    return statistic


def plain_grad_norm(run: xr.Dataset) -> xr.DataArray:
    """Gradient norm ‖∇f‖ = g̃/ρ at the current weights, not scaled to the unit sphere.

    Examples
    --------
    >>> plain_grad_norm(xr.Dataset({"grad_norm": ("step", [3.0]), "norm": ("step", [2.0])})).item()
    1.5
    """
    gradient: xr.DataArray = run.grad_norm / run.norm
    return gradient


def angle_between_minima() -> Statistic:
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

    def statistic(runs: Trajectories) -> list[float]:
        angles = []
        for run in runs["all"]:
            config, steps = RunConfig.from_dict(json.loads(run.attrs["config"])), run.sizes["step"]
            if simulate.classify(run, discard=0).periods.count > _MINIMA:
                steps_to_compare = minimum_steps(run, _MINIMA)
            else:
                steps_to_compare = [steps // 2, 3 * steps // 4, steps]
            folder = Path(run.attrs["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            networks = networks_at(config, steps_to_compare, folder, progress=False)
            weights = [
                torch.cat([p.detach().double().flatten() for p in network.parameters() if p.requires_grad])
                for network in networks
            ]
            angles.append(math.degrees(float(np.mean([_angle(a, b) for a, b in itertools.pairwise(weights)]))))
        return angles

    return statistic


def _angle(first: Tensor, second: Tensor) -> float:
    cosine = float(first @ second) / (float(first.norm()) * float(second.norm()))
    return math.acos(min(1.0, max(-1.0, cosine)))


def classify_or_none(run: xr.Dataset, discard: int | None = None) -> simulate.Classification | None:
    """Classification by `simulate.classify`, or None for a run that is too short.

    Examples
    --------
    >>> classify_or_none(simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5))
    """
    try:
        return simulate.classify(run, discard=discard)
    except ValueError:
        return None


def _second_half(run: xr.Dataset) -> xr.Dataset:
    return run.isel(step=slice(run.sizes["step"] // 2, None))


def _late_loss(run: xr.Dataset) -> float:
    return float(_second_half(run).loss.mean())
