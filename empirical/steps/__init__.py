"""Training steps: interface, engines, and the computation of telemetry."""

from __future__ import annotations

from empirical.steps.compiled import CompiledEngine
from empirical.steps.contract import Engine, Hyper, Problem, TrainingState, WeightLayout
from empirical.steps.eager import EagerEngine
from empirical.steps.kernel_engine import KernelEngine, is_fastest
from empirical.steps.replicas import ReplicaEngine

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
    """Return the name of the fastest engine that can train a problem and needs no compiler.

    Examples
    --------
    >>> import torch, theory
    >>> model = torch.nn.Linear(3, 2)
    >>> problem = Problem(model, WeightLayout.of(model, {}), torch.zeros(1, 3), torch.zeros(1).long(), theory.SGD())
    >>> choose_engine(problem, batch_size=1)
    'replicas'
    """
    return "kernel" if is_fastest(problem, batch_size) else "replicas"
