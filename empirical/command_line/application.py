"""What all commands share: the application, its settings file, options, and errors in one line."""

from __future__ import annotations

import functools
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from theory._version import __version__
from theory.arguments import choice

app = typer.Typer(
    name="bnwd",
    help="Dynamics of neural-network training with normalization and weight decay: predict it, simulate it, train.",
    epilog="Exit codes: 0 done, 1 a claim or run failed, 2 bad input, 130 interrupted. "
    "Example: bnwd predict --lr 0.5 --wd 0.01",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def errors_in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors of a command into one line on stderr and an exit code."""

    @functools.wraps(command)
    def reported(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (ValueError, TypeError) as error:
            message, code = str(error), 2
        except KeyboardInterrupt as error:
            message, code = str(error) or "interrupted", 130
        except (typer.Exit, typer.Abort):
            raise
        except (RuntimeError, OSError, ImportError) as error:
            message, code = str(error), 1
        else:
            return
        typer.echo(f"bnwd: {message}", err=True)
        raise typer.Exit(code)

    return reported


def find_modules_here() -> None:
    """Let a 'module:name' be looked for in the current folder too, after everything that is installed."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def print_version(wanted: bool) -> None:
    """Print the version, if it is wanted, and end."""
    if wanted:
        typer.echo(f"bnwd {__version__}")
        raise typer.Exit


@app.callback()
@errors_in_one_line
def settings(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Before the command: TOML file with a table for each command and its options in it, such as [train] "
            "with lr = 0.5; options on the command line come first."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the settings file, if there is one."""
    if config is not None:
        context.default_map = read_settings(config, context)


def read_settings(path: Path, context: typer.Context) -> dict[str, dict[str, Any]]:
    """Options of commands from a TOML file, by the names that click has for them.

    Raises
    ------
    ValueError : there is no such file, it is no TOML, or names no command or option that there is.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config must be a TOML file, got {str(path)!r}: {error}") from None
    commands: dict[str, Any] = getattr(context.command, "commands")  # noqa: B009
    found: dict[str, dict[str, Any]] = {}
    for command, table in content.items():
        choice("config", command, list(commands))
        if not isinstance(table, dict):
            raise ValueError(f"config must hold tables such as [{command}], got {command} = {table!r}")
        names = {
            option.lstrip("-").replace("-", "_"): parameter.name
            for parameter in commands[command].params
            for option in parameter.opts
        }
        found[command] = {
            names[choice(f"config [{command}]", option.replace("-", "_"), list(names))]: value
            for option, value in table.items()
        }
    return found


LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate η > 0.")]
WeightDecay = Annotated[float, typer.Option("--wd", help="Weight decay λ >= 0 (coupled, as in torch.optim.SGD).")]
GradientNorm = Annotated[
    float, typer.Option(help="Gradient norm g̃ of the loss at weights of norm 1 (norm times gradient norm).")
]
OptimizerName = Annotated[
    str,
    typer.Option(
        "--optimizer",
        help='Such as "SGD(momentum=0.9)" or "AdamW(dim=4096)", dim: number of weights; or "module:Class()".',
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the result; must be new.")]
