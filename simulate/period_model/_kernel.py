"""Compiled inner loop of the reduced model: decay phases of norm and loss, and destabilizations at random."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from simulate._compilation import compile_cached
from simulate.maps.noise import stream_key, uniform

# Columns of the state, the constants and the statistics; one row for each walker. The state's names are stored with
# trajectories: "rate" is the part of the hazard that depends on the norm, "breaks" the number of destabilizations.
STATES = ("log_norm", "loss", "effective_lr", "rate", "hazard", "threshold", "climb", "until", "breaks", "ready")
LOG_NORM, LOSS, EFFECTIVE_LR, HAZARD_FACTOR, HAZARD, THRESHOLD, CLIMB, UNTIL, DESTABILIZATIONS, READY = range(10)
CONSTANTS = 12
LOG_SHRINK, LOSS_DECAY, GROWTH, HAZARD_BASE, HAZARD_POWER = range(5)
PEAK_BASE, PEAK_OF_NORM, PEAK_OF_LOSS, PEAK_RESIDUAL_SD, PEAK_LOSS, PEAK_LOSS_SD, DURATION = range(5, 12)
STATISTICS = 13
COUNT, LENGTH, SQ_LENGTH, TROUGHS, PEAKS = range(5)
HIGH, LOW, LOW_AT, DIRECTION, TROUGH, TROUGH_AT, PEAK, HAS_TROUGH = range(5, 13)

_BLOCK = 16
_REDRAWS = 100  # of a rise below the least one; then the least rise is taken
_SERIES = tuple(1.0 / math.factorial(n) for n in range(11, -1, -1))
_NEAR, _SMALL = 0.05, 0.2  # largest |y| at which the series below equal exp(y) up to rounding


@numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _exp(y: Any) -> Any:
    """exp(y) for |y| <= 0.2 as a power series, which the compiler can vectorize, unlike a call."""
    series = _SERIES[0]
    for coefficient in _SERIES[1:]:
        series = series * y + coefficient
    return series


@numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _exp_near(y: Any) -> Any:
    """exp(y) for |y| <= 0.05 as a shorter series."""
    series = _SERIES[3]
    for coefficient in _SERIES[4:]:
        series = series * y + coefficient
    return series


@compile_cached()
def normal(key: Any, number: Any) -> Any:
    """Random number of the standard normal distribution, by the method of Box and Muller."""
    return np.sqrt(-2.0 * np.log(uniform(key, 2 * number))) * np.cos(2.0 * np.pi * uniform(key, 2 * number + 1))


@compile_cached(error_model="numpy")
def begin_decay(state: Any, constants: Any, key: Any, least_rise: float) -> None:
    """Start a decay phase of one walker: compute from ln z what its next destabilization depends on.

    `state` (10,) and `constants` (12,) are rows of one walker; `state` is changed in place.
    """
    state[EFFECTIVE_LR] = np.exp(-2.0 * state[LOG_NORM])
    state[HAZARD_FACTOR] = np.exp(constants[HAZARD_BASE] - 2.0 * constants[HAZARD_POWER] * state[LOG_NORM])
    state[HAZARD], state[CLIMB], state[UNTIL] = 0.0, 0.0, -1.0
    # a rise before the norm has fallen by the least rise would be part of the last destabilization
    state[READY] = state[LOG_NORM] - least_rise
    # a destabilization begins when the sum of the hazards exceeds an exponential random number
    state[THRESHOLD] = -np.log(uniform(stream_key(key, 2 * np.int64(state[DESTABILIZATIONS])), 0))


@compile_cached(error_model="numpy")
def _destabilize(state: Any, constants: Any, key: Any, step: int, least_rise: float) -> None:
    """Start a destabilization: draw its rise, and the loss at the start of the next decay phase."""
    draws = stream_key(key, 2 * np.int64(state[DESTABILIZATIONS]) + 1)
    here = state[LOG_NORM]
    mean = constants[PEAK_BASE] + constants[PEAK_OF_NORM] * here + constants[PEAK_OF_LOSS] * np.log(state[LOSS]) - here
    rise = least_rise
    for number in range(_REDRAWS):
        candidate = mean + constants[PEAK_RESIDUAL_SD] * normal(draws, number + 1)
        if candidate > least_rise:
            rise = candidate
            break
    state[DESTABILIZATIONS] += 1.0
    state[CLIMB] = rise / constants[DURATION]
    state[UNTIL] = step + constants[DURATION]
    state[LOSS] = np.exp(constants[PEAK_LOSS] + constants[PEAK_LOSS_SD] * normal(draws, 0))


@compile_cached(error_model="numpy", fastmath={"contract"})
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
    """Advance ln z and the loss of many walkers by `steps` steps, in place.

    Parameters
    ----------
    state, constants : arrays of shape (walkers, 10) and (walkers, 12).
    seed, walker : random numbers are functions of the seed and of the number of the walker, shape (walkers,).
    begin, steps : number of the first step, and number of steps.
    record_every, recorded : each step divisible by `record_every` is recorded (0: none), in an array of shape
        (3, walkers, rows): ln z and the loss before the step, and the change of ln z.
    statistics : shape (walkers, 13): sums over the periods that `find_periods` would find; shape (0, 13) for none.
    discard, look_every : the statistics use the steps from `discard` on that are divisible by `look_every`.
    most : number of periods after which the statistics of a walker end.
    rise, least_rise : threshold d of the period finder, and least rise in a destabilization.
    """
    count = state.shape[0]
    first_look = -(-discard // look_every) * look_every
    log_norm, loss, effective_lr, factor = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    hazard, threshold, climb, decaying = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
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
            factor[j], hazard[j], threshold[j] = one[HAZARD_FACTOR], one[HAZARD], one[THRESHOLD]
            ready[j], climb[j], decaying[j] = one[READY], one[CLIMB], 1.0 if one[UNTIL] < 0.0 else 0.0
            if one[UNTIL] >= 0.0:
                next_end = min(next_end, one[UNTIL])
            down[j], decay[j] = constants[first + j, LOG_SHRINK], constants[first + j, LOSS_DECAY]
            growth[j], power[j] = constants[first + j, GROWTH], constants[first + j, HAZARD_POWER]
            slow[j] = -4.0 * down[j] < _NEAR and -4.0 * down[j] * abs(power[j]) < _SMALL
            small = small and slow[j]
            if statistics.shape[0] > 0:
                sums = statistics[first + j]
                high[j], low[j], low_at[j] = sums[HIGH], sums[LOW], sums[LOW_AT]
                falling[j], rising[j] = 1.0 if sums[DIRECTION] >= 0.0 else 0.0, 1.0 if sums[DIRECTION] <= 0.0 else 0.0
                if sums[COUNT] >= most:
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
                        sums, here = statistics[first + j], log_norm[j]
                        if falling[j] * (high[j] - here) >= rise:
                            if sums[HAS_TROUGH] > 0.0:
                                sums[PEAK] = high[j]
                            falling[j], rising[j] = 0.0, 1.0
                            low[j], low_at[j] = here, t
                        elif rising[j] * (here - low[j]) >= rise:
                            # a rise from the very first value has no known trough
                            if low_at[j] > first_look:
                                if sums[HAS_TROUGH] > 0.0 and sums[COUNT] < most:
                                    length = low_at[j] - sums[TROUGH_AT]
                                    sums[COUNT] += 1.0
                                    sums[LENGTH] += length
                                    sums[SQ_LENGTH] += length * length
                                    sums[TROUGHS] += sums[TROUGH]
                                    sums[PEAKS] += sums[PEAK]
                                    if sums[COUNT] >= most:
                                        unfinished -= 1
                                sums[TROUGH], sums[TROUGH_AT] = low[j], low_at[j]
                                sums[HAS_TROUGH] = 1.0
                            falling[j], rising[j] = 1.0, 0.0
                            high[j] = here
            row = -1
            if record_every > 0 and t % record_every == 0:
                row = t // record_every - (begin + record_every - 1) // record_every
                for j in range(size):
                    recorded[0, first + j, row], recorded[1, first + j, row] = log_norm[j], loss[j]
            destabilized = np.int64(0)
            if small:
                for j in range(size):
                    turn = effective_lr[j] * loss[j]
                    grown = min(0.5 * growth[j] * turn * turn, -2.0 * down[j])
                    hazard[j] += decaying[j] * loss[j] * factor[j] if log_norm[j] <= ready[j] else 0.0
                    moved = decaying[j] * (grown + down[j])
                    loss[j] = loss[j] / (1.0 + decaying[j] * decay[j] * turn)
                    effective_lr[j] *= _exp_near(-2.0 * moved)
                    factor[j] *= _exp(-2.0 * power[j] * moved)
                    change[j] = moved + climb[j]
                    log_norm[j] += change[j]
                    destabilized |= np.int64(hazard[j] > threshold[j])
            else:
                for j in range(size):
                    turn = effective_lr[j] * loss[j]
                    grown = min(0.5 * growth[j] * turn * turn, -2.0 * down[j])
                    hazard[j] += decaying[j] * loss[j] * factor[j] if log_norm[j] <= ready[j] else 0.0
                    moved = decaying[j] * (grown + down[j])
                    loss[j] = loss[j] / (1.0 + decaying[j] * decay[j] * turn)
                    # the function depends on the walker alone, so that its numbers do not depend on the other walkers
                    effective_lr[j] *= _exp_near(-2.0 * moved) if slow[j] else np.exp(-2.0 * moved)
                    factor[j] *= _exp(-2.0 * power[j] * moved) if slow[j] else np.exp(-2.0 * power[j] * moved)
                    change[j] = moved + climb[j]
                    log_norm[j] += change[j]
                    destabilized |= np.int64(hazard[j] > threshold[j])
            if row >= 0:
                for j in range(size):
                    recorded[2, first + j, row] = change[j]
            if destabilized or t + 1 >= next_end:
                next_end = np.inf
                for j in range(size):
                    one = state[first + j]
                    if decaying[j] == 0.0:
                        if t + 1 >= one[UNTIL]:
                            one[LOG_NORM] = log_norm[j]
                            begin_decay(one, constants[first + j], stream_key(seed, walker[first + j]), least_rise)
                            ready[j] = one[READY]
                            effective_lr[j], factor[j] = one[EFFECTIVE_LR], one[HAZARD_FACTOR]
                            hazard[j], threshold[j] = 0.0, one[THRESHOLD]
                            climb[j], decaying[j] = 0.0, 1.0
                        else:
                            next_end = min(next_end, one[UNTIL])
                    elif hazard[j] > threshold[j]:
                        one[LOG_NORM], one[LOSS] = log_norm[j], loss[j]
                        _destabilize(one, constants[first + j], stream_key(seed, walker[first + j]), t + 1, least_rise)
                        loss[j], climb[j], decaying[j] = one[LOSS], one[CLIMB], 0.0
                        hazard[j], threshold[j] = 0.0, np.inf
                        next_end = min(next_end, one[UNTIL])
        for j in range(size):
            one = state[first + j]
            one[LOG_NORM], one[LOSS], one[EFFECTIVE_LR] = log_norm[j], loss[j], effective_lr[j]
            one[HAZARD_FACTOR], one[HAZARD], one[THRESHOLD] = factor[j], hazard[j], threshold[j]
            one[CLIMB], one[READY] = climb[j], ready[j]
            if statistics.shape[0] > 0:
                sums = statistics[first + j]
                sums[HIGH], sums[LOW], sums[LOW_AT] = high[j], low[j], low_at[j]
                sums[DIRECTION] = falling[j] - rising[j]
