"""Worker processes by Dask: on this machine, or of a cluster that is already there."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import process, resource_tracker
from typing import Any

from empirical.runs.signals import stop_requested
from simulate.maps.iteration import usable_processors
from theory.arguments import check_integer, check_number

# seconds within which a scheduler must answer
_ANSWER_SECONDS = 15
# Of a worker. Dask has its workers give memory back to the system at once, and training takes the same again in every
# step, which costs up to a tenth of its time.
_ENVIRONMENT = {
    "NUMBA_NUM_THREADS": 1,
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**25,
}

_GUARDED = (
    'must be called under `if __name__ == "__main__":` in a script, '
    "since each process that it starts imports the script first"
)


def dask_executor(
    scheduler: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> AbstractContextManager[concurrent.futures.Executor]:
    """Executor for `sweep` on Dask workers, started or connected to by `with` and closed at its end.

    Parameters
    ----------
    scheduler : address, such as `tcp://host:8786`, or scheduler file of a Dask cluster; None starts processes on this
        machine.
    workers : number of processes on this machine; default one for each processor.
    resources : what each run needs of the resources that workers declare, such as {"GPU": 1}.

    Returns
    -------
    Context manager of an executor; the processes that it starts here have one thread each.

    Raises
    ------
    TypeError, ValueError : an argument is out of range; when it is opened, no scheduler answers.
    RuntimeError : when it is opened, by a script outside of ``if __name__ == "__main__":``; processes do not start.

    Examples
    --------
    >>> with dask_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 3).result()
    8
    """
    if scheduler is not None and workers is not None:
        raise ValueError(f"workers must be None with a scheduler, which has its own, got {workers!r}")
    if workers is not None:
        check_integer("workers", workers, at_least=1)
    needed = {name: check_number(f"resources[{name!r}]", value, above=0) for name, value in (resources or {}).items()}
    if needed and scheduler is None:
        raise ValueError(f"resources must be None without a scheduler, whose workers declare them, got {needed}")
    if scheduler is not None and "://" not in str(scheduler) and not os.path.isfile(scheduler):
        raise ValueError(f"scheduler must be an address such as tcp://host:8786 or an existing file, got {scheduler!r}")
    return _DaskExecutor(scheduler, workers or usable_processors(), needed)


def refuse_in_a_script_that_is_imported(what: str) -> None:
    """Refuse to start processes from one that has not started yet, but imports the script that has started it.

    Raises
    ------
    RuntimeError : the script is one that calls this outside of ``if __name__ == "__main__":``.

    Examples
    --------
    >>> refuse_in_a_script_that_is_imported("sweep")
    """
    # how multiprocessing itself knows
    if getattr(process.current_process(), "_inheriting", False):
        # this process ends by it, and its way here says nothing
        sys.tracebacklimit = 0
        raise RuntimeError(f"{what} {_GUARDED}")


class _DaskExecutor(AbstractContextManager[concurrent.futures.Executor]):
    """Opened anew by each `with`."""

    def __init__(self, *settings: Any) -> None:
        self._settings, self._open = settings, ExitStack()

    def __enter__(self) -> concurrent.futures.Executor:
        try:
            return self._open.enter_context(_opened(*self._settings))
        except RuntimeError as error:
            # the way through context managers says nothing
            raise error.with_traceback(None) from None

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


@contextmanager
def _opened(
    scheduler: str | os.PathLike[str] | None, workers: int, needed: Mapping[str, float]
) -> Iterator[concurrent.futures.Executor]:
    refuse_in_a_script_that_is_imported("dask_executor")
    # slow to import
    import dask
    from distributed import Client

    # a run is given up only when so many workers have died while they had it, which need not be its fault
    settings = {
        "distributed.scheduler.allowed-failures": 10,
        # it looks into the running training a hundred times a second
        "distributed.worker.profile.enabled": False,
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _ENVIRONMENT.items()},
    }
    with dask.config.set(settings), _quiet("distributed.client"), _quiet("distributed.nanny"), ExitStack() as opened:
        if scheduler is None:
            where = {"address": opened.enter_context(_processes_here(workers))}
        else:
            where = {"address" if "://" in str(scheduler) else "scheduler_file": str(scheduler)}
        try:
            client = opened.enter_context(Client(**where, set_as_default=False, timeout=_ANSWER_SECONDS))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scheduler must be the address or file of a Dask scheduler that answers, got {str(scheduler)!r}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        yield client.get_executor(pure=False, **({"resources": needed} if needed else {}))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from telling, with many lines, what is an error of the sweep."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _processes_here(count: int) -> Iterator[Any]:
    """Cluster of processes of this machine, which the Ctrl-C of its terminal ends at the end of the sweep only."""
    from distributed import LocalCluster

    # Threads and processes that are started while the signal is blocked, and those that they start later, never get it;
    # here it waits. The tracker would unblock it when it begins.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    cluster = None
    try:
        # memory is not limited: runs are no data that Dask could move away
        try:
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
        except RuntimeError:
            # theirs is that none has started, with all that was waiting for it
            raise RuntimeError(f"processes here did not start; what they said is above. A sweep {_GUARDED}") from None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield cluster
    finally:
        with stop_requested():
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if cluster is not None:
                cluster.close()
