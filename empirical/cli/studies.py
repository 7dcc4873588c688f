"""Commands that train what the paper is about: `validate`, `claims` and `figures`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import app, completed_from, errors_in_one_line, naming


def _networks() -> Iterable[str]:
    from empirical.studies.predictions.study import NETWORKS

    return NETWORKS


def _statements() -> Iterable[str]:
    from empirical.studies.claims.all_claims import all_claims

    return (claim.name for claim in all_claims())


def _figures() -> Iterable[str]:
    from empirical.studies.paper_figures.all_figures import all_figures

    return (figure.name for figure in all_figures())


@app.command(
    short_help="Hold theory and simulation against training.",
    epilog="Example: bnwd validate --out report, or bnwd validate --held-out --network mlp64 --out held_out",
)
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
        list[str] | None,
        typer.Option(
            help="With --held-out: only these, such as mlp64; default all.", autocompletion=completed_from(_networks)
        ),
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
        raise ValueError("--network and --workers must be left out without --held-out")
    folder = out or Path("report")
    result = empirical.validate(preset, folder)
    typer.echo(str(result))
    held = sum(row.holds for row in result.rows)
    typer.echo(f"\n{held} of {len(result.rows)} rows hold; report: {folder / 'report.html'}")
    if not result.holds:
        raise typer.Exit(1)


def _validate_held_out(out: Path, networks: list[str] | None, workers: int | None) -> None:
    import empirical
    from empirical.studies.predictions import report

    with naming(networks="--network"):
        table = empirical.validate_held_out(out, networks, executor=empirical.dask_executor(workers=workers))
    found = report.measures(table)
    report.write_page(out, table, found)
    typer.echo(report.format_measures(found))
    typer.echo(f"\n{table.sizes['setting']} settings; table, page and picture in {out}")
    if any(measure.reached is False for measure in found):
        raise typer.Exit(1)


@app.command(
    short_help="Put the statements of the paper on trial.",
    epilog="Example: bnwd claims --fast --out claims",
)
@errors_in_one_line
def claims(
    out: Annotated[Path, typer.Option(help="Folder for runs, pictures and claims.md; runs are used again.")] = Path(
        "claims"
    ),
    name: Annotated[
        list[str] | None,
        typer.Option(help="Only these statements; default all.", autocompletion=completed_from(_statements)),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Print names and statements, fast ones marked by *, and train nothing.")
    ] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only those that take two minutes together.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="With ConvNets on CIFAR-10, for a GPU: hours for each statement.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default one for each processor.")] = None,
) -> None:
    """Put each statement of the paper and its neighbours on trial with real training, and print the verdicts.

    The page is claims.md, or claims_asked.md where not all statements are asked for. Exit code 1 if a rule says that a
    control holds, for then it proves nothing; what a verdict is does not matter.
    """
    import empirical
    from empirical.studies.claims.rules import HOLDS
    from empirical.studies.claims.study import chosen_claims, format_outcomes, judge_claims, page_name

    with naming(names="--name"):
        chosen = chosen_claims(name, fast=fast)
    if show:
        for claim in chosen:
            typer.echo(f"{claim.name:<30} {'*' if claim.fast else ' '} {claim.statement}")
        return
    found = judge_claims(
        out, name, fast=fast, paper_scale=paper_scale, executor=empirical.dask_executor(workers=workers)
    )
    typer.echo(format_outcomes(found))
    typer.echo(f"\npage and pictures: {out / page_name(chosen)}")
    if any(each.control.verdict == HOLDS for each in found):
        raise typer.Exit(1)


@app.command(
    short_help="Draw the figures of the paper.",
    epilog="Example: bnwd figures --fast --name norm --format svg --out figures",
)
@errors_in_one_line
def figures(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these of training-curves, norm, phase-picture, periods, width, minima and full-batch; default "
            "all.",
            autocompletion=completed_from(_figures),
        ),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the runs; what it lacks is trained. Default: runs, in --out.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="pdf, svg or png, also several; default pdf and png.",
            autocompletion=completed_from(lambda: ("pdf", "svg", "png")),
        ),
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
    with naming(names="--name", formats="--format"):
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
