"""Minima of successive periods of a training: their distances, their errors, and the loss between them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import simulate
import theory
from empirical.config import RunConfig
from empirical.data import Data
from empirical.runs.evaluation import model_outputs, set_training_statistics
from empirical.runs.folder import temporary_folder
from empirical.runs.loop import train
from empirical.runs.preparation import prepare
from empirical.runs.snapshots import networks_at
from theory.arguments import FloatArray, check_integer, check_items, check_path

# share of a period over which the mini-batch loss is averaged, and least number of steps
_SMOOTHED, _LEAST_SMOOTHED = 0.02, 5
_PATHS = ("linear", "great_circle")


def successive_minima(
    config: RunConfig,
    *,
    periods: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    points: int = 21,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train a periodic network, save it at the minimum of each period, and compare these minima.

    A minimum is the step between two destabilizations with the lowest loss, averaged over 2 % of the period. Each
    network is trained twice with bitwise equal results: once to locate the minima, once to save the network there.

    Parameters
    ----------
    config : configuration of the runs, with enough steps for the periods after the first 2/ηλ steps.
    periods : number of successive minima, at least 2.
    seeds : seeds of the runs.
    points : points on each path between successive minima, ends included.
    out : folder of the runs and of the networks at the minima, `seed-…/…-step-….pt`, which are reused; None keeps
        none.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    Dataset with the dimensions `seed`, `minimum`, and

    - `step`, `norm`, `train_loss`, `train_error`, `test_error` of each minimum, in eval mode with the batch statistics
      of the whole training set;
    - `ensemble_test_error` of the mean probabilities of the minima up to this one;
    - `angle` (radians) and `distance` between the scale-invariant weights of two minima, along `minimum` and `other`;
    - `path_loss`, training loss along `path` ("linear", or "great_circle": each scale-invariant group rotates at
      constant speed), `gap` (from one minimum to the next) and `share` of the path; `barrier` is its maximum minus the
      higher end.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or a run has fewer periods.

    Source: arXiv 2106.15739 §5 (minima of successive periods).

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.02, width=64, steps=900)
    >>> minima = successive_minima(config, periods=2, seeds=[0], points=3)
    >>> minima.angle.dims, minima.path_loss.shape, float(minima.angle.isel(seed=0, minimum=1, other=1))
    (('seed', 'minimum', 'other'), (1, 2, 1, 3), 0.0)
    """
    periods, points = check_integer("periods", periods, at_least=2), check_integer("points", points, at_least=3)
    if not isinstance(config, RunConfig):
        raise TypeError(f"config must be a RunConfig, got {type(config).__name__}")
    seeds = [check_integer("seeds", seed) for seed in check_items("seeds", seeds)]
    if not seeds:
        raise ValueError("seeds must be at least one, got none")
    target = None if out is None else check_path("out", out)
    with ExitStack() as opened:
        folder = target or opened.enter_context(temporary_folder())
        datasets = [
            _compare_minima(dataclasses.replace(config, seed=seed), folder / f"seed-{seed}", periods, points, progress)
            for seed in seeds
        ]
    minima = xr.concat(datasets, xr.DataArray(list(seeds), dims="seed", name="seed"))
    units = {"norm": "weight", "distance": "weight", "angle": "radian", "step": "step"}
    for name in map(str, minima.variables):
        minima[name].attrs["units"] = units.get(name, "1")
    return minima.assign_attrs(source="minima", version=theory.__version__, config=repr(config))


def _compare_minima(config: RunConfig, folder: Path, periods: int, points: int, progress: bool | None) -> xr.Dataset:
    run = train(config, folder / "whole", progress=progress)
    steps = minimum_steps(run, periods)
    setup = prepare(config)
    layout = setup.problem.layout
    groups = {
        group: [
            name for name, (place, _) in layout.places.items() if part.start <= place.start and place.stop <= part.stop
        ]
        for group, part in layout.groups.items()
    }
    networks = networks_at(config, steps, folder, progress=progress)
    weights = [_flat_weights(network, [n for names in groups.values() for n in names]) for network in networks]
    scores = [_scores(network, setup.data) for network in networks]
    norms = np.array([float(w.norm()) for w in weights])
    cosines = np.array([[float(a @ b) / (float(a.norm()) * float(b.norm())) for b in weights] for a in weights])
    angle = np.arccos(np.clip(cosines, -1, 1))
    np.fill_diagonal(angle, 0.0)
    variables = {
        "step": ("minimum", np.array(steps)),
        "norm": ("minimum", norms),
        "angle": (("minimum", "other"), angle),
        "distance": (("minimum", "other"), np.array([[float((a - b).norm()) for b in weights] for a in weights])),
        **{
            name: ("minimum", np.array([score[name] for score in scores]))
            for name in ("train_loss", "train_error", "test_error")
        },
        "ensemble_test_error": ("minimum", ensemble_errors(networks, setup.data)),
    }
    shares = np.linspace(0, 1, points)
    losses = np.empty((len(_PATHS), len(networks) - 1, points))
    for path, gap, at in np.ndindex(losses.shape):
        ends = networks[gap], networks[gap + 1]
        losses[path, gap, at] = _loss_between(*ends, groups, _PATHS[path], float(shares[at]), setup.data)
    variables["path_loss"] = (("path", "gap", "share"), losses)
    variables["barrier"] = (("path", "gap"), losses.max(axis=2) - np.maximum(losses[..., 0], losses[..., -1]))
    return xr.Dataset(variables, {"share": shares, "path": np.array(_PATHS, dtype=object)})


def minimum_steps(run: xr.Dataset, periods: int) -> list[int]:
    """Steps of the lowest averaged loss in each of the last `periods` successive periods of a run."""
    measured = simulate.find_periods(run)
    if measured.count < periods:
        raise ValueError(
            f"config must have at least {periods} periods after the first 2/(lr * wd) steps, got {measured.count}"
        )
    width = max(_LEAST_SMOOTHED, round(_SMOOTHED * measured.mean))
    loss = run.loss.values.astype(float)
    smooth = np.convolve(np.pad(loss, width, mode="edge"), np.ones(width) / width, mode="same")[width:-width]
    first = int(run.step[0])
    ends = measured.onsets[-periods - 1 :] - first
    return [first + int(a + np.argmin(smooth[a:b])) for a, b in itertools.pairwise(ends)]


def _flat_weights(network: nn.Module, names: Sequence[str]) -> Tensor:
    parameters = dict(network.named_parameters())
    return torch.cat([parameters[name].detach().double().reshape(-1) for name in names])


def _scores(network: nn.Module, data: Data) -> dict[str, float]:
    outputs = model_outputs(network, data, data.inputs)
    scores = {
        "train_loss": float(cross_entropy(outputs, data.targets)),
        "train_error": _error(outputs, data.targets),
        "test_error": math.nan,
    }
    if data.test_inputs is not None and data.test_targets is not None:
        scores["test_error"] = _error(model_outputs(network, data, data.test_inputs), data.test_targets)
    return scores


def _error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(dim=1) != targets).double().mean())


def ensemble_errors(networks: Sequence[nn.Module], data: Data) -> FloatArray:
    """Test errors of the mean probabilities of the first network, the first two, and so on; NaN without a test set."""
    if data.test_inputs is None or data.test_targets is None:
        return np.full(len(networks), np.nan)
    probabilities = torch.stack(
        [torch.softmax(model_outputs(network, data, data.test_inputs), dim=1) for network in networks]
    )
    return np.array([_error(probabilities[: n + 1].mean(dim=0), data.test_targets) for n in range(len(networks))])


def _loss_between(
    first: nn.Module, second: nn.Module, groups: dict[str, list[str]], path: str, share: float, data: Data
) -> float:
    """Training loss at a share of the path from one network to another."""
    between = copy.deepcopy(first)
    ends = [dict(network.named_parameters()) for network in (first, second)]
    middle = dict(between.named_parameters())
    rotated = {name for names in groups.values() for name in names} if path == "great_circle" else set()
    with torch.no_grad():
        for name, parameter in middle.items():
            if name not in rotated:
                parameter.copy_((1 - share) * ends[0][name] + share * ends[1][name])
        for names in groups.values() if rotated else ():
            a, b = (_flat_weights(network, names) for network in (first, second))
            at = 0
            point = great_circle_point(a, b, share)
            for name in names:
                size = middle[name].numel()
                middle[name].copy_(point[at : at + size].reshape(middle[name].shape))
                at += size
    between.eval()
    return float(cross_entropy(set_training_statistics(between, data), data.targets))


def great_circle_point(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Vector at a share of the angle between two vectors; its norm is interpolated geometrically."""
    norms = float(first.norm()), float(second.norm())
    a, b = first / norms[0], second / norms[1]
    angle = math.acos(max(-1.0, min(1.0, float(a @ b))))
    length = norms[0] ** (1 - share) * norms[1] ** share
    # at angle 0 any weights do
    sides = (1 - share, share, 1.0) if angle < 1e-9 else tuple(math.sin(x * angle) for x in (1 - share, share, 1.0))
    point: Tensor = (a * sides[0] + b * sides[1]) * (length / sides[2])
    return point
