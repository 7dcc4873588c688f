"""Runs at the scale of the paper, for a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from empirical.config import RunConfig
from theory.rules import Optimizer
from theory.schedules import Constant, Cosine, Linear
from theory.sgd import SGD

# the paper's learning rates reach from the first to the last
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_WEIGHT_DECAY, _EPOCHS, _BATCH, _TRAINING_SAMPLES = 0.001, 1000, 128, 50_000
# more steps, and as much less decay, than on embedded data
_LONGER = 16
_NETWORKS = {"convnet": ("convnet", 32, "cifar10"), "resnet18": ("resnet18", 64, "cifar100")}
_KINDS: dict[str, dict[str, Any]] = {
    "scale_invariant": {},
    "all_trained": {"scale_invariant": False},
    "momentum": {"optimizer": SGD(momentum=0.9)},
    "augmentation": {"augmentation": 4},
    "practice": {"scale_invariant": False, "optimizer": SGD(momentum=0.9), "augmentation": 4},
}


def paper_runs(network: str, kind: str = "scale_invariant") -> tuple[RunConfig, ...]:
    """Runs of the paper's experiments: one network and kind of training, over its learning rates.

    Parameters
    ----------
    network : "convnet" (32 channels, CIFAR-10) or "resnet18" (64 channels, CIFAR-100).
    kind : "scale_invariant"; "momentum" and "augmentation", likewise; "all_trained" (γ, β and the last layer too); or
        "practice", the last three together.

    Returns
    -------
    RunConfigs with λ = 0.001, η from 0.001 to 1, 1000 epochs of batches of 128, on a GPU where there is one.

    Raises
    ------
    ValueError : no such network or kind.

    Source: arXiv 2106.15739 §4 and appendix.

    Examples
    --------
    >>> run = paper_runs("resnet18")[-1]
    >>> run.lr, run.wd, run.dataset, run.steps
    (1.0, 0.001, 'cifar100', 390000)
    """
    for name, value, allowed in (("network", network, _NETWORKS), ("kind", kind, _KINDS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    model, width, dataset = _NETWORKS[network]
    per_epoch = _TRAINING_SAMPLES // _BATCH
    common: dict[str, Any] = {
        "wd": _WEIGHT_DECAY,
        "model": model,
        "width": width,
        "dataset": dataset,
        "batch_size": _BATCH,
        "steps": _EPOCHS * per_epoch,
        "evaluate_every": 10 * per_epoch,
        "device": "auto",
    }
    return tuple(RunConfig(lr=lr, **{**common, **_KINDS[kind]}) for lr in LEARNING_RATES)


def at_paper_scale(run: RunConfig) -> RunConfig:
    """A small run as it would be at the scale of the paper: a ConvNet on CIFAR-10, for a GPU.

    The network becomes a ConvNet four times as wide (MLPs: of half as many channels as they have units), λ becomes 16
    times as small and the run as many times as long, so that as many relaxation times 1/ηλ pass. Learning rates, their
    ratios, optimizer and normalization stay, and a batch size that is not the default; n samples become 10 n.

    Parameters
    ----------
    run : of an MLP or a ConvNet.

    Returns
    -------
    RunConfig

    Raises
    ------
    ValueError : it is a run of another network, or of another schedule than Constant, Linear or Cosine.

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
        lr = dataclasses.replace(lr, steps=lr.steps * _LONGER)
    elif callable(lr) and not isinstance(lr, Constant):
        raise ValueError(f"run must have a rate that is constant or a Linear or Cosine schedule, got lr={lr!r}")
    scaled = dataclasses.replace(
        run,
        model="convnet",
        width=4 * width if run.model == "convnet" else max(1, width // 2),
        depth=None,
        dataset=_NETWORKS["convnet"][2],
        samples=None if run.samples is None else min(10 * run.samples, _TRAINING_SAMPLES),
        augmentation=None if run.augmentation is None else _KINDS["augmentation"]["augmentation"],
        batch_size=_BATCH if run.batch_size == _ordinary("batch_size") else run.batch_size,
        lr=lr,
        wd=run.wd / _LONGER,
        steps=run.steps * _LONGER,
        device="auto",
        engine="auto",
    )
    return dataclasses.replace(scaled, optimizer=_of_all_weights(scaled))


def _ordinary(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(RunConfig) if f.name == name)


def _of_all_weights(run: RunConfig) -> Optimizer:
    """The optimizer of a run; where it knows the number of weights, with that of the weights that are trained."""
    rule: Any = run.optimizer
    if not hasattr(rule, "dim"):
        return run.optimizer
    import torch

    from empirical.networks import build_network

    network = build_network(run, torch.zeros(2, 3, 32, 32), 10)
    changed: Optimizer = dataclasses.replace(rule, dim=sum(p.numel() for p in network.parameters() if p.requires_grad))
    return changed
