"""One run of a sweep: trained or continued in its folder, and summed up in a few numbers."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import simulate
from empirical.config import RunConfig
from simulate.trajectories.contract import EVALUATIONS

FAILED = "failed"
_LINES_OF_ERROR = 8


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of one run, in plain numbers and words.

    Attributes
    ----------
    identity, config : of the run; the config as `RunConfig.to_dict` gives it.
    status : that of the trajectory ("complete", "diverged", "collapsed"), or "failed" where an error ended the run.
    status_step : steps that were made.
    seconds : that this took, 0 where nothing was left to do.
    error : last lines of the error of a failed run, else "".
    numbers : `final_norm`, `norm_min`, `norm_max`, the last evaluations, and, where the run is long enough for them,
        `periods`, `period_mean`, `period_stderr` (steps), `rotation_ratio` and `log_norm_sd`; see `simulate.classify`.
    verdict : of `simulate.classify`; "" where the run is too short.
    """

    identity: str
    config: dict[str, Any]
    status: str
    status_step: int
    seconds: float
    error: str
    numbers: dict[str, float]
    verdict: str

    @property
    def is_final(self) -> bool:
        """Whether the same run would only come to the same end."""
        return self.status != FAILED

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not finite are left out.

        Examples
        --------
        >>> Summary.from_dict(failed(RunConfig(lr=0.1, wd=0.01), ValueError("no")).to_dict()).error
        'ValueError: no'
        """
        finite = {name: value for name, value in self.numbers.items() if math.isfinite(value)}
        return {**dataclasses.asdict(self), "numbers": finite}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Summary:
        """Inverse of `to_dict`."""
        return cls(**content)


def perform(config: RunConfig, folder: str | os.PathLike[str]) -> Summary:
    """Train a run, or what is missing of it, and sum it up; an error becomes a summary too.

    Only a stop (Ctrl-C, SIGTERM) is passed on.

    Parameters
    ----------
    config : the run.
    folder : where it lies, or will.

    Examples
    --------
    >>> import tempfile
    >>> found = perform(RunConfig(lr=0.5, wd=0.01, width=8, steps=20), tempfile.mkdtemp() + "/run")
    >>> found.status, found.status_step
    ('complete', 20)
    """
    # loads torch
    from empirical.runs.loop import train

    started = time.perf_counter()
    try:
        trajectory = train(config, Path(folder), progress=False)
    except Exception as error:
        return failed(config, error, time.perf_counter() - started)
    return summed_up(config, trajectory, time.perf_counter() - started)


def summed_up(config: RunConfig, trajectory: xr.Dataset, seconds: float) -> Summary:
    """Sum up a trajectory.

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.01)
    >>> found = summed_up(config, simulate.norm_map(0.5, 0.01, 2.0, norm=10.0, steps=3000), seconds=1.0)
    >>> found.verdict, round(found.numbers["final_norm"], 3)
    ('equilibrium', 3.164)
    """
    numbers = {"final_norm": trajectory.final_norm.item()}
    if trajectory.sizes["step"]:
        numbers.update(norm_min=float(trajectory.norm.min()), norm_max=float(trajectory.norm.max()))
    if trajectory.sizes.get("eval_step", 0):
        numbers.update({name: float(trajectory[name][-1]) for name in EVALUATIONS if name in trajectory})
    verdict = ""
    try:
        with warnings.catch_warnings():
            # the verdict itself says where no period is clear
            warnings.simplefilter("ignore", UserWarning)
            found = simulate.classify(trajectory)
    except ValueError:
        # too short
        pass
    else:
        verdict = found.verdict
        numbers.update(
            periods=found.periods.count,
            period_mean=found.periods.mean,
            period_stderr=found.periods.stderr,
            rotation_ratio=found.rotation_ratio,
            log_norm_sd=found.log_norm_sd,
        )
    return Summary(
        identity=config.identity,
        config=config.to_dict(),
        status=trajectory.status.item(),
        status_step=int(trajectory.status_step),
        seconds=seconds,
        error="",
        numbers={name: float(value) for name, value in numbers.items()},
        verdict=verdict,
    )


def failed(config: RunConfig, error: Exception, seconds: float = 0.0) -> Summary:
    """Sum up a run that an error ended.

    Examples
    --------
    >>> failed(RunConfig(lr=0.1, wd=0.01), ValueError("no such data")).status
    'failed'
    """
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return Summary(
        identity=config.identity,
        config=config.to_dict(),
        status=FAILED,
        status_step=0,
        seconds=seconds,
        error="\n".join(lines[-_LINES_OF_ERROR:]),
        numbers={},
        verdict="",
    )
