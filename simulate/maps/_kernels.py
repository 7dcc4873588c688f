"""Compiled inner loops of the norm dynamics, nothing else.

All work in place on a batch from step `begin` on, which is where its running trajectories stand. `recorded` and the
like (batch, rows) take the steps whose number is divisible by `record_every` (0: none), the first of them as row number
`first_row`; `statistics` (batch, 4), or of size zero, gather those of r before each update; `ended` (batch,) is the
number of the step before which a trajectory stands, `code` (batch,) how it ended: one that is not RUNS already stays
as it is. A trajectory that leaves the floating-point range stops at its last good state.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from simulate.maps.noise import stream_key, uniform

_SMALLEST = float(np.finfo(np.float64).tiny)

RUNS, FELL, BLEW_UP = 0, 1, 2
GIVEN, RANDOM, LOWEST, HIGHEST = 0, 1, 2, 3  # where g̃ comes from
LEAST, MOST, SUM, SUM_OF_SQUARES = 0, 1, 2, 3  # columns of the statistics of r
WEIGHTS, VELOCITY = 0, 1  # rows of a linear rule
BLOCK = 256  # trajectories side by side
_STRETCH = 512  # steps between two looks at them
_FEW = 4
# r in units of ηg̃ from which powers of r up to the sixteenth stay numbers; an orbit inside never leaves it
_NEAR_LOW, _NEAR_HIGH, _NEAR_DECAY, _NEAR_PUSH = 4e-15, 1e15, 1e-20, 1e250


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
    numbers: Any,
    begin: int,
    updates: Any,
    record_every: int,
    first_row: int,
    recorded: Any,
    gradients: Any,
    statistics: Any,
    levels: Any,
    crossing: Any,
    ended: Any,
    code: Any,
    continuous: bool,
) -> None:
    """Iterate r⁺ = (1-ηλ)² r + (ηg̃)²/r for a batch.

    With `continuous` follow dr/dt = -2ηλr + (ηg̃)²/r over each step instead, in closed form: r² is linear there.
    `sq_norm` (batch,) is start and end; `lr`, `low`, `high` (batch, steps) may be broadcast views; g̃ is `low` (drive
    GIVEN), uniform between the two (RANDOM, from `seed` and the streams `numbers`), or chosen against the norm (LOWEST,
    HIGHEST; `rest` (batch,) is the lower end of its attracting interval, as r). `updates` (batch,) are wanted.
    `crossing` (batch, levels) takes, where it is inf, the time at which a continuous r first comes to a level.
    """
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNS:
            continue
        r = sq_norm[i]
        decay = wd[i]
        ended[i] = begin + updates[i]
        key = stream_key(seed, numbers[i])
        least, most, total, squares = np.inf, 0.0, 0.0, 0.0
        for s in range(updates[i]):
            t = begin + s
            rate = lr[i, s]
            shrink = 1.0 - rate * decay
            gradient = low[i, s]
            if drive == RANDOM:
                gradient += (high[i, s] - gradient) * uniform(key, t)
            elif drive == LOWEST and shrink * shrink < 0.5:
                # the map is least at r = ηℓ/|1-ηλ|: go there, then take the smallest step
                turning = rate * gradient / abs(shrink)
                wanted = (turning - shrink * shrink * r) * r
                if abs(r - turning) > 1e-9 * turning and wanted > 0.0:
                    gradient = min(max(np.sqrt(wanted) / rate, gradient), high[i, s])
            elif drive == HIGHEST:
                # sink to the lower end before the one large step, if that leads above the rest under `high`
                top = rate * high[i, s]
                worth = shrink * shrink * rest[i] + top * (top / rest[i]) > top / np.sqrt(1.0 - shrink * shrink)
                if not worth or r <= rest[i] * (1.0 + 1e-3):
                    gradient = high[i, s]
            if record_every > 0 and t % record_every == 0:
                recorded[i, t // record_every - first_row] = r
                gradients[i, t // record_every - first_row] = gradient
            push = rate * gradient
            fall = 4.0 * rate * decay
            if continuous:
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
            if continuous:
                for k in range(levels.size):
                    level = levels[k]
                    between = r < level <= following or following <= level < r
                    if between and crossing[i, k] == np.inf:
                        crossing[i, k] = t + fraction_of_step(r, level, following, fall)
            least, most = min(least, r), max(most, r)
            total += r
            squares += r * r
            r = following
        sq_norm[i] = r
        if statistics.shape[0] > 0:
            statistics[i, LEAST], statistics[i, MOST] = least, most
            statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total, squares


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fraction_of_step(r: Any, level: Any, following: Any, fall: Any) -> Any:
    """Part of a continuous step from r to `following` after which it is at a level between them.

    r² relaxes by exp(-`fall`) a step, so 1 - exp(-`fall`·time) is proportional to the way that r² has gone.
    """
    way = (level - r) / (following - r) * ((0.5 * level + 0.5 * r) / (0.5 * following + 0.5 * r))
    way = min(way, 1.0)
    return min(-np.log1p(way * np.expm1(-fall)) / fall, 1.0) if fall > 0.0 else way


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_moments(
    sq_norm: Any,
    velocity: Any,
    coefficients: Any,
    low: Any,
    high: Any,
    drive: int,
    seed: Any,
    numbers: Any,
    begin: int,
    steps: int,
    record_every: int,
    first_row: int,
    recorded: Any,
    gradients: Any,
    turns: Any,
    statistics: Any,
    ended: Any,
    code: Any,
) -> None:
    """Iterate the second moments of weights and velocity under a linear rule, gradients orthogonal to both.

    `velocity` (batch, 2) are the parts of the velocity along and across the weights, which with r determine the moments
    ρ², ⟨x,v⟩, ‖v‖². Moments that are differences would lose all digits where a falling norm rings through zero; parts
    are sums of squares. `coefficients` (batch, steps, 2, 3) give the new weights and velocity from the old ones and the
    gradient; `turns` are the recorded angles.
    """
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNS:
            continue
        r, along, across = sq_norm[i], velocity[i, 0], velocity[i, 1]
        norm = np.sqrt(r)
        ended[i] = begin + steps
        key = stream_key(seed, numbers[i])
        for s in range(steps):
            t = begin + s
            gradient = low[i, s]
            if drive == RANDOM:
                gradient += (high[i, s] - gradient) * uniform(key, t)
            pull = gradient / norm
            c = coefficients[i, s]
            # in the directions of the weights, of the rest of the velocity, of the gradient
            x0 = c[WEIGHTS, 0] * norm + c[WEIGHTS, 1] * along
            x1, x2 = c[WEIGHTS, 1] * across, c[WEIGHTS, 2] * pull
            v0 = c[VELOCITY, 0] * norm + c[VELOCITY, 1] * along
            v1, v2 = c[VELOCITY, 1] * across, c[VELOCITY, 2] * pull
            if record_every > 0 and t % record_every == 0:
                row = t // record_every - first_row
                recorded[i, row] = r
                gradients[i, row] = gradient
                turns[i, row] = np.arctan2(np.hypot(x1, x2), x0)
            following = x0 * x0 + x1 * x1 + x2 * x2
            length = np.sqrt(following)
            u0, u1, u2 = x0 / length, x1 / length, x2 / length
            after = u0 * v0 + u1 * v1 + u2 * v2
            aside = np.hypot(np.hypot(u0 * v1 - u1 * v0, u1 * v2 - u2 * v1), u2 * v0 - u0 * v2)
            if following < _SMALLEST:
                ended[i] = t
                code[i] = FELL
                break
            if not np.isfinite(following + after + aside):
                ended[i] = t
                code[i] = BLEW_UP
                break
            if statistics.shape[0] > 0:
                statistics[i, LEAST] = min(statistics[i, LEAST], r)
                statistics[i, MOST] = max(statistics[i, MOST], r)
                statistics[i, SUM] += r
                statistics[i, SUM_OF_SQUARES] += r * r
            r, norm, along, across = following, length, after, aside
        sq_norm[i], velocity[i, 0], velocity[i, 1] = r, along, across


@numba.njit(cache=True, nogil=True, error_model="numpy")
def plain_steps(r: Any, a: Any, p: Any, steps: Any) -> Any:
    """Iterate r⁺ = a r + p²/r; return the last good r, the steps made and how it ended."""
    for t in range(steps):
        following = a * r + p * (p / r)
        if not np.isfinite(following):
            return r, t, BLEW_UP
        if following < _SMALLEST:
            return r, t, FELL
        r = following
    return r, steps, RUNS


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_constant(
    sq_norm: Any,
    shrink: Any,
    push: Any,
    begin: int,
    steps: int,
    record_every: int,
    first_row: int,
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
    r, a, p, first, lowest = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    least, most, total, squares = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    runs = np.empty(BLOCK, dtype=np.bool_)
    for start in range(0, sq_norm.shape[0], BLOCK):
        size = min(BLOCK, sq_norm.shape[0] - start)
        for j in range(size):
            i = start + j
            runs[j] = code[i] == RUNS
            # one that has ended goes on as a constant that is not looked at
            r[j], a[j], p[j] = 1.0, 1.0, 0.0
            if runs[j]:
                r[j], a[j], p[j] = sq_norm[i], shrink[i] * shrink[i], push[i]
                ended[i] = begin + steps
            least[j], most[j], total[j], squares[j] = np.inf, 0.0, 0.0, 0.0
        t = begin
        while t < begin + steps:
            if record_every > 0 and t % record_every == 0:
                for j in range(size):
                    if runs[j]:
                        recorded[start + j, t // record_every - first_row] = r[j]
            stretch = min(_STRETCH, begin + steps - t)
            if record_every > 0:
                stretch = min(stretch, record_every - t % record_every)
            for j in range(size):
                first[j] = r[j]
                lowest[j] = r[j]
            if size < _FEW:
                # too few to fill a vector: one after the other, in registers
                for j in range(size):
                    here, least_here, keep, move = r[j], r[j], a[j], p[j]
                    if statistics.shape[0] > 0:
                        most_here, total_here, squares_here = most[j], total[j], squares[j]
                        for _ in range(stretch):
                            least_here = here if here < least_here else least_here
                            most_here = here if here > most_here else most_here
                            total_here += here
                            squares_here += here * here
                            here = keep * here + move * (move / here)
                        most[j], total[j], squares[j] = most_here, total_here, squares_here
                        least[j] = min(least[j], least_here)
                    else:
                        for _ in range(stretch):
                            least_here = here if here < least_here else least_here
                            here = keep * here + move * (move / here)
                    r[j], lowest[j] = here, min(least_here, here)
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
                if runs[j] and not (np.isfinite(r[j]) and lowest[j] >= _SMALLEST):
                    # once more, step by step, to its last good state
                    i = start + j
                    sq_norm[i], made, code[i] = plain_steps(first[j], a[j], p[j], stretch)
                    ended[i] = t + made
                    runs[j] = False
                    r[j], a[j], p[j] = 1.0, 1.0, 0.0
            t += stretch
        for j in range(size):
            i = start + j
            if runs[j]:
                sq_norm[i] = r[j]
                if statistics.shape[0] > 0:
                    statistics[i, LEAST], statistics[i, MOST] = least[j], most[j]
                    statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total[j], squares[j]


def _fused(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x·y + z, rounded once."""
    return types.float64(x, y, z), lambda context, builder, signature, given: builder.fma(*given)


fused: Any = intrinsic(_fused)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def four_steps(r: Any, a: Any, b: Any) -> Any:
    """Make four steps r⁺ = (a r² + b)/r with one division.

    With r = p/q a step is p⁺ = a p² + b q², q⁺ = p q; kept are p, p² and b q². All terms are positive: nothing cancels.
    """
    # rounded twice the sum with the constant b would err to the same side at every step of a slow fall
    square = r * r
    first = fused(a, square, b)
    below = b * square
    square = first * first
    second = fused(a, square, below)
    below = square * below
    square = second * second
    third = fused(a, square, below)
    below = square * below
    square = third * third
    return fused(a, square, below) / ((first * second) * (third * r))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def unit_near(a: Any, p: Any) -> Any:
    """Power of two above p, in units of which orbits stay in the range of `four_steps`; 0 where there is none."""
    if not (a >= _NEAR_DECAY and 1.0 / _NEAR_PUSH <= p <= _NEAR_PUSH):
        return 0.0
    return math.ldexp(1.0, math.frexp(p)[1])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fours(r: Any, a: Any, p: Any, unit: Any, steps: Any) -> Any:
    """Make a multiple of four steps, four at a time where r is in their range; return as `plain_steps` does."""
    made = 0
    while made < steps:
        here = r / unit if unit > 0.0 else 0.0
        if _NEAR_LOW <= here <= _NEAR_HIGH:
            b = (p / unit) * (p / unit)
            for _ in range((steps - made) // 4):
                here = four_steps(here, a, b)
            return here * unit, steps, RUNS
        r, more, how = plain_steps(r, a, p, 4)
        made += more
        if how != RUNS:
            return r, made, how
    return r, steps, RUNS


@numba.njit(cache=True, nogil=True, error_model="numpy")
def iterate_constant_by_fours(
    sq_norm: Any,
    shrink: Any,
    push: Any,
    begin: int,
    steps: int,
    record_every: int,
    first_row: int,
    recorded: Any,
    ended: Any,
    code: Any,
) -> None:
    """Iterate as `iterate_constant` does, up to rounding, with one division for the steps 4k … 4k+3.

    `record_every` is a multiple of 4. What a trajectory does depends on its state and the number of the step alone, so
    that batches can be split and runs can be cut at multiples of 4 without a trace.
    """
    head = min(-begin % 4, steps)
    end = begin + head + (steps - head) // 4 * 4
    r, a, b, unit = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    runs, near = np.empty(BLOCK, dtype=np.bool_), np.empty(BLOCK, dtype=np.bool_)
    for start in range(0, sq_norm.shape[0], BLOCK):
        size = min(BLOCK, sq_norm.shape[0] - start)
        for j in range(size):
            i = start + j
            runs[j], near[j] = code[i] == RUNS, False
            # what is not near is no part of the vector: a constant there
            r[j], a[j], b[j] = 1.0, 1.0, 0.0
            if runs[j]:
                unit[j] = unit_near(shrink[i] * shrink[i], push[i])
                ended[i] = begin + steps
                sq_norm[i], made, code[i] = plain_steps(sq_norm[i], shrink[i] * shrink[i], push[i], head)
                if code[i] != RUNS:
                    ended[i], runs[j] = begin + made, False
        t = begin + head
        while t < end:
            if record_every > 0 and t % record_every == 0:
                for j in range(size):
                    if runs[j]:
                        value = r[j] * unit[j] if near[j] else sq_norm[start + j]
                        recorded[start + j, t // record_every - first_row] = value
            stretch = min(_STRETCH, end - t)
            if record_every > 0:
                stretch = min(stretch, record_every - t % record_every)
            some_near = False
            for j in range(size):
                i = start + j
                if runs[j] and not near[j]:
                    keep = shrink[i] * shrink[i]
                    here = sq_norm[i] / unit[j] if unit[j] > 0.0 else 0.0
                    if size >= _FEW and _NEAR_LOW <= here <= _NEAR_HIGH:
                        near[j] = True
                        r[j], a[j], b[j] = here, keep, (push[i] / unit[j]) * (push[i] / unit[j])
                    else:
                        sq_norm[i], made, code[i] = fours(sq_norm[i], keep, push[i], unit[j], stretch)
                        if code[i] != RUNS:
                            ended[i], runs[j] = t + made, False
                some_near = some_near or near[j]
            if some_near:
                for _ in range(stretch // 4):
                    for j in range(size):
                        r[j] = four_steps(r[j], a[j], b[j])
            t += stretch
        for j in range(size):
            i = start + j
            if near[j]:
                sq_norm[i] = r[j] * unit[j]
            if runs[j]:
                if record_every > 0 and t < begin + steps and t % record_every == 0:
                    recorded[i, t // record_every - first_row] = sq_norm[i]
                sq_norm[i], made, code[i] = plain_steps(sq_norm[i], shrink[i] * shrink[i], push[i], begin + steps - t)
                if code[i] != RUNS:
                    ended[i] = t + made
