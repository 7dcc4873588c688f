import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory

positive = st.floats(0.01, 100)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, positive, st.one_of(st.just(0.0), st.floats(1e-8, 0.1)), st.floats(0, 100), st.integers(0, 200))
def test_the_flow_is_the_simulated_differential_equation(norm, lr, intrinsic_lr, g, steps):
    flow = simulate.norm_ode(lr, intrinsic_lr / lr, g, norm=norm, steps=steps)
    # the simulation rounds at every step
    assert theory.norm_flow(steps, norm, lr, intrinsic_lr / lr, g) == pytest.approx(flow.final_norm.item(), rel=1e-11)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, positive, st.floats(1e-6, 0.1), st.floats(0, 100), st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_flow_composes_and_tends_to_equilibrium(norm, lr, intrinsic_lr, g, first, second):
    between = theory.norm_flow(first, norm, lr, intrinsic_lr / lr, g)
    assert theory.norm_flow(second, between, lr, intrinsic_lr / lr, g) == pytest.approx(
        theory.norm_flow(first + second, norm, lr, intrinsic_lr / lr, g), rel=1e-12
    )
    equilibrium = (lr * g * g / (2 * intrinsic_lr / lr)) ** 0.25
    assert theory.norm_flow(100 / intrinsic_lr, norm, lr, intrinsic_lr / lr, g) == pytest.approx(
        max(equilibrium, norm * np.exp(-100)), rel=1e-12
    )


@pytest.mark.parametrize("intrinsic_lr", [0.2, 0.05, 0.01, 1e-3])
def test_decay_time_is_that_of_the_map(intrinsic_lr):
    lr, g, norm = 0.5, 2.0, 50.0
    run = simulate.norm_map(lr, intrinsic_lr / lr, g, norm=norm, steps=int(6 / intrinsic_lr))
    norms = run.norm.values
    above = norms > theory.equilibrium_norm(lr, intrinsic_lr / lr, g) * (1 + 1e-6)
    time = theory.decay_time(norm, norms[above], lr, intrinsic_lr / lr, g)
    assert abs(time - np.arange(norms.size)[above]).max() < intrinsic_lr
    assert np.count_nonzero(above) > 3 / intrinsic_lr


@pytest.mark.parametrize(("intrinsic_lr", "allowed"), [(0.1, 0.1), (0.2, 0.2), (0.25, 1.0), (0.2897, 1.0)])
def test_the_error_of_the_decay_time_from_any_start(intrinsic_lr, allowed):
    # docstring: below ηλ steps for ηλ <= 0.2, below one step up to 0.29
    starts = np.geomspace(1.01, 1e3, 60) * theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, 2.0)
    run = simulate.norm_map(0.5, intrinsic_lr / 0.5, 2.0, norm=starts, steps=60).norm.values
    decaying = run > theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, 2.0) * (1 + 1e-6)
    time = theory.decay_time(starts[:, None], np.minimum(run, starts[:, None]), 0.5, intrinsic_lr / 0.5, 2.0)
    assert abs(time - np.arange(60))[decaying].max() < allowed


@pytest.mark.parametrize("intrinsic_lr", [1e-2, 1e-3])
def test_the_error_of_the_flow_grows_without_gradients(intrinsic_lr):
    time = np.array([0.2, 1.0, 5.0]) / intrinsic_lr
    error = (theory.norm_flow(time, 1.0, 1.0, intrinsic_lr, 0.0) / (1 - intrinsic_lr) ** time) ** 4 - 1
    np.testing.assert_allclose(error, 2 * intrinsic_lr * intrinsic_lr * time, rtol=0.1)


def test_limits_of_the_decay_time():
    equilibrium = theory.equilibrium_norm(0.1, 0.01, 2.0)
    assert theory.decay_time(5.0, equilibrium * 0.999, 0.1, 0.01, 2.0) == np.inf
    assert theory.decay_time(5.0, 5.0, 0.1, 0.01, 2.0) == 0
    assert theory.decay_time(5.0, 4.0, 0.1, 0.0, 0.0) == np.inf
    assert theory.decay_time(1.0, 1.0, 0.1, 0.01, 2.0) == 0  # no decay from below equilibrium
    # without gradients: least_decay_steps, not rounded
    assert theory.decay_time(5.0, 2.5, 0.1, 0.01, 0.0) == pytest.approx(np.log(2) / -np.log(0.999), rel=1e-12)
    times = theory.decay_time([[5.0], [9.0]], [4.0, 3.0, 2.5], 0.1, 0.01, 2.0)
    assert times.shape == (2, 3)
    assert (np.diff(times, axis=0) > 0).all()
    assert (np.diff(times, axis=1) > 0).all()


def test_without_decay_the_fourth_power_grows_linearly():
    assert theory.norm_flow(50, 2.0, 0.1, 0.0, 3.0) == pytest.approx((2.0**4 + 2 * 0.3**2 * 50) ** 0.25, rel=1e-14)
    assert theory.norm_flow(0, 2.0, 0.1, 0.01, 3.0) == 2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.norm_flow(-1, 1.0, 0.1, 0.1, 1.0), "time"),
        (lambda: theory.norm_flow(1, 0.0, 0.1, 0.1, 1.0), "norm"),
        (lambda: theory.decay_time(1.0, 2.0, 0.1, 0.1, 1.0), "norm_to must be <= norm"),
        (lambda: theory.decay_time(2.0, 1.0, 1.0, 0.5, 1.0), r"lr \* wd"),
        (lambda: theory.decay_time(2.0, 1.0, 0.1, 0.5, -1.0), "grad_norm"),
    ],
)
def test_bad_values_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
