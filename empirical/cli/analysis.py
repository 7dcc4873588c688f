"""Commands that train nothing: `simulate`, `explore`, `diagnose` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from empirical.cli.application import command, name_options, print_table
from empirical.cli.options import GradientNorm, LearningRate, Out, WeightDecay, load_period_model, optimizer_option
from theory.arguments import quote


@command(
    "simulate",
    "Simulate the weight norm without a network.",
    "--lr 0.5 --wd 0.01 --grad-norm 12 --norm 3 --steps 1000 --out decay.zarr",
)
def simulate_command(
    lr: LearningRate,
    wd: WeightDecay,
    norm: Annotated[float, typer.Option(help="Initial norm ρ > 0.")],
    grad_norm: GradientNorm = 1.0,
    grad_norm_max: Annotated[
        float | None,
        typer.Option(help="Draw g̃ uniformly between --grad-norm and this value, independently at every step."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 10_000,
    record_every: Annotated[int, typer.Option(help="Steps between recorded rows.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed of the gradient norms.")] = 0,
    out: Out = None,
) -> None:
    """Iterate the exact one-step law of the weight norm, without a network.

    --out saves the trajectory. Open it with simulate.load.
    """
    import simulate
    import theory
    from simulate._files import check_unused

    if out is not None:
        check_unused("--out", out)
    gradient = grad_norm if grad_norm_max is None else simulate.BoundedGradient(grad_norm, grad_norm_max)
    trajectory = simulate.norm_map(lr, wd, gradient, norm=norm, steps=steps, record_every=record_every, seed=seed)
    if out is not None:
        simulate.save(trajectory, out)
    rows = [
        ["status", f"{trajectory.status.item()} after {trajectory.status_step.item()} steps"],
        ["final norm", f"{trajectory.final_norm.item():.6g}"],
    ]
    if grad_norm_max is not None:
        bounds = theory.norm_bounds(lr, wd, grad_norm, grad_norm_max)
        rows.append(["bounds of the norm", f"{bounds.lower:.6g} … {bounds.upper:.6g}"])
    elif grad_norm > 0:
        rows.append(["equilibrium norm", f"{theory.equilibrium_norm(lr, wd, grad_norm):.6g}"])
    if out is not None:
        rows.append(["saved", str(out)])
    print_table(rows)


@command("diagnose", "Find out why the loss of a training spiked.", "log.csv --wd 0.0005 --picture spikes.png")
def diagnose_command(
    log: Annotated[
        list[Path],
        typer.Argument(
            help="CSV or other table, JSON (lines, trainer_state.json, Keras history), text that a training printed, "
            "TensorBoard event file, or a folder with one of them. Its content decides. Several files of one run are "
            "joined by step."
        ),
    ],
    lr: Annotated[float | None, typer.Option(help="Learning rate, if it is constant and not in the log.")] = None,
    wd: Annotated[float | None, typer.Option(help="Weight decay, if it is not in the log.")] = None,
    optimizer: Annotated[str | None, optimizer_option] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a column: loss=NAME, lr=…, wd=…, norm=…, gradient=… or step=…; without a name the column is "
            "left out."
        ),
    ] = None,
    steps_by_row: Annotated[
        bool, typer.Option("--steps-by-row", help="Number the rows; ignore the steps in the log.")
    ] = False,
    steps_per_row: Annotated[
        int | None,
        typer.Option(
            help="Steps from each row to the next, if the log has no steps or one row per epoch.", metavar="N"
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Image file: save a figure with the spikes marked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON. NaN becomes null.")] = False,
) -> None:
    """Find the cause of each loss spike: weight norm, bad batch, lr step, change of data or overflow.

    The log should have loss, lr, norm of the scale-invariant weights and norm of their gradient at every step. The
    report names columns that are missing or that contradict the update rule. With loss and learning rate alone, most
    causes stay unknown. The exit code is 0 for every cause.
    """
    import simulate
    from simulate._files import atomic_write, check_writable
    from theory.optimizers import check_optimizer

    names = {}
    for text in column or []:
        meaning, equals, name = text.partition("=")
        if not equals:
            raise ValueError(f"--column must have the form loss=NAME, got {quote(text)}")
        names[meaning] = name
    if picture is not None:
        check_writable("--picture", picture)
    columns: dict[str, Any] = {"names": names or None, "steps_by_row": steps_by_row, "steps_per_row": steps_per_row}
    options = {"names": "--column", "steps_by_row": "--steps-by-row", "steps_per_row": "--steps-per-row"}
    with name_options(**options, path="log"):
        rule = None if optimizer is None else check_optimizer(optimizer)
        diagnosis = simulate.diagnose(log, lr=lr, wd=wd, optimizer=rule, **columns)
    if picture is not None:
        import matplotlib

        matplotlib.use("Agg")
        figure = simulate.plots.plot_diagnosis(diagnosis)[0].get_figure(root=True)
        assert figure is not None
        with atomic_write(picture) as aside:
            figure.savefig(aside, format=picture.suffix[1:] or "png", dpi=120)
    typer.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))


@command("report", "Write a report of a run or a sweep.", "runs/a --out report.html")
def report_command(
    source: Annotated[Path, typer.Argument(help="Folder of a run or a sweep, or a saved trajectory.")],
    out: Annotated[Path, typer.Option(help="HTML file. An existing file is replaced.")] = Path("report.html"),
    period_model: Annotated[
        Path | None,
        typer.Option(
            help="File written by `bnwd calibrate` for this network, or the word reference. Adds predicted periods."
        ),
    ] = None,
) -> None:
    """Write a report of a run or a sweep: predictions next to measurements, figures and settings.

    The report is one HTML file that loads nothing from the internet.
    """
    import matplotlib

    import empirical

    matplotlib.use("Agg")
    model = None if period_model is None else load_period_model(period_model)
    with name_options(path="--out"):
        typer.echo(empirical.write_run_report(source, out, model=model))


@command("explore", "Write an interactive page with sliders for lr and wd.", "--out explorer.html")
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
