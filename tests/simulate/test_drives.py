"""The fast and the general loop are one map; adversarial gradients reach the bounds; statistics need no rows."""

import numba
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from simulate import AdversarialGradient, BoundedGradient, RecordedGradient, norm_map
from simulate.maps import kernels

rates = st.floats(np.log(1e-3), np.log(10)).map(lambda x: float(np.exp(x)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(rates, st.floats(0, 1.99), st.floats(0, 50), st.floats(0.01, 100), st.sampled_from([1, 2, 7, 600]))
def test_side_by_side_is_step_by_step_bit_for_bit(lr, k, g, norm, stride):
    steps = 1300  # more than two stretches
    fast = norm_map(lr, k / lr, g, norm=norm, steps=steps, record_every=stride)
    # the same gradients, recorded: the general loop
    general = norm_map(lr, k / lr, RecordedGradient(np.full(steps, g)), norm=norm, steps=steps, record_every=stride)
    np.testing.assert_array_equal(fast.norm, general.norm)
    np.testing.assert_array_equal(fast.grad_norm, general.grad_norm)
    assert fast.final_norm.item() == general.final_norm.item()
    assert fast.status.item() == general.status.item()
    assert fast.status_step.item() == general.status_step.item()


def test_a_batch_is_its_members_for_any_split_also_where_some_end():
    generator = np.random.default_rng(0)
    count = 700  # three blocks, the last one not full
    lr, wd = np.exp(generator.uniform(-3, 2, count)), np.exp(generator.uniform(-9, 0, count))
    wd = np.minimum(wd, 1.9 / lr)
    g = np.where(generator.random(count) < 0.1, 0.0, generator.uniform(0, 5, count))
    norm = np.exp(generator.uniform(-300, 300, count))
    lr[[5, 255, 650]], g[[5, 255, 650]], norm[[5, 255, 650]] = 5.0, 10.0, 2e-154  # overflow in the first step
    wd[[5, 255, 650]] = 0.1
    g[[6, 256, 651]], norm[[6, 256, 651]] = 0.0, 1e-152  # a collapse
    whole = norm_map(lr, wd, g, norm=norm, steps=1100, record_every=50, seed=0)
    assert {"complete", "diverged", "collapsed"} == set(whole.status.values.tolist())
    for part in (slice(0, 1), slice(250, 261), slice(600, 700)):
        some = norm_map(lr[part], wd[part], g[part], norm=norm[part], steps=1100, record_every=50, seed=0)
        xr.testing.assert_identical(some.drop_vars("lr"), whole.isel(batch=part).drop_vars("lr"))
    ended = np.flatnonzero(whole.status.values != "complete")
    for i in ended[:5]:
        alone = norm_map(
            lr[i], wd[i], RecordedGradient(np.full(1100, g[i])), norm=norm[i], steps=1100, record_every=50, seed=0
        )
        assert alone.status_step.item() == whole.status_step.values[i]
        assert alone.final_norm.item() == whole.final_norm.values[i]


@pytest.mark.parametrize(
    "gradient",
    [2.0, [1.0, 0.0, 3.0], BoundedGradient([0.5, 0.0, 1.0], 4.0), AdversarialGradient(1.0, [2.0, 5.0, 9.0], "upper")],
    ids=["constant", "constants", "random", "adversarial"],
)
def test_statistics_are_those_of_the_rows(gradient):
    settings = {"norm": [1.0, 5.0, 1e-70], "steps": 2500, "seed": 3}
    rows = norm_map(0.3, 0.4, gradient, **settings)
    alone = norm_map(0.3, 0.4, gradient, record_every=None, **settings)
    assert alone.sizes["step"] == 0
    np.testing.assert_array_equal(alone.final_norm, rows.final_norm)
    np.testing.assert_array_equal(alone.status, rows.status)
    np.testing.assert_array_equal(alone.status_step, rows.status_step)
    for i, made in enumerate(rows.status_step.values):
        r = rows.norm.values[i, :made]
        assert alone.norm_min[i] == pytest.approx(r.min(), rel=1e-12)
        assert alone.norm_max[i] == pytest.approx(r.max(), rel=1e-12)
        assert alone.mean_sq_norm[i] == pytest.approx((r**2).mean(), rel=1e-10)
        assert alone.mean_fourth_norm[i] == pytest.approx((r**4).mean(), rel=1e-10)


def test_statistics_of_no_steps_are_nan():
    run = norm_map(0.1, 0.1, 2.0, norm=1.0, steps=0, record_every=None)
    assert np.isnan([run.norm_min, run.norm_max, run.mean_sq_norm, run.mean_fourth_norm]).all()
    assert run.final_norm.item() == 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.one_of(st.floats(0.01, 0.28), st.floats(0.3, 0.9), st.floats(1.1, 1.7)), st.floats(0.05, 1), st.floats(0.3, 3)
)
def test_adversaries_reach_the_bounds_and_none_leaves_them(k, ratio, relative):
    lr, high = 0.5, 3.0
    bounds = theory.norm_bounds(lr, k / lr, high * ratio, high)
    start = relative * theory.equilibrium_norm(lr, k / lr, high)
    steps = int(200 / min(k, 2 - k)) + 4000
    lower = norm_map(lr, k / lr, AdversarialGradient(high * ratio, high), norm=start, steps=steps)
    upper = norm_map(lr, k / lr, AdversarialGradient(high * ratio, high, towards="upper"), norm=start, steps=steps)
    for run in (lower, upper):
        settled = run.norm[steps // 2 :]
        assert settled.min() >= bounds.lower * (1 - 1e-9)
        assert settled.max() <= bounds.upper * (1 + 1e-9)
        assert run.grad_norm.min() >= high * ratio * (1 - 1e-12)
        assert run.grad_norm.max() <= high * (1 + 1e-12)
    if (1 - k) ** 2 >= 0.5:
        assert lower.norm[steps // 2 :].min() == pytest.approx(bounds.lower, rel=1e-6)
        # the fall before the throw is cut one part in a thousand (of r) above its end
        assert upper.norm[steps // 2 :].max() == pytest.approx(bounds.upper, rel=2e-3)


def test_adversarial_periods():
    # with a wide range of gradients the adversary makes the norm periodic: sink, throw, sink
    from simulate import find_periods

    run = norm_map(0.5, 0.02, AdversarialGradient(0.05, 20.0, towards="upper"), norm=5.0, steps=20_000)
    found = find_periods(run)
    assert found.count >= 5
    assert found.std < 0.01 * found.mean
    # as long as a fall between the two ends takes
    ends = run.norm[found.onsets[0] : found.onsets[1] + 1]
    assert found.mean == pytest.approx(theory.fall_time(ends.max(), ends.min() * (1 + 1e-9), 0.5, 0.02, 0.05), rel=0.02)


def test_random_gradients_depend_on_seed_place_and_step_alone():
    rule = BoundedGradient(0.5, 4.0)
    whole = norm_map(0.1, [0.1, 0.2, 0.3], rule, norm=1.0, steps=50, seed=9)
    shorter = norm_map(0.1, [0.1, 0.2], rule, norm=1.0, steps=20, seed=9)
    np.testing.assert_array_equal(shorter.grad_norm, whole.grad_norm[:2, :20])
    np.testing.assert_array_equal(whole.grad_norm, rule.values_for((3,), 50, 9))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AdversarialGradient(2.0, 1.0), "low"),
        (lambda: AdversarialGradient(-1.0, 1.0), "low"),
        (lambda: AdversarialGradient(1.0, 2.0, towards="up"), "towards must be one of lower, upper"),
        (lambda: norm_map(0.1, 0.1, 2.0, norm=1.0, steps=3, record_every=0), "record_every"),
    ],
)
def test_bad_values_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_the_fast_loop_divides_several_numbers_at_once():
    norm_map(0.1, 0.1, 2.0, norm=1.0, steps=3)
    # compiled anew: code from the cache cannot be read
    fresh = numba.njit(nogil=True, error_model="numpy")(kernels.iterate_constant.py_func)
    fresh.compile(kernels.iterate_constant.signatures[0])
    code = fresh.inspect_asm(fresh.signatures[0])
    if "divsd" not in code and "divpd" not in code:
        pytest.skip("the machine code is not that of x86")
    assert "divpd" in code
