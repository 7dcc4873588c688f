"""Compare training steps of every engine, with telemetry, with a plain PyTorch loop without telemetry, on one thread.

There are three tasks: a BN-MLP and a ConvNet on digits, and the ConvNet of the paper (32 channels, batches of 128
colour images of 32×32, here noise). All calls run alternately in one process. The numbers are medians of the CPU
time per step and replica in microseconds, and ratios of these medians.
"""

import copy
import statistics
import sys
import time

import torch
from torch.nn.functional import cross_entropy

import theory
from empirical.config import RunConfig
from empirical.data import Data, batch_indices, load_data
from empirical.groups import scale_invariant_groups
from empirical.networks import BatchNorm, build_network
from empirical.steps import ENGINES, Hyper, Problem, TrainingState, WeightLayout
from empirical.steps.engines import compiler_error

LR, WD, REPLICAS, REPEATED = 0.5, 0.01, 32, 5
# CPU feature that the goal of bfloat16 needs
MATRIX_UNIT = "amx_bf16"


def noise_images():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 3, 32, 32, generator=generator)
    return Data(inputs, torch.randint(0, 10, (512,), generator=generator))


class Task:
    def __init__(self, model, width, data, batch, steps):
        self.data, self.steps = data, steps
        self.network = build_network(RunConfig(lr=LR, wd=WD, model=model, width=width), data.inputs, 10)
        self.network.to(data.inputs.device)
        groups = {name: group.weights for name, group in scale_invariant_groups(self.network, data.inputs).items()}
        layout = WeightLayout.of(self.network, groups)
        self.problem = Problem(self.network, layout, data.inputs, data.targets, theory.SGD())
        indices = batch_indices(data.size, batch, "without_replacement", 0, 0, steps)
        self.indices = torch.as_tensor(indices, device=data.inputs.device)

    def plain_loop(self, own_layers=False):
        net, data = copy.deepcopy(self.network), self.data
        if not own_layers:
            # a user's loop would use PyTorch's normalization
            for name, layer in list(net.named_children()):
                if isinstance(layer, BatchNorm):
                    kind = torch.nn.BatchNorm2d if "conv1" in dict(net.named_children()) else torch.nn.BatchNorm1d
                    setattr(net, name, kind(layer.mean.numel(), affine=False))
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=WD)
        for batch in self.indices:
            optimizer.zero_grad()
            cross_entropy(net(data.inputs[batch]), data.targets[batch]).backward()
            optimizer.step()

    def engine(self, name, replicas=1, autocast=None, steps=None):
        problem = Problem(**{**self.problem.__dict__, "autocast": autocast})
        engine, one = ENGINES[name](problem), TrainingState.of(problem)
        buffers = {n: b.repeat(replicas, 1) for n, b in one.buffers.items()}
        state = TrainingState(one.weights.repeat(replicas, 1), buffers)
        steps = steps or max(1, self.steps // replicas)
        lrs = torch.full((replicas, steps), LR, dtype=torch.float64)
        hyper = Hyper(lrs, lrs, torch.full((replicas,), WD, dtype=torch.float64))
        indices = self.indices[:steps].expand(replicas, -1, -1)
        return (lambda: engine.advance(state, hyper, indices)), steps * replicas

    def measure(self, calls, rounds=REPEATED):
        """Median microseconds per step of each call."""
        for call, _ in calls.values():
            call()
        table = [[cost(call, steps) for call, steps in calls.values()] for _ in range(rounds)]
        return dict(zip(calls, (statistics.median(column) for column in zip(*table, strict=True)), strict=True))


def cost(call, steps):
    began = time.process_time()
    call()
    return (time.process_time() - began) / steps * 1e6


def has_matrix_unit():
    try:
        with open("/proc/cpuinfo") as file:
            return MATRIX_UNIT in file.read()
    except OSError:
        return False


def main():
    torch.set_num_threads(1)
    digits = load_data("digits", torch.float32, torch.device("cpu"))
    tasks = {
        "mlp": Task("mlp", None, digits, 64, 200),
        "convnet": Task("convnet", None, digits, 64, 200),
        "paper's convnet": Task("convnet", 32, noise_images(), 128, 3),
    }
    costs = {}
    for name, task in tasks.items():
        calls = {
            "plain loop": (task.plain_loop, task.steps),
            "plain loop, own layers": (lambda task=task: task.plain_loop(own_layers=True), task.steps),
            "eager": task.engine("eager"),
            "replicas": task.engine("replicas"),
        }
        if name != "paper's convnet":
            calls["kernel"] = task.engine("kernel")
        else:
            calls["replicas, bfloat16"] = task.engine("replicas", autocast=torch.bfloat16)
        if name == "mlp":
            calls[f"replicas, {REPLICAS} at once"] = task.engine("replicas", REPLICAS)
            if not compiler_error("cpu"):
                calls[f"compiled, {REPLICAS} at once"] = task.engine("compiled", REPLICAS)
        costs[name] = task.measure(calls)
        plain = costs[name]["plain loop"]
        for kind, value in costs[name].items():
            print(f"{name:16}{kind:26}{value:10.1f} us per step{plain / value:8.2f} x the plain loop", flush=True)
    reached = {}
    for name, kind, base, factor in [
        ("mlp", "kernel", "plain loop", 7),
        ("mlp", f"replicas, {REPLICAS} at once", "eager", 3),
        ("convnet", "kernel", "plain loop", 1.8),
        ("paper's convnet", "replicas", "plain loop", 1.3),
        ("paper's convnet", "replicas, bfloat16", "plain loop", 3),
    ]:
        if "bfloat16" in kind and not has_matrix_unit():
            print(f"{name}: {kind}: no goal, because the CPU has no {MATRIX_UNIT}")
            continue
        reached[f"{name}: {kind} >= {factor} x {base}"] = costs[name][base] >= factor * costs[name][kind]
    for name, telemetry in (("mlp", 1.35), ("convnet", 1.08)):
        own = costs[name]["plain loop, own layers"]
        reached[f"{name}: eager with telemetry <= {telemetry} x without"] = costs[name]["eager"] <= telemetry * own
    for goal, holds in reached.items():
        print(f"{goal}: {'reached' if holds else 'NOT reached'}")
    return not all(reached.values())


if __name__ == "__main__":
    sys.exit(main())
