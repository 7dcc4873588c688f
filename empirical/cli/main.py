"""The command `bnwd`."""

from __future__ import annotations

import io
import sys

from empirical._progress import progress_of_command

# the imports register the commands
from empirical.cli import analysis, predict, studies, training  # noqa: F401
from empirical.cli.application import app


def run_command_line(arguments: list[str] | None = None) -> None:
    """Run `bnwd` with these words, by default those of the command line. It ends with an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Greek letters would end the command where a pipe or a file has an old encoding, as on Windows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with progress_of_command():
        app(args=arguments, prog_name="bnwd")
