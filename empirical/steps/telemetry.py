"""Telemetry of training steps: norms, angles and defects, computed here for all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from empirical.steps import _kernels
from simulate.trajectories.log import step_record

# rows and columns of the scalar products: weights, gradient of the loss, change of the weights
_WEIGHTS, _GRADIENT, _CHANGE = 0, 1, 2


def scalar_products(before: Tensor, gradient: Tensor, after: Tensor, slices: Sequence[slice], products: Tensor) -> None:
    """Compute all scalar products of weights, gradient and change, for each group of weights.

    `before`, `gradient`, `after` (K, weights): weights before the step, loss gradient there and weights after the step.
    The result is written into `products`, float64 of shape (K, groups, 3, 3). The sums are in double precision.
    """
    if before.device.type == "cpu":
        bounds = np.array([(part.start, part.stop) for part in slices], dtype=np.int64).reshape(-1, 2)
        _kernels.replica_products(*(t.detach().numpy() for t in (before, gradient, after)), bounds, products.numpy())
    else:
        products_by_torch(before, gradient, after, slices, products)


def products_by_torch(
    before: Tensor, gradient: Tensor, after: Tensor, slices: Sequence[slice], products: Tensor
) -> None:
    """Do the same as `scalar_products` on any device."""
    weights = before.double()
    vectors = torch.stack([weights, gradient.double(), after.double() - weights], dim=1)
    for group, part in enumerate(slices):
        own = vectors[..., part]
        torch.matmul(own, own.mT, out=products[:, group])


def vector_products(first: Tensor, second: Tensor) -> Tensor:
    """Return first², first·second and second² of two tensors of one shape, float64 of shape (3,) on their device.

    The sums are in double precision, without a copy of float32 and float64 tensors on the CPU.
    """
    return _products(first, second, _kernels.vector_products, lambda first, second: (first, second))


def change_products(before: Tensor, after: Tensor) -> Tensor:
    """Return change², change·after and after² of a tensor that changed, as `vector_products` does."""
    return _products(before, after, _kernels.change_products, lambda before, after: (after - before, after))


def _products(
    first: Tensor,
    second: Tensor,
    kernel: Callable[..., None],
    factors: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    vectors = [tensor.detach().reshape(-1) for tensor in (first, second)]
    if any(vector.dtype not in (torch.float32, torch.float64) for vector in vectors):
        vectors = [vector.float() for vector in vectors]
    if first.device.type != "cpu":
        a, b = factors(*vectors)
        return torch.stack([(x * y).sum(dtype=torch.float64) for x, y in ((a, a), (a, b), (b, b))])
    products = torch.empty(3, dtype=torch.float64)
    kernel(*(vector.numpy() for vector in vectors), products.numpy())
    return products


def step_products(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scalar products (…, 3, 3) as in `scalar_products`, from (…, 5): w², w·g, g², w·Δ, Δ². That of g and Δ is NaN."""
    products = np.full((*sums.shape[:-1], 3, 3), np.nan)
    products[..., _WEIGHTS, _WEIGHTS], products[..., _GRADIENT, _GRADIENT] = sums[..., 0], sums[..., 2]
    products[..., _WEIGHTS, _GRADIENT] = products[..., _GRADIENT, _WEIGHTS] = sums[..., 1]
    products[..., _WEIGHTS, _CHANGE] = products[..., _CHANGE, _WEIGHTS] = sums[..., 3]
    products[..., _CHANGE, _CHANGE] = sums[..., 4]
    return products


def _columns(products: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Telemetry of steps, arrays of shape (…), from scalar products (…, 3, 3) of one group or summed over groups.

    It is `norm` and `next_norm` (before and after the step), `grad_norm` (norm times gradient norm), `rotation`
    (radians) and `radial_defect` (absolute cosine between gradient and weights; 0 for a zero gradient).

    Source: docs/mathematics.md, Notation.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        square, grad_square = products[..., _WEIGHTS, _WEIGHTS], products[..., _GRADIENT, _GRADIENT]
        along, change_square = products[..., _WEIGHTS, _CHANGE], products[..., _CHANGE, _CHANGE]
        norm = np.sqrt(square)
        grad_norm = norm * np.sqrt(grad_square)
        across = np.sqrt(np.maximum(change_square - along * (along / square), 0))
        defect = np.abs(products[..., _WEIGHTS, _GRADIENT]) / grad_norm
        angle = np.arctan2(across, (square + along) / norm)
    return {
        "norm": norm,
        "next_norm": np.sqrt(np.maximum(square + 2 * along + change_square, 0)),
        "grad_norm": grad_norm,
        "rotation": angle,
        "radial_defect": np.where(grad_norm == 0, 0.0, defect),
    }


def records(
    products: npt.NDArray[np.float64], loss: npt.NDArray[np.float64], lr: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """Log records of many steps, shape (…), from `products` (…, groups, 3, 3), `loss` and `lr` (…)."""
    record = np.empty(loss.shape, dtype=step_record(products.shape[-3]))
    record["loss"], record["lr"] = loss, lr
    for name, values in _columns(products.sum(axis=-3)).items():
        record[name] = values
    of_groups = _columns(products)
    for name in ("norm", "grad_norm", "rotation"):
        record[f"group_{name}"] = of_groups[name]
    return record
