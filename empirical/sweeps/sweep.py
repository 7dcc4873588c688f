"""Train many runs on the workers of any executor. Complete runs are skipped, interrupted runs continue."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import xarray as xr

from empirical._progress import progress_bar
from empirical.config import RunConfig
from empirical.runs.signals import catch_stop_signals
from empirical.sweeps.grid import check_different
from empirical.sweeps.store import SweepFolder, open_sweep, read_summaries
from empirical.sweeps.task import (
    FAILED,
    IN_USE,
    Summary,
    SweepLimits,
    SweepOptions,
    run_path,
    summarize_failure,
    train_and_summarize,
)
from empirical.sweeps.workers import check_main_guard, dask_executor
from simulate.trajectories.contract import INTERRUPTED
from simulate.trajectories.folder import count_steps
from theory.arguments import check_integer, check_number, quote

_Task = tuple[RunConfig, ...]
AnyExecutor = concurrent.futures.Executor | AbstractContextManager[concurrent.futures.Executor]

# Largest number of submitted tasks: enough for the workers of a large cluster, few enough for any scheduler.
_MAX_SUBMITTED = 20_000
_DELAY_FACTOR = 4.0
# seconds between looks at signals and ended runs, and between updates of the progress bar
_POLL_SECONDS, _UPDATE_SECONDS, _MAX_POLLED_RUNS = 0.2, 1.0, 200
# largest number of results written at a time
_MAX_COLLECTED = 1000
# number of runs per second of pace, and longest pace in seconds
_RUNS_PER_SECOND, _MAX_PACE = 100, 20.0
# seconds to wait for running tasks after a stop
_PATIENCE_SECONDS = 90.0


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was stopped by Ctrl-C or SIGTERM. The same call continues it.

    Attributes
    ----------
    path : folder of the sweep.
    counts : number of runs by status.
    """

    def __init__(self, path: Path, counts: dict[str, int]) -> None:
        summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no run has ended"
        super().__init__(f"interrupted ({summary}); results are in {path}, and the same command continues from there")
        self.path, self.counts = path, counts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.counts)


class WorkersLostError(RuntimeError):
    """The scheduler of the executor is gone, or its pool is broken. The same call continues the sweep."""


def sweep(
    configs: Iterable[RunConfig],
    out: str | os.PathLike[str],
    executor: AnyExecutor | None = None,
    *,
    model: Any = None,
    data: Any = None,
    until: float | None = None,
    periods: int | None = None,
    max_steps: int | None = None,
    threads: int = 1,
    traces: bool = True,
    progress: bool | None = None,
    limits: SweepLimits | None = None,
) -> xr.Dataset:
    """Train many runs and open them as one data set.

    Complete runs are skipped, and interrupted runs continue from their last checkpoint. A run with more steps continues
    the shorter one. A run that diverges is a result. A run that fails is reported and tried again by the next call;
    other runs continue. In a script, call this under ``if __name__ == "__main__":``, because it starts processes.

    Parameters
    ----------
    configs : runs, which must differ in more than `steps` and `device`; see `grid` and `read_sweep`.
    out : folder: new, or of an earlier sweep, whose runs are reused.
    executor : any executor of `concurrent.futures` whose workers see the folder, or the result of `dask_executor`. The
        latter is opened if a run needs training, and then closed. Default: processes on this machine.
    model, data : your own module and arrays for all runs, as in `train`. They are sent to the workers. Runs of your own
        module share its initial weights, and their seeds change only the order of the data.
    until : extend each run until the standard error of its mean period is at most this share of the period, e.g. 0.05.
        A run at equilibrium is extended to 30/ηλ steps, from which its verdict is trusted, and not further.
    periods : extend each run until it has this many periods. A run at equilibrium is treated as for `until`.
    max_steps : limit for extensions. Default: ten times the `steps` of the run.
    threads : threads of PyTorch and BLAS in each worker. The last bits of a run depend on it.
    traces : keep the trajectories. Otherwise only summaries are kept, about 500 bytes each, and a run with more steps
        starts again from step 0.
    progress : show a progress bar. Default: only in a terminal.
    limits : limits of waiting and of retries, an `empirical.sweeps.task.SweepLimits`, for unusual clusters.

    Returns
    -------
    Data set as from `open_sweep`.

    Raises
    ------
    TypeError, ValueError : invalid settings, the same run twice, or a folder that cannot be used. No run begins.
    SweepInterrupted : Ctrl-C, SIGTERM, or the file `session` in the folder was deleted. Runs write checkpoints first.
    WorkersLostError : the scheduler is gone, or the process pool is broken. Results so far are kept.
    RuntimeError : called by a script outside of ``if __name__ == "__main__":``. No process starts.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> runs = grid(lr=[0.1, 0.5], wd=0.01, width=8, steps=20)
    >>> with concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     results = sweep(runs, tempfile.mkdtemp(), executor)
    >>> results.status.sel(lr=0.5).item(), results.final_norm.dims
    ('complete', ('lr',))
    """
    check_main_guard("sweep")
    runs = check_different(configs)
    own = ""
    if model is not None or data is not None:
        # loads torch; raises the errors of invalid modules and arrays
        from empirical.runs.preparation import mark_own, own_digest, prepare

        setup = prepare(runs[0], model, data)
        own = own_digest(model, None if data is None else setup.data)
        runs = check_different(mark_own(run, model, data) for run in runs)
    if until is not None and check_number("until", until, above=0) >= 1:
        raise ValueError(f"until must be a share < 1, write 0.05 for 5 %, got {quote(until)}")
    if periods is not None:
        check_integer("periods", periods, at_least=1)
    if max_steps is not None:
        if until is None and periods is None:
            raise ValueError(f"max_steps must be None without until or periods, got {quote(max_steps)}")
        check_integer("max_steps", max_steps, at_least=1)
    check_integer("threads", threads, at_least=1)
    executor = dask_executor() if executor is None else executor
    if not isinstance(executor, (concurrent.futures.Executor, AbstractContextManager)):
        raise TypeError(
            "executor must be a concurrent.futures.Executor or the result of dask_executor, "
            f"got {type(executor).__name__}"
        )
    folder = SweepFolder(out)
    try:
        folder.check_own(own)
        options = SweepOptions(
            out=folder.path.resolve(),
            until=until,
            periods=periods,
            max_steps=max_steps,
            threads=threads,
            pace=min(len(runs) / _RUNS_PER_SECOND, _MAX_PACE),
            limits=limits or SweepLimits(),
        )
        summaries = read_summaries(folder.path)
        remaining = [
            run for run in runs if run.identity not in summaries or not summaries[run.identity].satisfies(run, options)
        ]
        incomplete = {run.identity for run in remaining}
        complete = [summaries[run.identity] for run in runs if run.identity not in incomplete]
        # open the result of `dask_executor` first: if that fails, the folder stays unchanged
        opened = nullcontext(executor) if isinstance(executor, concurrent.futures.Executor) else executor
        with opened if remaining else nullcontext() as pool:
            options = dataclasses.replace(options, session=folder.begin(runs, own))
            if pool is not None:
                with _Progress(runs, complete, options, progress) as display:
                    places = replica_places(runs)
                    runner = _SweepRunner(folder, options, pool, display, places, (model, data), traces=traces)
                    runner.run(remaining)
        return open_sweep(folder.path)
    finally:
        folder.stop()
        folder.close()


class _SweepRunner:
    """Submits runs to an executor, with replicas in one task, and collects their summaries."""

    def __init__(
        self,
        folder: SweepFolder,
        options: SweepOptions,
        executor: concurrent.futures.Executor,
        progress: _Progress,
        places: Mapping[str, int],
        own: tuple[Any, Any],
        *,
        traces: bool,
    ) -> None:
        self._folder, self._options, self._executor, self._progress = folder, options, executor, progress
        self._places, self._own, self._traces = places, own, traces
        self._waiting: deque[_Task] = deque()
        self._delayed: list[tuple[float, _Task]] = []
        self._submitted: dict[concurrent.futures.Future[tuple[Summary, ...]], _Task] = {}
        self._ended: queue.SimpleQueue[concurrent.futures.Future[tuple[Summary, ...]]] = queue.SimpleQueue()
        self._retries: Counter[str] = Counter()
        self._last_steps: dict[str, int] = {}
        self._stopped_at: float | None = None

    def run(self, runs: Sequence[RunConfig]) -> None:
        """Train all runs."""
        self._waiting.extend(group_into_tasks(runs, self._places))
        with catch_stop_signals() as stop:
            while self._submitted or ((self._waiting or self._delayed) and self._stopped_at is None):
                if self._stopped_at is None:
                    self._submit_tasks()
                    # deleting the session file stops the sweep from outside
                    if stop.is_set() or not self._options.is_current():
                        self._stopped_at = time.monotonic()
                        self._folder.stop()
                        self._progress.write("stopping; runs are writing checkpoints …")
                elif time.monotonic() - self._stopped_at > _PATIENCE_SECONDS:
                    break
                self._collect()
                self._progress.update(run for runs in self._submitted.values() for run in runs)
            if self._submitted or self._waiting or self._delayed or stop.is_set():
                raise SweepInterrupted(self._folder.path, self._progress.counts())

    def _submit_tasks(self) -> None:
        now = time.monotonic()
        self._waiting.extend(runs for due, runs in self._delayed if due <= now)
        self._delayed = [(due, runs) for due, runs in self._delayed if due > now]
        while self._waiting and len(self._submitted) < _MAX_SUBMITTED:
            runs = self._waiting.popleft()
            try:
                places = [self._places[run.identity] for run in runs]
                future = self._executor.submit(train_and_summarize, runs, self._options, places, *self._own)
            except Exception as error:
                raise self._workers_lost(error) from error
            self._submitted[future] = runs
            future.add_done_callback(self._ended.put)

    def _collect(self) -> None:
        """Collect ended tasks. Wait some time for the first."""
        wait = _POLL_SECONDS
        ended: list[concurrent.futures.Future[tuple[Summary, ...]]] = []
        with suppress(queue.Empty):
            while len(ended) < _MAX_COLLECTED:
                ended.append(self._ended.get(timeout=wait))
                wait = 0.0
        summaries: list[Summary] = []
        lost: WorkersLostError | None = None
        for future in ended:
            try:
                summaries += self._process_ended(self._submitted.pop(future), future)
            except WorkersLostError as error:
                # other tasks may have succeeded
                lost = error
        if summaries:
            self._folder.append(*summaries)
            if not self._traces:
                self._folder.drop(summary for summary in summaries if summary.is_final)
        if lost is not None:
            raise lost

    def _process_ended(self, runs: _Task, future: concurrent.futures.Future[tuple[Summary, ...]]) -> list[Summary]:
        """Return the summaries of runs that have ended, and queue the others again."""
        ended = []
        try:
            summaries = future.result()
        except (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor) as error:
            raise self._workers_lost(error) from error
        except Exception as error:
            # an error of the executor: an error of a run would be a summary
            summaries = tuple(dataclasses.replace(summarize_failure(run, error), status=IN_USE) for run in runs)
        retries, delay = [], 0.0
        for run, summary in zip(runs, summaries, strict=True):
            if summary.status in (INTERRUPTED, IN_USE):
                if self._stopped_at is not None or self._should_retry(run, summary):
                    retries.append(run)
                    seconds = self._options.limits.first_delay * _DELAY_FACTOR ** self._retries[run.identity]
                    delay = max(delay, seconds)
                    continue
                text = summary.error or "workers stopped the run several times although its sweep was not stopped"
                summary = dataclasses.replace(summary, status=FAILED, error=text)
            ended.append(summary)
            self._progress.record(run, summary)
        if retries:
            self._delayed.append((time.monotonic() + delay, tuple(retries)))
        return ended

    def _should_retry(self, run: RunConfig, summary: Summary) -> bool:
        """Return whether to retry a run that ended for a reason outside of it.

        Its worker died, a lost worker still holds its folder, or a network disk still shows an old state of the folder.
        """
        if summary.status_step > self._last_steps.get(run.identity, 0):
            # the run makes progress
            self._last_steps[run.identity], self._retries[run.identity] = summary.status_step, 0
            return True
        self._retries[run.identity] += 1
        return self._retries[run.identity] <= self._options.limits.retries

    def _workers_lost(self, error: Exception) -> WorkersLostError:
        return WorkersLostError(
            f"the workers are gone ({type(error).__name__}{f': {error}' if str(error) else ''}); results are in "
            f"{self._folder.path}, and the same command continues from there"
        )


def replica_places(runs: Iterable[RunConfig]) -> dict[str, int]:
    """Return the place of each run among its replicas, by identity. Runs of one shape take the places in turn."""
    counts: Counter[str] = Counter()
    places = {}
    for run in runs:
        places[run.identity] = 0
        if run.replicas > 1:
            places[run.identity] = counts[run.shape] % run.replicas
            counts[run.shape] += 1
    return places


def group_into_tasks(runs: Iterable[RunConfig], places: Mapping[str, int]) -> list[_Task]:
    """Group runs of one shape with different places among the replicas into tasks."""
    counts: Counter[tuple[str, int]] = Counter()
    tasks: dict[tuple[str, int], list[RunConfig]] = {}
    for run in runs:
        at = (run.shape if run.replicas > 1 else "", places[run.identity])
        tasks.setdefault((run.shape, counts[at]), []).append(run)
        counts[at] += 1
    return [tuple(task) for task in tasks.values()]


class _Progress:
    """Progress bar of a sweep: number of complete, running and failed runs, and remaining time."""

    def __init__(
        self, runs: tuple[RunConfig, ...], complete: list[Summary], options: SweepOptions, progress: bool | None
    ) -> None:
        self._options, self._runs = options, len(runs)
        self._statuses = Counter(summary.status for summary in complete)
        total = sum(run.steps for run in runs)
        finished = {summary.identity for summary in complete}
        self._steps = sum(run.steps for run in runs if run.identity in finished)
        self._bar = progress_bar("train", total, "step", progress, initial=self._steps, is_scaled=True)
        self._updated = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def counts(self) -> dict[str, int]:
        """Return the number of ended runs by status."""
        return dict(self._statuses)

    def record(self, run: RunConfig, summary: Summary) -> None:
        """Record a run that has ended."""
        self._statuses[summary.status] += 1
        self._steps += run.steps
        if summary.status == FAILED:
            self._bar.write(f"failed: {run}\n{textwrap.indent(summary.error, '  ')}", file=sys.stderr)

    def write(self, text: str) -> None:
        """Write a line, if the bar is visible."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def update(self, runs: Iterable[RunConfig]) -> None:
        """Update the bar, if it is visible, from the logs of running runs."""
        if self._bar.disable or time.monotonic() - self._updated < _UPDATE_SECONDS:
            return
        written = [
            min(run.steps, count_steps(run_path(self._options.out, run)))
            for run, _ in zip(runs, range(_MAX_POLLED_RUNS), strict=False)
        ]
        failures = self._statuses[FAILED]
        done, running = sum(self._statuses.values()) - failures, sum(steps > 0 for steps in written)
        begun = done or running or failures
        counts = f"{done} done, {running} running, {failures} failed of" if begun else "processes start for"
        self._bar.set_postfix_str(f"runs: {counts} {self._runs}", refresh=False)
        self._bar.n = min(self._bar.total, self._steps + sum(written))
        self._bar.refresh()
        self._updated = time.monotonic()
