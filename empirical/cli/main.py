"""The command `bnwd`."""

from __future__ import annotations

# the imports register the commands
from empirical.cli import formulas, reading, studies, training  # noqa: F401
from empirical.cli.application import app


def run_command_line(arguments: list[str] | None = None) -> None:
    """Run `bnwd`: exit code 0 success, 1 a claim or run failed, 2 invalid input, 130 interrupted.

    Parameters
    ----------
    arguments : words after `bnwd`. Default: those of the command line.

    Examples
    --------
    >>> run_command_line(["predict", "--lr", "0.5", "--wd", "-1"])
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    app(args=arguments, prog_name="bnwd")
