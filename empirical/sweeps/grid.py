"""Grids and lists of runs, from keywords or from a file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from empirical.config import RunConfig, from_plain
from theory.arguments import check_choice
from theory.optimizers import parse_optimizer

_TABLES = ("run", "grid", "runs")


def grid(**settings: Any) -> tuple[RunConfig, ...]:
    """Runs of all combinations of settings.

    Parameters
    ----------
    settings : fields of `RunConfig`. A list, range or array holds the values of a swept setting; anything else, tuples
        included, is the value of all runs. An optimizer may be written as "SGD(momentum=0.9)".

    Returns
    -------
    RunConfigs; the last setting that is swept varies fastest.

    Raises
    ------
    TypeError, ValueError : no field of this name, an empty list, a setting out of range, or the same run twice.

    Examples
    --------
    >>> [(run.lr, run.seed) for run in grid(lr=[0.1, 0.5], wd=0.01, seed=range(2))]
    [(0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1)]
    """
    axes = []
    for name, given in settings.items():
        check_choice("setting", name, [field.name for field in dataclasses.fields(RunConfig)])
        values = list(given) if isinstance(given, (list, range, np.ndarray)) else [given]
        if not values:
            raise ValueError(f"{name} must have at least one value, got {given!r}")
        axes.append([(name, _value(name, value)) for value in values])
    return different(RunConfig(**dict(combination)) for combination in itertools.product(*axes))


def different(configs: Iterable[RunConfig]) -> tuple[RunConfig, ...]:
    """Check that no run is there twice.

    Raises
    ------
    TypeError, ValueError : something is no RunConfig, there is none, or two are the same run but for their number of
        steps.

    Examples
    --------
    >>> len(different([RunConfig(lr=0.1, wd=0.01), RunConfig(lr=0.2, wd=0.01)]))
    2
    """
    found: dict[str, RunConfig] = {}
    for config in configs:
        if not isinstance(config, RunConfig):
            raise TypeError(f"configs must hold RunConfigs only, got {type(config).__name__}")
        if config.identity in found:
            raise ValueError(f"configs must be different runs, got twice (but for steps and device) {config}")
        found[config.identity] = config
    if not found:
        raise ValueError("configs must hold at least one RunConfig, got none")
    return tuple(found.values())


def read_sweep(path: str | os.PathLike[str]) -> tuple[RunConfig, ...]:
    r"""Runs described by a TOML file.

    Parameters
    ----------
    path : a file with the tables `run` (settings of all runs), `grid` (lists of values, all combinations of which are
        run), or `runs` (an array of tables, each one run). Settings are written batch_size or batch-size. A schedule is
        a table of its own, such as lr = {Constant = {lr = 0.5}}.

    Raises
    ------
    ValueError : no such file, no TOML, another table, or settings that `grid` refuses; the message names the file.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "sweep.toml"
    >>> _ = file.write_text('[run]\nwd = 0.01\noptimizer = "SGD(momentum=0.9)"\n[grid]\nlr = [0.1, 0.5]\n')
    >>> [(run.lr, run.optimizer) for run in read_sweep(file)]
    [(0.1, SGD(momentum=0.9)), (0.5, SGD(momentum=0.9))]
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return _described(content)
    except OSError as error:
        raise ValueError(f"path must be a TOML file, got {str(path)!r}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _described(content: Mapping[str, Any]) -> tuple[RunConfig, ...]:
    for name in content:
        check_choice("table", name, _TABLES)
    if "grid" in content and "runs" in content:
        raise ValueError("a sweep must have the table grid or the tables runs, got both")
    common, axes = (_settings(name, content.get(name, {})) for name in ("run", "grid"))
    listed = content.get("runs", [{}])
    if not isinstance(listed, list):
        raise ValueError(f"runs must be tables [[runs]], got {listed!r}")
    for name, values in axes.items():
        if not isinstance(values, list):
            raise ValueError(f"grid.{name} must be a list of values, got {values!r}")
    runs: list[RunConfig] = []
    for own in (_settings("runs", each) for each in listed):
        _refuse_twice(common, own)
        _refuse_twice(common, axes)
        # what is no axis of a file is one value, lists (of classes) included
        single = {name: tuple(value) if isinstance(value, list) else value for name, value in {**common, **own}.items()}
        runs += grid(**single, **axes)
    return different(runs)


def _settings(table: str, content: Any) -> dict[str, Any]:
    """Settings of a table by the names that they have in Python."""
    if not isinstance(content, dict):
        raise ValueError(f"{table} must be a table of settings, got {content!r}")
    found: dict[str, Any] = {}
    for written, value in content.items():
        name = written.replace("-", "_")
        if name in found:
            raise ValueError(f"{name} must be given once in the table {table}, got it with hyphen and underscore")
        found[name] = value
    return found


def _refuse_twice(common: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if twice := sorted(common.keys() & own.keys()):
        raise ValueError(f"{', '.join(twice)} must be given once, got it for all runs and for some")


def _value(name: str, value: Any) -> Any:
    if name == "optimizer" and isinstance(value, str):
        return parse_optimizer(value)
    if isinstance(value, dict):
        return from_plain(value)
    if name == "classes" and isinstance(value, list):
        return tuple(value)
    return value.item() if isinstance(value, np.generic) else value


def swept(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """Settings in which runs differ, with their values in order of appearance; `steps` and `device` do not count.

    Examples
    --------
    >>> swept(grid(lr=[0.1, 0.5], wd=0.01, seed=range(2)))
    {'lr': [0.1, 0.5], 'seed': [0, 1]}
    """
    values: dict[str, list[Any]] = {}
    for field in dataclasses.fields(RunConfig):
        found = list(dict.fromkeys(swept_value(config, field.name) for config in configs))
        # a width or depth that nobody gave differs only because the models do
        is_given = any(getattr(config, field.name) is not None for config in configs)
        if len(found) > 1 and is_given and field.name not in ("steps", "device"):
            values[field.name] = found
    return values


def swept_value(config: RunConfig, name: str) -> Any:
    """Setting of a run as it is compared with that of others: width and depth with the defaults filled in.

    Examples
    --------
    >>> swept_value(RunConfig(lr=0.1, wd=0.01), "width")
    64
    """
    resolved = {"width": config.resolved_width, "depth": config.resolved_depth}
    return resolved.get(name, getattr(config, name))
