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
    app,
    errors_in_one_line,
    find_modules_here,
    naming,
)


@app.command(
    short_help="What follows from lr and wd, by formula alone.",
    epilog="Example: bnwd predict --lr 0.5 --wd 0.01 --grad-norm 12 --grad-norm-range 1 30 --norm 9",
)
@errors_in_one_line
def predict(
    lr: LearningRate,
    wd: WeightDecay,
    grad_norm: GradientNorm = 1.0,
    grad_norm_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LEAST LARGEST",
            help="Two numbers between which g̃ stays, such as 1 30: adds bounds of the norm, and whether jumps are "
            "possible.",
        ),
    ] = None,
    norm: Annotated[
        float | None, typer.Option(help="Norm ρ now: with the range, adds when a jump is possible and certain.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="A δ-jump is a step with 1 - cos(rotation) > δ, 0 < δ < 1; default 0.1.", show_default=False),
    ] = None,
    sharpness: Annotated[
        float | None,
        typer.Option(help="Top Hessian eigenvalue at weights of norm 1: adds the edge of stability."),
    ] = None,
    period_model: Annotated[
        Path | None,
        typer.Option(help="File of `bnwd calibrate`, for periods of that network; default a small ConvNet."),
    ] = None,
    optimizer: OptimizerName = "SGD()",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, inf and NaN as null.")] = False,
) -> None:
    """Say where norm and rotation settle, when steps become jumps and how long periods are, by formula alone."""
    from empirical.cli.prediction import as_plain, format_predictions, predictions
    from theory.optimizers import parse_optimizer

    find_modules_here()
    with naming(path="--period-model"):
        found = predictions(
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
    typer.echo(json.dumps(as_plain(found), indent=2) if as_json else format_predictions(found))


@app.command(
    short_help="The norm without a network.",
    epilog="Example: bnwd simulate --lr 0.5 --wd 0.01 --grad-norm 12 --norm 3 --steps 1000 --out fall.zarr",
)
@errors_in_one_line
def simulate(
    lr: LearningRate,
    wd: WeightDecay,
    norm: Annotated[float, typer.Option(help="Norm ρ > 0 at the start.")],
    grad_norm: GradientNorm = 1.0,
    grad_norm_max: Annotated[
        float | None,
        typer.Option(help="With it, g̃ is uniform between --grad-norm and this, independently at every step."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 10_000,
    record_every: Annotated[int, typer.Option(help="Steps between the rows that are kept.")] = 1,
    seed: Annotated[int, typer.Option(help="Of random gradient norms.")] = 0,
    out: Out = None,
) -> None:
    """Iterate the exact law of the norm, without a network; --out saves the trajectory for simulate.load."""
    import simulate as floor
    import theory
    from simulate._files import check_unused

    if out is not None:
        check_unused("--out", out)
    gradient = grad_norm if grad_norm_max is None else floor.BoundedGradient(grad_norm, grad_norm_max)
    trajectory = floor.norm_map(lr, wd, gradient, norm=norm, steps=steps, record_every=record_every, seed=seed)
    if out is not None:
        floor.save(trajectory, out)
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
