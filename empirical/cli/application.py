"""What all commands share: the application, its settings file, options, and errors in one line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from theory._version import __version__
from theory.arguments import check_choice


class Commands(TyperGroup):
    """The commands, with errors in how they are called in one line too."""

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Parse the arguments and run the command."""
        given = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(given, standalone_mode=False, **extra)
        try:
            code = super().main(given, standalone_mode=False, **extra)
        except typer.TyperException as error:
            typer.echo(f"bnwd: {_misuse(error, given)}", err=True)
            code = 2
        sys.exit(code or 0)


def _misuse(error: typer.TyperException, given: Sequence[str]) -> str:
    """What is wrong with the arguments, and where to read how it is right."""
    context: Any = getattr(error, "ctx", None)
    option: Any = getattr(error, "param", None)
    message = error.format_message().rstrip(".")
    if option is not None and message.startswith("Invalid value"):
        values: list[Any] = [value for name in option.opts for value in _values(given, name, option.nargs)]
        place = ""
        if not values:
            values, place = [(context.default_map or {}).get(option.name)], f" in {context.parent.params['config']}"
        wanted = error.message.replace("Input should be", "must be").partition(", ")[0]
        message = f"{option.opts[0]} {wanted}, got {values[-1]!r}{place}"
    return message if context is None else f"{message}; see {context.command_path} --help"


def _values(given: Sequence[str], name: str, count: int) -> Iterator[str]:
    for place, word in enumerate(given):
        if word == name:
            yield " ".join(given[place + 1 : place + 1 + count])
        elif word.startswith(f"{name}="):
            yield word.removeprefix(f"{name}=")


app = typer.Typer(
    name="bnwd",
    cls=Commands,
    help="Dynamics of neural-network training with normalization and weight decay: predict it, simulate it, train.",
    epilog="Exit codes: 0 done, 1 a claim or run failed, 2 bad input, 130 interrupted. "
    "Example: bnwd predict --lr 0.5 --wd 0.01",
    invoke_without_command=True,
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
        except MemoryError as error:
            message, code = f"not enough memory ({error}); take fewer steps, rows or samples", 1
        except (RuntimeError, OSError, ImportError) as error:
            message, code = str(error), 1
        else:
            return
        typer.echo(f"bnwd: {message}", err=True)
        raise typer.Exit(code)

    return reported


@contextlib.contextmanager
def naming(**options: str) -> Iterator[None]:
    """Let errors name the option of the command line in place of the argument that it is given to."""
    try:
        yield
    except (ValueError, TypeError) as error:
        message = str(error)
        for argument, option in options.items():
            message = message.replace(f"`{argument}`", option)
            if message.startswith(f"{argument} must "):
                message = option + message.removeprefix(argument)
        if message == str(error):
            raise
        # not of a subclass, which may want more than a message
        raise (ValueError if isinstance(error, ValueError) else TypeError)(message) from None


def completed_from(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What the shell completes the value of an option from; called when it does."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in find() if value.startswith(incomplete)]

    return complete


def completed_from_config(name: str) -> Callable[[str], list[str]]:
    """What the shell completes the value of an option from, by the name of a table of `empirical.config`."""
    return completed_from(lambda: getattr(importlib.import_module("empirical.config"), name))


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
    """Read the settings file, if there is one; without a command, show the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
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
        check_choice("config", command, list(commands))
        if not isinstance(table, dict):
            raise ValueError(f"config must hold tables such as [{command}], got {command} = {table!r}")
        names = {
            option.lstrip("-").replace("-", "_"): parameter.name
            for parameter in commands[command].params
            for option in parameter.opts
        }
        found[command] = {
            names[check_choice(f"config [{command}]", option.replace("-", "_"), list(names))]: value
            for option, value in table.items()
        }
    return found


LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate η > 0.")]
WeightDecay = Annotated[
    float,
    typer.Option("--wd", help="Weight decay λ >= 0, as in torch.optim: decoupled for AdamW and Lion, else coupled."),
]
GradientNorm = Annotated[
    float, typer.Option(help="Gradient norm g̃ of the loss at weights of norm 1 (norm times gradient norm).")
]
OptimizerName = Annotated[
    str,
    typer.Option(
        "--optimizer",
        help='Such as "SGD(momentum=0.9)" or "AdamW(dim=4096)", dim: number of scale-invariant weights; or '
        '"module:Class()".',
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the result; must be new.")]
