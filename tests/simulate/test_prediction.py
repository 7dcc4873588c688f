"""What a probe lets expect elsewhere."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from simulate.period_model.calibration import CalibrationRun, PooledRuns, fit_balance_law, pool_runs
from simulate.period_model.prediction import interpolate

REFERENCE = simulate.PeriodModel.reference()
FIXED = settings(deadline=None, derandomize=True, max_examples=60)


def segment(rate, count=50, period=80.0, norm_rise=0.5, *, scaled=1.0, **numbers):
    """A segment with periods of `period`, T·ηλ = 0.8 at ηλ = 0.01, or with none."""
    known = {
        "verdict": "periodic", "rotation_ratio": 0.3, "log_norm_sd": 0.2, "autocorrelation_time": 15.0,
        "threshold_ratio": 1.2, "norm": 3.0,
    }  # fmt: skip
    outside_growth = 1 - norm_rise / (-math.log1p(-rate) * period)
    return CalibrationRun(
        rate, count, period, 1.0, norm_rise, outside_growth, 2.0, 2.0 * math.exp(norm_rise), lengths=(period,) * count,
        rises=(norm_rise,) * count, **{**known, **numbers},
    )  # fmt: skip


def model(*calibration_runs):
    return simulate.PeriodModel(tuple(calibration_runs), 0.1, None, "it was made by hand")


def rest(rate, ratio=0.9, sd=0.03, **numbers):
    unknown = {"threshold_ratio": math.nan, "verdict": "equilibrium"}
    nothing = CalibrationRun(rate, 0, *[math.nan] * 6)
    return dataclasses.replace(
        nothing,
        rotation_ratio=ratio,
        log_norm_sd=sd,
        autocorrelation_time=0.2 / rate,
        norm=3.0,
        **{**unknown, **numbers},
    )


class TestOfTheReference:
    @pytest.mark.parametrize("rate", [0.01, 0.002])
    def test_at_the_settings_of_the_probe_it_is_what_was_measured(self, rate):
        there = [each for each in REFERENCE.calibration_runs if each.intrinsic_lr == pytest.approx(rate)]
        expected = REFERENCE.predict(0.5, rate / 0.5)
        for name in ("log_norm_sd", "rotation_ratio", "autocorrelation_time"):
            mean = np.mean([getattr(each, name) for each in there])
            assert getattr(expected, name) == pytest.approx(mean, rel=0.03), name
        assert expected.period == pytest.approx(np.mean([each.period for each in there]), rel=0.02)
        assert expected.norm / 0.5**0.5 == pytest.approx(np.mean([each.norm for each in there]), rel=0.03)
        assert expected.verdict == there[0].verdict
        assert expected.interval.lower < expected.period < expected.interval.upper

    def test_only_the_product_matters_and_norms_go_with_the_root_of_lr(self):
        one, other = REFERENCE.predict(0.5, 0.004), REFERENCE.predict(2.0, 0.001)
        for name in ("period", "log_norm_sd", "rotation_ratio", "autocorrelation_time", "threshold_ratio"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
        for name in ("norm", "trough_norm", "peak_norm"):
            assert getattr(other, name) == pytest.approx(2 * getattr(one, name), rel=1e-9)
        assert other.effective_lr_max == pytest.approx(one.effective_lr_max, rel=1e-9)

    def test_words(self):
        expected = REFERENCE.predict(0.5, 0.004)
        assert str(expected) == f"periodic, T = {expected.period:.4g} steps, {expected.interval}"


class TestScaling:
    TWO = (segment(0.01), segment(0.002, period=450.0, norm_rise=0.8, log_norm_sd=0.4, autocorrelation_time=80.0))

    @FIXED
    @given(st.floats(0.01 / 30, 0.01))
    def test_spread_goes_with_the_jump_and_memory_with_the_period(self, rate):
        made = model(*self.TWO)
        expected, law = made.predict(1.0, rate), made.law
        share = expected.log_norm_sd / law.norm_rise_at(np.array(rate))
        assert min(0.4, 0.5) - 1e-9 <= share <= 0.5 + 1e-9
        assert 15 / 80 - 0.01 <= expected.autocorrelation_time / expected.period <= 80 / 450 + 0.01

    def test_ratios_are_held_below_the_probe(self):
        made = model(*self.TWO)
        low, lower = made.predict(1.0, 0.001), made.predict(1.0, 0.0005)
        for expected in (low, lower):
            rate = 0.001 if expected is low else 0.0005
            assert expected.log_norm_sd / made.law.norm_rise_at(np.array(rate)) == pytest.approx(0.4 / 0.8, rel=1e-9)
            assert expected.threshold_ratio == pytest.approx(1.2, rel=1e-9)

    @FIXED
    @given(st.floats(1e-4, 0.05))
    def test_interpolation_stays_between_its_neighbours(self, rate):
        value = interpolate(self.TWO, rate, lambda each: each.log_norm_sd)
        assert 0.2 <= value <= 0.4
        if rate <= 0.002:
            assert value == 0.4

    def test_what_one_setting_does_not_know_is_taken_from_the_others(self):
        seen = [self.TWO[0], dataclasses.replace(self.TWO[1], log_norm_sd=math.nan)]
        assert interpolate(seen, 0.002, lambda each: each.log_norm_sd) == 0.2
        assert math.isnan(interpolate(seen[1:], 0.002, lambda each: each.log_norm_sd))


class TestVerdicts:
    def test_rest_stays_rest_and_the_norm_follows_a_power(self):
        made = model(rest(0.01), dataclasses.replace(rest(0.0025, sd=0.015), norm=6.0))
        expected = made.predict(1.0, 0.005)
        assert expected.verdict == str(expected) == "equilibrium"
        assert expected.norm == pytest.approx(3.0 * math.sqrt(2), rel=1e-9)
        assert expected.log_norm_sd == pytest.approx(0.03 / math.sqrt(2), rel=1e-9)
        assert math.isnan(expected.period)
        assert expected.interval is None
        with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
            _ = made.law
        with pytest.raises(ValueError, match="it was made by hand"):
            made.period(1.0, 0.005)

    def test_below_a_probe_at_rest_it_warns(self):
        made = model(rest(0.01), rest(0.002))
        with pytest.warns(UserWarning, match="outside the range of the model, 0.002 to 0.01"):
            made.predict(1.0, 0.001)

    def test_a_third_segment_shows_where_rest_ends(self):
        swings = segment(
            0.0003, period=1500.0, norm_rise=0.35, rotation_ratio=0.1, log_norm_sd=0.15, threshold_ratio=1.3
        )
        # at rest with some rises of the noise, which are next to nothing of the growth
        quiet = {"rotation_ratio": 0.9, "log_norm_sd": 0.03, "threshold_ratio": math.inf, "verdict": "equilibrium"}
        made = model(rest(0.01, 0.95, 0.02), segment(0.002, 20, period=1200.0, norm_rise=0.12, **quiet), swings)
        found = [made.predict(1.0, rate).verdict for rate in (0.01, 0.004, 0.002, 0.001, 0.0003)]
        assert found == ["equilibrium"] * 3 + ["no clear period", "periodic"]
        assert made.predict(1.0, 0.0003).period == pytest.approx(1500, rel=1e-3)
        # above the settings of the law the spread is that of the network at rest
        assert made.predict(1.0, 0.01).log_norm_sd == pytest.approx(0.02, rel=1e-9)

    def test_a_period_that_doubles_with_the_threshold_is_not_clear(self):
        made = model(*(dataclasses.replace(each, threshold_ratio=2.5) for each in TestScaling.TWO))
        assert made.predict(1.0, 0.01).verdict == "no clear period"
        infinite = model(*(dataclasses.replace(each, threshold_ratio=math.inf) for each in TestScaling.TWO))
        assert infinite.predict(1.0, 0.005).threshold_ratio == math.inf

    @FIXED
    @given(st.floats(0.05, 0.98), st.floats(0.05, 0.98), st.floats(0.0101, 0.0399))
    def test_rotation_lies_between_that_of_the_settings_and_changes_little_near_rest(self, upper, lower, rate):
        found = model(rest(0.04, upper), rest(0.01, lower)).predict(1.0, rate).rotation_ratio
        assert min(upper, lower) - 1e-9 <= found <= max(upper, lower) + 1e-9
        # halfway: the odds are the geometric mean
        half = model(rest(0.04, upper), rest(0.01, lower)).predict(1.0, 0.02).rotation_ratio
        odds = [value / (1 - value) for value in (upper, lower, half)]
        assert odds[2] == pytest.approx(math.sqrt(odds[0] * odds[1]), rel=1e-9)

    def test_rotation_is_never_above_that_of_equilibrium(self):
        made = model(rest(0.01, 0.5), rest(0.005, 0.95))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert made.predict(1.0, 0.0005).rotation_ratio == 1.0


class TestLaw:
    def test_periods_of_one_setting_are_pooled_by_their_number(self):
        (both,) = pool_runs([segment(0.01, 10, 60.0, 0.4), segment(0.01, 30, 80.0, 0.6)])
        assert (both.count, both.period, both.norm_rise) == (40, 75.0, pytest.approx(0.55))

    def test_only_settings_from_the_lowest_up_that_have_periods_make_the_law(self):
        low, middle, high = segment(0.001, period=900.0), segment(0.003, period=280.0), segment(0.01)
        assert [each.intrinsic_lr for each in pool_runs([high, middle, low])] == [0.01, 0.003, 0.001]
        assert [each.intrinsic_lr for each in pool_runs([rest(0.01), middle, low])] == [0.003, 0.001]
        assert [each.intrinsic_lr for each in pool_runs([high, rest(0.003), low])] == [0.001]
        with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
            pool_runs([high, middle, rest(0.001)])

    def test_a_setting_at_rest_is_no_part_of_the_law_if_there_are_two_others(self):
        resting = segment(0.01, 20, period=200.0, norm_rise=0.12, verdict="equilibrium")
        middle, low = segment(0.002, period=400.0), segment(0.0003, period=2500.0)
        assert [each.intrinsic_lr for each in pool_runs([resting, middle, low])] == [0.002, 0.0003]
        assert [each.intrinsic_lr for each in pool_runs([resting, low])] == [0.01, 0.0003]
        # one seed that swings makes a setting that swings
        assert [each.intrinsic_lr for each in pool_runs([resting, segment(0.01), middle, low])] == [0.01, 0.002, 0.0003]

    @FIXED
    @given(st.floats(0.02, 0.95), st.floats(0.02, 0.95), st.floats(0.2, 2), st.floats(0.2, 2))
    def test_through_two_settings_it_goes_exactly(self, upper, lower, norm_rise, other):
        seen = [
            PooledRuns(rate, 50, j / (1 - phi) / -math.log1p(-rate), j)
            for rate, phi, j in ((0.01, upper, norm_rise), (0.002, lower, other))
        ]
        law = fit_balance_law(seen)
        for each in seen:
            assert law.period(1.0, each.intrinsic_lr) == pytest.approx(each.period, rel=1e-9)
        if abs(lower - 0.05) > 1e-9 and abs(norm_rise - other) > 1e-9:
            assert law.lowest == (0.002 if lower < 0.05 or other < norm_rise else 0.0)

    @FIXED
    @given(st.floats(0.1, 0.6), st.floats(0.02, 0.95), st.floats(0.01 / 30, 0.01))
    def test_jumps_that_shrink_do_not_reach_zero(self, upper, lower, rate):
        two = (segment(0.01, norm_rise=0.6, period=80.0), segment(0.002, norm_rise=lower * upper, period=450.0))
        made = model(*two)
        expected = made.predict(1.0, rate)
        assert lower * upper * (1 - 1e-9) <= made.law.norm_rise_at(np.array(rate)) <= 0.6 * (1 + 1e-9)
        assert expected.log_norm_sd > 0
        assert expected.period > 0
        assert expected.interval.lower < expected.interval.upper

    def test_a_line_that_is_negative_below_leaves_out_the_upper_setting(self):
        seen = [PooledRuns(rate, 50, j / 0.7 / rate, j) for rate, j in ((0.01, 2.5), (0.002, 0.1), (0.00033, 0.1))]
        law = fit_balance_law(seen)
        assert law.reference == 0.002
        assert law.norm_rise_at(np.array([0.002, 0.0005])) == pytest.approx([0.1, 0.1])

    @FIXED
    @given(st.floats(0.05, 0.9), st.floats(0.05, 0.9))
    def test_the_share_too_goes_through_two_settings(self, upper, lower):
        seen = [PooledRuns(r, 50, 0.5 / (1 - phi) / -math.log1p(-r), 0.5) for r, phi in ((0.01, upper), (0.002, lower))]
        law = fit_balance_law(seen, "share")
        for each in seen:
            assert law.outside_growth_at(np.array(each.intrinsic_lr)) == pytest.approx(each.outside_growth, rel=1e-9)

    @pytest.mark.parametrize("upper", [0.15, 0.205, 0.25])
    def test_jumps_that_no_line_joins_are_joined_where_they_are_large(self, upper):
        # as under layer normalization; a line through all three is 0.03 at the upper setting, and negative below 0.2
        seen = [
            PooledRuns(0.01, 165, 80.0, upper),
            PooledRuns(0.002, 120, 400.0, 0.624),
            PooledRuns(0.00033, 121, 7900.0, 2.47),
        ]
        law = fit_balance_law(seen)
        assert law.reference == 0.002
        assert law.period(1.0, 0.002) == pytest.approx(400.0, rel=1e-9)
        assert law.period(1.0, 0.00033) == pytest.approx(7900.0, rel=1e-9)

    def test_a_share_that_is_nothing_but_noise_has_no_power(self):
        # as under full batches, where a trace has no growth outside its breaks but end effects
        seen = [
            PooledRuns(rate, 50, 2.6 / (1 - phi) / -math.log1p(-rate), 2.6)
            for rate, phi in ((0.01, -0.04), (0.002, -0.02))
        ]
        law = fit_balance_law(seen)
        assert law.outside_growth_power == 0
        assert law.lowest == 0.002, "with nothing but breaks J grows ever less below the probe"
        assert law.slope_below == pytest.approx(law.norm_rise_slope / 3, rel=1e-12)
        assert law.period(1.0, 5e-4) == pytest.approx(2.6 / 1.03 / -math.log1p(-5e-4), rel=1e-9)


def test_constants_of_the_reduced_model_are_held_beyond_its_settings():
    reduced_model = REFERENCE.reduced_model
    assert reduced_model.constants(0.0005)[1:] == reduced_model.constants(reduced_model.lowest)[1:]
    assert reduced_model.constants(0.02)[1:] == reduced_model.constants(reduced_model.reference)[1:]
    assert reduced_model.constants(0.005)[1:] != reduced_model.constants(0.002)[1:]
