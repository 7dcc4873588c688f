"""Step-by-step derivations of the formulas of `theory`. Each name is a `Derivation`, built by sympy on first use.

>>> from theory import derivations
>>> print(derivations.equilibrium_norm[-2])
Eq(norm**4, grad_norm**2*lr/(wd*(-lr*wd + 2)))
>>> derivations.equilibrium_norm.unproved()
[]
"""

import importlib
from typing import Any

_NAMES = {
    "one_step": ["rotation"],
    "equilibrium": ["equilibrium_effective_lr", "equilibrium_norm", "equilibrium_rotation", "relaxation_time"],
    "fluctuations": ["equilibrium_spread", "moment_identities", "moments_of_a_window"],
    "bounds": ["attraction", "norm_bounds", "norm_envelope", "probable_norm_bounds"],
    "destabilization": [
        "critical_norm",
        "critical_norm_with_decay",
        "angular_jump_norm",
        "angular_jump_regime",
        "angular_jumps_while_ringing",
        "steps_to_angular_jump",
    ],
    "flow": ["decay_time", "norm_flow"],
    "period": [
        "balance",
        "balance_law",
        "decay_phase_product",
        "free_decay",
        "least_decay_steps",
        "least_time_between_angular_jumps",
    ],
    "symmetry": ["equivalent_run", "lr_at_fixed_norm", "run_without_decay"],
    "optimizers": ["decoupled_heavy_ball", "decoupled_nesterov", "heavy_ball", "nesterov"],
    "adaptive": ["adam", "adamw", "decoupled_decay", "lion"],
    "matrix": ["muon"],
    "momentum": [
        "momentum_lower_bound",
        "momentum_least_decay_steps",
        "momentum_relaxation",
        "momentum_stationary_bounds",
    ],
    "design": ["inverse_design"],
    "schedules": [
        "corrected_decay",
        "modulation",
        "norm_under_schedule",
        "settings_for_effective_lr",
        "small_steps",
        "tracked_steps",
        "tracking_lag",
    ],
    "groups": ["decay_invariance_norm", "invariance_norm", "total_grad_norm"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'theory.derivations' has no attribute {name!r}")
    derive = getattr(importlib.import_module(f"theory.derivations._{_MODULES[name]}"), name)
    globals()[name] = derive()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
