"""Heat map of scale-invariant groups over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from simulate.plots.style import axes_for
from simulate.trajectories.contract import check_trajectory
from theory.arguments import FloatArray, check_choices, check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# what a colour shows, and its scale
_NORM, _ROTATION = "norm", "rotation"
_TITLES = {_NORM: "norm over its first value", _ROTATION: "rotation θ, radians"}


def plot_groups(
    trajectory: xr.Dataset,
    axes: Axes | Sequence[Axes] | None = None,
    *,
    variables: Sequence[str] = (_NORM, _ROTATION),
    most_columns: int = 300,
) -> Sequence[Axes]:
    """Draw a heat map with a row for each group and the steps along x, for norm and rotation, in logarithmic colours.

    Parameters
    ----------
    trajectory : one run with groups, as from `Monitor.trajectory()`.
    axes : one for each variable; new ones by default.
    variables : "norm" (over its first value), "rotation" or both; rotation is left out if it was not recorded.
    most_columns : a run with more rows is drawn as geometric means of so many parts.

    Returns
    -------
    list of Axes

    Raises
    ------
    TypeError, ValueError : it is not one run with groups, the number of axes is wrong, or a variable is unknown.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> from simulate.trajectories.contract import make_trajectory
    >>> run = make_trajectory({"norm": [5.0, 5.0], "group_norm": [[3.0, 4.0], [4.0, 3.0]]}, step=[0, 1], source="map",
    ...                       final_norm=5.0, status="complete", status_step=2, groups=["first", "last"])
    >>> len(plot_groups(run))
    1
    """
    check_trajectory(trajectory, "group_norm", single=True)
    most_columns = check_integer("most_columns", most_columns, at_least=2)
    names = [name for name in check_choices("variables", variables, _TITLES) if f"group_{name}" in trajectory]
    if not names:
        raise ValueError(
            f"variables must name at least one that the trajectory has for each group, got {list(variables)}"
        )
    groups = [str(name) for name in trajectory.group.values]
    if axes is None:
        # importing pyplot takes half a second: only when something is drawn
        from matplotlib import pyplot as plt

        height = max(1.5, 0.22 * len(groups)) + 0.6
        grid = plt.subplots(
            len(names), 1, sharex=True, figsize=(9.0, height * len(names)), squeeze=False, layout="constrained"
        )[1]
        axes = list(grid[:, 0])
    all_axes = axes_for(names, axes)
    for ax, name in zip(all_axes, names, strict=True):
        values = trajectory[f"group_{name}"].transpose("group", "step").values.astype(float)
        steps = trajectory.step.values
        steps = np.append(steps, max(2 * steps[-1] - steps[-2:][0], steps[-1] + 1))
        _draw_heat_map(ax, steps, values / values[:, :1] if name == _NORM else values, name, most_columns)
        ax.set_yticks(np.arange(len(groups)) + 0.5, groups, fontsize=8)
    all_axes[-1].set_xlabel("step")
    return all_axes


def _draw_heat_map(ax: Axes, edges: FloatArray, values: FloatArray, name: str, most_columns: int) -> None:
    """Draw values of shape (groups, rows) between the `edges` of the rows."""
    from matplotlib.colors import LogNorm

    size = -(-values.shape[1] // most_columns)
    starts = np.arange(0, values.shape[1], size)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(values > 0, values, np.nan))
    counts = np.add.reduceat(np.isfinite(logs), starts, axis=1)
    sums = np.add.reduceat(np.nan_to_num(logs), starts, axis=1)
    means = np.exp(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
    # the last steps of a schedule may rotate by next to nothing
    low, high = 0.1, 1.0
    if np.isfinite(means).any():
        low, high = np.nanpercentile(means, (0, 100) if name == _NORM else (5, 100)).tolist()
    if name == _NORM:  # equal colours for the same factor up and down
        high = max(high, 1 / low, 1.001)
        low = 1 / high
    mesh = ax.pcolormesh(
        np.append(edges[starts], edges[-1]),
        np.arange(len(means) + 1),
        means,
        norm=LogNorm(low, max(high, low * 1.001)),
        cmap="PuOr_r" if name == _NORM else "viridis",
    )
    ax.invert_yaxis()
    bar = ax.figure.colorbar(mesh, ax=ax, label=_TITLES[name], format="%.3g")
    bar.ax.minorticks_off()
    bar.set_ticks(np.geomspace(low, max(high, low * 1.001), 5).tolist())
