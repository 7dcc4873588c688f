"""Logs derived from a complete one have the columns and rows of their kind."""

import numpy as np
import pytest

import simulate
import theory
from empirical.studies.derived_logs import LOGS, WRONG_LOGS, contradicts_law, steps_per_number
from empirical.studies.labelled_runs import NOISE, LabelledRun, train_labelled
from theory.optimizers import check_optimizer

SETTINGS = {
    "model": "empirical.studies.ordinary_networks:plain_mlp",
    "scale_invariant": False,
    "width": 8,
    "steps": 450,
    "lr": 0.3,
    "wd": 0.01,
}


@pytest.fixture(scope="module")
def log():
    return train_labelled(LabelledRun(label=NOISE, settings=SETTINGS))


def variables(log):
    return set(map(str, log.data_vars))


@pytest.mark.parametrize("name", [*LOGS, *WRONG_LOGS])
def test_every_derived_log_is_a_log(log, name):
    before = log.copy(deep=True)
    derived = {**LOGS, **WRONG_LOGS}[name](log)
    assert log.identical(before)
    assert derived.loss.dims == ("step",)
    assert (np.diff(derived.step) > 0).all()
    assert np.issubdtype(derived.step.dtype, np.integer)
    simulate.diagnose(derived)


def test_columns_are_missing(log):
    assert LOGS["full"](log) is log
    assert variables(LOGS["loss alone"](log)) == {"loss"}
    assert not {"lr", "wd", "optimizer", "epoch_length"} & set(LOGS["loss alone"](log).attrs)
    assert variables(LOGS["no norm"](log)) == {"loss", "lr", "epoch"}
    usual = LOGS["loss, lr and gradient norm"](log)
    assert variables(usual) == {"loss", "lr", "gradient_norm", "epoch"}
    np.testing.assert_array_equal(usual.gradient_norm, log.all_gradient_norm)
    assert "wd" not in LOGS["no weight decay"](log).attrs


def test_rows_are_missing(log):
    assert LOGS["every 50th step"](log).step.values.tolist() == list(range(0, 450, 50))
    np.testing.assert_array_equal(LOGS["every 10th step"](log).loss, log.loss[::10])


def test_rows_are_epochs(log):
    length = log.attrs["epoch_length"]
    assert length == 22
    for name in ("one row per epoch", "one row per epoch of known length", "epochs numbered as steps"):
        derived = {**LOGS, **WRONG_LOGS}[name](log)
        # the last epoch is not complete
        assert derived.step.values.tolist() == list(range(450 // length))
        np.testing.assert_allclose(derived.loss[3], log.loss[3 * length : 4 * length].mean())
        assert derived.norm[3] == log.norm[3 * length]
        np.testing.assert_allclose(derived.grad_norm, derived.gradient_norm * derived.norm)
        assert derived.attrs["row_unit"] == ("steps" if name in WRONG_LOGS else "epochs")
        assert ("epoch_length" in derived.attrs) == (name == "one row per epoch of known length")
        assert steps_per_number(name, log) == length
    assert steps_per_number("full", log) == steps_per_number("every 10th step", log) == 1


def test_wrong_numbers(log):
    every = WRONG_LOGS["norm of all weights"](log)
    np.testing.assert_array_equal(every.norm, log.all_weights_norm)
    np.testing.assert_allclose(every.grad_norm, log.all_weights_norm * log.all_gradient_norm)
    assert WRONG_LOGS["4 times the weight decay"](log).attrs["wd"] == 0.04
    assert WRONG_LOGS["a quarter of the weight decay"](log).attrs["wd"] == 0.0025


@pytest.mark.parametrize("rule", ["SGD()", "SGD(momentum=0.9)", "AdamW(dim=1)"])
def test_what_contradicts_the_law(rule):
    # a high norm decays
    rates = {"SGD()": (0.3, 0.01), "SGD(momentum=0.9)": (0.05, 0.01), "AdamW(dim=1)": (1e-3, 2.0)}
    lr, wd = rates[rule]
    settings = SETTINGS | {"optimizer": check_optimizer(rule), "lr": lr, "wd": wd, "init_norm": 100.0}
    log = train_labelled(LabelledRun(label=NOISE, settings=settings))
    right = ("full", "no gradient norm", "every 5th step", "no norm", "no weight decay")
    assert [name for name in right if name != "every 5th step" and contradicts_law(LOGS[name](log))] == []
    assert contradicts_law(WRONG_LOGS["a quarter of the weight decay"](log))
    # with more decay than there is, only the gradients of plain SGD show it
    assert contradicts_law(WRONG_LOGS["4 times the weight decay"](log)) == (rule == repr(theory.SGD()))
