"""Shared by all commands: the application, its settings file, and errors in one line."""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from empirical.reports.tables import Cell, Table
from theory._version import __version__
from theory.arguments import check_choice, quote


class CommandGroup(TyperGroup):
    """Group of commands that reports every error in one line on stderr, with an exit code."""

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Parse the arguments and run the command."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(arguments, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            # as in `bnwd … | head`; the interpreter must not write to the closed pipe when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except SystemExit as error:
            # rich, which prints the help, ends with code 1 after a broken pipe
            code = 0 if isinstance(error.__context__, BrokenPipeError) else error.code
        except typer.TyperException as error:
            if not standalone_mode:
                raise
            typer.echo(f"bnwd: {_usage_error(error, arguments)}", err=True)
            code = 2
        return sys.exit(code or 0) if standalone_mode else code

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and report errors of its arguments and of its work."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _print_warning  # type: ignore[assignment]
                return super().invoke(ctx)
        except (ValueError, TypeError) as error:
            message, code = self._name_option(str(error), ctx), 2
        except KeyboardInterrupt as error:
            message, code = str(error) or "interrupted", 130
        except (typer.Exit, typer.Abort):
            raise
        except MemoryError as error:
            message, code = f"not enough memory ({error}); use fewer steps, rows or samples", 1
        except BrokenPipeError:
            raise
        except (RuntimeError, OSError, ImportError) as error:
            message, code = str(error), 1
        typer.echo(f"bnwd: {message}", err=True)
        raise typer.Exit(code)

    def _name_option(self, message: str, ctx: Any) -> str:
        """Replace the name of an argument at the start of an error message by that of its option."""
        invoked = self.commands.get(ctx.invoked_subcommand)
        for parameter in [] if invoked is None else invoked.params:
            if message.startswith(f"{parameter.name} must ") and parameter.param_type_name == "option":
                return parameter.opts[0] + message.removeprefix(str(parameter.name))
        return message


def _print_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"bnwd: warning: {message}", err=True)


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
        message = f"{option.opts[0]} {requirement}, got {quote(values[-1])}{source}"
    if context is None:
        return message
    if message.startswith("No such option: --momentum") and "--optimizer" in _options(context.command):
        message += ': write --optimizer "SGD(momentum=0.9)"'
    return f"{message}; see {context.command_path} --help"


def _options(shown: Any) -> list[str]:
    return [option for parameter in shown.params for option in parameter.opts]


def _option_values(arguments: Sequence[str], name: str, count: int) -> Iterator[str]:
    for index, word in enumerate(arguments):
        if word == name:
            yield " ".join(arguments[index + 1 : index + 1 + count])
        elif word.startswith(f"{name}="):
            yield word.removeprefix(f"{name}=")


class CommandWithPanels(TyperCommand):
    """Command whose help has a section for each panel of options. Typer has panels only with its rich markup."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, section by section."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


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


def command(name: str, summary: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a function that is a command. Its help ends with an example."""
    return app.command(name, cls=CommandWithPanels, short_help=summary, epilog=f"Example: bnwd {name} {example}")


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


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"bnwd {__version__}")
        raise typer.Exit


@app.callback()
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
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the settings file, if there is one. Without a command, print the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    # 'module:name' may refer to a module in the current folder
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if config is not None:
        context.default_map = _read_settings_file(config, context)


def _read_settings_file(path: Path, context: typer.Context) -> dict[str, dict[str, Any]]:
    """Read options of commands from a TOML file. Keys are the parameter names that click uses."""
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


def print_table(rows: Sequence[Sequence[Cell | str]], columns: Sequence[str] = ()) -> None:
    """Print rows of cells, with aligned columns."""
    typer.echo(Table(columns, rows).text())
