"""Compiled inner loop of training on landscapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulate._compilation import compile_cached
from simulate.maps._kernels import COLLAPSED, DIVERGED, RUNNING
from simulate.maps.noise import stream_key, uniform
from theory.arguments import FloatArray

_SMALLEST = float(np.finfo(np.float64).tiny)

# Kinds of landscapes. Numbers, because numba cannot cache functions that take functions as arguments.
RATIO, RAYLEIGH, SQUARED, LOGISTIC = 0, 1, 2, 3
FREE, FIXED_NORM, FIXED_EFFECTIVE_LR = 0, 1, 2
COLUMNS = ("norm", "grad_norm", "effective_lr", "rotation", "loss", "radial_defect")
NORM, GRAD_NORM, EFFECTIVE_LR, ROTATION, LOSS, RADIAL_DEFECT = range(6)


class Parts(NamedTuple):
    """Landscape in the form of the compiled loop: its kind, its data, and the size of mini-batches (0: all)."""

    kind: int
    table: FloatArray
    vector: FloatArray
    scalars: FloatArray
    batch_size: int


class WalkerState(NamedTuple):
    """State of a batch of walkers.

    `begin` is the next step of the running walkers. `held_norm` is the norm to which weights are rescaled if it is
    fixed. `numbers` are those of the random streams. `ended` is the next step of a walker, or the step whose update
    failed. `code` is its status.
    """

    begin: int
    seed: int
    weights: FloatArray
    velocity: FloatArray
    held_norm: FloatArray
    numbers: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


class Rule(NamedTuple):
    """SGD in the form of the compiled loop. `fixed` is FREE, FIXED_NORM or FIXED_EFFECTIVE_LR."""

    momentum: float
    nesterov: bool
    decoupled: bool
    fixed: int


@compile_cached(error_model="numpy")
def random_directions(seed: Any, walkers: Any, directions: Any) -> None:
    """Fill `directions` (walkers, weights) with normal random numbers that depend only on seed and walker."""
    for i in range(directions.shape[0]):
        # a stream of its own: the stream of the walker serves its mini-batches
        key = stream_key(stream_key(seed, walkers[i]), 0)
        for j in range(directions.shape[1]):
            radius = np.sqrt(-2.0 * np.log(uniform(key, 2 * j)))
            directions[i, j] = radius * np.cos(2.0 * np.pi * uniform(key, 2 * j + 1))


@compile_cached(error_model="numpy")
def example_index(key: Any, draw: Any, examples: Any) -> Any:
    """Number of the example that a stream selects for a draw."""
    # the largest uniform number rounds to 1
    return min(int(uniform(key, draw) * examples), examples - 1)


@compile_cached(error_model="numpy")
def vector_norm(vector: Any) -> Any:
    """Euclidean norm, without overflow or underflow of the squares."""
    largest, square = 0.0, 0.0
    for j in range(vector.size):
        largest = max(largest, abs(vector[j]))
    if largest == 0.0 or largest == np.inf:
        # keeps NaN components
        return np.abs(vector).sum()
    for j in range(vector.size):
        square += (vector[j] / largest) * (vector[j] / largest)
    return largest * np.sqrt(square)


@compile_cached(error_model="numpy")
def loss_and_gradient(parts: Any, key: Any, step: Any, unit: Any, gradient: Any) -> Any:
    """Return the loss of one step at weights of norm 1, and write its gradient there into `gradient`."""
    kind, table, vector, scalars, batch_size = parts
    weights = unit.size
    if kind == RATIO:
        sharpness, highest = scalars[0], scalars[1]
        x, y = unit[0], unit[1]
        below = 2.0 * highest * x * x + sharpness * y * y
        slope = 4.0 * sharpness * highest * highest * x * y / (below * below)
        gradient[0], gradient[1] = -slope * y, slope * x
        return sharpness * highest * y * y / below
    if kind == RAYLEIGH:
        quotient = 0.0
        for j in range(weights):
            quotient += vector[j] * unit[j] * unit[j]
        for j in range(weights):
            gradient[j] = (vector[j] - quotient) * unit[j]
        return 0.5 * quotient
    examples = table.shape[0]
    count = batch_size if batch_size > 0 else examples
    loss, along = 0.0, 0.0
    for j in range(weights):
        gradient[j] = 0.0
    for m in range(count):
        row = example_index(key, step * batch_size + m, examples) if batch_size > 0 else m
        projection = 0.0
        for j in range(weights):
            projection += table[row, j] * unit[j]
        prediction, target = scalars[0] * projection, vector[row]
        if kind == SQUARED:
            slope = prediction - target
            loss += 0.5 * slope * slope
        else:
            margin = target * prediction
            loss += max(-margin, 0.0) + np.log1p(np.exp(-abs(margin)))
            slope = -target / (1.0 + np.exp(margin))
        for j in range(weights):
            gradient[j] += slope * table[row, j]
        along += slope * projection
    share = scalars[0] / count
    for j in range(weights):
        gradient[j] = share * (gradient[j] - along * unit[j])
    return loss / count


@compile_cached(error_model="numpy")
def iterate_descent(
    parts: Any, state: Any, rule: Any, lr: Any, schedule: Any, wd: Any, steps: Any, record_every: Any, recorded: Any
) -> None:
    """Train a batch of walkers with SGD, in place.

    The learning rate is `lr` (batch,), or `schedule` (steps,) if that is not empty. `recorded` (columns, batch, rows)
    receives the steps whose number is divisible by `record_every`. A walker whose code is not RUNNING stays unchanged.
    A walker that leaves the floating-point range stops at its last valid state.
    """
    begin, weights, velocity, ended, code = state.begin, state.weights, state.velocity, state.ended, state.code
    momentum, nesterov, decoupled, fixed = rule
    size = weights.shape[1]
    work = np.empty((6, size))
    unit, gradient, move, following, pushed, across = work[0], work[1], work[2], work[3], work[4], work[5]
    first_row = -(-begin // record_every)
    for i in range(weights.shape[0]):
        if code[i] != RUNNING:
            continue
        x, v = weights[i], velocity[i]
        key = stream_key(state.seed, state.numbers[i])
        decay = wd[i]
        square = 0.0
        for j in range(size):
            square += x[j] * x[j]
        ended[i] = begin + steps
        for t in range(begin, begin + steps):
            step_lr = schedule[t - begin] if schedule.size > 0 else lr[i]
            norm = np.sqrt(square)
            for j in range(size):
                unit[j] = x[j] / norm
            loss = loss_and_gradient(parts, key, t, unit, gradient)
            scale = norm if fixed == FIXED_EFFECTIVE_LR else 1.0 / norm
            largest = 0.0
            for j in range(size):
                pull = decay * x[j]
                direction = gradient[j] * scale
                if not decoupled:
                    direction += pull
                if momentum > 0.0:
                    pushed[j] = momentum * v[j] + direction
                    direction = direction + momentum * pushed[j] if nesterov else pushed[j]
                if decoupled:
                    direction += pull
                move[j] = step_lr * direction
                following[j] = x[j] - move[j]
                largest = max(largest, abs(move[j]))
            if t % record_every == 0:
                grad_norm = vector_norm(gradient)
                # in units of the largest component no square overflows; an infinite component gives NaN
                unit_length = max(largest, norm)
                along, radial = 0.0, 0.0
                for j in range(size):
                    along += move[j] / unit_length * unit[j]
                    radial += gradient[j] * unit[j]
                for j in range(size):
                    across[j] = move[j] / unit_length - along * unit[j]
                row = t // record_every - first_row
                recorded[NORM, i, row] = norm
                recorded[GRAD_NORM, i, row] = grad_norm
                recorded[EFFECTIVE_LR, i, row] = step_lr if fixed == FIXED_EFFECTIVE_LR else step_lr / square
                recorded[ROTATION, i, row] = np.arctan2(vector_norm(across), norm / unit_length - along)
                recorded[LOSS, i, row] = loss
                recorded[RADIAL_DEFECT, i, row] = abs(radial) / grad_norm if grad_norm > 0.0 else 0.0
            next_square = 0.0
            for j in range(size):
                next_square += following[j] * following[j]
            if not np.isfinite(next_square):
                ended[i] = t
                code[i] = DIVERGED
                break
            if next_square < _SMALLEST:
                ended[i] = t
                code[i] = COLLAPSED
                break
            if fixed == FIXED_NORM:
                rescale = state.held_norm[i] / np.sqrt(next_square)
                next_square = 0.0
                for j in range(size):
                    following[j] *= rescale
                    next_square += following[j] * following[j]
            square = next_square
            for j in range(size):
                x[j] = following[j]
            if momentum > 0.0:
                for j in range(size):
                    v[j] = pushed[j]
