"""Norms that gradients drive which ignore them: the exact law under noise of many kinds."""

import math

import numba
import numpy as np
import xarray as xr
from scipy.signal import lfilter

LR = 0.5
KINDS = ("lognormal", "gamma", "Student-t", "shot noise", "autoregressive", "moving average")


def log_gradients(kind, *, intrinsic_lr, relaxations, spread, correlation_time, random):
    """ln g̃ of a stationary process with this standard deviation.

    `correlation_time` is in units of 1/ηλ. The first three kinds are independent in time.
    """
    count, memory = int(relaxations / intrinsic_lr), correlation_time / intrinsic_lr
    if kind == "lognormal":
        values = random.normal(size=count)
    elif kind == "gamma":
        values = np.log(random.gamma(spread**-2, size=count) + 1e-12)
    elif kind == "Student-t":
        values = np.log(np.abs(random.standard_t(3, size=count)) + 1e-6)
    elif kind == "shot noise":
        # exponential shots, 0.5 to 20 in 1/ηλ, above a background
        begin = int(8 * memory)
        shots = (random.random(count + begin) < random.uniform(0.5, 20) * intrinsic_lr) * random.exponential(
            size=count + begin
        )
        decaying = lfilter([1.0], [1.0, -math.exp(-1 / memory)], shots)[begin:]
        values = np.log(decaying + 1e-3 * random.uniform(0.1, 10))
    elif kind == "autoregressive":
        begin, factor = int(8 * memory), math.exp(-1 / memory)
        values = lfilter([1.0], [1.0, -factor], random.normal(size=count + begin))[begin:]
    else:
        window = max(2, int(memory))
        total = np.cumsum(np.append(0.0, random.normal(size=count + window - 1)))
        values = total[window:] - total[:-window]
    return spread * (values - values.mean()) / values.std()


@numba.njit
def _sq_norms(drive, kept):
    sq_norm = np.empty(drive.size)
    value = math.sqrt(drive.mean() / (1 - kept * kept))
    for i in range(drive.size):
        sq_norm[i] = value
        value = kept * value + drive[i] / value
    return sq_norm


def driven_run(log_grad_norm, intrinsic_lr, stride=1):
    """Trajectory of the norm under plain SGD, and its rotation."""
    kept = (1 - intrinsic_lr) ** (2 * stride)
    drive = np.exp(2 * log_grad_norm)
    sq_norm = _sq_norms(drive, kept)
    rotation = np.arctan(np.sqrt(drive / kept) / sq_norm)
    return xr.Dataset(
        {"norm": ("step", np.sqrt(sq_norm)), "rotation": ("step", rotation)},
        {"step": stride * np.arange(drive.size)},
        {"lr": LR, "wd": intrinsic_lr / LR},
    )


def random_noise(random, most_relaxations):
    """Draw a kind of noise and its numbers over their whole range."""
    uniform = {
        "intrinsic_lr": (5e-4, 0.02),
        "relaxations": (20, most_relaxations),
        "spread": (0.2, 3),
        "correlation_time": (0.003, 3),
    }
    numbers = {name: math.exp(random.uniform(*np.log(ends))) for name, ends in uniform.items()}
    return {"kind": str(random.choice(KINDS)), **numbers}
