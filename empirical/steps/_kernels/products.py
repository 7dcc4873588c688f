"""Scalar products of a step, from which all of its telemetry is computed."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Sums may be reordered for the vector units. Infinities and NaN are kept, so that an overflow stays visible.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
OUTER: Any = {**_OPTIONS, "cache": True}
# Functions are inlined, because code that is called differs between a caller from the cache and one compiled in this
# process. It would round differently, and a resumed run would not be bit-identical.
INNER: Any = {**_OPTIONS, "forceinline": True}


@numba.njit(**INNER)
def step_products(before: Any, gradient: Any, after: Any, products: Any) -> None:
    """Write all scalar products of weights, gradient and change into `products` (3, 3), in double precision.

    `before`, `gradient`, `after` (weights,): weights before the step, loss gradient there, weights after the step.
    """
    ww, wg, gg, wc, gc, cc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(before.size):
        w, g = np.float64(before[i]), np.float64(gradient[i])
        c = np.float64(after[i]) - w
        ww += w * w
        wg += w * g
        gg += g * g
        wc += w * c
        gc += g * c
        cc += c * c
    products[0, 0], products[0, 1], products[0, 2] = ww, wg, wc
    products[1, 0], products[1, 1], products[1, 2] = wg, gg, gc
    products[2, 0], products[2, 1], products[2, 2] = wc, gc, cc


@numba.njit(**OUTER)
def replica_products(before: Any, gradient: Any, after: Any, bounds: Any, products: Any) -> None:
    """Apply `step_products` to each replica and group.

    `before`, `gradient`, `after` (K, weights); `bounds` (groups, 2): start and stop of each group; `products`
    (K, groups, 3, 3).
    """
    for i in range(len(before)):
        for j in range(len(bounds)):
            start, stop = bounds[j]
            step_products(
                before[i][start:stop],
                gradient[i][start:stop],
                after[i][start:stop],
                products[i, j],
            )
