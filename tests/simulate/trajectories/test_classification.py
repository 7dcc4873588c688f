"""Verdicts on trajectories, the numbers behind them, and settings that do not fit."""

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

import theory
from simulate import BoundedGradient, Ratio2D, RecordedGradient, classify, descend, find_periods, norm_map, random_walk
from simulate.trajectories.statistics import autocorrelation_time
from simulate.trajectories.verdicts import verdict_from
from tests.simulate.trajectories.waves import sawtooth, with_rotation

FIXED = settings(deadline=None, derandomize=True, max_examples=60)


class TestClassify:
    @pytest.mark.parametrize("seed", range(3))
    def test_noise_about_the_fixed_point_is_equilibrium(self, seed):
        classification = classify(norm_map(0.5, 0.02, BoundedGradient(1.5, 2.5), norm=2.0, steps=5000, seed=seed))
        assert classification.verdict == str(classification) == "equilibrium"
        assert classification.rotation_ratio > 0.9
        assert classification.log_norm_sd < 0.05
        assert classification.periods.count == 0

    def test_the_fixed_point_is_equilibrium_with_all_its_numbers(self):
        norm = theory.equilibrium_norm(0.5, 0.02, 2.0)
        classification = classify(norm_map(0.5, 0.02, 2.0, norm=norm, steps=5000))
        assert math.isclose(classification.rotation_ratio, 1, rel_tol=1e-9)
        assert classification.log_norm_sd < 1e-9

    @pytest.mark.parametrize(
        ("share", "spread", "verdict"),
        [
            (0.81, 0.0495, "equilibrium"),
            (0.79, 0.0495, "no clear period"),
            (0.81, 0.0505, "no clear period"),
            (math.nan, 0.0, "no clear period"),
        ],
    )
    def test_equilibrium_needs_rotation_and_a_small_spread(self, share, spread, verdict):
        # whole periods of a sine have this standard deviation; they fall more slowly than by decay
        log_norm = spread * math.sqrt(2) * np.sin(2 * np.pi * np.arange(1000) / 100)
        classification = classify(with_rotation(log_norm, share), rise=0.2, discard=0)
        assert classification.verdict == verdict
        assert math.isclose(classification.log_norm_sd, spread, rel_tol=1e-9)
        np.testing.assert_allclose(classification.rotation_ratio, share)

    @pytest.mark.parametrize(("teeth", "verdict"), [(12, "periodic"), (5, "no clear period")])
    def test_periodic_needs_some_periods(self, teeth, verdict):
        # decay phases without growth
        classification = classify(with_rotation(sawtooth(90, 10, 0.9, teeth), 0.2), discard=0)
        assert classification.periods.count == teeth - 1
        assert classification.verdict == verdict

    @pytest.mark.parametrize(("share", "verdict"), [(0.12, "periodic"), (0.10, "no clear period")])
    def test_periodic_needs_growth_inside_the_rises(self, share, verdict):
        # φ = 1 - 0.9·share: 0.892 and 0.91
        intrinsic_lr, decay_steps, rise = 0.01, 900, 100
        height = -math.log1p(-intrinsic_lr) * share * decay_steps
        classification = classify(with_rotation(sawtooth(decay_steps, rise, height, 8), 0.2, intrinsic_lr), discard=0)
        assert classification.periods.count == 7
        assert classification.verdict == verdict

    def test_periods_of_bursts_are_not_taken_for_equilibrium_though_the_mean_norm_fits(self):
        # bursts for 200 steps, then faint gradients for 1000
        intrinsic_lr, cycle, burst = 5e-4, 1200, 200
        random = np.random.default_rng(0)
        grad_norm = 0.05 * random.uniform(0.5, 1.5, (60, cycle))
        grad_norm[:, :burst] = 2 * random.uniform(0.5, 1.5, (60, burst))
        run = norm_map(0.5, intrinsic_lr / 0.5, RecordedGradient(grad_norm.ravel()), norm=2.0, steps=60 * cycle)
        settled = run.isel(step=slice(round(10 / intrinsic_lr), None))
        squares = float((settled.grad_norm**2).mean())
        expected = theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, math.sqrt(squares)) ** 4
        # E[ρ⁴] fits to 1 % with the formula, which asks only for small growth per step
        assert math.isclose(float((settled.norm**4).mean()), expected, rel_tol=0.01)
        classification = classify(run)
        assert classification.verdict == "periodic"
        assert classification.periods.mean == cycle
        assert classification.rotation_ratio < 0.2
        assert classification.log_norm_sd > 0.1

    def test_a_monotone_relaxation_has_no_clear_period(self):
        classification = classify(norm_map(0.1, 0.01, 2.0, norm=20.0, steps=1500), discard=0)
        assert classification.verdict == "no clear period"
        assert classification.periods.count == 0
        assert classification.rotation_ratio < 0.8

    def test_without_decay_there_is_no_equilibrium(self):
        # without decay the equilibrium rotation is 0, so the ratio is infinite
        classification = classify(norm_map(0.1, 0.0, 1e-3, norm=10.0, steps=1000))
        assert classification.rotation_ratio == math.inf
        assert classification.log_norm_sd < 0.05
        assert classification.verdict == "no clear period"

    def test_a_varying_learning_rate_is_compared_step_by_step(self):
        schedule = theory.StepDecay(0.5, milestones=(4000,), factor=0.1)
        run = norm_map(schedule, 0.02, 2.0, norm=2.6, steps=4400)
        # before the decay θ is at equilibrium, and after it a tenth of that; the median is of the first part
        assert math.isclose(classify(run, discard=1000).rotation_ratio, 1, rel_tol=1e-6)
        assert classify(run, discard=4000).rotation_ratio < 0.5


def relaxing(seed, correlation, spread, count=40_000):
    """A stationary series whose autocorrelation falls by this factor from row to row."""
    noise = np.random.default_rng(seed).normal(size=count) * spread * math.sqrt(1 - correlation**2)
    noise[0] /= math.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], noise)


class TestNormStatistics:
    @pytest.mark.parametrize("time", [5.0, 30.0, 200.0])
    def test_autocorrelation_time_of_a_known_process(self, time):
        times = [autocorrelation_time(np.arange(40_000), relaxing(n, math.exp(-1 / time), 0.1)) for n in range(20)]
        assert np.mean(times) == pytest.approx(time, rel=0.1)

    def test_coarser_sampling_gives_the_same_time(self):
        values = relaxing(0, math.exp(-1 / 200), 0.1)
        fine, coarse = (autocorrelation_time(np.arange(40_000), values, least_gap=gap) for gap in (1, 10))
        assert coarse == pytest.approx(fine, rel=0.05)
        # rows that are already apart
        assert autocorrelation_time(np.arange(0, 40_000, 10), values[::10]) == pytest.approx(coarse, rel=1e-12)

    @pytest.mark.parametrize("values", [np.ones(100), np.arange(3.0), np.arange(1000.0)])
    def test_it_is_nan_or_long_for_series_without_fluctuations(self, values):
        time = autocorrelation_time(np.arange(values.size), values)
        # a linear increase has an autocorrelation time of about a third of its length
        assert math.isnan(time) or time > values.size / 6

    def test_units_of_the_weights_are_free(self):
        run = with_rotation(relaxing(1, 0.99, 0.1, 5000), 0.5)
        plain, scaled = classify(run, discard=0), classify(run.assign(norm=run.norm * 7), discard=0)
        assert scaled.log_norm_sd == pytest.approx(plain.log_norm_sd, rel=1e-9)
        assert scaled.autocorrelation_time == pytest.approx(plain.autocorrelation_time, rel=1e-9)
        np.testing.assert_allclose(scaled.norm_quantiles, 7 * np.array(plain.norm_quantiles), rtol=1e-12)
        assert scaled.typical_norm == pytest.approx(7 * plain.typical_norm, rel=1e-12)

    def test_quantiles_are_those_of_the_rows(self):
        classification = classify(with_rotation(np.log(np.linspace(1, 2, 1001)), 0.5), discard=0)
        np.testing.assert_allclose(classification.norm_quantiles, [1.05, 1.25, 1.5, 1.75, 1.95], rtol=1e-3)


def driven_by(grad_norm, intrinsic_lr=0.01):
    """The exact law of the norm, driven by these gradient norms."""
    norm = theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, float(np.sqrt(np.mean(grad_norm**2))))
    return norm_map(0.5, intrinsic_lr / 0.5, RecordedGradient(grad_norm), norm=norm, steps=grad_norm.size)


class TestThresholdRatio:
    def test_the_period_of_noise_depends_on_the_threshold(self):
        # noise has no period: how often it rises by d depends only on d
        classification = classify(driven_by(np.exp(np.random.default_rng(3).normal(size=40_000) / 2)))
        assert classification.periods.count > 100
        assert classification.threshold_ratio > 2
        assert classification.verdict == str(classification) == "no clear period"

    def test_a_sawtooth_has_the_same_period_at_any_threshold_below_its_height(self):
        classification = classify(with_rotation(sawtooth(90, 10, 0.9, 20), 0.2), discard=0)
        assert classification.threshold_ratio == 1
        assert classification.verdict == "periodic"
        assert str(classification) == "periodic, T = 100 ± 0 steps"

    def test_small_teeth_are_periods_if_all_growth_is_in_them(self):
        # higher than the threshold, lower than twice the threshold
        intrinsic_lr, height = 0.002, 0.15
        fast = round(height / -math.log1p(-intrinsic_lr))
        classification = classify(with_rotation(sawtooth(fast, 5, height, 20), 0.2, intrinsic_lr), discard=0)
        assert classification.threshold_ratio == math.inf
        assert classification.periods.outside_growth < 0.25
        assert classification.verdict == "periodic"
        # the same teeth, but most of the growth is outside the rises
        slow = classify(with_rotation(sawtooth(3 * fast, 5, height, 20), 0.2, intrinsic_lr), discard=0)
        assert 0.5 < slow.periods.outside_growth < 0.9
        assert slow.verdict == "no clear period"
        assert "depends on the detection threshold" in slow.reason
        assert "no period for 0.2" in slow.reason

    def test_the_reason_states_a_missing_rate_of_decay(self):
        run = with_rotation(sawtooth(90, 10, 0.9, 20), 0.2).assign_attrs(optimizer="Adam(dim=5)")
        classification = classify(run, discard=0)
        assert classification.verdict == "no clear period"
        assert "no rate of decay" in classification.reason

    def test_without_decay_no_rotation_is_compared(self):
        reason = classify(norm_map(0.5, 0.0, 2.0, norm=2.6, steps=200)).reason
        assert "inf" not in reason
        assert reason.startswith("no equilibrium, spread of ln ρ")
        assert reason.endswith("and 0 periods")

    def test_the_reason_states_the_deciding_numbers(self):
        assert "spread of ln ρ 0.000" in classify(with_rotation(np.zeros(500), 0.9), discard=0).reason
        assert classify(with_rotation(sawtooth(90, 10, 0.9, 3), 0.2), discard=0).reason.endswith("and 2 periods")
        clear = classify(with_rotation(sawtooth(90, 10, 0.9, 20), 0.2), discard=0)
        assert "19 periods" in clear.reason

    @FIXED
    @given(
        ratio=st.floats(0, 2), sd=st.floats(0, 1), periods=st.integers(0, 50),
        outside=st.floats(0, 1), threshold=st.floats(1, 10), score=st.floats(-5, 20) | st.just(math.nan),
    )  # fmt: skip
    def test_verdicts_are_consistent_and_undetermined_numbers_are_never_periodic(
        self, ratio, sd, periods, outside, threshold, score
    ):
        verdict = verdict_from(ratio, sd, periods, outside, threshold, score)
        assert (verdict == "equilibrium") == (ratio >= 0.8 and sd <= 0.05)
        if verdict == "periodic":
            assert periods >= 5
            assert outside <= 0.9
            assert threshold < 2 or outside <= 0.25
            assert score >= 2.33
        assert (verdict == "undetermined") <= math.isnan(score)
        assert verdict_from(math.nan, sd, periods, math.nan, math.nan, score) == "no clear period"


class TestContradiction:
    def test_the_norm_falls_faster_than_decay(self):
        # a decay phase takes 90 steps, and decay alone would take 900
        classification = classify(with_rotation(sawtooth(90, 10, 9.0, 20), 0.2), discard=0)
        assert classification.periods.outside_growth < 0
        assert classification.verdict == "undetermined"
        assert str(classification) == f"undetermined: {classification.reason}"
        assert "settings do not fit this trajectory: ln ρ decreased by 8" in classification.reason

    @FIXED
    @given(seed=st.integers(0, 1000), factor=st.floats(1.5, 20))
    def test_a_smaller_weight_decay_than_the_true_one(self, seed, factor):
        run = driven_by(np.exp(np.random.default_rng(seed).normal(size=5000)))
        assert classify(run).obstacle == ""
        wrong = classify(run.assign_attrs(wd=run.attrs["wd"] / factor), discard=200)
        assert wrong.verdict == "undetermined"

    def test_rotation_far_above_equilibrium(self):
        flat = np.zeros(5000)
        assert classify(with_rotation(flat, 1.4), discard=0).verdict == "equilibrium"
        classification = classify(with_rotation(flat, 1.7), discard=0)
        assert classification.verdict == "undetermined"
        assert "half of the steps rotate the weights by 0.24" in classification.reason
        # a norm that grows rotates farther: tan²θ is 2(ηλ + 0.02)
        growing = with_rotation(0.02 * np.arange(500), math.sqrt(3))
        assert classify(growing, discard=0).verdict == "no clear period"

    def test_momentum_may_carry_the_norm_down(self):
        rule = theory.SGD(momentum=0.9)
        run = random_walk(0.1, 0.01, dim=50, steps=3000, optimizer=rule, norm=3.0, seed=1).isel(batch=0)
        assert classify(run, discard=0).obstacle == ""

    def test_weight_decay_that_begins_late_is_possible(self):
        wd = np.where(np.arange(5000) < 3000, 0.0, 0.02)
        norm = np.empty(5000)
        norm[0] = 2.0
        for t in range(4999):
            norm[t + 1] = math.sqrt(((1 - 0.5 * wd[t]) * norm[t]) ** 2 + (0.5 * 2.0 / norm[t]) ** 2)
        run = xr.Dataset({"norm": ("step", norm)}, {"step": np.arange(5000)}, {"lr": 0.5})
        run = run.assign(wd=("step", wd), rotation=("step", np.arctan(0.5 * 2.0 / norm**2 / (1 - 0.5 * wd))))
        assert classify(run, discard=0).obstacle == ""

    def test_landscapes_with_a_ringing_norm_are_possible(self):
        run = descend(Ratio2D(1.0, 5.0), 1.0, 0.005, optimizer=theory.SGD(momentum=0.9), norm=1.0, steps=2400)
        assert classify(run).obstacle == ""

    def test_held_norms_are_not_compared(self):
        run = with_rotation(np.zeros(2000), 3.0).assign_attrs(constraint="fixed norm")
        assert classify(run, discard=0).obstacle == ""


class TestLimitsOfDetection:
    @staticmethod
    def teeth(mean, variation, seed, count=60, intrinsic_lr=0.002):
        """Teeth of varying height, with rows 5 steps apart; return the run and the mean length of a tooth."""
        heights = mean * (1 + variation * np.random.default_rng(seed).normal(size=count))
        steps = [max(2, round(height / -math.log1p(-intrinsic_lr))) for height in heights]
        waves = [sawtooth(n, 5, height, 1) - height for n, height in zip(steps, heights, strict=True)]
        run = with_rotation(np.concatenate(waves), 0.2, intrinsic_lr).isel(step=slice(None, None, 5))
        return run, float(np.mean(steps)) + 5

    @FIXED
    @given(st.floats(0.05, 0.2), st.floats(0, 0.15), st.integers(0, 1000))
    def test_small_teeth_are_not_called_periodic_with_a_wrong_period(self, height, variation, seed):
        run, length = self.teeth(height, variation, seed)
        result = classify(run, discard=0)
        if result.verdict == "periodic":
            assert result.periods.mean == pytest.approx(length, rel=0.25)
        if height < 0.07:
            assert result.verdict == "no clear period"

    @pytest.mark.parametrize("seed", range(5))
    def test_rises_of_twice_the_threshold_are_found(self, seed):
        run, length = self.teeth(0.3, 0.1, seed)
        result = classify(run, discard=0)
        assert result.verdict == "periodic"
        assert result.periods.mean == pytest.approx(length, rel=0.02)

    @pytest.mark.parametrize("noise", [0.02, 0.03, 0.05])
    def test_periods_split_by_noise_are_not_periodic(self, noise):
        clean = sawtooth(250, 5, 0.5, 40)
        noisy = clean + noise * np.random.default_rng(0).normal(size=clean.size)
        result = classify(with_rotation(noisy, 0.2, 0.002), discard=0)
        assert result.periods.mean < 245
        assert result.verdict == "undetermined"


class TestTransient:
    def test_a_run_still_on_its_way(self):
        run = driven_by(np.full(1500, 2.0), intrinsic_lr=1e-3)
        classification = classify(run)
        assert classification.verdict == "transient"
        assert str(classification) == f"transient: {classification.reason}"
        assert math.isnan(classification.rotation_ratio)
        assert classification.periods.count == 0
        assert "after about 2000 steps" in classification.reason
        assert "the run has 1500" in classification.reason

    def test_adamw_under_a_cosine_schedule(self):
        rule = theory.AdamW(dim=100)
        schedule = theory.Cosine(3e-3, 3e-5, steps=2000)
        run = random_walk(schedule, 0.1, dim=100, steps=2000, optimizer=rule, norm=1.0).isel(batch=0)
        classification = classify(run)
        assert classification.verdict == "transient"
        assert "after about 13" in classification.reason
        assert "the run has 2000" in classification.reason

    @pytest.mark.parametrize(("more", "verdict"), [(3, "transient"), (240, "transient"), (260, "equilibrium")])
    def test_equilibrium_needs_a_relaxation_time(self, more, verdict):
        norm = theory.equilibrium_norm(0.5, 2e-3, 2.0)
        run = norm_map(0.5, 2e-3, 2.0, norm=norm, steps=2000 + more)
        assert classify(run).verdict == verdict
        assert ("steps follow the transient" in classify(run).reason) == (verdict == "transient")
        assert classify(run, discard=2000).verdict == "equilibrium"

    def test_lost_norms_are_no_transient(self):
        run = driven_by(np.full(5000, 2.0), intrinsic_lr=1e-3)
        lost = run.assign(norm=run.norm.where(run.step < 1500))
        with pytest.raises(ValueError, match=r"fewer than two of 5000 with a finite norm"):
            classify(lost)

    def test_without_rows(self):
        with pytest.raises(ValueError, match="trajectory must have rows left"):
            classify(with_rotation(np.zeros(0), 0.2))


@pytest.mark.parametrize("function", [classify, find_periods])
def test_a_batch_is_refused(function):
    batch = norm_map(0.1, [0.01, 0.02], 2.0, norm=1.0, steps=100)
    with pytest.raises(ValueError, match=r"trajectory must be one run .*\('batch', 'step'\)"):
        function(batch)
