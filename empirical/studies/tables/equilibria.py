"""Equilibrium of every optimizer on a small network: `python -m empirical.studies.tables.equilibria`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import theory
from empirical.config import RunConfig
from empirical.runs.loop import load_model, train
from empirical.runs.preparation import prepare
from simulate.trajectories import contract

# the first half is the transient
_STEPS, _EPOCHS = 6000, 8


@dataclass(frozen=True)
class MeasuredEquilibrium:
    """A network at equilibrium, and statistics of its gradients.

    Attributes
    ----------
    rotation : root-mean-square angle per step, relative to the prediction.
    log_norm_sd : standard deviation of ln ρ.
    mean_share : squared mean gradient over mean squared gradient of mini-batches, at the last weights.
    kurtosis : kurtosis of the gradients of these mini-batches, median over coordinates; 3 for a normal distribution.
    """

    rotation: float
    log_norm_sd: float
    mean_share: float
    kurtosis: float


def equilibrium_config(optimizer: theory.Optimizer, lr: float, wd: float, batch_size: int, dataset: str) -> RunConfig:
    """Return the configuration of a BN-MLP of width 8.

    Examples
    --------
    >>> equilibrium_config(theory.SGD(momentum=0.9), 0.05, 0.01, 256, "digits").steps
    6000
    """
    return RunConfig(
        lr=lr, wd=wd, width=8, steps=_STEPS, evaluate_every=_STEPS, batch_size=batch_size, dataset=dataset,
        optimizer=optimizer,
    )  # fmt: skip


HEAVY_BALL, NESTEROV = theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True)
ADAMW, LION = theory.AdamW(dim=576), theory.Lion(dim=576)
_ROWS: tuple[tuple[theory.Optimizer, float, float, int, str], ...] = (
    (HEAVY_BALL, 0.05, 0.01, 32, "gaussian"),
    (HEAVY_BALL, 0.05, 0.01, 256, "digits"),
    (NESTEROV, 0.05, 0.01, 32, "gaussian"),
    (NESTEROV, 0.05, 0.01, 256, "digits"),
    (ADAMW, 0.01, 0.1, 32, "gaussian"),
    (ADAMW, 0.01, 0.1, 8, "digits"),
    (ADAMW, 0.01, 0.1, 32, "digits"),
    (ADAMW, 0.01, 0.1, 256, "digits"),
    (LION, 0.001, 1.0, 32, "gaussian"),
    (LION, 0.001, 1.0, 8, "gaussian"),
)
_SETTINGS = tuple(equilibrium_config(*row) for row in _ROWS)


def measure_equilibrium(config: RunConfig) -> MeasuredEquilibrium:
    """Train one setting and compare it with `theory`.

    Source: docs/mathematics.md §7.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, Path(folder) / "run")
        gradients = _gradients(config, Path(folder) / "run")
    settled = run.isel(step=slice(_STEPS // 2, None))
    gradient = float(np.sqrt((settled.grad_norm**2).mean()))
    predicted = theory.equilibrium_rotation(
        float(contract.setting_variable(settled, "lr")), config.wd, optimizer=config.optimizer, grad_norm=gradient
    )
    mean, variance = gradients.mean(0), gradients.var(0)
    # weights of constant pixels have no gradient except rounding
    moved = variance > 1e-6 * variance.median()
    fourth = ((gradients - mean) ** 4).mean(0)[moved] / variance[moved] ** 2
    return MeasuredEquilibrium(
        rotation=float(np.sqrt((settled.rotation**2).mean())) / float(np.asarray(predicted)),
        log_norm_sd=float(np.log(settled.norm).std()),
        mean_share=float((mean**2).sum() / (gradients**2).mean(0).sum()),
        kurtosis=float(fourth.median()),
    )


def _gradients(config: RunConfig, folder: Path) -> torch.Tensor:
    """Gradients of the mini-batches of several epochs at the last weights of a run, shape (batches, weights)."""
    setup, network = prepare(config), load_model(folder).train()
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = []
    for batch in setup.batches(0, _EPOCHS * (setup.data.size // config.batch_size))[0]:
        loss = cross_entropy(network(setup.problem.samples(batch)), setup.data.targets[batch])
        rows.append(torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows).double()


def _print_table() -> None:
    """Print the table of all settings."""
    print("| optimizer | data, batch | measured / predicted | sd(ln ρ) | share of the mean | kurtosis |")
    print("| --- | --- | --- | --- | --- | --- |")
    for config in _SETTINGS:
        result = measure_equilibrium(config)
        name = f"{config.optimizer!r}, lr {config.lr:g}, wd {config.wd:g}"
        numbers = f"{result.rotation:.3f} | {result.log_norm_sd:.3f} | {result.mean_share:.2f} | {result.kurtosis:.0f}"
        print(f"| {name} | {config.dataset}, {config.batch_size} | {numbers} |", flush=True)


if __name__ == "__main__":
    _print_table()
