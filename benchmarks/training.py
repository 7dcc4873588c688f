"""Training steps with telemetry, of a BN-MLP and a ConvNet on digits, against a plain PyTorch loop; one thread.

All are run in turn in one process; figures are microseconds of processor time per step, ratios those of the medians.
"""

import copy
import statistics
import sys
import time

import torch
from torch.nn.functional import cross_entropy

import theory
from empirical.config import RunConfig
from empirical.data import batch_indices, load_data
from empirical.groups import scale_invariant_groups
from empirical.networks import BatchNorm, build_network
from empirical.steps import ENGINES, Hyper, Layout, Problem, State

STEPS, ROUNDS, LR, WD = 200, 7, 0.5, 0.01
# model: how many times the plain loop; how much telemetry may cost the eager engine
GOALS = {"mlp": (7, 1.35), "convnet": (1.8, 1.08)}

torch.set_num_threads(1)
data = load_data("digits", torch.float32, torch.device("cpu"))
indices = torch.as_tensor(batch_indices(data.size, 64, "without_replacement", 0, 0, STEPS))
rates = torch.full((1, STEPS), LR, dtype=torch.float64)
hyper = Hyper(rates, rates, torch.tensor([WD], dtype=torch.float64))


def plain_loop(network, own_layers):
    net = copy.deepcopy(network)
    if not own_layers:
        # what one would write: PyTorch's own normalization
        for name, layer in list(net.named_children()):
            if isinstance(layer, BatchNorm):
                kind = torch.nn.BatchNorm2d if "conv1" in dict(net.named_children()) else torch.nn.BatchNorm1d
                setattr(net, name, kind(layer.mean.numel(), affine=False))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=WD)
    for batch in indices:
        optimizer.zero_grad()
        cross_entropy(net(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()


def candidates(model):
    network = build_network(RunConfig(lr=LR, wd=WD, model=model), data.inputs, 10)
    groups = {name: group.weights for name, group in scale_invariant_groups(network, data.inputs).items()}
    problem = Problem(network, Layout.of(network, groups), data.inputs, data.targets, theory.SGD())
    engines = {name: kind(problem) for name, kind in ENGINES.items()}
    return {
        "plain loop": lambda: plain_loop(network, own_layers=False),
        "plain loop, own layers": lambda: plain_loop(network, own_layers=True),
        **{
            name: lambda e=engine: e.advance(State.of(problem), hyper, indices[None])
            for name, engine in engines.items()
        },
    }


def cost(call):
    began = time.process_time()
    call()
    return (time.process_time() - began) / STEPS * 1e6


def measured(model):
    calls = candidates(model)
    for call in calls.values():
        call()
    rounds = [[cost(call) for call in calls.values()] for _ in range(ROUNDS)]
    return dict(zip(calls, (statistics.median(column) for column in zip(*rounds, strict=True)), strict=True))


def main():
    reached = {}
    for model, (faster, telemetry) in GOALS.items():
        costs = measured(model)
        plain = costs["plain loop"]
        for name, value in costs.items():
            print(f"{model:10}{name:26}{value:10.1f} us per step{plain / value:8.2f} x the plain loop")
        reached[f"{model}: kernel >= {faster} x the plain loop"] = plain >= faster * costs["kernel"]
        own = costs["plain loop, own layers"]
        reached[f"{model}: eager with telemetry <= {telemetry} x without"] = costs["eager"] <= telemetry * own
    for goal, holds in reached.items():
        print(f"{goal}: {'reached' if holds else 'NOT reached'}")
    return not all(reached.values())


if __name__ == "__main__":
    sys.exit(main())
