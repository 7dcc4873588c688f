"""Intervals of predicted periods: their coverage for a simulated network whose periods are known."""

import warnings

import numpy as np
import pytest

import simulate
from simulate.period_model.prediction import Interval

REFERENCE = simulate.PeriodModel.reference()
SETTINGS = [(0.5, 0.012), (0.5, 0.004), (0.5, 0.0015)]


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
