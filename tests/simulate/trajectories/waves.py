"""Made-up trajectories: waves of ln ρ with known periods."""

import numpy as np
import xarray as xr

import theory


def trajectory(log_norm, *, intrinsic_lr=0.01, stride=1, first=0, **variables):
    """One run with this ln ρ, η = 0.5 and this ηλ."""
    step = first + stride * np.arange(len(log_norm))
    columns = {"norm": np.exp(log_norm), **variables}
    return xr.Dataset(
        {n: ("step", v) for n, v in columns.items()}, {"step": step}, {"lr": 0.5, "wd": intrinsic_lr / 0.5}
    )


def sawtooth(decay_steps, rise, height, teeth):
    """Teeth of ln ρ: a decrease by `height` in `decay_steps` steps, then a rise by it in `rise` steps."""
    down, up = np.linspace(height, 0, decay_steps, endpoint=False), np.linspace(0, height, rise, endpoint=False)
    return np.tile(np.append(down, up), teeth)


def with_rotation(log_norm, share, intrinsic_lr=0.01):
    """One run with this ln ρ whose rotation is a share of that at equilibrium."""
    return trajectory(
        log_norm,
        intrinsic_lr=intrinsic_lr,
        rotation=np.full(len(log_norm), share * theory.equilibrium_rotation(0.5, intrinsic_lr / 0.5)),
    )
