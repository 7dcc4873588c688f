"""The explorer as a page for people without Python: frames computed beforehand, which the page rescales and draws."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import theory
from simulate._files import atomic_write, check_writable
from simulate.explorer.quantities import (
    QUANTITIES,
    REST,
    Level,
    Value,
    jump_values,
    norm_levels,
    norm_trajectory,
    period_values,
    rest_values,
)
from simulate.plots.style import MEASURED, ONSET, PREDICTED
from theory.arguments import FloatArray, check_integer

# η and λ go in equal factors, so that each product is one of INTRINSIC, at the sum of the places of the two. The factor
# √5 meets η = 0.1 and 0.5, λ = 1e-4 and 5e-4.
LR = tuple(0.1 * 5 ** (i / 2) for i in range(-6, 4))
WD = tuple(5e-4 * 5 ** (i / 2) for i in range(-2, 7))
INTRINSIC = tuple(5e-5 * 5 ** (i / 2) for i in range(-8, 10))
# So do ℓ and L: each ratio that the page allows is one of RATIOS, at the difference of the places.
GRAD_NORMS = tuple(10 ** (i / 2) for i in range(-6, 5))
RATIOS = tuple(10 ** (-i / 2) for i in range(5))
MOMENTA = (0.0, 0.5, 0.9, 0.99)
STARTS = tuple(10 ** (i / 2) for i in range(-2, 3))  # norm at the start over equilibrium norm at rms g̃
DELTAS = (0.01, 0.02, 0.1, 0.2, 0.5)
BINS = 80  # of a trajectory
# places of the sliders at first
FIRST = {"lr": 8, "wd": 6, "momentum": 0, "low": 6, "high": 8, "start": 3, "delta": 2}
_LEVELS = 65535


@dataclass(frozen=True)
class Frames:
    """All that the page shows, for η = 1 and L = 1, where λ is ηλ and ℓ is ℓ/L.

    Attributes
    ----------
    rest : lists of values in the order of `simulate.explorer.quantities.REST`, by places in INTRINSIC, MOMENTA, RATIOS.
    jumps : likewise of `JUMPS`, by places in INTRINSIC, RATIOS, DELTAS, STARTS; of plain SGD.
    momentum_jumps : likewise with any momentum, by places in DELTAS.
    period : likewise of `PERIOD`, by places in MOMENTA, INTRINSIC.
    steps : of the trajectory, by places in INTRINSIC, MOMENTA, RATIOS, STARTS.
    bands : least and largest norm, least and largest rotation in `BINS` parts of it: shape (*steps.shape, 4, BINS).
    """

    rest: list[list[list[list[Value]]]]
    jumps: list[list[list[list[list[Value]]]]]
    momentum_jumps: list[list[Value]]
    period: list[list[list[Value]]]
    steps: npt.NDArray[np.int64]
    bands: FloatArray


def explorer_frames(*, seed: int = 0) -> Frames:
    """Compute what the page shows, at every place of its sliders that no symmetry gives.

    Directions depend on η, λ and ρ₀ through ηλ and ρ₀/√η alone (docs/mathematics.md §6), and on the size of g̃, at
    fixed ℓ/L, through ρ₀/√(ηL): all that is stored scales with powers of η and L, which `QUANTITIES` names.

    Parameters
    ----------
    seed : of the trajectories.

    Returns
    -------
    Frames

    Examples
    --------
    >>> explorer_frames().steps.shape  # doctest: +SKIP
    (18, 4, 5, 5)
    """
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    rest = [
        [[list(rest_values(1.0, intrinsic_lr, q, 1.0, mu).values()) for q in RATIOS] for mu in MOMENTA]
        for intrinsic_lr in INTRINSIC
    ]
    rms = np.array(rest, dtype=object)[..., REST.index("equilibrium_norm_rms")].astype(float)
    norms = np.multiply.outer(rms, STARTS)
    jumps = [
        [
            [
                [list(jump_values(norm, 1.0, intrinsic_lr, q, 1.0, delta, 0.0).values()) for norm in starts]
                for delta in DELTAS
            ]
            for q, starts in zip(RATIOS, plain, strict=True)
        ]
        for intrinsic_lr, plain in zip(INTRINSIC, norms[:, 0].tolist(), strict=True)
    ]
    momentum_jumps = [list(jump_values(1.0, 1.0, 0.0, 1.0, 1.0, delta, MOMENTA[-1]).values()) for delta in DELTAS]
    period = [[list(period_values(1.0, intrinsic_lr, mu).values()) for intrinsic_lr in INTRINSIC] for mu in MOMENTA]
    steps, bands = np.empty(norms.shape, np.int64), np.empty((*norms.shape, 4, BINS))
    for place, (intrinsic_lr, mu, q, _) in zip(
        np.ndindex(norms.shape), itertools.product(INTRINSIC, MOMENTA, RATIOS, STARTS), strict=True
    ):
        run = norm_trajectory(float(norms[place]), 1.0, intrinsic_lr, q, 1.0, mu, seed=seed)
        steps[place], bands[place] = run.attrs["updates"], bands_of(run)
    return Frames(rest, jumps, momentum_jumps, period, steps, bands)


def bands_of(run: xr.Dataset) -> FloatArray:
    """Least and largest norm, least and largest rotation in each of `BINS` parts of a trajectory.

    Examples
    --------
    >>> bands_of(norm_trajectory(10.0, 0.5, 0.01, 1.0, 4.0, 0.0)).shape
    (4, 80)
    """
    first = np.arange(BINS) * run.step.size // BINS
    return np.stack(
        [
            extreme.reduceat(run[name].values, first)
            for name in ("norm", "rotation")
            for extreme in (np.minimum, np.maximum)
        ]
    )


def write_explorer_page(path: str | os.PathLike[str], *, seed: int = 0) -> None:
    """Write the explorer as one HTML file that needs no Python and no network.

    Its sliders go by steps, so that what they show was computed beforehand by the functions behind
    `simulate.explorer.explore`. The page multiplies it by powers of η and L and draws it; no formula is in it.

    Parameters
    ----------
    path : of the file, written aside and renamed.
    seed : of the trajectories.

    Raises
    ------
    TypeError, ValueError : `path` is in no folder, or `seed` is no whole number >= 0.

    Examples
    --------
    >>> write_explorer_page("explorer.html")  # doctest: +SKIP
    """
    target = check_writable("path", path)
    with atomic_write(target) as aside:
        aside.write_text(_page(explorer_frames(seed=seed)), encoding="utf-8")


def stored(bands: FloatArray) -> tuple[str, float, float]:
    """Logarithms of positive numbers in 16 bits each, as base64, with the least and the largest.

    Examples
    --------
    >>> stored(np.array([1.0, np.e]))
    ('AAD//w==', 0.0, 1.0)
    """
    logs = np.log(bands)
    low, high = float(logs.min()), float(logs.max())
    levels = np.round((logs - low) / (high - low) * _LEVELS).astype("<u2")
    return base64.b64encode(levels.tobytes()).decode("ascii"), low, high


def _page(frames: Frames) -> str:
    data: Mapping[str, Any] = {
        "lr": LR,
        "wd": WD,
        "momentum": MOMENTA,
        "grad_norm": GRAD_NORMS,
        "ratios": len(RATIOS),
        "start": STARTS,
        "delta": DELTAS,
        "first": FIRST,
        "bins": BINS,
        "names": list(QUANTITIES),
        "quantities": [[q.words, q.units, q.lr_power, q.grad_norm_power] for q in QUANTITIES.values()],
        "rest": frames.rest,
        "levels": [[[_levels(told) for told in row] for row in rows] for rows in frames.rest],
        "jumps": frames.jumps,
        "momentum_jumps": frames.momentum_jumps,
        "period": frames.period,
        "steps": frames.steps.tolist(),
        "norms": stored(frames.bands[..., :2, :]),
        "rotations": stored(frames.bands[..., 2:, :]),
    }
    # nothing in the data may end the element that holds it
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    colors = {"MEASURED": MEASURED, "PREDICTED": PREDICTED, "ONSET": ONSET, "VERSION": theory.__version__}
    page = (resources.files("simulate.explorer") / "page.html").read_text(encoding="utf-8")
    for name, value in colors.items():
        page = page.replace(f"@{name}@", value)
    return page.replace("@SLIDERS@", _sliders()).replace("@DATA@", text)


def _levels(told: list[Value]) -> list[Level]:
    return norm_levels(dict(zip(REST, told, strict=True)))


def _sliders() -> str:
    ends = {
        "lr": ("learning rate η", 0, len(LR) - 1),
        "wd": ("weight decay λ", 0, len(WD) - 1),
        "momentum": ("momentum μ", 0, len(MOMENTA) - 1),
        "low": ("least gradient norm ℓ", 0, len(GRAD_NORMS) - 1),
        # below, the least ℓ would not be on its slider
        "high": ("largest gradient norm L", len(RATIOS) - 1, len(GRAD_NORMS) - 1),
        "start": ("start norm ρ₀", 0, len(STARTS) - 1),
        "delta": ("jump δ", 0, len(DELTAS) - 1),
    }
    return "\n".join(
        f'<p><label for="{name}">{words}</label><output for="{name}" id="{name}-value"></output>'
        f'<input type="range" id="{name}" min="{low}" max="{high}" step="1" value="{FIRST[name]}"></p>'
        for name, (words, low, high) in ends.items()
    )
