"""Reports of runs and sweeps: what they say, that they stand alone, and how a browser shows them."""

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
from empirical.reports.comparison import examine, predicted_levels
from empirical.reports.run_report import write_run_report
from empirical.reports.sweep_report import SweepRun, sweep_runs
from empirical.sweeps.grid import grid
from empirical.sweeps.store import SweepFolder, open_sweep
from empirical.sweeps.task import Summary, failed
from simulate.trajectories.periods import after_transient
from tests.html_pages import Page, checked

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def report(source, folder, **options):
    return checked(write_run_report(source, folder / "report.html", **options))


def trained(**settings):
    given = {"lr": 0.5, "wd": 0.02, "model": "mlp", "width": 8, "steps": 150, **settings}
    return empirical.train(empirical.RunConfig(**given))


def bare():
    return xr.Dataset({"norm": ("step", np.linspace(1, 2, 50))}, {"step": np.arange(50)})


KINDS = {
    "periodic": lambda: simulate.oscillate(0.5, 0.02, steps=3000),
    "rest": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1000),
    "adversarial": lambda: simulate.norm_map(
        0.5, 0.02, simulate.AdversarialGradient(1, 30, towards="upper"), norm=10.0, steps=3000
    ),
    "diverged map": lambda: simulate.norm_map(0.5, 0.02, 1e200, norm=2.6, steps=10),
    "collapsed map": lambda: simulate.norm_map(0.5, 1.0, 0.0, norm=2.6, steps=2000),
    "diverged training": lambda: trained(fixed="effective_lr", wd=0.0),
    "no rows": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=0),
    "one row": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=1),
    "short": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=30),
    "short training": trained,
    "AdamW": lambda: trained(lr=0.01, wd=1.0, optimizer=theory.AdamW(dim=584), steps=250),
    "Adam": lambda: trained(lr=0.01, wd=0.1, optimizer=theory.Adam(dim=584), steps=100),
    "landscape": lambda: simulate.descend(simulate.Ratio2D(), 0.5, 0.1, steps=500, seed=0),
    "momentum": lambda: simulate.norm_map(0.1, 0.02, 2.0, norm=2.6, steps=2000, optimizer=theory.SGD(momentum=0.9)),
    "schedule": lambda: simulate.norm_map(theory.Cosine(0.5, 0.01, 900), 0.02, 2.0, norm=2.6, steps=900),
    "no decay": lambda: simulate.norm_map(0.5, 0.0, 2.0, norm=2.6, steps=200),
    "large decay": lambda: simulate.norm_map(1.5, 1.0, 2.0, norm=2.6, steps=200),
    "every tenth row": lambda: simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=2000, record_every=10),
    "fixed norm": lambda: trained(fixed="norm", wd=0.0),
    "fixed effective lr": lambda: trained(fixed="effective_lr", lr=0.01, wd=0.0),
    "nothing but norms": bare,
    "a loss that is no number": lambda: simulate.oscillate(0.5, 0.02, steps=900).assign(
        loss=("step", np.full(900, np.nan))
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_trajectory_gives_a_page(kind, tmp_path):
    found = report(KINDS[kind](), tmp_path)
    words = "".join(found.words)
    if kind in ("periodic", "rest"):
        assert ("What cannot be said" in words) == (kind == "rest"), "a map of norms has no loss"
        assert f"Verdict: {'periodic' if kind == 'periodic' else 'equilibrium'}" in words
    elif kind not in ("momentum", "landscape"):
        assert "What cannot be said, and why" in words
    if kind.startswith("fixed"):
        assert "nothing is held fixed" in words
    for status in ("diverged", "collapsed"):
        assert (f"{status.capitalize()} after" in words) == kind.startswith(status)
    assert ("1 step." in words) == (kind == "one row")
    assert not re.search(r"(?<![\d.])1 steps", words)
    # of plain SGD at one η and λ > 0 alone
    is_drawn = "balance of growth and decay" in found.text
    assert is_drawn == ("Below the dotted line the norm falls" in words)
    if kind in ("rest", "short training", "momentum", "schedule", "Adam", "no decay", "fixed norm"):
        assert is_drawn == (kind in ("rest", "short training"))


@settings(max_examples=15, deadline=None)
@given(
    norm=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=0, max_size=60),
    columns=st.sets(st.sampled_from(["grad_norm", "effective_lr", "rotation", "loss", "lr"])),
    attrs=st.dictionaries(st.sampled_from(["lr", "wd"]), st.floats(0, 3)),
    optimizer=st.sampled_from(["SGD()", "SGD(momentum=0.9)", "RMSprop", "SGD() with fixed norm"]),
)
def test_whatever_is_in_a_trajectory_it_gives_a_page(norm, columns, attrs, optimizer, tmp_path_factory):
    values = ("step", np.array(norm, dtype=float))
    steps = np.arange(len(norm))
    run = xr.Dataset({"norm": values} | dict.fromkeys(sorted(columns), values), {"step": steps}, attrs)
    report(run.assign_attrs(optimizer=optimizer), tmp_path_factory.mktemp("page"))


def test_numbers_are_those_of_theory_and_simulation(tmp_path):
    run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 3.0), norm=2.6, steps=4000, seed=0)
    found = report(run, tmp_path)
    part = after_transient(run)
    rms = float(np.sqrt((part.grad_norm**2).mean()))
    predicted = [float(value) for _, value in found.column(0, "predicted")]
    measured = [float(value) for _, value in found.column(0, "measured")]
    assert predicted[:2] == [
        pytest.approx(theory.equilibrium_norm(0.5, 0.02, rms), rel=1e-12),
        theory.equilibrium_rotation(0.5, 0.02),
    ]
    assert measured[:2] == pytest.approx([float((part.norm**4).mean() ** 0.25), float(np.median(part.rotation))])
    # on any stationary trace, equilibrium or not, the geometric mean of cos θ is 1-ηλ
    assert measured[2] == pytest.approx(predicted[2], rel=0.01)
    assert [float(value) for _, value in found.column(0, "measured / predicted")[:3]] == pytest.approx(
        [m / p for m, p in zip(measured[:3], predicted[:3], strict=True)]
    )
    assert float(found.column(0, "measured")[4][1]) < 1e-12


def test_the_norm_after_the_last_step_is_the_same_everywhere():
    # far from rest, so that a step changes the norm
    found = examine(simulate.norm_map(0.5, 0.02, 2.0, norm=20.0, steps=250))
    line = next(each for each in found.comparisons if each.quantity == "norm after the last step, replayed")
    assert line.measured == simulate.norm_map(0.5, 0.02, 2.0, norm=20.0, steps=251).norm[-1]
    assert line.ratio == 1
    assert f"ρ = {line.measured:.4g}," in found.outlook


def test_a_run_that_does_not_say_its_last_norm_is_compared_in_all_else():
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300)
    found = examine(run.drop_vars("final_norm"))
    whole, part = ({line.quantity for line in each.comparisons} for each in (examine(run), found))
    assert whole - part == {"norm after the last step, replayed"}


def test_levels_are_predicted_from_the_settled_rows_alone():
    gradient = simulate.RecordedGradient(np.where(np.arange(1000) < 200, 30.0, 2.0))
    run = simulate.norm_map(0.5, 0.02, gradient, norm=2.6, steps=1000)
    assert predicted_levels(run, run) == {
        "norm": pytest.approx(theory.equilibrium_norm(0.5, 0.02, 2.0)),
        "effective_lr": pytest.approx(theory.equilibrium_effective_lr(0.5, 0.02, 2.0)),
    }


@pytest.mark.parametrize("columns", [[], ["lr"], ["effective_lr"]])
def test_spikes_are_drawn_whatever_the_run_says_of_its_rates(columns, tmp_path):
    loss = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    loss[300:310] = 5.0
    given = {"loss": loss, "norm": np.full(400, 2.0), "lr": np.full(400, 0.1), "effective_lr": np.full(400, 0.025)}
    kept = {name: ("step", given[name]) for name in ["loss", "norm", *columns]}
    words = "".join(report(xr.Dataset(kept, {"step": np.arange(400)}), tmp_path).words)
    assert "Each spike of the loss is marked by its cause" in words


def test_the_mean_norm_is_known_within_its_error():
    lines = [
        examine(
            simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(0.0, 3.0), norm=1.9, steps=4000, seed=seed)
        ).comparisons[0]
        for seed in range(12)
    ]
    means = np.array([line.measured for line in lines])
    assert 0.5 < np.mean([line.error for line in lines]) / means.std(ddof=1) < 2


def test_periods_are_held_against_what_does_not_know_them(tmp_path):
    run = simulate.oscillate(0.5, 0.02, steps=4000, seed=3)
    periods = simulate.find_periods(run)
    lines = {line.quantity: line for line in examine(run).comparisons}
    bound = lines["period, at least"]
    assert bound.predicted == pytest.approx(0.1 / -math.log1p(-0.01))
    assert (bound.measured, bound.error) == (periods.mean, periods.stderr)
    model = simulate.PeriodModel.reference()
    own = {line.quantity: line for line in examine(run, model).comparisons}
    assert own["period, law of the network’s probe"].predicted == model.law.period(0.5, 0.02)
    assert own["period, reduced model of the probe"].predicted == model.period(0.5, 0.02).mean
    assert "A probe lets expect: periodic" in "".join(report(run, tmp_path, model=model).words)


def test_a_probe_does_not_predict_its_own_runs_nor_other_optimizers():
    model = simulate.PeriodModel.reference()
    run = simulate.oscillate(0.5, 0.02, steps=3000)
    assert not examine(run).expected, "a run that does not say what it is has no probe"
    part = run.assign_attrs(config=model.calibration_runs[0].run)
    assert "part of the probe" in " ".join(examine(part).notes)
    config = json.loads(model.calibration_runs[0].run)
    assert examine(run.assign_attrs(config=json.dumps({**config, "seed": 77}))).expected
    # said or left to the default, it is the same network, and the same run
    assert examine(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 8}))).expected
    for same in ({"width": 8}, {"data_seed": 0}, {"depth": 3}):
        notes = " ".join(examine(run.assign_attrs(config=json.dumps({**config, **same}))).notes)
        assert "part of the probe" in notes, same
    other = examine(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 9})), model)
    assert "of another network" in " ".join(other.notes)
    assert not other.expected
    assert not examine(run.assign_attrs(config=json.dumps({**config, "seed": 77, "width": 99}))).expected
    assert "the probe is of" in " ".join(examine(run.assign_attrs(optimizer="SGD(momentum=0.9)"), model).notes)


def test_sources_that_are_stored_and_bad_ones(tmp_path):
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
    for source, path, told in (
        (tmp_path / "none", target, f"{sources}'{tmp_path / 'none'}'$"),
        (tmp_path, target, f"{sources}'{tmp_path}'$"),
        (of_newer_schema, target, "^source must hold a trajectory of schema"),
        (run, tmp_path, "^path must be a file"),
        (simulate.norm_map([0.5, 0.1], 0.02, 2.0, norm=2.6, steps=3), target, "^trajectory must be one run"),
        (xr.Dataset(), target, "^trajectory must have the variable"),
    ):
        with pytest.raises(ValueError, match=told):
            write_run_report(source, path)
    with pytest.raises(TypeError, match=r"^model must be a simulate\.PeriodModel, got int"):
        write_run_report(run, target, model=3)
    with pytest.raises(TypeError, match=r"^source must be a folder or an xarray\.Dataset, got int"):
        write_run_report(3, target)
    assert not target.parent.exists()


def test_the_command_line_names_the_source_that_is_none(tmp_path):
    found = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "new" / "o.html")])
    assert found.exit_code == 2
    assert found.stderr.startswith("bnwd: source must be a sweep folder, ")
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_run_is_text_on_the_page(tmp_path):
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300)
    evil = '"><script>alert(1)</script>'
    found = report(run.assign_attrs(config=json.dumps({"model": evil, "dataset": evil})), tmp_path)
    assert evil not in found.text
    assert html.escape(evil) in found.text


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


def made_sweep(path, spoiled=None, **further):
    """A sweep whose periods obey a law exactly, with a run that diverged, one that failed and one to come.

    The period of the run at the place `spoiled` is thrice what the law says.
    """
    configs = grid(**{"lr": [0.1, 0.5], "wd": [0.02, 0.01, 0.004], "seed": range(2), "width": 8, **further})
    folder = SweepFolder(path)
    folder.begin(configs)
    lost, broken, _ = others = (configs[1], configs[3], configs[5])
    for number, config in enumerate(configs):
        if config in others:
            continue
        k = np.array(config.lr * config.wd)
        numbers = {
            "periods": 50.0 + number,
            "period": float(LAW.period(config.lr, config.wd)) * (3 if number == spoiled else 1),
            "period_stderr": 2.0,
            "norm_rise": float(LAW.norm_rise_at(k)),
            "outside_growth": float(LAW.outside_growth_at(k)),
            "norm_min": 1.0 + number,
            "test_error": 0.1 / (number + 1),
        }
        folder.append(summary_of(config, **numbers))
    error = failed(broken, ValueError("no <such> data"))
    folder.append(error, dataclasses.replace(error, identity=lost.identity, status="diverged", error=""))
    folder.close()
    return configs


def test_a_sweep_has_a_row_for_each_run(tmp_path):
    configs = made_sweep(tmp_path / "sweep")
    found = report(tmp_path / "sweep", tmp_path)
    assert [[float(text) for text, _ in found.column(0, name)] for name in ("lr", "wd", "seed")] == [
        [getattr(config, name) for config in configs] for name in ("lr", "wd", "seed")
    ]
    opened = open_sweep(tmp_path / "sweep")
    assert [text for text, _ in found.column(0, "status")] == opened.status.values.ravel().tolist()
    shown = [float(value or "nan") for _, value in found.column(0, "period ± error")]
    np.testing.assert_array_equal(shown, opened.period.values.ravel())
    words = "".join(found.words)
    assert "no <such> data" in words
    assert "diverged after 0 steps" in words
    assert words.count("1 pending") == 1


def test_periods_of_a_sweep_are_predicted_by_other_runs(tmp_path):
    made_sweep(tmp_path / "sweep")
    runs, _ = sweep_runs(tmp_path / "sweep")
    for run in runs:
        # the others obey the law, so that two of their ηλ give it
        assert run.predicted["law"] == pytest.approx(LAW.period(run.config.lr, run.config.wd), rel=1e-6)
    # 0.5 · 0.004 = 0.1 · 0.02, at which runs of both η have an answer
    equal = {(run.config.lr, run.config.wd, run.config.seed): run.predicted["equal"] for run in runs}
    assert math.isnan(equal[0.5, 0.01, 0])
    assert equal[0.5, 0.004, 1] == pytest.approx(LAW.period(0.1, 0.02))
    assert equal[0.1, 0.02, 0] == pytest.approx(LAW.period(0.1, 0.02))


def test_no_prediction_of_a_period_knows_that_of_its_own_run(tmp_path):
    configs = made_sweep(tmp_path / "exact")
    # 0.5 · 0.004 = 0.1 · 0.02
    spoiled = next(i for i, config in enumerate(configs) if (config.lr, config.wd, config.seed) == (0.5, 0.004, 1))
    made_sweep(tmp_path / "spoiled", spoiled)
    pairs = zip(*(sweep_runs(tmp_path / name)[0] for name in ("exact", "spoiled")), strict=True)
    for number, (exact, other) in enumerate(pairs):
        has_own_rate = exact.rate == pytest.approx(0.002)
        # in seeds of its own ηλ no law is told apart from its period
        assert (exact.predicted["law"] == other.predicted["law"]) == has_own_rate, exact.name
        is_mirrored = (exact.config.lr, exact.config.wd) == (0.1, 0.02)
        assert (other.predicted["equal"] != pytest.approx(exact.predicted["equal"], nan_ok=True)) == is_mirrored
        if number == spoiled:
            assert other.known["period"] == 3 * exact.known["period"]


def swept(path, *summaries, **settings):
    """A sweep of which this became."""
    folder = SweepFolder(path)
    folder.begin(grid(**settings))
    folder.append(*summaries)
    folder.close()
    return path


@pytest.mark.parametrize("status", ["diverged", "collapsed", "failed", "complete", "interrupted"])
def test_how_a_run_ended_comes_before_its_verdict(status):
    run = SweepRun(empirical.RunConfig(lr=0.1, wd=0.1), {}, {"status": status, "verdict": "periodic"})
    assert run.end == ("periodic" if status in ("complete", "interrupted") else status)


def test_the_picture_of_verdicts_is_of_the_most_frequent_end_and_not_of_failures(tmp_path, monkeypatch):
    settings = {"lr": [0.1, 0.2], "wd": [0.1, 0.2], "seed": range(3)}
    ends = {
        (0.1, 0.1): [("failed", ""), ("failed", ""), ("complete", "periodic")],
        (0.1, 0.2): [("diverged", "periodic"), ("diverged", ""), ("complete", "periodic")],
        (0.2, 0.1): [("complete", "equilibrium"), ("complete", "equilibrium"), ("complete", "periodic")],
        (0.2, 0.2): [("failed", "")] * 3,
    }
    summaries = [summary_of(run, *ends[run.lr, run.wd][run.seed]) for run in grid(**settings)]
    drawn, draw = [], simulate.plots.plot_phase_diagram
    monkeypatch.setattr("simulate.plots.plot_phase_diagram", lambda *given: drawn.append(given[0]) or draw(*given))
    found = report(swept(tmp_path / "sweep", *summaries, **settings), tmp_path)
    (diagram,) = drawn
    assert diagram.verdict.values.tolist() == [["periodic", "diverged"], ["equilibrium", ""]]
    assert diagram.period.values[:, 0].tolist() == [100, 100]
    words = "".join(found.words)
    assert "White: settings of which no run has ended yet, or all failed" in words
    assert "diverged after 1000 steps" in words


def test_a_line_through_periods_needs_two_values_of_the_product(tmp_path):
    for wd, is_line in (([0.1, 0.2], True), ([0.1], False)):
        settings = {"lr": [0.1], "wd": wd, "seed": range(2)}
        place = swept(tmp_path / f"{len(wd)}", *map(summary_of, grid(**settings)), **settings)
        found = report(place, tmp_path)
        assert "least period for rises" in found.text
        assert ("through their mean" in found.text) == ("dashed line" in "".join(found.words)) == is_line


def test_yes_and_no_of_a_sweep_are_words(tmp_path):
    settings = {"lr": 0.1, "wd": 0.1, "scale_invariant": [True, False], "width": [8, 9]}
    summaries = [summary_of(config, "diverged", "") for config in grid(**settings)]
    found = report(swept(tmp_path / "sweep", *summaries, **settings), tmp_path)
    assert found.column(0, "scale_invariant") == [["true", None], ["false", None]] * 2
    assert found.column(0, "width") == [["8", "8.0"]] * 2 + [["9", "9.0"]] * 2
    assert "width = 9, scale_invariant = false: diverged" in "".join(found.words)


def test_what_cannot_be_said_is_of_which_runs(tmp_path):
    settings = {"lr": 0.1, "wd": [0.1, 0.2, 0.3]}
    configs = grid(**settings)
    for count, told in ((1, "(wd = 0.1)"), (2, "(2 of 3 runs)"), (3, "(all 3 runs)")):
        place = swept(tmp_path / f"{count}", *map(summary_of, configs[:count]), **settings)
        assert sweep_runs(place)[1] == (f"norm at rest: trajectories were not kept {told}",)


def test_the_infinite_sort_as_numbers():
    cells = [[page.Cell("a"), page.number(value)] for value in (math.inf, -math.inf, math.nan, 1.0)]
    found = Page(page.table("numbers", ["name", "value"], cells))
    assert [value for _, value in found.column(0, "value")] == ["Infinity", "-Infinity", "", "1.0"]


@pytest.mark.parametrize(
    ("further", "law", "equal"),
    [
        ({"optimizer": theory.SGD(momentum=0.9)}, False, True),
        ({"optimizer": theory.Adam(dim=576)}, False, False),
        ({"optimizer": theory.AdamW(dim=576)}, True, True),
        ({"scale_invariant": False}, True, False),
    ],
)
def test_what_holds_for_decay_by_the_product_alone_is_not_said_of_others(further, law, equal, tmp_path):
    made_sweep(tmp_path / "sweep", **further)
    runs, _ = sweep_runs(tmp_path / "sweep")
    assert any(not math.isnan(run.predicted["law"]) for run in runs) == law
    assert any(not math.isnan(run.predicted["equal"]) for run in runs) == equal


@pytest.mark.parametrize("rule", [theory.SGD(momentum=0.9), theory.AdamW(dim=300)], ids=repr)
def test_of_other_optimizers_the_mean_square_norm_is_held_against_theirs(rule):
    lr, wd = (0.05, 0.02) if isinstance(rule, theory.SGD) else (0.01, 1.0)
    rest = theory.equilibrium_norm(lr, wd, 2.0, optimizer=rule)
    walk = simulate.random_walk(lr, wd, 2.0, dim=300, steps=20_000, optimizer=rule, norm=rest, seed=1).isel(batch=0)
    line = next(each for each in examine(walk).comparisons if each.quantity.startswith("norm"))
    pace = theory.free_decay(lr, wd, optimizer=rule) if rule == theory.SGD(momentum=0.9) else lr * wd
    settled = walk.norm.values[round(2 / pace) :]
    assert line.measured == pytest.approx(np.sqrt((settled**2).mean()))
    assert line.ratio == pytest.approx(1, abs=0.02)


def test_a_sweep_is_not_predicted_by_the_probe_of_another_network(tmp_path):
    made_sweep(tmp_path / "sweep")
    runs, notes = sweep_runs(tmp_path / "sweep", simulate.PeriodModel.reference())
    assert all(math.isnan(run.predicted["model"]) for run in runs)
    assert "of another network" in " ".join(notes)


def test_a_sweep_of_trainings(tmp_path):
    configs = [
        empirical.RunConfig(lr=lr, wd=0.02, width=8, steps=steps, seed=seed)
        for seed, (lr, steps) in enumerate([(0.5, 400), (0.3, 60), (theory.Cosine(0.5, 0.1, 60), 60)])
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        empirical.sweep(configs, tmp_path / "sweep", executor)
    found = report(tmp_path / "sweep", tmp_path)
    assert [text for text, _ in found.column(0, "status")] == ["complete"] * 3
    run = simulate.load(open_sweep(tmp_path / "sweep").folder.values[0])
    part = after_transient(run)
    at_rest = theory.equilibrium_norm(0.5, 0.02, float(np.sqrt((part.grad_norm**2).mean())))
    assert float(found.column(0, "predicted at rest")[0][1]) == pytest.approx(at_rest)
    assert "varies in time" in "".join(found.words)
    one = tmp_path / "one"
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        empirical.sweep(configs[1:2], one, executor)
    assert len(report(one, tmp_path).tables[0]) == 2


SCRIPT = """
<script>
window.addEventListener("load", () => {
  const told = {errors: window.failures, boxes: [], orders: []};
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), inner = svg.getBBox();
    told.boxes.push([box.width, box.height, inner.width, inner.height]);
  }
  const table = document.querySelector("table.sortable");
  const at = COLUMN;
  for (let times = 0; times < 2; times++) {
    table.tHead.rows[0].cells[at].querySelector("button").click();
    told.orders.push([...table.tBodies[0].rows].map(row => row.cells[at].dataset.value ?? row.cells[at].textContent));
  }
  told.sorted = table.tHead.rows[0].cells[at].getAttribute("aria-sort");
  told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.told = JSON.stringify(told);
});
</script>
"""
WATCH = '<script>window.failures = []; window.addEventListener("error", e => window.failures.push(e.message));</script>'


def seen_by_a_browser(path, column):
    """What a browser makes of a page: boxes of its pictures, orders of its first table after clicks, errors."""
    text = path.read_text(encoding="utf-8")
    watched = text.replace("<head>", f"<head>{WATCH}", 1).replace(
        "</body>", SCRIPT.replace("COLUMN", str(column)) + "</body>"
    )
    copy = path.with_name("watched.html")
    copy.write_text(watched, encoding="utf-8")
    quiet = ["background-networking", "component-update", "sync", "gpu", "dev-shm-usage"]
    command = [CHROMIUM, "--headless", "--no-sandbox", *(f"--disable-{what}" for what in quiet), "--no-first-run"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--window-size=500,900", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
    told = re.search(r'data-told="([^"]*)"', done.stdout)
    assert told, done.stderr
    return json.loads(html.unescape(told[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_figures_and_sorts_by_value(tmp_path):
    run = report(simulate.oscillate(0.5, 0.02, steps=3000), tmp_path)
    made_sweep(tmp_path / "sweep")
    written = write_run_report(tmp_path / "sweep", tmp_path / "sweep.html")
    for path, drawn, head in ((tmp_path / "report.html", 5, "predicted"), (written, 2, "period ± error")):
        found = run if path != written else checked(written)
        column = [text for text, _ in found.tables[0][0]].index(head)
        told = seen_by_a_browser(path, column)
        assert told["errors"] == []
        assert len(told["boxes"]) == drawn
        assert np.min(told["boxes"]) > 50
        assert told["wide"] <= 0, "a narrow page must not scroll sideways as a whole"
        up, down = ([float(value) for value in order if value] for order in told["orders"])
        values = sorted(float(value) for _, value in found.column(0, head) if value)
        assert len(set(values)) > 2
        assert up == values
        assert down == values[::-1]
        assert all(order[len(values) :] == [""] * (len(order) - len(values)) for order in told["orders"])
        assert told["sorted"] == "descending"


def test_figures_of_a_page_share_no_names():
    figure, ax = page.new_figure(2.0)
    ax.plot([1, 2], [1, 2], "o")
    found = [Page(page.svg(figure, title)).ids for title in ("first", "second")]
    assert found[0]
    assert not set(found[0]) & set(found[1])
