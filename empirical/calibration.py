"""Train calibration runs of a network, and fit a period model to them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import xarray as xr
from torch import nn

import simulate
from empirical.config import CUSTOM, RunConfig
from empirical.runs.folder import temporary_folder
from empirical.runs.loop import train
from empirical.runs.preparation import mark_own, prepare
from empirical.sweeps.grid import grid
from empirical.sweeps.sweep import AnyExecutor, sweep
from empirical.sweeps.task import SweepOptions, extended_steps, run_path, summarize
from simulate.period_model.calibration import MIN_RELAXATIONS
from simulate.period_model.model import REACH
from simulate.period_model.summaries import MIN_PERIODS
from simulate.trajectories.contract import COMPLETE
from simulate.trajectories.setting import Setting
from simulate.trajectories.verdicts import EQUILIBRIUM, PERIODIC
from theory.arguments import check_integer, check_number, check_path, quote
from theory.references import is_reference

# first length of a run in units of 1/ηλ: the transient, and a typical period
_TRANSIENT, _TYPICAL_PERIOD = 2.0, 0.8
_PERIODS = 100  # at each ηλ
_MAX_EXTENSION = 8.0  # factor by which a run without enough periods may become longer
_MAX_FURTHER_SETTINGS = 3
_WIDE_GAP = math.e  # ratio of two ηλ between which norm rises of two kinds are far apart
_ROUNDING = 1 + 1e-9


def calibrate(
    model: str | nn.Module,
    inputs: Any = None,
    targets: Any = None,
    *,
    lr: float = 0.5,
    intrinsic_lr: float = 0.01,
    ratio: float = 5.0,
    reach: float = REACH,
    periods: int | None = None,
    until: float | None = None,
    seeds: int = 2,
    rise: float = 0.1,
    out: str | os.PathLike[str] | None = None,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> simulate.PeriodModel:
    """Train calibration runs of a network, and fit a period model to them.

    The network is trained at `intrinsic_lr` and `intrinsic_lr / ratio` until there are enough periods, or until their
    mean is known well enough. Up to three further settings follow where they are most informative. One is in the middle
    of a wide gap in which the norm rises change their kind (`simulate.PeriodModel.law`). Another is
    `intrinsic_lr / reach`. It is used if the network is at equilibrium at the largest ηλ, or not clearly periodic at
    the smallest one. It is also used if only one setting has the last kind of norm rises.

    The call starts processes. In a script, put it under ``if __name__ == "__main__":``.

    Parameters
    ----------
    model : a name ("mlp", "convnet", …) or your own module, as in `RunConfig` and `train`.
    inputs, targets : arrays for your own module, or to replace `dataset` for a named one.
    lr : learning rate η of all runs.
    intrinsic_lr : largest ηλ, 0 < ηλ < 1: take the largest you want to predict.
    ratio : largest over second ηλ, > 1.
    reach : largest over the smallest ηλ that may be needed, > `ratio`.
    periods : number of periods at each ηλ, over all seeds; at least 10 for each seed. Default: 100, or 10 for each seed
        with `until`.
    until : relative standard error of the mean period at each ηλ, over all seeds, at which training stops. With
        the usual spread of periods 0.05 needs 25 to 70 periods.
    seeds : number of runs at each ηλ. With a single seed, an untypical run biases the model. Runs of your own module
        share its initial weights and differ only in the order of the data.
    rise : threshold d of the period finder.
    out : folder of the runs, which a later call reuses. With None they are deleted, also after an interruption.
    executor : executor of the runs, as in `sweep`.
    progress : whether to show a progress bar; by default only in a terminal.
    settings : further fields of `RunConfig`, such as `width`, `batch_size`, `dataset`.

    Returns
    -------
    PeriodModel: `model.predict(lr, wd)` predicts the behaviour, the period with its interval, and the norms. For a
    network without periods the numbers about periods are NaN.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or a run diverges or collapses. The message says at which ηλ.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> import concurrent.futures
    >>> with concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     period_model = calibrate("mlp", width=64, batch_size=64, periods=20, executor=executor)
    >>> 200 < period_model.predict(0.5, 0.004).period < 300
    True
    """
    if (inputs is None) != (targets is None):
        raise ValueError(f"inputs and targets must be given together, got {quote(inputs)} and {quote(targets)}")
    check_number("lr", lr, above=0)
    check_number("intrinsic_lr", intrinsic_lr, above=0, below=1)
    check_number("ratio", ratio, above=1)
    check_number("reach", reach, above=ratio)
    check_integer("seeds", seeds, at_least=1)
    if until is not None:
        # each run has a share of the periods
        until = check_number("until", until, above=0) * math.sqrt(seeds)
    least = MIN_PERIODS * seeds
    if periods is None:
        periods = _PERIODS if until is None else least
    check_integer("periods", periods, at_least=least)
    check_number("rise", rise, above=0)
    if settings.get("fixed") is not None:
        raise ValueError(
            f"fixed must be None, since such runs have another law of the norm, got {quote(settings['fixed'])}"
        )
    module = None if isinstance(model, str) else model
    own_data = None if inputs is None and targets is None else (inputs, targets)
    periods_per_seed = math.ceil(periods / seeds)

    def configs_at(value: float) -> tuple[RunConfig, ...]:
        configs = grid(
            model=model if isinstance(model, str) else CUSTOM,
            lr=lr,
            wd=value / lr,
            seed=range(seeds),
            steps=math.ceil(max(_TRANSIENT + _TYPICAL_PERIOD * periods_per_seed, MIN_RELAXATIONS) / value),
            **settings,
        )
        return tuple(mark_own(config, module, own_data) for config in configs)

    if isinstance(model, str) and is_reference(model):
        # errors of a function of the user's own come before the processes start
        prepare(configs_at(intrinsic_lr)[0], None, own_data)
    first_configs = [config for value in (intrinsic_lr, intrinsic_lr / ratio) for config in configs_at(value)]
    longest = periods_per_seed if until is None else max(periods_per_seed, math.ceil(_PERIODS / seeds))
    limit = _TRANSIENT + _TYPICAL_PERIOD * _MAX_EXTENSION * longest
    with ExitStack() as cleanup:
        if out is None:
            out = cleanup.enter_context(temporary_folder())
        folder = check_path("out", out)

        def train_runs(configs: Sequence[RunConfig]) -> list[xr.Dataset]:
            max_steps = math.ceil(limit / (configs[-1].wd * lr))
            # in parallel; the loop below completes what is missing or failed
            sweep(
                configs,
                folder,
                executor,
                model=module,
                data=own_data,
                until=until,
                periods=periods_per_seed,
                max_steps=max_steps,
                progress=progress,
            )
            options = SweepOptions(out=folder, until=until, periods=periods_per_seed, max_steps=max_steps)
            runs = [_train_until_enough_periods(config, options, module, own_data, progress) for config in configs]
            for run in runs:
                _check_complete(run)
            return runs

        runs = train_runs(first_configs)
        model_so_far = simulate.PeriodModel.from_runs(runs, rise=rise)
        for _ in range(_MAX_FURTHER_SETTINGS):
            value = _next_setting(model_so_far, intrinsic_lr / reach)
            if value is None:
                break
            runs += train_runs(configs_at(value))
            model_so_far = simulate.PeriodModel.from_runs(runs, rise=rise)
        return model_so_far


def _next_setting(model: simulate.PeriodModel, lowest: float) -> float | None:
    """ηλ of the most informative setting after those so far; None if they are enough."""
    calibrated = sorted({run.intrinsic_lr for run in model.calibration_runs})
    kinds = model.law.kinds if model.has_law else []
    for above, below in itertools.pairwise(kinds):
        largest, smallest = above[-1].intrinsic_lr, below[0].intrinsic_lr
        if largest / smallest > _WIDE_GAP:
            return math.sqrt(largest * smallest)
    largest_runs, smallest_runs = (
        {run.verdict for run in model.calibration_runs if run.intrinsic_lr == value}
        for value in (calibrated[-1], calibrated[0])
    )
    is_unclear = EQUILIBRIUM in largest_runs or smallest_runs != {PERIODIC} or (len(kinds) > 1 and len(kinds[-1]) == 1)
    return lowest if is_unclear and lowest < calibrated[0] / _ROUNDING else None


def _train_until_enough_periods(
    config: RunConfig, options: SweepOptions, model: nn.Module | None, data: Any, progress: bool | None
) -> xr.Dataset:
    """Train or continue a run in this process until it has the wanted number of periods."""
    first_steps, folder = config.steps, run_path(options.out, config)
    while True:
        run = train(config, folder, model, data, progress=progress)
        steps = extended_steps(summarize(config, run), options, first_steps)
        if steps is None:
            return run
        config = dataclasses.replace(config, steps=steps)


def _check_complete(run: xr.Dataset) -> None:
    if run.status.item() != COMPLETE:
        intrinsic_lr, seed = Setting.of(run).intrinsic_lr, json.loads(run.attrs["config"])["seed"]
        raise ValueError(
            f"model must train to the end, but at lr * wd = {intrinsic_lr:.3g}, seed {seed}, its status is "
            f"{run.status.item()!r}; change lr or intrinsic_lr"
        )
