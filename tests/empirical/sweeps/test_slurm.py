"""The SLURM scripts, run with stand-ins for the SLURM commands that start local processes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import simulate
from empirical import open_sweep
from simulate.trajectories.folder import count_steps
from tests.empirical.sweeps.clusters import wait_until
from tests.pages import ROOT

SWEEP = "[run]\nwd = 0.02\nwidth = 8\nsteps = 200\n[grid]\nlr = [0.3, 0.5]\nseed = [0, 1]\n"
SCRIPTS = ROOT / "docs" / "slurm"

# skip options such as --kill-on-bad-exit, then start two tasks
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
trap 'kill -9 $first $second' TERM
wait
"""
SBATCH = """#!/bin/bash
bash -n "$1" || exit 1
cp "$1" "$SUBMITTED"
setsid bash "$SUBMITTED" > "$SUBMITTED.log" 2>&1 &
echo $! > "$SUBMITTED.pid"
echo "Submitted batch job 77"
"""
SCANCEL = """#!/bin/bash
kill -- -$(cat "$SUBMITTED.pid")
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment with the stand-ins for SLURM commands on the path."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": SRUN, "sbatch": SBATCH, "scancel": SCANCEL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    # dask and bnwd as they are installed
    own = Path(sys.executable).parent
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return {
        **os.environ,
        "PATH": f"{commands}:{own}:{os.environ['PATH']}",
        "SUBMITTED": str(tmp_path / "submitted.sh"),
        "SLURM_JOB_ID": "77",
        "USER": "somebody",
        "TMPDIR": str(tmp_path),
    }


def run(command, folder, environment):
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_job_script_runs_the_sweep(tmp_path, slurm):
    script = str(SCRIPTS / "sweep.sbatch")
    done = run(["bash", script, "sweep.toml", "out"], tmp_path, slurm)
    assert done.returncode == 0, done.stderr
    assert "4 complete" in done.stdout
    assert (open_sweep(tmp_path / "out").status == "complete").all()
    assert not list(tmp_path.glob("bnwd-scheduler*"))


def test_at_the_end_of_its_time_the_job_stops_cleanly(tmp_path, slurm):
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("200", "100000000"))
    # output goes to a file, because a leftover process would keep a pipe open
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(
            ["bash", str(SCRIPTS / "sweep.sbatch"), "sweep.toml", "out"],
            cwd=tmp_path,
            env=slurm,
            stdout=log,
            stderr=log,
        )
    wait_until(lambda: any(map(count_steps, (tmp_path / "out").glob("runs/*/*"))))
    job.terminate()
    # the exit code of the command comes back
    assert job.wait(60) == 130
    assert "bnwd: interrupted" in (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("bnwd-scheduler*"))
    statuses = {simulate.load(run).status.item() for run in (tmp_path / "out").glob("runs/*/*")}
    assert statuses == {"interrupted"}


def test_directives_are_those_of_slurm():
    lines = (SCRIPTS / "sweep.sbatch").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    # SLURM reads them before the first command only
    assert all(lines.index(line) < first_command for line in directives)
    expected = {"job-name", "ntasks", "cpus-per-task", "mem-per-cpu", "time", "signal", "output"}
    assert {line.split("--")[1].split("=")[0] for line in directives} == expected


def test_workers_as_separate_jobs(tmp_path, slurm):
    pytest.importorskip("dask_jobqueue", reason="workers as SLURM jobs need the extra 'slurm'")
    text = (SCRIPTS / "sweep_on_slurm.py").read_text()
    # this machine has fewer processors
    small = text.replace("cores=16", "cores=1").replace("processes=16", "processes=1").replace("jobs=100", "jobs=1")
    assert small != text
    (tmp_path / "sweep_on_slurm.py").write_text(small)
    done = run([sys.executable, "sweep_on_slurm.py", "sweep.toml", "out"], tmp_path, slurm)
    assert done.returncode == 0, done.stderr
    assert (open_sweep(tmp_path / "out").status == "complete").all()
    submitted = (tmp_path / "submitted.sh").read_text()
    assert "#SBATCH --cpus-per-task=1" in submitted
    assert "#SBATCH -t 04:00:00" in submitted
    assert "NUMBA_NUM_THREADS=1" in submitted
