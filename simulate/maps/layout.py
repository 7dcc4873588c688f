"""Layout of a simulated batch: its dimensions and coordinates, and the arguments broadcast to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from theory.arguments import FloatArray, broadcast

Coords = dict[str, tuple[Sequence[str], Any]]


def unlabelled(value: Any) -> Any:
    """Return the values of a DataArray, for functions that know its dimensions, and anything else unchanged."""
    return value.values if isinstance(value, xr.DataArray) else value


class BatchLayout(NamedTuple):
    """Dimensions and coordinates of a batch, and the arguments broadcast to it."""

    dims: tuple[str, ...]
    coords: Coords
    arrays: dict[str, FloatArray]


def lay_out(
    values: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray], start: xr.Dataset | None
) -> BatchLayout:
    """Return the layout of the batch that the arguments broadcast to, or that of the run being continued.

    `values` are all arguments as plain arrays, `labelled` those that are DataArrays.
    """
    for name, array in labelled.items():
        if "step" in array.dims:
            raise ValueError(f"{name} must be constant in time, got a DataArray with the dimension 'step'")
    if start is not None:
        return _layout_of_start(values, labelled, start)
    return _labelled_layout(values, labelled) if labelled else _plain_layout(values)


def place_setting(
    coords: Coords, attributes: dict[str, Any], dims: Sequence[str], name: str, values: FloatArray
) -> None:
    """Store a setting as the trajectory contract requires: attribute of one run, coordinate of a batch."""
    if not dims:
        attributes[name] = float(values)
    elif name not in coords and name not in dims:
        coords[name] = (dims, values)
    elif name not in coords and values.size:
        along = np.moveaxis(values, dims.index(name), 0).reshape(values.shape[dims.index(name)], -1)
        if (along != along[:, :1]).any():
            raise ValueError(
                f"{name} must vary along no other dimension than {name!r}, a dimension of start, got {values}"
            )
        coords[name] = ((name,), along[:, 0].copy())


def _layout_of_start(
    values: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray], start: xr.Dataset
) -> BatchLayout:
    dims, shape = tuple(map(str, start.final_norm.dims)), start.final_norm.shape
    # a continued run may have other learning rates and weight decays than its start
    labels: Coords = {d: ((d,), start[d].values.copy()) for d in dims if d in start.coords and d not in ("lr", "wd")}
    template = xr.DataArray(np.empty(shape), dims=dims, coords=labels)
    arrays: dict[str, FloatArray] = {}
    for name, value in values.items():
        if name in labelled:
            if not set(labelled[name].dims) <= set(dims):
                raise ValueError(
                    f"{name} must have no dimensions but those of start, {dims}, got {labelled[name].dims}"
                )
            try:
                aligned = xr.align(template, labelled[name], join="exact")[1]
            except ValueError as error:
                raise ValueError(f"coordinates of {name} must agree with those of start: {error}") from None
            arrays[name] = aligned.broadcast_like(template).transpose(*dims).values
        else:
            try:
                arrays[name] = np.broadcast_to(value, shape)
            except ValueError:
                raise ValueError(f"{name} must broadcast to the batch of start, {shape}, got {value.shape}") from None
    return BatchLayout(dims, labels, arrays)


def _labelled_layout(values: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray]) -> BatchLayout:
    first = next(iter(labelled))
    for name in values:
        if name not in labelled and values[name].ndim:
            raise TypeError(f"{name} must be a number or a DataArray when {first} is a DataArray")
    try:
        arrays = xr.broadcast(*xr.align(*(labelled.get(n, xr.DataArray(v)) for n, v in values.items()), join="exact"))
    except ValueError as error:
        raise ValueError(f"coordinates of {', '.join(labelled)} must agree: {error}") from None
    dims = tuple(map(str, arrays[0].dims))
    coords: Coords = {}
    for dim in dims:
        if dim in arrays[0].coords:
            coords[dim] = ((dim,), arrays[0].coords[dim].values)
        elif dim in labelled and labelled[dim].dims == (dim,):
            coords[dim] = ((dim,), values[dim])
    return BatchLayout(dims, coords, {name: array.values for name, array in zip(values, arrays, strict=True)})


def _plain_layout(values: Mapping[str, FloatArray]) -> BatchLayout:
    shape = broadcast(**values)[0].shape
    arrays = {name: np.broadcast_to(value, shape) for name, value in values.items()}
    if len(shape) < 2:
        return BatchLayout(("batch",)[: len(shape)], {}, arrays)
    dims, coords = [], Coords()
    for axis, size in enumerate(shape):
        varying = [n for n, v in values.items() if size > 1 and _size_along(v.shape, axis, len(shape)) > 1]
        if varying in (["lr"], ["wd"]) and values[varying[0]].size == size:
            dims.append(varying[0])
            coords[varying[0]] = ((varying[0],), values[varying[0]].ravel())
        else:
            dims.append(f"batch_{axis}")
    return BatchLayout(tuple(dims), coords, arrays)


def _size_along(shape: tuple[int, ...], axis: int, ndim: int) -> int:
    own_axis = axis - (ndim - len(shape))
    return shape[own_axis] if own_axis >= 0 else 1
