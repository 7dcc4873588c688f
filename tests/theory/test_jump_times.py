import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from theory import destabilization
from theory.destabilization import kappa
from theory.flow import flow_time

BORDER = 1 - np.sqrt(0.5)  # ηλ at which (1-ηλ)² is 1/2


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))


class Settings:
    """Random settings that decay for up to a few thousand steps; δ on both sides of ηλ, some angular jumps soon."""

    def __init__(self, count, seed=0, slowest=5e-3, delta_below=0.5):
        generator = np.random.default_rng(seed)

        def log(low, high):
            return np.exp(generator.uniform(np.log(low), np.log(high), count))

        self.lr, self.intrinsic_lr, self.high = log(1e-2, 10), log(slowest, 0.2928), log(0.1, 10)
        self.low = self.high / np.where(generator.random(count) < 0.1, 1, log(1, 300))
        below = generator.random(count) < delta_below
        self.delta = np.where(
            below,
            self.intrinsic_lr * generator.uniform(0.02, 0.9, count),
            np.minimum(self.intrinsic_lr * log(1, 1e3), 0.95),
        )
        self.wd, self.count, self.generator = self.intrinsic_lr / self.lr, count, generator
        self.norm = theory.angular_jump_norm(self.lr, self.wd, self.high, self.delta) * log(0.3, 30)

    def arguments(self):
        return self.lr, self.wd, self.low, self.high, self.delta

    def times(self):
        return theory.steps_to_angular_jump(self.norm, *self.arguments())

    def turns(self, norm, g):
        """Whether the step is an angular jump, from its tangent."""
        return self.lr * g / norm**2 / (1 - self.intrinsic_lr) > kappa(self.delta)

    def largest_without_jump(self, norm):
        """Return the largest g̃ without an angular jump, just below the threshold; 1e-14 exceeds the rounding."""
        return norm**2 * (1 - self.intrinsic_lr) * kappa(self.delta) / self.lr * (1 - 1e-14)

    def first_jump(self, strategy, steps):
        """Return the step of the first angular jump of a sequence g̃ = strategy(t, norm); inf if later than `steps`."""
        norm, first = self.norm.copy(), np.full(self.count, np.inf)
        for t in range(steps):
            g = np.clip(strategy(t, norm), self.low, self.high)
            jump = self.turns(norm, g) & np.isinf(first)
            first[jump] = t
            if np.isfinite(first).all():
                break
            norm = np.hypot((1 - self.intrinsic_lr) * norm, self.lr * (g / norm))
        return first


def test_the_earliest_angular_jump_is_attained():
    many = Settings(12_000)
    earliest = many.times().earliest
    finite = np.isfinite(earliest)
    assert 0.3 < finite.mean() < 0.95
    assert 500 < earliest[finite].max() < 5000

    # ℓ until L gives an angular jump; the times agree exactly
    def decay_then_jump(t, norm):
        return np.where(many.turns(norm, many.high), many.high, many.low)

    np.testing.assert_array_equal(many.first_jump(decay_then_jump, 5000), earliest)


def test_the_latest_angular_jump_is_attained():
    many = Settings(12_000, seed=1, slowest=0.01)
    latest = many.times().latest
    assert 500 < latest[np.isfinite(latest)].max() < 20_000

    # the largest g̃ without an angular jump, while there is one
    np.testing.assert_array_equal(many.first_jump(lambda t, norm: many.largest_without_jump(norm), 20_000), latest)


def test_a_angular_jump_never_comes_exactly_if_it_can_be_avoided_for_ever():
    many = Settings(12_000, seed=2)
    avoidable = (many.delta >= many.intrinsic_lr) & (
        many.norm >= theory.angular_jump_norm(many.lr, many.wd, many.low, many.delta)
    )
    np.testing.assert_array_equal(np.isinf(many.times().latest), avoidable)
    # … and the norm at which the avoider stays is one at which g̃ = ℓ gives no angular jump
    final = many.first_jump(lambda t, norm: many.largest_without_jump(norm), 5000)
    assert np.isinf(final[avoidable]).all()


def test_no_sequence_of_gradients_angular_jumps_earlier_or_later():
    many = Settings(3000, seed=3, slowest=0.02)
    times, random = many.times(), many.generator
    lengths = random.integers(1, 60, many.count)
    tilt = random.uniform(0, 1, many.count)
    strategies = {
        "low": lambda t, norm: many.low,
        "high": lambda t, norm: many.high,
        "random": lambda t, norm: many.low + (many.high - many.low) * random.random(many.count),
        "low or high": lambda t, norm: np.where(random.random(many.count) < tilt, many.low, many.high),
        "blocks": lambda t, norm: np.where((t // lengths) % 2 == 0, many.low, many.high),
        "near the threshold": lambda t, norm: many.largest_without_jump(norm) * random.uniform(0.9, 1.0, many.count),
        "rise, then sink": lambda t, norm: np.where(t < lengths, many.high, many.largest_without_jump(norm)),
        "avoid, at times sink": lambda t, norm: np.where(
            random.random(many.count) < tilt, many.largest_without_jump(norm), many.low
        ),
    }
    for name, strategy in strategies.items():
        first = many.first_jump(strategy, 1000)
        assert (first >= times.earliest).all(), name
        # a run of 1000 steps cannot test later times
        assert (first[times.latest < 1000] <= times.latest[times.latest < 1000]).all(), name


def test_times_agree_with_all_sequences_of_three_gradients():
    # all 3^9 sequences of ℓ, middle and L, with large ηλ, so that nine steps suffice
    horizon, few = 9, Settings(150, seed=4, slowest=0.1)
    choices = np.array(list(itertools.product((0, 1, 2), repeat=horizon)))
    times, jumps_within_horizon = few.times(), 0
    for i in range(few.count):
        lr, intrinsic_lr, low, high, delta = few.lr[i], few.intrinsic_lr[i], few.low[i], few.high[i], few.delta[i]
        norm, first = np.full(len(choices), few.norm[i]), np.full(len(choices), np.inf)
        for t in range(horizon):
            g = np.array([low, np.sqrt(low * high), high])[choices[:, t]]
            jump = (lr * g / norm**2 / (1 - intrinsic_lr) > kappa(delta)) & np.isinf(first)
            first[jump] = t
            norm = np.hypot((1 - intrinsic_lr) * norm, lr * g / norm)
        # the earliest sequence is among them: it needs only ℓ and L
        assert first.min() == (times.earliest[i] if times.earliest[i] < horizon else np.inf)
        assert times.latest[i] >= horizon or first.max() <= times.latest[i]
        jumps_within_horizon += 0 < times.earliest[i] < horizon
    assert jumps_within_horizon > 20


def test_regimes_agree_with_times():
    many = Settings(20_000, seed=5)
    regime, times = theory.angular_jump_regime(*many.arguments()), many.times()
    no_jump_at_start = many.norm >= theory.angular_jump_norm(many.lr, many.wd, many.high, many.delta)
    assert {word: (regime == word).sum() > 500 for word in ("impossible", "possible", "certain")} == dict.fromkeys(
        ("impossible", "possible", "certain"), True
    )
    np.testing.assert_array_equal(np.isinf(times.earliest), no_jump_at_start & (regime == "impossible"))
    np.testing.assert_array_equal(np.isinf(times.latest)[no_jump_at_start], (regime != "certain")[no_jump_at_start])
    assert (times.earliest <= times.latest).all()
    assert (times.earliest[~no_jump_at_start] == 0).all()
    assert (times.earliest[no_jump_at_start] > 0).all()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(log_uniform(1e-3, 1e3), log_uniform(1e-8, 0.29), log_uniform(1e-3, 1e3), log_uniform(1e-3, 0.9))
def test_borders_of_the_regimes(lr, intrinsic_lr, high, delta):
    border = kappa(delta) / kappa(intrinsic_lr)
    # 1e-9 is far above the rounding of κ, also where 1-δ and ηλ are rounded
    if border > 1 + 1e-6:
        low = high / border
        assert theory.angular_jump_regime(lr, intrinsic_lr / lr, low * (1 + 1e-9), high, delta) == "impossible"
        assert theory.angular_jump_regime(lr, intrinsic_lr / lr, low * (1 - 1e-9), high, delta) == "possible"
        assert theory.angular_jump_regime(lr, intrinsic_lr / lr, 0.0, high, delta) == "possible"
    assert theory.angular_jump_regime(1.0, intrinsic_lr, high, high, intrinsic_lr) == "impossible"
    assert theory.angular_jump_regime(1.0, intrinsic_lr, high / 2, high, intrinsic_lr) == "possible"
    assert theory.angular_jump_regime(1.0, intrinsic_lr, high, high, intrinsic_lr * (1 - 1e-9)) == "certain"
    assert theory.angular_jump_regime(1.0, intrinsic_lr, 0.0, high, intrinsic_lr * (1 - 1e-9)) == "possible"
    # without decay nothing sinks
    assert theory.angular_jump_regime(lr, 0.0, 0.0, high, delta) == "impossible"


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    log_uniform(1e-3, 1e3),
    log_uniform(1e-8, 0.29),
    log_uniform(1e-3, 1e3),
    st.one_of(st.just(0.0), log_uniform(1e-4, 1)),
    log_uniform(1e-2, 1e2),
)
def test_larger_angular_jumps_come_later(lr, intrinsic_lr, high, ratio, start):
    deltas = np.sort(np.concatenate([np.geomspace(1e-6, 0.99, 40), [intrinsic_lr / 2, intrinsic_lr, 2 * intrinsic_lr]]))
    norm = start * theory.angular_jump_norm(lr, intrinsic_lr / lr, high, 0.1)
    times = theory.steps_to_angular_jump(norm, lr, intrinsic_lr / lr, ratio * high, high, deltas)
    for time in times:
        assert not np.isnan(time).any()
        # whole numbers: a larger δ never makes a time smaller, not even by rounding
        assert (time[1:] >= time[:-1]).all()


@pytest.mark.parametrize("slowest", [3e-3, 0.03])
def test_the_closed_form_is_the_iteration_up_to_its_error(monkeypatch, slowest):
    many = Settings(10_000, seed=6, slowest=slowest, delta_below=0.8)
    iterated = many.times()
    monkeypatch.setattr(destabilization, "ITERATED_STEPS", 0)
    for exact, closed in zip(iterated, many.times(), strict=True):
        np.testing.assert_array_equal(np.isinf(exact), np.isinf(closed))
        finite = np.isfinite(exact)
        off = np.abs(exact[finite] - closed[finite])
        # an error of at most ηλ changes the whole number by one, and only where the time is close to a whole number
        assert off.max() <= 1
        assert off.mean() < many.intrinsic_lr[finite].mean()


@pytest.mark.parametrize("intrinsic_lr", [0.2, 0.1, 0.03, 0.01, 1e-3])
def test_the_error_of_the_closed_form_is_below_the_intrinsic_learning_rate(intrinsic_lr):
    # after N steps of the map the closed form must give N, down to 1e-6 above equilibrium, where rounding is negligible
    ratios = np.geomspace(1e-3, 1, 30)
    equilibrium = ratios / np.sqrt(intrinsic_lr * (2 - intrinsic_lr))
    r, start = equilibrium * np.geomspace(1.01, 1e3, 30), equilibrium * np.geomspace(1.01, 1e3, 30)
    for t in range(1, int(8 / intrinsic_lr)):
        r = (1 - intrinsic_lr) ** 2 * r + ratios**2 / r
        far = r > equilibrium * (1 + 1e-6)
        time = flow_time(start[far], r[far], np.full(far.sum(), intrinsic_lr), ratios[far])
        assert np.abs(time - t).max(initial=0) < intrinsic_lr


def test_long_decay():
    # about 1e5 single steps in floating point, whose rounding does not change the count here
    lr, intrinsic_lr, low, high, delta, norm = 0.1, 1.5e-5, 0.01, 1.0, 0.05, 3.0
    r, a, b, end = (
        norm**2,
        (1 - intrinsic_lr) ** 2,
        (lr * low) ** 2,
        theory.angular_jump_norm(lr, intrinsic_lr / lr, high, delta) ** 2,
    )
    steps = 0
    while r >= end and steps < 500_000:
        r, steps = a * r + b / r, steps + 1
    assert steps > 5 * destabilization.ITERATED_STEPS
    assert theory.steps_to_angular_jump(norm, lr, intrinsic_lr / lr, low, high, delta).earliest == steps
    # 1e9 steps take no time; without gradients the norm decays as ρ ∝ (1-ηλ)^t
    longest = theory.steps_to_angular_jump(3.0, 1e-4, 1e-4, 0.0, 1.0, 0.05).earliest
    ratio = 3.0 / theory.angular_jump_norm(1e-4, 1e-4, 1.0, 0.05)
    assert longest == pytest.approx(np.log(ratio) / 1e-8, rel=1e-7)
    assert longest == np.floor(longest)


def test_for_constant_gradients_earliest_and_latest_are_equal():
    # ℓ = L leaves one orbit, here so long that the last step of the closed form can round onto its end
    generator, count = np.random.default_rng(3), 100_000
    intrinsic_lr = np.exp(generator.uniform(np.log(1e-14), np.log(1e-6), count))
    delta = intrinsic_lr * generator.uniform(0.02, 0.9, count)
    norm = theory.angular_jump_norm(1.0, intrinsic_lr, 1.0, delta) * np.exp(generator.uniform(0, 3, count))
    times = theory.steps_to_angular_jump(norm, 1.0, intrinsic_lr, 1.0, 1.0, delta)
    assert (times.earliest > destabilization.ITERATED_STEPS).mean() > 0.5
    np.testing.assert_array_equal(times.latest, times.earliest)


class RingingSettings(Settings):
    """ηλ above 0.2929, where the norm rings around its equilibrium: half of L/ℓ near 1, δ on both sides of ηλ."""

    def __init__(self, count, seed=0, fastest=0.95):
        generator = np.random.default_rng(seed)
        self.lr, self.intrinsic_lr = np.ones(count), generator.uniform(BORDER, fastest, count)
        self.high = np.ones(count)
        self.low = np.exp(-generator.uniform(0, np.where(generator.random(count) < 0.5, 0.3, 3.0)))
        below, above = (
            self.intrinsic_lr * generator.uniform(0.3, 1, count),
            self.intrinsic_lr * np.exp(generator.uniform(0, 1, count)),
        )
        self.delta = np.where(generator.random(count) < 0.5, below, np.minimum(above, 0.99))
        self.wd, self.count, self.generator = self.intrinsic_lr / self.lr, count, generator
        threshold = theory.angular_jump_norm(self.lr, self.wd, self.high, self.delta)
        self.norm = threshold * np.exp(generator.uniform(-0.3, 1.5, count))


def thin_out(values, most=400):
    return np.sort(values)[np.linspace(0, values.size - 1, min(values.size, most)).astype(int)]


def test_angular_jump_times_of_a_ringing_norm_are_those_of_all_sequences():
    # every r that can be reached with one of 50 gradients a step, both ends of the range among them
    many, horizon = RingingSettings(120), 6
    times, counts = many.times(), {"earliest": 0, "latest": 0}
    for i in range(many.count):
        intrinsic_lr, low, high = many.intrinsic_lr[i], many.low[i], many.high[i]
        tangent = kappa(many.delta[i])
        first_high, first_low = (g / ((1 - intrinsic_lr) * tangent) for g in (high, low))
        share = np.linspace(0, 1, 50)
        reachable, without_jump = (np.array([many.norm[i] ** 2]) for _ in range(2))
        brute_force = {"earliest": np.inf, "latest": np.inf}
        for t in range(horizon):
            without_jump = without_jump[without_jump >= first_low]
            for name, reached in (("earliest", reachable.min() < first_high), ("latest", without_jump.size == 0)):
                if reached:
                    brute_force[name] = min(brute_force[name], t)
            r, g = reachable[:, np.newaxis], low + (high - low) * share
            reachable = thin_out(((1 - intrinsic_lr) ** 2 * r + g**2 / r).ravel())
            if without_jump.size:
                # the largest gradient without an angular jump, and the turning point of ℓ, are reached exactly
                r = without_jump[:, np.newaxis]
                g = low + (np.minimum(high, r * (1 - intrinsic_lr) * tangent) - low) * share
                without_jump = thin_out(((1 - intrinsic_lr) ** 2 * r + g**2 / r).ravel())
        for name in brute_force:
            time = getattr(times, name)[i]
            assert brute_force[name] == (time if time < horizon else np.inf), (name, i)
            counts[name] += 0 < time < horizon
    assert min(counts.values()) > 25


def test_no_sequence_angular_jumps_earlier_or_later_where_the_norm_rings():
    many = RingingSettings(4000, seed=1)
    times, random = many.times(), many.generator
    assert not np.isnan(times).any()
    assert (times.earliest <= times.latest).all()
    tilt = random.uniform(0, 1, many.count)
    strategies = {
        "low": lambda t, norm: many.low,
        "high": lambda t, norm: many.high,
        "random": lambda t, norm: many.low + (many.high - many.low) * random.random(many.count),
        "low or high": lambda t, norm: np.where(random.random(many.count) < tilt, many.low, many.high),
        "without an angular jump": lambda t, norm: many.largest_without_jump(norm),
        "at equilibrium": lambda t, norm: norm**2 * np.sqrt(many.intrinsic_lr * (2 - many.intrinsic_lr)),
    }
    for name, strategy in strategies.items():
        first = many.first_jump(strategy, 200)
        assert (first >= times.earliest).all(), name
        assert (first[times.latest < 200] <= times.latest[times.latest < 200]).all(), name


def test_regimes_of_a_ringing_norm():
    many = RingingSettings(20_000, seed=2)
    regime, times = theory.angular_jump_regime(*many.arguments()), many.times()
    no_jump_at_start = many.norm >= theory.angular_jump_norm(many.lr, many.wd, many.high, many.delta)
    assert all((regime == word).sum() > 500 for word in ("impossible", "possible", "certain"))
    assert np.isinf(times.earliest[no_jump_at_start & (regime == "impossible")]).all()
    assert np.isfinite(times.latest[regime == "certain"]).all()
    # what is possible depends on the start
    for time in times:
        share = np.isinf(time[no_jump_at_start & (regime == "possible")]).mean()
        assert 0.02 < share < 0.98
    # ... and the border is where the lowest of all steps, from r = ηℓ/(1-ηλ), ends at the threshold of L
    intrinsic_lr, delta = many.intrinsic_lr, many.delta
    low = many.high / (2 * (1 - intrinsic_lr) ** 2 * kappa(delta))
    start = np.sqrt(many.lr * low / (1 - intrinsic_lr))
    some = low < many.high
    for change, expected in ((1 + 1e-9, np.inf), (1 - 1e-9, 1.0)):
        there = theory.steps_to_angular_jump(
            start, many.lr, many.wd, np.minimum(low * change, many.high), many.high, delta
        )
        np.testing.assert_array_equal(there.earliest[some], expected)


def test_both_algorithms_agree_at_their_border():
    # on both sides of (1-ηλ)² = 1/2, from starts whose times do not depend on ηλ within rounding
    generator, count = np.random.default_rng(3), 5000
    delta, low = generator.uniform(0.01, 0.9, count), np.exp(-generator.uniform(0, 3, count))
    norm = theory.angular_jump_norm(1.0, BORDER, 1.0, delta) * np.exp(generator.uniform(0, 1, count))
    sides = [theory.steps_to_angular_jump(norm, 1.0, BORDER * (1 + c), low, 1.0, delta) for c in (-1e-12, 1e-12)]
    for below, above in zip(*sides, strict=True):
        np.testing.assert_array_equal(below, above)


def test_starts_at_and_below_the_threshold():
    lr, wd, low, high = 0.1, 0.1, 0.2, 1.0
    for delta in (0.005, 0.1):
        threshold, lowest = (theory.angular_jump_norm(lr, wd, g, delta) for g in (high, low))
        # at the threshold no step is an angular jump yet
        assert theory.steps_to_angular_jump(threshold, lr, wd, low, high, delta).earliest == 1
        assert theory.steps_to_angular_jump(np.nextafter(threshold, 0), lr, wd, low, high, delta).earliest == 0
        assert theory.steps_to_angular_jump(np.nextafter(lowest, 0), lr, wd, low, high, delta) == (0, 0)
    assert theory.steps_to_angular_jump(lowest, lr, wd, low, high, 0.1).latest == np.inf
    at_lowest = theory.angular_jump_norm(lr, wd, low, 0.005)
    assert theory.steps_to_angular_jump(at_lowest, lr, wd, low, high, 0.005) == (0, 1)
    # without decay the norm never decreases; zero gradients give no angular jump
    assert theory.steps_to_angular_jump(3.0, lr, 0.0, 0.0, high, 0.1) == (np.inf, np.inf)
    assert theory.steps_to_angular_jump(3.0, lr, wd, 0.0, high, 0.005).latest == np.inf
    assert isinstance(theory.steps_to_angular_jump(3.0, lr, wd, low, high, 0.005), theory.AngularJumpTime)


def test_numbers_give_floats_and_words_and_arrays_broadcast():
    assert type(theory.angular_jump_regime(0.1, 0.1, 0.2, 1.0, 0.1)) is str
    assert [type(time) for time in theory.steps_to_angular_jump(3.0, 0.1, 0.1, 0.2, 1.0, 0.1)] == [float, float]
    assert type(theory.critical_norm(0.1, 3.0)) is float
    norms, low, deltas = np.array([[2.0], [3.0]]), np.array([[0.01], [0.9]]), [0.002, 0.1, 0.3]
    regimes = theory.angular_jump_regime(0.1, 0.1, low, 1.0, deltas)
    times = theory.steps_to_angular_jump(norms, 0.1, 0.1, low, 1.0, deltas)
    edges = theory.critical_norm(norms, deltas, optimizer=theory.SGD(momentum=0.5))
    assert regimes.shape == times.earliest.shape == times.latest.shape == edges.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert regimes[i, j] == theory.angular_jump_regime(0.1, 0.1, low[i, 0], 1.0, deltas[j])
        assert (times.earliest[i, j], times.latest[i, j]) == theory.steps_to_angular_jump(
            norms[i, 0], 0.1, 0.1, low[i, 0], 1.0, deltas[j]
        )
        assert edges[i, j] == theory.critical_norm(norms[i, 0], deltas[j], optimizer=theory.SGD(momentum=0.5))
    assert theory.steps_to_angular_jump([], 0.1, 0.1, 0.2, 1.0, 0.1).latest.shape == (0,)


def log_sizes(step_sizes, momentum, nesterov, steps):
    """ln of the size of (weight, buffer) under PyTorch's SGD on a quadratic; `step_sizes` is η times its curvature."""
    x, v, sizes = np.ones_like(step_sizes), np.full_like(step_sizes, 0.3), [np.zeros_like(step_sizes)]
    for _ in range(steps):
        gradient = step_sizes * x
        v = momentum * v + gradient
        x = x - (gradient + momentum * v if nesterov else v)
        size = np.hypot(x, v)
        x, v = x / size, v / size
        sizes.append(sizes[-1] + np.log(size))
    return np.array(sizes)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.98])
def test_critical_norm_is_where_the_linear_recursion_begins_to_grow(momentum, nesterov):
    lr, sharpness = 0.3, 12.0
    rule = theory.SGD(momentum=momentum, nesterov=nesterov and momentum > 0)
    edge = theory.critical_norm(lr, sharpness, optimizer=rule)
    norms = edge * np.array([1.005, 1.0, 0.995])
    above, at, below = log_sizes(lr * sharpness / norms**2, momentum, nesterov, 3000).T
    # 1 % in η̃h changes the size by 0.3 % a step or more
    assert above[-1] < -5
    assert below[-1] > 5
    # at the edge one eigenvalue is -1 and the other at most 0.98 in size: 0.98^2000 is 0 beside 1, and 1e-16 rounds the
    # limit, which 1/(1-μ) = 50 magnifies
    assert np.ptp(at[2000:]) < 1e-10


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("intrinsic_lr", [1e-6, 1e-3, 2e-3, 0.05])
def test_decay_moves_the_edge_to_where_the_direction_begins_to_turn_over(decoupled, momentum, nesterov, intrinsic_lr):
    # compare the linear recursion across the weights with that along them, from the rule itself
    rule, lr = theory.SGD(momentum=momentum, nesterov=nesterov, decoupled=decoupled), 0.5
    for falling in (False, True):
        edge = 12.0 * lr / theory.critical_norm(lr, 12.0, wd=intrinsic_lr / lr, falling=falling, optimizer=rule) ** 2
        if np.isnan(edge):
            assert falling
            assert not decoupled
            assert intrinsic_lr > (1 - momentum**0.5) ** 2
            continue

        def largest(curvature):
            columns = []
            for x, v in ((1.0, 0.0), (0.0, 1.0)):
                state = (np.array(v),) if momentum else ()
                x, state = rule.update(np.array(x), curvature / lr * np.array(x), state, lr, intrinsic_lr / lr)
                columns.append([x, state[0] if momentum else 0.0])
            return max(np.linalg.eigvals(np.array(columns).T), key=abs)

        q = abs(largest(0.0)) if falling else 1.0
        assert largest(edge) == pytest.approx(-q, rel=1e-9)
        assert abs(largest(edge * 1.001)) > q > abs(largest(edge * 0.999)) or momentum**0.5 >= q * 0.999
    plain = theory.critical_norm(lr, 12.0, optimizer=rule)
    assert theory.critical_norm(lr, 12.0, wd=0.0, falling=True, optimizer=rule) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("falling", ["no", 1, [False, True]])
def test_falling_is_true_or_false(falling):
    with pytest.raises(TypeError, match="falling must be True or False"):
        theory.critical_norm(0.1, 5.0, wd=0.1, falling=falling)


def test_nesterov_rings_above_the_stated_decay():
    border = (0.1 / 1.9) ** 2
    rule = theory.SGD(momentum=0.9, nesterov=True)
    here = [theory.critical_norm(1.0, 5.0, wd=border * c, falling=True, optimizer=rule) for c in (0.999, 1.001)]
    assert np.isfinite(here[0])
    assert np.isnan(here[1])


def test_edge_of_plain_sgd_at_constant_and_freely_decaying_norm():
    assert 0.1 * 5 / theory.critical_norm(0.1, 5.0, wd=0.5) ** 2 == pytest.approx(1.95, rel=1e-14)
    assert 0.1 * 5 / theory.critical_norm(0.1, 5.0, wd=0.5, falling=True) ** 2 == pytest.approx(1.9, rel=1e-14)


def test_stability_limits():
    assert theory.SGD().stability_limit == 2
    assert theory.SGD(momentum=0.9).stability_limit == pytest.approx(3.8, rel=1e-15)
    assert theory.SGD(momentum=0.9, nesterov=True).stability_limit == pytest.approx(3.8 / 2.8, rel=1e-15)
    assert theory.critical_norm(0.1, 0.0) == 0
    # without momentum: ηh/ρ² = 2
    assert 0.1 * 5 / theory.critical_norm(0.1, 5.0) ** 2 == pytest.approx(2, rel=1e-15)


@pytest.mark.parametrize("function", ["angular_jump_regime", "steps_to_angular_jump"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wd": 10.0}, r"lr \* wd must be < 1 here, got 1 \(lr=0.1, wd=10\)"),
        ({"wd": -1.0}, "wd must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"delta": 0.0}, "delta must be a finite number > 0 and < 1, got 0.0"),
        ({"delta": 1.0}, "delta must be"),
        ({"delta": [0.1, np.nan]}, "delta must be .* at index 1"),
        ({"grad_norm_min": 2.0}, "grad_norm_min must be <= grad_norm_max"),
        ({"grad_norm_min": -0.1}, "grad_norm_min must be"),
        ({"grad_norm_max": 0.0}, "grad_norm_max must be"),
        ({"delta": [0.1, 0.2], "wd": [0.1, 0.2, 0.3]}, r"shapes must broadcast together, got .*delta \(2,\)"),
    ],
)
def test_bad_input_is_named(function, change, message):
    arguments = {"lr": 0.1, "wd": 0.1, "grad_norm_min": 0.2, "grad_norm_max": 1.0, "delta": 0.1, **change}
    if function == "steps_to_angular_jump":
        arguments["norm"] = 1.0
    with pytest.raises(ValueError, match=message):
        getattr(theory, function)(**arguments)


def test_bad_input_of_single_functions_is_named():
    with pytest.raises(ValueError, match=r"norm must be.*0, got 0\.0"):
        theory.steps_to_angular_jump(0.0, 0.1, 0.1, 0.2, 1.0, 0.1)
    with pytest.raises(TypeError, match="delta must be"):
        theory.angular_jump_regime(0.1, 0.1, 0.2, 1.0, "0.1")
    with pytest.raises(ValueError, match=r"norm \(2,\)"):
        theory.steps_to_angular_jump([1.0, 2.0], 0.1, [0.1, 0.2, 0.3], 0.2, 1.0, 0.1)
    with pytest.raises(ValueError, match="sharpness must be"):
        theory.critical_norm(0.1, -1.0)
    with pytest.raises(ValueError, match="optimizer must be an SGD"):
        theory.critical_norm(0.1, 1.0, optimizer=theory.Lion(dim=5))
