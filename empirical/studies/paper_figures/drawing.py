"""Draw the figures of the paper: train what they need and is missing, and write each in print quality."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empirical.studies.claims.statistics import Trajectories
from empirical.studies.claims.study import NETWORKS, RUNS
from empirical.studies.paper_figures.all_figures import all_figures
from empirical.studies.paper_figures.paper_figure import STYLE, PaperFigure
from empirical.studies.stored_runs import stored_run, train_missing
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from theory.arguments import check_choices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what the words about a figure are called in a file; no time of writing, so that the same figure is the same file
_METADATA: dict[str, tuple[str, dict[str, Any]]] = {
    "pdf": ("Subject", {"CreationDate": None}),
    "svg": ("Description", {"Date": None}),
    "png": ("Description", {}),
}
_DPI = 300


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
    """Draw the figures of the paper in print quality, from runs that are stored, and trained where they are missing.

    Parameters
    ----------
    out : folder of the figures, made if it does not exist. Files carry their caption as metadata.
    names : of the figures; default all.
    runs : folder of the runs, which are used again; default `out`/runs. Networks are kept beside it.
    fast : shorter runs, fewer settings and seeds: all in half a minute.
    paper_scale : the same figures of ConvNets on CIFAR-10 (`PaperFigure.at_paper_scale`), for a GPU: hours.
    formats : "pdf", "svg", "png": one file for each.
    executor, progress : as in `empirical.sweep`.

    Returns
    -------
    Paths by the name of the figure, in the order of `formats`; of figures that can be drawn.

    Raises
    ------
    TypeError, ValueError : no such figure or format, or a folder that cannot be used.
    RuntimeError : a training failed.

    Warns
    -----
    UserWarning : a figure is left out, because a run ended too early for it.

    Source: arXiv 2106.15739, figures of §3 to §5.

    Examples
    --------
    >>> draw_figures("figures", ["everything"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: names must be one of full-batch, minima, norm, periods, ...; got 'everything'
    """
    known = {figure.name: figure for figure in all_figures(fast)}
    chosen = [known[name] for name in check_choices("names", known if names is None else names, known)]
    wanted = check_choices("formats", formats, _METADATA)
    if paper_scale:
        chosen = [figure.at_paper_scale() for figure in chosen]
    folder = Path(out)
    stored = folder / RUNS if runs is None else Path(runs).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written, got {os.fspath(out)!r}: {error.strerror}"
        ) from None
    swept = [run for figure in chosen if figure.measure is None for run in figure.all_runs]
    train_missing(swept, stored, executor, progress=progress)
    written = {}
    for figure in chosen:
        try:
            written[figure.name] = _write(figure, trajectories(figure, stored), folder, wanted)
        except ValueError as error:
            # the others may have taken hours to train
            warnings.warn(f"the figure {figure.name} is left out: {error}", stacklevel=2)
    return written


def trajectories(figure: PaperFigure, runs: Path) -> Trajectories:
    """What a figure is drawn from.

    Parameters
    ----------
    figure : its runs have been trained, unless it measures them itself.
    runs : their folder.
    """
    if figure.measure is not None:
        # not in the folder of the sweep, which holds nothing else
        return figure.measure(figure.runs, runs.with_name(NETWORKS))
    return {name: [stored_run(runs, run) for run in group] for name, group in figure.runs.items()}


def _write(figure: PaperFigure, drawn_from: Trajectories, folder: Path, formats: Sequence[str]) -> list[Path]:
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        drawn = figure.draw(drawn_from)
        for each in formats:
            path = folder / f"{figure.name}.{each}"
            _save(drawn, path, each, figure)
            written.append(path)
    return written


def _save(drawn: Figure, path: Path, kind: str, figure: PaperFigure) -> None:
    words, metadata = _METADATA[kind]
    told = {"Title": figure.name, words: f"{figure.caption} {figure.seen}".strip(), **metadata}
    with atomic_write(path) as aside:
        drawn.savefig(aside, format=kind, dpi=_DPI, metadata=told)
