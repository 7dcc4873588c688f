"""Start processes that tests kill: they are forked from a process that has loaded the packages already."""

import multiprocessing
import os

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["empirical.runs.loop", "empirical.steps.kernel_engine"])


def start_process(function, *arguments, messages=os.devnull):
    """Call a function in another process, with its messages in a file."""
    process = _CONTEXT.Process(target=_call, args=(function, arguments, messages))
    process.start()
    return process


def _call(function, arguments, messages):
    with open(messages, "w") as file:
        os.dup2(file.fileno(), 2)
        function(*arguments)
