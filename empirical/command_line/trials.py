"""Commands that train what the paper is about: `validate`, `claims` and `figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from empirical.command_line.application import app, errors_in_one_line


@app.command(epilog="Example: bnwd validate --out report, or bnwd validate --held-out --network mlp64 --out held_out")
@errors_in_one_line
def validate(
    preset: Annotated[str, typer.Option(help="digits.")] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder: new, or an earlier one; default report, with --held-out held_out."),
    ] = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out", help="Probe networks, predict their norms at other settings, and train there (40 minutes)."
        ),
    ] = False,
    network: Annotated[
        list[str] | None, typer.Option(help="With --held-out: only these, such as mlp64; default all.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --held-out: processes; default one for each processor.")
    ] = None,
) -> None:
    """Train real networks, hold them against theory and simulation, and write a report.

    Exit code 0 only if every row of the table holds, with --held-out if every goal is reached.
    """
    import empirical

    if held_out:
        _validate_held_out(out or Path("held_out"), network, workers)
        return
    if network or workers:
        raise ValueError("network and workers must be left out without --held-out")
    folder = out or Path("report")
    result = empirical.validate(preset, folder)
    typer.echo(str(result))
    held = sum(row.holds for row in result.rows)
    typer.echo(f"\n{held} of {len(result.rows)} rows hold; report: {folder / 'report.html'}")
    if not result.holds:
        raise typer.Exit(1)


def _validate_held_out(out: Path, networks: list[str] | None, workers: int | None) -> None:
    import empirical
    from empirical.trials import held_out_report

    table = empirical.validate_held_out(out, networks, executor=empirical.dask_executor(workers=workers))
    found = held_out_report.measures(table)
    held_out_report.write_page(out, table, found)
    typer.echo(held_out_report.format_measures(found))
    typer.echo(f"\n{table.sizes['setting']} settings; table, page and picture in {out}")
    if any(measure.reached is False for measure in found):
        raise typer.Exit(1)


@app.command(epilog="Example: bnwd claims --fast --out claims")
@errors_in_one_line
def claims(
    out: Annotated[Path, typer.Option(help="Folder for runs, pictures and claims.md; runs are used again.")] = Path(
        "claims"
    ),
    name: Annotated[list[str] | None, typer.Option(help="Only these statements; default all.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Only those that take two minutes together.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="With ConvNets on CIFAR-10, for a GPU: hours for each statement.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default one for each processor.")] = None,
) -> None:
    """Put each statement of the paper and its neighbours on trial with real training, and print the verdicts.

    The page and the table are of the statements that are asked for; docs/claims/claims.md lists all. Exit code 1 if a
    rule says that a control holds, for then it proves nothing; what a verdict is does not matter.
    """
    import empirical
    from empirical.trials.claims.rules import HOLDS
    from empirical.trials.claims.trial import PAGE, format_outcomes, judge_claims

    found = judge_claims(
        out, name, fast=fast, paper_scale=paper_scale, executor=empirical.dask_executor(workers=workers)
    )
    typer.echo(format_outcomes(found))
    typer.echo(f"\npage and pictures: {out / PAGE}")
    if any(each.control.verdict == HOLDS for each in found):
        raise typer.Exit(1)


@app.command(epilog="Example: bnwd figures --fast --name norm --format svg --out figures")
@errors_in_one_line
def figures(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    name: Annotated[list[str] | None, typer.Option(help="Only these, such as norm or periods; default all.")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the runs; what it lacks is trained. Default: runs, in --out.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--format", help="pdf, svg or png, also several; default pdf and png.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Of shorter runs and fewer seeds.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="With ConvNets on CIFAR-10, for a GPU: hours for each figure.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default one for each processor.")] = None,
) -> None:
    """Draw the figures of the paper in print quality, from stored runs, and train those that are missing."""
    import matplotlib

    import empirical

    matplotlib.use("Agg")
    drawn = empirical.draw_figures(
        out,
        name,
        runs=runs,
        fast=fast,
        paper_scale=paper_scale,
        formats=kind or ("pdf", "png"),
        executor=empirical.dask_executor(workers=workers),
    )
    for paths in drawn.values():
        for path in paths:
            typer.echo(path)
