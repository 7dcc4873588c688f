"""Setting of a run: its learning rate, weight decay, optimizer and constraint, read once from a trajectory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

import theory
from simulate.trajectories.contract import FREE
from theory.arguments import quote
from theory.optimizers import check_optimizer


@dataclass(frozen=True, eq=False)
class Setting:
    """Learning rate, weight decay, optimizer and constraint of a run.

    Attributes
    ----------
    optimizer : the optimizer; None if its text does not describe one that `theory` knows.
    optimizer_text : optimizer as the trajectory names it.
    constraint : "none", "fixed norm" or "fixed effective lr".
    variables : lr and wd, as far as the trajectory has them; without dimension if they are constant.

    Examples
    --------
    >>> setting = Setting.of(xr.Dataset(attrs={"lr": 0.5, "wd": 0.01, "optimizer": "SGD(momentum=0.9)"}))
    >>> setting.intrinsic_lr, setting.optimizer.momentum, setting.constraint
    (0.005, 0.9, 'none')
    """

    optimizer: theory.Optimizer | None
    optimizer_text: str
    constraint: str
    variables: Mapping[str, xr.DataArray]
    _error_message: str = ""

    @classmethod
    def of(cls, trajectory: xr.Dataset) -> Setting:
        """Read the setting of a trajectory. Without an optimizer it is plain SGD."""
        variables = {}
        for name in ("lr", "wd"):
            if name in trajectory.variables:
                variables[name] = trajectory[name]
            elif name in trajectory.attrs:
                variables[name] = xr.DataArray(trajectory.attrs[name])
        text = _label(trajectory, "optimizer", "SGD()")
        constraint = _label(trajectory, "constraint", FREE)
        try:
            rule = check_optimizer(text, trust=False)
            if isinstance(rule, theory.Muon):
                # without a shape, as for groups of several matrices, its formulas are not known
                _ = rule.shape
            return cls(rule, text, constraint, variables)
        except ValueError as error:
            return cls(None, text, constraint, variables, str(error))

    @property
    def lr(self) -> xr.DataArray:
        """Learning rate. Raise ValueError if the trajectory has none."""
        return self._value("lr")

    @property
    def wd(self) -> xr.DataArray:
        """Weight decay. Raise ValueError if the trajectory has none."""
        return self._value("wd")

    def _value(self, name: str) -> xr.DataArray:
        if name not in self.variables:
            raise ValueError(f"trajectory must have {name!r} as a variable, a coordinate or an attribute, but has none")
        value = self.variables[name]
        if value.dtype.kind not in "iuf":
            raise ValueError(f"trajectory must have a number as {name!r}, got {value.values}")
        return value

    @functools.cached_property
    def intrinsic_lr(self) -> float:
        """ηλ of one run, averaged over the steps if lr or wd varies."""
        if self.lr.ndim == self.wd.ndim == 0:
            return float(self.lr.values) * float(self.wd.values)
        return float((self.lr * self.wd).mean())

    def constants(self) -> tuple[float, float]:
        """Learning rate and weight decay. Raise ValueError if one of them varies."""
        values = []
        for name in ("lr", "wd"):
            distinct = np.unique(self._value(name).values)
            if distinct.size != 1:
                raise ValueError(f"{name} varies in time, but the prediction needs one value")
            values.append(float(distinct[0]))
        return values[0], values[1]

    def known_optimizer(self) -> theory.Optimizer:
        """Optimizer. Raise ValueError if its text does not describe one."""
        if self.optimizer is None:
            raise ValueError(self._error_message)
        return self.optimizer

    def check_free(self, name: str = "trajectory") -> None:
        """Raise ValueError if a constraint was in force, so that the optimizer's law of the norm does not hold."""
        if self.constraint != FREE:
            raise ValueError(f"{name} must come from a run without a constraint, got {quote(self.constraint)}")

    def law(self, name: str = "trajectory") -> theory.Optimizer:
        """Optimizer whose law of the norm the run obeys. Raise ValueError if it is unknown or a constraint was set."""
        self.check_free(name)
        return self.known_optimizer()


def _label(trajectory: xr.Dataset, name: str, default: str) -> str:
    """Text of a setting: a coordinate in a sweep over it, an attribute otherwise."""
    swept = trajectory.coords.get(name)
    if swept is None:
        return str(trajectory.attrs.get(name, default))
    labels = np.unique(swept.values.astype(str))
    if labels.size != 1:
        raise ValueError(f"trajectory must have one {name}, got a batch with {', '.join(labels)}; select one first")
    return str(labels[0])
