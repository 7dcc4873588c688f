"""The report of a validation: one self-contained HTML page with table and figures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from markupsafe import Markup

import simulate
import theory
from empirical.reports import page
from empirical.reports.comparison import PERIODS_SHOWN, equilibrium_levels, last_periods, setting_name
from empirical.reports.tables import Cell, Table
from empirical.studies.validation import checks
from empirical.studies.validation.checks import Row
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR
from simulate.trajectories.contract import setting_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EQUILIBRIUM_STEPS = 2000


def write_report(
    path: Path,
    preset: str,
    rows: list[Row],
    cells: list[list[str]],
    runs: Mapping[str, xr.Dataset],
    places: Mapping[str, str],
) -> None:
    """Write the report atomically.

    Parameters
    ----------
    path : HTML file.
    preset : name of the preset.
    rows, cells : the table as rows and as cell texts.
    runs, places : trajectories of the preset "digits" by name, and their folders relative to the page.
    """
    holding = sum(row.holds for row in rows)
    header, *texts = cells
    lines = [_table_cells(row, line) for row, line in zip(rows, texts, strict=True)]
    summary = Markup(
        f"<p><strong>{holding} of {len(rows)} claims hold.</strong> Each row compares training with a prediction of "
        "<code>theory</code> and a simulation of <code>simulate</code>. The networks were trained on the data set "
        f"“{html.escape(preset)}” with telemetry at every step. Rows that begin with “control” show that a test can "
        "fail: they hold if the test fails.</p>"
    )
    opening = Markup(
        '<p>The table is in <code>table.csv</code>; <code>empirical.open_sweep("runs")</code> opens all runs as one '
        "labelled dataset. <code>simulate.load</code> opens one run by its folder:</p>"
    )
    folders = Table([], list(places.items()), "folders of the runs")
    page.write_page(
        path,
        f"Training with batch normalization and weight decay: theory, simulation and {len(runs)} real runs",
        [
            page.Section("", [summary, Table(header, lines, "claims")]),
            *(page.figure_section(*part) for part in _figures(runs)),
            page.Section("Data", [opening, folders]),
        ],
        footer=f"Trained with torch {next(iter(runs.values())).attrs['torch_version']}. "
        "Source of the claims: Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.",
    )


def _figures(runs: Mapping[str, xr.Dataset]) -> list[tuple[str, Figure, str]]:
    """Title, picture and caption of each figure."""
    periodic = runs["convnet-high-1"]
    return [
        (
            "A periodic run",
            _periodic_figure(periodic),
            f"ConvNet on digits, {setting_name(periodic)}: {PERIODS_SHOWN} periods. Weight decay "
            "shrinks the norm, the effective lr grows, training destabilizes (green: detected onsets), and the norm "
            "rises. Dashed: norm simulated from the measured gradient norms alone. Dotted: the predicted equilibrium, "
            "which this run never reaches.",
        ),
        (
            "Phase picture",
            _phase_figure(periodic),
            "Effective learning rate over gradient norm in the same run. The norm falls below the dotted line and "
            "rises above it. Each period moves up on the left, where gradients are small, destabilizes, and returns on "
            "the right.",
        ),
        (
            "A run at equilibrium",
            _equilibrium_figure(runs["small-mlp-1"], runs["small-mlp-2"]),
            "The last steps of a BN-MLP of width 8, which is too small to fit the data. Its gradients stay noisy, and "
            "the norm settles at the equilibrium predicted from the gradient norms of another seed.",
        ),
        (
            "Envelopes",
            _envelope_figure(runs["small-mlp-1"]),
            "Interval that the norm cannot leave, given the smallest and largest gradient norm in each window of 1/ηλ "
            "steps.",
        ),
        (
            "One law for the norm",
            _replay_figure(runs),
            "Relative deviation of the measured norm from the law r⁺ = (1-ηλ)² r + (ηg̃)²/r, where r = ρ². "
            "Scale-invariant weights follow the law up to rounding. With PyTorch's default ε of 1e-5 it fails at small "
            "norms. Without normalization it does not apply.",
        ),
        (
            "Symmetry",
            _symmetry_figure(runs),
            "Losses of two runs with equal ηλ. In the second, η is divided by 5, λ multiplied by 5 and ρ₀ divided by "
            "√5. The curves agree for ε = 1e-12 and diverge for ε = 1e-5.",
        ),
    ]


def _table_cells(row: Row, texts: list[str]) -> list[Cell]:
    """Cells with these texts, sorted by the numbers of the row."""
    values = [None, row.predicted, row.simulated, row.measured, row.difference, None, None]
    kinds = [""] * 6 + [row.verdict]
    return [Cell(*cell) for cell in zip(texts, values, kinds, strict=True)]


def _periodic_figure(run: xr.Dataset) -> Figure:
    part, periods = last_periods(run)
    figure, axes = page.new_figure(7.5, 3, sharex=True)
    simulated = simulate.replay(run).sel(step=part.step)
    simulate.plots.plot_trajectory(
        part, list(axes), simulated=simulated, periods=periods, levels=equilibrium_levels(run, run)
    )
    return figure


def _phase_figure(run: xr.Dataset) -> Figure:
    part, periods = last_periods(run)
    figure, ax = page.new_figure(5.5)
    simulate.plots.plot_phase(part, ax, periods=periods)
    return figure


def _equilibrium_figure(run: xr.Dataset, other: xr.Dataset) -> Figure:
    figure, axes = page.new_figure(7.5, 3, sharex=True)
    # only the end, since the curves of a whole run would look like one broad band
    last_steps = {"step": slice(-_EQUILIBRIUM_STEPS, None)}
    simulate.plots.plot_trajectory(
        run.isel(last_steps),
        list(axes),
        simulated=simulate.replay(run).isel(last_steps),
        levels=equilibrium_levels(run, other),
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
        ax.fill_between(steps, bounds.lower, bounds.upper, color=PREDICTED_COLOR, alpha=0.2, linewidth=0)
        ax.plot(steps, run.norm.values[steps], color=MEASURED_COLOR, linewidth=1.2)
    ax.set_xlabel("step")
    ax.set_ylabel("norm ρ")
    ax.margins(x=0)
    return figure


def _replay_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, ax = page.new_figure(4.2)
    styles = {
        "convnet-high-1": ("ConvNet, periodic", MEASURED_COLOR, "-"),
        "small-mlp-1": ("BN-MLP width 8, equilibrium", ONSET_COLOR, "-."),
        "small-norm-default-eps": ("BN-MLP at ρ ≈ 0.1, ε = 1e-5", PREDICTED_COLOR, "--"),
        "unnormalized": ("MLP without normalization", "#000000", ":"),
    }
    for name, (label, color, style) in styles.items():
        deviation = np.maximum.accumulate(checks.replay_deviation(runs[name]))
        ax.plot(np.maximum(deviation, 1e-9), style, color=color, label=label, linewidth=1.5)
    ax.axhline(checks.REPLAY_TOLERANCE, color="#888888", linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left=1)
    ax.set_xlabel("step")
    ax.set_ylabel("largest relative deviation up to this step")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _symmetry_figure(runs: Mapping[str, xr.Dataset]) -> Figure:
    figure, axes = page.new_figure(3.8, columns=2, sharey=True)
    for ax, suffix, title in zip(axes, ("", "-default-eps"), ("ε = 1e-12", "ε = 1e-5"), strict=True):
        for which, color, style in (("high", MEASURED_COLOR, "-"), ("low", PREDICTED_COLOR, "--")):
            run = runs[f"symmetry-{which}{suffix}"]
            ax.plot(run.loss.values, color=color, linestyle=style, linewidth=1.2, label=setting_name(run))
        ax.set_title(title, fontsize=10)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("mini-batch loss")
    return figure
