import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.functional import cross_entropy

import simulate
import theory
from empirical import RunConfig, _progress, train
from empirical.data import batch_indices, load_data, user_data
from empirical.networks import BatchNorm, build_network, record_statistics
from empirical.runs.evaluation import evaluate
from empirical.runs.loop import load_model
from empirical.runs.preparation import prepare
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


def plain_evaluation(net, data, size):
    """Loss of training and test set by the definition: parts are normalized by themselves, the test set by all."""
    recorded = {}

    def normalize(layer, inputs):
        axes = (0, *range(2, inputs[0].ndim))
        statistics = inputs[0].mean(axes), inputs[0].var(axes, correction=0), len(inputs[0])
        recorded.setdefault(layer, []).append(statistics)

    layers = [module for module in net.modules() if isinstance(module, BatchNorm)]
    hooks = [layer.register_forward_pre_hook(normalize) for layer in layers]
    count = math.ceil(data.size / size)
    places = [torch.arange(data.size)[first::count] for first in range(count)]
    outputs = [net.train()(data.network_inputs(data.inputs[place])) for place in places]
    for hook in hooks:
        hook.remove()
    net.eval()
    for layer, parts in recorded.items():
        total = sum(count for _, _, count in parts)
        layer.mean = sum(count * mean for mean, _, count in parts) / total
        layer.variance = sum(count * (variance + (mean - layer.mean) ** 2) for mean, variance, count in parts) / total
    test_loss = cross_entropy(net(data.network_inputs(data.test_inputs)), data.test_targets).item()
    net.train()
    return [cross_entropy(torch.cat(outputs), data.targets[torch.cat(places)]).item(), test_loss]


@pytest.mark.parametrize("settings", [{"model": "convnet"}, {"model": "convnet", "scale_invariant": False}, {}])
@pytest.mark.parametrize("size", [4096, 100])
def test_evaluations_follow_their_definition(settings, size):
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 256, (330, 3, 8, 8), dtype=np.uint8), numbers.integers(0, 4, 330)
    data = user_data((images[:210], labels[:210], images[210:], labels[210:]), torch.float64, torch.device("cpu"))
    net = build_network(RunConfig(lr=0.5, wd=0.01, width=8, dtype="float64", **settings), data.inputs, 4)
    layout = WeightLayout.of(net, {})
    problem = Problem(net, layout, data.inputs, data.targets, theory.SGD())
    for layer in net.modules():
        if isinstance(layer, BatchNorm) and layer.gamma is not None:
            torch.nn.init.uniform_(layer.gamma, 0.5, 2)
            torch.nn.init.uniform_(layer.beta, -1, 1)
    state = TrainingState.of(problem)
    for evaluated in (data, data.channels_last()):
        values = evaluate(problem, evaluated, state, max_samples=size)
        with torch.no_grad():
            losses = plain_evaluation(copy.deepcopy(net), data, size)
        assert [values["train_loss"], values["test_loss"]] == pytest.approx(losses, rel=1e-12)


def test_evaluation_samples_are_evenly_spaced_and_part_of_the_description(tmp_path):
    config = dataclasses.replace(CONFIG, evaluation_samples=100, evaluate_batches=False, validation=0.1)
    run = train(config, tmp_path / "run")
    assert json.loads(run.attrs["config"])["evaluation_samples"] == 100
    setup = prepare(config)
    few, whole = setup.evaluation_data, setup.data
    assert [len(few.inputs), len(few.test_inputs), len(few.validation_inputs)] == [100] * 3
    places = np.arange(100) * whole.size // 100
    np.testing.assert_array_equal(few.inputs, whole.inputs[places])
    np.testing.assert_array_equal(few.targets, whole.targets[places])
    # the same numbers as a run on these samples, which is evaluated on all of them
    values = evaluate(setup.problem, few, setup.start)
    assert run.train_loss[0] == values["train_loss"]
    assert run.test_error[0] == values["test_error"]
    assert (run.train_loss != train(dataclasses.replace(config, evaluation_samples=None)).train_loss).any()
    # the training is the same, and sets that are smaller are evaluated completely
    everything = dataclasses.replace(config, evaluation_samples=10_000)
    xr.testing.assert_equal(train(everything), train(dataclasses.replace(config, evaluation_samples=None)))
    # so many samples are drawn for the evaluation of mini-batches
    batches = train(dataclasses.replace(CONFIG, evaluation_samples=128, steps=0))
    indices = batch_indices(1437, 64, "without_replacement", 0, 0, 2)
    net = build_network(CONFIG, DATA.inputs, 10)
    losses = [cross_entropy(net(DATA.inputs[batch]), DATA.targets[batch]).item() for batch in indices]
    assert batches.train_mode_loss.item() == pytest.approx(np.mean(losses), rel=1e-9)


def test_the_bars_count_every_sample(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **settings):
            self.settings, self.n = settings, settings["initial"]
            shown.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.n += count

        def set_postfix(self, **_):
            pass

    monkeypatch.setattr(_progress, "tqdm", Bar)
    train(dataclasses.replace(CONFIG, evaluation_samples=70), progress=True)
    descriptions = [bar.settings["desc"] for bar in shown]
    # the first bar appears before anything is loaded, and that of the training before its evaluations
    assert descriptions == ["prepare the run", "evaluate", "train", "evaluate", "evaluate"]
    assert all(bar.n == bar.settings["total"] for bar in shown[1:])
    assert not any(bar.settings["disable"] for bar in shown)
    shown.clear()
    evaluate_large(max_samples=500, progress=None)
    assert shown[0].n == shown[0].settings["total"] == 1437 + 360
    assert shown[0].settings["disable"] is None


def evaluate_large(**options):
    net = build_network(CONFIG, DATA.inputs, 10)
    problem = Problem(net, WeightLayout.of(net, {}), DATA.inputs, DATA.targets, theory.SGD())
    return evaluate(problem, DATA, TrainingState.of(problem), **options)


def test_samples_may_be_sorted_by_class():
    order = DATA.targets.argsort()
    ordered = dataclasses.replace(DATA, inputs=DATA.inputs[order], targets=DATA.targets[order])
    net = build_network(CONFIG, DATA.inputs, 10)
    problem = Problem(net, WeightLayout.of(net, {}), DATA.inputs, DATA.targets, theory.SGD())
    state = TrainingState.of(problem)
    whole = evaluate(problem, ordered, state)["train_loss"]
    for data in (DATA, ordered):
        assert evaluate(problem, data, state, max_samples=100)["train_loss"] == pytest.approx(whole, rel=0.02)
    # control: in parts of one class each the loss is 12 % smaller
    with record_statistics(net.eval()), torch.no_grad():
        outputs = torch.cat([net(part) for part in ordered.inputs.split(100)])
    assert cross_entropy(outputs, ordered.targets).item() < 0.95 * whole


def test_statistics_of_parts_are_pooled():
    layer, inputs = BatchNorm(3).double().eval(), torch.randn(50, 3, dtype=torch.float64)
    with record_statistics(layer):
        for part in inputs.split(7):
            layer(part)
    torch.testing.assert_close(layer.mean, inputs.mean(0))
    torch.testing.assert_close(layer.variance, inputs.var(0, correction=0))
