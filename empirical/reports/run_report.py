"""A report of one run: what theory and simulation predict, what was measured, pictures, settings; one HTML page."""

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
    Findings,
    Notes,
    constant_rates,
    examine,
    held_config,
    last_periods,
    predicted_levels,
    setting_name,
    settled_rows,
)
from empirical.reports.sweep_report import is_sweep, sweep_parts
from simulate._files import check_writable
from simulate.plots.diagnosis import drawn_log
from simulate.trajectories.contract import COMPLETE, check_trajectory
from simulate.trajectories.periods import PERIODIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2000  # of a curve
_MOST_MARKED = 60  # periods, beyond which their marks hide the curves


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
    path : of the page, which is replaced.
    model : of a probe of the same network, for predictions of its periods; by default that of this project's own
        ConvNet where the run is one of it, else none.

    Returns
    -------
    path of the page.

    Raises
    ------
    TypeError, ValueError : no such source, a batch, or a path that is a folder; nothing is written then.

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
    run, place = _opened(source)
    with suppress(OSError):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_writable("path", target)
    if run is None:
        page.write_page(target, f"Sweep {Path(place).name}", sweep_parts(Path(place), model))
    else:
        page.write_page(target, title_of(run), _run_parts(run, place, model), footer=_made_with(run))
    return target


def _opened(source: str | os.PathLike[str] | xr.Dataset) -> tuple[xr.Dataset | None, str]:
    """The trajectory, None of a sweep; and its folder, empty of one that was given."""
    if isinstance(source, xr.Dataset):
        return check_trajectory(source, single=True), ""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a folder or an xarray.Dataset, got {type(source).__name__}")
    place = os.fspath(source)
    if is_sweep(Path(place)):
        return None, place
    try:
        loaded = simulate.load(place)
    except ValueError as error:
        told = str(error).replace("path must be", "source must be a sweep folder,")
        raise ValueError(told.replace("path must", "source must")) from None
    return check_trajectory(loaded, single=True), place


def title_of(run: xr.Dataset) -> str:
    """What a run is, in some words.

    Examples
    --------
    >>> title_of(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1))
    'map, η=0.5 λ=0.02'
    """
    config = held_config(run.attrs.get("config", ""))
    what = f"{config['model']} on {config['dataset']}" if {"model", "dataset"} <= config.keys() else ""
    words = [what or str(run.attrs.get("source", "trajectory"))]
    with suppress(ValueError):
        words.append(setting_name(xr.Dataset(attrs=dict(zip(("lr", "wd"), constant_rates(run), strict=True)))))
    rule = str(run.attrs.get("optimizer", "SGD()"))
    return ", ".join(words + ([rule] if rule != "SGD()" else []))


def comparison_table(lines: tuple[Comparison, ...]) -> str:
    """HTML of predictions beside measurements.

    Examples
    --------
    >>> "1.01" in comparison_table((Comparison("norm", 2.0, 2.02),))
    True
    """
    rows: list[list[page.Cell | str]] = [
        [
            line.quantity,
            page.number(line.predicted),
            page.with_error(line.measured, line.error),
            line.unit,
            page.number(line.ratio, ".4f"),
            line.inputs,
        ]
        for line in lines
    ]
    heads = ["quantity", "predicted", "measured", "unit", "measured / predicted", "what the prediction knows"]
    return page.table("predictions and measurements", heads, rows)


def _run_parts(run: xr.Dataset, place: str, model: simulate.PeriodModel | None) -> list[str]:
    found = examine(run, model)
    notes = Notes()
    pictures = [picture for picture in _pictures(run, found, notes) if picture]
    unsaid = tuple(dict.fromkeys([*found.notes, *notes.told]))
    held = [[name, text] for name, text in settings(run).items()]
    compared = comparison_table(found.comparisons) if found.comparisons else page.paragraphs("Nothing can be compared.")
    return [
        *_verdict(run, found),
        page.section("Prediction against measurement", compared),
        page.section("What cannot be said, and why", page.bullets(unsaid)) if unsaid else "",
        page.section("What comes next", page.paragraphs(found.outlook)) if found.outlook else "",
        page.section("Spikes of the loss", page.lines(str(found.diagnosis))) if found.diagnosis is not None else "",
        *pictures,
        page.section("Settings", page.table("settings", [], held)) if held else "",
        page.section("Data", *_how_to_open(run, place)),
    ]


def _verdict(run: xr.Dataset, found: Findings) -> list[str]:
    steps = int(run.status_step) if "status_step" in run else run.sizes["step"]
    status = str(run.status.item()) if "status" in run else COMPLETE
    lasted = page.counted(steps, "step")
    ended = lasted if status == COMPLETE else f"{status} after {lasted}"
    judged, parts = found.classification, [page.lead("No verdict.")]
    if judged is not None:
        parts = [page.lead(f"Verdict: {judged}."), page.paragraphs(f"Why: {judged.reason}.")]
    parts.append(page.paragraphs(f"{ended[:1].upper()}{ended[1:]}."))
    return parts + ([page.paragraphs(f"A probe lets expect: {found.expected}.")] if found.expected else [])


def _pictures(run: xr.Dataset, found: Findings, notes: Notes) -> list[str | None]:
    """Figures that the run has something to show in."""
    if run.sizes["step"] < 2:
        return []
    judged = found.classification
    is_periodic = judged is not None and judged.verdict == PERIODIC
    drawn: list[tuple[str, Callable[[], tuple[Figure, str]]]] = [("The run", lambda: _whole(run, found))]
    if is_periodic:
        drawn.append(("Some periods", lambda: _some_periods(run, found)))
    if {"grad_norm", "effective_lr"} <= set(run.data_vars):
        drawn.append(("Phase picture", lambda: _phase(run, is_periodic)))
    if judged is not None and is_periodic:
        drawn.append(("Lengths of the periods", lambda: _lengths(judged.periods)))
    if (diagnosis := found.diagnosis) is not None and diagnosis.spikes:
        drawn.append(("Spikes and their causes", lambda: _spikes(diagnosis)))
    return [notes.attempt(title.lower(), _picture, title, make) for title, make in drawn]


def _picture(title: str, make: Callable[[], tuple[Figure, str]]) -> str:
    figure, caption = make()
    return page.figure_section(title, figure, caption)


def _levels(run: xr.Dataset) -> dict[str, float]:
    """Predicted equilibrium, where there is one."""
    try:
        settled_rows(run)
        return {name: level for name, level in predicted_levels(run, run).items() if math.isfinite(level) and level > 0}
    except (ValueError, ArithmeticError):
        return {}


def _trajectory_figure(run: xr.Dataset, **drawn: Any) -> Figure:
    shown = [name for name in ("loss", "norm", "effective_lr") if name in run and run[name].dims == ("step",)]
    figure, axes = page.new_figure(2.5 * len(shown), len(shown), sharex=True, squeeze=False)
    simulate.plots.plot_trajectory(run, list(axes[:, 0]), variables=shown, most_points=_MOST_POINTS, **drawn)
    return figure


def _whole(run: xr.Dataset, found: Findings) -> tuple[Figure, str]:
    judged, levels = found.classification, _levels(run)
    periods = judged.periods if judged is not None and judged.periods.count <= _MOST_MARKED else None
    words = ["All rows."]
    if found.replayed is not None:
        words.append("Dashed: the norm simulated from the measured gradient norms alone.")
    if periods is not None and periods.count and judged is not None and judged.verdict == PERIODIC:
        words.append("Green: onsets of periods.")
    else:
        periods = None
    if levels:
        words.append("Dotted: the equilibrium that the mean square of the gradient norm predicts.")
    return _trajectory_figure(run, simulated=found.replayed, periods=periods, levels=levels), " ".join(words)


def _some_periods(run: xr.Dataset, found: Findings) -> tuple[Figure, str]:
    part, periods = last_periods(run)
    simulated = None if found.replayed is None else found.replayed.sel(step=part.step)
    caption = f"The last {periods.count} periods; green: their onsets. Dashed and dotted as above."
    return _trajectory_figure(part, simulated=simulated, periods=periods, levels=_levels(run)), caption


def _phase(run: xr.Dataset, is_periodic: bool) -> tuple[Figure, str]:
    part, periods = last_periods(run) if is_periodic else (run, None)
    words = ["Effective learning rate against gradient norm."]
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    if ax.lines:
        words.append("Below the dotted line the norm falls, above it rises.")
    return figure, " ".join([*words, "The same periods as above."] if is_periodic else words)


def _lengths(periods: simulate.MeasuredPeriods) -> tuple[Figure, str]:
    figure, ax = page.new_figure(4.0)
    simulate.plots.plot_periods(periods, ax)
    return figure, "How long the periods last; the broad line is their mean and its standard error."


def _spikes(diagnosis: simulate.Diagnosis) -> tuple[Figure, str]:
    count = len(drawn_log(diagnosis).data_vars)
    figure, axes = page.new_figure(2.5 * count + 0.3, count, sharex=True, squeeze=False)
    simulate.plots.plot_diagnosis(diagnosis, list(axes[:, 0]), most_points=_MOST_POINTS)
    return figure, "Each spike of the loss is marked by its cause."


def settings(run: xr.Dataset) -> dict[str, str]:
    """Settings of a run, as texts: those of its config that are given, and the attributes of the trajectory.

    Examples
    --------
    >>> settings(xr.Dataset(attrs={"lr": 0.1, "config": '{"model": "mlp", "width": null}'}))
    {'model': 'mlp', 'lr': '0.1'}
    """
    held = {**held_config(run.attrs.get("config", "")), **run.attrs}
    return {str(name): page.plain(value) for name, value in held.items() if name != "config" and value is not None}


def _how_to_open(run: xr.Dataset, place: str) -> list[str]:
    rows = f"{page.counted(run.sizes['step'], 'row')}: {', '.join(sorted(map(str, run.data_vars)))}."
    if not place:
        return [page.paragraphs(f"The trajectory was given as it is, from memory. {rows}")]
    code = f'import simulate\n\nrun = simulate.load("{place}")    # an xarray.Dataset\nprint(run.norm)'
    return [page.paragraphs(rows), page.lines(code)]


def _made_with(run: xr.Dataset) -> str:
    names = ("bnwd", "torch", "numpy")
    told = [f"{name} {run.attrs[f'{name}_version']}" for name in names if f"{name}_version" in run.attrs]
    return f"The run was made with {', '.join(told)}." if told else ""
