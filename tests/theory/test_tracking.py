import numpy as np
import pytest

import simulate
import theory

DIM = 400
RULES = [
    theory.SGD(),
    theory.SGD(momentum=0.8),
    theory.SGD(momentum=0.8, nesterov=True),
    theory.SGD(momentum=0.8, decoupled=True),
    theory.AdamW(dim=DIM, betas=(0.9, 0.95)),
    theory.Lion(dim=DIM, betas=(0.9, 0.95)),
    theory.Adam(dim=DIM, betas=(0.9, 0.95)),
]
STEPS, LR, GRADIENT = 8000, 0.01, 2.0
SCHEDULES = {
    "cosine": theory.Cosine(LR, 0.05 * LR, STEPS),
    "linear to zero": theory.Linear(LR, 1e-9, STEPS),
    "warm-up": theory.WarmUp(STEPS // 10, theory.Linear(LR, 0.05 * LR, STEPS - STEPS // 10)),
    "steps": theory.StepDecay(LR, milestones=(STEPS // 3, 2 * STEPS // 3), factor=0.3),
}


def wd_of_time(rule, steps):
    """Weight decay with this relaxation time at LR."""
    # relaxation times are inversely proportional to a power of the weight decay: 1, and 2/3 under Adam
    power = 2 / 3 if isinstance(rule, theory.Adam) else 1
    small = 1e-4
    return small * (theory.relaxation_time(LR, small, grad_norm=GRADIENT, optimizer=rule) / steps) ** (1 / power)


class TestEveryOptimizer:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_the_norm_is_that_of_random_walks(self, rule, schedule):
        lr, wd = SCHEDULES[schedule], wd_of_time(rule, 600)
        start = 1.3 * theory.equilibrium_norm(LR, wd, GRADIENT, optimizer=rule)
        settings = {"norm": start, "grad_norm": GRADIENT, "optimizer": rule}
        predicted = theory.norm_under_schedule(lr, wd, STEPS, **settings)
        walk = simulate.random_walk(lr, wd, steps=STEPS, dim=DIM, walkers=8, seed=0, record_every=20, **settings)
        np.testing.assert_allclose(np.sqrt((walk.norm**2).mean("batch")), predicted[walk.step.values], rtol=0.02)

    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_the_lag_and_the_growth_are_those_of_slow_schedules(self, rule):
        steps, wd = 100_000, wd_of_time(rule, 200)
        lr = theory.Cosine(LR, 0.1 * LR, steps)
        at = np.arange(10_000, 75_000, 500)
        settings = {"grad_norm": GRADIENT, "optimizer": rule}
        start = theory.equilibrium_norm(LR, wd, **settings)
        norms = theory.norm_under_schedule(lr, wd, steps, norm=start, **settings)
        lag = theory.tracking_lag(lr, wd, at, **settings)
        assert 2e-3 < lag.max() < 0.03
        equilibrium = theory.quasi_equilibrium_norm(lr, wd, at, **settings)
        # this leaves corrections of order ηλ
        np.testing.assert_allclose(norms[at], equilibrium * (1 + lag), rtol=0.03)
        gradients = np.full(at.shape, GRADIENT)
        limit = rule.norm_growth(lr(at), gradients) / rule.norm_rate(lr(at), np.full(at.shape, wd), gradients)
        # the next order is the square of the lag, times a number of order ten
        np.testing.assert_allclose(
            norms[at] / limit ** (1 / rule.norm_power) - 1, lag, rtol=0.02, atol=15 * lag.max() ** 2
        )
        growth = theory.gradient_growth(lr, wd, at, optimizer=rule)
        np.testing.assert_allclose(growth * (1 - lag), norms[0] / norms[at], rtol=0.03)
        assert growth.max() > 1.3

    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_small_deviations_relax_in_the_relaxation_time(self, rule):
        wd = wd_of_time(rule, 600)
        assert theory.relaxation_time(LR, wd, grad_norm=GRADIENT, optimizer=rule) == pytest.approx(600, rel=1e-3)
        near, at = (
            theory.norm_under_schedule(LR, wd, 600, norm=norm, grad_norm=GRADIENT, optimizer=rule)
            for norm in np.array([1.0001, 1.0])
            * (rule.norm_growth(LR, GRADIENT) / rule.norm_rate(LR, wd, GRADIENT)) ** (1 / rule.norm_power)
        )
        assert np.log(near[-1] / at[-1]) == pytest.approx(1e-4 / np.e, rel=5e-3)

    def test_heavy_ball_has_the_exact_time(self):
        for decoupled in (False, True):
            rule = theory.SGD(momentum=0.9, decoupled=decoupled)
            exact = theory.momentum_relaxation(0.1, 1e-4, momentum=0.9, decoupled=decoupled)
            assert theory.relaxation_time(0.1, 1e-4, optimizer=rule) == pytest.approx(exact.time, rel=5e-3)

    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_corrected_decay_keeps_the_norm(self, rule):
        steps, wd = 100_000, wd_of_time(rule, 600)
        lr = theory.Cosine(LR, 0.05 * LR, steps)

        def corrected(step):
            return theory.corrected_decay(lr, wd, step, lr_max=LR)

        settings = {"grad_norm": GRADIENT, "optimizer": rule}
        start = theory.equilibrium_norm(LR, wd, **settings)
        norms = theory.norm_under_schedule(lr, corrected, steps, norm=start, **settings)
        np.testing.assert_allclose(norms, start, rtol=0.01)
        assert np.abs(theory.tracking_lag(lr, corrected, np.arange(0, steps, 100), **settings)).max() < 1e-9
        assert theory.gradient_growth(lr, corrected, steps, optimizer=rule) == pytest.approx(1, rel=0.01)
        assert theory.tracked_steps(lr, corrected, steps, **settings) == steps
        constant = theory.norm_under_schedule(lr, wd, steps, norm=start, **settings)
        assert constant[-1] < 0.6 * start

    def test_it_is_the_solution_of_the_differential_equation_for_plain_sgd(self):
        lr, wd = theory.Cosine(0.5, 0.05, 400), theory.Linear(0.02, 0.002, 400)
        flow = simulate.norm_ode(lr, wd, 2.0, norm=3.0, steps=400)
        norms = theory.norm_under_schedule(lr, wd, 400, norm=3.0, grad_norm=2.0)
        np.testing.assert_allclose(norms[:-1], flow.norm, rtol=1e-12)
        exact = simulate.norm_map(lr, wd, 2.0, norm=3.0, steps=400)
        np.testing.assert_allclose(norms[:-1], exact.norm, rtol=0.01)

    def test_adamw_lags_four_times_as_long_as_sgd(self):
        lr, at = theory.Linear(3e-3, 3e-4, 40_000), 36_000
        plain = theory.tracking_lag(lr, 0.5, at)
        assert theory.tracking_lag(lr, 0.5, at, optimizer="AdamW") == pytest.approx(4 * plain, rel=1e-6)

    def test_without_decay_and_in_batches(self):
        for rule in RULES:
            free = theory.norm_under_schedule(0.01, 0.0, 50, norm=1.0, optimizer=rule)
            settings = {"lr": np.array([0.01, 0.02]), "wd": np.array([[0.0], [0.1], [0.2]]), "norm": 1.0}
            batch = theory.norm_under_schedule(steps=50, optimizer=rule, **settings)
            assert batch.shape == (3, 2, 51)
            np.testing.assert_allclose(batch[0, 0], free, rtol=1e-12)
            assert (np.diff(free) > 0).all()
            assert (np.diff(batch[..., -1], axis=0) < 0).all()
            assert theory.relaxation_time(0.01, 0.0, optimizer=rule) == np.inf


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
        (lambda: theory.tracking_lag(theory.Constant(0.1), lambda step: -1.0 + 0 * step, 5), "wd"),
        (lambda: theory.tracking_lag(theory.Constant(0.1), lambda step: np.ones(3), 5), "wd"),
        (lambda: theory.norm_under_schedule(0.1, 0.1, 5, norm=0.0), "norm"),
        (lambda: theory.norm_under_schedule(0.1, 0.1, -5, norm=1.0), "steps"),
        (lambda: theory.norm_under_schedule(0.1, 30.0, 5, norm=1.0), "lr"),
        (lambda: theory.norm_under_schedule(theory.Constant(0.1), 0.1, 5, norm=1.0, grad_norm=-1.0), "grad_norm"),
        (lambda: theory.norm_under_schedule(0.1, 0.1, 5, norm=1.0, optimizer="AdamW"), "dim"),
        (lambda: theory.relaxation_time(0.1, 0.1, optimizer="Adam"), "dim"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            call()


def by_step(values):
    """Schedule with these values."""
    return lambda step: values[np.asarray(step, dtype=int)]


class TestWantedEffectiveLr:
    @pytest.mark.parametrize("rule", RULES, ids=repr)
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_both_ways_give_it_at_every_step(self, rule, schedule):
        wd = wd_of_time(rule, 600)
        settled = theory.equilibrium_norm(LR, wd, GRADIENT, optimizer=rule)
        common = {"norm": 1.3 * settled, "grad_norm": GRADIENT, "optimizer": rule}

        def wanted(step):
            return SCHEDULES[schedule](step) / settled ** (1 / rule.norm_exponent)

        fixed = theory.settings_for_effective_lr(wanted, STEPS, **common)
        np.testing.assert_array_equal(fixed.norm, 1.3 * settled)
        free = theory.settings_for_effective_lr(wanted, STEPS, wd=wd, **common)
        assert np.ptp(np.log(free.norm)) > 0.1
        for settings in (fixed, free):
            norms = theory.norm_under_schedule(by_step(settings.lr), by_step(settings.wd), STEPS, **common)
            # the law of small steps against the exact equilibrium: of order ηλ
            np.testing.assert_allclose(norms, settings.norm, rtol=0.02)
            effective = settings.lr / norms[:-1] ** (1 / rule.norm_exponent)
            np.testing.assert_allclose(effective, wanted(np.arange(STEPS)), rtol=0.04)

    @pytest.mark.parametrize("wd", [None, 0.02, theory.Linear(0.05, 0.002, 2000)], ids=repr)
    def test_it_is_that_of_the_exact_map_of_sgd(self, wd):
        wanted = theory.Cosine(0.05, 0.005, 2000)
        settings = theory.settings_for_effective_lr(wanted, 2000, wd=wd, norm=2.0, grad_norm=GRADIENT)
        run = simulate.norm_map(by_step(settings.lr), by_step(settings.wd), GRADIENT, norm=2.0, steps=2000)
        np.testing.assert_allclose(run.effective_lr, wanted(run.step.values), rtol=0.01)
        np.testing.assert_allclose(run.norm, settings.norm[:-1], rtol=0.005)

    def test_a_constant_one_settles_where_a_constant_lr_does(self):
        """At equilibrium it does not matter which of the two is held constant."""
        for rule in RULES:
            wd, settings = wd_of_time(rule, 600), {"grad_norm": GRADIENT, "optimizer": rule}
            norm = theory.equilibrium_norm(LR, wd, **settings)
            wanted = LR / norm ** (1 / rule.norm_exponent)
            path = theory.settings_for_effective_lr(wanted, STEPS, wd=wd, norm=2 * norm, **settings)
            assert path.lr[-1] == pytest.approx(LR, rel=0.02)

    def test_too_large_steps_have_no_weight_decay_that_keeps_the_norm(self):
        assert np.isnan(theory.settings_for_effective_lr(1.5, 3, norm=1.0).wd).all()
        with pytest.raises(ValueError, match=r"^effective_lr must be"):
            theory.settings_for_effective_lr(lambda step: 0.0 * np.asarray(step), 3, norm=1.0)
        with pytest.raises(ValueError, match="lr \\* wd"):
            theory.settings_for_effective_lr(1.0, 50, wd=1.0, norm=2.0)

    @pytest.mark.parametrize(("rule", "power"), [("SGD", 4), ("AdamW(dim=100)", 2)])
    @pytest.mark.parametrize("ratio", [0.05, 1.0, 20.0])
    def test_modulation_of_the_learning_rate_is_damped_by_the_norm_only_if_it_is_slow(self, rule, power, ratio):
        """δln e = (1 - 1/(2(1 + iωτ))) δln η: the square root for slow modulation, all of it for fast modulation."""
        lr, wd, amplitude = 1e-3, 1.0, 0.02
        time = theory.relaxation_time(lr, wd, optimizer=rule)
        frequency = ratio / time
        steps = round((10 + 4 * np.pi / ratio) * time)
        at = np.arange(steps)
        lrs = lr * np.exp(amplitude * np.sin(frequency * at))
        norm = theory.equilibrium_norm(lr, wd, optimizer=rule)
        norms = theory.norm_under_schedule(by_step(lrs), wd, steps, norm=norm, optimizer=rule)[:-1]
        effective = np.log(lrs / norms ** (power // 2))
        late = at >= steps - round(2 * np.pi / frequency)
        gain = np.ptp(effective[late]) / (2 * amplitude)
        assert gain == pytest.approx(abs(1 - 0.5 / (1 + 1j * ratio)), rel=0.01)
