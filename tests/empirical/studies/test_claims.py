"""Claims: rules that can fail, sound experiments, and the fast claims tested by training."""

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
from empirical.config import RunConfig
from empirical.reports.tables import DASH
from empirical.studies.claims import (
    CLAIMS,
    CLAIMS_PAGE,
    PARTIAL_PAGE,
    choose_claims,
    format_verdicts,
    judge_claims,
    page_name,
    write_claims,
)
from empirical.studies.figures import axis_label, draw_claim, steps_to_draw, write_picture
from empirical.studies.statistics import (
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
from empirical.studies.study import FAILS, HOLDS, UNDECIDED, Between, EverySeed, Limit, Study, run_studies

VALUES = st.lists(st.floats(-100, 100), min_size=3, max_size=8)


class TestRules:
    @settings(deadline=None, derandomize=True)
    @given(VALUES, st.floats(-50, 0), st.floats(0.1, 50))
    def test_between_is_a_test_of_the_mean(self, values, low, width):
        rule = Between(low=low, high=low + width)
        judgement = rule.judge(values)
        if stats.sem(values) == 0:
            interval = (np.mean(values),) * 2
        else:
            interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        inside = low < interval[0] and interval[1] < low + width
        outside = interval[1] <= low or interval[0] >= low + width
        assert judgement.verdict == (HOLDS if inside else FAILS if outside else UNDECIDED)
        assert judgement.statistic == pytest.approx(np.mean(values))

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
                with pytest.raises(ValueError, match="3 seeds, got"):
                    rule.judge(values)
        assert EverySeed().judge([1, 1, 1]).verdict == UNDECIDED
        assert Between(low=0).judge([1, 2, math.nan]).verdict == UNDECIDED
        assert EverySeed().judge([1, 1, 1, 1, math.nan]).verdict == UNDECIDED

    def test_bad_input(self):
        with pytest.raises(ValueError, match="low must be"):
            Between(low=1, high=1)
        with pytest.raises(ValueError, match=r"NaN.*0\.5"):
            EverySeed().judge([0.5] * 5)

    def test_limits(self):
        values = [0.02, 0.04, 0.12]
        assert [Limit(at_most=limit).judge(values).verdict for limit in (0.06, 0.059)] == [HOLDS, FAILS]
        assert [Limit(at_least=limit).judge(values).verdict for limit in (0.06, 0.061)] == [HOLDS, FAILS]
        assert [Limit(summary=name).judge(values).statistic for name in ("median", "largest")] == [0.04, 0.12]
        assert Limit(at_most=0.1, at_least=0.05).judge(values).verdict == HOLDS
        assert Limit().judge(values).verdict == str(Limit()) == DASH
        for unknown in ([], [0.01, math.nan]):
            assert Limit(at_most=1).judge(unknown).verdict == UNDECIDED


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
        # it falls faster than by decay
        undetermined = periodic.assign_attrs(wd=1e-3)
        assert math.isnan(verdict_indicator("periodic")({"all": [undetermined]})[0])

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
        # a loss that overflowed
        for rule in (Between(low=0), EverySeed()):
            assert rule.judge([math.inf] * 5).verdict == UNDECIDED

    def test_growth_of_gradients(self):
        growing = run(grad_norm=np.linspace(1, 3, 1000), norm=np.full(1000, 2.0))
        assert late_gradient_growth()({"all": [growing]})[0] == pytest.approx(math.log(2.85 / 1.95), rel=1e-3)


class TestClaims:
    def test_there_are_enough(self):
        assert len(CLAIMS) >= 20
        assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
        assert {"2010.02916", "2006.08419", "2209.03695", "2305.17212", "2506.02285"} <= {
            claim.source.removeprefix("arXiv ") for claim in CLAIMS
        }

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_the_experiment_is_sound(self, claim):
        (control,) = claim.control_studies
        assert claim.claim.endswith(".")
        assert claim.reason
        assert control.claim
        assert set(claim.runs) == set(control.runs)
        assert claim.drawn_group in claim.runs
        assert axis_label(claim.drawn_variable)
        for runs in (claim.runs, control.runs):
            for group in runs.values():
                seeds = [config.seed for config in group]
                assert len(seeds) >= 3
                assert len(set(seeds)) == len(seeds)
                # nothing but the seed differs
                assert len({repr(config.to_dict()).replace(f"'seed': {config.seed}", "") for config in group}) == 1
        # claim and control differ
        assert [config.identity for group in claim.runs.values() for config in group] != [
            config.identity for group in control.runs.values() for config in group
        ] or any(
            a.steps != b.steps for name in claim.runs for a, b in zip(claim.runs[name], control.runs[name], strict=True)
        )
        # groups that are compared share no run, which would make the error too small
        identities = [config.identity for group in claim.runs.values() for config in group]
        assert len(set(identities)) == len(identities)

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
    def test_the_comparison_is_the_same_at_paper_scale(self, claim):
        large = claim.at_paper_scale()
        (control,), (large_control,) = claim.control_studies, large.control_studies
        for small_runs, large_runs in ((claim.runs, large.runs), (control.runs, large_control.runs)):
            assert [(name, [run.seed for run in group]) for name, group in small_runs.items()] == [
                (name, [run.seed for run in group]) for name, group in large_runs.items()
            ]
        assert {run.dataset for run in large.all_runs} == {"cifar10"}
        assert len({run.identity for run in large.all_runs}) == len({run.identity for run in claim.all_runs})
        assert (large.rule, large.statistic) == (claim.rule, claim.statistic)

    def test_claims_stay_different_at_paper_scale(self):
        at_large = [
            [run.identity for group in claim.at_paper_scale().runs.values() for run in group] for claim in CLAIMS
        ]
        at_small = [[run.identity for group in claim.runs.values() for run in group] for claim in CLAIMS]
        assert [at_large.index(group) for group in at_large] == [at_small.index(group) for group in at_small]

    def test_a_single_name_is_not_a_list(self):
        with pytest.raises(TypeError, match=r"names.*momentum"):
            judge_claims("claims", "momentum")

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match=r"names.*'no such'"):
            judge_claims("claims", ["no such"])


PERIODIC, SLOWER = (simulate.oscillate(0.5, wd, steps=8000, seed=0) for wd in (0.01, 0.005))
SETTLED = simulate.norm_map(0.1, 0.01, 2.0, norm=2.1, steps=5000)


def made_up_result(control=1.0, **changes):
    """Result of a made-up claim with an indicator that is 1 for every seed, and `control` for every control."""
    claim = dataclasses.replace(CLAIMS[0], statistic=lambda indicator: [indicator] * 5, **changes)
    return claim.judge(1.0, [control])


def drawing(variable, runs, control):
    """Figure of a made-up claim with these runs, with its layout computed."""
    figure = draw_claim(made_up_result(drawn_variable=variable, drawn_group="all"), runs, {"all": [control]})
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
        write_picture(tmp_path / "claim", made_up_result(), {"all": [PERIODIC]}, [{"all": [SETTLED]}])
        assert [file.name for file in tmp_path.iterdir()] == ["claim.png"]
        assert 10_000 < (tmp_path / "claim.png").stat().st_size < 120_000

    def test_an_unknown_variable_is_refused(self):
        with pytest.raises(ValueError, match=r"name must be one of .*momentum"):
            axis_label("momentum")


def lines_of(path):
    """Lines of a page, with single spaces."""
    return [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pages(tmp_path):
    result = made_up_result(0.0, name="falls", claim="The norm falls.", source="nobody", scale="more")
    write_claims(tmp_path / "page.md", [result])
    lines = lines_of(tmp_path / "page.md")
    assert lines[0] == "<!-- written by `bnwd claims` -->"
    rule = result.study.rule
    assert f"| [The norm falls.](#falls) | nobody | {rule} | 1 ± 0 | 5 | **holds** |" in lines
    assert any(line.startswith("Of 1 claims, 1 hold, 0 fail and 0 are undecided.") for line in lines)
    assert format_verdicts([result]).splitlines()[1].split() == ["falls", "1", "±", "0", "5", "holds", "fails"]
    assert not any("would need" in line for line in lines)
    undecided = dataclasses.replace(result, verdict=UNDECIDED)
    write_claims(tmp_path / "page.md", [undecided])
    assert "- What the claim would need to hold: more." in lines_of(tmp_path / "page.md")


def test_the_command_fails_where_a_control_holds(tmp_path, monkeypatch):
    for control, code in ((1.0, 1), (0.0, 0)):
        result = made_up_result(control)
        monkeypatch.setattr("empirical.studies.claims.judge_claims", lambda *_, result=result, **__: [result])
        assert CliRunner().invoke(app, ["claims", "--out", str(tmp_path)]).exit_code == code
        expected = "1 ± 0 (n = 5): holds" if control else "0 ± 0 (n = 5): fails"
        write_claims(tmp_path / "page.md", [result])
        (line,) = [line for line in lines_of(tmp_path / "page.md") if line.startswith("- Control")]
        assert expected in line


def test_claims_at_paper_scale_are_run_drawn_and_written(tmp_path, monkeypatch):
    calls = []

    def run_studies(studies, out, **options):
        calls.append((studies, out, options))
        return [made_up_result()]

    monkeypatch.setattr("empirical.studies.claims.run_studies", run_studies)
    (result,) = judge_claims(tmp_path, ["momentum"], paper_scale=True)
    ((studies, out, options),) = calls
    assert {run.dataset for study in studies for run in study.all_runs} == {"cifar10"}
    assert (out, options["draw"]) == (tmp_path, write_picture)
    assert result.study.claim in (tmp_path / PARTIAL_PAGE).read_text(encoding="utf-8")


def test_the_page_of_all_claims_is_not_that_of_a_selection():
    assert page_name(len(CLAIMS)) == CLAIMS_PAGE != PARTIAL_PAGE == page_name(len(choose_claims(fast=True)))
    assert len(choose_claims(fast=True)) >= 5
    (large,) = choose_claims(["momentum"], paper_scale=True)
    assert {run.dataset for run in large.all_runs} == {"cifar10"}


FEW = ["no-decay-no-periods", "angular-update", "small-networks-settle"]


def shorter(run):
    return dataclasses.replace(run, steps=min(run.steps, 300 if run.wd == 0 else 1200))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Some claims with shorter runs, trained once: claims, folder, results, and what a second call returns."""
    out = tmp_path_factory.mktemp("claims")
    claims = [claim.at_paper_scale(scale=shorter) for claim in choose_claims(FEW)]
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        results = run_studies(claims, out, executor=here, progress=False, draw=write_picture)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("steps.log")}
    again = run_studies([claims[0], claims[-1]], out, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("steps.log")}, "runs are reused"
    return claims, out, results, again


def test_claims_hold_and_fail_for_their_controls(trained):
    claims, out, results, again = trained
    assert {run.steps for claim in claims for run in claim.all_runs} == {200, 300, 1200}
    for result in results:
        assert result.verdict == HOLDS, str(result)
        assert result.controls[0].verdict == FAILS, str(result.controls[0])
        assert not result.control_holds
        assert (out / f"{result.study.name}.png").stat().st_size > 10_000
    np.testing.assert_array_equal(again[0].values, results[0].values)
    np.testing.assert_array_equal(again[1].controls[0].values, results[-1].controls[0].values)
    write_claims(out / PARTIAL_PAGE, results)
    assert {f"## {name}" for name in FEW} <= set(lines_of(out / PARTIAL_PAGE))


def test_runs_that_must_be_complete(tmp_path):
    # with so small a norm the first step overflows
    run = RunConfig(lr=0.5, wd=0.01, width=4, steps=20, init_norm=1e-30)
    study = Study(name="ends-early", claim="A run ends early.", runs={"all": [run]}, statistic=lambda runs: [1.0])
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        assert run_studies([study], tmp_path, executor=here, progress=False)[0].statistic == 1.0
        with pytest.raises(RuntimeError, match=r"not complete.*runs.*collapsed"):
            run_studies([study], tmp_path, executor=here, progress=False, must_complete=True)


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_all_claims(tmp_path):
    results = judge_claims(tmp_path, executor=dask_executor(), progress=False)
    assert len(results) == len(CLAIMS) >= 20
    for result in results:
        # the verdict depends on training, but the rule must fail for the control
        assert result.controls[0].verdict == FAILS, str(result.controls[0])
        assert np.isfinite(result.values).all(), result.study.name
        if result.verdict != HOLDS:
            assert result.study.scale, result.study.name
        if result.study.fast:
            assert result.verdict == HOLDS, str(result)
    assert len(list(tmp_path.glob("*.png"))) == len(results)
    assert (tmp_path / CLAIMS_PAGE).exists()
    assert not (tmp_path / PARTIAL_PAGE).exists()
