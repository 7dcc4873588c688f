"""Memory of weight decay, and learning rate and weight decay for another batch size, data set or width."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import empirical
import theory

RULES = [
    theory.SGD(),
    theory.SGD(momentum=0.9),
    theory.SGD(momentum=0.5, nesterov=True),
    theory.AdamW(dim=400),
    theory.Adam(dim=400),
    theory.Lion(dim=400),
    theory.Muon(rows=20, columns=20),
]
lrs, small, factors = st.floats(1e-4, 1), st.floats(1e-8, 1e-5), st.floats(0.1, 10)
FIXED = settings(deadline=None, derandomize=True, max_examples=40)


def rotation(rule, lr, wd, grad_norm):
    return theory.equilibrium_rotation(lr, wd, grad_norm=grad_norm, optimizer=rule)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@FIXED
@given(lrs, small, factors)
def test_another_batch_size_keeps_the_norm_and_the_rotation_per_sample(rule, lr, intrinsic_lr, factor):
    wd, noise = intrinsic_lr / lr, 2.0
    # noise decreases as the root of the batch size
    less_noise = noise / math.sqrt(factor)
    for keep, growth in (("memory", factor), ("rotation", 1.0)):
        after = theory.transfer(lr, wd, batch_size=(64, 64 * factor), keep=keep, optimizer=rule)
        norm = theory.equilibrium_norm(after.lr, after.wd, less_noise, optimizer=rule)
        assert norm == pytest.approx(theory.equilibrium_norm(lr, wd, noise, optimizer=rule), rel=1e-2)
        squared = rotation(rule, after.lr, after.wd, less_noise) ** 2 / rotation(rule, lr, wd, noise) ** 2
        assert squared == pytest.approx(growth, rel=2e-2)


@FIXED
@given(lrs, small, factors, factors)
def test_transfers_compose(lr, intrinsic_lr, first, second):
    wd = intrinsic_lr / lr
    for rule, options in (
        (theory.SGD(), {"batch_size": None}),
        (theory.AdamW(dim=4), {"batch_size": None}),
        (theory.AdamW(dim=4), {"samples": None}),
        (theory.AdamW(dim=4), {"width": None, "keep": "gain"}),
    ):
        name, keep = next(iter(options)), options.get("keep", "memory")

        def move(lr, wd, before, after, name=name, keep=keep, rule=rule):
            return theory.transfer(lr, wd, **{name: (before, after)}, keep=keep, optimizer=rule)[:2]

        there = move(*move(lr, wd, 1.0, first), first, first * second)
        np.testing.assert_allclose(there, move(lr, wd, 1.0, first * second), rtol=1e-9)
        np.testing.assert_allclose(move(*there, first * second, 1.0), (lr, wd), rtol=1e-9)


def test_data_and_width():
    more_data = theory.transfer(1e-3, 0.1, samples=(10_000, 50_000), optimizer="AdamW")
    assert (more_data.lr, more_data.wd) == (1e-3, pytest.approx(0.02))
    before, after = (
        theory.memory(1e-3, wd, batch_size=50, samples=samples, optimizer="AdamW").epochs
        for wd, samples in ((0.1, 10_000), (more_data.wd, 50_000))
    )
    assert after == pytest.approx(before, rel=1e-3)
    wider = theory.transfer(1e-3, 0.1, width=(256, 1024), optimizer="AdamW")
    assert wider[:2] == pytest.approx((0.25e-3, 0.4))
    assert theory.transfer(1e-3, 0.1, width=(256, 1024), keep="gain", optimizer="AdamW")[:2] == pytest.approx(
        (0.25e-3, 0.2)
    )
    # √(η/λ)·m^¾ is kept
    assert math.sqrt(0.25e-3 / 0.2) * 1024**0.75 == pytest.approx(math.sqrt(1e-3 / 0.1) * 256**0.75)


def test_memory_is_the_time_in_which_decay_reduces_an_update():
    for rule in (theory.SGD(), theory.SGD(momentum=0.9), theory.AdamW(dim=3), theory.Muon(rows=2, columns=2)):
        time = theory.memory(0.1, 0.01, optimizer=rule)
        weights = np.ones((1, 4 if isinstance(rule, theory.Muon) else 3))
        state = rule.start(weights)
        norms = []
        # the momentum needs some steps to follow
        for _ in range(2 * round(time.steps)):
            norms.append(weights[0, 0])
            weights, state = rule.update(weights, 0 * weights, state, 0.1, 0.01)
        assert weights[0, 0] / norms[round(time.steps)] == pytest.approx(1 / math.e, rel=0.02)
    assert theory.memory(0.1, 0.0).steps == math.inf
    assert math.isnan(theory.memory(0.1, 0.01, optimizer="Adam").steps)
    assert theory.memory([0.1, 0.2], 0.01, batch_size=4, samples=8).epochs.shape == (2,)


@pytest.mark.parametrize(
    ("rule", "lr", "wd"), [(theory.SGD(), 0.05, 0.05), (theory.AdamW(dim=1), 1e-3, 1.0)], ids=["SGD", "AdamW"]
)
def test_networks_at_equilibrium_keep_norm_and_rotation_per_sample(rule, lr, wd):
    # labels that cannot be learned: the gradients are noise
    base = {"width": 8, "dataset": "gaussian", "label_noise": 0.8, "optimizer": rule, "evaluate_every": 10**6}

    def measure(lr, wd, batch_size):
        steps = round(6 / (lr * wd))
        run = empirical.train(
            empirical.RunConfig(lr=lr, wd=wd, batch_size=batch_size, steps=steps, **base), progress=False
        )
        settled = run.isel(step=slice(steps // 2, None))
        return float(settled.norm.mean()), float((settled.rotation**2).mean()) / batch_size

    norm, turn = measure(lr, wd, 16)
    after = theory.transfer(lr, wd, batch_size=(16, 64), optimizer=rule)
    norm_after, turn_after = measure(after.lr, after.wd, 64)
    assert norm_after == pytest.approx(norm, rel=0.08)
    assert turn_after == pytest.approx(turn, rel=0.15)
    # the control: without any change of lr and wd the rotation per sample is a quarter
    _, unchanged = measure(lr, wd, 64)
    assert unchanged < 0.5 * turn


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of batch_size, samples and width"),
        ({"batch_size": (1, 2), "width": (1, 2)}, "batch_size, width"),
        ({"batch_size": 64}, "batch_size"),
        ({"batch_size": (64, 0)}, "batch_size"),
        ({"batch_size": (64, 128), "keep": "period"}, "keep"),
        ({"samples": (1, 2), "keep": "rotation"}, "keep"),
        ({"width": (1, 2)}, "optimizer must be AdamW"),
        ({"lr": 0.0, "samples": (1, 2)}, "lr"),
        ({"wd": 0.0, "samples": (1, 2)}, "wd"),
        ({"wd": 10.0, "samples": (1, 2)}, "wd"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        theory.transfer(**{"lr": 0.1, "wd": 0.01, **options})
