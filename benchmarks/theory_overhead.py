"""Run time of `theory` for a million settings in one call, compared with the bare NumPy expression.

The checks of arguments may cost a factor of 3. Both are run alternately in one process, and their median times are
compared. The exit status is 1 if a ratio is above 3.
"""

import statistics
import sys
import time

import numpy as np

import theory

SIZE, ROUNDS, LIMIT = 1_000_000, 9, 3.0
generator = np.random.default_rng(0)
lr, g, norm = (np.exp(generator.uniform(-2, 2, SIZE)) for _ in range(3))
wd = np.exp(generator.uniform(-9, -3, SIZE)) / lr
delta = generator.uniform(0.01, 0.9, SIZE)
low = g * generator.uniform(0.01, 1, SIZE)


def bounds():
    a = (1 - lr * wd) ** 2
    lower = lr * low / np.sqrt(1 - a)
    upper = np.maximum(lr * g / np.sqrt(1 - a), a * lower + (lr * g) ** 2 / lower)
    return np.sqrt(lower), np.sqrt(upper)


def momentum_norm(mu=0.9):
    return (lr * g * g / (wd * (1 - mu) * (2 - lr * wd / (1 + mu)))) ** 0.25


PAIRS = {
    "equilibrium_norm": (
        lambda: theory.equilibrium_norm(lr, wd, g),
        lambda: (lr * g * g / (wd * (2 - lr * wd))) ** 0.25,
    ),
    "equilibrium_norm, heavy ball": (
        lambda: theory.equilibrium_norm(lr, wd, g, optimizer=theory.SGD(momentum=0.9)),
        momentum_norm,
    ),
    "equilibrium_rotation": (lambda: theory.equilibrium_rotation(lr, wd), lambda: np.arccos(1 - lr * wd)),
    "relaxation_time": (
        lambda: theory.relaxation_time(lr, wd),
        lambda: -1 / np.log(np.abs(1 - 4 * lr * wd + 2 * (lr * wd) ** 2)),
    ),
    "rotation": (
        lambda: theory.rotation(norm, lr, wd, g),
        lambda: np.arctan(lr * g / (norm * norm * (1 - lr * wd))),
    ),
    "angular_jump_norm": (
        lambda: theory.angular_jump_norm(lr, wd, g, delta),
        lambda: np.sqrt(lr * g / ((1 - lr * wd) * np.sqrt((1 - delta) ** -2 - 1))),
    ),
    "norm_bounds": (lambda: theory.norm_bounds(lr, wd, low, g), bounds),
    "norm_flow": (
        lambda: theory.norm_flow(100.0, norm, lr, wd, g),
        lambda: (
            lr * g * g / (2 * wd) + (norm**4 - lr * g * g / (2 * wd)) * np.exp(-400.0 * lr * wd)
        ) ** 0.25,
    ),
}  # fmt: skip


def run_time(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    largest_ratio = 0.0
    print(
        f"{SIZE} settings in one call, medians of {ROUNDS} rounds\n"
        f"{'function':32}{'theory':>10}{'NumPy':>10}{'ratio':>8}"
    )
    for name, (theory_call, numpy_call) in PAIRS.items():
        for value, expected in zip(np.atleast_2d(theory_call()), np.atleast_2d(numpy_call()), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6)
        rounds = [(run_time(theory_call), run_time(numpy_call)) for _ in range(ROUNDS)]
        theory_time, numpy_time = (statistics.median(times) for times in zip(*rounds, strict=True))
        largest_ratio = max(largest_ratio, theory_time / numpy_time)
        print(f"{name:32}{1e3 * theory_time:8.1f}ms{1e3 * numpy_time:8.1f}ms{theory_time / numpy_time:8.2f}")
    print(f"largest ratio {largest_ratio:.2f}, limit {LIMIT:g}")
    return largest_ratio > LIMIT


if __name__ == "__main__":
    sys.exit(main())
