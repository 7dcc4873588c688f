"""Calibrate `simulate.PeriodModel.reference()`: `python -m empirical.studies.reference_model RUNS MODEL.json`."""

from __future__ import annotations

import sys
from pathlib import Path

import simulate
from empirical.config import RunConfig
from empirical.runs.loop import train

# ηλ = 0.01 and a fifth of it, two seeds each: about 400 and 120 periods
CALIBRATION_RUNS = tuple(
    RunConfig(lr=0.5, wd=wd, model="convnet", steps=steps, seed=seed, evaluate_every=5000)
    for wd, steps in ((0.02, 30_000), (0.004, 60_000))
    for seed in (0, 1)
)


def calibrate_reference(runs: Path, target: Path) -> simulate.PeriodModel:
    """Train or continue the `CALIBRATION_RUNS` in a folder, and write the period model that is fitted to them."""
    model = simulate.PeriodModel.from_runs(
        [train(config, out=runs / f"wd={config.wd:g} seed={config.seed}") for config in CALIBRATION_RUNS]
    )
    model.save(target)
    return model


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m empirical.studies.reference_model RUNS MODEL.json")
    calibrate_reference(Path(sys.argv[1]), Path(sys.argv[2]))
