"""A figure: which runs it needs, how it is drawn from them, and in which style."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empirical.config import RunConfig
from empirical.presets import at_paper_scale
from empirical.studies.claims.claim import Runs
from empirical.studies.claims.statistics import Trajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
# Fonts are embedded, and text stays text, in files that journals take.
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # the same drawing gives the same file
    "svg.hashsalt": "bnwd",
}
# what tells runs of a figure apart
_TOLD = ("model", "width", "dataset", "samples", "sampling", "lr", "wd", "steps")


@dataclass(frozen=True)
class PaperFigure:
    """One figure, what it needs, and how it is drawn.

    Attributes
    ----------
    name : of one or a few words, with hyphens.
    caption : what is drawn.
    seen : what is seen in it; empty where no run of that scale has been looked at.
    runs : what is trained, by group.
    draw : from the trajectories.
    measure : gives what is drawn from runs and a folder, where it is not the trajectories of these runs alone.
    """

    name: str
    caption: str
    seen: str
    runs: Runs
    draw: Callable[[Trajectories], Figure]
    measure: Callable[[Runs, Path], Trajectories] | None = None

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of all groups."""
        return [run for group in self.runs.values() for run in group]

    def at_paper_scale(self) -> PaperFigure:
        """The same figure of runs at the scale of the paper, for a GPU, with as many evaluations.

        Examples
        --------
        >>> from empirical.studies.paper_figures.all_figures import all_figures
        >>> run = all_figures()[0].at_paper_scale().all_runs[0]
        >>> run.dataset, run.steps // run.evaluate_every
        ('cifar10', 200)
        """
        runs = {name: [_larger(run) for run in group] for name, group in self.runs.items()}
        return dataclasses.replace(self, runs=runs, seen="")

    def scales(self) -> list[dict[str, object]]:
        """Settings of the runs here and at the scale of the paper, a row for each that differs not in its seed alone.

        Examples
        --------
        >>> from empirical.studies.paper_figures.all_figures import all_figures
        >>> row = all_figures()[0].scales()[0]
        >>> row["wd"], row["full width"]
        (0.01, 32)
        """
        pairs = zip(self.all_runs, self.at_paper_scale().all_runs, strict=True)
        rows = [{**_told(run), **{f"full {name}": value for name, value in _told(full).items()}} for run, full in pairs]
        return list({tuple(row.values()): row for row in rows}.values())


def _larger(run: RunConfig) -> RunConfig:
    full = at_paper_scale(run)
    return dataclasses.replace(full, evaluate_every=run.evaluate_every * full.steps // run.steps)


def _told(run: RunConfig) -> dict[str, object]:
    filled_in = {"width": run.resolved_width, "samples": "all" if run.samples is None else run.samples}
    return {name: filled_in.get(name, getattr(run, name)) for name in _TOLD}


def legend_above(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """Put one legend over all axes, each label once.

    Examples
    --------
    >>> from empirical.reports.page import new_figure
    >>> figure, axes = new_figure(2.0, 2, width=ONE_COLUMN)
    >>> for ax in axes:
    ...     _ = ax.plot([1, 2], label="norm")
    >>> legend_above(figure, axes, 2)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['norm']
    """
    entries = [ax.get_legend_handles_labels() for ax in axes]
    by_label = {label: handle for handles, labels in entries for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(by_label.values()), list(by_label), loc="outside upper center", ncols=columns)
