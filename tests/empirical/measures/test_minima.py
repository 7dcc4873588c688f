"""Minima of successive periods are found and compared as by hand."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import empirical
import simulate
from empirical.data import Data, load_data
from empirical.measures.minima import ensemble_errors, great_circle_point, minimum_steps, successive_minima
from empirical.runs.loop import load_model

CONFIG = empirical.RunConfig(lr=0.5, wd=0.02, width=64, steps=1600, evaluate_every=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("minima")


@pytest.fixture(scope="module")
def minima(folder):
    return successive_minima(CONFIG, periods=4, seeds=[0, 1], points=5, out=folder)


def test_each_minimum_lies_within_a_period_of_its_own(minima, folder):
    for seed in (0, 1):
        run = simulate.load(folder / f"seed-{seed}" / "whole")
        onsets = simulate.find_periods(run).onsets[-5:]
        steps = minima.step.sel(seed=seed).values
        assert ((onsets[:-1] <= steps) & (steps < onsets[1:])).all()
        # the weights of the second training are those of the first
        np.testing.assert_allclose(minima.norm.sel(seed=seed), run.norm.sel(step=steps), rtol=1e-6)


def test_numbers_of_one_are_those_of_its_network(minima, folder):
    last = int(minima.step.sel(seed=1)[-1])
    empirical.train(dataclasses.replace(CONFIG, seed=1, steps=last), folder / "again")
    network = load_model(folder / "again")
    data = load_data("digits", torch.float32, torch.device("cpu"))
    last = minima.sel(seed=1).isel(minimum=-1)
    with torch.no_grad():
        assert last.train_loss.item() == pytest.approx(
            cross_entropy(network(data.inputs), data.targets).item(), rel=1e-5
        )
        wrong = (network(data.test_inputs).argmax(1) != data.test_targets).double().mean().item()
    assert last.test_error.item() == pytest.approx(wrong, abs=1e-12)
    assert (
        minima.ensemble_test_error.isel(minimum=0).values.tolist() == minima.test_error.isel(minimum=0).values.tolist()
    )


def test_angles_and_distances_are_those_of_a_metric(minima):
    for name in ("angle", "distance"):
        values = minima[name].values
        np.testing.assert_allclose(values, values.transpose(0, 2, 1), atol=1e-12)
        assert (values >= 0).all()
        assert (np.diagonal(values, axis1=1, axis2=2) == 0).all()
        for i in range(4):
            for j in range(4):
                assert (values[:, i, j] <= values[:, i].T + values[:, :, j].T + 1e-9).all()
    # successive minima are others, and further ones further away
    assert minima.angle.isel(minimum=0, other=1).min() > 0.02
    assert (minima.angle.isel(minimum=0, other=3) > minima.angle.isel(minimum=0, other=1)).all()


def test_paths_begin_and_end_at_the_minima(minima):
    for path in ("linear", "great_circle"):
        losses = minima.path_loss.sel(path=path)
        np.testing.assert_allclose(
            losses.isel(share=0), minima.train_loss.isel(minimum=slice(-1)), rtol=1e-3, atol=1e-7
        )
        np.testing.assert_allclose(
            losses.isel(share=-1), minima.train_loss.isel(minimum=slice(1, None)), rtol=1e-3, atol=1e-7
        )
        higher = np.maximum(losses.isel(share=0), losses.isel(share=-1))
        np.testing.assert_allclose(minima.barrier.sel(path=path), losses.max("share") - higher, atol=1e-12)
    assert (minima.barrier >= 0).all()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 20), st.integers(0, 1000), st.floats(0, 1))
def test_the_great_circle_keeps_angles_in_proportion(size, seed, share):
    a, b = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)).double()
    point = great_circle_point(a, b, share)

    def angle(u, v):
        return float(torch.arccos(torch.clamp(u @ v / u.norm() / v.norm(), -1, 1)))

    assert angle(a, point) == pytest.approx(share * angle(a, b), abs=1e-6)
    assert float(point.norm()) == pytest.approx(float(a.norm()) ** (1 - share) * float(b.norm()) ** share, rel=1e-9)
    assert torch.allclose(great_circle_point(a, 2 * a, share), a * 2**share)


def test_ensembles_average_probabilities_not_votes(folder):
    class Fixed(torch.nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = torch.tensor(scores)

        def forward(self, inputs):
            return self.scores.expand(len(inputs), -1)

    # two are a little wrong, one is sure and right
    networks = [Fixed([0.1, 0.0]), Fixed([0.1, 0.0]), Fixed([-9.0, 9.0])]
    data = Data(torch.zeros(4, 1), torch.ones(4).long(), torch.zeros(4, 1), torch.ones(4).long())
    assert ensemble_errors(networks, data).tolist() == [1.0, 1.0, 0.0]


def test_the_same_call_again_trains_nothing(minima, folder):
    files = [folder / "seed-0" / "whole" / "steps.log", *(folder / "seed-0").glob("*-step-*.pt")]
    before = [file.stat().st_mtime_ns for file in files]
    xr.testing.assert_equal(successive_minima(CONFIG, periods=4, seeds=[0, 1], points=5, out=folder), minima)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(before) == 5
    # a missing file is made again
    files[-1].unlink()
    xr.testing.assert_equal(successive_minima(CONFIG, periods=4, seeds=[0], points=5, out=folder), minima.sel(seed=[0]))


def test_noise_does_not_move_a_minimum_far():
    step = np.arange(4000)
    phase = 2 * np.pi * step / 400
    noise = np.exp(0.5 * np.random.default_rng(0).normal(size=step.size))
    run = xr.Dataset(
        {"norm": ("step", np.exp(0.3 * np.cos(phase))), "loss": ("step", (1.1 - np.sin(phase)) * noise)},
        {"step": step},
        {"lr": 0.5, "wd": 0.02},
    )
    # the loss is lowest a quarter of the period after the peak of the norm
    assert np.abs(np.array(minimum_steps(run, 5)) % 400 - 100).max() < 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"periods": 1}, "periods"),
        ({"points": 2}, "points"),
        ({"seeds": []}, "seeds"),
        ({"periods": 500}, "at least 500 periods"),
    ],
)
def test_bad_input(options, words, folder):
    with pytest.raises(ValueError, match=words):
        successive_minima(CONFIG, **{"seeds": [0], "out": copy.copy(folder), **options})
    with pytest.raises(TypeError, match="config"):
        successive_minima({"lr": 0.1})
