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
from empirical.measures.curvature import Landscape, largest_eigenvalues
from empirical.runs.loop import train
from empirical.runs.preparation import prepare
from empirical.runs.snapshots import networks_at
from simulate.plots.style import MEASURED, ONSET, label_log_ticks
from theory.arguments import FloatArray, check_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL_BATCH = RunConfig(
    lr=0.5, wd=0.004, width=64, samples=400, sampling="full_batch", steps=12_000, evaluate_every=10**6
)
MINI_BATCH = RunConfig(lr=0.5, wd=0.004, width=64, steps=4_000, evaluate_every=10**6)
LIMIT = 2.0  # of plain descent on the sphere, up to ηλ


@dataclass(frozen=True)
class Edge:
    """Curvature on the way to a break.

    Attributes
    ----------
    steps : at which it was measured; the last is the onset of the break.
    product : η̃h there, h the largest curvature within the sphere of the loss of all training samples.
    run : the trajectory.
    onset : step of the trough.
    """

    steps: FloatArray
    product: FloatArray
    run: xr.Dataset
    onset: int

    @property
    def before_the_break(self) -> float:
        """Median of η̃h in the last tenth of the fall."""
        began = self.steps[0] + 0.9 * (self.onset - self.steps[0])
        return float(np.median(self.product[self.steps >= began]))


def edge(config: RunConfig, folder: Path, *, points: int = 40, progress: bool | None = None) -> Edge:
    """Measure η̃h along the last whole fall of a periodic run, from its peak to the onset of the next break.

    Parameters
    ----------
    config : of the run, of plain SGD.
    folder : for what is trained.
    points : at which the curvature is measured.
    progress : show a progress bar; by default only in a terminal.

    Raises
    ------
    ValueError : the run has no whole period.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> FULL_BATCH.sampling, MINI_BATCH.sampling
    ('full_batch', 'without_replacement')
    """
    check_integer("points", points, at_least=2)
    run = train(config, folder / "whole", progress=progress)
    found = simulate.find_periods(run)
    if not found.count:
        raise ValueError("config must be of a run with at least one period after the first 2/(lr * wd) steps, got none")
    first, onset = (int(step) for step in found.onsets[-2:])
    peak = first + int(np.argmax(run.norm.values[first:onset]))
    # closer together where the break is near
    steps = np.unique(np.round(onset - (onset - peak) * np.linspace(1, 0, points) ** 1.5).astype(int))
    data, rate = prepare(config).data, float(run.attrs["lr"])
    networks = networks_at(config, steps.tolist(), folder, progress=progress)
    members = [name for group in scale_invariant_groups(networks[0], data.inputs).values() for name in group.weights]
    products = []
    for network in networks:
        landscape = Landscape(network, data.prepared(data.inputs), data.targets, weights=members, dtype=None)
        (largest,) = largest_eigenvalues(landscape.tangent_product, landscape.point, 1, 1e-3, 0)
        # on the unit sphere h = ρ²λ, and η̃ = η/ρ²
        products.append(rate * float(largest))
    return Edge(steps.astype(float), np.array(products), run, onset)


def edge_figure(found: dict[str, Edge]) -> Figure:
    """Draw η̃h and the loss over the steps before the break, a column for each run.

    Parameters
    ----------
    found : by title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(found), 5), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for column, (title, each) in enumerate(found.items()):
        top, bottom = axes[:, column]
        top.plot(each.steps, each.product, color=MEASURED, marker=".", label="η̃h, all training samples")
        top.axhline(LIMIT, color="black", linestyle=":", label="edge of stability")
        part = each.run.sel(step=slice(int(each.steps[0]), each.onset + round(0.05 * (each.onset - each.steps[0]))))
        bottom.plot(part.step, part.loss, color=MEASURED, linewidth=0.8)
        for ax in (top, bottom):
            ax.axvline(each.onset, color=ONSET, linestyle="--", linewidth=1.2, label="onset of the break")
            ax.set_yscale("log")
            label_log_ticks(ax)
        top.set_title(f"{title}: η̃h = {each.before_the_break:.2f} before the break", fontsize=10)
        bottom.locator_params(axis="x", nbins=6)
        bottom.set_xlabel("step")
        top.set_ylabel("η̃h")
        bottom.set_ylabel("loss of the batch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m empirical.studies.tables.edge FIGURE.png")
    with tempfile.TemporaryDirectory() as place:
        both = {
            title: edge(config, Path(place) / title.split()[0])
            for title, config in (("full batch", FULL_BATCH), ("mini-batches of 64", MINI_BATCH))
        }
        edge_figure(both).savefig(sys.argv[1], dpi=110)
        for name, value in both.items():
            print(f"{name:<20} η̃h before the break {value.before_the_break:.3f}, largest {value.product.max():.3g}")
