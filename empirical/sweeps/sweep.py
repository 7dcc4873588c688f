"""Many runs, by the workers of any executor: done ones are skipped, interrupted ones go on, failures are reported."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from empirical.config import RunConfig
from empirical.runs.signals import stop_requested
from empirical.sweeps.grid import different
from empirical.sweeps.store import SweepFolder, open_sweep, read_summaries
from empirical.sweeps.task import FAILED, IN_USE, Summary, Terms, failed, perform, run_path
from simulate.trajectories.contract import INTERRUPTED
from simulate.trajectories.folder import steps_written
from theory.arguments import one_real, whole_number

# Runs that are handed out at a time: enough for the workers of a large cluster, few enough for any scheduler.
_HANDED_OUT = 20_000
# A run is given out so often again when its worker died, or a worker that was given up still holds its folder.
_MORE_CHANCES = 3
_MOST_GROWTH_OF_STEPS = 10
_LOOK_SECONDS, _LOOKED_AT = 1.0, 200
# how long the end of the last runs is waited for after a stop
_PATIENCE_SECONDS = 90.0


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was stopped by Ctrl-C or SIGTERM; the same call goes on where it was.

    Attributes
    ----------
    path : the sweep's folder.
    counts : number of runs by status.
    """

    def __init__(self, path: Path, counts: dict[str, int]) -> None:
        told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no run has ended"
        super().__init__(f"interrupted ({told}); what was done is in {path}, and the same command goes on from there")
        self.path, self.counts = path, counts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.counts)


class WorkersLostError(RuntimeError):
    """The executor can do no more: its scheduler is gone, or its pool is broken. The same call goes on."""


def sweep(
    configs: Iterable[RunConfig],
    out: str | os.PathLike[str],
    executor: concurrent.futures.Executor | None = None,
    *,
    until: float | None = None,
    max_steps: int | None = None,
    threads: int = 1,
    traces: bool = True,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train many runs, each once, and open them as one data set.

    Runs that are done are skipped, interrupted ones go on from their last checkpoint, longer ones continue shorter
    ones. A run that diverges is a result; one that fails is reported, tried again by the next call, and stops no other.

    Parameters
    ----------
    configs : runs, different but for `steps` and `device`; see `grid` and `read_sweep`.
    out : folder: new, or of an earlier sweep, whose runs are used again.
    executor : any executor of `concurrent.futures` whose workers see the same folder; default processes of this
        machine, started and ended here. See `dask_executor` for clusters.
    until : extend each run until the standard error of its mean period is at most this share of it, unless it is at
        equilibrium.
    max_steps : of an extended run; default ten times its `steps`.
    threads : of PyTorch and BLAS in each worker. The last bits of a run depend on it.
    traces : keep the trajectories of runs. Without them only the summaries stay, some 500 bytes each, and a run that
        is to be longer begins anew.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    The same as `open_sweep`.

    Raises
    ------
    TypeError, ValueError : bad settings, the same run twice, or a folder that cannot be used; nothing is begun then.
    SweepInterrupted : Ctrl-C, SIGTERM, or the folder's file `session` was taken away; runs wrote checkpoints.
    WorkersLostError : the scheduler is gone or the pool of processes broken; what was done is kept.

    Examples
    --------
    >>> import tempfile
    >>> from empirical.sweeps.grid import grid
    >>> runs = grid(lr=[0.1, 0.5], wd=0.01, width=8, steps=20)
    >>> with concurrent.futures.ThreadPoolExecutor(1) as executor:
    ...     found = sweep(runs, tempfile.mkdtemp(), executor)
    >>> found.status.sel(lr=0.5).item(), found.final_norm.dims
    ('complete', ('lr',))
    """
    runs = different(configs)
    if until is not None:
        one_real("until", until, above=0)
    if max_steps is not None:
        if until is None:
            raise ValueError(f"max_steps must be None without until, got {max_steps!r}")
        whole_number("max_steps", max_steps, at_least=1)
    whole_number("threads", threads, at_least=1)
    if executor is not None and not isinstance(executor, concurrent.futures.Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {type(executor).__name__}")
    folder = SweepFolder(out)
    try:
        terms = Terms(
            out=folder.path.resolve(),
            session=folder.begin(runs),
            until=until,
            max_steps=max_steps or _MOST_GROWTH_OF_STEPS * max(run.steps for run in runs),
            threads=threads,
            traces=traces,
        )
        known = read_summaries(folder.path)
        left = [run for run in runs if run.identity not in known or not known[run.identity].answers(run, terms)]
        undone = {run.identity for run in left}
        done = [known[run.identity] for run in runs if run.identity not in undone]
        if left:
            with _Progress(runs, done, terms, progress) as view, _opened(executor) as pool:
                _Sweep(folder, terms, pool, view).make(left)
        return open_sweep(folder.path)
    finally:
        folder.stop()
        folder.close()


@contextmanager
def _opened(executor: concurrent.futures.Executor | None) -> Iterator[concurrent.futures.Executor]:
    if executor is not None:
        yield executor
        return
    from empirical.sweeps.workers import dask_executor

    with dask_executor() as own:
        yield own


class _Sweep:
    """Runs on their way through an executor."""

    def __init__(self, folder: SweepFolder, terms: Terms, executor: concurrent.futures.Executor, view: _Progress):
        self._folder, self._terms, self._executor, self._view = folder, terms, executor, view
        self._waiting: deque[RunConfig] = deque()
        self._given: dict[concurrent.futures.Future[Summary], RunConfig] = {}
        self._ended: queue.SimpleQueue[concurrent.futures.Future[Summary]] = queue.SimpleQueue()
        self._tries: Counter[str] = Counter()

    def make(self, runs: list[RunConfig]) -> None:
        """Have all runs made."""
        self._waiting.extend(runs)
        stopped_at = None
        with stop_requested() as stop:
            while self._given or (self._waiting and stopped_at is None):
                if stopped_at is None:
                    self._hand_out()
                    # who takes the session file away stops the sweep from elsewhere
                    if stop.is_set() or not self._terms.goes_on():
                        stopped_at = time.monotonic()
                        self._folder.stop()
                elif time.monotonic() - stopped_at > _PATIENCE_SECONDS:
                    break
                self._collect()
                self._view.show(self._given.values())
        if self._given or self._waiting:
            raise SweepInterrupted(self._folder.path, self._view.counts())

    def _hand_out(self) -> None:
        while self._waiting and len(self._given) < _HANDED_OUT:
            run = self._waiting.popleft()
            try:
                future = self._executor.submit(perform, run, self._terms)
            except Exception as error:
                raise self._lost(error) from error
            self._given[future] = run
            future.add_done_callback(self._ended.put)

    def _collect(self) -> None:
        """Take all that has ended, waiting for the first some time."""
        wait = _LOOK_SECONDS
        while True:
            try:
                future = self._ended.get(timeout=wait)
            except queue.Empty:
                return
            wait = 0.0
            self._take(self._given.pop(future), future)

    def _take(self, run: RunConfig, future: concurrent.futures.Future[Summary]) -> None:
        try:
            summary = future.result()
        except (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor) as error:
            raise self._lost(error) from error
        except Exception as error:
            # no error of the run, which would be a summary, but of what carried it
            summary = dataclasses.replace(failed(run, error), status=IN_USE)
        if summary.status == INTERRUPTED:
            # by a stop, after which it stays here, or because its worker alone was told to end
            self._waiting.append(run)
        elif summary.status == IN_USE and self._tries[run.identity] < _MORE_CHANCES:
            self._tries[run.identity] += 1
            self._waiting.append(run)
        else:
            if summary.status == IN_USE:
                summary = dataclasses.replace(summary, status=FAILED)
            self._folder.append(summary)
            self._view.ended(run, summary)

    def _lost(self, error: Exception) -> WorkersLostError:
        return WorkersLostError(
            f"the workers are gone ({type(error).__name__}{f': {error}' if str(error) else ''}); what was done is in "
            f"{self._folder.path}, and the same command goes on from there"
        )


class _Progress:
    """What the user sees of a sweep: runs done, running and failed, and the time that is left."""

    def __init__(self, runs: tuple[RunConfig, ...], done: list[Summary], terms: Terms, progress: bool | None) -> None:
        self._terms, self._runs = terms, len(runs)
        self._statuses = Counter(summary.status for summary in done)
        total = sum(run.steps for run in runs)
        finished = {summary.identity for summary in done}
        self._steps = sum(run.steps for run in runs if run.identity in finished)
        self._bar = tqdm(
            total=total,
            initial=self._steps,
            unit="step",
            unit_scale=True,
            disable=None if progress is None else not progress,
            leave=False,
        )
        self._looked = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def counts(self) -> dict[str, int]:
        """Number of runs that have ended, by status."""
        return dict(self._statuses)

    def ended(self, run: RunConfig, summary: Summary) -> None:
        """Take note of a run that has ended."""
        self._statuses[summary.status] += 1
        self._steps += run.steps
        if summary.status == FAILED:
            self._bar.write(f"failed: {run}\n{textwrap.indent(summary.error, '  ')}", file=sys.stderr)

    def show(self, given: Iterable[RunConfig]) -> None:
        """Renew the bar, if there is one, by what the logs of the runs say that are under way."""
        if self._bar.disable or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        written = [
            min(run.steps, steps_written(run_path(self._terms.out, run)))
            for run, _ in zip(given, range(_LOOKED_AT), strict=False)
        ]
        failures = self._statuses[FAILED]
        done = sum(self._statuses.values()) - failures
        self._bar.set_postfix_str(
            f"runs: {done} done, {sum(steps > 0 for steps in written)} running, {failures} failed of {self._runs}",
            refresh=False,
        )
        self._bar.n = min(self._bar.total, self._steps + sum(written))
        self._bar.refresh()
        self._looked = time.monotonic()
