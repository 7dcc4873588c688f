"""The report of a validation: one self-contained HTML page with table and figures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import simulate
import theory
from empirical.reports import page
from empirical.reports.comparison import PERIODS_SHOWN, last_periods, predicted_levels, setting_name
from empirical.studies.validation import checks
from empirical.studies.validation.checks import Row
from simulate.plots.style import MEASURED, ONSET, PREDICTED
from simulate.trajectories.contract import setting_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEPS_AT_REST = 2000


def write_report(
    path: Path,
    preset: str,
    rows: list[Row],
    cells: list[list[str]],
    runs: Mapping[str, xr.Dataset],
    places: Mapping[str, str],
) -> None:
    """Write the page, aside and renamed.

    Parameters
    ----------
    path : of the page.
    preset : name of the validation.
    rows, cells : the table, as rows and as the texts of its cells.
    runs, places : trajectories by name, those of the preset "digits", and their folders as seen from the page.
    """
    held = sum(row.holds for row in rows)
    heads, *texts = cells
    lines = [_table_cells(row, line) for row, line in zip(rows, texts, strict=True)]
    told = (
        f"<p><strong>{held} of {len(rows)} claims hold.</strong> Every row holds a prediction of <code>theory</code> "
        "and a simulation of <code>simulate</code> against networks trained on the data set "
        f"“{html.escape(preset)}” with telemetry at every step. Rows that begin with “control” must fail the test they "
        "are put to: they show that the test can fail.</p>"
    )
    data = page.section(
        "Data",
        '<p>The table is in <code>table.csv</code>; <code>empirical.open_sweep("runs")</code> opens all runs as one '
        "labelled dataset, <code>simulate.load</code> each by its folder:</p>",
        page.table("folders of the runs", [], [[name, place] for name, place in places.items()]),
    )
    page.write_page(
        path,
        f"Training with batch normalization and weight decay: theory, simulation and {len(runs)} real runs",
        [told, page.table("claims", heads, lines), *(page.figure_section(*each) for each in _figures(runs)), data],
        footer=f"Trained with torch {next(iter(runs.values())).attrs['torch_version']}. "
        "The claims are those of Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.",
    )


def _figures(runs: Mapping[str, xr.Dataset]) -> list[tuple[str, Figure, str]]:
    """Title, figure and caption of each."""
    periodic = runs["convnet-high-1"]
    return [
        (
            "A periodic run",
            _periodic_figure(periodic),
            f"ConvNet on digits, {setting_name(periodic)}: {PERIODS_SHOWN} periods. The norm falls by "
            "weight decay, the effective lr rises, training destabilizes (green: the onsets that the detector found), "
            "the norm jumps up. Dashed: the norm simulated from the measured gradient norms alone. Dotted: the "
            "equilibrium that the mean square of the gradient norm predicts, at which the run never rests.",
        ),
        (
            "Phase picture",
            _phase_figure(periodic),
            "The same run as effective learning rate against gradient norm. Below the dotted line the norm falls, "
            "above it rises; a period goes up on the left, where gradients are small, breaks, and comes back on the "
            "right.",
        ),
        (
            "A run at equilibrium",
            _equilibrium_figure(runs["small-mlp-1"], runs["small-mlp-2"]),
            "The last steps of a BN-MLP of width 8, too small to fit the data: gradients stay noisy, and the norm "
            "settles where the gradient norms of another seed predict it.",
        ),
        (
            "Envelopes",
            _envelope_figure(runs["small-mlp-1"]),
            "The norm inside the interval that it cannot leave when the gradient norm stays between its smallest and "
            "largest value of each window of 1/ηλ steps.",
        ),
        (
            "One law for the norm",
            _replay_figure(runs),
            "Relative deviation of the norm simulated by r⁺ = (1-ηλ)² r + (ηg̃)²/r, r = ρ², from the measured one. "
            "Scale-invariant weights follow the law to rounding; PyTorch's default ε of 1e-5 spoils it at small norms, "
            "and without normalization there is no such law.",
        ),
        (
            "Symmetry",
            _symmetry_figure(runs),
            "Losses of two runs, in the second of which η and 1/λ are smaller by 5 and ρ₀ by √5: the same curve "
            "with ε = 1e-12; with ε = 1e-5 the runs part.",
        ),
    ]


def _table_cells(row: Row, texts: list[str]) -> list[page.Cell]:
    """Cells that are shown as these texts, and sorted by the numbers of the row."""
    values = [None, row.predicted, row.simulated, row.measured, row.difference, None, None]
    kinds = [""] * 6 + [row.verdict]
    return [page.Cell(*cell) for cell in zip(texts, values, kinds, strict=True)]


def _periodic_figure(run: xr.Dataset) -> Figure:
    part, periods = last_periods(run)
    figure, axes = page.new_figure(7.5, 3, sharex=True)
    simulated = simulate.replay(run).sel(step=part.step)
    simulate.plots.plot_trajectory(
        part, list(axes), simulated=simulated, periods=periods, levels=predicted_levels(run, run)
    )
    return figure


def _phase_figure(run: xr.Dataset) -> Figure:
    part, periods = last_periods(run)
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    return figure


def _equilibrium_figure(run: xr.Dataset, other: xr.Dataset) -> Figure:
    figure, axes = page.new_figure(7.5, 3, sharex=True)
    # its end: of the whole run the two curves would be one broad band
    shown = {"step": slice(-_STEPS_AT_REST, None)}
    simulate.plots.plot_trajectory(
        run.isel(shown), list(axes), simulated=simulate.replay(run).isel(shown), levels=predicted_levels(run, other)
    )
    return figure


def _envelope_figure(run: xr.Dataset) -> Figure:
    lr, wd = float(setting_variable(run, "lr")), float(setting_variable(run, "wd"))
    window = round(1 / (lr * wd))
    figure, ax = page.new_figure(3.5)
    first = max(run.sizes["step"] - 6 * window - 1, 0)
    for start in range(first, run.sizes["step"] - window, window):
        part = run.isel(step=slice(start, start + window))
        low, high = float(part.grad_norm.min()), float(part.grad_norm.max())
        steps = np.arange(start, start + window + 1)
        bounds = theory.norm_envelope(window, float(part.norm[0]), lr, wd, low, high)
        ax.fill_between(steps, bounds.lower, bounds.upper, color=PREDICTED, alpha=0.2, linewidth=0)
        ax.plot(steps, run.norm.values[steps], color=MEASURED, linewidth=1.2)
    ax.set_xlabel("step")
    ax.set_ylabel("norm ρ")
    ax.margins(x=0)
    return figure


def _replay_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, ax = page.new_figure(4.2)
    shown = {
        "convnet-high-1": ("ConvNet, periodic", MEASURED, "-"),
        "small-mlp-1": ("BN-MLP width 8, equilibrium", ONSET, "-."),
        "small-norm-default-eps": ("BN-MLP at ρ ≈ 0.1, ε = 1e-5", PREDICTED, "--"),
        "unnormalized": ("MLP without normalization", "#000000", ":"),
    }
    for name, (label, color, style) in shown.items():
        deviation = np.maximum.accumulate(checks.replay_deviation(runs[name]))
        ax.plot(np.maximum(deviation, 1e-9), style, color=color, label=label, linewidth=1.5)
    ax.axhline(checks.REPLAY_TOLERANCE, color="#888888", linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left=1)
    ax.set_xlabel("step")
    ax.set_ylabel("largest relative deviation so far")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _symmetry_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, axes = page.new_figure(3.8, columns=2, sharey=True)
    for ax, suffix, title in zip(axes, ("", "-default-eps"), ("ε = 1e-12", "ε = 1e-5"), strict=True):
        for which, color, style in (("high", MEASURED, "-"), ("low", PREDICTED, "--")):
            run = runs[f"symmetry-{which}{suffix}"]
            ax.plot(run.loss.values, color=color, linestyle=style, linewidth=1.2, label=setting_name(run))
        ax.set_title(title, fontsize=10)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("mini-batch loss")
    return figure
