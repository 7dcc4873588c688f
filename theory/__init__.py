"""Formulas of training with normalization and weight decay: equilibrium, bounds, destabilization, schedules.

Importing this package loads NumPy only; `theory.derivations` loads sympy when it is first used.
"""

import importlib
from typing import Any

from theory._version import __version__
from theory.bounds import Bounds, norm_bounds, norm_envelope
from theory.destabilization import jump_norm, rotation
from theory.equilibrium import equilibrium_effective_lr, equilibrium_norm, equilibrium_rotation, relaxation_time
from theory.optimizers import SGD, Adam, AdamW, Lion, Optimizer
from theory.schedules import Constant, Cosine, Linear, Schedule, StepDecay, WarmUp

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Bounds",
    "Constant",
    "Cosine",
    "Linear",
    "Lion",
    "Optimizer",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "__version__",
    "equilibrium_effective_lr",
    "equilibrium_norm",
    "equilibrium_rotation",
    "jump_norm",
    "norm_bounds",
    "norm_envelope",
    "relaxation_time",
    "rotation",
]


def __getattr__(name: str) -> Any:
    if name == "derivations":
        return importlib.import_module("theory.derivations")
    raise AttributeError(f"module 'theory' has no attribute {name!r}")
