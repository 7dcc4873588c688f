"""Tables of the documentation: `python -m empirical.studies.tables equilibria`, `precision` or `edge FIGURE.png`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import simulate
import theory
from empirical.config import RunConfig
from empirical.groups import scale_invariant_groups
from empirical.measures.curvature import LossCurvature, largest_eigenvalues
from empirical.reports.tables import Cell, Table, number_cell
from empirical.runs.folder import temporary_folder
from empirical.runs.loop import load_model, train
from empirical.runs.preparation import prepare
from empirical.runs.snapshots import networks_at
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, label_log_ticks
from simulate.trajectories.periods import MeasuredPeriods
from simulate.trajectories.setting import Setting
from theory.arguments import FloatArray, check_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- edge of stability along a period

FULL_BATCH = RunConfig(
    lr=0.5, wd=0.004, width=64, samples=400, sampling="full_batch", steps=12_000, evaluate_every=10**6
)
MINI_BATCH = RunConfig(lr=0.5, wd=0.004, width=64, steps=4_000, evaluate_every=10**6)
STABILITY_LIMIT = 2.0  # limit of η̃h for gradient descent on the sphere, up to a term of order ηλ


@dataclass(frozen=True)
class Edge:
    """Curvature during the decay phase before a destabilization.

    Attributes
    ----------
    steps : steps of the measurements; the last is the onset.
    product : η̃h at these steps, where h is the largest curvature on the sphere of the loss of all training samples.
    run : trajectory.
    onset : onset of the destabilization, the step of the trough.
    """

    steps: FloatArray
    product: FloatArray
    run: xr.Dataset
    onset: int

    @property
    def median_before_onset(self) -> float:
        """Median of η̃h in the last tenth of the decay phase."""
        start = self.steps[0] + 0.9 * (self.onset - self.steps[0])
        return float(np.median(self.product[self.steps >= start]))


def measure_edge(config: RunConfig, folder: Path, *, points: int = 40, progress: bool | None = None) -> Edge:
    """Measure η̃h from peak to onset of the last complete decay phase of a run with SGD (docs/mathematics.md §4)."""
    check_integer("points", points, at_least=2)
    run = train(config, folder / "whole", progress=progress)
    periods = simulate.find_periods(run)
    if not periods.count:
        raise ValueError("config must give at least one period after the first 2/(lr * wd) steps, got none")
    first, onset = (int(step) for step in periods.onsets[-2:])
    peak = first + int(np.argmax(run.norm.values[first:onset]))
    # denser near the onset
    steps = np.unique(np.round(onset - (onset - peak) * np.linspace(1, 0, points) ** 1.5).astype(int))
    data, lr = prepare(config).data, float(run.attrs["lr"])
    networks = networks_at(config, steps.tolist(), folder, progress=progress)
    members = [name for group in scale_invariant_groups(networks[0], data.inputs).values() for name in group.weights]
    products = []
    for network in networks:
        landscape = LossCurvature(network, data.network_inputs(data.inputs), data.targets, weights=members, dtype=None)
        (largest,) = largest_eigenvalues(landscape.tangent_product, landscape.point, 1, 1e-3, 0)
        # on the unit sphere h = ρ²λ, and η̃ = η/ρ²
        products.append(lr * float(largest))
    return Edge(steps.astype(float), np.array(products), run, onset)


def edge_figure(edges: dict[str, Edge]) -> Figure:
    """Draw η̃h and the loss over the steps before the onset, one column per measurement, with its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(edges), 5), layout="constrained")
    axes = figure.subplots(2, len(edges), squeeze=False, sharex="col")
    for column, (title, edge) in enumerate(edges.items()):
        top, bottom = axes[:, column]
        top.plot(edge.steps, edge.product, color=MEASURED_COLOR, marker=".", label="η̃h, all training samples")
        top.axhline(STABILITY_LIMIT, color="black", linestyle=":", label="edge of stability")
        part = edge.run.sel(step=slice(int(edge.steps[0]), edge.onset + round(0.05 * (edge.onset - edge.steps[0]))))
        bottom.plot(part.step, part.loss, color=MEASURED_COLOR, linewidth=0.8)
        for ax in (top, bottom):
            onset_style = {"color": ONSET_COLOR, "linestyle": "--", "linewidth": 1.2}
            ax.axvline(edge.onset, **onset_style, label="onset of the destabilization")
            ax.set_yscale("log")
            label_log_ticks(ax.yaxis)
        top.set_title(f"{title}: η̃h = {edge.median_before_onset:.2f} before the onset", fontsize=10)
        bottom.locator_params(axis="x", nbins=6)
        bottom.set_xlabel("step")
        top.set_ylabel("η̃h")
        bottom.set_ylabel("loss of the batch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


# --- equilibrium of every optimizer on a small network

# the first half is the transient
_STEPS, _EPOCHS = 6000, 8


@dataclass(frozen=True)
class MeasuredEquilibrium:
    """A network at equilibrium, and statistics of its gradients.

    Attributes
    ----------
    rotation : root-mean-square angle per step, relative to the prediction.
    log_norm_sd : standard deviation of ln ρ.
    mean_share : squared mean gradient over mean squared gradient of mini-batches, at the last weights.
    kurtosis : kurtosis of the gradients of these mini-batches, median over coordinates; 3 for a normal distribution.
    """

    rotation: float
    log_norm_sd: float
    mean_share: float
    kurtosis: float


def equilibrium_config(optimizer: theory.Optimizer, lr: float, wd: float, batch_size: int, dataset: str) -> RunConfig:
    """Return the configuration of a BN-MLP of width 8."""
    return RunConfig(
        lr=lr,
        wd=wd,
        width=8,
        steps=_STEPS,
        evaluate_every=_STEPS,
        batch_size=batch_size,
        dataset=dataset,
        optimizer=optimizer,
    )


HEAVY_BALL, NESTEROV = theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True)
ADAMW, LION = theory.AdamW(dim=576), theory.Lion(dim=576)
_EQUILIBRIA: tuple[tuple[theory.Optimizer, float, float, int, str], ...] = (
    (HEAVY_BALL, 0.05, 0.01, 32, "gaussian"),
    (HEAVY_BALL, 0.05, 0.01, 256, "digits"),
    (NESTEROV, 0.05, 0.01, 32, "gaussian"),
    (NESTEROV, 0.05, 0.01, 256, "digits"),
    (ADAMW, 0.01, 0.1, 32, "gaussian"),
    (ADAMW, 0.01, 0.1, 8, "digits"),
    (ADAMW, 0.01, 0.1, 32, "digits"),
    (ADAMW, 0.01, 0.1, 256, "digits"),
    (LION, 0.001, 1.0, 32, "gaussian"),
    (LION, 0.001, 1.0, 8, "gaussian"),
)


def measure_equilibrium(config: RunConfig) -> MeasuredEquilibrium:
    """Train one setting and compare it with `theory` (docs/mathematics.md §7)."""
    with temporary_folder() as folder:
        run = train(config, folder / "run")
        gradients = _gradients(config, folder / "run")
    settled = run.isel(step=slice(_STEPS // 2, None))
    gradient = float(np.sqrt((settled.grad_norm**2).mean()))
    predicted = theory.equilibrium_rotation(
        float(Setting.of(settled).lr), config.wd, optimizer=config.optimizer, grad_norm=gradient
    )
    mean, variance = gradients.mean(0), gradients.var(0)
    # weights of constant pixels have no gradient except rounding
    moved = variance > 1e-6 * variance.median()
    fourth = ((gradients - mean) ** 4).mean(0)[moved] / variance[moved] ** 2
    return MeasuredEquilibrium(
        rotation=float(np.sqrt((settled.rotation**2).mean())) / float(np.asarray(predicted)),
        log_norm_sd=float(np.log(settled.norm).std()),
        mean_share=float((mean**2).sum() / (gradients**2).mean(0).sum()),
        kurtosis=float(fourth.median()),
    )


def _gradients(config: RunConfig, folder: Path) -> torch.Tensor:
    """Gradients of the mini-batches of several epochs at the last weights of a run, shape (batches, weights)."""
    setup, network = prepare(config), load_model(folder).train()
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = []
    for batch in setup.batches(0, _EPOCHS * (setup.data.size // config.batch_size))[0]:
        loss = cross_entropy(network(setup.problem.samples(batch)), setup.data.targets[batch])
        rows.append(torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows).double()


# --- periods in float32 and bfloat16

PRECISION_SETTINGS = tuple(
    RunConfig(lr=0.5, wd=wd, model=model, steps=steps, evaluate_every=steps)
    for model, wd, steps in [
        ("convnet", 0.02, 15_000),
        ("convnet", 0.01, 25_000),
        ("mlp", 0.02, 30_000),
        ("mlp", 0.01, 30_000),
    ]
)
PERIOD_QUANTITIES = ("lengths", "trough_norms", "peak_norms")


def train_in_both_precisions(config: RunConfig) -> dict[str, xr.Dataset]:
    """Train a setting in both precisions."""
    return {dtype: train(dataclasses.replace(config, dtype=dtype)) for dtype in ("float32", "bfloat16")}


def means_and_errors(periods: Mapping[str, MeasuredPeriods], quantity: str) -> dict[str, tuple[float, float]]:
    """Mean and standard error of one of the `PERIOD_QUANTITIES`, for each precision."""
    values = {dtype: np.asarray(getattr(measured, quantity)) for dtype, measured in periods.items()}
    return {dtype: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for dtype, v in values.items()}


# --- the command


def _equilibria_table() -> Table:
    rows: list[list[Cell | str]] = []
    for row in tqdm(_EQUILIBRIA, "settings"):
        config = equilibrium_config(*row)
        result = measure_equilibrium(config)
        name = f"{config.optimizer!r}, lr {config.lr:g}, wd {config.wd:g}"
        numbers = {"rotation": ".3f", "log_norm_sd": ".3f", "mean_share": ".2f", "kurtosis": ".0f"}
        cells = [number_cell(getattr(result, number), form) for number, form in numbers.items()]
        rows.append([name, f"{config.dataset}, {config.batch_size}", *cells])
    heads = ["optimizer", "data, batch", "measured / predicted", "sd(ln ρ)", "share of the mean", "kurtosis"]
    return Table(heads, rows)


def _precision_table() -> Table:
    rows: list[list[Cell | str]] = []
    for config in tqdm(PRECISION_SETTINGS, "settings in both precisions"):
        periods = {dtype: simulate.find_periods(run) for dtype, run in train_in_both_precisions(config).items()}
        lengths = means_and_errors(periods, "lengths")
        cells = [f"{lengths[d][0]:.3g} ± {lengths[d][1]:.2g} ({periods[d].count} periods)" for d in lengths]
        rows.append([str(config.model), f"{config.wd:g}", *cells])
    return Table(["network, lr = 0.5", "wd", "float32: period, steps", "bfloat16"], rows)


def _draw_edges(path: str) -> None:
    with temporary_folder() as scratch:
        edges = {
            title: measure_edge(config, scratch / title.split()[0])
            for title, config in (("full batch", FULL_BATCH), ("mini-batches of 64", MINI_BATCH))
        }
        edge_figure(edges).savefig(path, dpi=110)
        for title, edge in edges.items():
            print(f"{title:<20} η̃h before the onset {edge.median_before_onset:.3f}, largest {edge.product.max():.3g}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["equilibria"]:
            print(_equilibria_table().markdown())
        case ["precision"]:
            print(_precision_table().markdown())
        case ["edge", path]:
            _draw_edges(path)
        case _:
            sys.exit("usage: python -m empirical.studies.tables equilibria | precision | edge FIGURE.png")
