"""`calibrate`: from one call to a period model."""

import concurrent.futures
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import simulate
from empirical import RunConfig, calibrate, train
from empirical.networks.normalization import BatchNorm
from simulate.period_model.model import simulated_periods


@pytest.fixture
def here():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrate") / "runs"


@pytest.fixture(scope="module")
def model(runs):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return calibrate("mlp", width=64, periods=60, out=runs, executor=executor)


def test_runs_have_the_requested_periods(model):
    assert [run.intrinsic_lr for run in model.calibration_runs] == pytest.approx([0.01, 0.01, 0.002, 0.002])
    assert all(run.count >= 30 for run in model.calibration_runs)
    seeds = [RunConfig.from_dict(json.loads(run.run)).seed for run in model.calibration_runs]
    assert sorted(seeds) == [0, 0, 1, 1]


def test_it_predicts_a_held_out_setting(model):
    run = train(RunConfig(lr=0.5, wd=0.01, width=64, steps=15_000, seed=7))
    measured = simulate.find_periods(run)
    # 60 periods each: standard errors of about a tenth
    assert model.predict(0.5, 0.01).period == pytest.approx(measured.mean, rel=0.2)
    assert simulated_periods(model, 0.5, 0.01).mean == pytest.approx(measured.mean, rel=0.2)


def test_runs_are_reused(model, runs, here):
    before = {folder: folder.stat().st_mtime_ns for folder in runs.glob("runs/*/*/steps.log")}
    assert len(before) == 4
    again = calibrate("mlp", width=64, periods=60, out=runs, executor=here)
    assert again == model
    assert {folder: folder.stat().st_mtime_ns for folder in before} == before
    # more periods continue them
    more = calibrate("mlp", width=64, periods=70, out=runs, executor=here)
    assert {folder.parent for folder in before} == {folder.parent for folder in runs.glob("runs/*/*/steps.log")}
    assert sum(run.count for run in more.calibration_runs) > sum(segment.count for segment in model.calibration_runs)


# how many periods it takes depends on the rounding of the processor
@pytest.mark.parametrize(("until", "most"), [(0.2, 60), (0.06, 120)])
def test_it_stops_at_a_precise_period(until, most, here, tmp_path):
    calibrated = calibrate("mlp", width=64, until=until, out=tmp_path, executor=here)
    for value in {run.intrinsic_lr for run in calibrated.calibration_runs}:
        runs = [run for run in calibrated.calibration_runs if run.intrinsic_lr == value]
        lengths = np.concatenate([run.lengths for run in runs])
        assert 20 <= lengths.size <= most
        assert all(run.period_stderr / run.period <= until * math.sqrt(2) for run in runs)
        # the standard error of all periods together
        assert lengths.std(ddof=1) / math.sqrt(lengths.size) / lengths.mean() <= 1.2 * until


def test_own_module_and_arrays(model, tmp_path):
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
    own_model = calibrate(network, inputs[:1437].reshape(-1, 1, 8, 8), targets[:1437], periods=20, out=tmp_path)
    # none is trained twice
    assert len(list(tmp_path.rglob("steps.log"))) == len(own_model.calibration_runs)
    # the two seeds differ in the order of the data and share the initial weights
    assert own_model.law.period(0.5, 0.02) == pytest.approx(model.law.period(0.5, 0.02), rel=0.35)


def test_equilibrium_is_predicted(here, tmp_path):
    network = {"width": 4, "batch_size": 16, "label_noise": 0.5}
    intrinsic_lrs = {"intrinsic_lr": 0.02, "ratio": 2, "reach": 4}
    period_model = calibrate("mlp", periods=20, out=tmp_path / "runs", executor=here, **intrinsic_lrs, **network)
    # it is at equilibrium at the lower setting too, so a third one is trained
    assert sorted({run.intrinsic_lr for run in period_model.calibration_runs}) == pytest.approx([0.005, 0.01, 0.02])
    assert period_model.reduced_model is None
    assert not period_model.has_law
    expected = period_model.predict(0.5, 0.014)
    assert expected.verdict == str(expected) == "equilibrium"
    run = train(RunConfig(lr=0.5, wd=0.014, steps=10_000, seed=9, **network))
    measured = simulate.classify(run)
    assert measured.verdict == "equilibrium"
    assert expected.norm == pytest.approx(measured.typical_norm, rel=0.03)
    assert expected.rotation_ratio == pytest.approx(measured.rotation_ratio, rel=0.05)
    with pytest.raises(ValueError, match="equilibrium at lr"):
        simulated_periods(period_model, 0.5, 0.014)


def test_runs_that_diverge_are_refused(here):
    free = {"scale_invariant": False, "normalization": "none"}
    with pytest.raises(ValueError, match=r"at lr \* wd = 0.01.*diverged"):
        calibrate("mlp", width=8, lr=1e20, periods=20, seeds=1, executor=here, **free)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr"),
        ({"intrinsic_lr": 1.0}, "intrinsic_lr"),
        ({"ratio": 1.0}, "ratio"),
        ({"reach": 5.0}, "reach"),
        ({"periods": 19}, "periods"),
        ({"until": 0}, "until"),
        ({"seeds": 0}, "seeds"),
        ({"rise": 0}, "rise"),
        ({"fixed": "effective_lr"}, "fixed"),
        ({"wdth": 8}, "wdth"),
        ({"dataset": "faces"}, "dataset"),
    ],
)
def test_bad_input_starts_no_training(tmp_path, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        calibrate("mlp", out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_class_in_place_of_a_function_is_refused_before_processes_start(monkeypatch):
    monkeypatch.setattr("empirical.calibration.sweep", lambda *_, **__: pytest.fail("a sweep started"))
    reference = "tests.empirical.plain_model:PlainModel"
    with pytest.raises(TypeError, match=rf"^model must .* \(layers, shape, classes\) .* the class '{reference}'"):
        calibrate(reference)
