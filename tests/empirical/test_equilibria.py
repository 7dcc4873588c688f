"""Equilibrium of every optimizer on a real small network, and where the random walk that the formulas assume fails."""

import numpy as np
import pytest

import theory
from empirical import RunConfig, train


def measured(optimizer, lr, wd, batch_size, dataset):
    """Root-mean-square rotation over the predicted one, and standard deviation of ln ρ, after the fall."""
    steps = 6000
    run = train(
        RunConfig(
            lr=lr,
            wd=wd,
            model="mlp",
            width=8,
            steps=steps,
            batch_size=batch_size,
            dataset=dataset,
            optimizer=optimizer,
            evaluate_every=steps,
        )
    )
    settled = run.isel(step=slice(steps // 2, None))
    gradient = float(np.sqrt((settled.grad_norm**2).mean()))
    predicted = theory.equilibrium_rotation(lr, wd, optimizer=optimizer, grad_norm=gradient)
    return float(np.sqrt((settled.rotation**2).mean())) / predicted, float(np.log(settled.norm).std())


HEAVY_BALL, NESTEROV = theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True)
ADAMW, LION = theory.AdamW(dim=576), theory.Lion(dim=576)


@pytest.mark.parametrize(
    ("optimizer", "lr", "wd", "batch_size", "dataset"),
    [
        (HEAVY_BALL, 0.05, 0.01, 256, "digits"),
        (NESTEROV, 0.05, 0.01, 32, "gaussian"),
        (ADAMW, 0.01, 0.1, 32, "gaussian"),
        (LION, 0.001, 1.0, 32, "gaussian"),
    ],
    ids=str,
)
def test_rotation_at_equilibrium(optimizer, lr, wd, batch_size, dataset):
    ratio, spread = measured(optimizer, lr, wd, batch_size, dataset)
    assert spread <= 0.05
    assert abs(ratio - 1) <= 0.05


def test_where_the_gradient_is_no_random_walk_the_formula_of_adamw_fails():
    # batches of 256 of 1437: a third of the squared gradient is its mean, which pulls back instead of walking
    ratio, spread = measured(ADAMW, 0.01, 0.1, 256, "digits")
    assert spread <= 0.05
    assert ratio < 0.6


def test_where_the_gradient_is_no_random_walk_the_formula_of_nesterov_fails():
    ratio, spread = measured(NESTEROV, 0.05, 0.01, 256, "digits")
    assert spread <= 0.05
    assert ratio > 1.1


def test_where_gradients_have_heavy_tails_the_formula_of_lion_fails():
    # batches of 8: kurtosis 15, so that rare large gradients decide the sign of the momentum for long
    ratio, spread = measured(LION, 0.001, 1.0, 8, "gaussian")
    assert spread <= 0.05
    assert ratio < 0.9
