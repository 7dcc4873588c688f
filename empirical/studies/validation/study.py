"""Main validation: train networks, compare them with theory and simulation, and write a report."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import xarray as xr

import simulate
import theory
from empirical.config import RunConfig
from empirical.reports.comparison import setting_name
from empirical.studies.validation import checks, report
from empirical.studies.validation.checks import Row
from empirical.sweeps.sweep import sweep
from empirical.sweeps.task import FAILED, run_path
from simulate._files import atomic_write, write_json
from simulate.trajectories.contract import COMPLETE
from theory.arguments import check_choice

VALIDATION_MARKER, VALIDATION_TABLE, VALIDATION_REPORT, VALIDATION_RUNS = (
    "validation.json",
    "table.csv",
    "report.html",
    "runs",
)

RunsByName = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class Preset:
    """Runs of a validation, and the function that compares them."""

    runs: Mapping[str, RunConfig]
    rows: Callable[[RunsByName], list[Row]]


@dataclass(frozen=True)
class Validation:
    """Result of a validation.

    Attributes
    ----------
    rows : rows of the table.
    folder : folder of report, table and runs.
    """

    rows: list[Row]
    folder: Path

    @property
    def holds(self) -> bool:
        """Whether every row holds."""
        return all(row.holds for row in self.rows)

    def __str__(self) -> str:
        return format_table(self.rows)


def digits_runs() -> dict[str, RunConfig]:
    """Return the runs of the preset "digits": small networks on 8×8 images.

    Examples
    --------
    >>> len({config.identity for config in digits_runs().values()}) == len(digits_runs())
    True
    """
    runs: dict[str, RunConfig] = {}
    for number in (1, 2, 3):
        runs[f"convnet-high-{number}"] = RunConfig(lr=0.5, wd=0.01, model="convnet", steps=8000, seed=number)
        runs[f"convnet-low-{number}"] = RunConfig(lr=0.1, wd=0.05, model="convnet", steps=8000, seed=10 + number)
    runs["mlp-slow"] = RunConfig(lr=0.5, wd=0.002, model="mlp", width=64, steps=36_000, seed=1)
    runs["mlp-fast"] = RunConfig(lr=0.5, wd=0.02, model="mlp", width=64, steps=10_000, seed=2)
    for name, seed in (("small-mlp-1", 1), ("small-mlp-2", 2)):
        runs[name] = RunConfig(lr=0.5, wd=0.02, model="mlp", width=8, steps=12_000, seed=seed)
    runs["unnormalized"] = RunConfig(lr=0.1, wd=0.01, normalization="none", scale_invariant=False, steps=2000)
    # ρ settles near 0.1, where PyTorch's default ε has an effect
    for name, eps in (("small-norm", 1e-12), ("small-norm-default-eps", 1e-5)):
        runs[name] = RunConfig(lr=5e-4, wd=20.0, norm_eps=eps, steps=3000)
    # η/5, 5λ and ρ₀/√5 give the same directions
    shared: dict[str, Any] = {"dtype": "float64", "steps": 200}
    for suffix, eps in (("", 1e-12), ("-default-eps", 1e-5)):
        runs[f"symmetry-high{suffix}"] = RunConfig(lr=0.5, wd=0.01, init_norm=5.0, norm_eps=eps, **shared)
        runs[f"symmetry-low{suffix}"] = RunConfig(lr=0.1, wd=0.05, init_norm=5.0 / 5**0.5, norm_eps=eps, **shared)
    return runs


def digits_rows(runs: RunsByName) -> list[Row]:
    """Return the rows of the preset "digits" from the trajectories of its runs."""
    high, low = ([runs[f"convnet-{which}-{number}"] for number in (1, 2, 3)] for which in ("high", "low"))
    names = [f"ConvNet {setting_name(group[0])}" for group in (high, low)]
    mlps = [runs["mlp-fast"], runs["mlp-slow"]]
    controls = ("unnormalized", "small-norm-default-eps")
    replayed = [name for name in runs if name not in controls and not name.endswith("-default-eps")]
    return [
        *checks.equilibrium_rows("BN-MLP width 8", runs["small-mlp-1"], runs["small-mlp-2"]),
        checks.equilibrium_control_row(names[0], high[0]),
        *(checks.replay_row(name, runs[name]) for name in replayed),
        checks.replay_row("small norm with PyTorch's ε = 1e-5", runs["small-norm-default-eps"], control=True),
        checks.replay_row("MLP without normalization", runs["unnormalized"], control=True),
        *checks.envelope_rows("BN-MLP width 8", runs["small-mlp-1"], controls=True),
        *checks.envelope_rows(names[0], high[0], controls=False),
        *(checks.periodic_row(name, group) for name, group in zip(names, (high, low), strict=True)),
        checks.equal_periods_row(names, [high, low]),
        checks.peak_ratio_row(names, [high, low]),
        checks.equal_periods_row(
            [f"BN-MLP width 64 {setting_name(run)}" for run in mlps], [[run] for run in mlps], equal=False
        ),
        checks.equal_losses_row("ε = 1e-12", runs["symmetry-high"], runs["symmetry-low"]),
        checks.equal_losses_row(
            "ε = 1e-5", runs["symmetry-high-default-eps"], runs["symmetry-low-default-eps"], control=True
        ),
    ]


PRESETS = {"digits": Preset(digits_runs(), digits_rows)}


def validate(
    preset: str = "digits", out: str | os.PathLike[str] = "report", *, progress: bool | None = None
) -> Validation:
    """Train networks, compare them with theory and simulation, and write a report.

    Parameters
    ----------
    preset : "digits": 17 runs on 8×8 images, about two minutes on two cores.
    out : folder for `report.html`, `table.csv` and the runs, which are a sweep (`empirical.open_sweep`). An earlier
        report is replaced and an interrupted one is continued. A folder with other files is refused.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    Validation; `holds` is true if every row of the table holds.

    Raises
    ------
    ValueError : unknown preset, or a folder that cannot be used.
    RuntimeError : a training process failed.
    KeyboardInterrupt : Ctrl-C or SIGTERM. The next call continues the runs.

    Source: arXiv 2106.15739 §3-§5 and docs/mathematics.md §1-§6.

    Examples
    --------
    >>> validate("unknown")
    Traceback (most recent call last):
    ...
    ValueError: preset must be one of digits; got 'unknown'
    """
    check_choice("preset", preset, PRESETS)
    chosen = PRESETS[preset]
    folder = _prepare_folder(Path(out), preset, chosen)
    runs = _train_all(chosen.runs, folder / VALIDATION_RUNS, progress)
    incomplete = {name: run.status.item() for name, run in runs.items() if run.status.item() != COMPLETE}
    if incomplete:
        raise RuntimeError(
            f"these runs are not complete: {incomplete}. Their traces are in {folder / VALIDATION_RUNS}."
        )
    result = Validation(chosen.rows(runs), folder)
    places = {name: run_path(Path(VALIDATION_RUNS), run).as_posix() for name, run in chosen.runs.items()}
    report.write_report(folder / VALIDATION_REPORT, preset, result.rows, table_cells(result.rows), runs, places)
    _write_table(folder / VALIDATION_TABLE, result.rows)
    write_json(folder / VALIDATION_MARKER, {**_description(preset, chosen), "complete": True})
    return result


def format_table(rows: list[Row]) -> str:
    """Return the table as plain text.

    Examples
    --------
    >>> print(format_table([Row("norm", "|difference| <= 2%", True, 2.0, 2.01, 2.02, 0.01, 0.003)]))
    claim  predicted  simulated  measured  difference ± error  rule                verdict
    norm           2       2.01      2.02       +0.01 ± 0.003  |difference| <= 2%  holds
    """
    cells = table_cells(rows)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            c.rjust(w) if 0 < i < 5 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def table_cells(rows: list[Row]) -> list[list[str]]:
    """Return the cells of the table as text, one list per row after the header.

    Examples
    --------
    >>> table_cells([Row("norm", "rule", True, predicted=2.0)])[1][:4]
    ['norm', '2', '–', '–']
    """
    cells = [["claim", "predicted", "simulated", "measured", "difference ± error", "rule", "verdict"]]
    for row in rows:
        numbers = [
            "–" if math.isnan(value) else f"{value:.4g}" for value in (row.predicted, row.simulated, row.measured)
        ]
        parts = [] if math.isnan(row.difference) else [f"{row.difference:+.3g}"]
        parts += [] if math.isnan(row.error) else [f"± {row.error:.2g}"]
        cells.append([row.claim, *numbers, " ".join(parts) or "–", row.rule, row.verdict])
    return cells


def _description(preset: str, chosen: Preset) -> dict[str, Any]:
    identities = {name: [config.identity, config.steps] for name, config in chosen.runs.items()}
    return {"made_by": "bnwd validate", "version": theory.__version__, "preset": preset, "runs": identities}


def _prepare_folder(folder: Path, preset: str, chosen: Preset) -> Path:
    """Prepare the folder: remove a finished report, continue an unfinished one, and refuse other files."""
    description = _description(preset, chosen)
    try:
        if folder.exists() and any(folder.iterdir()):
            try:
                marker = json.loads((folder / VALIDATION_MARKER).read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
                marker = {}
            if marker.get("made_by") != description["made_by"]:
                raise ValueError(f"out must be a new or empty folder or an earlier report, got {str(folder)!r}")
            if marker != description:
                for name in (VALIDATION_REPORT, VALIDATION_TABLE):
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / VALIDATION_RUNS, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / VALIDATION_MARKER, description)
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None
    return folder


def _train_all(runs: Mapping[str, RunConfig], folder: Path, progress: bool | None) -> dict[str, xr.Dataset]:
    """Train all runs in parallel, the longest first, and return them by name."""
    # a ConvNet step takes five times as long as an MLP step
    ordered = sorted(runs.values(), key=lambda run: -run.steps * (5 if run.model == "convnet" else 1))
    table = sweep(ordered, folder, progress=progress)
    if (table.status == FAILED).any():
        raise RuntimeError(f"a training process failed: {table.error.values[table.status == FAILED][0]}")
    return {name: simulate.load(run_path(folder, run)) for name, run in runs.items()}


def _write_table(path: Path, rows: list[Row]) -> None:
    names = [field.name for field in fields(Row) if field.name != "holds"]
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "verdict"])
        writer.writerows([*(getattr(row, name) for name in names), row.verdict] for row in rows)
