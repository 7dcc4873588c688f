"""The law of the period: interpolation between calibrated settings, its errors, and changes of kind."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulate.period_model import law as module
from simulate.period_model.law import PeriodLaw, is_change_of_kind
from simulate.period_model.summaries import CalibrationRun, PooledRuns

FIXED = settings(deadline=None, derandomize=True, max_examples=60)
norm_rises, shares = st.floats(0.12, 2.5), st.floats(0.03, 0.95)


def calibration_run(intrinsic_lr, norm_rise, outside_growth=0.4, *, count=200, spread=0.0, seed=0, **numbers):
    """Calibration run with these J and φ; the lengths of its periods have a relative spread."""
    period = norm_rise / (1 - outside_growth) / -math.log1p(-intrinsic_lr)
    factors = 1 + spread * np.random.default_rng(seed).standard_normal(count)
    factors /= factors.mean()
    return CalibrationRun(
        intrinsic_lr, count, period, period * spread / count**0.5, norm_rise, outside_growth, 2.0, 3.0,
        lengths=tuple(period * factors), rises=tuple(norm_rise * factors), **{"verdict": "periodic", **numbers},
    )  # fmt: skip


def law(*settings, **options):
    return PeriodLaw(tuple(calibration_run(*setting, **options) for setting in settings))


class TestInterpolation:
    @FIXED
    @given(norm_rises, shares, st.floats(0.6, 2), st.floats(0.3, 1))
    def test_it_nearly_passes_through_precise_settings(self, norm_rise, share, ratio, odds_ratio):
        odds = share / (1 - share) * odds_ratio
        settings = ((0.01, norm_rise, share), (0.002, norm_rise * ratio, odds / (1 + odds)))
        fitted = law(*settings)
        for intrinsic_lr, expected, share_there in settings:
            assert float(fitted.norm_rise_at(intrinsic_lr)) == pytest.approx(expected, rel=0.1)
            period = expected / (1 - share_there) / -math.log1p(-intrinsic_lr)
            assert fitted.period(1.0, intrinsic_lr) == pytest.approx(period, rel=0.12)

    def test_exact_settings_are_met_exactly(self, monkeypatch):
        monkeypatch.setattr(module, "_SETTING_SDS", (1e-6, 1e-6))
        fitted = law((0.01, 0.3, 0.6), (0.002, 0.4, 0.3))
        assert float(fitted.norm_rise_at(0.002)) == pytest.approx(0.4, rel=1e-6)
        assert float(fitted.outside_growth_at(0.01)) == pytest.approx(0.6, rel=1e-6)
        np.testing.assert_allclose(fitted.sample_periods(1.0, 0.002), fitted.period(1.0, 0.002), rtol=1e-4)

    def test_settings_of_the_typical_slope_are_extended_with_it(self):
        # √J and the log-odds of φ are linear in ln ηλ, with the slopes that the law takes to be typical
        def at(intrinsic_lr):
            place = math.log(0.01 / intrinsic_lr)
            odds = math.exp(0.5 - 0.8 * place)
            return (intrinsic_lr, (0.5 + 0.06 * place) ** 2, odds / (1 + odds))

        fitted = law(at(0.01), at(0.002))
        for intrinsic_lr in (0.05, 0.005, 0.001, 0.0002):
            _, norm_rise, share = at(intrinsic_lr)
            assert float(fitted.norm_rise_at(intrinsic_lr)) == pytest.approx(norm_rise, rel=1e-9)
            assert float(fitted.outside_growth_at(intrinsic_lr)) == pytest.approx(share, rel=1e-9)

    @FIXED
    @given(norm_rises, shares, st.floats(1e-3, 0.1), st.floats(0.1, 10))
    def test_the_identity_of_growth_and_decay_holds_everywhere(self, norm_rise, share, intrinsic_lr, lr):
        fitted = law((0.01, norm_rise, share))
        norm_rise_there, share_there = fitted.norm_rise_at(intrinsic_lr), fitted.outside_growth_at(intrinsic_lr)
        assert norm_rise_there > 0
        assert 0 < share_there < 1
        period = fitted.period(lr, intrinsic_lr / lr)
        assert period * -math.log1p(-intrinsic_lr) == pytest.approx(norm_rise_there / (1 - share_there), rel=1e-6)

    def test_imprecise_settings_count_less(self):
        # the second setting is off the typical trend; with few scattered periods the law trusts it less
        precise, imprecise = (
            PeriodLaw(
                (calibration_run(0.01, 0.4, count=400, spread=0.3), calibration_run(0.002, 0.8, count=n, spread=0.5))
            )
            for n in (400, 10)
        )
        assert float(imprecise.norm_rise_at(0.002)) < float(precise.norm_rise_at(0.002)) < 0.8

    def test_a_period_that_is_known_precisely_counts_though_its_norm_rise_is_not(self):
        # equal lengths and scattered rises: T is known, while J and φ are not, with errors that compensate in T
        def with_scattered_rises(run, spread):
            factors = 1 + spread * np.random.default_rng(1).standard_normal(run.count)
            return dataclasses.replace(run, rises=tuple(run.norm_rise * factors / factors.mean()))

        precise = calibration_run(0.01, 0.4)
        # off the typical trend: J has doubled
        off = with_scattered_rises(calibration_run(0.002, 0.8, 0.3, count=30), 0.8)
        fitted = PeriodLaw((precise, off))
        assert fitted.period(1.0, 0.002) == pytest.approx(off.period, rel=0.03)

    def test_arrays_and_numbers(self):
        fitted = law((0.01, 0.3), (0.002, 0.4))
        grid = fitted.period([[0.1], [0.5]], [0.01, 0.02, 0.004])
        assert grid.shape == (2, 3)
        assert grid[1, 2] == fitted.period(0.5, 0.004)
        assert isinstance(fitted.period(0.5, 0.004), float)
        for values in ((0.0, 0.01), (0.5, 0.0), (0.5, 3.0)):
            with pytest.raises(ValueError, match=r"lr|wd"):
                fitted.period(*values)


class TestErrors:
    def test_they_grow_with_the_distance_from_the_settings(self):
        fitted = law((0.01, 0.3), (0.002, 0.4), spread=0.3)
        spreads = [np.std(np.log(fitted.sample_periods(1.0, x))) for x in (0.002, 0.001, 0.0004, 0.0002)]
        assert all(a < b for a, b in itertools.pairwise(spreads))
        assert 0.01 < spreads[0] < 0.06
        between = np.std(np.log(fitted.sample_periods(1.0, 0.0045)))
        assert spreads[0] < between < spreads[2]

    def test_more_periods_give_smaller_errors(self):
        few, many = (law((0.01, 0.3), (0.002, 0.4), spread=0.4, count=count) for count in (12, 1200))
        assert np.std(np.log(many.sample_periods(1.0, 0.002))) < 0.5 * np.std(np.log(few.sample_periods(1.0, 0.002)))

    def test_seeds_that_disagree_give_larger_errors(self):
        same, apart = (
            PeriodLaw(
                tuple(calibration_run(0.01, 0.4 * factor, spread=0.2, seed=i) for i, factor in enumerate(factors))
            )
            for factors in ((1.0, 1.0), (0.8, 1.2))
        )
        assert np.std(np.log(apart.sample_periods(1.0, 0.01))) > 2 * np.std(np.log(same.sample_periods(1.0, 0.01)))

    def test_estimates_of_random_functions_have_the_stated_errors(self):
        # √J and log-odds drawn from the random functions that the law assumes
        random = np.random.default_rng(0)
        places = np.log(1 / np.array([0.01, 0.002, 0.0005]))
        scores = []
        for _ in range(300):
            drawn = []
            for (slope, sd), setting_sd, level in zip(
                module.TYPICAL_SLOPES, module._SETTING_SDS, (1.0, 0.0), strict=True
            ):
                fine = np.linspace(places[0], places[-1], 400)
                step = fine[1] - fine[0]
                slopes = np.empty(fine.size)
                slopes[0] = random.normal()
                for i in range(1, fine.size):
                    slopes[i] = slopes[i - 1] * math.exp(-step) + random.normal() * math.sqrt(1 - math.exp(-2 * step))
                path = level + np.concatenate([[0], np.cumsum((slope + sd * slopes[:-1]) * step)])
                drawn.append(np.interp(places, fine, path) + random.normal(0, setting_sd, 3) * [1, 1, 0])
            settings = [
                (float(np.exp(-place)), root**2, 1 / (1 + math.exp(-odds)))
                for place, root, odds in zip(places, *drawn, strict=True)
            ]
            fitted = law(*settings[:2], count=20)
            samples = np.log(fitted.sample_periods(1.0, settings[2][0]))
            truth = calibration_run(*settings[2]).period
            scores.append((math.log(truth) - samples.mean()) / samples.std())
        assert 0.85 < np.std(scores) < 1.15
        assert abs(np.mean(scores)) < 0.2


class TestKinds:
    FLAT_THEN_LARGE = ((0.01, 0.19), (0.0045, 0.22), (0.002, 1.3, 0.2), (0.00033, 2.2, 0.03))

    def test_settings_of_one_kind_do_not_affect_the_other(self):
        fitted = law(*self.FLAT_THEN_LARGE)
        assert [[setting.intrinsic_lr for setting in kind] for kind in fitted.kinds] == [
            [0.01, 0.0045],
            [0.002, 0.00033],
        ]
        lower, upper = law(*self.FLAT_THEN_LARGE[2:]), law(*self.FLAT_THEN_LARGE[:2])
        for intrinsic_lr in (0.002, 0.001, 0.0001):
            assert fitted.period(1.0, intrinsic_lr) == lower.period(1.0, intrinsic_lr)
        for intrinsic_lr in (0.02, 0.007):
            assert fitted.period(1.0, intrinsic_lr) == upper.period(1.0, intrinsic_lr)

    def test_between_two_kinds_it_is_undetermined_and_says_what_to_run(self):
        fitted = law(*self.FLAT_THEN_LARGE)
        assert math.isnan(fitted.period(1.0, 0.003))
        assert np.isnan(fitted.sample_periods(1.0, 0.003)).all()
        assert math.isnan(float(fitted.outside_growth_at(0.003)))
        reason = fitted.obstacle(1.0, 0.003)
        assert all(words in reason for words in ("0.22", "0.0045", "1.3", "0.002", "calibrate at 0.003"))
        assert fitted.obstacle(1.0, 0.002) == fitted.obstacle(1.0, 0.0045) == ""

    def test_below_a_kind_with_a_single_setting_it_is_undetermined(self):
        fitted = law(*self.FLAT_THEN_LARGE[:3])
        assert fitted.obstacle(1.0, 0.002) == ""
        assert all(words in fitted.obstacle(1.0, 0.001) for words in ("only", "0.002", "calibrate at 0.001"))
        # a single setting without any change of kind is enough
        assert law((0.01, 0.3)).obstacle(1.0, 0.001) == ""

    @FIXED
    @given(norm_rises, st.floats(0.7, 30), st.floats(1.2, 30))
    def test_a_change_of_kind_is_a_steep_rise(self, norm_rise, ratio, distance):
        above, below = (
            PooledRuns(intrinsic_lr, 50, 100.0, rise)
            for intrinsic_lr, rise in ((0.01, norm_rise), (0.01 / distance, norm_rise * ratio))
        )
        limit = 0.85 * min(math.log(distance), 1)
        if abs(math.log(ratio) - limit) > 1e-9:
            assert is_change_of_kind(above, below) == (math.log(ratio) > limit)

    def test_networks_with_batch_normalization_have_one_kind(self):
        # J of an MLP and of a ConvNet with batch normalization, and of MLPs with group and layer normalization
        intrinsic_lrs = (0.01, 0.005, 0.002, 0.001, 0.0005)
        for measured, kinds in (
            ((0.181, 0.212, 0.272, 0.305, 0.314), 1),
            ((0.41, 0.518, 0.81, 0.866, 0.973), 1),
            ((0.196, 0.336, 0.498, 0.582, 0.696), 1),
            ((0.192, 0.204, 1.32, 2.01, 2.2), 2),
            ((0.204, 0.214, 0.573, 1.472, 2.212), 3),
        ):
            assert len(law(*zip(intrinsic_lrs, measured, strict=True)).kinds) == kinds


def test_far_from_all_settings_it_is_undetermined():
    fitted = law((0.01, 0.3), (0.002, 0.4))
    for intrinsic_lr in (0.13, 0.9, 0.00015):
        assert math.isnan(fitted.period(1.0, intrinsic_lr))
        reason = fitted.obstacle(1.0, intrinsic_lr)
        assert "far from the nearest" in reason
        assert f"calibrate at {intrinsic_lr:.2g}" in reason
    for intrinsic_lr in (0.11, 0.0002):
        assert fitted.obstacle(1.0, intrinsic_lr) == ""


def test_runs_of_which_only_means_are_stored_have_errors_too():
    stored = calibration_run(0.01, 0.4, spread=0.5, count=25)
    means_only = CalibrationRun(**{**vars(stored), "lengths": (), "rises": ()})
    spreads = [np.std(np.log(PeriodLaw((run,)).sample_periods(1.0, 0.01))) for run in (stored, means_only)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.4)


def test_too_few_periods_are_refused():
    with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
        law((0.01, 0.3), count=9)


class TestTypicalSlopes:
    def test_they_are_recovered_from_networks(self):
        random, truth = np.random.default_rng(0), ((0.1, 0.05), (-0.5, 0.4))
        laws = []
        for _ in range(150):
            (root, odds) = (mean + sd * random.normal() for mean, sd in truth)
            runs = [
                calibration_run(intrinsic_lr, (0.8 + root * place) ** 2, 1 / (1 + math.exp(-odds * place)))
                for intrinsic_lr, place in ((0.01, 0.0), (0.002, math.log(5)))
            ]
            laws.append(PeriodLaw(tuple(runs)))
        fitted = module.fit_slopes(laws)
        # slopes that are constant from one setting to the last have all of the variance, and the fit expects less
        share = 2 * (math.log(5) - 1 + 1 / 5) / math.log(5) ** 2
        for (mean, sd), (true_mean, true_sd) in zip(fitted, truth, strict=True):
            assert mean == pytest.approx(true_mean, abs=3 * true_sd / math.sqrt(150))
            assert sd == pytest.approx(true_sd / math.sqrt(share), rel=0.2)

    @pytest.mark.parametrize("number", [3, 5])
    def test_few_networks_give_no_smaller_spread(self, number):
        random, variances = np.random.default_rng(1), []
        for _ in range(300):
            runs = [
                [calibration_run(0.01, 0.64), calibration_run(0.002, (0.8 + root * math.log(5)) ** 2)]
                for root in random.normal(0.1, 0.05, number)
            ]
            variances.append(module.fit_slopes([PeriodLaw(tuple(pair)) for pair in runs])[0][1] ** 2)
        share = 2 * (math.log(5) - 1 + 1 / 5) / math.log(5) ** 2
        assert np.mean(variances) == pytest.approx(0.05**2 / share, rel=0.15)

    def test_predictions_far_away_follow_them(self):
        runs = (calibration_run(0.01, 0.5, 0.3),)
        steep, flat = (PeriodLaw(runs, ((slope, 0.07), (0.0, 0.24))) for slope in (0.2, 0.0))
        assert steep.period(1.0, 0.01) == pytest.approx(flat.period(1.0, 0.01), rel=1e-9)
        ratio = float(steep.norm_rise_at(0.001) / flat.norm_rise_at(0.001))
        assert ratio == pytest.approx((1 + 0.2 * math.log(10) / math.sqrt(0.5)) ** 2, rel=1e-6)

    def test_wide_slopes_make_wide_intervals(self):
        runs = (calibration_run(0.01, 0.5, 0.3),)
        spreads = [
            np.std(np.log(PeriodLaw(runs, ((0.06, sd), (-0.8, 0.24))).sample_periods(1.0, 0.002))) for sd in (0.02, 0.2)
        ]
        assert spreads[1] > 2 * spreads[0]

    def test_bad_slopes(self):
        with pytest.raises(ValueError, match=r"slopes must have standard deviations > 0, got .*-0\.1"):
            PeriodLaw((calibration_run(0.01, 0.5, 0.3),), ((0.06, -0.1), (-0.8, 0.24)))
