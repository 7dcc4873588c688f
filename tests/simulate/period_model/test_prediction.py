"""Predictions at other settings, and the balance law, from calibration runs."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from simulate.period_model.model import simulated_periods
from simulate.period_model.prediction import interpolate
from simulate.period_model.summaries import CalibrationRun, pool_runs

REFERENCE = simulate.PeriodModel.reference()
FIXED = settings(deadline=None, derandomize=True, max_examples=60)


def periodic_run(intrinsic_lr, count=50, period=80.0, norm_rise=0.5, *, scaled=1.0, **numbers):
    """Calibration run with periods of this length; by default T·ηλ = 0.8 at ηλ = 0.01."""
    defaults = {
        "verdict": "periodic", "rotation_ratio": 0.3, "log_norm_sd": 0.2, "autocorrelation_time": 15.0,
        "threshold_ratio": 1.2, "norm": 3.0, "feedback_score": 5.0,
    }  # fmt: skip
    outside_growth = 1 - norm_rise / (-math.log1p(-intrinsic_lr) * period)
    return CalibrationRun(
        intrinsic_lr, count, period, 1.0, norm_rise, outside_growth, 2.0, 2.0 * math.exp(norm_rise),
        lengths=(period,) * count, rises=(norm_rise,) * count, **{**defaults, **numbers},
    )  # fmt: skip


def model(*calibration_runs):
    return simulate.PeriodModel(tuple(calibration_runs), 0.1, None, "it was built by hand")


def equilibrium_run(intrinsic_lr, ratio=0.9, sd=0.03, **numbers):
    defaults = {"threshold_ratio": math.nan, "verdict": "equilibrium"}
    without_periods = CalibrationRun(intrinsic_lr, 0, *[math.nan] * 6)
    return dataclasses.replace(
        without_periods,
        rotation_ratio=ratio,
        log_norm_sd=sd,
        autocorrelation_time=0.2 / intrinsic_lr,
        norm=3.0,
        **{**defaults, **numbers},
    )


class TestOfTheReference:
    @pytest.mark.parametrize("intrinsic_lr", [0.01, 0.002])
    def test_at_calibrated_settings_it_equals_the_measurement(self, intrinsic_lr):
        measured = [run for run in REFERENCE.calibration_runs if run.intrinsic_lr == pytest.approx(intrinsic_lr)]
        expected = REFERENCE.predict(0.5, intrinsic_lr / 0.5)
        for name in ("log_norm_sd", "rotation_ratio", "autocorrelation_time"):
            mean = np.mean([getattr(run, name) for run in measured])
            assert getattr(expected, name) == pytest.approx(mean, rel=0.05), name
        assert expected.period == pytest.approx(np.mean([run.period for run in measured]), rel=0.05)
        assert expected.norm / 0.5**0.5 == pytest.approx(np.mean([run.norm for run in measured]), rel=0.03)
        assert expected.verdict == measured[0].verdict
        assert expected.period_interval.lower < expected.period < expected.period_interval.upper

    def test_it_depends_on_the_product_and_norms_scale_with_the_root_of_lr(self):
        one, other = REFERENCE.predict(0.5, 0.004), REFERENCE.predict(2.0, 0.001)
        for name in ("period", "log_norm_sd", "rotation_ratio", "autocorrelation_time", "threshold_ratio"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
        for name in ("norm", "trough_norm", "peak_norm"):
            assert getattr(other, name) == pytest.approx(2 * getattr(one, name), rel=1e-9)
        assert other.effective_lr_at_destabilization == pytest.approx(one.effective_lr_at_destabilization, rel=1e-9)

    def test_short_form(self):
        expected = REFERENCE.predict(0.5, 0.004)
        assert str(expected) == f"periodic, T = {expected.period:.4g} steps, {expected.period_interval}"


class TestScaling:
    TWO = (
        periodic_run(0.01),
        periodic_run(0.002, period=450.0, norm_rise=0.8, log_norm_sd=0.4, autocorrelation_time=80.0),
    )

    @FIXED
    @given(st.floats(0.01 / 30, 0.01))
    def test_spread_scales_with_the_norm_rise_and_autocorrelation_time_with_the_period(self, intrinsic_lr):
        fitted = model(*self.TWO)
        expected, law = fitted.predict(1.0, intrinsic_lr), fitted.law
        share = expected.log_norm_sd / law.norm_rise_at(intrinsic_lr)
        assert min(0.4, 0.5) - 1e-9 <= share <= 0.5 + 1e-9
        assert 15 / 80 - 0.01 <= expected.autocorrelation_time / expected.period <= 80 / 450 + 0.01

    def test_ratios_are_constant_below_the_calibration_runs(self):
        fitted = model(*self.TWO)
        low, lower = fitted.predict(1.0, 0.001), fitted.predict(1.0, 0.0005)
        for expected in (low, lower):
            intrinsic_lr = 0.001 if expected is low else 0.0005
            assert expected.log_norm_sd / fitted.law.norm_rise_at(intrinsic_lr) == pytest.approx(0.4 / 0.8, rel=1e-9)
            assert expected.threshold_ratio == pytest.approx(1.2, rel=1e-9)

    @FIXED
    @given(st.floats(1e-4, 0.05))
    def test_interpolation_stays_between_its_neighbours(self, intrinsic_lr):
        value = interpolate(self.TWO, intrinsic_lr, lambda run: run.log_norm_sd)
        assert 0.2 <= value <= 0.4
        if intrinsic_lr <= 0.002:
            assert value == 0.4

    def test_runs_without_the_number_are_left_out(self):
        runs = [self.TWO[0], dataclasses.replace(self.TWO[1], log_norm_sd=math.nan)]
        assert interpolate(runs, 0.002, lambda run: run.log_norm_sd) == 0.2
        assert math.isnan(interpolate(runs[1:], 0.002, lambda run: run.log_norm_sd))


class TestVerdicts:
    def test_between_equilibria_the_norm_follows_a_power_law(self):
        fitted = model(equilibrium_run(0.01), dataclasses.replace(equilibrium_run(0.0025, sd=0.015), norm=6.0))
        expected = fitted.predict(1.0, 0.005)
        assert expected.verdict == str(expected) == "equilibrium"
        assert expected.norm == pytest.approx(3.0 * math.sqrt(2), rel=1e-9)
        assert expected.log_norm_sd == pytest.approx(0.03 / math.sqrt(2), rel=1e-9)
        assert math.isnan(expected.period)
        assert expected.period_interval is None
        with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
            _ = fitted.law
        with pytest.raises(ValueError, match="it was built by hand"):
            simulated_periods(fitted, 1.0, 0.005)

    def test_below_calibration_runs_at_equilibrium_it_warns(self):
        fitted = model(equilibrium_run(0.01), equilibrium_run(0.002))
        with pytest.warns(UserWarning, match="outside the range.*0.002 to 0.01"):
            fitted.predict(1.0, 0.001)

    def test_a_third_run_shows_where_equilibrium_ends(self):
        periodic = periodic_run(
            0.0003, period=1500.0, norm_rise=0.35, rotation_ratio=0.1, log_norm_sd=0.15, threshold_ratio=1.3
        )
        # at equilibrium, with a few rises of the noise that are a small part of the growth
        at_equilibrium = {
            "rotation_ratio": 0.9,
            "log_norm_sd": 0.03,
            "threshold_ratio": math.inf,
            "verdict": "equilibrium",
        }
        fitted = model(
            equilibrium_run(0.01, 0.95, 0.02),
            periodic_run(0.002, 20, period=1200.0, norm_rise=0.12, **at_equilibrium),
            periodic,
        )
        verdicts = [fitted.predict(1.0, intrinsic_lr).verdict for intrinsic_lr in (0.01, 0.004, 0.002, 0.001, 0.0003)]
        # somewhere between the last two the periods begin
        assert verdicts == ["equilibrium"] * 3 + ["undetermined", "periodic"]
        assert fitted.predict(1.0, 0.0003).period == pytest.approx(1500, rel=1e-3)
        # above the settings of the law the spread is that at equilibrium
        assert fitted.predict(1.0, 0.01).log_norm_sd == pytest.approx(0.02, rel=1e-9)

    def test_between_runs_at_equilibrium_it_is_equilibrium_though_periods_are_far(self):
        far = periodic_run(0.0003, period=1500.0, norm_rise=0.35)
        fitted = model(equilibrium_run(0.01), equilibrium_run(0.002), far)
        # 0.005 is 17 times the only setting with periods, and next to two settings at equilibrium
        assert fitted.predict(1.0, 0.005).verdict == "equilibrium"

    def test_where_norm_rises_change_their_kind_it_is_undetermined(self):
        fitted = model(periodic_run(0.01, norm_rise=0.2), periodic_run(0.002, period=900.0, norm_rise=1.5))
        unknown = fitted.predict(1.0, 0.005)
        assert unknown.verdict == "undetermined"
        assert math.isnan(unknown.period)
        assert unknown.period_interval is None
        assert str(unknown) == f"undetermined: {unknown.reason}"
        # what was measured, and where to measure next
        assert all(number in unknown.reason for number in ("J = 0.2", "0.01", "1.5", "0.002", "0.0045"))
        known = fitted.predict(1.0, 0.002)
        assert (known.verdict, known.reason) == ("periodic", "")
        assert known.period_interval.lower < 900 < known.period_interval.upper
        assert fitted.predict(1.0, 0.001).verdict == "undetermined"

    def test_without_a_test_for_feedback_it_says_so(self):
        fitted = model(*(dataclasses.replace(run, feedback_score=math.nan) for run in TestScaling.TWO))
        unknown = fitted.predict(1.0, 0.005)
        assert unknown.verdict == "undetermined"
        assert "feedback" in unknown.reason
        assert unknown.period > 0

    def test_a_period_that_doubles_with_the_threshold_is_not_clear(self):
        fitted = model(*(dataclasses.replace(run, threshold_ratio=2.5) for run in TestScaling.TWO))
        prediction = fitted.predict(1.0, 0.01)
        assert prediction.verdict == "no clear period"
        assert f"rises every {prediction.period:.4g} steps" in str(prediction)
        infinite = model(*(dataclasses.replace(run, threshold_ratio=math.inf) for run in TestScaling.TWO))
        assert infinite.predict(1.0, 0.005).threshold_ratio == math.inf

    @FIXED
    @given(st.floats(0.05, 0.98), st.floats(0.05, 0.98), st.floats(0.0101, 0.0399))
    def test_rotation_is_interpolated_by_its_odds(self, upper, lower, intrinsic_lr):
        ratio = (
            model(equilibrium_run(0.04, upper), equilibrium_run(0.01, lower)).predict(1.0, intrinsic_lr).rotation_ratio
        )
        assert min(upper, lower) - 1e-9 <= ratio <= max(upper, lower) + 1e-9
        # halfway: the odds are the geometric mean
        half = model(equilibrium_run(0.04, upper), equilibrium_run(0.01, lower)).predict(1.0, 0.02).rotation_ratio
        odds = [value / (1 - value) for value in (upper, lower, half)]
        assert odds[2] == pytest.approx(math.sqrt(odds[0] * odds[1]), rel=1e-9)

    def test_rotation_is_never_above_that_of_equilibrium(self):
        fitted = model(equilibrium_run(0.01, 0.5), equilibrium_run(0.005, 0.95))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert fitted.predict(1.0, 0.0005).rotation_ratio == 1.0


class TestPooling:
    def test_periods_of_one_setting_are_weighted_by_their_number(self):
        (both,) = pool_runs([periodic_run(0.01, 10, 60.0, 0.4), periodic_run(0.01, 30, 80.0, 0.6)])
        assert (both.count, both.period, both.norm_rise) == (40, 75.0, pytest.approx(0.55))

    def test_the_law_uses_settings_with_periods_from_the_lowest_up(self):
        low, middle, high = periodic_run(0.001, period=900.0), periodic_run(0.003, period=280.0), periodic_run(0.01)
        assert [pooled.intrinsic_lr for pooled in pool_runs([high, middle, low])] == [0.01, 0.003, 0.001]
        assert [pooled.intrinsic_lr for pooled in pool_runs([equilibrium_run(0.01), middle, low])] == [0.003, 0.001]
        assert [pooled.intrinsic_lr for pooled in pool_runs([high, equilibrium_run(0.003), low])] == [0.001]
        with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
            pool_runs([high, middle, equilibrium_run(0.001)])

    def test_a_setting_at_equilibrium_is_left_out_of_the_law_if_two_others_remain(self):
        equilibrium = periodic_run(0.01, 20, period=200.0, norm_rise=0.12, verdict="equilibrium")
        middle, low = periodic_run(0.002, period=400.0), periodic_run(0.0003, period=2500.0)
        assert [pooled.intrinsic_lr for pooled in pool_runs([equilibrium, middle, low])] == [0.002, 0.0003]
        assert [pooled.intrinsic_lr for pooled in pool_runs([equilibrium, low])] == [0.01, 0.0003]
        # one periodic seed makes the setting periodic
        assert [pooled.intrinsic_lr for pooled in pool_runs([equilibrium, periodic_run(0.01), middle, low])] == [
            0.01,
            0.002,
            0.0003,
        ]


def test_constants_of_the_reduced_model_do_not_change_beyond_its_settings():
    reduced_model = REFERENCE.reduced_model
    assert reduced_model.constants(0.0005)[1:] == reduced_model.constants(reduced_model.lowest)[1:]
    assert reduced_model.constants(0.02)[1:] == reduced_model.constants(reduced_model.reference)[1:]
    assert reduced_model.constants(0.005)[1:] != reduced_model.constants(0.002)[1:]


def test_without_norms_the_prediction_is_the_same():
    model = simulate.PeriodModel.reference()
    for wd in (0.002, 0.01, 0.02):
        whole, short = model.predict(0.5, wd), model.predict(0.5, wd, norms=False)
        assert (short.verdict, short.period, short.period_interval) == (
            whole.verdict,
            whole.period,
            whole.period_interval,
        )
        assert math.isnan(short.trough_norm)
        assert math.isnan(short.effective_lr_at_destabilization)
        # interpolated between calibration runs instead of troughs and peaks
        assert short.norm == pytest.approx(whole.norm, rel=0.1)
