import dataclasses

import numpy as np
import pytest

from empirical import paper_runs, train
from empirical.presets import _KINDS, LEARNING_RATES
from tests.devices import every_device

GENERATOR = np.random.default_rng(0)


def images_like_those_of_cifar(classes):
    images = GENERATOR.integers(0, 256, (256, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(256) % classes


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("network", ["convnet", "resnet18"])
def test_presets_are_the_papers(network, kind):
    runs = paper_runs(network, kind)
    assert [run.lr for run in runs] == list(LEARNING_RATES)
    assert {run.wd for run in runs} == {0.001}
    assert runs[0].lr == 0.001
    assert runs[-1].lr == 1.0
    assert {run.steps for run in runs} == {1000 * (50_000 // 128)}
    with pytest.raises(ValueError, match="must be one of"):
        paper_runs(network, "other")


@every_device
@pytest.mark.parametrize("kind", _KINDS)
def test_a_step_of_the_papers_convnet(kind, device, tmp_path):
    config = dataclasses.replace(paper_runs("convnet", kind)[4], steps=1, evaluate_every=100, device=device)
    run = train(config, tmp_path / "run", data=images_like_those_of_cifar(10))
    assert run.status.item() == "complete"
    assert np.isfinite(run.rotation).all()


@pytest.mark.acceptance
@every_device
@pytest.mark.parametrize("kind", _KINDS)
def test_a_step_of_the_papers_resnet(kind, device, tmp_path):
    config = dataclasses.replace(paper_runs("resnet18", kind)[4], steps=1, evaluate_every=100, device=device)
    run = train(config, tmp_path / "run", data=images_like_those_of_cifar(100))
    assert run.status.item() == "complete"
    assert run.sizes["group"] == 12


@every_device
@pytest.mark.parametrize(("model", "width", "batch"), [("resnet18", 8, 32), ("convnet", 8, 32)])
def test_networks_train_on_colour_images(model, width, batch, device):
    base = paper_runs(model)[4]
    config = dataclasses.replace(
        base, width=width, batch_size=batch, steps=200, evaluate_every=200, device=device, augmentation=4
    )
    run = train(config, data=images_like_those_of_cifar(10))
    assert run.status.item() == "complete"
    # float32
    assert run.radial_defect.max() < 1e-4
    assert np.isfinite(run.train_loss).all()
