"""Formulas of training with normalization and weight decay: equilibrium, bounds, destabilization, schedules.

Importing this package loads NumPy only; `theory.derivations` loads sympy when it is first used.
"""

import importlib
from typing import Any

from theory._version import __version__
from theory.bounds import Bounds, norm_bounds, norm_envelope, probable_norm_bounds
from theory.design import (
    lr_for_norm,
    lr_for_relaxation,
    lr_for_rotation,
    wd_for_norm,
    wd_for_relaxation,
    wd_for_rotation,
)
from theory.destabilization import (
    AngularJumpTime,
    angular_jump_norm,
    angular_jump_regime,
    critical_norm,
    rotation,
    steps_to_angular_jump,
)
from theory.equilibrium import equilibrium_effective_lr, equilibrium_norm, equilibrium_rotation, relaxation_time
from theory.flow import decay_time, norm_flow
from theory.fluctuations import Spread, equilibrium_spread
from theory.groups import decay_invariance_norm, invariance_norm, total_grad_norm
from theory.momentum import (
    MomentumRelaxation,
    momentum_envelope,
    momentum_least_decay_steps,
    momentum_lower_bound,
    momentum_relaxation,
    momentum_stationary_bounds,
)
from theory.norm_control import FixedNorm, fixed_norm, lr_at_fixed_norm
from theory.optimizers import SGD, Adam, AdamW, Lion, Muon, Optimizer
from theory.period import (
    Balance,
    BalanceLaw,
    balance,
    decay_phase_product,
    free_decay,
    largest_clipped_share,
    least_decay_steps,
    least_time_between_angular_jumps,
)
from theory.scaling import Memory, Transfer, memory, transfer
from theory.schedules import Constant, Cosine, Exponential, Linear, PiecewiseLinear, Schedule, StepDecay, WarmUp
from theory.symmetry import EquivalentRun, RunWithoutDecay, equivalent_run, run_without_decay
from theory.tracking import (
    EffectiveLrSettings,
    corrected_decay,
    gradient_growth,
    norm_under_schedule,
    quasi_equilibrium_norm,
    settings_for_effective_lr,
    tracked_steps,
    tracking_lag,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AngularJumpTime",
    "Balance",
    "BalanceLaw",
    "Bounds",
    "Constant",
    "Cosine",
    "EffectiveLrSettings",
    "EquivalentRun",
    "Exponential",
    "FixedNorm",
    "Linear",
    "Lion",
    "Memory",
    "MomentumRelaxation",
    "Muon",
    "Optimizer",
    "PiecewiseLinear",
    "RunWithoutDecay",
    "Schedule",
    "Spread",
    "StepDecay",
    "Transfer",
    "WarmUp",
    "__version__",
    "angular_jump_norm",
    "angular_jump_regime",
    "balance",
    "corrected_decay",
    "critical_norm",
    "decay_invariance_norm",
    "decay_phase_product",
    "decay_time",
    "equilibrium_effective_lr",
    "equilibrium_norm",
    "equilibrium_rotation",
    "equilibrium_spread",
    "equivalent_run",
    "fixed_norm",
    "free_decay",
    "gradient_growth",
    "invariance_norm",
    "largest_clipped_share",
    "least_decay_steps",
    "least_time_between_angular_jumps",
    "lr_at_fixed_norm",
    "lr_for_norm",
    "lr_for_relaxation",
    "lr_for_rotation",
    "memory",
    "momentum_envelope",
    "momentum_least_decay_steps",
    "momentum_lower_bound",
    "momentum_relaxation",
    "momentum_stationary_bounds",
    "norm_bounds",
    "norm_envelope",
    "norm_flow",
    "norm_under_schedule",
    "probable_norm_bounds",
    "quasi_equilibrium_norm",
    "relaxation_time",
    "rotation",
    "run_without_decay",
    "settings_for_effective_lr",
    "steps_to_angular_jump",
    "total_grad_norm",
    "tracked_steps",
    "tracking_lag",
    "transfer",
    "wd_for_norm",
    "wd_for_relaxation",
    "wd_for_rotation",
]


def __getattr__(name: str) -> Any:
    if name == "derivations":
        return importlib.import_module("theory.derivations")
    raise AttributeError(f"module 'theory' has no attribute {name!r}")
