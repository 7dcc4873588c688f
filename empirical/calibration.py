"""The probe of a network: short runs at two or three values of ηλ, from which its norm at others follows."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xarray as xr
from torch import nn

import simulate
from empirical.config import CUSTOM, RunConfig
from empirical.runs.loop import train
from empirical.sweeps.grid import grid
from empirical.sweeps.sweep import AnyExecutor, sweep
from empirical.sweeps.task import Terms, extended, run_path, summed_up
from simulate.period_model.calibration import MIN_RELAXATIONS
from simulate.period_model.model import REACH
from simulate.trajectories.contract import COMPLETE
from simulate.trajectories.periods import EQUILIBRIUM, PERIODIC
from theory.arguments import check_integer, check_number

# First lengths, in units of 1/ηλ: what is left out, and of each wanted period about as much as networks need.
_SETTLING, _OF_A_PERIOD = 2.0, 0.8
_LONGEST = 8.0


def calibrate(
    model: str | nn.Module,
    inputs: Any = None,
    targets: Any = None,
    *,
    lr: float = 0.5,
    intrinsic_lr: float = 0.01,
    ratio: float = 5.0,
    reach: float = REACH,
    periods: int = 100,
    seeds: int = 2,
    rise: float = 0.1,
    out: str | os.PathLike[str] | None = None,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> simulate.PeriodModel:
    """Train a network at two values of ηλ until enough of its periods were seen, and calibrate a period model on them.

    A network that rests at the upper of them, or has no clear periods at the lower, is trained at a third, the lowest
    that is asked for later: what rests there rests in between, and what swings there shows how.

    In a script the call belongs under ``if __name__ == "__main__":``, since processes are started.

    Parameters
    ----------
    model : a name ("mlp", "convnet", …) or a module of your own, as in `RunConfig` and `train`.
    inputs, targets : arrays, for a module of your own, or instead of `dataset` with one of its names.
    lr : η of all runs.
    intrinsic_lr : ηλ of the upper segment, the largest that is asked for later, 0 < ηλ < 1.
    ratio : upper over lower ηλ, above 1.
    reach : upper ηλ over that of the third segment, above `ratio`.
    periods : wanted in each segment, of all seeds together, at least 10 of each seed.
    seeds : runs in each segment; with one, a seed that is unlike others misleads. Those of a module of your own begin
        with its weights, and differ in the order of the data alone.
    rise : d of the period finder.
    out : folder of the runs, which are used again; None keeps none.
    executor : of the runs, as in `sweep`; runs with a module or arrays of your own are made here, one by one.
    progress : show a progress bar; by default only in a terminal.
    settings : further ones of `RunConfig`, such as `width`, `batch_size`, `dataset`.

    Returns
    -------
    PeriodModel: `model.predict(lr, wd)`, its period `model.law.period(lr, wd)`, and `model.period(lr, wd)` with the
    norms at its ends. The last two raise a ValueError for a network that shows no periods.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or training ends; the message says at which ηλ.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> import concurrent.futures
    >>> with concurrent.futures.ThreadPoolExecutor(1) as here:
    ...     found = calibrate("mlp", width=64, batch_size=64, periods=40, executor=here)
    >>> 200 < found.law.period(0.5, 0.004) < 300
    True
    """
    check_number("lr", lr, above=0)
    check_number("intrinsic_lr", intrinsic_lr, above=0, below=1)
    check_number("ratio", ratio, above=1)
    check_number("reach", reach, above=ratio)
    check_integer("seeds", seeds, at_least=1)
    check_integer("periods", periods, at_least=10 * seeds)
    check_number("rise", rise, above=0)
    if settings.get("fixed") is not None:
        raise ValueError(f"fixed must be None, since what is held fixed obeys another law, got {settings['fixed']!r}")
    own_data = None if inputs is None and targets is None else (inputs, targets)
    wanted = math.ceil(periods / seeds)

    def runs_at(rate: float) -> tuple[RunConfig, ...]:
        return grid(
            model=model if isinstance(model, str) else CUSTOM,
            lr=lr,
            wd=rate / lr,
            seed=range(seeds),
            steps=math.ceil(max(_SETTLING + _OF_A_PERIOD * wanted, MIN_RELAXATIONS) / rate),
            **settings,
        )

    upper_and_lower = [run for rate in (intrinsic_lr, intrinsic_lr / ratio) for run in runs_at(rate)]
    limit = _SETTLING + _OF_A_PERIOD * _LONGEST * wanted
    with ExitStack() as opened:
        if out is None:
            out = tempfile.mkdtemp(prefix="bnwd-probe-")
            opened.callback(shutil.rmtree, out, ignore_errors=True)
        folder = Path(out)

        def trained(configs: Sequence[RunConfig]) -> list[xr.Dataset]:
            most = math.ceil(limit / (configs[-1].wd * lr))
            if isinstance(model, str) and own_data is None:
                # side by side; what is left to be done, or failed, is done or told below
                sweep(configs, folder, executor, periods=wanted, max_steps=most, progress=progress)
            module = None if isinstance(model, str) else model
            terms = Terms(out=folder, periods=wanted, max_steps=most)
            found = [_extended_here(run, terms, module, own_data, progress) for run in configs]
            for run in found:
                _check_that_it_went_on(run)
            return found

        found = trained(upper_and_lower)
        verdicts = [_judged(run, rise).verdict for run in found]
        if EQUILIBRIUM in verdicts[:seeds] or set(verdicts[seeds:]) != {PERIODIC}:
            found += trained(runs_at(intrinsic_lr / reach))
        return simulate.PeriodModel.from_runs(found, rise=rise)


def _extended_here(
    config: RunConfig, terms: Terms, model: nn.Module | None, data: Any, progress: bool | None
) -> xr.Dataset:
    """Train a run in this process, or what a sweep has left of it, until it has the wanted periods."""
    asked, folder = config.steps, run_path(terms.out, config)
    while True:
        run = train(config, folder, model, data, progress=progress)
        steps = extended(summed_up(config, run), terms, asked)
        if steps is None:
            return run
        config = dataclasses.replace(config, steps=steps)


def _judged(run: xr.Dataset, rise: float) -> simulate.Classification:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return simulate.classify(run, rise=rise)


def _check_that_it_went_on(run: xr.Dataset) -> None:
    if run.status.item() != COMPLETE:
        rate, seed = float(run.attrs["lr"]) * float(run.attrs["wd"]), json.loads(run.attrs["config"])["seed"]
        raise ValueError(
            f"model must be one whose training goes on, but at lr * wd = {rate:.3g}, seed {seed} it has "
            f"{run.status.item()}"
        )
