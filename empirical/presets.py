"""The experiments of the paper as settings of runs, at their original scale or with fewer samples and channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from empirical.config import EMBEDDED_DATASETS, RunConfig
from theory.adaptive import Adam
from theory.arguments import check_choice, check_integer
from theory.optimizers import with_dim
from theory.rules import Optimizer
from theory.schedules import Constant, Cosine, Linear
from theory.sgd import SGD

# the paper uses learning rates from 0.001 to 1
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_WEIGHT_DECAY, _EPOCHS, _BATCH, _TRAINING_SAMPLES = 0.001, 1001, 128, 50_000
_STEPS_PER_EPOCH = -(-_TRAINING_SAMPLES // _BATCH)
# number of steps, and inverse of the weight decay, relative to runs on embedded data
_STEP_FACTOR = 16
_NETWORKS = {"convnet": ("convnet", 32, "cifar10"), "resnet18": ("resnet18", 64, "cifar100")}
# settings of all experiments, unless they vary them
_COMMON: Mapping[str, Any] = {
    "lr": 0.03,
    "norm_eps": 1e-5,
    "pixel_constants": "cifar10",
    "seeded_head": True,
    "batch_size": _BATCH,
    "sampling": "all_samples",
    "device": "auto",
}
_EVALUATED_EPOCHS, _AUGMENTATION = 10, 4
# In one of ten cases a random label is the right one.
_WRONG_SHARE = 0.9


@dataclass(frozen=True)
class PaperExperiment:
    """One experiment of the paper.

    Attributes
    ----------
    name : as in `paper_runs`.
    title : what is trained and varied.
    varied : settings in which the runs differ.
    changes : settings of each run that differ from those of the fully scale-invariant network with η = 0.03.
    calibration : numbers of the runs to which a period model is fitted, which then predicts the others; empty for none.
    is_in_paper : False for experiments of this package, which have a fixed number of samples.
    """

    name: str
    title: str
    varied: tuple[str, ...]
    changes: tuple[Mapping[str, Any], ...]
    calibration: tuple[int, ...] = ()
    is_in_paper: bool = True


def _vary(name: str, title: str, varied: str, values: Sequence[Any], **common: Any) -> PaperExperiment:
    return PaperExperiment(name, title, (varied,), tuple({**common, varied: value} for value in values))


def _over_lrs(name: str, title: str, lrs: Sequence[float] = LEARNING_RATES, **common: Any) -> PaperExperiment:
    return _vary(name, title, "lr", lrs, **common)


_FULL_BATCH: Mapping[str, Any] = {"sampling": "full_batch", "steps": _EPOCHS}
# pairs (η, λ) of the experiment on 5000 images; the first two have the same ηλ, and so do the next two
_PAIRS = ((1.0, 0.005), (0.25, 0.02), (1.0, 0.002), (0.25, 0.008), (1.0, 0.001), (1.0, 0.0005))
# In these runs the norm decays by a factor e so many times.
_RELAXATIONS = 40
_SUBSET, _FEW = 5000, 1000

_EXPERIMENTS = (
    _over_lrs("figure-1", "all weights trained, at each learning rate", scale_invariant=False),
    _over_lrs("figure-2", "scale-invariant weights, at four learning rates", (0.001, 0.01, 0.03, 1.0)),
    _over_lrs("lr", "period against the learning rate"),
    _vary("wd", "period against the weight decay", "wd", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    _vary("width", "networks of 1/4, 1/2, 1 and 2 times the width", "width", (0.25, 0.5, 1.0, 2.0)),
    _vary("data-size", "5000 to 50 000 training images", "samples", (5000, 12_500, 25_000, 50_000)),
    _vary(
        "label-noise",
        "random labels for 0 to 100 % of the images",
        "label_noise",
        tuple(round(_WRONG_SHARE * share, 3) for share in (0.0, 0.25, 0.5, 1.0)),
    ),
    _vary("minima", "minima of successive periods, for three seeds", "seed", (0, 1, 2)),
    _over_lrs("momentum", "SGD with momentum 0.9", optimizer=SGD(momentum=0.9)),
    _over_lrs("augmentation", "random crops and flips", augmentation=_AUGMENTATION),
    _over_lrs(
        "practice",
        "all weights trained, with momentum and augmentation",
        scale_invariant=False,
        optimizer=SGD(momentum=0.9),
        augmentation=_AUGMENTATION,
    ),
    _over_lrs(
        "micro-batches",
        "full-batch descent with the statistics of 128 samples, as in the paper",
        micro_batch=_BATCH,
        **_FULL_BATCH,
    ),
    _over_lrs("full-batch", "full-batch descent with the statistics of all samples", **_FULL_BATCH),
    _over_lrs("adam", "Adam", (1e-4, 3e-4, 1e-3, 3e-3), optimizer=Adam(dim=1)),
    *(
        _over_lrs(f"{kind}-norm", f"{kind} normalization", normalization=kind)
        for kind in ("layer", "group", "instance", "weight")
    ),
    _over_lrs("fixed-norm", "constant norm (sphere), without weight decay", fixed="norm", wd=0.0),
    _over_lrs(
        "fixed-effective-lr",
        "constant effective learning rate (arXiv 2209.03695)",
        (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        fixed="effective_lr",
        wd=0.0,
    ),
    PaperExperiment(
        "subset",
        "5000 images at ηλ from 5e-3 to 5e-4, two of them with two pairs of η and λ",
        ("lr", "wd"),
        tuple({"lr": lr, "wd": wd, "samples": _SUBSET, "steps": round(_RELAXATIONS / (lr * wd))} for lr, wd in _PAIRS),
        calibration=(0, 2),
        is_in_paper=False,
    ),
    PaperExperiment(
        "few-images",
        "1000 images, which networks of few channels fit, at ηλ from 5e-3 to 1e-3, one with two pairs of η and λ",
        ("lr", "wd"),
        tuple(
            {"lr": lr, "wd": wd, "samples": _FEW, "steps": steps, "sampling": "without_replacement"}
            for lr, wd, steps in ((1.0, 0.005, 8000), (1.0, 0.002, 14_000), (0.25, 0.008, 14_000), (1.0, 0.001, 30_000))
        ),
        calibration=(0, 1),
        is_in_paper=False,
    ),
    PaperExperiment(
        "few-images-variants",
        "1000 images with momentum, and with all weights trained",
        ("lr", "wd", "optimizer", "scale_invariant"),
        tuple(
            {"samples": _FEW, "steps": 9000, "sampling": "without_replacement", **changes}
            for changes in (
                {"lr": 0.1, "wd": 0.002, "optimizer": SGD(momentum=0.9)},
                {"lr": 0.3, "wd": 0.005, "scale_invariant": False, "seeded_head": False},
            )
        ),
        is_in_paper=False,
    ),
    PaperExperiment(
        "equilibrium",
        "all 50 000 images at ηλ = 0.01, which networks of few channels cannot fit",
        ("lr", "wd"),
        ({"lr": 1.0, "wd": 0.01, "steps": 10 * _STEPS_PER_EPOCH},),
        is_in_paper=False,
    ),
)
PAPER_EXPERIMENTS: Mapping[str, PaperExperiment] = {experiment.name: experiment for experiment in _EXPERIMENTS}


def paper_runs(
    experiment: str,
    network: str = "convnet",
    *,
    dataset: str | None = None,
    width: int | None = None,
    samples: int | None = None,
    epochs: int | None = None,
) -> tuple[RunConfig, ...]:
    """Return the runs of one experiment of the paper, at their original scale or scaled down.

    With fewer samples an epoch has fewer steps. The weight decay grows by the same factor, so that the number of
    memories 1/ηλ in an epoch stays the same.

    Parameters
    ----------
    experiment : name of an experiment; `bnwd paper --list` shows all.
    network : "convnet" (32 channels, CIFAR-10) or "resnet18" (64 channels, CIFAR-100).
    dataset : another data set, as in `RunConfig`. Embedded data use their own pixel constants.
    width : channels of the first convolution, instead of 32 or 64.
    samples : number of training samples, instead of 50 000. With `data-size`, the largest number.
    epochs : number of epochs, instead of 1001.

    Returns
    -------
    RunConfigs with λ = 0.001, batches of 128, and everything else as in the published code: ε = 1e-5, the pixel
    constants of CIFAR-10, incomplete batches, and a frozen head that depends on the seed. With fewer samples, a last
    batch of fewer than 64 is left out, because steps on a few samples raise loss and norm in each epoch. The runs use a
    GPU if there is one. Where the paper gives no values of what is varied, they are ours.

    Raises
    ------
    TypeError, ValueError : an argument is unknown or out of range.

    Source: arXiv 2106.15739 §4 to §7 and its published code; arXiv 2209.03695 for the sphere.

    Examples
    --------
    >>> run = paper_runs("figure-2", "resnet18")[-1]
    >>> run.lr, run.wd, run.dataset, run.steps
    (1.0, 0.001, 'cifar100', 391391)
    >>> run = paper_runs("figure-2", width=8, samples=5000)[-1]
    >>> run.width, run.wd, run.steps
    (8, 0.01, 39039)
    """
    chosen = PAPER_EXPERIMENTS[check_choice("experiment", experiment, PAPER_EXPERIMENTS)]
    model, full_width, full_dataset = _NETWORKS[check_choice("network", network, _NETWORKS)]
    for name, value, least in (("width", width, 1), ("samples", samples, _BATCH), ("epochs", epochs, 1)):
        if value is not None:
            check_integer(name, value, at_least=least)
    if samples is not None and samples > _TRAINING_SAMPLES:
        raise ValueError(f"samples must be at most {_TRAINING_SAMPLES}, got {samples}")
    if samples is not None and not chosen.is_in_paper:
        raise ValueError(f"samples must be None for {experiment!r}, which has a fixed number of samples, got {samples}")
    share = (samples or _TRAINING_SAMPLES) / _TRAINING_SAMPLES
    runs = []
    for changes in chosen.changes:
        count = max(_BATCH, round(share * changes.get("samples", _TRAINING_SAMPLES)))
        is_full_batch = changes.get("sampling") == "full_batch"
        # a step on a few samples is so noisy that it raises loss and norm in each epoch
        is_original = samples is None and chosen.is_in_paper
        drops_last = not is_original and not is_full_batch and 0 < count % _BATCH < _BATCH // 2
        per_epoch = 1 if is_full_batch else count // _BATCH if drops_last else -(-count // _BATCH)
        wd = changes.get("wd", _WEIGHT_DECAY) / (1.0 if is_full_batch else share)
        sized: dict[str, Any] = {
            "width": max(1, round((width or full_width) * changes.get("width", 1))),
            "samples": None if count == _TRAINING_SAMPLES else count,
            "wd": float(f"{wd:.12g}"),
            "steps": changes.get("steps", _EPOCHS * per_epoch) if epochs is None else epochs * per_epoch,
            "evaluate_every": _EVALUATED_EPOCHS * per_epoch,
        }
        if drops_last:
            sized["sampling"] = "without_replacement"
        if dataset in EMBEDDED_DATASETS:
            sized["pixel_constants"] = "data"
        run = RunConfig(**{**_COMMON, "model": model, "dataset": dataset or full_dataset, **changes, **sized})
        runs.append(dataclasses.replace(run, optimizer=_optimizer_with_dim(run)))
    return tuple(runs)


def at_paper_scale(run: RunConfig) -> RunConfig:
    """Scale a small run up to a ConvNet on CIFAR-10, for a GPU.

    λ becomes 16 times as small and the run 16 times as long, so the number of memories 1/ηλ stays the same.
    A ConvNet becomes eight times as wide; an MLP becomes a ConvNet with half as many channels as the MLP has units. n
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
    if not isinstance(run, RunConfig):
        raise TypeError(f"run must be a RunConfig, got {type(run).__name__}")
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
        width=8 * width if run.model == "convnet" else max(1, width // 2),
        depth=None,
        dataset=_NETWORKS["convnet"][2],
        samples=None if run.samples is None else min(10 * run.samples, _TRAINING_SAMPLES),
        augmentation=None if run.augmentation is None else _AUGMENTATION,
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
