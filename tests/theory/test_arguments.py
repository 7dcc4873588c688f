import re

import numpy as np
import pytest
import torch
import xarray as xr

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
SCHEDULE = theory.Linear(0.5, 0.1, steps=10)
LAW = theory.BalanceLaw(0.5, 0.1, 0.2, 0.5, 0.01)
# every public function of numbers, with the functions above
EVERY_CALL = {
    **CALLS,
    "angular_jump_regime": {**CALLS["norm_bounds"], "delta": 0.1},
    "balance": {"norm": 1.0, "final_norm": 2.0, "rotation": [0.1, 0.2], "lr": 0.1, "wd": 0.01},
    "corrected_decay": {"lr": SCHEDULE, "wd": 0.01, "step": 3.0, "lr_max": 0.5},
    "critical_norm": {"lr": 0.1, "sharpness": 2.0, "wd": 0.01},
    "decay_invariance_norm": {"eps": 1e-5, "variance": 0.5, "wd": 1e-3, "output_slope": 0.01, "tolerance": 0.1},
    "decay_phase_product": {"steps": 5.0, "product": 0.1, "lr": 0.1, "wd": 0.01, "tail": 2.0},
    "decay_time": {"norm": 4.0, "norm_to": 2.5, "lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "equilibrium_spread": {"lr": 0.1, "wd": 0.01, "variation": 0.5},
    "equivalent_run": {"lr": 0.1, "wd": 0.01, "norm": 1.0, "lr_to": 0.2},
    "fixed_norm": {"lr": 0.1},
    "free_decay": {"lr": 0.1, "wd": 0.01},
    "gradient_growth": {"lr": SCHEDULE, "wd": 0.01, "step": 3.0},
    "invariance_norm": {"eps": 1e-5, "variance": 0.5, "tolerance": 0.1},
    "largest_clipped_share": {"lr": 0.1, "wd": 0.01, "ratio": 0.2},
    "least_decay_steps": {"lr": 0.1, "wd": 0.01, "ratio": 2.0},
    "least_time_between_angular_jumps": {"lr": 0.1, "wd": 0.01, "delta": 0.1},
    "lr_at_fixed_norm": {"lr": 0.1, "norm": 2.0, "wd": 0.01, "fixed_norm": 1.0},
    "lr_for_norm": {"wd": 0.01, "norm": 2.0, "grad_norm": 2.0},
    "lr_for_relaxation": {"wd": 0.01, "steps": 250.0},
    "lr_for_rotation": {"wd": 0.01, "rotation": 0.1, "grad_norm": 2.0},
    "memory": {"lr": 0.1, "wd": 0.01},
    "momentum_envelope": {"steps": 5, "norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "momentum": 0.9},
    "momentum_least_decay_steps": {"lr": 0.1, "wd": 0.01, "ratio": 2.0, "momentum": 0.5},
    "momentum_lower_bound": {"lr": 0.1, "wd": 0.01, "grad_norm_min": 1.0, "momentum": 0.9},
    "momentum_relaxation": {"lr": 0.1, "wd": 0.01, "momentum": 0.9},
    "momentum_stationary_bounds": {"lr": 0.1, "wd": 0.01, "mean_sq_gradient": 1.0, "momentum": 0.9},
    "norm_flow": {"time": 5.0, "norm": 1.0, "lr": 0.1, "wd": 0.01, "grad_norm": 2.0},
    "norm_under_schedule": {"lr": 0.1, "wd": 0.01, "steps": 5, "norm": 1.0, "grad_norm": 2.0},
    "probable_norm_bounds": {
        "lr": 0.1,
        "wd": 0.01,
        "mean_square_min": 1.0,
        "mean_square_max": 2.0,
        "grad_norm_max": 2.0,
        "grad_norm_min": 0.5,
    },
    "quasi_equilibrium_norm": {"lr": SCHEDULE, "wd": 0.01, "step": 3.0, "grad_norm": 2.0},
    "run_without_decay": {"lr": 0.1, "wd": 0.01},
    "settings_for_effective_lr": {"effective_lr": 0.1, "steps": 5, "wd": 0.01, "norm": 1.0, "grad_norm": 2.0},
    "steps_to_angular_jump": {"norm": 2.0, **CALLS["norm_bounds"], "delta": 0.1},
    "total_grad_norm": {"norm": [1.0, 2.0], "grad_norm": [1.0, 2.0]},
    "tracked_steps": {"lr": SCHEDULE, "wd": 0.01, "steps": 10, "start": 1, "tolerance": 0.1, "grad_norm": 2.0},
    "tracking_lag": {"lr": SCHEDULE, "wd": 0.01, "step": 3.0, "grad_norm": 2.0},
    "wd_for_norm": {"lr": 0.1, "norm": 2.0, "grad_norm": 2.0},
    "wd_for_relaxation": {"lr": 0.1, "steps": 250.0},
    "wd_for_rotation": {"lr": 0.1, "rotation": 0.1, "grad_norm": 2.0},
}
EVERY_ARGUMENT = [
    (getattr(theory, function), settings, name)
    for function, settings in EVERY_CALL.items()
    for name, value in settings.items()
    if value is not SCHEDULE
] + [(LAW.period, {"lr": 0.1, "wd": 0.01}, name) for name in ("lr", "wd")]
EVERY_ARGUMENT += [
    (schedule, {"step": 3.0}, "step")
    for schedule in (
        SCHEDULE,
        theory.Constant(0.1),
        theory.Cosine(0.5, 0.1, steps=10),
        theory.Exponential(0.5, 0.9),
        theory.PiecewiseLinear((2, 5), (0.5, 0.1)),
        theory.StepDecay(0.5, (2,)),
        theory.WarmUp(3, SCHEDULE),
    )
]
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


def test_every_function_of_numbers_is_in_the_table():
    functions = {name for name in theory.__all__ if name.islower() and callable(getattr(theory, name))}
    # `transfer` takes single numbers and pairs
    assert functions - {"transfer"} == set(EVERY_CALL)


def name_of(value):
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize(("function", "settings", "name"), EVERY_ARGUMENT, ids=name_of)
def test_arrays_with_named_dimensions_are_refused_by_name(function, settings, name):
    """Arrays are paired by position; a learning rate along "lr" and a weight decay along "wd" would be a diagonal."""
    labelled = xr.DataArray(np.atleast_1d(settings[name]), dims="a")
    with pytest.raises(TypeError, match=rf"^{name} must be ") as error:
        function(**{**settings, name: labelled})
    assert "DataArray" in str(error.value)
    # without dimensions nothing can be paired wrongly
    if isinstance(settings[name], float):
        result = function(**{**settings, name: xr.DataArray(settings[name])})
        assert str(result) == str(function(**settings))


def test_the_message_about_named_dimensions_says_what_to_pass():
    lr, wd = xr.DataArray([0.1, 0.5], dims="lr"), xr.DataArray([0.01, 0.02], dims="wd")
    with pytest.raises(
        TypeError,
        match=r"^lr must be a number or an array without named dimensions, got a DataArray with the dimensions "
        r"\('lr',\). Arrays are paired by position: pass its .values, with axes that broadcast$",
    ):
        theory.equilibrium_norm(lr, wd)
    assert theory.equilibrium_norm(lr.values[:, np.newaxis], wd.values).shape == (2, 2)
    assert theory.equilibrium_norm(lr.to_series(), 0.01).shape == (2,)


@pytest.mark.parametrize(("function", "settings", "name"), EVERY_ARGUMENT, ids=name_of)
def test_tensors_that_numpy_cannot_read_are_named(function, settings, name):
    for tensor in (
        torch.tensor(settings[name], dtype=torch.float64, requires_grad=True),
        torch.tensor(settings[name], dtype=torch.bfloat16),
    ):
        with pytest.raises(TypeError, match=rf"^{name} must be "):
            function(**{**settings, name: tensor})
    if isinstance(settings[name], float):
        plain = torch.tensor(settings[name], dtype=torch.float64)
        assert str(function(**{**settings, name: plain})) == str(function(**settings))


def test_the_messages_about_tensors_say_why():
    allowed = r"^lr must be a finite number > 0 or an array of such numbers, got a"
    for value, reason in (
        (
            torch.tensor(0.1, requires_grad=True),
            "Tensor that NumPy cannot read: Can't call numpy\\(\\) on Tensor that r",
        ),
        (torch.tensor([0.1], dtype=torch.bfloat16), "Tensor that NumPy cannot read: Got unsupported ScalarType BFl"),
        ([torch.tensor(0.1, requires_grad=True)], "list that NumPy cannot read"),
        (xr.Dataset({"x": 1.0}), "Dataset that NumPy cannot read"),
    ):
        with pytest.raises(TypeError, match=rf"{allowed} {reason}.*\. Pass float64 numbers$"):
            theory.equilibrium_norm(value, 0.1)


def test_limits_in_messages_have_all_their_digits():
    with pytest.raises(
        ValueError, match=r"^rotation must be .* < 1.5707963267948966, got 1.5707963267948966 at index 0$"
    ):
        theory.balance(1.0, 1.0, [np.pi / 2], 0.1, 0.1)
    with pytest.raises(ValueError, match=r"^rotation must be .* < 1.5707963267948966, got 1.5707963267948966$"):
        theory.wd_for_rotation(0.1, np.pi / 2)
    with pytest.raises(ValueError, match=r"^lr \* wd must be < 0.2928932188134524 here, got 0.2928933 "):
        theory.decay_time(4.0, 2.0, 1.0, 0.2928933, 1.0)


def test_checks_return_plain_values():
    assert check_real("x", [1, 2]).dtype == np.float64
    assert type(check_number("x", np.float32(0.5), above=0)) is float
    assert type(check_integer("n", np.int16(3))) is int
    assert check_integer("n", 2**53) == 2**53
    assert [a.shape for a in broadcast(x=np.ones(3), y=np.ones((2, 1)))] == [(2, 3), (2, 3)]
    assert check_choice("word", "a", {"a", "b"}) == "a"


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_number("x", [1.0, 2.0]), ValueError, r"^x must be one number, got an array of shape \(2,\)$"),
        (lambda: check_integer("n", 2.0), TypeError, r"^n must be a whole number >= 0, got 2.0$"),
        (lambda: check_integer("n", True), TypeError, r"^n must be a whole number >= 0, got True$"),
        (lambda: check_integer("n", 7, at_most=6), ValueError, r"^n must be a whole number >= 0 and <= 6, got 7$"),
        # larger integers have no exact float, and compiled code would cut them
        (lambda: check_integer("n", 2**53 + 1), ValueError, r"^n must be a whole number >= 0 and <= 9007199254740992,"),
        (lambda: check_integer("n", 10**39), ValueError, r"^n must be a whole number >= 0 and <= 9007199254740992,"),
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
