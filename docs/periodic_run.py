"""Draw the figure of the README: `python docs/periodic_run.py` trains the network (some seconds) and writes the PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

import empirical
import simulate
import theory
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR, label_log_ticks
from simulate.trajectories.periods import after_transient
from simulate.trajectories.statistics import power_mean

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TARGET = Path(__file__).with_name("periodic_run.png")
PERIODS = 6


def draw() -> None:
    """Train the ConvNet, replay its norm, and draw measurement and replay side by side over the same periods."""
    run = empirical.train(empirical.RunConfig(lr=0.5, wd=0.005, model="convnet", steps=8000))
    replayed = simulate.replay(run)
    periods = simulate.find_periods(run)
    grad_norm, _ = power_mean(after_transient(run).grad_norm, 2)
    onsets = periods.onsets[-PERIODS - 1 :]
    part = {"step": slice(int(onsets[0]) - 30, int(onsets[-1]) + 40)}
    run, replayed = run.sel(part), replayed.sel(part)

    plt.rcParams.update({"font.size": 12})
    figure, axes = plt.subplots(2, 2, figsize=(11, 5.6), dpi=90, sharex=True, layout="constrained")
    effective_lr = "#CC79A7"
    axes[0, 0].plot(run.step, run.loss, color="0.3", linewidth=0.9)
    axes[0, 0].set_title("measured: the loss spikes …")
    axes[0, 0].set_ylabel("mini-batch loss")
    axes[0, 1].plot(run.step, run.effective_lr, color=effective_lr, linewidth=1.6)
    axes[0, 1].set_title("… when the effective learning rate has grown")
    axes[0, 1].set_ylabel("η/ρ²")
    axes[1, 0].plot(run.step, run.norm, color=MEASURED_COLOR, linewidth=1.6)
    axes[1, 0].set_title("measured: the weight norm")
    axes[1, 1].plot(replayed.step, replayed.norm, color=PREDICTED_COLOR, linewidth=1.6)
    axes[1, 1].set_title("simulated: norm from the gradient norms alone")
    equilibrium = theory.equilibrium_norm(0.5, 0.005, grad_norm)
    for ax in axes[1]:
        ax.axhline(equilibrium, color="black", linestyle=":", linewidth=1.4, label="predicted equilibrium")
        ax.set(ylabel="norm ρ", xlabel="step", ylim=(run.norm.min() * 0.93, run.norm.max() * 1.4))
    axes[1, 0].legend(loc="upper right", fontsize=10, frameon=False)
    for ax in axes.flat:
        ax.set_yscale("log")
        label_log_ticks(ax.yaxis)
        ax.margins(x=0.01)
        for onset in onsets:
            ax.axvline(onset, color=ONSET_COLOR, linestyle="--", linewidth=1, zorder=0)
    figure.savefig(TARGET)


if __name__ == "__main__":
    draw()
