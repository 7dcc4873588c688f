"""Claims: rules that can fail, sound experiments, and the fast claims tested by training."""

import concurrent.futures
import dataclasses
import math

import numpy as np
import pytest
import xarray as xr
from empirical.studies.claims.all_claims import all_claims
from empirical.studies.claims.claim import judge_claim
from empirical.studies.claims.figures import axis_label, draw_claim, steps_to_draw, write_picture
from empirical.studies.claims.rules import FAILS, HOLDS, UNDECIDED, Between, EverySeed
from empirical.studies.claims.statistics import (
    PLAIN_GRADIENT,
    largest_norm_decrease,
    late_gradient_growth,
    log_loss_ratio,
    log_period_ratio,
    negation,
    oscillation_indicator,
    periods_indicator,
    smallest_of,
    verdict_indicator,
)
from empirical.studies.claims.study import CLAIMS_PAGE, PARTIAL_PAGE, format_page, format_verdicts, judge_claims
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

import simulate
import theory
from empirical import dask_executor
from empirical.cli.main import app

VALUES = st.lists(st.floats(-100, 100), min_size=3, max_size=8)


class TestRules:
    @settings(deadline=None, derandomize=True)
    @given(VALUES, st.floats(-50, 0), st.floats(0.1, 50))
    def test_between_is_a_test_of_the_mean(self, values, low, width):
        rule = Between(low, low + width)
        judgement = rule.judge(values)
        if stats.sem(values) == 0:
            interval = (np.mean(values),) * 2
        else:
            interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        inside = low < interval[0] and interval[1] < low + width
        outside = interval[1] <= low or interval[0] >= low + width
        assert judgement.verdict == (HOLDS if inside else FAILS if outside else UNDECIDED)
        assert judgement.count == len(values)

    @settings(deadline=None, derandomize=True)
    @given(VALUES, st.floats(-50, 50))
    def test_a_limit_and_its_opposite_never_both_hold(self, values, limit):
        above, below = Between(low=limit).judge(values).verdict, Between(high=limit).judge(values).verdict
        # if all values equal the limit, neither holds
        assert {above, below} in ({HOLDS, FAILS}, {UNDECIDED}, {FAILS})

    @pytest.mark.parametrize("yes", range(6))
    def test_every_seed(self, yes):
        verdict = EverySeed().judge([1] * yes + [0] * (5 - yes)).verdict
        assert verdict == {5: HOLDS, 0: FAILS, 1: FAILS}.get(yes, UNDECIDED)

    def test_no_rule_decides_on_few_seeds(self):
        for rule in (Between(low=0), EverySeed()):
            for values in ([], [1], [1, 1]):
                with pytest.raises(ValueError, match="at least 3 seeds"):
                    rule.judge(values)
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


class TestStatistics:
    def test_norm_decrease_and_periods(self):
        wave = np.exp(np.abs(np.arange(1000) % 100 - 50) / 50)
        periodic = run(norm=wave, rotation=np.full(1000, 0.01), grad_norm=np.ones(1000)).assign_attrs(lr=0.1, wd=0.1)
        assert largest_norm_decrease()({"all": [periodic]})[0] == pytest.approx(1.0)
        assert periods_indicator()({"all": [periodic]}) == [1.0]
        assert negation(periods_indicator())({"all": [periodic]}) == [0.0]
        rising = run(norm=np.linspace(1, 5, 1000), rotation=np.full(1000, 0.01)).assign_attrs(lr=0.1, wd=0.0)
        assert largest_norm_decrease()({"all": [rising]}) == [0.0]
        assert periods_indicator()({"all": [rising]}) == [0.0]
        assert verdict_indicator("periodic")({"all": [rising]}) == [0.0]

    def test_ratios_pair_the_seeds(self):
        def wave(length):
            norm = np.exp(np.abs(np.arange(4000) % length - length / 2) / length * 2)
            return run(norm=norm, rotation=np.full(4000, 0.01)).assign_attrs(lr=0.1, wd=0.05)

        groups = {"a": [wave(100), wave(200)], "b": [wave(200), wave(200)]}
        np.testing.assert_allclose(log_period_ratio("b", "a", math.log(2))(groups), [1, 0], atol=1e-6)
        with pytest.raises(ValueError, match="argument 2 is longer"):
            log_period_ratio("a", "b")({"a": groups["a"][:1], "b": groups["b"]})
        losses = {"a": [run(loss=[9, 9, 4, 4])], "b": [run(loss=[1, 1, 2, 2])]}
        assert log_loss_ratio("a", "b")(losses) == [pytest.approx(math.log(2))]
        assert smallest_of(log_loss_ratio("a", "b"), log_loss_ratio("b", "a"))(losses) == [pytest.approx(-math.log(2))]

    def test_oscillations_have_periods_spread_and_little_rotation(self):
        def wave(height, rotation):
            norm = np.exp(np.abs(np.arange(4000) % 200 - 100) / 100 * height)
            trajectory = run(norm=norm, rotation=np.full(4000, rotation), grad_norm=np.ones(4000))
            return trajectory.assign_attrs(lr=0.1, wd=0.05, optimizer="SGD()")

        angle = theory.equilibrium_rotation(0.1, 0.05)
        assert oscillation_indicator()({"all": [wave(1.0, 0.5 * angle)]}) == [1.0]
        assert oscillation_indicator()({"all": [wave(0.11, 0.5 * angle)]}) == [0.0], "too little spread"
        assert oscillation_indicator()({"all": [wave(1.0, angle)]}) == [0.0], "rotates as at equilibrium"
        assert oscillation_indicator()({"all": [wave(1.0, 0.5 * angle).isel(step=slice(0, 900))]}) == [0.0], (
            "too few periods"
        )

    def test_short_runs_are_undecided(self):
        short = run(norm=[1.0], rotation=[0.1], grad_norm=[1.0]).assign_attrs(lr=0.1, wd=0.05)
        groups = {"all": [short], "a": [short], "b": [short]}
        for statistic in (verdict_indicator("periodic"), oscillation_indicator(), log_period_ratio("a", "b")):
            assert np.isnan(statistic(groups)).all()
        claim = dataclasses.replace(TestClaims.CLAIMS[0], statistic=lambda runs: [math.inf] * 5)
        assert judge_claim(claim, {}, {}).judgement.verdict == UNDECIDED

    def test_growth_of_gradients(self):
        growing = run(grad_norm=np.linspace(1, 3, 1000), norm=np.full(1000, 2.0))
        assert late_gradient_growth()({"all": [growing]})[0] == pytest.approx(math.log(2.85 / 1.95), rel=1e-3)


class TestClaims:
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
        assert claim.drawn_group in claim.runs
        assert axis_label(claim.drawn_variable)
        for runs in (claim.runs, claim.control):
            for group in runs.values():
                seeds = [config.seed for config in group]
                assert len(seeds) >= 3
                assert len(set(seeds)) == len(seeds)
                # nothing but the seed differs
                assert len({repr(config.to_dict()).replace(f"'seed': {config.seed}", "") for config in group}) == 1
        # claim and control differ
        assert [config.identity for group in claim.runs.values() for config in group] != [
            config.identity for group in claim.control.values() for config in group
        ] or any(
            a.steps != b.steps
            for name in claim.runs
            for a, b in zip(claim.runs[name], claim.control[name], strict=True)
        )
        # groups that are compared share no run, which would make the error too small
        identities = [config.identity for group in claim.runs.values() for config in group]
        assert len(set(identities)) == len(identities)

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_the_comparison_is_the_same_at_paper_scale(self, claim):
        large = claim.at_paper_scale()
        for small_runs, large_runs in ((claim.runs, large.runs), (claim.control, large.control)):
            assert [(name, [run.seed for run in group]) for name, group in small_runs.items()] == [
                (name, [run.seed for run in group]) for name, group in large_runs.items()
            ]
        assert {run.dataset for run in large.all_runs} == {"cifar10"}
        assert len({run.identity for run in large.all_runs}) == len({run.identity for run in claim.all_runs})
        assert (large.rule, large.statistic) == (claim.rule, claim.statistic)

    def test_claims_stay_different_at_paper_scale(self):
        at_large = [
            [run.identity for group in claim.at_paper_scale().runs.values() for run in group] for claim in self.CLAIMS
        ]
        at_small = [[run.identity for group in claim.runs.values() for run in group] for claim in self.CLAIMS]
        assert [at_large.index(group) for group in at_large] == [at_small.index(group) for group in at_small]

    def test_a_single_name_is_not_a_list(self):
        with pytest.raises(TypeError, match="names must be a sequence"):
            judge_claims("claims", "momentum")

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="names must be one of"):
            judge_claims("claims", ["no such"])


PERIODIC, SLOWER = (simulate.oscillate(0.5, wd, steps=8000, seed=0) for wd in (0.01, 0.005))
SETTLED = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)


def drawing(variable, runs, control):
    """Figure of a made-up claim with these runs, with its layout computed."""
    claim = dataclasses.replace(
        TestClaims.CLAIMS[0],
        drawn_variable=variable,
        drawn_group="all",
        statistic=lambda runs: [0.0, 1.0, 1.0, 1.0, 1.0],
    )
    figure = draw_claim(judge_claim(claim, {}, {}), runs, {"all": [control]})
    figure.draw_without_rendering()
    return figure


class TestPictures:
    def test_norms_are_drawn_to_the_end_on_equal_scales(self):
        figure = drawing("norm", {"fast": [PERIODIC], "slow": [SLOWER]}, SETTLED)
        panels = figure.axes[1:]
        assert [ax.get_title(loc="left").split(":")[0] for ax in panels] == ["claim", "claim", "control"]
        steps = steps_to_draw([PERIODIC, SLOWER])
        for ax, run in zip(panels, (PERIODIC, SLOWER, SETTLED), strict=True):
            (line,) = ax.lines
            np.testing.assert_array_equal(line.get_ydata(), run.norm.values[-steps:])
            assert line.get_xdata()[-1] == -1
            assert tuple(ax.get_xlim()) == (-steps, 0)
        spans = [np.ptp(np.log(ax.get_ylim())) for ax in panels]
        np.testing.assert_allclose(spans, spans[0])
        # a norm at equilibrium fills little of its panel
        assert np.ptp(np.log(panels[2].lines[0].get_ydata())) < 0.1 * spans[0]

    def test_the_last_steps_show_eight_periods_of_the_slowest_run(self):
        steps = steps_to_draw([PERIODIC, SLOWER])
        assert steps / simulate.find_periods(SLOWER, discard=2000).mean == pytest.approx(8, rel=1e-3)
        assert steps_to_draw([PERIODIC]) < steps
        assert steps_to_draw([SETTLED]) == 5000

    @pytest.mark.parametrize("variable", ["loss", "rotation", PLAIN_GRADIENT])
    def test_other_variables_are_drawn_as_means_below_the_legend(self, variable):
        means = {"grad_norm": 3.0, "loss": 0.5, "rotation": 0.01}

        def noisy(steps, level):
            noise = 1 + (-1) ** np.arange(steps) / 2
            columns = {name: level * mean * noise for name, mean in means.items()}
            return run(norm=np.full(steps, 2.0), **columns).assign_coords(step=np.arange(steps))

        figure = drawing(variable, {"a": [noisy(6000, 1.0)], "b": [noisy(6000, 1.5)]}, noisy(240, 1.2))
        ax = figure.axes[1]
        for line, level in zip(ax.lines, (1.0, 1.5, 1.2), strict=True):
            np.testing.assert_allclose(line.get_ydata(), level * {PLAIN_GRADIENT: 1.5, **means}[variable])
            assert 0 < line.get_xdata()[0] < line.get_xdata()[-1] < 100
        assert ax.get_ylabel().replace("\n", " ") == axis_label(variable)
        (legend,) = figure.subfigs[1].legends
        assert [text.get_text() for text in legend.get_texts()][-1].endswith("(240 steps)")
        assert legend.get_window_extent().y0 >= ax.get_window_extent().y1

    def test_the_file_is_not_too_large(self, tmp_path):
        claim = TestClaims.CLAIMS[0]
        result = judge_claim(dataclasses.replace(claim, statistic=lambda runs: [1.0] * 5), {}, {})
        write_picture(tmp_path / "claim.png", result, {"all": [PERIODIC]}, {"all": [SETTLED]})
        (file,) = tmp_path.iterdir()
        assert 10_000 < file.stat().st_size < 120_000

    def test_an_unknown_variable_is_refused(self):
        with pytest.raises(ValueError, match=r"name must be one of .*momentum"):
            axis_label("momentum")


def test_pages():
    claim = dataclasses.replace(
        TestClaims.CLAIMS[0],
        name="falls",
        statement="The norm falls.",
        source="nobody",
        statistic=lambda runs: [1.0] * 5,
        scale="more",
    )
    result = judge_claim(claim, {}, {})
    page = format_page([result])
    assert f"| [The norm falls.](#falls) | nobody | {claim.rule} | 1 ± 0 | 5 | **holds** |" in page
    assert "Of 1 claims, 1 hold, 0 fail and 0 are undecided." in page
    assert format_verdicts([result]).splitlines()[1].split() == ["falls", "1", "±", "0", "5", "holds", "holds"]


def test_the_command_fails_where_a_control_holds(tmp_path, monkeypatch):
    claim = dataclasses.replace(TestClaims.CLAIMS[0], statistic=lambda runs: [float(runs["yes"])] * 5)
    for control, code in ((True, 1), (False, 0)):
        result = judge_claim(claim, {"yes": True}, {"yes": control})
        monkeypatch.setattr("empirical.studies.claims.study.judge_claims", lambda *_, result=result, **__: [result])
        assert CliRunner().invoke(app, ["claims", "--out", str(tmp_path)]).exit_code == code
        expected = "1 ± 0 (n = 5): holds" if control else "0 ± 0 (n = 5): fails"
        (line,) = [line for line in format_page([result]).splitlines() if line.startswith("- Control")]
        assert expected in line


def test_paper_scale_trains_other_runs(tmp_path, monkeypatch):
    # a stand-in for the large network, which needs a GPU
    def smaller(run):
        return dataclasses.replace(run, width=run.resolved_width // 2, steps=200)

    monkeypatch.setattr("empirical.studies.claims.claim.at_paper_scale", smaller)
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        (result,) = judge_claims(tmp_path, ["no-decay-no-periods"], paper_scale=True, executor=here, progress=False)
    assert {run.steps for run in result.claim.all_runs} == {200}
    assert result.judgement.verdict == HOLDS


@pytest.mark.timeout(600)
def test_fast_claims(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        results = judge_claims(tmp_path, fast=True, executor=here, progress=False)
    assert len(results) >= 5
    for result in results:
        assert result.judgement.verdict == HOLDS, (result.claim.name, result.judgement)
        assert result.control.verdict == FAILS, (result.claim.name, result.control)
        assert (tmp_path / f"{result.claim.name}.png").stat().st_size > 10_000
    # a selection does not replace the page of all claims
    assert not (tmp_path / CLAIMS_PAGE).exists()
    page = (tmp_path / PARTIAL_PAGE).read_text(encoding="utf-8")
    assert all(f"## {result.claim.name}" in page for result in results)
    # a second call reuses the runs
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}
    again = judge_claims(tmp_path, [results[0].claim.name, results[-1].claim.name], progress=False)
    np.testing.assert_array_equal(again[0].values, results[0].values)
    np.testing.assert_array_equal(again[1].control_values, results[-1].control_values)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps.log")}


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_all_claims(tmp_path):
    results = judge_claims(tmp_path, executor=dask_executor(), progress=False)
    assert len(results) == len(all_claims()) >= 20
    for result in results:
        # the verdict depends on training, but the rule must fail for the control
        assert result.control.verdict == FAILS, (result.claim.name, result.control)
        assert np.isfinite(result.values).all(), result.claim.name
        if result.judgement.verdict != HOLDS:
            assert result.claim.scale, result.claim.name
    assert len(list(tmp_path.glob("*.png"))) == len(results)
