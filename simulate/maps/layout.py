"""The batch of a simulation: its dimensions and labels, and the arguments broadcast to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from theory.arguments import FloatArray, broadcast

Coords = dict[str, tuple[Sequence[str], Any]]


class Layout(NamedTuple):
    """Dimensions and coordinates of a batch, and the values that were broadcast to it."""

    dims: tuple[str, ...]
    coords: Coords
    arrays: dict[str, FloatArray]


def lay_out(given: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray], start: xr.Dataset | None) -> Layout:
    """Lay out the batch to which plain arrays or labelled ones broadcast, or that of the run that is continued.

    Raises
    ------
    TypeError, ValueError : shapes or coordinates do not fit together.

    Examples
    --------
    >>> lay_out({"lr": np.ones((2, 1)), "wd": np.ones(3)}, {}, None).dims
    ('lr', 'wd')
    """
    for name, array in labelled.items():
        if "step" in array.dims:
            raise ValueError(f"{name} must be constant in time, got a DataArray with the dimension 'step'")
    if start is not None:
        return _continued(given, labelled, start)
    return _labelled(given, labelled) if labelled else _plain(given)


def place(coords: Coords, attributes: dict[str, Any], dims: Sequence[str], name: str, values: FloatArray) -> None:
    """Put a setting where the contract wants it: attribute of one run, coordinate of a batch.

    Raises
    ------
    ValueError : a dimension of the batch has the setting's name, but the setting varies along others.

    Examples
    --------
    >>> attributes = {}
    >>> place({}, attributes, (), "lr", np.array(0.1))
    >>> attributes
    {'lr': 0.1}
    """
    if not dims:
        attributes[name] = float(values)
    elif name not in coords and name not in dims:
        coords[name] = (dims, values)
    elif name not in coords and values.size:
        along = np.moveaxis(values, dims.index(name), 0).reshape(values.shape[dims.index(name)], -1)
        if (along != along[:, :1]).any():
            raise ValueError(f"{name} must vary along no other dimension than {name!r}, which start has, got {values}")
        coords[name] = ((name,), along[:, 0].copy())


def _continued(given: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray], start: xr.Dataset) -> Layout:
    dims, shape = tuple(map(str, start.final_norm.dims)), start.final_norm.shape
    # learning rates and decays may be others than those of the start
    labels: Coords = {d: ((d,), start[d].values.copy()) for d in dims if d in start.coords and d not in ("lr", "wd")}
    template = xr.DataArray(np.empty(shape), dims=dims, coords=labels)
    arrays: dict[str, FloatArray] = {}
    for name, value in given.items():
        if name in labelled:
            if not set(labelled[name].dims) <= set(dims):
                raise ValueError(
                    f"{name} must have no dimensions but those of start, {dims}, got {labelled[name].dims}"
                )
            try:
                fitted = xr.align(template, labelled[name], join="exact")[1]
            except ValueError as error:
                raise ValueError(f"coordinates of {name} must agree with those of start: {error}") from None
            arrays[name] = fitted.broadcast_like(template).transpose(*dims).values
        else:
            try:
                arrays[name] = np.broadcast_to(value, shape)
            except ValueError:
                raise ValueError(f"{name} must broadcast to the batch of start, {shape}, got {value.shape}") from None
    return Layout(dims, labels, arrays)


def _labelled(given: Mapping[str, FloatArray], labelled: Mapping[str, xr.DataArray]) -> Layout:
    first = next(iter(labelled))
    for name in given:
        if name not in labelled and given[name].ndim:
            raise TypeError(f"{name} must be a number or a DataArray when {first} is a DataArray")
    try:
        arrays = xr.broadcast(*xr.align(*(labelled.get(n, xr.DataArray(v)) for n, v in given.items()), join="exact"))
    except ValueError as error:
        raise ValueError(f"coordinates of {', '.join(labelled)} must agree: {error}") from None
    dims = tuple(map(str, arrays[0].dims))
    coords: Coords = {}
    for dim in dims:
        if dim in arrays[0].coords:
            coords[dim] = ((dim,), arrays[0].coords[dim].values)
        elif dim in labelled and labelled[dim].dims == (dim,):
            coords[dim] = ((dim,), given[dim])
    return Layout(dims, coords, {name: array.values for name, array in zip(given, arrays, strict=True)})


def _plain(given: Mapping[str, FloatArray]) -> Layout:
    shape = broadcast(**given)[0].shape
    arrays = {name: np.broadcast_to(value, shape) for name, value in given.items()}
    if len(shape) < 2:
        return Layout(("batch",)[: len(shape)], {}, arrays)
    dims, coords = [], Coords()
    for axis, size in enumerate(shape):
        varying = [n for n, v in given.items() if size > 1 and _size_along(v.shape, axis, len(shape)) > 1]
        if varying in (["lr"], ["wd"]) and given[varying[0]].size == size:
            dims.append(varying[0])
            coords[varying[0]] = ((varying[0],), given[varying[0]].ravel())
        else:
            dims.append(f"batch_{axis}")
    return Layout(tuple(dims), coords, arrays)


def _size_along(shape: tuple[int, ...], axis: int, ndim: int) -> int:
    own = axis - (ndim - len(shape))
    return shape[own] if own >= 0 else 1
