import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory


def noisy(intrinsic_lr, variation, steps, runs, seed=0):
    """Norms under independent log-normal g̃² with mean 4 and relative standard deviation `variation`."""
    width = np.sqrt(np.log1p(variation**2))
    squares = 4 * np.exp(width * np.random.default_rng(seed).normal(size=(runs, steps)) - width**2 / 2)
    start = theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, 2.0)
    return simulate.norm_map(
        0.5, intrinsic_lr / 0.5, simulate.RecordedGradient(np.sqrt(squares)), norm=start, steps=steps
    )


@pytest.mark.parametrize(("intrinsic_lr", "variation"), [(1e-2, 0.5), (1e-2, 1.0), (0.1, 0.3), (0.2, 0.2)])
def test_spread_is_that_of_simulated_noise(intrinsic_lr, variation):
    runs = 64
    run = noisy(intrinsic_lr, variation, int(400 / intrinsic_lr) + 2000, runs).norm.values[:, 500:]
    spread = theory.equilibrium_spread(0.5, intrinsic_lr / 0.5, variation)
    logs = np.log(run)
    fourth = (run**4).mean(axis=1) / theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, 2.0) ** 4
    # first order in (1-a)V²: the next order is its square
    size = (1 - (1 - intrinsic_lr) ** 2) * variation**2
    assert abs(fourth.mean() - spread.mean_ratio) < 4 * fourth.std(ddof=1) / runs**0.5 + size**2
    deviation = logs.std(axis=1)
    assert abs(deviation.mean() / spread.deviation - 1) < 4 * deviation.std() / deviation.mean() / runs**0.5 + size
    correlation = np.array([np.corrcoef(row[:-1], row[1:])[0, 1] for row in logs])
    assert abs(correlation.mean() - spread.correlation) < 4 * correlation.std() / runs**0.5 + size
    # over three steps
    third = np.array([np.corrcoef(row[:-3], row[3:])[0, 1] for row in logs])
    assert abs(third.mean() - spread.correlation**3) < 4 * third.std() / runs**0.5 + size


def test_gradients_that_are_correlated_in_time_increase_the_spread():
    # the control: the same values in long blocks
    g = np.repeat(np.tile([1.0, 3.0], 50), 200)
    run = simulate.norm_map(0.5, 0.02 / 0.5, simulate.RecordedGradient(g), norm=2.0, steps=g.size)
    spread = theory.equilibrium_spread(0.5, 0.02 / 0.5, np.std(g**2) / np.mean(g**2))
    assert np.log(run.norm.values[1000:]).std() > 3 * spread.deviation


@pytest.mark.parametrize("intrinsic_lr", [0.01, 0.3, 0.7])
def test_the_moment_identities_hold_for_any_gradients(intrinsic_lr):
    # correlated and heavy-tailed: the only assumption is stationarity, with the exact contribution of the ends
    generator = np.random.default_rng(1)
    g = np.exp(np.cumsum(generator.normal(size=4000)) % 3)
    run = simulate.norm_map(0.5, intrinsic_lr / 0.5, simulate.RecordedGradient(g), norm=1.0, steps=4000)
    r = np.append(run.norm.values, run.final_norm) ** 2
    a, n = (1 - intrinsic_lr) ** 2, g.size
    first = (1 - a) * r[:-1].mean() + (r[-1] - r[0]) / n
    assert first == pytest.approx((0.25 * g**2 / r[:-1]).mean(), rel=1e-10)
    second = (1 - a) * (r[:-1] ** 2).mean() + (r[-1] ** 2 - r[0] ** 2) / (2 * n)
    # E[(r⁺)²] differs from E[r²] only by the ends
    assert second == pytest.approx(0.25 * (g**2).mean() + (np.diff(r) ** 2).mean() / 2, rel=1e-10)


def test_the_mean_fourth_power_requires_a_fourth_moment_of_the_gradients():
    lr, wd, steps = 0.5, 0.2, 10**6
    a = (1 - lr * wd) ** 2
    ratios = {}
    for name in ("exponential", "pareto"):
        generator = np.random.default_rng(1)
        # g̃² with mean 3; the second moment of the Pareto law of index 1.5 is infinite
        sq_gradients = (
            3 * generator.exponential(size=steps) if name == "exponential" else 1 + generator.pareto(1.5, steps)
        )
        run = simulate.norm_map(lr, wd, simulate.RecordedGradient(np.sqrt(sq_gradients)), norm=2.0, steps=steps)
        r = run.norm.values**2
        ratios[name] = [
            (r[:count] ** 2).mean() / theory.equilibrium_norm(lr, wd, np.sqrt(sq_gradients[:count].mean())) ** 4
            for count in (10**3, 10**4, 10**5, 10**6)
        ]
        # the first identity holds for both
        assert (1 - a) * r.mean() == pytest.approx(lr**2 * (sq_gradients / r).mean(), rel=1e-4)
    # 1 + κ²V²/2 with V = 1 is 1.117, to first order
    assert ratios["exponential"] == pytest.approx([theory.equilibrium_spread(lr, wd, 1.0).mean_ratio] * 4, rel=0.05)
    # the mean of ρ⁴ grows with the length of the run and has no limit
    assert ratios["pareto"][0] > 1.5
    assert ratios["pareto"][-1] > 100


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(1e-8, 0.99), st.floats(0, 3))
def test_limits(intrinsic_lr, variation):
    spread = theory.equilibrium_spread(0.1, intrinsic_lr / 0.1, variation)
    assert spread.mean_ratio >= 1
    assert spread.deviation >= 0
    assert -1 <= spread.correlation <= 1
    assert theory.equilibrium_spread(0.1, intrinsic_lr / 0.1, 0.0)[:2] == (1, 0)
    # the correlation is that of the relaxation
    assert abs(spread.correlation) == pytest.approx(
        np.exp(-1 / theory.relaxation_time(0.1, intrinsic_lr / 0.1)), abs=1e-9
    )


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="variation"):
        theory.equilibrium_spread(0.1, 0.1, -1)
    with pytest.raises(ValueError, match=r"lr \* wd must be < 1"):
        theory.equilibrium_spread(1.0, 1.0, 1)
