"""A sweep whose workers are jobs of their own, as many as there are runs left, at most 100.

Run it where jobs may be submitted from, on a disk that all nodes see: python sweep_on_slurm.py sweep.toml sweeps/a
"""

import sys

from dask_jobqueue import SLURMCluster

import empirical

if __name__ == "__main__":
    cluster = SLURMCluster(
        cores=16,  # of a job …
        processes=16,  # … each for a worker of its own
        memory="32GB",
        walltime="04:00:00",
        python=sys.executable,
        job_script_prologue=[
            "export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 NUMBA_CACHE_DIR=${TMPDIR:-/tmp}/bnwd-numba",
            # what Dask does for other work, and trainings pay for
            "export MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432",
            "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
        ],
        scheduler_options={"dashboard_address": ":0"},
        # queue="…", account="…", interface="ib0", job_extra_directives=["--gres=gpu:1"]: as your cluster asks for
    )
    cluster.adapt(minimum_jobs=0, maximum_jobs=100)
    with cluster:
        runs = empirical.read_sweep(sys.argv[1])
        print(empirical.sweep(runs, sys.argv[2], empirical.dask_executor(cluster.scheduler_address)))
