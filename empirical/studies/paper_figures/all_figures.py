"""Figures of the paper, each with its runs, caption and observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from empirical.config import RunConfig
from empirical.studies.paper_figures.comparisons import draw_minima, draw_periods, draw_width, measure_minima
from empirical.studies.paper_figures.paper_figure import PaperFigure
from empirical.studies.paper_figures.training import (
    draw_full_batch,
    draw_norm,
    draw_phase_picture,
    draw_training_curves,
)

# η = 0.5 everywhere, so that ηλ is half of λ
_CONVNET: Mapping[str, Any] = {"model": "convnet", "width": 8, "lr": 0.5}
# first seed that the reference model was not calibrated on
_FIRST_NEW_SEED = 10
_WIDTHS, _FEW_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96), (8, 24, 96)
_INTRINSIC_LRS, _FEW_INTRINSIC_LRS = (0.002, 0.003, 0.005, 0.01), (0.005, 0.01)


def _runs(settings: Mapping[str, Any], seeds: int = 1, first: int = 0, **changes: Any) -> Sequence[RunConfig]:
    whole: dict[str, Any] = {"evaluate_every": 10**6, **settings, **changes}
    return [RunConfig(**whole, seed=seed) for seed in range(first, first + seeds)]


def all_figures(fast: bool = False) -> list[PaperFigure]:
    """Return all figures with the runs that they need.

    Parameters
    ----------
    fast : use shorter runs, fewer settings and fewer seeds. Some observations then do not show.

    Examples
    --------
    >>> [figure.name for figure in all_figures()]
    ['training-curves', 'norm', 'phase-picture', 'periods', 'width', 'minima', 'full-batch']
    """
    return [*_single_run_figures(fast), *_comparison_figures(fast), _full_batch_figure()]


def _single_run_figures(fast: bool) -> list[PaperFigure]:
    long = 3000
    return [
        PaperFigure(
            "training-curves",
            "Loss and error of a ConvNet on training and test set over its last periods, with the mini-batch loss.",
            "Digits. Loss and errors rise steeply at every onset. Between onsets the training set is learned again.",
            {"all": _runs(_CONVNET, wd=0.01, steps=1200 if fast else 2000, evaluate_every=20 if fast else 10)},
            draw_training_curves,
        ),
        PaperFigure(
            "norm",
            "Norm, effective learning rate and rotation of a ConvNet at three values of ηλ. Dashed: rotation at "
            "equilibrium.",
            "Digits. A larger ηλ shortens the periods. In each period the norm falls and the effective learning rate "
            "grows, until a destabilization raises the norm. Most steps rotate the weights less than at equilibrium.",
            {f"wd={wd:g}": _runs(_CONVNET, wd=wd, steps=2000 if fast else long) for wd in (0.004, 0.01, 0.02)},
            draw_norm,
        ),
        PaperFigure(
            "phase-picture",
            "Effective learning rate over gradient norm in several periods of a ConvNet. Dotted: balance of growth and "
            "decay. Black: one period with averaged gradient norms, in the direction of the arrows from its onset.",
            "Digits. Each period is a clockwise loop: up where gradients are small, to the right at the "
            "destabilization, down where gradients are large, and back to the left.",
            {"all": _runs(_CONVNET, wd=0.01, steps=1500 if fast else long)},
            draw_phase_picture,
        ),
    ]


def _comparison_figures(fast: bool) -> list[PaperFigure]:
    seeds = 2 if fast else 3
    return [
        PaperFigure(
            "periods",
            "Mean period of a ConvNet over ηλ at two learning rates, with standard errors over the seeds. Dotted: "
            "periods proportional to 1/ηλ.",
            "Digits. Solid and dashed: two predictions of a model calibrated on other runs of this network. Periods "
            "depend on η and λ only through ηλ, and decrease slightly faster than 1/ηλ.",
            {
                f"lr={lr:g} intrinsic_lr={intrinsic_lr:g}": _runs(
                    _CONVNET,
                    seeds,
                    _FIRST_NEW_SEED,
                    lr=lr,
                    wd=intrinsic_lr / lr,
                    steps=round((10 if fast else 20) / intrinsic_lr),
                )
                for lr in (0.5, 0.1)
                for intrinsic_lr in (_FEW_INTRINSIC_LRS if fast else _INTRINSIC_LRS)
            },
            draw_periods,
        ),
        PaperFigure(
            "width",
            "Spread of ln ρ, and rotation relative to equilibrium, for networks of different widths, one point per "
            "seed. Dashed: largest spread and smallest rotation at which a run counts as at equilibrium.",
            "MLPs on digits. Narrow networks are at equilibrium, the widest are periodic.",
            {
                str(width): _runs(
                    {"model": "mlp", "width": width, "lr": 0.5}, seeds, wd=0.004, steps=6000 if fast else 12_000
                )
                for width in (_FEW_WIDTHS if fast else _WIDTHS)
            },
            draw_width,
        ),
        PaperFigure(
            "minima",
            "Angles between the weights of a ConvNet at successive minima of its loss, one per period. Test error of "
            "each minimum, and of an ensemble of this minimum and all earlier ones.",
            "Digits. Every period reaches a different minimum, and minima more periods apart are farther apart. The "
            "ensemble of all minima has no larger error than a single minimum on average.",
            {"all": _runs(_CONVNET, 1 if fast else 3, wd=0.01 if fast else 0.004, steps=1500 if fast else 6000)},
            draw_minima,
            measure_minima,
        ),
    ]


def _full_batch_figure() -> PaperFigure:
    return PaperFigure(
        "full-batch",
        "Norm and loss of a network trained with full batches.",
        "An MLP on 400 digits. Training is periodic without the noise of mini-batches.",
        {
            "all": _runs(
                {"model": "mlp", "width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5}, wd=0.008, steps=6000
            )
        },
        draw_full_batch,
    )
