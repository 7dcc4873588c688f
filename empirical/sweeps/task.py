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
from simulate.trajectories.verdicts import EQUILIBRIUM

SESSION_FILE, RUNS_FOLDER = "session", "runs"
FAILED, IN_USE = "failed", "in use"
_ERROR_LINES = 8
# seconds between checks whether the sweep was stopped, and between checks whether a folder is free
_CHECK_SECONDS, _WAIT_STEP = 0.5, 0.5
# bounds of the factor by which a run is extended at once, and a margin on the estimated factor
_MAX_GROWTH, _MIN_GROWTH, _GROWTH_MARGIN = 4.0, 1.25, 1.1
_MAX_STEPS_FACTOR = 10
# run length in units of 1/ηλ from which the verdict "equilibrium" is trusted
_MIN_RELAXATIONS = 30.0
# numbers of `simulate.classify` in a summary
_PERIOD_NUMBERS = ("norm_rise", "outside_growth", "trough_norm", "peak_norm")
_RUN_NUMBERS = ("typical_norm", "threshold_ratio", "rotation_ratio", "log_norm_sd", "autocorrelation_time")
# random state and thread count of PyTorch belong to the process
_PROCESS_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class SweepLimits:
    """Limits of waiting and of retries in a sweep.

    Attributes
    ----------
    folder_wait : seconds to wait for another process to leave the folder of a run.
    retries : number of retries of a run that ended for a reason outside of it and made no progress.
    first_delay : a quarter of the seconds before the first retry. Each further one waits four times as long.
    """

    folder_wait: float = 60.0
    retries: int = 4
    first_delay: float = 0.25


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
    limits : limits of waiting.
    """

    out: Path
    session: str = ""
    until: float | None = None
    periods: int | None = None
    max_steps: int | None = None
    threads: int = 1
    pace: float = 0.0
    limits: SweepLimits = SweepLimits()

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
        except (FileNotFoundError, ValueError):
            return False
        except OSError:
            # a temporary error of a network disk is not a stop
            return True


def run_path(path: Path, config: RunConfig) -> Path:
    """Return the folder of a run inside a sweep folder."""
    return identity_path(path, config.identity)


def identity_path(path: Path, identity: str) -> Path:
    """Return the folder of the run with this identity."""
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
    verdict : verdict of `simulate.classify`, or "" if it is impossible.
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
        """Return whether the run needs no further training."""
        if not self.is_final:
            return False
        if self.status != COMPLETE:
            # a longer or extended run ends at the same step
            return options.extends_runs or self.status_step < config.steps
        if not options.extends_runs:
            return self.steps == config.steps
        return self.steps >= config.steps and extended_steps(self, options, config.steps) is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values. Numbers that are not finite are left out."""
        finite = {name: value for name, value in self.numbers.items() if math.isfinite(value)}
        return {**dataclasses.asdict(self), "numbers": finite}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Summary:
        """Build a summary from the result of `to_dict`. Numbers stored under an old name get their new name."""
        numbers = {RENAMED.get(name, name): value for name, value in content.get("numbers", {}).items()}
        return cls(**{**content, "numbers": numbers})


def extended_steps(summary: Summary, options: SweepOptions, requested: int) -> int | None:
    """Return the number of steps to which a complete run of `requested` steps is extended; None for no extension."""
    limit = _MAX_STEPS_FACTOR * requested if options.max_steps is None else options.max_steps
    if summary.status != COMPLETE or summary.steps >= limit:
        return None
    growth = required_growth(summary, options)
    if growth <= 1 or summary.is_at_equilibrium:
        return None
    steps = math.ceil(summary.steps * min(max(_GROWTH_MARGIN * growth, _MIN_GROWTH), _MAX_GROWTH))
    return min(limit, max(steps, summary.steps + 1))


def required_growth(summary: Summary, options: SweepOptions) -> float:
    """Return the factor by which a run must be longer to reach the goals; at most 1 if it has reached them."""
    factors = [0.0]
    if options.until is not None:
        # the error falls with the square root of the number of periods
        factors.append(min(summary.period_error / options.until, _MAX_GROWTH) ** 2)
    if options.periods is not None:
        factors.append(options.periods / max(summary.numbers.get("periods", 0.0), 1.0))
    return max(factors)


def train_and_summarize(
    configs: Sequence[RunConfig],
    options: SweepOptions,
    places: Sequence[int] = (0,),
    model: Any = None,
    data: Any = None,
) -> tuple[Summary, ...]:
    """Train runs, or their missing steps, and summarize them. An error becomes a summary too.

    Runs of one shape are trained as replicas if their `replicas` is larger than 1, at their `places` among them.
    `model` and `data` are as in `train`.
    """
    with _PROCESS_LOCK, _limit_threads(options.threads):
        start = time.perf_counter()
        summaries = _train_until_precise(configs, options, places, model, data)
        seconds = (time.perf_counter() - start) / len(configs)
        return tuple(dataclasses.replace(summary, seconds=seconds) for summary in summaries)


def _train_until_precise(
    configs: Sequence[RunConfig], options: SweepOptions, places: Sequence[int], model: Any, data: Any
) -> list[Summary]:
    results: dict[int, Summary] = {}
    must_stop, remaining = _StopCheck(options), dict(enumerate(configs))
    while remaining:
        runs = list(remaining.values())
        try:
            chosen = [places[number] for number in remaining]
            outcomes = _train_in_folders(runs, options, chosen, must_stop, model, data)
        except Exception as error:
            outcomes = [error] * len(runs)
        for (number, config), outcome in zip(list(remaining.items()), outcomes, strict=True):
            results[number] = summary = _summarize_outcome(config, outcome)
            steps = extended_steps(summary, options, configs[number].steps)
            if steps is None:
                del remaining[number]
            else:
                remaining[number] = dataclasses.replace(config, steps=steps)
    return [results[number] for number in range(len(configs))]


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
    """Function that returns whether the sweep was stopped. It reads the session file only now and then."""

    def __init__(self, options: SweepOptions) -> None:
        self._options, self._last, self._is_over = options, -math.inf, False

    def __call__(self) -> bool:
        if not self._is_over and time.monotonic() - self._last > max(_CHECK_SECONDS, self._options.pace):
            self._is_over, self._last = not self._options.is_current(), time.monotonic()
        return self._is_over


def _train_in_folders(
    configs: list[RunConfig], options: SweepOptions, places: list[int], must_stop: _StopCheck, model: Any, data: Any
) -> Sequence[Summary | BaseException]:
    # loads torch
    from empirical.runs.loop import train_runs

    if not options.out.is_dir():
        raise ValueError(
            f"out must be a folder that all workers see, but {socket.gethostname()} has no {str(options.out)!r}"
        )
    folders = [run_path(options.out, config) for config in configs]
    # a lost worker may still hold the folder; it stops soon if its sweep was stopped
    deadline = time.monotonic() + options.limits.folder_wait
    while not must_stop() and time.monotonic() < deadline and any(is_locked(folder) for folder in folders):
        time.sleep(_WAIT_STEP)
    if must_stop():
        return [KeyboardInterrupt()] * len(configs)
    return train_runs(configs, folders, places, summarize, must_stop, options.pace, model, data)


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
    """Summarize a trajectory."""
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
        # too few rows, or an optimizer that `theory` does not know
        pass
    else:
        verdict, periods = classification.verdict, classification.periods
        numbers.update(periods=periods.count, period=periods.mean, period_stderr=periods.stderr)
        numbers.update({name: getattr(periods, name) for name in _PERIOD_NUMBERS})
        numbers.update({name: getattr(classification, name) for name in _RUN_NUMBERS})
        numbers["feedback_score"] = classification.feedback.score
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
    """Summarize a run that an error ended."""
    text = "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-_ERROR_LINES:])
    return Summary(identity=config.identity, steps=config.steps, status=FAILED, status_step=0, seconds=0.0, error=text)
