"""Trajectory of one scale-invariant group of a network."""

from __future__ import annotations

import numpy as np
import xarray as xr

from simulate.trajectories.contract import check_trajectory, effective_lrs, variable_attributes
from theory.arguments import check_choice

# variables of a group and those of its own trajectory
_VARIABLES = {
    "group_norm": "norm",
    "group_grad_norm": "grad_norm",
    "group_rotation": "rotation",
    "group_radial_defect": "radial_defect",
    "group_final_norm": "final_norm",
    "group_lr": "lr",
    "group_wd": "wd",
}


def group_trajectory(trajectory: xr.Dataset, group: str) -> xr.Dataset:
    """Return the trajectory of one group: its norm, gradients and rotation with its own lr, wd and optimizer.

    All functions that take a trajectory take it, for example `classify`, `find_periods` and `diagnose`.

    Parameters
    ----------
    trajectory : one run with the variables `group_norm` and so on.
    group : name of the group, one of `trajectory.group`.

    Returns
    -------
    xarray.Dataset of the trajectory contract without the dimension `group`. Its last row is left out if the norm after
    it is not known.

    Raises
    ------
    TypeError, ValueError : it is not one run with groups, has no group of this name, or lacks `group_final_norm` where
        its rows are not at every step.

    Examples
    --------
    >>> from simulate.trajectories.contract import make_trajectory
    >>> run = make_trajectory({"norm": [5.0, 5.0], "group_norm": [[3.0, 4.0], [3.0, 4.0]]}, step=[0, 1], source="map",
    ...                       final_norm=5.0, status="complete", status_step=2, groups=["a", "b"])
    >>> group_trajectory(run, "b").norm.values.tolist()
    [4.0]
    """
    check_trajectory(trajectory, "group_norm", single=True)
    check_choice("group", group, [str(name) for name in trajectory.group.values])
    own = trajectory.sel(group=group)
    of_group = [name for old, name in _VARIABLES.items() if old in own.variables]
    shared = [name for name in own.data_vars if str(name) not in _VARIABLES and "eval_step" not in own[name].dims]
    # numbers of all groups together
    total = {*of_group, "effective_lr", "angular_lr", "final_norm", "radial_defect", "grad_norm", "rotation"}
    run = own[[name for name in shared if name not in total]]
    run = run.assign(
        {
            name: own[old].drop_attrs().assign_attrs(variable_attributes(name))
            for old, name in _VARIABLES.items()
            if old in own.variables
        }
    )
    for name in ("lr", "wd"):
        if f"group_{name}" in own.variables:
            run.attrs.pop(name, None)
            distinct = np.unique(run[name].values)
            if distinct.size == 1:
                run = run.drop_vars(name).assign_attrs({name: float(distinct[0])})
    run = run.drop_vars(["group", "group_optimizer"], errors="ignore")
    if "group_optimizer" in own.variables:
        run.attrs["optimizer"] = str(own.group_optimizer.item())
    elif "dim=" in (text := str(run.attrs.get("optimizer", ""))):
        run.attrs["optimizer"] = text.partition("(")[0]  # the number of weights of the group is not known
    run.attrs["group"] = str(group)
    if "final_norm" not in run:
        if (np.diff(run.step.values) > 1).any():
            raise ValueError(
                "trajectory must have group_final_norm if its rows are not at every step, so that the norm after the "
                "last row is known; got none"
            )
        last = run.norm[-1].drop_vars("step")
        run = run.isel(step=slice(-1)).assign(final_norm=last.assign_attrs(variable_attributes("final_norm")))
    lr = run["lr"] if "lr" in run else run.attrs.get("lr")
    if lr is not None:
        effective = effective_lrs(lr, run.norm, str(run.attrs.get("optimizer", "")))
        run = run.assign(
            {name: value.astype(float).assign_attrs(variable_attributes(name)) for name, value in effective.items()}
        )
    return run
