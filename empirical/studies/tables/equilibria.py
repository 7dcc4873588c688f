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

# the first half is the fall
_STEPS, _EPOCHS = 6000, 8


@dataclass(frozen=True)
class Equilibrium:
    """A network at rest, and what its gradients are.

    Attributes
    ----------
    rotation : root-mean-square angle per step over the predicted one.
    log_norm_sd : standard deviation of ln ρ.
    mean_share : part of the mean squared gradient that is the square of its mean, at the last weights.
    kurtosis : median over the coordinates of the gradient of the same mini-batches; 3 for normal numbers.
    """

    rotation: float
    log_norm_sd: float
    mean_share: float
    kurtosis: float


def setting(optimizer: theory.Optimizer, lr: float, wd: float, batch_size: int, dataset: str) -> RunConfig:
    """Return the run of a BN-MLP of width 8 that is looked at.

    Examples
    --------
    >>> setting(theory.SGD(momentum=0.9), 0.05, 0.01, 256, "digits").steps
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
SETTINGS = tuple(setting(*row) for row in _ROWS)


def measure(config: RunConfig) -> Equilibrium:
    """Train one setting and hold it against `theory`.

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
    # pixels that never change give weights that get no gradient but rounding
    moved = variance > 1e-6 * variance.median()
    fourth = ((gradients - mean) ** 4).mean(0)[moved] / variance[moved] ** 2
    return Equilibrium(
        rotation=float(np.sqrt((settled.rotation**2).mean())) / float(np.asarray(predicted)),
        log_norm_sd=float(np.log(settled.norm).std()),
        mean_share=float((mean**2).sum() / (gradients**2).mean(0).sum()),
        kurtosis=float(fourth.median()),
    )


def _gradients(config: RunConfig, folder: Path) -> torch.Tensor:
    """Gradients of the mini-batches of some epochs at the last weights of a run, (batches, weights)."""
    setup, network = prepare(config), load_model(folder).train()
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = []
    for batch in setup.batches(0, _EPOCHS * (setup.data.size // config.batch_size))[0]:
        loss = cross_entropy(network(setup.problem.samples(batch)), setup.data.targets[batch])
        rows.append(torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows).double()


def main() -> None:
    """Print the table of all settings."""
    print("| optimizer | data, batch | measured / predicted | sd(ln ρ) | share of the mean | kurtosis |")
    print("| --- | --- | --- | --- | --- | --- |")
    for config in SETTINGS:
        found = measure(config)
        name = f"{config.optimizer!r}, lr {config.lr:g}, wd {config.wd:g}"
        numbers = f"{found.rotation:.3f} | {found.log_norm_sd:.3f} | {found.mean_share:.2f} | {found.kurtosis:.0f}"
        print(f"| {name} | {config.dataset}, {config.batch_size} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
