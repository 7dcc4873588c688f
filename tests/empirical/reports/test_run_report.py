"""Reports of runs and sweeps: contents, self-contained pages, and display in a browser."""

import concurrent.futures
import dataclasses
import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import empirical
import simulate
import theory
from empirical.cli.main import app
from empirical.reports import page
from empirical.reports.comparison import compare_run, equilibrium_comparisons, equilibrium_levels, recent_rms
from empirical.reports.run_report import write_run_report
from empirical.reports.sweep_report import SweepRun, sweep_runs
from empirical.reports.tables import Table, number_cell
from empirical.sweeps.grid import grid
from empirical.sweeps.store import SweepFolder, open_sweep
from empirical.sweeps.task import Summary, summarize_failure
from simulate.period_model.model import simulated_periods
from simulate.trajectories.periods import after_transient
from simulate.trajectories.setting import Setting
from tests.html_pages import Page, read_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def report(source, folder, **options):
    return read_page(write_run_report(source, folder / "report.html", **options))


def train_short(**settings):
    defaults = {"lr": 0.5, "wd": 0.02, "model": "mlp", "width": 8, "steps": 150}
    return empirical.train(empirical.RunConfig(**{**defaults, **settings}))


def norms_only():
    return xr.Dataset({"norm": ("step", np.linspace(1, 2, 50))}, {"step": np.arange(50)})


@pytest.fixture(scope="module")
def periodic():
    return simulate.oscillate(0.5, 0.02, steps=2000, seed=3)


@pytest.fixture(scope="module")
def written(periodic, tmp_path_factory):
    """Folder of the report of the periodic run."""
    folder = tmp_path_factory.mktemp("written")
    write_run_report(periodic, folder / "report.html")
    return folder


KINDS = {
    "periodic": None,
    "equilibrium": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1000),
    "adversarial": lambda: simulate.norm_map(
        0.5, 0.02, simulate.AdversarialGradient(1, 30, towards="upper"), norm=10.0, steps=1000
    ),
    "diverged map": lambda: simulate.norm_map(0.5, 0.02, 1e200, norm=2.6, steps=10),
    "collapsed map": lambda: simulate.norm_map(0.5, 1.0, 0.0, norm=2.6, steps=2000),
    "diverged training": lambda: train_short(fixed="effective_lr", wd=0.0),
    "no rows": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=0),
    "one row": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1),
    "short": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=30),
    "short training": train_short,
    "AdamW": lambda: train_short(lr=0.01, wd=1.0, optimizer=theory.AdamW(dim=584), steps=250),
    "Adam": lambda: train_short(lr=0.01, wd=0.1, optimizer=theory.Adam(dim=584), steps=100),
    "landscape": lambda: simulate.descend(simulate.Ratio2D(), 0.5, 0.1, steps=200, seed=0),
    "momentum": lambda: simulate.norm_map(0.1, 0.02, 2.0, norm=2.6, steps=2000, optimizer=theory.SGD(momentum=0.9)),
    "schedule": lambda: simulate.norm_map(theory.Cosine(0.5, 0.01, 900), 0.02, 2.0, norm=2.6, steps=900),
    "no decay": lambda: simulate.norm_map(0.5, 0.0, 2.0, norm=2.6, steps=200),
    "large decay": lambda: simulate.norm_map(1.5, 1.0, 2.0, norm=2.6, steps=200),
    "every tenth row": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000, record_every=10),
    "fixed norm": lambda: train_short(fixed="norm", wd=0.0),
    "fixed effective lr": lambda: train_short(fixed="effective_lr", lr=0.01, wd=0.0),
    "norms only": norms_only,
    "loss is NaN": lambda: simulate.oscillate(0.5, 0.02, steps=900).assign(loss=("step", np.full(900, np.nan))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_trajectory_gives_a_page(kind, written, tmp_path):
    report_page = read_page(written / "report.html") if kind == "periodic" else report(KINDS[kind](), tmp_path)
    words = "".join(report_page.words)
    if kind in ("periodic", "equilibrium"):
        assert ("Undetermined" in words) == (kind == "equilibrium"), "a map of norms has no loss"
        assert f"Verdict: {kind}" in words
    elif kind not in ("momentum", "landscape"):
        assert "Undetermined or uncertain results" in words
    if kind.startswith("fixed"):
        assert "without a constraint" in words
    for status in ("diverged", "collapsed"):
        assert (f"{status.capitalize()} after" in words) == kind.startswith(status)
    assert ("1 step." in words) == (kind == "one row")
    assert not re.search(r"(?<![\d.])1 steps", words)
    # only for plain SGD at constant η and λ > 0
    is_drawn = "balance of growth and decay" in report_page.text
    assert is_drawn == ("Below the dotted line the norm falls" in words)
    if kind in ("equilibrium", "short training", "momentum", "schedule", "Adam", "no decay", "fixed norm"):
        assert is_drawn == (kind in ("equilibrium", "short training"))


@settings(max_examples=10, deadline=None)
@given(
    norm=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=0, max_size=60),
    columns=st.sets(st.sampled_from(["grad_norm", "effective_lr", "rotation", "loss", "lr"])),
    attrs=st.dictionaries(st.sampled_from(["lr", "wd"]), st.floats(0, 3)),
    optimizer=st.sampled_from(["SGD()", "SGD(momentum=0.9)", "RMSprop"]),
    constraint=st.sampled_from(["none", "fixed norm"]),
)
def test_any_values_in_a_trajectory_give_a_page(norm, columns, attrs, optimizer, constraint, tmp_path_factory):
    values = ("step", np.array(norm, dtype=float))
    steps = np.arange(len(norm))
    run = xr.Dataset({"norm": values} | dict.fromkeys(sorted(columns), values), {"step": steps}, attrs)
    report(run.assign_attrs(optimizer=optimizer, constraint=constraint), tmp_path_factory.mktemp("page"))


def test_numbers_equal_those_of_theory_and_simulation(tmp_path):
    run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 3.0), norm=2.6, steps=2000, seed=0)
    report_page = report(run, tmp_path)
    part = after_transient(run)
    rms = float(np.sqrt((part.grad_norm**2).mean()))
    predicted = [float(value) for _, value in report_page.column(0, "predicted")]
    measured = [float(value) for _, value in report_page.column(0, "measured")]
    assert predicted[:2] == [
        pytest.approx(theory.equilibrium_norm(0.5, 0.02, rms), rel=1e-12),
        theory.equilibrium_rotation(0.5, 0.02),
    ]
    assert measured[:2] == pytest.approx([float((part.norm**4).mean() ** 0.25), float(np.median(part.rotation))])
    # on any stationary trace, equilibrium or not, the geometric mean of cos θ is 1-ηλ
    assert measured[2] == pytest.approx(predicted[2], rel=0.01)
    assert [float(value) for _, value in report_page.column(0, "measured / predicted")[:3]] == pytest.approx(
        [m / p for m, p in zip(measured[:3], predicted[:3], strict=True)]
    )
    assert float(report_page.column(0, "measured")[4][1]) < 1e-12


def test_the_norm_after_the_last_step_is_the_same_everywhere():
    # far from equilibrium, so that a step changes the norm
    comparison = compare_run(simulate.norm_map(0.5, 0.02, 2.0, norm=20.0, steps=250))
    line = next(row for row in comparison.comparisons if row.quantity == "replay, norm after the last step")
    assert line.measured == simulate.norm_map(0.5, 0.02, 2.0, norm=20.0, steps=251).norm[-1]
    assert line.ratio == 1
    assert f"ρ = {line.measured:.4g}," in comparison.outlook


def test_a_run_without_final_norm_lacks_one_comparison():
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300)
    without = compare_run(run.drop_vars("final_norm"))
    whole, part = ({line.quantity for line in result.comparisons} for result in (compare_run(run), without))
    assert whole - part == {"replay, norm after the last step"}


def test_levels_are_predicted_from_rows_after_the_transient():
    gradient = simulate.RecordedGradient(np.where(np.arange(1000) < 200, 30.0, 2.0))
    run = simulate.norm_map(0.5, 0.02, gradient, norm=2.6, steps=1000)
    assert equilibrium_levels(run, run) == {
        "norm": pytest.approx(theory.equilibrium_norm(0.5, 0.02, 2.0)),
        "effective_lr": pytest.approx(theory.equilibrium_effective_lr(0.5, 0.02, 2.0)),
        "angular_lr": pytest.approx(0.5 / theory.equilibrium_norm(0.5, 0.02, 2.0)),
    }


@pytest.mark.parametrize("schedule", [theory.Cosine(0.5, 0.05, steps=20_000), theory.Linear(0.5, 0.1, steps=20_000)])
def test_the_equilibrium_moves_with_the_schedule(schedule, tmp_path):
    run = simulate.norm_map(schedule, 0.02, 2.0, norm=3.0, steps=20_000)
    comparison = compare_run(run)
    level = comparison.levels["norm"]
    expected = theory.quasi_equilibrium_norm(schedule, 0.02, run.step.values, 2.0)
    np.testing.assert_allclose(level, expected, rtol=1e-9)
    # the norm follows it: it lags by a percent at most, while the equilibrium falls
    middle = slice(1000, 10_000)
    np.testing.assert_allclose(run.norm[middle], level[middle], rtol=0.02)
    assert level[-1] < 0.7 * level[0]
    np.testing.assert_allclose(comparison.levels["effective_lr"], run.lr.sel(step=level.step) / level**2)
    # constant settings have constant levels
    assert np.ndim(compare_run(simulate.norm_map(0.5, 0.02, 2.0, norm=3.0, steps=2000)).levels["norm"]) == 0
    # AdamW, and a gradient that is 0 at first
    rule = theory.AdamW(dim=100)
    adam = simulate.norm_map(schedule, 0.02, 2.0, norm=3.0, steps=20_000, optimizer=rule)
    expected = theory.quasi_equilibrium_norm(schedule, 0.02, run.step.values, optimizer=rule)
    np.testing.assert_allclose(compare_run(adam.assign(grad_norm=run.grad_norm)).levels["norm"], expected, rtol=1e-9)
    level = compare_run(run.assign(grad_norm=run.grad_norm.where(run.step >= 5, 0.0))).levels["norm"]
    assert level.step[0] == 5
    np.testing.assert_allclose(level[-1], comparison.levels["norm"][-1])
    assert "it moves with lr and wd" in write_run_report(run, tmp_path / "report.html").read_text(encoding="utf-8")


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.data())
def test_recent_values(values, data):
    counts = data.draw(st.lists(st.floats(0.5, 50), min_size=len(values), max_size=len(values)))
    expected = [
        math.sqrt(np.mean(np.square(values[max(0, i + 1 - int(max(1, count))) : i + 1])))
        for i, count in enumerate(counts)
    ]
    np.testing.assert_allclose(recent_rms(values, [int(max(1, count)) for count in counts]), expected, atol=1e-6)


def test_recent_values_after_much_larger_ones():
    values = np.r_[np.full(100, 1e8), np.full(100, 1e-8)]
    np.testing.assert_allclose(recent_rms(values, np.full(200, 7))[110:], 1e-8, rtol=1e-12)


@pytest.mark.parametrize("columns", [[], ["lr"], ["effective_lr"]])
def test_spikes_are_drawn_with_or_without_lr(columns, tmp_path):
    loss = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    loss[300:310] = 5.0
    variables = {"loss": loss, "norm": np.full(400, 2.0), "lr": np.full(400, 0.1), "effective_lr": np.full(400, 0.025)}
    kept = {name: ("step", variables[name]) for name in ["loss", "norm", *columns]}
    words = "".join(report(xr.Dataset(kept, {"step": np.arange(400)}), tmp_path).words)
    assert "Markers show the cause of each loss spike" in words


def test_the_error_of_the_mean_norm_matches_its_spread():
    lines = [
        compare_run(
            simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(0.0, 3.0), norm=1.9, steps=4000, seed=seed)
        ).comparisons[0]
        for seed in range(12)
    ]
    means = np.array([line.measured for line in lines])
    assert 0.5 < np.mean([line.error for line in lines]) / means.std(ddof=1) < 2


def test_periods_are_compared_with_independent_predictions(periodic, tmp_path):
    periods = simulate.find_periods(periodic)
    model = simulate.PeriodModel.reference()
    lines = {line.quantity: line for line in compare_run(periodic, model).comparisons}
    bound = lines["period, lower bound"]
    assert bound.predicted == pytest.approx(0.1 / -math.log1p(-0.01))
    assert (bound.measured, bound.error) == (periods.mean, periods.stderr)
    assert lines["period, balance law"].predicted == simulate.period(0.5, 0.02).period
    assert lines["period, reduced model"].predicted == simulated_periods(model, 0.5, 0.02).mean
    short = report(periodic.isel(step=[0]), tmp_path, model=model)
    assert "Predicted by the period model: periodic" in "".join(short.words)


def test_a_period_model_does_not_predict_its_calibration_runs_nor_other_optimizers():
    model = simulate.PeriodModel.reference()
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=30)
    assert not compare_run(run).prediction, "a run without configuration has no period model"
    part = run.assign_attrs(config=model.calibration_runs[0].run)
    assert "one of the calibration runs" in " ".join(compare_run(part).notes)
    config = json.loads(model.calibration_runs[0].run)
    assert compare_run(run.assign_attrs(config=json.dumps({**config, "seed": 77}))).prediction
    # an explicit default is the same network and the same run
    assert compare_run(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 4}))).prediction
    for same in ({"width": 4}, {"data_seed": 0}, {"depth": 3}):
        notes = " ".join(compare_run(run.assign_attrs(config=json.dumps({**config, **same}))).notes)
        assert "one of the calibration runs" in notes, same
    other = compare_run(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 9})), model)
    assert "on another network" in " ".join(other.notes)
    assert not other.prediction
    assert not compare_run(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 99}))).prediction
    assert "the period model was calibrated with" in " ".join(
        compare_run(run.assign_attrs(optimizer="SGD(momentum=0.9)"), model).notes
    )
    unknown = compare_run(run.assign_attrs(config=json.dumps({"model": "unknown"})), model)
    constrained = compare_run(run.assign_attrs(constraint="fixed norm"), model)
    for comparison, reason in ((unknown, "does not know"), (constrained, "without a constraint")):
        assert not comparison.prediction
        assert reason in " ".join(note for note in comparison.notes if note.startswith("period model"))


def test_stored_and_invalid_sources(tmp_path):
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300)
    simulate.save(run, tmp_path / "run.zarr")
    words = "".join(report(tmp_path / "run.zarr", tmp_path).words)
    assert f'simulate.load("{tmp_path / "run.zarr"}")' in words
    target = tmp_path / "deep" / "page.html"
    assert write_run_report(str(tmp_path / "run.zarr"), str(target)) == target
    target = tmp_path / "new" / "page.html"
    of_newer_schema = tmp_path / "newer.zarr"
    simulate.save(run.assign_attrs(schema=10**6), of_newer_schema)
    sources = "^source must be a sweep folder, a saved trajectory or a run folder, got "
    for source, path, message in (
        (tmp_path / "none", target, f"{sources}'{tmp_path / 'none'}'$"),
        (tmp_path, target, f"{sources}'{tmp_path}'$"),
        (of_newer_schema, target, "^source must hold a trajectory of schema"),
        (run, tmp_path, "^path must be a file"),
        (simulate.norm_map([0.5, 0.1], 0.02, 2.0, norm=2.6, steps=3), target, "^trajectory must be one run"),
        (xr.Dataset(), target, "^trajectory must have the variable"),
    ):
        with pytest.raises(ValueError, match=message):
            write_run_report(source, path)
    with pytest.raises(TypeError, match=r"^model must be a simulate\.PeriodModel, got int"):
        write_run_report(run, target, model=3)
    with pytest.raises(TypeError, match=r"^source must be.*xarray\.Dataset, got int"):
        write_run_report(3, target)
    assert not target.parent.exists()


def test_the_command_line_names_an_invalid_source(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "new" / "o.html")])
    assert result.exit_code == 2
    assert result.stderr.startswith("bnwd: source must be a sweep folder, ")
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_run_is_text_on_the_page(tmp_path):
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300)
    evil = '"><script>alert(1)</script>'
    report_page = report(run.assign_attrs(config=json.dumps({"model": evil, "dataset": evil})), tmp_path)
    assert evil not in report_page.text
    assert f"{evil} on {evil}" in "".join(report_page.words)


LAW = theory.BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01, "odds")


def summary_of(config, status="complete", verdict="periodic", **numbers):
    return Summary(
        identity=config.identity,
        steps=config.steps,
        status=status,
        status_step=1000,
        seconds=1.0,
        numbers=numbers or {"period": 100.0, "periods": 20.0, "period_stderr": 2.0},
        verdict=verdict,
    )


def make_sweep(path, changed=None, **further):
    """Make a sweep whose periods obey a law exactly, with a diverged, a failed and a pending run.

    The period of run number `changed` is three times that of the law.
    """
    configs = grid(**{"lr": [0.1, 0.5], "wd": [0.02, 0.01, 0.004], "seed": range(2), "width": 8, **further})
    folder = SweepFolder(path)
    folder.begin(configs)
    diverged, broken, _ = others = (configs[1], configs[3], configs[5])
    for number, config in enumerate(configs):
        if config in others:
            continue
        intrinsic_lr = np.array(config.lr * config.wd)
        numbers = {
            "periods": 50.0 + number,
            "period": float(LAW.period(config.lr, config.wd)) * (3 if number == changed else 1),
            "period_stderr": 2.0,
            "norm_rise": float(LAW.norm_rise_at(intrinsic_lr)),
            "outside_growth": float(LAW.outside_growth_at(intrinsic_lr)),
            "norm_min": 1.0 + number,
            "test_error": 0.1 / (number + 1),
        }
        folder.append(summary_of(config, **numbers))
    error = summarize_failure(broken, ValueError("no <such> data"))
    folder.append(error, dataclasses.replace(error, identity=diverged.identity, status="diverged", error=""))
    folder.close()
    return configs


def test_a_sweep_has_a_row_for_each_run(tmp_path):
    configs = make_sweep(tmp_path / "sweep")
    report_page = report(tmp_path / "sweep", tmp_path)
    assert [[float(text) for text, _ in report_page.column(0, name)] for name in ("lr", "wd", "seed")] == [
        [getattr(config, name) for config in configs] for name in ("lr", "wd", "seed")
    ]
    opened = open_sweep(tmp_path / "sweep")
    assert [text for text, _ in report_page.column(0, "status")] == opened.status.values.ravel().tolist()
    periods = [float(value or "nan") for _, value in report_page.column(0, "period ± error")]
    np.testing.assert_array_equal(periods, opened.period.values.ravel())
    words = "".join(report_page.words)
    assert "no <such> data" in words
    assert "diverged after 0 steps" in words
    assert words.count("1 pending") == 1


def test_periods_of_a_sweep_are_predicted_by_other_runs(tmp_path):
    make_sweep(tmp_path / "sweep")
    runs, _ = sweep_runs(tmp_path / "sweep")
    for run in runs:
        # the other runs obey the law, so those at the same and at other ηλ nearly determine it
        assert run.predicted["law"] == pytest.approx(LAW.period(run.config.lr, run.config.wd), rel=0.15)
    # 0.5 · 0.004 = 0.1 · 0.02, so runs of both η predict each other
    equal = {(run.config.lr, run.config.wd, run.config.seed): run.predicted["equal"] for run in runs}
    assert math.isnan(equal[0.5, 0.01, 0])
    assert equal[0.5, 0.004, 1] == pytest.approx(LAW.period(0.1, 0.02))
    assert equal[0.1, 0.02, 0] == pytest.approx(LAW.period(0.1, 0.02))


def test_no_predicted_period_uses_the_period_of_its_own_run(tmp_path):
    configs = make_sweep(tmp_path / "exact")
    # 0.5 · 0.004 = 0.1 · 0.02
    changed = next(i for i, config in enumerate(configs) if (config.lr, config.wd, config.seed) == (0.5, 0.004, 1))
    make_sweep(tmp_path / "changed", changed)
    pairs = zip(*(sweep_runs(tmp_path / name)[0] for name in ("exact", "changed")), strict=True)
    for number, (exact, other) in enumerate(pairs):
        has_same_intrinsic_lr = exact.intrinsic_lr == pytest.approx(0.002)
        # the law of a run uses other ηλ only, so the changed period affects runs at other ηλ
        assert (exact.predicted["law"] == other.predicted["law"]) == has_same_intrinsic_lr, exact.name
        is_mirrored = (exact.config.lr, exact.config.wd) == (0.1, 0.02)
        assert (other.predicted["equal"] != pytest.approx(exact.predicted["equal"], nan_ok=True)) == is_mirrored
        if number == changed:
            assert other.summary["period"] == 3 * exact.summary["period"]


def write_sweep(path, *summaries, **settings):
    """Write a sweep with these results."""
    folder = SweepFolder(path)
    folder.begin(grid(**settings))
    folder.append(*summaries)
    folder.close()
    return path


@pytest.mark.parametrize("status", ["diverged", "collapsed", "failed", "complete", "interrupted"])
def test_the_status_of_a_failed_run_replaces_its_verdict(status):
    run = SweepRun(empirical.RunConfig(lr=0.1, wd=0.1), {}, {"status": status, "verdict": "periodic"})
    assert run.outcome == ("periodic" if status in ("complete", "interrupted") else status)


def test_the_figure_of_verdicts_shows_the_most_frequent_outcome_without_failures(tmp_path, monkeypatch):
    settings = {"lr": [0.1, 0.2], "wd": [0.1, 0.2], "seed": range(3)}
    ends = {
        (0.1, 0.1): [("failed", ""), ("failed", ""), ("complete", "periodic")],
        (0.1, 0.2): [("diverged", "periodic"), ("diverged", ""), ("complete", "periodic")],
        (0.2, 0.1): [("complete", "equilibrium"), ("complete", "equilibrium"), ("complete", "periodic")],
        (0.2, 0.2): [("failed", "")] * 3,
    }
    summaries = [summary_of(run, *ends[run.lr, run.wd][run.seed]) for run in grid(**settings)]
    diagrams, draw = [], simulate.plots.plot_phase_diagram
    monkeypatch.setattr(
        "simulate.plots.plot_phase_diagram", lambda *arguments: diagrams.append(arguments[0]) or draw(*arguments)
    )
    report_page = report(write_sweep(tmp_path / "sweep", *summaries, **settings), tmp_path)
    (diagram,) = diagrams
    assert diagram.verdict.values.tolist() == [["periodic", "diverged"], ["equilibrium", ""]]
    assert diagram.period.values[:, 0].tolist() == [100, 100]
    words = "".join(report_page.words)
    assert "White: no run has ended yet, or all failed" in words
    assert "diverged after 1000 steps" in words


def test_a_line_through_periods_needs_two_values_of_intrinsic_lr(tmp_path):
    for wd, is_line in (([0.1, 0.2], True), ([0.1], False)):
        settings = {"lr": [0.1], "wd": wd, "seed": range(2)}
        place = write_sweep(tmp_path / f"{len(wd)}", *map(summary_of, grid(**settings)), **settings)
        report_page = report(place, tmp_path)
        assert "lower bound for a norm rise" in report_page.text
        assert ("through their mean" in report_page.text) == ("dashed line" in "".join(report_page.words)) == is_line


def test_booleans_of_a_sweep_are_words(tmp_path):
    settings = {"lr": 0.1, "wd": 0.1, "scale_invariant": [True, False], "width": [8, 9]}
    summaries = [summary_of(config, "diverged", "") for config in grid(**settings)]
    report_page = report(write_sweep(tmp_path / "sweep", *summaries, **settings), tmp_path)
    assert report_page.column(0, "scale_invariant") == [["true", None], ["false", None]] * 2
    assert report_page.column(0, "width") == [["8", "8.0"]] * 2 + [["9", "9.0"]] * 2
    assert "width = 9, scale_invariant = false: diverged" in "".join(report_page.words)


def test_notes_name_the_runs_they_concern(tmp_path):
    settings = {"lr": 0.1, "wd": [0.1, 0.2, 0.3]}
    configs = grid(**settings)
    for count, concerned in ((1, "(wd = 0.1)"), (2, "(2 of 3 runs)"), (3, "(all 3 runs)")):
        place = write_sweep(tmp_path / f"{count}", *map(summary_of, configs[:count]), **settings)
        assert sweep_runs(place)[1] == (
            f"equilibrium norm: not predicted, because the sweep did not keep its trajectories {concerned}",
        )


def test_infinite_values_sort_as_numbers():
    rows = [["a", number_cell(value)] for value in (math.inf, -math.inf, math.nan, 1.0)]
    report_page = Page(Table(["name", "value"], rows).html())
    assert [value for _, value in report_page.column(0, "value")] == ["Infinity", "-Infinity", "", "1.0"]


@pytest.mark.parametrize(
    ("further", "law", "equal"),
    [
        ({"optimizer": theory.SGD(momentum=0.9)}, False, True),
        ({"optimizer": theory.Adam(dim=576)}, False, False),
        ({"optimizer": theory.AdamW(dim=576)}, True, True),
        ({"scale_invariant": False}, True, False),
    ],
)
def test_laws_of_intrinsic_lr_are_not_applied_to_other_optimizers(further, law, equal, tmp_path):
    make_sweep(tmp_path / "sweep", **further)
    runs, _ = sweep_runs(tmp_path / "sweep")
    assert any(not math.isnan(run.predicted["law"]) for run in runs) == law
    assert any(not math.isnan(run.predicted["equal"]) for run in runs) == equal


@pytest.mark.parametrize("rule", [theory.SGD(momentum=0.9), theory.AdamW(dim=300)], ids=repr)
def test_other_optimizers_compare_the_mean_square_norm(rule):
    lr, wd = (0.05, 0.02) if isinstance(rule, theory.SGD) else (0.01, 1.0)
    equilibrium = theory.equilibrium_norm(lr, wd, 2.0, optimizer=rule)
    walk = simulate.random_walk(lr, wd, 2.0, dim=300, steps=10_000, optimizer=rule, norm=equilibrium, seed=1)
    walk = walk.isel(batch=0)
    line = equilibrium_comparisons(walk, Setting.of(walk))[0]
    decay = theory.free_decay(lr, wd, optimizer=rule) if rule == theory.SGD(momentum=0.9) else lr * wd
    settled = walk.norm.values[round(2 / decay) :]
    assert line.measured == pytest.approx(np.sqrt((settled**2).mean()))
    assert line.ratio == pytest.approx(1, abs=0.02)


def test_a_sweep_is_not_predicted_by_the_period_model_of_another_network(tmp_path):
    make_sweep(tmp_path / "sweep")
    runs, notes = sweep_runs(tmp_path / "sweep", simulate.PeriodModel.reference())
    assert all(math.isnan(run.predicted["model"]) for run in runs)
    assert "on another network" in " ".join(notes)


def test_a_sweep_of_trainings(tmp_path):
    configs = [
        empirical.RunConfig(lr=lr, wd=0.02, width=8, steps=steps, seed=seed)
        for seed, (lr, steps) in enumerate([(0.5, 400), (0.3, 60), (theory.Cosine(0.5, 0.1, 60), 60)])
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        empirical.sweep(configs, tmp_path / "sweep", executor)
    report_page = report(tmp_path / "sweep", tmp_path)
    assert [text for text, _ in report_page.column(0, "status")] == ["complete"] * 3
    run = simulate.load(open_sweep(tmp_path / "sweep").folder.values[0])
    part = after_transient(run)
    equilibrium = theory.equilibrium_norm(0.5, 0.02, float(np.sqrt((part.grad_norm**2).mean())))
    assert float(report_page.column(0, "predicted equilibrium norm")[0][1]) == pytest.approx(equilibrium)
    assert "varies in time" in "".join(report_page.words)
    one = tmp_path / "one"
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        empirical.sweep(configs[1:2], one, executor)
    assert len(report(one, tmp_path).tables[0]) == 2


SCRIPT = """
<script>
window.addEventListener("load", () => {
  const measured = {errors: window.failures, boxes: [], orders: []};
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), inner = svg.getBBox();
    measured.boxes.push([box.width, box.height, inner.width, inner.height]);
  }
  const table = document.querySelector("table.sortable");
  const at = COLUMN;
  for (let times = 0; times < 2; times++) {
    table.tHead.rows[0].cells[at].querySelector("button").click();
    const cells = [...table.tBodies[0].rows].map(row => row.cells[at]);
    measured.orders.push(cells.map(cell => cell.dataset.value ?? cell.textContent));
  }
  measured.sorted = table.tHead.rows[0].cells[at].getAttribute("aria-sort");
  measured.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.measured = JSON.stringify(measured);
});
</script>
"""
WATCH = '<script>window.failures = []; window.addEventListener("error", e => window.failures.push(e.message));</script>'


def measure_in_browser(path, column):
    """Open a page in a browser: sizes of its figures, orders of its first table after clicks, errors."""
    text = path.read_text(encoding="utf-8")
    watched = text.replace("<head>", f"<head>{WATCH}", 1).replace(
        "</body>", SCRIPT.replace("COLUMN", str(column)) + "</body>"
    )
    copy = path.with_name("watched.html")
    copy.write_text(watched, encoding="utf-8")
    disabled = ["background-networking", "component-update", "sync", "gpu", "dev-shm-usage"]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        *(f"--disable-{feature}" for feature in disabled),
        "--no-first-run",
    ]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--window-size=500,900", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
    measured = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert measured, done.stderr
    return json.loads(html.unescape(measured[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_figures_and_sorts_by_value(written, tmp_path):
    make_sweep(tmp_path / "sweep")
    sweep = write_run_report(tmp_path / "sweep", tmp_path / "sweep.html")
    for path, figure_count, head in ((written / "report.html", 5, "predicted"), (sweep, 2, "period ± error")):
        report_page = read_page(path)
        column = [text for text, _ in report_page.tables[0][0]].index(head)
        measured = measure_in_browser(path, column)
        assert measured["errors"] == []
        assert len(measured["boxes"]) == figure_count
        assert np.min(measured["boxes"]) > 50
        assert measured["wide"] <= 0, "a narrow page must not scroll sideways as a whole"
        up, down = ([float(value) for value in order if value] for order in measured["orders"])
        values = sorted(float(value) for _, value in report_page.column(0, head) if value)
        assert len(set(values)) > 2
        assert up == values
        assert down == values[::-1]
        assert all(order[len(values) :] == [""] * (len(order) - len(values)) for order in measured["orders"])
        assert measured["sorted"] == "descending"


def test_figures_of_a_page_share_no_ids():
    figure, ax = page.new_figure(2.0)
    ax.plot([1, 2], [1, 2], "o")
    ids = [Page(page.svg(figure, title)).ids for title in ("first", "second")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
