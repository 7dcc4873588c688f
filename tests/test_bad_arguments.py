"""Random bad arguments for every public name: only one-line errors that name an argument, and no other exception."""

import contextlib
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import empirical
import simulate
import theory
from empirical.runs import loop
from empirical.sweeps import workers
from empirical.sweeps.sweep import _SweepRunner
from simulate.explorer import page

# they train for minutes or start processes; here both only raise `WorkBeginsError`
STARTS_WORK = {
    "calibrate",
    "draw_figures",
    "judge_claims",
    "successive_minima",
    "sweep",
    "train",
    "validate",
    "validate_held_out",
    "write_explorer_page",
}
RUN = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 3.0), norm=1.0, steps=80, seed=0)
NET = torch.nn.Sequential(torch.nn.Linear(4, 5, bias=False), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
# what makes sense for an argument of this name, so that the others are reached
USUAL = {
    "configs": [empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=5)],
    "config": empirical.RunConfig(lr=0.5, wd=0.02, width=4, steps=5),
    "delta": 0.1,
    "dim": 8,
    "eps": 1e-5,
    "grad_norm": 2.0,
    "grad_norm_max": 2.0,
    "grad_norm_min": 1.0,
    "inputs": torch.zeros(4, 4),
    "landscape": simulate.Ratio2D(),
    "log": RUN,
    "lr": 0.1,
    "lr_to": 0.2,
    "model": NET,
    "module": NET,
    "momentum": 0.5,
    "norm": 2.0,
    "norm_to": 1.0,
    "optimizer": "SGD()",
    "out": "out",
    "path": "page.html",
    "progress": False,
    "ratio": 2.0,
    "relaxations": 5.0,
    "rise": 0.1,
    "run": RUN,
    "schedule": theory.Cosine(0.1, 0.01, 10),
    "seed": 0,
    "sharpness": 2.0,
    "step": 3.0,
    "steps": 5,
    "steps_left": 10,
    "time": 5.0,
    "tolerance": 0.5,
    "trajectory": RUN,
    "variance": 0.5,
    "walkers": 2,
    "wd": 0.01,
}
# names in messages for arguments that may be paths, and for settings that a trajectory has
ALSO_NAMED = {"path", "trajectory", "log"}


class Contrary:
    """Object that refuses to be an array or a text."""

    def __array__(self, *_, **__):
        raise RuntimeError("no array")

    def __repr__(self):
        raise RuntimeError("no text")


BAD = [
    lambda: torch.tensor(0.1, requires_grad=True),
    lambda: torch.ones(3, device="meta"),
    lambda: 10**39,
    lambda: -(10**30),
    lambda: 2**63,
    lambda: -1,
    lambda: 0,
    lambda: True,
    lambda: math.nan,
    lambda: math.inf,
    lambda: 1e308,
    lambda: 1e-320,
    lambda: 1j,
    lambda: "x",
    lambda: "a\nb",
    lambda: "\ud800",
    lambda: "x" * 10_000,
    lambda: b"x",
    lambda: None,
    list,
    lambda: (),
    dict,
    lambda: {"a": 1},
    lambda: range(3),
    lambda: slice(3),
    lambda: object,
    lambda: object(),
    Contrary,
    lambda: lambda x: x,
    lambda: [0.1, "x"],
    lambda: [[1.0], [1.0, 2.0]],
    lambda: np.array([]),
    lambda: np.array([math.nan, 1.0]),
    lambda: np.zeros((2, 3)),
    lambda: np.array([1 + 1j]),
    lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: np.datetime64("2020-01-01"),
    lambda: xr.Dataset(),
    lambda: RUN.isel(step=slice(0, 0)),
    lambda: RUN.drop_vars("norm"),
    lambda: NET,
]


def public_calls():
    for package in (theory, simulate, empirical):
        for name in package.__all__:
            value = getattr(package, name)
            is_error = isinstance(value, type) and issubclass(value, BaseException)
            if is_error or not callable(value):
                continue
            yield pytest.param(value, id=f"{package.__name__}.{name}")


def parameters_of(value):
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


class WorkBeginsError(Exception):
    """All arguments were accepted."""


def begin_work(*_, **__):
    raise WorkBeginsError


@pytest.fixture
def no_work(monkeypatch):
    """Raise `WorkBeginsError` instead of training and of starting processes."""
    monkeypatch.setattr(loop, "_train_in", begin_work)
    monkeypatch.setattr(workers, "_connect", begin_work)
    monkeypatch.setattr(_SweepRunner, "run", begin_work)
    monkeypatch.setattr(page, "equilibrium_values", begin_work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", sorted(STARTS_WORK))
def test_usual_arguments_begin_the_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(empirical, name, None) or getattr(simulate, name)
    usual = USUAL | {"model": "mlp"}
    needed = {p.name: usual[p.name] for p in parameters_of(function) if p.default is p.empty}
    with pytest.raises(WorkBeginsError):
        function(**needed)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("function", list(public_calls()))
def test_bad_arguments_are_named(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = parameters_of(function)
    generator = np.random.default_rng(sum(map(ord, function.__name__)))

    def bad():
        return BAD[int(generator.integers(len(BAD)))]()

    for _ in range(60 if parameters else 0):
        arguments = {
            p.name: USUAL[p.name] if p.name in USUAL and generator.random() < 0.7 else bad()
            for p in parameters
            if p.default is p.empty or generator.random() < 0.25
        }
        arguments[parameters[int(generator.integers(len(parameters)))].name] = bad()
        try:
            with warnings.catch_warnings(), contextlib.suppress(WorkBeginsError):
                warnings.simplefilter("ignore")
                function(**arguments)
        except (TypeError, ValueError) as error:
            message = str(error)
            assert "\n" not in message, message
            assert any(name in message for name in {p.name for p in parameters} | ALSO_NAMED), message
