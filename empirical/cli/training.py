"""Commands that train networks: `train`, `sweep` and `calibrate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from empirical.cli.application import command, name_options, print_table
from empirical.cli.options import Workers, with_settings
from empirical.reports.tables import Cell, number_cell, number_with_error
from theory.arguments import quote

if TYPE_CHECKING:
    from empirical.runs.cost import RunCost

# runs that take longer than this announce their cost
_LONG_SECONDS = 10


def announce_cost(cost: RunCost, *, longer_than: float = _LONG_SECONDS) -> None:
    """Print on stderr what a long run costs."""
    if cost.seconds > longer_than:
        typer.echo(f"bnwd: this run takes {cost}", err=True)


@command(
    "train", "Train a network and record every step.", "--lr 0.5 --wd 0.01 --model convnet --steps 5000 --out runs/a"
)
@with_settings()
def train_command(
    out: Annotated[Path, typer.Option(help="Run folder: new, or of the same run, which is then continued.")],
    **settings: Any,
) -> None:
    """Train a network and record norms, gradients and loss at every step.

    Open the trajectory with simulate.load(out), also while the run is under way.
    """
    import empirical
    import simulate

    trajectory = empirical.train(empirical.RunConfig(**settings), out, announce=announce_cost)
    status = trajectory.status.item()
    rows = [
        ["status", f"{status} after {trajectory.status_step.item()} steps"],
        ["final norm", f"{trajectory.final_norm.item():.6g}"],
    ]
    if "test_error" in trajectory:
        rows.append(["test error", f"{trajectory.test_error.values[-1]:.2%}"])
    try:
        classification = simulate.classify(trajectory)
    except ValueError as error:
        rows.append(["norm dynamics", f"none ({error})"])
    else:
        reason = "" if classification.obstacle else f" ({classification.reason})"
        rows.append(["norm dynamics", f"{classification}{reason}"])
    print_table([*rows, ["saved", str(out)]])
    if status != "complete":
        raise typer.Exit(1)


@command("sweep", "Train many runs in parallel.", "sweep.toml --out sweeps/a")
def sweep_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="TOML file. Table [run]: settings of all runs, named as in `bnwd train`. Table [grid]: lists of "
            "values to combine. Or tables [[runs]]: one per run."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder: new, or of an earlier sweep, which is then continued.")],
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address (tcp://host:8786) or file of a Dask scheduler. Default: processes on this machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes on this machine. Default: one per processor.")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="Resource that each run needs and that workers declare, e.g. GPU=1.")
    ] = None,
    until: Annotated[
        list[str] | None,
        typer.Option(help="Extend each run until a goal: stderr=0.05 for a mean period known to 5 %, or periods=100."),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Limit for --until. Default: ten times the steps.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch in each worker.")] = 1,
    traces: Annotated[bool, typer.Option(help="Keep the trajectories, or only a summary of each run.")] = True,
) -> None:
    """Train many runs in parallel and open them as one data set with empirical.open_sweep(out).

    Complete runs are skipped and interrupted runs continue. A run with more steps continues the shorter one. The exit
    code is 1 if a run failed. A run that diverges has not failed.
    """
    import empirical
    from empirical.sweeps.store import format_goal, format_overview

    with name_options(path="file"):
        runs = empirical.read_sweep(file)
    resources = dict(_parse_number("--resource", text) for text in resource or [])
    stderr, periods = _parse_goals(until)
    results = empirical.sweep(
        runs,
        out,
        empirical.dask_executor(scheduler, workers=workers, resources=resources or None),
        until=stderr,
        periods=periods,
        max_steps=max_steps,
        threads=threads,
        traces=traces,
    )
    typer.echo(format_overview(results))
    goal_rows = [[", ".join(until), format_goal(out, stderr, periods)]] if until else []
    print_table([*goal_rows, ["saved", str(out)]])
    if (results.status == "failed").any():
        raise typer.Exit(1)


def _parse_goals(until: list[str] | None) -> tuple[float | None, int | None]:
    """Relative standard error and number of periods of `--until`."""
    goals = dict(_parse_number("--until", text) for text in until or [])
    for name in goals:
        if name not in ("stderr", "periods"):
            raise ValueError(f"--until must be stderr=… or periods=…, e.g. stderr=0.05, got {name}={goals[name]:g}")
    return goals.get("stderr"), round(goals["periods"]) if "periods" in goals else None


def _parse_number(option: str, text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"{option} must have the form name=number, got {quote(text)}") from None


@command("calibrate", "Fit a period model to short runs of a network.", "--model mlp --width 64 --out mlp64.json")
@with_settings("model", "width", "depth", "dataset", "batch_size")
def calibrate_command(
    out: Annotated[Path, typer.Option(help="File for the period model. An existing file is replaced.")],
    lr: Annotated[float, typer.Option(help="Learning rate η of the calibration runs. Only ηλ matters.")] = 0.5,
    intrinsic_lr: Annotated[float, typer.Option(help="Largest ηλ of calibration runs and predictions.")] = 0.01,
    ratio: Annotated[float, typer.Option(help="Largest ηλ divided by smallest ηλ of the calibration runs.")] = 5.0,
    until: Annotated[
        list[str] | None,
        typer.Option(
            help="Train at each ηλ until a goal, all seeds combined: stderr=0.05 for a mean period known to 5 %, or "
            "periods=100. Default: periods=100."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of runs at each ηλ.")] = 2,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the runs for reuse. Default: as OUT, ending with .runs."),
    ] = None,
    workers: Workers = None,
    **settings: Any,
) -> None:
    """Train short calibration runs at two values of ηλ = lr * wd, and fit a period model to them.

    The period model predicts norms and periods of this network at other lr and wd. Pass its file to
    `bnwd predict --period-model`, or open it with simulate.PeriodModel.load.
    """
    import empirical
    from simulate._files import check_writable

    check_writable("--out", out)
    stderr, periods = _parse_goals(until)
    period_model = empirical.calibrate(
        lr=lr,
        intrinsic_lr=intrinsic_lr,
        ratio=ratio,
        periods=periods,
        until=stderr,
        seeds=seeds,
        out=out.with_name(f"{out.name.removesuffix('.json')}.runs") if runs is None else runs,
        executor=empirical.dask_executor(workers=workers),
        **settings,
    )
    period_model.save(out)
    measured: list[list[Cell | str]] = [
        [
            f"{run.intrinsic_lr:.3g}",
            run.verdict,
            Cell(str(run.count), run.count),
            number_with_error(run.period, run.period_stderr),
            _norm_range(run.trough_norm, run.peak_norm, run.norm),
        ]
        for run in period_model.calibration_runs
    ]
    print_table(measured, ["measured at ηλ", "verdict", "periods", "mean period", "norm / √η"])
    predicted: list[list[Cell | str]] = []
    for share in (1.0, 0.5, 0.2, 0.1, 0.05):
        wd = share * intrinsic_lr / lr
        if lr * wd < period_model.calibrated_range[0] * (1 - 1e-9):
            continue
        prediction = period_model.predict(lr, wd)
        interval, period = "–", math.nan
        if prediction.verdict == "periodic" and prediction.period_interval is not None:
            interval = f"{prediction.period_interval.lower:.4g} … {prediction.period_interval.upper:.4g}"
            period = prediction.period
        norms = (norm / lr**0.5 for norm in (prediction.trough_norm, prediction.peak_norm, prediction.norm))
        spread = number_cell(prediction.log_norm_sd, ".3f")
        predicted.append(
            [f"{lr * wd:.3g}", prediction.verdict, number_cell(period), interval, _norm_range(*norms), spread]
        )
    typer.echo()
    print_table(
        predicted, ["predicted at ηλ", "verdict", "period (steps)", "90 % interval", "norm / √η", "sd of ln norm"]
    )
    if period_model.reduced_model is None:
        typer.echo(f"\nno reduced model: {period_model.reduced_model_error}")
    typer.echo(f"\nsaved  {out}")


def _norm_range(trough: float, peak: float, norm: float) -> str:
    return f"{norm:.3g}" if math.isnan(trough) else f"{trough:.3g} … {peak:.3g}"
