"""All loops compute the same map on any number of threads; adversarial gradients reach the bounds."""

import subprocess
import sys
from typing import ClassVar

import mpmath
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import theory
from simulate import AdversarialGradient, BoundedGradient, RecordedGradient, norm_map, norm_ode
from simulate.maps import iteration

learning_rates = st.floats(np.log(1e-3), np.log(10)).map(lambda x: float(np.exp(x)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(learning_rates, st.floats(0, 1.99), st.floats(0, 50), st.floats(0.01, 100), st.sampled_from([1, 2, 7, 600]))
def test_batched_loop_equals_step_by_step_loop_bit_for_bit(lr, intrinsic_lr, g, norm, stride):
    steps = 1300  # more than two stretches
    fast = norm_map(lr, intrinsic_lr / lr, g, norm=norm, steps=steps, record_every=stride)
    # the same gradients, recorded: the general loop
    general = norm_map(
        lr, intrinsic_lr / lr, RecordedGradient(np.full(steps, g)), norm=norm, steps=steps, record_every=stride
    )
    np.testing.assert_array_equal(fast.norm, general.norm)
    np.testing.assert_array_equal(fast.grad_norm, general.grad_norm)
    assert fast.final_norm.item() == general.final_norm.item()
    assert fast.status.item() == general.status.item()
    assert fast.status_step.item() == general.status_step.item()


def test_a_batch_equals_its_members_for_any_split():
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
    for i, updates in enumerate(rows.status_step.values):
        r = rows.norm.values[i, :updates]
        assert alone.norm_min[i] == pytest.approx(r.min(), rel=1e-12)
        assert alone.norm_max[i] == pytest.approx(r.max(), rel=1e-12)
        assert alone.mean_sq_norm[i] == pytest.approx((r**2).mean(), rel=1e-10)
        assert alone.mean_fourth_norm[i] == pytest.approx((r**4).mean(), rel=1e-10)


def test_statistics_of_no_steps_are_nan():
    run = norm_map(0.1, 0.1, 2.0, norm=1.0, steps=0, record_every=None)
    assert np.isnan([run.norm_min, run.norm_max, run.mean_sq_norm, run.mean_fourth_norm]).all()
    assert run.final_norm.item() == 1


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.one_of(st.floats(0.01, 0.95), st.floats(0.25, 0.35), st.floats(1.05, 1.99)),
    st.one_of(st.floats(0.05, 1), st.floats(0.65, 0.8)),
    st.floats(0.3, 3),
)
def test_adversaries_reach_the_bounds_and_none_leaves_them(intrinsic_lr, ratio, relative):
    lr, high = 0.5, 3.0
    bounds = theory.norm_bounds(lr, intrinsic_lr / lr, high * ratio, high)
    start = relative * theory.equilibrium_norm(lr, intrinsic_lr / lr, high)
    steps = int(200 / min(intrinsic_lr, 2 - intrinsic_lr)) + 4000
    lower = norm_map(lr, intrinsic_lr / lr, AdversarialGradient(high * ratio, high), norm=start, steps=steps)
    upper = norm_map(
        lr, intrinsic_lr / lr, AdversarialGradient(high * ratio, high, towards="upper"), norm=start, steps=steps
    )
    for run in (lower, upper):
        settled = run.norm[steps // 2 :]
        assert settled.min() >= bounds.lower * (1 - 1e-9)
        assert settled.max() <= bounds.upper * (1 + 1e-9)
        assert run.grad_norm.min() >= high * ratio * (1 - 1e-12)
        assert run.grad_norm.max() <= high * (1 + 1e-12)
    assert lower.norm[steps // 2 :].min() == pytest.approx(bounds.lower, rel=1e-6)
    # the decay ends one part in a thousand (of r) above the lower end, before the large step
    assert upper.norm[steps // 2 :].max() == pytest.approx(bounds.upper, rel=6e-4)


def test_adversaries_reach_both_ends_on_a_grid():
    lr, high = 0.5, 3.0
    below_one = np.array([0.02, 0.1, 0.2, 0.28, 0.2928, 0.293, 0.3, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    intrinsic_lr, ratio, relative = (
        axis.ravel()
        for axis in np.meshgrid(
            np.concatenate([below_one, 2 - below_one]),
            [0.02, 0.1, 0.3, 0.5, 0.6, 0.65, 0.7, 0.71, 0.75, 0.8, 0.9, 0.95, 0.99],
            [0.01, 0.3, 0.9, 1.0, 1.05, 2.0, 50.0],
            indexing="ij",
        )
    )
    bounds = theory.norm_bounds(lr, intrinsic_lr / lr, high * ratio, high)
    start = relative * theory.equilibrium_norm(lr, intrinsic_lr / lr, high)

    def settled(towards):
        arguments = (lr, intrinsic_lr / lr, AdversarialGradient(high * ratio, high, towards=towards))
        first = norm_map(*arguments, norm=start, steps=50_000, record_every=None, seed=0)
        return norm_map(*arguments, start=first, steps=5000, record_every=None)

    np.testing.assert_allclose(settled("lower").norm_min, bounds.lower, rtol=1e-9)
    np.testing.assert_allclose(settled("upper").norm_max, bounds.upper, rtol=6e-4)
    # where the norm overshoots, there is no tolerance; and always `low` or always `high` is not enough
    rings = (1 - intrinsic_lr) ** 2 < 0.5
    np.testing.assert_allclose(settled("upper").norm_max[rings], bounds.upper[rings], rtol=1e-9)
    equilibria = [theory.equilibrium_norm(lr, intrinsic_lr / lr, g) for g in (high * ratio, high)]
    assert (bounds.lower[rings] < equilibria[0][rings]).all()
    assert (bounds.upper[rings] > equilibria[1][rings]).all()


@pytest.mark.parametrize(("intrinsic_lr", "low"), [(1.0, 1.0), (0.05, 0.0), (0.5, 0.0), (1.5, 0.0)])
def test_adversaries_leave_any_bounds_where_there_are_none(intrinsic_lr, low):
    bounds = theory.norm_bounds(0.5, intrinsic_lr / 0.5, low, 3.0)
    assert tuple(bounds) == (0, np.inf)
    runs = {
        towards: norm_map(
            0.5, intrinsic_lr / 0.5, AdversarialGradient(low, 3.0, towards), norm=1.0, steps=8000, record_every=None
        )
        for towards in ("lower", "upper")
    }
    assert runs["lower"].norm_min < 1e-60
    assert runs["upper"].norm_max > 1e60


@pytest.mark.parametrize("intrinsic_lr", [0.1, 0.5, 1.5])
def test_adversaries_of_the_differential_equation_keep_one_end(intrinsic_lr):
    lr, low, high = 0.5, 1.0, 3.0
    for towards, gradient in (("lower", low), ("upper", high)):
        run = norm_ode(lr, intrinsic_lr / lr, AdversarialGradient(low, high, towards), norm=2.0, steps=500)
        assert (run.grad_norm == gradient).all()
        assert run.final_norm.item() == pytest.approx((lr * gradient**2 / (2 * intrinsic_lr / lr)) ** 0.25, rel=1e-9)


def test_adversarial_periods():
    # with a wide range of gradients the adversary makes the norm periodic: decay, one large step, decay
    from simulate import find_periods

    run = norm_map(0.5, 0.02, AdversarialGradient(0.05, 20.0, towards="upper"), norm=5.0, steps=20_000)
    periods = find_periods(run)
    assert periods.count >= 5
    assert periods.std < 0.01 * periods.mean
    # as long as the decay from the upper to the lower end
    ends = run.norm[periods.onsets[0] : periods.onsets[1] + 1]
    assert periods.mean == pytest.approx(
        theory.decay_time(ends.max(), ends.min() * (1 + 1e-9), 0.5, 0.02, 0.05), rel=0.02
    )


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


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda labelled: RecordedGradient(labelled), "values"),
        (lambda labelled: BoundedGradient(labelled, 3.0), "low"),
        (lambda labelled: AdversarialGradient(1.0, labelled), "high"),
    ],
)
def test_named_dimensions_of_gradients_are_refused(make, name):
    with pytest.raises(TypeError, match=rf"^{name} must be .* without named dimensions, got a DataArray"):
        make(xr.DataArray([1.0, 2.0], dims="a"))


class TestThreads:
    """A batch of more than three blocks. The result does not depend on the number of threads."""

    COUNT = 800
    GENERATOR = np.random.default_rng(1)
    LR = np.exp(GENERATOR.uniform(-3, 0, COUNT))
    WD = np.exp(GENERATOR.uniform(-6, 0, COUNT))
    NORM = np.exp(GENERATOR.uniform(-1, 1, COUNT))
    # some end on the way
    NORM[::97], WD[::97] = 1e-150, 0.99 / LR[::97]
    PUSH = np.where(np.arange(COUNT) % 97 == 0, 0.0, GENERATOR.uniform(0.5, 2, COUNT))
    VALUES = GENERATOR.uniform(0, 2, (COUNT, 60))
    FALLING = theory.Cosine(0.5, 0.1, 50)
    # the learning rate, a function that gives the gradients of a part of the batch, and further arguments
    CALLS: ClassVar = {
        "constant": (LR, lambda push, values: push, {}),
        "constant, no rows": (LR, lambda push, values: push, {"record_every": None}),
        "constant, by fours": (LR, lambda push, values: push, {"exact": False, "record_every": 20}),
        "schedule": (FALLING, lambda push, values: push, {}),
        "recorded": (LR, lambda push, values: RecordedGradient(values), {}),
        "random": (LR, lambda push, values: BoundedGradient(0.5 * push, push), {}),
        "adversary below": (LR, lambda push, values: AdversarialGradient(0.5 * push, push), {}),
        "adversary above": (LR, lambda push, values: AdversarialGradient(0.5, 1 + push, towards="upper"), {}),
        "momentum": (LR, lambda push, values: BoundedGradient(0.5 * push, push), {"optimizer": theory.SGD(0.9)}),
        "momentum, schedule": (FALLING, lambda push, values: push, {"optimizer": theory.SGD(0.9, nesterov=True)}),
    }

    @pytest.fixture(params=CALLS)
    def call(self, request):
        lr, gradients, more = self.CALLS[request.param]
        wd = np.minimum(self.WD, 1.5) if callable(lr) else self.WD

        def run(part=slice(None), steps=60, start=None, **further):
            where = {"norm": self.NORM[part], "seed": 7} if start is None else {"start": start}
            part_lr, push = lr if callable(lr) else lr[part], gradients(self.PUSH[part], self.VALUES[part])
            return norm_map(part_lr, wd[part], push, steps=steps, **where, **more, **further)

        return run

    def test_any_number_of_threads_gives_the_same(self, call):
        one = call(threads=1)
        assert (one.status == "complete").any()
        for threads in (2, 3, 100, None):
            xr.testing.assert_identical(call(threads=threads), one)

    def test_any_split_of_the_batch_gives_the_same(self, call):
        whole, still = call(threads=2), call(steps=0)
        for part in (slice(0, 1), slice(250, 520), slice(798, 800)):
            # each part keeps the numbers of its random streams
            some = call(part, start=still.isel(batch=part))
            xr.testing.assert_identical(some, whole.isel(batch=part))

    def test_threads_are_used_for_large_work_only(self, monkeypatch):
        used = []

        class Pool(iteration.ThreadPoolExecutor):
            def __init__(self, threads):
                used.append(threads)
                super().__init__(threads)

        monkeypatch.setattr(iteration, "ThreadPoolExecutor", Pool)
        monkeypatch.setattr(iteration, "usable_processors", lambda: 3)
        norm_map(0.1, 0.1, 2.0, norm=np.ones(1024), steps=10, record_every=None)
        assert used == []
        norm_map(0.1, 0.1, 2.0, norm=np.ones(1024), steps=10_000, record_every=None)
        assert used == [3]
        norm_map(0.1, 0.1, 2.0, norm=np.ones(512), steps=10, threads=7)
        assert used == [3, 2]
        norm_map(0.1, 0.1, 2.0, norm=1.0, steps=10, threads=7)
        assert used == [3, 2]

    @pytest.mark.parametrize(
        ("value", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("2", TypeError)]
    )
    def test_bad_numbers_are_named(self, value, error):
        with pytest.raises(error, match=r"^threads must be.*>= 1, got"):
            norm_map(0.1, 0.1, 2.0, norm=1.0, steps=10, threads=value)


def reference(lr, wd, grad_norm, norm, steps):
    """The last norm, with fifty digits, for the same rounded 1-ηλ squared and ηg̃ as the loops use."""
    with mpmath.workdps(50):
        shrink = 1.0 - lr * wd
        a, b, r = mpmath.mpf(shrink * shrink), mpmath.mpf(lr * grad_norm) ** 2, mpmath.mpf(norm**2)
        for _ in range(steps):
            r = a * r + b / r
        return mpmath.sqrt(r)


class TestFourStepsAtATime:
    def starts(self, count, factor, least=1e-7):
        generator = np.random.default_rng(2)
        intrinsic_lr = np.exp(generator.uniform(np.log(least), np.log(0.5), count))
        intrinsic_lr[:2] = least, 0.5
        lr, grad_norm = np.exp(generator.uniform(-4, 1, count)), np.exp(generator.uniform(-3, 3, count))
        away = np.exp(generator.uniform(-np.log(factor), np.log(factor), count))
        return lr, intrinsic_lr / lr, grad_norm, away * theory.equilibrium_norm(lr, intrinsic_lr / lr, grad_norm)

    def test_after_a_million_steps_the_norm_is_that_of_single_steps(self):
        *settings, norm = self.starts(1000, factor=100)
        exact, fast = (
            norm_map(*settings, norm=norm, steps=10**6, record_every=250_000, exact=exact) for exact in (True, False)
        )
        np.testing.assert_allclose(fast.norm, exact.norm, rtol=1e-11)
        np.testing.assert_allclose(fast.final_norm, exact.final_norm, rtol=1e-11)

    def test_far_from_the_equilibrium_too(self):
        # by a factor of 1e30 in the norm, which leaves the range of the formula: single steps take over
        *settings, norm = self.starts(1000, factor=1e30)
        exact, fast = (
            norm_map(*settings, norm=norm, steps=50_001, record_every=10_000, exact=exact) for exact in (True, False)
        )
        np.testing.assert_allclose(fast.norm, exact.norm, rtol=1e-11)
        np.testing.assert_allclose(fast.final_norm, exact.final_norm, rtol=1e-11)
        np.testing.assert_array_equal(fast.status, exact.status)

    @pytest.mark.parametrize("intrinsic_lr", [1e-7, 1e-3, 0.5])
    @pytest.mark.parametrize("away", [1e-3, 1.5, 300.0])
    def test_the_error_is_a_few_roundings(self, intrinsic_lr, away):
        norm = away * theory.equilibrium_norm(0.3, intrinsic_lr / 0.3, 0.7)
        fast = norm_map(0.3, intrinsic_lr / 0.3, 0.7, norm=norm, steps=20_000, record_every=20_000, exact=False)
        exact = norm_map(0.3, intrinsic_lr / 0.3, 0.7, norm=norm, steps=20_000, record_every=20_000)
        expected = reference(0.3, intrinsic_lr / 0.3, 0.7, norm, 20_000)
        # a random walk of 20000 steps of about an ulp
        assert abs(fast.final_norm.item() / expected - 1) < 5e-14
        assert abs(exact.final_norm.item() / expected - 1) < 5e-12

    def test_closed_forms_at_equilibrium_and_without_decay(self):
        settled = norm_map(0.3, 0.1, 0.7, norm=5.0, steps=4000, record_every=4000, exact=False)
        assert settled.final_norm.item() == pytest.approx(theory.equilibrium_norm(0.3, 0.1, 0.7), rel=1e-14)
        growing, exact = (
            norm_map(0.1, 0.0, 10.0, norm=1.0, steps=10**6, record_every=10**6, exact=exact) for exact in (False, True)
        )
        assert growing.final_norm.item() == pytest.approx(exact.final_norm.item(), rel=1e-12)

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        learning_rates,
        st.floats(0, 1.99),
        st.one_of(st.floats(0, 50), st.floats(-300, 300).map(lambda x: 10.0**x)),
        st.floats(-150, 150).map(lambda x: 10.0**x),
        st.integers(0, 25),
    )
    # near the ends of the range of numbers
    @example(1.0, 0.5, 1.5e-308, 1e-150, 25)
    @example(1.0, 0.5, 1e305, 1e150, 25)
    def test_any_number_of_steps(self, lr, intrinsic_lr, grad_norm, norm, steps):
        exact, fast = (
            norm_map(lr, intrinsic_lr / lr, grad_norm, norm=norm, steps=steps, record_every=4, exact=exact)
            for exact in (True, False)
        )
        for name in ("step", "status", "status_step"):
            np.testing.assert_array_equal(fast[name], exact[name])
        # a step never moves two values of ln r apart, so roundings at most add up
        np.testing.assert_allclose(fast.norm, exact.norm, rtol=1e-13)
        np.testing.assert_allclose(fast.final_norm, exact.final_norm, rtol=1e-13)

    def test_ended_trajectories_equal_those_of_single_steps(self):
        settings = {
            "lr": [0.5, 1.0, 1.0, 0.5, 1.0, 1.0],
            "wd": [1.0, 1.0, 0.1, 0.1, 1.0, 0.0],
            "grad_norm": [0.0, 0.0, 1e200, 1.0, 2.0, 1e-200],
            "norm": [1.0, 1.0, 1e-150, 1e150, 4.0, 1e-100],
        }
        exact, fast = (norm_map(**settings, steps=1030, record_every=4, exact=exact, seed=0) for exact in (True, False))
        assert set(exact.status.values) == {"complete", "collapsed", "diverged"}
        for name in ("status", "status_step", "step"):
            np.testing.assert_array_equal(fast[name], exact[name])
        np.testing.assert_allclose(fast.norm, exact.norm, rtol=1e-12)
        for i in range(6):
            alone = norm_map(
                **{name: values[i] for name, values in settings.items()}, steps=1030, record_every=4, exact=False
            )
            assert alone.status.item() == exact.status.values[i]
            assert alone.final_norm.item() == fast.final_norm.values[i]

    @pytest.mark.parametrize("cut", [4, 100, 516, 1024])
    def test_a_cut_at_a_multiple_of_four_leaves_no_trace(self, cut):
        lr, wd, grad_norm, norm = self.starts(300, factor=1e12, least=1e-3)
        settings = {"record_every": 8, "exact": False}
        whole = norm_map(lr, wd, grad_norm, norm=norm, steps=1601, seed=0, **settings)
        first = norm_map(lr, wd, grad_norm, norm=norm, steps=cut, seed=0, **settings)
        more = norm_map(lr, wd, grad_norm, steps=1601 - cut, start=first, **settings)
        np.testing.assert_array_equal(more.final_sq_norm, whole.final_sq_norm)
        np.testing.assert_array_equal(more.norm, whole.norm.sel(step=more.step))

    @pytest.mark.parametrize("cut", [1, 6, 7, 511])
    def test_a_cut_elsewhere_leaves_roundings(self, cut):
        lr, wd, grad_norm, norm = self.starts(300, factor=1e12, least=1e-3)
        exact = norm_map(lr, wd, grad_norm, norm=norm, steps=1601, record_every=8)
        first = norm_map(lr, wd, grad_norm, norm=norm, steps=cut, record_every=8, exact=False)
        more = norm_map(lr, wd, grad_norm, steps=1601 - cut, start=first, record_every=8, exact=False)
        np.testing.assert_array_equal(more.step, exact.step[exact.step >= cut])
        np.testing.assert_allclose(more.norm, exact.norm.sel(step=more.step), rtol=1e-12)
        np.testing.assert_allclose(more.final_norm, exact.final_norm, rtol=1e-12)

    def test_recording_does_not_change_the_result(self):
        lr, wd, grad_norm, norm = self.starts(300, factor=1e12, least=1e-3)
        often, seldom = (
            norm_map(lr, wd, grad_norm, norm=norm, steps=1601, seed=0, record_every=n, exact=False) for n in (4, 400)
        )
        xr.testing.assert_identical(often.sel(step=seldom.step), seldom)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"exact": 0}, TypeError, "^exact must be True or False, got 0"),
            ({"record_every": 1}, ValueError, "^record_every must be a multiple of 4 with exact=False, got 1"),
            ({"record_every": None}, ValueError, "^record_every must be a multiple of 4 with exact=False, got None"),
            ({"lr": theory.Constant(0.1)}, ValueError, "^exact must be True with a schedule"),
            ({"grad_norm": BoundedGradient(1, 2)}, ValueError, "^exact must be True with .* a rule for grad_norm"),
            ({"optimizer": theory.SGD(0.9)}, ValueError, "^exact must be True with .* momentum"),
        ],
    )
    def test_unsupported_arguments_are_refused(self, arguments, error, message):
        settings = {"lr": 0.1, "wd": 0.1, "grad_norm": 2.0, "record_every": 4, "exact": False}
        with pytest.raises(error, match=message):
            norm_map(**{**settings, **arguments}, norm=1.0, steps=8)


def test_memory_does_not_grow_with_the_number_of_steps():
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process's memory is read from /proc, which only Linux has")
    # compile first, so that the peak does not include the compiler
    norm_map(0.1, 0.01, 2.0, norm=1.0, steps=10, record_every=None)
    code = (
        "import simulate\n"
        "run = simulate.norm_map(0.1, 0.01, 2.0, norm=1.0, steps=10**8, record_every=None)\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(run.status_step.item(), run.final_norm.item(), peak)"
    )
    # getrusage would include the peak of the parent process
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    steps, norm, kibibytes = done.stdout.split()
    assert int(steps) == 10**8
    assert float(norm) == pytest.approx(theory.equilibrium_norm(0.1, 0.01, 2.0), rel=1e-11)
    assert int(kibibytes) < 300 * 1024
