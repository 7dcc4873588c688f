"""Periods with matrix products in bfloat16 equal those in float32."""

import dataclasses

import numpy as np
import pytest

import simulate
from empirical.studies.tables import (
    PERIOD_QUANTITIES,
    PRECISION_SETTINGS,
    means_and_errors,
    train_in_both_precisions,
)


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
