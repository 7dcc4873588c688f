import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import empirical
import simulate
from empirical.data import batch_indices, load_data
from empirical.networks import build_network

CONFIG = empirical.RunConfig(lr=0.3, wd=0.02, model="convnet", width=4, dtype="float64", steps=15)


def test_a_plain_torch_loop_with_a_monitor_measures_what_train_measures():
    data = load_data("digits", torch.float64, torch.device("cpu"))
    net = build_network(CONFIG, data.inputs, 10)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.3, weight_decay=0.02)
    monitor = empirical.Monitor(net, optimizer, data.inputs)
    for batch in torch.as_tensor(batch_indices(1437, 64, "without_replacement", 0, 0, 15)):
        loss = cross_entropy(net(data.inputs[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        monitor.before_step(loss)
        optimizer.step()
        monitor.after_step()
    seen, run = monitor.trajectory(), empirical.train(CONFIG)
    for name in ("norm", "grad_norm", "effective_lr", "rotation", "loss", "group_norm", "group_grad_norm"):
        # float64, other order of sums
        np.testing.assert_allclose(seen[name], run[name], rtol=1e-7, err_msg=name)
        assert seen[name].attrs == run[name].attrs
    assert abs(simulate.replay(seen).norm / seen.norm - 1).max() < 1e-9
    assert seen.final_norm.item() == pytest.approx(run.final_norm.item(), rel=1e-9)


def small():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01), torch.randn(16, 5)


def step(model, optimizer, inputs, monitor):
    loss = cross_entropy(model(inputs), torch.zeros(16).long())
    optimizer.zero_grad()
    loss.backward()
    monitor.before_step(loss)
    optimizer.step()
    monitor.after_step()


def test_a_changing_learning_rate_becomes_a_variable():
    model, optimizer, inputs = small()
    monitor = empirical.Monitor(model, optimizer, inputs)
    for lr in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = lr
        step(model, optimizer, inputs, monitor)
    assert monitor.trajectory().lr.values.tolist() == [0.1, 0.2]


def test_misuse_is_named():
    model, optimizer, inputs = small()
    with pytest.raises(TypeError, match="optimizer must be"):
        empirical.Monitor(model, "SGD", inputs)
    with pytest.raises(ValueError, match="scale-invariant weights"):
        empirical.Monitor(nn.Linear(5, 3), optimizer, inputs)
    monitor = empirical.Monitor(model, optimizer, inputs)
    with pytest.raises(ValueError, match="at least one step"):
        monitor.trajectory()
    with pytest.raises(RuntimeError, match="before_step"):
        monitor.after_step()
    with pytest.raises(ValueError, match="must have a gradient"):
        monitor.before_step(0.0)


def test_two_settings_for_invariant_weights_are_refused():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[2].weight], "lr": 0.2}]
    with pytest.raises(ValueError, match="one lr and weight_decay"):
        empirical.Monitor(model, torch.optim.SGD(groups, lr=0.1), torch.randn(16, 5))
