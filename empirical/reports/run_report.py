"""Report of one run as an HTML page: verdict, predictions beside measurements, figures and settings."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from markupsafe import Markup

import simulate
from empirical.reports import page
from empirical.reports.comparison import NoteCollector, RunComparison, compare_run
from empirical.reports.page import Section
from empirical.reports.sweep_report import is_sweep, sweep_sections
from empirical.reports.tables import Cell, Table, number_cell, number_with_error
from simulate._files import check_writable
from simulate.plots.diagnosis import log_to_draw
from simulate.plots.style import main_variables
from simulate.trajectories.contract import COMPLETE, check_trajectory
from theory.arguments import check_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2000  # of one curve
_MOST_MARKED_PERIODS = 60  # the marks of more periods would hide the curves
_VERSIONS = ("bnwd", "torch", "numpy")


def write_run_report(
    source: str | os.PathLike[str] | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    model: simulate.PeriodModel | None = None,
) -> Path:
    """Write a report of a run or a sweep: one self-contained HTML page with tables and figures.

    Parameters
    ----------
    source : run folder, saved trajectory, sweep folder, or the trajectory of one run.
    path : file to write. An existing file is replaced.
    model : period model of the same network, which predicts the periods. By default that of this project's ConvNet for
        runs of that network, and none for other runs.

    Returns
    -------
    path of the page.

    Raises
    ------
    TypeError, ValueError : `source` does not exist or is a batch of runs, or `path` is a folder. Nothing is written.

    Source: docs/mathematics.md §1, §2, §4, §5.

    Examples
    --------
    >>> import tempfile
    >>> run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1, 3), norm=2.0, steps=2000, seed=0)
    >>> write_run_report(run, Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    target = check_path("path", path)
    if target.is_dir():
        raise ValueError(f"path must be a file, got the folder {os.fspath(path)!r}")
    if model is not None and not isinstance(model, simulate.PeriodModel):
        raise TypeError(f"model must be a simulate.PeriodModel, got {type(model).__name__}")
    run, folder = _open_source(source)
    with suppress(OSError):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_writable("path", target)
    if run is None:
        page.write_html_page(target, f"Sweep {Path(folder).name}", sweep_sections(Path(folder), model))
    else:
        comparison = compare_run(run, model)
        _write_run_page(target, comparison, folder)
    return target


def _open_source(source: str | os.PathLike[str] | xr.Dataset) -> tuple[xr.Dataset | None, str]:
    """Return the trajectory (None for a sweep) and its folder (empty for a trajectory in memory)."""
    if isinstance(source, xr.Dataset):
        return check_trajectory(source, single=True), ""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a folder or an xarray.Dataset, got {type(source).__name__}")
    folder = os.fspath(source)
    if is_sweep(Path(folder)):
        return None, folder
    try:
        run = simulate.load(folder)
    except ValueError as error:
        message = str(error).replace("path must be", "source must be a sweep folder,")
        raise ValueError(message.replace("path must", "source must")) from None
    return check_trajectory(run, single=True), folder


def _write_run_page(target: Path, comparison: RunComparison, folder: str) -> None:
    notes = NoteCollector()
    figures = _figure_sections(comparison, notes)
    undetermined = list(dict.fromkeys([*comparison.notes, *notes.texts]))
    settings, diagnosis = comparison.settings, comparison.diagnosis
    sections = [
        Section("", _verdict(comparison)),
        Section("Predictions and measurements", [_comparison_table(comparison)]),
        Section("Undetermined or uncertain results", [undetermined] if undetermined else []),
        Section("Outlook", [comparison.outlook] if comparison.outlook else []),
        Section("Loss spikes", [] if diagnosis is None else [Markup("<pre>{}</pre>").format(diagnosis)]),
        *figures,
        Section("Settings", [Table([], list(settings.items()), "settings")] if settings else []),
        Section("Data", _loading_code(comparison.run, folder)),
    ]
    versions = [f"{name} {settings[f'{name}_version']}" for name in _VERSIONS if f"{name}_version" in settings]
    page.write_html_page(
        target,
        comparison.title,
        [section for section in sections if section.parts],
        footer=f"The run was made with {', '.join(versions)}." if versions else "",
    )


def _verdict(comparison: RunComparison) -> list[str]:
    run, classification = comparison.run, comparison.classification
    steps = int(run.status_step) if "status_step" in run else run.sizes["step"]
    status = str(run.status.item()) if "status" in run else COMPLETE
    length = page.format_count(steps, "step")
    verdict = "none" if classification is None else str(classification)
    parts: list[str] = [Markup("<p><strong>Verdict: {}.</strong></p>").format(verdict)]
    if classification is not None and not classification.obstacle:
        parts.append(f"Reason: {classification.reason}.")
    parts.append(f"{length}." if status == COMPLETE else f"{status.capitalize()} after {length}.")
    if comparison.prediction:
        parts.append(f"Predicted by the period model: {comparison.prediction}.")
    return parts


def _comparison_table(comparison: RunComparison) -> Table | str:
    """Table of predictions beside measurements."""
    if not comparison.comparisons:
        return "No prediction is available for this run."
    heads = ["quantity", "predicted", "measured", "unit", "measured / predicted", "inputs of the prediction"]
    rows: list[list[Cell | str]] = [
        [
            line.quantity,
            number_cell(line.predicted),
            number_with_error(line.measured, line.error),
            line.unit,
            number_cell(line.ratio, ".4f"),
            line.inputs,
        ]
        for line in comparison.comparisons
    ]
    return Table(heads, rows, "predictions and measurements")


def _figure_sections(comparison: RunComparison, notes: NoteCollector) -> list[Section]:
    """Sections of all figures for which the run has data and that can be drawn."""
    run, periods, diagnosis = comparison.run, comparison.periods, comparison.diagnosis
    if run.sizes["step"] < 2:
        return []
    last = comparison.last
    figures = {"The run": lambda: _whole_run_figure(comparison)}
    if last is not None:
        figures["Last periods"] = lambda: _last_periods_figure(comparison, *last)
    if {"grad_norm", "effective_lr"} <= set(run.data_vars):
        figures["Phase picture"] = lambda: _phase_figure(*(last or (run, None)))
    if periods is not None:
        figures["Period lengths"] = lambda: _period_lengths_figure(periods)
    if diagnosis is not None and diagnosis.spikes:
        figures["Loss spikes and their causes"] = lambda: _spikes_figure(diagnosis)
    # matplotlib draws when the figure is converted, so errors occur there too
    sections = [
        notes.attempt(title.lower(), lambda title, draw: page.figure_section(title, *draw()), title, draw)
        for title, draw in figures.items()
    ]
    return [section for section in sections if section is not None]


def _trajectory_figure(run: xr.Dataset, **curves: Any) -> Figure:
    variables = [name for name in main_variables(run) if name in run and run[name].dims == ("step",)]
    figure, axes = page.new_figure(2.5 * len(variables), len(variables), sharex=True, squeeze=False)
    simulate.plots.plot_trajectory(run, list(axes[:, 0]), variables=variables, most_points=_MOST_POINTS, **curves)
    return figure


def _whole_run_figure(comparison: RunComparison) -> tuple[Figure, str]:
    replayed, periods, levels = comparison.replayed, comparison.periods, comparison.levels
    if periods is not None and periods.count > _MOST_MARKED_PERIODS:
        periods = None
    words = ["All steps."]
    if replayed is not None:
        words.append("Dashed: replay, the norm computed from the measured gradient norms alone.")
    if periods is not None:
        words.append("Green: onsets of periods.")
    if levels:
        moves = not all(isinstance(level, float) for level in levels.values())
        words.append(
            "Dotted: equilibrium predicted from the mean square of the "
            + ("recent gradient norms; it moves with lr and wd." if moves else "gradient norm.")
        )
    return _trajectory_figure(comparison.run, simulated=replayed, periods=periods, levels=levels), " ".join(words)


def _last_periods_figure(
    comparison: RunComparison, part: xr.Dataset, periods: simulate.MeasuredPeriods
) -> tuple[Figure, str]:
    simulated = None if comparison.replayed is None else comparison.replayed.sel(step=part.step)
    caption = f"The last {periods.count} periods. Green: their onsets. Dashed and dotted lines as above."
    return _trajectory_figure(part, simulated=simulated, periods=periods, levels=comparison.levels), caption


def _phase_figure(part: xr.Dataset, periods: simulate.MeasuredPeriods | None) -> tuple[Figure, str]:
    words = ["Effective learning rate and effective gradient norm."]
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    if ax.lines:
        words.append("Below the dotted line the norm falls, above it the norm rises.")
    return figure, " ".join(words if periods is None else [*words, "Same periods as above."])


def _period_lengths_figure(periods: simulate.MeasuredPeriods) -> tuple[Figure, str]:
    figure, ax = page.new_figure(4.0)
    simulate.plots.plot_periods(periods, ax)
    return figure, "Length of each period. The wide line shows their mean and its standard error."


def _spikes_figure(diagnosis: simulate.Diagnosis) -> tuple[Figure, str]:
    count = len(log_to_draw(diagnosis).data_vars)
    figure, axes = page.new_figure(2.5 * count + 0.3, count, sharex=True, squeeze=False)
    simulate.plots.plot_diagnosis(diagnosis, list(axes[:, 0]), most_points=_MOST_POINTS)
    caption = "Markers show the cause of each loss spike."
    trends = " Hatched bars show how else the loss changes." if diagnosis.trends else ""
    return figure, caption + trends


def _loading_code(run: xr.Dataset, folder: str) -> list[str]:
    rows = f"{page.format_count(run.sizes['step'], 'row')}: {', '.join(sorted(map(str, run.data_vars)))}."
    if not folder:
        return [f"The trajectory was in memory, not in a folder. {rows}"]
    code = f'import simulate\n\nrun = simulate.load("{folder}")    # an xarray.Dataset\nprint(run.norm)'
    return [rows, Markup("<pre>{}</pre>").format(code)]
