import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory

LAW = {"jump": 0.52, "jump_slope": 0.2, "outside": 0.27, "outside_power": 0.6, "reference": 0.01}


def test_the_law_is_the_balance_identity_of_what_is_found():
    # a periodic trace of the map: J and φ measured on it give back its mean period
    generator = np.random.default_rng(0)
    gradient = np.concatenate([np.r_[60.0, np.full(n, 0.1)] for n in generator.normal(150, 30, 90).astype(int)])
    run = simulate.norm_map(0.5, 0.01, simulate.RecordedGradient(gradient), norm=3.0, steps=gradient.size)
    found = simulate.find_periods(run)
    law = theory.BalanceLaw(found.jump, 0.0, found.outside_growth, 0.0, found.intrinsic_lr)
    assert law.period(0.5, 0.01) == pytest.approx(found.mean, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-6, 0.02), st.floats(1e-3, 1e3))
def test_period_depends_on_the_intrinsic_lr_alone_and_shrinks_with_it(k, lr):
    law = theory.BalanceLaw(**LAW)
    period = law.period(lr, k / lr)
    assert period == pytest.approx(law.period(1.0, k), rel=1e-9)
    assert period > law.period(lr, 1.01 * k / lr)
    jump = 0.52 + 0.2 * math.log(0.01 / k)
    assert period * -math.log1p(-k) == pytest.approx(jump / (1 - 0.27 * (k / 0.01) ** 0.6), rel=1e-9)


def test_far_from_the_reference_there_may_be_no_period():
    law = theory.BalanceLaw(**LAW)
    assert np.isnan(law.period(1.0, 0.9))
    assert np.isfinite(law.period(1.0, [1e-4, 1e-2])).all()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-4, 0.9), st.floats(1, 100))
def test_least_fall_is_that_of_free_decay(k, ratio):
    steps = theory.least_fall(1.0, k, ratio)
    # decay alone reaches the ratio in as many steps, and not in one less
    assert (1 - k) ** steps * ratio <= 1 + 1e-9
    assert steps == 0 or (1 - k) ** (steps - 1) * ratio > 1 - 1e-9


def test_no_fall_is_faster():
    run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(0.0, 5.0), norm=5.0, steps=4000, seed=0)
    norm = run.norm.values
    for gap in (1, 7, 50):
        ratio = np.maximum(norm[:-gap] / norm[gap:] * (1 - 1e-12), 1)
        assert (theory.least_fall(0.5, 0.02, ratio) <= gap).all()


def test_limits():
    assert theory.least_fall(0.1, 0.0, 2.0) == np.inf
    assert theory.least_fall(0.1, 0.0, 1.0) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("jump", 0), ("jump_slope", float("nan")), ("outside", 1.0), ("outside_power", "a"), ("reference", 1.0)],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        theory.BalanceLaw(**{**LAW, name: value})


@pytest.mark.parametrize(("name", "value"), [("lr", 0), ("wd", 0), ("lr", 200)])
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        theory.BalanceLaw(**LAW).period(**{"lr": 0.1, "wd": 0.01, name: value})


def test_a_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match="ratio"):
        theory.least_fall(0.1, 0.01, 0.5)
