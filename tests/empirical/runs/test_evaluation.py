import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.functional import cross_entropy

import simulate
import theory
from empirical import RunConfig, train
from empirical.data import batch_indices, load_data
from empirical.networks import BatchNorm, build_network, record_statistics
from empirical.runs.evaluation import evaluate
from empirical.runs.loop import load_model
from empirical.steps import Problem, TrainingState, WeightLayout

CONFIG = RunConfig(lr=0.5, wd=0.01, width=8, steps=40, evaluate_every=20, dtype="float64", evaluate_batches=True)
DATA = load_data("digits", torch.float64, torch.device("cpu"))


def test_evaluations_of_batches_equal_those_of_a_plain_loop(tmp_path):
    run = train(CONFIG, tmp_path / "run")
    net = load_model(tmp_path / "run").train()
    weights = [p for p in net.parameters() if p.requires_grad]
    norm = torch.sqrt(sum(p.detach().square().sum() for p in weights)).item()
    losses, errors, norms, gradients = [], [], [], []
    for batch in batch_indices(1437, 64, "without_replacement", 0, 0, 22):
        outputs = net(DATA.inputs[batch])
        loss = cross_entropy(outputs, DATA.targets[batch])
        flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights)])
        losses.append(loss.item())
        errors.append((outputs.argmax(1) != DATA.targets[batch]).double().mean().item())
        norms.append(flat.norm().item())
        gradients.append(flat)
    last = run.isel(eval_step=-1)
    assert last.eval_step == 40
    assert last.train_mode_loss == pytest.approx(np.mean(losses), rel=1e-9)
    assert last.train_mode_error == pytest.approx(np.mean(errors), rel=1e-9)
    assert last.mean_grad_norm == pytest.approx(norm * np.mean(norms), rel=1e-9)
    assert last.full_grad_norm == pytest.approx(norm * torch.stack(gradients).mean(0).norm().item(), rel=1e-9)
    # the mean of vectors is shorter than the mean of their lengths
    assert (run.full_grad_norm < run.mean_grad_norm).all()
    for name in ("train_mode_loss", "mean_grad_norm"):
        assert run[name].attrs["units"] == "loss"
    xr.testing.assert_identical(run, simulate.load(tmp_path / "run"))


def test_a_batch_larger_than_the_data_uses_all_samples():
    run = train(dataclasses.replace(CONFIG, samples=50, sampling="full_batch", batch_size=64))
    np.testing.assert_allclose(run.mean_grad_norm, run.full_grad_norm, rtol=1e-9)
    # the first row is the same step from the same weights
    assert run.mean_grad_norm[0].item() == pytest.approx(run.grad_norm[0].item(), rel=1e-9)


def test_evaluations_do_not_change_the_training():
    without = train(dataclasses.replace(CONFIG, evaluate_batches=False))
    assert "mean_grad_norm" not in without
    with_them = train(CONFIG)
    for name in ("norm", "loss", "grad_norm", "train_loss", "test_error"):
        np.testing.assert_array_equal(with_them[name], without[name])


def test_evaluations_do_not_change_buffers_or_random_state(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )
    config = dataclasses.replace(CONFIG, dtype="float32", steps=30, evaluate_every=7)
    whole = train(config, model=net)
    without = train(dataclasses.replace(config, evaluate_batches=False), model=net)
    np.testing.assert_array_equal(whole.loss, without.loss)
    np.testing.assert_array_equal(whole.test_loss, without.test_loss)
    train(dataclasses.replace(config, steps=12), tmp_path / "run", model=net)
    xr.testing.assert_identical(train(config, tmp_path / "run", model=net), whole)


def test_large_data_are_evaluated_in_parts():
    net = build_network(CONFIG, DATA.inputs, 10)
    problem = Problem(net, WeightLayout.of(net, {"w": ("linear1.weight",)}), DATA.inputs, DATA.targets, theory.SGD())
    state = TrainingState.of(problem)
    whole = evaluate(problem, DATA, state)
    in_parts = evaluate(problem, DATA, state, max_samples=500)
    first = net.norm1
    activations = net.linear1(DATA.inputs.flatten(1))
    # statistics are pooled exactly in the first layer; later layers see inputs that were normalized in parts
    torch.testing.assert_close(first.mean, activations.mean(0).detach())
    torch.testing.assert_close(first.variance, activations.var(0, correction=0).detach())
    for name, value in whole.items():
        assert in_parts[name] == pytest.approx(value, rel=2e-2, abs=2e-2)
    assert in_parts["train_loss"] != whole["train_loss"]


def test_statistics_of_parts_are_pooled():
    layer, inputs = BatchNorm(3).double().eval(), torch.randn(50, 3, dtype=torch.float64)
    with record_statistics(layer):
        for part in inputs.split(7):
            layer(part)
    torch.testing.assert_close(layer.mean, inputs.mean(0))
    torch.testing.assert_close(layer.variance, inputs.var(0, correction=0))
