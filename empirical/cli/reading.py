"""Commands that show what there is: `diagnose` and `report` a training, `explore` the theory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import app, errors_in_one_line, naming


@app.command(
    short_help="Why the loss of a training spiked.",
    epilog="Example: bnwd diagnose log.csv --wd 0.0005 --picture spikes.png",
)
@errors_in_one_line
def diagnose(
    log: Annotated[
        Path,
        typer.Argument(help="CSV file with a line of names, event file of TensorBoard or a folder of them, or a run."),
    ],
    lr: Annotated[float | None, typer.Option(help="Learning rate, where it is constant and no column.")] = None,
    wd: Annotated[float | None, typer.Option(help="Weight decay, where it is no column.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help='Such as "SGD(momentum=0.9)" or "AdamW(dim=1)"; default plain SGD.')
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="meaning=name, where a name is unusual: loss=…, lr=…, wd=…, norm=…, gradient=…, step=…"),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture with the spikes marked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, NaN as null.")] = False,
) -> None:
    """Say why the loss of a training spiked: norm of the weights, bad batch, lr step, change of data, overflow.

    Best are loss, lr, norm of the scale-invariant weights and norm of their gradient at every step; what is missing, or
    contradicts the law of a step, is named. Exit code 0 whatever is found.
    """
    import simulate as floor
    from simulate._files import atomic_write, check_writable
    from theory.optimizers import parse_optimizer

    names = {}
    for text in column or []:
        meaning, equals, name = text.partition("=")
        if not equals:
            raise ValueError(f"--column must be written like loss=name, got {text!r}")
        names[meaning] = name
    if picture is not None:
        check_writable("--picture", picture)
    with naming(names="--column", path="log"):
        found = floor.diagnose(
            log, lr=lr, wd=wd, optimizer=None if optimizer is None else parse_optimizer(optimizer), names=names or None
        )
    if picture is not None:
        import matplotlib

        matplotlib.use("Agg")
        figure = floor.plots.plot_diagnosis(found)[0].get_figure(root=True)
        assert figure is not None
        with atomic_write(picture) as aside:
            figure.savefig(aside, format=picture.suffix[1:] or "png", dpi=120)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@app.command(
    short_help="Page about a run or a sweep.",
    epilog="Example: bnwd report runs/a --out report.html",
)
@errors_in_one_line
def report(
    source: Annotated[Path, typer.Argument(help="Folder of a run or of a sweep, or a saved trajectory.")],
    out: Annotated[Path, typer.Option(help="HTML file; replaced.")] = Path("report.html"),
    period_model: Annotated[
        Path | None, typer.Option(help="File of `bnwd calibrate` of this network, for the periods it predicts.")
    ] = None,
) -> None:
    """Write a page about a run or a sweep: prediction against measurement, figures, settings; one file, no network."""
    import matplotlib

    import empirical
    import simulate as floor

    matplotlib.use("Agg")
    with naming(path="--period-model"):
        model = None if period_model is None else floor.PeriodModel.load(period_model)
    with naming(path="--out"):
        typer.echo(empirical.write_run_report(source, out, model=model))


@app.command(
    short_help="Page with sliders for lr, wd, momentum and gradients.",
    epilog="Example: bnwd explore --out explorer.html",
)
@errors_in_one_line
def explore(out: Annotated[Path, typer.Option(help="HTML file; replaced.")] = Path("explorer.html")) -> None:
    """Write a page with sliders for lr, wd, momentum and gradients, and what follows from them; needs no Python."""
    import simulate as floor
    from simulate._files import check_writable

    check_writable("--out", out)
    typer.echo("bnwd: computing what the sliders show, a quarter of a minute", err=True)
    floor.write_explorer_page(out)
    typer.echo(out)
