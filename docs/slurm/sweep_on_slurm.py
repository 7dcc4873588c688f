"""Run a sweep whose workers are separate SLURM jobs: as many as there are runs left, at most 100.

Run this on a login node, on a disk that all nodes see: python sweep_on_slurm.py sweep.toml sweeps/a
"""

import sys

from dask_jobqueue import SLURMCluster

import empirical

if __name__ == "__main__":
    cluster = SLURMCluster(
        cores=16,  # per job
        processes=16,  # workers per job
        memory="32GB",
        walltime="04:00:00",
        python=sys.executable,
        job_script_prologue=[
            "export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 NUMBA_CACHE_DIR=${TMPDIR:-/tmp}/bnwd-numba",
            # switch off defaults of Dask that slow down training
            "export MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432",
            "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
        ],
        scheduler_options={"dashboard_address": ":0"},
        # add what your cluster needs: queue="…", account="…", interface="ib0", job_extra_directives=["--gres=gpu:1"]
    )
    cluster.adapt(minimum_jobs=0, maximum_jobs=100)
    with cluster:
        runs = empirical.read_sweep(sys.argv[1])
        print(empirical.sweep(runs, sys.argv[2], empirical.dask_executor(cluster.scheduler_address)))
