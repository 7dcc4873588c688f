"""Phase diagram over learning rate and weight decay: equilibrium, periodic, or ended."""

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
from simulate.maps.layout import unlabelled
from simulate.period_model.model import PeriodModel, simulation_correction
from simulate.trajectories.classification import classify
from simulate.trajectories.contract import COLLAPSED, DIVERGED, SCHEMA, variable_attributes, versions
from simulate.trajectories.periods import rows_after_transient
from theory.arguments import (
    FloatArray,
    check_integer,
    check_intrinsic_lr,
    check_number,
    check_real,
    check_rows,
    quote,
    warn_user,
)
from theory.optimizers import check_optimizer

_Model = NormalizedRegression | Ratio2D | RayleighQuotient | PeriodModel

_STATISTICS = ["period", "period_stderr", "outside_growth", "norm_min", "norm_max", "log_norm_sd", "rotation_ratio"]


def phase_diagram(
    lr: npt.ArrayLike,
    wd: npt.ArrayLike,
    *,
    model: _Model,
    relaxations: float = 60.0,
    seed: int = 0,
    rise: float = 0.1,
    optimizer: theory.SGD | str | None = None,
    effective_lr: float | None = None,
) -> xr.Dataset:
    """Simulate training at every pair of learning rate and weight decay, and classify each run.

    Each cell is a separate run of `relaxations`/ηλ steps, of which the first 2/ηλ are left out. All runs start in the
    same direction, with the same random numbers, at the norm ρ = √(η/η̃). Cells of equal ηλ are therefore the same run
    in other units (docs/mathematics.md §6). They differ only by rounding, which chaotic runs amplify. If the ratio of
    their η is a power of 4, they do not differ at all.

    Parameters
    ----------
    lr : η > 0, increasing values along one axis; a number is an axis of length one.
    wd : λ > 0, increasing, with every ηλ below 1.
    model : landscape to train, `Ratio2D`, `RayleighQuotient` or `NormalizedRegression`; or the `PeriodModel` of a
        network. Trajectories of a `PeriodModel` are classified as they are, but `period` is multiplied by the ratio of
        measured to simulated periods of the calibration runs.
    relaxations : length of each run in units of 1/ηλ, at least 4. The verdict "periodic" needs 5 periods.
    seed : seed of the start and of the mini-batches.
    rise : as in `find_periods`.
    optimizer : `theory.SGD`, with either kind of momentum, or its text form; default plain SGD, the only one for a
        `PeriodModel`.
    effective_lr : η̃ = η/ρ² > 0 at the start (units of one over the loss). The default is the edge of stability, η̃h = 2
        for plain SGD, to which training returns from anywhere. h is the largest curvature on the unit sphere at the
        minimum. For `NormalizedRegression` it is that of the full batch on a flat sphere; for the logistic loss it is
        an upper bound. A start far below the edge begins with a long decay phase, which may end in a collapse (see
        "collapsed"). A `PeriodModel` starts at a typical peak.

    Returns
    -------
    Dataset with the dimensions `lr` and `wd`, and the variables `verdict`, `period` and `period_stderr` (steps),
    `outside_growth`, `norm_min`, `norm_max`, `log_norm_sd`, `rotation_ratio`. They describe the rows after the first
    2/ηλ steps. Verdicts are those of `classify`, where "equilibrium" includes weak oscillations, with `log_norm_sd` up
    to 0.05. The limit of linear stability lies below the border of this verdict, by 6 to 13 % for `Ratio2D`. Further
    verdicts are

    - "diverged", "collapsed": the squared norm left the range of floating-point numbers.
    - "collapsed" also: for at least the last 2/ηλ steps the direction has not moved, because the gradient is zero in
      floating point and only weight decay acts. Exact arithmetic has no such end. It follows a long decay phase in a
      minimum on an axis, where the distance from the minimum underflows. For `Ratio2D` this happens below ηλ = 1.6e-3.
      There π²/8ηλ, the logarithm of the decrease of the distance, reaches that of the smallest number.

    All numbers of these cells are NaN. In cells without periods, the numbers about periods are NaN.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or out of range, or lr * wd is not below 1 in every cell. Raised
        before any run.

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
    if not isinstance(model, _Model):
        raise TypeError(
            "model must be a NormalizedRegression, Ratio2D, RayleighQuotient or PeriodModel, "
            f"got {type(model).__name__}"
        )
    rule = check_optimizer(optimizer)
    if not isinstance(rule, theory.SGD):
        raise ValueError(f"optimizer must be a theory.SGD, got {quote(rule)}")
    lrs, wds = _check_axis("lr", lr), _check_axis("wd", wd)
    intrinsic_lrs = check_intrinsic_lr(lrs[:, np.newaxis], wds, below=1.0)
    relaxations = check_number("relaxations", relaxations, at_least=4)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    rise = check_number("rise", rise, above=0)
    if isinstance(model, PeriodModel):
        if repr(rule) != repr(theory.SGD()):
            raise ValueError(f"optimizer must be theory.SGD() with a PeriodModel, got {quote(rule)}")
        lowest, highest = model.calibrated_range
        outside = int(((intrinsic_lrs < lowest * (1 - 1e-9)) | (intrinsic_lrs > highest * (1 + 1e-9))).sum())
        if outside:
            warn_user(
                f"{outside} of {intrinsic_lrs.size} cells are outside the range of the model, lr * wd from "
                f"{lowest:.3g} to {highest:.3g}. There its predictions were not compared with training."
            )
        if effective_lr is None:
            effective_lr = model.peak_effective_lr
    elif effective_lr is None:
        effective_lr = rule.stability_limit / _curvature(model)
    effective_lr = check_number("effective_lr", effective_lr, above=0)

    check_rows("relaxations", math.ceil(relaxations / float(intrinsic_lrs.min())), 6)
    verdicts = np.empty(intrinsic_lrs.shape, dtype=object)
    statistics = {name: np.full(intrinsic_lrs.shape, np.nan) for name in _STATISTICS}
    steps = np.ceil(relaxations / intrinsic_lrs).astype(np.int64)
    progress = tqdm(
        total=int(steps.sum()),
        desc="phase diagram",
        disable=None,
        delay=2,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )

    def classify_cell(cell: tuple[int, ...]) -> tuple[str, Mapping[str, Any]]:
        lr, wd = float(lrs[cell[0]]), float(wds[cell[1]])
        settings: dict[str, Any] = {
            "steps": int(steps[cell]),
            "seed": seed,
            "norm": math.sqrt(lr / effective_lr),
            "record_every": max(1, math.floor(0.01 / intrinsic_lrs[cell])),
        }
        if not isinstance(model, PeriodModel):
            return _classify_run(descend(model, lr, wd, optimizer=rule, **settings), rise)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return _classify_run(model.oscillate(lr, wd, **settings), rise)

    # compiled runs on landscapes release the interpreter lock, so threads help
    threads = 1 if isinstance(model, PeriodModel) else usable_processors()
    cells = list(np.ndindex(intrinsic_lrs.shape))
    with progress, ThreadPoolExecutor(threads) as pool:
        for cell, (verdict, values) in zip(cells, pool.map(classify_cell, cells), strict=True):
            verdicts[cell] = verdict
            if isinstance(model, PeriodModel) and "period" in values:
                factor = simulation_correction(model, float(intrinsic_lrs[cell]), "period")
                values = {**values, **{name: values[name] * factor for name in ("period", "period_stderr")}}
            for name, value in values.items():
                statistics[name][cell] = value
            progress.update(int(steps[cell]))

    diagram = xr.Dataset(
        {"verdict": (("lr", "wd"), verdicts), **{name: (("lr", "wd"), values) for name, values in statistics.items()}},
        coords={"lr": lrs, "wd": wds},
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


def _check_axis(name: str, value: npt.ArrayLike) -> FloatArray:
    """Check one axis of the grid."""
    values = np.atleast_1d(check_real(name, unlabelled(value), above=0)).copy()
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a number or a list of at least one, got shape {values.shape}")
    not_increasing = np.flatnonzero(np.diff(values) <= 0)
    if not_increasing.size:
        i = int(not_increasing[0])
        raise ValueError(
            f"{name} must increase, got {quote(float(values[i]))} before {float(values[i + 1])!r} at index {i + 1}"
        )
    return values


def _curvature(model: NormalizedRegression | Ratio2D | RayleighQuotient) -> float:
    """Largest curvature h on the unit sphere, without reference to a direction."""
    if isinstance(model, NormalizedRegression):
        inputs = np.asarray(model.inputs)
        # curvature in z of ½(z-y)², and the largest one of ln(1+exp(-yz))
        loss_curvature = 1.0 if model.loss == "squared" else 0.25
        return loss_curvature * model.output_norm**2 * float(np.linalg.norm(inputs, ord=2)) ** 2 / len(inputs)
    return model.sharpness


def _classify_run(run: xr.Dataset, rise: float) -> tuple[str, Mapping[str, Any]]:
    """Verdict and statistics of one run."""
    status = str(run.status.item())
    if status in (COLLAPSED, DIVERGED):
        return status, {}
    settled, steps = rows_after_transient(run), run.step.values
    norms = run.norm.values[settled]
    moves = steps[run.rotation.values != 0]
    # as many steps as the transient left out at the start
    if steps[-1] - (moves[-1] if moves.size else 0) >= steps[settled[0]]:
        return COLLAPSED, {}
    classification = classify(run, rise=rise)
    periods = classification.periods
    return classification.verdict, {
        "period": periods.mean,
        "period_stderr": periods.stderr,
        "outside_growth": periods.outside_growth,
        "norm_min": norms.min(),
        "norm_max": norms.max(),
        "log_norm_sd": classification.log_norm_sd,
        "rotation_ratio": classification.rotation_ratio,
    }
