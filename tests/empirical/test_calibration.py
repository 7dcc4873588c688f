"""The probe of a network: from one call to a predictor."""

import concurrent.futures
import json

import pytest
import torch
from torch import nn

import simulate
from empirical import RunConfig, calibrate, train
from empirical.networks.normalization import BatchNorm


@pytest.fixture
def here():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("probe") / "runs"


@pytest.fixture(scope="module")
def model(runs):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return calibrate("mlp", width=64, periods=60, out=runs, executor=executor)


def test_segments_have_the_periods_that_were_asked_for(model):
    assert [segment.intrinsic_lr for segment in model.calibration_runs] == pytest.approx([0.01, 0.01, 0.002, 0.002])
    assert all(segment.count >= 30 for segment in model.calibration_runs)
    seeds = [RunConfig.from_dict(json.loads(segment.run)).seed for segment in model.calibration_runs]
    assert sorted(seeds) == [0, 0, 1, 1]


def test_it_predicts_a_setting_that_was_not_trained(model):
    run = train(RunConfig(lr=0.5, wd=0.01, width=64, steps=40_000, seed=7))
    measured = simulate.find_periods(run)
    # 60 periods on each side, a tenth or so
    assert model.law.period(0.5, 0.01) == pytest.approx(measured.mean, rel=0.2)
    assert model.period(0.5, 0.01).mean == pytest.approx(measured.mean, rel=0.2)


def test_runs_are_used_again(model, runs, here):
    before = {folder: folder.stat().st_mtime_ns for folder in runs.glob("runs/*/*/steps.log")}
    assert len(before) == 4
    again = calibrate("mlp", width=64, periods=60, out=runs, executor=here)
    assert again == model
    assert {folder: folder.stat().st_mtime_ns for folder in before} == before
    # more periods continue them
    more = calibrate("mlp", width=64, periods=120, out=runs, executor=here)
    assert {folder.parent for folder in before} == {folder.parent for folder in runs.glob("runs/*/*/steps.log")}
    assert sum(segment.count for segment in more.calibration_runs) > sum(
        segment.count for segment in model.calibration_runs
    )


def test_a_module_and_arrays_of_ones_own(model):
    class Network(nn.Sequential):
        """The MLP of this package, as somebody else might write it."""

    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(64, 64, bias=False), BatchNorm(64, eps=1e-12), nn.ReLU()]
    layers += [nn.Linear(64, 64, bias=False), BatchNorm(64, eps=1e-12), nn.ReLU(), nn.Linear(64, 10, bias=False)]
    network = Network(*layers)
    with torch.no_grad():
        network[-1].weight *= 10 / network[-1].weight.norm()
    network[-1].weight.requires_grad_(False)
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    inputs = (inputs - inputs.mean()) / inputs.std()
    found = calibrate(network, inputs[:1437].reshape(-1, 1, 8, 8), targets[:1437], periods=20)
    # two seeds of the order of the data; the network is as it was given
    assert found.law.period(0.5, 0.02) == pytest.approx(model.law.period(0.5, 0.02), rel=0.35)


def test_a_network_at_equilibrium_is_expected_to_rest(here, tmp_path):
    network = {"width": 4, "batch_size": 16, "label_noise": 0.5}
    rates = {"intrinsic_lr": 0.02, "ratio": 2, "reach": 4}
    found = calibrate("mlp", periods=20, out=tmp_path / "runs", executor=here, **rates, **network)
    # at the lower setting too it rests, so that a third one is trained
    assert sorted({segment.intrinsic_lr for segment in found.calibration_runs}) == pytest.approx([0.005, 0.01, 0.02])
    assert found.reduced_model is None
    assert not found.has_law
    expected = found.predict(0.5, 0.014)
    assert expected.verdict == str(expected) == "equilibrium"
    run = train(RunConfig(lr=0.5, wd=0.014, steps=20_000, seed=9, **network))
    measured = simulate.classify(run)
    assert measured.verdict == "equilibrium"
    assert expected.norm == pytest.approx(measured.typical_norm, rel=0.03)
    assert expected.rotation_ratio == pytest.approx(measured.rotation_ratio, rel=0.05)
    with pytest.raises(ValueError, match="equilibrium at lr"):
        found.period(0.5, 0.014)


def test_training_that_ends_is_refused(here):
    free = {"scale_invariant": False, "normalization": "none"}
    with pytest.raises(ValueError, match=r"but at lr \* wd = 0.01.* it has diverged"):
        calibrate("mlp", width=8, lr=1e20, periods=20, seeds=1, executor=here, **free)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr"),
        ({"intrinsic_lr": 1.0}, "intrinsic_lr"),
        ({"ratio": 1.0}, "ratio"),
        ({"reach": 5.0}, "reach"),
        ({"periods": 19}, "periods"),
        ({"seeds": 0}, "seeds"),
        ({"rise": 0}, "rise"),
        ({"fixed": "effective_lr"}, "fixed"),
        ({"wdth": 8}, "wdth"),
        ({"dataset": "faces"}, "dataset"),
    ],
)
def test_bad_input_begins_nothing(tmp_path, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        calibrate("mlp", out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
