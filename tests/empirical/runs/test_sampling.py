"""Runs whose mini-batches are those of the paper: incomplete ones at the end of an epoch, and redrawn micro-batches."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from empirical import RunConfig, train
from empirical.data import batch_indices
from empirical.runs.preparation import prepare

# 50 samples in batches of 16: three complete batches and one of two samples
ALL_SAMPLES = RunConfig(
    lr=0.1, wd=0.01, width=4, samples=50, batch_size=16, sampling="all_samples", steps=9, dtype="float64",
    evaluate_every=5,
)  # fmt: skip


def plain_losses(config):
    """Losses of a plain PyTorch loop."""
    setup = prepare(config)
    model, data = setup.problem.model, setup.data
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.01)
    losses = []
    for epoch in range(3):
        order = np.random.Generator(np.random.Philox(key=np.array([0, epoch], dtype=np.uint64))).permutation(50)
        for batch in torch.as_tensor(order).split(16):
            loss = cross_entropy(model(data.inputs[batch]), data.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("engine", ["eager", "kernel", "replicas"])
def test_incomplete_batches_are_trained(engine):
    run = train(dataclasses.replace(ALL_SAMPLES, engine=engine))
    np.testing.assert_allclose(run.loss, plain_losses(ALL_SAMPLES)[:9], rtol=1e-8)
    np.testing.assert_allclose(run.epoch, np.arange(9) / 4)


def test_a_run_with_incomplete_batches_continues(tmp_path):
    whole = train(ALL_SAMPLES, tmp_path / "whole")
    for steps in (3, 4, 9):
        continued = train(dataclasses.replace(ALL_SAMPLES, steps=steps), tmp_path / "parts")
    xr.testing.assert_identical(continued, whole)


def test_replicas_need_batches_of_one_size():
    with pytest.raises(ValueError, match="replicas must be 1 with sampling='all_samples', got 2"):
        dataclasses.replace(ALL_SAMPLES, replicas=2)


def test_micro_batches_of_full_batch_descent_are_redrawn():
    # with so small steps the loss changes only with the statistics of the micro-batches
    config = RunConfig(
        lr=1e-12, wd=0.0, width=4, samples=64, sampling="full_batch", micro_batch=20, steps=6, dtype="float64"
    )
    run = train(config)
    assert np.ptp(run.loss.values) > 1e-3 * run.loss.values.mean()
    exact = train(dataclasses.replace(config, micro_batch=None))
    assert np.ptp(exact.loss.values) < 1e-9
    # as in the paper: gradients of all parts are summed and divided by the number of samples
    setup = prepare(config)
    model, data = setup.problem.model, setup.data
    losses = []
    for step in range(6):
        (order,) = batch_indices(64, 64, "without_replacement", 0, step, step + 1)
        parts = torch.as_tensor(order).split(20)
        with torch.no_grad():
            sums = [cross_entropy(model(data.inputs[p]), data.targets[p], reduction="sum").item() for p in parts]
        losses.append(sum(sums) / 64)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-9)
