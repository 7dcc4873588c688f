"""Commands that need no network: `predict` and `simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from empirical.cli.application import (
    GradientNorm,
    LearningRate,
    OptimizerName,
    Out,
    WeightDecay,
    allow_local_modules,
    app,
    name_options,
    report_errors,
)


@app.command(
    "predict",
    short_help="Predict norm, rotation and periods from lr and wd.",
    epilog="Example: bnwd predict --lr 0.5 --wd 0.01 --grad-norm 12 --grad-norm-range 1 30 --norm 9",
)
@report_errors
def predict_command(
    lr: LearningRate,
    wd: WeightDecay,
    grad_norm: GradientNorm = 1.0,
    grad_norm_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="SMALLEST LARGEST",
            help="Smallest and largest g̃ during training, e.g. 1 30. Adds bounds of the norm and whether angular jumps "
            "can occur.",
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(help="Present norm ρ. Needs --grad-norm-range. Adds when the next angular jump occurs."),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="An angular jump is a step with 1 - cos θ > δ, 0 < δ < 1. Default: 0.1.", show_default=False),
    ] = None,
    sharpness: Annotated[
        float | None,
        typer.Option(help="Largest Hessian eigenvalue at weights of norm 1. Adds the norm at the edge of stability."),
    ] = None,
    period_model: Annotated[
        Path | None,
        typer.Option(help="File written by `bnwd calibrate` for your network. Default: a small ConvNet on digits."),
    ] = None,
    optimizer: OptimizerName = "SGD()",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON. inf and NaN become null.")] = False,
) -> None:
    """Predict equilibrium norm, rotation, angular jumps and periods from formulas. Nothing is trained."""
    from empirical.cli.prediction import format_predictions, predictions, to_json_values
    from theory.optimizers import parse_optimizer

    allow_local_modules()
    with name_options(path="--period-model"):
        values = predictions(
            lr,
            wd,
            grad_norm,
            optimizer=parse_optimizer(optimizer),
            grad_norm_range=grad_norm_range,
            norm=norm,
            delta=delta,
            sharpness=sharpness,
            period_model=period_model,
        )
    typer.echo(json.dumps(to_json_values(values), indent=2) if as_json else format_predictions(values))


@app.command(
    "simulate",
    short_help="Simulate the weight norm without a network.",
    epilog="Example: bnwd simulate --lr 0.5 --wd 0.01 --grad-norm 12 --norm 3 --steps 1000 --out decay.zarr",
)
@report_errors
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
    typer.echo(f"{'status':<24} {trajectory.status.item()} after {trajectory.status_step.item()} steps")
    typer.echo(f"{'final norm':<24} {trajectory.final_norm.item():.6g}")
    if grad_norm_max is None:
        if grad_norm > 0:
            typer.echo(f"{'equilibrium norm':<24} {theory.equilibrium_norm(lr, wd, grad_norm):.6g}")
    else:
        bounds = theory.norm_bounds(lr, wd, grad_norm, grad_norm_max)
        typer.echo(f"{'bounds of the norm':<24} {bounds.lower:.6g} … {bounds.upper:.6g}")
    if out is not None:
        typer.echo(f"{'saved':<24} {out}")
