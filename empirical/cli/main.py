"""The command `bnwd`."""

from __future__ import annotations

# importing them is what makes their commands known
from empirical.cli import formulas, reading, studies, training  # noqa: F401
from empirical.cli.application import app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0 done, 1 a claim or run failed, 2 bad input, 130 interrupted.

    Parameters
    ----------
    arguments : those of the command line by default.

    Examples
    --------
    >>> main(["predict", "--lr", "0.5", "--wd", "-1"])
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    app(args=arguments, prog_name="bnwd")
