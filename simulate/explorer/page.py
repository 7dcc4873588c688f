"""Explorer as an HTML page that needs no Python: it rescales and draws precomputed frames."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate._files import atomic_write, check_writable
from simulate.explorer.quantities import (
    EQUILIBRIUM_NAMES,
    MAX_STEPS,
    QUANTITIES,
    Level,
    Value,
    angular_jump_values,
    equilibrium_values,
    norm_levels,
    norm_trajectory,
    period_values,
)
from simulate.plots.style import MEASURED_COLOR, ONSET_COLOR, PREDICTED_COLOR
from theory.arguments import FloatArray, check_integer

# η and λ are spaced by the same factor, so each ηλ is an entry of INTRINSIC_LR, at the sum of their positions.
# The factor √5 hits η = 0.1 and 0.5, λ = 1e-4 and 5e-4.
LR = tuple(0.1 * 5 ** (i / 2) for i in range(-6, 4))
WD = tuple(5e-4 * 5 ** (i / 2) for i in range(-2, 7))
INTRINSIC_LR = tuple(5e-5 * 5 ** (i / 2) for i in range(-8, 10))
# Likewise each ratio ℓ/L is an entry of RATIOS, at the difference of the positions of L and ℓ.
GRAD_NORMS = tuple(10 ** (i / 2) for i in range(-6, 5))
RATIOS = tuple(10 ** (-i / 2) for i in range(5))
MOMENTA = (0.0, 0.5, 0.9, 0.99)
STARTS = tuple(10 ** (i / 2) for i in range(-2, 3))  # start norm over equilibrium norm at rms g̃
DELTAS = (0.01, 0.02, 0.1, 0.2, 0.5)
BINS = 80  # of a trajectory
INITIAL_POSITIONS = {"lr": 8, "wd": 6, "momentum": 0, "low": 6, "high": 8, "start": 3, "delta": 2}
_MAX_LEVEL = 65535  # of 16 bits


@dataclass(frozen=True)
class ExplorerFrames:
    """All values and curves of the page for η = 1 and L = 1, where λ equals ηλ and ℓ equals ℓ/L.

    Attributes
    ----------
    equilibrium : values in the order of `EQUILIBRIUM_NAMES`, indexed by position in INTRINSIC_LR, MOMENTA, RATIOS.
    angular_jumps : values of `ANGULAR_JUMP_NAMES` for plain SGD, indexed by position in INTRINSIC_LR, RATIOS, DELTAS,
        STARTS.
    momentum_angular_jumps : the same for any momentum, indexed by position in DELTAS.
    period : values of `PERIOD_NAMES`, indexed by position in MOMENTA, INTRINSIC_LR.
    steps : lengths of the trajectories, indexed by position in INTRINSIC_LR, MOMENTA, RATIOS, STARTS.
    bands : smallest and largest norm, smallest and largest rotation in `BINS` parts of each trajectory, shape
        (*steps.shape, 4, BINS).
    """

    equilibrium: list[list[list[list[Value]]]]
    angular_jumps: list[list[list[list[list[Value]]]]]
    momentum_angular_jumps: list[list[Value]]
    period: list[list[list[Value]]]
    steps: npt.NDArray[np.int64]
    bands: FloatArray


def explorer_frames(*, seed: int = 0, max_steps: int = MAX_STEPS) -> ExplorerFrames:
    """Compute the frames of the page for all slider positions that are not equivalent by symmetry.

    The direction of the weights depends on η, λ and ρ₀ only through ηλ and ρ₀/√η (docs/mathematics.md §6). At fixed
    ℓ/L it depends on the size of g̃ only through ρ₀/√(ηL). Every stored value therefore scales with powers of η and L,
    which are listed in `QUANTITIES`. Trajectories have at most `max_steps`.
    """
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    equilibrium = [
        [[list(equilibrium_values(1.0, intrinsic_lr, q, 1.0, mu).values()) for q in RATIOS] for mu in MOMENTA]
        for intrinsic_lr in INTRINSIC_LR
    ]
    rms = np.array(equilibrium, dtype=object)[..., EQUILIBRIUM_NAMES.index("equilibrium_norm_rms")].astype(float)
    norms = np.multiply.outer(rms, STARTS)

    def angular_jumps(norms: Sequence[float], *setting: float) -> list[list[Value]]:
        return [list(values.values()) for values in angular_jump_values(norms, 1.0, *setting)]

    plain = [
        [
            [angular_jumps(start_norms, intrinsic_lr, q, 1.0, delta, 0.0) for delta in DELTAS]
            for q, start_norms in zip(RATIOS, plain_norms, strict=True)
        ]
        for intrinsic_lr, plain_norms in zip(INTRINSIC_LR, norms[:, 0].tolist(), strict=True)
    ]
    with_momentum = [angular_jumps([1.0], 0.0, 1.0, 1.0, delta, MOMENTA[-1])[0] for delta in DELTAS]
    period = [[list(period_values(1.0, intrinsic_lr, mu).values()) for intrinsic_lr in INTRINSIC_LR] for mu in MOMENTA]
    steps, bands = np.empty(norms.shape, np.int64), np.empty((*norms.shape, 4, BINS))
    for index, (intrinsic_lr, mu, q, _) in zip(
        np.ndindex(norms.shape), itertools.product(INTRINSIC_LR, MOMENTA, RATIOS, STARTS), strict=True
    ):
        run = norm_trajectory(float(norms[index]), 1.0, intrinsic_lr, q, 1.0, mu, seed=seed, max_steps=max_steps)
        steps[index], bands[index] = run.attrs["updates"], trajectory_bands(run)
    return ExplorerFrames(equilibrium, plain, with_momentum, period, steps, bands)


def trajectory_bands(run: xr.Dataset) -> FloatArray:
    """Smallest and largest norm, smallest and largest rotation in each of `BINS` parts of a trajectory."""
    first, extremes = np.arange(BINS) * run.step.size // BINS, (np.minimum, np.maximum)
    names = ("norm", "rotation")
    return np.stack([extreme.reduceat(run[name].values, first) for name in names for extreme in extremes])


def write_explorer_page(path: str | os.PathLike[str], *, seed: int = 0) -> None:
    """Write the explorer as one HTML file that needs neither Python nor a network.

    The sliders move in steps. All values are computed beforehand by the functions behind `simulate.explorer.explore`.
    The page contains no formula: it multiplies the stored values by powers of η and L and draws them.

    Parameters
    ----------
    path : file to write; it is replaced only when the new page is complete.
    seed : seed of the trajectories.

    Raises
    ------
    TypeError, ValueError : the folder of `path` does not exist, or `seed` is not a whole number >= 0.

    Examples
    --------
    >>> write_explorer_page("explorer.html")  # doctest: +SKIP
    """
    target = check_writable("path", path)
    with atomic_write(target) as aside:
        aside.write_text(_page(explorer_frames(seed=seed)), encoding="utf-8")


def encode_logarithms(bands: FloatArray) -> tuple[str, float, float]:
    """Encode the logarithms of positive numbers as base64 with 16 bits each; return it with their two extremes."""
    logs = np.log(bands)
    low, high = float(logs.min()), float(logs.max())
    levels = np.round((logs - low) / (high - low) * _MAX_LEVEL).astype("<u2")
    return base64.b64encode(levels.tobytes()).decode("ascii"), low, high


def _page(frames: ExplorerFrames) -> str:
    data: Mapping[str, Any] = {
        "lr": LR,
        "wd": WD,
        "momentum": MOMENTA,
        "grad_norm": GRAD_NORMS,
        "ratios": len(RATIOS),
        "start": STARTS,
        "delta": DELTAS,
        "initial": INITIAL_POSITIONS,
        "bins": BINS,
        "names": list(QUANTITIES),
        "quantities": [[q.words, q.units, q.lr_power, q.grad_norm_power] for q in QUANTITIES.values()],
        "equilibrium": frames.equilibrium,
        "levels": [[[_levels(values) for values in row] for row in rows] for rows in frames.equilibrium],
        "angular_jumps": frames.angular_jumps,
        "momentum_angular_jumps": frames.momentum_angular_jumps,
        "period": frames.period,
        "steps": frames.steps.tolist(),
        "norms": encode_logarithms(frames.bands[..., :2, :]),
        "rotations": encode_logarithms(frames.bands[..., 2:, :]),
    }
    # escaped, so that no text in the data can end the script element
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    replacements = {
        "MEASURED": MEASURED_COLOR,
        "PREDICTED": PREDICTED_COLOR,
        "ONSET": ONSET_COLOR,
        "VERSION": theory.__version__,
    }
    page = (resources.files("simulate.explorer") / "page.html").read_text(encoding="utf-8")
    for name, value in replacements.items():
        page = page.replace(f"@{name}@", value)
    return page.replace("@SLIDERS@", _sliders()).replace("@DATA@", text)


def _levels(values: list[Value]) -> list[Level]:
    return norm_levels(dict(zip(EQUILIBRIUM_NAMES, values, strict=True)))


def _sliders() -> str:
    sliders = {
        "lr": ("learning rate η", 0, len(LR) - 1),
        "wd": ("weight decay λ", 0, len(WD) - 1),
        "momentum": ("momentum μ", 0, len(MOMENTA) - 1),
        "low": ("smallest gradient norm ℓ", 0, len(GRAD_NORMS) - 1),
        # at lower positions the smallest ratio would put ℓ below its slider
        "high": ("largest gradient norm L", len(RATIOS) - 1, len(GRAD_NORMS) - 1),
        "start": ("start norm ρ₀", 0, len(STARTS) - 1),
        "delta": ("angular jump δ", 0, len(DELTAS) - 1),
    }
    return "\n".join(
        f'<p><label for="{name}">{label}</label><output for="{name}" id="{name}-value"></output>'
        f'<input type="range" id="{name}" min="{low}" max="{high}" step="1" value="{INITIAL_POSITIONS[name]}"></p>'
        for name, (label, low, high) in sliders.items()
    )
