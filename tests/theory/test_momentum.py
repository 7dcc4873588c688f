import functools

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from tests.theory.test_derivations import log_uniform
from theory.derivations import _momentum as derived_here
from theory.momentum import (
    momentum_envelope,
    momentum_least_decay_steps,
    momentum_lower_bound,
    momentum_relaxation,
    momentum_stationary_bounds,
)

MOMENTA = [0.0, 0.3, 0.9, 0.99]
LR, LOW = 0.3, 2.0
positive = st.floats(1e-3, 1e3)
# 400 steps of 2e-16 each, carried on by the slowest of the tested recursions
ROUNDING = 1e-9


@functools.cache
def derivation(name):
    return getattr(derived_here, name)()


def exact(name, index=-1, **values):
    """Value of a derived formula in 60 digits, so that only the NumPy function rounds."""
    derived = derivation(name)
    function = sympy.lambdify(tuple(derived.symbols.values()), derived[index].rhs, "mpmath")
    with mpmath.workdps(60):
        return function(*(mpmath.mpf(values.get(key, 0)) for key in derived.symbols))


def largest_gamma(mu):
    return (1 - np.sqrt(mu)) ** 2


def intrinsic_of(gamma, mu):
    """Return the smaller ηλ with ηλ(2-ηλ/(1+μ)) = γ."""
    return (1 + mu) * (1 - np.sqrt(1 - gamma / (1 + mu)))


# --- derivations ---


fractions = {"attained": st.floats(1e-6, 0.49), "overshooting": st.floats(0.51, 0.98)}


@pytest.mark.parametrize("case", fractions)
def test_the_lower_bound_is_the_derived_formula(case):
    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(positive, fractions[case], positive, st.sampled_from([0.1, 0.5, 0.9, 0.999]))
    def compare(lr, fraction, low, mu):
        intrinsic_lr = intrinsic_of(fraction * largest_gamma(mu), mu)
        wd = intrinsic_lr / lr
        with mpmath.workdps(60):
            product = mpmath.mpf(lr) * mpmath.mpf(wd)
            gamma = product * (2 - product / (1 + mpmath.mpf(mu)))
        expected = exact("momentum_lower_bound", lr=lr, wd=wd, momentum=mu, grad_norm_min=low, gamma=gamma)
        assert momentum_lower_bound(lr, wd, low, momentum=mu) == pytest.approx(float(expected), rel=1e-12)

    compare()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(log_uniform(1e-8, 0.98), log_uniform(1e-3, 1e3), st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_the_least_decay_steps_are_the_derived_formula(fraction, excess, mu):
    intrinsic_lr = intrinsic_of(fraction * largest_gamma(mu), mu)
    with mpmath.workdps(60):
        gamma = mpmath.mpf(intrinsic_lr) * (2 - mpmath.mpf(intrinsic_lr) / (1 + mpmath.mpf(mu)))
    steps = float(exact("momentum_least_decay_steps", momentum=mu, gamma=gamma, ratio=1 + excess))
    # ηλ has a relative error of 1e-16, p an absolute one of 1e-16, which is not enough
    assert steps - 1e-9 * max(steps, 1) <= momentum_least_decay_steps(1.0, intrinsic_lr, 1 + excess, momentum=mu)
    assert momentum_least_decay_steps(1.0, intrinsic_lr, 1 + excess, momentum=mu) <= steps + 1 + 1e-9 * steps


@settings(deadline=None, derandomize=True, max_examples=60)
@given(positive, log_uniform(1e-8, 1.99), positive, st.sampled_from([0.0, 0.5, 0.9, 0.999]))
def test_the_stationary_bounds_are_the_derived_formulas(lr, intrinsic_lr, square, mu):
    wd = intrinsic_lr / lr
    values = {"lr": lr, "wd": wd, "momentum": mu, "mean_sq_gradient": square}
    bounds = momentum_stationary_bounds(lr, wd, square, momentum=mu)
    lower = exact("momentum_stationary_bounds", -2, **values)
    assert bounds.lower == pytest.approx(float(lower), rel=1e-12)
    # in the last formula the lower end is a symbol, with the value from above
    upper = exact("momentum_stationary_bounds", -1, **values, lower=lower)
    assert bounds.upper == pytest.approx(float(upper), rel=1e-12)


def own_and_change(intrinsic_lr, mu, decoupled):
    with mpmath.workdps(60):
        intrinsic_lr, mu = mpmath.mpf(intrinsic_lr), mpmath.mpf(mu)
        s = 1 - intrinsic_lr
        if decoupled:
            return s * mu, 2 * (1 - s**2) * (1 - mu**2) / (1 + s * mu)
        return mu, 4 * intrinsic_lr - 2 * intrinsic_lr**2 / (1 + mu)


@pytest.mark.parametrize("decoupled", [False, True])
@settings(deadline=None, derandomize=True, max_examples=100)
@given(intrinsic_lr=log_uniform(1e-8, 0.9), mu=st.sampled_from([0.1, 0.5, 0.9, 0.999]))
def test_the_relaxation_is_the_derived_formula(decoupled, intrinsic_lr, mu):
    own, change = own_and_change(intrinsic_lr, mu, decoupled)
    low, high = (1 - mpmath.sqrt(own)) ** 2, (1 + mpmath.sqrt(own)) ** 2
    # next to where the roots meet, the time changes like the square root of ηλ; beyond `high` no formula was derived
    if abs(change / low - 1) < 1e-3 or change > 0.999 * high:
        return
    expected = float(exact("momentum_relaxation", own=own, change=change))
    relaxation = momentum_relaxation(1.0, intrinsic_lr, momentum=mu, decoupled=decoupled)
    assert relaxation.time == pytest.approx(expected, rel=1e-11)
    assert relaxation.rings == bool(change > low)


# --- relaxation compared with the linearised map and a random walk ---


def moment_eigenvalues(intrinsic_lr, mu, decoupled):
    """Eigenvalues of the recursion of E‖x‖², E⟨x,v⟩, E‖v‖², linearised by differences, at its fixed point."""
    rule = theory.SGD(momentum=mu, decoupled=decoupled)
    lr, wd = 1.0, intrinsic_lr
    norm = rule.equilibrium_norm(np.float64(lr), np.float64(wd), np.float64(1.0))

    def step(moments):
        (xx, (vx,)), (xv, (vv,)), (xg, (vg,)) = (
            rule.update(*column, lr, wd) for column in [(1.0, 0.0, (0.0,)), (0.0, 0.0, (1.0,)), (0.0, 1.0, (0.0,))]
        )
        square, mixed, speed = moments
        push = 1 / square
        return np.array(
            [
                xx * xx * square + 2 * xx * xv * mixed + xv * xv * speed + xg * xg * push,
                xx * vx * square + (xx * vv + xv * vx) * mixed + xv * vv * speed + xg * vg * push,
                vx * vx * square + 2 * vx * vv * mixed + vv * vv * speed + vg * vg * push,
            ]
        )

    # for a given E‖x‖² the fixed point is linear in the others
    base = step(np.array([norm**2, 0.0, 0.0]))
    columns = np.array([step(np.array([norm**2, *e])) - base for e in np.eye(2)]).T
    mixed, speed = np.linalg.solve(np.eye(2) - columns[1:], base[1:])
    fixed_point = np.array([norm**2, mixed, speed])
    np.testing.assert_allclose(step(fixed_point), fixed_point, rtol=1e-9, atol=1e-12)
    size = 1e-5 * norm**2
    return np.linalg.eigvals(
        np.array([(step(fixed_point + size * e) - step(fixed_point - size * e)) / (2 * size) for e in np.eye(3)]).T
    )


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("mu", [0.05, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("intrinsic_lr", [1e-4, 1e-3, 0.02, 0.1, 0.7, 1.2, 1.7, 1.9])
def test_relaxation_is_that_of_the_linearised_moments(intrinsic_lr, mu, decoupled):
    eigenvalues = moment_eigenvalues(intrinsic_lr, mu, decoupled)
    own, change = (float(x) for x in own_and_change(intrinsic_lr, mu, decoupled))
    # all three eigenvalues are as stated
    for expected in [own**2, *np.roots([1, -(1 + own - change), own])]:
        assert np.min(np.abs(eigenvalues - expected)) < 1e-6
    leading = eigenvalues[np.argmax(np.abs(eigenvalues))]
    relaxation = momentum_relaxation(0.5, intrinsic_lr / 0.5, momentum=mu, decoupled=decoupled)
    # differences leave 1e-8 of the eigenvalue
    assert np.exp(-1 / relaxation.time) == pytest.approx(abs(leading), abs=1e-6)
    assert relaxation.rings == (abs(leading.imag) > 1e-4)


def deviations(mu, intrinsic_lr, decoupled, steps):
    """Mean ‖x‖² of random walks after a 2 % increase of weights and velocities, minus that without, same gradients."""
    rule, generator = theory.SGD(momentum=mu, decoupled=decoupled), np.random.default_rng(3)
    lr, wd, dim, runs = 1.0, intrinsic_lr, 200, 60
    norm = rule.equilibrium_norm(np.float64(lr), np.float64(wd), np.float64(1.0))
    weights = generator.standard_normal((runs, dim))
    weights *= norm / np.linalg.norm(weights, axis=1, keepdims=True)
    pair, velocity = np.stack([weights, weights]), np.zeros((2, runs, dim))
    burn = int(12 * momentum_relaxation(lr, wd, momentum=mu, decoupled=decoupled).time) + 50
    differences = []
    for t in range(burn + steps):
        if t == burn:
            pair[1], velocity[1] = 1.02 * pair[0], 1.02 * velocity[0]
        if t >= burn:
            square = (pair**2).sum(axis=2).mean(axis=1)
            differences.append(square[1] - square[0])
        gradient = np.broadcast_to(generator.standard_normal((runs, dim)), pair.shape)
        gradient = gradient - pair * ((gradient * pair).sum(2) / (pair**2).sum(2))[..., None]
        gradient /= np.linalg.norm(gradient, axis=2, keepdims=True) * np.linalg.norm(pair, axis=2, keepdims=True)
        pair, (velocity,) = rule.update(pair, gradient, (velocity,), lr, wd)
        if t < burn:
            pair[1], velocity[1] = pair[0], velocity[0]
    return np.array(differences)


@pytest.mark.parametrize(
    ("mu", "intrinsic_lr", "decoupled"), [(0.5, 0.01, False), (0.5, 0.01, True), (0.8, 0.001, False)]
)
def test_a_random_walk_relaxes_in_the_stated_time(mu, intrinsic_lr, decoupled):
    time, rings = momentum_relaxation(1.0, intrinsic_lr, momentum=mu, decoupled=decoupled)
    assert not rings
    start, end = int(time / 2), int(2.5 * time)
    deviation = deviations(mu, intrinsic_lr, decoupled, end + 1)
    assert (deviation > 0).all()
    # from sixty walks of 200 dimensions; the deviation itself is 2 %, whose square is dropped
    assert (end - start) / np.log(deviation[start] / deviation[end]) == pytest.approx(time, rel=0.08)


def test_a_random_walk_rings_where_the_roots_are_complex():
    mu, intrinsic_lr = 0.9, 0.01
    time, rings = momentum_relaxation(1.0, intrinsic_lr, momentum=mu)
    assert rings
    assert time == pytest.approx(-2 / np.log(mu))
    trace = 1 + mu - (4 * intrinsic_lr - 2 * intrinsic_lr * intrinsic_lr / (1 + mu))
    half_turn = np.pi / np.arccos(trace / (2 * np.sqrt(mu)))
    deviation = deviations(mu, intrinsic_lr, False, 60)
    crossings = np.flatnonzero(np.sign(deviation[1:]) != np.sign(deviation[:-1]))
    # the second crossing is half a turn after the first, with e^-(half turn/time) of the size
    assert crossings[1] - crossings[0] == pytest.approx(half_turn, abs=2)


# --- bounds compared with brute force ---


def run(generator, mu, intrinsic_lr, low, high, start, dim, steps, orbits):
    """Norms under many adversarial gradients from zero velocity, shape (steps+1, orbits), and squared gradients.

    The directions are random, constant, alternating, towards the lowest or the highest next norm, or in blocks of both.
    The sizes are ℓ, any, or L.
    """
    rule = theory.SGD(momentum=mu)
    weights = generator.standard_normal((orbits, dim))
    weights *= np.broadcast_to(start, orbits)[:, None] / np.linalg.norm(weights, axis=1, keepdims=True)
    velocity = np.zeros_like(weights)
    kinds, sizes = np.arange(orbits) % 6, np.arange(orbits) // 6 % 3
    fixed, blocks = generator.standard_normal((orbits, dim)), generator.integers(2, 60, orbits)
    norms, squares = [np.linalg.norm(weights, axis=1)], []
    for t in range(steps):
        noise = generator.standard_normal((orbits, dim))
        ahead = velocity + 1e-12 * noise * np.linalg.norm(weights, axis=1, keepdims=True)
        turned = np.where((t // blocks) % 2 == 0, 1.0, -1.0)[:, None]
        options = np.stack([noise, fixed, fixed * (-1) ** t, -ahead, ahead, ahead * turned])
        gradient = options[kinds, np.arange(orbits)]
        for _ in range(2):
            gradient = gradient - weights * ((gradient * weights).sum(1) / (weights**2).sum(1))[:, None]
            gradient = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        size = np.choose(sizes, [np.full(orbits, low), generator.uniform(low, high, orbits), np.full(orbits, high)])
        gradient = gradient * (size / norms[-1])[:, None]
        squares.append((gradient**2).sum(1))
        weights, (velocity,) = rule.update(weights, gradient, (velocity,), LR, intrinsic_lr / LR)
        norms.append(np.linalg.norm(weights, axis=1))
    return np.array(norms), np.array(squares)


@pytest.mark.parametrize("mu", MOMENTA)
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.499, 0.7, 0.95])
@pytest.mark.parametrize("dim", [2, 3, 30, 300])
def test_no_gradients_lead_below_the_envelope_or_decay_faster(mu, fraction, dim):
    # 4 × 5 × 4 settings × 36 orbits × 400 steps: a million steps
    generator = np.random.default_rng(dim)
    intrinsic_lr = intrinsic_of(fraction * largest_gamma(mu), mu)
    steps, orbits = (400, 36) if dim < 300 else (200, 18)
    bound = momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu)
    start = bound * np.geomspace(0.2, 5, orbits)
    norms, _ = run(generator, mu, intrinsic_lr, LOW, 5 * LOW, start, dim, steps, orbits)
    envelope = momentum_envelope(steps, start, LR, intrinsic_lr / LR, LOW, momentum=mu).T
    assert (norms >= envelope * (1 - ROUNDING)).all()
    # from zero velocity no step multiplies the norm by less than √p, so no decay is faster
    p = max(np.roots([1, -(1 + mu - fraction * largest_gamma(mu)), mu]).real)
    assert (norms[1:] >= np.sqrt(p) * norms[:-1] * (1 - ROUNDING)).all()
    highest = np.argmax(norms, axis=0)
    for orbit in range(orbits):
        after = norms[highest[orbit] :, orbit]
        least = momentum_least_decay_steps(
            LR, intrinsic_lr / LR, np.maximum(after[0] / after, 1) * (1 - 1e-12) + 1e-12, momentum=mu
        )
        assert (np.arange(after.size) >= least).all()
    if fraction < 0.5:
        above = start >= bound
        assert (norms[:, above] >= bound * (1 - ROUNDING)).all()
        assert (envelope[:, above] >= bound * (1 - ROUNDING)).all()


@pytest.mark.parametrize("mu", MOMENTA)
@pytest.mark.parametrize("fraction", [0.1, 0.49])
def test_the_envelope_lies_above_the_linear_recursion(mu, fraction):
    gamma = fraction * largest_gamma(mu)
    intrinsic_lr = intrinsic_of(gamma, mu)
    bound = momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu)
    for start in bound * np.array([0.3, 0.9, 1.0, 1.2, 4.0]):
        envelope = momentum_envelope(300, start, LR, intrinsic_lr / LR, LOW, momentum=mu)
        distance = [envelope[0] ** 2 - bound**2, envelope[1] ** 2 - bound**2]
        for _ in range(299):
            distance.append((1 + mu - 2 * gamma) * distance[-1] - mu * distance[-2])
        linear = bound**2 + np.array(distance)
        assert (envelope**2 >= linear - 1e-9 * (start**2 + bound**2 + np.abs(linear))).all()


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("fraction", [0.2, 0.49, 0.8])
def test_the_envelope_tends_to_the_lower_bound_and_orbits_stay_above_it(mu, fraction):
    intrinsic_lr = intrinsic_of(fraction * largest_gamma(mu), mu)
    bound = momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu)
    start = bound * np.array([0.05, 0.5, 1.0, 3.0, 20.0])
    steps = int(45 / (1 - np.sqrt(max(mu, 1 - fraction * largest_gamma(mu) / (1 - mu)))))
    ends = momentum_envelope([steps], start, LR, intrinsic_lr / LR, LOW, momentum=mu)[:, 0]
    np.testing.assert_allclose(ends, bound, rtol=1e-9)
    far = momentum_envelope([10**9, 3], start, LR, intrinsic_lr / LR, LOW, momentum=mu)[:, 0]
    np.testing.assert_allclose(far, bound, rtol=1e-9)
    norms, _ = run(np.random.default_rng(0), mu, intrinsic_lr, LOW, LOW, np.repeat(start, 6), 3, steps, 30)
    assert (norms[-1] >= bound * (1 - ROUNDING)).all()


def alternating(mu, intrinsic_lr, start, steps):
    """Norms under gradients of alternating sign in the plane, from zero velocity."""
    rule, weights, velocity = theory.SGD(momentum=mu), np.array([start, 0.0]), np.zeros(2)
    norms = [start]
    for t in range(steps):
        normal = np.array([-weights[1], weights[0]]) / norms[-1]
        weights, (velocity,) = rule.update(
            weights, normal * (-1) ** t * LOW / norms[-1], (velocity,), LR, intrinsic_lr / LR
        )
        norms.append(np.hypot(*weights))
    return np.array(norms)


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("fraction", [0.2, 0.45])
@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_gradients_of_alternating_sign_attain_the_lower_bound(mu, fraction, factor):
    intrinsic_lr = intrinsic_of(fraction * largest_gamma(mu), mu)
    bound = momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu)
    steps = int(45 / (1 - np.sqrt(max(mu, 1 - fraction * largest_gamma(mu) / (1 - mu)))))
    assert alternating(mu, intrinsic_lr, factor * bound, steps)[-1] == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.99])
def test_two_points_on_the_lower_bound_are_an_orbit(mu):
    intrinsic_lr = intrinsic_of(0.4 * largest_gamma(mu), mu)
    bound = momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu)
    here = np.sqrt([2 * (1 + mu) - intrinsic_lr, intrinsic_lr])
    here *= bound / np.hypot(*here)
    there = here * [1, -1]
    normal = np.array([here[1], -here[0]]) / bound
    # the sign at which the gradient leads back
    gradient = -normal * LOW / bound
    after, _ = theory.SGD(momentum=mu).update(here, gradient, ((there - here) / LR,), LR, intrinsic_lr / LR)
    np.testing.assert_allclose(after, there, rtol=1e-9, atol=1e-12 * bound)


def test_an_initial_velocity_inwards_can_decay_faster_than_the_bound():
    # the control of its condition: with the velocity pointing inwards the first step decays faster
    mu, intrinsic_lr = 0.9, 1e-4
    weights, velocity = np.array([1.0, 0.0]), np.array([0.3, 0.0])
    after, _ = theory.SGD(momentum=mu).update(weights, np.zeros(2), (velocity,), 1.0, intrinsic_lr)
    assert momentum_least_decay_steps(1.0, intrinsic_lr, 1 / np.hypot(*after), momentum=mu) > 1


def test_weights_without_gradients_decay_as_fast_as_allowed_to_first_order():
    for mu, intrinsic_lr in [(0.5, 1e-4), (0.9, 1e-5)]:
        steps = momentum_least_decay_steps(1.0, intrinsic_lr, 2.0, momentum=mu)
        root = max(np.roots([1, -(1 + mu - intrinsic_lr), mu]))
        assert np.log(2) / -np.log(root) == pytest.approx(steps, rel=10 * intrinsic_lr / (1 - mu) ** 2)


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("intrinsic_lr", [0.3, 1.2, 1.9])
def test_stationary_runs_lie_between_the_bounds(mu, intrinsic_lr):
    rule = theory.SGD(momentum=mu)
    start = theory.equilibrium_norm(LR, intrinsic_lr / LR, LOW, optimizer=rule)
    norms, gradients = run(np.random.default_rng(5), mu, intrinsic_lr, LOW / 4, LOW, start, 20, 3000, 36)
    squares = norms[1000:-1] ** 2
    mean = squares.mean(axis=0)
    bounds = momentum_stationary_bounds(LR, intrinsic_lr / LR, gradients[1000:].mean(axis=0), momentum=mu)
    # contributions of the ends of the window to (1+μ)²Σr (below), and also to μΣ‖x⁺-x⁻‖² (above)
    ends = squares.max(axis=0) / (squares.shape[0] * intrinsic_lr * (2 * (1 + mu) - intrinsic_lr))
    below, above = 4 * (1 + mu) ** 2 * ends, (4 * (1 + mu) ** 2 + 30 * mu) * ends * ((1 + mu) / (1 - mu)) ** 2
    assert (mean >= bounds.lower**2 - below).all()
    assert (mean <= bounds.upper**2 + above).all()
    if mu == 0:
        return
    # neither test is trivial: the allowance is small for many orbits, and they fill much of the interval
    assert np.median(below / mean) < 0.05
    assert np.quantile(above / bounds.upper**2, 1 / 3) < 0.5
    place = np.log(mean / bounds.lower**2) / np.log((1 + mu) / (1 - mu)) / 2
    assert place.max() - place.min() > 0.5


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("intrinsic_lr", [1e-3, 0.1, 1.0, 1.9])
def test_both_stationary_ends_are_attained(mu, intrinsic_lr):
    rule, norm = theory.SGD(momentum=mu), 1.7
    angle = np.arccos(1 - intrinsic_lr / (1 + mu))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flip = np.diag([1.0, -1.0])
    on_circle = np.array([norm, 0.0])
    to_and_fro = np.sqrt([2 * (1 + mu) - intrinsic_lr, intrinsic_lr])
    for end, here, move, back in [("upper", on_circle, turn, turn.T), ("lower", to_and_fro, flip, flip)]:
        older, ahead = back @ here, move @ here
        gradient = ((1 + mu - intrinsic_lr) * here - mu * older - ahead) / LR
        assert abs(gradient @ here) <= 1e-12 * np.linalg.norm(gradient) * np.linalg.norm(here) + 1e-15
        after, _ = rule.update(here, gradient, ((older - here) / LR,), LR, intrinsic_lr / LR)
        np.testing.assert_allclose(after, ahead, rtol=1e-9, atol=1e-12)
        bounds = momentum_stationary_bounds(LR, intrinsic_lr / LR, gradient @ gradient, momentum=mu)
        assert getattr(bounds, end) == pytest.approx(np.linalg.norm(here), rel=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("intrinsic_lr", [1e-4, 0.1, 1.5])
def test_independent_gradients_lie_half_way_between(mu, intrinsic_lr):
    norm = theory.equilibrium_norm(LR, intrinsic_lr / LR, LOW, optimizer=theory.SGD(momentum=mu))
    bounds = momentum_stationary_bounds(LR, intrinsic_lr / LR, (LOW / norm) ** 2, momentum=mu)
    assert np.sqrt(bounds.lower * bounds.upper) == pytest.approx(norm, rel=1e-12)


# --- without momentum ---

intrinsic = (
    st.floats(np.log(1e-6), np.log(1.9))
    .map(lambda x: float(np.exp(x)))
    .filter(lambda intrinsic_lr: abs(intrinsic_lr - 1) > 1e-3)
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(intrinsic, positive, positive, st.floats(1.0, 1e6))
def test_without_momentum_the_results_are_those_of_plain_sgd(intrinsic_lr, lr, low, ratio):
    wd = intrinsic_lr / lr
    # a large L, because this lower bound is the lowest of all L
    bounds = theory.norm_bounds(lr, wd, low, 10 * low)
    assert momentum_lower_bound(lr, wd, low, momentum=0) == pytest.approx(bounds.lower, rel=1e-9)
    relaxed = momentum_relaxation(lr, wd, momentum=0)
    assert np.exp(-1 / relaxed.time) == pytest.approx(np.exp(-1 / theory.relaxation_time(lr, wd)), rel=1e-9, abs=1e-12)
    assert momentum_relaxation(lr, wd, momentum=0, decoupled=True).time == pytest.approx(relaxed.time, rel=1e-9)
    assert not relaxed.rings
    stationary = momentum_stationary_bounds(lr, wd, low, momentum=0)
    assert (
        stationary.lower == stationary.upper == pytest.approx(np.sqrt(lr * low / (wd * (2 - intrinsic_lr))), rel=1e-9)
    )
    if intrinsic_lr < 1:
        assert momentum_least_decay_steps(lr, wd, ratio, momentum=0) == theory.least_decay_steps(lr, wd, ratio)


@pytest.mark.parametrize("intrinsic_lr", [1e-4, 0.05, 0.29, 0.35, 0.6, 0.9, 1.4, 1.9])
@pytest.mark.parametrize("start", [0.01, 0.3, 1.0, 30.0])
def test_without_momentum_the_envelope_is_that_of_unlimited_gradients(intrinsic_lr, start):
    expected = theory.norm_envelope(60, start, LR, intrinsic_lr / LR, LOW, 1e9).lower
    # sixty steps round; where the map falls, errors of 1/r grow by up to 1/(1-ηλ)²
    np.testing.assert_allclose(
        momentum_envelope(60, start, LR, intrinsic_lr / LR, LOW, momentum=0), expected, rtol=1e-10
    )


# --- shape, limits, arguments ---


def test_the_bounds_are_monotone():
    gradient, mu, intrinsic_lr = np.geomspace(0.1, 10, 30), np.linspace(0, 0.9, 30), np.geomspace(1e-6, 5e-4, 30)
    assert (np.diff(momentum_lower_bound(LR, 1e-4, gradient, momentum=0.9)) > 0).all()
    assert (np.diff(momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=0.9)) < 0).all()
    assert (np.diff(momentum_lower_bound(LR, 1e-4, LOW, momentum=mu)) < 0).all()
    assert (np.diff(momentum_least_decay_steps(LR, 1e-4, np.geomspace(1, 9, 30), momentum=0.9)) > 0).all()
    assert (np.diff(momentum_least_decay_steps(LR, intrinsic_lr / LR, 2.0, momentum=0.9)) < 0).all()
    assert (np.diff(momentum_least_decay_steps(LR, 1e-4, 2.0, momentum=mu)) < 0).all()
    assert (np.diff(momentum_relaxation(LR, intrinsic_lr / LR, momentum=0.9).time) < 0).all()
    starts = momentum_envelope(50, np.geomspace(5, 50, 20), LR, 1e-4, LOW, momentum=0.9)
    assert (np.diff(starts, axis=0) > 0).all()


def test_the_lower_bound_is_continuous_between_its_cases_and_zero_beyond():
    for mu in (0.1, 0.9, 0.999):
        gamma = largest_gamma(mu) * np.array([0.5 - 1e-9, 0.5 + 1e-9, 1 - 1e-8, 1 + 1e-8])
        below, above, last, beyond = momentum_lower_bound(1.0, intrinsic_of(gamma, mu), 1.0, momentum=mu)
        assert below == pytest.approx(above, rel=1e-7)
        assert 0 < last < 0.1 * below
        assert beyond == 0


def test_for_complex_roots_the_bounds_are_trivial():
    mu, intrinsic_lr = 0.9, 0.1
    assert momentum_lower_bound(LR, intrinsic_lr / LR, LOW, momentum=mu) == 0
    assert momentum_least_decay_steps(LR, intrinsic_lr / LR, 5.0, momentum=mu) == 0
    envelope = momentum_envelope(4, 1.0, LR, intrinsic_lr / LR, LOW, momentum=mu)
    np.testing.assert_allclose(envelope, [1, np.hypot(1 - intrinsic_lr, LR * LOW), 0, 0, 0])
    assert momentum_relaxation(LR, intrinsic_lr / LR, momentum=mu).rings


def test_limits_without_decay_or_gradients_and_for_ratio_one():
    assert momentum_lower_bound(0.1, 0.0, 1.0, momentum=0.9) == np.inf
    assert momentum_lower_bound(0.1, 0.0, 0.0, momentum=0.9) == 0
    assert momentum_lower_bound(0.1, 1e-4, 0.0, momentum=0.9) == 0
    assert momentum_least_decay_steps(0.1, 0.0, 2.0, momentum=0.9) == np.inf
    assert momentum_least_decay_steps(0.1, [0.0, 1e-4], 1.0, momentum=0.9).tolist() == [0, 0]
    assert momentum_stationary_bounds(0.1, 0.0, 1.0, momentum=0.9) == (np.inf, np.inf)
    assert momentum_stationary_bounds(0.1, 0.0, 0.0, momentum=0.9) == (0, np.inf)
    assert momentum_stationary_bounds(0.1, 0.1, 0.0, momentum=0.9) == (0, 0)
    for decoupled in (False, True):
        assert momentum_relaxation(0.1, 0.0, momentum=0.9, decoupled=decoupled) == (np.inf, False)
        # a deviation that changes its sign for ever
        assert momentum_relaxation(1.0, 1.5, momentum=0.5, decoupled=decoupled).time == np.inf
    decaying = momentum_envelope(500, 2.0, 0.1, 1e-4, 0.0, momentum=0.9)
    assert (np.diff(decaying) < 0).all()
    assert decaying[-1] > 0


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.999])
def test_extremes_are_finite_and_do_not_warn(mu):
    lr, g = np.array([1e-6, 1.0, 1e3])[:, None, None], np.array([1e-6, 1.0, 1e6])[:, None]
    wd = np.array([1e-8, 1e-4, 0.1, 0.5, 1.0, 1.5, 1.99]) / lr
    bound = momentum_lower_bound(lr, wd, g, momentum=mu)
    assert bound.shape == (3, 3, 7)
    assert (np.isfinite(bound) & (bound >= 0)).all()
    assert (bound[..., 0] > 0).all()
    for start in (1e-6, 1.0, 1e6):
        envelope = momentum_envelope(20, start, lr, wd, g, momentum=mu)
        assert np.isfinite(envelope).all()
        np.testing.assert_allclose(envelope[..., 0], start, rtol=1e-12)
        assert (envelope >= 0).all()
    for ratio in (1.0, 1 + 1e-12, 2.0, 1e6):
        steps = momentum_least_decay_steps(lr, wd, ratio, momentum=mu)
        assert (np.isfinite(steps) & (steps >= 0)).all()
    bounds = momentum_stationary_bounds(lr, wd, g**2, momentum=mu)
    assert (np.isfinite(bounds.upper) & (bounds.lower <= bounds.upper) & (bounds.lower > 0)).all()
    for decoupled in (False, True):
        relaxed = momentum_relaxation(lr, wd, momentum=mu, decoupled=decoupled)
        assert (relaxed.time >= 0).all()
        # only a multiplier of -1 never relaxes
        assert np.isfinite(relaxed.time[np.abs(np.broadcast_to(lr * wd, relaxed.time.shape) - 1 - mu) > 0.01]).all()


def test_numbers_give_floats_and_arrays_broadcast():
    assert type(momentum_lower_bound(0.1, 0.01, 1.0, momentum=0.5)) is float
    assert type(momentum_least_decay_steps(0.1, 0.01, 2.0, momentum=0.5)) is float
    assert all(type(end) is float for end in momentum_stationary_bounds(0.1, 0.01, 2.0, momentum=0.5))
    time, rings = momentum_relaxation(0.1, 0.01, momentum=0.5)
    assert type(time) is float
    assert type(rings) is bool
    lr, mu = np.array([[0.1], [0.5]]), np.array([0.0, 0.5, 0.9])
    relaxed = momentum_relaxation(lr, 0.01, momentum=mu)
    grid = momentum_lower_bound(lr, 0.001, 1.0, momentum=mu)
    paths = momentum_envelope([5, 0, 5], 2.0, lr, 0.001, 1.0, momentum=mu)
    assert paths.shape == (2, 3, 3)
    for i, j in np.ndindex(2, 3):
        assert grid[i, j] == momentum_lower_bound(lr[i, 0], 0.001, 1.0, momentum=mu[j])
        assert (relaxed.time[i, j], relaxed.rings[i, j]) == momentum_relaxation(lr[i, 0], 0.01, momentum=mu[j])
        whole = momentum_envelope(5, 2.0, lr[i, 0], 0.001, 1.0, momentum=mu[j])
        np.testing.assert_array_equal(paths[i, j], whole[[5, 0, 5]])


FUNCTIONS = {
    "lower bound": lambda lr=0.1, wd=0.01, momentum=0.5: momentum_lower_bound(lr, wd, 1.0, momentum=momentum),
    "envelope": lambda lr=0.1, wd=0.01, momentum=0.5: momentum_envelope(3, 1.0, lr, wd, 1.0, momentum=momentum),
    "least decay steps": lambda lr=0.1, wd=0.01, momentum=0.5: momentum_least_decay_steps(
        lr, wd, 2.0, momentum=momentum
    ),
    "stationary": lambda lr=0.1, wd=0.01, momentum=0.5: momentum_stationary_bounds(lr, wd, 1.0, momentum=momentum),
    "relaxation": lambda lr=0.1, wd=0.01, momentum=0.5: momentum_relaxation(lr, wd, momentum=momentum),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("wd", -0.1),
        ("wd", np.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", np.inf),
    ],
)
def test_bad_values_are_named(function, name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        function(**{name: value})
    with pytest.raises(TypeError, match=f"{name} must be"):
        function(**{name: "0.1"})


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_limit_of_the_intrinsic_learning_rate_is_named(function):
    with pytest.raises(ValueError, match=r"lr \* wd.*\(lr=1, wd=3, momentum=0.5\)"):
        function(lr=1.0, wd=3.0)
    with pytest.raises(ValueError, match="shapes must broadcast"):
        function(lr=[0.1, 0.2], wd=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: momentum_lower_bound(0.1, 0.01, -1.0, momentum=0.5), "grad_norm_min"),
        (lambda: momentum_envelope(3, 0.0, 0.1, 0.01, 1.0, momentum=0.5), "norm"),
        (lambda: momentum_envelope(3, 1.0, 0.1, 0.01, -1.0, momentum=0.5), "grad_norm_min"),
        (lambda: momentum_envelope(-3, 1.0, 0.1, 0.01, 1.0, momentum=0.5), "steps"),
        (lambda: momentum_least_decay_steps(0.1, 0.01, 0.5, momentum=0.5), "ratio"),
        (lambda: momentum_stationary_bounds(0.1, 0.01, -1.0, momentum=0.5), "mean_sq_gradient"),
        (lambda: momentum_relaxation(1.0, 2.0, momentum=0.5, decoupled=True), r"lr \* wd"),
        (lambda: momentum_relaxation(0.1, 0.01, momentum=0.5, decoupled=1), "decoupled"),
    ],
)
def test_other_bad_values_are_named(call, name):
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        call()


def test_a_norm_that_overflows_falls_to_the_bound_0():
    with np.errstate(over="ignore"):
        norms = theory.momentum_envelope([0, 1, 2, 3], 1e10, 0.1, 5.0, 1e-300, momentum=0.9)
    assert norms[2:].tolist() == [0.0, 0.0]
