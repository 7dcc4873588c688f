"""Cost of a training step as a function of width, batch size, replicas and length of the run, on one thread.

With a file name, also draw the figure: `python benchmarks/cost.py docs/cost_of_training.png`.
"""

import sys
import time

import matplotlib
import torch
from training import Task

from empirical import RunConfig, train
from empirical.data import load_data

matplotlib.use("agg")
import matplotlib.pyplot as plt

# colours of Okabe and Ito, which everyone can distinguish; markers and dashes for print in grey
STYLES = {
    ("mlp", "kernel"): ("#0072B2", "o", "-"),
    ("mlp", "replicas"): ("#56B4E9", "s", "-"),
    ("mlp", "plain loop"): ("#999999", "x", "--"),
    ("convnet", "kernel"): ("#D55E00", "v", "-."),
    ("convnet", "replicas"): ("#E69F00", "^", "-."),
    ("convnet", "plain loop"): ("#444444", "+", ":"),
}
WIDTHS = {"mlp": (16, 32, 64, 128, 256, 512), "convnet": (4, 8, 16, 32)}
BATCHES, REPLICAS = (16, 32, 64, 128, 256, 512, 1024), (1, 2, 4, 8, 16, 32, 64)
# longest run, as an exponent of 10
STEPS = {"mlp": 5, "convnet": 4}
# number of steps of a measurement
WORK = {"mlp": 60, "convnet": 12}


def calls_of(task):
    return {"plain loop": (task.plain_loop, task.steps), **{name: task.engine(name) for name in ("kernel", "replicas")}}


def curves(digits):
    """Measure microseconds per step and replica: {panel: {(model, engine): ([x], [y])}}."""
    panels = {name: {} for name in ("width", "batch size", "replicas", "steps of a whole run")}

    def add(panel, model, x, costs):
        for engine, value in costs.items():
            xs, ys = panels[panel].setdefault((model, engine), ([], []))
            xs.append(x)
            ys.append(value)

    for model, steps in WORK.items():
        for width in WIDTHS[model]:
            task = Task(model, width, digits, 64, steps)
            add("width", model, width, task.measure(calls_of(task), rounds=3))
        for batch in BATCHES:
            task = Task(model, None, digits, batch, steps)
            add("batch size", model, batch, task.measure(calls_of(task), rounds=3))
        task = Task(model, None, digits, 64, steps)
        for replicas in REPLICAS:
            few = max(2, steps // replicas)
            calls = {name: task.engine(name, replicas, steps=few) for name in ("kernel", "replicas")}
            add("replicas", model, replicas, task.measure(calls, rounds=3))
    for model, most in STEPS.items():
        for steps in range(2, most + 1):
            add("steps of a whole run", model, 10**steps, {"kernel": whole_run(model, 10**steps)})
    return panels


def whole_run(model, steps):
    """Measure microseconds per step of a complete run, including data, logs and the trajectory."""
    config = RunConfig(lr=0.5, wd=0.01, model=model, engine="kernel", steps=steps)
    began = time.process_time()
    train(config, progress=False)
    return (time.process_time() - began) / steps * 1e6


def draw(panels, path):
    fig, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharey=True)
    for ax, (panel, lines) in zip(axes.flat, panels.items(), strict=True):
        for (model, engine), (xs, ys) in lines.items():
            colour, marker, dashes = STYLES[model, engine]
            label = f"{'BN-MLP' if model == 'mlp' else 'ConvNet'}, {engine}"
            ax.loglog(xs, ys, marker=marker, color=colour, linestyle=dashes, label=label, markersize=5)
        ax.set_xlabel(panel)
        ax.grid(which="major", alpha=0.3)
    for ax in axes[:, 0]:
        ax.set_ylabel("µs per step and replica")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    fig.suptitle("Cost of a training step on digits with telemetry, one processor core (the plain loop has none)")
    fig.savefig(path, dpi=150)


def main(arguments):
    torch.set_num_threads(1)
    panels = curves(load_data("digits", torch.float32, torch.device("cpu")))
    for panel, lines in panels.items():
        for (model, engine), (xs, ys) in lines.items():
            row = "  ".join(f"{x}: {y:.0f}" for x, y in zip(xs, ys, strict=True))
            print(f"{panel:18}{model:9}{engine:12}{row}")
    if arguments:
        draw(panels, arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
