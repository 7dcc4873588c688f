"""Claims of the paper and of related work: one study each. `judge_claims` trains their runs and writes a page."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import theory
from empirical.config import HUB_DATASETS, RunConfig
from empirical.studies.figures import write_picture
from empirical.studies.statistics import (
    PLAIN_GRADIENT,
    angle_between_minima,
    equilibrium_angle,
    ideal_gas_indicator,
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
from empirical.studies.study import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Between,
    Control,
    EverySeed,
    Result,
    RunGroups,
    Study,
    results_table,
    run_studies,
    write_page,
)
from empirical.sweeps.sweep import AnyExecutor
from theory.arguments import FloatArray, check_choices, check_flag, check_number, check_path
from theory.rules import ShortRepr
from theory.sgd import SGD

CLAIMS_PAGE, PARTIAL_PAGE = "claims.md", "claims_asked.md"
_PAPER, _ON_TRACKING, _ON_ROTATION = "arXiv 2106.15739", "arXiv 2506.02285", "arXiv 2305.17212"
_SEEDS = range(5)
# of claims whose width was chosen after runs with the seeds above
_UNSEEN_SEEDS = range(20, 25)
_MOMENTUM = theory.SGD(momentum=0.9)


@dataclass(frozen=True, repr=False)
class CorrectedSGD(ShortRepr):
    """Plain SGD with the weight decay λη_t/η_max of `theory.corrected_decay`; λ is the decay at the largest lr.

    Parameters
    ----------
    lr_max : η_max > 0, the largest learning rate of the schedule.

    Source: Defazio 2025, arXiv 2506.02285; docs/mathematics.md §9.

    Examples
    --------
    >>> rule = CorrectedSGD(lr_max=0.5)
    >>> [rule.update(1.0, 0.0, (), lr=lr, wd=0.1)[0] for lr in (0.5, 0.25)]
    [0.95, 0.9875]
    >>> theory.equilibrium_norm([0.05, 0.5], 0.01, optimizer=rule).round(2).tolist()
    [2.24, 2.24]
    >>> rule.equilibrium_turn(0.25, 0.04, 1.0).round(6).item()
    0.005
    """

    intrinsic_lr_limit: ClassVar[float] = 2.0
    wd_exponent: ClassVar[int] = 2
    norm_exponent: ClassVar[float] = 0.5

    lr_max: float

    def __post_init__(self) -> None:
        check_number("lr_max", self.lr_max, above=0)

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step, which is empty."""
        return SGD().start(weights)

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step of `theory.SGD` with the corrected decay."""
        return SGD().update(weights, gradient, state, lr, wd * (lr / self.lr_max))

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ*, which hardly depends on the learning rate: ρ*⁴ = η_max g̃²/(λ(2-η²λ/η_max))."""
        return SGD().equilibrium_norm(lr, wd * lr / self.lr_max, grad_norm)

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ*, which is proportional to the square of the learning rate."""
        return SGD().equilibrium_turn(lr, wd * lr / self.lr_max, grad_norm)


# ηλ = 0.005: about 40 memories 1/ηλ and 20 periods
_CONVNET: Mapping[str, Any] = {"model": "convnet", "width": 4, "lr": 0.5, "wd": 0.01, "steps": 8000}
_SMALL_MLP: Mapping[str, Any] = {"model": "mlp", "width": 8, "lr": 0.5, "wd": 0.02, "steps": 5000}
_WIDE_MLP: Mapping[str, Any] = {"model": "mlp", "width": 96, "lr": 0.5, "wd": 0.004, "steps": 12_000}
_FULL_BATCH: Mapping[str, Any] = {
    "width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5, "wd": 0.008, "steps": 6000,
}  # fmt: skip
_NORMALIZED: Mapping[str, Any] = {"lr": 0.5, "wd": 0.004, "steps": 10_000}
_NORMALIZED_CONVNET: Mapping[str, Any] = {"model": "convnet", "lr": 0.5, "wd": 0.01, "steps": 5000}
_SPHERE: Mapping[str, Any] = {"width": 32, "fixed": "norm", "init_norm": 1.0, "wd": 0.0, "steps": 4000}
_LINEAR_DECAY: Mapping[str, Any] = {"width": 16, "lr": theory.Linear(0.5, 0.005, 8000), "wd": 0.02, "steps": 8000}
# number of scale-invariant weights in MLPs of 8 and 64 units on 64 pixels
_DIM_8, _DIM_64 = 8 * 64 + 8 * 8, 64 * 64 + 64 * 64
_ADAMW: Mapping[str, Any] = {"width": 8, "lr": 1e-3, "wd": 5.0, "optimizer": theory.AdamW(dim=_DIM_8), "steps": 6000}
_ADAM: Mapping[str, Any] = {"lr": 1e-3, "wd": 3e-3, "steps": 12_000}
_BY_CHANCE = "five random yes-or-no answers are all yes in 3 % of cases"
_SLOPE_REASON = "the slope is 0 for a period independent of this setting and 1 for an inverse one; 0.5 is halfway"
_EQUAL_SETTINGS = "two groups with the same setting"
_MLP_AT_EQUILIBRIUM = "an MLP of width 8, at equilibrium"
_CONVNET_AT_EQUILIBRIUM = "a ConvNet of width 1, at equilibrium"
_BEFORE_EQUILIBRIUM = "the same network before it reaches equilibrium"


def _group(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changes: Any) -> list[RunConfig]:
    return [RunConfig(**{"evaluate_every": 10**6, **settings, **changes, "seed": seed}) for seed in seeds]


def _runs(settings: Mapping[str, Any], seeds: Sequence[int] = _SEEDS, **changes: Any) -> RunGroups:
    return {"all": _group(settings, seeds, **changes)}


def _claim(*, control: RunGroups, control_name: str, source: str = _PAPER, **fields: Any) -> Study:
    return Study(source=source, controls=(Control(name=control_name, runs=control),), **fields)


def _periodic(**fields: Any) -> Study:
    return _claim(
        statistic=verdict_indicator("periodic"),
        statistic_name="share of seeds that are periodic",
        rule=EverySeed(),
        reason="simulate.classify requires at least 5 periods, which a doubled threshold does not double, most growth "
        f"inside destabilizations, and a test for feedback that fewer than 1 in 100 runs of noise pass; {_BY_CHANCE}",
        **fields,
    )


def _oscillates(**fields: Any) -> Study:
    return _claim(
        statistic=oscillation_indicator(),
        statistic_name="share of seeds that oscillate",
        rule=EverySeed(),
        reason="at least 5 periods with norm rises of 0.1, spread of ln ρ above 0.05, rotation below 0.8 of "
        f"equilibrium; {_BY_CHANCE}",
        control_name=_MLP_AT_EQUILIBRIUM,
        **fields,
    )


def _rotation_under_adamw(**fields: Any) -> Study:
    return _claim(
        source=_ON_ROTATION,
        statistic=rotation_over_formula(equilibrium_angle),
        statistic_name="root-mean-square rotation over theory.equilibrium_rotation",
        rule=Between(low=0.95, high=1.05),
        reason="5 %, as for momentum",
        control_name=_BEFORE_EQUILIBRIUM,
        drawn_variable="rotation",
        **fields,
    )


def _gradient_growth(**fields: Any) -> Study:
    return _claim(
        source=_ON_TRACKING,
        statistic=late_gradient_growth(),
        statistic_name="ln of the ratio of ‖∇f‖ at 90-95 % and at 45-50 % of the run",
        drawn_variable=PLAIN_GRADIENT,
        **fields,
    )


CLAIMS: tuple[Study, ...] = (
    _periodic(
        name="sgd-is-periodic",
        claim="Training with SGD, normalization and weight decay is periodic.",
        runs=_runs(_CONVNET),
        control=_runs(_SMALL_MLP),
        control_name=_MLP_AT_EQUILIBRIUM,
        fast=True,
    ),
    _periodic(
        name="full-batch-is-periodic",
        claim="Full-batch gradient descent is periodic, so noise is not the cause.",
        runs=_runs(_FULL_BATCH),
        control=_runs(_FULL_BATCH, width=4),
        control_name="an MLP of width 4, at equilibrium",
        fast=True,
    ),
    _claim(
        name="period-shortens-with-lr",
        claim="A larger learning rate shortens the period.",
        runs={"slow": _group(_CONVNET, lr=0.25, steps=16_000), "fast": _group(_CONVNET)},
        statistic=log_period_ratio("slow", "fast", math.log(2)),
        statistic_name="-d ln T / d ln η",
        rule=Between(low=0.5),
        reason=_SLOPE_REASON,
        control={"slow": _group(_CONVNET, range(10, 15)), "fast": _group(_CONVNET)},
        control_name=_EQUAL_SETTINGS,
        drawn_group="slow",
    ),
    _claim(
        name="period-shortens-with-wd",
        claim="A larger weight decay shortens the period.",
        runs={"slow": _group(_CONVNET, wd=0.005, steps=16_000), "fast": _group(_CONVNET)},
        statistic=log_period_ratio("slow", "fast", math.log(2)),
        statistic_name="-d ln T / d ln λ",
        rule=Between(low=0.5),
        reason=_SLOPE_REASON,
        control={"slow": _group(_CONVNET, range(20, 25)), "fast": _group(_CONVNET, range(30, 35))},
        control_name=_EQUAL_SETTINGS,
        drawn_group="slow",
    ),
    _claim(
        name="period-depends-on-intrinsic-lr",
        claim="The period depends on η and λ only through ηλ.",
        source=f"{_PAPER}; docs/mathematics.md §6",
        runs={"high": _group(_CONVNET), "low": _group(_CONVNET, range(10, 15), lr=0.1, wd=0.05)},
        statistic=log_period_ratio("high", "low"),
        statistic_name="ln of the ratio of periods at (η, λ) = (0.5, 0.01) and (0.1, 0.05)",
        rule=Between(low=-0.15, high=0.15),
        reason="five seeds with about 20 periods each resolve 15 %; a dependence on η alone would give 1.6",
        control={"high": _group(_CONVNET), "low": _group(_CONVNET, range(10, 15), wd=0.005, steps=16_000)},
        control_name="half the intrinsic learning rate",
        drawn_group="low",
    ),
    _claim(
        name="small-networks-settle",
        claim="Small networks reach an equilibrium.",
        runs=_runs(_SMALL_MLP),
        statistic=verdict_indicator("equilibrium"),
        statistic_name="share of seeds at equilibrium",
        rule=EverySeed(),
        reason="simulate.classify requires a rotation of at least 0.8 of equilibrium and a spread of ln ρ up to 0.05; "
        f"{_BY_CHANCE}",
        control=_runs(_CONVNET),
        control_name="a periodic ConvNet",
        fast=True,
    ),
    _periodic(
        name="wide-networks-are-periodic",
        claim="Wide networks that can fit all samples are periodic.",
        runs=_runs(_WIDE_MLP),
        control=_runs(_WIDE_MLP, width=8, steps=6000),
        control_name="the same MLP with 8 units",
    ),
    _claim(
        name="minima-differ",
        claim="Successive periods reach different minima.",
        runs=_runs(_CONVNET, range(10, 15), wd=0.004, steps=6000),
        statistic=angle_between_minima(),
        statistic_name="mean angle between weights at successive minima (degrees)",
        rule=Between(low=30.0),
        reason="weights at equilibrium move too, but rotate by less in a quarter of a run",
        control=_runs(_SMALL_MLP, range(10, 15), wd=0.004, steps=6000),
        control_name=_MLP_AT_EQUILIBRIUM,
    ),
    _periodic(
        name="momentum",
        claim="Training with momentum is periodic.",
        # a larger wd would change the norm within the memory of momentum, and the test for feedback be impossible
        runs=_runs(_CONVNET, lr=0.05, wd=0.005, steps=36_000, optimizer=_MOMENTUM),
        control=_runs(_SMALL_MLP, lr=0.05, optimizer=_MOMENTUM),
        control_name=_MLP_AT_EQUILIBRIUM,
    ),
    _periodic(
        name="augmentation",
        claim="Training with data augmentation is periodic.",
        runs=_runs(_CONVNET, augmentation=1, steps=6000),
        control=_runs(_CONVNET, width=1, augmentation=1, steps=6000),
        control_name=_CONVNET_AT_EQUILIBRIUM,
        scale="a network that can fit all augmented samples, as in augmentation-of-few",
    ),
    _periodic(
        name="augmentation-of-few",
        claim="Training with data augmentation is periodic if the network can fit all augmented samples (two classes).",
        runs=_runs(_CONVNET, _UNSEEN_SEEDS, width=8, augmentation=1, classes=(0, 1), wd=0.004, steps=16_000),
        control=_runs(_CONVNET, width=8, augmentation=1, steps=6000),
        control_name="all ten classes, which this network cannot fit",
    ),
    _periodic(
        name="all-weights-trained",
        claim="Training is periodic if all weights are trained, not only the scale-invariant ones.",
        # in narrower networks the noise at this ηλ hides the feedback
        runs=_runs(_CONVNET, _UNSEEN_SEEDS, width=12, scale_invariant=False, steps=6000),
        control=_runs(_CONVNET, width=1, scale_invariant=False, steps=6000),
        control_name=_CONVNET_AT_EQUILIBRIUM,
    ),
    _periodic(
        name="layer-normalization",
        claim="Training with layer normalization is periodic.",
        runs=_runs(_NORMALIZED, width=64, normalization="layer"),
        control=_runs(_NORMALIZED, width=8, normalization="layer"),
        control_name="an MLP of width 8, close to equilibrium",
        scale="periods of more equal length: destabilizations follow a low norm, but at irregular distances",
    ),
    _periodic(
        name="layer-normalization-wide",
        claim="Training with layer normalization is periodic in a network of 128 units.",
        runs=_runs(_NORMALIZED, width=128, normalization="layer"),
        control=_runs(_NORMALIZED, width=8, normalization="layer"),
        control_name="an MLP of width 8, close to equilibrium",
        scale="periods of more equal length: destabilizations follow a low norm, but at irregular distances",
    ),
    _periodic(
        name="group-normalization",
        claim="Training with group normalization is periodic.",
        runs=_runs(_NORMALIZED_CONVNET, normalization="group"),
        control=_runs(_NORMALIZED_CONVNET, width=1, normalization="group"),
        control_name=_CONVNET_AT_EQUILIBRIUM,
    ),
    _periodic(
        name="instance-normalization",
        claim="Training with instance normalization is periodic.",
        runs=_runs(_NORMALIZED_CONVNET, _UNSEEN_SEEDS, width=8, normalization="instance"),
        control=_runs(_NORMALIZED_CONVNET, width=1, normalization="instance"),
        control_name=_CONVNET_AT_EQUILIBRIUM,
    ),
    _periodic(
        name="weight-normalization",
        claim="Training with weight normalization is periodic.",
        runs=_runs(_NORMALIZED, width=64, normalization="weight"),
        control=_runs(_NORMALIZED, width=16, normalization="weight"),
        control_name="an MLP of width 16, which settles or dies",
        scale="more growth of the norm inside destabilizations: most of it is outside",
    ),
    _periodic(
        name="weight-normalization-wide",
        claim="Training with weight normalization is periodic in a network of 256 units.",
        runs=_runs(_NORMALIZED, width=256, normalization="weight", wd=0.002, steps=16_000),
        control=_runs(_NORMALIZED, width=16, normalization="weight"),
        control_name="an MLP of width 16, which settles or dies",
        scale="periods of more equal length",
    ),
    _oscillates(
        name="adamw-oscillates",
        claim="The norm oscillates under AdamW.",
        runs=_runs(_ADAMW, width=64, wd=2.0, optimizer=theory.AdamW(dim=_DIM_64), steps=8000),
        control=_runs(_ADAMW, steps=4000),
    ),
    _oscillates(
        name="adam-oscillates",
        claim="The norm oscillates under Adam with L2 regularization.",
        runs=_runs(_ADAM, width=64, optimizer=theory.Adam(dim=_DIM_64)),
        control=_runs(_ADAM, width=8, optimizer=theory.Adam(dim=_DIM_8)),
    ),
    _claim(
        name="no-decay-no-periods",
        claim="Without weight decay the norm only grows, and there are no periods.",
        runs=_runs(_CONVNET, wd=0.0, steps=4000),
        statistic=largest_norm_decrease(),
        statistic_name="largest decrease of ln ρ",
        rule=Between(high=1e-3),
        reason="without decay, an SGD step is orthogonal to the weights and can shrink them only by rounding",
        control=_runs(_CONVNET),
        control_name="the same network with weight decay",
        fast=True,
    ),
    _claim(
        name="no-normalization-no-periods",
        claim="Without normalization there are no periods.",
        runs=_runs(_NORMALIZED, width=64, normalization="none", scale_invariant=False, lr=0.1, wd=0.01),
        statistic=negation(periods_indicator()),
        statistic_name="share of seeds without periods",
        rule=EverySeed(),
        reason=f"fewer than two periods with norm rises of 0.1; {_BY_CHANCE}",
        control=_runs(_NORMALIZED, width=64, scale_invariant=False, steps=8000),
        control_name="a similar network with batch normalization",
    ),
    _claim(
        name="loss-depends-on-intrinsic-lr",
        claim="At equilibrium the loss depends on η and λ only through ηλ.",
        source="arXiv 2010.02916",
        runs={"one": _group(_SMALL_MLP, range(20, 25)), "other": _group(_SMALL_MLP, range(30, 35), lr=0.1, wd=0.1)},
        statistic=log_loss_ratio("one", "other"),
        statistic_name="ln of the ratio of mean losses at (η, λ) = (0.5, 0.02) and (0.1, 0.1)",
        rule=Between(low=-0.03, high=0.03),
        reason="3 % is less than half of the change when ηλ doubles",
        control={"one": _group(_SMALL_MLP, range(20, 25)), "other": _group(_SMALL_MLP, range(30, 35), wd=0.04)},
        control_name="twice the intrinsic learning rate",
        drawn_group="other",
        drawn_variable="loss",
        fast=True,
    ),
    _claim(
        name="angular-update",
        claim="At equilibrium the mean squared rotation per step is 2ηλ, independent of the gradients.",
        source="arXiv 2006.08419",
        runs=_runs(_SMALL_MLP),
        statistic=rotation_over_formula(sgd_equilibrium_angle),
        statistic_name="root-mean-square rotation over √(2ηλ)",
        rule=Between(low=0.97, high=1.03),
        reason="the exact value, arccos(1-ηλ), is 0.2 % larger; before equilibrium a run deviates by more than 3 %. "
        "The formula holds whenever the mean norm is constant, also over periods",
        control=_runs(_SMALL_MLP, init_norm=300.0, steps=200),
        control_name=_BEFORE_EQUILIBRIUM,
        drawn_variable="rotation",
        fast=True,
    ),
    _claim(
        name="angular-update-momentum",
        claim="At equilibrium, SGD with momentum μ rotates the weights by √(2ηλ/(1+μ)) per step.",
        source="arXiv 2006.08419",
        runs=_runs(_SMALL_MLP, lr=0.05, optimizer=_MOMENTUM, steps=8000),
        statistic=rotation_over_formula(sgd_equilibrium_angle),
        statistic_name="root-mean-square rotation over √(2ηλ/(1+μ))",
        rule=Between(low=0.95, high=1.05),
        reason="without the factor 1+μ the formula is off by 27 %",
        control=_runs(_SMALL_MLP, lr=0.05, optimizer=_MOMENTUM, init_norm=300.0, steps=200),
        control_name=_BEFORE_EQUILIBRIUM,
        drawn_variable="rotation",
    ),
    _claim(
        name="ideal-gas-radius",
        claim="At equilibrium the mean squared norm is that of an ideal gas of weights, λ⟨ρ²⟩² = η⟨g̃²⟩/2.",
        source="arXiv 2511.07308",
        runs=_runs(_SMALL_MLP),
        statistic=ideal_gas_indicator(0.03),
        statistic_name="share of seeds in which 2λ⟨ρ²⟩² is within 3 % of η⟨g̃²⟩",
        rule=EverySeed(),
        reason=f"the formula is that of isotropic noise for small ηλ, which is 1 % here; {_BY_CHANCE}",
        control=_runs(_CONVNET, width=12),
        control_name="a wide periodic ConvNet",
    ),
    _claim(
        name="three-regimes-on-the-sphere",
        claim="On the sphere, training has three regimes of the effective learning rate: low, middle and high loss.",
        source="arXiv 2209.03695",
        runs={name: _group(_SPHERE, lr=lr) for name, lr in (("small", 0.01), ("middle", 0.03), ("large", 0.3))},
        statistic=smallest_of(log_loss_ratio("middle", "small"), log_loss_ratio("large", "middle")),
        statistic_name="smaller of two ln ratios of late losses: middle to small and large to middle lr",
        rule=Between(low=math.log(2)),
        reason="late losses that differ by less than a factor of 2 count as one regime",
        control={
            name: _group(_SPHERE, range(first, first + 5), lr=0.03)
            for name, first in (("small", 0), ("middle", 10), ("large", 20))
        },
        control_name="three groups with the same effective learning rate",
        drawn_group="large",
        drawn_variable="loss",
    ),
    _rotation_under_adamw(
        name="rotation-under-adamw",
        claim="Under AdamW the rotation per step is as predicted for independent gradients.",
        runs=_runs(_ADAMW),
        control=_runs(_ADAMW, init_norm=200.0, steps=500),
        scale="gradients that are nearly independent between steps, as with the small batches of "
        "rotation-under-adamw-noisy",
    ),
    _rotation_under_adamw(
        name="rotation-under-adamw-noisy",
        claim="Under AdamW with batches of 4 samples the rotation per step is as predicted for independent gradients.",
        runs=_runs(_ADAMW, batch_size=4),
        control=_runs(_ADAMW, batch_size=4, init_norm=200.0, steps=500),
    ),
    _gradient_growth(
        name="late-gradient-growth",
        claim="If the learning rate decays to nearly 0, the gradient norm grows late in training.",
        runs=_runs(_LINEAR_DECAY),
        rule=Between(low=0.1),
        reason="growth by a tenth, which does not occur at a constant learning rate",
        control=_runs(_LINEAR_DECAY, lr=0.5),
        control_name="a constant learning rate",
    ),
    _gradient_growth(
        name="corrected-decay",
        claim="Weight decay proportional to the learning rate removes the late growth of the gradient norm.",
        runs=_runs(_LINEAR_DECAY, optimizer=CorrectedSGD(lr_max=0.5)),
        rule=Between(high=0.1),
        reason="growth by a tenth, as for late-gradient-growth",
        control=_runs(_LINEAR_DECAY),
        control_name="constant weight decay",
    ),
)


def choose_claims(names: Sequence[str] | None = None, *, fast: bool = False, paper_scale: bool = False) -> list[Study]:
    """Choose claims by name (default: all), optionally only the fast ones, or at the scale of the paper.

    Raises
    ------
    TypeError, ValueError : unknown name, or no claim is left.

    Examples
    --------
    >>> [claim.name for claim in choose_claims(["momentum", "sgd-is-periodic"])]
    ['momentum', 'sgd-is-periodic']
    """
    check_flag("fast", fast)
    check_flag("paper_scale", paper_scale)
    by_name = {claim.name: claim for claim in CLAIMS}
    chosen = [by_name[name] for name in (by_name if names is None else check_choices("names", names, by_name))]
    chosen = [claim for claim in chosen if claim.fast or not fast]
    if not chosen:
        raise ValueError("names must select at least one claim, but none of these is fast")
    return [claim.at_paper_scale() for claim in chosen] if paper_scale else chosen


def page_name(count: int) -> str:
    """File name of the page: `claims.md` for all claims, `claims_asked.md` for a selection."""
    return CLAIMS_PAGE if count == len(CLAIMS) else PARTIAL_PAGE


def judge_claims(
    out: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    fast: bool = False,
    paper_scale: bool = False,
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> list[Result]:
    """Test claims of the paper and of related work by training networks.

    Parameters
    ----------
    out : folder for runs, figures and the page. Runs found there are reused. The page is `claims.md` for all claims and
        `claims_asked.md` for a selection.
    names : names of claims; default all.
    fast : test only the claims that take two minutes in total.
    paper_scale : test the same claims and rules with ConvNets on CIFAR-10 (`empirical.at_paper_scale`). This needs a
        GPU and takes hours per claim.
    executor : as in `empirical.sweep`.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    One result per claim, in order, with `verdict`, `statistic`, `error`, `values` by seed and `controls`.

    Raises
    ------
    TypeError, ValueError : unknown claim, or a folder that cannot be used.
    RuntimeError : a training failed.

    Source: each claim names its publication; the rules are in `empirical.studies.claims`.

    Examples
    --------
    >>> judge_claims("claims", ["everything"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: names must be one of adam-oscillates, adamw-oscillates, all-weights-trained, ...; got 'everything'
    """
    chosen = choose_claims(names, fast=fast, paper_scale=paper_scale)
    check_path("out", out)
    results = run_studies(chosen, out, executor=executor, progress=progress, draw=write_picture)
    write_claims(Path(out) / page_name(len(results)), results)
    return results


def format_verdicts(results: Sequence[Result]) -> str:
    """Return a plain-text table of verdicts, one line per claim."""
    return results_table(results, ["name", "statistic ± error", "n", "verdict", "control"]).text()


def write_claims(path: Path, results: Sequence[Result]) -> None:
    """Write the page of verdicts in Markdown, with a section for each claim."""
    verdicts = Counter(result.verdict for result in results)
    write_page(
        path,
        "bnwd claims",
        "Each claim was tested by training networks on embedded data. Its rule and threshold were fixed in the code "
        "before the runs. Each claim has a control, for which it is false: there the rule must not hold. The error is "
        "the standard error over n seeds. For a share, 1 ± 0 means that every seed has the property. A claim is "
        "undecided if its seeds disagree, or if the interval of its statistic contains the threshold. The section of a "
        "claim explains its statistic and its limits.",
        f"Of {len(results)} claims, {verdicts[HOLDS]} hold, {verdicts[FAILS]} fail and {verdicts[UNDECIDED]} are "
        "undecided. All networks and data sets are small; see *Runs* of each claim.",
        results_table(
            results,
            ["claim", "source", "rule", "statistic ± error", "n", "verdict"],
            claim=lambda result: f"[{result.claim}](#{result.study.name})",
            verdict=lambda result: f"**{result.verdict}**",
        ).markdown(),
        *(part for result in results for part in _section(result)),
    )


def _section(result: Result) -> list[str]:
    """Paragraphs of the page about one claim."""
    study, (control,) = result.study, result.controls
    as_it_must = "as it must" if control.verdict == FAILS else "but it must fail"
    lines = [
        f"- Runs: {_describe(study.runs)}.",
        f"- Statistic: {study.statistic_name}.",
        f"- Rule: {study.rule}. Reason: {study.reason}.",
        f"- Result: {result}. By seed: {', '.join(f'{value:.3g}' for value in result.values)}.",
        f"- Control: {control.claim} ({_describe(control.study.runs)}). Result: {control}, {as_it_must}.",
    ]
    if not any(run.dataset in HUB_DATASETS for run in study.all_runs):
        at_scale = _describe(study.at_paper_scale().runs)
        lines.append(f"- At the scale of the paper, `bnwd claims --paper-scale --name {study.name}`: {at_scale}.")
    if result.verdict != HOLDS and study.scale:
        lines.append(f"- What the claim would need to hold: {study.scale}.")
    return [
        f"## {study.name}",
        f"{study.claim} ({study.source})",
        f"![{study.statistic_name}]({study.name}.png)",
        "\n".join(lines),
    ]


def _describe(runs: RunGroups) -> str:
    """Network, settings and length of the runs of each group."""
    listed = {"lr", "wd", "model", "width", "optimizer", "dataset", "steps", "seed", "evaluate_every", "device"}
    descriptions = []
    for name, group in runs.items():
        first = group[0]
        defaults = {f.name: f.default for f in dataclasses.fields(first) if f.name not in listed}
        other_settings = "".join(
            f", {setting} = {value}"
            for setting, value in first.to_dict().items()
            if setting in defaults and getattr(first, setting) != defaults[setting]
        )
        lr = f"{first.lr:g}" if isinstance(first.lr, float) else repr(first.lr)
        label = "" if len(runs) == 1 else f"{name}: "
        descriptions.append(
            f"{label}{first.model} {first.resolved_width}, η = {lr}, λ = {first.wd:g}, {first.optimizer!r}, "
            f"{first.dataset}, {first.steps} steps{other_settings}"
        )
    return "; ".join(descriptions)
