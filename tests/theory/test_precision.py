"""Formulas against arithmetic with 60 digits on the same stored numbers, near the ends of their ranges."""

import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import theory

EPS = 2.0**-52
everywhere = settings(deadline=None, derandomize=True, max_examples=300)


def exact(number):
    return mp.mpf(float(number))


def near(end, smallest=1e-15):
    """Numbers below `end`, at any small distance from it."""
    return st.floats(np.log(smallest), 0).map(lambda x: end - math.exp(x)).filter(lambda x: 0 < x < end)


def small(smallest=1e-15):
    return st.floats(np.log(smallest), 0).map(math.exp).filter(lambda x: x < 1)


unit_interval = st.one_of(small(), near(1.0), st.floats(0.01, 0.99))  # of ηλ, with η = 1, so that the product is exact
momenta = st.one_of(small(), near(1.0, 1e-6), st.floats(0.01, 0.99))


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(60):
        yield


class TestBounds:
    def ends(self, intrinsic_lr, low, high):
        """Return the ends for (1-ηλ)² < 1/2: docs/mathematics.md §3, solved as the 2-cycle of the map."""
        a, b_low, b_high = (1 - exact(intrinsic_lr)) ** 2, exact(low) ** 2, exact(high) ** 2
        if b_high >= (2 - 4 * a**2) * b_low:
            lower = 2 * mp.sqrt(a * b_low)
            return mp.sqrt(lower), mp.sqrt(a * lower + b_high / lower)
        product = (b_low + b_high + mp.sqrt((b_high - b_low) ** 2 + 4 * a**2 * b_low * b_high)) / (2 * (1 - a**2))
        upper = mp.sqrt((product - b_low) / a)
        lower = product / upper
        # each end leads to the other one
        assert abs(a * upper + b_low / upper - lower) < mp.mpf(10) ** -40 * lower
        assert abs(a * lower + b_high / lower - upper) < mp.mpf(10) ** -40 * upper
        return mp.sqrt(lower), mp.sqrt(upper)

    @everywhere
    @given(st.one_of(near(1.0), small().map(lambda x: 1 + x), st.floats(0.3, 1.7)), st.one_of(near(1.0), small()))
    @example(1 - 1e-9, 1 - 1e-12)
    @example(1 - 1e-6, 1 - 1e-12)
    @example(0.999, 1 - 1e-8)
    def test_while_the_norm_rings(self, intrinsic_lr, ratio):
        if (1 - intrinsic_lr) ** 2 >= 0.5 or intrinsic_lr == 1:
            return
        low, high = 1e5 * ratio, 1e5
        bounds = theory.norm_bounds(1.0, intrinsic_lr, low, high)
        for end, expected in zip(bounds, self.ends(intrinsic_lr, low, high), strict=True):
            assert abs(end / expected - 1) < 8 * EPS

    def test_no_overflow_with_large_learning_rates_and_gradients(self):
        bounds = theory.norm_bounds(1e200, 1e-201, 5e199, 1e200)
        expected = theory.norm_bounds(1.0, 0.1, 0.5, 1.0)
        np.testing.assert_allclose(np.array(bounds) / 1e200, expected, rtol=1e-14)


class TestFreeDecay:
    def logarithm(self, intrinsic_lr, mu, nesterov, decoupled):
        """Return -ln of the largest modulus of an eigenvalue of a step without gradients, from its matrix."""
        k, mu = exact(intrinsic_lr), exact(mu)
        if decoupled:
            # the buffer is not driven by the weights: a triangular matrix
            return -mp.log(max(1 - k, mu))
        # weights and buffer: v⁺ = μv + kx; x⁺ = x - v⁺, or x - kx - μv⁺ with Nesterov momentum
        step = [[1 - k, -mu], [k, mu]] if not nesterov else [[1 - k - mu * k, -mu * mu], [k, mu]]
        half_trace = (step[0][0] + step[1][1]) / 2
        determinant = step[0][0] * step[1][1] - step[0][1] * step[1][0]
        return -mp.log(abs(half_trace + mp.sqrt(mp.mpc(half_trace**2 - determinant))))

    @everywhere
    @given(unit_interval, momenta, st.booleans(), st.booleans())
    @example(1 - 1e-6, 1e-3, True, False)
    @example(1 - 1e-9, 1e-6, True, False)
    @example(1 - 2.0**-53, 1e-9, True, False)
    @example(1 - 1e-9, 1e-20, False, False)
    @example(0.2, 0.9, False, True)
    @example(0.2, 0.9, True, True)
    def test_any_momentum(self, intrinsic_lr, mu, nesterov, decoupled):
        rule = theory.SGD(momentum=mu, nesterov=nesterov, decoupled=decoupled)
        expected = self.logarithm(intrinsic_lr, mu, nesterov, decoupled)
        decay = theory.free_decay(1.0, intrinsic_lr, optimizer=rule)
        # where two roots meet, the digits are those of the square root of a difference
        border = ((1 - mu) / (1 + mu)) ** 2 if nesterov else (1 - math.sqrt(mu)) ** 2
        distance = (
            1.0 if decoupled else abs(intrinsic_lr - border) / (1 - intrinsic_lr if intrinsic_lr > 0.5 else border)
        )
        tolerance = 8 * EPS + (EPS / math.sqrt(distance) if distance > 1e-12 else 1e-7)
        assert abs(decay / expected - 1) < tolerance

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_the_buffer_outlasts_decoupled_decay(self, nesterov):
        rule = theory.SGD(momentum=0.9, nesterov=nesterov, decoupled=True)
        for intrinsic_lr, expected in ((0.2, 0.9), (0.05, 0.95)):
            weights, state, norms = np.array([1.0, 0.3]), (np.array([0.1, 0.2]),), []
            for _ in range(300):
                norms.append(np.linalg.norm(weights))
                weights, state = rule.update(weights, np.zeros(2), state, 1.0, intrinsic_lr)
            assert theory.free_decay(1.0, intrinsic_lr, optimizer=rule) == pytest.approx(-math.log(expected), rel=1e-12)
            assert math.log(norms[298] / norms[299]) == pytest.approx(-math.log(expected), rel=1e-4)
        # and without momentum in the buffer nothing changes
        assert theory.free_decay(1.0, 0.2, optimizer=theory.SGD(decoupled=True)) == -math.log1p(-0.2)

    @everywhere
    @given(unit_interval, momenta, st.booleans())
    def test_the_edge_while_the_norm_decays_uses_the_same_root(self, intrinsic_lr, mu, nesterov):
        rule = theory.SGD(momentum=mu, nesterov=nesterov)
        edge = float(rule.edge_with_decay(np.array(intrinsic_lr), True))
        discriminant = rule.free_recursion(np.array(intrinsic_lr))[2]
        assert np.isnan(edge) == (discriminant < 0)
        root = mp.exp(-exact(theory.free_decay(1.0, intrinsic_lr, optimizer=rule)))
        if discriminant >= 0:
            # an eigenvalue across the weights, at η̃h + ηλ, is minus the root along them
            k, mu = exact(intrinsic_lr), exact(mu)
            share = root**2 / ((1 + mu) * root + mu) if nesterov else (root**2 + mu) / root + mu
            expected = 1 + share - k
            assert abs(edge / expected - 1) < 1e-12


class TestBalance:
    @everywhere
    @given(st.one_of(small(1e-150), near(math.pi / 2), st.floats(0, 1.57)))
    @example(math.atan(1e9))
    @example(np.nextafter(math.pi / 2, 0))
    def test_growth_of_one_step(self, angle):
        growth = theory.balance(1.0, 1.0, [angle], 1.0, 0.0).growth
        with mp.workdps(400):
            expected = -mp.log(mp.cos(exact(angle)))
        assert abs(growth - expected) <= 4 * EPS * expected + 1e-300

    @pytest.mark.parametrize("tangent", [1e-3, 1.0, 1e3, 1e6, 1e9])
    def test_steps_that_turn_far_balance_up_to_rounding_of_the_angle(self, tangent):
        norm = math.sqrt(1 / tangent)
        angle = theory.rotation(norm, 1.0, 1e-9, 1.0)
        parts = theory.balance(norm, math.hypot((1 - 1e-9) * norm, 1 / norm), [angle], 1.0, 1e-9)
        assert parts.growth - parts.decay == pytest.approx(parts.change, abs=4 * EPS * (1 + tangent))

    def test_an_angle_that_rounds_to_a_right_angle_is_refused(self):
        angle = theory.rotation(1e-150, 1.0, 0.0, 1e20)
        assert angle == np.pi / 2
        with pytest.raises(ValueError, match=r"^rotation must be"):
            theory.balance(1.0, 1.0, [angle], 1.0, 0.0)


class TestEquilibrium:
    settings_of_any_size = st.tuples(st.floats(-150, 150), st.floats(-14, 0), st.floats(-150, 150))

    @everywhere
    @given(settings_of_any_size)
    @example((150.0, -12.0, -150.0))
    def test_no_overflow(self, exponents):
        lr, grad_norm = 10.0 ** exponents[0], 10.0 ** exponents[2]
        wd = 10.0 ** (exponents[1] - exponents[0])
        k = exact(lr) * exact(wd)
        expected = mp.sqrt(mp.sqrt(exact(lr) * exact(grad_norm) ** 2 / (exact(wd) * (2 - k))))
        norm = theory.equilibrium_norm(lr, wd, grad_norm)
        assert abs(norm / expected - 1) < 8 * EPS
        effective = theory.equilibrium_effective_lr(lr, wd, grad_norm)
        assert abs(effective * expected**2 / exact(lr) - 1) < 20 * EPS
        for rule in (theory.AdamW(dim=10), theory.Lion(dim=10)):
            scaled = theory.equilibrium_norm(lr, wd, optimizer=rule) / lr
            assert scaled == pytest.approx(theory.equilibrium_norm(1.0, lr * wd, optimizer=rule), rel=1e-12)

    def test_a_quotient_of_learning_rate_and_decay_that_overflows(self):
        assert theory.equilibrium_norm(1e150, 1e-162, 1e-150) == pytest.approx(840.8964152537145, rel=1e-12)
        assert theory.equilibrium_norm(1e200, 1e-200, 1e-100) == pytest.approx(1e50, rel=1e-12)
        adam = theory.equilibrium_norm(1e-200, 1e-200, optimizer=theory.AdamW(dim=2, betas=(0.0, 0.0)))
        assert adam == pytest.approx(1.0, rel=1e-12)

    @everywhere
    @given(st.floats(-120, 120), st.floats(-100, 100), st.booleans())
    @example(76.0, 0.0, False)
    @example(78.0, 0.0, False)
    @example(100.0, 0.0, False)
    def test_inverse_design_is_right_or_nan(self, norm_exponent, exponent, momentum):
        norm, setting = 10.0**norm_exponent, 10.0**exponent
        rule = theory.SGD(momentum=0.9) if momentum else theory.SGD()
        wd = theory.wd_for_norm(setting, norm, optimizer=rule)
        lr = theory.lr_for_norm(setting, norm, optimizer=rule)
        if np.isfinite(wd):
            assert theory.equilibrium_norm(setting, wd, optimizer=rule) == pytest.approx(norm, rel=1e-12)
        elif not momentum:
            # λ = (1 - √(1-η²/ρ⁴))/η is about η/2ρ⁴; it is not a normal number, or ηλ is above 1
            quarter = exact(setting) / exact(norm) ** 4
            assert quarter / 2 < 3e-308 or exact(setting) * quarter > 1
        if np.isfinite(lr):
            assert theory.equilibrium_norm(lr, setting, optimizer=rule) == pytest.approx(norm, rel=1e-12)
        elif not momentum:
            # η = 2λρ⁴/(1+λ²ρ⁴)
            fourth = exact(norm) ** 4
            product = 2 * exact(setting) ** 2 * fourth / (1 + exact(setting) ** 2 * fourth)
            assert product > 1 - 1e-12 or product / exact(setting) < 3e-308


class TestSteps:
    @everywhere
    @given(unit_interval, st.one_of(small(EPS).map(lambda x: 1 + x), st.floats(1, 1e6)))
    @example(0.01, 1 + EPS)
    @example(0.01, 1.0)
    @example(0.5, 8.0)
    def test_least_decay_steps(self, intrinsic_lr, ratio):
        steps = theory.least_decay_steps(1.0, intrinsic_lr, ratio)
        expected = mp.log(exact(ratio)) / -mp.log(1 - exact(intrinsic_lr))
        near_integer = mp.nint(expected)
        if near_integer > 0 and abs(expected - near_integer) < 2e-12 * expected:
            assert abs(steps - expected) <= max(1, 2e-12 * expected)
        else:
            assert steps == mp.ceil(expected)
        assert (steps == 0) == (ratio == 1)

    @everywhere
    @given(unit_interval, unit_interval)
    @example(0.1, 0.01)
    def test_no_more_than_one_angular_jump_per_step(self, intrinsic_lr, delta):
        least = theory.least_time_between_angular_jumps(1.0, intrinsic_lr, delta)
        expected = mp.log(1 - exact(delta)) / mp.log(1 - exact(intrinsic_lr))
        assert abs(least / max(expected, 1) - 1) < 8 * EPS

    def test_every_step_is_an_angular_jump_at_equilibrium_with_a_smaller_threshold(self):
        angle = theory.rotation(theory.equilibrium_norm(0.5, 0.2), 0.5, 0.2, 1.0)
        assert 1 - np.cos(angle) > 0.01
        assert theory.least_time_between_angular_jumps(0.5, 0.2, 0.01) == 1


class TestBalanceLaw:
    @everywhere
    @given(small(1e-12), st.floats(0.01, 0.99), st.floats(-3, 3), st.sampled_from(["share", "odds"]))
    @example(1e-12, 0.9, -1.5, "odds")
    def test_the_period_keeps_its_digits_where_most_growth_is_outside(self, intrinsic_lr, outside, power, power_of):
        law = theory.BalanceLaw(0.5, 0.0, outside, power, 0.01, power_of=power_of)
        factor = (exact(intrinsic_lr) / exact(0.01)) ** exact(power)
        if power_of == "share":
            inside = 1 - exact(outside) * factor
        else:
            odds = exact(outside) / (1 - exact(outside)) * factor
            inside = 1 / (1 + odds)
        expected = exact(0.5) / inside / -mp.log(1 - exact(intrinsic_lr)) if inside > 0 else mp.nan
        period = law.period(1.0, intrinsic_lr)
        if abs(inside) < 1e-6 and power_of == "share":
            return  # the difference of two shares
        assert mp.isnan(expected) == np.isnan(period)
        assert np.isnan(period) or abs(period / expected - 1) < 1e-8
