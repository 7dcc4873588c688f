import re

import numpy as np
import pytest

import theory
from theory.arguments import broadcast, check_choice, check_integer, check_number, check_real

CALLS = {
    "equilibrium_norm": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "equilibrium_effective_lr": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "equilibrium_rotation": {"lr": 0.1, "wd": 0.01},
    "relaxation_time": {"lr": 0.1, "wd": 0.01},
    "norm_bounds": {"lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "grad_norm_max": 2.0},
    "norm_envelope": {"steps": 5, "norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "grad_norm_max": 2.0},
    "rotation": {"norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "angular_jump_norm": {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0, "delta": 0.1},
}
ARGUMENTS = [(call, name) for call, settings in CALLS.items() for name in settings]
NUMBERS = [(call, name) for call, name in ARGUMENTS if name != "steps"]
NOT_IN_RANGE = [float("nan"), float("inf"), -float("inf"), -1.0, np.float32("nan"), -3]
NOT_NUMBERS = [
    "a",
    "0.1",
    b"0.1",
    None,
    True,
    np.True_,
    1j,
    {},
    [[1.0], [1.0, 2.0]],
    ["0.1", "0.2"],
    [True],
    [None],
    object,
]


def call(function, **changes):
    return getattr(theory, function)(**{**CALLS[function], **changes})


@pytest.mark.parametrize(("function", "name"), NUMBERS)
@pytest.mark.parametrize("value", NOT_IN_RANGE, ids=repr)
def test_a_number_out_of_range_is_named_with_its_value(function, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number [<>]=? .*, got {float(value)!r}$"):
        call(function, **{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number .*, got {float(value)!r} at index 1$"):
        call(function, **{name: [0.1, value]})


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_a_value_that_is_not_a_number_is_named(function, name, value):
    with pytest.raises(TypeError, match=rf"^{name} must be .*, got {re.escape(repr(value))}$"):
        call(function, **{name: value})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("lr", "> 0"), ("wd", ">= 0"), ("norm", "> 0"), ("grad_norm_min", ">= 0"), ("grad_norm_max", "> 0")],
)
def test_zero_is_allowed_exactly_where_it_has_a_meaning(name, allowed):
    for function, settings in CALLS.items():
        if name not in settings:
            continue
        zero = {name: 0, **({"grad_norm_min": 0} if name == "grad_norm_max" else {})}
        if allowed == ">= 0":
            call(function, **zero)
        else:
            with pytest.raises(ValueError, match=rf"^{name} must be a finite number {allowed}, got 0.0$"):
                call(function, **zero)


@pytest.mark.parametrize("function", [f for f in CALLS if "grad_norm" in CALLS[f]])
def test_only_the_rotation_accepts_zero_gradients(function):
    if function == "rotation":
        assert call(function, grad_norm=0) == 0
    else:
        with pytest.raises(ValueError, match=r"^grad_norm must be.*0, got 0.0$"):
            call(function, grad_norm=0)


@pytest.mark.parametrize("function", CALLS)
def test_intrinsic_lr_has_a_limit(function):
    limit = 1 if function in ("equilibrium_rotation", "rotation", "angular_jump_norm") else 2
    with pytest.raises(ValueError, match=rf"^lr \* wd must be < {limit} here, got {limit} \(lr={limit}, wd=1\)$"):
        call(function, lr=float(limit), wd=1.0)
    with pytest.raises(ValueError, match=rf"^lr \* wd must be < {limit} here, got 5 \(lr=0.5, wd=10\)$"):
        call(function, lr=0.5, wd=[0.1, 10.0])
    # and everything below it is allowed
    call(function, lr=limit * (1 - 1e-12), wd=1.0)


@pytest.mark.parametrize(("function", "name"), [a for a in NUMBERS if a[1] != "lr"])
def test_shapes_must_broadcast(function, name):
    array = np.full(3, CALLS[function][name])
    with pytest.raises(ValueError, match=r"^shapes must broadcast together, got ") as error:
        call(function, lr=np.full(2, 0.1), **{name: array})
    assert "lr (2,)" in str(error.value)
    assert f"{name} (3,)" in str(error.value)


@pytest.mark.parametrize("function", ["norm_bounds", "norm_envelope"])
def test_bounds_must_be_ordered(function):
    message = r"^grad_norm_min must be <= grad_norm_max, got grad_norm_min=3.0 > grad_norm_max=2.0$"
    with pytest.raises(ValueError, match=message):
        call(function, grad_norm_min=3.0)
    with pytest.raises(ValueError, match=message):
        call(function, grad_norm_min=[1.0, 3.0])


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_delta_is_between_zero_and_one(value):
    with pytest.raises(ValueError, match=rf"^delta must be a finite number > 0 and < 1, got {value}$"):
        call("angular_jump_norm", delta=value)


@pytest.mark.parametrize(
    ("steps", "error"),
    [(1.5, TypeError), (-1, ValueError), ([3, -2], ValueError), ([0.5], TypeError), ([[1]], TypeError)],
)
def test_steps_are_whole(steps, error):
    value = -2 if steps == [3, -2] else steps
    with pytest.raises(error, match=rf"^steps must be .*, got {re.escape(repr(value))}$"):
        call("norm_envelope", steps=steps)


def test_checks_return_plain_values():
    assert check_real("x", [1, 2]).dtype == np.float64
    assert type(check_number("x", np.float32(0.5), above=0)) is float
    assert type(check_integer("n", np.int16(3))) is int
    assert [a.shape for a in broadcast(x=np.ones(3), y=np.ones((2, 1)))] == [(2, 3), (2, 3)]
    assert check_choice("word", "a", {"a", "b"}) == "a"


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_number("x", [1.0, 2.0]), ValueError, r"^x must be one number, got an array of shape \(2,\)$"),
        (lambda: check_integer("n", 2.0), TypeError, r"^n must be a whole number >= 0, got 2.0$"),
        (lambda: check_integer("n", True), TypeError, r"^n must be a whole number >= 0, got True$"),
        (lambda: check_integer("n", 7, at_most=6), ValueError, r"^n must be a whole number >= 0 and <= 6, got 7$"),
        (lambda: check_choice("word", "c", {"b", "a"}), ValueError, r"^word must be one of a, b; got 'c'$"),
        (lambda: check_choice("word", 1, {"b", "a"}), ValueError, r"^word must be one of a, b; got 1$"),
        (lambda: check_choice("word", "vgg", {"mlp"}), ValueError, r"^word must be one of mlp; got 'vgg'$"),
        (
            lambda: check_choice("word", "Widht", {"width", "depth"}),
            ValueError,
            r"^word must be one of depth, width; got 'Widht', did you mean 'width'\?$",
        ),
        (
            lambda: check_real("x", [[1, 2], [3, np.nan]]),
            ValueError,
            r"^x must be a finite number, got nan at index \(1, 1\)$",
        ),
    ],
)
def test_checks_name_argument_value_and_range(check, error, message):
    with pytest.raises(error, match=message):
        check()
