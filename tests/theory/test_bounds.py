import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory

REGIMES = [1e-3, 0.05, 0.29, 0.35, 0.6, 0.9, 1.1, 1.5, 1.8]
RATIOS = [1e-3, 0.1, 0.5, 0.8, 0.95, 1.0]
LR, HIGH = 0.5, 3.0


def step(norm, k, g):
    return np.hypot((1 - k) * norm, LR * g / norm)


def adversaries(low, high, orbits, steps, bounds, k):
    """Gradient norms of many adversaries at every step, as functions of the state: shape (orbits,)."""
    generator = np.random.default_rng(0)
    kinds = np.arange(orbits) % 6
    block = generator.integers(1, 60, size=orbits)

    def choose(t, norm):
        down, up = step(norm, k, low), step(norm, k, high)
        options = [
            generator.uniform(low, high, orbits),
            np.where(generator.random(orbits) < 0.5, low, high),
            np.where(t % 2 == 0, low, high),
            np.where((t // block) % 2 == 0, low, high),
            # greedy towards either end of the interval, one step ahead
            np.where(np.abs(down - bounds.lower) < np.abs(up - bounds.lower), low, high),
            np.where(np.abs(down - bounds.upper) < np.abs(up - bounds.upper), low, high),
        ]
        return np.choose(kinds, [np.broadcast_to(o, orbits) for o in options])

    return choose


@pytest.mark.parametrize("k", REGIMES)
def test_no_adversary_leaves_the_interval_and_all_come_in(k):
    # 9 regimes × 6 ratios × 60 orbits × 600 steps: 2 million steps
    orbits, steps = 60, 600
    for ratio in RATIOS:
        low, high = HIGH * ratio, HIGH
        bounds = theory.norm_bounds(LR, k / LR, low, high)
        choose = adversaries(low, high, orbits, steps, bounds, k)
        norm = np.geomspace(bounds.lower, bounds.upper, orbits)
        for t in range(steps):
            norm = step(norm, k, choose(t, norm))
            # a step rounds to 2e-16, and the ends are fixed only as far as they are rounded
            assert (norm >= bounds.lower * (1 - 1e-12)).all(), (k, ratio, t)
            assert (norm <= bounds.upper * (1 + 1e-12)).all(), (k, ratio, t)


@pytest.mark.parametrize("k", REGIMES)
@pytest.mark.parametrize("ratio", [0.1, 0.8, 1.0])
def test_orbits_from_outside_are_attracted(k, ratio):
    low, high = HIGH * ratio, HIGH
    bounds = theory.norm_bounds(LR, k / LR, low, high)
    generator = np.random.default_rng(1)
    norm = np.outer([1e-3, 0.1, 10.0, 1e3], [bounds.lower, bounds.upper]).ravel()
    # from 1e6 times too large: ln(1e6)/ηλ steps to fall, and then e^-40
    for _ in range(int(30 / min(k, 2 - k) + 40 * theory.relaxation_time(LR, k / LR)) + 10):
        norm = step(norm, k, generator.uniform(low, high, norm.size))
    assert (norm >= bounds.lower * (1 - 1e-9)).all()
    assert (norm <= bounds.upper * (1 + 1e-9)).all()


@pytest.mark.parametrize("k", REGIMES)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.95])
def test_both_ends_are_reached_from_inside(k, ratio):
    low, high = HIGH * ratio, HIGH
    bounds = theory.norm_bounds(LR, k / LR, low, high)
    # all ends are made by: ℓ or L for ever, both in turn for ever, one step of ℓ from where the map is least, and one
    # step of L after any of these
    turning = np.clip((LR * low / abs(1 - k)) ** 0.5, bounds.lower, bounds.upper)
    norm = np.repeat(turning, 3)
    reached = [step(turning, k, low)]
    for t in range(int(80 * theory.relaxation_time(LR, k / LR)) + 200):
        norm = step(norm, k, np.array([low, high, low if t % 2 else high]))
    reached += [*norm, *step(norm, k, low), *step(norm, k, high), step(reached[0], k, high)]
    assert min(reached) == pytest.approx(bounds.lower, rel=1e-9)
    assert max(reached) == pytest.approx(bounds.upper, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from(REGIMES), st.floats(1e-3, 1), st.floats(0.01, 100))
def test_the_envelope_is_the_reachable_interval(k, ratio, start):
    low, high = HIGH * ratio, HIGH
    steps = 7
    envelope = theory.norm_envelope(steps, start, LR, k / LR, low, high)
    reached = np.full(1, start)
    # where the map under ℓ is least: from each norm one gradient leads there, if it is allowed
    turning = LR * low / abs(1 - k)
    for t in range(steps + 1):
        lower, upper = envelope.lower[t], envelope.upper[t]
        assert (reached >= lower * (1 - 1e-12)).all()
        assert (reached <= upper * (1 + 1e-12)).all()
        assert reached.min() == pytest.approx(lower, rel=1e-9)
        assert reached.max() == pytest.approx(upper, rel=1e-9)
        there = aim(reached, turning, k)
        gradients = [*np.linspace(low, high, 9), np.clip(there, low, high)]
        reached = np.unique(np.concatenate([step(reached, k, g) for g in gradients]))
        # the ends stay, and those that hit the turning point
        middle = reached[np.linspace(0, reached.size - 1, 400).astype(int)]
        hits = reached[np.argsort(abs(reached**2 - turning))[:3]]
        reached = np.concatenate([middle, hits])


def aim(norm, sq_norm, k):
    """The gradient norm that leads from `norm` to the squared norm, 0 where none does."""
    return np.sqrt(np.maximum(sq_norm - (1 - k) ** 2 * norm**2, 0)) * norm / LR


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-4, 0.28), st.floats(0.01, 1), st.floats(0.05, 50))
def test_closed_forms_enclose_the_envelope(k, ratio, start):
    low, high = HIGH * ratio, HIGH
    a, t = (1 - k) ** 2, np.arange(101)
    envelope = theory.norm_envelope(100, start, LR, k / LR, low, high)
    u, u_low, u_high = start**4, *((theory.equilibrium_norm(LR, k / LR, g) ** 4) for g in (low, high))
    # u = ρ⁴ rounds to 1e-15 of its largest value in a hundred steps
    slack = 1e-12 * max(u, u_high)
    # from above, and where no step of L from the lower end leads higher than r_L
    if u > u_high and ratio >= (1 - a) / a:
        assert (envelope.upper**4 - u_high <= a ** (2.0 * t) * (u - u_high) + slack).all()
    if u < u_low and start**2 > (1 - a) / a * u_low**0.5:
        assert (u_low - envelope.lower**4 <= a ** (2.0 * t) * (u_low - u) + slack).all()
    b = (LR * low) ** 2
    below = a ** (2.0 * t) * u + 2 * a * b * (1 - a ** (2.0 * t)) / (1 - a * a)
    assert (envelope.lower**4 >= below - slack).all()


def test_wanted_steps_and_shapes():
    whole = theory.norm_envelope(10, [1.0, 2.0], 0.1, 0.01, 1.0, [[2.0], [3.0]])
    some = theory.norm_envelope([7, 0, 7], [1.0, 2.0], 0.1, 0.01, 1.0, [[2.0], [3.0]])
    assert whole.lower.shape == (2, 2, 11)
    np.testing.assert_array_equal(some.upper, whole.upper[..., [7, 0, 7]])
    np.testing.assert_array_equal(some.lower, whole.lower[..., [7, 0, 7]])
    far = theory.norm_envelope([10**9], 1.0, 0.1, 0.01, 1.0, 2.0)
    bounds = theory.norm_bounds(0.1, 0.01, 1.0, 2.0)
    assert far.upper[0] == pytest.approx(bounds.upper, rel=1e-9)
    assert far.lower[0] == pytest.approx(bounds.lower, rel=1e-9)


def test_degenerate_and_limiting_settings():
    assert theory.norm_bounds(1.0, 1.0, 1.0, 2.0) == (0, np.inf)
    assert theory.norm_bounds(0.1, 0.0, 1.0, 2.0) == (np.inf, np.inf)
    assert theory.norm_bounds(0.1, 0.01, 0.0, 2.0).lower == 0
    one = theory.norm_bounds(0.1, 0.01, 2.0, 2.0)
    assert one.lower == pytest.approx(theory.equilibrium_norm(0.1, 0.01, 2.0), rel=1e-12)
    assert one.upper == pytest.approx(one.lower, rel=1e-12)
