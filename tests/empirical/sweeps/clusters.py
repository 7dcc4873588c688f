"""A Dask cluster in separate processes, which tests can kill."""

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

# Runs write checkpoints more often than usual, so that a killed run has one to continue from. They pause before each
# write, so that a short run lasts long enough to be killed.
_PRELOADED = """
import time
from empirical.runs import folder, loop
loop.CHECKPOINT_SECONDS = 0.5
class SlowFolder(folder.RunFolder):
    def append_steps(self, records):
        time.sleep(0.2)
        super().append_steps(records)
loop.RunFolder = SlowFolder
"""


class Cluster:
    """A scheduler and workers, which are restarted when they end, until the cluster is closed."""

    def __init__(self, folder, workers=2, options=()):
        self.folder, self._options = folder, options
        (folder / "often.py").write_text(_PRELOADED)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._log = open(folder / "cluster.log", "ab")  # noqa: SIM115
        self._is_closed, self._started = threading.Event(), 0
        self._scheduler = self._new_scheduler()
        self._workers = [self._new_worker() for _ in range(workers)]
        self._watch = threading.Thread(target=self._restart, daemon=True)
        self._watch.start()

    def kill_worker(self, number):
        self._workers[number].send_signal(signal.SIGKILL)

    def kill_scheduler(self):
        self._scheduler.send_signal(signal.SIGKILL)

    def close(self):
        self._is_closed.set()
        self._watch.join()
        for process in (self._scheduler, *self._workers):
            process.kill()
            process.wait()
        self._log.close()

    def _restart(self):
        while not self._is_closed.wait(0.2):
            if self._scheduler.poll() is not None:
                self._scheduler = self._new_scheduler()
            for number, worker in enumerate(self._workers):
                if worker.poll() is not None:
                    self._workers[number] = self._new_worker()

    def _new_scheduler(self):
        return self._run("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def _new_worker(self):
        self._started += 1
        limits = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        name = ("--name", f"worker-{self._started}", "--preload", str(self.folder / "often.py"))
        return self._run("dask_worker", self.address, *limits, *name, *self._options)

    def _run(self, module, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd=self.folder)


def kill_at_random(cluster, process, kills, seed, every):
    """Kill up to `kills` workers while a process runs, about every `every` seconds. Return the number of kills."""
    generator, count = random.Random(seed), 0
    while count < kills:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(every * generator.uniform(0.5, 1.5))
            break
        cluster.kill_worker(generator.randrange(2))
        count += 1
    return count


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)
