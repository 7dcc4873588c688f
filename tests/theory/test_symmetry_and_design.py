import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory

RULES = [
    theory.SGD(),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.9, nesterov=True),
    theory.SGD(momentum=0.9, nesterov=True, decoupled=True),
    theory.Adam(dim=50, betas=(0.8, 0.9), eps=0.0),
    theory.AdamW(dim=50, eps=0.0),
    theory.Lion(dim=50),
]
ids = {"ids": repr}
lrs, intrinsic = st.floats(1e-4, 1e3), st.floats(1e-8, 0.9)


def directions(rule, lr, wd, norm, steps=30):
    """Directions of the weights under a fixed scale-invariant loss with noise, and the final norm."""
    generator = np.random.default_rng(0)
    target = generator.normal(size=20)
    x = generator.normal(size=20)
    x *= norm / np.linalg.norm(x)
    state, units = rule.start(x), []
    for _ in range(steps):
        r = np.linalg.norm(x)
        unit, noise = x / r, generator.normal(size=20)
        gradient = -(target + noise) / r
        gradient -= (gradient @ unit) * unit
        x, state = rule.update(x, gradient, state, lr, wd)
        units.append(x / np.linalg.norm(x))
    return np.array(units), np.linalg.norm(x)


@pytest.mark.parametrize("rule", RULES, **ids)
@pytest.mark.parametrize("factor", [0.25, 3.0, 100.0])
def test_equivalent_runs_have_the_same_directions(rule, factor):
    lr, wd, norm = 0.02, 0.5, 1.5
    other = theory.equivalent_run(lr, wd, norm, lr_to=lr * factor, optimizer=rule)
    first, end = directions(rule, lr, wd, norm)
    second, other_end = directions(rule, *other)
    # rounding of thirty steps, amplified by signs and roots of small numbers
    np.testing.assert_allclose(second, first, atol=1e-8)
    assert other_end / end == pytest.approx(other.norm / norm, rel=1e-8)
    # the control: the same initial norm gives another run
    assert abs(directions(rule, other.lr, other.wd, norm)[0] - first).max() > 1e-3


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(lrs, intrinsic, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_equivalent_runs_compose_and_have_equivalent_equilibria(rule, lr, intrinsic_lr, norm, c, d):
    wd = intrinsic_lr / lr
    there = theory.equivalent_run(lr, wd, norm, lr_to=c * lr, optimizer=rule)
    assert there.lr == c * lr
    back = theory.equivalent_run(*there, lr_to=lr, optimizer=rule)
    np.testing.assert_allclose(back, (lr, wd, norm), rtol=1e-12)
    further = theory.equivalent_run(*there, lr_to=d * lr, optimizer=rule)
    np.testing.assert_allclose(further, theory.equivalent_run(lr, wd, norm, lr_to=d * lr, optimizer=rule), rtol=1e-12)
    equilibria = [
        theory.equilibrium_norm(x.lr, x.wd, 2.0, optimizer=rule) for x in (theory.EquivalentRun(lr, wd, norm), there)
    ]
    assert equilibria[1] / equilibria[0] == pytest.approx(there.norm / norm, rel=1e-6)


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(lrs, st.floats(1e-7, 0.5), st.floats(1e-2, 1e2))
def test_inverse_design_inverts(rule, lr, intrinsic_lr, g):
    wd = intrinsic_lr / lr
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=g, optimizer=rule)
    assume(1e-6 < angle < 1.5)
    norm = theory.equilibrium_norm(lr, wd, g, optimizer=rule)
    # for Adam a wide range of λ gives nearly the largest possible angle: compare the angles, not λ
    solution = theory.wd_for_rotation(lr, angle, grad_norm=g, optimizer=rule)
    assume(np.isfinite(solution))
    assert theory.equilibrium_rotation(lr, solution, grad_norm=g, optimizer=rule) == pytest.approx(angle, rel=1e-8)
    solution = theory.lr_for_rotation(wd, angle, grad_norm=g, optimizer=rule)
    assert theory.equilibrium_rotation(solution, wd, grad_norm=g, optimizer=rule) == pytest.approx(angle, rel=1e-8)
    solution = theory.wd_for_norm(lr, norm, grad_norm=g, optimizer=rule)
    assert theory.equilibrium_norm(lr, solution, g, optimizer=rule) == pytest.approx(norm, rel=1e-8)


@pytest.mark.parametrize("rule", RULES, **ids)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(lrs, st.floats(1e-7, 0.5), st.floats(1e-2, 1e2))
def test_a_learning_rate_for_a_norm_gives_that_norm(rule, lr, intrinsic_lr, g):
    wd = intrinsic_lr / lr
    norm = theory.equilibrium_norm(lr, wd, g, optimizer=rule)
    solution = theory.lr_for_norm(wd, norm, grad_norm=g, optimizer=rule)
    assume(np.isfinite(solution))
    assert theory.equilibrium_norm(solution, wd, g, optimizer=rule) == pytest.approx(norm, rel=1e-8)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(lrs, st.floats(0.1, 1e9))
def test_relaxation_is_inverted(lr, steps):
    for setting in ((lr, theory.wd_for_relaxation(lr, steps)), (theory.lr_for_relaxation(lr, steps), lr)):
        # near multiplier 0 the time is limited by the rounding of ηλ
        assert theory.relaxation_time(*setting) == pytest.approx(steps, rel=1e-9)
        assert (1 - setting[0] * setting[1]) ** 2 >= 0.5


@settings(deadline=None, derandomize=True, max_examples=60)
@given(lrs, st.floats(1e-6, 0.9), st.floats(1e-2, 1e2))
def test_closed_forms_of_the_norm(lr, intrinsic_lr, g):
    wd = intrinsic_lr / lr
    norm = theory.equilibrium_norm(lr, wd, g)
    assert theory.lr_for_norm(wd, norm, grad_norm=g) == pytest.approx(
        2 * wd * norm**4 / (g * g + wd * wd * norm**4), rel=1e-9
    )
    closed = (1 - np.sqrt(1 - lr * lr * g * g / norm**4)) / lr
    # the root loses the digits of a small ηλ
    assert theory.wd_for_norm(lr, norm, grad_norm=g) == pytest.approx(closed, rel=1e-14 / intrinsic_lr + 1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_growing_learning_rate_replaces_decay(momentum, share):
    # up to nearly the largest decay at which it exists
    rule = theory.SGD(momentum=momentum)
    lr = 0.3
    intrinsic_lr = share * (1 - momentum**0.5) ** 2 * (1 if momentum else 0.5)
    run = theory.run_without_decay(lr, intrinsic_lr / lr, optimizer=rule)
    generator = np.random.default_rng(0)
    start = generator.normal(size=20)
    target = generator.normal(size=20)
    x, y = start.copy(), start.copy()
    state, other = rule.start(x), ((run.velocity * y,) if momentum else ())
    noise = generator.normal(size=(60, 20))
    for t in range(60):

        def gradient(w, t=t):
            unit = w / np.linalg.norm(w)
            full = -(target + noise[t])
            return (full - (full @ unit) * unit) / np.linalg.norm(w)

        x, state = rule.update(x, gradient(x), state, lr, intrinsic_lr / lr)
        y, other = rule.update(y, gradient(y), other, float(run.schedule(t)), 0.0)
        # rounding of sixty steps
        np.testing.assert_allclose(y / np.linalg.norm(y), x / np.linalg.norm(x), atol=1e-9)
        ratio = np.linalg.norm(x) / np.linalg.norm(y)
        assert ratio == pytest.approx(run.shrink ** (t + 1), rel=1e-9)


def test_optimizers_without_equivalent_are_refused():
    for rule in (theory.SGD(momentum=0.9, nesterov=True), theory.SGD(decoupled=True), theory.AdamW(dim=3)):
        with pytest.raises(ValueError, match="optimizer must be SGD with coupled decay"):
            theory.run_without_decay(0.1, 0.1, optimizer=rule)
    with pytest.raises(ValueError, match="rings"):
        theory.run_without_decay(0.1, 0.1, optimizer=theory.SGD(momentum=0.9))
    without = theory.run_without_decay(0.1, 0.0, optimizer=theory.SGD(momentum=0.9))
    assert without == (theory.Exponential(0.1, 1.0), 0.0, 1.0)


def test_closed_forms_of_plain_sgd():
    angles = np.array([0.01, 0.1, 1.0])
    np.testing.assert_allclose(theory.wd_for_rotation(0.5, angles), (1 - np.cos(angles)) / 0.5, rtol=1e-10)
    np.testing.assert_allclose(theory.lr_for_rotation(0.5, angles), (1 - np.cos(angles)) / 0.5, rtol=1e-10)


def test_wd_for_norm_is_the_smaller_of_two_solutions():
    # the norm of Nesterov SGD has a minimum at some ηλ < 1 and increases up to its edge of stability
    rule = theory.SGD(momentum=0.5, nesterov=True)
    decays = np.linspace(0.01, 0.999, 5000)
    norms = theory.equilibrium_norm(1.0, decays, optimizer=rule)
    least = norms.argmin()
    assert 0 < least < decays.size - 1
    solutions = theory.wd_for_norm(1.0, norms, optimizer=rule)
    np.testing.assert_allclose(theory.equilibrium_norm(1.0, solutions, optimizer=rule), norms, rtol=1e-9)
    np.testing.assert_allclose(solutions[: least - 10], decays[: least - 10], rtol=1e-6)
    assert (solutions[least + 10 :] < decays[least]).all()
    assert np.isnan(theory.wd_for_norm(1.0, norms.min() * 0.999, optimizer=rule))


def test_adam_has_no_largest_intrinsic_lr():
    # its decay is divided by the size of the gradient
    rule = theory.Adam(dim=100)
    norm = theory.equilibrium_norm(10.0, 1.0, 1e6, optimizer=rule)
    angle = theory.equilibrium_rotation(10.0, 1.0, grad_norm=1e6, optimizer=rule)
    assert 0 < angle < 1
    assert theory.wd_for_norm(10.0, norm, grad_norm=1e6, optimizer=rule) == pytest.approx(1.0, rel=1e-7)
    assert theory.lr_for_norm(1.0, norm, grad_norm=1e6, optimizer=rule) == pytest.approx(10.0, rel=1e-7)
    assert theory.wd_for_rotation(10.0, angle, grad_norm=1e6, optimizer=rule) == pytest.approx(1.0, rel=1e-7)
    assert theory.lr_for_rotation(1.0, angle, grad_norm=1e6, optimizer=rule) == pytest.approx(10.0, rel=1e-7)


@pytest.mark.parametrize(
    ("wrong", "error"), [(theory.SGD, TypeError), (0.9, TypeError), ("Adamw", ValueError)], ids=["class", "0.9", "text"]
)
def test_a_value_that_is_not_an_optimizer_is_named(wrong, error):
    for call in (
        lambda: theory.equilibrium_norm(0.1, 0.1, optimizer=wrong),
        lambda: theory.equilibrium_rotation(0.1, 0.1, optimizer=wrong),
        lambda: theory.equivalent_run(0.1, 0.1, 1.0, lr_to=0.2, optimizer=wrong),
        lambda: theory.run_without_decay(0.1, 0.1, optimizer=wrong),
        lambda: theory.wd_for_norm(0.1, 1.0, optimizer=wrong),
        lambda: theory.critical_norm(0.1, 1.0, optimizer=wrong),
    ):
        with pytest.raises(error, match=f"optimizer.*{re.escape(repr(wrong))}"):
            call()


def test_unreachable_targets_are_nan():
    # heavy ball turns by at most 1-cos θ = 1/(1+μ) for ηλ < 1
    assert np.isnan(theory.wd_for_rotation(0.1, 1.5, optimizer=theory.SGD(momentum=0.9)))
    assert np.isnan(theory.wd_for_norm(0.1, 1e-9))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.equivalent_run(0.1, 0.1, 1.0, lr_to=0), "lr_to"),
        (lambda: theory.equivalent_run(0.1, 0.1, -1.0, lr_to=1), "norm"),
        (lambda: theory.wd_for_rotation(0.1, 2.0), "rotation"),
        (lambda: theory.lr_for_rotation(0.0, 0.1), "wd"),
        (lambda: theory.wd_for_norm(0.1, 0.0), "norm"),
        (lambda: theory.wd_for_norm(0.1, 1.0, grad_norm=0.0), "grad_norm"),
    ],
)
def test_bad_values_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
