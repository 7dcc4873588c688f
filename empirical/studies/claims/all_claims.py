"""All claims: their experiments, rules and controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import theory
from empirical.config import RunConfig
from empirical.studies.claims.claim import Claim, RunGroups
from empirical.studies.claims.corrected_decay import CorrectedSGD
from empirical.studies.claims.rules import Between, EverySeed
from empirical.studies.claims.statistics import (
    PLAIN_GRADIENT,
    angle_between_minima,
    equilibrium_angle,
    largest_norm_decrease,
    late_gradient_growth,
    log_loss_ratio,
    log_period_ratio,
    negation,
    oscillation_indicator,
    periods_indicator,
    rotation_over_formula,
    sgd_equilibrium_angle,
    smallest_of,
    verdict_indicator,
)

_PAPER = "arXiv 2106.15739"
_SEEDS = range(5)
_MOMENTUM = theory.SGD(momentum=0.9)
# ηλ = 0.005: about 40 relaxation times and 20 periods
_CONVNET: Mapping[str, Any] = {"model": "convnet", "width": 8, "lr": 0.5, "wd": 0.01, "steps": 8000}
_SMALL_MLP: Mapping[str, Any] = {"model": "mlp", "width": 8, "lr": 0.5, "wd": 0.02, "steps": 5000}
_WIDE_MLP: Mapping[str, Any] = {"model": "mlp", "width": 96, "lr": 0.5, "wd": 0.004, "steps": 12_000}
# number of scale-invariant weights in MLPs of 8 and 64 units on 64 pixels
_DIM_8, _DIM_64 = 8 * 64 + 8 * 8, 64 * 64 + 64 * 64
_BY_CHANCE = "five random yes-or-no answers are all yes in 3 % of cases"
_PERIODIC = (
    "simulate.classify requires at least 5 periods, which a doubled threshold does not double, and most growth inside "
    "destabilizations"
)
_OSCILLATES = "at least 5 periods with norm rises of 0.1, spread of ln ρ above 0.05, rotation below 0.8 of equilibrium"


def _runs(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changes: Any) -> list[RunConfig]:
    return [RunConfig(**{"evaluate_every": 10**6, **settings, **changes, "seed": seed}) for seed in seeds]


def _one_group(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changes: Any) -> RunGroups:
    return {"all": _runs(settings, seeds, **changes)}


def _periodic(
    name: str, statement: str, source: str, runs: RunGroups, control: RunGroups, control_name: str, **options: Any
) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        runs=runs,
        statistic=verdict_indicator("periodic"),
        statistic_name="share of seeds that are periodic",
        rule=EverySeed(),
        reason=f"{_PERIODIC}; {_BY_CHANCE}",
        control=control,
        control_name=control_name,
        drawn_group="all",
        **options,
    )


def all_claims() -> list[Claim]:
    """Return every claim, those of the paper first.

    Examples
    --------
    >>> len(all_claims()) >= 20, len({claim.name for claim in all_claims()}) == len(all_claims())
    (True, True)
    """
    return [*_paper_claims(), *_related_claims()]


def _paper_claims() -> list[Claim]:
    slow: Mapping[str, Any] = {"lr": 0.25, "wd": 0.01, "steps": 16_000}
    equal_settings = "two groups with the same setting"
    slope_reason = "the slope is 0 for a period independent of this setting and 1 for an inverse one; 0.5 is halfway"
    at_equilibrium = "an MLP of width 8, at equilibrium"
    base: Mapping[str, Any] = {"lr": 0.5, "wd": 0.01, "steps": 6000}
    return [
        _periodic(
            "sgd-is-periodic",
            "Training with SGD, normalization and weight decay is periodic.",
            _PAPER,
            _one_group(_CONVNET),
            _one_group(_SMALL_MLP),
            at_equilibrium,
            fast=True,
        ),
        _periodic(
            "full-batch-is-periodic",
            "Full-batch gradient descent is periodic, so noise is not the cause.",
            _PAPER,
            _one_group({"width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000}),
            _one_group({"width": 4, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000}),
            "an MLP of width 4, at equilibrium",
            fast=True,
        ),
        Claim(
            "period-shortens-with-lr",
            "A larger learning rate shortens the period.",
            _PAPER,
            {"slow": _runs({**_CONVNET, **slow}), "fast": _runs(_CONVNET, wd=0.01)},
            log_period_ratio("slow", "fast", math.log(2)),
            "-d ln T / d ln η",
            Between(low=0.5),
            slope_reason,
            {"slow": _runs(_CONVNET, range(10, 15)), "fast": _runs(_CONVNET, wd=0.01)},
            equal_settings,
            "slow",
        ),
        Claim(
            "period-shortens-with-wd",
            "A larger weight decay shortens the period.",
            _PAPER,
            {"slow": _runs(_CONVNET, wd=0.005, steps=16_000), "fast": _runs(_CONVNET)},
            log_period_ratio("slow", "fast", math.log(2)),
            "-d ln T / d ln λ",
            Between(low=0.5),
            slope_reason,
            {"slow": _runs(_CONVNET, range(20, 25)), "fast": _runs(_CONVNET, range(30, 35))},
            equal_settings,
            "slow",
        ),
        Claim(
            "period-depends-on-intrinsic-lr",
            "The period depends on η and λ only through ηλ.",
            f"{_PAPER}; docs/mathematics.md §6",
            {"high": _runs(_CONVNET), "low": _runs(_CONVNET, range(10, 15), lr=0.1, wd=0.05)},
            log_period_ratio("high", "low"),
            "ln of the ratio of periods at (η, λ) = (0.5, 0.01) and (0.1, 0.05)",
            Between(low=-0.15, high=0.15),
            "five seeds with about 20 periods each resolve 15 %; a dependence on η alone would give 1.6",
            {"high": _runs(_CONVNET), "low": _runs(_CONVNET, range(10, 15), wd=0.005, steps=16_000)},
            "half the intrinsic learning rate",
            "low",
        ),
        Claim(
            "small-networks-settle",
            "Small networks reach an equilibrium.",
            _PAPER,
            _one_group(_SMALL_MLP),
            verdict_indicator("equilibrium"),
            "share of seeds at equilibrium",
            EverySeed(),
            "simulate.classify requires a rotation of at least 0.8 of equilibrium and a spread of ln ρ up to 0.05; "
            f"{_BY_CHANCE}",
            _one_group(_CONVNET),
            "a periodic ConvNet",
            "all",
            fast=True,
        ),
        _periodic(
            "wide-networks-are-periodic",
            "Wide networks that can fit all samples are periodic.",
            _PAPER,
            _one_group(_WIDE_MLP),
            _one_group(_WIDE_MLP, width=8, steps=6000),
            "the same MLP with 8 units",
        ),
        Claim(
            "minima-differ",
            "Successive periods reach different minima.",
            _PAPER,
            _one_group(_CONVNET, range(10, 15), wd=0.004, steps=6000),
            angle_between_minima(),
            "mean angle between weights at successive minima (degrees)",
            Between(low=30.0),
            "weights at equilibrium move too, but rotate by less in a quarter of a run",
            _one_group({"model": "mlp", "width": 8, "lr": 0.5, "wd": 0.004, "steps": 6000}, range(10, 15)),
            "an MLP of width 8, at equilibrium",
            "all",
        ),
        _periodic(
            "momentum",
            "Training with momentum is periodic.",
            _PAPER,
            _one_group(_CONVNET, lr=0.05, wd=0.016, steps=12_000, optimizer=_MOMENTUM),
            _one_group(_SMALL_MLP, lr=0.05, wd=0.02, optimizer=_MOMENTUM),
            at_equilibrium,
        ),
        _periodic(
            "augmentation",
            "Training with data augmentation is periodic.",
            _PAPER,
            _one_group(_CONVNET, augmentation=1, steps=6000),
            _one_group(_CONVNET, width=2, augmentation=1, steps=6000),
            "a ConvNet of width 2, at equilibrium",
            scale="a network that can fit all augmented samples, as in augmentation-of-few",
        ),
        _periodic(
            "augmentation-of-few",
            "Training with data augmentation is periodic if the network can fit all augmented samples (two classes).",
            _PAPER,
            _one_group(_CONVNET, augmentation=1, classes=(0, 1), wd=0.004),
            _one_group(_CONVNET, augmentation=1, steps=6000),
            "all ten classes, which this network cannot fit",
        ),
        _periodic(
            "all-weights-trained",
            "Training is periodic if all weights are trained, not only the scale-invariant ones.",
            _PAPER,
            _one_group(_CONVNET, scale_invariant=False, steps=6000),
            _one_group(_CONVNET, width=1, scale_invariant=False, steps=6000),
            "a ConvNet of width 1, at equilibrium",
        ),
        _periodic(
            "layer-normalization",
            "Training with layer normalization is periodic.",
            _PAPER,
            _one_group({**base, "width": 64, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            _one_group({**base, "width": 8, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            "an MLP of width 8, close to equilibrium",
            scale="twice as many units, as in layer-normalization-wide",
        ),
        _periodic(
            "layer-normalization-wide",
            "Training with layer normalization is periodic in a network of 128 units.",
            _PAPER,
            _one_group({**base, "width": 128, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            _one_group({**base, "width": 8, "normalization": "layer", "wd": 0.004, "steps": 10_000}),
            "an MLP of width 8, close to equilibrium",
        ),
        _periodic(
            "group-normalization",
            "Training with group normalization is periodic.",
            _PAPER,
            _one_group({**base, "model": "convnet", "normalization": "group", "steps": 5000}),
            _one_group({**base, "model": "convnet", "width": 2, "normalization": "group", "steps": 5000}),
            "a ConvNet of width 2, at equilibrium",
        ),
        _periodic(
            "instance-normalization",
            "Training with instance normalization is periodic.",
            _PAPER,
            _one_group({**base, "model": "convnet", "normalization": "instance", "steps": 5000}),
            _one_group({**base, "model": "convnet", "width": 2, "normalization": "instance", "steps": 5000}),
            "a ConvNet of width 2, at equilibrium",
        ),
        _periodic(
            "weight-normalization",
            "Training with weight normalization is periodic.",
            _PAPER,
            _one_group({**base, "width": 64, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            _one_group({**base, "width": 16, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            "an MLP of width 16, which settles or dies",
            scale="wider networks; weight-normalization-wide, with four times as many units, comes closer",
        ),
        _periodic(
            "weight-normalization-wide",
            "Training with weight normalization is periodic in a network of 256 units.",
            _PAPER,
            _one_group({**base, "width": 256, "normalization": "weight", "wd": 0.002, "steps": 16_000}),
            _one_group({**base, "width": 16, "normalization": "weight", "wd": 0.004, "steps": 10_000}),
            "an MLP of width 16, which settles or dies",
        ),
        Claim(
            "adamw-oscillates",
            "The norm oscillates under AdamW.",
            _PAPER,
            _one_group({"width": 64, "lr": 1e-3, "wd": 2.0, "optimizer": theory.AdamW(dim=_DIM_64), "steps": 8000}),
            oscillation_indicator(),
            "share of seeds that oscillate",
            EverySeed(),
            f"{_OSCILLATES}; {_BY_CHANCE}",
            _one_group({"width": 8, "lr": 1e-3, "wd": 5.0, "optimizer": theory.AdamW(dim=_DIM_8), "steps": 4000}),
            "an MLP of width 8, at equilibrium",
            "all",
        ),
        Claim(
            "adam-oscillates",
            "The norm oscillates under Adam with L2 regularization.",
            _PAPER,
            _one_group({"width": 64, "lr": 1e-3, "wd": 3e-3, "optimizer": theory.Adam(dim=_DIM_64), "steps": 12_000}),
            oscillation_indicator(),
            "share of seeds that oscillate",
            EverySeed(),
            f"{_OSCILLATES}; {_BY_CHANCE}",
            _one_group({"width": 8, "lr": 1e-3, "wd": 3e-3, "optimizer": theory.Adam(dim=_DIM_8), "steps": 12_000}),
            "an MLP of width 8, at equilibrium",
            "all",
        ),
        Claim(
            "no-decay-no-periods",
            "Without weight decay the norm only grows, and there are no periods.",
            _PAPER,
            _one_group(_CONVNET, wd=0.0, steps=4000),
            largest_norm_decrease(),
            "largest decrease of ln ρ",
            Between(high=1e-3),
            "without decay, an SGD step is orthogonal to the weights and can shrink them only by rounding",
            _one_group(_CONVNET),
            "the same network with weight decay",
            "all",
            fast=True,
        ),
        Claim(
            "no-normalization-no-periods",
            "Without normalization there are no periods.",
            _PAPER,
            _one_group(
                {"width": 64, "normalization": "none", "scale_invariant": False, "lr": 0.1, "wd": 0.01, "steps": 10_000}
            ),
            negation(periods_indicator()),
            "share of seeds without periods",
            EverySeed(),
            f"fewer than two periods with norm rises of 0.1; {_BY_CHANCE}",
            _one_group({"width": 64, "scale_invariant": False, "lr": 0.5, "wd": 0.004, "steps": 8000}),
            "a similar network with batch normalization",
            "all",
        ),
    ]


def _related_claims() -> list[Claim]:
    sphere: Mapping[str, Any] = {"width": 32, "fixed": "norm", "init_norm": 1.0, "wd": 0.0, "steps": 4000}
    linear_decay: Mapping[str, Any] = {"width": 16, "lr": theory.Linear(0.5, 0.005, 8000), "wd": 0.02, "steps": 8000}
    adamw: Mapping[str, Any] = {"width": 8, "lr": 1e-3, "wd": 5.0, "optimizer": theory.AdamW(dim=_DIM_8), "steps": 6000}
    return [
        Claim(
            "loss-depends-on-intrinsic-lr",
            "At equilibrium the loss depends on η and λ only through ηλ.",
            "arXiv 2010.02916",
            {"one": _runs(_SMALL_MLP, range(20, 25)), "other": _runs(_SMALL_MLP, range(30, 35), lr=0.1, wd=0.1)},
            log_loss_ratio("one", "other"),
            "ln of the ratio of mean losses at (η, λ) = (0.5, 0.02) and (0.1, 0.1)",
            Between(low=-0.03, high=0.03),
            "3 % is less than half of the change when ηλ doubles",
            {"one": _runs(_SMALL_MLP, range(20, 25)), "other": _runs(_SMALL_MLP, range(30, 35), wd=0.04)},
            "twice the intrinsic learning rate",
            "other",
            drawn_variable="loss",
            fast=True,
        ),
        Claim(
            "angular-update",
            "At equilibrium the mean squared rotation per step is 2ηλ, independent of the gradients.",
            "arXiv 2006.08419",
            _one_group(_SMALL_MLP),
            rotation_over_formula(sgd_equilibrium_angle),
            "root-mean-square rotation over √(2ηλ)",
            Between(low=0.97, high=1.03),
            "the exact value, arccos(1-ηλ), is 0.2 % larger; before equilibrium a run deviates by more than 3 %. The "
            "formula holds whenever the mean norm is constant, also over periods",
            _one_group(_SMALL_MLP, init_norm=300.0, steps=200),
            "the same network before it reaches equilibrium",
            "all",
            drawn_variable="rotation",
            fast=True,
        ),
        Claim(
            "angular-update-momentum",
            "At equilibrium, SGD with momentum μ rotates the weights by √(2ηλ/(1+μ)) per step.",
            "arXiv 2006.08419",
            _one_group(_SMALL_MLP, lr=0.05, wd=0.02, optimizer=_MOMENTUM, steps=8000),
            rotation_over_formula(sgd_equilibrium_angle),
            "root-mean-square rotation over √(2ηλ/(1+μ))",
            Between(low=0.95, high=1.05),
            "without the factor 1+μ the formula is off by 27 %",
            _one_group(_SMALL_MLP, lr=0.05, wd=0.02, optimizer=_MOMENTUM, init_norm=300.0, steps=200),
            "the same network before it reaches equilibrium",
            "all",
            drawn_variable="rotation",
        ),
        Claim(
            "three-regimes-on-the-sphere",
            "On the sphere, training has three regimes of the effective learning rate: low, middle and high loss.",
            "arXiv 2209.03695",
            {name: _runs(sphere, lr=lr) for name, lr in (("small", 0.01), ("middle", 0.03), ("large", 0.3))},
            smallest_of(log_loss_ratio("middle", "small"), log_loss_ratio("large", "middle")),
            "smaller of two ln ratios of late losses: middle to small and large to middle lr",
            Between(low=math.log(2)),
            "late losses that differ by less than a factor of 2 count as one regime",
            {
                name: _runs(sphere, seeds, lr=0.03)
                for name, seeds in (("small", range(5)), ("middle", range(10, 15)), ("large", range(20, 25)))
            },
            "three groups with the same effective learning rate",
            "large",
            drawn_variable="loss",
        ),
        Claim(
            "rotation-under-adamw",
            "Under AdamW the rotation per step is as predicted for independent gradients.",
            "arXiv 2305.17212",
            _one_group(adamw),
            rotation_over_formula(equilibrium_angle),
            "root-mean-square rotation over theory.equilibrium_rotation",
            Between(low=0.95, high=1.05),
            "5 %, as for momentum",
            _one_group(adamw, init_norm=200.0, steps=500),
            "the same network before it reaches equilibrium",
            "all",
            drawn_variable="rotation",
            scale="gradients that are nearly independent between steps, as with the small batches of "
            "rotation-under-adamw-noisy",
        ),
        Claim(
            "rotation-under-adamw-noisy",
            "Under AdamW with batches of 4 samples the rotation per step is as predicted for independent gradients.",
            "arXiv 2305.17212",
            _one_group(adamw, batch_size=4),
            rotation_over_formula(equilibrium_angle),
            "root-mean-square rotation over theory.equilibrium_rotation",
            Between(low=0.95, high=1.05),
            "5 %, as for momentum",
            _one_group(adamw, batch_size=4, init_norm=200.0, steps=500),
            "the same network before it reaches equilibrium",
            "all",
            drawn_variable="rotation",
        ),
        Claim(
            "late-gradient-growth",
            "If the learning rate decays to nearly 0, the gradient norm grows late in training.",
            "arXiv 2506.02285",
            _one_group(linear_decay),
            late_gradient_growth(),
            "ln of the ratio of ‖∇f‖ at 90-95 % and at 45-50 % of the run",
            Between(low=0.1),
            "growth by a tenth, which does not occur at a constant learning rate",
            _one_group({"width": 16, "lr": 0.5, "wd": 0.02, "steps": 8000}),
            "a constant learning rate",
            "all",
            drawn_variable=PLAIN_GRADIENT,
        ),
        Claim(
            "corrected-decay",
            "Weight decay proportional to the learning rate removes the late growth of the gradient norm.",
            "arXiv 2506.02285",
            _one_group({**linear_decay, "optimizer": CorrectedSGD(lr_max=0.5)}),
            late_gradient_growth(),
            "ln of the ratio of ‖∇f‖ at 90-95 % and at 45-50 % of the run",
            Between(high=0.1),
            "growth by a tenth, as for late-gradient-growth",
            _one_group(linear_decay),
            "constant weight decay",
            "all",
            drawn_variable=PLAIN_GRADIENT,
        ),
    ]
