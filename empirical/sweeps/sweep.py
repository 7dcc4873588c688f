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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from empirical.config import RunConfig
from empirical.runs.signals import stop_requested
from empirical.sweeps.grid import different
from empirical.sweeps.store import SweepFolder, open_sweep, read_summaries
from empirical.sweeps.task import FAILED, IN_USE, Summary, Terms, failed, perform, run_path
from empirical.sweeps.workers import dask_executor, refuse_in_a_script_that_is_imported
from simulate.trajectories.contract import INTERRUPTED
from simulate.trajectories.folder import count_steps
from theory.arguments import check_integer, check_number

Runs = tuple[RunConfig, ...]
AnyExecutor = concurrent.futures.Executor | AbstractContextManager[concurrent.futures.Executor]

# Tasks that are handed out at a time: enough for the workers of a large cluster, few enough for any scheduler.
_HANDED_OUT = 20_000
# A run is given out so often again when its worker died, a worker that was given up still holds its folder, or a
# network disk still shows the worker what the folder was before; after 1, 4, 16, … seconds.
_MORE_CHANCES = 4
_FIRST_DELAY, _NEXT_DELAY = 0.25, 4.0
_LOOK_SECONDS, _LOOKED_AT = 1.0, 200
# results that are written at a time
_TAKEN = 1000
# So many runs of a sweep make a second of their pace, up to the longest.
_RUNS_PER_SECOND, _LONGEST_PACE = 100, 20.0
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
    executor: AnyExecutor | None = None,
    *,
    until: float | None = None,
    periods: int | None = None,
    max_steps: int | None = None,
    threads: int = 1,
    traces: bool = True,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train many runs, each once, and open them as one data set.

    Runs that are done are skipped, interrupted ones go on from their last checkpoint, longer ones continue shorter
    ones. A run that diverges is a result; one that fails is reported, tried again by the next call, and stops no other.
    In a script the call belongs under ``if __name__ == "__main__":``, since processes are started.

    Parameters
    ----------
    configs : runs, different but for `steps` and `device`; see `grid` and `read_sweep`.
    out : folder: new, or of an earlier sweep, whose runs are used again.
    executor : any executor of `concurrent.futures` whose workers see the same folder; or what `dask_executor` gives,
        which is opened when there is something to do, and closed at the end; by default on processes of this machine.
    until : extend each run until the standard error of its mean period is at most this share of it, such as 0.05.
        A run that looks at equilibrium is extended too, until that can be believed, which is after 30/ηλ steps, and
        then left.
    periods : extend each run until it has so many periods; one at equilibrium as with `until`.
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
    RuntimeError : called by a script outside of ``if __name__ == "__main__":``; no processes start.

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
    refuse_in_a_script_that_is_imported("sweep")
    runs = different(configs)
    if until is not None and check_number("until", until, above=0) >= 1:
        raise ValueError(f"until must be a share < 1, write 0.05 for 5 %, got {until!r}")
    if periods is not None:
        check_integer("periods", periods, at_least=1)
    if max_steps is not None:
        if until is None and periods is None:
            raise ValueError(f"max_steps must be None without until or periods, got {max_steps!r}")
        check_integer("max_steps", max_steps, at_least=1)
    check_integer("threads", threads, at_least=1)
    executor = dask_executor() if executor is None else executor
    if not isinstance(executor, (concurrent.futures.Executor, AbstractContextManager)):
        raise TypeError(
            f"executor must be a concurrent.futures.Executor or what dask_executor gives, got {type(executor).__name__}"
        )
    folder = SweepFolder(out)
    try:
        terms = Terms(
            out=folder.path.resolve(),
            until=until,
            periods=periods,
            max_steps=max_steps,
            threads=threads,
            pace=min(len(runs) / _RUNS_PER_SECOND, _LONGEST_PACE),
        )
        known = read_summaries(folder.path)
        left = [run for run in runs if run.identity not in known or not known[run.identity].answers(run, terms)]
        undone = {run.identity for run in left}
        done = [known[run.identity] for run in runs if run.identity not in undone]
        # what cannot be opened leaves the folder as it was
        with _opened(executor) if left else nullcontext() as pool:
            terms = dataclasses.replace(terms, session=folder.begin(runs))
            if pool is not None:
                with _Progress(runs, done, terms, progress) as view:
                    _Sweep(folder, terms, pool, view, places_of(runs), traces=traces).make(left)
        return open_sweep(folder.path)
    finally:
        folder.stop()
        folder.close()


def _opened(executor: AnyExecutor) -> AbstractContextManager[concurrent.futures.Executor]:
    """Leave open what was open."""
    return nullcontext(executor) if isinstance(executor, concurrent.futures.Executor) else executor


class _Sweep:
    """Runs on their way through an executor, those that are replicas of each other in one task."""

    def __init__(
        self,
        folder: SweepFolder,
        terms: Terms,
        executor: concurrent.futures.Executor,
        view: _Progress,
        places: Mapping[str, int],
        *,
        traces: bool,
    ) -> None:
        self._folder, self._terms, self._executor, self._view = folder, terms, executor, view
        self._places, self._traces = places, traces
        self._waiting: deque[Runs] = deque()
        self._later: list[tuple[float, Runs]] = []
        self._given: dict[concurrent.futures.Future[tuple[Summary, ...]], Runs] = {}
        self._ended: queue.SimpleQueue[concurrent.futures.Future[tuple[Summary, ...]]] = queue.SimpleQueue()
        self._chances: Counter[str] = Counter()
        self._steps: dict[str, int] = {}
        self._stopped_at: float | None = None

    def make(self, runs: Sequence[RunConfig]) -> None:
        """Have all runs made."""
        self._waiting.extend(tasks(runs, self._places))
        with stop_requested() as stop:
            while self._given or ((self._waiting or self._later) and self._stopped_at is None):
                if self._stopped_at is None:
                    self._hand_out()
                    # who takes the session file away stops the sweep from elsewhere
                    if stop.is_set() or not self._terms.goes_on():
                        self._stopped_at = time.monotonic()
                        self._folder.stop()
                        self._view.say("stopping; runs write their checkpoints …")
                elif time.monotonic() - self._stopped_at > _PATIENCE_SECONDS:
                    break
                self._collect()
                self._view.show(run for runs in self._given.values() for run in runs)
        if self._given or self._waiting or self._later:
            raise SweepInterrupted(self._folder.path, self._view.counts())

    def _hand_out(self) -> None:
        now = time.monotonic()
        self._waiting.extend(runs for due, runs in self._later if due <= now)
        self._later = [(due, runs) for due, runs in self._later if due > now]
        while self._waiting and len(self._given) < _HANDED_OUT:
            runs = self._waiting.popleft()
            try:
                places = [self._places[run.identity] for run in runs]
                future = self._executor.submit(perform, runs, self._terms, places)
            except Exception as error:
                raise self._lost(error) from error
            self._given[future] = runs
            future.add_done_callback(self._ended.put)

    def _collect(self) -> None:
        """Take all that has ended, waiting for the first some time."""
        wait = _LOOK_SECONDS
        ended: list[concurrent.futures.Future[tuple[Summary, ...]]] = []
        with suppress(queue.Empty):
            while len(ended) < _TAKEN:
                ended.append(self._ended.get(timeout=wait))
                wait = 0.0
        summaries: list[Summary] = []
        lost: WorkersLostError | None = None
        for future in ended:
            try:
                summaries += self._ended_runs(self._given.pop(future), future)
            except WorkersLostError as error:
                # others may have come through
                lost = error
        if summaries:
            self._folder.append(*summaries)
            if not self._traces:
                self._folder.drop(summary for summary in summaries if summary.is_final)
        if lost is not None:
            raise lost

    def _ended_runs(self, runs: Runs, future: concurrent.futures.Future[tuple[Summary, ...]]) -> list[Summary]:
        """Summaries of those that have come to an end; the others go back to the queue."""
        ended = []
        try:
            summaries = future.result()
        except (concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor) as error:
            raise self._lost(error) from error
        except Exception as error:
            # no error of the runs, which would be summaries, but of what carried them
            summaries = tuple(dataclasses.replace(failed(run, error), status=IN_USE) for run in runs)
        again, delay = [], 0.0
        for run, summary in zip(runs, summaries, strict=True):
            if summary.status in (INTERRUPTED, IN_USE):
                if self._stopped_at is not None or self._has_a_chance(run, summary):
                    again.append(run)
                    delay = max(delay, _FIRST_DELAY * _NEXT_DELAY ** self._chances[run.identity])
                    continue
                summary = _given_up(summary)
            ended.append(summary)
            self._view.ended(run, summary)
        if again:
            self._later.append((time.monotonic() + delay, tuple(again)))
        return ended

    def _has_a_chance(self, run: RunConfig, summary: Summary) -> bool:
        """Whether a run is to be given out again that ended without its fault, or for all that is known."""
        if summary.status_step > self._steps.get(run.identity, 0):
            # it comes on
            self._steps[run.identity], self._chances[run.identity] = summary.status_step, 0
            return True
        self._chances[run.identity] += 1
        return self._chances[run.identity] <= _MORE_CHANCES

    def _lost(self, error: Exception) -> WorkersLostError:
        return WorkersLostError(
            f"the workers are gone ({type(error).__name__}{f': {error}' if str(error) else ''}); what was done is in "
            f"{self._folder.path}, and the same command goes on from there"
        )


def _given_up(summary: Summary) -> Summary:
    told = summary.error or "the worker ended the run again and again, as if its sweep had been stopped"
    return dataclasses.replace(summary, status=FAILED, error=told)


def places_of(runs: Iterable[RunConfig]) -> dict[str, int]:
    """Place of each run among its replicas, by identity: the runs of one shape take them in turn.

    Examples
    --------
    >>> list(places_of(RunConfig(lr=0.1, wd=0.01, seed=seed, replicas=2) for seed in range(3)).values())
    [0, 1, 0]
    """
    before: Counter[str] = Counter()
    places = {}
    for run in runs:
        places[run.identity] = 0
        if run.replicas > 1:
            places[run.identity] = before[run.shape] % run.replicas
            before[run.shape] += 1
    return places


def tasks(runs: Iterable[RunConfig], places: Mapping[str, int]) -> list[Runs]:
    """Put runs of one shape together, each of which has another place among the replicas.

    Examples
    --------
    >>> runs = [RunConfig(lr=0.1, wd=0.01, seed=seed, replicas=2) for seed in range(3)]
    >>> [len(together) for together in tasks(runs, places_of(runs))]
    [2, 1]
    """
    taken: Counter[tuple[str, int]] = Counter()
    together: dict[tuple[str, int], list[RunConfig]] = {}
    for run in runs:
        at = (run.shape if run.replicas > 1 else "", places[run.identity])
        together.setdefault((run.shape, taken[at]), []).append(run)
        taken[at] += 1
    return [tuple(task) for task in together.values()]


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

    def say(self, words: str) -> None:
        """Write a line, if the user sees the bar."""
        if not self._bar.disable:
            self._bar.write(words, file=sys.stderr)

    def show(self, given: Iterable[RunConfig]) -> None:
        """Renew the bar, if there is one, by what the logs of the runs say that are under way."""
        if self._bar.disable or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        written = [
            min(run.steps, count_steps(run_path(self._terms.out, run)))
            for run, _ in zip(given, range(_LOOKED_AT), strict=False)
        ]
        failures = self._statuses[FAILED]
        done, running = sum(self._statuses.values()) - failures, sum(steps > 0 for steps in written)
        begun = done or running or failures
        counts = f"{done} done, {running} running, {failures} failed of" if begun else "processes start for"
        self._bar.set_postfix_str(f"runs: {counts} {self._runs}", refresh=False)
        self._bar.n = min(self._bar.total, self._steps + sum(written))
        self._bar.refresh()
        self._looked = time.monotonic()
