"""Data contract of all trajectories: one format of `xarray.Dataset` for simulation and training.

N updates give N rows. Row t is the state *before* update t; `final_norm` is the norm after the last update.
A single run has the dimension `step`. A batch has further dimensions before it, a sweep those of its parameters.
`status` and `status_step` (number of updates made) have the dimensions of the batch.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory

SCHEMA = 3  # 2: the constraint is an attribute; 3: files have digests
# norms whose square is a normal floating-point number
NORM_MIN, NORM_MAX = float(np.sqrt(np.finfo(np.float64).tiny)), float(np.sqrt(np.finfo(np.float64).max))
RUNNING, COMPLETE, INTERRUPTED, DIVERGED, COLLAPSED = "running", "complete", "interrupted", "diverged", "collapsed"

# name: (units, meaning); "weight" and "loss" stand for the units of the user's weights and loss
VARIABLES: dict[str, tuple[str, str]] = {
    "step": ("step", "number of updates made before this row"),
    "epoch": ("epoch", "passes over the training set made before this row"),
    "norm": ("weight", "norm of all scale-invariant weights together"),
    "grad_norm": ("loss", "norm times gradient norm of the mini-batch loss"),
    "lr": ("weight^2/loss", "learning rate"),
    "wd": ("loss/weight^2", "weight decay"),
    "effective_lr": ("1/loss", "learning rate over squared norm"),
    "angular_lr": ("1", "learning rate over norm, the effective learning rate of normalized steps"),
    "rotation": ("radian", "angle between the iterates before and after the step"),
    "loss": ("loss", "mini-batch loss"),
    "radial_defect": ("1", "|cos| of the angle between gradient and weights"),
    "group": ("", "scale-invariant group"),
    "group_norm": ("weight", "norm of one group"),
    "group_grad_norm": ("loss", "norm times gradient norm of one group"),
    "group_rotation": ("radian", "angle between the iterates of one group"),
    "group_radial_defect": ("1", "|cos| of the angle between gradient and weights of one group"),
    "group_lr": ("weight^2/loss", "learning rate of one group"),
    "group_wd": ("loss/weight^2", "weight decay of one group"),
    "group_optimizer": ("", "optimizer of one group"),
    "group_final_norm": ("weight", "norm of one group after the last update"),
    "eval_step": ("step", "number of updates made before this evaluation"),
    "train_loss": ("loss", "loss on the whole training set"),
    "train_error": ("1", "share of wrong answers on the training set"),
    "test_loss": ("loss", "loss on the test set"),
    "test_error": ("1", "share of wrong answers on the test set"),
    "validation_loss": ("loss", "loss on the training samples that were set apart"),
    "validation_error": ("1", "share of wrong answers on the training samples that were set apart"),
    "train_mode_loss": ("loss", "mean loss of the mini-batches of an epoch, at fixed weights in train mode"),
    "train_mode_error": ("1", "share of wrong answers in the mini-batches of an epoch, at fixed weights in train mode"),
    "mean_grad_norm": ("loss", "norm times mean gradient norm of the mini-batches of an epoch, at fixed weights"),
    "full_grad_norm": (
        "loss",
        "norm times norm of the mean gradient of the mini-batches of an epoch, at fixed weights",
    ),
    "norm_min": ("weight", "least norm before an update"),
    "norm_max": ("weight", "largest norm before an update"),
    "mean_sq_norm": ("weight^2", "mean of the squared norm before each update"),
    "mean_fourth_norm": ("weight^4", "mean of the fourth power of the norm before each update"),
    "final_weights": ("weight", "weights after the last update"),
    "final_velocity": ("loss/weight", "momentum buffer after the last update"),
    "held_norm": ("weight", "norm to which every step is projected back"),
    "final_sq_norm": ("weight^2", "squared norm after the last update, as it was computed"),
    "final_velocity_along": ("loss/weight", "part of the momentum buffer along the weights after the last update"),
    "final_velocity_across": ("loss/weight", "part of the momentum buffer across the weights after the last update"),
    "final_mean_square": ("loss^2/weight^2", "mean square of the gradients per weight after the last update"),
    "final_momentum_size": ("loss/weight", "norm of the momentum of Lion or Muon after the last update"),
    "final_step_memory": ("", "correlation of weights and past steps, by odd powers of their own correlation"),
    "term": ("", "number of a term of the correlation of directions"),
    "walker": ("", "number of the trajectory, on which its random numbers depend"),
    "level": ("weight", "norm whose first crossing is timed"),
    "crossing_time": ("step", "number of updates, with fraction, at which the norm first is at the level; inf: never"),
    "oscillation": ("", "variable of the reduced model"),
    "final_oscillation": ("", "state of the reduced model after the last update"),
    "final_norm": ("weight", "norm after the last update"),
    "verdict": ("", "equilibrium, periodic, no clear period, transient, undetermined, collapsed or diverged"),
    "period": ("step", "mean length of the periods"),
    "period_stderr": ("step", "standard error of the mean length of the periods"),
    "periods": ("", "number of complete periods"),
    "outside_growth": ("1", "share of the growth of ln(norm) outside the detected rises"),
    "relaxations": ("1", "steps times lr times wd"),
    "norm_rise": ("1", "mean rise of ln(norm) in a destabilization"),
    "effective_lr_at_destabilization": ("1/loss", "lr / norm^2 at the troughs"),
    "trough_norm": ("weight", "geometric mean of the norm at the troughs"),
    "peak_norm": ("weight", "geometric mean of the norm at the peaks"),
    "typical_norm": ("weight", "geometric mean of the norm"),
    "threshold_ratio": ("1", "mean period at twice the rise over that at the rise"),
    "feedback_score": ("1", "score of the test for feedback, in standard deviations of surrogates"),
    "autocorrelation_time": ("step", "lag at which the autocorrelation of ln(norm) has fallen to 1/e"),
    "log_norm_sd": ("1", "standard deviation of ln(norm)"),
    "rotation_ratio": ("1", "median rotation over its equilibrium value"),
    "seconds": ("s", "time that a worker took"),
    "error": ("", "last lines of the error of a failed run"),
    "folder": ("", "where a run is stored"),
    "status": ("", "running, complete, interrupted, diverged or collapsed"),
    "status_step": ("step", "number of updates made when the status was set"),
}
# Variables that older versions stored under another name: old name to new name. Reading stored data applies it.
RENAMED = {"jump": "norm_rise"}
# attribute `constraint`: what a run keeps constant, so that the optimizer's law of the norm does not hold
FREE, FIXED_NORM, FIXED_EFFECTIVE_LR = "none", "fixed norm", "fixed effective lr"
CONSTRAINTS = {None: FREE, "norm": FIXED_NORM, "effective_lr": FIXED_EFFECTIVE_LR}  # by the argument `fixed`
EVALUATIONS = ("train_loss", "train_error", "test_loss", "test_error")
VALIDATION_EVALUATIONS = ("validation_loss", "validation_error")
BATCH_EVALUATIONS = ("train_mode_loss", "train_mode_error", "mean_grad_norm", "full_grad_norm")


def effective_lr_names(optimizer: str) -> tuple[str, ...]:
    """Names of the effective learning rates of a run: η/ρ², and for Adam, AdamW, Lion and Muon also η/ρ.

    Only optimizers of `theory` are looked up, because an optimizer that a file names must not be imported.

    Examples
    --------
    >>> effective_lr_names("SGD(momentum=0.9)"), effective_lr_names("AdamW(dim=100)")
    (('effective_lr',), ('effective_lr', 'angular_lr'))
    """
    kind = theory.optimizers.OPTIMIZERS.get(optimizer.partition("(")[0])
    is_normalized = kind is not None and kind.norm_exponent == 1
    return ("effective_lr", "angular_lr") if is_normalized else ("effective_lr",)


def effective_lrs(lr: Any, norm: Any, optimizer: str) -> dict[str, Any]:
    """Values of `effective_lr_names`, from arrays that broadcast.

    Examples
    --------
    >>> effective_lrs(0.1, 2.0, "AdamW")
    {'effective_lr': 0.025, 'angular_lr': 0.05}
    """
    powers = {"effective_lr": 2, "angular_lr": 1}
    return {name: lr / norm ** powers[name] for name in effective_lr_names(optimizer)}


def make_trajectory(
    columns: Mapping[str, npt.ArrayLike],
    *,
    step: npt.ArrayLike,
    source: str,
    final_norm: npt.ArrayLike,
    status: npt.ArrayLike,
    status_step: npt.ArrayLike,
    dims: Sequence[str] = (),
    coords: Mapping[str, tuple[Sequence[str], npt.ArrayLike]] | None = None,
    groups: Sequence[str] = (),
    evaluations: Mapping[str, npt.ArrayLike] | None = None,
    last_state: Mapping[str, tuple[Sequence[str], npt.ArrayLike]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Assemble a trajectory with units, long names, versions and schema number.

    Parameters
    ----------
    columns : per-step variables of `VARIABLES`, of shape (*dims, step), or (step,) if the batch shares them. Variables
        named ``group_…`` have the group as last axis.
    step : step numbers of the rows.
    source : "map", "ode", "random_walk", "landscape", "period_model" or "training".
    final_norm, status, status_step : state after the last update, in the shape of the batch.
    dims, coords : names and coordinates of the batch dimensions.
    groups : names of the scale-invariant groups.
    evaluations : `eval_step` and the variables along it.
    last_state : further variables, with their dimensions, from which a simulation can be continued.
    attributes : further attributes (optimizer, constraint, lr, wd, config, …).

    Examples
    --------
    >>> run = make_trajectory({"norm": [1.0, 0.9]}, step=[0, 1], source="map", final_norm=0.8,
    ...                       status="complete", status_step=2)
    >>> run.norm.attrs["units"], run.attrs["schema"], run.status.item()
    ('weight', 3, 'complete')
    """
    dims = tuple(dims)
    variables: dict[str, Any] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        tail = ("step", "group") if name.startswith("group_") else ("step",)
        variables[name] = ((*dims, *tail) if array.ndim > len(tail) else tail, array)
    for name, values in (evaluations or {}).items():
        if name != "eval_step":
            variables[name] = (("eval_step",), np.asarray(values))
    variables["final_norm"] = (dims, np.asarray(final_norm, dtype=np.float64))
    variables["status"] = (dims, np.asarray(status, dtype=object))
    variables["status_step"] = (dims, np.asarray(status_step, dtype=np.int64))
    variables.update({name: (tuple(on), np.asarray(values)) for name, (on, values) in (last_state or {}).items()})
    all_coords: dict[str, Any] = {"step": (("step",), np.asarray(step, dtype=np.int64))}
    all_coords.update({name: (tuple(on), np.asarray(values)) for name, (on, values) in (coords or {}).items()})
    if groups:
        all_coords["group"] = (("group",), np.asarray(groups, dtype=object))
    if evaluations:
        all_coords["eval_step"] = (("eval_step",), np.asarray(evaluations["eval_step"], dtype=np.int64))
    dataset = xr.Dataset(
        {name: (*value, variable_attributes(name)) for name, value in variables.items()},
        coords={name: (*value, variable_attributes(name)) for name, value in all_coords.items()},
    )
    general = {"source": source, "schema": SCHEMA, "constraint": FREE, **versions()}
    return dataset.assign_attrs({**general, **(attributes or {})})


def upgrade(trajectory: xr.Dataset) -> xr.Dataset:
    """Bring a stored trajectory of an older schema to the present one.

    Examples
    --------
    >>> upgrade(xr.Dataset(attrs={"schema": 1, "optimizer": "SGD() with fixed norm"})).attrs["constraint"]
    'fixed norm'
    """
    present = trajectory.variables
    names = {old: new for old, new in RENAMED.items() if old in present and new not in present}
    upgraded = trajectory.rename(names).assign_attrs(upgrade_attributes(trajectory.attrs))
    if trajectory.attrs.get("schema", 1) > 1 or "optimizer" not in trajectory.coords:
        return upgraded
    # in a sweep over optimizers the text is a coordinate
    swept = trajectory.optimizer
    parts = [_split_constraint(str(text)) for text in swept.values.ravel()]
    optimizers, constraints = (
        swept.copy(data=np.array(labels, dtype=object).reshape(swept.shape)) for labels in zip(*parts, strict=True)
    )
    is_unique = "optimizer" not in trajectory.dims or len(set(optimizers.values)) == optimizers.size
    upgraded = upgraded.assign_coords(constraint=(swept.dims, constraints.values))
    return upgraded.assign_coords(optimizer=(swept.dims, optimizers.values)) if is_unique else upgraded


def _split_constraint(optimizer: str) -> tuple[str, str]:
    """Optimizer and constraint from the optimizer's text of schema 1."""
    text, _, fixed = optimizer.partition(" with fixed ")
    return text, CONSTRAINTS[fixed or None]


def upgrade_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Bring attributes of a trajectory to the present schema; in schema 1 the optimizer's text named the constraint."""
    if attributes.get("schema", 1) > 1:
        return {**attributes, "schema": SCHEMA}
    optimizer, constraint = _split_constraint(str(attributes.get("optimizer", "")))
    law = {"optimizer": optimizer, "constraint": constraint} if optimizer else {}
    return {**attributes, "schema": SCHEMA, **law}


def variable_attributes(name: str) -> dict[str, str]:
    """Units and long name of a variable of the contract; empty for other variables."""
    return dict(zip(("units", "long_name"), VARIABLES[name], strict=True)) if name in VARIABLES else {}


def versions() -> dict[str, str]:
    """Versions of packages that are stored with a trajectory."""
    return {
        "bnwd_version": theory.__version__,
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
    }


def check_trajectory(trajectory: Any, *needed: str, single: bool = False, argument: str = "trajectory") -> xr.Dataset:
    """Check that an argument, with this name in messages, is a trajectory with the needed variables.

    Raises
    ------
    TypeError, ValueError : the value is no dataset, lacks a variable, or is a batch.
    """
    if not isinstance(trajectory, xr.Dataset):
        raise TypeError(f"{argument} must be an xarray.Dataset of the trajectory contract, got {_kind(trajectory)}")
    for name in ("norm", *needed):
        if name not in trajectory.variables:
            raise ValueError(
                f"{argument} must have the variable {name!r}, got {sorted(map(str, trajectory.data_vars))}"
            )
    if "step" not in trajectory.norm.dims:
        raise ValueError(f"{argument}.norm must have the dimension 'step', got {trajectory.norm.dims}")
    if single and trajectory.norm.dims != ("step",):
        raise ValueError(
            f"{argument} must be one run with dimension ('step',), got a batch {trajectory.norm.dims}; select one first"
        )
    return trajectory


def _kind(value: Any) -> str:
    return type(value).__name__
