"""Shared by all commands: the application, its settings file, common options, and errors in one line."""

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


class CommandGroup(TyperGroup):
    """Group of commands that reports a wrong option or argument in one line."""

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Parse the arguments and run the command."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(arguments, standalone_mode=False, **extra)
        try:
            code = super().main(arguments, standalone_mode=False, **extra)
        except typer.TyperException as error:
            typer.echo(f"bnwd: {_usage_error(error, arguments)}", err=True)
            code = 2
        sys.exit(code or 0)


def _usage_error(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return a message that says which argument is wrong and which help text explains it."""
    context: Any = getattr(error, "ctx", None)
    option: Any = getattr(error, "param", None)
    message = error.format_message().rstrip(".")
    if option is not None and message.startswith("Invalid value"):
        values: list[Any] = [value for name in option.opts for value in _option_values(arguments, name, option.nargs)]
        source = ""
        if not values:
            values, source = [(context.default_map or {}).get(option.name)], f" in {context.parent.params['config']}"
        requirement = error.message.replace("Input should be", "must be").partition(", ")[0]
        message = f"{option.opts[0]} {requirement}, got {values[-1]!r}{source}"
    return message if context is None else f"{message}; see {context.command_path} --help"


def _option_values(arguments: Sequence[str], name: str, count: int) -> Iterator[str]:
    for index, word in enumerate(arguments):
        if word == name:
            yield " ".join(arguments[index + 1 : index + 1 + count])
        elif word.startswith(f"{name}="):
            yield word.removeprefix(f"{name}=")


app = typer.Typer(
    name="bnwd",
    cls=CommandGroup,
    help="Predict, simulate and measure how network weights evolve under normalization and weight decay.",
    epilog="Exit codes: 0 success, 1 a claim or run failed, 2 invalid input, 130 interrupted. "
    "Example: bnwd predict --lr 0.5 --wd 0.01",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that an error becomes one line on stderr and an exit code."""

    @functools.wraps(command)
    def command_with_reports(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (ValueError, TypeError) as error:
            message, code = str(error), 2
        except KeyboardInterrupt as error:
            message, code = str(error) or "interrupted", 130
        except (typer.Exit, typer.Abort):
            raise
        except MemoryError as error:
            message, code = f"not enough memory ({error}); use fewer steps, rows or samples", 1
        except (RuntimeError, OSError, ImportError) as error:
            message, code = str(error), 1
        else:
            return
        typer.echo(f"bnwd: {message}", err=True)
        raise typer.Exit(code)

    return command_with_reports


@contextlib.contextmanager
def name_options(**options: str) -> Iterator[None]:
    """Replace names of arguments by names of command-line options in error messages."""
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
        # not the subclass: its constructor may need more than a message
        raise (ValueError if isinstance(error, ValueError) else TypeError)(message) from None


def complete_from(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes the value of an option; it calls `find` only when the shell asks."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in find() if value.startswith(incomplete)]

    return complete


def complete_from_config(name: str) -> Callable[[str], list[str]]:
    """Return a function that completes the value of an option from a table of `empirical.config`."""
    return complete_from(lambda: getattr(importlib.import_module("empirical.config"), name))


def allow_local_modules() -> None:
    """Append the current folder to the import path, so that 'module:name' may refer to a module in it."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def print_version(is_requested: bool) -> None:
    """Print the version and exit, if it is requested."""
    if is_requested:
        typer.echo(f"bnwd {__version__}")
        raise typer.Exit


@app.callback()
@report_errors
def read_global_options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with default options: one table per command, e.g. [train] with lr = 0.5. Options on the "
            "command line override it. Write --config before the command."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the settings file, if there is one. Without a command, print the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    if config is not None:
        context.default_map = read_settings_file(config, context)


def read_settings_file(path: Path, context: typer.Context) -> dict[str, dict[str, Any]]:
    """Read options of commands from a TOML file. Keys are the parameter names that click uses.

    Raises
    ------
    ValueError : the file does not exist, is not valid TOML, or names an unknown command or option.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config must be a TOML file, got {str(path)!r}: {error}") from None
    commands: dict[str, Any] = getattr(context.command, "commands")  # noqa: B009
    settings: dict[str, dict[str, Any]] = {}
    for command, table in content.items():
        check_choice("config", command, list(commands))
        if not isinstance(table, dict):
            raise ValueError(f"config must contain tables such as [{command}], got {command} = {table!r}")
        names = {
            option.lstrip("-").replace("-", "_"): parameter.name
            for parameter in commands[command].params
            for option in parameter.opts
        }
        settings[command] = {
            names[check_choice(f"config [{command}]", option.replace("-", "_"), list(names))]: value
            for option, value in table.items()
        }
    return settings


LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate η > 0.")]
WeightDecay = Annotated[
    float,
    typer.Option(
        "--wd", help="Weight decay λ >= 0, as in torch.optim: decoupled for AdamW and Lion, coupled otherwise."
    ),
]
GradientNorm = Annotated[float, typer.Option(help="Effective gradient norm g̃ = ρ‖∇‖: weight norm times gradient norm.")]
OptimizerName = Annotated[
    str,
    typer.Option(
        "--optimizer",
        help='For example "SGD(momentum=0.9)", "AdamW(dim=4096)" with dim the number of scale-invariant weights, or '
        '"module:Class()" for your own.',
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the result. It must not exist yet.")]
