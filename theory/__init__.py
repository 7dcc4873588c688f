"""Formulas of training with normalization and weight decay: equilibrium, bounds, destabilization, schedules.

Importing this package loads NumPy only; `theory.derivations` loads sympy when it is first used.
"""

import importlib
from typing import Any

from theory._version import __version__
from theory.bounds import Bounds, norm_bounds, norm_envelope
from theory.design import lr_for_rotation, wd_for_norm, wd_for_rotation
from theory.destabilization import JumpTime, critical_norm, jump_norm, jump_regime, rotation, steps_to_jump
from theory.equilibrium import equilibrium_effective_lr, equilibrium_norm, equilibrium_rotation, relaxation_time
from theory.optimizers import SGD, Adam, AdamW, Lion, Optimizer
from theory.period import BalanceLaw, least_fall
from theory.schedules import Constant, Cosine, Linear, Schedule, StepDecay, WarmUp
from theory.symmetry import EquivalentRun, equivalent_run
from theory.tracking import corrected_decay, tracking_lag

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BalanceLaw",
    "Bounds",
    "Constant",
    "Cosine",
    "EquivalentRun",
    "JumpTime",
    "Linear",
    "Lion",
    "Optimizer",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "__version__",
    "corrected_decay",
    "critical_norm",
    "equilibrium_effective_lr",
    "equilibrium_norm",
    "equilibrium_rotation",
    "equivalent_run",
    "jump_norm",
    "jump_regime",
    "least_fall",
    "lr_for_rotation",
    "norm_bounds",
    "norm_envelope",
    "relaxation_time",
    "rotation",
    "steps_to_jump",
    "tracking_lag",
    "wd_for_norm",
    "wd_for_rotation",
]


def __getattr__(name: str) -> Any:
    if name == "derivations":
        return importlib.import_module("theory.derivations")
    raise AttributeError(f"module 'theory' has no attribute {name!r}")
