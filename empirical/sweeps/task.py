"""One run of a sweep: trained or continued in its folder, and summed up in a few numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import simulate
from empirical.config import RunConfig
from simulate._files import FolderInUseError, is_locked
from simulate.trajectories.contract import COMPLETE, INTERRUPTED
from simulate.trajectories.periods import EQUILIBRIUM

SESSION, RUNS = "session", "runs"
FAILED, IN_USE = "failed", "in use"
_LINES_OF_ERROR = 8
# how often a run looks whether its sweep goes on, and how long it waits for one that does not stop at once
_LOOK_SECONDS, _WAIT_SECONDS, _WAIT_STEP = 2.0, 60.0, 0.5
# a run is extended to what its precision asks for, but not at once by more than this, nor by less
_MOST_GROWTH, _LEAST_GROWTH, _RESERVE = 4.0, 1.25, 1.1
_MOST_GROWTH_OF_STEPS = 10
# relaxations 1/ηλ from which on a run that looks at rest is believed
_BELIEVED = 30.0
# PyTorch's random numbers and its number of threads belong to the process
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for all runs of a sweep while it is being made.

    Attributes
    ----------
    out : folder of the sweep, absolute.
    session : what its session file says as long as the runs are to go on; "" for ever.
    until, periods : relative standard error of the mean period, and number of periods, up to which a run is extended;
        None: it is not.
    max_steps : at most to so many steps; None: to ten times those of the run.
    threads : of PyTorch and BLAS.
    pace : seconds between what a run writes, and between its looks at the session file, so that many runs on one disk
        leave it time.
    """

    out: Path
    session: str = ""
    until: float | None = None
    periods: int | None = None
    max_steps: int | None = None
    threads: int = 1
    pace: float = 0.0

    @property
    def extend(self) -> bool:
        """Whether runs are extended."""
        return self.until is not None or self.periods is not None

    def goes_on(self) -> bool:
        """Whether the sweep has not been stopped, or begun anew by another process."""
        if not self.session:
            return True
        try:
            return bool(json.loads((self.out / SESSION).read_text(encoding="utf-8")) == self.session)
        except FileNotFoundError:
            return False
        except OSError:
            # a network disk that hesitates has stopped nothing
            return True


def run_path(path: Path, config: RunConfig) -> Path:
    """Folder of a run in that of a sweep.

    Examples
    --------
    >>> len(run_path(Path("sweep"), RunConfig(lr=0.1, wd=0.01)).parts)
    4
    """
    return identity_path(path, config.identity)


def identity_path(path: Path, identity: str) -> Path:
    """Folder of the run of an identity.

    Examples
    --------
    >>> identity_path(Path("sweep"), "abc").as_posix()
    'sweep/runs/ab/abc'
    """
    # no folder holds more than some hundred others, for file systems of clusters
    return path / RUNS / identity[:2] / identity


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of one run, in plain numbers and words.

    Attributes
    ----------
    identity : of the run.
    steps : that were asked for.
    status : that of the trajectory ("complete", "diverged", "collapsed"); "failed" where an error ended the run,
        "interrupted" where its sweep was stopped, "in use" where another process was writing its folder.
    status_step : steps that were made.
    seconds : that this took, next to nothing where nothing was left to do; of replicas, each has its share.
    error : last lines of the error of a failed run, else "".
    numbers : `final_norm`, `norm_min`, `norm_max`, `relaxations` (steps·ηλ), the evaluations at the end, and, where the
        run is long enough, `periods`, `period`, `period_stderr` (steps), `norm_rise`, `outside_growth`, `trough_norm`,
        `peak_norm`, `typical_norm`, `threshold_ratio`, `rotation_ratio`, `log_norm_sd` and `autocorrelation_time`; see
        `simulate.classify`. What is not finite, such as `threshold_ratio` without a period at twice the rise, is left
        out of the log.
    verdict : of `simulate.classify`; "" where the run is too short to be judged.
    """

    identity: str
    steps: int
    status: str
    status_step: int
    seconds: float
    error: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    verdict: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the same run would only come to the same end."""
        return self.status not in (FAILED, INTERRUPTED, IN_USE)

    @property
    def rests(self) -> bool:
        """Whether it is at equilibrium, and long enough to be believed."""
        return self.verdict == EQUILIBRIUM and self.numbers.get("relaxations", math.inf) >= _BELIEVED

    @property
    def period_error(self) -> float:
        """Relative standard error of the mean period; inf where it is unknown."""
        mean, stderr = (self.numbers.get(name, math.nan) for name in ("period", "period_stderr"))
        return stderr / mean if stderr >= 0 and mean > 0 else math.inf

    def answers(self, config: RunConfig, terms: Terms) -> bool:
        """Whether nothing is left to be done for a run.

        Examples
        --------
        >>> config, terms = RunConfig(lr=0.1, wd=0.01, steps=10), Terms(out=Path("sweep"))
        >>> Summary(identity="", steps=10, status="complete", status_step=10, seconds=1).answers(config, terms)
        True
        """
        if not self.is_final:
            return False
        if self.status != COMPLETE:
            # a longer run comes to the same end, and so does one that is extended
            return terms.extend or self.status_step < config.steps
        if not terms.extend:
            return self.steps == config.steps
        return self.steps >= config.steps and extended(self, terms, config.steps) is None

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


def extended(summary: Summary, terms: Terms, asked: int) -> int | None:
    """Steps to which a complete run is to be extended for the wanted precision; None where it is to be left.

    Parameters
    ----------
    summary : of the run as it is.
    terms : of its sweep.
    asked : steps that were asked for.

    Examples
    --------
    >>> found = Summary(identity="", steps=1000, status="complete", status_step=1000, seconds=1,
    ...                 numbers={"period": 50.0, "period_stderr": 5.0})
    >>> extended(found, Terms(out=Path("sweep"), until=0.08), asked=1000)
    1719
    """
    most = _MOST_GROWTH_OF_STEPS * asked if terms.max_steps is None else terms.max_steps
    if summary.status != COMPLETE or summary.steps >= most:
        return None
    lacks = lacking(summary, terms)
    if lacks <= 1 or summary.rests:
        return None
    steps = math.ceil(summary.steps * min(max(_RESERVE * lacks, _LEAST_GROWTH), _MOST_GROWTH))
    return min(most, max(steps, summary.steps + 1))


def lacking(summary: Summary, terms: Terms) -> float:
    """Times as many steps that a run needs for the wanted precision; at most 1 where it has it.

    Examples
    --------
    >>> found = Summary(identity="", steps=1000, status="complete", status_step=1000, seconds=1,
    ...                 numbers={"period": 50.0, "period_stderr": 5.0, "periods": 20.0})
    >>> lacking(found, Terms(out=Path("sweep"), until=0.05)), lacking(found, Terms(out=Path("sweep"), periods=20))
    (4.0, 1.0)
    """
    lacks = [0.0]
    if terms.until is not None:
        # the error falls with the square root of the number of periods
        lacks.append(min(summary.period_error / terms.until, _MOST_GROWTH) ** 2)
    if terms.periods is not None:
        lacks.append(terms.periods / max(summary.numbers.get("periods", 0.0), 1.0))
    return max(lacks)


def perform(configs: Sequence[RunConfig], terms: Terms, places: Sequence[int] = (0,)) -> tuple[Summary, ...]:
    """Train runs, or what is missing of them, and sum them up; whatever happens becomes a summary too.

    Parameters
    ----------
    configs : the runs; those of one shape are trained side by side if their `replicas` say so.
    terms : of their sweep.
    places : of each among the replicas.

    Examples
    --------
    >>> import tempfile
    >>> (found,) = perform([RunConfig(lr=0.5, wd=0.01, width=8, steps=20)], Terms(out=Path(tempfile.mkdtemp())))
    >>> found.status, found.status_step
    ('complete', 20)
    """
    with _ONE_AT_A_TIME, _threads(terms.threads):
        started = time.perf_counter()
        summaries = _performed(configs, terms, places)
        seconds = (time.perf_counter() - started) / len(configs)
        return tuple(dataclasses.replace(summary, seconds=seconds) for summary in summaries)


def _performed(configs: Sequence[RunConfig], terms: Terms, places: Sequence[int]) -> list[Summary]:
    found: dict[str, Summary] = {}
    is_over, left = _Look(terms), list(configs)
    asked = {config.identity: config.steps for config in configs}
    at = {config.identity: place for config, place in zip(configs, places, strict=True)}
    while left:
        try:
            outcomes = _trained(left, terms, [at[config.identity] for config in left], is_over)
        except Exception as error:
            outcomes = [error] * len(left)
        summaries = [_summary(config, outcome) for config, outcome in zip(left, outcomes, strict=True)]
        found.update({summary.identity: summary for summary in summaries})
        longer = [
            (config, extended(summary, terms, asked[config.identity]))
            for config, summary in zip(left, summaries, strict=True)
        ]
        left = [dataclasses.replace(config, steps=steps) for config, steps in longer if steps is not None]
    return [found[config.identity] for config in configs]


def _summary(config: RunConfig, outcome: Summary | BaseException) -> Summary:
    if isinstance(outcome, Summary):
        return outcome
    if isinstance(outcome, KeyboardInterrupt):
        # passed on, it would end the worker
        done = getattr(outcome, "step", 0)
        return Summary(identity=config.identity, steps=config.steps, status=INTERRUPTED, status_step=done, seconds=0.0)
    summary = failed(config, outcome)
    return dataclasses.replace(summary, status=IN_USE) if isinstance(outcome, FolderInUseError) else summary


class _Look:
    """Whether a sweep has been stopped, looked up only so often."""

    def __init__(self, terms: Terms) -> None:
        self._terms, self._last, self._is_over = terms, -math.inf, False

    def __call__(self) -> bool:
        if not self._is_over and time.monotonic() - self._last > max(_LOOK_SECONDS, self._terms.pace):
            self._is_over, self._last = not self._terms.goes_on(), time.monotonic()
        return self._is_over


def _trained(
    configs: list[RunConfig], terms: Terms, places: list[int], is_over: _Look
) -> Sequence[Summary | BaseException]:
    # loads torch
    from empirical.runs.loop import train_together

    if not terms.out.is_dir():
        raise ValueError(
            f"out must be a folder that all workers see, but {socket.gethostname()} has no {str(terms.out)!r}"
        )
    folders = [run_path(terms.out, config) for config in configs]
    # a worker that was given up may still be there, and ends soon if its sweep was stopped
    patience = time.monotonic() + _WAIT_SECONDS
    while not is_over() and time.monotonic() < patience and any(is_locked(folder) for folder in folders):
        time.sleep(_WAIT_STEP)
    if is_over():
        return [KeyboardInterrupt()] * len(configs)
    return train_together(configs, folders, places, summed_up, is_over, terms.pace)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch and BLAS use so many threads: the last bits of a run depend on their number."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def summed_up(config: RunConfig, trajectory: xr.Dataset) -> Summary:
    """Sum up a trajectory.

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.01)
    >>> found = summed_up(config, simulate.norm_map(0.5, 0.01, 2.0, norm=10.0, steps=3000))
    >>> found.verdict, round(found.numbers["final_norm"], 3)
    ('equilibrium', 3.164)
    """
    numbers = {"final_norm": trajectory.final_norm.item()}
    if trajectory.sizes["step"]:
        numbers.update(norm_min=float(trajectory.norm.min()), norm_max=float(trajectory.norm.max()))
    if not callable(config.lr):
        numbers["relaxations"] = config.lr * config.wd * int(trajectory.status_step)
    # a run that was cut from a longer one, or that diverged, has none at its end
    if trajectory.sizes.get("eval_step", 0) and trajectory.eval_step[-1] == trajectory.status_step:
        numbers.update({str(n): float(v[-1]) for n, v in trajectory.data_vars.items() if v.dims == ("eval_step",)})
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
            period=found.periods.mean,
            period_stderr=found.periods.stderr,
            norm_rise=found.periods.norm_rise,
            outside_growth=found.periods.outside_growth,
            trough_norm=found.periods.trough_norm,
            peak_norm=found.periods.peak_norm,
            typical_norm=found.typical_norm,
            threshold_ratio=found.threshold_ratio,
            rotation_ratio=found.rotation_ratio,
            log_norm_sd=found.log_norm_sd,
            autocorrelation_time=found.autocorrelation_time,
        )
    return Summary(
        identity=config.identity,
        steps=config.steps,
        status=trajectory.status.item(),
        status_step=int(trajectory.status_step),
        seconds=0.0,
        numbers={name: float(value) for name, value in numbers.items()},
        verdict=verdict,
    )


def failed(config: RunConfig, error: BaseException) -> Summary:
    """Sum up a run that an error ended.

    Examples
    --------
    >>> failed(RunConfig(lr=0.1, wd=0.01), ValueError("no such data")).status
    'failed'
    """
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    error_lines = "\n".join(lines[-_LINES_OF_ERROR:])
    return Summary(
        identity=config.identity, steps=config.steps, status=FAILED, status_step=0, seconds=0.0, error=error_lines
    )
