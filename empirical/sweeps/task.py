"""One run of a sweep: train or continue it in its folder, and summarize it in a few numbers."""

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
from simulate.trajectories.contract import COMPLETE, INTERRUPTED, RENAMED
from simulate.trajectories.periods import EQUILIBRIUM

SESSION_FILE, RUNS_FOLDER = "session", "runs"
FAILED, IN_USE = "failed", "in use"
_ERROR_LINES = 8
# seconds between checks whether the sweep was stopped, and seconds to wait for another process to leave a folder
_CHECK_SECONDS, _WAIT_SECONDS, _WAIT_STEP = 2.0, 60.0, 0.5
# bounds of the factor by which a run is extended at once, and a margin on the estimated factor
_MAX_GROWTH, _MIN_GROWTH, _GROWTH_MARGIN = 4.0, 1.25, 1.1
_MAX_STEPS_FACTOR = 10
# run length in relaxation times 1/ηλ from which the verdict "equilibrium" is trusted
_MIN_RELAXATIONS = 30.0
# random state and thread count of PyTorch belong to the process
_PROCESS_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options shared by all runs of a sweep.

    Attributes
    ----------
    out : absolute path of the sweep folder.
    session : content of the session file while the runs may continue. "" means that they always may.
    until, periods : goals for extending a run: relative standard error of the mean period, and number of periods. None
        sets no goal.
    max_steps : limit for extensions. None means ten times the steps of the run.
    threads : number of threads of PyTorch and BLAS.
    pace : seconds between writes of a run, and between its checks of the session file. It limits the load on the disk.
    """

    out: Path
    session: str = ""
    until: float | None = None
    periods: int | None = None
    max_steps: int | None = None
    threads: int = 1
    pace: float = 0.0

    @property
    def extends_runs(self) -> bool:
        """Whether runs are extended."""
        return self.until is not None or self.periods is not None

    def is_current(self) -> bool:
        """Return False if the sweep was stopped, or started again by another process."""
        if not self.session:
            return True
        try:
            return bool(json.loads((self.out / SESSION_FILE).read_text(encoding="utf-8")) == self.session)
        except FileNotFoundError:
            return False
        except OSError:
            # a temporary error of a network disk is not a stop
            return True


def run_path(path: Path, config: RunConfig) -> Path:
    """Return the folder of a run inside a sweep folder.

    Examples
    --------
    >>> len(run_path(Path("sweep"), RunConfig(lr=0.1, wd=0.01)).parts)
    4
    """
    return identity_path(path, config.identity)


def identity_path(path: Path, identity: str) -> Path:
    """Return the folder of the run with this identity.

    Examples
    --------
    >>> identity_path(Path("sweep"), "abc").as_posix()
    'sweep/runs/ab/abc'
    """
    # two levels keep folders small, as file systems of clusters need
    return path / RUNS_FOLDER / identity[:2] / identity


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of one run as plain numbers and words.

    Attributes
    ----------
    identity : identity of the run.
    steps : requested steps.
    status : status of the trajectory ("complete", "diverged", "collapsed"). Or "failed" if an error ended the run,
        "interrupted" if its sweep was stopped, "in use" if another process was writing its folder.
    status_step : completed steps.
    seconds : training time of this call. Replicas share the time equally.
    error : last lines of the error of a failed run, else "".
    numbers : `final_norm`, `norm_min`, `norm_max`, `relaxations` (steps·ηλ) and the last evaluations. If the run is
        long enough, also `periods`, `period`, `period_stderr` (steps), `norm_rise`, `outside_growth`, `trough_norm`,
        `peak_norm`, `typical_norm`, `threshold_ratio`, `rotation_ratio`, `log_norm_sd` and `autocorrelation_time`
        of `simulate.classify`. The log leaves out values that are not finite.
    verdict : verdict of `simulate.classify`, or "" if the run is too short.
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
        """Whether repeating the run would give the same result."""
        return self.status not in (FAILED, INTERRUPTED, IN_USE)

    @property
    def is_at_equilibrium(self) -> bool:
        """Whether the run is at equilibrium, and long enough to trust this verdict."""
        return self.verdict == EQUILIBRIUM and self.numbers.get("relaxations", math.inf) >= _MIN_RELAXATIONS

    @property
    def period_error(self) -> float:
        """Relative standard error of the mean period; inf if it is undetermined."""
        mean, stderr = (self.numbers.get(name, math.nan) for name in ("period", "period_stderr"))
        return stderr / mean if stderr >= 0 and mean > 0 else math.inf

    def satisfies(self, config: RunConfig, options: SweepOptions) -> bool:
        """Return whether the run needs no further training.

        Examples
        --------
        >>> config, options = RunConfig(lr=0.1, wd=0.01, steps=10), SweepOptions(out=Path("sweep"))
        >>> Summary(identity="", steps=10, status="complete", status_step=10, seconds=1).satisfies(config, options)
        True
        """
        if not self.is_final:
            return False
        if self.status != COMPLETE:
            # a longer or extended run ends at the same step
            return options.extends_runs or self.status_step < config.steps
        if not options.extends_runs:
            return self.steps == config.steps
        return self.steps >= config.steps and extended_steps(self, options, config.steps) is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values. Numbers that are not finite are left out.

        Examples
        --------
        >>> Summary.from_dict(summarize_failure(RunConfig(lr=0.1, wd=0.01), ValueError("no")).to_dict()).error
        'ValueError: no'
        """
        finite = {name: value for name, value in self.numbers.items() if math.isfinite(value)}
        return {**dataclasses.asdict(self), "numbers": finite}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Summary:
        """Build a summary from the result of `to_dict`. Numbers stored under an old name get their new name."""
        numbers = {RENAMED.get(name, name): value for name, value in content.get("numbers", {}).items()}
        return cls(**{**content, "numbers": numbers})


def extended_steps(summary: Summary, options: SweepOptions, requested: int) -> int | None:
    """Return the number of steps to which a complete run is extended, or None if it needs no extension.

    Parameters
    ----------
    summary : summary of the run at present.
    options : options of the sweep.
    requested : steps requested in the settings.

    Examples
    --------
    >>> summary = Summary(identity="", steps=1000, status="complete", status_step=1000, seconds=1,
    ...                 numbers={"period": 50.0, "period_stderr": 5.0})
    >>> extended_steps(summary, SweepOptions(out=Path("sweep"), until=0.08), requested=1000)
    1719
    """
    limit = _MAX_STEPS_FACTOR * requested if options.max_steps is None else options.max_steps
    if summary.status != COMPLETE or summary.steps >= limit:
        return None
    growth = required_growth(summary, options)
    if growth <= 1 or summary.is_at_equilibrium:
        return None
    steps = math.ceil(summary.steps * min(max(_GROWTH_MARGIN * growth, _MIN_GROWTH), _MAX_GROWTH))
    return min(limit, max(steps, summary.steps + 1))


def required_growth(summary: Summary, options: SweepOptions) -> float:
    """Return the factor by which a run must be longer to reach the goals; at most 1 if it has reached them.

    Examples
    --------
    >>> summary = Summary(identity="", steps=1000, status="complete", status_step=1000, seconds=1,
    ...                 numbers={"period": 50.0, "period_stderr": 5.0, "periods": 20.0})
    >>> required_growth(summary, SweepOptions(out=Path("sweep"), until=0.05))
    4.0
    >>> required_growth(summary, SweepOptions(out=Path("sweep"), periods=20))
    1.0
    """
    factors = [0.0]
    if options.until is not None:
        # the error falls with the square root of the number of periods
        factors.append(min(summary.period_error / options.until, _MAX_GROWTH) ** 2)
    if options.periods is not None:
        factors.append(options.periods / max(summary.numbers.get("periods", 0.0), 1.0))
    return max(factors)


def train_and_summarize(
    configs: Sequence[RunConfig], options: SweepOptions, places: Sequence[int] = (0,)
) -> tuple[Summary, ...]:
    """Train runs, or their missing steps, and summarize them. An error becomes a summary too.

    Parameters
    ----------
    configs : the runs. Runs of one shape are trained as replicas if their `replicas` is larger than 1.
    options : options of the sweep.
    places : place of each run among the replicas.

    Examples
    --------
    >>> import tempfile
    >>> config, options = RunConfig(lr=0.5, wd=0.01, width=8, steps=20), SweepOptions(out=Path(tempfile.mkdtemp()))
    >>> (summary,) = train_and_summarize([config], options)
    >>> summary.status, summary.status_step
    ('complete', 20)
    """
    with _PROCESS_LOCK, _limit_threads(options.threads):
        start = time.perf_counter()
        summaries = _train_until_precise(configs, options, places)
        seconds = (time.perf_counter() - start) / len(configs)
        return tuple(dataclasses.replace(summary, seconds=seconds) for summary in summaries)


def _train_until_precise(configs: Sequence[RunConfig], options: SweepOptions, places: Sequence[int]) -> list[Summary]:
    results: dict[str, Summary] = {}
    must_stop, remaining = _StopCheck(options), list(configs)
    requested = {config.identity: config.steps for config in configs}
    place_of = {config.identity: place for config, place in zip(configs, places, strict=True)}
    while remaining:
        try:
            outcomes = _train_in_folders(
                remaining, options, [place_of[config.identity] for config in remaining], must_stop
            )
        except Exception as error:
            outcomes = [error] * len(remaining)
        summaries = [_summarize_outcome(config, outcome) for config, outcome in zip(remaining, outcomes, strict=True)]
        results.update({summary.identity: summary for summary in summaries})
        longer = [
            (config, extended_steps(summary, options, requested[config.identity]))
            for config, summary in zip(remaining, summaries, strict=True)
        ]
        remaining = [dataclasses.replace(config, steps=steps) for config, steps in longer if steps is not None]
    return [results[config.identity] for config in configs]


def _summarize_outcome(config: RunConfig, outcome: Summary | BaseException) -> Summary:
    if isinstance(outcome, Summary):
        return outcome
    if isinstance(outcome, KeyboardInterrupt):
        # raising it would end the worker
        done = getattr(outcome, "step", 0)
        return Summary(identity=config.identity, steps=config.steps, status=INTERRUPTED, status_step=done, seconds=0.0)
    summary = summarize_failure(config, outcome)
    return dataclasses.replace(summary, status=IN_USE) if isinstance(outcome, FolderInUseError) else summary


class _StopCheck:
    """Function that returns whether the sweep was stopped. It reads the session file only every few seconds."""

    def __init__(self, options: SweepOptions) -> None:
        self._options, self._last, self._is_over = options, -math.inf, False

    def __call__(self) -> bool:
        if not self._is_over and time.monotonic() - self._last > max(_CHECK_SECONDS, self._options.pace):
            self._is_over, self._last = not self._options.is_current(), time.monotonic()
        return self._is_over


def _train_in_folders(
    configs: list[RunConfig], options: SweepOptions, places: list[int], must_stop: _StopCheck
) -> Sequence[Summary | BaseException]:
    # loads torch
    from empirical.runs.loop import train_runs

    if not options.out.is_dir():
        raise ValueError(
            f"out must be a folder that all workers see, but {socket.gethostname()} has no {str(options.out)!r}"
        )
    folders = [run_path(options.out, config) for config in configs]
    # a lost worker may still hold the folder; it stops soon if its sweep was stopped
    deadline = time.monotonic() + _WAIT_SECONDS
    while not must_stop() and time.monotonic() < deadline and any(is_locked(folder) for folder in folders):
        time.sleep(_WAIT_STEP)
    if must_stop():
        return [KeyboardInterrupt()] * len(configs)
    return train_runs(configs, folders, places, summarize, must_stop, options.pace)


@contextmanager
def _limit_threads(count: int) -> Iterator[None]:
    """Set the number of threads of PyTorch and BLAS, on which the last bits of a run depend."""
    import torch
    from threadpoolctl import threadpool_limits

    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(previous)


def summarize(config: RunConfig, trajectory: xr.Dataset) -> Summary:
    """Summarize a trajectory.

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.01)
    >>> summary = summarize(config, simulate.norm_map(0.5, 0.01, 2.0, norm=10.0, steps=3000))
    >>> summary.verdict, round(summary.numbers["final_norm"], 3)
    ('equilibrium', 3.164)
    """
    numbers = {"final_norm": trajectory.final_norm.item()}
    if trajectory.sizes["step"]:
        numbers.update(norm_min=float(trajectory.norm.min()), norm_max=float(trajectory.norm.max()))
    if not callable(config.lr):
        numbers["relaxations"] = config.lr * config.wd * int(trajectory.status_step)
    # a run that was cut from a longer one, or diverged, has no evaluation at its end
    if trajectory.sizes.get("eval_step", 0) and trajectory.eval_step[-1] == trajectory.status_step:
        numbers.update({str(n): float(v[-1]) for n, v in trajectory.data_vars.items() if v.dims == ("eval_step",)})
    verdict = ""
    try:
        with warnings.catch_warnings():
            # the verdict already says if no period is clear
            warnings.simplefilter("ignore", UserWarning)
            classification = simulate.classify(trajectory)
    except ValueError:
        # the run is too short
        pass
    else:
        verdict = classification.verdict
        numbers.update(
            periods=classification.periods.count,
            period=classification.periods.mean,
            period_stderr=classification.periods.stderr,
            norm_rise=classification.periods.norm_rise,
            outside_growth=classification.periods.outside_growth,
            trough_norm=classification.periods.trough_norm,
            peak_norm=classification.periods.peak_norm,
            typical_norm=classification.typical_norm,
            threshold_ratio=classification.threshold_ratio,
            rotation_ratio=classification.rotation_ratio,
            log_norm_sd=classification.log_norm_sd,
            autocorrelation_time=classification.autocorrelation_time,
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


def summarize_failure(config: RunConfig, error: BaseException) -> Summary:
    """Summarize a run that an error ended.

    Examples
    --------
    >>> summarize_failure(RunConfig(lr=0.1, wd=0.01), ValueError("no such data")).status
    'failed'
    """
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    error_lines = "\n".join(lines[-_ERROR_LINES:])
    return Summary(
        identity=config.identity, steps=config.steps, status=FAILED, status_step=0, seconds=0.0, error=error_lines
    )
