"""Figures of the paper, each with its runs, caption and observation; missing runs are trained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empirical.config import RunConfig
from empirical.measures.minima import successive_minima
from empirical.presets import at_paper_scale
from empirical.studies.paper_drawings import (
    STYLE,
    draw_full_batch,
    draw_minima,
    draw_norm,
    draw_periods,
    draw_phase_picture,
    draw_training_curves,
    draw_width,
)
from empirical.studies.study import (
    NETWORKS_SUBFOLDER,
    RUNS_SUBFOLDER,
    RunGroups,
    Trajectories,
    load_stored_run,
    train_missing,
)
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from theory.arguments import check_choices, check_flag, check_path, warn_user

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# settings that distinguish the runs of a figure
_SETTINGS_TO_LIST = ("model", "width", "dataset", "samples", "sampling", "lr", "wd", "steps")
# η = 0.5 everywhere, so that ηλ is half of λ
_CONVNET: Mapping[str, Any] = {"model": "convnet", "width": 4, "lr": 0.5}
_MLP: Mapping[str, Any] = {"model": "mlp", "lr": 0.5}
# first seed that the reference model was not calibrated on
_FIRST_NEW_SEED = 10
_WIDTHS, _FEW_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96), (8, 24, 96)
_INTRINSIC_LRS, _FEW_INTRINSIC_LRS = (0.002, 0.003, 0.005, 0.01), (0.005, 0.01)
_MINIMA = 6
# metadata field for the caption, by format. There is no creation date, so the same figure gives the same file.
_METADATA: dict[str, tuple[str, dict[str, Any]]] = {
    "pdf": ("Subject", {"CreationDate": None}),
    "svg": ("Description", {"Date": None}),
    "png": ("Description", {}),
}
_DPI = 300


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes
    ----------
    name : a few words with hyphens.
    caption : what the figure shows.
    observation : what can be observed in the figure; empty at the scale of the paper, where nothing was checked.
    runs : runs to train, by group.
    draw : draws the figure from the trajectories.
    measure : returns the data to draw from runs and a folder, if the trajectories alone are not enough.
    """

    name: str
    caption: str
    observation: str
    runs: RunGroups
    draw: Callable[[Trajectories], Figure]
    measure: Callable[[RunGroups, Path], Trajectories] | None = None

    @property
    def all_runs(self) -> list[RunConfig]:
        """Runs of all groups."""
        return [run for group in self.runs.values() for run in group]

    def at_paper_scale(self) -> PaperFigure:
        """Return the same figure with runs at the scale of the paper, for a GPU, and as many evaluations per run."""
        runs = {name: [_scale_up(run) for run in group] for name, group in self.runs.items()}
        return dataclasses.replace(self, runs=runs, observation="")

    def scales(self) -> list[dict[str, object]]:
        """Return the settings of the runs at both scales, one row for runs that differ only in their seeds.

        Examples
        --------
        >>> row = all_figures()[0].scales()[0]
        >>> row["wd"], row["full width"]
        (0.01, 32)
        """
        pairs = zip(self.all_runs, self.at_paper_scale().all_runs, strict=True)
        rows = [
            {**_settings(run), **{f"full {name}": value for name, value in _settings(full).items()}}
            for run, full in pairs
        ]
        return list({tuple(row.values()): row for row in rows}.values())


def _scale_up(run: RunConfig) -> RunConfig:
    full = at_paper_scale(run)
    return dataclasses.replace(full, evaluate_every=run.evaluate_every * full.steps // run.steps)


def _settings(run: RunConfig) -> dict[str, object]:
    resolved = {"width": run.resolved_width, "samples": "all" if run.samples is None else run.samples}
    return {name: resolved.get(name, getattr(run, name)) for name in _SETTINGS_TO_LIST}


def _runs(settings: Mapping[str, Any], seeds: int = 1, first: int = 0, **changes: Any) -> Sequence[RunConfig]:
    whole: dict[str, Any] = {"evaluate_every": 10**6, **settings, **changes}
    return [RunConfig(**whole, seed=seed) for seed in range(first, first + seeds)]


def all_figures(fast: bool = False) -> list[PaperFigure]:
    """Return all figures with the runs that they need; fast ones have shorter and fewer runs.

    Some observations do not show in fast ones.

    Examples
    --------
    >>> [figure.name for figure in all_figures()]
    ['training-curves', 'norm', 'phase-picture', 'periods', 'width', 'minima', 'full-batch']
    """
    seeds, long = 2 if fast else 3, 3000
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
        PaperFigure(
            "periods",
            "Mean period of a ConvNet over ηλ at two learning rates, with standard errors over the seeds. Dotted: "
            "periods proportional to 1/ηλ.",
            "Digits. Solid: reduced model. Dashed: balance law. Both are calibrated on other runs of this network. "
            "Periods depend on η and λ only through ηλ, and decrease slightly faster than 1/ηλ.",
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
                str(width): _runs(_MLP, seeds, width=width, wd=0.004, steps=6000 if fast else 12_000)
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
            {"all": _runs(_CONVNET, 1 if fast else 3, wd=0.02 if fast else 0.004, steps=1500 if fast else 6000)},
            draw_minima,
            _measure_minima,
        ),
        PaperFigure(
            "full-batch",
            "Norm and loss of a network trained with full batches.",
            "An MLP on 400 digits. Training is periodic without the noise of mini-batches.",
            {"all": _runs(_MLP, width=64, samples=400, sampling="full_batch", wd=0.008, steps=6000)},
            draw_full_batch,
        ),
    ]


def _measure_minima(runs: RunGroups, folder: Path) -> Trajectories:
    """Find successive minima in runs that differ only in their seeds; intermediate results in the folder are reused."""
    first = runs["all"][0]
    own = folder / "minima" / f"{first.identity[:12]}-{first.steps}"
    seeds = [run.seed for run in runs["all"]]
    return {"all": [successive_minima(first, periods=_MINIMA, seeds=seeds, points=3, out=own, progress=False)]}


def draw_figures(
    out: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    runs: str | os.PathLike[str] | None = None,
    fast: bool = False,
    paper_scale: bool = False,
    formats: Sequence[str] = ("pdf", "png"),
    executor: AnyExecutor | None = None,
    progress: bool | None = None,
) -> dict[str, list[Path]]:
    """Draw the figures of the paper in print quality from stored runs, and train the missing ones.

    Parameters
    ----------
    out : folder of the figures, created if missing. Files contain their caption as metadata.
    names : names of figures; default all.
    runs : folder of the runs, which are reused; default `out`/runs. Networks are stored next to it.
    fast : use shorter runs, fewer settings and fewer seeds. All figures then take half a minute.
    paper_scale : draw the same figures for ConvNets on CIFAR-10 (`PaperFigure.at_paper_scale`). This takes hours on a
        GPU.
    formats : "pdf", "svg", "png"; one file each.
    executor, progress : as in `empirical.sweep`.

    Returns
    -------
    Paths by name of figure, in the order of `formats`. Figures that cannot be drawn are missing.

    Raises
    ------
    TypeError, ValueError : unknown figure or format, or a folder that cannot be used.
    RuntimeError : a training failed.

    Warns
    -----
    UserWarning : a figure is left out because a run is too short for it.

    Source: arXiv 2106.15739, figures of §3 to §5.

    Examples
    --------
    >>> draw_figures("figures", ["everything"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: names must be one of full-batch, minima, norm, periods, ...; got 'everything'
    """
    by_name = {figure.name: figure for figure in all_figures(check_flag("fast", fast))}
    chosen = [by_name[name] for name in check_choices("names", by_name if names is None else names, by_name)]
    file_formats = check_choices("formats", formats, _METADATA)
    if check_flag("paper_scale", paper_scale):
        chosen = [figure.at_paper_scale() for figure in chosen]
    folder = check_path("out", out)
    stored = folder / RUNS_SUBFOLDER if runs is None else check_path("runs", runs).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written, got {os.fspath(out)!r}: {error.strerror}"
        ) from None
    return write_figures(chosen, folder, stored, file_formats, executor, progress=progress)


def write_figures(
    figures: Sequence[PaperFigure],
    folder: Path,
    runs: Path,
    formats: Sequence[str],
    executor: AnyExecutor | None = None,
    *,
    progress: bool | None = None,
) -> dict[str, list[Path]]:
    """Train the missing runs of figures and write the figures into a folder, as `draw_figures` does."""
    swept = [run for figure in figures if figure.measure is None for run in figure.all_runs]
    train_missing(swept, runs, executor, progress=progress)
    written = {}
    for figure in figures:
        try:
            written[figure.name] = _write(figure, load_trajectories(figure, runs), folder, formats)
        except ValueError as error:
            # continue: the other figures may have taken hours to train
            warn_user(f"the figure {figure.name} is left out: {error}")
    return written


def load_trajectories(figure: PaperFigure, runs: Path) -> Trajectories:
    """Load the trajectories of a figure from the folder of the runs, or let the figure measure its data."""
    if figure.measure is not None:
        # next to the folder of the sweep, which contains only runs
        return figure.measure(figure.runs, runs.with_name(NETWORKS_SUBFOLDER))
    return {name: [load_stored_run(runs, run) for run in group] for name, group in figure.runs.items()}


def _write(figure: PaperFigure, runs: Trajectories, folder: Path, formats: Sequence[str]) -> list[Path]:
    import matplotlib

    paths = [folder / f"{figure.name}.{file_format}" for file_format in formats]
    with matplotlib.rc_context(STYLE):
        picture = figure.draw(runs)
        for path, file_format in zip(paths, formats, strict=True):
            caption_field, constant = _METADATA[file_format]
            caption = f"{figure.caption} {figure.observation}".strip()
            with atomic_write(path) as aside:
                picture.savefig(
                    aside,
                    format=file_format,
                    dpi=_DPI,
                    metadata={"Title": figure.name, caption_field: caption, **constant},
                )
    return paths
