"""All statements on trial: their experiments, rules and controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import theory
from empirical.config import RunConfig
from empirical.studies.claims.claim import Claim, Runs
from empirical.studies.claims.corrected_decay import CorrectedSGD
from empirical.studies.claims.rules import Between, EverySeed
from empirical.studies.claims.statistics import (
    GRADIENT,
    angle_between_minima,
    equilibrium_angle,
    has_periods,
    has_verdict,
    largest_fall,
    late_gradient_growth,
    least_of,
    log_loss_ratio,
    none_of,
    period_ratio,
    rotation_over_formula,
    small_angle,
    swings,
)

PAPER = "arXiv 2106.15739"
_SEEDS = range(5)
_MOMENTUM = theory.SGD(momentum=0.9)
# ηλ = 0.005: some forty relaxations, twenty periods
_CONVNET: Mapping[str, Any] = {"model": "convnet", "width": 8, "lr": 0.5, "wd": 0.01, "steps": 8000}
_REST: Mapping[str, Any] = {"model": "mlp", "width": 8, "lr": 0.5, "wd": 0.02, "steps": 5000}
_WIDE: Mapping[str, Any] = {"model": "mlp", "width": 96, "lr": 0.5, "wd": 0.004, "steps": 12_000}
# scale-invariant weights of the MLPs of 8 and 64 units on 64 pixels
_DIM_8, _DIM_64 = 8 * 64 + 8 * 8, 64 * 64 + 64 * 64
_ALL_SAY = "five seeds that said yes by chance would all do so in 3 % of cases"
_PERIODIC = (
    "simulate.classify: at least 5 periods, not doubled by a doubled threshold, growth not mostly outside breaks"
)


def _runs(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changed: Any) -> list[RunConfig]:
    return [RunConfig(**{"evaluate_every": 10**6, **settings, **changed, "seed": seed}) for seed in seeds]


def _all(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changed: Any) -> Runs:
    return {"all": _runs(settings, seeds, **changed)}


def _periodic(
    name: str, statement: str, source: str, runs: Runs, control: Runs, control_name: str, **further: Any
) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        runs=runs,
        figure=has_verdict("periodic"),
        figure_name="share of seeds that are periodic",
        rule=EverySeed(),
        reason=f"{_PERIODIC}; {_ALL_SAY}",
        control=control,
        control_name=control_name,
        shown="all",
        **further,
    )


def all_claims() -> list[Claim]:
    """Every statement on trial, those of the paper first.

    Examples
    --------
    >>> len(all_claims()) >= 20, len({claim.name for claim in all_claims()}) == len(all_claims())
    (True, True)
    """
    return [*_of_the_paper(), *_of_neighbours()]


def _of_the_paper() -> list[Claim]:
    slow: Mapping[str, Any] = {"lr": 0.25, "wd": 0.01, "steps": 16_000}
    same = "two groups of one setting"
    halves = "a period that did not depend on it would give 0, one that is inverse to it 1; 0.5 is nearer to the second"
    resting = "a network that rests (MLP 8)"
    eager: Mapping[str, Any] = {"lr": 0.5, "wd": 0.01, "steps": 6000}
    return [
        _periodic(
            "sgd-is-periodic",
            "Training with SGD, normalization and weight decay is periodic.",
            PAPER,
            _all(_CONVNET),
            _all(_REST),
            resting,
            fast=True,
        ),
        _periodic(
            "full-batch-is-periodic",
            "Full-batch gradient descent is periodic too: noise is not the reason.",
            PAPER,
            _all({"width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000}),
            _all({"width": 4, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000}),
            "a network of 4 units, which rests",
            fast=True,
        ),
        Claim(
            "period-shortens-with-lr",
            "The period is the shorter, the larger the learning rate.",
            PAPER,
            {"slow": _runs({**_CONVNET, **slow}), "fast": _runs(_CONVNET, wd=0.01)},
            period_ratio("slow", "fast", math.log(2)),
            "-d ln T / d ln η",
            Between(low=0.5),
            halves,
            {"slow": _runs(_CONVNET, range(10, 15)), "fast": _runs(_CONVNET, wd=0.01)},
            same,
            "slow",
        ),
        Claim(
            "period-shortens-with-wd",
            "The period is the shorter, the larger the weight decay.",
            PAPER,
            {"slow": _runs(_CONVNET, wd=0.005, steps=16_000), "fast": _runs(_CONVNET)},
            period_ratio("slow", "fast", math.log(2)),
            "-d ln T / d ln λ",
            Between(low=0.5),
            halves,
            {"slow": _runs(_CONVNET, range(20, 25)), "fast": _runs(_CONVNET, range(30, 35))},
            same,
            "slow",
        ),
        Claim(
            "only-the-product-matters",
            "The period depends on η and λ through ηλ alone.",
            f"{PAPER}; docs/mathematics.md §6",
            {"high": _runs(_CONVNET), "low": _runs(_CONVNET, range(10, 15), lr=0.1, wd=0.05)},
            period_ratio("high", "low"),
            "ln of the ratio of periods at (0.5, 0.01) and (0.1, 0.05)",
            Between(low=-0.15, high=0.15),
            "15 % is what five seeds of some twenty periods can tell; a factor of 5 in η alone would give 1.6",
            {"high": _runs(_CONVNET), "low": _runs(_CONVNET, range(10, 15), wd=0.005, steps=16_000)},
            "half the product",
            "low",
        ),
        Claim(
            "small-networks-rest",
            "Small networks reach an equilibrium.",
            PAPER,
            _all(_REST),
            has_verdict("equilibrium"),
            "share of seeds at equilibrium",
            EverySeed(),
            f"simulate.classify: rotation at least 0.8 of equilibrium, spread of ln ρ at most 0.05; {_ALL_SAY}",
            _all(_CONVNET),
            "a ConvNet, which is periodic",
            "all",
            fast=True,
        ),
        _periodic(
            "wide-networks-swing",
            "Wide networks, which can learn all samples, are periodic.",
            PAPER,
            _all(_WIDE),
            _all(_WIDE, width=8, steps=6000),
            "the same with 8 units",
        ),
        Claim(
            "minima-differ",
            "The minima of successive periods are different ones.",
            PAPER,
            _all(_CONVNET, range(10, 15), wd=0.004, steps=6000),
            angle_between_minima(),
            "mean angle between weights at successive minima, degrees",
            Between(low=30.0),
            "the weights of a network that rests, and wanders, turn by less in a quarter of the run",
            _all({"model": "mlp", "width": 8, "lr": 0.5, "wd": 0.004, "steps": 6000}, range(10, 15)),
            "a network that rests (MLP 8)",
            "all",
        ),
        _periodic(
            "momentum",
            "Momentum does not end the periods.",
            PAPER,
            _all(_CONVNET, lr=0.05, wd=0.016, steps=12_000, optimizer=_MOMENTUM),
            _all(_REST, lr=0.05, wd=0.02, optimizer=_MOMENTUM),
            resting,
        ),
        _periodic(
            "augmentation",
            "Augmentation does not end the periods.",
            PAPER,
            _all(_CONVNET, augmentation=1, steps=6000),
            _all(_CONVNET, width=2, augmentation=1, steps=6000),
            "a network of 2 channels, which rests",
            scale="a network that can learn all augmented samples, which augmentation-of-few is about",
        ),
        _periodic(
            "augmentation-of-few",
            "Augmentation does not end the periods where the network can learn all augmented samples (of two classes).",
            PAPER,
            _all(_CONVNET, augmentation=1, classes=(0, 1), wd=0.004),
            _all(_CONVNET, augmentation=1, steps=6000),
            "all ten classes",
        ),
        _periodic(
            "all-weights-trained",
            "Training the weights that are not scale-invariant too does not end the periods.",
            PAPER,
            _all(_CONVNET, scale_invariant=False, steps=6000),
            _all(_CONVNET, width=1, scale_invariant=False, steps=6000),
            "a network of 1 channel, which rests",
        ),
        _periodic(
            "layer-normalization",
            "Layer normalization has periods too.",
            PAPER,
            _all({**eager, "width": 64, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            _all({**eager, "width": 8, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            "a network of 8 units, which nearly rests",
            scale="twice as many units, as in layer-normalization-wide",
        ),
        _periodic(
            "layer-normalization-wide",
            "Layer normalization has periods too, in a network of 128 units.",
            PAPER,
            _all({**eager, "width": 128, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            _all({**eager, "width": 8, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            "a network of 8 units, which nearly rests",
        ),
        _periodic(
            "group-normalization",
            "Group normalization has periods too.",
            PAPER,
            _all({**eager, "model": "convnet", "normalization": "group", "steps": 5000}),
            _all({**eager, "model": "convnet", "width": 2, "normalization": "group", "steps": 5000}),
            "a network of 2 channels, which rests",
        ),
        _periodic(
            "instance-normalization",
            "Instance normalization has periods too.",
            PAPER,
            _all({**eager, "model": "convnet", "normalization": "instance", "steps": 5000}),
            _all({**eager, "model": "convnet", "width": 2, "normalization": "instance", "steps": 5000}),
            "a network of 2 channels, which rests",
        ),
        _periodic(
            "weight-normalization",
            "Weight normalization has periods too.",
            PAPER,
            _all({**eager, "width": 64, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            _all({**eager, "width": 16, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            "a network of 16 units, which rests or dies",
            scale="wider networks: weight-normalization-wide, of four times as many units, comes nearer",
        ),
        _periodic(
            "weight-normalization-wide",
            "Weight normalization has periods too, in a network of 256 units.",
            PAPER,
            _all({**eager, "width": 256, "normalization": "weight", "wd": 0.002, "steps": 16_000}),
            _all({**eager, "width": 16, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            "a network of 16 units, which rests or dies",
        ),
        Claim(
            "adamw-swings",
            "Under AdamW the norm swings too.",
            PAPER,
            _all({"width": 64, "lr": 1e-3, "wd": 2.0, "optimizer": theory.AdamW(dim=_DIM_64), "steps": 8000}),
            swings(),
            "share of seeds that swing",
            EverySeed(),
            f"five jumps of ln ρ by a tenth, spread above 0.05, rotation below 0.8 of equilibrium; {_ALL_SAY}",
            _all({"width": 8, "lr": 1e-3, "wd": 5.0, "optimizer": theory.AdamW(dim=_DIM_8), "steps": 4000}),
            "a network of 8 units, which rests",
            "all",
        ),
        Claim(
            "adam-swings",
            "Under Adam with L2 regularization the norm swings too.",
            PAPER,
            _all({"width": 64, "lr": 1e-3, "wd": 3e-3, "optimizer": theory.Adam(dim=_DIM_64), "steps": 12_000}),
            swings(),
            "share of seeds that swing",
            EverySeed(),
            f"five jumps of ln ρ by a tenth, spread above 0.05, rotation below 0.8 of equilibrium; {_ALL_SAY}",
            _all({"width": 8, "lr": 1e-3, "wd": 3e-3, "optimizer": theory.Adam(dim=_DIM_8), "steps": 12_000}),
            "a network of 8 units, which rests",
            "all",
        ),
        Claim(
            "no-decay-no-periods",
            "Without weight decay there are no periods: the norm only grows.",
            PAPER,
            _all(_CONVNET, wd=0.0, steps=4000),
            largest_fall(),
            "largest fall of ln ρ",
            Between(high=1e-3),
            "a step of SGD without decay is orthogonal to the weights: it cannot shrink them but by rounding",
            _all(_CONVNET),
            "the same network with decay",
            "all",
            fast=True,
        ),
        Claim(
            "no-normalization-no-periods",
            "Without normalization there are no periods.",
            PAPER,
            _all(
                {"width": 64, "normalization": "none", "scale_invariant": False, "lr": 0.1, "wd": 0.01, "steps": 10_000}
            ),
            none_of(has_periods()),
            "share of seeds without periods",
            EverySeed(),
            f"fewer than two rises of ln ρ by a tenth with as large falls between; {_ALL_SAY}",
            _all({"width": 64, "scale_invariant": False, "lr": 0.5, "wd": 0.004, "steps": 8000}),
            "a like network with batch normalization",
            "all",
        ),
    ]


def _of_neighbours() -> list[Claim]:
    sphere: Mapping[str, Any] = {"width": 32, "fixed": "norm", "init_norm": 1.0, "wd": 0.0, "steps": 4000}
    decayed: Mapping[str, Any] = {"width": 16, "lr": theory.Linear(0.5, 0.005, 8000), "wd": 0.02, "steps": 8000}
    adamw: Mapping[str, Any] = {"width": 8, "lr": 1e-3, "wd": 5.0, "optimizer": theory.AdamW(dim=_DIM_8), "steps": 6000}
    return [
        Claim(
            "function-depends-on-the-product",
            "At equilibrium the loss depends on η and λ through ηλ alone.",
            "arXiv 2010.02916",
            {"one": _runs(_REST, range(20, 25)), "other": _runs(_REST, range(30, 35), lr=0.1, wd=0.1)},
            log_loss_ratio("one", "other"),
            "ln of the ratio of mean losses at (0.5, 0.02) and (0.1, 0.1)",
            Between(low=-0.03, high=0.03),
            "3 % is less than half of what twice the product changes",
            {"one": _runs(_REST, range(20, 25)), "other": _runs(_REST, range(30, 35), wd=0.04)},
            "twice the product",
            "other",
            drawn="loss",
            fast=True,
        ),
        Claim(
            "angular-update",
            "At equilibrium the mean square of the angle of a step is 2ηλ, whatever the gradients.",
            "arXiv 2006.08419",
            _all(_REST),
            rotation_over_formula(small_angle),
            "root-mean-square rotation over √(2ηλ)",
            Between(low=0.97, high=1.03),
            "the exact value is arccos(1-ηλ), 0.2 % more; a run on the way to rest is off by more. It holds wherever "
            "the norm is stationary, in periods too",
            _all(_REST, init_norm=300.0, steps=200),
            "the same, on the way to rest",
            "all",
            drawn="rotation",
            fast=True,
        ),
        Claim(
            "angular-update-momentum",
            "At equilibrium steps with momentum turn the weights by √(2ηλ/(1+μ)).",
            "arXiv 2006.08419",
            _all(_REST, lr=0.05, wd=0.02, optimizer=_MOMENTUM, steps=8000),
            rotation_over_formula(small_angle),
            "root-mean-square rotation over √(2ηλ/(1+μ))",
            Between(low=0.95, high=1.05),
            "the formula without (1+μ) would be off by 27 %",
            _all(_REST, lr=0.05, wd=0.02, optimizer=_MOMENTUM, init_norm=300.0, steps=200),
            "the same, on the way to rest",
            "all",
            drawn="rotation",
        ),
        Claim(
            "three-regimes-on-the-sphere",
            "On the sphere the loss at which training stays is low, middle or high: three regimes of the effective lr.",
            "arXiv 2209.03695",
            {name: _runs(sphere, lr=lr) for name, lr in (("small", 0.01), ("middle", 0.03), ("large", 0.3))},
            least_of(log_loss_ratio("middle", "small"), log_loss_ratio("large", "middle")),
            "smaller of the two ln ratios of late losses, middle to small and large to middle",
            Between(low=math.log(2)),
            "regimes whose late losses differ by less than a factor of 2 would be one",
            {
                name: _runs(sphere, seeds, lr=0.03)
                for name, seeds in (("small", range(5)), ("middle", range(10, 15)), ("large", range(20, 25)))
            },
            "three groups at one effective learning rate",
            "large",
            drawn="loss",
        ),
        Claim(
            "rotation-under-adamw",
            "Under AdamW steps turn the weights by what independent gradients predict.",
            "arXiv 2305.17212",
            _all(adamw),
            rotation_over_formula(equilibrium_angle),
            "root-mean-square rotation over theory.equilibrium_rotation",
            Between(low=0.95, high=1.05),
            "5 %, as for momentum",
            _all(adamw, init_norm=200.0, steps=500),
            "the same, on the way to rest",
            "all",
            drawn="rotation",
            scale="gradients that are independent from step to step, as those of the small batches of "
            "rotation-under-adamw-noisy nearly are",
        ),
        Claim(
            "rotation-under-adamw-noisy",
            "Under AdamW steps turn the weights by what independent gradients predict, in batches of 4 samples.",
            "arXiv 2305.17212",
            _all(adamw, batch_size=4),
            rotation_over_formula(equilibrium_angle),
            "root-mean-square rotation over theory.equilibrium_rotation",
            Between(low=0.95, high=1.05),
            "5 %, as for momentum",
            _all(adamw, batch_size=4, init_norm=200.0, steps=500),
            "the same, on the way to rest",
            "all",
            drawn="rotation",
        ),
        Claim(
            "late-gradient-growth",
            "Under a learning rate that decays to nearly 0 the gradient norm grows late in training.",
            "arXiv 2506.02285",
            _all(decayed),
            late_gradient_growth(),
            "ln of ‖∇f‖ at 90-95 % of the run over that at 45-50 %",
            Between(low=0.1),
            "growth by a tenth, which a constant learning rate does not show",
            _all({"width": 16, "lr": 0.5, "wd": 0.02, "steps": 8000}),
            "a constant learning rate",
            "all",
            drawn=GRADIENT,
        ),
        Claim(
            "corrected-decay",
            "Weight decay that falls with the learning rate removes the late growth of the gradient norm.",
            "arXiv 2506.02285",
            _all({**decayed, "optimizer": CorrectedSGD(lr_max=0.5)}),
            late_gradient_growth(),
            "ln of ‖∇f‖ at 90-95 % of the run over that at 45-50 %",
            Between(high=0.1),
            "growth by a tenth, as for the growth itself",
            _all(decayed),
            "the same decay throughout",
            "all",
            drawn=GRADIENT,
        ),
    ]
