import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory

LAW = {
    "norm_rise": 0.52,
    "norm_rise_slope": 0.2,
    "outside_growth": 0.27,
    "outside_growth_power": 0.6,
    "reference": 0.01,
}


def test_the_law_with_measured_parameters_is_the_balance_identity():
    # J and φ measured on a periodic run of the map reproduce its mean period
    generator = np.random.default_rng(0)
    gradient = np.concatenate([np.r_[60.0, np.full(n, 0.1)] for n in generator.normal(150, 30, 90).astype(int)])
    run = simulate.norm_map(0.5, 0.01, simulate.RecordedGradient(gradient), norm=3.0, steps=gradient.size)
    periods = simulate.find_periods(run)
    law = theory.BalanceLaw(periods.norm_rise, 0.0, periods.outside_growth, 0.0, periods.intrinsic_lr)
    assert law.period(0.5, 0.01) == pytest.approx(periods.mean, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-6, 0.02), st.floats(1e-3, 1e3))
def test_period_depends_on_the_intrinsic_lr_alone_and_shrinks_with_it(intrinsic_lr, lr):
    law = theory.BalanceLaw(**LAW)
    period = law.period(lr, intrinsic_lr / lr)
    assert period == pytest.approx(law.period(1.0, intrinsic_lr), rel=1e-9)
    assert period > law.period(lr, 1.01 * intrinsic_lr / lr)
    norm_rise = 0.52 + 0.2 * math.log(0.01 / intrinsic_lr)
    assert period * -math.log1p(-intrinsic_lr) == pytest.approx(
        norm_rise / (1 - 0.27 * (intrinsic_lr / 0.01) ** 0.6), rel=1e-9
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-7, 0.5), st.floats(-0.2, 0.99), st.floats(-2, 2), st.floats(0, 0.3))
def test_with_odds_growth_outside_adds_to_the_norm_rise(intrinsic_lr, outside_growth, power, slope):
    law = theory.BalanceLaw(0.6, slope, outside_growth, power, 0.5, "odds")
    odds = outside_growth / (1 - outside_growth) * (intrinsic_lr / 0.5) ** power
    norm_rise = 0.6 + slope * math.log(0.5 / intrinsic_lr)
    if odds > -0.9:
        # near φ = 1 the difference 1-φ loses digits
        assert law.period(0.5, intrinsic_lr / 0.5) * -math.log1p(-intrinsic_lr) == pytest.approx(
            norm_rise * (1 + odds), rel=1e-9 + 4e-16 * (1 + odds)
        )
    # at the reference both forms agree
    share = theory.BalanceLaw(0.6, slope, outside_growth, power, 0.5)
    assert law.period(1.0, 0.5) == pytest.approx(share.period(1.0, 0.5), rel=1e-12)
    if outside_growth >= 0:
        assert 0 <= law.outside_growth_at(np.array(intrinsic_lr)) < 1, "a share that stays below 1"


def test_a_power_law_of_the_share_can_exceed_one_and_of_the_odds_cannot():
    intrinsic_lrs = np.geomspace(1e-8, 0.5, 50)
    for power in (-0.5, 0.5):
        odds = theory.BalanceLaw(0.5, 0.0, 0.8, power, 0.01, "odds")
        assert np.isfinite(odds.period(1.0, intrinsic_lrs)).all()
        assert np.isnan(theory.BalanceLaw(0.5, 0.0, 0.8, power, 0.01).period(1.0, intrinsic_lrs)).any()


def test_far_from_the_reference_there_may_be_no_period():
    law = theory.BalanceLaw(**LAW)
    assert np.isnan(law.period(1.0, 0.9))
    assert np.isfinite(law.period(1.0, [1e-4, 1e-2])).all()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.floats(1e-3, 0.3), st.floats(0.5, 5), st.floats(1.05, 4), st.integers(0, 10**6))
def test_no_run_has_a_larger_share_of_long_steps(intrinsic_lr, tail, multiple, seed):
    # heavy-tailed gradients, with and without relative clipping at this ratio
    ratio, random = multiple * math.sqrt(2 * intrinsic_lr), np.random.default_rng(seed)
    bound = theory.largest_clipped_share(1.0, intrinsic_lr, ratio)
    for is_clipped in (False, True):
        square, long, start, steps = 1.0, 0, 1.0, 4000
        for gradient in random.pareto(tail, steps) + 0.1:
            update = gradient / square
            if update >= ratio:
                long += 1
                update = ratio if is_clipped else update
            square *= (1 - intrinsic_lr) ** 2 + update**2
        # in a finite run the norm may have grown in all, in long steps
        step_growth = math.log1p((ratio / (1 - intrinsic_lr)) ** 2) / 2
        grown = math.log(square / start) / 2 / steps
        assert long / steps <= bound + grown / step_growth + 1e-9


def test_steps_that_are_all_long_attain_the_largest_share():
    # a step just above the ratio, then decay until the next one, keeps the norm in the mean
    intrinsic_lr, ratio = 0.01, 0.5
    bound = theory.largest_clipped_share(0.1, 0.1, ratio)
    square, long, steps = 1.0, 0, 100_000
    for _ in range(steps):
        is_long = square < 1
        long += is_long
        square *= (1 - intrinsic_lr) ** 2 + (ratio**2 if is_long else 0)
    assert long / steps == pytest.approx(bound, rel=1e-3)
    assert theory.largest_clipped_share(0.1, 0.0, ratio) == 0
    assert theory.largest_clipped_share(0.1, 5.0, 0.1) == 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-4, 0.9), st.floats(1, 100))
def test_least_decay_steps_are_those_of_free_decay(intrinsic_lr, ratio):
    steps = theory.least_decay_steps(1.0, intrinsic_lr, ratio)
    # decay alone reaches the ratio in this number of steps, and not in one less
    assert (1 - intrinsic_lr) ** steps * ratio <= 1 + 1e-9
    assert steps == 0 or (1 - intrinsic_lr) ** (steps - 1) * ratio > 1 - 1e-9


def test_no_decay_is_faster_than_the_least_steps():
    run = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(0.0, 5.0), norm=5.0, steps=4000, seed=0)
    norm = run.norm.values
    for gap in (1, 7, 50):
        ratio = np.maximum(norm[:-gap] / norm[gap:] * (1 - 1e-12), 1)
        assert (theory.least_decay_steps(0.5, 0.02, ratio) <= gap).all()


def test_limits():
    assert theory.least_decay_steps(0.1, 0.0, 2.0) == np.inf
    assert theory.least_decay_steps(0.1, 0.0, 1.0) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm_rise", 0),
        ("norm_rise_slope", float("nan")),
        ("outside_growth", 1.0),
        ("outside_growth_power", "a"),
        ("reference", 1.0),
        ("power_of", "phi"),
    ],
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
        theory.least_decay_steps(0.1, 0.01, 0.5)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(1e-6, 0.5), st.floats(0, 20), st.integers(0, 100))
def test_the_balance_is_exact_on_any_run(intrinsic_lr, high, seed):
    run = simulate.norm_map(
        0.5, intrinsic_lr / 0.5, simulate.BoundedGradient(0.0, high), norm=2.0, steps=300, seed=seed
    )
    parts = theory.balance(2.0, run.final_norm.item(), run.rotation.values, 0.5, intrinsic_lr / 0.5)
    assert parts.growth - parts.decay == pytest.approx(parts.change, abs=1e-11)
    assert parts.decay == pytest.approx(-300 * math.log1p(-intrinsic_lr), rel=1e-12)


def test_the_geometric_mean_of_the_cosine_balances_decay_on_periodic_runs():
    gradient = np.tile(np.r_[60.0, np.full(200, 0.1)], 60)
    run = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(gradient), norm=2.0, steps=gradient.size)
    parts = theory.balance(2.0, run.final_norm.item(), run.rotation.values, 0.5, 0.02)
    assert parts.growth / gradient.size == pytest.approx(-math.log(0.99), rel=1e-3)
    # although no step is near the equilibrium rotation
    assert (abs(run.rotation / theory.equilibrium_rotation(0.5, 0.02) - 1) > 0.5).all()


def test_the_balance_accepts_schedules_and_batches():
    schedule = theory.Cosine(0.5, 0.05, 400)
    run = simulate.norm_map(schedule, 0.02, [1.0, 4.0], norm=2.0, steps=400)
    parts = theory.balance(2.0, run.final_norm.values, run.rotation.values, schedule(np.arange(400)), 0.02)
    np.testing.assert_allclose(parts.growth - parts.decay, parts.change, atol=1e-12)
    mixed = theory.balance(1.0, [2.0, 3.0], np.full((4, 1, 5), 0.1), 0.1, 0.1)
    assert [np.shape(part) for part in mixed] == [(4, 2)] * 3
    assert str(theory.balance(1.0, 1.0, [], 0.1, 0.1)) == "Balance(decay=0.0, growth=0.0, change=0.0)"
    with pytest.raises(ValueError, match="steps as last axis"):
        theory.balance(1.0, 1.0, 0.1, 0.1, 0.1)


def test_while_the_norm_grows_angular_jumps_come_in_succession():
    # the control of "bounded norm": every step has 1 - cos θ = 0.15
    norm, jumps = 1.0, 0
    for _ in range(50):
        g = norm**2 / 0.1 * (1 - 1e-5) * theory.destabilization.kappa(0.15)
        jumps += 1 - np.cos(theory.rotation(norm, 0.1, 1e-4, g)) > 0.1
        norm = np.hypot((1 - 1e-5) * norm, 0.1 * g / norm)
    assert jumps == 50
    # the greatest number in N steps includes the growth
    assert jumps <= (50 * -np.log1p(-1e-5) + np.log(norm)) / -np.log1p(-0.1)


@pytest.mark.parametrize("intrinsic_lr", [0.003, 0.05, 0.2])
@pytest.mark.parametrize("delta", [0.01, 0.3])
def test_angular_jumps_cannot_come_more_often_and_nearly_do(intrinsic_lr, delta):
    # the adversary: the smallest angular jump as soon as the norm has decayed back to its start
    lr, jumps, steps = 0.5, 0, int(400 * max(np.log1p(-delta) / np.log1p(-intrinsic_lr), 1))
    logarithm = 0.0
    for _ in range(steps):
        if logarithm <= 0:
            logarithm += np.log1p(-intrinsic_lr) - np.log1p(-delta * (1 + 1e-9))
            jumps += 1
        else:
            logarithm += np.log1p(-intrinsic_lr)
    least = theory.least_time_between_angular_jumps(lr, intrinsic_lr / lr, delta)
    assert jumps <= (steps * -np.log1p(-intrinsic_lr) + logarithm) / -np.log1p(-delta) + 1e-6
    assert steps / jumps >= least * (1 - 1 / jumps)
    # rounding to whole steps costs at most one per angular jump
    assert steps / jumps <= max(least, 1) * (1 + 1 / jumps) + 1
    # and no run has more
    gradient = simulate.RecordedGradient(np.exp(3 * np.random.default_rng(0).normal(size=20_000)))
    run = simulate.norm_map(lr, intrinsic_lr / lr, gradient, norm=1.0, steps=20_000)
    count = np.count_nonzero(1 - np.cos(run.rotation) > delta)
    assert count <= (20_000 * -np.log1p(-intrinsic_lr) + np.log(run.final_norm.item())) / -np.log1p(-delta)
    assert count > 10


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(0, 0.5), st.floats(1e-6, 1), st.floats(1e-3, 1e3), st.integers(0, 300))
def test_the_product_in_a_decay_phase_is_that_of_its_iteration(intrinsic_lr, start, tail, steps):
    effective = 0.3
    loss = start / effective
    for _ in range(steps):
        loss /= 1 + tail * effective * loss
        effective /= (1 - intrinsic_lr) ** 2
    predicted = theory.decay_phase_product(steps, start, 0.5, intrinsic_lr / 0.5, tail)
    assert predicted == pytest.approx(loss * effective, rel=1e-10)


def test_the_product_tends_to_its_limit_logistically():
    intrinsic_lr, tail = 1e-3, 40.0
    steps = np.arange(0, 20_000, 50)
    product = theory.decay_phase_product(steps, 1e-6, 1.0, intrinsic_lr, tail)
    limit = ((1 - intrinsic_lr) ** -2 - 1) / tail
    assert product[-1] == pytest.approx(limit, rel=1e-9)
    assert limit == pytest.approx(2 * intrinsic_lr / tail, rel=2 * intrinsic_lr)
    # ln(p/(limit-p)) is a straight line with slope 2ηλ
    inner = (product > 1e-3 * limit) & (product < 0.99 * limit)
    slope = np.polyfit(steps[inner], np.log(product[inner] / (limit - product[inner])), 1)[0]
    assert slope == pytest.approx(-2 * np.log1p(-intrinsic_lr), rel=1e-6)
    assert theory.decay_phase_product(10, 0.1, 1.0, 0.0, 2.0) == pytest.approx(0.1 / (1 + 10 * 2.0 * 0.1))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.balance(0.0, 1.0, [0.1], 0.1, 0.1), "norm"),
        (lambda: theory.balance(1.0, 1.0, [2.0], 0.1, 0.1), "rotation"),
        (lambda: theory.least_time_between_angular_jumps(0.1, 0.1, 1.0), "delta"),
        (lambda: theory.decay_phase_product(-1, 1.0, 0.1, 0.1, 1.0), "steps"),
        (lambda: theory.decay_phase_product(1, 0.0, 0.1, 0.1, 1.0), "product"),
        (lambda: theory.decay_phase_product(1, 1.0, 0.1, 0.1, 0.0), "tail"),
    ],
)
def test_bad_values_of_the_balance_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


RULES = [
    theory.SGD(),
    theory.SGD(momentum=0.5),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.9, nesterov=True),
    theory.SGD(momentum=0.9, decoupled=True),
    theory.AdamW(dim=1),
    theory.Lion(dim=1),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.floats(1e-6, 2e-3), st.floats(1e-2, 10))
def test_free_decay_is_that_of_weights_without_gradients(rule, intrinsic_lr, lr):
    weights, state = np.array([1.0]), rule.start(np.array([1.0]))
    sizes = []
    for _ in range(600):
        weights, state = rule.update(weights, np.zeros(1), state, lr, intrinsic_lr / lr)
        sizes.append(abs(float(weights[0])))
    # after 300 steps the buffer has adapted
    assert math.log(sizes[300] / sizes[-1]) / 299 == pytest.approx(
        theory.free_decay(lr, intrinsic_lr / lr, optimizer=rule), rel=1e-6
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_while_the_weights_ring_the_mean_decay_is_that_of_the_complex_roots(nesterov):
    rule = theory.SGD(momentum=0.81, nesterov=nesterov)
    state = rule.start(np.array([1.0]))
    path = [np.array([1.0])]
    for _ in range(4000):
        weights, state = rule.update(path[-1], np.zeros(1), state, 0.5, 0.3)
        path.append(weights)
    size = np.abs(np.array(path).ravel())
    peaks = [np.log(size[begin : begin + 100].max()) for begin in (200, 3000)]
    assert (peaks[0] - peaks[1]) / 2800 == pytest.approx(theory.free_decay(0.5, 0.3, optimizer=rule), rel=1e-2)


def test_free_decay_of_adam_is_undefined():
    assert np.isnan(theory.free_decay(0.1, 0.01, optimizer=theory.Adam(dim=5)))
    assert theory.free_decay(0.1, 0.0, optimizer=theory.SGD(momentum=0.9)) == 0
    np.testing.assert_allclose(theory.free_decay([0.1, 0.2], 0.01), -np.log1p([-0.001, -0.002]))
    with pytest.raises(ValueError, match="lr"):
        theory.free_decay(100.0, 0.02)
