"""Worker processes by Dask: on this machine, or of a cluster that is already there."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from simulate.maps.iteration import usable_processors
from theory.arguments import one_real, whole_number

# seconds within which a scheduler must answer
_ANSWER_SECONDS = 15


@contextmanager
def dask_executor(
    scheduler: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> Iterator[concurrent.futures.Executor]:
    """Open an executor for `sweep` on Dask workers, and close it at the end.

    Parameters
    ----------
    scheduler : address ("tcp://…") or scheduler file of a Dask cluster; None starts processes on this machine.
    workers : number of processes on this machine; default one for each processor.
    resources : what each run needs of the resources that workers declare, such as {"GPU": 1}.

    Yields
    ------
    Executor; the processes that are started here have one thread each.

    Raises
    ------
    TypeError, ValueError : an argument is out of range, or no scheduler answers.

    Examples
    --------
    >>> with dask_executor(workers=1) as executor:
    ...     executor.submit(pow, 2, 3).result()
    8
    """
    if scheduler is not None and workers is not None:
        raise ValueError(f"workers must be None with a scheduler, which has its own, got {workers!r}")
    if workers is not None:
        whole_number("workers", workers, at_least=1)
    needed = {name: one_real(f"resources[{name!r}]", value, above=0) for name, value in (resources or {}).items()}
    if needed and scheduler is None:
        raise ValueError(f"resources must be None without a scheduler, whose workers declare them, got {needed}")

    # slow to import
    import dask
    from distributed import Client

    # a run is given up only when so many workers have died while they had it, which need not be its fault
    settings = {
        "distributed.scheduler.allowed-failures": 10,
        "distributed.nanny.pre-spawn-environ.NUMBA_NUM_THREADS": 1,
    }
    with dask.config.set(settings), _cluster(scheduler, workers) as where:
        try:
            client = Client(**where, set_as_default=False, timeout=_ANSWER_SECONDS)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scheduler must be the address or file of a Dask scheduler that answers, got {str(scheduler)!r}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        with client:
            yield client.get_executor(pure=False, **({"resources": needed} if needed else {}))


@contextmanager
def _cluster(scheduler: str | os.PathLike[str] | None, workers: int | None) -> Iterator[dict[str, Any]]:
    """Arguments of a client of the scheduler, or of a cluster of processes of its own."""
    if scheduler is None:
        from distributed import LocalCluster

        # memory is not limited: runs are no data that Dask could move away
        with LocalCluster(
            n_workers=workers or usable_processors(), threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster:
            yield {"address": cluster}
    elif "://" in str(scheduler):
        yield {"address": str(scheduler)}
    elif os.path.isfile(scheduler):
        yield {"scheduler_file": str(scheduler)}
    else:
        raise ValueError(f"scheduler must be an address such as tcp://host:8786 or an existing file, got {scheduler!r}")
