"""Training runs: start, continue, interrupt, load."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

import simulate
from empirical.config import CUSTOM, RunConfig
from empirical.data import Data, augmented, batch_indices, load_data, steps_per_epoch, user_data
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network
from empirical.runs.evaluation import evaluate, record_statistics
from empirical.runs.folder import (
    RunFolder,
    StorageError,
    check_same_run,
    checkpoint_files,
    in_bytes,
    read_checkpoint,
)
from empirical.runs.signals import stop_requested
from empirical.steps import ENGINES, Hyper, Layout, Problem, State, chosen_engine
from simulate.trajectories.contract import (
    BATCH_EVALUATIONS,
    COLLAPSED,
    COMPLETE,
    DIVERGED,
    EVALUATIONS,
    INTERRUPTED,
    SCHEMA,
    VALIDATION_EVALUATIONS,
)
from simulate.trajectories.folder import CONFIG, checked, evaluation_log, step_record
from theory.schedules import learning_rates

CHECKPOINT_SECONDS = 30.0
# of steps, from which the time of a run is told
_MEASURED_SECONDS = 0.2
# Steps are made in pieces of about this time, so that records and signals never wait longer.
# samples by which a network is looked at; bytes up to which images are kept as numbers
_LOOKED_AT, _SMALL_DATA = 1024, 2**26
_PIECE_SECONDS, _FIRST_PIECE, _MOST_INDICES = 0.5, 16, 2**22
ALL_TRAINED = "all trained weights"


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

    Examples
    --------
    >>> run = train(RunConfig(lr=0.5, wd=0.01, width=8, steps=20))
    >>> run.status.item(), run.sizes["step"], bool(run.radial_defect.max() < 1e-5)
    ('complete', 20, True)
    """
    if not isinstance(config, RunConfig):
        raise TypeError(f"config must be a RunConfig, got {type(config).__name__}")
    setup = _prepare(config, model, data)
    if out is not None:
        return _train_in(RunFolder(out), setup, progress, announce)
    scratch = tempfile.mkdtemp(prefix="bnwd-")
    try:
        return _train_in(RunFolder(scratch), setup, progress, announce)
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
    setup = _prepare(_read_config(path), model, data)
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


@dataclass(frozen=True)
class _Setup:
    config: RunConfig
    problem: Problem
    data: Data
    described: dict[str, Any]


def _prepare(config: RunConfig, model: nn.Module | None, data: Any) -> _Setup:
    """Check everything and build what is trained, before anything is written."""
    device, dtype = _device(config.device), getattr(torch, config.weight_dtype)
    for name, given, own in (("model", model, config.model), ("data", data, config.dataset)):
        if given is None and own == CUSTOM:
            raise ValueError(f"{name} must be given, the run was made with one of the user's own; got None")
    held = _data(config, dtype, device) if data is None else user_data(data, dtype, device)
    looked_at = held.prepared(held.inputs[:_LOOKED_AT])
    batch_size = held.size if config.sampling == "full_batch" else config.batch_size
    per_epoch = steps_per_epoch(held.size, batch_size)
    config = dataclasses.replace(
        config, model=config.model if model is None else CUSTOM, dataset=config.dataset if data is None else CUSTOM
    )
    if model is None:
        network = build_network(config, looked_at, classes=int(held.targets.max()) + 1).to(device)
    elif isinstance(model, nn.Module):
        network = copy.deepcopy(model).to(device=device, dtype=dtype).train()
    else:
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = {name: group.weights for name, group in scale_invariant_groups(network, looked_at).items()}
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model must have parameters that require a gradient, got none")
    groups = found or {ALL_TRAINED: tuple(trained)}
    if config.other_lr == 0:
        grouped = {name for members in groups.values() for name in members}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in grouped)
    layout = Layout.of(network, groups)
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    problem = Problem(
        network,
        layout,
        held.inputs,
        held.targets,
        config.optimizer,
        autocast,
        fixed=config.fixed,
        micro_batch=config.micro_batch,
        prepare=_preparation(held, config.augmentation),
    )
    if config.engine == "auto":
        config = dataclasses.replace(config, engine=chosen_engine(problem, batch_size))
    # refuses a network that it cannot train
    ENGINES[config.engine](problem)
    if config.init_norm is not None:
        state = State.of(problem)
        state.weights[:, : layout.measured] *= config.init_norm / _norm(state, layout)
        state.write_into(network, layout)
    return _Setup(config, problem, held, _describe(config, problem, groups, bool(found), held, per_epoch))


def _data(config: RunConfig, dtype: torch.dtype, device: torch.device) -> Data:
    held = load_data(
        config.dataset,
        dtype,
        device,
        classes=config.classes,
        samples=config.samples,
        validation=config.validation,
        label_noise=config.label_noise,
        seed=config.dataset_seed,
    )
    # small images are drawn faster as numbers, and large ones, and those to be padded, are kept as bytes
    is_small = held.inputs.numel() * dtype.itemsize <= _SMALL_DATA
    return held.as_numbers() if is_small and config.augmentation is None else held


def _preparation(data: Data, augmentation: int | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What is done to the samples of a mini-batch, if anything."""
    if augmentation is not None:
        if data.inputs.ndim != 4:
            raise ValueError(f"augmentation must be None for data that are no images, got {augmentation}")
        return lambda images: data.prepared(augmented(images, augmentation))
    return data.prepared if data.inputs.dtype == torch.uint8 and data.mean is not None else None


def _describe(
    config: RunConfig, problem: Problem, groups: dict[str, tuple[str, ...]], invariant: bool, data: Data, per_epoch: int
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        # what is held makes it another rule
        "optimizer": repr(config.optimizer) + (f" with fixed {config.fixed}" if config.fixed else ""),
        "wd": float(config.wd),
        "config": json.dumps(config.to_dict()),
        "scale_invariant": invariant,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if not callable(config.lr):
        attributes["lr"] = float(config.lr)
    identity = config.identity
    if CUSTOM in (config.model, config.dataset):
        own = hashlib.sha256(identity.encode())
        if config.model == CUSTOM:
            own.update(repr([(name, tuple(p.shape)) for name, p in problem.model.named_parameters()]).encode())
        if config.dataset == CUSTOM:
            own.update(data.inputs.cpu().numpy().tobytes() + data.targets.cpu().numpy().tobytes())
        identity = own.hexdigest()
    return {
        "schema": SCHEMA,
        "identity": identity,
        "config": config.to_dict(),
        "groups": list(groups),
        "evaluations": [
            *EVALUATIONS,
            *(VALIDATION_EVALUATIONS if data.validation_inputs is not None else ()),
            *(BATCH_EVALUATIONS if config.evaluate_batches else ()),
        ],
        "group_weights": {name: list(members) for name, members in groups.items()},
        "attributes": attributes,
        "first_norm": _norm(State.of(problem), problem.layout),
        "epochs_per_step": 1 / per_epoch,
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device must be one that torch can use here, got {name!r}") from None
    return device


def _norm(state: State, layout: Layout) -> float:
    return float(state.weights[0, : layout.measured].double().norm())


def _train_in(
    folder: RunFolder, setup: _Setup, progress: bool | None, announce: Callable[[RunCost], None] | None
) -> xr.Dataset:
    try:
        steps = setup.config.steps
        if folder.described is not None:
            check_same_run(folder.described, setup.described, folder.path)
            there = simulate.load(folder.path)
            if there.sizes["step"] > steps or (folder.is_complete and there.sizes["step"] == steps):
                folder.store()
                return _first_steps(there, steps)
            folder.check_space(_space(setup, steps - there.sizes["step"]))
            restored = folder.restore(setup.problem.inputs.device)
        else:
            folder.check_space(_space(setup, steps))
            restored = None
        if announce is not None:
            announce(_cost(setup, steps - (restored[0] if restored else 0)))
        folder.begin(setup.described)
        with torch.random.fork_rng():
            if restored is None:
                torch.manual_seed(setup.config.seed)
                restored = (0, State.of(setup.problem), torch.get_rng_state())
            _advance(folder, setup, *restored, progress)
        return simulate.load(folder.path)
    except OSError as error:
        with suppress(OSError):
            folder.set_status(INTERRUPTED, message=str(error))
        raise StorageError(folder.path, error.strerror or str(error)) from error
    finally:
        folder.close()


@dataclass(frozen=True)
class RunCost:
    """What a run will need.

    Attributes
    ----------
    seconds : on this machine, from some measured steps.
    disk : bytes at most.

    Examples
    --------
    >>> print(RunCost(seconds=5000, disk=2_000_000))
    about 1.4 h, at most 2 MB of disk
    """

    seconds: float
    disk: int

    def __str__(self) -> str:
        scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if self.seconds >= s or s == 1)
        return f"about {self.seconds / scale:.2g} {unit}, at most {in_bytes(self.disk)} of disk"


def _space(setup: _Setup, steps: int) -> int:
    """Bytes that a run of so many steps writes at most: logs, their copy in the labelled store, checkpoints."""
    state = State.of(setup.problem)
    tensors = (state.weights, *state.slots, *state.buffers.values())
    checkpoint = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 100_000
    evaluations = (steps // setup.config.evaluate_every + 2) * evaluation_log(setup.described).itemsize
    row = checked(step_record(len(setup.described["groups"]))).itemsize
    # two checkpoints are kept while a third is written
    return 2 * (steps * row + evaluations) + 3 * checkpoint


def _cost(setup: _Setup, steps: int) -> RunCost:
    """Measure some steps and one evaluation, and leave no trace of them."""
    config, engine = setup.config, ENGINES[setup.config.engine](setup.problem)
    start, count, spent = State.of(setup.problem), 1, 0.0
    with torch.random.fork_rng():
        # the first call compiles or loads what the others use
        engine.advance(start, _hyper(config, 0, 1), _batches(setup, 0, 1))
        while spent < _MEASURED_SECONDS and count < steps:
            count *= 2
            began = time.perf_counter()
            engine.advance(start, _hyper(config, 0, count), _batches(setup, 0, count))
            spent = time.perf_counter() - began
        began = time.perf_counter()
        _evaluate(setup, start)
        evaluation = time.perf_counter() - began
        # the evaluation has left its statistics in the buffers
        start.write_into(setup.problem.model, setup.problem.layout)
    seconds = spent / count * steps + evaluation * (steps // config.evaluate_every + 2)
    return RunCost(seconds, _space(setup, steps))


def _first_steps(trajectory: xr.Dataset, steps: int) -> xr.Dataset:
    """Cut a trajectory to what a run of fewer steps gives."""
    if trajectory.sizes["step"] == steps:
        return trajectory
    cut = trajectory.isel(step=slice(steps))
    if "eval_step" in cut.dims:
        cut = cut.isel(eval_step=cut.eval_step.values <= steps)
    changed = {"final_norm": trajectory.norm.values[steps], "status": COMPLETE, "status_step": steps}
    return cut.assign({name: cut[name].copy(data=np.asarray(value)) for name, value in changed.items()})


def _advance(
    folder: RunFolder, setup: _Setup, step: int, state: State, random_state: torch.Tensor, progress: bool | None
) -> None:
    config, problem = setup.config, setup.problem
    engine = ENGINES[config.engine](problem)
    every, piece = config.evaluate_every, _FIRST_PIECE
    # sample numbers that are held at a time
    most = max(1, _MOST_INDICES // (setup.data.size if config.sampling == "full_batch" else config.batch_size))
    torch.set_rng_state(random_state)

    def checkpoint() -> float:
        folder.save_checkpoint(step, state, torch.get_rng_state())
        return time.monotonic()

    if step == 0:
        folder.restart()
        folder.append_evaluation(step, _evaluate(setup, state))
    saved = checkpoint()
    bar = tqdm(
        total=config.steps, initial=step, unit="step", disable=None if progress is None else not progress, leave=False
    )
    with bar, stop_requested() as stop:
        while step < config.steps:
            started = time.perf_counter()
            count = min(piece, config.steps - step, every - step % every, most)
            state, rows = engine.advance(state, _hyper(config, step, count), _batches(setup, step, count))
            sound, trouble = _sound_rows(rows[0], config.weight_dtype)
            folder.append_steps(rows[0, :sound])
            step += sound
            if trouble:
                folder.finish(trouble, step)
                return
            if step % every == 0 or step == config.steps:
                folder.append_evaluation(step, _evaluate(setup, state))
            bar.update(count)
            bar.set_postfix(loss=f"{rows[0]['loss'][-1]:.2g}", norm=f"{rows[0]['next_norm'][-1]:.3g}", refresh=False)
            if stop.is_set() and step < config.steps:
                checkpoint()
                folder.set_status(INTERRUPTED, status_step=step)
                raise Interrupted(folder.path, step)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                saved = checkpoint()
            spent = time.perf_counter() - started
            piece = max(1, min(2 * piece, round(count * _PIECE_SECONDS / max(spent, 1e-6))))
    checkpoint()
    folder.finish(COMPLETE, step)


def _hyper(config: RunConfig, step: int, count: int) -> Hyper:
    rates = torch.as_tensor(learning_rates(config.lr, step, step + count))[None]
    other = rates if config.other_lr is None else torch.full_like(rates, config.other_lr)
    decay = torch.tensor([config.wd], dtype=torch.float64)
    other_decay = decay if config.other_wd is None else torch.full_like(decay, config.other_wd)
    return Hyper(rates, other, decay, other_decay)


def _batches(setup: _Setup, step: int, count: int) -> torch.Tensor:
    config = setup.config
    device = setup.problem.inputs.device
    if config.sampling == "full_batch":
        return torch.arange(setup.data.size, device=device).expand(1, count, -1)
    indices = batch_indices(
        setup.data.size, config.batch_size, config.sampling, config.resolved_data_seed, step, step + count
    )
    return torch.as_tensor(indices, device=device)[None]


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


def _evaluate(setup: _Setup, state: State) -> dict[str, float]:
    config = setup.config
    return evaluate(setup.problem, setup.data, state, batch_size=config.batch_size if config.evaluate_batches else None)
