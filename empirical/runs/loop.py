"""Training runs: start, continue, interrupt and load them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

import simulate
from empirical._progress import progress_bar
from empirical.config import CUSTOM, RunConfig
from empirical.runs._allocation import reuse_freed_memory
from empirical.runs.cost import RunCost, disk_space, measure_cost
from empirical.runs.evaluation import set_training_statistics
from empirical.runs.folder import (
    RunFolder,
    StorageError,
    check_same_run,
    checkpoint_files,
    read_checkpoint,
    temporary_folder,
)
from empirical.runs.preparation import Setup, prepare
from empirical.runs.replicas import advance_replicas, are_replicas
from empirical.runs.signals import catch_stop_signals
from empirical.steps import ENGINES, TrainingState
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, INTERRUPTED
from simulate.trajectories.folder import CONFIG, RunDescription
from theory.arguments import check_path, quote, warn_user
from theory.references import is_reference, loaded_class
from theory.rules import ShortRepr

_Result = TypeVar("_Result")

CHECKPOINT_SECONDS = 30.0
# distance between the random seeds of two steps
_SEED_STRIDE = 0x9E3779B97F4A7C15
# Steps are computed in chunks of about this time, so that records and signals never wait longer. A chunk has at most
# _MAX_INDICES sample indices.
_CHUNK_SECONDS, _FIRST_CHUNK, _MAX_INDICES = 0.5, 1, 2**22


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or SIGTERM. Its trajectory and a checkpoint are on disk.

    Attributes
    ----------
    path : the run folder.
    step : number of updates made.
    """

    def __init__(self, path: Path, step: int) -> None:
        super().__init__(
            f"interrupted after {step} steps; the trajectory is in {path}, and the run can be resumed from there"
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
) -> xr.Dataset:
    """Train a network and record norms, gradients and loss at every step.

    If the folder contains the same run with fewer steps, that run is continued. A folder with another run is refused.

    Parameters
    ----------
    config : settings of the run.
    out : folder for logs, checkpoints and the trajectory. None keeps nothing on disk.
    model : your own module, used instead of `config.model`. It is copied, not changed. It must return class scores.
    data : your own (inputs, targets) or (inputs, targets, test_inputs, test_targets). Targets are class numbers.
    progress : show a progress bar. Default: only in a terminal.
    announce : function called before the first step with the estimated cost of the run.

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with loss, measurements of the scale-invariant weights, and
    evaluations. If no weight is scale-invariant, all trained weights are measured together, and the attribute
    `scale_invariant` is False. If numbers overflow, the run ends with status "diverged" and the rows before that.

    Raises
    ------
    TypeError, ValueError : invalid settings, model or data, or a folder that cannot be used. Nothing is written.
    Interrupted : Ctrl-C or SIGTERM. The trajectory and a checkpoint are written first.
    StorageError : writing failed, e.g. because the disk is full. The run can be resumed.

    Warns
    -----
    UserWarning : your own module has no scale-invariant weights.

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
    if out is not None:
        check_path("out", out)
    with progress_bar("prepare the run", None, "", progress):
        setup = prepare(config, model, data, progress=progress)
    has_own_model = setup.config.model == CUSTOM or (is_reference(config.model) and config.normalization != "none")
    if has_own_model and not setup.description.attributes["scale_invariant"]:
        warn_user(
            "model has no scale-invariant weights, so all trained weights are measured together. Predictions for "
            "scale-invariant weights do not apply. Put a normalization after the weights you want to measure."
        )
    if out is not None:
        return _train_in(RunFolder(out), setup, progress, announce)
    with temporary_folder() as scratch:
        return _train_in(RunFolder(scratch, labelled=False), setup, progress, announce)


def resume(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    data: Any = None,
    *,
    progress: bool | None = None,
    trust: bool = False,
) -> xr.Dataset:
    """Continue an interrupted or killed run up to its number of steps.

    Parameters
    ----------
    path : the run folder.
    model, data : the arguments of `train`, if there were any.
    progress : as in `train`.
    trust : whether code that the folder names may be imported and run: a "module:name" as model, data set,
        normalization or optimizer. Set it only for folders that you wrote yourself.

    Returns
    -------
    Trajectory, bit for bit as without the interruption, given the same engine, thread count and platform.

    Raises
    ------
    ValueError : `path` is not a run folder, model or data are missing, or it names code and `trust` is False.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> first = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20), folder)
    >>> resume(folder).identical(first)
    True
    """
    return train(_read_config(path, trust), path, model, data, progress=progress)


def load_model(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    trust: bool = False,
) -> nn.Module:
    """Load the network of a run from a checkpoint, in eval mode with the statistics of the whole training set.

    Parameters
    ----------
    path : the run folder.
    step : step of the checkpoint. Default: the last one.
    model, data : the arguments of `train`, if there were any.
    trust : as in `resume`.

    Raises
    ------
    ValueError : `path` is not a run folder, the checkpoint does not exist, model or data are missing, or the folder
        names code and `trust` is False.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20), folder)
    >>> net = load_model(folder)
    >>> norm = sum(p.norm() ** 2 for p in net.parameters() if p.requires_grad).sqrt().item()
    >>> abs(norm / run.final_norm.item() - 1) < 1e-6
    True
    """
    setup = prepare(_read_config(path, trust), model, data)
    files = {int(file.stem.rpartition("-")[2]): file for file in checkpoint_files(Path(path))}
    if not files or (step is not None and step not in files):
        raise ValueError(
            f"step must be that of a checkpoint ({', '.join(map(str, files)) or 'none'}), got {quote(step)}"
        )
    checkpoint = read_checkpoint(files[max(files) if step is None else step], setup.start)
    if checkpoint is None:
        raise ValueError(f"path must hold a readable checkpoint, got {str(path)!r}")
    checkpoint[1].write_into(setup.problem.model, setup.problem.layout)
    network = setup.problem.model.eval()
    with reuse_freed_memory():
        set_training_statistics(network, setup.data)
    return network


def _read_config(path: str | os.PathLike[str], trust: bool) -> RunConfig:
    """Read the settings of a run folder. Without trust, no module that they name is imported."""
    if not (check_path("path", path) / CONFIG).is_file():
        raise ValueError(f"path must be a run folder, got {str(path)!r}")
    content = RunDescription.read(Path(path)).config
    optimizer = content.get("optimizer")
    names = [str(content.get(name)) for name in ("model", "dataset", "normalization")]
    names += list(optimizer) if isinstance(optimizer, dict) else []
    if not trust and (code := [name for name in names if is_reference(name) and not _is_ours(name)]):
        raise ValueError(
            f"path must be a folder that names no code, got {str(path)!r}, whose config.json would import and run "
            f"{', '.join(code)}. If you trust it, pass trust=True"
        )
    return RunConfig.from_dict(content, trust=trust)


def _is_ours(name: str) -> bool:
    return loaded_class(name, ShortRepr) is not None


@reuse_freed_memory()
def _train_in(
    folder: RunFolder, setup: Setup, progress: bool | None, announce: Callable[[RunCost], None] | None
) -> xr.Dataset:
    try:
        run = _Run(folder, setup, progress=progress)
        run.begin(announce)
        _train_replicas([run], progress)
        return run.trajectory()
    finally:
        folder.close()


@reuse_freed_memory()
def train_runs(
    configs: Sequence[RunConfig],
    outs: Sequence[Path],
    places: Sequence[int],
    summarize: Callable[[RunConfig, xr.Dataset], _Result],
    stop: Callable[[], bool],
    pace: float = 0.0,
    model: nn.Module | None = None,
    data: Any = None,
) -> list[_Result | Exception | Interrupted]:
    """Train several runs in one process. Runs of equal shape are replicas in the same steps.

    The folders are those of `train` without the labelled store: seven files each, which `simulate.load` reads.

    Parameters
    ----------
    configs, outs : settings and folder of each run.
    places : place of each run among its replicas. A run that has begun keeps its place.
    summarize : function that reduces the trajectory of a run, because all trajectories may not fit into memory.
    stop : function called about twice a second. If it returns True, all runs are interrupted as by Ctrl-C.
    pace : longest time in seconds that records wait before they are written.
    model, data : as in `train`, for all runs.

    Returns
    -------
    For each run, the result of `summarize`, or the error that ended the run.
    """
    outcomes: dict[int, _Result | Exception | Interrupted] = {}
    runs: dict[int, _Run] = {}
    shapes: dict[str, Setup] = {}
    with ExitStack() as stack:
        for number, (config, out, place) in enumerate(zip(configs, outs, places, strict=True)):
            try:
                setup = prepare(config, model, data, alike=shapes.get(config.shape))
                shapes.setdefault(config.shape, setup)
                folder = RunFolder(out, labelled=False, pace=pace)
                stack.callback(folder.close)
                run = _Run(folder, setup, place)
                run.begin(None)
                runs[number] = run
            except Exception as error:
                outcomes[number] = error
        for group in _group_replicas(runs.values()):
            try:
                _train_replicas(group, progress=False, stop=stop)
            except Exception as error:
                outcomes |= {number: error for number, run in runs.items() if run in group and not run.is_over}
            except KeyboardInterrupt:
                outcomes |= {number: run.interruption() for number, run in runs.items() if not run.is_over}
                break
        for number, run in runs.items():
            if number not in outcomes:
                try:
                    outcomes[number] = summarize(configs[number], run.trajectory())
                except Exception as error:
                    outcomes[number] = error
    return [outcomes[number] for number in range(len(configs))]


class _Run:
    """A run with its folder and its present state."""

    def __init__(self, folder: RunFolder, setup: Setup, place: int = 0, progress: bool | None = False) -> None:
        self.folder, self.setup, self._progress = folder, setup, progress
        self.place = place if folder.description is None else folder.description.place
        self.step, self.state, self.random_state = 0, setup.start, torch.get_rng_state()
        self.is_over = self._is_longer = False
        self._saved = 0.0

    def begin(self, announce: Callable[[RunCost], None] | None) -> None:
        """Restore the state from the folder, and write everything that must precede the next step."""
        folder, steps = self.folder, self.setup.config.steps
        with self.disk_errors():
            if folder.description is not None:
                check_same_run(folder.description, self.setup.description, folder.path)
                written = simulate.load(folder.path).sizes["step"]
                if written > steps or (folder.is_complete and written == steps):
                    folder.store()
                    self.is_over, self._is_longer = True, written > steps
                    return
                folder.check_space(disk_space(self.setup, steps - written))
                restored = folder.restore(self.setup.start)
            else:
                folder.check_space(disk_space(self.setup, steps))
                restored = None
            if announce is not None:
                announce(measure_cost(self.setup, steps - (restored[0] if restored else 0)))
            folder.begin(dataclasses.replace(self.setup.description, place=self.place))
            with torch.random.fork_rng():
                torch.manual_seed(self.setup.config.seed)
                self.step, self.state, self.random_state = restored or (0, self.state, torch.get_rng_state())
            if self.step == 0:
                folder.restart()
                folder.append_evaluation(0, self._evaluate())
                self.checkpoint(self.random_state)
            self._saved = time.monotonic()
            if self.step == steps:
                if steps % self.setup.config.evaluate_every:
                    folder.append_evaluation(steps, self._evaluate())
                self._finish(COMPLETE)

    def _evaluate(self) -> dict[str, float]:
        return self.setup.evaluate(self.state, progress=self._progress)

    def steps_ahead(self) -> int:
        """Return the number of steps until the next evaluation, another batch size or the end."""
        config = self.setup.config
        return min(
            config.steps - self.step,
            config.evaluate_every - self.step % config.evaluate_every,
            self.setup.steps_at_once(self.step),
        )

    def record(self, state: TrainingState, rows: npt.NDArray[Any]) -> None:
        """Write records, evaluations and checkpoints for the steps that led to `state`."""
        config = self.setup.config
        with self.disk_errors():
            valid, failure = _count_valid_rows(rows, config.weight_dtype)
            self.folder.append_steps(rows[:valid])
            self.step, self.state = self.step + valid, state
            if failure:
                self._finish(failure)
                return
            if self.step % config.evaluate_every == 0 or self.step == config.steps:
                self.folder.append_evaluation(self.step, self._evaluate())
            if self.step == config.steps:
                self.checkpoint(torch.get_rng_state())
                self._finish(COMPLETE)
            elif time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self.checkpoint(torch.get_rng_state())

    def checkpoint(self, random_state: Tensor) -> None:
        """Write a checkpoint of the present state."""
        self.folder.save_checkpoint(self.step, self.state, random_state)
        self._saved = time.monotonic()

    def interrupt(self) -> None:
        """Write a checkpoint and the status "interrupted"."""
        with self.disk_errors():
            self.checkpoint(torch.get_rng_state())
            self.folder.set_status(INTERRUPTED, status_step=self.step)

    def interruption(self) -> Interrupted:
        """Return the error that reports the interruption."""
        return Interrupted(self.folder.path, self.step)

    def trajectory(self) -> xr.Dataset:
        """Load the trajectory. If the folder has a longer run, return its first steps."""
        with self.disk_errors():
            trajectory = simulate.load(self.folder.path)
            steps = self.setup.config.steps
            return _first_steps(trajectory, steps, self.folder) if self._is_longer else trajectory

    def _finish(self, status: str) -> None:
        self.folder.finish(status, self.step)
        self.is_over = True

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn an error of the disk into a StorageError and set the status "interrupted"."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.folder.set_status(INTERRUPTED, message=str(error))
            raise StorageError(self.folder.path, error.strerror or str(error)) from error


def _first_steps(trajectory: xr.Dataset, steps: int, folder: RunFolder) -> xr.Dataset:
    """Cut a trajectory to that of a run with fewer steps."""
    first = trajectory.isel(step=slice(steps))
    if "eval_step" in first.dims:
        first = first.isel(eval_step=first.eval_step.values <= steps)
    changed = {"final_norm": folder.norm_after(steps), "status": COMPLETE, "status_step": steps}
    return first.assign({name: first[name].copy(data=np.asarray(value)) for name, value in changed.items()})


def _group_replicas(runs: Iterable[_Run]) -> list[list[_Run]]:
    """Group runs that can be replicas of each other and have different places."""
    groups: list[list[_Run]] = []
    for run in runs:
        for group in groups:
            first = group[0].setup
            if run.place not in (other.place for other in group) and are_replicas(first, run.setup):
                # the runs of a group share one network
                run.setup = dataclasses.replace(run.setup, problem=first.problem)
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _train_replicas(runs: Sequence[_Run], progress: bool | None, stop: Callable[[], bool] | None = None) -> None:
    """Train runs that are replicas of each other to their ends."""
    active = [run for run in runs if not run.is_over]
    if not active:
        return
    config, problem = runs[0].setup.config, runs[0].setup.problem
    engine = ENGINES[config.engine](problem)
    chunk, largest = _FIRST_CHUNK, max(1, _MAX_INDICES // (runs[0].setup.batch_size * config.replicas))
    total = sum(run.setup.config.steps for run in active)
    bar = progress_bar("train", total, "step", progress, initial=sum(run.step for run in active))
    with bar, catch_stop_signals() as stop_signal, torch.random.fork_rng():
        # replicas draw no random numbers; the seed is for a GPU, whose random state no checkpoint stores
        torch.manual_seed((config.seed + active[0].step * _SEED_STRIDE) % 2**63)
        torch.set_rng_state(active[0].random_state)
        while active:
            start = time.perf_counter()
            count = min(chunk, largest, *(run.steps_ahead() for run in active))
            results = advance_replicas(
                engine,
                [run.setup for run in active],
                [run.state for run in active],
                [run.step for run in active],
                [run.place for run in active],
                count,
            )
            for run, (state, rows) in zip(active, results, strict=True):
                run.record(state, rows)
            bar.update(count * len(active))
            last = results[0][1][-1]
            bar.set_postfix(loss=f"{last['loss']:.2g}", norm=f"{last['next_norm']:.3g}", refresh=False)
            active = [run for run in active if not run.is_over]
            if active and (stop_signal.is_set() or (stop is not None and stop())):
                for run in active:
                    run.interrupt()
                raise active[0].interruption()
            elapsed = time.perf_counter() - start
            chunk = max(1, min(2 * chunk, round(count * _CHUNK_SECONDS / max(elapsed, 1e-6))))
        if stop_signal.is_set():
            # it came in the last step, and other work must not begin
            raise runs[0].interruption()


def _count_valid_rows(rows: npt.NDArray[Any], dtype: str) -> tuple[int, str]:
    """Return the number of valid rows, and the status if later rows are invalid, else ''."""
    with np.errstate(over="ignore"):
        finite = np.all([np.isfinite(rows[n]) for n in ("loss", "norm", "next_norm", "grad_norm", "rotation")], axis=0)
        # below this the squares of the weights underflow, and a normalization layer divides by its ε alone
        collapsed = finite & (rows["next_norm"] ** 2 < torch.finfo(getattr(torch, dtype)).tiny)
    first_bad = int(np.argmin(finite)) if not finite.all() else len(rows)
    first_collapsed = int(np.argmax(collapsed)) if collapsed.any() else len(rows)
    if first_collapsed < first_bad:
        return first_collapsed + 1, COLLAPSED
    return first_bad, DIVERGED if first_bad < len(rows) else ""
