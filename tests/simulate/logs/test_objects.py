"""Logs in memory: data frames, lists of dicts, histories; which NaNs were not logged and which are lost."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import simulate
from tests.simulate.logs.examples import COUNT, LOSSES, TENS

NAN, INF = math.nan, math.inf
HISTORY = [
    {"loss": LOSSES[t], "grad_norm": 1.2, "learning_rate": 5e-5, "epoch": t / 50, "step": TENS[t]} for t in range(COUNT)
]
HISTORY += [{"eval_loss": 9.9, "epoch": 0.6, "step": 300}, {"train_loss": 8.8, "epoch": 0.6, "step": 300}]


@pytest.mark.parametrize(
    "source",
    [
        HISTORY,
        SimpleNamespace(log_history=HISTORY),
        SimpleNamespace(state=SimpleNamespace(log_history=HISTORY)),
        pd.DataFrame(HISTORY),
        pd.DataFrame(HISTORY).set_index("step"),
        pd.DataFrame(HISTORY).to_dict("list"),
    ],
    ids=["list of dicts", "state", "trainer", "data frame", "data frame with steps as index", "columns"],
)
def test_histories_of_hugging_face(source):
    log = simulate.read_log(source)
    assert log.step.values.tolist() == TENS
    assert log.loss.values.tolist() == LOSSES
    assert log.attrs["form"] == "Hugging Face log history"
    assert log.attrs["columns"]["gradient"] == "grad_norm"
    assert log.attrs["epoch_length"] == 500


@pytest.mark.parametrize("wrap", [lambda history: SimpleNamespace(history=history), lambda history: history])
def test_histories_of_keras(wrap):
    log = simulate.read_log(wrap({"loss": LOSSES, "val_loss": [9.9] * COUNT}))
    assert log.attrs["form"] == "Keras history"
    assert log.attrs["row_unit"] == "epochs"
    assert log.loss.values.tolist() == LOSSES
    steps = simulate.read_log(wrap({"loss": LOSSES, "val_loss": [9.9] * COUNT}), steps_per_row=25)
    assert steps.step.values.tolist() == [25 * t for t in range(COUNT)]
    assert steps.attrs["row_unit"] == "steps"
    assert steps.attrs["epoch_length"] == 25


def test_a_trajectory_keeps_its_columns():
    run = simulate.norm_map(0.5, 0.01, 2.0, norm=3.0, steps=20)
    log = simulate.read_log(run, wd=0.02)
    xr.testing.assert_equal(log, run)
    assert log.attrs["wd"] == 0.02
    for options in ({"names": {"loss": "l"}}, {"steps_by_row": True}, {"steps_per_row": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be left out with a trajectory"):
            simulate.read_log(run, **options)
    assert simulate.describe_log(run) == (
        "trajectory: 20 rows, every step (0 to 19); lr from 'lr', weight decay from 'wd', weight norm from 'norm', "
        "gradient norm from 'grad_norm'; no loss."
    ) or simulate.describe_log(run).startswith("trajectory: 20 rows")


@pytest.mark.parametrize(
    ("columns", "loss"),
    [
        # up to the end: lost
        ({"loss": [1.0, 2.0, NAN, NAN]}, [1, 2, INF, INF]),
        ({"loss": [1.0, 2.0, NAN, NAN], "lr": [0.1] * 4}, [1, 2, INF, INF]),
        ({"step": [0, 1, 2, 3], "epoch": [0, 0, 1, 1], "loss": [1.0, 2.0, NAN, NAN]}, [1, 2, INF, INF]),
        # between finite losses: not logged, and so are gaps at the end that are not longer
        ({"loss": [1.0, NAN, 2.0]}, [1, 2]),
        ({"loss": [1.0, NAN, 2.0, NAN]}, [1, 2]),
        ({"loss": [1.0, NAN, 2.0, NAN, NAN]}, [1, 2, INF, INF]),
        # the row was written for something else
        ({"loss": [1.0, 2.0, NAN], "val_loss": [NAN, NAN, 9.0]}, [1, 2]),
        ({"loss": [1.0, 2.0, NAN, NAN], "val_loss": [NAN, NAN, 9.0, NAN], "train_loss": [NAN, NAN, NAN, 8.0]}, [1, 2]),
        ({"loss": [1.0, 2.0, NAN, NAN], "val_loss": [NAN, NAN, 9.0, NAN]}, [1, 2, INF]),
        # a text is explicit
        ({"loss": ["1.0", "nan", "", "2.0"]}, [1, INF, 2]),
        ({"loss": [1.0, None, "inf", 2.0]}, [1, INF, 2]),
        ({"loss": np.array([1.0, -INF, 2.0])}, [1, INF, 2]),
    ],
)
def test_which_losses_are_lost(columns, loss):
    log = simulate.read_log(columns)
    logged = log.loss.values[~np.isnan(log.loss.values)]
    np.testing.assert_array_equal(logged, loss)
    np.testing.assert_array_equal(simulate.read_log(pd.DataFrame(columns)).loss, log.loss)


def test_lists_of_dicts_are_explicit():
    rows = [{"loss": 1.0}, {"loss": NAN}, {"loss": None, "lr": 0.1}, {"lr": 0.1}, {"loss": 2.0}]
    np.testing.assert_array_equal(simulate.read_log(rows).loss, [1, INF, NAN, NAN, 2])


def test_norms_that_end_before_the_losses_were_not_logged():
    norms = [3.0] * 6 + [NAN] * 2
    log = simulate.read_log({"loss": list(range(1, 9)), "weight_norm": norms})
    np.testing.assert_array_equal(log.norm, norms)


def test_other_objects_are_refused():
    for source in (3, None, [], [1.0, 2.0], {"loss", "lr"}):
        with pytest.raises(TypeError, match="source must be a path, a mapping"):
            simulate.read_log(source)


def test_diagnose_takes_what_read_log_takes():
    diagnosis = simulate.diagnose(HISTORY[:5] * 80, steps_by_row=True)
    assert diagnosis.log.sizes["step"] == 400
    assert simulate.diagnose({"loss": LOSSES * 10}, steps_per_row=50).log.step.values[-1] == 50 * 299


def test_a_description_names_the_columns():
    assert simulate.describe_log(simulate.read_log(HISTORY)) == (
        "Hugging Face log history: 30 rows, every 10 steps (10 to 300); loss from 'loss', lr from "
        "'learning_rate', gradient "
        "norm from 'grad_norm', epoch from 'epoch'; no weight norm."
    )
    described = simulate.describe_log(simulate.read_log({"loss": LOSSES}, lr=0.1, wd=0.01))
    assert described == (
        "columns in memory: 30 rows, counted from 0 to 29; loss from 'loss', lr 0.1, weight decay 0.01; "
        "no weight norm, no "
        "gradient norm."
    )
    assert "one per epoch (0 to 29)" in simulate.describe_log(
        simulate.read_log({"epoch": range(COUNT), "loss": LOSSES})
    )
    uneven = simulate.read_log({"step": [0, 10, 20, 35, 40], "loss": LOSSES[:5]})
    assert "about every 10 steps (0 to 40)" in simulate.describe_log(uneven)


@pytest.mark.parametrize(
    ("column", "is_doubtful"), [("weight_norm", True), ("train/weight_norm", True), ("rho", False)]
)
def test_a_norm_that_may_be_of_all_weights_is_mentioned(column, is_doubtful):
    log = simulate.read_log({"step": [0, 1, 2], "loss": [2.0, 1.5, 1.2], column: [3.0, 2.9, 2.8]}, lr=0.1)
    assert ("not of all weights" in simulate.describe_log(log)) == is_doubtful
