import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory
from empirical import RunConfig
from theory.matrix import orthogonal_coefficients

SHAPES = [(64, 64), (32, 128)]
QUINTIC = (3.4445, -4.775, 2.0315)


def exact(rows, columns, **settings):
    return theory.Muon(rows=rows, columns=columns, iterations=0, **settings)


def polar_factors(matrices):
    left, _, right = np.linalg.svd(matrices, full_matrices=False)
    return left @ right


def after_iterations(matrices, iterations=5):
    """Newton-Schulz iterations on the singular values, by a decomposition instead of matrix products."""
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    values = values / np.sqrt((values**2).sum(axis=-1, keepdims=True))
    for _ in range(iterations):
        values = QUINTIC[0] * values + QUINTIC[1] * values**3 + QUINTIC[2] * values**5
    return left * values[..., np.newaxis, :] @ right


def matrix_arcsine_law(c):
    chi = sum(c**k / k**2 for k in range(1, 20_001, 2))
    return 4 / np.pi**2 * ((1 + c**-2) * chi + (1 - c**-2) * np.arctanh(c))


def series(coefficients, c):
    return sum(a * c ** (2 * k + 1) for k, a in enumerate(coefficients))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.01, 0.99))
def test_the_series_of_square_matrices_has_a_closed_form(c):
    _, coefficients = orthogonal_coefficients(100, 100, 0)
    assert series(coefficients, c) == pytest.approx(matrix_arcsine_law(c), rel=1e-5)


@pytest.mark.parametrize(("fewer", "more"), [(1, 2), (3, 5), (10, 1000), (999, 1000)])
def test_coefficients_of_polar_factors_are_positive_and_add_up_to_one(fewer, more):
    total, coefficients = orthogonal_coefficients(fewer, more, 0)
    assert total == pytest.approx(1, rel=1e-4)
    assert min(coefficients) >= 0
    # the rest of the series decreases like 1/k for square matrices, and exponentially for others
    assert sum(coefficients) == pytest.approx(1, rel=2e-3)
    # very wide matrices have orthogonal rows as they are: the correlation of the step is that of the momentum
    if more / fewer >= 100:
        assert coefficients[0] == pytest.approx(1, rel=5e-3)


@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (48, 40)])
@pytest.mark.parametrize(("function", "iterations"), [(polar_factors, 0), (after_iterations, 5)])
def test_correlations_are_those_of_random_matrices(rows, columns, function, iterations):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 60, rows, columns))
    total, coefficients = orthogonal_coefficients(*sorted((rows, columns)), iterations)
    start = function(first)
    products = (start * start).sum(axis=(1, 2)) / min(rows, columns)
    assert products.mean() == pytest.approx(total, rel=5e-3)
    for c in (0.3, 0.7, 0.95):
        products = (start * function(c * first + (1 - c * c) ** 0.5 * second)).sum(axis=(1, 2)) / min(rows, columns)
        scatter = products.std(ddof=1) / products.size**0.5
        expected = series(coefficients, c)
        assert abs(products.mean() - expected) < 4 * scatter + 5e-3 * expected
        assert scatter < 0.02 * expected
        # the momentum is more correlated than the step
        assert expected / total < 0.995 * c


@functools.cache
def walk(rule, lr=0.1, wd=0.1):
    rows, columns = rule.shape
    run = simulate.random_walk(lr, wd, dim=rows * columns, steps=900, optimizer=rule, walkers=2, seed=1)
    return run.isel(step=slice(300, None))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize(
    ("momentum", "nesterov", "iterations"), [(0.8, True, 5), (0.9, False, 5), (0.95, True, 5), (0.9, True, 0)]
)
def test_closed_forms_are_those_of_random_walks(rows, columns, momentum, nesterov, iterations):
    rule = theory.Muon(rows=rows, columns=columns, momentum=momentum, nesterov=nesterov, iterations=iterations)
    settled = walk(rule)
    square = float((settled.norm**2).mean()) / theory.equilibrium_norm(0.1, 0.1, optimizer=rule) ** 2
    turn = float((1 - np.cos(settled.rotation)).mean()) / (
        1 - np.cos(theory.equilibrium_rotation(0.1, 0.1, optimizer=rule))
    )
    assert abs(square - 1) < 0.01
    assert abs(turn - 1) < 0.01


def test_the_correlation_of_the_momentum_is_too_large():
    # the usual formula takes successive steps to be correlated as β^k
    rule = exact(64, 64, momentum=0.95, nesterov=False)
    s = 1 - 0.01
    usual = 0.1 * 64 * (1 + 2 * 0.95 * s / (1 - 0.95 * s)) / (0.1 * (2 - 0.01))
    norm = float((walk(rule).norm ** 2).mean()) ** 0.5
    assert 1.12 < usual**0.5 / norm < 1.25
    assert abs(theory.equilibrium_norm(0.1, 0.1, optimizer=rule) / norm - 1) < 0.01


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "of_torch"), [("original", "original"), ("match_rms_adamw", "match_rms_adamw")])
def test_the_rule_is_that_of_torch(rows, columns, nesterov, scale, of_torch):
    generator = torch.Generator().manual_seed(0)
    rule = theory.Muon(rows=rows, columns=columns, nesterov=nesterov, scale=scale)
    weights = torch.randn(rows, columns, generator=generator, dtype=torch.float64).requires_grad_()
    ours = weights.detach().numpy().reshape(1, -1).copy()
    state = rule.start(ours)
    as_tensor, tensor_state = torch.from_numpy(ours.copy()), rule.start(torch.from_numpy(ours))
    optimizer = torch.optim.Muon([weights], lr=0.1, weight_decay=0.2, nesterov=nesterov, adjust_lr_fn=of_torch)
    for _ in range(5):
        gradient = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        weights.grad = gradient.clone()
        before = weights.detach().clone()
        optimizer.step()
        step = (weights.detach() - before).numpy().reshape(1, -1)
        flat = gradient.reshape(1, -1)
        as_tensor, tensor_state = rule.update(as_tensor, flat, tensor_state, 0.1, 0.2)
        after, state = rule.update(ours, flat.numpy(), state, 0.1, 0.2)
        # PyTorch iterates in bfloat16, which small singular values amplify
        own = after - ours
        assert (own * step).sum() / np.sqrt((own**2).sum() * (step**2).sum()) > 0.995
        assert np.sqrt((own**2).sum() / (step**2).sum()) == pytest.approx(1, rel=0.03)
        ours = after
        np.testing.assert_allclose(as_tensor.numpy(), ours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 8), (8, 3)])
def test_without_iterations_the_step_is_the_polar_factor(rows, columns):
    rule = exact(rows, columns, momentum=0.0, nesterov=False, scale="none")
    gradients = np.random.default_rng(0).normal(size=(20, rows, columns))
    weights = np.zeros((20, rows * columns))
    after, _ = rule.update(weights, gradients.reshape(20, -1), rule.start(weights), 1.0, 0.0)
    np.testing.assert_allclose(-after.reshape(gradients.shape), polar_factors(gradients), atol=1e-8)


def test_a_matrix_of_zeros_gives_no_step():
    rule, zeros = theory.Muon(rows=2, columns=3), np.zeros((1, 6))
    after, _ = rule.update(zeros + 1, zeros, rule.start(zeros), 0.1, 0.0)
    assert (after == 1).all()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0, 0.999),
    st.booleans(),
    st.integers(0, 8),
    st.floats(1e-8, 0.99),
)
def test_over_the_whole_range(rows, columns, momentum, nesterov, iterations, intrinsic_lr):
    rule = theory.Muon(rows=rows, columns=columns, momentum=momentum, nesterov=nesterov, iterations=iterations)
    norm = theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, optimizer=rule)
    turn = 1 - np.cos(theory.equilibrium_rotation(0.5, intrinsic_lr / 0.5, optimizer=rule))
    assert norm > 0
    assert 0 < turn < 1 + 1e-9
    transposed = theory.Muon(
        rows=columns, columns=rows, momentum=momentum, nesterov=nesterov, iterations=iterations, scale="none"
    )
    plain = theory.Muon(
        rows=rows, columns=columns, momentum=momentum, nesterov=nesterov, iterations=iterations, scale="none"
    )
    assert theory.equilibrium_norm(0.5, 0.1, optimizer=plain) == theory.equilibrium_norm(0.5, 0.1, optimizer=transposed)
    # the scale of the steps is that of the norm, and does not change the rotation
    assert norm == pytest.approx(
        theory.equilibrium_norm(0.5, intrinsic_lr / 0.5, optimizer=plain) * rule.factor, rel=1e-12
    )


def test_more_momentum_makes_larger_norms_and_slower_rotation():
    rules = [exact(64, 64, momentum=momentum) for momentum in (0.0, 0.5, 0.9, 0.99)]
    norms = [theory.equilibrium_norm(0.1, 0.01, optimizer=rule) for rule in rules]
    angles = [theory.equilibrium_rotation(0.1, 0.01, optimizer=rule) for rule in rules]
    assert all(a < b for a, b in itertools.pairwise(norms))
    assert all(a > b for a, b in itertools.pairwise(angles))
    # independent steps
    assert norms[0] ** 2 == pytest.approx(0.1 * 64 / (0.01 * (2 - 0.001)), rel=1e-6)
    assert 1 - np.cos(angles[0]) == pytest.approx(0.001, rel=1e-6)


def test_laws_in_time_are_those_of_decoupled_decay():
    rule = theory.Muon(rows=64, columns=64)
    assert theory.relaxation_time(0.1, 0.01, optimizer=rule) == theory.relaxation_time(0.1, 0.01, optimizer="AdamW")
    settled = theory.norm_under_schedule(0.1, 0.01, 20_000, norm=1.0, optimizer=rule)[-1]
    assert settled == pytest.approx(theory.equilibrium_norm(0.1, 0.01, optimizer=rule), rel=0.01)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"rows": 0}, "rows"),
        ({"columns": 2.5}, "columns"),
        ({"momentum": 1.0}, "momentum"),
        ({"nesterov": 1}, "nesterov"),
        ({"scale": "spectral"}, "scale"),
        ({"iterations": -1}, "iterations"),
    ],
)
def test_bad_settings_are_named(values, name):
    with pytest.raises((TypeError, ValueError), match=name):
        theory.Muon(**values)


def test_what_needs_the_shape_says_so():
    with pytest.raises(ValueError, match=r"optimizer.*rows and columns.*Muon\(rows"):
        theory.equilibrium_norm(0.1, 0.01, optimizer="Muon")
    rule = theory.Muon(rows=2, columns=3)
    with pytest.raises(ValueError, match=r"weights.*6.*5"):
        rule.update(np.ones((1, 5)), np.ones((1, 5)), (np.ones((1, 5)),), 0.1, 0.1)
    with pytest.raises(ValueError, match=r"optimizer.*Muon.*Monitor"):
        RunConfig(lr=0.1, wd=0.01, optimizer=rule)
