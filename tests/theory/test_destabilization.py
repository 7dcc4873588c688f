import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory

rates, norms, gradients = (st.floats(1e-3, 1e3) for _ in range(3))
intrinsic, deltas = st.floats(0, 0.99), st.floats(1e-4, 0.99)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(norms, rates, intrinsic, gradients)
def test_rotation_is_the_angle_between_two_vectors(norm, lr, k, g):
    before = np.array([norm, 0.0])
    after = before - lr * (np.array([0.0, g / norm]) + k / lr * before)
    angle = math.atan2(abs(before[0] * after[1] - before[1] * after[0]), before @ after)
    # 1-ηλ rounds: relative 1e-14 at ηλ = 0.99
    assert theory.rotation(norm, lr, k / lr, g) == pytest.approx(angle, rel=1e-12)
    # the cosine loses its digits near a right angle
    if angle < 1.5:
        assert np.linalg.norm(after) == pytest.approx((1 - k) * norm / math.cos(angle), rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(rates, intrinsic, gradients, deltas)
def test_a_step_is_a_jump_exactly_below_the_threshold(lr, k, g, delta):
    threshold = theory.jump_norm(lr, k / lr, g, delta)
    turn = [1 - math.cos(theory.rotation(threshold * c, lr, k / lr, g)) for c in (1 - 1e-6, 1, 1 + 1e-6)]
    assert turn[0] > delta > turn[2]
    # 1-cos loses 1e-16 absolutely
    assert turn[1] == pytest.approx(delta, rel=1e-9, abs=1e-14)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(rates, st.floats(1e-4, 0.9), gradients)
def test_at_equilibrium_every_step_is_just_no_jump_of_the_size_of_the_decay(lr, k, g):
    rest = theory.equilibrium_norm(lr, k / lr, g)
    assert theory.jump_norm(lr, k / lr, g, k) == pytest.approx(rest, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.floats(1e-3, 0.2), st.floats(0.01, 0.9), st.integers(0, 100))
def test_jumps_cannot_come_more_often_than_decay_allows(k, delta, seed):
    # whatever the gradients, N steps hold at most [-N ln(1-ηλ) + ln(ρ_N/ρ_0)]/(-ln(1-δ)) jumps
    generator, lr, norm, jumps, steps = np.random.default_rng(seed), 1.0, 1.0, 0, 500
    for _ in range(steps):
        # turns of any size, with a norm that neither vanishes nor overflows
        greedy = norm**2 * generator.choice([0.0, 0.1, 1.0] if norm > 1 else [1.0, 3.0, 10.0]) * (1 - k)
        jumps += 1 - math.cos(theory.rotation(norm, lr, k / lr, greedy)) > delta
        norm = math.hypot((1 - k) * norm, lr * greedy / norm)
    assert jumps <= (-steps * math.log1p(-k) + math.log(norm)) / -math.log1p(-delta) + 1e-9
