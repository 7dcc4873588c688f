import dataclasses
import json

import pytest

import theory
from empirical.config import RunConfig

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
        ("optimizer", "SGD"),
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
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        RunConfig(**{**GOOD, field: value})


@pytest.mark.parametrize("lr", [2.0, theory.Linear(0.1, 2.5, steps=10)])
def test_intrinsic_lr_must_stay_below_two(lr):
    with pytest.raises(ValueError, match="lr \\* wd must be < 2"):
        RunConfig(lr=lr, wd=1.0)


def test_an_invariant_network_needs_a_normalization():
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


def test_an_unknown_field_is_refused():
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
        "engine": "eager",
        "evaluate_batches": True,
    }
    assert {*changes, "replicas", "steps", "device"} == {field.name for field in dataclasses.fields(RunConfig)}
    identities = {dataclasses.replace(config, **{name: value}).identity for name, value in changes.items()}
    # not together with augmentation or the kernel
    identities.add(dataclasses.replace(config, replicas=2).identity)
    assert len(identities | {config.identity}) == len(changes) + 2


def test_defaults_written_out_are_the_same_run():
    assert RunConfig(**GOOD).identity == RunConfig(**GOOD, width=64, data_seed=0).identity


def test_a_setting_that_is_added_later_leaves_old_runs_what_they_are():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(RunConfig):
        new_setting: int = 3

    assert Later(**GOOD).identity == RunConfig(**GOOD).identity
    assert Later(**GOOD, new_setting=4).identity != RunConfig(**GOOD).identity
