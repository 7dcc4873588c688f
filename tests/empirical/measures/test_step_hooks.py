"""Learning rates that callbacks of trainers take from schedulers."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from empirical.measures._group_settings import PacedScheduler, is_known_ahead, lrs_ahead

STEPS = 24


def optimizer_with(make):
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
    return optimizer, make(optimizer)


def warm_up_and_cosine(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 5, 0.5 + 0.5 * np.cos(np.pi * step / STEPS)))


def halving(optimizer):
    return lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)


@pytest.mark.parametrize("make", [warm_up_and_cosine, halving, cosine])
@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("taken", [1, 6, 8, 21])
def test_they_are_those_that_come(make, period, taken):
    optimizer, scheduler = optimizer_with(make)
    lrs, schedule = [], None
    for step in range(STEPS):
        if step == taken:
            paced = PacedScheduler(scheduler, period, step)
            schedule = lrs_ahead(paced, None, lrs[-1], 99 + step, 100 + step, STEPS - step)
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % period == 0:
            scheduler.step()
    if callable(schedule):
        schedule = [schedule(99 + step) for step in range(taken, STEPS + 1)]
    # the first value is that of the last step
    np.testing.assert_allclose(schedule, lrs[taken - 1 :], rtol=1e-12)


def test_some_schedulers_are_not_known_ahead():
    _, plateau = optimizer_with(lr_scheduler.ReduceLROnPlateau)
    assert not is_known_ahead(plateau)
    assert not is_known_ahead(None)
