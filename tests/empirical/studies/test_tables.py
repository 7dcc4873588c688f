"""Equilibrium of optimizers, cases in which the random-walk assumption fails, and periods in bfloat16."""

import dataclasses

import numpy as np
import pytest

import simulate
from empirical.studies.tables import (
    ADAMW,
    HEAVY_BALL,
    LION,
    NESTEROV,
    PERIOD_QUANTITIES,
    PRECISION_SETTINGS,
    equilibrium_config,
    means_and_errors,
    measure_equilibrium,
    train_in_both_precisions,
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


def check_periods(config):
    runs = train_in_both_precisions(config)
    periods = {dtype: simulate.find_periods(run) for dtype, run in runs.items()}
    assert min(measurement.count for measurement in periods.values()) >= 60
    for measured in PERIOD_QUANTITIES:
        (one, one_error), (other, other_error) = means_and_errors(periods, measured).values()
        assert abs(one - other) <= 3 * np.hypot(one_error, other_error), measured
    # rounding to 8 bits makes the gradient slightly non-orthogonal to the weights
    assert runs["bfloat16"].radial_defect.median() > 100 * runs["float32"].radial_defect.median()
    assert runs["bfloat16"].radial_defect.median() < 1e-3


def test_periods_of_an_mlp_in_bfloat16():
    check_periods(dataclasses.replace(PRECISION_SETTINGS[2], steps=8000))


@pytest.mark.acceptance
@pytest.mark.parametrize("config", PRECISION_SETTINGS[:2], ids=lambda config: f"wd={config.wd}")
def test_periods_of_a_convnet_in_bfloat16(config):
    check_periods(config)
