"""Commands that test and illustrate the paper: `validate`, `claims`, `figures` and `paper`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from empirical.cli.application import app, name_options, print_table
from empirical.cli.options import complete_from
from theory.arguments import check_choice

if TYPE_CHECKING:
    from empirical.config import RunConfig

# scale of `bnwd paper` without --full
_WIDTH, _SAMPLES = 8, 5000


def _network_names() -> Iterable[str]:
    from empirical.studies.held_out import NETWORKS

    return NETWORKS


def _claim_names() -> Iterable[str]:
    from empirical.studies.claims import CLAIMS

    return (claim.name for claim in CLAIMS)


def _experiment_names() -> Iterable[str]:
    from empirical.presets import PAPER_EXPERIMENTS

    return PAPER_EXPERIMENTS


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


@app.command(
    "paper",
    short_help="Run an experiment of the paper at its own or a smaller scale.",
    epilog="Example: bnwd paper figure-2 --dataset cifar10 --width 8 --samples 5000 --out paper",
)
def paper_command(
    experiment: Annotated[
        str | None, typer.Argument(help="Name from --list.", autocompletion=complete_from(_experiment_names))
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List all experiments with their number of runs and cost. Train nothing.")
    ] = False,
    network: Annotated[
        str,
        typer.Option(
            help="convnet (on CIFAR-10) or resnet18 (on CIFAR-100).",
            autocompletion=complete_from(lambda: ("convnet", "resnet18")),
        ),
    ] = "convnet",
    full: Annotated[
        bool, typer.Option("--full", help="The original scale: 32 or 64 channels, 50 000 images, 1001 epochs.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Name or path of the data. Default: that of the paper, from Hugging Face.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the first convolution. Default: 8.")] = None,
    samples: Annotated[int | None, typer.Option(help="Number of training images. Default: 5000.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs. Default: 1001.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for runs, table and figure. Runs that are there are reused.")
    ] = Path("paper"),
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: one per processor.")] = None,
) -> None:
    """Train the networks of one experiment of the paper, draw its figure, and compare each run with the theory.

    With fewer images the weight decay grows, so that an epoch has as many memories 1/(ηλ). A call that was interrupted
    continues. The table has the verdict, the period, and the largest error of the replay of each run.
    """
    import matplotlib

    from empirical import dask_executor
    from empirical.presets import PAPER_EXPERIMENTS, paper_runs
    from empirical.studies.paper_experiments import estimate_costs, run_experiment

    sizes: dict[str, int | None] = {"width": width, "samples": samples, "epochs": epochs}
    if full and any(size is not None for size in sizes.values()):
        raise ValueError("--width, --samples and --epochs must be left out with --full")

    def runs_of(name: str) -> tuple[RunConfig, ...]:
        scaled = dict(sizes)
        if not full:
            scaled["width"] = width or _WIDTH
            if samples is None and PAPER_EXPERIMENTS[name].is_in_paper:
                scaled["samples"] = _SAMPLES
        return paper_runs(name, network, dataset=dataset, **scaled)

    with name_options(experiment="EXPERIMENT", network="--network"):
        if show:
            rows = []
            for name, listed in PAPER_EXPERIMENTS.items():
                runs = runs_of(name)
                rows.append([name, listed.title, str(len(runs)), *estimate_costs(runs)])
            print_table(rows, ["experiment", "what", "runs", "time here", "on a GPU"])
            return
        if experiment is None:
            raise ValueError("EXPERIMENT must be a name from bnwd paper --list, got none")
        check_choice("experiment", experiment, PAPER_EXPERIMENTS)
        runs = runs_of(experiment)
    matplotlib.use("Agg")
    here, there = estimate_costs(runs)
    typer.echo(f"bnwd: {len(runs)} runs, about {here} of one processor here, or {there} on a GPU", err=True)
    options = {"network": network, "dataset": dataset, **sizes}
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    result = run_experiment(
        PAPER_EXPERIMENTS[experiment],
        runs,
        out,
        command=shlex.join(["bnwd", "paper", experiment, *words, *(["--full"] if full else [])]),
        executor=dask_executor(workers=workers),
    )
    typer.echo(result.table.text())
    for path in result.files:
        typer.echo(path)
