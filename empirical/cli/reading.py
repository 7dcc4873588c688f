"""Commands that train nothing: `diagnose` and `report` on a training, `explore` the theory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import app, name_options, report_errors


@app.command(
    "diagnose",
    short_help="Find out why the loss of a training spiked.",
    epilog="Example: bnwd diagnose log.csv --wd 0.0005 --picture spikes.png",
)
@report_errors
def diagnose_command(
    log: Annotated[
        Path,
        typer.Argument(help="CSV file with a header line, TensorBoard event file or folder of them, or run folder."),
    ],
    lr: Annotated[float | None, typer.Option(help="Learning rate, if it is constant and not in the log.")] = None,
    wd: Annotated[float | None, typer.Option(help="Weight decay, if it is not in the log.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help='For example "SGD(momentum=0.9)" or "AdamW(dim=1)". Default: plain SGD.')
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Name of an unrecognized column: loss=NAME, lr=…, wd=…, norm=…, gradient=… or step=…"),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Image file: save a figure with the spikes marked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON. NaN becomes null.")] = False,
) -> None:
    """Find the cause of each loss spike: weight norm, bad batch, lr step, change of data or overflow.

    The log should have loss, lr, norm of the scale-invariant weights and norm of their gradient at every step. The
    report names columns that are missing or that contradict the update rule. The exit code is 0 for every cause.
    """
    import simulate
    from simulate._files import atomic_write, check_writable
    from theory.optimizers import parse_optimizer

    names = {}
    for text in column or []:
        meaning, equals, name = text.partition("=")
        if not equals:
            raise ValueError(f"--column must have the form loss=NAME, got {text!r}")
        names[meaning] = name
    if picture is not None:
        check_writable("--picture", picture)
    with name_options(names="--column", path="log"):
        diagnosis = simulate.diagnose(
            log, lr=lr, wd=wd, optimizer=None if optimizer is None else parse_optimizer(optimizer), names=names or None
        )
    if picture is not None:
        import matplotlib

        matplotlib.use("Agg")
        figure = simulate.plots.plot_diagnosis(diagnosis)[0].get_figure(root=True)
        assert figure is not None
        with atomic_write(picture) as aside:
            figure.savefig(aside, format=picture.suffix[1:] or "png", dpi=120)
    typer.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))


@app.command(
    "report",
    short_help="Write a report of a run or a sweep.",
    epilog="Example: bnwd report runs/a --out report.html",
)
@report_errors
def report_command(
    source: Annotated[Path, typer.Argument(help="Folder of a run or a sweep, or a saved trajectory.")],
    out: Annotated[Path, typer.Option(help="HTML file. An existing file is replaced.")] = Path("report.html"),
    period_model: Annotated[
        Path | None, typer.Option(help="File written by `bnwd calibrate` for this network. Adds predicted periods.")
    ] = None,
) -> None:
    """Write a report of a run or a sweep: predictions next to measurements, figures and settings.

    The report is one HTML file that loads nothing from the internet.
    """
    import matplotlib

    import empirical
    import simulate

    matplotlib.use("Agg")
    with name_options(path="--period-model"):
        model = None if period_model is None else simulate.PeriodModel.load(period_model)
    with name_options(path="--out"):
        typer.echo(empirical.write_run_report(source, out, model=model))


@app.command(
    "explore",
    short_help="Write an interactive page with sliders for lr and wd.",
    epilog="Example: bnwd explore --out explorer.html",
)
@report_errors
def explore_command(
    out: Annotated[Path, typer.Option(help="HTML file. An existing file is replaced.")] = Path("explorer.html"),
) -> None:
    """Write an interactive page: sliders for lr, wd, momentum and gradients, and the predictions for them.

    The page works in a browser, without Python.
    """
    import simulate
    from simulate._files import check_writable

    check_writable("--out", out)
    typer.echo("bnwd: computing the predictions for all slider positions (about 15 s)", err=True)
    simulate.write_explorer_page(out)
    typer.echo(out)
