"""Equilibrium of optimizers on a small network, and cases in which the random-walk assumption fails."""

import pytest

from empirical.studies.tables import (
    ADAMW,
    HEAVY_BALL,
    LION,
    NESTEROV,
    equilibrium_config,
    measure_equilibrium,
)


@pytest.mark.parametrize(
    "config",
    [
        equilibrium_config(HEAVY_BALL, 0.05, 0.01, 256, "digits"),
        equilibrium_config(NESTEROV, 0.05, 0.01, 32, "gaussian"),
        equilibrium_config(ADAMW, 0.01, 0.1, 32, "gaussian"),
        equilibrium_config(LION, 0.001, 1.0, 32, "gaussian"),
    ],
    ids=lambda config: repr(config.optimizer),
)
def test_rotation_at_equilibrium(config):
    measurement = measure_equilibrium(config)
    assert measurement.log_norm_sd <= 0.05
    assert abs(measurement.rotation - 1) <= 0.05


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (equilibrium_config(ADAMW, 0.01, 0.1, 256, "digits"), 0.3, 0.6),
        (equilibrium_config(NESTEROV, 0.05, 0.01, 256, "digits"), 1.1, 1.3),
    ],
    ids=["AdamW", "Nesterov"],
)
def test_formulas_fail_if_the_mean_gradient_is_large(config, low, high):
    measurement = measure_equilibrium(config)
    assert measurement.log_norm_sd <= 0.05
    assert measurement.mean_share > 0.2
    assert low < measurement.rotation < high


def test_the_formula_of_lion_fails_for_heavy_tailed_gradients():
    measurement = measure_equilibrium(equilibrium_config(LION, 0.001, 1.0, 8, "gaussian"))
    assert measurement.log_norm_sd <= 0.05
    assert measurement.kurtosis > 10
    assert measurement.rotation < 0.9
