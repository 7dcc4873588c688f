"""Trainings with a triggered event: the event does what it says, and the log holds what the training did."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import theory
from empirical.config import RunConfig
from empirical.runs.preparation import prepare
from empirical.studies.labelled_runs import (
    BAD_EPOCH,
    DIVERGENCE,
    NOISE,
    LabelledRun,
    count_spikes,
    spikes_need_decay,
    train_labelled,
)
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LARGE_UPDATE, LR_STEP, NORM_DRIVEN
from simulate.diagnosis.trends import SLOW_RISE

MLP = "empirical.studies.ordinary_networks:plain_mlp"
SETTINGS = {"model": MLP, "scale_invariant": False, "norm_eps": 1e-5, "width": 8, "lr": 0.1, "wd": 0.01, "steps": 60}
# 1437 samples in batches of 64
EPOCH_LENGTH = 22


def train(label=NOISE, event=None, at=None, clip=None, decay_ends=None, **settings):
    case = LabelledRun(label=label, settings=SETTINGS | settings, event=event, at=at, clip=clip, decay_ends=decay_ends)
    return train_labelled(case)


@pytest.fixture(scope="module")
def quiet():
    return train()


def test_a_run_is_reproduced(quiet):
    for name, values in train().items():
        np.testing.assert_array_equal(values, quiet[name])


def test_columns(quiet):
    settings = {"wd": 0.01, "optimizer": "SGD()", "row_unit": "steps", "epoch_length": EPOCH_LENGTH}
    assert quiet.attrs | settings == quiet.attrs
    np.testing.assert_allclose(quiet.grad_norm, quiet.norm * quiet.gradient_norm, rtol=1e-12)
    assert (quiet.all_weights_norm > quiet.norm).all()
    assert (quiet.all_gradient_norm > quiet.gradient_norm).all()
    assert quiet.epoch.values.tolist() == [step // EPOCH_LENGTH for step in range(60)]


def test_norms_are_those_of_the_network(quiet):
    setup = prepare(RunConfig(**SETTINGS))
    weights = dict(setup.problem.model.named_parameters())
    invariant = torch.cat([weights["1.weight"].flatten(), weights["4.weight"].flatten()])
    every = torch.nn.utils.parameters_to_vector(weights.values())
    assert quiet.norm.values[0] == pytest.approx(invariant.norm().item(), rel=1e-6)
    assert quiet.all_weights_norm.values[0] == pytest.approx(every.norm().item(), rel=1e-6)


def test_steps_are_those_of_torch():
    # a plain loop over the parameters of the network
    setup = prepare(RunConfig(**SETTINGS | {"sampling": "full_batch", "samples": 50}))
    model, data = setup.problem.model.train(), setup.data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data.inputs), data.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    rule = theory.SGD(momentum=0.9, nesterov=True)
    log = train(optimizer=rule, sampling="full_batch", samples=50, clip=1.0, steps=20)
    np.testing.assert_allclose(log.loss, losses, rtol=1e-3)
    assert log.attrs["epoch_length"] == 1


def test_gradients_are_logged_before_clipping(quiet):
    clipped = train(clip=0.1)
    assert (clipped.all_gradient_norm > 0.1).sum() > 50
    assert clipped.all_gradient_norm[0] == quiet.all_gradient_norm[0]
    # a step changes the weights by at most lr · (0.1 + wd · norm)
    change = np.abs(np.diff(clipped.all_weights_norm))
    assert change.max() <= 0.1 * (0.1 + 0.01 * clipped.all_weights_norm.values.max()) + 1e-6
    assert np.abs(np.diff(quiet.all_weights_norm)).max() > change.max()


def test_the_learning_rate_follows_its_schedule_and_the_event():
    schedule = theory.WarmUp(10, theory.Cosine(0.1, 0.01, steps=50))
    log = train(LR_STEP, "lr times 5", 40, lr=schedule)
    usual = schedule(np.arange(60))
    np.testing.assert_allclose(log.lr, np.where(np.arange(60) < 40, usual, 5 * usual))


def test_learning_rates_of_a_divergence():
    log = train(DIVERGENCE, "lr steps", 10, steps=420)
    assert log.lr.values[[9, 10, 209, 210, 410]].round(4).tolist() == [0.1, 0.15, 0.15, 0.225, 0.3375]
    grows = train(DIVERGENCE, "lr grows", 20).lr.values
    np.testing.assert_allclose(np.diff(np.log(grows[20:])), np.log(100) / 40)
    assert grows[20] == 0.1


@pytest.mark.parametrize(
    "event",
    [
        "wrong labels",
        "one label",
        "labels shuffled",
        "noise for images",
        "noise added",
        "images turned",
        "images shifted",
        "images mixed",
    ],
)
def test_a_bad_batch_changes_one_batch(quiet, event):
    log = train(BAD_BATCH, event, 40)
    np.testing.assert_array_equal(log.loss[:40], quiet.loss[:40])
    assert log.loss[40] > 1.1 * quiet.loss[40]
    assert log.loss[50:].mean() < 1.5 * quiet.loss[50:].mean()


@pytest.mark.parametrize(
    "event",
    [
        "labels renamed",
        "labels merged",
        "labels drawn",
        "negatives",
        "pixels shuffled",
        "noise added",
        "images turned",
        "images shifted",
    ],
)
def test_a_data_shift_lasts(quiet, event):
    log = train(DATA_SHIFT, event, 40)
    np.testing.assert_array_equal(log.loss[:40], quiet.loss[:40])
    # some networks soon learn the new data as well as the old
    assert (log.loss[40:50] > quiet.loss[40:50]).all()


def test_gradients_of_a_large_update_lengthen_steps(quiet):
    log = train(LARGE_UPDATE, "gradients times 3", 40)
    np.testing.assert_array_equal(log.loss[:41], quiet.loss[:41])
    np.testing.assert_array_equal(log.gradient_norm[:41], quiet.gradient_norm[:41])
    # the gradient is logged as it was before, and the step is three times as long
    growth = [float(np.diff(np.log(run.norm.values))[40]) + 1e-3 for run in (log, quiet)]
    assert growth[0] == pytest.approx(9 * growth[1], rel=0.05)


def test_a_bad_epoch_ends(quiet):
    log = train(BAD_EPOCH, "random labels", EPOCH_LENGTH)
    during = log.epoch == 1
    np.testing.assert_array_equal(log.loss[:EPOCH_LENGTH], quiet.loss[:EPOCH_LENGTH])
    assert log.loss[during].min() > 1.8
    assert log.loss[2 * EPOCH_LENGTH + 5 :].mean() < log.loss[during].mean() - 0.3


def test_labels_of_a_slow_rise_become_random():
    log = train(SLOW_RISE, "labels drawn", 100, steps=400)
    loss = log.loss.values
    assert loss[90:100].mean() < loss[150:160].mean() < loss[230:].mean()
    # 60 % of the labels are random from 30 % of the run after the event on
    assert loss[230:].mean() == pytest.approx(1.8, abs=0.4)
    assert abs(loss[230:310].mean() - loss[320:].mean()) < 0.2


def test_the_count_of_spikes():
    noise = np.random.default_rng(0).lognormal(sigma=0.3, size=2000)
    assert count_spikes(noise) == 0
    noise[[500, 505, 900, 1950]] = 40.0
    assert count_spikes(noise) == 3
    noise[:150] = 100.0
    assert count_spikes(noise) == 3


def test_spikes_of_a_periodic_run_end_with_weight_decay():
    settings = {"normalization": "layer", "width": 32, "batch_size": 128, "lr": 0.3, "wd": 6e-3, "steps": 1500}
    case = LabelledRun(label=NORM_DRIVEN, settings=SETTINGS | settings, seed=1)
    log = train_labelled(case)
    assert count_spikes(log.loss.values[500:]) >= 3
    assert spikes_need_decay(case, log)
    # the control is the same run up to the end of decay
    control = train_labelled(replace(case, decay_ends=500))
    np.testing.assert_array_equal(control.norm[:501], log.norm[:501])
    assert (np.diff(control.norm[500:]) > 0).mean() > 0.99
    # data that change make the loss spike without decay
    quiet = log.assign(loss=log.loss.copy(data=np.ones(1500)))
    assert not spikes_need_decay(case, quiet)


def test_networks_that_spike_rarely_need_more_seeds():
    settings = {"normalization": "layer", "width": 32, "batch_size": 128, "lr": 0.3, "wd": 6e-3, "steps": 600}
    case = LabelledRun(label=NOISE, settings=SETTINGS | settings, seed=1)
    log = train_labelled(case)
    assert count_spikes(log.loss.values[200:]) < 3
    assert not spikes_need_decay(case, log)
    assert spikes_need_decay(case, log, other_seeds=3)
