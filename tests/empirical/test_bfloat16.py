"""Matrix products in bfloat16 are offered because they leave the periods alone: here it is held against float32."""

import dataclasses

import numpy as np
import pytest

import simulate
from empirical.studies.tables.precision import MEASURED, SETTINGS, means_and_errors, trained


def check_periods(config):
    runs = trained(config)
    periods = {dtype: simulate.find_periods(run) for dtype, run in runs.items()}
    assert min(found.count for found in periods.values()) >= 60
    for measured in MEASURED:
        (one, one_error), (other, other_error) = means_and_errors(periods, measured).values()
        assert abs(one - other) <= 3 * np.hypot(one_error, other_error), measured
    # 8 bits are seen in the gradient, which is no longer quite orthogonal to the weights
    assert runs["bfloat16"].radial_defect.median() > 100 * runs["float32"].radial_defect.median()
    assert runs["bfloat16"].radial_defect.median() < 1e-3


def test_periods_of_an_mlp_in_bfloat16():
    check_periods(dataclasses.replace(SETTINGS[2], steps=8000))


@pytest.mark.acceptance
@pytest.mark.parametrize("config", SETTINGS[:2], ids=lambda config: f"wd={config.wd}")
def test_periods_of_a_convnet_in_bfloat16(config):
    check_periods(config)
