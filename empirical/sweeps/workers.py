"""Dask workers: processes on this machine, or an existing cluster."""

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

from empirical.runs.signals import catch_stop_signals
from simulate.maps.iteration import usable_processors
from theory.arguments import check_integer, check_mapping, check_number, quote

# Environment of workers. By default, Dask workers return memory to the system at once. Training allocates it again in
# every step, which costs up to a tenth of its time.
_ENVIRONMENT = {
    "NUMBA_NUM_THREADS": 1,
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**25,
}

_GUARD_HINT = (
    'must be called under `if __name__ == "__main__":` in a script, '
    "because each process that it starts imports the script first"
)


def dask_executor(
    scheduler: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    timeout: float = 15,
) -> AbstractContextManager[concurrent.futures.Executor]:
    """Return an executor for `sweep` on Dask workers. `with` starts or connects it, and closes it at the end.

    Parameters
    ----------
    scheduler : address (`tcp://host:8786`) or scheduler file of a Dask cluster. None starts processes on this machine.
    workers : number of processes on this machine. Default: one per processor.
    resources : resources that each run needs and that workers declare, e.g. {"GPU": 1}.
    timeout : seconds within which a scheduler must answer.

    Returns
    -------
    Context manager of an executor. Processes that it starts on this machine have one thread each.

    Raises
    ------
    TypeError, ValueError : an argument is out of range. On entering `with`: no scheduler answers.
    RuntimeError : on entering `with` in a script outside of ``if __name__ == "__main__":``.

    Examples
    --------
    >>> with dask_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 3).result()
    8
    """
    if scheduler is not None and workers is not None:
        raise ValueError(f"workers must be None with a scheduler, which has its own workers, got {quote(workers)}")
    if workers is not None:
        check_integer("workers", workers, at_least=1)
    check_number("timeout", timeout, above=0)
    given = check_mapping("resources", resources)
    needed = {name: check_number(f"resources[{name!r}]", value, above=0) for name, value in given.items()}
    if needed and scheduler is None:
        raise ValueError(f"resources must be None without a scheduler, whose workers declare them, got {needed}")
    if scheduler is not None and not isinstance(scheduler, (str, os.PathLike)):
        raise TypeError(f"scheduler must be text or a path, got {quote(scheduler)}")
    if scheduler is not None and "://" not in str(scheduler) and not os.path.isfile(scheduler):
        raise ValueError(
            f"scheduler must be an address such as tcp://host:8786 or an existing file, got {quote(scheduler)}"
        )
    return _DaskExecutor(scheduler, workers or usable_processors(), needed, timeout)


def check_main_guard(what: str) -> None:
    """Raise a RuntimeError if this is a new process that is importing the script which started it."""
    # multiprocessing uses the same attribute for its own check
    if getattr(process.current_process(), "_inheriting", False):
        # this ends the process, and its traceback does not help
        sys.tracebacklimit = 0
        raise RuntimeError(f"{what} {_GUARD_HINT}")


class _DaskExecutor(AbstractContextManager[concurrent.futures.Executor]):
    """Context manager that opens a new executor on each `with`."""

    def __init__(self, *settings: Any) -> None:
        self._settings, self._open = settings, ExitStack()

    def __enter__(self) -> concurrent.futures.Executor:
        try:
            return self._open.enter_context(_connect(*self._settings))
        except RuntimeError as error:
            # the traceback through context managers does not help
            raise error.with_traceback(None) from None

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


@contextmanager
def _connect(
    scheduler: str | os.PathLike[str] | None, workers: int, needed: Mapping[str, float], timeout: float
) -> Iterator[concurrent.futures.Executor]:
    check_main_guard("dask_executor")
    # slow to import
    import dask
    from distributed import Client

    # a run fails only after this many workers died while training it, perhaps for other reasons
    settings = {
        "distributed.scheduler.allowed-failures": 10,
        # the profiler interrupts training a hundred times a second
        "distributed.worker.profile.enabled": False,
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _ENVIRONMENT.items()},
    }
    with (
        dask.config.set(settings),
        _mute_logger("distributed.client"),
        _mute_logger("distributed.nanny"),
        ExitStack() as stack,
    ):
        if scheduler is None:
            address = {"address": stack.enter_context(_start_local_cluster(workers))}
        else:
            address = {"address" if "://" in str(scheduler) else "scheduler_file": str(scheduler)}
        try:
            client = stack.enter_context(Client(**address, set_as_default=False, timeout=timeout))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scheduler must be the address or file of a Dask scheduler that answers, got {str(scheduler)!r}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        yield client.get_executor(pure=False, **({"resources": needed} if needed else {}))


@contextmanager
def _mute_logger(name: str) -> Iterator[None]:
    """Silence a logger whose many lines repeat an error of the sweep."""
    logger = logging.getLogger(name)
    previous = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(previous)


@contextmanager
def _start_local_cluster(count: int) -> Iterator[Any]:
    """Start a cluster on this machine whose processes ignore Ctrl-C in the terminal; the sweep ends them."""
    from distributed import LocalCluster

    # Threads and processes inherit the blocked signal and never receive it. In this thread the signal waits. The
    # tracker would unblock the signal when it starts, so start it first.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    cluster = None
    try:
        # no memory limit: Dask cannot move the memory of a run elsewhere
        try:
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
        except RuntimeError:
            # the error of Dask only says that no process has started
            raise RuntimeError(
                f"processes here did not start; their messages are above. A sweep {_GUARD_HINT}"
            ) from None
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        yield cluster
    finally:
        with catch_stop_signals():
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            if cluster is not None:
                cluster.close()
