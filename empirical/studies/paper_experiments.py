"""Run an experiment of the paper: train its networks, draw its figure, and compare each run with the theory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch.utils.flop_counter import FlopCounterMode

import simulate
from empirical.config import RunConfig
from empirical.measures.minima import successive_minima
from empirical.networks import build_network
from empirical.presets import PaperExperiment
from empirical.reports.page import new_figure
from empirical.reports.tables import Cell, Table, number_cell, number_with_error
from empirical.runs.cost import format_duration
from empirical.runs.preparation import prepare
from empirical.steps import ENGINES
from empirical.studies.paper_drawings import STYLE, TWO_COLUMNS, draw_minima
from empirical.studies.statistics import classify_or_none, replay_deviation
from empirical.studies.study import NETWORKS_SUBFOLDER, RUNS_SUBFOLDER, load_stored_run, train_missing, write_page
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from simulate.plots.style import label_log_ticks
from simulate.trajectories.contract import COMPLETE
from simulate.trajectories.setting import Setting
from theory.arguments import warn_user
from theory.optimizers import format_optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MINIMA = 6
# drawn points of a curve, each the mean of the steps around it, and points of a phase picture
_POINTS, _PHASE_POINTS = 600, 1500
_SYMBOLS = {"lr": "η", "wd": "λ", "samples": "images", "label_noise": "wrong labels"}
# network whose steps are timed
_ALL_SAMPLES = 50_000
_WIDTH, _BATCH, _STEPS, _FEW, _IMAGE, _CLASSES = 8, 128, 4, 4, (3, 32, 32), 10
# A step needs about three times the operations of a forward pass.
_PASSES = 3
# assumed for a GPU: operations per second, and shortest time of a step
_GPU_SPEED, _GPU_STEP = 1e13, 1e-3


@dataclass(frozen=True)
class PaperResult:
    """Results of one experiment.

    Attributes
    ----------
    table : one row per run.
    files : table and figures that were written.
    """

    table: Table
    files: tuple[Path, ...]


def run_experiment(
    experiment: PaperExperiment,
    runs: Sequence[RunConfig],
    out: Path,
    *,
    command: str | None = None,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> PaperResult:
    """Train the missing runs of an experiment, and write its table and its figure.

    Parameters
    ----------
    experiment, runs : the experiment, and its runs from `empirical.paper_runs`.
    out : folder; its subfolder `runs` is a sweep, which an interrupted call continues.
    command : the command that the table names as its source; by default that of the experiment without options.
    executor, progress : as in `empirical.sweep`.

    Raises
    ------
    RuntimeError : a training failed.
    """
    train_missing(runs, out / RUNS_SUBFOLDER, executor, progress=progress)
    trajectories = [load_stored_run(out / RUNS_SUBFOLDER, run) for run in runs]
    table = _results(experiment, runs, trajectories)
    page = out / f"{experiment.name}.md"
    command = command or f"bnwd paper {experiment.name}"
    write_page(page, command, f"# {experiment.name}: {experiment.title}", f"`{command}`", table.markdown())
    files = [page, _write(draw_runs(experiment, runs, trajectories), out / f"{experiment.name}.png")]
    if experiment.name == "minima":
        minima = successive_minima(
            runs[0],
            periods=_MINIMA,
            seeds=[run.seed for run in runs],
            points=3,
            out=out / NETWORKS_SUBFOLDER,
            progress=progress,
        )
        files.append(_write(draw_minima({"all": [minima]}), out / "minima-distances.png"))
    return PaperResult(table, tuple(files))


def _write(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return path


def _results(experiment: PaperExperiment, runs: Sequence[RunConfig], trajectories: Sequence[xr.Dataset]) -> Table:
    """Table of the verdict, the periods and the test of the one-step law of each run."""
    predicted = _predicted_periods(experiment, trajectories)
    columns = [*experiment.varied, "ηλ", "steps", "epochs", "verdict", "periods", "T (steps)", "T·ηλ", "predicted T"]
    columns += ["trough ρ", "peak ρ", "peak ρ/√η", "largest replay error", "train loss", "test error"]
    rows: list[list[Cell | str]] = []
    for run, trajectory, expected in zip(runs, trajectories, predicted, strict=True):
        verdict = trajectory.status.item()
        result = classify_or_none(trajectory) if verdict == COMPLETE else None
        periods = None if result is None or result.verdict != "periodic" else result.periods
        lr = float(np.mean(Setting.of(trajectory).variables["lr"].values))
        trough, peak = (
            (_geometric_mean(periods.trough_norms), _geometric_mean(periods.peak_norms)) if periods else (math.nan,) * 2
        )
        mean, error = (periods.mean, periods.stderr) if periods else (math.nan, math.nan)
        rows.append(
            [
                *(_setting_cell(run, name) for name in experiment.varied),
                number_cell(lr * run.wd),
                number_cell(trajectory.sizes["step"], ".0f"),
                number_cell(float(trajectory.epoch[-1]), ".0f"),
                result.verdict if result is not None else f"too short ({verdict})" if verdict == COMPLETE else verdict,
                number_cell(periods.count if periods else math.nan, ".0f"),
                number_with_error(mean, error),
                number_cell(mean * lr * run.wd, ".3f"),
                number_cell(expected, ".4g"),
                number_cell(trough, ".3g"),
                number_cell(peak, ".3g"),
                number_cell(peak / math.sqrt(lr), ".3g"),
                number_cell(_replay_error(trajectory), ".1e"),
                number_cell(float(trajectory.train_loss[-1]), ".3g"),
                number_cell(float(trajectory.test_error[-1]) if "test_error" in trajectory else math.nan, ".1%"),
            ]
        )
    return Table(columns, rows, name=experiment.name)


def _setting_cell(run: RunConfig, name: str) -> Cell:
    value = getattr(run, name)
    if value is None:
        return Cell("all", math.inf)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_cell(float(value), "g")
    return Cell(format_optimizer(value) if name == "optimizer" else str(value))


def _geometric_mean(values: Any) -> float:
    return float(np.exp(np.log(values).mean())) if len(values) else math.nan


def _replay_error(trajectory: xr.Dataset) -> float:
    """Largest relative deviation of the norm from its replay; NaN if the one-step law does not apply."""
    try:
        return float(np.abs(replay_deviation(trajectory)).max())
    except ValueError:
        return math.nan


def _predicted_periods(experiment: PaperExperiment, trajectories: Sequence[xr.Dataset]) -> list[float]:
    """Period of each run by a model that is fitted to the calibration runs; NaN for these and without a model."""
    unknown = [math.nan] * len(trajectories)
    if not experiment.calibration:
        return unknown
    try:
        model = simulate.PeriodModel.from_runs([trajectories[number] for number in experiment.calibration])
    except ValueError as error:
        warn_user(f"no period is predicted, because the calibration runs do not fit: {error}")
        return unknown
    settings = [Setting.of(trajectory).constants() for trajectory in trajectories]
    return [
        math.nan if number in experiment.calibration else float(model.law.period(lr, wd))
        for number, (lr, wd) in enumerate(settings)
    ]


def draw_runs(experiment: PaperExperiment, runs: Sequence[RunConfig], trajectories: Sequence[xr.Dataset]) -> Figure:
    """Draw loss, norm and effective learning rate over the epochs, and the phase picture; one column per run.

    Source: arXiv 2106.15739, figures 1 and 2.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        count = len(runs)
        figure, axes = new_figure(7.0, 4, count, width=max(TWO_COLUMNS, 1.9 * count), sharey="row", squeeze=False)
        for column, run, trajectory in zip(axes.T, runs, trajectories, strict=True):
            _draw_run(column, trajectory)
            column[0].set_title(
                "\n".join(f"{_SYMBOLS.get(name, name)} = {_setting_cell(run, name).text}" for name in experiment.varied)
            )
        if "train_loss" in trajectories[0]:
            axes[0, 0].legend(fontsize=8, frameon=False)
        labels = ("training loss", "norm ρ", "effective lr", "effective lr")
        for ax, label in zip(axes[:, 0], labels, strict=True):
            ax.set_ylabel(label)
    return figure


def _draw_run(axes: Any, trajectory: xr.Dataset) -> None:
    finite = trajectory.isel(step=np.isfinite(trajectory.loss.values))
    rows = max(1, finite.sizes["step"] // _POINTS)
    means = finite[["loss", "norm", "effective_lr"]].coarsen(step=rows, boundary="trim").mean()
    for ax, name in zip(axes, ("loss", "norm", "effective_lr"), strict=False):
        ax.plot(means.epoch, means[name], color="black", linewidth=0.7, label="training")
        ax.set_yscale("log")
        label_log_ticks(ax.yaxis)
    if "train_loss" in trajectory:
        epochs = trajectory.eval_step * float(trajectory.epoch[1] - trajectory.epoch[0])
        axes[0].plot(epochs, trajectory.test_loss, "--", color="#D55E00", linewidth=0.9, label="test set")
    axes[2].set_xlabel("epoch")
    thinned = finite.isel(step=slice(None, None, max(1, finite.sizes["step"] // _PHASE_POINTS)))
    axes[3].scatter(thinned.grad_norm, thinned.effective_lr, c=thinned.epoch, s=2, linewidths=0, rasterized=True)
    axes[3].set(xscale="log", yscale="log", xlabel="gradient norm g̃")
    label_log_ticks(axes[3].xaxis)
    label_log_ticks(axes[3].yaxis)


def estimate_costs(runs: Sequence[RunConfig]) -> tuple[str, str]:
    """Estimate the time that runs take one after another, on this machine and on a GPU.

    Steps of a small ConvNet are timed here, and other networks are compared by their number of operations. For a GPU,
    10 TFLOP/s and at least 1 ms per step are assumed; no step was timed there.
    """
    operations = [_PASSES * _samples_per_step(run) * operations_per_sample(run) for run in runs]
    speed = _measure_speed()
    here = sum(run.steps * flops / speed for run, flops in zip(runs, operations, strict=True))
    there = sum(run.steps * max(_GPU_STEP, flops / _GPU_SPEED) for run, flops in zip(runs, operations, strict=True))
    return format_duration(here), format_duration(there)


def _samples_per_step(run: RunConfig) -> int:
    return (run.samples or _ALL_SAMPLES) if run.sampling == "full_batch" else run.batch_size


def operations_per_sample(run: RunConfig) -> int:
    """Count the floating-point operations of a forward pass for one image of 32×32 pixels.

    Examples
    --------
    >>> operations_per_sample(RunConfig(lr=0.1, wd=0.001, model="convnet", width=32, dataset="cifar10"))
    115020800
    """
    return _operations_of_network(run.model, run.resolved_width, run.normalization)


@functools.cache
def _operations_of_network(model: str, width: int | None, normalization: str) -> int:
    run = RunConfig(lr=0.1, wd=0.0, model=model, width=width, normalization=normalization)
    # shapes are enough to count
    with torch.device("meta"), torch.no_grad():
        images = torch.zeros(_FEW, *_IMAGE)
        network = build_network(run, images, _CLASSES)
        with FlopCounterMode(display=False) as counter:
            network(images)
    return int(counter.get_total_flops() // _FEW)


@functools.cache
def _measure_speed() -> float:
    """Floating-point operations per second of processor time in steps of a small ConvNet on this machine."""
    run = RunConfig(lr=0.1, wd=0.0, model="convnet", width=_WIDTH, batch_size=_BATCH, engine="replicas")
    data = torch.randn(2 * _BATCH, *_IMAGE), torch.arange(2 * _BATCH) % _CLASSES
    setup = prepare(run, data=data)
    engine = ENGINES["replicas"](setup.problem)
    # the first call loads code
    for _ in range(2):
        start = time.process_time()
        engine.advance(setup.start, setup.hyper(0, _STEPS), setup.batches(0, _STEPS))
    return _STEPS * _PASSES * _BATCH * operations_per_sample(run) / (time.process_time() - start)
