"""Training steps: the contract, its engines, and the one function that computes the telemetry."""

from __future__ import annotations

from empirical.steps.contract import Engine, Hyper, Layout, Problem, State
from empirical.steps.eager import EagerEngine

__all__ = ["ENGINES", "EagerEngine", "Engine", "Hyper", "Layout", "Problem", "State"]

ENGINES: dict[str, type[EagerEngine]] = {"eager": EagerEngine}
