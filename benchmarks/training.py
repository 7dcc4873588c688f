"""Training steps of the BN-MLP (width 64, batch 64, digits) with telemetry, against a plain PyTorch loop; one thread.

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
from empirical.networks import build_network
from empirical.steps import ENGINES, Hyper, Layout, Problem, State

STEPS, ROUNDS, GOAL, TELEMETRY_GOAL = 400, 7, 7, 1.35
LR, WD = 0.5, 0.01

torch.set_num_threads(1)
data = load_data("digits", torch.float32, torch.device("cpu"))
network = build_network(RunConfig(lr=LR, wd=WD, model="mlp", width=64), data.inputs, 10)
groups = {name: group.weights for name, group in scale_invariant_groups(network, data.inputs).items()}
problem = Problem(network, Layout.of(network, groups), data.inputs, data.targets, theory.SGD())
indices = torch.as_tensor(batch_indices(data.size, 64, "without_replacement", 0, 0, STEPS))
rates = torch.full((1, STEPS), LR, dtype=torch.float64)
hyper = Hyper(rates, rates, torch.tensor([WD], dtype=torch.float64))
engines = {name: kind(problem) for name, kind in ENGINES.items()}


def plain_loop(own_normalization=False):
    net = copy.deepcopy(network)
    if not own_normalization:
        # what one would write: PyTorch's own layers
        net.norm1, net.norm2 = (torch.nn.BatchNorm1d(64, affine=False) for _ in range(2))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=WD)
    for batch in indices:
        optimizer.zero_grad()
        cross_entropy(net(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()


CANDIDATES = {
    "plain loop": plain_loop,
    "plain loop, own layers": lambda: plain_loop(own_normalization=True),
    **{name: lambda e=engine: e.advance(State.of(problem), hyper, indices[None]) for name, engine in engines.items()},
}


def cost(call):
    began = time.process_time()
    call()
    return (time.process_time() - began) / STEPS * 1e6


def main():
    for call in CANDIDATES.values():
        call()
    rounds = [[cost(call) for call in CANDIDATES.values()] for _ in range(ROUNDS)]
    costs = {
        name: statistics.median(column) for name, column in zip(CANDIDATES, zip(*rounds, strict=True), strict=True)
    }
    plain, own = costs["plain loop"], costs["plain loop, own layers"]
    for name, value in costs.items():
        print(f"{name:28}{value:10.1f} us per step{plain / value:8.2f} x the plain loop")
    reached = {
        f"compiled >= {GOAL} x the plain loop": plain >= GOAL * costs["compiled"],
        f"eager with telemetry <= {TELEMETRY_GOAL} x without": costs["eager"] <= TELEMETRY_GOAL * own,
    }
    for goal, holds in reached.items():
        print(f"{goal}: {'reached' if holds else 'NOT reached'}")
    return not all(reached.values())


if __name__ == "__main__":
    sys.exit(main())
