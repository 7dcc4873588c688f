"""Phase diagram of training: which setting of learning rate and weight decay rests, swings in periods, or ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from tqdm import tqdm

import theory
from simulate.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, descend
from simulate.maps.iteration import usable_processors
from simulate.period_model.model import PeriodModel
from simulate.trajectories.contract import COLLAPSED, DIVERGED, SCHEMA, variable_attributes, versions
from simulate.trajectories.periods import classify, rows_after_transient
from theory.arguments import FloatArray, check_integer, check_intrinsic_lr, check_number, check_real
from theory.optimizers import check_optimizer

Model = NormalizedRegression | Ratio2D | RayleighQuotient | PeriodModel

_NUMBERS = (
    "period",
    "period_stderr",
    "outside_growth",
    "norm_min",
    "norm_max",
    "log_norm_sd",
    "rotation_ratio",
)


def phase_diagram(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    *,
    model: Model,
    relaxations: float = 60.0,
    seed: int = 0,
    rise: float = 0.1,
    optimizer: theory.SGD | None = None,
    effective_lr: float | None = None,
) -> xr.Dataset:
    """Train at every pair of learning rate and weight decay, and say what `classify` makes of it.

    Each cell is a run of its own over `relaxations`/ηλ steps, of which the first 2/ηλ are left out. It starts in the
    same direction as all others, with the same random numbers, at the norm ρ = √(η/η̃): so cells of equal ηλ are one
    run in other units (docs/mathematics.md §6) and differ by rounding alone, which a chaotic run magnifies; not even
    by that where the rates are in the ratio of powers of 4.

    Parameters
    ----------
    lr : η > 0, increasing: the values along one axis; a number is an axis of one.
    wd : λ > 0, increasing, with every ηλ below 1.
    model : a landscape, `Ratio2D`, `RayleighQuotient` or `NormalizedRegression`, that is trained; or the `PeriodModel`
        of a network, whose trajectories are judged as they are, but `period` is corrected as that of
        `PeriodModel.period`.
    relaxations : length of each run in units of 1/ηλ, at least 4. A verdict "periodic" needs 5 periods.
    seed : of the start and of the mini-batches.
    rise : as in `find_periods`.
    optimizer : `theory.SGD`, with momentum of either kind; default plain, the only one for a `PeriodModel`.
    effective_lr : η̃ = η/ρ² > 0 at the start (units of one over the loss). By default the edge of stability, η̃h = 2 for
        plain SGD, which training comes back to from anywhere. h is the largest curvature on the unit sphere, at the
        minimum; for `NormalizedRegression` of the full batch on a flat sphere, and for the logistic loss at most.
        A start far below it begins with a long fall, which may be the end: see "collapsed". A `PeriodModel` starts at
        a typical peak.

    Returns
    -------
    Dataset with the dimensions `lr` and `wd`, and the variables `verdict`, `period` and `period_stderr` (steps),
    `outside_growth`, `norm_min`, `norm_max`, `log_norm_sd`, `rotation_ratio`, all of the rows after the first 2/ηλ
    steps. Verdicts are those of `classify`, and

    - "diverged", "collapsed": the squared norm left the range of floating-point numbers;
    - "collapsed" too: for the last 2/ηλ steps at least the direction has not moved at all, because the gradient is zero
      in floating point, and only decay is left. In exact numbers there is no such end. It comes after long falls into a
      minimum on an axis, where the distance from it shrinks to nothing: for `Ratio2D` below ηλ = 1.6e-3, where π²/8ηλ,
      the logarithm of that shrinking, is about that of the smallest number.

    In a cell that ended in one of these ways the numbers are NaN; without periods those about periods are.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range, or lr * wd is not below 1 in each cell; before any
        run is made.

    Warns
    -----
    UserWarning : cells are outside the calibrated range of a `PeriodModel`.

    Source: docs/mathematics.md §2, §4, §5, §6.

    Examples
    --------
    >>> from simulate import Ratio2D
    >>> diagram = phase_diagram([0.1, 1.0], [0.05, 0.1], model=Ratio2D(1.0, 5.0))
    >>> diagram.verdict.dims, diagram.verdict.values.tolist()
    (('lr', 'wd'), [['periodic', 'periodic'], ['periodic', 'periodic']])
    """
    if not isinstance(model, Model):
        raise TypeError(
            "model must be a NormalizedRegression, Ratio2D, RayleighQuotient or PeriodModel, "
            f"got {type(model).__name__}"
        )
    rule = check_optimizer(optimizer)
    if not isinstance(rule, theory.SGD):
        raise ValueError(f"optimizer must be a theory.SGD, got {rule!r}")
    rates, decays = _axis("lr", lr), _axis("wd", wd)
    products = check_intrinsic_lr(rates[:, np.newaxis], decays, below=1.0)
    relaxations = check_number("relaxations", relaxations, at_least=4)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    rise = check_number("rise", rise, above=0)
    if isinstance(model, PeriodModel):
        if repr(rule) != repr(theory.SGD()):
            raise ValueError(f"optimizer must be theory.SGD() with a PeriodModel, got {rule!r}")
        least, largest = model.calibrated_range
        outside = int(((products < least * (1 - 1e-9)) | (products > largest * (1 + 1e-9))).sum())
        if outside:
            warnings.warn(
                f"{outside} of {products.size} cells are outside the range of the model, lr * wd from {least:.3g} to "
                f"{largest:.3g}; its predictions were not compared with training there",
                stacklevel=2,
            )
        if effective_lr is None:
            effective_lr = model.peak_effective_lr
    elif effective_lr is None:
        effective_lr = rule.stability_limit / _curvature(model)
    effective_lr = check_number("effective_lr", effective_lr, above=0)

    verdicts = np.empty(products.shape, dtype=object)
    numbers = {name: np.full(products.shape, np.nan) for name in _NUMBERS}
    steps = np.ceil(relaxations / products).astype(np.int64)
    bar = tqdm(
        total=int(steps.sum()),
        desc="phase diagram",
        disable=None,
        delay=2,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )

    def judged(cell: tuple[int, ...]) -> tuple[str, Mapping[str, Any]]:
        run = _trajectory(
            model,
            float(rates[cell[0]]),
            float(decays[cell[1]]),
            int(steps[cell]),
            seed,
            max(1, math.floor(0.01 / products[cell])),
            rule,
            effective_lr,
        )
        return _judged(run, rise)

    # the compiled part of a landscape's run is long enough for threads
    threads = 1 if isinstance(model, PeriodModel) else usable_processors()
    cells = list(np.ndindex(products.shape))
    with bar, ThreadPoolExecutor(threads) as pool:
        for cell, (verdict, found) in zip(cells, pool.map(judged, cells), strict=True):
            verdicts[cell] = verdict
            if isinstance(model, PeriodModel) and "period" in found:
                factor = model.period_correction(float(products[cell]))
                found = {**found, **{name: found[name] * factor for name in ("period", "period_stderr")}}
            for name, value in found.items():
                numbers[name][cell] = value
            bar.update(int(steps[cell]))

    diagram = xr.Dataset(
        {"verdict": (("lr", "wd"), verdicts), **{name: (("lr", "wd"), values) for name, values in numbers.items()}},
        coords={"lr": rates, "wd": decays},
        attrs={
            "source": "phase_diagram",
            "schema": SCHEMA,
            **versions(),
            "model": repr(model),
            "optimizer": repr(rule),
            "relaxations": relaxations,
            "seed": seed,
            "rise": rise,
            "effective_lr": effective_lr,
        },
    )
    for name in map(str, diagram.variables):
        diagram[name].attrs.update(variable_attributes(name))
    return diagram


def _axis(name: str, value: npt.ArrayLike) -> FloatArray:
    """One axis of the grid."""
    values = np.atleast_1d(check_real(name, value, above=0)).copy()
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a number or a list of at least one, got shape {values.shape}")
    falls = np.flatnonzero(np.diff(values) <= 0)
    if falls.size:
        i = int(falls[0])
        raise ValueError(
            f"{name} must increase, got {float(values[i])!r} before {float(values[i + 1])!r} at index {i + 1}"
        )
    return values


def _curvature(model: NormalizedRegression | Ratio2D | RayleighQuotient) -> float:
    """Largest curvature h on the unit sphere, which no direction is needed for."""
    if isinstance(model, NormalizedRegression):
        inputs = np.asarray(model.inputs)
        # of ½(z-y)² in z, and the most that ln(1+exp(-yz)) has
        bend = 1.0 if model.loss == "squared" else 0.25
        return bend * model.output_norm**2 * float(np.linalg.norm(inputs, ord=2)) ** 2 / len(inputs)
    return model.sharpness


def _trajectory(
    model: Model,
    lr: float,
    wd: float,
    steps: int,
    seed: int,
    record_every: int,
    optimizer: theory.SGD,
    effective_lr: float,
) -> xr.Dataset:
    """Make the run of one cell, with `norm` and `rotation`."""
    norm = math.sqrt(lr / effective_lr)
    if isinstance(model, PeriodModel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return model.oscillate(lr, wd, steps=steps, seed=seed, norm=norm, record_every=record_every)
    return descend(
        model,
        lr,
        wd,
        steps=steps,
        seed=seed,
        optimizer=optimizer,
        norm=norm,
        record_every=record_every,
    )


def _judged(run: xr.Dataset, rise: float) -> tuple[str, Mapping[str, Any]]:
    """Verdict on one run, and its numbers."""
    status = str(run.status.item())
    if status in (COLLAPSED, DIVERGED):
        return status, {}
    settled, steps = rows_after_transient(run), run.step.values
    norms = run.norm.values[settled]
    moves = steps[run.rotation.values != 0]
    # as many steps as are left out at the start
    if steps[-1] - (moves[-1] if moves.size else 0) >= steps[settled[0]]:
        return COLLAPSED, {}
    judged = classify(run, rise=rise)
    periods = judged.periods
    return judged.verdict, {
        "period": periods.mean,
        "period_stderr": periods.stderr,
        "outside_growth": periods.outside_growth,
        "norm_min": norms.min(),
        "norm_max": norms.max(),
        "log_norm_sd": judged.log_norm_sd,
        "rotation_ratio": judged.rotation_ratio,
    }
