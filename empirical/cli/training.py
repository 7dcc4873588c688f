"""Commands that train networks: `train`, `sweep` and `calibrate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import (
    LearningRate,
    OptimizerName,
    WeightDecay,
    allow_local_modules,
    app,
    complete_from_config,
    name_options,
    report_errors,
)

# runs that take longer than this announce their cost
_LONG_SECONDS = 10


@app.command(
    "train",
    short_help="Train a network and record every step.",
    epilog="Example: bnwd train --lr 0.5 --wd 0.01 --model convnet --steps 5000 --out runs/a",
)
@report_errors
def train_command(
    lr: LearningRate,
    wd: WeightDecay,
    out: Annotated[Path, typer.Option(help="Run folder: new, or of the same run, which is then continued.")],
    model: Annotated[
        str,
        typer.Option(
            help="mlp, convnet, resnet18, transformer, or module:function for your own.",
            autocompletion=complete_from_config("DEFAULT_WIDTHS"),
        ),
    ] = "mlp",
    optimizer: OptimizerName = "SGD()",
    width: Annotated[
        int | None, typer.Option(help="Hidden units, channels or token size. Default: 64, convnet 8.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Hidden layers, convolutions or blocks. Default: 2, 3, 2.")] = None,
    normalization: Annotated[
        str,
        typer.Option(
            help="batch, layer, group, instance, rms, weight, none (as a control), or module:class.",
            autocompletion=complete_from_config("NORMALIZATIONS"),
        ),
    ] = "batch",
    norm_eps: Annotated[float, typer.Option(help="ε of the normalization.")] = 1e-12,
    scale_invariant: Annotated[bool, typer.Option(help="Train scale-invariant weights only, or all weights.")] = True,
    other_lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of weights that are not scale-invariant. 0 freezes them. Default: --lr."),
    ] = None,
    other_wd: Annotated[
        float | None, typer.Option(help="Weight decay of weights that are not scale-invariant. Default: --wd.")
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="Keep norm or effective_lr of the scale-invariant weights constant.",
            autocompletion=complete_from_config("CONSTRAINTS"),
        ),
    ] = None,
    init_norm: Annotated[float | None, typer.Option(help="Initial norm of the scale-invariant weights.")] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="digits, mnist5k, gaussian, random_labels, cifar10, …, owner/name, a path, or module:function.",
            autocompletion=complete_from_config("EMBEDDED_DATASETS"),
        ),
    ] = "digits",
    samples: Annotated[int | None, typer.Option(help="Number of training samples to use. Default: all.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the training samples kept for validation.")] = 0.0,
    label_noise: Annotated[float, typer.Option(help="Share of the training samples that get a wrong label.")] = 0.0,
    dataset_seed: Annotated[int, typer.Option(help="Random seed of --samples, --validation and --label-noise.")] = 0,
    augmentation: Annotated[
        int | None, typer.Option(help="Pad images by this many pixels, crop at random, and flip half of them.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per mini-batch.")] = 64,
    sampling: Annotated[
        str,
        typer.Option(
            help="without_replacement, with_replacement or full_batch.",
            autocompletion=complete_from_config("SAMPLINGS"),
        ),
    ] = "without_replacement",
    micro_batch: Annotated[int | None, typer.Option(help="Samples per forward pass. Default: the mini-batch.")] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Random seed of the initial weights.")] = 0,
    data_seed: Annotated[int | None, typer.Option(help="Random seed of the data order. Default: --seed.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float64 or bfloat16 (matrix products only).", autocompletion=complete_from_config("DTYPES")
        ),
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="auto, eager, kernel, replicas or compiled.", autocompletion=complete_from_config("ENGINE_NAMES")
        ),
    ] = "auto",
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 1000,
    evaluate_batches: Annotated[
        bool, typer.Option("--evaluate-batches", help="Also evaluate losses and gradients of mini-batches.")
    ] = False,
) -> None:
    """Train a network and record norms, gradients and loss at every step.

    Open the trajectory with simulate.load(out), also while the run is under way.
    """
    settings = {name: value for name, value in locals().items() if name != "out"}
    import empirical
    import simulate
    from theory.optimizers import parse_optimizer

    allow_local_modules()
    config = empirical.RunConfig(**{**settings, "optimizer": parse_optimizer(optimizer)})

    def announce(cost: empirical.RunCost) -> None:
        if cost.seconds > _LONG_SECONDS:
            typer.echo(f"bnwd: this run takes {cost}", err=True)

    trajectory = empirical.train(config, out, announce=announce)
    status = trajectory.status.item()
    typer.echo(f"{'status':<24} {status} after {trajectory.status_step.item()} steps")
    typer.echo(f"{'final norm':<24} {trajectory.final_norm.item():.6g}")
    if "test_error" in trajectory:
        typer.echo(f"{'test error':<24} {trajectory.test_error.values[-1]:.2%}")
    try:
        classification = simulate.classify(trajectory)
    except ValueError as error:
        typer.echo(f"{'norm dynamics':<24} undetermined ({error})")
    else:
        typer.echo(f"{'norm dynamics':<24} {classification} ({classification.reason})")
    typer.echo(f"{'saved':<24} {out}")
    if status != "complete":
        raise typer.Exit(1)


@app.command(
    "sweep",
    short_help="Train many runs in parallel.",
    epilog="Example: bnwd sweep sweep.toml --out sweeps/a",
)
@report_errors
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

    allow_local_modules()
    with name_options(path="file"):
        runs = empirical.read_sweep(file)
    resources = dict(_parse_number("--resource", text) for text in resource or [])
    goals = dict(_parse_number("--until", text) for text in until or [])
    for name in goals:
        if name not in ("stderr", "periods"):
            raise ValueError(f"--until must be stderr=… or periods=…, e.g. stderr=0.05, got {name}={goals[name]:g}")
    executor = empirical.dask_executor(scheduler, workers=workers, resources=resources or None)
    stderr, periods = goals.get("stderr"), round(goals["periods"]) if "periods" in goals else None
    results = empirical.sweep(
        runs,
        out,
        executor,
        until=stderr,
        periods=periods,
        max_steps=max_steps,
        threads=threads,
        traces=traces,
    )
    typer.echo(format_overview(results))
    if goals:
        typer.echo(f"{', '.join(until or []):<24} {format_goal(out, stderr, periods)}")
    typer.echo(f"{'saved':<24} {out}")
    if (results.status == "failed").any():
        raise typer.Exit(1)


def _parse_number(option: str, text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"{option} must have the form name=number, got {text!r}") from None


@app.command(
    "calibrate",
    short_help="Fit a period model to short runs of a network.",
    epilog="Example: bnwd calibrate --model mlp --width 64 --out mlp64.json",
)
@report_errors
def calibrate_command(
    out: Annotated[Path, typer.Option(help="File for the period model. An existing file is replaced.")],
    model: Annotated[str, typer.Option(help="mlp, convnet, … or module:function, as in `bnwd train`.")] = "mlp",
    lr: Annotated[float, typer.Option(help="Learning rate η of the calibration runs. Only ηλ matters.")] = 0.5,
    intrinsic_lr: Annotated[float, typer.Option(help="Largest ηλ of calibration runs and predictions.")] = 0.01,
    ratio: Annotated[float, typer.Option(help="Largest ηλ divided by smallest ηλ of the calibration runs.")] = 5.0,
    periods: Annotated[int, typer.Option(help="Number of periods to observe at each ηλ, all seeds combined.")] = 100,
    seeds: Annotated[int, typer.Option(help="Number of runs at each ηλ.")] = 2,
    width: Annotated[int | None, typer.Option(help="As in `bnwd train`.")] = None,
    depth: Annotated[int | None, typer.Option(help="As in `bnwd train`.")] = None,
    dataset: Annotated[str, typer.Option(help="As in `bnwd train`.")] = "digits",
    batch_size: Annotated[int, typer.Option(help="Samples per mini-batch. Periods depend on it.")] = 64,
    runs: Annotated[Path | None, typer.Option(help="Folder that keeps the runs for reuse.")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of processes. Default: one per processor.")] = None,
) -> None:
    """Train short calibration runs at two values of ηλ = lr * wd, and fit a period model to them.

    The period model predicts norms and periods of this network at other lr and wd. Pass its file to
    `bnwd predict --period-model`, or open it with simulate.PeriodModel.load.
    """
    import empirical
    from simulate._files import check_writable

    allow_local_modules()
    check_writable("--out", out)
    period_model = empirical.calibrate(
        model,
        lr=lr,
        intrinsic_lr=intrinsic_lr,
        ratio=ratio,
        periods=periods,
        seeds=seeds,
        out=runs,
        executor=empirical.dask_executor(workers=workers),
        width=width,
        depth=depth,
        dataset=dataset,
        batch_size=batch_size,
    )
    period_model.save(out)
    typer.echo(f"{'measured at ηλ':<22}{'verdict':<18}{'periods':>8}{'mean period':>16}{'norm / √η':>20}")
    for run in period_model.calibration_runs:
        length = _or_dash(run.period, f"{run.period:.4g} ± {run.period_stderr:.2g}")
        norms = _or_dash(run.trough_norm, f"{run.trough_norm:.3g} … {run.peak_norm:.3g}", f"{run.norm:.3g}")
        typer.echo(f"{run.intrinsic_lr:<22.3g}{run.verdict:<18}{run.count:>8}{length:>16}{norms:>20}")
    typer.echo(
        f"\n{'predicted at ηλ':<22}{'verdict':<18}{'period (steps)':>16}{'90 % interval':>18}"
        f"{'norm / √η':>20}{'sd of ln norm':>15}"
    )
    for share in (1.0, 0.5, 0.2, 0.1, 0.05):
        wd = share * intrinsic_lr / lr
        if lr * wd < period_model.calibrated_range[0] * (1 - 1e-9):
            continue
        prediction = period_model.predict(lr, wd)
        norms = _or_dash(
            prediction.trough_norm,
            f"{prediction.trough_norm / lr**0.5:.3g} … {prediction.peak_norm / lr**0.5:.3g}",
            f"{prediction.norm / lr**0.5:.3g}",
        )
        interval = length = "–"
        if prediction.verdict == "periodic" and prediction.interval is not None:
            interval = f"{prediction.interval.lower:.4g} … {prediction.interval.upper:.4g}"
            length = f"{prediction.period:.4g}"
        typer.echo(
            f"{lr * wd:<22.3g}{prediction.verdict:<18}{length:>16}{interval:>18}{norms:>20}"
            f"{prediction.log_norm_sd:>15.3f}"
        )
    if period_model.reduced_model is None:
        typer.echo(f"\nno reduced model: {period_model.reduced_model_error}")
    typer.echo(f"\n{'saved':<24}{out}")


def _or_dash(number: float, text: str, otherwise: str = "–") -> str:
    return otherwise if math.isnan(number) else text
