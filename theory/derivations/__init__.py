"""The formulas of `theory`, derived step by step with sympy: each name is a `Derivation`, built when first used.

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
    "critical_norm": "destabilization",
    "decoupled_decay": "adaptive",
    "decoupled_heavy_ball": "optimizers",
    "decoupled_nesterov": "optimizers",
    "equilibrium_effective_lr": "equilibrium",
    "equilibrium_norm": "equilibrium",
    "equilibrium_rotation": "equilibrium",
    "heavy_ball": "optimizers",
    "jump_norm": "destabilization",
    "jump_regime": "destabilization",
    "lion": "adaptive",
    "nesterov": "optimizers",
    "norm_bounds": "bounds",
    "norm_envelope": "bounds",
    "relaxation_time": "equilibrium",
    "rotation": "one_step",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'theory.derivations' has no attribute {name!r}")
    derive = getattr(importlib.import_module(f"theory.derivations.{_MODULES[name]}"), name)
    globals()[name] = derive()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
