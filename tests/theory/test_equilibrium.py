import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory

# ηλ from 1e-8 to 1.9, uniform in the logarithm, away from the degenerate ηλ = 1
intrinsic = st.floats(np.log(1e-8), np.log(1.9)).map(lambda x: float(np.exp(x)))
rates = st.floats(1e-4, 1e4)
gradients = st.floats(1e-4, 1e4)


def step(norm, lr, wd, g):
    """One SGD step of the norm, from the vectors: decay along the weights, gradient g/norm across."""
    return np.hypot((1 - lr * wd) * norm, lr * g / norm)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(intrinsic, rates, gradients)
def test_equilibrium_is_a_fixed_point(k, lr, g):
    rest = theory.equilibrium_norm(lr, k / lr, g)
    # the step itself rounds to 2e-16
    assert step(rest, lr, k / lr, g) == pytest.approx(rest, rel=1e-14)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(intrinsic, rates, gradients, st.floats(np.log(1e-3), np.log(1e3)))
def test_equilibrium_attracts_from_any_start(k, lr, g, offset):
    assume(abs(k - 1) > 0.05)
    rest = theory.equilibrium_norm(lr, k / lr, g)
    norm = rest * np.exp(offset)
    if k < 0.02:
        # too slow to wait for: every step leads closer, and by at least the share of the linearization from below …
        after = step(norm, lr, k / lr, g)
        distance, distance_after = norm**4 - rest**4, after**4 - rest**4
        if abs(offset) < 1e-6:
            return
        assert abs(distance_after) < abs(distance) or norm < rest
        if norm > rest:
            # … from above u⁺-u* <= a²(u-u*); rounding of u counts relative to the distance
            assert distance_after <= (1 - k) ** 4 * distance + 1e-14 * norm**4
        elif after > rest:
            # a far too small norm jumps over the equilibrium once, and falls from then on
            assert after <= step(after, lr, k / lr, g) * (1 + 3 * k)
        return
    # the slowest multiplier on the range is 1-4·0.02 (and as slow near ηλ = 1): e^-40 after 40 relaxation times, and
    # a start a thousand times too large needs ln(1000)/0.02 steps to fall
    for _ in range(int(40 * max(theory.relaxation_time(lr, k / lr), 1)) + 800):
        norm = step(norm, lr, k / lr, g)
    assert norm == pytest.approx(rest, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-4, 1.9), rates, gradients)
def test_relaxation_time_is_that_of_a_small_deviation(k, lr, g):
    multiplier = 1 - 4 * k + 2 * k * k
    assume(abs(multiplier) > 0.05)
    assume(abs(k - 1) > 0.02)
    rest = theory.equilibrium_norm(lr, k / lr, g)
    deviation = 1e-5
    after = step(rest * (1 + deviation), lr, k / lr, g) / rest - 1
    # second order of the deviation: relative 1e-5 times a factor of order 1/multiplier
    assert after / deviation == pytest.approx(multiplier, abs=3e-4)
    time = theory.relaxation_time(lr, k / lr)
    assert np.exp(-1 / time) == pytest.approx(abs(multiplier), rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-6, 1.99), rates, gradients, st.floats(1e-3, 1e3))
def test_symmetries(k, lr, g, c):
    rest = theory.equilibrium_norm(lr, k / lr, g)
    # only a = (1-ηλ)² counts; 2-ηλ rounds
    assert theory.equilibrium_norm(lr, (2 - k) / lr, g) == pytest.approx(rest, rel=1e-9)
    # ρ ∝ √η at fixed ηλ, ρ ∝ √g̃
    assert theory.equilibrium_norm(c * lr, k / lr / c, g) == pytest.approx(c**0.5 * rest, rel=1e-9)
    assert theory.equilibrium_norm(lr, k / lr, c * g) == pytest.approx(c**0.5 * rest, rel=1e-12)
    assert theory.equilibrium_effective_lr(lr, k / lr, g) == pytest.approx(lr / rest**2, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-9, 0.999), rates, gradients)
def test_equilibrium_rotation_is_the_rotation_at_equilibrium(k, lr, g):
    rest = theory.equilibrium_norm(lr, k / lr, g)
    # arctan and arcsin forms agree to rounding; 1-ηλ rounds near 1
    assert theory.equilibrium_rotation(lr, k / lr) == pytest.approx(theory.rotation(rest, lr, k / lr, g), rel=1e-9)


def test_limits():
    assert theory.equilibrium_norm(0.1, 0.0) == np.inf
    assert theory.equilibrium_effective_lr(0.1, 0.0) == 0
    assert theory.equilibrium_rotation(0.1, 0.0) == 0
    assert theory.relaxation_time(0.1, 0.0) == np.inf
    assert theory.relaxation_time(1.0, 1.0) == np.inf
    assert theory.equilibrium_rotation(1e-9, 1.0) == pytest.approx(np.sqrt(2e-9), rel=1e-9)
    assert theory.relaxation_time(1e-9, 1.0) == pytest.approx(1 / 4e-9, rel=1e-8)


def test_numbers_give_floats_and_arrays_broadcast():
    assert type(theory.equilibrium_norm(0.1, 0.01)) is float
    grid = theory.equilibrium_norm(np.array([[0.1], [0.5]]), [0.01, 0.02, 0.03], 2.0)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == theory.equilibrium_norm(0.5, 0.03, 2.0)


def test_moments_of_any_stationary_trace():
    # E[ρ²](1-a) = η²E‖∇f‖² over a window, with the change of ρ² at its ends: exact whatever g̃ does
    generator = np.random.default_rng(0)
    lr, wd, n = 0.5, 0.01, 5000
    g = np.exp(generator.normal(size=n))
    norm = np.empty(n + 1)
    norm[0] = 2.0
    for t in range(n):
        norm[t + 1] = step(norm[t], lr, wd, g[t])
    a, squares = (1 - lr * wd) ** 2, norm**2
    left = squares[:-1].mean() * (1 - a) + (squares[-1] - squares[0]) / n
    assert left == pytest.approx(((lr * g / norm[:-1]) ** 2).mean(), rel=1e-10)
