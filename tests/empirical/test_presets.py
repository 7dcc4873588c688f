import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import empirical
import theory
from empirical import at_paper_scale, paper_runs, scale_invariant_groups, train
from empirical.networks import build_network
from empirical.presets import PAPER_EXPERIMENTS
from empirical.studies.paper_experiments import _results, draw_runs
from tests.devices import every_device
from theory.optimizers import with_dim

GENERATOR = np.random.default_rng(0)


def images_like_those_of_cifar(classes, count=256):
    images = GENERATOR.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(count) % classes


# what distinguishes the runs of each experiment in the published code, and its learning rates
ALL_LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
EXPECTED = {
    "figure-1": {"scale_invariant": False},
    "figure-2": {"lr": (0.001, 0.01, 0.03, 1.0)},
    "lr": {"lr": ALL_LRS},
    "wd": {},
    "width": {},
    "data-size": {},
    "label-noise": {},
    "minima": {"seed": (0, 1, 2)},
    "momentum": {"optimizer": theory.SGD(momentum=0.9)},
    "augmentation": {"augmentation": 4},
    "practice": {"scale_invariant": False, "optimizer": theory.SGD(momentum=0.9), "augmentation": 4},
    "micro-batches": {"sampling": "full_batch", "micro_batch": 128, "steps": 1001},
    "full-batch": {"sampling": "full_batch", "micro_batch": None, "steps": 1001},
    "adam": {},
    "layer-norm": {"normalization": "layer"},
    "group-norm": {"normalization": "group"},
    "instance-norm": {"normalization": "instance"},
    "weight-norm": {"normalization": "weight"},
    "fixed-norm": {"fixed": "norm", "wd": 0.0},
    "fixed-effective-lr": {"fixed": "effective_lr", "wd": 0.0},
}


@pytest.mark.parametrize("network", ["convnet", "resnet18"])
@pytest.mark.parametrize("name", EXPECTED)
def test_presets_match_the_paper(network, name):
    runs = paper_runs(name, network)
    assert len({run.identity for run in runs}) == len(runs)
    width, dataset = {"convnet": (32, "cifar10"), "resnet18": (64, "cifar100")}[network]
    common = {
        "model": network,
        "dataset": dataset,
        "width": width,
        "wd": 0.001,
        "batch_size": 128,
        "sampling": "all_samples",
        "norm_eps": 1e-5,
        "pixel_constants": "cifar10",
        "seeded_head": True,
        "scale_invariant": True,
        "normalization": "batch",
        "augmentation": None,
        "samples": None,
        "label_noise": 0.0,
        # 391 steps per epoch, the last with 80 samples
        "steps": 1001 * 391,
    }
    expected = {**common, **EXPECTED[name]}
    for field in set(expected) - set(PAPER_EXPERIMENTS[name].varied) - ({"steps"} if name == "data-size" else set()):
        assert {getattr(run, field) for run in runs} == {expected[field]}, field
    for field, values in EXPECTED[name].items():
        if isinstance(values, tuple):
            assert tuple(getattr(run, field) for run in runs) == values


def test_every_experiment_is_listed():
    in_paper = [name for name, experiment in PAPER_EXPERIMENTS.items() if experiment.is_in_paper]
    assert in_paper == list(EXPECTED)
    with pytest.raises(ValueError, match=r"experiment must be one of .*; got 'figure-3'"):
        paper_runs("figure-3")
    with pytest.raises(ValueError, match=r"network must be one of .*; got 'mlp'"):
        paper_runs("figure-2", "mlp")


@pytest.mark.parametrize("samples", [500, 5000, 25_000])
@pytest.mark.parametrize("name", EXPECTED)
def test_scaling_down_keeps_epochs_and_relaxation_times(name, samples):
    full, small = paper_runs(name), paper_runs(name, width=8, samples=samples, dataset="digits")
    for one, other in zip(full, small, strict=True):
        assert other.width == pytest.approx(one.width / 4, abs=0.5)
        assert other.dataset == "digits"
        sizes = [run.samples or 50_000 for run in (one, other)]
        assert sizes[1] == pytest.approx(max(128, sizes[0] * samples / 50_000), abs=1)
        # of a last batch with fewer than 64 samples there is no step
        batches = [size // 128 + (size % 128 >= (64 if size < 50_000 else 1)) for size in sizes]
        full_batch = one.sampling == "full_batch"
        if name != "data-size":
            epochs = [run.steps / (1 if full_batch else n) for run, n in zip((one, other), batches, strict=True)]
            assert epochs == [1001, 1001]
            kept = sizes[1] % 128 == 0 or sizes[1] % 128 >= 64
            assert other.sampling == (one.sampling if kept or full_batch else "without_replacement")
        if name != "data-size":
            # a last batch that is incomplete counts as a step
            assert one.wd * one.steps == pytest.approx(other.wd * other.steps, rel=0.03)
        # the dim of an optimizer is the number of weights
        assert with_dim(one.optimizer, 1) == with_dim(other.optimizer, 1)
        kept = ("lr", "scale_invariant", "normalization", "fixed", "label_noise", "augmentation", "seed")
        assert all(getattr(one, field) == getattr(other, field) for field in kept)
    assert {run.steps for run in paper_runs(name, epochs=3, samples=samples)} >= {
        3 if name in ("micro-batches", "full-batch") else 3 * (samples // 128 + (samples % 128 >= 64))
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 100}, r"samples must be .* >= 128, got 100"),
        ({"samples": 60_000}, "samples must be at most 50000, got 60000"),
        ({"width": 0}, r"width must be .* >= 1, got 0"),
        ({"epochs": 0.5}, r"epochs must be a whole number.*0\.5"),
    ],
)
def test_bad_sizes_of_experiments(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        paper_runs("figure-2", **settings)


def test_experiments_with_a_fixed_number_of_samples():
    pairs = {round(run.lr * run.wd, 9) for run in paper_runs("subset", width=8)}
    assert pairs == {5e-3, 2e-3, 1e-3, 5e-4}
    assert {run.samples for run in paper_runs("subset")} == {5000}
    with pytest.raises(ValueError, match=r"samples must be None for 'subset'.*got 500"):
        paper_runs("subset", samples=500)


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


def first_steps(run, device, tmp_path, **settings):
    """Two steps of a run on images like those of CIFAR."""
    short = dataclasses.replace(run, steps=2, evaluate_every=100, samples=None, device=device, **settings)
    run = train(short, tmp_path / "run", data=images_like_those_of_cifar(100 if run.model == "resnet18" else 10))
    assert run.status.item() == "complete"
    assert np.isfinite(run.rotation).all()
    return run


@every_device
@pytest.mark.parametrize("name", ["figure-1", "figure-2", "practice"])
def test_steps_of_the_papers_convnet(name, device, tmp_path):
    first_steps(paper_runs(name)[-1], device, tmp_path, batch_size=16)


@pytest.mark.acceptance
@every_device
@pytest.mark.parametrize("network", ["convnet", "resnet18"])
@pytest.mark.parametrize("name", PAPER_EXPERIMENTS)
def test_steps_of_every_experiment_at_full_size(name, network, device, tmp_path):
    run = first_steps(paper_runs(name, network)[-1], device, tmp_path)
    if run.attrs["scale_invariant"] and network == "resnet18" and name != "weight-norm":
        assert run.sizes["group"] == 12


@every_device
@pytest.mark.parametrize("model", ["resnet18", "convnet"])
def test_networks_train_on_colour_images(model, device):
    base, size = paper_runs("lr", model)[4], {"width": 4, "batch_size": 16, "steps": 40}
    config = dataclasses.replace(base, **size, evaluate_every=40, device=device, augmentation=4)
    run = train(config, data=images_like_those_of_cifar(10, 64))
    assert run.status.item() == "complete"
    # float32
    assert run.radial_defect.max() < 1e-4
    assert np.isfinite(run.train_loss).all()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    config = empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=12, evaluate_every=4)
    return train(config, tmp_path_factory.mktemp("short") / "run", progress=False)


@pytest.mark.filterwarnings("ignore:no period is predicted")
@pytest.mark.parametrize("name", PAPER_EXPERIMENTS)
def test_table_and_figure_name_every_varied_setting(short_run, name):
    experiment, runs = PAPER_EXPERIMENTS[name], paper_runs(name)
    table = _results(experiment, runs, [short_run] * len(runs))
    assert len(table.rows) == len(runs)
    # runs of one experiment differ in the named settings
    assert len({tuple(str(cell) for cell in row[: len(experiment.varied)]) for row in table.rows}) == len(runs)
    figure = draw_runs(experiment, runs[:1], [short_run])
    assert figure.axes[0].get_title().count("=") >= len(experiment.varied)
    plt.close(figure)
