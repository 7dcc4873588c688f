"""Step-by-step derivations of the formulas of `theory`. Each name is a `Derivation`, built by sympy on first use.

>>> from theory import derivations
>>> print(derivations.equilibrium_norm[-2])
Eq(norm**4, grad_norm**2*lr/(wd*(-lr*wd + 2)))
>>> derivations.equilibrium_norm.unproved()
[]
"""

import importlib
from typing import Any

_MODULES = {
    "adam": "adaptive",
    "adamw": "adaptive",
    "attraction": "bounds",
    "balance": "period",
    "balance_law": "period",
    "corrected_decay": "schedules",
    "critical_norm": "destabilization",
    "critical_norm_with_decay": "destabilization",
    "decay_invariance_norm": "groups",
    "decoupled_decay": "adaptive",
    "decoupled_heavy_ball": "optimizers",
    "decoupled_nesterov": "optimizers",
    "equilibrium_effective_lr": "equilibrium",
    "equilibrium_norm": "equilibrium",
    "equilibrium_rotation": "equilibrium",
    "equilibrium_spread": "fluctuations",
    "equivalent_run": "symmetry",
    "decay_phase_product": "period",
    "decay_time": "flow",
    "free_decay": "period",
    "heavy_ball": "optimizers",
    "invariance_norm": "groups",
    "inverse_design": "design",
    "angular_jump_norm": "destabilization",
    "angular_jump_regime": "destabilization",
    "angular_jumps_while_ringing": "destabilization",
    "least_decay_steps": "period",
    "least_time_between_angular_jumps": "period",
    "lion": "adaptive",
    "moment_identities": "fluctuations",
    "moments_of_a_window": "fluctuations",
    "momentum_lower_bound": "momentum",
    "momentum_least_decay_steps": "momentum",
    "momentum_relaxation": "momentum",
    "momentum_stationary_bounds": "momentum",
    "nesterov": "optimizers",
    "norm_bounds": "bounds",
    "norm_envelope": "bounds",
    "norm_flow": "flow",
    "norm_under_schedule": "schedules",
    "relaxation_time": "equilibrium",
    "rotation": "one_step",
    "run_without_decay": "symmetry",
    "steps_to_angular_jump": "destabilization",
    "total_grad_norm": "groups",
    "tracked_steps": "schedules",
    "tracking_lag": "schedules",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'theory.derivations' has no attribute {name!r}")
    derive = getattr(importlib.import_module(f"theory.derivations._{_MODULES[name]}"), name)
    globals()[name] = derive()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
