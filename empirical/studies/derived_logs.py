"""Logs as users have them, derived from a complete log: with fewer columns, fewer rows, or wrong numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

import theory
from simulate.diagnosis.log_rows import growth_by_law
from theory.optimizers import check_optimizer

_Derivation = Callable[[xr.Dataset], xr.Dataset]
_GRADIENTS = ("grad_norm", "gradient_norm", "all_gradient_norm")
_NORMS = ("norm", "all_weights_norm")
_WRONG_FACTOR = 4.0
# A log contradicts the law if this share of its steps deviates by more than this share of growth and decay. It does,
# too, if its norm decays faster than by weight decay alone, by this factor over so many rows.
_LEAST_SHARE, _DEVIATION, _FAST, _DECAY_ROWS = 0.2, 0.25, 1.5, 50


def _without(*names: str) -> _Derivation:
    def remove(log: xr.Dataset) -> xr.Dataset:
        kept = {key: value for key, value in log.attrs.items() if key not in names}
        return log.drop_vars(names, errors="ignore").drop_attrs().assign_attrs(kept)

    return remove


def _every(rows: int) -> _Derivation:
    return lambda log: log.isel(step=slice(None, None, rows))


def _as_most_loggers(log: xr.Dataset) -> xr.Dataset:
    """Keep loss, learning rate, epoch, and the gradient norm of all parameters as `gradient_norm`."""
    return log.assign(gradient_norm=log.all_gradient_norm).drop_vars((*_NORMS, "grad_norm", "all_gradient_norm"))


def _with_all_weights(log: xr.Dataset) -> xr.Dataset:
    """Give both norms of all trained parameters as those of the scale-invariant weights."""
    derived = log.assign(
        norm=log.all_weights_norm,
        gradient_norm=log.all_gradient_norm,
        grad_norm=log.all_gradient_norm * log.all_weights_norm,
    )
    return derived.drop_vars(("all_weights_norm", "all_gradient_norm"))


def _with_wd_times(factor: float) -> _Derivation:
    return lambda log: log.assign_attrs(wd=factor * log.attrs["wd"])


def _by_epoch(row_unit: str, *, has_length: bool = False) -> _Derivation:
    """Keep one row per complete epoch: means of loss and gradient norms, other values at its first step."""

    def average(log: xr.Dataset) -> xr.Dataset:
        length = log.attrs["epoch_length"]
        epochs = log.sizes["step"] // length
        rows = log.isel(step=slice(0, epochs * length, length))
        means = {
            name: ("step", log[name].values[: epochs * length].reshape(epochs, length).mean(axis=1))
            for name in ("loss", "gradient_norm", "all_gradient_norm")
            if name in log
        }
        rows = rows.assign(means).assign_coords(step=np.arange(epochs)).assign_attrs(row_unit=row_unit)
        if "gradient_norm" in rows:
            rows = rows.assign(grad_norm=rows.gradient_norm * rows.norm)
        return rows if has_length else _without("epoch", "epoch_length")(rows)

    return average


LOGS: Mapping[str, _Derivation] = {
    "full": lambda log: log,
    "no gradient norm": _without(*_GRADIENTS),
    "no norm": _without(*_NORMS, *_GRADIENTS),
    "loss, lr and gradient norm": _as_most_loggers,
    "no learning rate": _without("lr"),
    "no weight decay": _without("wd"),
    "loss alone": _without(*_NORMS, *_GRADIENTS, "lr", "wd", "optimizer", "epoch", "epoch_length"),
    "every 5th step": _every(5),
    "every 10th step": _every(10),
    "every 50th step": _every(50),
    "one row per epoch": _by_epoch("epochs"),
    "one row per epoch of known length": _by_epoch("epochs", has_length=True),
}
# Logs with wrong numbers, which contradict the law of the norm in many runs.
WRONG_LOGS: Mapping[str, _Derivation] = {
    "norm of all weights": _with_all_weights,
    "4 times the weight decay": _with_wd_times(_WRONG_FACTOR),
    "a quarter of the weight decay": _with_wd_times(1 / _WRONG_FACTOR),
    "epochs numbered as steps": _by_epoch("steps"),
}
_EPOCH_LOGS = ("one row per epoch", "one row per epoch of known length", "epochs numbered as steps")


def steps_per_number(name: str, log: xr.Dataset) -> int:
    """Return how many steps of the complete log one unit of `step` stands for in its derived log of this name."""
    return int(log.attrs.get("epoch_length", 1)) if name in _EPOCH_LOGS else 1


def contradicts_law(log: xr.Dataset) -> bool:
    """Return whether the norms of a log contradict the update of its optimizer, if each row is one step.

    With plain SGD, 20 % of the steps deviate by more than 25 % of growth and decay. With any optimizer, the norm
    decays at least 1.5 times as fast as by weight decay alone, over 50 rows.

    Examples
    --------
    >>> norm = ("step", 0.99 ** np.arange(100))
    >>> log = xr.Dataset({"norm": norm}, {"step": np.arange(100)}, {"lr": 0.1, "wd": 0.1, "optimizer": "SGD()"})
    >>> contradicts_law(log), contradicts_law(log.assign_attrs(wd=0.05))
    (False, True)
    """
    if "norm" not in log or "wd" not in log.attrs or log.sizes["step"] <= _DECAY_ROWS:
        return False
    rule = check_optimizer(log.attrs.get("optimizer"))
    norm, wd = log.norm.values, log.attrs["wd"]
    lr = log.lr.values if "lr" in log else np.full(norm.size, log.attrs["lr"])
    decay = np.broadcast_to(theory.free_decay(lr, wd, optimizer=rule), lr.shape)
    with np.errstate(all="ignore"):
        growth = np.diff(np.log(norm))
        measured, free = (np.convolve(v, np.ones(_DECAY_ROWS), "valid") for v in (-growth, decay[:-1]))
        if (measured > _FAST * free).any():
            return True
        if rule != theory.SGD() or "grad_norm" not in log:
            return False
        predicted = growth_by_law(lr, np.full(norm.size, wd), norm, log.grad_norm.values)[:-1]
        deviates = np.abs(growth - predicted) > _DEVIATION * (predicted + 2 * decay[:-1])
    return bool(deviates[np.isfinite(growth + predicted)].mean() > _LEAST_SHARE)
