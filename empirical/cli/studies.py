"""Commands that test and illustrate the paper with trained networks: `validate`, `claims` and `figures`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import app, name_options
from empirical.cli.options import complete_from


def _network_names() -> Iterable[str]:
    from empirical.studies.held_out import NETWORKS

    return NETWORKS


def _claim_names() -> Iterable[str]:
    from empirical.studies.claims import CLAIMS

    return (claim.name for claim in CLAIMS)


def _figure_names() -> Iterable[str]:
    from empirical.studies.paper_figures import all_figures

    return (figure.name for figure in all_figures())


@app.command(
    "validate",
    short_help="Compare theory and simulation with trained networks.",
    epilog="Example: bnwd validate --out report, or bnwd validate --held-out --network mlp64 --out held_out",
)
def validate_command(
    preset: Annotated[str, typer.Option(help="Set of networks and data. The only one is digits.")] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder: new, or one of an earlier call. Default: report, or held_out with --held-out."),
    ] = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Calibrate on each held-out network, predict other settings, then train there (40 minutes).",
        ),
    ] = False,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="With --held-out: only this network, e.g. mlp64. Repeat the option for more. Default: all.",
            autocompletion=complete_from(_network_names),
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --held-out: number of processes. Default: one per processor.")
    ] = None,
) -> None:
    """Train real networks, compare them with theory and simulation, and write a report.

    The exit code is 0 if every row of the table holds, or with --held-out if every goal is reached. Otherwise it is 1.
    """
    from empirical.studies.validation import validate

    if held_out:
        _validate_held_out(out or Path("held_out"), network, workers)
        return
    if network or workers:
        raise ValueError("--network and --workers must be left out without --held-out")
    folder = out or Path("report")
    result = validate(preset, folder)
    typer.echo(str(result))
    typer.echo(f"\n{result.count} of {len(result.rows)} rows hold; report: {folder / 'report.html'}")
    if not result.holds:
        raise typer.Exit(1)


def _validate_held_out(out: Path, networks: list[str] | None, workers: int | None) -> None:
    from empirical import dask_executor
    from empirical.studies.held_out import judge_held_out, validate_held_out, write_held_out_page
    from empirical.studies.study import goals_table

    with name_options(networks="--network"):
        table = validate_held_out(out, networks, executor=dask_executor(workers=workers))
    results = judge_held_out(table)
    write_held_out_page(out, table, results)
    typer.echo(goals_table(results).text())
    typer.echo(f"\n{table.sizes['setting']} settings; table, page and figure in {out}")
    if any(result.is_missed for result in results):
        raise typer.Exit(1)


@app.command(
    "claims",
    short_help="Test the claims of the paper by training.",
    epilog="Example: bnwd claims --fast --out claims",
)
def claims_command(
    out: Annotated[
        Path, typer.Option(help="Folder for runs, figures and claims.md. Runs that are already there are reused.")
    ] = Path("claims"),
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this claim. Repeat the option for more. Default: all.",
            autocompletion=complete_from(_claim_names),
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List all claims and train nothing. A * marks those of --fast.")
    ] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only the claims that take two minutes in total.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="Use ConvNets on CIFAR-10. Needs a GPU and hours per claim.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: one per processor.")] = None,
) -> None:
    """Test each claim of the paper and of related work by training networks, and print the verdicts.

    The results are written to claims.md, or to claims_asked.md if only some claims are tested. The exit code is 1 if a
    claim holds for its control, because the test is then meaningless. It does not depend on the other verdicts.
    """
    from empirical import dask_executor
    from empirical.studies.claims import choose_claims, format_verdicts, judge_claims, page_name

    with name_options(names="--name"):
        chosen = choose_claims(name, fast=fast)
    if show:
        for claim in chosen:
            typer.echo(f"{claim.name:<30} {'*' if claim.fast else ' '} {claim.claim}")
        return
    results = judge_claims(out, name, fast=fast, paper_scale=paper_scale, executor=dask_executor(workers=workers))
    typer.echo(format_verdicts(results))
    typer.echo(f"\npage and figures: {out / page_name(len(results))}")
    if any(result.control_holds for result in results):
        raise typer.Exit(1)


@app.command(
    "figures",
    short_help="Draw the figures of the paper.",
    epilog="Example: bnwd figures --fast --name norm --format svg --out figures",
)
def figures_command(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="One of training-curves, norm, phase-picture, periods, width, minima, full-batch. Repeat the option "
            "for more. Default: all.",
            autocompletion=complete_from(_figure_names),
        ),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of runs. Missing runs are trained. Default: the folder runs in --out.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="pdf, svg or png. Repeat the option for more. Default: pdf and png.",
            autocompletion=complete_from(lambda: ("pdf", "svg", "png")),
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Use shorter runs and fewer seeds.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="Use ConvNets on CIFAR-10. Needs a GPU and hours per figure.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: one per processor.")] = None,
) -> None:
    """Draw the figures of the paper in print quality from stored runs. Missing runs are trained."""
    import matplotlib

    from empirical import dask_executor
    from empirical.studies.paper_figures import draw_figures

    matplotlib.use("Agg")
    with name_options(names="--name", formats="--format"):
        files = draw_figures(
            out,
            name,
            runs=runs,
            fast=fast,
            paper_scale=paper_scale,
            formats=kind or ("pdf", "png"),
            executor=dask_executor(workers=workers),
        )
    for paths in files.values():
        for path in paths:
            typer.echo(path)
