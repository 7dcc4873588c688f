"""Intervals of predicted periods: their coverage for a simulated network whose periods are known."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from simulate.period_model.calibration import CalibrationRun
from simulate.period_model.prediction import Interval, resample_laws, resample_runs

REFERENCE = simulate.PeriodModel.reference()
SETTINGS = [(0.5, 0.012), (0.5, 0.004), (0.5, 0.0015)]


def calibration_run(intrinsic_lr, lengths, rises):
    mean, norm_rise = float(np.mean(lengths)), float(np.mean(rises))
    outside_growth = 1 - norm_rise / (-math.log1p(-intrinsic_lr) * mean)
    return CalibrationRun(
        intrinsic_lr,
        len(lengths),
        mean,
        1.0,
        norm_rise,
        outside_growth,
        1.0,
        2.0,
        mean,
        1.0,
        2.0,
        "",
        tuple(lengths),
        tuple(rises),
    )


def resampled_periods(calibration_runs, wd):
    return [law.period(0.5, wd) for law in resample_laws(tuple(calibration_runs))]


@pytest.fixture(scope="module")
def models():
    """Period models fitted to simulated runs of the reference model, two seeds at each of two ηλ."""
    fitted = []
    for number in range(16):
        runs = [
            REFERENCE.oscillate(0.5, wd, steps=round(40 / (0.5 * wd)), seed=100 + 2 * number + place)
            for wd in (0.02, 0.004)
            for place in range(2)
        ]
        fitted.append(simulate.PeriodModel.from_runs(runs))
    return fitted


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_intervals_cover_the_true_period(models, setting):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the true period, from a long simulation
        long = REFERENCE.oscillate(*setting, steps=round(3000 / (setting[0] * setting[1])), seed=7)
        truth = simulate.find_periods(long).mean
        intervals = [model.predict(*setting).period_interval for model in models]
    # at 90 % coverage, fewer than 12 of 16 have a probability of 2 %
    assert sum(interval.lower <= truth <= interval.upper for interval in intervals) >= 12


def test_the_error_of_the_law_grows_with_the_distance_from_the_calibration_runs(models):
    model = models[0]
    width = {}
    for wd in (0.02, 0.004, 0.0012):
        interval, samples = model.predict(0.5, wd).period_interval, resampled_periods(model.calibration_runs, wd)
        width[wd] = math.log(interval.upper / interval.lower) / 2
        sampling = np.diff(np.log(np.quantile(samples, [0.05, 0.95])))[0] / 2
        # two independent errors of known size, 1.64 standard deviations each side
        model_error = 0.03 + 0.035 * min(abs(math.log(wd / at)) for at in (0.02, 0.004))
        assert width[wd] == pytest.approx(math.hypot(sampling, 1.645 * model_error), rel=0.2)
    assert width[0.02] < width[0.0012]


def test_longer_calibration_runs_give_shorter_intervals():
    widths = []
    for relaxations in (30, 480):
        runs = [REFERENCE.oscillate(0.5, wd, steps=round(relaxations / (0.5 * wd)), seed=3) for wd in (0.02, 0.004)]
        calibration_runs = simulate.PeriodModel.from_runs(runs).calibration_runs
        widths.append(np.std(np.log(resampled_periods(calibration_runs, 0.01))))
    # sixteen times the periods, a quarter of the width
    assert widths[1] / widths[0] == pytest.approx(0.25, rel=0.5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(10, 1000), st.floats(0.01, 2.0)), min_size=10, max_size=20), st.integers(0, 5))
def test_a_sample_lies_within_the_measured_periods(periods, seed):
    lengths, rises = zip(*periods, strict=True)
    run = calibration_run(0.01, lengths, rises)
    for (sample,) in resample_runs([run], 3, seed):
        assert min(lengths) - 1e-9 <= sample.period <= max(lengths) + 1e-9
        assert min(rises) - 1e-9 <= sample.norm_rise <= max(rises) + 1e-9
        assert sample.count == len(lengths)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    same = [calibration_run(0.01, rng.normal(100, 20, 50), np.full(50, 0.5)) for _ in range(2)]
    apart = [calibration_run(0.01, rng.normal(mean, 20, 50), np.full(50, 0.5)) for mean in (80, 120)]
    width = [np.std(resampled_periods(seeds, 0.02)) for seeds in (same, apart)]
    # within: 20/√100; between two seeds: 20/√2
    assert width[0] == pytest.approx(2.0, rel=0.5)
    assert width[1] == pytest.approx(math.hypot(14.1, 2.0), rel=0.2)


def test_saved_models_keep_their_intervals(tmp_path):
    runs = [REFERENCE.oscillate(0.5, wd, steps=round(40 / (0.5 * wd)), seed=3) for wd in (0.02, 0.004)]
    model = simulate.PeriodModel.from_runs(runs)
    model.save(tmp_path / "model.json")
    again = simulate.PeriodModel.load(tmp_path / "model.json")
    assert again == model
    assert again.predict(0.5, 0.01) == model.predict(0.5, 0.01)


def test_without_periods_there_is_no_interval():
    equilibrium = simulate.norm_map(0.5, 0.02, 2.0, norm=3.0, steps=3000)
    model = simulate.PeriodModel.from_runs([equilibrium.assign(loss=0 * equilibrium.norm + 1)])
    assert model.predict(0.5, 0.02).period_interval is None


def test_a_higher_level_gives_a_wider_interval():
    narrow, wide = (simulate.period(0.5, 0.01, level=level).period_interval for level in (0.5, 0.99))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper
    assert (narrow.level, wide.level) == (0.5, 0.99)


def test_an_interval_leaves_out_equal_shares():
    interval = Interval.of(np.arange(1001), 0.5)
    assert (interval.lower, interval.upper) == (250.0, 750.0)
