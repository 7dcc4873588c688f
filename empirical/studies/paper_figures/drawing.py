"""Draw the figures of the paper in print quality, and train the runs that are missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empirical.studies.paper_figures.all_figures import all_figures
from empirical.studies.paper_figures.paper_figure import STYLE, PaperFigure
from empirical.studies.study import NETWORKS_SUBFOLDER, RUNS_SUBFOLDER, Trajectories, load_stored_run, train_missing
from empirical.sweeps.sweep import AnyExecutor
from simulate._files import atomic_write
from theory.arguments import check_choices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# metadata field for the caption, by format. There is no creation date, so the same figure gives the same file.
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
    by_name = {figure.name: figure for figure in all_figures(fast)}
    chosen = [by_name[name] for name in check_choices("names", by_name if names is None else names, by_name)]
    file_formats = check_choices("formats", formats, _METADATA)
    if paper_scale:
        chosen = [figure.at_paper_scale() for figure in chosen]
    folder = Path(out)
    stored = folder / RUNS_SUBFOLDER if runs is None else Path(runs).resolve()
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
            written[figure.name] = _write(figure, load_trajectories(figure, stored), folder, file_formats)
        except ValueError as error:
            # continue: the other figures may have taken hours to train
            warnings.warn(f"the figure {figure.name} is left out: {error}", stacklevel=2)
    return written


def load_trajectories(figure: PaperFigure, runs: Path) -> Trajectories:
    """Load the trajectories that a figure is drawn from.

    Parameters
    ----------
    figure : figure whose runs are trained, unless it measures them itself.
    runs : folder of the runs.
    """
    if figure.measure is not None:
        # next to the folder of the sweep, which contains only runs
        return figure.measure(figure.runs, runs.with_name(NETWORKS_SUBFOLDER))
    return {name: [load_stored_run(runs, run) for run in group] for name, group in figure.runs.items()}


def _write(figure: PaperFigure, runs: Trajectories, folder: Path, formats: Sequence[str]) -> list[Path]:
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        picture = figure.draw(runs)
        for file_format in formats:
            path = folder / f"{figure.name}.{file_format}"
            _save(picture, path, file_format, figure)
            written.append(path)
    return written


def _save(picture: Figure, path: Path, file_format: str, figure: PaperFigure) -> None:
    caption_field, constant = _METADATA[file_format]
    metadata = {"Title": figure.name, caption_field: f"{figure.caption} {figure.observation}".strip(), **constant}
    with atomic_write(path) as aside:
        picture.savefig(aside, format=file_format, dpi=_DPI, metadata=metadata)
