import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory

values = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e3)), min_size=1, max_size=6)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(values)
def test_the_total_is_that_of_the_concatenated_vectors(groups):
    norms, gradients = np.array(groups).T
    # vectors: weights along the first axis of each group, gradients along the second
    weights = np.concatenate([[norm, 0] for norm in norms])
    gradient = np.concatenate([[0, g / norm] for norm, g in groups])
    total = np.linalg.norm(weights) * np.linalg.norm(gradient)
    assert theory.total_grad_norm(norms, gradients) == pytest.approx(total, rel=1e-12)
    assert theory.total_grad_norm(norms, gradients) >= gradients.sum() * (1 - 1e-12)
    if (gradients > 0).all():
        equilibria = theory.equilibrium_norm(0.1, 0.1, gradients)
        assert theory.total_grad_norm(equilibria, gradients) == pytest.approx(gradients.sum(), rel=1e-12)
        # if all groups are at equilibrium, so are they as a whole
        whole = theory.equilibrium_norm(0.1, 0.1, gradients.sum())
        assert np.linalg.norm(equilibria) == pytest.approx(whole, rel=1e-12)


def test_one_group_is_itself_and_shapes_broadcast():
    assert theory.total_grad_norm([3.0], [2.0]) == pytest.approx(2.0)
    assert theory.total_grad_norm(np.ones((5, 1)), [1.0, 2.0]).shape == (5,)
    assert theory.total_grad_norm([1.0, 2.0], [0.0, 0.0]) == 0
    assert theory.total_grad_norm([1e200, 1e200], [1.0, 1.0]) == pytest.approx(2)


def normalized(w, x, eps):
    """One channel of a batch norm, from its definition."""
    z = x @ w
    z = z - z.mean()
    return z / np.sqrt((z * z).mean() + eps)


def per_scale(function, rho):
    """Derivative in ln ρ, by a complex step: exact to rounding."""
    return np.imag(function(rho * (1 + 1e-30j))) / 1e-30


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 1000), st.floats(1e-8, 1e-2), st.floats(1e-3, 0.9))
def test_invariance_ends_at_the_stated_norm(seed, eps, tolerance):
    generator = np.random.default_rng(seed)
    x, w = generator.normal(size=(50, 6)), generator.normal(size=6)
    w /= np.linalg.norm(w)
    rho = theory.invariance_norm(eps, (x @ w).var(), tolerance)
    # relative change of the output per relative change of the scale
    here = normalized(w * rho, x, eps)
    share = per_scale(lambda scale: normalized(w * scale, x, eps), rho)
    # an output close to 0 has lost its digits relative to the others
    np.testing.assert_allclose(share, tolerance * here, rtol=1e-10, atol=1e-14)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 1000), st.floats(1e-8, 1e-2), st.floats(1e-6, 1.0), st.floats(1e-3, 10))
def test_the_radial_gradient_is_the_stated_share_of_the_decay(seed, eps, wd, tolerance):
    generator = np.random.default_rng(seed)
    x, w, c = generator.normal(size=(50, 6)), generator.normal(size=6), generator.normal(size=50)
    w /= np.linalg.norm(w)

    def slope_at(rho):
        return c @ normalized(w * rho, x, eps)  # the loss is Σ c z, so ∂f/∂z = c

    # fixed-point iteration, because the slope ⟨∂f/∂z,z⟩ depends slightly on the norm
    rho = 1.0
    for _ in range(200):
        rho = theory.decay_invariance_norm(eps, (x @ w).var(), wd, slope_at(rho), tolerance)
    radial = per_scale(slope_at, rho)  # ⟨∇f,w⟩ = df/d ln ρ
    assert abs(radial) == pytest.approx(tolerance * wd * rho**2, rel=1e-8)


def test_decay_is_affected_long_before_the_output():
    assert theory.decay_invariance_norm(1e-5, 0.5, 1e-3, 0.1, 0.1) > 10 * theory.invariance_norm(1e-5, 0.5, 0.5)
    assert theory.decay_invariance_norm(0.0, 0.5, 1e-3, 0.1, 0.1) == 0
    assert theory.invariance_norm(0.0, 0.5, 0.1) == 0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.total_grad_norm(1.0, 1.0), "groups as last axis"),
        (lambda: theory.total_grad_norm([1.0, 0.0], [1.0, 1.0]), "norm"),
        (lambda: theory.total_grad_norm([1.0, 1.0], [1.0, 1.0, 1.0]), "broadcast"),
        (lambda: theory.invariance_norm(-1, 1, 0.1), "eps"),
        (lambda: theory.invariance_norm(1e-5, 1, 1.0), "tolerance"),
        (lambda: theory.decay_invariance_norm(1e-5, 0, 1, 1, 0.1), "variance"),
        (lambda: theory.decay_invariance_norm(1e-5, 1, 0, 1, 0.1), "wd"),
    ],
)
def test_bad_values_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
