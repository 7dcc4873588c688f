"""Training runs: start, continue, interrupt, load."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

import simulate
from empirical.config import CUSTOM, RunConfig
from empirical.runs.cost import RunCost, cost, space
from empirical.runs.evaluation import record_statistics
from empirical.runs.folder import RunFolder, StorageError, check_same_run, checkpoint_files, read_checkpoint
from empirical.runs.preparation import Setup, prepare
from empirical.runs.replicas import advance_replicas, are_replicas
from empirical.runs.signals import stop_requested
from empirical.steps import ENGINES, State
from simulate.trajectories.contract import COLLAPSED, COMPLETE, DIVERGED, INTERRUPTED
from simulate.trajectories.folder import CONFIG
from theory.references import is_reference

Result = TypeVar("Result")

CHECKPOINT_SECONDS = 30.0
# Steps are made in pieces of about this time, so that records and signals never wait longer, and of so many sample
# numbers at most.
_FAR = 0x9E3779B97F4A7C15
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

    Returns
    -------
    Trajectory (see `simulate.trajectories.contract`) with loss, telemetry of the scale-invariant weights and
    evaluations. Where no weight is scale-invariant, all trained weights are measured together and the attribute
    `scale_invariant` is False. A run whose numbers overflow ends with status "diverged" and the rows up to there.

    Raises
    ------
    TypeError, ValueError : bad settings, model or data, or a folder that cannot be used; nothing is written then.
    Interrupted : Ctrl-C or SIGTERM; the trace so far and a checkpoint are written first.
    StorageError : the disk is full, or such; what was written is kept, and the run can be resumed.

    Warns
    -----
    UserWarning : a module of your own has no scale-invariant weights.

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
    own = setup.config.model == CUSTOM or (is_reference(config.model) and config.normalization != "none")
    if own and not setup.described["attributes"]["scale_invariant"]:
        warnings.warn(
            "model has no scale-invariant weights, so all trained weights are measured together, and what is predicted "
            "of scale-invariant weights does not hold for them; normalize after the weights that you mean",
            stacklevel=2,
        )
    if out is not None:
        return _train_in(RunFolder(out), setup, progress, announce)
    scratch = tempfile.mkdtemp(prefix="bnwd-")
    try:
        return _train_in(RunFolder(scratch, labelled=False), setup, progress, announce)
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
    folder: RunFolder, setup: Setup, progress: bool | None, announce: Callable[[RunCost], None] | None
) -> xr.Dataset:
    try:
        run = _Run(folder, setup)
        run.begin(announce)
        _advance([run], progress)
        return run.trajectory()
    finally:
        folder.close()


def train_together(
    configs: Sequence[RunConfig],
    outs: Sequence[Path],
    places: Sequence[int],
    summed_up: Callable[[RunConfig, xr.Dataset], Result],
    stop: Callable[[], bool],
    pace: float = 0.0,
) -> list[Result | Exception | Interrupted]:
    """Train several runs in one process, those of equal shape as replicas in the same steps.

    Their folders are those of `train` without the labelled store: seven files, which `simulate.load` reads.

    Parameters
    ----------
    configs, outs : settings and folder of each run.
    places : of each among its replicas; a run that was begun keeps the one that it had.
    summed_up : what is wanted of the trajectory of a run; there may not be room for all of them.
    stop : is asked about twice a second; when it says True, all runs are interrupted as by Ctrl-C.
    pace : seconds for which records may wait before they are written.

    Returns
    -------
    What `summed_up` made of each run, or the error that ended the run.

    Examples
    --------
    >>> configs = [RunConfig(lr=lr, wd=0.01, width=8, steps=20, replicas=2) for lr in (0.1, 0.5)]
    >>> outs = [Path(tempfile.mkdtemp()) / "run" for _ in configs]
    >>> train_together(configs, outs, [0, 1], lambda config, run: (config.lr, run.status.item()), lambda: False)
    [(0.1, 'complete'), (0.5, 'complete')]
    """
    outcomes: dict[int, Result | Exception | Interrupted] = {}
    runs: dict[int, _Run] = {}
    shapes: dict[str, Setup] = {}
    with ExitStack() as opened:
        for number, (config, out, place) in enumerate(zip(configs, outs, places, strict=True)):
            try:
                setup = prepare(config, alike=shapes.get(config.shape))
                shapes.setdefault(config.shape, setup)
                folder = RunFolder(out, labelled=False, pace=pace)
                opened.callback(folder.close)
                run = _Run(folder, setup, place)
                run.begin(None)
                runs[number] = run
            except Exception as error:
                outcomes[number] = error
        for group in _groups(runs.values()):
            try:
                _advance(group, progress=False, stop=stop)
            except (Exception, Interrupted) as error:
                for number, run in runs.items():
                    if run in group and not run.is_over:
                        outcomes[number] = run.interrupted() if isinstance(error, Interrupted) else error
        for number, run in runs.items():
            if number not in outcomes:
                try:
                    outcomes[number] = summed_up(configs[number], run.trajectory())
                except Exception as error:
                    outcomes[number] = error
    return [outcomes[number] for number in range(len(configs))]


class _Run:
    """A run in its folder, on its way."""

    def __init__(self, folder: RunFolder, setup: Setup, place: int = 0) -> None:
        self.folder, self.setup = folder, setup
        self.place = place if folder.described is None else int(folder.described.get("place", 0))
        self.step, self.state, self.random_state = 0, setup.start, torch.get_rng_state()
        self.is_over = self._is_longer = False
        self._saved = 0.0

    def begin(self, announce: Callable[[RunCost], None] | None) -> None:
        """Find out where the run is, and write what is to be there before its next step."""
        folder, steps = self.folder, self.setup.config.steps
        with self.disk_errors():
            if folder.described is not None:
                check_same_run(folder.described, self.setup.described, folder.path)
                written = simulate.load(folder.path).sizes["step"]
                if written > steps or (folder.is_complete and written == steps):
                    folder.store()
                    self.is_over, self._is_longer = True, written > steps
                    return
                folder.check_space(space(self.setup, steps - written))
                restored = folder.restore(self.setup.start.weights.device)
            else:
                folder.check_space(space(self.setup, steps))
                restored = None
            if announce is not None:
                announce(cost(self.setup, steps - (restored[0] if restored else 0)))
            folder.begin({**self.setup.described, "place": self.place})
            with torch.random.fork_rng():
                torch.manual_seed(self.setup.config.seed)
                self.step, self.state, self.random_state = restored or (0, self.state, torch.get_rng_state())
            if self.step == 0:
                folder.restart()
                folder.append_evaluation(0, self.setup.evaluated(self.state))
                self.checkpoint(self.random_state)
            self._saved = time.monotonic()
            if self.step == steps:
                if steps % self.setup.config.evaluate_every:
                    folder.append_evaluation(steps, self.setup.evaluated(self.state))
                self._finish(COMPLETE)

    def steps_ahead(self) -> int:
        """Steps until the next evaluation or the end."""
        config = self.setup.config
        return min(config.steps - self.step, config.evaluate_every - self.step % config.evaluate_every)

    def take(self, state: State, rows: npt.NDArray[Any]) -> None:
        """Take note of steps that were made."""
        config = self.setup.config
        with self.disk_errors():
            sound, trouble = _sound_rows(rows, config.weight_dtype)
            self.folder.append_steps(rows[:sound])
            self.step, self.state = self.step + sound, state
            if trouble:
                self._finish(trouble)
                return
            if self.step % config.evaluate_every == 0 or self.step == config.steps:
                self.folder.append_evaluation(self.step, self.setup.evaluated(state))
            if self.step == config.steps:
                self.checkpoint(torch.get_rng_state())
                self._finish(COMPLETE)
            elif time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self.checkpoint(torch.get_rng_state())

    def checkpoint(self, random_state: Tensor) -> None:
        """Write where the run is."""
        self.folder.save_checkpoint(self.step, self.state, random_state)
        self._saved = time.monotonic()

    def interrupt(self) -> None:
        """Leave the run so that it can be resumed."""
        with self.disk_errors():
            self.checkpoint(torch.get_rng_state())
            self.folder.set_status(INTERRUPTED, status_step=self.step)

    def interrupted(self) -> Interrupted:
        """Error that says so."""
        return Interrupted(self.folder.path, self.step)

    def trajectory(self) -> xr.Dataset:
        """Load what the run gave: the first steps of a longer one, if it is that."""
        with self.disk_errors():
            found = simulate.load(self.folder.path)
            return _first_steps(found, self.setup.config.steps, self.folder) if self._is_longer else found

    def _finish(self, status: str) -> None:
        self.folder.finish(status, self.step)
        self.is_over = True

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Say that the disk refused, and that the run can be resumed."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.folder.set_status(INTERRUPTED, message=str(error))
            raise StorageError(self.folder.path, error.strerror or str(error)) from error


def _first_steps(trajectory: xr.Dataset, steps: int, folder: RunFolder) -> xr.Dataset:
    """Cut a trajectory to what a run of fewer steps gives."""
    cut = trajectory.isel(step=slice(steps))
    if "eval_step" in cut.dims:
        cut = cut.isel(eval_step=cut.eval_step.values <= steps)
    changed = {"final_norm": folder.norm_after(steps), "status": COMPLETE, "status_step": steps}
    return cut.assign({name: cut[name].copy(data=np.asarray(value)) for name, value in changed.items()})


def _groups(runs: Iterable[_Run]) -> list[list[_Run]]:
    """Runs that can be replicas of each other, each at its place."""
    groups: list[list[_Run]] = []
    for run in runs:
        for group in groups:
            first = group[0].setup
            if run.place not in (other.place for other in group) and are_replicas(first, run.setup):
                # one network serves all
                run.setup = dataclasses.replace(run.setup, problem=first.problem)
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _advance(runs: Sequence[_Run], progress: bool | None, stop: Callable[[], bool] | None = None) -> None:
    """Make all steps of runs that are replicas of each other."""
    going = [run for run in runs if not run.is_over]
    if not going:
        return
    config, problem = runs[0].setup.config, runs[0].setup.problem
    engine = ENGINES[config.engine](problem)
    piece, most = _FIRST_PIECE, max(1, _MOST_INDICES // (runs[0].setup.batch_size * config.replicas))
    bar = tqdm(
        total=sum(run.setup.config.steps for run in going),
        initial=sum(run.step for run in going),
        unit="step",
        disable=None if progress is None else not progress,
        leave=False,
    )
    with bar, stop_requested() as signalled, torch.random.fork_rng():
        # replicas draw no random numbers; the seed is for those of a GPU, whose state no checkpoint holds
        torch.manual_seed((config.seed + going[0].step * _FAR) % 2**63)
        torch.set_rng_state(going[0].random_state)
        while going:
            started = time.perf_counter()
            count = min(piece, most, *(run.steps_ahead() for run in going))
            made = advance_replicas(
                engine,
                [run.setup for run in going],
                [run.state for run in going],
                [run.step for run in going],
                [run.place for run in going],
                count,
            )
            for run, (state, rows) in zip(going, made, strict=True):
                run.take(state, rows)
            bar.update(count * len(going))
            last = made[0][1][-1]
            bar.set_postfix(loss=f"{last['loss']:.2g}", norm=f"{last['next_norm']:.3g}", refresh=False)
            going = [run for run in going if not run.is_over]
            if going and (signalled.is_set() or (stop is not None and stop())):
                for run in going:
                    run.interrupt()
                raise going[0].interrupted()
            spent = time.perf_counter() - started
            piece = max(1, min(2 * piece, round(count * _PIECE_SECONDS / max(spent, 1e-6))))


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
