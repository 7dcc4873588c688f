import numpy as np
import pytest

import simulate
import theory


@pytest.mark.parametrize(
    "schedule", [theory.Linear(0.5, 0.05, 200_000), theory.Cosine(0.5, 0.05, 200_000)], ids=["linear", "cosine"]
)
def test_the_lag_is_that_of_a_slow_schedule(schedule):
    steps, wd, g = 200_000, 0.01, 2.0
    flow = simulate.norm_ode(schedule, wd, g, norm=theory.equilibrium_norm(0.5, wd, g), steps=steps, record_every=997)
    at = flow.step.values
    # quasi-equilibrium of the differential equation, ρ*⁴ = ηg̃²/(2λ)
    lag = flow.norm.values / (schedule(at) * g**2 / (2 * wd)) ** 0.25 - 1
    predicted = theory.tracking_lag(schedule, wd, at)
    settled = (at > 10_000) & (at < 190_000)
    assert abs(predicted[settled]).max() < 5e-3
    # the next order is the square of the lag, times a number of order ten
    np.testing.assert_allclose(lag[settled], predicted[settled], atol=20 * abs(predicted[settled]).max() ** 2 + 1e-6)


def test_where_the_lag_is_large_the_norm_does_not_follow():
    schedule, wd, g = theory.Linear(0.5, 1e-5, 3000), 0.01, 2.0
    run = simulate.norm_map(schedule, wd, g, norm=theory.equilibrium_norm(0.5, wd, g), steps=3000)
    equilibrium = theory.equilibrium_norm(run.lr.values, wd, g)
    lag = theory.tracking_lag(schedule, wd, run.step.values)
    behind = run.norm.values / equilibrium - 1
    assert (abs(behind[lag < 0.01]) < 0.02).all()
    assert (behind[lag > 1] > 0.2).all()
    assert lag[-1] > 1


def test_corrected_decay_keeps_the_equilibrium_and_the_gradient_norm():
    schedule, wd, g, steps = theory.Linear(0.5, 0.01, 20_000), 0.01, 2.0, 20_000
    lrs = schedule(np.arange(steps))
    decays = theory.corrected_decay(schedule, wd, np.arange(steps), lr_max=0.5)
    start = theory.equilibrium_norm(0.5, wd, g)
    corrected = plain = start
    for lr, corrected_wd in zip(lrs, decays, strict=True):
        corrected = np.hypot((1 - lr * corrected_wd) * corrected, lr * g / corrected)
        plain = np.hypot((1 - lr * wd) * plain, lr * g / plain)
    # the exact equilibrium has 2-ηλ instead of 2: a relative change of ηλ/8 in ρ
    assert corrected == pytest.approx(start, rel=2e-3)
    assert plain < 0.6 * start


def test_gradient_growth_is_exact_while_the_norm_follows():
    schedule, wd, g, steps = theory.Cosine(0.5, 0.005, 200_000), 0.01, 2.0, 200_000
    run = simulate.norm_map(schedule, wd, g, norm=theory.equilibrium_norm(0.5, wd, g), steps=steps, record_every=500)
    at = run.step.values
    last = theory.tracked_steps(schedule, wd, steps, tolerance=0.01)
    follows = at < last
    growth = run.norm.values[0] / run.norm.values
    np.testing.assert_allclose(growth[follows], theory.gradient_growth(schedule, wd, at[follows]), rtol=0.015)
    equilibrium = theory.quasi_equilibrium_norm(schedule, wd, at, g)
    np.testing.assert_allclose(run.norm.values[follows], equilibrium[follows], rtol=0.015)
    assert growth[follows].max() > 1.9


def test_tracked_steps_under_a_linear_decay():
    # docs: the lag exceeds ε in the last √(N/(16 ε η₀ λ)) steps
    for steps, tolerance in ((10_000, 0.1), (100_000, 0.02)):
        lost = steps - theory.tracked_steps(theory.Linear(0.5, 1e-12, steps), 0.01, steps, tolerance=tolerance)
        assert lost == pytest.approx((steps / (16 * tolerance * 0.5 * 0.01)) ** 0.5, abs=3)
    assert theory.tracked_steps(theory.Constant(0.5), 0.01, 100) == 100
    warm = theory.WarmUp(100, theory.Cosine(0.5, 1e-3, 10_000))
    assert theory.tracked_steps(warm, 0.01, 10_000) == 0  # no norm follows a warm-up
    later = theory.tracked_steps(warm, 0.01, 10_000, start=100)
    assert later == 100 + theory.tracked_steps(theory.Cosine(0.5, 1e-3, 10_000), 0.01, 10_000)
    assert theory.tracked_steps(theory.StepDecay(0.5, milestones=(40,)), 0.01, 100) == 40


def test_the_integral_under_a_schedule_is_the_simulated_one():
    # compare the derived integral, by quadrature, with the flow that keeps η constant within each step
    from scipy.integrate import quad

    wd, g, start, end = 0.02, 2.0, 3.0, 2000
    schedule = theory.Cosine(0.5, 0.05, end)

    def exponent(t):
        return 4 * wd * quad(schedule, 0, t)[0]

    growth = quad(lambda t: float(schedule(t)) ** 2 * np.exp(exponent(t) - exponent(end)), 0, end, limit=200)[0]
    fourth = start**4 * np.exp(-exponent(end)) + 2 * g**2 * growth
    flow = simulate.norm_ode(schedule, wd, g, norm=start, steps=end)
    # η is sampled at the beginning of each step: an error of the order of its change per step
    assert flow.final_norm.item() ** 4 == pytest.approx(fourth, rel=5e-3)


def test_limits_and_errors():
    assert theory.tracking_lag(theory.Constant(0.1), 0.01, 5) == 0
    assert theory.tracking_lag(theory.Constant(0.1), 0.0, 5) == 0
    assert theory.tracking_lag(theory.Linear(0.5, 0.1, 10), 0.0, 5) == np.inf
    assert theory.tracking_lag(theory.Linear(0.1, 0.5, 10), 0.01, 5) < 0
    assert theory.tracking_lag(theory.Linear(0.5, 0.1, 10), [0.1, 0.2], [[0], [5]]).shape == (2, 2)
    for call, name in (
        (lambda: theory.tracking_lag(0.1, 0.01, 5), "lr"),
        (lambda: theory.tracking_lag(theory.Constant(0.1), -1, 5), "wd"),
        (lambda: theory.tracking_lag(theory.Constant(0.1), 0.1, -5), "step"),
        (lambda: theory.corrected_decay(theory.Constant(0.1), 0.1, 5, lr_max=0), "lr_max"),
        (lambda: theory.quasi_equilibrium_norm(0.1, 0.1, 5), "lr"),
        (lambda: theory.gradient_growth(theory.Constant(0.1), 0.0, 5), "wd"),
        (lambda: theory.tracked_steps(theory.Constant(0.1), 0.1, 0), "steps"),
        (lambda: theory.tracked_steps(theory.Constant(0.1), 0.0, 5), "wd"),
        (lambda: theory.tracked_steps(theory.Constant(0.1), 0.1, 5, start=6), "start"),
        (lambda: theory.tracked_steps(theory.Constant(0.1), 0.1, 5, tolerance=0.0), "tolerance"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            call()
