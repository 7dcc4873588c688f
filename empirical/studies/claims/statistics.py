"""Numbers that claims are judged by: one for each seed, from trajectories."""

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
GRADIENT = "plain_gradient"  # what a claim can be drawn by beside the variables of a trajectory

Trajectories = Mapping[str, Sequence[xr.Dataset]]
Figure = Callable[[Trajectories], list[float]]


def has_verdict(verdict: str) -> Figure:
    """1 where `simulate.classify` gives this verdict, else 0.

    Examples
    --------
    >>> rest = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> has_verdict("equilibrium")({"all": [rest]})
    [1.0]
    """
    return lambda runs: [
        math.nan if judged is None else float(judged.verdict == verdict) for judged in map(classified, runs["all"])
    ]


def swings() -> Figure:
    """1 where ln ρ jumps five times and more by a tenth, falls as much between, and spreads by more than 0.05.

    It asks for no rate of decay, which Adam does not have; the first quarter of the run is left out.

    Examples
    --------
    >>> rest = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> swings()({"all": [rest]})
    [0.0]
    """

    def figure(runs: Trajectories) -> list[float]:
        found = []
        for run in runs["all"]:
            # 2/ηλ, which is left out of other runs, says nothing of Adam's
            judged = classified(run, run.sizes["step"] // 4)
            if judged is None:
                found.append(math.nan)
                continue
            found.append(float(judged.periods.count >= 5 and judged.log_norm_sd > 0.05 and judged.rotation_ratio < 0.8))
        return found

    return figure


def period_ratio(first: str, second: str, power: float = 1.0) -> Figure:
    """Logarithm of the mean period of a first group over that of a second, seed by seed, over `power`.

    Examples
    --------
    >>> from simulate import oscillate
    >>> a, b = (oscillate(0.5, wd, steps=round(40 / wd), seed=1) for wd in (0.02, 0.01))
    >>> round(period_ratio("b", "a", math.log(2))({"a": [a], "b": [b]})[0])
    1
    """

    def figure(runs: Trajectories) -> list[float]:
        means = {
            name: [math.nan if judged is None else judged.periods.mean for judged in map(classified, runs[name])]
            for name in (first, second)
        }
        return [math.log(a / b) / power for a, b in zip(means[first], means[second], strict=True)]

    return figure


def largest_fall() -> Figure:
    """Largest fall of ln ρ from a peak, over the run.

    Examples
    --------
    >>> largest_fall()({"all": [xr.Dataset({"norm": ("step", [1.0, math.e, 1.0])})]})
    [1.0]
    """

    def figure(runs: Trajectories) -> list[float]:
        logs = [np.log(run.norm.values) for run in runs["all"]]
        return [float((np.maximum.accumulate(each) - each).max()) for each in logs]

    return figure


def has_periods() -> Figure:
    """1 where ln ρ has two periods and more, of rises and falls by a tenth, else 0.

    Examples
    --------
    >>> has_periods()({"all": [simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)]})
    [0.0]
    """
    return lambda runs: [
        math.nan if judged is None else float(judged.periods.count >= 2)
        for judged in (classified(run, 0) for run in runs["all"])
    ]


def none_of(figure: Figure) -> Figure:
    """1 where a yes-or-no figure says no.

    Examples
    --------
    >>> none_of(lambda runs: [0.0, 1.0])({})
    [1.0, 0.0]
    """
    return lambda runs: [1 - value for value in figure(runs)]


def rotation_over_formula(formula: Callable[[xr.Dataset], float]) -> Figure:
    """Root-mean-square rotation of the second half of a run over what a formula says.

    Examples
    --------
    >>> rest = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)
    >>> [round(ratio, 3) for ratio in rotation_over_formula(small_angle)({"all": [rest]})]
    [1.0]
    """

    def figure(runs: Trajectories) -> list[float]:
        return [math.sqrt(float((_late(run).rotation ** 2).mean())) / formula(_late(run)) for run in runs["all"]]

    return figure


def small_angle(run: xr.Dataset) -> float:
    """√(2ηλ/(1+μ)): the angle per step at equilibrium, of SGD with momentum μ.

    Examples
    --------
    >>> round(small_angle(xr.Dataset(attrs={"lr": 0.1, "wd": 0.05, "optimizer": "SGD(momentum=0.6)"})), 4)
    0.0791
    """
    rule = parse_optimizer(unconstrained_optimizer(run))
    momentum = rule.momentum if isinstance(rule, theory.SGD) else 0.0
    return math.sqrt(2 * float(setting_variable(run, "lr")) * float(setting_variable(run, "wd")) / (1 + momentum))


def equilibrium_angle(run: xr.Dataset) -> float:
    """Angle per step at equilibrium that `theory` gives for the optimizer of the run.

    Examples
    --------
    >>> rest = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=50)
    >>> round(equilibrium_angle(rest), 4)
    0.0447
    """
    gradient = math.sqrt(float((run.grad_norm**2).mean()))
    rule = parse_optimizer(unconstrained_optimizer(run))
    lr, wd = float(setting_variable(run, "lr")), float(setting_variable(run, "wd"))
    return float(theory.equilibrium_rotation(lr, wd, grad_norm=gradient, optimizer=rule))


def log_loss_ratio(first: str, second: str) -> Figure:
    """Logarithm of the mean loss of the second half of runs of a first group over that of a second, seed by seed.

    Examples
    --------
    >>> loss = [xr.Dataset({"loss": ("step", [9.0, 9.0, value, value])}) for value in (2.0, 1.0)]
    >>> round(log_loss_ratio("a", "b")({"a": loss[:1], "b": loss[1:]})[0], 3)
    0.693
    """

    def figure(runs: Trajectories) -> list[float]:
        means = {name: [_late_loss(run) for run in runs[name]] for name in (first, second)}
        return [math.log(a / b) for a, b in zip(means[first], means[second], strict=True)]

    return figure


def least_of(*figures: Figure) -> Figure:
    """The smallest of several figures, seed by seed.

    Examples
    --------
    >>> least_of(lambda runs: [1.0, 5.0], lambda runs: [2.0, 3.0])({})
    [1.0, 3.0]
    """
    return lambda runs: [min(values) for values in zip(*(figure(runs) for figure in figures), strict=True)]


def late_gradient_growth() -> Figure:
    """Logarithm of the gradient norm ‖∇f‖ at 90 to 95 % of the run over that at 45 to 50 %.

    Examples
    --------
    >>> run = xr.Dataset({"grad_norm": ("step", np.ones(100)), "norm": ("step", np.linspace(2, 1, 100))})
    >>> late_gradient_growth()({"all": [run]})[0] > 0
    True
    """

    def figure(runs: Trajectories) -> list[float]:
        found = []
        for run in runs["all"]:
            squares = (plain_gradient(run) ** 2).values
            late, middle = (
                squares[int(a * squares.size) : int(b * squares.size)].mean() for a, b in ((0.9, 0.95), (0.45, 0.5))
            )
            found.append(math.log(late / middle) / 2)
        return found

    return figure


def plain_gradient(run: xr.Dataset) -> xr.DataArray:
    """Gradient norm ‖∇f‖ at the weights as they are, not on the unit sphere.

    Examples
    --------
    >>> plain_gradient(xr.Dataset({"grad_norm": ("step", [3.0]), "norm": ("step", [2.0])})).item()
    1.5
    """
    gradient: xr.DataArray = run.grad_norm / run.norm
    return gradient


def angle_between_minima() -> Figure:
    """Mean angle, in degrees, between the weights at the last three successive minima of the loss, one in each period.

    Where there are no three periods: between the weights after half, three quarters and all of the steps. Runs are made
    again up to these steps; networks are kept in the folder that the attribute `folder` of the trajectory names.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.runs.loop import train
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=60))
    >>> 0 < angle_between_minima()({"all": [run.assign_attrs(folder=tempfile.mkdtemp())]})[0] < 90
    True
    """

    def figure(runs: Trajectories) -> list[float]:
        found = []
        for run in runs["all"]:
            config, steps = RunConfig.from_dict(json.loads(run.attrs["config"])), run.sizes["step"]
            if simulate.classify(run, discard=0).periods.count > _MINIMA:
                chosen = minimum_steps(run, _MINIMA)
            else:
                chosen = [steps // 2, 3 * steps // 4, steps]
            folder = Path(run.attrs["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            networks = networks_at(config, chosen, folder, progress=False)
            weights = [
                torch.cat([p.detach().double().flatten() for p in network.parameters() if p.requires_grad])
                for network in networks
            ]
            found.append(math.degrees(float(np.mean([_angle(a, b) for a, b in itertools.pairwise(weights)]))))
        return found

    return figure


def _angle(first: Tensor, second: Tensor) -> float:
    cosine = float(first @ second) / (float(first.norm()) * float(second.norm()))
    return math.acos(min(1.0, max(-1.0, cosine)))


def classified(run: xr.Dataset, discard: int | None = None) -> simulate.Classification | None:
    """What `simulate.classify` says; None of a run that ended too early for it.

    Examples
    --------
    >>> classified(simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5))
    """
    try:
        return simulate.classify(run, discard=discard)
    except ValueError:
        return None


def _late(run: xr.Dataset) -> xr.Dataset:
    return run.isel(step=slice(run.sizes["step"] // 2, None))


def _late_loss(run: xr.Dataset) -> float:
    return float(_late(run).loss.mean())
