"""Configurations at the scale of the paper, for a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from empirical.config import RunConfig
from theory.arguments import check_choice
from theory.optimizers import with_dim
from theory.rules import Optimizer
from theory.schedules import Constant, Cosine, Linear
from theory.sgd import SGD

# the paper uses learning rates from 0.001 to 1
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_WEIGHT_DECAY, _EPOCHS, _BATCH, _TRAINING_SAMPLES = 0.001, 1000, 128, 50_000
# number of steps, and inverse of the weight decay, relative to runs on embedded data
_STEP_FACTOR = 16
_NETWORKS = {"convnet": ("convnet", 32, "cifar10"), "resnet18": ("resnet18", 64, "cifar100")}
_KINDS: dict[str, dict[str, Any]] = {
    "scale_invariant": {},
    "all_trained": {"scale_invariant": False},
    "momentum": {"optimizer": SGD(momentum=0.9)},
    "augmentation": {"augmentation": 4},
    "practice": {"scale_invariant": False, "optimizer": SGD(momentum=0.9), "augmentation": 4},
}


def paper_runs(network: str, kind: str = "scale_invariant") -> tuple[RunConfig, ...]:
    """Return the runs of one experiment of the paper: one network and kind of training, several learning rates.

    Parameters
    ----------
    network : "convnet" (32 channels, CIFAR-10) or "resnet18" (64 channels, CIFAR-100).
    kind : "scale_invariant"; "momentum" or "augmentation" (scale-invariant with one of these); "all_trained" (γ, β and
        the last layer are trained too); or "practice" (all parameters, momentum and augmentation).

    Returns
    -------
    RunConfigs with λ = 0.001, η from 0.001 to 1, and 1000 epochs of batches of 128. They use a GPU if there is one.

    Raises
    ------
    ValueError : `network` or `kind` is unknown.

    Source: arXiv 2106.15739 §4 and appendix.

    Examples
    --------
    >>> run = paper_runs("resnet18")[-1]
    >>> run.lr, run.wd, run.dataset, run.steps
    (1.0, 0.001, 'cifar100', 390000)
    """
    model, width, dataset = _NETWORKS[check_choice("network", network, _NETWORKS)]
    check_choice("kind", kind, _KINDS)
    per_epoch = _TRAINING_SAMPLES // _BATCH
    common = RunConfig(
        lr=LEARNING_RATES[0],
        wd=_WEIGHT_DECAY,
        model=model,
        width=width,
        dataset=dataset,
        batch_size=_BATCH,
        steps=_EPOCHS * per_epoch,
        evaluate_every=10 * per_epoch,
        device="auto",
        **_KINDS[kind],
    )
    return tuple(dataclasses.replace(common, lr=lr) for lr in LEARNING_RATES)


def at_paper_scale(run: RunConfig) -> RunConfig:
    """Scale a small run up to a ConvNet on CIFAR-10, for a GPU.

    λ becomes 16 times as small and the run 16 times as long, so the number of relaxation times 1/ηλ stays the same.
    A ConvNet becomes four times as wide; an MLP becomes a ConvNet with half as many channels as the MLP has units. n
    samples become 10 n. Learning rates, optimizer, normalization and a batch size other than the default do not change.

    Parameters
    ----------
    run : run of an MLP or a ConvNet, with a constant learning rate or a Constant, Linear or Cosine schedule.

    Returns
    -------
    RunConfig

    Raises
    ------
    ValueError : the run has another network or schedule.

    Source: arXiv 2106.15739, experimental setup.

    Examples
    --------
    >>> run = at_paper_scale(RunConfig(model="convnet", lr=0.5, wd=0.016, steps=1000))
    >>> run.width, run.dataset, run.wd, run.steps
    (32, 'cifar10', 0.001, 16000)
    """
    width = run.resolved_width
    if run.model not in ("mlp", "convnet") or width is None:
        raise ValueError(f"run must be of an MLP or a ConvNet, got model={run.model!r}")
    lr = run.lr
    if isinstance(lr, (Linear, Cosine)):
        lr = dataclasses.replace(lr, steps=lr.steps * _STEP_FACTOR)
    elif callable(lr) and not isinstance(lr, Constant):
        raise ValueError(f"run must have a constant learning rate or a Linear or Cosine schedule, got lr={lr!r}")
    scaled = dataclasses.replace(
        run,
        model="convnet",
        width=4 * width if run.model == "convnet" else max(1, width // 2),
        depth=None,
        dataset=_NETWORKS["convnet"][2],
        samples=None if run.samples is None else min(10 * run.samples, _TRAINING_SAMPLES),
        augmentation=None if run.augmentation is None else _KINDS["augmentation"]["augmentation"],
        batch_size=_BATCH if run.batch_size == RunConfig.batch_size else run.batch_size,
        lr=lr,
        wd=run.wd / _STEP_FACTOR,
        steps=run.steps * _STEP_FACTOR,
        device="auto",
        engine="auto",
    )
    return dataclasses.replace(scaled, optimizer=_optimizer_with_dim(scaled))


def _optimizer_with_dim(run: RunConfig) -> Optimizer:
    """Optimizer of a run. If it has `dim`, set it to the number of trained weights."""
    if not hasattr(run.optimizer, "dim"):
        return run.optimizer
    import torch

    from empirical.networks import build_network

    network = build_network(run, torch.zeros(2, 3, 32, 32), 10)
    return with_dim(run.optimizer, sum(p.numel() for p in network.parameters() if p.requires_grad))
