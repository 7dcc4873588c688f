"""Statements on trial: rules that can say no, experiments that are sound, and the quick ones for real."""

import concurrent.futures
import dataclasses
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

import simulate
import theory
from empirical import dask_executor
from empirical.cli.main import app
from empirical.studies.claims.all_claims import all_claims
from empirical.studies.claims.claim import outcome
from empirical.studies.claims.figures import axis_label, draw, last_steps, write_picture
from empirical.studies.claims.rules import FAILS, HOLDS, UNDECIDED, Between, EverySeed
from empirical.studies.claims.statistics import (
    GRADIENT,
    has_periods,
    has_verdict,
    largest_fall,
    late_gradient_growth,
    least_of,
    log_loss_ratio,
    none_of,
    period_ratio,
    swings,
)
from empirical.studies.claims.study import PAGE, PART, format_outcomes, format_page, judge_claims

FIGURES = st.lists(st.floats(-100, 100), min_size=3, max_size=8)


class TestRules:
    @settings(deadline=None, derandomize=True)
    @given(FIGURES, st.floats(-50, 0), st.floats(0.1, 50))
    def test_between_is_a_test_of_the_mean(self, figures, low, width):
        rule = Between(low, low + width)
        judged = rule.judge(figures)
        if np.ptp(figures) == 0:
            interval = (np.mean(figures),) * 2
        else:
            interval = stats.t.interval(0.95, len(figures) - 1, np.mean(figures), stats.sem(figures))
        inside = low < interval[0] and interval[1] < low + width
        outside = interval[1] <= low or interval[0] >= low + width
        assert judged.verdict == (HOLDS if inside else FAILS if outside else UNDECIDED)
        assert judged.count == len(figures)

    @settings(deadline=None, derandomize=True)
    @given(FIGURES, st.floats(-50, 50))
    def test_a_limit_and_its_opposite_never_both_hold(self, figures, limit):
        above, below = Between(low=limit).judge(figures).verdict, Between(high=limit).judge(figures).verdict
        # of figures that all are the limit, neither holds
        assert {above, below} in ({HOLDS, FAILS}, {UNDECIDED}, {FAILS})

    @pytest.mark.parametrize("yes", range(6))
    def test_every_seed(self, yes):
        verdict = EverySeed().judge([1] * yes + [0] * (5 - yes)).verdict
        assert verdict == {5: HOLDS, 0: FAILS, 1: FAILS}.get(yes, UNDECIDED)

    def test_no_rule_decides_on_few_seeds(self):
        for rule in (Between(low=0), EverySeed()):
            for figures in ([], [1], [1, 1]):
                with pytest.raises(ValueError, match="at least 3 seeds"):
                    rule.judge(figures)
        assert EverySeed().judge([1, 1, 1]).verdict == UNDECIDED
        assert Between(low=0).judge([1, 2, math.nan]).verdict == UNDECIDED
        assert EverySeed().judge([1, 1, 1, 1, math.nan]).verdict == UNDECIDED

    def test_bad_input(self):
        with pytest.raises(ValueError, match="low must be"):
            Between(1, 1)
        with pytest.raises(ValueError, match="0, 1 or NaN"):
            EverySeed().judge([0.5] * 5)


def run(**columns):
    return xr.Dataset({name: ("step", np.asarray(values, dtype=float)) for name, values in columns.items()})


class TestFigures:
    def test_falls_and_periods(self):
        wave = np.exp(np.abs(np.arange(1000) % 100 - 50) / 50)
        swinging = run(norm=wave, rotation=np.full(1000, 0.01), grad_norm=np.ones(1000)).assign_attrs(lr=0.1, wd=0.1)
        assert largest_fall()({"all": [swinging]})[0] == pytest.approx(1.0)
        assert has_periods()({"all": [swinging]}) == [1.0]
        assert none_of(has_periods())({"all": [swinging]}) == [0.0]
        rising = run(norm=np.linspace(1, 5, 1000), rotation=np.full(1000, 0.01)).assign_attrs(lr=0.1, wd=0.0)
        assert largest_fall()({"all": [rising]}) == [0.0]
        assert has_periods()({"all": [rising]}) == [0.0]
        assert has_verdict("periodic")({"all": [rising]}) == [0.0]

    def test_ratios_pair_the_seeds(self):
        def wave(length):
            norm = np.exp(np.abs(np.arange(4000) % length - length / 2) / length * 2)
            return run(norm=norm, rotation=np.full(4000, 0.01)).assign_attrs(lr=0.1, wd=0.05)

        groups = {"a": [wave(100), wave(200)], "b": [wave(200), wave(200)]}
        np.testing.assert_allclose(period_ratio("b", "a", math.log(2))(groups), [1, 0], atol=1e-6)
        with pytest.raises(ValueError, match="argument 2 is longer"):
            period_ratio("a", "b")({"a": groups["a"][:1], "b": groups["b"]})
        losses = {"a": [run(loss=[9, 9, 4, 4])], "b": [run(loss=[1, 1, 2, 2])]}
        assert log_loss_ratio("a", "b")(losses) == [pytest.approx(math.log(2))]
        assert least_of(log_loss_ratio("a", "b"), log_loss_ratio("b", "a"))(losses) == [pytest.approx(-math.log(2))]

    def test_swings_are_jumps_that_spread_and_turn_little(self):
        def wave(height, rotation):
            norm = np.exp(np.abs(np.arange(4000) % 200 - 100) / 100 * height)
            given = run(norm=norm, rotation=np.full(4000, rotation), grad_norm=np.ones(4000))
            return given.assign_attrs(lr=0.1, wd=0.05, optimizer="SGD()")

        rest = theory.equilibrium_rotation(0.1, 0.05)
        assert swings()({"all": [wave(1.0, 0.5 * rest)]}) == [1.0]
        assert swings()({"all": [wave(0.11, 0.5 * rest)]}) == [0.0], "too little spread"
        assert swings()({"all": [wave(1.0, rest)]}) == [0.0], "turns as at rest"
        assert swings()({"all": [wave(1.0, 0.5 * rest).isel(step=slice(0, 900))]}) == [0.0], "too few jumps"

    def test_of_a_run_that_ended_early_nothing_is_told(self):
        short = run(norm=[1.0], rotation=[0.1], grad_norm=[1.0]).assign_attrs(lr=0.1, wd=0.05)
        groups = {"all": [short], "a": [short], "b": [short]}
        for figure in (has_verdict("periodic"), swings(), period_ratio("a", "b")):
            assert np.isnan(figure(groups)).all()
        claim = dataclasses.replace(TestStatements.CLAIMS[0], figure=lambda runs: [math.inf] * 5)
        assert outcome(claim, {}, {}).judged.verdict == UNDECIDED

    def test_growth_of_gradients(self):
        growing = run(grad_norm=np.linspace(1, 3, 1000), norm=np.full(1000, 2.0))
        assert late_gradient_growth()({"all": [growing]})[0] == pytest.approx(math.log(2.85 / 1.95), rel=1e-3)


class TestStatements:
    CLAIMS = all_claims()

    def test_there_are_enough(self):
        assert len(self.CLAIMS) >= 20
        assert len({claim.name for claim in self.CLAIMS}) == len(self.CLAIMS)
        assert {"2010.02916", "2006.08419", "2209.03695", "2305.17212", "2506.02285"} <= {
            claim.source.removeprefix("arXiv ") for claim in self.CLAIMS
        }

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_the_experiment_is_sound(self, claim):
        assert claim.statement.endswith(".")
        assert claim.reason
        assert claim.control_name
        assert set(claim.runs) == set(claim.control)
        assert claim.shown in claim.runs
        assert axis_label(claim.drawn)
        for runs in (claim.runs, claim.control):
            for group in runs.values():
                seeds = [each.seed for each in group]
                assert len(seeds) >= 3
                assert len(set(seeds)) == len(seeds)
                # nothing but the seed differs
                assert len({each.to_dict().__repr__().replace(f"'seed': {each.seed}", "") for each in group}) == 1
        # what is compared is not the same
        assert [each.identity for group in claim.runs.values() for each in group] != [
            each.identity for group in claim.control.values() for each in group
        ] or any(
            a.steps != b.steps
            for name in claim.runs
            for a, b in zip(claim.runs[name], claim.control[name], strict=True)
        )
        # groups of one comparison share no run, which would make it look more certain than it is
        identities = [each.identity for group in claim.runs.values() for each in group]
        assert len(set(identities)) == len(identities)

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_at_the_papers_scale_it_is_the_same_comparison(self, claim):
        large = claim.at_paper_scale()
        for small_runs, large_runs in ((claim.runs, large.runs), (claim.control, large.control)):
            assert [(name, [run.seed for run in group]) for name, group in small_runs.items()] == [
                (name, [run.seed for run in group]) for name, group in large_runs.items()
            ]
        assert {run.dataset for run in large.all_runs} == {"cifar10"}
        assert len({run.identity for run in large.all_runs}) == len({run.identity for run in claim.all_runs})
        assert (large.rule, large.figure) == (claim.rule, claim.figure)

    def test_at_the_papers_scale_no_two_are_the_same(self):
        said = [
            [run.identity for group in claim.at_paper_scale().runs.values() for run in group] for claim in self.CLAIMS
        ]
        at_small = [[run.identity for group in claim.runs.values() for run in group] for claim in self.CLAIMS]
        assert [said.index(each) for each in said] == [at_small.index(each) for each in at_small]

    def test_one_name_is_no_list_of_names(self):
        with pytest.raises(TypeError, match="names must be a sequence"):
            judge_claims("claims", "momentum")

    def test_there_is_no_such(self):
        with pytest.raises(ValueError, match="names must be one of"):
            judge_claims("claims", ["no such"])


SWINGING, SLOWER = (simulate.oscillate(0.5, wd, steps=8000, seed=0) for wd in (0.01, 0.005))
RESTING = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)


def drawing(drawn, runs, control):
    """The figure of a made-up claim with these runs, laid out."""
    claim = dataclasses.replace(
        TestStatements.CLAIMS[0], drawn=drawn, shown="all", figure=lambda runs: [0.0, 1.0, 1.0, 1.0, 1.0]
    )
    figure = draw(outcome(claim, {}, {}), runs, {"all": [control]})
    figure.draw_without_rendering()
    return figure


class TestPictures:
    def test_norms_are_drawn_to_the_end_on_equal_scales(self):
        figure = drawing("norm", {"fast": [SWINGING], "slow": [SLOWER]}, RESTING)
        panels = figure.axes[1:]
        assert [ax.get_title(loc="left").split(":")[0] for ax in panels] == ["claim", "claim", "control"]
        steps = last_steps([SWINGING, SLOWER])
        for ax, run in zip(panels, (SWINGING, SLOWER, RESTING), strict=True):
            (line,) = ax.lines
            np.testing.assert_array_equal(line.get_ydata(), run.norm.values[-steps:])
            assert line.get_xdata()[-1] == -1
            assert tuple(ax.get_xlim()) == (-steps, 0)
        spans = [np.ptp(np.log(ax.get_ylim())) for ax in panels]
        np.testing.assert_allclose(spans, spans[0])
        # what rests fills little of its panel
        assert np.ptp(np.log(panels[2].lines[0].get_ydata())) < 0.1 * spans[0]

    def test_so_many_steps_show_some_periods_of_the_slowest(self):
        shown = last_steps([SWINGING, SLOWER])
        assert shown / simulate.find_periods(SLOWER, discard=2000).mean == pytest.approx(8, rel=1e-3)
        assert last_steps([SWINGING]) < shown
        assert last_steps([RESTING]) == 5000

    @pytest.mark.parametrize("drawn", ["loss", "rotation", GRADIENT])
    def test_anything_else_is_drawn_in_means_below_its_legend(self, drawn):
        means = {"grad_norm": 3.0, "loss": 0.5, "rotation": 0.01}

        def noisy(steps, level):
            noise = 1 + (-1) ** np.arange(steps) / 2
            columns = {name: level * mean * noise for name, mean in means.items()}
            return run(norm=np.full(steps, 2.0), **columns).assign_coords(step=np.arange(steps))

        figure = drawing(drawn, {"a": [noisy(6000, 1.0)], "b": [noisy(6000, 1.5)]}, noisy(240, 1.2))
        ax = figure.axes[1]
        for line, level in zip(ax.lines, (1.0, 1.5, 1.2), strict=True):
            np.testing.assert_allclose(line.get_ydata(), level * {GRADIENT: 1.5, **means}[drawn])
            assert 0 < line.get_xdata()[0] < line.get_xdata()[-1] < 100
        assert ax.get_ylabel().replace("\n", " ") == axis_label(drawn)
        (legend,) = figure.subfigs[1].legends
        assert [text.get_text() for text in legend.get_texts()][-1].endswith("(240 steps)")
        assert legend.get_window_extent().y0 >= ax.get_window_extent().y1

    def test_a_file_that_is_not_too_large(self, tmp_path):
        claim = TestStatements.CLAIMS[0]
        found = outcome(dataclasses.replace(claim, figure=lambda runs: [1.0] * 5), {}, {})
        write_picture(tmp_path / "claim.png", found, {"all": [SWINGING]}, {"all": [RESTING]})
        (made,) = tmp_path.iterdir()
        assert 10_000 < made.stat().st_size < 120_000

    def test_there_is_no_such_variable(self):
        with pytest.raises(ValueError, match=r"name must be one of .*momentum"):
            axis_label("momentum")


def test_pages():
    like = TestStatements.CLAIMS[0]
    claim = dataclasses.replace(
        like, name="falls", statement="The norm falls.", source="nobody", figure=lambda runs: [1.0] * 5, scale="more"
    )
    found = outcome(claim, {}, {})
    assert "| [The norm falls.](#falls) | nobody | 1 ± 0 | 5 | **holds** |" in format_page([found])
    assert format_outcomes([found]).splitlines()[1].split() == ["falls", "1", "±", "0", "5", "holds", "holds"]


def test_the_command_fails_where_a_control_holds(tmp_path, monkeypatch):
    like = dataclasses.replace(TestStatements.CLAIMS[0], figure=lambda runs: [float(runs["yes"])] * 5)
    for control, code in ((True, 1), (False, 0)):
        found = outcome(like, {"yes": True}, {"yes": control})
        monkeypatch.setattr("empirical.studies.claims.study.judge_claims", lambda *_, found=found, **__: [found])
        assert CliRunner().invoke(app, ["claims", "--out", str(tmp_path)]).exit_code == code
        said = "1 ± 0 (n = 5): holds" if control else "0 ± 0 (n = 5): does not hold here"
        (line,) = [line for line in format_page([found]).splitlines() if line.startswith("- Control")]
        assert said in line


def test_a_table_at_the_papers_scale_is_of_other_runs(tmp_path, monkeypatch):
    # of which a machine without a GPU trains none: a stand-in for the network and its steps
    def smaller(run):
        return dataclasses.replace(run, width=run.resolved_width // 2, steps=200)

    monkeypatch.setattr("empirical.studies.claims.claim.at_paper_scale", smaller)
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        (found,) = judge_claims(tmp_path, ["no-decay-no-periods"], paper_scale=True, executor=here, progress=False)
    assert {run.steps for run in found.claim.all_runs} == {200}
    assert found.judged.verdict == HOLDS


@pytest.mark.timeout(600)
def test_the_quick_ones(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        found = judge_claims(tmp_path, fast=True, executor=here, progress=False)
    assert len(found) >= 5
    for each in found:
        assert each.judged.verdict == HOLDS, (each.claim.name, each.judged)
        assert each.control.verdict == FAILS, (each.claim.name, each.control)
        assert (tmp_path / f"{each.claim.name}.png").stat().st_size > 10_000
    # the page of all is not replaced by one of some
    assert not (tmp_path / PAGE).exists()
    page = (tmp_path / PART).read_text(encoding="utf-8")
    assert all(f"## {each.claim.name}" in page for each in found)
    # again: of the same runs, none of them trained anew
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}
    again = judge_claims(tmp_path, [found[0].claim.name, found[-1].claim.name], progress=False)
    np.testing.assert_array_equal(again[0].figures, found[0].figures)
    np.testing.assert_array_equal(again[1].control_figures, found[-1].control_figures)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_the_whole_table(tmp_path):
    found = judge_claims(tmp_path, executor=dask_executor(), progress=False)
    assert len(found) == len(all_claims()) >= 20
    for each in found:
        # what a verdict is, is for training to say; that a rule can say no, its control must show
        assert each.control.verdict == FAILS, (each.claim.name, each.control)
        assert np.isfinite(each.figures).all(), each.claim.name
        if each.judged.verdict != HOLDS:
            assert each.claim.scale, each.claim.name
    assert len(list(tmp_path.glob("*.png"))) == len(found)
