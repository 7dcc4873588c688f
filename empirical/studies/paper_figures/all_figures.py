"""Every figure of the paper that is drawn, with its runs and what is seen in it."""

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
# of the seeds that the reference model was not calibrated on
_FIRST_UNSEEN = 10
_WIDTHS, _FEW_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96), (8, 24, 96)
_RATES, _FEW_RATES = (0.002, 0.003, 0.005, 0.01), (0.005, 0.01)


def _runs(settings: Mapping[str, Any], seeds: int = 1, first: int = 0, **changed: Any) -> Sequence[RunConfig]:
    whole: dict[str, Any] = {"evaluate_every": 10**6, **settings, **changed}
    return [RunConfig(**whole, seed=seed) for seed in range(first, first + seeds)]


def all_figures(fast: bool = False) -> list[PaperFigure]:
    """All figures, with the runs that they need.

    Parameters
    ----------
    fast : shorter runs and fewer settings and seeds; some of what is seen needs the others.

    Examples
    --------
    >>> [figure.name for figure in all_figures()]
    ['training-curves', 'norm', 'phase-picture', 'periods', 'width', 'minima', 'full-batch']
    """
    return [*_of_single_runs(fast), *_of_many_runs(fast), _of_full_batches()]


def _of_single_runs(fast: bool) -> list[PaperFigure]:
    long = 3000
    return [
        PaperFigure(
            "training-curves",
            "Loss and error of a ConvNet over its last periods, on training and test set, and loss of mini-batches.",
            "Digits. At every onset loss and errors jump up; between onsets the training set is learned again.",
            {"all": _runs(_CONVNET, wd=0.01, steps=1200 if fast else 2000, evaluate_every=20 if fast else 10)},
            draw_training_curves,
        ),
        PaperFigure(
            "norm",
            "Norm, effective learning rate and rotation of a ConvNet at three values of ηλ. Dashed: rotation at "
            "equilibrium.",
            "Digits. The larger ηλ, the shorter the periods. In each the norm falls, the effective learning rate "
            "rises, and the norm jumps up. Most steps turn the weights by less than at equilibrium.",
            {f"wd={wd:g}": _runs(_CONVNET, wd=wd, steps=2000 if fast else long) for wd in (0.004, 0.01, 0.02)},
            draw_norm,
        ),
        PaperFigure(
            "phase-picture",
            "Effective learning rate against gradient norm over periods of a ConvNet. Dotted: balance of growth and "
            "decay. Black: one period, its gradient norms averaged, from its onset on in the direction of the arrows.",
            "Digits. Training goes round clockwise: up where gradients are small, to the right when it breaks, down "
            "where they are large, and back to the left.",
            {"all": _runs(_CONVNET, wd=0.01, steps=1500 if fast else long)},
            draw_phase_picture,
        ),
    ]


def _of_many_runs(fast: bool) -> list[PaperFigure]:
    seeds = 2 if fast else 3
    return [
        PaperFigure(
            "periods",
            "Mean period of a ConvNet over ηλ at two learning rates, with standard errors over the seeds. Dotted: "
            "periods inverse to ηλ.",
            "Digits. Solid and dashed: two predictions of a model that was calibrated on other runs of this network. "
            "Periods depend on η and λ through ηλ alone, and shorten a little faster than 1/ηλ.",
            {
                f"lr={lr:g} rate={rate:g}": _runs(
                    _CONVNET, seeds, _FIRST_UNSEEN, lr=lr, wd=rate / lr, steps=round((10 if fast else 20) / rate)
                )
                for lr in (0.5, 0.1)
                for rate in (_FEW_RATES if fast else _RATES)
            },
            draw_periods,
        ),
        PaperFigure(
            "width",
            "Spread of ln ρ and rotation over that of equilibrium, of networks of different widths, a point for each "
            "seed. Dashed: largest spread and least rotation of what is called an equilibrium.",
            "MLPs on digits. Narrow networks rest, the widest have periods.",
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
            "Angles between the weights of a ConvNet at successive minima of its loss, one in each period; test error "
            "of each minimum, and of the mean prediction of this one and all before it.",
            "Digits. Every minimum is another one, and the farther away, the more periods lie between. All together "
            "err no more than they do alone on average.",
            {"all": _runs(_CONVNET, 1 if fast else 3, wd=0.01 if fast else 0.004, steps=1500 if fast else 6000)},
            draw_minima,
            measure_minima,
        ),
    ]


def _of_full_batches() -> PaperFigure:
    return PaperFigure(
        "full-batch",
        "Norm and loss of a network that is trained on full batches.",
        "An MLP on 400 digits. There are periods without the noise of mini-batches too.",
        {
            "all": _runs(
                {"model": "mlp", "width": 64, "samples": 400, "sampling": "full_batch", "lr": 0.5}, wd=0.008, steps=6000
            )
        },
        draw_full_batch,
    )
