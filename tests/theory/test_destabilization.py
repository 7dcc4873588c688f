import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from theory.destabilization import kappa

lrs, norms, gradients = (st.floats(1e-3, 1e3) for _ in range(3))
intrinsic = st.one_of(st.floats(np.log(1e-8), np.log(0.99)).map(lambda x: float(np.exp(x))), st.just(0.0))
deltas = st.floats(np.log(1e-8), np.log(0.99)).map(lambda x: float(np.exp(x)))


def turn(angle):
    """1 - cos θ without cancellation."""
    return 2 * np.sin(angle / 2) ** 2


@settings(deadline=None, derandomize=True, max_examples=200)
@given(norms, lrs, intrinsic, gradients)
def test_rotation_is_the_angle_between_two_vectors(norm, lr, intrinsic_lr, g):
    before = np.array([norm, 0.0])
    after = before - lr * (np.array([0.0, g / norm]) + intrinsic_lr / lr * before)
    angle = math.atan2(abs(before[0] * after[1] - before[1] * after[0]), before @ after)
    # 1-ηλ rounds: relative 1e-14 at ηλ = 0.99
    assert theory.rotation(norm, lr, intrinsic_lr / lr, g) == pytest.approx(angle, rel=1e-12)
    # the cosine loses its digits near a right angle
    if angle < 1.5:
        assert np.linalg.norm(after) == pytest.approx((1 - intrinsic_lr) * norm / math.cos(angle), rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(lrs, st.floats(0, 0.99), st.integers(0, 1000))
def test_rotation_of_a_real_scale_invariant_loss(lr, intrinsic_lr, seed):
    # f = <x, c>/|x| in seven dimensions, with its gradient by hand
    generator = np.random.default_rng(seed)
    x, c = generator.normal(size=(2, 7))
    norm, unit = np.linalg.norm(x), x / np.linalg.norm(x)
    gradient = (c - (c @ unit) * unit) / norm
    after = x - lr * (gradient + intrinsic_lr / lr * x)
    theta = theory.rotation(norm, lr, intrinsic_lr / lr, norm * np.linalg.norm(gradient))
    # the rejection rounds to 1e-16 of the weights, and angles are above 1e-6 here
    expected = math.atan2(np.linalg.norm(after - (after @ unit) * unit), after @ unit)
    assert theta == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(norms, lrs, intrinsic, gradients, deltas)
def test_a_step_is_a_angular_jump_exactly_below_the_threshold(norm, lr, intrinsic_lr, g, delta):
    threshold = theory.angular_jump_norm(lr, intrinsic_lr / lr, g, delta)
    at_threshold, here = (theory.rotation(n, lr, intrinsic_lr / lr, g) for n in (threshold, norm))
    # 1-δ and 1-ηλ round: relative 1e-14 at 0.99
    assert turn(at_threshold) == pytest.approx(delta, rel=1e-12)
    below, above = (turn(theory.rotation(threshold * c, lr, intrinsic_lr / lr, g)) for c in (1 - 1e-9, 1 + 1e-9))
    assert below > delta > above
    # anywhere else, in all three equivalent forms
    if abs(norm / threshold - 1) > 1e-9:
        is_jump = bool(turn(here) > delta)
        assert is_jump == (norm < threshold)
        assert is_jump == (lr / norm**2 * g > (1 - intrinsic_lr) * kappa(delta))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(lrs, st.floats(1e-8, 0.9), gradients, deltas)
def test_angular_jump_norm_in_units_of_the_equilibrium(lr, intrinsic_lr, g, delta):
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    # at equilibrium every step is at the threshold δ = ηλ …
    assert theory.angular_jump_norm(lr, intrinsic_lr / lr, g, intrinsic_lr) == pytest.approx(equilibrium, rel=1e-12)
    # … and a larger angular jump needs a smaller norm: ρ_δ² = ρ*² κ(ηλ)/κ(δ)
    ratio = (theory.angular_jump_norm(lr, intrinsic_lr / lr, g, delta) / equilibrium) ** 2
    assert ratio == pytest.approx(kappa(intrinsic_lr) / kappa(delta), rel=1e-12)
    if delta > intrinsic_lr * (1 + 1e-9):
        assert ratio < 1


@settings(deadline=None, derandomize=True, max_examples=100)
@given(lrs, st.floats(1e-4, 0.29), gradients, st.floats(1e-3, 0.9), st.floats(1.0001, 100))
def test_gradients_must_vary_enough_to_make_a_angular_jump_possible(lr, intrinsic_lr, high, delta, factor):
    # angular jumps are possible exactly if L/ℓ > κ(δ)/κ(ηλ)
    border, threshold = kappa(delta) / kappa(intrinsic_lr), theory.angular_jump_norm(lr, intrinsic_lr / lr, high, delta)
    lowest = [
        theory.norm_bounds(lr, intrinsic_lr / lr, min(high / r, high), high).lower
        for r in (border / factor, border * factor)
    ]
    if border > 1:
        assert lowest[0] >= threshold
        assert (lowest[1] < threshold) == (border * factor > 1)


def test_kappa_is_the_tangent_and_keeps_its_digits():
    delta = np.array([1e-12, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9])
    # 1-cos θ = δ, tan θ = κ; at 1-1e-9 the rounding of 1-δ is relative 1e-7
    np.testing.assert_allclose(turn(np.arctan(kappa(delta))), delta, rtol=1e-12)
    assert kappa(1e-12) == pytest.approx(math.sqrt(2e-12), rel=1e-11)


def run(intrinsic_lr, turns, orbits, steps, seed=0):
    """Norms and angles of many orbits, shape (steps+1, orbits) and (steps, orbits), for η̃g̃/(1-ηλ) = turns(t, norm)."""
    norm, norms, angles = np.ones(orbits), [np.ones(orbits)], []
    for t in range(steps):
        g = norm**2 * (1 - intrinsic_lr) * turns(t, norm)
        angles.append(theory.rotation(norm, 1.0, intrinsic_lr, g))
        norm = np.hypot((1 - intrinsic_lr) * norm, g / norm)
        norms.append(norm)
    return np.array(norms), np.array(angles)


@pytest.mark.parametrize("intrinsic_lr", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5, 0.9])
def test_angular_jumps_cannot_come_more_often_than_decay_allows(intrinsic_lr, delta):
    # for any gradients, N steps contain at most [-N ln(1-ηλ) + ln(ρ_N/ρ_0)]/(-ln(1-δ)) angular jumps
    generator, orbits, steps = np.random.default_rng(0), 40, 1000
    sizes = np.geomspace(0.01, 100, orbits)

    def random_turns(t, norm):
        # turns of any size at any norm that neither vanishes nor overflows
        return np.where(norm > 1e30, 0, sizes * generator.exponential(size=orbits) * generator.integers(0, 2, orbits))

    def greedy_turns(t, norm):
        # the smallest angular jump, whenever the norm is back at its start
        return np.where(norm <= 1, kappa(delta) * (1 + 1e-9), 0)

    for turns in (random_turns, greedy_turns):
        norms, angles = run(intrinsic_lr, turns, orbits, steps)
        jumps = (turn(angles) > delta).cumsum(axis=0)
        decay = -np.arange(1, steps + 1)[:, None] * math.log1p(-intrinsic_lr)
        allowed = (decay + np.log(norms[1:] / norms[0])) / -math.log1p(-delta)
        # a thousand logarithms round by 1e-16 times their size, below 100 each
        assert (jumps <= allowed + 1e-9).all()
    # sharp: the greedy run has at most one angular jump less while the norm rises, one less while it decays
    assert (jumps[-1] >= allowed[-1] - 2).all()


def test_balance_identity():
    # -N ln(1-ηλ) = Σ(-ln cos θ_t) - ln(ρ_N/ρ_0) for any gradients
    intrinsic_lr, steps = 0.03, 500
    generator = np.random.default_rng(1)
    norms, angles = run(intrinsic_lr, lambda t, norm: generator.exponential(size=20), 20, steps)
    left = -steps * math.log1p(-intrinsic_lr)
    right = -np.log(np.cos(angles)).sum(axis=0) - np.log(norms[-1] / norms[0])
    # the sums are below 500 and round by 500 · 1e-16 of that; cosines round more where the turn is large
    np.testing.assert_allclose(right, left, rtol=1e-10)


@pytest.mark.parametrize(("function", "arguments"), [(theory.rotation, 4), (theory.angular_jump_norm, 4)])
def test_numbers_give_floats_and_arrays_broadcast(function, arguments):
    assert type(function(0.5, 0.1, 0.2, 0.3)) is float
    values = (np.array([[0.5], [0.7]]), 0.1, [0.2, 0.3, 0.4], 0.3)
    grid = function(*values)
    assert grid.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert grid[i, j] == function(values[0][i, 0], 0.1, values[2][j], 0.3)


def test_limits():
    assert theory.rotation(1.0, 0.1, 0.01, 0.0) == 0
    # a large step turns the weights by almost a right angle
    assert theory.rotation(1e-8, 0.1, 0.01, 1.0) == pytest.approx(math.pi / 2, rel=1e-14)
    assert theory.angular_jump_norm(0.1, 0.0, 2.0, 0.1) == pytest.approx(math.sqrt(0.2 / kappa(0.1)), rel=1e-14)
