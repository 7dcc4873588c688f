"""Runs with weight decay, repeated at fixed norm."""

import dataclasses

import numpy as np
import pytest

import theory
from empirical import RunConfig, train

CONFIG = RunConfig(model="convnet", width=2, lr=theory.Cosine(1.0, 0.2, steps=120), wd=0.02, steps=120, dtype="float64")


def repeat(run, config, lrs):
    schedule = theory.PiecewiseLinear(steps=run.step.values, lrs=lrs)
    return train(dataclasses.replace(config, lr=schedule, wd=0.0, fixed="norm"), progress=False)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_a_run_at_fixed_norm_with_the_same_effective_lr_is_the_same_training(model):
    config = dataclasses.replace(CONFIG, model=model, width=8 if model == "mlp" else 2)
    run = train(config, progress=False)
    first = float(run.norm[0])
    again = repeat(run, config, theory.lr_at_fixed_norm(run.lr.values, run.norm.values, config.wd, fixed_norm=first))
    # rounding errors of 1e-16 grow along the run
    np.testing.assert_allclose(again.norm, first, rtol=1e-12)
    np.testing.assert_allclose(again.loss, run.loss, rtol=1e-6)
    np.testing.assert_allclose(again.rotation, run.rotation, rtol=1e-6)
    # without the factor 1/(1-ηλ), and with the schedule itself, it is another training
    for lrs in (theory.lr_at_fixed_norm(run.lr.values, run.norm.values, fixed_norm=first), run.lr.values):
        other = repeat(run, config, lrs)
        assert np.abs(other.loss / run.loss - 1).max() > 1e-3


def test_the_same_for_a_wanted_effective_lr():
    """The settings give the wanted effective learning rate if the measured g̃ is put in."""
    config = dataclasses.replace(CONFIG, model="mlp", width=8, lr=0.5, wd=0.05, steps=2000)
    settled = train(config, progress=False).isel(step=slice(1000, None))
    gradient = float(np.sqrt((settled.grad_norm**2).mean()))
    wanted = float(settled.effective_lr.mean())
    settings = theory.settings_for_effective_lr(wanted, 2000, wd=config.wd, norm=3.0, grad_norm=gradient)
    schedule = theory.PiecewiseLinear(steps=range(2000), lrs=settings.lr)
    run = train(dataclasses.replace(config, lr=schedule, init_norm=3.0, seed=1), progress=False)
    late = run.isel(step=slice(1000, None))
    assert float(late.effective_lr.mean()) == pytest.approx(wanted, rel=0.1)
    assert float(run.effective_lr[0]) == pytest.approx(wanted, rel=1e-9)
