"""Every valid combination of model, normalization and optimizer trains, with the groups that theory predicts."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import simulate
import theory
from empirical import RunConfig, train
from empirical.config import DEFAULT_WIDTHS, NORMALIZATIONS
from tests.devices import every_device

OPTIMIZERS = [
    theory.SGD(),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.9, nesterov=True),
    theory.SGD(decoupled=True),
    theory.Adam(dim=500),
    theory.AdamW(dim=500),
    theory.Lion(dim=500),
]
# an MLP, tokens and the last stage of a ResNet on 8×8 images have too few pixels to normalize
MEANINGLESS = {("mlp", "instance"), ("transformer", "instance"), ("resnet18", "instance")}
STEPS = 10
COMBINATIONS = [pair for pair in itertools.product(DEFAULT_WIDTHS, NORMALIZATIONS) if pair not in MEANINGLESS]


def config_of(model, normalization, optimizer=None, **settings):
    return RunConfig(
        lr=0.001 if isinstance(optimizer, (theory.Adam, theory.AdamW, theory.Lion)) else 0.05,
        wd=0.02,
        model=model,
        width=4,
        normalization=normalization,
        scale_invariant=normalization != "none",
        optimizer=optimizer or theory.SGD(),
        batch_size=16,
        samples=320,
        steps=STEPS,
        evaluate_every=STEPS,
        dtype="float64",
        **settings,
    )


def weights_by_theory(model, normalization):
    """Sets of weights that are scale-invariant together by theory, except for weight normalization."""
    if normalization == "none":
        return None
    if model in ("mlp", "convnet"):
        name, count = ("linear", 2) if model == "mlp" else ("conv", 4)
        return [{f"{name}{number}.weight"} for number in range(1, count + 1)]
    if model == "resnet18":
        stems = [{"stem.weight", "stage1block1.conv2.weight", "stage1block2.conv2.weight"}]
        for stage in (2, 3, 4):
            first = f"stage{stage}block1"
            stems.append({f"{first}.conv2.weight", f"{first}.shortcut.conv.weight", f"stage{stage}block2.conv2.weight"})
        return [*stems, *({f"stage{s}block{b}.conv1.weight"} for s in (1, 2, 3, 4) for b in (1, 2))]
    stream = {"position", "embed.weight"}
    stream |= {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("output", "linear2")}
    return [stream, *({f"blocks.{block}.{layer}.weight"} for block in (0, 1) for layer in ("query", "key"))]


def check(config, tmp_path):
    run = train(config, tmp_path / "run")
    assert run.status.item() == "complete"
    assert run.sizes["step"] == STEPS
    for name in ("loss", "norm", "grad_norm", "rotation"):
        assert np.isfinite(run[name]).all(), name
    assert run.attrs["scale_invariant"] == (config.normalization != "none")
    if config.normalization == "none":
        return
    # the gradient is orthogonal to the weights, for every optimizer
    assert run.radial_defect.max() < 1e-5
    # squared norms of the groups add up
    np.testing.assert_allclose((run.group_norm**2).sum("group"), run.norm**2, rtol=1e-12)
    if config.optimizer == theory.SGD():
        assert abs(simulate.replay(run).norm / run.norm - 1).max() < 1e-6


@every_device
@pytest.mark.parametrize(("model", "normalization"), COMBINATIONS)
def test_every_network_follows_the_one_step_law(model, normalization, device, tmp_path):
    check(config_of(model, normalization, device=device), tmp_path)
    groups = json.loads((tmp_path / "run" / "config.json").read_text())["group_weights"]
    expected = weights_by_theory(model, normalization)
    if normalization == "weight":
        assert all(len(members) == 1 and members[0].endswith("weight.original") for members in groups.values())
    elif expected is not None:
        assert {frozenset(members) for members in groups.values()} == {frozenset(members) for members in expected}


@every_device
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:], ids=repr)
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_every_optimizer_trains(model, optimizer, device, tmp_path):
    check(config_of(model, "batch", optimizer, device=device), tmp_path)


@pytest.mark.acceptance
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:], ids=repr)
@pytest.mark.parametrize(("model", "normalization"), COMBINATIONS)
def test_every_combination_trains(model, normalization, optimizer, tmp_path):
    check(config_of(model, normalization, optimizer), tmp_path)


@pytest.mark.parametrize(("model", "normalization"), sorted(MEANINGLESS))
def test_meaningless_combinations_raise_with_a_reason(model, normalization, tmp_path):
    with pytest.raises(ValueError, match=r"normalization.*(single numbers|has no meaning in .* more than two values)"):
        train(config_of(model, normalization), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", DEFAULT_WIDTHS)
def test_without_normalization_nothing_is_invariant(model):
    with pytest.raises(ValueError, match="scale_invariant must be False with normalization='none'"):
        dataclasses.replace(config_of(model, "none"), scale_invariant=True)


@pytest.mark.parametrize(
    ("model", "depth"), [("mlp", 1), ("mlp", 4), ("convnet", 1), ("convnet", 2), ("transformer", 1)]
)
def test_any_depth_trains(model, depth, tmp_path):
    check(config_of(model, "batch", depth=depth), tmp_path)


def test_images_must_be_large_enough_for_the_poolings():
    images = np.zeros((64, 3, 4, 4), np.float32), np.arange(64) % 2
    with pytest.raises(ValueError, match=r"at least 8×8 for model='convnet'.*\(64, 3, 4, 4\)"):
        train(dataclasses.replace(config_of("convnet", "batch"), samples=None), data=images)
