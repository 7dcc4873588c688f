"""Draw the figure of docs/norm_control.md: `python docs/norm_control.py` simulates random walks and writes the PNG."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

import theory

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TARGET = Path(__file__).with_name("norm_control.png")
DIM, STEPS, LR, WD = 400, 3000, 0.01, 0.1
RULE = theory.AdamW(dim=DIM)
Array = npt.NDArray[np.float64]


def walk(advance: Callable[[Array, Array], Array], norm: float) -> tuple[Array, Array]:
    """Norm and rotation in degrees of a random walk; `advance` maps weights and direction to the next weights."""
    random = np.random.default_rng(0)
    weights = random.normal(size=DIM)
    weights *= norm / np.linalg.norm(weights)
    state, norms, angles = RULE.start(weights), np.empty(STEPS), np.empty(STEPS)
    for number in range(STEPS):
        length = np.linalg.norm(weights)
        noise = random.normal(size=DIM)
        gradient = noise - (noise @ weights) / length**2 * weights
        after, state = RULE.update(weights, gradient / np.linalg.norm(gradient) / length, state, 1.0, 0.0)
        following = advance(weights, weights - after)
        norms[number] = length
        angles[number] = math.degrees(math.acos(min(1.0, following @ weights / np.linalg.norm(following) / length)))
        weights = following
    return norms, angles


def draw() -> None:
    """Draw norm and rotation over the steps, with the predictions as dashed lines."""
    decay = LR * WD
    settled = theory.equilibrium_norm(LR, WD, optimizer=RULE)
    rotation = theory.equilibrium_rotation(LR, WD, optimizer=RULE)

    def cautious(x: Array, u: Array) -> Array:
        return np.asarray(x - decay * (u * x > 0) * x - LR * u)

    def fixed(x: Array, u: Array) -> Array:
        moved = x - rotation * settled * u / np.linalg.norm(u)
        return np.asarray(settled * moved / np.linalg.norm(moved))

    rules: dict[str, tuple[Callable[[Array, Array], Array], float, float, float]] = {
        "decoupled decay": (lambda x, u: (1 - decay) * x - LR * u, 2 * settled, settled, rotation),
        "cautious decay": (
            cautious,
            2 * settled,
            theory.equilibrium_norm(LR, WD / 2, optimizer=RULE),
            theory.equilibrium_rotation(LR, WD / 2, optimizer=RULE),
        ),
        "fixed norm": (fixed, settled, settled, float(theory.fixed_norm(rotation, optimizer=RULE).rotation)),
        "no decay": (lambda x, u: x - LR * u, settled, math.nan, math.nan),
    }
    plt.rcParams.update({"font.size": 12})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), dpi=90, layout="constrained")
    for color, style, (name, (advance, start, norm, angle)) in zip(
        ("#0072B2", "#D55E00", "#009E73", "0.45"), ("-", "-", "-", ":"), rules.items(), strict=True
    ):
        norms, angles = walk(advance, start)
        axes[0].plot(norms, color=color, linestyle=style, label=name)
        smooth = np.convolve(angles, np.ones(50) / 50, mode="valid")
        axes[1].plot(np.arange(smooth.size) + 25, smooth, color=color, linestyle=style)
        axes[0].axhline(norm, color=color, linestyle="--", linewidth=1)
        axes[1].axhline(math.degrees(angle), color=color, linestyle="--", linewidth=1)
    axes[0].set(title="norm ρ", xlabel="step", ylim=(0, None))
    axes[1].set(title="rotation per step (degrees)", xlabel="step", ylim=(0, None))
    axes[0].legend(frameon=False, title="dashed: predictions", loc="lower right")
    figure.savefig(TARGET)


if __name__ == "__main__":
    draw()
