"""Labelled runs of ordinary networks: what they are of, and that the held-out ones are new."""

from collections import Counter

import numpy as np
import pytest
import torch

import theory
from empirical.config import RunConfig
from empirical.runs.preparation import prepare
from empirical.studies.labelled_runs import (
    BAD_EPOCH,
    DIVERGENCE,
    LABELS,
    NOISE,
    LabelledRun,
    development_runs,
    held_out_runs,
    train_labelled,
)
from empirical.studies.ordinary_networks import next_characters, waves
from empirical.studies.ordinary_runs import is_ordinary, ordinary_development_runs, ordinary_held_out_runs
from simulate.diagnosis.rules import LARGE_UPDATE
from simulate.diagnosis.trends import SLOW_RISE

DEVELOPMENT, HELD_OUT = ordinary_development_runs(), ordinary_held_out_runs()
MODULE = "empirical.studies.ordinary_networks:"
NETWORKS = {
    "MLP": ("plain_mlp", {}, 2),
    "MLP with LayerNorm": ("plain_mlp", {"normalization": "layer"}, 4),
    "ConvNet": ("plain_convnet", {"width": 4}, 2),
    "ConvNet with GroupNorm": ("plain_convnet", {"width": 4, "normalization": "group"}, 4),
    "ConvNet with InstanceNorm": ("plain_convnet", {"width": 4, "normalization": "instance"}, 2),
    "separable ConvNet": ("separable_convnet", {"width": 4}, 5),
    "transformer with RMSNorm": ("small_transformer", {"normalization": "rms"}, 7),
    "MLP of waves": ("plain_mlp", {"dataset": f"{MODULE}waves"}, 2),
    "residual network": ("residual_net", {"width": 4}, 6),
    "residual MLP": ("residual_mlp", {"normalization": "rms", "depth": 1}, 4),
    "transformer": ("small_transformer", {"normalization": "layer"}, 7),
    "transformer of characters": (
        "small_transformer",
        {"normalization": "layer", "dataset": f"{MODULE}next_characters"},
        7,
    ),
}


def kind(case):
    return str(sorted((key, str(value)) for key, value in case.settings.items()))


def architecture(case):
    return case.settings["model"], case.settings.get("normalization", "batch"), case.settings.get("dataset", "digits")


def test_the_split():
    assert not {kind(case) for case in DEVELOPMENT} & {kind(case) for case in HELD_OUT}
    seeds = [case.seed for case in (*development_runs(), *held_out_runs())]
    new_seeds = [case.seed for case in (*DEVELOPMENT, *HELD_OUT)]
    assert len(set(new_seeds)) == len(new_seeds)
    assert not set(new_seeds) & set(seeds)
    only_held_out = {architecture(case) for case in HELD_OUT} - {architecture(case) for case in DEVELOPMENT}
    models = {f"{MODULE}{name}" for name in ("separable_convnet", "residual_net", "residual_mlp")}
    assert models <= {model for model, _, _ in only_held_out}
    assert {f"{MODULE}next_characters", f"{MODULE}waves"} <= {dataset for _, _, dataset in only_held_out}
    assert len({(case.label, case.event) for case in HELD_OUT} - {(case.label, case.event) for case in DEVELOPMENT}) > 5


@pytest.mark.parametrize("cases", [DEVELOPMENT, HELD_OUT], ids=["development", "held-out"])
def test_each_set_has_every_label_and_optimizer(cases):
    counts = Counter(case.label for case in cases)
    # large updates are of the development runs only
    assert set(counts) | {LARGE_UPDATE} == set(LABELS)
    assert counts[LARGE_UPDATE] == (5 if cases is DEVELOPMENT else 0)
    assert len(cases) >= 80
    quiet = [case for case in cases if case.label == NOISE]
    assert len(quiet) >= 15
    assert all(case.settings["steps"] == 3000 for case in quiet)
    configs = [RunConfig(**case.settings) for case in cases]
    assert {type(config.lr) for config in configs} >= {float, theory.WarmUp, theory.StepDecay}
    assert {getattr(config.optimizer, "nesterov", None) for config in configs} == {None, False, True}
    assert len({getattr(config.optimizer, "betas", None) for config in configs}) >= 4
    assert {case.clip for case in cases} >= {None, 1.0}
    assert all(is_ordinary(case) and not case.settings["scale_invariant"] for case in cases)
    assert not any(is_ordinary(case) for case in development_runs())


def test_events_are_in_the_run():
    for case in (*DEVELOPMENT, *HELD_OUT):
        assert case.at is None or 0.35 < case.at / case.settings["steps"] < 0.85
        if case.label in (SLOW_RISE, DIVERGENCE):
            assert case.at <= 0.5 * case.settings["steps"]


def test_bad_epochs_begin_with_an_epoch():
    cases = [case for case in (*DEVELOPMENT, *HELD_OUT) if case.label == BAD_EPOCH]
    for case in cases[::3]:
        log = train_labelled(LabelledRun(label=NOISE, settings={**case.settings, "lr": 0.01, "steps": 2}))
        assert case.at % log.attrs["epoch_length"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model, settings, invariant = NETWORKS[name]
    config = RunConfig(
        **({"width": 8} | settings),
        model=MODULE + model,
        lr=0.02,
        wd=1e-3,
        optimizer=theory.SGD(momentum=0.9),
        scale_invariant=False,
        norm_eps=1e-5,
        batch_size=32,
        steps=60,
    )
    network = prepare(config).problem.model
    # the last layer and the normalization are trained, with PyTorch's usual ε
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert last.weight.requires_grad
    assert last.bias.requires_grad
    norms = [module for module in network.modules() if getattr(module, "eps", 0) is not None and hasattr(module, "eps")]
    assert {module.eps for module in norms} <= {1e-5}
    assert sum(len(group) for group in prepare(config).description.groups.values()) == invariant
    settings = {key: value for key, value in config.to_dict().items() if key not in ("seed", "optimizer", "engine")}
    log = train_labelled(LabelledRun(label=NOISE, settings=settings | {"optimizer": config.optimizer}))
    assert log.loss[-15:].mean() < log.loss[:5].mean() - 0.05


def test_next_characters_can_be_predicted():
    contexts, characters = next_characters()
    assert (contexts.sum(axis=2) == 1).all()
    last_two = contexts[:, -2:].argmax(axis=2)
    best = {}
    for pair, character in zip(map(tuple, last_two.tolist()), characters.tolist(), strict=True):
        best.setdefault(pair, Counter())[character] += 1
    right = sum(counts.most_common(1)[0][1] for counts in best.values())
    assert 0.5 < right / len(characters) < 0.9
    # a context moves by one character per sample
    np.testing.assert_array_equal(contexts[1:, :-1], contexts[:-1, 1:])


def test_waves_differ_by_their_frequency():
    tokens, cycles = waves()
    power = np.abs(np.fft.rfft(tokens.reshape(len(tokens), -1), axis=1)) ** 2
    strongest = power[:, 1:].argmax(axis=1)
    assert (strongest == cycles).mean() > 0.99
    assert np.bincount(cycles).min() > 200
