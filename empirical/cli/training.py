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
    app,
    completed_from_config,
    errors_in_one_line,
    find_modules_here,
    naming,
)

# seconds from which a run says beforehand what it will need
_LONG = 10


@app.command(
    short_help="Train a network and measure every step.",
    epilog="Example: bnwd train --lr 0.5 --wd 0.01 --model convnet --steps 5000 --out runs/a",
)
@errors_in_one_line
def train(
    lr: LearningRate,
    wd: WeightDecay,
    out: Annotated[Path, typer.Option(help="Run folder: new, or of the same run, which is then continued.")],
    model: Annotated[
        str,
        typer.Option(
            help="mlp, convnet, resnet18, transformer, or module:function.",
            autocompletion=completed_from_config("MODELS"),
        ),
    ] = "mlp",
    optimizer: OptimizerName = "SGD()",
    width: Annotated[
        int | None, typer.Option(help="Units, channels or size of a token; default 64, convnet 8.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Hidden layers, convolutions or blocks; default 2, 3, 2.")] = None,
    normalization: Annotated[
        str,
        typer.Option(
            help="batch, layer, group, instance, rms, weight, none as a control, or module:class.",
            autocompletion=completed_from_config("NORMALIZATIONS"),
        ),
    ] = "batch",
    norm_eps: Annotated[float, typer.Option(help="ε of the normalization.")] = 1e-12,
    scale_invariant: Annotated[bool, typer.Option(help="Train scale-invariant weights only, or everything.")] = True,
    other_lr: Annotated[
        float | None, typer.Option(help="Learning rate of weights that are not scale-invariant; 0 freezes them.")
    ] = None,
    other_wd: Annotated[float | None, typer.Option(help="Weight decay of those; default: the same.")] = None,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="Hold norm or effective_lr of the scale-invariant weights.",
            autocompletion=completed_from_config("CONSTRAINTS"),
        ),
    ] = None,
    init_norm: Annotated[float | None, typer.Option(help="Norm of the scale-invariant weights at the start.")] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="digits, mnist5k, gaussian, random_labels, cifar10, …, owner/name, a path, or module:function.",
            autocompletion=completed_from_config("EMBEDDED_DATASETS"),
        ),
    ] = "digits",
    samples: Annotated[int | None, typer.Option(help="Training samples to keep; default all.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the training samples to set apart.")] = 0.0,
    label_noise: Annotated[float, typer.Option(help="Share of the training samples with a wrong label.")] = 0.0,
    dataset_seed: Annotated[int, typer.Option(help="Of these three choices.")] = 0,
    augmentation: Annotated[
        int | None, typer.Option(help="Crop images at random after so many pixels of padding, and flip half.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples of a mini-batch.")] = 64,
    sampling: Annotated[
        str,
        typer.Option(
            help="without_replacement, with_replacement or full_batch.",
            autocompletion=completed_from_config("SAMPLINGS"),
        ),
    ] = "without_replacement",
    micro_batch: Annotated[int | None, typer.Option(help="Samples that go through the network at a time.")] = None,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    data_seed: Annotated[int | None, typer.Option(help="Of the order of the data; default: the seed.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float64 or bfloat16 (matrix products only).", autocompletion=completed_from_config("DTYPES")
        ),
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="auto, eager, kernel, replicas or compiled.", autocompletion=completed_from_config("ENGINES")
        ),
    ] = "auto",
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 1000,
    evaluate_batches: Annotated[
        bool, typer.Option("--evaluate-batches", help="Evaluate losses and gradients of mini-batches too.")
    ] = False,
) -> None:
    """Train a network and measure every step; simulate.load(out) opens the trajectory, also while it runs."""
    settings = {name: value for name, value in locals().items() if name != "out"}
    import empirical
    import simulate as floor
    from theory.optimizers import parse_optimizer

    find_modules_here()
    config = empirical.RunConfig(**{**settings, "optimizer": parse_optimizer(optimizer)})

    def announce(cost: empirical.RunCost) -> None:
        if cost.seconds > _LONG:
            typer.echo(f"bnwd: this run takes {cost}", err=True)

    trajectory = empirical.train(config, out, announce=announce)
    status = trajectory.status.item()
    typer.echo(f"{'status':<24} {status} after {trajectory.status_step.item()} steps")
    typer.echo(f"{'final norm':<24} {trajectory.final_norm.item():.6g}")
    if "test_error" in trajectory:
        typer.echo(f"{'test error':<24} {trajectory.test_error.values[-1]:.2%}")
    try:
        judged = floor.classify(trajectory)
    except ValueError as error:
        typer.echo(f"{'norm dynamics':<24} not to be said: {error}")
    else:
        typer.echo(f"{'norm dynamics':<24} {judged} ({judged.reason})")
    typer.echo(f"{'saved':<24} {out}")
    if status != "complete":
        raise typer.Exit(1)


@app.command(
    short_help="Train many runs side by side.",
    epilog="Example: bnwd sweep sweep.toml --out sweeps/a",
)
@errors_in_one_line
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help="TOML file: a table [run] with settings of all runs, named as in `bnwd train`, and a table [grid] "
            "with lists of values, or tables [[runs]]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder: new, or of an earlier sweep, which then goes on.")],
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address (tcp://host:8786) or scheduler file of a Dask cluster; default: processes here."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes on this machine; default one for each processor.")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="What a run needs of what the workers declare, such as GPU=1.")
    ] = None,
    until: Annotated[
        list[str] | None,
        typer.Option(help="stderr=0.05: extend runs until their mean period is known to 5 %; periods=100: to so many."),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Of an extended run; default ten times its steps.")] = None,
    threads: Annotated[int, typer.Option(help="Of PyTorch in each worker.")] = 1,
    traces: Annotated[bool, typer.Option(help="Keep the trajectories, or only a summary of each run.")] = True,
) -> None:
    """Train many runs side by side; empirical.open_sweep(out) opens them as one data set, also while they run.

    What is done is skipped, interrupted runs go on, longer ones continue shorter ones. Exit code 1 if a run failed;
    divergence is no failure.
    """
    import empirical
    from empirical.sweeps.store import goal_line, overview

    find_modules_here()
    with naming(path="file"):
        runs = empirical.read_sweep(file)
    resources = dict(_named_number("--resource", text) for text in resource or [])
    wanted = dict(_named_number("--until", text) for text in until or [])
    for name in wanted:
        if name not in ("stderr", "periods"):
            raise ValueError(f"--until must be stderr=… or periods=…, such as stderr=0.05, got {name}={wanted[name]:g}")
    executor = empirical.dask_executor(scheduler, workers=workers, resources=resources or None)
    stderr, periods = wanted.get("stderr"), round(wanted["periods"]) if "periods" in wanted else None
    found = empirical.sweep(
        runs,
        out,
        executor,
        until=stderr,
        periods=periods,
        max_steps=max_steps,
        threads=threads,
        traces=traces,
    )
    typer.echo(overview(found))
    if wanted:
        typer.echo(f"{', '.join(until or []):<24} {goal_line(out, stderr, periods)}")
    typer.echo(f"{'saved':<24} {out}")
    if (found.status == "failed").any():
        raise typer.Exit(1)


def _named_number(option: str, text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"{option} must be written like name=number, got {text!r}") from None


@app.command(
    short_help="Train a network shortly, to predict its periods.",
    epilog="Example: bnwd calibrate --model mlp --width 64 --out mlp64.json",
)
@errors_in_one_line
def calibrate(
    out: Annotated[Path, typer.Option(help="File for the period model, for simulate.PeriodModel.load; replaced.")],
    model: Annotated[str, typer.Option(help="mlp, convnet, … or module:function, as in `bnwd train`.")] = "mlp",
    lr: Annotated[float, typer.Option(help="Learning rate η of the probe; its product with λ is what matters.")] = 0.5,
    intrinsic_lr: Annotated[float, typer.Option(help="Upper ηλ of the probe, the largest asked for later.")] = 0.01,
    ratio: Annotated[float, typer.Option(help="Upper over lower ηλ.")] = 5.0,
    periods: Annotated[int, typer.Option(help="Wanted at each ηλ, of all seeds together.")] = 100,
    seeds: Annotated[int, typer.Option(help="Runs at each ηλ.")] = 2,
    width: Annotated[int | None, typer.Option(help="As in `bnwd train`.")] = None,
    depth: Annotated[int | None, typer.Option(help="As in `bnwd train`.")] = None,
    dataset: Annotated[str, typer.Option(help="As in `bnwd train`.")] = "digits",
    batch_size: Annotated[int, typer.Option(help="Samples of a mini-batch; each has periods of its own.")] = 64,
    runs: Annotated[Path | None, typer.Option(help="Folder that keeps the runs, to be used again.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default one for each processor.")] = None,
) -> None:
    """Train a network shortly at two values of lr * wd, and predict its periods at others."""
    import empirical
    from simulate._files import check_writable

    find_modules_here()
    check_writable("--out", out)
    found = empirical.calibrate(
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
    found.save(out)
    typer.echo(f"{'measured at lr * wd':<22}{'verdict':<18}{'periods':>8}{'steps':>16}{'norm / root of lr':>20}")
    for segment in found.calibration_runs:
        length = _or_dash(segment.period, f"{segment.period:.4g} ± {segment.period_stderr:.2g}")
        norms = _or_dash(
            segment.trough_norm, f"{segment.trough_norm:.3g} … {segment.peak_norm:.3g}", f"{segment.norm:.3g}"
        )
        typer.echo(f"{segment.intrinsic_lr:<22.3g}{segment.verdict:<18}{segment.count:>8}{length:>16}{norms:>20}")
    typer.echo(
        f"\n{'expected at lr * wd':<22}{'verdict':<18}{'period in steps':>16}{'(90 %)':>18}"
        f"{'norm / root of lr':>20}{'sd of ln norm':>15}"
    )
    for share in (1.0, 0.5, 0.2, 0.1, 0.05):
        wd = share * intrinsic_lr / lr
        if lr * wd < found.calibrated_range[0] * (1 - 1e-9):
            continue
        expected = found.predict(lr, wd)
        norms = _or_dash(
            expected.trough_norm,
            f"{expected.trough_norm / lr**0.5:.3g} … {expected.peak_norm / lr**0.5:.3g}",
            f"{expected.norm / lr**0.5:.3g}",
        )
        known = length = "–"
        if expected.verdict == "periodic" and expected.interval is not None:
            known = f"{expected.interval.lower:.4g} … {expected.interval.upper:.4g}"
            length = f"{expected.period:.4g}"
        typer.echo(
            f"{lr * wd:<22.3g}{expected.verdict:<18}{length:>16}{known:>18}{norms:>20}{expected.log_norm_sd:>15.3f}"
        )
    if found.reduced_model is None:
        typer.echo(f"\nno reduced model: {found.reduced_model_error}")
    typer.echo(f"\n{'saved':<24}{out}")


def _or_dash(number: float, text: str, otherwise: str = "–") -> str:
    return otherwise if math.isnan(number) else text
