"""Options that several commands share. The options of a run are generated from the fields of `RunConfig`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from empirical.cli.application import name_options
from empirical.config import CHOICES, RunConfig

if TYPE_CHECKING:
    from simulate.period_model.model import PeriodModel


def complete_from(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes the value of an option; it calls `find` only when the shell asks."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in find() if value.startswith(incomplete)]

    return complete


_FIELDS = {f.name: f for f in dataclasses.fields(RunConfig)}
# settings that the command line writes in another way than Python
_TYPES = {**get_type_hints(RunConfig), "lr": float, "optimizer": str, "classes": list[int] | None}
_PANELS = {
    f.name: f"{part.__name__.removesuffix('Settings')} options"
    for part in RunConfig.__bases__
    for f in dataclasses.fields(part)
}
_TEXTS = {
    name: " ".join(text.split())
    for name, text in re.findall(r"^(\w+) : (.*(?:\n .*)*)", inspect.getdoc(RunConfig) or "", re.MULTILINE)
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str) -> str:
    """First sentence about a setting in the docstring of `RunConfig`, with options in place of settings."""
    sentence = re.split(r"(?<=\.) ", _TEXTS.get(name, ""))[0]
    sentence = re.sub(r"`(.*?)`", lambda word: _flag(word[1]) if word[1] in _FIELDS else word[1], sentence)
    # allowed words are shown without quotes, and keep their case
    text = sentence if sentence.startswith('"') else sentence[:1].upper() + sentence[1:]
    return text.replace('"', "") + (" Repeat the option for more." if name == "classes" else "")


def setting_option(name: str, panel: str | None = None) -> Any:
    """Return the option of one setting of `RunConfig`."""
    is_on = _FIELDS[name].default is True
    return typer.Option(
        f"{_flag(name)}/--no-{_flag(name)[2:]}" if is_on else _flag(name),
        help=_help(name),
        autocompletion=complete_from(lambda: CHOICES[name]) if name in CHOICES else None,
        rich_help_panel=panel,
    )


LearningRate = Annotated[float, setting_option("lr")]
WeightDecay = Annotated[float, setting_option("wd")]
GRADIENT_NORM_HELP = "Effective gradient norm g̃ = ρ‖∇‖: weight norm times gradient norm."
GradientNorm = Annotated[float, typer.Option(help=GRADIENT_NORM_HELP)]
optimizer_option = typer.Option(
    "--optimizer",
    help='For example "SGD(momentum=0.9)", "AdamW(dim=4096)" with dim the number of scale-invariant weights, or '
    '"module:Class()" for your own.',
    rich_help_panel=_PANELS["optimizer"],
)
REFERENCE = "reference"  # word for the period model of the package


def load_period_model(path: Path) -> PeriodModel:
    """Load the file of a period model, or that of the package."""
    from simulate.period_model.model import PeriodModel

    with name_options(path="--period-model"):
        return PeriodModel.reference() if str(path) == REFERENCE else PeriodModel.load(path)


Out = Annotated[Path | None, typer.Option(help="Folder for the result. It must not exist yet.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes. Default: one per processor.")]


def _setting_parameter(name: str) -> inspect.Parameter:
    """Parameter of a command, with the type and the default of a setting."""
    field = _FIELDS[name]
    # only the optimizer has a factory
    default: Any = field.default if field.default_factory is dataclasses.MISSING else str(field.default_factory())
    option = optimizer_option if name == "optimizer" else setting_option(name, _PANELS[name])
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        annotation=Annotated[_TYPES[name], option],
    )


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with `**settings`: give it the options of these settings of `RunConfig`, or of all."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "settings"]
        settings = [_setting_parameter(name) for name in names or _FIELDS]
        command.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
        return command

    return decorate
