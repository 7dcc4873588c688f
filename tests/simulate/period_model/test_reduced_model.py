import numpy as np
import pytest
from scipy import stats

import simulate
from simulate.maps.noise import stream_key
from simulate.period_model import _kernel
from simulate.period_model.model import PeriodModel

REFERENCE = PeriodModel.reference().reduced_model


def initial_state(intrinsic_lr, walkers, seed=0):
    constants = np.array([REFERENCE.constants(intrinsic_lr)] * walkers)
    return REFERENCE.initial_state(np.full(walkers, REFERENCE.peak), constants, seed, np.arange(walkers)), constants


def step_by_step(state, constants, seed, walker, steps, least_rise):
    """One walker in plain Python from the equations: ln z and the loss before each step."""
    x, loss = state[_kernel.LOG_NORM], state[_kernel.LOSS]
    shrink, decay, growth, a, power, b0, b1, b2, spread, peak, peak_sd, duration = constants
    key, destabilizations, until, climb = stream_key(np.uint64(seed), walker), 0, None, 0.0

    def uniform(stream, number):
        return _kernel.uniform(np.uint64(stream), number)

    def normal(stream, number):
        return np.sqrt(-2 * np.log(uniform(stream, 2 * number))) * np.cos(2 * np.pi * uniform(stream, 2 * number + 1))

    def random_threshold():
        return -np.log(uniform(stream_key(np.uint64(key), 2 * destabilizations), 0))

    ready, hazard, threshold, rows = x - least_rise, 0.0, random_threshold(), []
    for t in range(steps):
        rows.append((x, loss))
        if until is not None:
            x += climb
            if t + 1 >= until:
                until, hazard, threshold, ready = None, 0.0, random_threshold(), x - least_rise
            continue
        effective_lr = np.exp(-2 * x)
        if x <= ready:
            hazard += np.exp(a + np.log(loss) + power * np.log(effective_lr))
        turn = effective_lr * loss
        x, loss = x + shrink + min(growth * turn**2 / 2, -2 * shrink), loss / (1 + decay * turn)
        if hazard > threshold:
            draws = stream_key(np.uint64(key), 2 * destabilizations + 1)
            rises = (b0 + b1 * x + b2 * np.log(loss) + spread * normal(draws, n) - x for n in range(1, 101))
            climb = next((rise for rise in rises if rise > least_rise), least_rise) / duration
            loss = np.exp(peak + peak_sd * normal(draws, 0))
            destabilizations, until = destabilizations + 1, t + 1 + duration
    return np.array(rows).T


def run(intrinsic_lr, walkers, steps, *, seed=0, record_every=1, first=0):
    state, constants = initial_state(intrinsic_lr, walkers + first, seed)
    state, constants = state[first:], constants[first:]
    recorded = np.empty((3, walkers, -(-steps // record_every)))
    _kernel.iterate_oscillation(
        state, constants, np.uint64(seed), np.arange(first, first + walkers), 0, steps, record_every, recorded,
        np.empty((0, _kernel.STATISTICS)), 0, 1, 0, 0.1, 0.1,
    )  # fmt: skip
    return state, recorded


@pytest.mark.parametrize(("intrinsic_lr", "steps"), [(0.01, 5000), (0.002, 20_000), (0.2, 1000)])
def test_the_kernel_follows_the_equations(intrinsic_lr, steps):
    # the largest ηλ uses exp of the library, the others its series
    state, constants = initial_state(intrinsic_lr, 1)
    expected = step_by_step(state[0], constants[0], 0, 0, steps, 0.1)
    _, recorded = run(intrinsic_lr, 1, steps)
    assert np.ptp(expected[0]) > 0.3
    np.testing.assert_allclose(recorded[0, 0], expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(recorded[1, 0], expected[1], rtol=1e-8)


def test_walkers_do_not_depend_on_the_batch():
    state, recorded = run(0.01, 150, 3000)
    for first, size in ((0, 1), (1, 70), (100, 50)):
        part_state, part_rows = run(0.01, size, 3000, first=first)
        np.testing.assert_array_equal(part_rows, recorded[:, first : first + size])
        np.testing.assert_array_equal(part_state, state[first : first + size])
    assert np.unique(recorded[0, :, -1]).size == 150


def test_statistics_are_those_of_the_period_finder():
    for intrinsic_lr, steps, look_every in ((0.01, 20_000, 1), (0.002, 60_000, 3)):
        walkers, discard = 70, round(2 / intrinsic_lr)
        _, recorded = run(intrinsic_lr, walkers, steps)
        state, constants = initial_state(intrinsic_lr, walkers)
        statistics = np.zeros((walkers, _kernel.STATISTICS))
        statistics[:, _kernel.HIGH], statistics[:, _kernel.LOW] = -np.inf, np.inf
        # in two parts, as `period` does
        for begin, size in ((0, steps // 3), (steps // 3, steps - steps // 3)):
            _kernel.iterate_oscillation(
                state, constants, np.uint64(0), np.arange(walkers), begin, size, 0, np.empty((3, 0, 0)), statistics,
                discard, look_every, 10**6, 0.1, 0.1,
            )  # fmt: skip
        for i in range(0, walkers, 7):
            periods = periods_of(recorded[0, i], intrinsic_lr, look_every, discard)
            assert statistics[i, _kernel.COUNT] == periods.count > 20
            assert statistics[i, _kernel.LENGTH] == periods.lengths.sum()
            assert statistics[i, _kernel.SQ_LENGTH] == (periods.lengths**2).sum()
            assert statistics[i, _kernel.TROUGHS] == pytest.approx(np.log(periods.trough_norms).sum(), rel=1e-12)
            assert statistics[i, _kernel.PEAKS] == pytest.approx(np.log(periods.peak_norms).sum(), rel=1e-12)


def periods_of(log_norm, intrinsic_lr, look_every, discard):
    import xarray as xr

    step = np.arange(0, log_norm.size, look_every)
    trajectory = xr.Dataset({"norm": ("step", np.exp(log_norm[step]))}, {"step": step}, {"lr": 1.0, "wd": intrinsic_lr})
    rows = trajectory.sel(step=slice(discard, None))
    return simulate.find_periods(rows, discard=0)


def test_statistics_end_after_the_requested_number_of_periods():
    walkers = 5
    state, constants = initial_state(0.01, walkers)
    statistics = np.zeros((walkers, _kernel.STATISTICS))
    statistics[:, _kernel.HIGH], statistics[:, _kernel.LOW] = -np.inf, np.inf
    _kernel.iterate_oscillation(
        state, constants, np.uint64(0), np.arange(walkers), 0, 100_000, 0, np.empty((3, 0, 0)), statistics,
        200, 1, 12, 0.1, 0.1,
    )  # fmt: skip
    assert (statistics[:, _kernel.COUNT] == 12).all()


def test_waiting_times_follow_the_hazard():
    # constant hazard: p = 0, and the loss does not decrease
    walkers, hazard, steps = 4000, 0.01, 400
    constants = np.array([[-1e-12, 0.0, 0.0, np.log(hazard), 0.0, 5.0, 0.0, 0.0, 0.1, 0.0, 0.0, 1.0]] * walkers)
    state = np.zeros((walkers, len(_kernel.STATES)))
    state[:, _kernel.LOSS] = 1.0
    for i in range(walkers):
        _kernel.begin_decay(state[i], constants[i], np.uint64(stream_key(np.uint64(3), i)), 0.0)
    recorded = np.empty((3, walkers, steps))
    _kernel.iterate_oscillation(
        state, constants, np.uint64(3), np.arange(walkers), 0, steps, 1, recorded,
        np.empty((0, _kernel.STATISTICS)), 0, 1, 0, 0.1, 0.0,
    )  # fmt: skip
    first = np.argmax(recorded[2] > 1, axis=1) - 1
    destabilized = (recorded[2] > 1).any(axis=1)
    # a destabilization begins with probability 1 - exp(-h): waiting times are geometric
    counts = np.bincount(first[destabilized], minlength=steps)[:200].reshape(20, 10).sum(axis=1)
    chance = np.exp(-hazard * np.arange(0, 200, 10)) * (1 - np.exp(-10 * hazard))
    later = walkers - counts.sum()
    assert stats.chisquare([*counts, later], walkers * np.append(chance, 1 - chance.sum())).pvalue > 1e-3


def test_normal_numbers_are_normal():
    key = np.uint64(stream_key(np.uint64(0), 0))
    values = np.array([_kernel.normal(key, n) for n in range(50_000)])
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(values.size)


def test_the_series_is_exp():
    y = np.linspace(-0.2, 0.2, 1001)
    np.testing.assert_allclose([_kernel._exp(value) for value in y], np.exp(y), rtol=1e-15)
    near = y[abs(y) <= 0.05]
    np.testing.assert_allclose([_kernel._exp_near(value) for value in near], np.exp(near), rtol=1e-15)
