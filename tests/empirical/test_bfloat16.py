"""Matrix products in bfloat16 are offered because they leave the periods alone: here it is held against float32."""

import numpy as np
import pytest

import simulate
from empirical import RunConfig, train


def check_periods(model, wd, steps, at_least):
    runs = {
        dtype: train(RunConfig(lr=0.5, wd=wd, model=model, steps=steps, evaluate_every=steps, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }
    found = {dtype: simulate.find_periods(run) for dtype, run in runs.items()}
    counts = {dtype: periods.count for dtype, periods in found.items()}
    assert min(counts.values()) >= at_least
    for measured in ("lengths", "norm_min", "norm_max"):
        one, other = (np.asarray(getattr(found[dtype], measured)) for dtype in runs)
        error = np.hypot(*(values.std(ddof=1) / np.sqrt(len(values)) for values in (one, other)))
        assert abs(one.mean() - other.mean()) <= 3 * error, (measured, one.mean(), other.mean(), error)
    # 8 bits are seen in the gradient, which is no longer quite orthogonal to the weights
    assert runs["bfloat16"].radial_defect.median() > 100 * runs["float32"].radial_defect.median()
    assert runs["bfloat16"].radial_defect.median() < 1e-3


def test_periods_of_an_mlp_in_bfloat16():
    check_periods("mlp", 0.02, 8000, at_least=60)


@pytest.mark.acceptance
@pytest.mark.parametrize(("wd", "steps"), [(0.02, 15_000), (0.01, 25_000)])
def test_periods_of_a_convnet_in_bfloat16(wd, steps):
    check_periods("convnet", wd, steps, at_least=60)
