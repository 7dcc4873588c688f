"""Training steps: the contract, its engines, and the one function that computes the telemetry."""

from __future__ import annotations

from empirical.steps.contract import Engine, Hyper, Layout, Problem, State
from empirical.steps.eager import EagerEngine
from empirical.steps.kernel_engine import KernelEngine, obstacle

__all__ = [
    "ENGINES",
    "EagerEngine",
    "Engine",
    "Hyper",
    "KernelEngine",
    "Layout",
    "Problem",
    "State",
    "chosen_engine",
]

ENGINES: dict[str, type[Engine]] = {"eager": EagerEngine, "kernel": KernelEngine}


def chosen_engine(problem: Problem) -> str:
    """Name of the fastest engine that can train a problem.

    Examples
    --------
    >>> import torch, theory
    >>> model = torch.nn.Linear(3, 2)
    >>> chosen_engine(Problem(model, Layout.of(model, {}), torch.zeros(1, 3), torch.zeros(1).long(), theory.SGD()))
    'eager'
    """
    return "eager" if obstacle(problem) else "kernel"
