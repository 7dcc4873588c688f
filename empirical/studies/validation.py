"""Main validation: train networks, compare them with theory and simulation, and write a report."""

from __future__ import annotations

import csv
import functools
import html
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

import theory
from empirical.config import RunConfig
from empirical.reports import page
from empirical.reports.tables import Table
from empirical.studies import statistics
from empirical.studies.figures import REPLAY_TOLERANCE, validation_figures
from empirical.studies.study import (
    HOLDS,
    RUNS_SUBFOLDER,
    Control,
    Limit,
    Result,
    Study,
    folder_errors,
    load_stored_run,
    prepare_folder,
    results_table,
    run_studies,
)
from empirical.sweeps.sweep import AnyExecutor
from empirical.sweeps.task import run_path
from simulate._files import atomic_write, write_json
from simulate.trajectories.verdicts import LOG_NORM_SD_MAX, ROTATION_RATIO_MIN
from theory.arguments import check_choice, check_path

VALIDATION_MARKER, VALIDATION_TABLE, VALIDATION_REPORT = "validation.json", "table.csv", "report.html"
_MADE_BY, _PAPER = "bnwd validate", "arXiv 2106.15739"
_SYMMETRY = f"{_PAPER}; docs/mathematics.md §6"
_CLASSIFIED = "simulate.classify has this limit"
_COLUMNS = ("claim", "predicted", "simulated", "measured", "difference ± error", "rule", "verdict")
_RANDOM_ORDER = "gradient norms in random order"
_SHIFT = 0.1  # relative change of ℓ or L that must put the norm outside its envelope


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Result of a validation.

    Attributes
    ----------
    rows : rows of the table: every study, and its controls, which hold if the rule fails for them.
    folder : folder of report, table and runs.
    """

    rows: list[Result]
    folder: Path

    @property
    def count(self) -> int:
        """Number of rows that hold."""
        return sum(row.verdict == HOLDS for row in self.rows)

    @property
    def holds(self) -> bool:
        """Whether every row holds."""
        return self.count == len(self.rows)

    def __str__(self) -> str:
        return results_table(self.rows, _COLUMNS).text()


def digits_runs() -> dict[str, RunConfig]:
    """Return the runs of the preset "digits": small networks on 8×8 images."""
    runs: dict[str, RunConfig] = {}
    # batches of 64 have less regular periods, and the verdict on one run then depends on seed and rounding
    periodic: dict[str, Any] = {"model": "convnet", "batch_size": 256, "steps": 8000}
    for number in (1, 2, 3):
        runs[f"convnet-high-{number}"] = RunConfig(lr=0.5, wd=0.01, seed=number, **periodic)
        runs[f"convnet-low-{number}"] = RunConfig(lr=0.1, wd=0.05, seed=10 + number, **periodic)
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


PRESETS: Mapping[str, Mapping[str, RunConfig]] = {"digits": digits_runs()}


def digits_studies(runs: Mapping[str, RunConfig]) -> list[Study]:
    """Return the studies of the preset "digits" for its runs by name."""
    high, low = ([runs[f"convnet-{which}-{number}"] for number in (1, 2, 3)] for which in ("high", "low"))
    convnets = {f"ConvNet {_setting(group[0])}": group for group in (high, low)}
    mlps = {f"BN-MLP width 64 {_setting(runs[name])}": [runs[name]] for name in ("mlp-fast", "mlp-slow")}
    high_name, small = next(iter(convnets)), "BN-MLP width 8"
    small_mlp, one_convnet = ({"run": [run]} for run in (runs["small-mlp-1"], high[0]))
    at_equilibrium: dict[str, Any] = {"source": f"{_PAPER} §3", "runs": {**small_mlp, "other": [runs["small-mlp-2"]]}}
    shifts: dict[str, Any] = {"ℓ raised": {"raise_low": _SHIFT}, "L lowered": {"lower_high": _SHIFT}}
    inside: dict[str, Any] = {
        "source": "docs/mathematics.md §4",
        "rule": Limit(at_most=1e-4, name="largest relative distance"),
        "reason": "the bounds are exact, up to rounding in float32",
    }
    symmetric, default_eps = (
        {which: [runs[f"symmetry-{which}{suffix}"]] for which in ("high", "low")} for suffix in ("", "-default-eps")
    )
    steps = f"{symmetric['high'][0].steps} steps"
    return [
        Study(
            name="equilibrium-norm",
            claim=f"equilibrium norm, predicted from another seed: {small}",
            statistic=statistics.equilibrium_norm_numbers,
            rule=Limit(at_most=0.02, name="|difference|", form=".0%"),
            reason="mean gradient norms at equilibrium differ by less between seeds",
            **at_equilibrium,
        ),
        Study(
            name="equilibrium-rotation",
            claim=f"median rotation at equilibrium: {small}",
            statistic=statistics.equilibrium_rotation_numbers,
            rule=Limit(at_least=ROTATION_RATIO_MIN, name="measured / predicted"),
            reason=_CLASSIFIED,
            controls=(Control(name=f"not at equilibrium: {high_name}", runs=one_convnet),),
            **at_equilibrium,
        ),
        Study(
            name="equilibrium-spread",
            claim=f"spread of ln ρ at equilibrium: {small}",
            statistic=statistics.log_norm_spread,
            rule=Limit(at_most=LOG_NORM_SD_MAX, name="measured"),
            reason=_CLASSIFIED,
            controls=(Control(name=f"not at equilibrium: {high_name}", runs=one_convnet),),
            **at_equilibrium,
        ),
        *(
            _replay_study(name, run, runs)
            for name, run in runs.items()
            if name != "unnormalized" and not name.endswith("-default-eps")
        ),
        Study(
            name="envelope",
            claim=f"norm inside its envelope: {small}",
            runs=small_mlp,
            statistic=statistics.distance_from_envelope,
            controls=tuple(
                Control(
                    name=f"norm leaves the envelope with {change} by {_SHIFT:.0%}: {small}",
                    statistic=functools.partial(statistics.distance_from_envelope, show_width=False, **shift),
                )
                for change, shift in shifts.items()
            ),
            **inside,
        ),
        Study(
            name="envelope-of-periods",
            claim=f"norm inside its envelope: {high_name}",
            runs=one_convnet,
            statistic=statistics.distance_from_envelope,
            **inside,
        ),
        *(
            Study(
                name=f"periodic-{which}",
                claim=f"periodic, mean T·ηλ above its lower bound: {name}",
                source="docs/mathematics.md §5",
                runs={"all": group},
                statistic=statistics.period_over_bound,
                rule=Limit(at_least=1, name=f"periodic, >= {statistics.PERIODS_NEEDED} periods, measured / predicted"),
                reason="the bound is exact for the mean of many periods",
                controls=(
                    Control(
                        name=f"not periodic: {name}, {_RANDOM_ORDER}",
                        statistic=statistics.in_random_order(statistics.period_over_bound),
                    ),
                ),
            )
            for which, (name, group) in zip(("high", "low"), convnets.items(), strict=True)
        ),
        Study(
            name="equal-periods",
            claim=f"equal T·ηλ: {' and '.join(convnets)}",
            source=_SYMMETRY,
            runs=convnets,
            statistic=statistics.period_difference,
            rule=Limit(at_most=3, name="|difference| in standard errors"),
            reason="equal means differ by more in 0.3 % of cases",
            controls=(
                Control(
                    name=f"different T·ηλ: {' and '.join(mlps)}",
                    runs=mlps,
                    statistic=functools.partial(statistics.period_difference, of_any_runs=True),
                ),
                Control(
                    name=f"no periods: {' and '.join(convnets)}, {_RANDOM_ORDER}",
                    statistic=statistics.in_random_order(statistics.period_difference),
                ),
            ),
        ),
        Study(
            name="peak-ratio",
            claim=f"ratio of peak norms: {' to '.join(convnets)}",
            source=_SYMMETRY,
            runs=convnets,
            statistic=statistics.peak_ratio,
            rule=Limit(at_most=0.1, name="|difference|", form=".0%"),
            reason="the peaks of 60 periods have a standard error of a few percent",
            controls=(
                Control(
                    name=f"no peaks of periods: {' to '.join(convnets)}, {_RANDOM_ORDER}",
                    statistic=statistics.in_random_order(statistics.peak_ratio),
                ),
            ),
        ),
        Study(
            name="equal-losses",
            claim=f"equal losses by symmetry: ε = 1e-12, {steps}",
            source=_SYMMETRY,
            runs=symmetric,
            statistic=statistics.largest_loss_difference,
            rule=Limit(at_most=1e-6, name="largest difference"),
            reason="the losses are equal, up to rounding in float64 that grows with the steps",
            controls=(Control(name=f"losses differ: ε = 1e-5, {steps}", runs=default_eps),),
        ),
    ]


def _replay_study(name: str, run: RunConfig, runs: Mapping[str, RunConfig]) -> Study:
    controls = {
        "small norm with PyTorch's ε = 1e-5": "small-norm-default-eps",
        "MLP without normalization": "unnormalized",
    }
    return Study(
        name=f"replay-{name}",
        claim=f"replay of the norm: {name}",
        source="docs/mathematics.md §1",
        runs={"run": [run]},
        statistic=statistics.largest_replay_deviation,
        rule=Limit(at_most=REPLAY_TOLERANCE, name="largest relative deviation"),
        reason="the law is exact, up to rounding in float32 that grows with the steps",
        controls=tuple(
            Control(name=f"replay of the norm fails: {words}", runs={"run": [runs[control]]})
            for words, control in controls.items()
            if name == "small-norm"
        ),
    )


def _setting(run: RunConfig) -> str:
    return f"η={run.lr:g} λ={run.wd:g}"


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
    RuntimeError : a training failed.
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
    return validate_runs(preset, PRESETS[preset], out, progress=progress)


def validate_runs(
    preset: str,
    runs: Mapping[str, RunConfig],
    out: str | os.PathLike[str],
    *,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> Validation:
    """Train the runs of a preset by name, and write the report as `validate` does."""
    folder = check_path("out", out)
    description = prepare_report_folder(folder, preset, runs)
    results = run_studies(digits_studies(runs), folder, executor=executor, progress=progress, must_complete=True)
    validation = Validation(rows=[row for result in results for row in result.rows], folder=folder)
    _write_report(validation, preset, runs)
    _write_csv(folder / VALIDATION_TABLE, validation.rows)
    write_json(folder / VALIDATION_MARKER, {**description, "complete": True})
    return validation


def prepare_report_folder(folder: Path, preset: str, runs: Mapping[str, RunConfig]) -> dict[str, Any]:
    """Prepare the folder: remove a finished report, continue an unfinished one, and refuse other files."""
    earlier = prepare_folder(folder, VALIDATION_MARKER, _MADE_BY)
    identities = {name: [config.identity, config.steps] for name, config in runs.items()}
    description = {"made_by": _MADE_BY, "version": theory.__version__, "preset": preset, "runs": identities}
    with folder_errors(folder):
        if earlier and earlier != description:
            for name in (VALIDATION_REPORT, VALIDATION_TABLE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / RUNS_SUBFOLDER, ignore_errors=True)
        write_json(folder / VALIDATION_MARKER, description)
    return description


def _write_csv(path: Path, rows: Sequence[Result]) -> None:
    names = ("predicted", "simulated", "measured", "difference", "error")
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["claim", "rule", *names, "verdict"])
        writer.writerows(
            [row.claim, row.rule, *(getattr(row.numbers, name) for name in names), row.verdict] for row in rows
        )


def _write_report(validation: Validation, preset: str, configs: Mapping[str, RunConfig]) -> None:
    """Write one self-contained HTML page with table and figures."""
    folder, rows = validation.folder, validation.rows
    runs = {name: load_stored_run(folder / RUNS_SUBFOLDER, config) for name, config in configs.items()}
    places = [[name, run_path(Path(RUNS_SUBFOLDER), config).as_posix()] for name, config in configs.items()]
    summary = Markup(
        f"<p><strong>{validation.count} of {len(rows)} claims hold.</strong> Each row compares training with a "
        "prediction of <code>theory</code> and a simulation of <code>simulate</code>. The networks were trained on the "
        f"data set “{html.escape(preset)}” with telemetry at every step. Rows that begin with “control” show that a "
        "test can fail: they hold if the test fails.</p>"
    )
    opening = Markup(
        '<p>The table is in <code>table.csv</code>; <code>empirical.open_sweep("runs")</code> opens all runs as one '
        "labelled dataset. <code>simulate.load</code> opens one run by its folder:</p>"
    )
    page.write_html_page(
        folder / VALIDATION_REPORT,
        f"Training with batch normalization and weight decay: theory, simulation and {len(runs)} real runs",
        [
            page.Section("", [summary, results_table(rows, _COLUMNS)]),
            *(page.figure_section(*part) for part in validation_figures(runs)),
            page.Section("Data", [opening, Table([], places, "folders of the runs")]),
        ],
        footer=f"Trained with torch {next(iter(runs.values())).attrs['torch_version']}. "
        "Source of the claims: Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.",
    )
