"""A figure: its runs, how to draw it, and its style."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empirical.config import RunConfig
from empirical.presets import at_paper_scale
from empirical.studies.study import RunGroups, Trajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
# Journals need embedded fonts and text that stays text.
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
# settings that distinguish the runs of a figure
_SETTINGS_TO_LIST = ("model", "width", "dataset", "samples", "sampling", "lr", "wd", "steps")


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes
    ----------
    name : a few words with hyphens.
    caption : what the figure shows.
    observation : what can be observed in the figure; empty at the scale of the paper, where nothing was checked.
    runs : runs to train, by group.
    draw : draws the figure from the trajectories.
    measure : returns the data to draw from runs and a folder, if the trajectories alone are not enough.
    """

    name: str
    caption: str
    observation: str
    runs: RunGroups
    draw: Callable[[Trajectories], Figure]
    measure: Callable[[RunGroups, Path], Trajectories] | None = None

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of all groups."""
        return [run for group in self.runs.values() for run in group]

    def at_paper_scale(self) -> PaperFigure:
        """Return the same figure with runs at the scale of the paper, for a GPU, and as many evaluations per run.

        Examples
        --------
        >>> from empirical.studies.paper_figures.all_figures import all_figures
        >>> run = all_figures()[0].at_paper_scale().all_runs[0]
        >>> run.dataset, run.steps // run.evaluate_every
        ('cifar10', 200)
        """
        runs = {name: [_scale_up(run) for run in group] for name, group in self.runs.items()}
        return dataclasses.replace(self, runs=runs, observation="")

    def scales(self) -> list[dict[str, object]]:
        """Return the settings of the runs at both scales, one row for runs that differ only in their seeds.

        Examples
        --------
        >>> from empirical.studies.paper_figures.all_figures import all_figures
        >>> row = all_figures()[0].scales()[0]
        >>> row["wd"], row["full width"]
        (0.01, 32)
        """
        pairs = zip(self.all_runs, self.at_paper_scale().all_runs, strict=True)
        rows = [
            {**_settings(run), **{f"full {name}": value for name, value in _settings(full).items()}}
            for run, full in pairs
        ]
        return list({tuple(row.values()): row for row in rows}.values())


def _scale_up(run: RunConfig) -> RunConfig:
    full = at_paper_scale(run)
    return dataclasses.replace(full, evaluate_every=run.evaluate_every * full.steps // run.steps)


def _settings(run: RunConfig) -> dict[str, object]:
    resolved = {"width": run.resolved_width, "samples": "all" if run.samples is None else run.samples}
    return {name: resolved.get(name, getattr(run, name)) for name in _SETTINGS_TO_LIST}


def add_figure_legend(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """Add one legend above all axes, with each label once.

    Examples
    --------
    >>> from empirical.reports.page import new_figure
    >>> figure, axes = new_figure(2.0, 2, width=ONE_COLUMN)
    >>> for ax in axes:
    ...     _ = ax.plot([1, 2], label="norm")
    >>> add_figure_legend(figure, axes, 2)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['norm']
    """
    entries = [ax.get_legend_handles_labels() for ax in axes]
    by_label = {label: handle for handles, labels in entries for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(by_label.values()), list(by_label), loc="outside upper center", ncols=columns)
