"""Warnings have the file and line of the code that called the package, however deep in it they arise."""

import inspect
import warnings

import numpy as np
import pytest
import xarray as xr

import simulate
from simulate.period_model.model import simulated_periods
from theory.arguments import warn_user

MODEL = simulate.PeriodModel.reference()
RUN = simulate.oscillate(0.5, 0.02, steps=4000)
SPARSE = simulate.norm_map(0.5, 0.02, simulate.BoundedGradient(1.0, 2.0), norm=1.0, steps=4000, record_every=50, seed=0)
# rises of 0.2 in ln ρ, while weight decay alone makes it fall by 10 in a period
STEP = np.arange(10_000)
SLOW = xr.Dataset({"norm": ("step", np.exp(abs(STEP % 1000 - 500) / 2500))}, {"step": STEP}, {"lr": 0.1, "wd": 0.1})
OUTSIDE = r"outside the range of the model"
CALLS = {
    "predict": (lambda: MODEL.predict(0.5, 0.05), OUTSIDE),
    "simulated_periods": (lambda: simulated_periods(MODEL, 0.5, 0.05), OUTSIDE),
    "oscillate of a model": (lambda: MODEL.oscillate(0.5, [0.02, 0.05], steps=10), OUTSIDE),
    "period": (lambda: simulate.period(0.5, 0.05), OUTSIDE),
    "oscillate": (lambda: simulate.oscillate(0.5, 0.05, steps=10), OUTSIDE),
    "phase_diagram": (lambda: simulate.phase_diagram(0.5, [0.02, 0.05], model=MODEL, relaxations=5), OUTSIDE),
    "find_periods of sparse rows": (lambda: simulate.find_periods(SPARSE), "rows lie 50 steps apart"),
    "classify of sparse rows": (lambda: simulate.classify(SPARSE), "rows lie 50 steps apart"),
    "find_periods of slow rises": (lambda: simulate.find_periods(SLOW), "no clear period at rise=0.1"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_names_the_line_of_the_user(name):
    call, message = CALLS[name]
    with pytest.warns(UserWarning, match=message) as caught:
        call()
    lines = inspect.getsourcelines(call)
    assert {warning.filename for warning in caught} == {__file__}
    assert all(lines[1] <= warning.lineno < lines[1] + len(lines[0]) for warning in caught)


def test_a_fit_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate.PeriodModel.from_runs([RUN])


def test_a_caller_in_between_is_not_skipped():
    def helper():
        warn_user("a message")

    with pytest.warns(UserWarning, match="a message") as caught:
        helper()
    assert caught[0].lineno == inspect.getsourcelines(helper)[1] + 1
