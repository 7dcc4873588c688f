"""Equilibrium of every optimizer on a real small network, and where the random walk that the formulas assume fails."""

import pytest

from empirical.studies.tables.equilibria import ADAMW, HEAVY_BALL, LION, NESTEROV, measure, setting


@pytest.mark.parametrize(
    "config",
    [
        setting(HEAVY_BALL, 0.05, 0.01, 256, "digits"),
        setting(NESTEROV, 0.05, 0.01, 32, "gaussian"),
        setting(ADAMW, 0.01, 0.1, 32, "gaussian"),
        setting(LION, 0.001, 1.0, 32, "gaussian"),
    ],
    ids=lambda config: repr(config.optimizer),
)
def test_rotation_at_equilibrium(config):
    found = measure(config)
    assert found.log_norm_sd <= 0.05
    assert abs(found.rotation - 1) <= 0.05


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (setting(ADAMW, 0.01, 0.1, 256, "digits"), 0.3, 0.6),
        (setting(NESTEROV, 0.05, 0.01, 256, "digits"), 1.1, 1.3),
    ],
    ids=["AdamW", "Nesterov"],
)
def test_where_the_mean_of_the_gradient_pulls_back_formulas_fail(config, low, high):
    found = measure(config)
    assert found.log_norm_sd <= 0.05
    assert found.mean_share > 0.2
    assert low < found.rotation < high


def test_where_gradients_have_heavy_tails_the_formula_of_lion_fails():
    found = measure(setting(LION, 0.001, 1.0, 8, "gaussian"))
    assert found.log_norm_sd <= 0.05
    assert found.kurtosis > 10
    assert found.rotation < 0.9
