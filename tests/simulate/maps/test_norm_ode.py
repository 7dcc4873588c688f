import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import simulate
import theory


def test_error_against_the_map_is_of_first_order_in_the_intrinsic_lr():
    # the same stretch of ηλt, with ever smaller ηλ
    errors, sizes = [], np.array([4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4])
    for intrinsic_lr in sizes:
        steps = round(0.5 / intrinsic_lr)
        start = 0.5 * theory.equilibrium_norm(1.0, intrinsic_lr, 2.0)
        flow, exact = (
            f(1.0, intrinsic_lr, 2.0, norm=start, steps=steps) for f in (simulate.norm_ode, simulate.norm_map)
        )
        errors.append(float(abs(flow.norm**4 / exact.norm**4 - 1).max()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.floats(0.01, 1), st.floats(0, 0.5), st.floats(0.1, 5), st.floats(0.3, 5))
def test_it_solves_the_equation(lr, wd, g, norm):
    steps = 40
    schedule = theory.StepDecay(lr, milestones=(13, 27), factor=0.5)
    flow = simulate.norm_ode(schedule, wd, g, norm=norm, steps=steps)
    r, sq_norms = norm**2, []
    # piece by piece, because a discontinuity of the right-hand side costs an integrator its accuracy
    for start, stop in ((0, 13), (13, 27), (27, 40)):
        eta = float(schedule(start))

        def slope(t, r, eta=eta):
            return -2 * eta * wd * r + (eta * g) ** 2 / r

        solution = solve_ivp(slope, (start, stop), [r], t_eval=range(start, stop + 1), rtol=1e-10, atol=1e-12)
        sq_norms.extend(solution.y[0][:-1])
        r = solution.y[0][-1]
    np.testing.assert_allclose(flow.norm**2, sq_norms, rtol=1e-7)
    assert flow.final_norm.item() ** 2 == pytest.approx(r, rel=1e-7)


def test_contract():
    flow = simulate.norm_ode([[0.1], [0.2]], [0.01, 0.02, 0.0], 2.0, norm=1.0, steps=9, record_every=4)
    assert flow.norm.dims == ("lr", "wd", "step")
    assert flow.attrs["source"] == "ode"
    assert flow.step.values.tolist() == [0, 4, 8]
    np.testing.assert_allclose(flow.rotation, flow.effective_lr * flow.grad_norm)
    # without decay r² grows linearly
    np.testing.assert_allclose(flow.norm.sel(wd=0.0) ** 4, 1 + 2 * (flow.lr * 2.0) ** 2 * flow.step, rtol=1e-12)


def test_recorded_gradients_move_it():
    gradient = np.linspace(1, 3, 20)
    flow = simulate.norm_ode(0.01, 0.1, simulate.RecordedGradient(gradient), norm=1.0, steps=20)
    exact = simulate.norm_map(0.01, 0.1, simulate.RecordedGradient(gradient), norm=1.0, steps=20)
    # ηλ = 1e-3, and twenty steps
    np.testing.assert_allclose(flow.norm, exact.norm, rtol=1e-3)


class TestCrossings:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(
        st.floats(0.01, 1),
        st.one_of(st.just(0.0), st.floats(1e-4, 0.5)),
        st.floats(0.1, 5),
        st.floats(0.3, 5),
        st.floats(0.1, 3),
    )
    def test_they_equal_those_of_an_integrator(self, lr, wd, g, norm, height):
        # the norm may cross the level at once, never, or only after η has dropped
        schedule = theory.StepDecay(lr, milestones=(13, 27), factor=0.2)
        flow = simulate.norm_ode(schedule, wd, g, norm=norm, steps=40, levels=[height])
        u, first_crossing = norm**4, math.inf
        for start, stop in ((0, 13), (13, 27), (27, 40)):
            eta = float(schedule(start))

            def slope(t, u, eta=eta):
                return -4 * eta * wd * u + 2 * (eta * g) ** 2

            def above(t, u):
                return u[0] - height**4

            path = solve_ivp(slope, (start, stop), [u], events=above, rtol=1e-11, atol=1e-13, max_step=1.0)
            first_crossing = min([first_crossing, *path.t_events[0]])
            u = path.y[0][-1]
        near = np.append(abs(flow.norm.values / height - 1), abs(flow.final_norm.item() / height - 1)).min()
        if near > 1e-6:
            assert flow.crossing_time.item() == pytest.approx(first_crossing, rel=1e-6)

    def test_within_a_step_they_are_exact(self):
        # one step of the same ηλt as a thousand: the closed form knows no steps
        coarse = simulate.norm_ode(1.0, 0.1, 1.0, norm=2.0, steps=1, levels=[1.99, 1.95, 1.9])
        fine = simulate.norm_ode(1e-3, 0.1, 1e1 * 10**0.5, norm=2.0, steps=1000, levels=[1.99, 1.95, 1.9])
        np.testing.assert_allclose(fine.crossing_time, 1000 * coarse.crossing_time, rtol=1e-9)

    def test_the_norm_at_a_crossing_time_is_the_level(self):
        levels = np.array([5.0, 3.0, 2.2])
        flow = simulate.norm_ode(0.1, 0.01, 2.0, norm=6.0, steps=5000, record_every=None, levels=levels)
        there = theory.norm_flow(flow.crossing_time.values, 6.0, 0.1, 0.01, 2.0)
        np.testing.assert_allclose(there, levels, rtol=1e-12)
        assert flow.crossing_time.dims == ("level",)
        np.testing.assert_array_equal(flow.level, levels)

    def test_decay_without_gradients_takes_the_decay_time_of_theory(self):
        # without gradients ρ decays by exp(-ηλ) per step; in the map, as in decay_time, by 1-ηλ, equal to first order
        for intrinsic_lr in (1e-3, 1e-4):
            flow = simulate.norm_ode(
                1.0, intrinsic_lr, 0.0, norm=4.0, steps=int(2 / intrinsic_lr), levels=[1.0], record_every=None
            )
            assert flow.crossing_time.item() == pytest.approx(math.log(4) / intrinsic_lr, rel=1e-12)
            assert flow.crossing_time.item() == pytest.approx(
                theory.decay_time(4.0, 1.0, 1.0, intrinsic_lr, 0.0), rel=intrinsic_lr
            )
        pushed = simulate.norm_ode(1.0, 1e-4, 0.02, norm=4.0, steps=30_000, levels=[2.0], record_every=None)
        assert pushed.crossing_time.item() == pytest.approx(theory.decay_time(4.0, 2.0, 1.0, 1e-4, 0.02), rel=1e-3)

    def test_at_the_start_at_the_end_and_never(self):
        flow = simulate.norm_ode(0.1, 0.0, 1.0, norm=1.5, steps=100, levels=[1.5, 1.4, 99.0])
        assert flow.crossing_time.values.tolist() == [0.0, math.inf, math.inf]
        assert simulate.norm_ode(0.1, 0.0, 1.0, norm=1.5, steps=0, levels=[1.5]).crossing_time.item() == 0.0
        again = simulate.norm_ode(0.1, 0.0, 1.0, norm=1.5, steps=100, levels=[flow.norm.values[60]])
        assert again.crossing_time.item() == pytest.approx(60, abs=1e-9)

    def test_the_first_time_counts(self):
        # up under a large gradient, down without, up again
        gradient = simulate.RecordedGradient([5.0] * 10 + [0.0] * 60 + [5.0] * 10)
        flow = simulate.norm_ode(0.1, 0.5, gradient, norm=0.5, steps=80, levels=[1.0])
        inside = np.flatnonzero(np.diff(np.sign(flow.norm.values - 1.0)))
        assert inside.size == 3
        assert inside[0] <= flow.crossing_time.item() <= inside[0] + 1

    def test_a_batch_equals_its_members(self):
        schedule = theory.Cosine(0.5, 0.1, 50)
        levels = [0.5, 1.5, 2.0]
        batch = simulate.norm_ode(schedule, [0.0, 0.1, 1.0], 1.0, norm=[[1.0], [3.0]], steps=60, levels=levels)
        assert batch.crossing_time.dims == (*batch.final_norm.dims, "level")
        assert np.isfinite(batch.crossing_time).any()
        for i, norm in enumerate((1.0, 3.0)):
            for j, wd in enumerate((0.0, 0.1, 1.0)):
                alone = simulate.norm_ode(schedule, wd, 1.0, norm=norm, steps=60, levels=levels, record_every=None)
                np.testing.assert_array_equal(batch.crossing_time[i, j], alone.crossing_time)

    def test_a_continued_run_keeps_its_crossing_times(self):
        first = simulate.norm_ode(0.1, 0.5, 0.0, norm=2.0, steps=10, levels=[1.5, 1.0])
        assert np.isfinite(first.crossing_time).values.tolist() == [True, False]
        levels = [1.0, 1.2, 1.5]
        more = simulate.norm_ode(0.1, 0.5, 0.0, steps=10, start=first, levels=levels)
        whole = simulate.norm_ode(0.1, 0.5, 0.0, norm=2.0, steps=20, levels=levels)
        np.testing.assert_array_equal(more.crossing_time, whole.crossing_time)
        # a level added after the norm has passed it is not crossed again
        late = simulate.norm_ode(0.1, 0.5, 0.0, steps=10, start=first, levels=[1.9])
        assert late.crossing_time.item() == math.inf

    @pytest.mark.parametrize(
        ("levels", "error", "message"),
        [
            (1.0, ValueError, r"^levels must be one-dimensional, got shape \(\)"),
            ([0.0], ValueError, r"^levels must be a finite number > 0, got 0.0 at index 0"),
            ([1.0, math.nan], ValueError, r"^levels must be .*got nan at index 1"),
            ([1e200], ValueError, r"^levels must be "),
            (["a"], TypeError, r"^levels must be "),
        ],
    )
    def test_bad_levels_are_named(self, levels, error, message):
        with pytest.raises(error, match=message):
            simulate.norm_ode(0.1, 0.1, 2.0, norm=1.0, steps=3, levels=levels)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="wd must be"):
        simulate.norm_ode(0.1, -0.1, 2.0, norm=1.0, steps=3)
    with pytest.raises(TypeError, match=r"^norm must be.*0 .*got None"):
        simulate.norm_ode(0.1, 0.1, 2.0, steps=3)
    start = simulate.norm_map(0.1, 0.1, 2.0, norm=1.0, steps=3)
    with pytest.raises(ValueError, match=r"^start must have the source 'ode', got 'map'"):
        simulate.norm_ode(0.1, 0.1, 2.0, steps=3, start=start)


def test_an_empty_batch_has_crossing_times_of_no_trajectory():
    run = simulate.norm_ode([], 0.01, 2.0, norm=1.0, steps=3, levels=[1.5, 3.0])
    assert run.crossing_time.shape == (0, 2)
    assert simulate.norm_ode([], 0.01, 2.0, steps=3, levels=[1.5, 3.0], start=run).crossing_time.shape == (0, 2)


OPTIMIZERS = {
    "SGD": theory.SGD(),
    "momentum": theory.SGD(momentum=0.9),
    "decoupled": theory.SGD(momentum=0.9, decoupled=True),
    "AdamW": theory.AdamW(dim=400, betas=(0.9, 0.99)),
    "Adam": theory.Adam(dim=400, betas=(0.9, 0.99)),
    "Lion": theory.Lion(dim=400),
    "Muon": theory.Muon(rows=20, columns=20),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestOptimizers:
    def test_it_is_the_law_of_small_steps(self, name):
        rule, lr, wd = OPTIMIZERS[name], theory.Cosine(1e-2, 1e-3, 500), theory.Linear(0.5, 0.1, 500)
        start = np.array([0.3, 3.0]) * theory.equilibrium_norm(1e-2, 0.5, 2.0, optimizer=rule)
        flow = simulate.norm_ode(lr, wd, 2.0, norm=start, steps=500, optimizer=rule)
        norms = theory.norm_under_schedule(lr, wd, 500, norm=start, grad_norm=2.0, optimizer=rule)
        np.testing.assert_allclose(flow.norm, norms[:, :-1], rtol=1e-10)
        np.testing.assert_allclose(flow.final_norm, norms[:, -1], rtol=1e-10)
        assert flow.optimizer == repr(rule)

    def test_norm_and_rotation_are_those_of_the_map(self, name):
        rule = OPTIMIZERS[name]
        wd = 1e-5 if name == "Adam" else 1e-3  # the norm changes little in the memory of the second moment
        settled = theory.equilibrium_norm(1e-2, wd, 2.0, optimizer=rule)
        steps = round(4 * theory.relaxation_time(1e-2, wd, grad_norm=2.0, optimizer=rule))
        runs = [
            f(1e-2, wd, 2.0, norm=1.3 * settled, steps=steps, optimizer=rule, record_every=max(1, steps // 100))
            for f in (simulate.norm_ode, simulate.norm_map)
        ]
        # the first steps of the map have no momentum yet; the rest is of order ηλ, and 1-β of the memory over the decay
        flow, exact = (run.isel(step=slice(5, None)) for run in runs)
        np.testing.assert_allclose(flow.norm, exact.norm, rtol=2e-3)
        np.testing.assert_allclose(flow.rotation, exact.rotation, rtol=4e-3)

    def test_times_of_levels_are_those_between_the_steps(self, name):
        rule = OPTIMIZERS[name]
        settled = theory.equilibrium_norm(0.01, 0.1, 2.0, optimizer=rule)
        steps = round(5 * theory.relaxation_time(0.01, 0.1, grad_norm=2.0, optimizer=rule))
        start, levels = np.array([0.3, 3.0]) * settled, np.array([0.8, 1.2]) * settled
        flow = simulate.norm_ode(0.01, 0.1, 2.0, norm=start, steps=steps, levels=levels, optimizer=rule)
        for member, rises in ((0, True), (1, False)):
            norms = np.append(flow.norm[member], flow.final_norm[member])
            time = np.arange(steps + 1.0)
            norms, time = (norms, time) if rises else (norms[::-1], time[::-1])
            expected = np.interp(levels[member], norms, time)
            assert flow.crossing_time.values[member, member] == pytest.approx(expected, abs=0.02)


def test_laws_without_powers_and_vanishing_gradients_are_refused():
    class Odd(theory.AdamW):
        def norm_growth(self, lr, grad_norm):
            return lr * lr * (1 + grad_norm)

    with pytest.raises(ValueError, match=r"^optimizer must have a norm_rate proportional to ηλ.*Odd\(dim=5\)"):
        simulate.norm_ode(0.1, 0.1, 1.0, norm=1.0, steps=3, optimizer=Odd(dim=5))
    with pytest.raises(ValueError, match=r"^grad_norm must be > 0 in norm_ode with Adam\(dim=5\), got 0"):
        simulate.norm_ode(0.1, 0.1, 0.0, norm=1.0, steps=3, optimizer=theory.Adam(dim=5))
    with pytest.raises(ValueError, match=r"^grad_norm must not be adversarial"):
        simulate.norm_ode(
            0.1, 0.1, simulate.AdversarialGradient(1.0, 2.0), norm=1.0, steps=3, optimizer=theory.AdamW(dim=5)
        )
