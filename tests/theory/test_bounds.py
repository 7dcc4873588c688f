import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory

REGIMES = [1e-3, 0.05, 0.29, 0.35, 0.6, 0.9, 1.1, 1.5, 1.8]
RATIOS = [1e-3, 0.1, 0.5, 0.8, 0.95, 1.0]
LR, HIGH = 0.5, 3.0


def step(norm, intrinsic_lr, g):
    return np.hypot((1 - intrinsic_lr) * norm, LR * g / norm)


def adversaries(low, high, orbits, steps, bounds, intrinsic_lr):
    """Return a function of step and norm that gives adversarial gradient norms, shape (orbits,)."""
    generator = np.random.default_rng(0)
    kinds = np.arange(orbits) % 6
    block = generator.integers(1, 60, size=orbits)

    def choose(t, norm):
        down, up = step(norm, intrinsic_lr, low), step(norm, intrinsic_lr, high)
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


@pytest.mark.parametrize("intrinsic_lr", REGIMES)
def test_no_adversary_leaves_the_interval(intrinsic_lr):
    # 9 regimes × 6 ratios × 60 orbits × 600 steps: 2 million steps
    orbits, steps = 60, 600
    for ratio in RATIOS:
        low, high = HIGH * ratio, HIGH
        bounds = theory.norm_bounds(LR, intrinsic_lr / LR, low, high)
        choose = adversaries(low, high, orbits, steps, bounds, intrinsic_lr)
        norm = np.geomspace(bounds.lower, bounds.upper, orbits)
        for t in range(steps):
            norm = step(norm, intrinsic_lr, choose(t, norm))
            # a step rounds to 2e-16, and the ends are rounded too
            assert (norm >= bounds.lower * (1 - 1e-12)).all(), (intrinsic_lr, ratio, t)
            assert (norm <= bounds.upper * (1 + 1e-12)).all(), (intrinsic_lr, ratio, t)


@pytest.mark.parametrize("intrinsic_lr", REGIMES)
@pytest.mark.parametrize("ratio", [0.1, 0.8, 1.0])
def test_orbits_from_outside_are_attracted(intrinsic_lr, ratio):
    low, high = HIGH * ratio, HIGH
    bounds = theory.norm_bounds(LR, intrinsic_lr / LR, low, high)
    generator = np.random.default_rng(1)
    norm = np.outer([1e-3, 0.1, 10.0, 1e3], [bounds.lower, bounds.upper]).ravel()
    # a norm 1e3 times too large decays within 30/ηλ steps; 40 relaxation times follow
    for _ in range(
        int(30 / min(intrinsic_lr, 2 - intrinsic_lr) + 40 * theory.relaxation_time(LR, intrinsic_lr / LR)) + 10
    ):
        norm = step(norm, intrinsic_lr, generator.uniform(low, high, norm.size))
    assert (norm >= bounds.lower * (1 - 1e-9)).all()
    assert (norm <= bounds.upper * (1 + 1e-9)).all()


@pytest.mark.parametrize("intrinsic_lr", REGIMES)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.95])
def test_both_ends_are_reached_from_inside(intrinsic_lr, ratio):
    low, high = HIGH * ratio, HIGH
    bounds = theory.norm_bounds(LR, intrinsic_lr / LR, low, high)
    # all ends are reached by ℓ or L for ever, both in turn for ever, one step of ℓ from where the map is least, or one
    # step of L after any of these
    turning = np.clip((LR * low / abs(1 - intrinsic_lr)) ** 0.5, bounds.lower, bounds.upper)
    norm = np.repeat(turning, 3)
    reached = [step(turning, intrinsic_lr, low)]
    for t in range(int(80 * theory.relaxation_time(LR, intrinsic_lr / LR)) + 200):
        norm = step(norm, intrinsic_lr, np.array([low, high, low if t % 2 else high]))
    reached += [
        *norm,
        *step(norm, intrinsic_lr, low),
        *step(norm, intrinsic_lr, high),
        step(reached[0], intrinsic_lr, high),
    ]
    assert min(reached) == pytest.approx(bounds.lower, rel=1e-9)
    assert max(reached) == pytest.approx(bounds.upper, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from(REGIMES), st.floats(1e-3, 1), st.floats(0.01, 100))
def test_the_envelope_is_the_reachable_interval(intrinsic_lr, ratio, start):
    low, high = HIGH * ratio, HIGH
    steps = 7
    envelope = theory.norm_envelope(steps, start, LR, intrinsic_lr / LR, low, high)
    reached = np.full(1, start)
    # where the map under ℓ is least; from every norm one gradient leads there, if it is allowed
    turning = LR * low / abs(1 - intrinsic_lr)
    for t in range(steps + 1):
        lower, upper = envelope.lower[t], envelope.upper[t]
        assert (reached >= lower * (1 - 1e-12)).all()
        assert (reached <= upper * (1 + 1e-12)).all()
        assert reached.min() == pytest.approx(lower, rel=1e-9)
        assert reached.max() == pytest.approx(upper, rel=1e-9)
        there = aim(reached, turning, intrinsic_lr)
        gradients = [*np.linspace(low, high, 9), np.clip(there, low, high)]
        reached = np.unique(np.concatenate([step(reached, intrinsic_lr, g) for g in gradients]))
        # keep the ends and those that hit the turning point
        middle = reached[np.linspace(0, reached.size - 1, 400).astype(int)]
        hits = reached[np.argsort(abs(reached**2 - turning))[:3]]
        reached = np.concatenate([middle, hits])


def aim(norm, sq_norm, intrinsic_lr):
    """Return the gradient norm that leads from `norm` to the squared norm, 0 where none does."""
    return np.sqrt(np.maximum(sq_norm - (1 - intrinsic_lr) ** 2 * norm**2, 0)) * norm / LR


def brute_force(start, intrinsic_lr, low, high, steps):
    """Norms of all orbits whose gradients are ℓ or L at each step: shape (steps+1, 2^steps)."""
    sequences = np.array(list(itertools.product([low, high], repeat=steps))).T
    norms = [np.full(2**steps, start)]
    for gradients in sequences:
        norms.append(step(norms[-1], intrinsic_lr, gradients))
    return np.array(norms)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.sampled_from(REGIMES), st.floats(1e-3, 1), st.floats(np.log(0.01), np.log(100)).map(np.exp))
def test_the_envelope_contains_all_sequences_of_the_extreme_gradients(intrinsic_lr, ratio, start):
    low, high, steps = HIGH * ratio, HIGH, 8
    envelope = theory.norm_envelope(steps, start, LR, intrinsic_lr / LR, low, high)
    norms = brute_force(start, intrinsic_lr, low, high, steps)
    # eight steps round by 1e-16 each, 1/ρ carries this on with a slope up to 1/(1-ηλ)² = 100
    assert (norms >= envelope.lower[:, None] * (1 - 1e-12)).all()
    assert (norms <= envelope.upper[:, None] * (1 + 1e-12)).all()
    # the ends are orbits of these sequences while the point where the map is least is outside; inside, a gradient in
    # between is needed to hit it exactly
    turning = (LR * low / abs(1 - intrinsic_lr)) ** 0.5
    inside = (envelope.lower < turning) & (turning < envelope.upper)
    attained = ~np.concatenate([[False], np.logical_or.accumulate(inside)[:-1]])
    assert attained[:2].all()
    np.testing.assert_allclose(norms.min(axis=1)[attained], envelope.lower[attained], rtol=1e-12)
    np.testing.assert_allclose(norms.max(axis=1)[attained], envelope.upper[attained], rtol=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.sampled_from([intrinsic_lr for intrinsic_lr in REGIMES if (1 - intrinsic_lr) ** 2 >= 0.5]),
    st.floats(1e-3, 1),
    st.floats(1, 100),
)
def test_ends_of_the_envelope_are_constant_gradients_where_the_map_increases(intrinsic_lr, ratio, factor):
    low, high, a = HIGH * ratio, HIGH, (1 - intrinsic_lr) ** 2
    start = factor * theory.equilibrium_norm(LR, intrinsic_lr / LR, low)
    envelope = theory.norm_envelope(50, start, LR, intrinsic_lr / LR, low, high)
    lower = upper = start
    # fifty steps round by 1e-16 each
    for t in range(51):
        assert envelope.lower[t] == pytest.approx(lower, rel=1e-13)
        assert envelope.upper[t] >= upper * (1 - 1e-13)
        if ratio >= (1 - a) / a:
            assert envelope.upper[t] == pytest.approx(upper, rel=1e-13)
        lower, upper = step(lower, intrinsic_lr, low), step(upper, intrinsic_lr, high)


def test_decay_before_a_step_of_the_largest_gradient_can_lead_higher():
    # the control of the condition ℓ/L >= (1-a)/a: from r_ℓ a step of L leads to ρ² = r_L (a ℓ/L + (1-a) L/ℓ) ≈ 2 r_L
    low, start = 0.01 * HIGH, theory.equilibrium_norm(LR, 0.02, HIGH)
    envelope = theory.norm_envelope(5000, start, LR, 0.01 / LR, low, HIGH)
    assert envelope.upper[-1] > 1.4 * start


# The closed forms of docs/mathematics.md §3. u = ρ⁴ rounds by 1e-15 of its largest value a step, a hundred times.
def envelope_in_u(intrinsic_lr, ratio, start):
    low, high = HIGH * ratio, HIGH
    envelope = theory.norm_envelope(100, start, LR, intrinsic_lr / LR, low, high)
    equilibria = [theory.equilibrium_norm(LR, intrinsic_lr / LR, g) ** 4 for g in (low, high)]
    slack = 1e-12 * max(start**4, *(envelope.upper**4))
    return (1 - intrinsic_lr) ** 2, np.arange(101.0), envelope.lower**4, envelope.upper**4, equilibria, slack


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-4, 1.9), st.floats(0.01, 1), st.floats(np.log(0.05), np.log(50)).map(np.exp))
def test_linear_recursions_enclose_the_envelope(intrinsic_lr, ratio, start):
    assume(abs(intrinsic_lr - 1) > 1e-3)
    a, t, lower, upper, _, slack = envelope_in_u(intrinsic_lr, ratio, start)
    b_low, b_high = (LR * HIGH * ratio) ** 2, (LR * HIGH) ** 2
    decayed, summed = a ** (2 * t), (1 - a ** (2 * t)) / (1 - a * a)
    assert (lower >= decayed * start**4 + 2 * a * b_low * summed - slack).all()
    # b²/u is largest at the smallest u that occurs
    growth = 2 * a * b_high + b_high**2 / min(start**4, 4 * a * b_low)
    assert (upper <= decayed * start**4 + growth * summed + slack).all()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.floats(1e-4, 0.29), st.floats(0.01, 1), st.floats(np.log(0.05), np.log(50)).map(np.exp))
def test_distances_from_the_two_equilibria_shrink(intrinsic_lr, ratio, start):
    a, t, lower, upper, (u_low, u_high), slack = envelope_in_u(intrinsic_lr, ratio, start)
    u = start**4
    # u⁺ is convex in u and has the slope 2a-1 at u_ℓ: it lies above that tangent
    assert (lower - u_low >= (2 * a - 1) ** t * (u - u_low) - slack).all()
    if u > u_low:
        # … and from above it decays at least as fast as a²
        assert (lower - u_low <= a ** (2 * t) * (u - u_low) + slack).all()
    # the upper end decays like a² if no step of L from anywhere in the envelope leads above r_L
    if np.sqrt(lower.min()) >= (1 - a) / a * np.sqrt(u_high):
        assert (upper - u_high <= a ** (2 * t) * max(u - u_high, 0) + slack).all()


def test_selected_steps_and_shapes():
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
    for low in (0.0, 1.0, 1.9, 2.0):
        assert theory.norm_bounds(1.0, 1.0, low, 2.0) == (0, np.inf)
    assert theory.norm_bounds(0.1, 0.0, 1.0, 2.0) == (np.inf, np.inf)
    assert theory.norm_bounds(0.1, 0.01, 0.0, 2.0) == (0, np.inf)
    for intrinsic_lr in (1e-3, 0.2, 0.5, 1.5):
        one = theory.norm_bounds(0.1, intrinsic_lr / 0.1, 2.0, 2.0)
        assert one == pytest.approx([theory.equilibrium_norm(0.1, intrinsic_lr / 0.1, 2.0)] * 2, rel=1e-12)


def test_at_intrinsic_lr_one_nothing_bounds_the_norm():
    # ρ⁺ = ηg̃/ρ: L and ℓ in turn multiply the norm by L/ℓ every two steps
    norm = theory.norm_envelope(60, 1.0, 1.0, 1.0, 1.0, 2.0)
    assert norm.upper[60] == 2.0**30
    assert norm.lower[60] == 2.0**-30


@pytest.mark.parametrize("intrinsic_lr", [0.25, 0.2929, 0.2930, 0.4, 1.7, 1.75])
def test_the_bounds_are_continuous_between_the_cases(intrinsic_lr):
    # over ℓ/L, with the border (L/ℓ)² = 2-4a² in between, and over ηλ at a = 1/2
    ratio = np.linspace(0.05, 1, 20001)
    here, beside = (theory.norm_bounds(LR, (intrinsic_lr + d) / LR, HIGH * ratio, HIGH) for d in (0, 1e-7))
    for end in range(2):
        # the ends change by at most 1/ratio² per unit of either
        assert (abs(np.diff(np.log(here[end]))) <= 5e-5 / ratio[:-1] ** 2).all()
        assert (abs(np.log(here[end] / beside[end])) <= 1e-6 / ratio**2).all()


def test_numbers_give_floats_and_arrays_broadcast():
    assert all(type(end) is float for end in theory.norm_bounds(0.1, 0.01, 1.0, 2.0))
    lr, wd = np.array([[0.1], [0.5]]), np.array([0.01, 0.5, 3.0])
    grid = theory.norm_bounds(lr, wd, 1.8, 2.0)
    for i, j in np.ndindex(2, 3):
        assert (grid.lower[i, j], grid.upper[i, j]) == theory.norm_bounds(lr[i, 0], wd[j], 1.8, 2.0)


class TestProbableBounds:
    @pytest.mark.parametrize("intrinsic_lr", [1e-3, 0.02, 0.2, 0.5])
    @pytest.mark.parametrize(("low", "mean_low", "mean_high"), [(0.5, 1.0, 1.0), (0.9, 1.0, 2.0), (0.1, 0.5, 8.0)])
    @pytest.mark.parametrize("is_pushed", [False, True])
    def test_few_walkers_leave_them(self, intrinsic_lr, low, mean_low, mean_high, is_pushed):
        """g̃ is ℓ or L. An adversary who sees the norm chooses the mean square of the next one."""
        random, walkers, probability = np.random.default_rng(0), 4000, 0.8
        bounds = theory.probable_norm_bounds(
            LR, intrinsic_lr / LR, mean_low, mean_high, HIGH, grad_norm_min=low, probability=probability
        )
        norm = np.full(walkers, np.sqrt(bounds.lower * bounds.upper))
        upwards = np.arange(walkers) % 2 == 0
        for _ in range(min(4000, round(5 / intrinsic_lr))):
            mean = np.where(upwards, mean_high, mean_low) if is_pushed else random.uniform(mean_low, mean_high, walkers)
            is_large = random.random(walkers) < (mean - low**2) / (HIGH**2 - low**2)
            norm = step(norm, intrinsic_lr, np.where(is_large, HIGH, low))
        outside = ((norm < bounds.lower) | (norm > bounds.upper)).mean()
        assert outside <= 1 - probability

    def test_they_approach_the_equilibrium_of_the_mean_square_as_decay_vanishes(self):
        wds = np.array([1e-2, 1e-4, 1e-6, 1e-8])
        bounds = theory.probable_norm_bounds(LR, wds, 2.0, 2.0, HIGH, grad_norm_min=0.5)
        certain = theory.norm_bounds(LR, wds, 0.5, HIGH)
        centre = theory.equilibrium_norm(LR, wds, np.sqrt(2.0))
        assert (bounds.lower < centre).all()
        assert (centre < bounds.upper).all()
        width = np.log(bounds.upper / bounds.lower)
        assert (np.diff(width) < 0).all()
        assert width[-1] < 0.001
        assert (width < np.log(certain.upper / certain.lower)).all()

    @given(
        intrinsic_lr=st.floats(1e-6, 0.99),
        low=st.floats(0, 1),
        shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
        probability=st.floats(0.01, 0.999999),
    )
    def test_they_are_never_wider_than_the_certain_ones(self, intrinsic_lr, low, shares, probability):
        low *= HIGH
        first, second = (low**2 + share * (HIGH**2 - low**2) for share in sorted(shares))
        assume(second <= HIGH**2)
        assume(first >= low**2)
        arguments = (LR, intrinsic_lr / LR, first, second, HIGH)
        bounds = theory.probable_norm_bounds(*arguments, grad_norm_min=low, probability=probability)
        certain = theory.norm_bounds(LR, intrinsic_lr / LR, low, HIGH)
        # with a single possible g̃ all four are the same number up to rounding
        assert certain.lower <= bounds.lower <= bounds.upper * (1 + 1e-12)
        assert bounds.upper <= certain.upper
        surer = theory.probable_norm_bounds(*arguments, grad_norm_min=low, probability=(1 + probability) / 2)
        assert surer.lower <= bounds.lower
        assert bounds.upper <= surer.upper

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("mean_square_min", {"mean_square_min": 3.0}),
            ("mean_square_max", {"mean_square_max": 10.0}),
            ("grad_norm_min squared", {"grad_norm_min": 1.5}),
            ("probability", {"probability": 1.0}),
            ("wd", {"wd": 0.0}),
        ],
    )
    def test_impossible_settings_are_refused(self, name, changes):
        settings = {"lr": 0.1, "wd": 0.01, "mean_square_min": 1.0, "mean_square_max": 2.0, "grad_norm_max": 2.0}
        with pytest.raises(ValueError, match=f"^{name} must"):
            theory.probable_norm_bounds(**{**settings, **changes})
