"""Types of results: mypy checks them in this file, and the tests check that they are what the functions return."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from mypy import api
from numpy.typing import NDArray

import theory
from theory.arguments import FloatArray
from theory.schedules import Linear

ROOT = Path(__file__).parents[2]
LAW = theory.BalanceLaw(0.5, 0.1, 0.2, 0.5, 0.01)
SCHEDULE = Linear(0.5, 0.1, steps=10)


def test_numbers_give_floats() -> None:
    fraction = np.float32(0.5)
    results = [
        assert_type(theory.equilibrium_norm(0.1, 0.01), float),
        assert_type(theory.equilibrium_norm(1, fraction, 2.0, optimizer="SGD(momentum=0.9)"), float),
        assert_type(theory.equilibrium_rotation(0.1, 0.01, optimizer=theory.AdamW(dim=9)), float),
        assert_type(theory.relaxation_time(0.1, np.int64(1)), float),
        assert_type(theory.wd_for_rotation(0.5, 0.1), float),
        assert_type(theory.norm_flow(10, 1.0, 0.1, 0.01, 2.0), float),
        assert_type(theory.critical_norm(0.1, 2.0, wd=0.1), float),
        assert_type(theory.norm_bounds(0.1, 0.01, 1.0, 2.0).upper, float),
        assert_type(theory.steps_to_angular_jump(2.0, 0.1, 0.01, 0.1, 2.0, 0.1).latest, float),
        assert_type(theory.momentum_stationary_bounds(0.1, 0.01, 1.0, momentum=0.9).lower, float),
        assert_type(theory.momentum_relaxation(0.1, 0.01, momentum=0.9).time, float),
        assert_type(theory.equilibrium_spread(0.1, 0.01, 0.5).deviation, float),
        assert_type(theory.equivalent_run(0.1, 0.01, 1.0, lr_to=0.2).norm, float),
        assert_type(theory.tracking_lag(SCHEDULE, 0.01, 5), float),
        assert_type(LAW.period(0.5, 0.01), float),
    ]
    assert [type(result) for result in results] == [float] * len(results)
    assert type(assert_type(theory.momentum_relaxation(0.1, 0.01, momentum=0.9).rings, bool)) is bool
    assert type(assert_type(theory.angular_jump_regime(0.1, 0.01, 1.0, 2.0, 0.1), str)) is str


def test_arrays_and_lists_give_arrays() -> None:
    array = np.array([0.1, 0.2])
    results = [
        assert_type(theory.equilibrium_norm(array, 0.01), FloatArray),
        assert_type(theory.equilibrium_norm(0.1, [0.01, 0.02]), FloatArray),
        assert_type(theory.equilibrium_rotation(0.1, 0.01, grad_norm=array), FloatArray),
        assert_type(theory.free_decay(array, 0.01), FloatArray),
        assert_type(theory.lr_for_norm(array, 2.0), FloatArray),
        assert_type(theory.norm_bounds(array, 0.01, 1.0, 2.0).upper, FloatArray),
        assert_type(theory.norm_envelope(3, 1.0, 0.1, 0.01, 1.0, 2.0).lower, FloatArray),
        assert_type(theory.momentum_envelope(3, 1.0, 0.1, 0.01, 1.0, momentum=0.9), FloatArray),
        assert_type(theory.equilibrium_spread(0.1, 0.01, array).mean_ratio, FloatArray),
        assert_type(theory.gradient_growth(SCHEDULE, 0.01, array), FloatArray),
        assert_type(LAW.period(array, 0.01), FloatArray),
    ]
    assert {(type(result), result.dtype) for result in results} == {(np.ndarray, np.dtype(np.float64))}
    rings = assert_type(theory.momentum_relaxation(array, 0.01, momentum=0.9).rings, NDArray[np.bool_])
    assert rings.dtype == np.bool_


def test_unknown_arguments_stay_unknown() -> None:
    unknown: Any = 0.1
    assert_type(theory.equilibrium_norm(unknown, 0.01), Any)
    bounds: theory.Bounds = theory.norm_bounds(0.1, 0.01, 1.0, 2.0)
    assert_type(bounds.upper, Any)


def test_mypy_agrees() -> None:
    report, errors, status = api.run(["--strict", "--cache-dir", f"{ROOT}/.mypy_cache", __file__])
    assert status == 0, report + errors
