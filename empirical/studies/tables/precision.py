"""Periods in float32 and bfloat16: `python -m empirical.studies.tables.precision` prints the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import xarray as xr

import simulate
from empirical.config import RunConfig
from empirical.runs.loop import train
from simulate.trajectories.periods import MeasuredPeriods

PRECISION_SETTINGS = tuple(
    RunConfig(lr=0.5, wd=wd, model=model, steps=steps, evaluate_every=steps)
    for model, wd, steps in [
        ("convnet", 0.02, 15_000),
        ("convnet", 0.01, 25_000),
        ("mlp", 0.02, 30_000),
        ("mlp", 0.01, 30_000),
    ]
)
PERIOD_QUANTITIES = ("lengths", "trough_norms", "peak_norms")


def train_in_both_precisions(config: RunConfig) -> dict[str, xr.Dataset]:
    """Train a setting in both precisions.

    Examples
    --------
    >>> list(train_in_both_precisions(RunConfig(lr=0.5, wd=0.02, width=4, steps=5)))
    ['float32', 'bfloat16']
    """
    return {dtype: train(dataclasses.replace(config, dtype=dtype)) for dtype in ("float32", "bfloat16")}


def means_and_errors(periods: Mapping[str, MeasuredPeriods], quantity: str) -> dict[str, tuple[float, float]]:
    """Mean and standard error of one quantity of the periods, for each precision.

    Parameters
    ----------
    periods : periods by precision.
    quantity : "lengths" (steps), "trough_norms" or "peak_norms" (ρ).
    """
    values = {dtype: np.asarray(getattr(measured, quantity)) for dtype, measured in periods.items()}
    return {dtype: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for dtype, v in values.items()}


def _print_table() -> None:
    """Print the table of all settings."""
    print("| network, lr = 0.5 | wd | float32: period, steps | bfloat16 |")
    print("| --- | --- | --- | --- |")
    for config in PRECISION_SETTINGS:
        periods = {dtype: simulate.find_periods(run) for dtype, run in train_in_both_precisions(config).items()}
        lengths = means_and_errors(periods, "lengths")
        cells = [f"{lengths[d][0]:.3g} ± {lengths[d][1]:.2g} ({periods[d].count} periods)" for d in lengths]
        print(f"| {config.model} | {config.wd:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    _print_table()
