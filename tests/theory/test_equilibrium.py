import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory

# ηλ from 1e-8 to 1.9, uniform in the logarithm, away from the degenerate ηλ = 1
intrinsic = st.floats(np.log(1e-8), np.log(1.9)).map(lambda x: float(np.exp(x)))
lrs = st.floats(1e-4, 1e4)
gradients = st.floats(1e-4, 1e4)


def step(norm, lr, wd, g):
    """Return the norm after one SGD step: decay along the weights, gradient g/norm across."""
    return np.hypot((1 - lr * wd) * norm, lr * g / norm)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(intrinsic, lrs, gradients)
def test_equilibrium_is_a_fixed_point(intrinsic_lr, lr, g):
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    # the step itself rounds to 2e-16
    assert step(equilibrium, lr, intrinsic_lr / lr, g) == pytest.approx(equilibrium, rel=1e-14)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(intrinsic, lrs, gradients, st.floats(np.log(1e-3), np.log(1e3)))
def test_every_step_contracts_towards_the_equilibrium(intrinsic_lr, lr, g, offset):
    # For a >= 1/2 this proves attraction: from z = ρ²/ρ*² < (1-a)/a one step leads above 1; elsewhere z-1 keeps its
    # sign and shrinks by a factor between 0 and a.
    a = (1 - intrinsic_lr) ** 2
    assume(a >= 0.5)
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    norm = equilibrium * np.exp(offset)
    z, after = np.exp(2 * offset), (step(norm, lr, intrinsic_lr / lr, g) / equilibrium) ** 2
    # squares and quotients of numbers rounded to 1.1e-16 each
    slack = 1e-14 * max(z, after)
    if z < (1 - a) / a:
        assert after >= 1 - slack
    else:
        assert abs(after - 1) <= a * abs(z - 1) + slack
        assert (after - 1) * np.sign(z - 1) >= -slack


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.one_of(st.floats(0.02, 0.95), st.floats(1.05, 1.98)), lrs, gradients, st.floats(np.log(1e-3), np.log(1e3)))
def test_equilibrium_attracts_from_any_start(intrinsic_lr, lr, g, offset):
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    norm = equilibrium * np.exp(offset)
    # after 40 relaxation times the deviation is 1e-17; before, a norm a thousand times too large or too small needs
    # ln(1000)/min(ηλ, 2-ηλ) steps; near ηλ = 1 it needs more, which 40 relaxation times cover
    for _ in range(
        int(40 * max(theory.relaxation_time(lr, intrinsic_lr / lr), 1) + 10 / min(intrinsic_lr, 2 - intrinsic_lr))
    ):
        norm = step(norm, lr, intrinsic_lr / lr, g)
    # for multipliers up to 0.995 the rounding of all steps adds up to 200 times 1.1e-16
    assert norm == pytest.approx(equilibrium, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(lrs, gradients, st.floats(1e-2, 1e2))
def test_the_degenerate_intrinsic_lr_has_orbits_of_period_two(lr, g, start):
    # at ηλ = 1 a step replaces the weights: ρ⁺ = ηg̃/ρ, and nothing attracts
    equilibrium = theory.equilibrium_norm(lr, 1 / lr, g)
    once = step(equilibrium * start, lr, 1 / lr, g)
    # lr * (1/lr) may round to 1 - 1e-16, and the start multiplies this error by at most 100²
    assert once == pytest.approx(equilibrium / start, rel=1e-11)
    assert step(once, lr, 1 / lr, g) == pytest.approx(equilibrium * start, rel=1e-11)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(np.log(1e-3), np.log(1.9)).map(np.exp), lrs, gradients)
def test_relaxation_time_is_that_of_a_small_deviation(intrinsic_lr, lr, g):
    multiplier = 1 - 4 * intrinsic_lr + 2 * intrinsic_lr * intrinsic_lr
    # near multiplier 0 the second order dominates; near ηλ = 1 it takes 1/(1-ηλ)² steps
    assume(abs(multiplier) > 0.05)
    assume(abs(intrinsic_lr - 1) > 0.03)
    equilibrium, time = theory.equilibrium_norm(lr, intrinsic_lr / lr, g), theory.relaxation_time(lr, intrinsic_lr / lr)
    before, steps = 1e-6, max(int(2 * time), 1)
    norm = equilibrium * (1 + before)
    for _ in range(steps):
        norm = step(norm, lr, intrinsic_lr / lr, g)
    after = norm / equilibrium - 1
    measured = -steps / np.log(abs(after / before))
    # the second order of the deviation, 1e-6 times 1/multiplier per step, changes the logarithm of the two e-folds
    assert measured == pytest.approx(time, rel=2e-4)
    # the sign alternates beyond a = 1/2
    assert np.sign(after) == np.sign(multiplier) ** steps


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-6, 1.99), lrs, gradients, st.floats(1e-3, 1e3))
def test_symmetries(intrinsic_lr, lr, g, c):
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    # the norm depends on ηλ only through a = (1-ηλ)²; 2-ηλ rounds
    assert theory.equilibrium_norm(lr, (2 - intrinsic_lr) / lr, g) == pytest.approx(equilibrium, rel=1e-9)
    # ρ ∝ √η at fixed ηλ, ρ ∝ √g̃
    assert theory.equilibrium_norm(c * lr, intrinsic_lr / lr / c, g) == pytest.approx(c**0.5 * equilibrium, rel=1e-9)
    assert theory.equilibrium_norm(lr, intrinsic_lr / lr, c * g) == pytest.approx(c**0.5 * equilibrium, rel=1e-12)
    assert theory.equilibrium_effective_lr(lr, intrinsic_lr / lr, g) == pytest.approx(lr / equilibrium**2, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-9, 0.999), lrs, gradients)
def test_equilibrium_rotation_is_the_rotation_at_equilibrium(intrinsic_lr, lr, g):
    equilibrium = theory.equilibrium_norm(lr, intrinsic_lr / lr, g)
    # arctan and arcsin forms agree to rounding; 1-ηλ rounds near 1
    assert theory.equilibrium_rotation(lr, intrinsic_lr / lr) == pytest.approx(
        theory.rotation(equilibrium, lr, intrinsic_lr / lr, g), rel=1e-9
    )


def test_limits():
    assert theory.equilibrium_norm(0.1, 0.0) == np.inf
    assert theory.equilibrium_effective_lr(0.1, 0.0) == 0
    assert theory.equilibrium_rotation(0.1, 0.0) == 0
    assert theory.relaxation_time(0.1, 0.0) == np.inf
    assert theory.relaxation_time(1.0, 1.0) == np.inf
    assert theory.equilibrium_rotation(1e-9, 1.0) == pytest.approx(np.sqrt(2e-9), rel=1e-9)
    assert theory.relaxation_time(1e-9, 1.0) == pytest.approx(1 / 4e-9, rel=1e-8)


SHAPES = [
    (theory.equilibrium_norm, 3),
    (theory.equilibrium_effective_lr, 3),
    (theory.equilibrium_rotation, 2),
    (theory.relaxation_time, 2),
]


@pytest.mark.parametrize(("function", "arguments"), SHAPES, ids=lambda f: getattr(f, "__name__", ""))
def test_numbers_give_floats_and_arrays_broadcast(function, arguments):
    assert type(function(0.1, 0.01)) is float
    assert type(function(np.float32(0.5), 1)) is float
    settings = (np.array([[0.1], [0.5]]), [0.01, 0.02, 0.03], 2.0)[:arguments]
    grid = function(*settings)
    assert grid.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert grid[i, j] == function(settings[0][i, 0], settings[1][j], *settings[2:])
    assert function(np.ones((0, 1)), np.full(4, 0.5)).shape == (0, 4)


def test_moments_of_any_run():
    # exact over any window and for any g̃, with the change of ρ² and ρ⁴ at its ends
    generator = np.random.default_rng(0)
    lr, wd, n = 0.5, 0.01, 5000
    g = np.exp(generator.normal(size=n))
    norm = np.empty(n + 1)
    norm[0] = 2.0
    for t in range(n):
        norm[t + 1] = step(norm[t], lr, wd, g[t])
    a, squares = (1 - lr * wd) ** 2, norm**2
    left = squares[:-1].mean() * (1 - a) + (squares[-1] - squares[0]) / n
    # 1-a = 0.01 costs two digits, the sums of 5000 terms one or two
    assert left == pytest.approx(((lr * g / norm[:-1]) ** 2).mean(), rel=1e-11)
    fourth = squares**2
    left = fourth[:-1].mean() * (1 - a) + (fourth[-1] - fourth[0]) / (2 * n)
    assert left == pytest.approx(((lr * g) ** 2).mean() + (np.diff(squares) ** 2).mean() / 2, rel=1e-11)
