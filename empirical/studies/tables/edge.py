"""Edge of stability along a period: `python -m empirical.studies.tables.edge FIGURE.png` draws η̃h."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import simulate
from empirical.config import RunConfig
from empirical.groups import scale_invariant_groups
from empirical.measures.curvature import LossCurvature, largest_eigenvalues
from empirical.runs.loop import train
from empirical.runs.preparation import prepare
from empirical.runs.snapshots import networks_at
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, label_log_ticks
from theory.arguments import FloatArray, check_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """Measure η̃h in the last complete decay phase of a periodic run, from peak to onset.

    Parameters
    ----------
    config : run with plain SGD.
    folder : folder for the training.
    points : number of measurements.
    progress : show a progress bar; by default only in a terminal.

    Raises
    ------
    ValueError : the run has no complete period.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> FULL_BATCH.sampling, MINI_BATCH.sampling
    ('full_batch', 'without_replacement')
    """
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
    """Draw η̃h and the loss over the steps before the onset, one column per run.

    Parameters
    ----------
    edges : measurements by title.
    """
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
            ax.axvline(
                edge.onset, color=ONSET_COLOR, linestyle="--", linewidth=1.2, label="onset of the destabilization"
            )
            ax.set_yscale("log")
            label_log_ticks(ax)
        top.set_title(f"{title}: η̃h = {edge.median_before_onset:.2f} before the onset", fontsize=10)
        bottom.locator_params(axis="x", nbins=6)
        bottom.set_xlabel("step")
        top.set_ylabel("η̃h")
        bottom.set_ylabel("loss of the batch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m empirical.studies.tables.edge FIGURE.png")
    with tempfile.TemporaryDirectory() as scratch:
        both = {
            title: measure_edge(config, Path(scratch) / title.split()[0])
            for title, config in (("full batch", FULL_BATCH), ("mini-batches of 64", MINI_BATCH))
        }
        edge_figure(both).savefig(sys.argv[1], dpi=110)
        for name, value in both.items():
            print(f"{name:<20} η̃h before the onset {value.median_before_onset:.3f}, largest {value.product.max():.3g}")
