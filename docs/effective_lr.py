"""Measure and draw docs/effective_lr.md: `python docs/effective_lr.py` trains for ten minutes and writes the PNG."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pydoc_data.topics
from collections.abc import Callable, Iterator
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

matplotlib.use("Agg")

TARGET = Path(__file__).with_name("effective_lr.png")
SEEDS, SMOOTHED = (0, 1, 2), 50
Array = npt.NDArray[np.float64]


class Curves(NamedTuple):
    """Losses of one seed: a run with weight decay, its repetition at fixed norm, and the control."""

    run: Array
    repeated: Array
    control: Array


# ---- ConvNet with batch normalization under SGD

CONVNET = empirical.RunConfig(
    model="convnet", lr=theory.Cosine(1.0, 0.05, steps=4000), wd=0.01, steps=4000, evaluate_every=4000
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
STEPS, LR, WD = 2000, 4e-3, 1.0
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
    base, first = lr_schedule(), [float(matrix.norm()) for matrix in matrices]
    losses, norms = np.empty(steps), np.empty((steps, len(matrices)))
    for step, codes in zip(range(steps), windows(seed), strict=False):
        loss = cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        loss.backward()
        losses[step], norms[step] = loss.item(), [float(matrix.norm()) for matrix in matrices]
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
    """Logarithm of the mean loss of successive parts."""
    parts = losses[: len(losses) // SMOOTHED * SMOOTHED].reshape(-1, SMOOTHED)
    return np.asarray(np.log(parts.mean(axis=1)))


def distance(one: Array, other: Array) -> float:
    """Mean difference of the logarithms of two smoothed loss curves, without the first tenth."""
    start = len(one) // SMOOTHED // 10
    return float(np.abs(smooth(one) - smooth(other))[start:].mean())


def compare(name: str, curves: list[Curves]) -> None:
    """Print the row of one network."""
    pairs = itertools.combinations([each.run for each in curves], 2)
    columns = {
        "repeated": [distance(each.run, each.repeated) for each in curves],
        "other seed": [distance(one, other) for one, other in pairs],
        "control": [distance(each.run, each.control) for each in curves],
    }
    print(
        name, {key: f"{100 * np.mean(values):.1f} % (up to {100 * max(values):.1f})" for key, values in columns.items()}
    )


# ---- modulated learning rate

MODULATED = empirical.RunConfig(model="mlp", width=8, lr=0.5, wd=0.02, steps=0, evaluate_every=10**6)
DEPTH, PERIODS = 0.3, 12


def modulation_gain(ratio: float, seed: int) -> tuple[float, float]:
    """Amplitude of ln η/ρ² over that of ln η at the frequency ratio/τ, measured and predicted by the one-step law."""
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
    return float(measured), abs(1 - 0.5 / (1 + 1j * 2 * math.pi * time / period))


def norms_at_equilibrium() -> None:
    """Print norms of the matrices over theory.equilibrium_norm, under AdamW and Muon at constant learning rate."""
    names = ("query", "key", "value", "output", "widen", "narrow")
    for label, rule in (("AdamW", adamw), ("Muon", muon)):
        for lr, wd in ((LR, WD), (LR, 4 * WD)):
            record = train_model(0, steps=2500, wd=wd, optimizer=rule, lr=lambda step, lr=lr: lr)
            late = np.sqrt((record.norms[-1000:] ** 2).mean(axis=0))
            for number, norm in enumerate(late):
                name = names[number % len(names)]
                shape = {"widen": (4 * WIDTH, WIDTH), "narrow": (WIDTH, 4 * WIDTH)}.get(name, (WIDTH, WIDTH))
                law: theory.Optimizer = (
                    theory.AdamW(dim=math.prod(shape), betas=(0.9, 0.95))
                    if label == "AdamW"
                    else theory.Muon(rows=shape[0], columns=shape[1], nesterov=True)
                )
                print(
                    label,
                    f"ηλ={lr * wd:g}",
                    number // len(names),
                    name,
                    f"{norm / theory.equilibrium_norm(lr, wd, optimizer=law):.3f}",
                )
