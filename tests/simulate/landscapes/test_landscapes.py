import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulate.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, _kernels

FIXED = settings(deadline=None, derandomize=True, max_examples=40)


def data(examples=12, dim=5, seed=0):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(examples, dim))
    return inputs, np.sign(inputs[:, 0] + generator.normal(size=examples))


LANDSCAPES = {
    "ratio": Ratio2D(3.0, 0.7),
    "narrow ratio": Ratio2D(5.0, 0.1),
    "quotient": RayleighQuotient([-1.0, 0.5, 2.0, 2.0]),
    "squared": NormalizedRegression(*data(), output_norm=2.0),
    "logistic": NormalizedRegression(*data(), loss="logistic", output_norm=3.0),
}


@pytest.fixture(params=LANDSCAPES, ids=str)
def landscape(request):
    return LANDSCAPES[request.param]


def direction(dim, seed):
    return np.random.default_rng(seed).normal(size=dim)


def differences(landscape, weights, width=1e-5):
    """Central differences; they are off by width² and by rounding over width, some 1e-10."""
    return np.array(
        [
            (landscape.value(weights + e) - landscape.value(weights - e)) / (2 * width)
            for e in width * np.eye(len(weights))
        ]
    )


class TestScaleInvariance:
    @FIXED
    @given(seed=st.integers(0, 10**6), name=st.sampled_from(list(LANDSCAPES)), scale=st.floats(1e-100, 1e100))
    def test_value_is_that_of_the_direction(self, seed, name, scale):
        landscape = LANDSCAPES[name]
        weights = direction(landscape.dim, seed)
        np.testing.assert_allclose(landscape.value(scale * weights), landscape.value(weights), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(
            scale * landscape.gradient(scale * weights), landscape.gradient(weights), rtol=1e-12, atol=1e-13
        )

    @FIXED
    @given(seed=st.integers(0, 10**6), name=st.sampled_from(list(LANDSCAPES)))
    def test_gradient_is_the_derivative_and_orthogonal_to_the_weights(self, seed, name):
        landscape = LANDSCAPES[name]
        weights = direction(landscape.dim, seed)
        weights *= 2 / np.linalg.norm(weights)
        gradient = landscape.gradient(weights)
        np.testing.assert_allclose(gradient, differences(landscape, weights), atol=1e-8 * (1 + abs(gradient).max()))
        assert abs(gradient @ weights) < 1e-14 * (1 + np.linalg.norm(gradient))

    def test_an_ordinary_regression_fails_these_checks(self):
        # the same checks fail for predictions that know the norm
        inputs, targets = data()
        weights = direction(5, 0)
        gradient = inputs.T @ (inputs @ weights - targets) / len(targets)
        assert abs(gradient @ weights) > 0.1

    def test_many_weights_at_once(self, landscape):
        weights = np.random.default_rng(0).normal(size=(3, 4, landscape.dim))
        values, gradients = landscape.value(weights), landscape.gradient(weights)
        assert values.shape == (3, 4)
        np.testing.assert_allclose(values[1, 2], landscape.value(weights[1, 2]), rtol=1e-14)
        np.testing.assert_allclose(gradients[1, 2], landscape.gradient(weights[1, 2]), rtol=1e-12, atol=1e-14)


class TestCompiled:
    @FIXED
    @given(seed=st.integers(0, 10**6), name=st.sampled_from(list(LANDSCAPES)))
    def test_loss_and_gradient_are_those_of_numpy(self, seed, name):
        landscape = LANDSCAPES[name]
        unit = direction(landscape.dim, seed)
        unit /= np.linalg.norm(unit)
        gradient = np.empty_like(unit)
        loss = _kernels.loss_and_gradient(landscape.parts(), np.uint64(1), 0, unit, gradient)
        np.testing.assert_allclose(loss, landscape.value(unit), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(gradient, landscape.gradient(unit), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e3, 1e5])
    def test_logistic_loss_neither_overflows_nor_cancels(self, scale):
        regression = NormalizedRegression([[1.0, 1.0]], [1.0], loss="logistic", output_norm=scale)
        for sign in (1, -1):
            unit = np.array([1.0, 0.0]) * sign
            gradient = np.empty(2)
            loss = _kernels.loss_and_gradient(regression.parts(), np.uint64(1), 0, unit, gradient)
            margin = sign * scale
            expected = math.log1p(math.exp(-margin)) if abs(margin) < 700 else max(-margin, 0.0)
            slope = -1 / (1 + math.exp(min(margin, 700.0)))
            for value in (loss, regression.value(unit)):
                assert value == pytest.approx(expected, rel=1e-12, abs=1e-300)
            for vector in (gradient, regression.gradient(unit)):
                assert vector[1] == pytest.approx(slope * scale, rel=1e-9, abs=1e-290)


class TestRatio:
    def test_is_the_documented_function_of_the_angle(self):
        ratio = Ratio2D(3.0, 0.7)
        angle = np.linspace(0, 7, 50)
        q = 3.0 / (2 * 0.7)
        expected = 1.5 * np.sin(angle) ** 2 / (np.cos(angle) ** 2 + q * np.sin(angle) ** 2)
        np.testing.assert_allclose(ratio.value(np.stack([np.cos(angle), np.sin(angle)], axis=-1)), expected, atol=1e-15)

    @pytest.mark.parametrize(("sharpness", "highest"), [(1.0, 0.5), (3.0, 0.1), (2.0, 50.0)])
    def test_parameters_are_curvature_and_maximum(self, sharpness, highest):
        ratio = Ratio2D(sharpness, highest)
        small = 1e-4
        curvature = 2 * ratio.value([math.cos(small), math.sin(small)]) / small**2
        assert curvature == pytest.approx(sharpness, rel=1e-5)
        assert ratio.value([0.0, -1.0]) == pytest.approx(highest)
        around = np.random.default_rng(0).normal(size=(1000, 2))
        assert ratio.value(around).max() <= highest * (1 + 1e-15)
        assert ratio.value(around).min() >= 0

    def test_half_the_curvature_as_maximum_makes_it_a_rayleigh_quotient(self):
        weights = np.random.default_rng(0).normal(size=(20, 2))
        ratio, quotient = Ratio2D(3.0, 1.5), RayleighQuotient([0.0, 3.0])
        np.testing.assert_allclose(ratio.value(weights), quotient.value(weights), rtol=1e-14)
        np.testing.assert_allclose(ratio.gradient(weights), quotient.gradient(weights), rtol=1e-12, atol=1e-15)
        assert not np.allclose(Ratio2D(3.0, 1.6).value(weights), quotient.value(weights))


def largest_curvature(value, at, width=1e-3):
    """Largest eigenvalue of second differences of a scale-invariant loss across the direction `at`."""
    at = at / np.linalg.norm(at)
    across = np.linalg.svd(at[np.newaxis])[2][1:]
    size = len(across)
    hessian = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            hessian[i, j] = sum(
                a * b * value(at + width * (a * across[i] + b * across[j])) for a in (1, -1) for b in (1, -1)
            ) / (4 * width**2)
    return float(np.linalg.eigvalsh(hessian)[-1])


class TestSharpness:
    def test_of_the_rayleigh_quotient(self):
        quotient = LANDSCAPES["quotient"]
        assert quotient.sharpness == 3.0
        minimum = np.array([1.0, 0.0, 0.0, 0.0])
        assert quotient.value(minimum) == quotient.lowest == -0.5
        assert largest_curvature(quotient.value, minimum) == pytest.approx(3.0, rel=1e-5)

    @pytest.mark.parametrize("name", ["squared", "logistic"])
    @pytest.mark.parametrize("seed", range(3))
    def test_of_the_regression(self, name, seed):
        regression = LANDSCAPES[name]
        at = direction(5, seed)
        at /= np.linalg.norm(at)
        # the curvature of f as it is, at norm 1; between two directions across, the radial part does not come in
        expected = largest_curvature(regression.value, at)
        assert regression.sharpness_at(7 * at) == pytest.approx(expected, rel=1e-4)
        flat = regression.inputs.T @ regression.inputs / 12 * regression.output_norm**2
        assert abs(np.linalg.eigvalsh(flat)[-1] / expected - 1) > 0.01

    def test_asks_for_one_direction(self):
        with pytest.raises(ValueError, match=r"^weights must have.*got \(2, 5\)"):
            LANDSCAPES["squared"].sharpness_at(np.ones((2, 5)))


class TestBatches:
    def test_depend_on_seed_walker_and_step_alone(self):
        regression = NormalizedRegression(*data(50), batch_size=8)
        first = regression.batch(3, 1, 7)
        np.testing.assert_array_equal(first, regression.batch(3, 1, 7))
        for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
            assert not np.array_equal(first, regression.batch(*other)), other

    def test_cover_the_examples_evenly_with_replacement(self):
        regression = NormalizedRegression(*data(10), batch_size=5)
        batches = np.array([regression.batch(0, 0, step) for step in range(4000)])
        counts = np.bincount(batches.ravel(), minlength=10)
        # 20 000 draws: standard deviation of each count √(20000·0.1·0.9) = 42
        assert abs(counts - 2000).max() < 4 * 42
        assert any(len(set(batch)) < 5 for batch in batches)

    def test_gradients_of_mini_batches_are_those_of_the_full_batch_on_average(self):
        inputs, targets = data(20)
        regression = NormalizedRegression(inputs, targets, batch_size=4)
        weights = direction(5, 0)
        gradients = np.array([regression.gradient(weights, regression.batch(0, 0, step)) for step in range(4000)])
        scatter = gradients.std(axis=0) / math.sqrt(len(gradients))
        assert (abs(gradients.mean(axis=0) - regression.gradient(weights)) < 4 * scatter).all()
        assert scatter.max() < 0.02

    def test_the_largest_random_number_gives_the_last_example(self):
        largest = max(_kernels.example_index(np.uint64(key), 0, 3) for key in range(200))
        assert largest == 2


class TestData:
    def test_is_a_copy_that_cannot_be_changed(self):
        inputs, targets = data()
        spectrum = np.array([0.0, 1.0])
        regression, quotient = NormalizedRegression(inputs, targets), RayleighQuotient(spectrum)
        before = regression.value(np.ones(5)), quotient.value([1.0, 1.0])
        inputs[:], targets[:], spectrum[:] = 0, 0, 0
        assert (regression.value(np.ones(5)), quotient.value([1.0, 1.0])) == before
        for array in (regression.inputs, regression.targets, quotient.spectrum):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1

    def test_other_data_give_another_repr(self):
        names = {repr(LANDSCAPES[name]) for name in LANDSCAPES}
        inputs, targets = data()
        names |= {
            repr(NormalizedRegression(inputs, targets)),
            repr(NormalizedRegression(inputs, targets, batch_size=3)),
        }
        names |= {repr(NormalizedRegression(inputs + 1, targets)), repr(RayleighQuotient([0, 1, 2, 3]))}
        assert len(names) == len(LANDSCAPES) + 4
        assert repr(NormalizedRegression(inputs, targets)) == repr(NormalizedRegression(inputs, targets))


BAD = [
    (lambda: Ratio2D(0.0), ValueError, r"^sharpness must be a finite number > 0, got 0.0"),
    (lambda: Ratio2D(1.0, -1.0), ValueError, r"^highest must be a finite number > 0, got -1.0"),
    (lambda: Ratio2D([1.0, 2.0]), ValueError, r"^sharpness must be one number, got an array of shape \(2,\)"),
    (lambda: Ratio2D("1"), TypeError, r"^sharpness must be "),
    (lambda: RayleighQuotient([1.0]), ValueError, r"^spectrum must be a list of at least 2 numbers, got shape \(1,\)"),
    (lambda: RayleighQuotient(1.0), ValueError, r"^spectrum must be .*shape \(\)"),
    (lambda: RayleighQuotient(np.eye(2)), ValueError, r"^spectrum must be .*shape \(2, 2\)"),
    (lambda: RayleighQuotient([1.0, math.nan]), ValueError, r"^spectrum must be a finite number, got nan at index 1"),
    (lambda: RayleighQuotient(["a", "b"]), TypeError, r"^spectrum must be "),
    (lambda: NormalizedRegression(np.ones(3), np.ones(3)), ValueError, r"^inputs must have the shape .*got \(3,\)"),
    (lambda: NormalizedRegression(np.ones((3, 1)), np.ones(3)), ValueError, r"^inputs must have .*got \(3, 1\)"),
    (lambda: NormalizedRegression(np.ones((0, 2)), np.ones(0)), ValueError, r"^inputs must have .*got \(0, 2\)"),
    (lambda: NormalizedRegression(np.ones((3, 2)), np.ones(2)), ValueError, r"^targets must have .*\(3,\).*got \(2,\)"),
    (lambda: NormalizedRegression([[1, math.inf]], [1]), ValueError, r"^inputs must be a finite number, got inf"),
    (lambda: NormalizedRegression([[1, 2]], [1], 0), ValueError, r"^batch_size must be a whole number >= 1, got 0"),
    (lambda: NormalizedRegression([[1, 2]], [1], 2.0), TypeError, r"^batch_size must be a whole number >= 1, got 2.0"),
    (lambda: NormalizedRegression([[1, 2]], [1], loss="l2"), ValueError, r"^loss must be one of logistic, squared"),
    (lambda: NormalizedRegression([[1, 2]], [0.5], loss="logistic"), ValueError, r"^targets must be -1 or \+1.*0.5"),
    (lambda: NormalizedRegression([[1, 2]], [1], output_norm=0), ValueError, r"^output_norm must be .*> 0, got 0.0"),
    (lambda: Ratio2D().value([0.0, 0.0]), ValueError, r"^weights must not be zero"),
    (lambda: Ratio2D().gradient([1.0, 0.0, 0.0]), ValueError, r"^weights must have 2 numbers .*got shape \(3,\)"),
    (lambda: Ratio2D().value(1.0), ValueError, r"^weights must have 2 numbers .*got shape \(\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:35] for _, _, message in BAD])
def test_bad_values_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
