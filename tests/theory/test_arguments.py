import numpy as np
import pytest

import theory

CALLS = {
    "equilibrium_norm": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "equilibrium_effective_lr": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "equilibrium_rotation": {"lr": 0.1, "wd": 0.01},
    "relaxation_time": {"lr": 0.1, "wd": 0.01},
    "norm_bounds": {"lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "grad_norm_max": 2.0},
    "norm_envelope": {"steps": 5, "norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "grad_norm_max": 2.0},
    "rotation": {"norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "jump_norm": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0, "delta": 0.1},
}
ARGUMENTS = [(call, name) for call, settings in CALLS.items() for name in settings]
BAD = [float("nan"), float("inf"), -1.0, "a", None, 1j, [1.0, -1.0], [[1.0], [1.0, 2.0]], {}]


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_a_bad_value_is_named(call, name, value):
    with pytest.raises((ValueError, TypeError), match=f"^{name} must be"):
        getattr(theory, call)(**{**CALLS[call], name: value})


@pytest.mark.parametrize("call", CALLS)
def test_the_message_says_value_and_range(call):
    with pytest.raises(ValueError, match=r"lr must be a finite number > 0, got -0.25$"):
        getattr(theory, call)(**{**CALLS[call], "lr": -0.25})
    with pytest.raises(ValueError, match=r"wd must be a finite number >= 0, got -3.0 at index 1"):
        getattr(theory, call)(**{**CALLS[call], "wd": [0.1, -3.0]})


@pytest.mark.parametrize("call", CALLS)
def test_intrinsic_lr_has_a_limit(call):
    limit = 1 if call in ("equilibrium_rotation", "rotation", "jump_norm") else 2
    with pytest.raises(ValueError, match=f"lr \\* wd must be < {limit}"):
        getattr(theory, call)(**{**CALLS[call], "lr": float(limit), "wd": 1.0})


@pytest.mark.parametrize("call", CALLS)
def test_shapes_must_broadcast(call):
    with pytest.raises(ValueError, match=r"shapes must broadcast together, got .*lr \(2,\).*wd \(3,\)"):
        getattr(theory, call)(**{**CALLS[call], "lr": np.full(2, 0.1), "wd": np.full(3, 0.01)})


@pytest.mark.parametrize("call", ["norm_bounds", "norm_envelope"])
def test_bounds_must_be_ordered(call):
    with pytest.raises(ValueError, match="grad_norm_min must be <= grad_norm_max"):
        getattr(theory, call)(**{**CALLS[call], "grad_norm_min": 3.0})


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_delta_is_between_zero_and_one(value):
    with pytest.raises(ValueError, match="delta"):
        theory.jump_norm(0.1, 0.01, 2.0, value)


@pytest.mark.parametrize("steps", [1.5, -1, True, "a", [0.5], [[1]]])
def test_steps_are_whole(steps):
    with pytest.raises((ValueError, TypeError), match="steps must be"):
        theory.norm_envelope(steps, 1.0, 0.1, 0.01, 1.0, 2.0)
