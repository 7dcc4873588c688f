"""Compiled inner loops of the norm dynamics, nothing else."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from simulate.maps.noise import stream_key, uniform

_SMALLEST = float(np.finfo(np.float64).tiny)

RUNS, FELL, BLEW_UP = 0, 1, 2
GIVEN, RANDOM, LOWEST, HIGHEST = 0, 1, 2, 3  # where g̃ comes from
LEAST, MOST, SUM, SUM_OF_SQUARES = 0, 1, 2, 3  # columns of the statistics of r
_BLOCK, _STRETCH = 256, 512  # trajectories side by side, and steps between two looks at them
_FEW = 4


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_norm_map(
    sq_norm: Any,
    lr: Any,
    wd: Any,
    low: Any,
    high: Any,
    rest: Any,
    drive: int,
    seed: Any,
    begin: int,
    updates: Any,
    record_every: int,
    recorded: Any,
    gradients: Any,
    statistics: Any,
    ended: Any,
    code: Any,
    continuous: bool,
) -> None:
    """Iterate r⁺ = (1-ηλ)² r + (ηg̃)²/r for a batch, in place.

    With `continuous` follow dr/dt = -2ηλr + (ηg̃)²/r over each step instead, in closed form: r² is linear there.
    `sq_norm` (batch,) is start and end; `lr`, `low`, `high` (batch, steps) may be broadcast views; g̃ is `low` (drive
    GIVEN), uniform between the two (RANDOM, from `seed` and the step numbers from `begin` on), or chosen against the
    norm (LOWEST, HIGHEST; `rest` (batch,) is the lower end of its attracting interval, as r). `updates` (batch,) are
    wanted; `recorded`, `gradients` (batch, rows) take every `record_every`-th r before its update and its g̃;
    `statistics` (batch, 4) is that of r before each update; `ended` (batch,) the updates made; `code` (batch,) how it
    ended. A trajectory that leaves the floating-point range stops at its last good state.
    """
    for i in range(sq_norm.shape[0]):
        r = sq_norm[i]
        decay = wd[i]
        ended[i] = updates[i]
        code[i] = RUNS
        key = stream_key(seed, i)
        least, most, total, squares = np.inf, 0.0, 0.0, 0.0
        for t in range(updates[i]):
            rate = lr[i, t]
            shrink = 1.0 - rate * decay
            gradient = low[i, t]
            if drive == RANDOM:
                gradient += (high[i, t] - gradient) * uniform(key, begin + t)
            elif drive == LOWEST and shrink * shrink < 0.5:
                # the map is least at r = ηℓ/|1-ηλ|: go there, then take the smallest step
                turning = rate * gradient / abs(shrink)
                wanted = (turning - shrink * shrink * r) * r
                if abs(r - turning) > 1e-9 * turning and wanted > 0.0:
                    gradient = min(max(np.sqrt(wanted) / rate, gradient), high[i, t])
            elif drive == HIGHEST:
                # sink to the lower end before the one large step, if that leads above the rest under `high`
                top = rate * high[i, t]
                worth = shrink * shrink * rest[i] + top * (top / rest[i]) > top / np.sqrt(1.0 - shrink * shrink)
                if not worth or r <= rest[i] * (1.0 + 1e-3):
                    gradient = high[i, t]
            if record_every > 0 and t % record_every == 0:
                recorded[i, t // record_every] = r
                gradients[i, t // record_every] = gradient
            push = rate * gradient
            if continuous:
                fall = 4.0 * rate * decay
                share = -np.expm1(-fall) / fall if fall > 0.0 else 1.0
                following = np.hypot(np.exp(-fall / 2.0) * r, push * np.sqrt(2.0 * share))
            else:
                following = shrink * shrink * r + push * (push / r)
            if not np.isfinite(following):
                ended[i] = t
                code[i] = BLEW_UP
                break
            if following < _SMALLEST:
                ended[i] = t
                code[i] = FELL
                break
            least, most = min(least, r), max(most, r)
            total += r
            squares += r * r
            r = following
        sq_norm[i] = r
        statistics[i, LEAST], statistics[i, MOST] = least, most
        statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total, squares


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_constant(
    sq_norm: Any,
    shrink: Any,
    push: Any,
    steps: int,
    record_every: int,
    recorded: Any,
    statistics: Any,
    ended: Any,
    code: Any,
) -> None:
    """Iterate the same map with constant 1-ηλ = `shrink` and ηg̃ = `push` (batch,): many trajectories side by side.

    The operations and their order are those of `iterate_norm_map`, so the results are too, bit for bit; side by side
    they fill the vector units. The loops know no branches: a look at each stretch finds what left the range of numbers.
    Statistics are not those of a trajectory that ended.
    """
    count = sq_norm.shape[0]
    r, a, p, first, lowest = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    least, most, total, squares = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        for j in range(size):
            i = begin + j
            r[j], a[j], p[j] = sq_norm[i], shrink[i] * shrink[i], push[i]
            least[j], most[j], total[j], squares[j] = np.inf, 0.0, 0.0, 0.0
            ended[i], code[i] = steps, RUNS
        t = 0
        while t < steps:
            if record_every > 0 and t % record_every == 0:
                for j in range(size):
                    if code[begin + j] == RUNS:
                        recorded[begin + j, t // record_every] = r[j]
            stretch = min(_STRETCH, steps - t)
            if record_every > 0:
                stretch = min(stretch, record_every - t % record_every)
            for j in range(size):
                first[j] = r[j]
                lowest[j] = r[j]
            if size < _FEW and statistics.shape[0] == 0:
                # too few to fill a vector: one after the other, in registers
                for j in range(size):
                    here, least_here, keep, move = r[j], r[j], a[j], p[j]
                    for _ in range(stretch):
                        here = keep * here + move * (move / here)
                        least_here = here if here < least_here else least_here
                    r[j], lowest[j] = here, least_here
            elif statistics.shape[0] > 0:
                for _ in range(stretch):
                    for j in range(size):
                        here = r[j]
                        least[j] = min(least[j], here)
                        most[j] = max(most[j], here)
                        total[j] += here
                        squares[j] += here * here
                        following = a[j] * here + p[j] * (p[j] / here)
                        lowest[j] = following if following < lowest[j] else lowest[j]
                        r[j] = following
            else:
                for _ in range(stretch):
                    for j in range(size):
                        following = a[j] * r[j] + p[j] * (p[j] / r[j])
                        lowest[j] = following if following < lowest[j] else lowest[j]
                        r[j] = following
            for j in range(size):
                i = begin + j
                if code[i] == RUNS and not (np.isfinite(r[j]) and lowest[j] >= _SMALLEST):
                    # once more, step by step, to its last good state
                    here = first[j]
                    for s in range(stretch):
                        following = a[j] * here + p[j] * (p[j] / here)
                        if not np.isfinite(following) or following < _SMALLEST:
                            ended[i] = t + s
                            code[i] = BLEW_UP if not np.isfinite(following) else FELL
                            break
                        here = following
                    sq_norm[i] = here
                    # it goes on as a constant that is not looked at
                    r[j], a[j], p[j] = 1.0, 1.0, 0.0
            t += stretch
        for j in range(size):
            i = begin + j
            if code[i] == RUNS:
                sq_norm[i] = r[j]
            if statistics.shape[0] > 0:
                statistics[i, LEAST], statistics[i, MOST] = least[j], most[j]
                statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total[j], squares[j]
