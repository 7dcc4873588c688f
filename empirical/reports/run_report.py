"""Report of one run as an HTML page: verdict, predictions beside measurements, figures and settings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

import simulate
from empirical.reports import page
from empirical.reports.comparison import (
    Comparison,
    NoteCollector,
    RunComparison,
    compare_run,
    constant_lr_and_wd,
    equilibrium_levels,
    last_periods,
    parse_config,
    setting_name,
    settled_rows,
)
from empirical.reports.sweep_report import is_sweep, sweep_parts
from simulate._files import check_writable
from simulate.plots.diagnosis import log_to_draw
from simulate.trajectories.contract import COMPLETE, check_trajectory
from simulate.trajectories.periods import PERIODIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2000  # of one curve
_MOST_MARKED_PERIODS = 60  # the marks of more periods would hide the curves


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
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"path must be a file, got the folder {os.fspath(path)!r}")
    if model is not None and not isinstance(model, simulate.PeriodModel):
        raise TypeError(f"model must be a simulate.PeriodModel, got {type(model).__name__}")
    run, folder = _open_source(source)
    with suppress(OSError):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_writable("path", target)
    if run is None:
        page.write_page(target, f"Sweep {Path(folder).name}", sweep_parts(Path(folder), model))
    else:
        page.write_page(target, run_title(run), _run_parts(run, folder, model), footer=_versions_footer(run))
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


def run_title(run: xr.Dataset) -> str:
    """Title of the report of a run: model and data set, lr, wd and optimizer.

    Examples
    --------
    >>> run_title(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1))
    'map, η=0.5 λ=0.02'
    """
    config = parse_config(run.attrs.get("config", ""))
    model_and_data = f"{config['model']} on {config['dataset']}" if {"model", "dataset"} <= config.keys() else ""
    words = [model_and_data or str(run.attrs.get("source", "trajectory"))]
    with suppress(ValueError):
        words.append(setting_name(xr.Dataset(attrs=dict(zip(("lr", "wd"), constant_lr_and_wd(run), strict=True)))))
    rule = str(run.attrs.get("optimizer", "SGD()"))
    return ", ".join(words + ([rule] if rule != "SGD()" else []))


def comparison_table(comparisons: tuple[Comparison, ...]) -> str:
    """HTML table of predictions beside measurements.

    Examples
    --------
    >>> "1.01" in comparison_table((Comparison("norm", 2.0, 2.02),))
    True
    """
    rows: list[list[page.Cell | str]] = [
        [
            comparison.quantity,
            page.number_cell(comparison.predicted),
            page.number_with_error(comparison.measured, comparison.error),
            comparison.unit,
            page.number_cell(comparison.ratio, ".4f"),
            comparison.inputs,
        ]
        for comparison in comparisons
    ]
    heads = ["quantity", "predicted", "measured", "unit", "measured / predicted", "inputs of the prediction"]
    return page.table("predictions and measurements", heads, rows)


def _run_parts(run: xr.Dataset, folder: str, model: simulate.PeriodModel | None) -> list[str]:
    comparison = compare_run(run, model)
    notes = NoteCollector()
    figures = [figure for figure in _figure_sections(run, comparison, notes) if figure]
    undetermined = tuple(dict.fromkeys([*comparison.notes, *notes.texts]))
    settings = [[name, text] for name, text in run_settings(run).items()]
    table = (
        comparison_table(comparison.comparisons)
        if comparison.comparisons
        else page.paragraphs("No prediction is available for this run.")
    )
    return [
        *_verdict_parts(run, comparison),
        page.section("Predictions and measurements", table),
        page.section("Undetermined or uncertain results", page.bullets(undetermined)) if undetermined else "",
        page.section("Outlook", page.paragraphs(comparison.outlook)) if comparison.outlook else "",
        page.section("Loss spikes", page.preformatted(str(comparison.diagnosis)))
        if comparison.diagnosis is not None
        else "",
        *figures,
        page.section("Settings", page.table("settings", [], settings)) if settings else "",
        page.section("Data", *_loading_code(run, folder)),
    ]


def _verdict_parts(run: xr.Dataset, comparison: RunComparison) -> list[str]:
    steps = int(run.status_step) if "status_step" in run else run.sizes["step"]
    status = str(run.status.item()) if "status" in run else COMPLETE
    length = page.format_count(steps, "step")
    end = length if status == COMPLETE else f"{status} after {length}"
    classification, parts = comparison.classification, [page.lead("Verdict: undetermined.")]
    if classification is not None:
        parts = [page.lead(f"Verdict: {classification}."), page.paragraphs(f"Reason: {classification.reason}.")]
    parts.append(page.paragraphs(f"{end[:1].upper()}{end[1:]}."))
    return parts + (
        [page.paragraphs(f"Predicted by the period model: {comparison.prediction}.")] if comparison.prediction else []
    )


def _figure_sections(run: xr.Dataset, comparison: RunComparison, notes: NoteCollector) -> list[str | None]:
    """Sections of all figures for which the run has data."""
    if run.sizes["step"] < 2:
        return []
    classification = comparison.classification
    is_periodic = classification is not None and classification.verdict == PERIODIC
    figures: list[tuple[str, Callable[[], tuple[Figure, str]]]] = [
        ("The run", lambda: _whole_run_figure(run, comparison))
    ]
    if is_periodic:
        figures.append(("Last periods", lambda: _last_periods_figure(run, comparison)))
    if {"grad_norm", "effective_lr"} <= set(run.data_vars):
        figures.append(("Phase picture", lambda: _phase_figure(run, is_periodic)))
    if classification is not None and is_periodic:
        figures.append(("Period lengths", lambda: _period_lengths_figure(classification.periods)))
    if (diagnosis := comparison.diagnosis) is not None and diagnosis.spikes:
        figures.append(("Loss spikes and their causes", lambda: _spikes_figure(diagnosis)))
    return [notes.attempt(title.lower(), _figure_section, title, draw) for title, draw in figures]


def _figure_section(title: str, draw: Callable[[], tuple[Figure, str]]) -> str:
    figure, caption = draw()
    return page.figure_section(title, figure, caption)


def _predicted_levels(run: xr.Dataset) -> dict[str, float]:
    """Predicted equilibrium; empty if it is undetermined."""
    try:
        settled_rows(run)
        return {
            name: level for name, level in equilibrium_levels(run, run).items() if math.isfinite(level) and level > 0
        }
    except (ValueError, ArithmeticError):
        return {}


def _trajectory_figure(run: xr.Dataset, **curves: Any) -> Figure:
    variables = [name for name in ("loss", "norm", "effective_lr") if name in run and run[name].dims == ("step",)]
    figure, axes = page.new_figure(2.5 * len(variables), len(variables), sharex=True, squeeze=False)
    simulate.plots.plot_trajectory(run, list(axes[:, 0]), variables=variables, most_points=_MOST_POINTS, **curves)
    return figure


def _whole_run_figure(run: xr.Dataset, comparison: RunComparison) -> tuple[Figure, str]:
    classification, levels = comparison.classification, _predicted_levels(run)
    periods = (
        classification.periods
        if classification is not None and classification.periods.count <= _MOST_MARKED_PERIODS
        else None
    )
    words = ["All steps."]
    if comparison.replayed is not None:
        words.append("Dashed: replay, the norm computed from the measured gradient norms alone.")
    if periods is not None and periods.count and classification is not None and classification.verdict == PERIODIC:
        words.append("Green: onsets of periods.")
    else:
        periods = None
    if levels:
        words.append("Dotted: equilibrium predicted from the mean square of the gradient norm.")
    return _trajectory_figure(run, simulated=comparison.replayed, periods=periods, levels=levels), " ".join(words)


def _last_periods_figure(run: xr.Dataset, comparison: RunComparison) -> tuple[Figure, str]:
    part, periods = last_periods(run)
    simulated = None if comparison.replayed is None else comparison.replayed.sel(step=part.step)
    caption = f"The last {periods.count} periods. Green: their onsets. Dashed and dotted lines as above."
    return _trajectory_figure(part, simulated=simulated, periods=periods, levels=_predicted_levels(run)), caption


def _phase_figure(run: xr.Dataset, is_periodic: bool) -> tuple[Figure, str]:
    part, periods = last_periods(run) if is_periodic else (run, None)
    words = ["Effective learning rate and effective gradient norm."]
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    if ax.lines:
        words.append("Below the dotted line the norm falls, above it the norm rises.")
    return figure, " ".join([*words, "Same periods as above."] if is_periodic else words)


def _period_lengths_figure(periods: simulate.MeasuredPeriods) -> tuple[Figure, str]:
    figure, ax = page.new_figure(4.0)
    simulate.plots.plot_periods(periods, ax)
    return figure, "Length of each period. The wide line shows their mean and its standard error."


def _spikes_figure(diagnosis: simulate.Diagnosis) -> tuple[Figure, str]:
    count = len(log_to_draw(diagnosis).data_vars)
    figure, axes = page.new_figure(2.5 * count + 0.3, count, sharex=True, squeeze=False)
    simulate.plots.plot_diagnosis(diagnosis, list(axes[:, 0]), most_points=_MOST_POINTS)
    return figure, "Markers show the cause of each loss spike."


def run_settings(run: xr.Dataset) -> dict[str, str]:
    """Settings of a run as text: those set in its configuration, and the attributes of its trajectory.

    Examples
    --------
    >>> run_settings(xr.Dataset(attrs={"lr": 0.1, "config": '{"model": "mlp", "width": null}'}))
    {'model': 'mlp', 'lr': '0.1'}
    """
    settings = {**parse_config(run.attrs.get("config", "")), **run.attrs}
    return {
        str(name): page.format_setting(value)
        for name, value in settings.items()
        if name != "config" and value is not None
    }


def _loading_code(run: xr.Dataset, folder: str) -> list[str]:
    rows = f"{page.format_count(run.sizes['step'], 'row')}: {', '.join(sorted(map(str, run.data_vars)))}."
    if not folder:
        return [page.paragraphs(f"The trajectory was in memory, not in a folder. {rows}")]
    code = f'import simulate\n\nrun = simulate.load("{folder}")    # an xarray.Dataset\nprint(run.norm)'
    return [page.paragraphs(rows), page.preformatted(code)]


def _versions_footer(run: xr.Dataset) -> str:
    names = ("bnwd", "torch", "numpy")
    versions = [f"{name} {run.attrs[f'{name}_version']}" for name in names if f"{name}_version" in run.attrs]
    return f"The run was made with {', '.join(versions)}." if versions else ""
