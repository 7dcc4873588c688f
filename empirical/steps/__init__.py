"""Training steps: interface, engines, and the computation of telemetry."""

from __future__ import annotations

from empirical.steps.contract import Engine, Hyper, Problem, TrainingState, WeightLayout
from empirical.steps.engines import CompiledEngine, EagerEngine, ReplicaEngine
from empirical.steps.kernel_engine import KernelEngine, is_fastest

__all__ = [
    "ENGINES",
    "CompiledEngine",
    "EagerEngine",
    "Engine",
    "Hyper",
    "KernelEngine",
    "Problem",
    "ReplicaEngine",
    "TrainingState",
    "WeightLayout",
    "choose_engine",
]

ENGINES: dict[str, type[Engine]] = {
    "eager": EagerEngine,
    "kernel": KernelEngine,
    "replicas": ReplicaEngine,
    "compiled": CompiledEngine,
}


def choose_engine(problem: Problem, batch_size: int) -> str:
    """Return the name of the fastest engine that can train a problem and needs no compiler."""
    return "kernel" if is_fastest(problem, batch_size) else "replicas"
