import dataclasses
import inspect
import json
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import theory
from empirical import calibrate, train
from empirical.config import (
    CUSTOM,
    DataSettings,
    EvaluationSettings,
    ExecutionSettings,
    NetworkSettings,
    RunConfig,
    UpdateSettings,
    WeightSettings,
)
from empirical.studies.claims import CorrectedSGD
from theory.optimizers import check_optimizer, format_optimizer

GOOD = {"lr": 0.5, "wd": 0.01}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", [0.1, 0.2]),
        ("lr", "0.1"),
        ("lr", lambda step: 0.1),
        ("wd", -1e-3),
        ("wd", float("inf")),
        ("optimizer", "Sgd"),
        ("model", "resnet9000"),
        ("width", 0),
        ("width", 2.5),
        ("normalization", "instance"),
        ("norm_eps", 0.0),
        ("scale_invariant", 1),
        ("other_lr", -1.0),
        ("init_norm", 0.0),
        ("dataset", "imagenet"),
        ("batch_size", 0),
        ("sampling", "shuffled"),
        ("steps", -1),
        ("steps", 1.5),
        ("seed", -1),
        ("data_seed", "a"),
        ("dtype", "float16"),
        ("device", 0),
        ("engine", "warp"),
        ("evaluate_every", 0),
        ("evaluation_samples", 1),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        RunConfig(**{**GOOD, field: value})


@pytest.mark.parametrize("value", [[0.1, 0.2], (0.1, 0.2), np.array([0.1])], ids=repr)
@pytest.mark.parametrize("field", ["lr", "wd", "init_norm", "seed", "model", "optimizer"])
def test_several_values_raise_and_name_the_grid(field, value):
    words = rf"{field} must be one (number|value), got {re.escape(repr(value))}; .*empirical.grid\({field}=.*\[grid\]"
    with pytest.raises(ValueError, match=words):
        RunConfig(**{**GOOD, field: value})
    with pytest.raises(ValueError, match="classes must be at least two"):
        RunConfig(**GOOD, classes=(1,))


@pytest.mark.parametrize("field", ["lr", "wd", "norm_eps", "other_lr", "label_noise"])
@pytest.mark.parametrize("value", ["0.1", True, {}, object])
def test_a_value_that_is_not_a_number_raises_with_the_allowed_types(field, value):
    if field == "lr" and value is object:
        value = None
    allowed = "a number or a schedule such as theory.Cosine" if field == "lr" else "a number"
    with pytest.raises(TypeError, match=rf"^{field} must be {allowed}, got {re.escape(repr(value))}$"):
        RunConfig(**{**GOOD, field: value})


def test_numbers_of_any_type_are_accepted():
    for number in (1, np.float32(0.5), np.int64(1), np.array(0.5), torch.tensor(0.5)):
        assert RunConfig(lr=number, wd=0.01).lr == number


def test_an_unknown_setting_raises_with_a_suggestion():
    with pytest.raises(TypeError, match=r"^RunConfig has no.*you mean 'model'\?$"):
        RunConfig(**GOOD, modle="mlp")
    with pytest.raises(TypeError, match=r"^RunConfig has no setting 'momentum'; .*optimizer='SGD\(momentum=0\.9\)'$"):
        RunConfig(lr=0.1, wd=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"^RunConfig has no setting 'xyz'$"):
        dataclasses.replace(RunConfig(**GOOD), xyz=1)
    with pytest.raises(TypeError, match="'wd'"):
        RunConfig(lr=0.1)
    # signature and pickling of the dataclass are unchanged
    assert list(inspect.signature(RunConfig).parameters) == [field.name for field in dataclasses.fields(RunConfig)]
    assert pickle.loads(pickle.dumps(RunConfig(**GOOD))) == RunConfig(**GOOD)


def test_each_part_checks_its_own_settings():
    parts = RunConfig.__bases__[::-1]
    fields = [field.name for part in parts for field in dataclasses.fields(part)]
    assert fields == [field.name for field in dataclasses.fields(RunConfig)]
    assert DataSettings(dataset="digits", classes=[0, 1]).classes == (0, 1)
    for part, name, value in [
        (UpdateSettings, "lr", -1),
        (NetworkSettings, "width", 0),
        (WeightSettings, "fixed", "lr"),
        (DataSettings, "samples", [3, 4]),
        (ExecutionSettings, "device", ""),
        (EvaluationSettings, "evaluate_batches", 1),
    ]:
        required = {"wd": 0} if part is UpdateSettings else {}
        with pytest.raises((ValueError, TypeError), match=rf"^{name} must .*got {re.escape(repr(value))}"):
            part(**required, **{name: value})


def test_every_setting_is_described_once_and_in_order():
    section = inspect.getdoc(RunConfig).partition("Parameters\n")[2].partition("Raises\n")[0]
    assert re.findall(r"^(\w+) : ", section, re.M) == [field.name for field in dataclasses.fields(RunConfig)]


def test_an_optimizer_may_be_given_as_text():
    config = RunConfig(**GOOD, optimizer="SGD(momentum=0.9)")
    assert config == RunConfig(**GOOD, optimizer=theory.SGD(momentum=0.9))
    assert RunConfig(**GOOD, optimizer=None) == RunConfig(**GOOD)
    with pytest.raises(ValueError, match=r"setting of SGD.*'momentun'"):
        RunConfig(**GOOD, optimizer="SGD(momentun=0.9)")


def test_custom_is_set_by_train_only():
    with pytest.raises(ValueError, match=r"mlp, .*; got 'convnte', did you mean 'convnet'\?$") as refusal:
        RunConfig(**GOOD, model="convnte")
    assert CUSTOM not in str(refusal.value)
    for own in ("model", "dataset"):
        with pytest.raises(ValueError, match=r"must be given.*argument .* 'module:name'"):
            train(RunConfig(**GOOD, steps=1, **{own: CUSTOM}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, r"shape \(1, 8, 8\), those of dataset 'digits' \(or of `data`\), got the error: mat1 and mat2"),
        ((torch.zeros(90, 21), torch.arange(90) % 2), r"shape \(21,\), those of `data`, got the error: mat1 and mat2"),
    ],
)
def test_a_module_that_does_not_fit_the_data_raises_with_their_shape(tmp_path, data, words):
    module = nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9), nn.Linear(9, 2))
    with pytest.raises(ValueError, match=f"^model must take inputs of {words}") as refusal:
        train(RunConfig(**GOOD, steps=1), tmp_path / "run", model=module, data=data)
    assert isinstance(refusal.value.__cause__, RuntimeError)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=f"^model must take inputs of {words}"):
        calibrate(module, *(data or ()), periods=20)


def test_a_module_without_scale_invariant_weights_warns_except_for_the_control():
    config = RunConfig(**GOOD, steps=1)
    with pytest.warns(UserWarning, match="model has no scale-invariant weights"):
        train(config, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    # warnings are errors here
    train(dataclasses.replace(config, normalization="none", scale_invariant=False))
    train(config, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Linear(9, 10)))


@pytest.mark.parametrize("rule", [theory.Adam, theory.AdamW, theory.Lion])
def test_the_dim_of_an_optimizer_is_ignored_in_comparisons(rule):
    one, other = (RunConfig(lr=0.01, wd=0.01, optimizer=rule(dim=dim)) for dim in (1, 576))
    assert one.settings_without(()) == other.settings_without(())
    further = rule(dim=1, betas=(0.5, 0.6))
    assert one.settings_without(()) != dataclasses.replace(one, optimizer=further).settings_without(())


@pytest.mark.parametrize("lr", [2.0, theory.Linear(0.1, 2.5, steps=10)])
def test_intrinsic_lr_must_stay_below_two(lr):
    with pytest.raises(ValueError, match="lr \\* wd must be < 2"):
        RunConfig(lr=lr, wd=1.0)


def test_a_scale_invariant_network_needs_a_normalization():
    with pytest.raises(ValueError, match="scale_invariant"):
        RunConfig(**GOOD, normalization="none")


@pytest.mark.parametrize(
    "lr", [0.5, theory.Constant(0.5), theory.StepDecay(0.5, (10, 20)), theory.WarmUp(5, theory.Cosine(0.5, 0.1, 50))]
)
def test_a_config_survives_json(lr):
    config = RunConfig(lr=lr, wd=0.01, width=16, data_seed=3)
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.identity == config.identity


def test_an_unknown_field_raises():
    with pytest.raises(ValueError, match="learning_rate"):
        RunConfig.from_dict({**GOOD, "learning_rate": 1})


def test_identity_depends_on_everything_but_steps_and_device():
    config = RunConfig(**GOOD)
    assert config.identity == dataclasses.replace(config, steps=5, device="cuda").identity
    changes = {
        "lr": 0.4,
        "wd": 0.02,
        "model": "convnet",
        "width": 32,
        "norm_eps": 1e-5,
        "scale_invariant": False,
        "other_lr": 0.0,
        "init_norm": 2.0,
        "batch_size": 32,
        "sampling": "with_replacement",
        "seed": 1,
        "data_seed": 1,
        "dtype": "float64",
        "evaluate_every": 500,
        "optimizer": theory.SGD(momentum=0.9),
        "depth": 3,
        "normalization": "layer",
        "other_wd": 0.1,
        "fixed": "effective_lr",
        "dataset": "gaussian",
        "classes": (0, 1),
        "samples": 100,
        "validation": 0.1,
        "label_noise": 0.1,
        "dataset_seed": 1,
        "augmentation": 2,
        "micro_batch": 8,
        "pixel_constants": "cifar10",
        "seeded_head": True,
        "engine": "eager",
        "evaluation_samples": 50,
        "evaluate_batches": True,
    }
    assert {*changes, "replicas", "steps", "device"} == {field.name for field in dataclasses.fields(RunConfig)}
    identities = {dataclasses.replace(config, **{name: value}).identity for name, value in changes.items()}
    # replicas > 1 excludes augmentation and the kernel engine
    identities.add(dataclasses.replace(config, replicas=2).identity)
    assert len(identities | {config.identity}) == len(changes) + 2


def test_explicit_defaults_give_the_same_identity():
    assert RunConfig(**GOOD).identity == RunConfig(**GOOD, width=64, data_seed=0).identity


def test_a_new_setting_does_not_change_the_identity_of_old_runs():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(RunConfig):
        new_setting: int = 3

    assert Later(**GOOD).identity == RunConfig(**GOOD).identity
    assert Later(**GOOD, new_setting=4).identity != RunConfig(**GOOD).identity


def test_a_stored_class_that_has_moved_is_the_same_run():
    stored_name = "empirical.trials.claims.corrected_decay:CorrectedSGD"
    stored = {"lr": 0.5, "wd": 0.02, "width": 16, "steps": 100, "optimizer": {stored_name: {"lr_max": 0.5}}}
    config = RunConfig.from_dict(json.loads(json.dumps(stored)))
    assert config.optimizer == check_optimizer(f"{stored_name}(lr_max=0.5)") == CorrectedSGD(lr_max=0.5)
    # identity and stored text of the version that stored it
    assert config.identity == "abff6b9d28bc49c2aee96c819d7a60fd46127df1c4891dea06f84044a8d51af6"
    assert config.to_dict()["optimizer"] == stored["optimizer"]
    assert format_optimizer(config.optimizer) == f"{stored_name}(lr_max=0.5)"
