"""Compiled inner loop of the reduced model of a network: norm and loss between breaks, breaks at random."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from simulate.maps.noise import stream_key, uniform

# columns of the state, of the constants, and of the statistics, one row for each walker
STATES = ("log_norm", "loss", "effective_lr", "rate", "hazard", "threshold", "climb", "until", "breaks", "ready")
LOG_NORM, LOSS, EFFECTIVE_LR, RATE, HAZARD, THRESHOLD, CLIMB, UNTIL, BREAKS, READY = range(10)
CONSTANTS = 12
LOG_SHRINK, LOSS_DECAY, GROWTH, HAZARD_BASE, HAZARD_POWER = range(5)
PEAK_BASE, PEAK_OF_NORM, PEAK_OF_LOSS, PEAK_RESIDUAL_SD, PEAK_LOSS, PEAK_LOSS_SD, DURATION = range(5, 12)
STATISTICS = 13
COUNT, LENGTH, SQ_LENGTH, TROUGHS, PEAKS = range(5)
HIGH, LOW, LOW_AT, DIRECTION, TROUGH, TROUGH_AT, PEAK, FOUND = range(5, 13)

_BLOCK = 16
_REDRAWS = 100  # then the rise is the least one
_SERIES = tuple(1.0 / math.factorial(n) for n in range(11, -1, -1))
_NEAR, _SMALL = 0.05, 0.2  # up to here the series below are exp to rounding


@numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _exp(y: Any) -> Any:
    """exp(y) for |y| <= 0.2, as its series: without a call, so that it fills the vector units."""
    series = _SERIES[0]
    for coefficient in _SERIES[1:]:
        series = series * y + coefficient
    return series


@numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _exp_near(y: Any) -> Any:
    """exp(y) for |y| <= 0.05, likewise."""
    series = _SERIES[3]
    for coefficient in _SERIES[4:]:
        series = series * y + coefficient
    return series


@numba.njit(cache=True, nogil=True)
def normal(key: Any, number: Any) -> Any:
    """Normal number of mean 0 and variance 1, by Box and Muller.

    Examples
    --------
    >>> abs(normal(np.uint64(stream_key(0, 0)), 5)) < 10
    True
    """
    return np.sqrt(-2.0 * np.log(uniform(key, 2 * number))) * np.cos(2.0 * np.pi * uniform(key, 2 * number + 1))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def begin_fall(state: Any, constants: Any, key: Any, least_rise: float) -> None:
    """Set what the next break depends on, from ln z, exactly; `state` (10,) and `constants` (12,) of one walker."""
    state[EFFECTIVE_LR] = np.exp(-2.0 * state[LOG_NORM])
    state[RATE] = np.exp(constants[HAZARD_BASE] - 2.0 * constants[HAZARD_POWER] * state[LOG_NORM])
    state[HAZARD], state[CLIMB], state[UNTIL] = 0.0, 0.0, -1.0
    # a rise that follows before the norm has fallen by as much is part of the last one
    state[READY] = state[LOG_NORM] - least_rise
    # a break comes at the step at which the sum of all hazards exceeds an exponential number
    state[THRESHOLD] = -np.log(uniform(stream_key(key, 2 * np.int64(state[BREAKS])), 0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _break(state: Any, constants: Any, key: Any, step: int, least_rise: float) -> None:
    """Begin a rise: draw where it ends, and the loss from which the next fall begins."""
    draws = stream_key(key, 2 * np.int64(state[BREAKS]) + 1)
    here = state[LOG_NORM]
    mean = constants[PEAK_BASE] + constants[PEAK_OF_NORM] * here + constants[PEAK_OF_LOSS] * np.log(state[LOSS]) - here
    rise = least_rise
    for number in range(_REDRAWS):
        drawn = mean + constants[PEAK_RESIDUAL_SD] * normal(draws, number + 1)
        if drawn > least_rise:
            rise = drawn
            break
    state[BREAKS] += 1.0
    state[CLIMB] = rise / constants[DURATION]
    state[UNTIL] = step + constants[DURATION]
    state[LOSS] = np.exp(constants[PEAK_LOSS] + constants[PEAK_LOSS_SD] * normal(draws, 0))


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def iterate_oscillation(
    state: Any,
    constants: Any,
    seed: Any,
    walker: Any,
    begin: int,
    steps: int,
    record_every: int,
    recorded: Any,
    statistics: Any,
    discard: int,
    look_every: int,
    most: int,
    rise: float,
    least_rise: float,
) -> None:
    """Follow ln z and the loss of many walkers, in place.

    `state` (walkers, 10), `constants` (walkers, 12); `walker` (walkers,) are the numbers by which they draw. Steps are
    numbered from `begin`. `recorded` (3, walkers, rows) takes ln z before the step, the loss, and the change of ln z at
    each step divisible by `record_every`, if that is not 0. `statistics` (walkers, 13), if it has rows, is that of
    periods, as `find_periods` finds them in the steps from `discard` on that are divisible by `look_every`, until there
    are `most` of them.
    """
    count = state.shape[0]
    first_look = -(-discard // look_every) * look_every
    log_norm, loss, effective_lr, rate = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    hazard, threshold, climb, calm = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    down, decay, growth, power = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    high, low, low_at, change = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    falling, rising, ready = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    slow = np.empty(_BLOCK, dtype=np.bool_)
    for first in range(0, count, _BLOCK):
        size = min(_BLOCK, count - first)
        small, next_end, unfinished = True, np.inf, size
        for j in range(size):
            one = state[first + j]
            log_norm[j], loss[j], effective_lr[j] = one[LOG_NORM], one[LOSS], one[EFFECTIVE_LR]
            rate[j], hazard[j], threshold[j] = one[RATE], one[HAZARD], one[THRESHOLD]
            ready[j], climb[j], calm[j] = one[READY], one[CLIMB], 1.0 if one[UNTIL] < 0.0 else 0.0
            if one[UNTIL] >= 0.0:
                next_end = min(next_end, one[UNTIL])
            down[j], decay[j] = constants[first + j, LOG_SHRINK], constants[first + j, LOSS_DECAY]
            growth[j], power[j] = constants[first + j, GROWTH], constants[first + j, HAZARD_POWER]
            slow[j] = -4.0 * down[j] < _NEAR and -4.0 * down[j] * abs(power[j]) < _SMALL
            small = small and slow[j]
            if statistics.shape[0] > 0:
                seen = statistics[first + j]
                high[j], low[j], low_at[j] = seen[HIGH], seen[LOW], seen[LOW_AT]
                falling[j], rising[j] = 1.0 if seen[DIRECTION] >= 0.0 else 0.0, 1.0 if seen[DIRECTION] <= 0.0 else 0.0
                if seen[COUNT] >= most:
                    unfinished -= 1
        for t in range(begin, begin + steps):
            if statistics.shape[0] > 0 and unfinished == 0:
                break
            if statistics.shape[0] > 0 and t >= discard and t % look_every == 0:
                turned = np.int64(0)
                for j in range(size):
                    here = log_norm[j]
                    high[j] = max(high[j], here)
                    lower = here < low[j]
                    low[j] = here if lower else low[j]
                    low_at[j] = t if lower else low_at[j]
                    fell = falling[j] * (high[j] - here) >= rise
                    rose = rising[j] * (here - low[j]) >= rise
                    turned |= np.int64(fell) | np.int64(rose)
                if turned:
                    for j in range(size):
                        seen, here = statistics[first + j], log_norm[j]
                        if falling[j] * (high[j] - here) >= rise:
                            if seen[FOUND] > 0.0:
                                seen[PEAK] = high[j]
                            falling[j], rising[j] = 0.0, 1.0
                            low[j], low_at[j] = here, t
                        elif rising[j] * (here - low[j]) >= rise:
                            # a rise from the very first value has no known beginning
                            if low_at[j] > first_look:
                                if seen[FOUND] > 0.0 and seen[COUNT] < most:
                                    length = low_at[j] - seen[TROUGH_AT]
                                    seen[COUNT] += 1.0
                                    seen[LENGTH] += length
                                    seen[SQ_LENGTH] += length * length
                                    seen[TROUGHS] += seen[TROUGH]
                                    seen[PEAKS] += seen[PEAK]
                                    if seen[COUNT] >= most:
                                        unfinished -= 1
                                seen[TROUGH], seen[TROUGH_AT] = low[j], low_at[j]
                                seen[FOUND] = 1.0
                            falling[j], rising[j] = 1.0, 0.0
                            high[j] = here
            row = -1
            if record_every > 0 and t % record_every == 0:
                row = t // record_every - (begin + record_every - 1) // record_every
                for j in range(size):
                    recorded[0, first + j, row], recorded[1, first + j, row] = log_norm[j], loss[j]
            broke = np.int64(0)
            if small:
                for j in range(size):
                    turn = effective_lr[j] * loss[j]
                    grown = min(0.5 * growth[j] * turn * turn, -2.0 * down[j])
                    hazard[j] += calm[j] * loss[j] * rate[j] if log_norm[j] <= ready[j] else 0.0
                    moved = calm[j] * (grown + down[j])
                    loss[j] = loss[j] / (1.0 + calm[j] * decay[j] * turn)
                    effective_lr[j] *= _exp_near(-2.0 * moved)
                    rate[j] *= _exp(-2.0 * power[j] * moved)
                    change[j] = moved + climb[j]
                    log_norm[j] += change[j]
                    broke |= np.int64(hazard[j] > threshold[j])
            else:
                for j in range(size):
                    turn = effective_lr[j] * loss[j]
                    grown = min(0.5 * growth[j] * turn * turn, -2.0 * down[j])
                    hazard[j] += calm[j] * loss[j] * rate[j] if log_norm[j] <= ready[j] else 0.0
                    moved = calm[j] * (grown + down[j])
                    loss[j] = loss[j] / (1.0 + calm[j] * decay[j] * turn)
                    # each walker by its own rule, so that it does the same beside any others
                    effective_lr[j] *= _exp_near(-2.0 * moved) if slow[j] else np.exp(-2.0 * moved)
                    rate[j] *= _exp(-2.0 * power[j] * moved) if slow[j] else np.exp(-2.0 * power[j] * moved)
                    change[j] = moved + climb[j]
                    log_norm[j] += change[j]
                    broke |= np.int64(hazard[j] > threshold[j])
            if row >= 0:
                for j in range(size):
                    recorded[2, first + j, row] = change[j]
            if broke or t + 1 >= next_end:
                next_end = np.inf
                for j in range(size):
                    one = state[first + j]
                    if calm[j] == 0.0:
                        if t + 1 >= one[UNTIL]:
                            one[LOG_NORM] = log_norm[j]
                            begin_fall(one, constants[first + j], stream_key(seed, walker[first + j]), least_rise)
                            ready[j] = one[READY]
                            effective_lr[j], rate[j] = one[EFFECTIVE_LR], one[RATE]
                            hazard[j], threshold[j] = 0.0, one[THRESHOLD]
                            climb[j], calm[j] = 0.0, 1.0
                        else:
                            next_end = min(next_end, one[UNTIL])
                    elif hazard[j] > threshold[j]:
                        one[LOG_NORM], one[LOSS] = log_norm[j], loss[j]
                        _break(one, constants[first + j], stream_key(seed, walker[first + j]), t + 1, least_rise)
                        loss[j], climb[j], calm[j] = one[LOSS], one[CLIMB], 0.0
                        hazard[j], threshold[j] = 0.0, np.inf
                        next_end = min(next_end, one[UNTIL])
        for j in range(size):
            one = state[first + j]
            one[LOG_NORM], one[LOSS], one[EFFECTIVE_LR] = log_norm[j], loss[j], effective_lr[j]
            one[RATE], one[HAZARD], one[THRESHOLD] = rate[j], hazard[j], threshold[j]
            one[CLIMB], one[READY] = climb[j], ready[j]
            if statistics.shape[0] > 0:
                seen = statistics[first + j]
                seen[HIGH], seen[LOW], seen[LOW_AT] = high[j], low[j], low_at[j]
                seen[DIRECTION] = falling[j] - rising[j]
