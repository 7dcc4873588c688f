"""Training runs: start, continue, interrupt, load."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

import simulate
from empirical.config import RunConfig
from empirical.runs.cost import RunCost, cost, space
from empirical.runs.evaluation import record_statistics
from empirical.runs.folder import RunFolder, StorageError, check_same_run, checkpoint_files, read_checkpoint
from empirical.runs.preparation import Setup, prepare
from empirical.runs.signals import stop_requested
from empirical.steps import ENGINES, State
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, INTERRUPTED
from simulate.trajectories.folder import CONFIG

CHECKPOINT_SECONDS = 30.0
# Steps are made in pieces of about this time, so that records and signals never wait longer, and of so many sample
# numbers at most.
_PIECE_SECONDS, _FIRST_PIECE, _MOST_INDICES = 0.5, 16, 2**22


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or SIGTERM; its trace and a checkpoint are on disk.

    Attributes
    ----------
    path : the run folder.
    step : number of updates made.
    """

    def __init__(self, path: Path, step: int) -> None:
        super().__init__(
            f"interrupted after {step} steps; the trace is in {path}, and the run can be resumed from there"
        )
        self.path, self.step = path, step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.step)


def train(
    config: RunConfig,
    out: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    *,
    progress: bool | None = None,
    announce: Callable[[RunCost], None] | None = None,
    stop: Callable[[], bool] | None = None,
    labelled: bool = True,
) -> xr.Dataset:
    """Train a network and measure every step.

    A folder that holds the same run with fewer steps is continued; one that holds another run is refused.

    Parameters
    ----------
    config : the run.
    out : folder for logs, checkpoints and the trajectory; None keeps nothing on disk.
    model : a module of your own instead of `config.model`; it is copied, not changed. Its output must be class scores.
    data : (inputs, targets) or (inputs, targets, test_inputs, test_targets) of your own, targets being class numbers.
    progress : show a progress bar; by default only in a terminal.
    announce : is called before the first step with what the run will cost, which is measured on some steps for it.
    stop : is asked about twice a second; when it says True, the run is interrupted as by Ctrl-C.
    labelled : write the trajectory as a labelled store (zarr) too when the run ends; without it the folder keeps seven
        files, and `simulate.load` reads the logs.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with loss, telemetry of the scale-invariant weights and
    evaluations. Where no weight is scale-invariant, all trained weights are measured together and the attribute
    `scale_invariant` is False. A run whose numbers overflow ends with status "diverged" and the rows up to there.

    Raises
    ------
    TypeError, ValueError : bad settings, model or data, or a folder that cannot be used; nothing is written then.
    Interrupted : Ctrl-C, SIGTERM or `stop`; the trace so far and a checkpoint are written first.
    StorageError : the disk is full, or such; what was written is kept, and the run can be resumed.

    Examples
    --------
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20))
    >>> run.status.item(), run.sizes["step"], bool(run.radial_defect.max() < 1e-5)
    ('complete', 20, True)
    >>> own = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9, eps=1e-12), nn.ReLU(), nn.Linear(9, 2))
    >>> arrays = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    >>> train(RunConfig(lr=0.5, wd=0.01, steps=20), model=own, data=arrays).group.values.tolist()
    ['0.weight']
    """
    if not isinstance(config, RunConfig):
        raise TypeError(f"config must be a RunConfig, got {type(config).__name__}")
    setup = prepare(config, model, data)
    if out is not None:
        return _train_in(RunFolder(out, labelled=labelled), setup, progress, announce, stop)
    scratch = tempfile.mkdtemp(prefix="bnwd-")
    try:
        return _train_in(RunFolder(scratch, labelled=False), setup, progress, announce, stop)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def resume(
    path: str | os.PathLike[str], model: nn.Module | None = None, data: Any = None, *, progress: bool | None = None
) -> xr.Dataset:
    """Continue an interrupted or killed run to the number of steps it was started with.

    Parameters
    ----------
    path : the run folder.
    model, data : the same as given to `train`, if any.
    progress : as in `train`.

    Returns
    -------
    Trajectory: the same, bit for bit, as without the interruption (same engine, thread count and platform).

    Raises
    ------
    ValueError : no run folder, or model or data are missing.

    Examples
    --------
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> first = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20), folder)
    >>> resume(folder).identical(first)
    True
    """
    return train(_read_config(path), path, model, data, progress=progress)


def load_model(
    path: str | os.PathLike[str], step: int | None = None, *, model: nn.Module | None = None, data: Any = None
) -> nn.Module:
    """Load the network of a run from a checkpoint, in eval mode with the statistics of the whole training set.

    Parameters
    ----------
    path : the run folder.
    step : of the checkpoint; default the last one.
    model, data : the same as given to `train`, if any.

    Raises
    ------
    ValueError : no run folder, no such checkpoint, or model or data are missing.

    Examples
    --------
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20), folder)
    >>> net = load_model(folder)
    >>> norm = sum(p.norm() ** 2 for p in net.parameters() if p.requires_grad).sqrt().item()
    >>> abs(norm / run.final_norm.item() - 1) < 1e-6
    True
    """
    setup = prepare(_read_config(path), model, data)
    files = {int(file.stem.rpartition("-")[2]): file for file in checkpoint_files(Path(path))}
    if not files or (step is not None and step not in files):
        raise ValueError(f"step must be that of a checkpoint ({', '.join(map(str, files)) or 'none'}), got {step!r}")
    found = read_checkpoint(files[max(files) if step is None else step], setup.problem.inputs.device)
    if found is None:
        raise ValueError(f"path must hold a readable checkpoint, got {str(path)!r}")
    found[1].write_into(setup.problem.model, setup.problem.layout)
    network = setup.problem.model.eval()
    record_statistics(network, setup.data)
    return network


def _read_config(path: str | os.PathLike[str]) -> RunConfig:
    file = Path(path) / CONFIG
    if not file.is_file():
        raise ValueError(f"path must be a run folder, got {str(path)!r}")
    return RunConfig.from_dict(json.loads(file.read_text(encoding="utf-8"))["config"])


def _train_in(
    folder: RunFolder,
    setup: Setup,
    progress: bool | None,
    announce: Callable[[RunCost], None] | None,
    stop: Callable[[], bool] | None,
) -> xr.Dataset:
    try:
        steps = setup.config.steps
        if folder.described is not None:
            check_same_run(folder.described, setup.described, folder.path)
            there = simulate.load(folder.path)
            if there.sizes["step"] > steps or (folder.is_complete and there.sizes["step"] == steps):
                folder.store()
                return _first_steps(there, steps, folder)
            folder.check_space(space(setup, steps - there.sizes["step"]))
            restored = folder.restore(setup.problem.inputs.device)
        else:
            folder.check_space(space(setup, steps))
            restored = None
        if announce is not None:
            announce(cost(setup, steps - (restored[0] if restored else 0)))
        folder.begin(setup.described)
        with torch.random.fork_rng():
            if restored is None:
                torch.manual_seed(setup.config.seed)
                restored = (0, State.of(setup.problem), torch.get_rng_state())
            _advance(folder, setup, *restored, progress, stop)
        return simulate.load(folder.path)
    except OSError as error:
        with suppress(OSError):
            folder.set_status(INTERRUPTED, message=str(error))
        raise StorageError(folder.path, error.strerror or str(error)) from error
    finally:
        folder.close()


def _first_steps(trajectory: xr.Dataset, steps: int, folder: RunFolder) -> xr.Dataset:
    """Cut a trajectory to what a run of fewer steps gives."""
    if trajectory.sizes["step"] == steps:
        return trajectory
    cut = trajectory.isel(step=slice(steps))
    if "eval_step" in cut.dims:
        cut = cut.isel(eval_step=cut.eval_step.values <= steps)
    changed = {"final_norm": folder.norm_after(steps), "status": COMPLETE, "status_step": steps}
    return cut.assign({name: cut[name].copy(data=np.asarray(value)) for name, value in changed.items()})


def _advance(
    folder: RunFolder,
    setup: Setup,
    step: int,
    state: State,
    random_state: torch.Tensor,
    progress: bool | None,
    stop: Callable[[], bool] | None,
) -> None:
    config, problem = setup.config, setup.problem
    engine = ENGINES[config.engine](problem)
    every, piece = config.evaluate_every, _FIRST_PIECE
    most = max(1, _MOST_INDICES // setup.batch_size)
    torch.set_rng_state(random_state)

    def checkpoint() -> float:
        folder.save_checkpoint(step, state, torch.get_rng_state())
        return time.monotonic()

    if step == 0:
        folder.restart()
        folder.append_evaluation(step, setup.evaluated(state))
    saved = checkpoint()
    bar = tqdm(
        total=config.steps, initial=step, unit="step", disable=None if progress is None else not progress, leave=False
    )
    with bar, stop_requested() as signalled:
        while step < config.steps:
            started = time.perf_counter()
            count = min(piece, config.steps - step, every - step % every, most)
            state, rows = engine.advance(state, setup.hyper(step, count), setup.batches(step, count))
            sound, trouble = _sound_rows(rows[0], config.weight_dtype)
            folder.append_steps(rows[0, :sound])
            step += sound
            if trouble:
                folder.finish(trouble, step)
                return
            if step % every == 0 or step == config.steps:
                folder.append_evaluation(step, setup.evaluated(state))
            bar.update(count)
            bar.set_postfix(loss=f"{rows[0]['loss'][-1]:.2g}", norm=f"{rows[0]['next_norm'][-1]:.3g}", refresh=False)
            if step < config.steps and (signalled.is_set() or (stop is not None and stop())):
                checkpoint()
                folder.set_status(INTERRUPTED, status_step=step)
                raise Interrupted(folder.path, step)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                saved = checkpoint()
            spent = time.perf_counter() - started
            piece = max(1, min(2 * piece, round(count * _PIECE_SECONDS / max(spent, 1e-6))))
    checkpoint()
    folder.finish(COMPLETE, step)


def _sound_rows(rows: npt.NDArray[Any], dtype: str) -> tuple[int, str]:
    """Count the rows before the numbers fail, and name the failure, or ''."""
    with np.errstate(over="ignore"):
        finite = np.all([np.isfinite(rows[n]) for n in ("loss", "norm", "next_norm", "grad_norm", "rotation")], axis=0)
        # below this the squares of the weights underflow, and a normalization layer divides by nothing but its ε
        collapsed = finite & (rows["next_norm"] ** 2 < torch.finfo(getattr(torch, dtype)).tiny)
    first_bad = int(np.argmin(finite)) if not finite.all() else len(rows)
    first_collapsed = int(np.argmax(collapsed)) if collapsed.any() else len(rows)
    if first_collapsed < first_bad:
        return first_collapsed + 1, COLLAPSED
    return first_bad, DIVERGED if first_bad < len(rows) else ""
