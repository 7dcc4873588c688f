"""Training steps: the contract, its engines, and the one function that computes the telemetry."""

from __future__ import annotations

from empirical.steps.compiled import CompiledEngine
from empirical.steps.contract import Engine, Hyper, Layout, Problem, State
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
    "Layout",
    "Problem",
    "ReplicaEngine",
    "State",
    "chosen_engine",
]

ENGINES: dict[str, type[Engine]] = {
    "eager": EagerEngine,
    "kernel": KernelEngine,
    "replicas": ReplicaEngine,
    "compiled": CompiledEngine,
}


def chosen_engine(problem: Problem, batch_size: int) -> str:
    """Name of the fastest engine that can train a problem without a compiler on the machine.

    Examples
    --------
    >>> import torch, theory
    >>> model = torch.nn.Linear(3, 2)
    >>> problem = Problem(model, Layout.of(model, {}), torch.zeros(1, 3), torch.zeros(1).long(), theory.SGD())
    >>> chosen_engine(problem, batch_size=1)
    'replicas'
    """
    return "kernel" if is_fastest(problem, batch_size) else "replicas"
