"""Held-out trials: pooling, measures that can fail, and the whole way from probes to a page."""

import concurrent.futures
import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from empirical.studies.predictions import report, study
from empirical.studies.predictions.report import format_measures, measures, write_page
from empirical.studies.predictions.study import NETWORKS, Network, together, validate_held_out
from simulate._files import write_json

RUN = {
    "periods": 40, "period": 100.0, "period_stderr": 4.0, "norm_rise": 0.5, "threshold_ratio": 1.25,
    "rotation_ratio": 0.3,
    "log_norm_sd": 0.3, "autocorrelation_time": 20.0, "typical_norm": 2.0, "trough_norm": 1.0, "peak_norm": 3.0,
    "seconds": 1.0,
}  # fmt: skip


class TestPooling:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(st.lists(st.lists(st.floats(50, 200), min_size=2, max_size=30), min_size=1, max_size=4))
    def test_periods_of_runs_are_those_of_one_list(self, runs):
        summed = [
            {**RUN, "periods": len(run), "period": np.mean(run), "period_stderr": np.std(run, ddof=1) / len(run) ** 0.5}
            for run in runs
        ]
        found, every = together(0.005, summed), np.concatenate(runs)
        assert found.periods == every.size
        assert found.period == pytest.approx(every.mean(), rel=1e-9)
        assert found.outside_growth == pytest.approx(1 - 0.5 / (-math.log1p(-0.005) * every.mean()), rel=1e-9)
        within = np.sqrt(sum(np.var(run, ddof=1) * len(run) for run in runs)) / every.size
        assert found.period_stderr >= within * (1 - 1e-9)

    def test_seeds_that_disagree_have_a_larger_error(self):
        apart = together(0.01, [RUN, {**RUN, "period": 140.0}])
        assert apart.period_stderr == pytest.approx(20.0)

    def test_periods_at_twice_the_rise_are_counted_not_averaged(self):
        # 40 and 40 periods at the rise, 32 and none at twice of it
        without = {name: value for name, value in RUN.items() if name != "threshold_ratio"}
        assert together(0.01, [RUN, without]).threshold_ratio == pytest.approx(80 / 32)
        assert together(0.01, [without]).threshold_ratio == math.inf

    def test_an_error_that_is_not_known_is_not_zero(self):
        single = {**RUN, "periods": 1, "period_stderr": math.nan}
        assert math.isnan(together(0.01, [single]).period_stderr)
        assert math.isnan(together(0.01, [RUN, single]).period_stderr)

    def test_runs_without_periods_rest_or_are_not_clear(self):
        nothing = {"periods": 0, "rotation_ratio": 0.9, "log_norm_sd": 0.02, "typical_norm": 2.0, "seconds": 1.0}
        assert together(0.01, [nothing] * 2).verdict == "equilibrium"
        assert together(0.01, [nothing, {**nothing, "rotation_ratio": 0.5}]).verdict == "no clear period"
        assert math.isnan(together(0.01, [nothing]).period)


def table(count=50, **changed):
    """A table of perfect predictions, on which some columns are multiplied."""
    names = ("period", "log_norm_sd", "norm", "trough_norm", "peak_norm", "autocorrelation_time")
    columns = {f"{side}_{name}": np.full(count, 10.0) for name in names for side in ("measured", "predicted")}
    columns |= {f"{name}_period": np.full(count, 13.0) for name in ("naive", "share", "reduced", "one_setting")}
    columns |= {"measured_periods": np.full(count, 80.0), "measured_period_stderr": np.full(count, 0.4)}
    columns |= {"predicted_period_lower": np.full(count, 9.0), "predicted_period_upper": np.full(count, 11.0)}
    columns |= {f"{side}_verdict": np.array(["periodic"] * count, dtype=object) for side in ("measured", "predicted")}
    columns = {
        name: values * np.asarray(changed[name]) if name in changed else values for name, values in columns.items()
    }
    kinds = np.array(["mlp", "convnet"] * count, dtype=object)[:count]
    blind = np.arange(count) % 4 < 2
    coords = {"kind": ("setting", kinds), "blind": ("setting", blind)}
    return xr.Dataset({name: ("setting", values) for name, values in columns.items()}, coords)


def missed(found):
    return [measure.claim for measure in found if measure.reached is False]


class TestMeasures:
    def test_perfect_predictions_reach_every_goal(self):
        found = measures(table())
        assert missed(found) == []
        assert sum(measure.reached is True for measure in found) >= 20

    @pytest.mark.parametrize(
        ("changed", "claims"),
        [
            ({"predicted_period": 1.09}, ["mean error of T", "stretch: mean error"]),
            ({"predicted_period": 1.25}, ["T within 20 %", "mean error over that of naive"]),
            ({"measured_period": 1.2}, ["measured T in its 90 % interval"]),
            ({"predicted_period_upper": 2.0}, ["median half-width"]),
            ({"predicted_norm_min": 1.2}, ["at the troughs, MLP", "at the break, MLP"]),
            ({"predicted_norm_min": 0.5}, ["at the troughs, ConvNet", "at the break, ConvNet"]),
            ({"predicted_norm_max": 1.5}, ["at the peaks, MLP", "at the peaks, ConvNet"]),
            ({"predicted_log_norm_sd": 1.25}, ["mean error of the spread"]),
        ],
        ids=str,
    )  # fmt: skip
    def test_each_goal_is_missed_by_what_is_wrong(self, changed, claims):
        found = missed(measures(table(**changed)))
        for claim in claims:
            assert any(claim in other for other in found), (claim, found)

    def test_wrong_verdicts_are_counted(self):
        wrong = table()
        wrong.predicted_verdict.values[:6] = "equilibrium"
        assert "verdict as measured" in missed(measures(wrong))
        wrong.predicted_verdict.values[:2] = "periodic"
        assert "verdict as measured" not in missed(measures(wrong))

    def test_a_full_batch_is_judged_by_itself(self):
        made = table(4, predicted_period=1.2).assign_coords(
            kind=("setting", np.array(["full batch"] * 4, dtype=object))
        )
        found = measures(made)
        assert missed(found) == ["full batch, worst error of T (4 settings)"]

    def test_few_periods_and_unclear_ones_do_not_judge_the_law(self):
        made = table(4, measured_periods=0.5)
        assert not any("error of T" in measure.claim for measure in measures(made))

    def test_the_text_has_a_line_for_each(self):
        found = measures(table())
        assert len(format_measures(found).splitlines()) == len(found) + 1


SMALL = {
    "rests": Network("MLP 4", {"model": "mlp", "width": 4}, rates={5e-3: 0.2}),
    "swings": Network("MLP 64", {"model": "mlp", "width": 64}, blind=True, rates={4e-3: 1.0, 1e-3: 0.5}),
}


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    out = tmp_path_factory.mktemp("trial") / "held_out"
    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(1) as executor:
        patch.setattr(study, "NETWORKS", SMALL)
        found = validate_held_out(out, periods=20, calibration_periods=40, executor=executor, progress=False)
        again = validate_held_out(out, periods=20, calibration_periods=40, executor=executor, progress=False)
    return out, found, again


def test_from_probes_to_predictions_of_what_was_trained(trial):
    out, found, again = trial
    assert found.network.values.tolist() == ["rests", "swings", "swings"]
    assert found.measured_verdict.values[0] == found.predicted_verdict.values[0] == "equilibrium"
    # 20 periods each: a tenth or so
    np.testing.assert_allclose(found.predicted_period[1:], found.measured_period[1:], rtol=0.3)
    assert found.measured_periods.values[1:].min() >= 20
    np.testing.assert_allclose(found.lr * found.wd, [5e-3, 4e-3, 1e-3])
    units = {name: found[name].attrs["units"] for name in map(str, found.variables)}
    assert units["measured_log_norm_sd"] == units["predicted_rotation_ratio"] == "1"
    assert units["predicted_effective_lr_max"] == "1/loss"
    assert units["predicted_period_lower"] == units["naive_period"] == units["measured_period"] == "step"
    assert units["measured_periods"] == ""
    assert {each.name for each in (out / "models").iterdir()} == {"rests.json", "swings.json"}
    # the second call trains nothing and says the same
    xr.testing.assert_equal(found.drop_vars("measured_seconds"), again.drop_vars("measured_seconds"))
    assert (out / "held_out.csv").read_text().count("\n") == 4


def test_the_page_tells_every_setting(trial, monkeypatch):
    out, found, _ = trial
    monkeypatch.setattr(report, "NETWORKS", SMALL)
    write_page(out, found, measures(found))
    page = (out / "held_out.md").read_text()
    assert page.count("| MLP 64 (blind) |") == 2
    assert page.count("| MLP 4 |") == 1
    assert "| – |" in page, "what a network at rest has no number for"
    assert (out / "held_out.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_is_read_panel_by_panel(trial, monkeypatch):
    out, found, _ = trial
    monkeypatch.setattr(report, "NETWORKS", SMALL)
    models = {"swings": simulate.PeriodModel.load(out / "models" / "swings.json")}
    figure = report.held_out_figure(found.sel(setting=found.network == "swings"), models)
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["MLP 64 (blind)"]
    (legend,) = figure.legends
    for ax in panels:
        assert [text.get_text() for text in ax.get_xticklabels()] == ["0.0003", "0.001", "0.003", "0.01"]
        assert legend.get_window_extent().y0 >= ax.get_window_extent().y1


def test_predictions_do_not_see_the_references(trial):
    out, found, _ = trial
    model = simulate.PeriodModel.load(out / "models" / "swings.json")
    for i in (1, 2):
        row = found.isel(setting=i)
        assert row.predicted_period.item() == pytest.approx(model.law.period(row.lr.item(), row.wd.item()), rel=1e-12)
    # it was calibrated on runs of other seeds and settings
    runs = [json.loads(segment.run) for segment in model.calibration_runs]
    assert {run["seed"] for run in runs} == {0, 1}
    asked = (found.lr * found.wd).values[1:]
    assert all(abs(run["lr"] * run["wd"] / rate - 1) > 0.1 for run in runs for rate in asked)


def test_networks_are_what_they_say():
    names = [network.name for network in NETWORKS.values()]
    assert len(set(names)) == len(names)
    settings_of = [str(sorted(network.settings.items())) for network in NETWORKS.values()]
    assert len(set(settings_of)) == len(settings_of)
    judged = sum(len(network.rates) for network in NETWORKS.values() if network.kind != "full batch")
    assert judged >= 40
    assert sum(network.blind for network in NETWORKS.values()) >= 2
    # seeds of the probes are others
    assert not set(study.SEEDS) & {0, 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"networks": ["mlp7"]}, "networks"), ({"networks": []}, "networks"), ({"periods": 3}, "periods")],
)
def test_bad_input(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        validate_held_out(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    write_json(tmp_path / "thesis.json", {"years": 4})
    with pytest.raises(ValueError, match="out must be a new or empty folder or that of an earlier call"):
        validate_held_out(tmp_path, ["mlp64"])
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.json"]


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "NETWORKS", {"rests": SMALL["rests"]})
    # sweeps are stopped by it, probes go on by themselves
    monkeypatch.setattr("empirical.runs.loop.train_together", lambda *arguments: [OSError("the disk is gone")])
    with (
        concurrent.futures.ThreadPoolExecutor(1) as executor,
        pytest.raises(RuntimeError, match=r"every run must be complete to be compared, but: .*the disk is gone"),
    ):
        validate_held_out(tmp_path / "new", calibration_periods=20, executor=executor, progress=False)


@pytest.mark.acceptance
@pytest.mark.timeout(10_000)
def test_predictions_of_networks_that_were_never_seen(tmp_path):
    names = [name for name, network in NETWORKS.items() if not network.beyond]
    found = measures(validate_held_out(tmp_path / "held_out", names, progress=False))
    missed_goals = [m.claim for m in found if m.reached is False and not m.claim.startswith("stretch")]
    # known to be missed on the day of docs/held_out.md; anything else is news
    assert set(missed_goals) <= {"effective lr at the break, MLP: worst factor"}, format_measures(found)
