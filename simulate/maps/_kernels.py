"""Compiled inner loops of the norm dynamics.

All loops update a `NormState` and its `Rows` in place, from step `state.begin` on. A trajectory whose code is not
RUNNING stays unchanged. A trajectory that leaves the floating-point range stops at its last valid state.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from simulate._compilation import compile_cached
from simulate.maps.noise import stream_key, uniform
from theory.arguments import FloatArray

_SMALLEST = float(np.finfo(np.float64).tiny)

RUNNING, COLLAPSED, DIVERGED = 0, 1, 2
PRESCRIBED, RANDOM, LOWEST, HIGHEST = 0, 1, 2, 3  # kinds of GradientSource
LEAST, MOST, SUM, SUM_OF_SQUARES = 0, 1, 2, 3  # columns of the statistics of r
WEIGHTS, VELOCITY = 0, 1  # rows of the coefficients
BLOCK = 256  # trajectories iterated together
_STRETCH = 512  # steps between two checks for overflow
_FEW = 4  # fewer trajectories than this do not fill a vector
# range of r in units of ηg̃ in which powers of r up to the sixteenth stay finite; an orbit never leaves it
_NEAR_LOW, _NEAR_HIGH, _NEAR_DECAY, _NEAR_PUSH = 4e-15, 1e15, 1e-20, 1e250


class NormState(NamedTuple):
    """State of each trajectory of a flattened batch.

    `begin` is the next step of the running trajectories, `sq_norm` r = ρ². `velocity` (batch, 2) has the components of
    the velocity along and across the weights, or of Adam's mean gradient; under Lion and Muon it is the memory of past
    steps, (batch, terms). `square` is the mean of Adam's squares per weight, or the norm of the momentum. `numbers` are
    those of the random streams. `ended` is the next step of a trajectory; if it has ended, the step whose update
    failed. `code` is its status.
    """

    begin: int
    sq_norm: FloatArray
    velocity: FloatArray
    square: FloatArray
    numbers: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


class GradientSource(NamedTuple):
    """Source of g̃: `low` (PRESCRIBED), uniform between `low` and `high` (RANDOM), or adversarial (LOWEST, HIGHEST).

    `low` and `high` have the shape (*batch, steps or 1). `seed` is that of random values. `lower_end` is the lower end
    of the attracting interval, as r, for HIGHEST.
    """

    kind: int
    low: FloatArray
    high: FloatArray
    seed: int = 0
    lower_end: FloatArray | None = None


class Flow(NamedTuple):
    """Law d(ρ^p)/dt = (growth - rate·ρ^p) ρ^rate_exponent of the norm for small steps, with p = `power`.

    The rate is `rate`·ηλ·g̃^rate_by_gradient, the growth `growth`·(η·g̃^growth_by_gradient)².
    """

    power: float
    rate_exponent: float
    rate: float
    rate_by_gradient: float
    growth: float
    growth_by_gradient: float


class Rows(NamedTuple):
    """Arrays (batch, rows) for the steps whose number is divisible by `stride` (0: none).

    `first` is the number of the first row. `angles` receives rotations with momentum. `statistics`, (batch, 4) or of
    size zero, collect those of r before each update.
    """

    stride: int
    first: int
    sq_norm: FloatArray
    grad_norm: FloatArray
    angles: FloatArray
    statistics: FloatArray


@compile_cached(error_model="numpy")
def raised(x: Any, exponent: Any) -> Any:
    """Power of a number, without the slow general power where roots and squares do."""
    if exponent == 0.0:
        return 1.0
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return x * x
    return np.sqrt(x) if exponent == 0.5 else x**exponent


@compile_cached(error_model="numpy")
def iterate_norm_map(
    state: Any,
    lr: Any,
    wd: Any,
    source: Any,
    updates: Any,
    rows: Any,
    levels: Any,
    crossing: Any,
    continuous: bool,
    flow: Any,
) -> None:
    """Iterate r⁺ = (1-ηλ)² r + (ηg̃)²/r for a batch.

    With `continuous`, follow the law of the optimizer for small steps over each step in closed form, since the power
    `flow.power` of the norm obeys a linear equation.
    `lr`, `wd` and the bounds of `source` (batch, steps) may be broadcast views. `updates` (batch,) are the numbers of
    updates. `crossing` (batch, levels) receives, where it is inf, the time at which r first reaches a level, with
    `continuous` only.
    """
    begin, sq_norm, ended, code = state.begin, state.sq_norm, state.ended, state.code
    low, high, lower_end, gradient_kind = source.low, source.high, source.lower_end, source.kind
    record_every, statistics = rows.stride, rows.statistics
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNNING:
            continue
        r = sq_norm[i]
        ended[i] = begin + updates[i]
        key = stream_key(source.seed, state.numbers[i])
        least, most, total, squares = np.inf, 0.0, 0.0, 0.0
        for s in range(updates[i]):
            t = begin + s
            step_lr, decay = lr[i, s], wd[i, s]
            shrink = 1.0 - step_lr * decay
            gradient = low[i, s]
            if gradient_kind == RANDOM:
                gradient += (high[i, s] - gradient) * uniform(key, t)
            elif gradient_kind == HIGHEST and continuous:
                gradient = high[i, s]
            elif gradient_kind == HIGHEST and shrink * shrink >= 0.5:
                # decay to the lower end before one large step, if it leads above the equilibrium under `high`
                top = step_lr * high[i, s]
                worthwhile = shrink * shrink * lower_end[i] + top * (top / lower_end[i]) > top / np.sqrt(
                    1.0 - shrink * shrink
                )
                if not worthwhile or r <= lower_end[i] * (1.0 + 1e-3):
                    gradient = high[i, s]
            elif gradient_kind >= LOWEST and shrink * shrink < 0.5 and not continuous:
                if gradient_kind == HIGHEST and r <= lower_end[i] * (1.0 + 1e-9):
                    gradient = high[i, s]
                else:
                    gradient = gradient_while_ringing(r, shrink, step_lr, gradient, high[i, s])
            if record_every > 0 and t % record_every == 0:
                rows.sq_norm[i, t // record_every - rows.first] = r
                rows.grad_norm[i, t // record_every - rows.first] = gradient
            push, relaxation = step_lr * gradient, 0.0
            if continuous:
                scale = raised(r, 0.5 * flow.rate_exponent)
                if decay > 0.0:
                    relaxation = flow.rate * step_lr * decay * raised(gradient, flow.rate_by_gradient) * scale
                share = -np.expm1(-relaxation) / relaxation if relaxation > 0.0 else 1.0
                # ρ^p is a sum, of which this takes the root without leaving the floating-point range
                old = np.exp(-2.0 / flow.power * relaxation) * r
                new = raised(flow.growth * share * scale, 2.0 / flow.power)
                new *= raised(step_lr * raised(gradient, flow.growth_by_gradient), 4.0 / flow.power)
                following = max(old, new)
                if 0.0 < following < np.inf:
                    sum_of_powers = 1.0 + raised(min(old, new) / following, 0.5 * flow.power)
                    following *= raised(sum_of_powers, 2.0 / flow.power)
            else:
                following = shrink * shrink * r + push * (push / r)
            if not np.isfinite(following):
                ended[i] = t
                code[i] = DIVERGED
                break
            if following < _SMALLEST:
                ended[i] = t
                code[i] = COLLAPSED
                break
            if continuous:
                for m in range(levels.size):
                    level = levels[m]
                    between = r < level <= following or following <= level < r
                    if between and crossing[i, m] == np.inf:
                        crossing[i, m] = t + fraction_of_step(r, level, following, relaxation, 0.5 * flow.power)
            least, most = min(least, r), max(most, r)
            total += r
            squares += r * r
            r = following
        sq_norm[i] = r
        if statistics.shape[0] > 0:
            statistics[i, LEAST], statistics[i, MOST] = least, most
            statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total, squares


@compile_cached(error_model="numpy")
def gradient_while_ringing(r: Any, shrink: Any, lr: Any, low: Any, high: Any) -> Any:
    """g̃ between `low` and `high` on the way to the lowest norm, for (1-ηλ)² < 1/2, where the norm overshoots.

    A step with `low` ends lowest from r = ηℓ/|1-ηλ|. If no g̃ leads there, `low` makes a larger norm decay. From a
    smaller one, `high` below the equilibria and `low` above them make the norm ring more and more.
    """
    lowest_from = lr * low / abs(shrink)
    if abs(r - lowest_from) < 1e-9 * lowest_from:
        return low
    sq_gradient = (lowest_from - shrink * shrink * r) / lr * (r / lr)
    if low * low <= sq_gradient <= high * high:
        return np.sqrt(sq_gradient)
    between = lr * np.sqrt(low) * np.sqrt(high) / np.sqrt(1.0 - shrink * shrink)
    return high if r < min(between, lowest_from) else low


@compile_cached(error_model="numpy")
def fraction_of_step(r: Any, level: Any, following: Any, relaxation: Any, power: Any) -> Any:
    """Fraction of a continuous step from r to `following` after which r reaches a level between them.

    r^`power` relaxes by exp(-`relaxation`) per step, so 1 - exp(-`relaxation`·time) is proportional to its change.
    """
    part, whole = power * np.log1p((level - r) / r), power * np.log1p((following - r) / r)
    change = (
        np.exp(part - whole) * np.expm1(-part) / np.expm1(-whole) if whole > 0.0 else np.expm1(part) / np.expm1(whole)
    )
    change = min(change, 1.0)
    return min(-np.log1p(change * np.expm1(-relaxation)) / relaxation, 1.0) if relaxation > 0.0 else change


@compile_cached(error_model="numpy")
def components(x0: Any, x1: Any, x2: Any, v0: Any, v1: Any, v2: Any) -> Any:
    """Squared norm and norm of x, and the components of v along and across x."""
    following = x0 * x0 + x1 * x1 + x2 * x2
    length = np.sqrt(following)
    u0, u1, u2 = x0 / length, x1 / length, x2 / length
    along = u0 * v0 + u1 * v1 + u2 * v2
    return following, length, along, np.hypot(np.hypot(u0 * v1 - u1 * v0, u1 * v2 - u2 * v1), u2 * v0 - u0 * v2)


@compile_cached(error_model="numpy", inline="always")
def gradient_at(source: Any, i: Any, s: Any, key: Any, t: Any) -> Any:
    """Prescribed or random g̃ of one trajectory at step `t`, the `s`-th of this call."""
    gradient = source.low[i, s]
    if source.kind == RANDOM:
        gradient += (source.high[i, s] - gradient) * uniform(key, t)
    return gradient


@compile_cached(error_model="numpy", inline="always")
def record(rows: Any, i: Any, t: Any, r: Any, gradient: Any, angle: Any) -> None:
    """Write the row of step `t`, whose number is divisible by the stride."""
    row = t // rows.stride - rows.first
    rows.sq_norm[i, row] = r
    rows.grad_norm[i, row] = gradient
    rows.angles[i, row] = angle


@compile_cached(error_model="numpy", inline="always")
def add_to_statistics(statistics: Any, r: Any) -> None:
    """Add r before an update to the statistics of a trajectory."""
    statistics[LEAST] = min(statistics[LEAST], r)
    statistics[MOST] = max(statistics[MOST], r)
    statistics[SUM] += r
    statistics[SUM_OF_SQUARES] += r * r


@compile_cached(error_model="numpy", inline="always")
def code_after(following: Any, total: Any) -> Any:
    """Code of a trajectory after a step to r = `following`. `total` is finite if all numbers of its state are."""
    if following < _SMALLEST:
        return COLLAPSED
    return RUNNING if np.isfinite(total) else DIVERGED


@compile_cached(error_model="numpy")
def iterate_moments(state: Any, coefficients: Any, source: Any, steps: int, rows: Any) -> None:
    """Iterate the second moments of weights and velocity under a linear rule, with gradients orthogonal to both.

    The components of the velocity and r determine the moments ρ², ⟨x,v⟩, ‖v‖². Moments computed as differences would
    lose all digits where a decaying norm rings through zero; these are sums of squares. `coefficients` (batch, steps,
    2, 3) give new weights and velocity from old weights, old velocity and gradient.
    """
    begin, sq_norm, velocity, ended, code = state.begin, state.sq_norm, state.velocity, state.ended, state.code
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNNING:
            continue
        r, along, across = sq_norm[i], velocity[i, 0], velocity[i, 1]
        norm = np.sqrt(r)
        ended[i] = begin + steps
        key = stream_key(source.seed, state.numbers[i])
        for s in range(steps):
            t = begin + s
            gradient = gradient_at(source, i, s, key, t)
            pull = gradient / norm
            c = coefficients[i, s]
            # components along the weights, along the remaining part of the velocity, along the gradient
            x0 = c[WEIGHTS, 0] * norm + c[WEIGHTS, 1] * along
            x1, x2 = c[WEIGHTS, 1] * across, c[WEIGHTS, 2] * pull
            v0 = c[VELOCITY, 0] * norm + c[VELOCITY, 1] * along
            v1, v2 = c[VELOCITY, 1] * across, c[VELOCITY, 2] * pull
            if rows.stride > 0 and t % rows.stride == 0:
                record(rows, i, t, r, gradient, np.arctan2(np.hypot(x1, x2), x0))
            following, length, after, aside = components(x0, x1, x2, v0, v1, v2)
            code[i] = code_after(following, following + after + aside)
            if code[i] != RUNNING:
                ended[i] = t
                break
            if rows.statistics.shape[0] > 0:
                add_to_statistics(rows.statistics[i], r)
            r, norm, along, across = following, length, after, aside
        sq_norm[i], velocity[i, 0], velocity[i, 1] = r, along, across


@compile_cached(error_model="numpy")
def iterate_adaptive(state: Any, lr: Any, wd: Any, rule: Any, source: Any, steps: int, rows: Any) -> None:
    """Iterate the second moments of weights and mean gradient under Adam or AdamW, and the mean square of gradients.

    Gradients are orthogonal to both and isotropic in many dimensions, so all weights share one mean square. `rule` is
    (β₁, β₂, number of weights, factor of the noise, factor of the decay, whether the decay enters the moments).
    `lr` and `wd` (batch, steps) may be broadcast views. Steps are counted from step 0 of the trajectory.
    """
    beta1, beta2, dim, noise, drift, coupled = rule
    begin, sq_norm, velocity, square = state.begin, state.sq_norm, state.velocity, state.square
    ended, code = state.ended, state.code
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNNING:
            continue
        r, along, across, mean_square = sq_norm[i], velocity[i, 0], velocity[i, 1], square[i]
        norm = np.sqrt(r)
        ended[i] = begin + steps
        key = stream_key(source.seed, state.numbers[i])
        for s in range(steps):
            t = begin + s
            gradient = gradient_at(source, i, s, key, t)
            pull = gradient / norm
            decay = wd[i, s] * norm
            # components along the weights, along the remaining part of the mean, along the gradient
            v0, v1, v2 = beta1 * along + coupled * (1.0 - beta1) * decay, beta1 * across, (1.0 - beta1) * pull
            following_square = beta2 * mean_square + (1.0 - beta2) * (pull * pull + coupled * decay * decay) / dim
            root = np.sqrt(following_square / (1.0 - beta2 ** (t + 1.0)))
            length_of_step = lr[i, s] / ((1.0 - beta1 ** (t + 1.0)) * root) if root > 0.0 else 0.0
            x0 = norm - (1.0 - coupled) * lr[i, s] * decay - drift * length_of_step * v0
            x1, x2 = -noise * length_of_step * v1, -noise * length_of_step * v2
            if rows.stride > 0 and t % rows.stride == 0:
                record(rows, i, t, r, gradient, np.arctan2(np.hypot(x1, x2), x0))
            following, length, after, aside = components(x0, x1, x2, v0, v1, v2)
            code[i] = code_after(following, following + after + aside + following_square)
            if code[i] != RUNNING:
                ended[i] = t
                break
            if rows.statistics.shape[0] > 0:
                add_to_statistics(rows.statistics[i], r)
            r, norm, along, across, mean_square = following, length, after, aside, following_square
        sq_norm[i], velocity[i, 0], velocity[i, 1], square[i] = r, along, across, mean_square


@compile_cached(error_model="numpy")
def iterate_directions(
    state: Any, lr: Any, wd: Any, series: Any, rule: Any, source: Any, steps: int, rows: Any
) -> None:
    """Iterate ρ² under steps along an odd function of a blend of momentum and gradient, as of Lion and Muon.

    The correlation of two directions is Σ_k a_k c^(2k+1), with the correlation c of their blends. Blends are correlated
    through the momentum only. So each power of c is a product of the steps between, and E[x·u] is a sum of moving
    averages, one for each k, in `state.velocity`. `state.square` is the norm of the momentum. `series` has the a_k,
    `rule` the mean of ‖u‖² and the blend: weights of gradient and momentum, and decay of the momentum.
    `lr` and `wd` (batch, steps) may be broadcast views.
    """
    square_step, current, previous, memory = rule
    begin, sq_norm, memories, momentum = state.begin, state.sq_norm, state.velocity, state.square
    ended, code = state.ended, state.code
    for i in range(sq_norm.shape[0]):
        if code[i] != RUNNING:
            continue
        r, size, past = sq_norm[i], momentum[i], memories[i]
        ended[i] = begin + steps
        key = stream_key(source.seed, state.numbers[i])
        for s in range(steps):
            t = begin + s
            gradient = gradient_at(source, i, s, key, t)
            pull = gradient / np.sqrt(r)
            shrink = 1.0 - lr[i, s] * wd[i, s]
            old, new = previous * size, current * pull
            blend = np.hypot(old, new)
            following_size = np.hypot(memory * size, (1.0 - memory) * pull)
            # -E[x·u]
            along, square = 0.0, 0.0
            if blend > 0.0:
                square = square_step
                factor = old / blend
                squared = factor * factor
                for term in range(series.size):
                    along += series[term] * factor * past[term]
                    factor *= squared
            ahead = shrink * np.sqrt(r) + lr[i, s] * along / np.sqrt(r)
            aside = lr[i, s] * np.sqrt(max(square - along * (along / r), 0.0))
            if rows.stride > 0 and t % rows.stride == 0:
                record(rows, i, t, r, gradient, np.arctan2(aside, ahead))
            following = ahead * ahead + aside * aside
            code[i] = code_after(following, following + following_size)
            if code[i] != RUNNING:
                ended[i] = t
                break
            if following_size > 0.0:
                # correlations of the new momentum with the old one and with this blend
                kept = memory * size / following_size
                shared = (1.0 - memory) * pull / following_size
                own = kept * (old / blend) + shared * (new / blend) if blend > 0.0 else 0.0
                squared_kept, squared_own = kept * kept, own * own
                for term in range(series.size):
                    past[term] = shrink * kept * past[term] + lr[i, s] * own
                    kept *= squared_kept
                    own *= squared_own
            if rows.statistics.shape[0] > 0:
                add_to_statistics(rows.statistics[i], r)
            r, size = following, following_size
        sq_norm[i], momentum[i] = r, size


@compile_cached(error_model="numpy")
def plain_steps(r: Any, a: Any, p: Any, steps: Any) -> Any:
    """Iterate r⁺ = a r + p²/r; return the last valid r, the number of updates and the status."""
    for t in range(steps):
        following = a * r + p * (p / r)
        if not np.isfinite(following):
            return r, t, DIVERGED
        if following < _SMALLEST:
            return r, t, COLLAPSED
        r = following
    return r, steps, RUNNING


@compile_cached(error_model="numpy")
def iterate_constant(state: Any, shrink: Any, push: Any, steps: int, rows: Any) -> None:
    """Iterate the same map with constant 1-ηλ = `shrink` and ηg̃ = `push` (batch,), many trajectories together.

    Operations and their order are those of `iterate_norm_map`, so the results are identical bit for bit. Trajectories
    iterated together fill the vector units. The inner loops have no branches: overflow is checked once per stretch.
    The statistics of a trajectory that ended are invalid.
    """
    begin, sq_norm, ended, code = state.begin, state.sq_norm, state.ended, state.code
    record_every, first_row, recorded, statistics = rows.stride, rows.first, rows.sq_norm, rows.statistics
    r, a, p, first, lowest = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    least, most, total, squares = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    running = np.empty(BLOCK, dtype=np.bool_)
    for start in range(0, sq_norm.shape[0], BLOCK):
        size = min(BLOCK, sq_norm.shape[0] - start)
        for j in range(size):
            i = start + j
            running[j] = code[i] == RUNNING
            # a trajectory that has ended continues as a constant and is ignored
            r[j], a[j], p[j] = 1.0, 1.0, 0.0
            if running[j]:
                r[j], a[j], p[j] = sq_norm[i], shrink[i] * shrink[i], push[i]
                ended[i] = begin + steps
            least[j], most[j], total[j], squares[j] = np.inf, 0.0, 0.0, 0.0
        t = begin
        while t < begin + steps:
            if record_every > 0 and t % record_every == 0:
                for j in range(size):
                    if running[j]:
                        recorded[start + j, t // record_every - first_row] = r[j]
            stretch = min(_STRETCH, begin + steps - t)
            if record_every > 0:
                stretch = min(stretch, record_every - t % record_every)
            for j in range(size):
                first[j] = r[j]
                lowest[j] = r[j]
            if size < _FEW:
                # too few to fill a vector: one after another, in registers
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
                if running[j] and not (np.isfinite(r[j]) and lowest[j] >= _SMALLEST):
                    # repeat step by step up to its last valid state
                    i = start + j
                    sq_norm[i], updates, code[i] = plain_steps(first[j], a[j], p[j], stretch)
                    ended[i] = t + updates
                    running[j] = False
                    r[j], a[j], p[j] = 1.0, 1.0, 0.0
            t += stretch
        for j in range(size):
            i = start + j
            if running[j]:
                sq_norm[i] = r[j]
                if statistics.shape[0] > 0:
                    statistics[i, LEAST], statistics[i, MOST] = least[j], most[j]
                    statistics[i, SUM], statistics[i, SUM_OF_SQUARES] = total[j], squares[j]


def _fused_multiply_add(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x·y + z, rounded once."""
    return types.float64(x, y, z), lambda context, builder, signature, given: builder.fma(*given)


fused_multiply_add: Any = intrinsic(_fused_multiply_add)


@compile_cached(error_model="numpy")
def four_steps(r: Any, a: Any, b: Any) -> Any:
    """Make four steps r⁺ = (a r² + b)/r with one division.

    With r = p/q a step is p⁺ = a p² + b q², q⁺ = p q. The loop keeps p, p² and b q². All terms are positive, so nothing
    cancels.
    """
    # rounding the sum with b twice would err to the same side at every step of a slow decay
    square = r * r
    first = fused_multiply_add(a, square, b)
    below = b * square
    square = first * first
    second = fused_multiply_add(a, square, below)
    below = square * below
    square = second * second
    third = fused_multiply_add(a, square, below)
    below = square * below
    square = third * third
    return fused_multiply_add(a, square, below) / ((first * second) * (third * r))


@compile_cached(error_model="numpy")
def unit_near(a: Any, p: Any) -> Any:
    """Unit of r, the power of two above p, in which orbits stay in the range of `four_steps`; 0 if there is none."""
    if not (a >= _NEAR_DECAY and 1.0 / _NEAR_PUSH <= p <= _NEAR_PUSH):
        return 0.0
    return math.ldexp(1.0, math.frexp(p)[1])


@compile_cached(error_model="numpy")
def steps_by_fours(r: Any, a: Any, p: Any, unit: Any, steps: Any) -> Any:
    """Make `steps` updates, a multiple of four, four at a time while r is in their range; return as `plain_steps`."""
    updates = 0
    while updates < steps:
        here = r / unit if unit > 0.0 else 0.0
        if _NEAR_LOW <= here <= _NEAR_HIGH:
            b = (p / unit) * (p / unit)
            for _ in range((steps - updates) // 4):
                here = four_steps(here, a, b)
            return here * unit, steps, RUNNING
        r, more, status = plain_steps(r, a, p, 4)
        updates += more
        if status != RUNNING:
            return r, updates, status
    return r, steps, RUNNING


@compile_cached(error_model="numpy")
def iterate_constant_by_fours(state: Any, shrink: Any, push: Any, steps: int, rows: Any) -> None:
    """Iterate as `iterate_constant` up to rounding, with one division for steps 4n … 4n+3.

    The stride of the rows is a multiple of 4. The result depends only on state and step number. Splitting a batch, or
    cutting a run at a multiple of 4, therefore does not change it.
    """
    begin, sq_norm, ended, code = state.begin, state.sq_norm, state.ended, state.code
    record_every, first_row, recorded = rows.stride, rows.first, rows.sq_norm
    head = min(-begin % 4, steps)
    end = begin + head + (steps - head) // 4 * 4
    r, a, b, unit = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    running, in_range = np.empty(BLOCK, dtype=np.bool_), np.empty(BLOCK, dtype=np.bool_)
    for start in range(0, sq_norm.shape[0], BLOCK):
        size = min(BLOCK, sq_norm.shape[0] - start)
        for j in range(size):
            i = start + j
            running[j], in_range[j] = code[i] == RUNNING, False
            # trajectories out of range are not part of the vector: a constant takes their place
            r[j], a[j], b[j] = 1.0, 1.0, 0.0
            if running[j]:
                unit[j] = unit_near(shrink[i] * shrink[i], push[i])
                ended[i] = begin + steps
                sq_norm[i], updates, code[i] = plain_steps(sq_norm[i], shrink[i] * shrink[i], push[i], head)
                if code[i] != RUNNING:
                    ended[i], running[j] = begin + updates, False
        t = begin + head
        while t < end:
            if record_every > 0 and t % record_every == 0:
                for j in range(size):
                    if running[j]:
                        value = r[j] * unit[j] if in_range[j] else sq_norm[start + j]
                        recorded[start + j, t // record_every - first_row] = value
            stretch = min(_STRETCH, end - t)
            if record_every > 0:
                stretch = min(stretch, record_every - t % record_every)
            any_in_range = False
            for j in range(size):
                i = start + j
                if running[j] and not in_range[j]:
                    keep = shrink[i] * shrink[i]
                    here = sq_norm[i] / unit[j] if unit[j] > 0.0 else 0.0
                    if size >= _FEW and _NEAR_LOW <= here <= _NEAR_HIGH:
                        in_range[j] = True
                        r[j], a[j], b[j] = here, keep, (push[i] / unit[j]) * (push[i] / unit[j])
                    else:
                        sq_norm[i], updates, code[i] = steps_by_fours(sq_norm[i], keep, push[i], unit[j], stretch)
                        if code[i] != RUNNING:
                            ended[i], running[j] = t + updates, False
                any_in_range = any_in_range or in_range[j]
            if any_in_range:
                for _ in range(stretch // 4):
                    for j in range(size):
                        r[j] = four_steps(r[j], a[j], b[j])
            t += stretch
        for j in range(size):
            i = start + j
            if in_range[j]:
                sq_norm[i] = r[j] * unit[j]
            if running[j]:
                if record_every > 0 and t < begin + steps and t % record_every == 0:
                    recorded[i, t // record_every - first_row] = sq_norm[i]
                sq_norm[i], updates, code[i] = plain_steps(
                    sq_norm[i], shrink[i] * shrink[i], push[i], begin + steps - t
                )
                if code[i] != RUNNING:
                    ended[i] = t + updates
