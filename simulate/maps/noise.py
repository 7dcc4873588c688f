"""Counter-based random numbers: each is a function of seed, trajectory and step, independent of the order of calls.

Each trajectory has a stream of splitmix64 (Steele, Lea, Flood 2014) with its own mixed key and the step as counter.
Results therefore do not depend on threads, on how a batch is split, or on where a run was cut and continued.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulate._compilation import compile_cached

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE, _S27, _S30, _S31, _S11 = np.uint64(1), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53


@compile_cached()
def mix_bits(z: Any) -> Any:
    """Scramble 64 bits by a one-to-one function."""
    z = np.uint64(z)
    z = (z ^ (z >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    return z ^ (z >> _S31)


@compile_cached()
def stream_key(seed: Any, trajectory: Any) -> Any:
    """Key of the random stream of one trajectory."""
    return mix_bits(mix_bits(np.uint64(seed) + _GOLDEN) + (np.uint64(trajectory) + _ONE) * _SECOND)


@compile_cached()
def uniform(key: Any, step: Any) -> Any:
    """Uniform random number in (0, 1) for one step of a stream."""
    bits = mix_bits(np.uint64(key) + (np.uint64(step) + _ONE) * _GOLDEN)
    return (np.float64(bits >> _S11) + 0.5) * _UNIT


@compile_cached()
def uniform_table(seed: Any, trajectories: Any, start: Any, steps: Any) -> Any:
    """Uniform random numbers of shape (trajectories, steps), from step `start` on."""
    values = np.empty((trajectories, steps))
    for i in range(trajectories):
        key = stream_key(seed, i)
        for t in range(steps):
            values[i, t] = uniform(key, start + t)
    return values
