"""Fixed norms of weights and updates, least update ratios, and cautious decay, against random walks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory

DIM = 300
RULES = [
    theory.SGD(),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.9, nesterov=True),
    theory.AdamW(dim=DIM),
    theory.AdamW(dim=DIM, betas=(0.5, 0.99)),
    theory.Lion(dim=DIM),
    theory.Muon(rows=16, columns=64),
]
of_size = {"ids": repr}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def walk(rule, advance, *, steps, discarded, dim, norm=1.0, walkers=4):
    """Iterate random gradients orthogonal to the weights; return norms, and 1 - cos θ of each step.

    `advance` gets the weights and the direction of the optimizer, and returns the next weights.
    """
    random = np.random.default_rng(0)
    weights = norm * unit(random.normal(size=(walkers, dim)))
    state, norms, turns = rule.start(weights), [], []
    for number in range(steps):
        lengths = np.linalg.norm(weights, axis=1, keepdims=True)
        noise = random.normal(size=weights.shape)
        along = (noise * weights).sum(axis=1, keepdims=True) / lengths**2
        gradient = unit(noise - along * weights) / lengths
        after, state = rule.update(weights, gradient, state, 1.0, 0.0)
        following = advance(weights, weights - after)
        if number >= discarded:
            product = (following * weights).sum(axis=1) / np.linalg.norm(following, axis=1) / lengths[:, 0]
            norms.append(np.linalg.norm(following, axis=1))
            turns.append(1 - product)
        weights = following
    return np.array(norms), np.array(turns)


def dim_of(rule):
    return rule.rows * rule.columns if isinstance(rule, theory.Muon) else DIM


@pytest.mark.parametrize("rule", RULES, **of_size)
@pytest.mark.parametrize("lr", [0.3, 0.05])
def test_rotation_is_that_of_random_walks(rule, lr):
    def advance(weights, direction):
        return unit(weights - lr * np.linalg.norm(weights, axis=1, keepdims=True) * unit(direction))

    # Lion and Adam forget their start slowly
    _, turns = walk(rule, advance, steps=2600, discarded=1600, dim=dim_of(rule))
    expected = 1 - math.cos(theory.fixed_norm(lr, optimizer=rule).rotation)
    assert turns.mean() == pytest.approx(expected, rel=0.01)
    if lr == 0.3 and rule != theory.SGD():
        assert abs(turns.mean() / (lr**2 / 2) - 1) > 0.1, "the control: not the rotation of independent directions"


@pytest.mark.parametrize("rule", RULES[3:], **of_size)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.floats(1e-6, 2.0))
def test_it_is_decoupled_decay_with_the_stated_coefficient(rule, lr):
    rotation, intrinsic_lr = theory.fixed_norm(lr, optimizer=rule)
    assert rotation == pytest.approx(theory.equilibrium_rotation(1.0, intrinsic_lr, optimizer=rule), rel=1e-6)
    # the ratio of a step to the weights at equilibrium, after the decay
    norm = theory.equilibrium_norm(1.0, intrinsic_lr, optimizer=rule)
    variance = rule.direction_variance(np.asarray(1 - intrinsic_lr))
    square_step = rule._square_step if isinstance(rule, theory.Muon) else rule.dim
    step = math.sqrt(square_step * float(variance.instant))
    assert step / norm / (1 - intrinsic_lr) == pytest.approx(lr, rel=1e-6)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(1e-9, 10.0))
def test_plain_descent_has_a_closed_form(lr):
    rotation, intrinsic_lr = theory.fixed_norm(lr)
    assert rotation == pytest.approx(math.atan(lr), rel=1e-6)
    assert intrinsic_lr == pytest.approx(-math.expm1(-math.log1p(lr * lr) / 2), rel=1e-6)


def test_momentum_leaves_small_rotations_and_lengthens_the_memory():
    plain, heavy = (theory.fixed_norm(1e-3, optimizer=rule) for rule in (theory.SGD(), theory.SGD(momentum=0.9)))
    assert heavy.rotation == pytest.approx(plain.rotation, rel=1e-3)
    # the directions of 19 steps add up
    assert heavy.intrinsic_lr == pytest.approx(19 * plain.intrinsic_lr, rel=1e-2)


@pytest.mark.parametrize(("least", "grows"), [(0.2, True), (0.1, False)])
def test_a_least_update_ratio_above_equilibrium_makes_the_norm_grow(least, grows):
    # steps of norm max(‖u‖, least·ρ): if they are all of norm least·ρ, ln ρ grows by ln((1-ηλ)/(1-k)) per step
    decay, rule = 0.01, theory.SGD()

    def advance(weights, direction):
        lengths = np.linalg.norm(weights, axis=1, keepdims=True)
        step = np.maximum(1.0, least * lengths)
        return (1 - decay) * weights - step * unit(direction)

    norms, _ = walk(rule, advance, steps=1200, discarded=800, dim=DIM, norm=7.0)
    rate = math.log(norms[-1].mean() / norms[0].mean()) / (len(norms) - 1)
    expected = math.log1p(-decay) - math.log1p(-theory.fixed_norm(least / (1 - decay)).intrinsic_lr)
    if grows:
        assert rate == pytest.approx(expected, rel=0.03)
    else:
        assert expected < 0
        # below the ratio at equilibrium, √(2ηλ) = 0.14, it has no effect
        assert norms.mean() == pytest.approx(1 / math.sqrt(decay * (2 - decay)), rel=0.01)


@pytest.mark.parametrize(
    ("rule", "decay", "excess"),
    [
        (theory.AdamW(dim=DIM, betas=(0.0, 0.999)), 0.01, (1.0, 1.06)),
        (theory.AdamW(dim=DIM), 0.001, (1.02, 1.09)),
        (theory.AdamW(dim=DIM), 0.01, (1.2, 1.31)),
        (theory.Lion(dim=DIM), 0.01, (1.45, 1.62)),
    ],
)
def test_cautious_decay_is_half_of_the_decay_if_it_is_slow(rule, decay, excess):
    start = theory.equilibrium_norm(1.0, decay / 2, optimizer=rule)

    def advance(weights, direction):
        return weights - decay * (direction * weights > 0) * weights - direction

    steps = 4000 if decay == 0.01 else 12_000
    norms, _ = walk(rule, advance, steps=steps, discarded=steps // 2, dim=DIM, norm=start, walkers=2)
    low, high = excess
    assert low < math.sqrt((norms**2).mean()) / start < high


@pytest.mark.parametrize("rule", [theory.AdamW(dim=DIM, betas=(0.0, 0.999)), theory.Lion(dim=DIM, betas=(0.5, 0.5))])
def test_decay_of_a_new_random_half_is_half_of_the_decay(rule):
    random, decay = np.random.default_rng(1), 0.01
    start = theory.equilibrium_norm(1.0, decay / 2, optimizer=rule)

    def advance(weights, direction):
        return weights - decay * (random.random(weights.shape) < 0.5) * weights - direction

    norms, _ = walk(rule, advance, steps=3000, discarded=500, dim=DIM, norm=start)
    assert math.sqrt((norms**2).mean()) == pytest.approx(start, rel=0.01)


def test_decay_of_a_fixed_half_does_not_stop_the_growth():
    rule, decay, steps = theory.Lion(dim=DIM, betas=(0.5, 0.5)), 0.05, 4000
    decays = np.arange(DIM) < DIM // 2

    def advance(weights, direction):
        return weights - decay * decays * weights - direction

    norms, _ = walk(rule, advance, steps=steps, discarded=0, dim=DIM, norm=1.0, walkers=32)
    # half of the weights grow as without decay
    growth = (norms[-1] ** 2 - norms[steps // 2] ** 2).mean() / (steps - 1 - steps // 2)
    assert growth == pytest.approx(float(rule.norm_growth(np.array(1.0), np.array(1.0))) / 2, rel=0.05)


def test_bad_input():
    for options, words in (
        ({"lr": 0}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"lr": 0.1, "optimizer": "SGD(0.9)"}, "optimizer"),
        ({"lr": 0.1, "optimizer": "Muon"}, "rows"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            theory.fixed_norm(**options)


def test_an_optimizer_without_correlations_is_refused():
    class Own(theory.SGD):
        direction_variance = property()

    with pytest.raises(ValueError, match=r"optimizer must be SGD"):
        theory.fixed_norm(0.1, optimizer=Own())


def test_shapes():
    both = theory.fixed_norm([0.1, 0.2], optimizer="AdamW")
    assert both.rotation.shape == both.intrinsic_lr.shape == (2,)
    assert both.rotation[1] == theory.fixed_norm(0.2, optimizer="AdamW").rotation


@given(
    lr=st.floats(0.01, 1.0),
    wd=st.floats(0.0, 0.5),
    norm=st.floats(0.5, 5.0),
    fixed=st.floats(0.5, 5.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_plain_sgd_at_fixed_norm_repeats_any_run_exactly(lr, wd, norm, fixed, seed):
    """Two groups with one norm. The gradient is any homogeneous function of degree -1 orthogonal to each group."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(6, 6))

    def gradient(x):
        parts = []
        for part in (slice(0, 3), slice(3, 6)):
            here = matrix[part] @ np.tanh(
                np.concatenate([x[:3] / np.linalg.norm(x[:3]), x[3:] / np.linalg.norm(x[3:])])
            )
            length = np.linalg.norm(x[part])
            parts.append((here - (here @ x[part]) * x[part] / length**2) / length)
        return np.concatenate(parts)

    free = norm * unit(random.normal(size=(1, 6)))[0]
    held = fixed * free / norm
    for _ in range(20):
        length = np.linalg.norm(free)
        moved = held - theory.lr_at_fixed_norm(lr, length, wd, fixed_norm=fixed) * gradient(held)
        held = fixed * moved / np.linalg.norm(moved)
        free = (1 - lr * wd) * free - lr * gradient(free)
        np.testing.assert_allclose(free / np.linalg.norm(free), held / fixed, atol=1e-9)


@pytest.mark.parametrize("rule", [theory.AdamW(dim=DIM), theory.Lion(dim=DIM)], **of_size)
def test_normalized_optimizers_rotate_as_much_at_fixed_norm(rule):
    lr, wd = 0.01, 0.1

    def free(weights, direction):
        return (1 - lr * wd) * weights - lr * direction

    settled = theory.equilibrium_norm(lr, wd, optimizer=rule)
    norms, turns = walk(rule, free, steps=6000, discarded=3000, dim=DIM, norm=settled)
    repeated = theory.lr_at_fixed_norm(lr, norms.mean(), wd, fixed_norm=3.0, optimizer=rule)

    def fixed(weights, direction):
        return 3 * unit(weights - repeated * direction)

    _, at_fixed_norm = walk(rule, fixed, steps=6000, discarded=3000, dim=DIM, norm=3.0)
    assert at_fixed_norm.mean() == pytest.approx(turns.mean(), rel=0.01)
