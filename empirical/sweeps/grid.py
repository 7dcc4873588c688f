"""Build grids and lists of runs from keywords or from a file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from empirical.config import RunConfig, from_plain
from theory.arguments import check_choice, check_items, check_path, quote
from theory.optimizers import check_optimizer

_TABLES = ("run", "grid", "runs")


def grid(**settings: Any) -> tuple[RunConfig, ...]:
    """Build the runs of all combinations of settings.

    Parameters
    ----------
    settings : fields of `RunConfig`. A list, range or array has the values of a swept setting. Anything else, even a
        tuple, is the value of all runs. An optimizer may be written as "SGD(momentum=0.9)".

    Returns
    -------
    One RunConfig per combination. The last swept setting varies fastest.

    Raises
    ------
    TypeError, ValueError : unknown field, empty list, setting out of range, or the same run twice.

    Examples
    --------
    >>> [(run.lr, run.seed) for run in grid(lr=[0.1, 0.5], wd=0.01, seed=range(2))]
    [(0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1)]
    """
    axes = []
    for name, setting in settings.items():
        check_choice("setting", name, [field.name for field in dataclasses.fields(RunConfig)])
        values = list(setting) if isinstance(setting, (list, range, np.ndarray)) else [setting]
        if not values:
            raise ValueError(f"{name} must have at least one value, got {quote(setting)}")
        axes.append([(name, _parse_value(name, value)) for value in values])
    return check_different(RunConfig(**dict(combination)) for combination in itertools.product(*axes))


def check_different(configs: Iterable[RunConfig]) -> tuple[RunConfig, ...]:
    """Check that there are runs, and that they differ in more than steps and device; return them."""
    by_identity: dict[str, RunConfig] = {}
    for config in check_items("configs", configs):
        if not isinstance(config, RunConfig):
            raise TypeError(f"configs must hold RunConfigs only, got {type(config).__name__}")
        if config.identity in by_identity:
            raise ValueError(f"configs must be different runs (steps and device do not count), got twice: {config}")
        by_identity[config.identity] = config
    if not by_identity:
        raise ValueError("configs must hold at least one RunConfig, got none")
    return tuple(by_identity.values())


def read_sweep(path: str | os.PathLike[str]) -> tuple[RunConfig, ...]:
    r"""Read the runs described by a TOML file.

    Parameters
    ----------
    path : TOML file. Table `run` has the settings of all runs. Table `grid` has lists of values to combine.
        Alternatively, `runs` is an array of tables, one per run. Write batch_size or batch-size. A schedule is a table,
        e.g. lr = {Constant = {lr = 0.5}}.

    Raises
    ------
    ValueError : missing file, invalid TOML, unknown table, or settings that `grid` rejects. The message names the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "sweep.toml"
    >>> _ = file.write_text('[run]\nwd = 0.01\noptimizer = "SGD(momentum=0.9)"\n[grid]\nlr = [0.1, 0.5]\n')
    >>> [(run.lr, run.optimizer) for run in read_sweep(file)]
    [(0.1, SGD(momentum=0.9)), (0.5, SGD(momentum=0.9))]
    """
    file = check_path("path", path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return _parse_sweep(content)
    except OSError as error:
        raise ValueError(f"path must be a TOML file, got {str(path)!r}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parse_sweep(content: Mapping[str, Any]) -> tuple[RunConfig, ...]:
    for name in content:
        check_choice("table", name, _TABLES)
    if "grid" in content and "runs" in content:
        raise ValueError("a sweep must have either the table [grid] or tables [[runs]], got both")
    common, axes = (_parse_table(name, content.get(name, {})) for name in ("run", "grid"))
    tables = content.get("runs", [{}])
    if not isinstance(tables, list):
        raise ValueError(f"runs must be tables [[runs]], got {quote(tables)}")
    for name, values in axes.items():
        if not isinstance(values, list):
            raise ValueError(f"grid.{name} must be a list of values, got {quote(values)}")
    runs: list[RunConfig] = []
    for own in (_parse_table("runs", table) for table in tables):
        _check_given_once(common, own)
        _check_given_once(common, axes)
        # in a file, a list outside of [grid] is one value, e.g. of classes
        single = {name: tuple(value) if isinstance(value, list) else value for name, value in {**common, **own}.items()}
        runs += grid(**single, **axes)
    return check_different(runs)


def _parse_table(table: str, content: Any) -> dict[str, Any]:
    """Return the settings of a table by their Python names."""
    if not isinstance(content, dict):
        raise ValueError(f"{table} must be a table of settings, got {quote(content)}")
    settings: dict[str, Any] = {}
    for written, value in content.items():
        name = written.replace("-", "_")
        if name in settings:
            raise ValueError(
                f"{name} must be given once in the table {table}, got it with a hyphen and with an underscore"
            )
        settings[name] = value
    return settings


def _check_given_once(common: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if repeated := sorted(common.keys() & own.keys()):
        raise ValueError(f"{', '.join(repeated)} must be given once, got it in [run] and again in [grid] or [[runs]]")


def _parse_value(name: str, value: Any) -> Any:
    if name == "optimizer" and isinstance(value, str):
        return check_optimizer(value)
    if isinstance(value, dict):
        return from_plain(value)
    if name == "classes" and isinstance(value, list):
        return tuple(value)
    return value.item() if isinstance(value, np.generic) else value


def swept_settings(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ, with their values in order. `steps` and `device` do not count."""
    values: dict[str, list[Any]] = {}
    for field in dataclasses.fields(RunConfig):
        distinct = list(dict.fromkeys(setting_value(config, field.name) for config in configs))
        # a default width or depth differs only because the models differ
        is_set = any(getattr(config, field.name) is not None for config in configs)
        if len(distinct) > 1 and is_set and field.name not in ("steps", "device"):
            values[field.name] = distinct
    return values


def setting_value(config: RunConfig, name: str) -> Any:
    """Return a setting of a run for comparison with other runs: width and depth with their defaults filled in."""
    resolved = {"width": config.resolved_width, "depth": config.resolved_depth}
    return resolved.get(name, getattr(config, name))
