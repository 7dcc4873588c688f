"""Full batches, micro-batches, decay of the other weights, training on a sphere."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

import simulate
import theory
from empirical import RunConfig, train
from empirical.data import load_data
from empirical.networks import build_network

BASE = RunConfig(lr=0.2, wd=0.02, width=8, steps=30, evaluate_every=30, dtype="float64")
DATA = load_data("digits", torch.float64, torch.device("cpu"))


def plain(config, change=lambda net, before: None):
    """Losses of full-batch steps in a plain loop; `change` is called after each step."""
    net = build_network(config, DATA.inputs, 10)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=config.lr, weight_decay=config.wd)
    losses = []
    for _ in range(config.steps):
        optimizer.zero_grad()
        loss = cross_entropy(net(DATA.inputs), DATA.targets)
        loss.backward()
        losses.append(loss.item())
        before = [p.detach().clone() for p in trained]
        optimizer.step()
        with torch.no_grad():
            change(trained, before)
    return losses


@pytest.mark.parametrize("engine", ["eager", "kernel", "replicas"])
def test_full_batch_descent(engine):
    config = dataclasses.replace(BASE, sampling="full_batch", engine=engine)
    run = train(config)
    np.testing.assert_allclose(run.loss, plain(config), rtol=1e-9)
    np.testing.assert_allclose(train(dataclasses.replace(config, data_seed=7)).loss, run.loss, rtol=0)
    # one step is an epoch
    np.testing.assert_array_equal(run.epoch, run.step)
    # and the loss of a step is that of the whole training set
    np.testing.assert_allclose(run.loss[0], run.train_loss[0], rtol=1e-9)


@pytest.mark.parametrize("engine", ["eager", "replicas"])
def test_micro_batches_equal_the_whole_batch_except_for_batch_normalization(engine):
    config = dataclasses.replace(BASE, sampling="full_batch", engine=engine, normalization="layer")
    whole = train(config)
    in_parts = train(dataclasses.replace(config, micro_batch=100))
    for name in ("loss", "grad_norm", "norm"):
        np.testing.assert_allclose(in_parts[name], whole[name], rtol=1e-8)
    by_batch = dataclasses.replace(config, normalization="batch")
    noisy = train(dataclasses.replace(by_batch, micro_batch=100))
    assert abs(noisy.loss[0] / train(by_batch).loss[0] - 1) > 1e-4


@pytest.mark.parametrize("engine", ["eager", "replicas"])
@pytest.mark.parametrize("optimizer", [theory.SGD(), theory.SGD(momentum=0.9), theory.AdamW(dim=576)], ids=repr)
def test_a_fixed_norm_is_constant_up_to_rounding(engine, optimizer):
    config = dataclasses.replace(
        BASE,
        wd=0.0,
        lr=0.05,
        fixed="norm",
        init_norm=2.0,
        engine=engine,
        optimizer=optimizer,
        steps=300,
        dtype="float32",
    )
    run = train(config)
    assert abs(run.norm / 2 - 1).max() < 1e-6
    assert run.loss[-20:].mean() < run.loss[:20].mean()
    assert (run.attrs["optimizer"], run.attrs["constraint"]) == (repr(optimizer), "fixed norm")


def test_descent_on_the_sphere_is_projected_descent():
    # small steps, which do not amplify the difference that ε makes
    config = dataclasses.replace(BASE, lr=0.02, wd=0.0, fixed="norm", init_norm=1.0, sampling="full_batch", steps=15)
    net_norm = train(dataclasses.replace(config, init_norm=None, steps=1)).norm.values[0]
    # from its own norm, at the same effective learning rate
    own = dataclasses.replace(config, init_norm=None, lr=config.lr * net_norm**2)
    on_sphere = train(config)
    np.testing.assert_allclose(train(own).loss, on_sphere.loss, rtol=1e-8)

    def project_to_own(trained, before):
        norm = torch.sqrt(sum(p.square().sum() for p in trained))
        for parameter in trained:
            parameter *= net_norm / norm

    np.testing.assert_allclose(on_sphere.loss, plain(own, project_to_own), rtol=1e-8)


@pytest.mark.parametrize("engine", ["eager", "replicas"])
def test_the_norm_at_fixed_effective_lr_follows_its_law(engine):
    config = dataclasses.replace(BASE, fixed="effective_lr", engine=engine, lr=0.05, wd=0.1)
    run = train(config)
    np.testing.assert_allclose(run.effective_lr, 0.05)
    square = np.append(run.norm, run.final_norm) ** 2
    intrinsic_lr, growth = config.lr * config.wd, (config.lr * run.grad_norm.values) ** 2
    # x⁺ = (1-ηλ)x - ηρ²∇f(x)
    np.testing.assert_allclose(square[1:], square[:-1] * ((1 - intrinsic_lr) ** 2 + growth), rtol=1e-10)
    # without decay the directions are those on the unit sphere
    free = train(dataclasses.replace(config, wd=0.0))
    on_sphere = train(dataclasses.replace(config, wd=0.0, fixed="norm", init_norm=1.0))
    np.testing.assert_allclose(free.loss, on_sphere.loss, rtol=1e-8)
    with pytest.raises(ValueError, match=r"constraint.*fixed effective lr"):
        simulate.replay(run)


@pytest.mark.parametrize("engine", ["eager", "replicas"])
def test_other_weights_have_their_own_decay(engine):
    config = dataclasses.replace(BASE, scale_invariant=False, sampling="full_batch", other_wd=0.0, engine=engine)

    def undo_decay(trained, before):
        for parameter, old in zip(trained, before, strict=True):
            # the head is the last, and all vectors are γ and β
            if parameter.ndim == 1 or parameter is trained[-2]:
                parameter += config.lr * config.wd * old

    np.testing.assert_allclose(train(config).loss, plain(config, undo_decay), rtol=1e-9)
    with_decay = dataclasses.replace(config, other_wd=None)
    np.testing.assert_allclose(train(with_decay).loss, plain(with_decay), rtol=1e-9)


@pytest.mark.parametrize("fixed", ["norm", "effective_lr"])
def test_a_fixed_norm_survives_an_interruption(tmp_path, fixed):
    config = dataclasses.replace(BASE, fixed=fixed, wd=0.0, dtype="float32", optimizer=theory.SGD(momentum=0.5))
    whole = train(config)
    train(dataclasses.replace(config, steps=13), tmp_path / "run")
    xr.testing.assert_identical(train(config, tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fixed": "norm"}, r"wd.*'norm'.*0\.02"),
        ({"fixed": "lr", "wd": 0.0}, r"fixed.*'lr'"),
        (
            {"fixed": "effective_lr", "optimizer": theory.AdamW(dim=5)},
            r"optimizer.*'effective_lr'",
        ),
        ({"other_wd": -1.0}, r"other_wd.*-1"),
        ({"micro_batch": 0}, r"micro_batch.*0"),
        ({"sampling": "all"}, r"sampling.*'all'"),
        ({"depth": 0}, r"depth.*0"),
        ({"model": "resnet18", "depth": 3}, r"depth.*'resnet18'"),
        ({"normalization": "instance"}, r"normalization.*'instance'.*'mlp'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **settings)
