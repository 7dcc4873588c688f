"""Compiled inner loops of the norm dynamics, nothing else."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_SMALLEST = float(np.finfo(np.float64).tiny)

RUNS, FELL, BLEW_UP = 0, 1, 2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_norm_map(
    sq_norm: Any,
    lr: Any,
    wd: Any,
    grad_norm: Any,
    updates: Any,
    record_every: int,
    recorded: Any,
    ended: Any,
    code: Any,
) -> None:
    """Iterate r⁺ = (1-ηλ)² r + (ηg̃)²/r for a batch, in place.

    `sq_norm` (batch,) is start and end; `lr`, `grad_norm` (batch, steps) may be broadcast views; `updates` (batch,) are
    wanted; `recorded` (batch, rows) takes every `record_every`-th r before its update; `ended` (batch,) the updates
    made; `code` (batch,) how it ended. A trajectory that leaves the floating-point range stops at its last good state.
    """
    for i in range(sq_norm.shape[0]):
        r = sq_norm[i]
        decay = wd[i]
        ended[i] = updates[i]
        code[i] = RUNS
        for t in range(updates[i]):
            if t % record_every == 0:
                recorded[i, t // record_every] = r
            rate = lr[i, t]
            shrink = 1.0 - rate * decay
            push = rate * grad_norm[i, t]
            following = shrink * shrink * r + push * (push / r)
            if not np.isfinite(following):
                ended[i] = t
                code[i] = BLEW_UP
                break
            if following < _SMALLEST:
                ended[i] = t
                code[i] = FELL
                break
            r = following
        sq_norm[i] = r
