"""Scalar products of a step, which all of its telemetry is made of."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Sums may be reordered, which fills the vector units. Infinities and NaN are kept, because a run that overflows must
# show it.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
OUTER: Any = {**_OPTIONS, "cache": True}
# What is called and not inlined is another code when its caller comes from the cache than when the caller was compiled
# in this process, and rounds otherwise: a resumed run would not be bit-identical.
INNER: Any = {**_OPTIONS, "forceinline": True}


@numba.njit(**INNER)
def step_products(before: Any, gradient: Any, after: Any, products: Any) -> None:
    """Products of weights, gradient and change with each other, in double precision; `products` (3, 3) takes them.

    `before`, `gradient`, `after` (weights,): weights before the step, loss gradient there, weights after it.
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
    """The same for each replica and group.

    `before`, `gradient`, `after` (K, weights); `bounds` (groups, 2): first weight of each group and the one after its
    last; `products` (K, groups, 3, 3).
    """
    for k in range(len(before)):
        for j in range(len(bounds)):
            start, stop = bounds[j]
            step_products(before[k][start:stop], gradient[k][start:stop], after[k][start:stop], products[k, j])
