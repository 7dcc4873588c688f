"""Measure and draw docs/effective_lr.md: `python docs/effective_lr.py` trains for ten minutes and writes the PNG."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pydoc_data.topics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, rms_norm, scaled_dot_product_attention

import empirical
import theory
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TARGET = Path(__file__).with_name("effective_lr.png")
SEEDS, PARTS = (0, 1, 2), 30
Array = npt.NDArray[np.float64]


class Curves(NamedTuple):
    """Losses of one seed: a run with weight decay, its repetition at fixed norm, and the control."""

    run: Array
    repeated: Array
    control: Array


# ---- ConvNet with batch normalization under SGD

CONVNET = empirical.RunConfig(
    model="convnet", width=2, lr=theory.Cosine(1.0, 0.05, steps=3000), wd=0.002, steps=3000, evaluate_every=3000
)


def convnet_curves(seed: int) -> Curves:
    """Train the ConvNet with weight decay, and at fixed norm with the same and another effective learning rate."""
    config = dataclasses.replace(CONVNET, seed=seed)
    run = empirical.train(config, progress=False)
    norms, lrs = run.norm.values, run.lr.values
    steps = tuple(range(config.steps))
    repeated = theory.lr_at_fixed_norm(lrs, norms, config.wd, fixed_norm=norms[0])
    # the schedule of the learning rate itself, with the same mean of the effective learning rate
    control = lrs * repeated.mean() / lrs.mean()
    losses = [
        empirical.train(
            dataclasses.replace(config, wd=0.0, fixed="norm", lr=theory.PiecewiseLinear(steps, tuple(values))),
            progress=False,
        ).loss.values
        for values in (repeated.tolist(), control.tolist())
    ]
    return Curves(run.loss.values, *losses)


# ---- language model of characters under AdamW

WIDTH, HEADS, CONTEXT, BLOCKS, BATCH = 64, 4, 64, 2, 16
STEPS, LR, WD = 1500, 4e-3, 1.0
TEXT = "".join(pydoc_data.topics.topics.values())
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(character) for character in TEXT])


class LanguageModel(nn.Module):
    """Transformer of characters. With `all_invariant` a normalization follows each matrix."""

    def __init__(self, *, all_invariant: bool) -> None:
        super().__init__()
        self.all_invariant = all_invariant
        self.embedding, self.position = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.head = nn.Linear(WIDTH, len(CHARACTERS))
        shapes = {"query": 1, "key": 1, "value": 1, "output": 1, "widen": 4}
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(WIDTH, factor * WIDTH, bias=False) for name, factor in shapes.items()}
                | {"narrow": nn.Linear(4 * WIDTH, WIDTH, bias=False)}
            )
            for _ in range(BLOCKS)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return scores of the next characters, shape (batch, context, characters)."""
        stream = self.embedding(codes) + self.position.weight
        for block in self.blocks:
            normalized = _normalize(stream)
            query, key, value = (
                block[name](normalized).unflatten(2, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value")
            )
            attended = scaled_dot_product_attention(
                _normalize(query), _normalize(key), self._maybe(value), is_causal=True
            )
            stream = stream + self._maybe(block["output"](attended.transpose(1, 2).flatten(2)))
            hidden = relu(self._maybe(block["widen"](_normalize(stream))))
            stream = stream + self._maybe(block["narrow"](hidden))
        return self.head(_normalize(stream))

    def _maybe(self, values: Tensor) -> Tensor:
        return _normalize(values) if self.all_invariant else values


def _normalize(values: Tensor) -> Tensor:
    return rms_norm(values, values.shape[-1:], eps=1e-12)


class Record(NamedTuple):
    """Loss of each step, and norm of each matrix before each step: arrays of shape (steps,) and (steps, matrices)."""

    losses: Array
    norms: Array


def train_model(
    seed: int,
    *,
    all_invariant: bool = True,
    steps: int = STEPS,
    wd: float = WD,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    lr: Callable[[int], Any],
    fixed: bool = False,
) -> Record:
    """Train the language model. `lr` gives the learning rate of each step, one number or one for each matrix.

    The matrices of the blocks have the weight decay `wd`. With `fixed` each is rescaled to its first norm instead.
    """
    torch.manual_seed(seed)
    model = LanguageModel(all_invariant=all_invariant)
    matrices = list(model.blocks.parameters())
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    rule = optimizer(matrices)
    other_rule = torch.optim.AdamW(others, lr=LR, weight_decay=0.0)
    base, first = lr_schedule(), [float(matrix.detach().norm()) for matrix in matrices]
    losses, norms = np.empty(steps), np.empty((steps, len(matrices)))
    for step, codes in zip(range(steps), windows(seed), strict=False):
        loss = cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        loss.backward()
        losses[step], norms[step] = loss.item(), [float(matrix.detach().norm()) for matrix in matrices]
        for group, value in zip(rule.param_groups, np.broadcast_to(lr(step), len(matrices)), strict=True):
            group["lr"], group["weight_decay"] = float(value), 0.0 if fixed else wd
        other_rule.param_groups[0]["lr"] = float(base(step))
        for each in (rule, other_rule):
            each.step()
            each.zero_grad()
        if fixed:
            with torch.no_grad():
                for matrix, norm in zip(matrices, first, strict=True):
                    matrix *= norm / matrix.norm()
    return Record(losses, norms)


def windows(seed: int) -> Iterator[Tensor]:
    """Random windows of the text, shape (batch, context + 1)."""
    random = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(CODES) - CONTEXT - 1, (BATCH, 1), generator=random)
        yield CODES[starts + torch.arange(CONTEXT + 1)]


def lr_schedule() -> theory.Schedule:
    """Warm-up and cosine of all trainings of the language model."""
    return theory.WarmUp(100, theory.Cosine(LR, 0.05 * LR, steps=STEPS - 100))


def adamw(matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with one group for each matrix."""
    return torch.optim.AdamW([{"params": [matrix]} for matrix in matrices], lr=LR, betas=(0.9, 0.95), eps=1e-12)


def muon(matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Muon with one group for each matrix."""
    return torch.optim.Muon([{"params": [matrix]} for matrix in matrices], lr=LR)


def model_curves(seed: int, *, all_invariant: bool) -> Curves:
    """Train the language model with weight decay, and with fixed norms of all matrices of its blocks."""
    schedule, at = lr_schedule(), np.arange(STEPS)
    run = train_model(seed, all_invariant=all_invariant, optimizer=adamw, lr=schedule)
    lrs = schedule(at)[:, np.newaxis]
    repeated = theory.lr_at_fixed_norm(lrs, run.norms, WD, fixed_norm=run.norms[0], optimizer="AdamW")
    control = lrs * repeated.mean(axis=0) / lrs.mean()
    losses = [
        train_model(
            seed, all_invariant=all_invariant, optimizer=adamw, lr=lambda step, rows=rows: rows[step], fixed=True
        ).losses
        for rows in (repeated, control)
    ]
    return Curves(run.losses, *losses)


# ---- comparison


def smooth(losses: Array) -> Array:
    """Logarithm of the mean loss of successive parts of a run."""
    parts = losses[: len(losses) // PARTS * PARTS].reshape(PARTS, -1)
    return np.asarray(np.log(parts.mean(axis=1)))


def distance(one: Array, other: Array) -> float:
    """Mean difference of the logarithms of two smoothed loss curves, without the first tenth."""
    return float(np.abs(smooth(one) - smooth(other))[PARTS // 10 :].mean())


def compare(name: str, curves: Sequence[Curves]) -> None:
    """Print the row of one network: means over seeds and standard errors."""
    pairs = itertools.combinations([each.run for each in curves], 2)
    columns = {
        "repeated": [distance(each.run, each.repeated) for each in curves],
        "other seed": [distance(one, other) for one, other in pairs],
        "control": [distance(each.run, each.control) for each in curves],
    }
    texts = [f"{key} {np.mean(values):.1%} (up to {max(values):.1%})" for key, values in columns.items()]
    for key in ("repeated", "control"):
        changes = [(smooth(getattr(each, key)) - smooth(each.run))[PARTS // 10 :].mean() for each in curves]
        texts.append(f"mean change {key} {np.mean(changes):+.1%} ± {np.std(changes, ddof=1) / len(changes) ** 0.5:.1%}")
    print(name, *texts, sep=" | ", flush=True)


# ---- modulated learning rate

MODULATED = empirical.RunConfig(model="mlp", width=8, lr=0.5, wd=0.02, steps=0, evaluate_every=10**6)
DEPTH, PERIODS = 0.3, 12


class Gain(NamedTuple):
    """Amplitude of ln η/ρ² over that of ln η at one frequency times the relaxation time."""

    ratio: float
    measured: float
    predicted: float


def modulation_gain(ratio: float, seed: int) -> Gain:
    """Train at an oscillating learning rate, whose period is a whole number of steps."""
    time = theory.relaxation_time(MODULATED.lr, MODULATED.wd)
    period = max(4, round(2 * math.pi * time / ratio))
    skipped = math.ceil(600 / period)
    at = np.arange((skipped + max(PERIODS, math.ceil(1000 / period))) * period)
    lrs = MODULATED.lr * np.exp(DEPTH * np.sin(2 * math.pi * at / period))
    config = dataclasses.replace(
        MODULATED, seed=seed, steps=len(at), lr=theory.PiecewiseLinear(tuple(at.tolist()), tuple(lrs.tolist()))
    )
    run = empirical.train(config, progress=False).isel(step=slice(skipped * period, None))
    wave = np.exp(-2j * math.pi * run.step.values / period)
    measured = abs((np.log(run.effective_lr.values) * wave).mean() / (np.log(run.lr.values) * wave).mean())
    exact = 2 * math.pi * time / period
    return Gain(exact, float(measured), abs(1 - 0.5 / (1 + 1j * exact)))


def norms_at_equilibrium() -> None:
    """Print norms of the matrices over theory.equilibrium_norm, under AdamW and Muon at constant learning rate."""
    names = ("query", "key", "value", "output", "widen", "narrow")
    shapes = {"widen": (4 * WIDTH, WIDTH), "narrow": (WIDTH, 4 * WIDTH)}
    for label, rule in (("AdamW", adamw), ("Muon", muon)):
        for wd in (WD, 4 * WD):
            record = train_model(0, steps=1500, wd=wd, optimizer=rule, lr=lambda step: LR)
            late = np.sqrt((record.norms[-500:] ** 2).mean(axis=0)).reshape(BLOCKS, -1)
            texts = []
            for name, norms in zip(names, late.T, strict=True):
                rows, columns = shapes.get(name, (WIDTH, WIDTH))
                law: theory.Optimizer = theory.Muon(rows=rows, columns=columns)
                if label == "AdamW":
                    law = theory.AdamW(dim=rows * columns, betas=(0.9, 0.95))
                ratios = norms / theory.equilibrium_norm(LR, wd, optimizer=law)
                texts.append(f"{name} {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
            print(label, f"ηλ = {LR * wd:g}", *texts, sep=" | ", flush=True)


def draw(curves: Mapping[str, Sequence[Curves]], gains: Mapping[float, Sequence[float]]) -> None:
    """Draw the smoothed loss curves of all seeds, and the gain over the frequency."""
    figure, axes = plt.subplots(1, len(curves) + 1, figsize=(12, 3.6), layout="constrained")
    styles = {
        "control": ("same lr schedule, other effective lr", ONSET_COLOR, "-", 1.0),
        "run": ("weight decay", MEASURED_COLOR, "-", 3.0),
        "repeated": ("fixed norm, same effective lr", PREDICTED_COLOR, "--", 1.4),
    }
    for ax, (name, of_seeds) in zip(axes, curves.items(), strict=False):
        for number, each in enumerate(of_seeds):
            at = (np.arange(PARTS) + 0.5) * len(each.run) / PARTS
            for key, (label, color, style, width) in styles.items():
                # loss curves of the language model differ by percents only
                change = 100 * (smooth(getattr(each, key)) - smooth(each.run))
                ax.plot(at, change, style, color=color, linewidth=width, label=None if number else label, alpha=0.8)
        ax.set(title=name, xlabel="step", ylabel="change of the smoothed ln(loss), %")
    axes[0].legend(fontsize=8)
    ratios = np.geomspace(0.05, 30, 200)
    axes[-1].plot(ratios, np.abs(1 - 0.5 / (1 + 1j * ratios)), color=PREDICTED_COLOR, label="constant g̃")
    for ratio, values in gains.items():
        label = "measured, three seeds" if ratio == min(gains) else None
        axes[-1].plot([ratio] * len(values), values, "o", color=MEASURED_COLOR, label=label, markersize=4)
    axes[-1].set(
        xscale="log", xlabel="frequency × relaxation time ωτ", ylabel="amplitude of ln η/ρ² over ln η", ylim=(0, 1.15)
    )
    axes[-1].set_title("MLP, oscillating η")
    axes[-1].legend(fontsize=8)
    figure.savefig(TARGET, dpi=150)


def main() -> None:
    """Train all networks, print the tables, draw the figure."""
    torch.set_num_threads(1)
    gains = {}
    for ratio in (0.1, 0.3, 1.0, 3.0, 10.0):
        pairs = [modulation_gain(ratio, seed) for seed in SEEDS]
        gains[pairs[0].ratio] = [pair.measured for pair in pairs]
        mean = np.mean(gains[pairs[0].ratio])
        print(f"ωτ = {pairs[0].ratio:.2f} | measured {mean:.2f} | predicted {pairs[0].predicted:.2f}", flush=True)
    curves = {
        "ConvNet, SGD": [convnet_curves(seed) for seed in SEEDS],
        "language model, AdamW": [model_curves(seed, all_invariant=True) for seed in SEEDS],
    }
    draw(curves, gains)
    curves["the same, queries and keys invariant"] = [model_curves(seed, all_invariant=False) for seed in SEEDS]
    for name, of_seeds in curves.items():
        compare(name, of_seeds)
    norms_at_equilibrium()


if __name__ == "__main__":
    main()
