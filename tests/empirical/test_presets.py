import dataclasses

import numpy as np
import pytest
import torch

import empirical
import theory
from empirical import at_paper_scale, paper_runs, scale_invariant_groups, train
from empirical.networks import build_network
from empirical.presets import _KINDS, LEARNING_RATES
from tests.devices import every_device

GENERATOR = np.random.default_rng(0)


def images_like_those_of_cifar(classes, count=256):
    images = GENERATOR.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(count) % classes


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("network", ["convnet", "resnet18"])
def test_presets_match_the_paper(network, kind):
    runs = paper_runs(network, kind)
    assert [run.lr for run in runs] == list(LEARNING_RATES)
    assert {run.wd for run in runs} == {0.001}
    assert runs[0].lr == 0.001
    assert runs[-1].lr == 1.0
    assert {run.steps for run in runs} == {1000 * (50_000 // 128)}
    with pytest.raises(ValueError, match="must be one of"):
        paper_runs(network, "other")


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "convnet", "width": 8, "lr": 0.5, "wd": 0.01, "steps": 8000, "augmentation": 1},
        {"width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000},
        {"width": 1, "lr": theory.Linear(0.5, 0.005, 8000), "wd": 0.02, "normalization": "layer", "steps": 8000},
        {"fixed": "norm", "init_norm": 1.0, "lr": theory.Constant(0.1), "wd": 0.0, "seed": 3},
    ],
)
def test_scaling_up_keeps_the_number_of_relaxation_times(settings):
    small = empirical.RunConfig(**settings)
    large = at_paper_scale(small)
    # learning rate and number of relaxation times after each share of the run
    for share in (0.0, 0.3, 1.0):
        lrs = [r.lr(round(share * r.steps)) if callable(r.lr) else r.lr for r in (small, large)]
        assert lrs[0] == pytest.approx(lrs[1])
        assert lrs[0] * small.wd * small.steps == pytest.approx(lrs[1] * large.wd * large.steps)
    assert (large.dataset, large.model, large.batch_size) == ("cifar10", "convnet", 128)
    assert large.steps > small.steps
    kept = ("optimizer", "normalization", "scale_invariant", "fixed", "init_norm", "sampling", "seed")
    assert all(getattr(small, name) == getattr(large, name) for name in kept)
    wider = dataclasses.replace(small, width=2 * small.resolved_width + 2)
    assert at_paper_scale(wider).width > large.width


def test_scaling_up_sets_the_dim_of_the_optimizer():
    run = empirical.RunConfig(lr=1e-3, wd=0.01, width=8, optimizer=theory.Adam(dim=576, betas=(0.8, 0.9)))
    large = at_paper_scale(run)
    network = build_network(large, torch.zeros(2, 3, 32, 32), 10)
    weights = sum(
        network.get_parameter(name).numel()
        for group in scale_invariant_groups(network, torch.randn(8, 3, 32, 32)).values()
        for name in group.weights
    )
    assert large.optimizer == theory.Adam(dim=weights, betas=(0.8, 0.9))


def test_scaling_up_keeps_batch_size_and_scales_samples():
    run = empirical.RunConfig(lr=0.5, wd=0.01, batch_size=4, samples=900, engine="eager")
    large = at_paper_scale(run)
    assert (large.batch_size, large.samples, large.engine) == (4, 9000, "auto")
    assert at_paper_scale(empirical.RunConfig(lr=0.5, wd=0.01, dataset="mnist5k", samples=5400)).samples == 50_000


@pytest.mark.parametrize(
    "settings",
    [{"model": "resnet18", "lr": 0.5}, {"model": "transformer", "lr": 0.5}, {"lr": theory.Exponential(0.5, 1)}],
)
def test_other_networks_and_schedules_cannot_be_scaled_up(settings):
    with pytest.raises(ValueError, match="run must"):
        at_paper_scale(empirical.RunConfig(wd=0.01, **settings))


@every_device
@pytest.mark.parametrize("kind", _KINDS)
def test_a_step_of_the_papers_convnet(kind, device, tmp_path):
    run = paper_runs("convnet", kind)[4]
    config = dataclasses.replace(run, steps=1, evaluate_every=100, batch_size=16, device=device)
    run = train(config, tmp_path / "run", data=images_like_those_of_cifar(10, 32))
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
@pytest.mark.parametrize("model", ["resnet18", "convnet"])
def test_networks_train_on_colour_images(model, device):
    base, size = paper_runs(model)[4], {"width": 4, "batch_size": 16, "steps": 40}
    config = dataclasses.replace(base, **size, evaluate_every=40, device=device, augmentation=4)
    run = train(config, data=images_like_those_of_cifar(10, 64))
    assert run.status.item() == "complete"
    # float32
    assert run.radial_defect.max() < 1e-4
    assert np.isfinite(run.train_loss).all()
