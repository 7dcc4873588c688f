"""Runs that several tables or pictures need, each trained once, in a folder where they are used again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import xarray as xr

import simulate
from empirical.config import RunConfig
from empirical.sweeps.sweep import AnyExecutor, sweep
from empirical.sweeps.task import FAILED, run_path
from simulate.trajectories.contract import COMPLETE


def train_missing(
    runs: Iterable[RunConfig], folder: Path, executor: AnyExecutor | None = None, *, progress: bool | None = None
) -> None:
    """Train runs that are not in a folder yet; of those that differ in their steps alone, the longest.

    Parameters
    ----------
    runs : any number, the same more than once too.
    folder, executor, progress : as in `empirical.sweep`.

    Raises
    ------
    RuntimeError : a training failed.

    Examples
    --------
    >>> train_missing([], Path("runs"))
    """
    wanted = longest(runs)
    if not wanted:
        return
    found = sweep(wanted, folder, executor, progress=progress)
    failed = found.status.values == FAILED
    if failed.any():
        raise RuntimeError(f"a training failed: {found.error.values[failed][0]}")


def longest(runs: Iterable[RunConfig]) -> Sequence[RunConfig]:
    """Of runs that differ in their steps alone the longest, those with most steps first.

    Examples
    --------
    >>> [run.steps for run in longest(RunConfig(lr=0.5, wd=wd, steps=n) for wd, n in ((0.01, 5), (0.02, 9), (0.01, 7)))]
    [9, 7]
    """
    # later ones take the place of shorter ones
    kept = {run.identity: run for run in sorted(runs, key=lambda run: run.steps)}
    return sorted(kept.values(), key=lambda run: -run.steps)


def stored_run(folder: Path, run: RunConfig) -> xr.Dataset:
    """Open a run of `train_missing`, up to its own steps.

    Parameters
    ----------
    folder : of the runs.
    run : one of them.

    Returns
    -------
    trajectory

    Examples
    --------
    >>> import concurrent.futures, tempfile
    >>> short, long = (RunConfig(lr=0.5, wd=0.01, width=8, steps=steps, evaluate_every=10) for steps in (20, 40))
    >>> with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     train_missing([short, long], Path(folder), executor)
    ...     dict(stored_run(Path(folder), short)[["loss", "test_loss"]].sizes)
    {'step': 20, 'eval_step': 3}
    """
    whole = simulate.load(run_path(folder, run))
    found = whole.isel(step=slice(0, run.steps))
    if run.steps < whole.sizes["step"]:
        found = found.assign(final_norm=whole.norm[run.steps].drop_vars(["step", "epoch"], errors="ignore"))
        found["status"], found["status_step"] = COMPLETE, run.steps
    return found.sel(eval_step=slice(0, run.steps)) if "eval_step" in found.dims else found
