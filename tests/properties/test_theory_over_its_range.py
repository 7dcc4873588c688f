"""Every function of `theory` over the whole range of its arguments: finite where it must be, ordered, monotone.

NumPy warnings are errors in all tests, so these tests also check that no valid input warns.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import theory


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(min(max(np.exp(x), low), high)))


lrs, gradients, norms = log_uniform(1e-6, 1e3), log_uniform(1e-6, 1e6), log_uniform(1e-6, 1e6)
small = log_uniform(1e-8, 0.99)  # ηλ for rotations and angular jumps
anywhere = st.one_of(log_uniform(1e-8, 1.99), st.floats(0.9, 1.1)).filter(
    lambda intrinsic_lr: abs(intrinsic_lr - 1) > 1e-3
)
monotone = log_uniform(1e-8, 0.29)
deltas = st.one_of(log_uniform(1e-9, 0.999), log_uniform(1e-9, 0.5).map(lambda x: 1 - x))
ratios = log_uniform(1.0, 1e3)
momenta = st.sampled_from([0.0, 0.5, 0.9, 0.999])
rules = st.one_of(
    momenta.map(lambda mu: theory.SGD(momentum=mu)),
    st.sampled_from([0.5, 0.999]).map(lambda mu: theory.SGD(momentum=mu, nesterov=True)),
    momenta.map(lambda mu: theory.SGD(momentum=mu, decoupled=True)),
    st.sampled_from([0.5, 0.999]).map(lambda mu: theory.SGD(momentum=mu, nesterov=True, decoupled=True)),
    st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.99, 0.9)]).flatmap(
        lambda betas: st.sampled_from(
            [theory.Adam(dim=10**6, betas=betas), theory.AdamW(dim=1, betas=betas), theory.Lion(dim=10**9, betas=betas)]
        )
    ),
)
everywhere = settings(deadline=None, derandomize=True, max_examples=300)


def finite(*values):
    return all(np.isfinite(value).all() and (np.asarray(value) > 0).all() for value in values)


@everywhere
@given(rules, lrs, small, gradients)
def test_equilibria_are_finite_and_move_the_right_way(rule, lr, intrinsic_lr, g):
    wd = intrinsic_lr / lr
    norm = theory.equilibrium_norm(lr, wd, g, optimizer=rule)
    effective = theory.equilibrium_effective_lr(lr, wd, g, optimizer=rule)
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=g, optimizer=rule)
    assert finite(norm, effective, angle)
    assert angle <= np.pi
    assert effective == pytest.approx(lr / norm**2, rel=1e-12)
    # more decay gives a larger rotation and a smaller norm, except for Nesterov near its edge of stability; a larger
    # gradient gives no smaller norm; Adam's norm can depend on wd by less than its rounding
    assert theory.equilibrium_norm(lr, wd * 0.9, g, optimizer=rule) >= norm * (1 - 1e-12) or (
        intrinsic_lr > 0.3 and rule.intrinsic_lr_limit < 2
    )
    slower = theory.equilibrium_rotation(lr, wd * 0.9, grad_norm=g, optimizer=rule)
    assert slower <= angle * (1 + 1e-9)
    assert theory.equilibrium_norm(lr, wd, g * 1.1, optimizer=rule) >= norm * (1 - 1e-9)


@everywhere
@given(lrs, anywhere, gradients, ratios, norms, st.integers(0, 60))
def test_bounds_are_ordered_and_close_in_on_the_equilibrium(lr, intrinsic_lr, high, ratio, norm, steps):
    wd, low = intrinsic_lr / lr, high / ratio
    bounds = theory.norm_bounds(lr, wd, low, high)
    assert finite(*bounds)
    assert bounds.lower <= bounds.upper * (1 + 1e-12)
    equilibria = [theory.equilibrium_norm(lr, wd, g) for g in (low, high)]
    assert bounds.lower <= equilibria[0] * (1 + 1e-9)
    assert bounds.upper >= equilibria[1] * (1 - 1e-9)
    one = theory.norm_bounds(lr, wd, high, high)
    # near a = 0 the precision of the two ends is that of 1-ηλ
    assert one == pytest.approx([equilibria[1]] * 2, rel=1e-12 / min(abs(1 - intrinsic_lr), 1 - abs(1 - intrinsic_lr)))
    narrower = theory.norm_bounds(lr, wd, (low * high) ** 0.5, high)
    assert narrower.lower >= bounds.lower * (1 - 1e-9)
    assert narrower.upper <= bounds.upper * (1 + 1e-9)
    envelope = theory.norm_envelope(steps, norm, lr, wd, low, high)
    assert finite(*envelope)
    assert (envelope.lower <= envelope.upper * (1 + 1e-12)).all()
    relaxation = theory.relaxation_time(lr, wd)
    assert relaxation >= 0
    if intrinsic_lr < 0.25:
        assert np.isfinite(relaxation)
        assert theory.relaxation_time(lr, wd * 0.9) > relaxation


@everywhere
@given(lrs, small, gradients, deltas, norms)
def test_rotation_and_angular_jump_norm_are_inverse(lr, intrinsic_lr, g, delta, norm):
    wd = intrinsic_lr / lr
    threshold = theory.angular_jump_norm(lr, wd, g, delta)
    assert finite(threshold)
    turned = 2 * np.sin(theory.rotation(threshold, lr, wd, g) / 2) ** 2
    assert turned == pytest.approx(delta, rel=1e-9)
    angle = theory.rotation(norm, lr, wd, g)
    assert 0 < angle <= np.pi / 2
    if 1e-6 < angle < 1.5:
        there = theory.angular_jump_norm(lr, wd, g, 2 * np.sin(angle / 2) ** 2)
        assert there == pytest.approx(norm, rel=1e-9)
    assert theory.rotation(norm * 1.1, lr, wd, g) <= angle
    # the threshold of δ = ηλ is the equilibrium
    assert theory.angular_jump_norm(lr, wd, g, intrinsic_lr) == pytest.approx(
        theory.equilibrium_norm(lr, wd, g), rel=1e-9 / (1 - intrinsic_lr)
    )


@everywhere
@given(lrs, st.one_of(small, st.floats(0.25, 0.99)), gradients, ratios, deltas, log_uniform(1e-3, 1e3))
def test_times_and_regimes_of_angular_jumps_are_ordered(lr, intrinsic_lr, high, ratio, delta, relative):
    wd, low = intrinsic_lr / lr, high / ratio
    norm = relative * theory.equilibrium_norm(lr, wd, high)
    regime = theory.angular_jump_regime(lr, wd, low, high, delta)
    time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
    assume(not np.isnan(time).any())
    assert 0 <= time.earliest <= time.latest
    no_jump_at_start = norm >= theory.angular_jump_norm(lr, wd, high, delta)
    if no_jump_at_start:
        # where the norm rings, "possible" depends on the start
        rings = intrinsic_lr > 0.2928
        assert (time.earliest == np.inf) == (regime == "impossible") or (rings and regime == "possible")
        assert (time.latest < np.inf) == (regime == "certain") or (rings and regime == "possible")
        assert time.earliest >= 1
    else:
        assert time.earliest == 0
    # with a larger range of gradients the earliest time is never later
    wider = theory.steps_to_angular_jump(norm, lr, wd, low, high * 2, delta)
    assert wider.earliest <= time.earliest or np.isnan(wider.earliest)
    order = ["impossible", "possible", "certain"]
    less = theory.angular_jump_regime(lr, wd, low, high, delta + (1 - delta) / 2)
    assert order.index(less) <= order.index(regime) or regime == "certain"


@everywhere
@given(lrs, monotone, gradients, norms, log_uniform(1e-3, 1), log_uniform(1e-3, 1e8))
def test_flow_and_decay_time(lr, intrinsic_lr, g, norm, share, time):
    wd = intrinsic_lr / lr
    later = theory.norm_flow(time, norm, lr, wd, g)
    assert finite(later)
    equilibrium = (lr * g * g / (2 * wd)) ** 0.25
    assert min(norm, equilibrium) * (1 - 1e-9) <= later <= max(norm, equilibrium) * (1 + 1e-9)
    decay = theory.decay_time(norm, norm * share, lr, wd, g)
    assert decay >= 0
    # no decay is faster than that without gradients
    assert decay >= np.log(1 / share) / -np.log1p(-intrinsic_lr) * (1 - 1e-9) - 1e-9
    assert theory.least_decay_steps(lr, wd, 1 / share) >= 0


@everywhere
@given(lrs, small, deltas, log_uniform(1e-12, 1e3), log_uniform(1e-6, 1e6), log_uniform(1, 1e9), st.floats(0, 10))
def test_periods_and_spread(lr, intrinsic_lr, delta, product, tail, steps, variation):
    wd = intrinsic_lr / lr
    assert finite(theory.least_time_between_angular_jumps(lr, wd, delta))
    moved = theory.decay_phase_product(steps, product, lr, wd, tail)
    limit = ((1 - intrinsic_lr) ** -2 - 1) / tail
    assert min(product, limit) * (1 - 1e-6) <= moved <= max(product, limit) * (1 + 1e-6)
    spread = theory.equilibrium_spread(lr, wd, variation)
    assert np.isfinite(spread).all()
    law = theory.BalanceLaw(
        norm_rise=0.5, norm_rise_slope=0.0, outside_growth=0.0, outside_growth_power=1.0, reference=0.01
    )
    assert law.period(lr, wd) == pytest.approx(0.5 / -np.log1p(-intrinsic_lr), rel=1e-9)


@everywhere
@given(rules, lrs, small, norms, lrs, lrs)
def test_equivalent_runs_compose(rule, lr, intrinsic_lr, norm, to, further):
    wd = intrinsic_lr / lr
    there = theory.equivalent_run(lr, wd, norm, lr_to=to, optimizer=rule)
    assert finite(*there)
    beyond = theory.equivalent_run(*there, lr_to=further, optimizer=rule)
    straight = theory.equivalent_run(lr, wd, norm, lr_to=further, optimizer=rule)
    np.testing.assert_allclose(beyond, straight, rtol=1e-12)


@everywhere
@given(rules, lrs, small, gradients)
def test_inverse_design_inverts_or_gives_nan(rule, lr, intrinsic_lr, g):
    wd = intrinsic_lr / lr
    norm = theory.equilibrium_norm(lr, wd, g, optimizer=rule)
    for setting in (
        (lr, theory.wd_for_norm(lr, norm, grad_norm=g, optimizer=rule)),
        (theory.lr_for_norm(wd, norm, grad_norm=g, optimizer=rule), wd),
    ):
        if np.isfinite(setting).all():
            assert theory.equilibrium_norm(*setting, g, optimizer=rule) == pytest.approx(norm, rel=1e-7)
        else:
            # ηλ < 1 excludes the solution only where the norm is not monotone in ηλ, or for Adam with ηλ > 1
            assert not isinstance(rule, theory.SGD) or rule.decoupled
    angle = theory.equilibrium_rotation(lr, wd, grad_norm=g, optimizer=rule)
    assume(1e-7 < angle < 1.57)
    solution = theory.wd_for_rotation(lr, angle, grad_norm=g, optimizer=rule)
    if np.isfinite(solution):
        assert theory.equilibrium_rotation(lr, solution, grad_norm=g, optimizer=rule) == pytest.approx(angle, rel=1e-7)


@everywhere
@given(lrs, small, log_uniform(1e-6, 1e6), log_uniform(1, 1e9), momenta, st.booleans(), st.booleans())
def test_edges_and_relaxation(lr, intrinsic_lr, sharpness, steps, momentum, nesterov, decoupled):
    rule = theory.SGD(momentum=momentum, nesterov=nesterov and momentum > 0, decoupled=decoupled)
    wd = intrinsic_lr / lr
    edges = [theory.critical_norm(lr, sharpness, wd=w, optimizer=rule) for w in (0.0, wd)]
    assert finite(*edges)
    assert edges[1] >= edges[0] * (1 - 1e-12)
    falling = theory.critical_norm(lr, sharpness, wd=wd, falling=True, optimizer=rule)
    assert np.isnan(falling) or falling >= edges[0] * (1 - 1e-12)
    assert finite(theory.wd_for_relaxation(lr, steps), theory.lr_for_relaxation(wd, steps))


@everywhere
@given(lrs, small, st.integers(1, 10**6), log_uniform(1e-6, 1.0), gradients)
def test_schedules(lr, intrinsic_lr, steps, end, g):
    wd = intrinsic_lr / lr
    at = np.array([0, steps // 2, steps])
    for schedule in (theory.Linear(lr, lr * end, steps), theory.Cosine(lr, lr * end, steps), theory.Constant(lr)):
        assert finite(theory.quasi_equilibrium_norm(schedule, wd, at, g), theory.gradient_growth(schedule, wd, at))
        assert np.isfinite(theory.tracking_lag(schedule, wd, at)).all()
        assert finite(theory.corrected_decay(schedule, wd, at, lr_max=lr))


@everywhere
@given(st.lists(st.tuples(norms, gradients), min_size=1, max_size=5), log_uniform(1e-30, 1), small, deltas)
def test_groups_and_eps(groups, eps, wd, tolerance):
    group_norms, gradients_of_groups = np.array(groups).T
    assert theory.total_grad_norm(group_norms, gradients_of_groups) >= gradients_of_groups.sum() * (1 - 1e-12)
    assert finite(theory.invariance_norm(eps, group_norms[0], tolerance))
    assert finite(theory.decay_invariance_norm(eps, group_norms[0], wd, gradients_of_groups[0], tolerance))


@pytest.mark.parametrize("intrinsic_lr", [0.0, 0.5, 1.0])
def test_no_decay_and_the_degenerate_setting_do_not_warn(intrinsic_lr):
    lr = np.array([1e-6, 1.0, 1e3])
    wd = intrinsic_lr / lr
    for rule in (theory.SGD(), theory.SGD(momentum=0.9), theory.AdamW(dim=5), theory.Adam(dim=5), theory.Lion(dim=5)):
        assert not np.isnan(theory.equilibrium_norm(lr, wd, 2.0, optimizer=rule)).any()
        assert not np.isnan(theory.equilibrium_effective_lr(lr, wd, 2.0, optimizer=rule)).any()
    assert not np.isnan(theory.norm_bounds(lr, wd, [[0.0], [1.0], [2.0]], 2.0)).any()
    assert not np.isnan(theory.norm_envelope(20, 1.0, lr, wd, [[0.0], [1.0], [2.0]], 2.0)).any()
    assert not np.isnan(theory.relaxation_time(lr, wd)).any()
    assert not np.isnan(theory.norm_flow(3.0, 1.0, lr, wd, 0.0)).any()
