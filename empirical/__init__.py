"""Train real networks with normalization and weight decay, and measure every step.

Names are imported on first use, so that importing this package (and `bnwd predict`) does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from empirical.calibration import calibrate as calibrate
    from empirical.config import RunConfig as RunConfig
    from empirical.groups import Group as Group
    from empirical.groups import scale_invariant_groups as scale_invariant_groups
    from empirical.groups import scaling_symmetries as scaling_symmetries
    from empirical.measures.curvature import Curvature as Curvature
    from empirical.measures.curvature import curvature as curvature
    from empirical.measures.lightning_callback import MonitorCallback as MonitorCallback
    from empirical.measures.minima import successive_minima as successive_minima
    from empirical.measures.monitor import Monitor as Monitor
    from empirical.presets import at_paper_scale as at_paper_scale
    from empirical.presets import paper_runs as paper_runs
    from empirical.reports.run_report import write_run_report as write_run_report
    from empirical.runs.cost import RunCost as RunCost
    from empirical.runs.folder import StorageError as StorageError
    from empirical.runs.loop import Interrupted as Interrupted
    from empirical.runs.loop import load_model as load_model
    from empirical.runs.loop import resume as resume
    from empirical.runs.loop import train as train
    from empirical.studies.claims import judge_claims as judge_claims
    from empirical.studies.held_out import validate_held_out as validate_held_out
    from empirical.studies.paper_figures import draw_figures as draw_figures
    from empirical.studies.validation import validate as validate
    from empirical.sweeps.grid import grid as grid
    from empirical.sweeps.grid import read_sweep as read_sweep
    from empirical.sweeps.store import open_sweep as open_sweep
    from empirical.sweeps.sweep import SweepInterrupted as SweepInterrupted
    from empirical.sweeps.sweep import WorkersLostError as WorkersLostError
    from empirical.sweeps.sweep import sweep as sweep
    from empirical.sweeps.workers import dask_executor as dask_executor

_HOMES = {
    "Curvature": "empirical.measures.curvature",
    "Group": "empirical.groups",
    "Interrupted": "empirical.runs.loop",
    "Monitor": "empirical.measures.monitor",
    "MonitorCallback": "empirical.measures.lightning_callback",
    "RunConfig": "empirical.config",
    "RunCost": "empirical.runs.cost",
    "StorageError": "empirical.runs.folder",
    "SweepInterrupted": "empirical.sweeps.sweep",
    "WorkersLostError": "empirical.sweeps.sweep",
    "at_paper_scale": "empirical.presets",
    "curvature": "empirical.measures.curvature",
    "dask_executor": "empirical.sweeps.workers",
    "draw_figures": "empirical.studies.paper_figures",
    "grid": "empirical.sweeps.grid",
    "judge_claims": "empirical.studies.claims",
    "load_model": "empirical.runs.loop",
    "open_sweep": "empirical.sweeps.store",
    "paper_runs": "empirical.presets",
    "calibrate": "empirical.calibration",
    "read_sweep": "empirical.sweeps.grid",
    "resume": "empirical.runs.loop",
    "scale_invariant_groups": "empirical.groups",
    "scaling_symmetries": "empirical.groups",
    "successive_minima": "empirical.measures.minima",
    "sweep": "empirical.sweeps.sweep",
    "train": "empirical.runs.loop",
    "validate": "empirical.studies.validation",
    "validate_held_out": "empirical.studies.held_out",
    "write_run_report": "empirical.reports.run_report",
}

__all__ = [
    "Curvature",
    "Group",
    "Interrupted",
    "Monitor",
    "MonitorCallback",
    "RunConfig",
    "RunCost",
    "StorageError",
    "SweepInterrupted",
    "WorkersLostError",
    "at_paper_scale",
    "calibrate",
    "curvature",
    "dask_executor",
    "draw_figures",
    "grid",
    "judge_claims",
    "load_model",
    "open_sweep",
    "paper_runs",
    "read_sweep",
    "resume",
    "scale_invariant_groups",
    "scaling_symmetries",
    "successive_minima",
    "sweep",
    "train",
    "validate",
    "validate_held_out",
    "write_run_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'empirical' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
