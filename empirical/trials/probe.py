"""The probe of a network: short runs at two values of ηλ, from which its periods at others follow."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
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
from simulate.trajectories.contract import COMPLETE
from theory.arguments import one_real, whole_number

# First lengths, in units of 1/ηλ: what is left out, and of each wanted period about as much as networks need.
_SETTLING, _OF_A_PERIOD = 2.0, 0.8
_LONGEST = 40.0


def probe(
    model: str | nn.Module,
    inputs: Any = None,
    targets: Any = None,
    *,
    lr: float = 0.5,
    intrinsic_lr: float = 0.01,
    ratio: float = 5.0,
    periods: int = 100,
    seeds: int = 2,
    rise: float = 0.1,
    out: str | os.PathLike[str] | None = None,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> simulate.PeriodModel:
    """Train a network at two values of ηλ until enough of its periods were seen, and calibrate a period model on them.

    In a script the call belongs under ``if __name__ == "__main__":``, since processes are started.

    Parameters
    ----------
    model : a name ("mlp", "convnet", …) or a module of your own, as in `RunConfig` and `train`.
    inputs, targets : arrays, for a module of your own, or instead of `dataset` with one of its names.
    lr : η of all runs.
    intrinsic_lr : ηλ of the upper segment, the largest that is asked for later, 0 < ηλ < 1.
    ratio : upper over lower ηλ, above 1.
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
    PeriodModel: `model.period(lr, wd)`, and its balance law `model.law.period(lr, wd)`.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, the network rests at equilibrium, its training ends, or its
        period is not clear; the message says at which ηλ.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> import concurrent.futures
    >>> with concurrent.futures.ThreadPoolExecutor(1) as here:
    ...     found = probe("mlp", width=64, batch_size=64, periods=40, executor=here)
    >>> 200 < found.law.period(0.5, 0.004) < 300
    True
    """
    one_real("lr", lr, above=0)
    one_real("intrinsic_lr", intrinsic_lr, above=0, below=1)
    one_real("ratio", ratio, above=1)
    whole_number("seeds", seeds, at_least=1)
    whole_number("periods", periods, at_least=10 * seeds)
    one_real("rise", rise, above=0)
    own_data = None if inputs is None and targets is None else (inputs, targets)
    wanted = math.ceil(periods / seeds)
    configs = [
        run
        for rate in (intrinsic_lr, intrinsic_lr / ratio)
        for run in grid(
            model=model if isinstance(model, str) else CUSTOM,
            lr=lr,
            wd=rate / lr,
            seed=range(seeds),
            steps=math.ceil((_SETTLING + _OF_A_PERIOD * wanted) / rate),
            **settings,
        )
    ]
    limit = _SETTLING + _OF_A_PERIOD * _LONGEST * wanted
    with ExitStack() as opened:
        if out is None:
            out = tempfile.mkdtemp(prefix="bnwd-probe-")
            opened.callback(shutil.rmtree, out, ignore_errors=True)
        terms = Terms(out=Path(out), periods=wanted, max_steps=math.ceil(limit * ratio / intrinsic_lr))
        if isinstance(model, str) and own_data is None:
            # side by side; what is left to be done, or failed, is done or told below
            sweep(configs, out, executor, periods=wanted, max_steps=terms.max_steps, progress=progress)
        module = None if isinstance(model, str) else model
        found = [_extended_here(run, terms, module, own_data, progress) for run in configs]
        return _calibrated(found, rise)


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


def _calibrated(runs: Sequence[xr.Dataset], rise: float) -> simulate.PeriodModel:
    """Calibrate on runs, or say at which of them there is nothing to be had."""
    for run in runs:
        if run.status.item() != COMPLETE:
            raise ValueError(f"model must be one whose training goes on, but at {_at(run)} it has {run.status.item()}")
    try:
        return simulate.PeriodModel.from_probe(runs, rise=rise)
    except ValueError as error:
        verdicts = "; ".join(f"{simulate.classify(run, rise=rise)} at {_at(run)}" for run in runs)
        raise ValueError(f"model must be one with clear periods, but {error} (found: {verdicts})") from error


def _at(run: xr.Dataset) -> str:
    rate = float(run.attrs["lr"]) * float(run.attrs["wd"])
    return f"lr * wd = {rate:.3g}, seed {json.loads(run.attrs['config'])['seed']}"
