"""Training runs that several tables or figures share: each is trained once and stored in a folder."""

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
    """Train the runs that are missing in a folder. Of runs that differ only in `steps`, only the longest is trained.

    Parameters
    ----------
    runs : any number of runs; duplicates are allowed.
    folder, executor, progress : as in `empirical.sweep`.

    Raises
    ------
    RuntimeError : a training failed.

    Examples
    --------
    >>> train_missing([], Path("runs"))
    """
    runs_to_train = longest_runs(runs)
    if not runs_to_train:
        return
    table = sweep(runs_to_train, folder, executor, progress=progress)
    failed = table.status.values == FAILED
    if failed.any():
        raise RuntimeError(f"a training failed: {table.error.values[failed][0]}")


def longest_runs(runs: Iterable[RunConfig]) -> Sequence[RunConfig]:
    """Longest of the runs that differ only in `steps`, ordered by decreasing number of steps.

    Examples
    --------
    >>> runs = [RunConfig(lr=0.5, wd=wd, steps=steps) for wd, steps in ((0.01, 5), (0.02, 9), (0.01, 7))]
    >>> [run.steps for run in longest_runs(runs)]
    [9, 7]
    """
    # longer runs replace shorter ones of the same identity
    longest_by_identity = {run.identity: run for run in sorted(runs, key=lambda run: run.steps)}
    return sorted(longest_by_identity.values(), key=lambda run: -run.steps)


def load_stored_run(folder: Path, run: RunConfig) -> xr.Dataset:
    """Open a run that `train_missing` stored, cut to the number of steps of this run.

    Parameters
    ----------
    folder : folder of the runs.
    run : configuration of the run.

    Returns
    -------
    Trajectory.

    Examples
    --------
    >>> import concurrent.futures, tempfile
    >>> short, long = (RunConfig(lr=0.5, wd=0.01, width=8, steps=steps, evaluate_every=10) for steps in (20, 40))
    >>> with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     train_missing([short, long], Path(folder), executor)
    ...     dict(load_stored_run(Path(folder), short)[["loss", "test_loss"]].sizes)
    {'step': 20, 'eval_step': 3}
    """
    whole = simulate.load(run_path(folder, run))
    part = whole.isel(step=slice(0, run.steps))
    if run.steps < whole.sizes["step"]:
        part = part.assign(final_norm=whole.norm[run.steps].drop_vars(["step", "epoch"], errors="ignore"))
        part["status"], part["status_step"] = COMPLETE, run.steps
    return part.sel(eval_step=slice(0, run.steps)) if "eval_step" in part.dims else part
