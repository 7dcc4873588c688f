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
    for k in sizes:
        steps = round(0.5 / k)
        start = 0.5 * theory.equilibrium_norm(1.0, k, 2.0)
        flow, exact = (f(1.0, k, 2.0, norm=start, steps=steps) for f in (simulate.norm_ode, simulate.norm_map))
        errors.append(float(abs(flow.norm**4 / exact.norm**4 - 1).max()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.floats(0.01, 1), st.floats(0, 0.5), st.floats(0.1, 5), st.floats(0.3, 5))
def test_it_solves_the_equation(lr, wd, g, norm):
    steps = 40
    schedule = theory.StepDecay(lr, milestones=(13, 27), factor=0.5)
    flow = simulate.norm_ode(schedule, wd, g, norm=norm, steps=steps)
    r, seen = norm**2, []
    # piece by piece, because a jump of the right-hand side costs an integrator its accuracy
    for start, stop in ((0, 13), (13, 27), (27, 40)):
        eta = float(schedule(start))

        def slope(t, r, eta=eta):
            return -2 * eta * wd * r + (eta * g) ** 2 / r

        found = solve_ivp(slope, (start, stop), [r], t_eval=range(start, stop + 1), rtol=1e-10, atol=1e-12)
        seen.extend(found.y[0][:-1])
        r = found.y[0][-1]
    np.testing.assert_allclose(flow.norm**2, seen, rtol=1e-7)
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


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="wd must be"):
        simulate.norm_ode(0.1, -0.1, 2.0, norm=1.0, steps=3)
