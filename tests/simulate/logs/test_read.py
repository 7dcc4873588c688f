"""Training logs: columns that are recognized, logs that are refused, and equal results from every format."""

import csv
import json
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import simulate
import theory
from simulate.logs._column_names import NAMES
from simulate.logs.read import override_settings
from theory.optimizers import check_optimizer

NUMBERS = arrays.arrays(float, 12, elements=st.floats(1e-6, 1e6))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(NUMBERS, NUMBERS, NUMBERS, st.data())
def test_columns_are_found_under_any_usual_name(loss, norm, gradient, data):
    columns = {"loss": loss, "norm": norm, "gradient": gradient}
    names = {meaning: data.draw(st.sampled_from(NAMES[meaning])) for meaning in columns}
    written = {
        meaning: data.draw(st.sampled_from([name, name.upper(), name.replace("_", "/"), f" {name}"]))
        for meaning, name in names.items()
    }
    log = simulate.read_log({written[meaning]: values for meaning, values in columns.items()}, lr=0.1, wd=0.01)
    np.testing.assert_array_equal(log.loss, loss)
    np.testing.assert_array_equal(log.norm, norm)
    # in the units of a trajectory
    np.testing.assert_allclose(log.grad_norm, gradient * norm, rtol=1e-15)
    assert log.grad_norm.attrs["column"] == written["gradient"]
    assert (log.attrs["lr"], log.attrs["wd"], log.attrs["row_unit"]) == (0.1, 0.01, "rows")
    assert log.attrs["columns"] == written
    assert log.step.values.tolist() == list(range(12))
    assert log.norm.attrs["units"] == "weight"


def test_custom_names():
    columns = {"l": [1.0, 2.0], "w": [3.0, 4.0], "loss": [9.0, 9.0], "when": [5, 7]}
    log = simulate.read_log(columns, names={"loss": "l", "norm": "w", "step": "when"}, optimizer=theory.SGD(0.9))
    assert log.loss.values.tolist() == [1.0, 2.0]
    assert log.step.values.tolist() == [5, 7]
    assert log.attrs["optimizer"] == "SGD(momentum=0.9)"


@pytest.mark.parametrize("read", [simulate.read_log, lambda *args, **kwargs: simulate.diagnose(*args, **kwargs).log])
@pytest.mark.parametrize("text", ["AdamW", "SGD(momentum=0.9)"])
def test_an_optimizer_may_be_text(read, text):
    columns = {"loss": [2.0, 1.5], "lr": [0.1, 0.1]}
    from_text, from_object = (read(columns, optimizer=rule) for rule in (text, check_optimizer(text)))
    xr.testing.assert_identical(from_text, from_object)
    assert from_text.attrs["optimizer"].startswith(text.partition("(")[0])


@pytest.mark.parametrize("function", [simulate.read_log, simulate.diagnose, simulate.phase_diagram])
def test_functions_that_accept_an_optimizer_as_text_are_annotated_so(function):
    assert str in get_args(get_type_hints(function)["optimizer"])
    assert "text form" in function.__doc__


def test_a_constant_replaces_a_column():
    log = simulate.read_log({"loss": [1.0, 2.0], "lr": [3.0, 3.0]}, lr=0.5)
    assert "lr" not in log.variables
    assert log.attrs["lr"] == 0.5
    kept = override_settings(xr.Dataset({"lr": ("step", [1.0])}), wd=0.2)
    assert kept.lr.values.tolist() == [1.0]
    assert kept.attrs["wd"] == 0.2


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        (3, {}, TypeError, "source must be a path, a mapping"),
        ({"loss": [1.0], "norm": [1.0, 2.0]}, {}, ValueError, "one length"),
        ({"accuracy": [1.0]}, {}, ValueError, r"a loss or a norm of the weights, got \['accuracy'\]"),
        ({"loss": [1.0]}, {"names": {"norm": "w"}}, ValueError, r"names must be of columns, \['loss'\], got 'w'"),
        ({"loss": [1.0]}, {"names": {"weight": "loss"}}, ValueError, "names must be for step, loss"),
        ({"loss": [1.0]}, {"lr": -1.0}, ValueError, "lr must be"),
        ({"loss": [1.0]}, {"optimizer": theory.SGD}, TypeError, "optimizer must be"),
        ({"loss": np.ones((2, 3))}, {}, ValueError, r"one dimension, got the shape \(2, 3\) of column 'loss'"),
        ({"loss": [1.0, 2.0], "phase": [["a"], ["b"]]}, {}, ValueError, r"the shape \(2, 1\) of column 'phase'"),
        (
            {"step": [0.5, 0.7], "loss": [1, 2]},
            {},
            ValueError,
            "step must be of whole numbers, got 0.5 in column 'step'",
        ),
        ({"i": [0, 2.5], "loss": [1, 2]}, {"names": {"step": "i"}}, ValueError, "got 2.5 in column 'i'"),
        ({"step": [0, 1e300], "loss": [1, 2]}, {}, ValueError, r"whole numbers, got 1e\+300"),
        ({"step": ["a", "b"], "loss": [1, 2]}, {}, ValueError, "whole numbers, got none in column 'step'"),
        ({"Loss": [1.0], "loss": [2.0]}, {}, ValueError, r"one loss, got \['Loss', 'loss'\]; choose one by `names`"),
    ],
)
def test_bad_columns_are_named(columns, options, error, message):
    with pytest.raises(error, match=message):
        simulate.read_log(columns, **options)


def test_steps_are_put_in_order():
    nan = math.nan
    # a validation row of the same step, a row without a step, and a restart from step 2
    columns = {
        "step": [0, 1, 1, nan, 2, 3, 2, 3, 4],
        "loss": [1, 2, nan, 9, 3, 4, 5, 6, 7],
        "lr": [nan, nan, 0.1, 9, 1, 1, 2, 2, 2],
    }
    log = simulate.read_log(columns)
    assert log.step.values.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(log.loss, [1, 2, 5, 6, 7])
    np.testing.assert_array_equal(log.lr, [nan, 0.1, 2, 2, 2])


def test_the_last_value_of_a_step_counts():
    log = simulate.read_log({"step": [0, 1, 1, 1, 2], "loss": [1, 2, 3, math.nan, 4], "weight_norm": [1, 5, 6, 7, 8]})
    np.testing.assert_array_equal(log.loss, [1, 3, 4])
    np.testing.assert_array_equal(log.norm, [1, 7, 8])


class TestStepsThatGoBack:
    def test_steps_after_a_restart_replace_later_ones(self):
        log = simulate.read_log({"step": [0, 1, 2, 3, 4, 5, 3, 4], "loss": [0, 1, 2, 3, 4, 5, 13, 14]})
        assert log.step.values.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(log.loss, [0, 1, 2, 13, 14])

    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(st.dictionaries(st.integers(20, 30), st.integers(1, 8), max_size=5))
    def test_repeated_steps_count_once(self, restarts):
        step, reached = [], 0
        # no two parts of the same length
        for length, back in restarts.items():
            step += range(reached, reached + 3 * length)
            reached += 3 * length - back
        step += range(reached, reached + 50)
        loss = np.arange(len(step), dtype=float)
        log = simulate.read_log({"step": step, "loss": loss})
        assert log.step.values.tolist() == list(range(reached + 50))
        last = {at: row for row, at in enumerate(step)}
        assert log.loss.values.tolist() == [last[at] for at in range(reached + 50)]

    @pytest.mark.parametrize(
        ("epochs", "rows", "cut"), [(20, 50, 0), (20, 50, 30), (2, 400, 0), (2, 400, 399), (3, 7, 2)]
    )
    def test_a_step_within_an_epoch_is_refused(self, epochs, rows, cut):
        step = np.tile(np.arange(rows), epochs)[: epochs * rows - cut]
        columns = {"step": step, "loss": np.random.default_rng(0).uniform(0.1, 0.2, step.size)}
        dropped = (epochs - 1) * rows
        times = "once" if epochs == 2 else f"{epochs - 1} times"
        with pytest.raises(
            ValueError, match=f"step must grow.*column 'step' it goes back {times}.*{dropped} of"
        ) as error:
            simulate.read_log(columns)
        assert "Name a column of steps that grow across epochs" in str(error.value)
        # the advice works
        assert simulate.read_log(columns, steps_by_row=True).sizes["step"] == step.size
        assert simulate.read_log(columns, names={"step": ""}).sizes["step"] == step.size
        assert simulate.read_log({**columns, "step": np.arange(step.size)}).sizes["step"] == step.size

    def test_a_spike_in_an_early_epoch_is_not_lost(self):
        loss = np.random.default_rng(0).uniform(0.1, 0.2, 1000)
        loss[220] = 50.0
        with pytest.raises(ValueError, match="step must grow"):
            simulate.diagnose({"step": np.tile(np.arange(50), 20), "loss": loss})
        assert [spike.step for spike in simulate.diagnose({"loss": loss}).spikes] == [220]

    def test_going_back_regularly_or_often_is_refused(self):
        # every twentieth step an evaluation is logged with the previous step
        regular = [number for step in range(400) for number in ([step, step - 1] if step % 20 == 19 else [step])]
        shuffled = np.random.default_rng(0).permutation(100) // 5 * 5 + np.arange(100) * 50
        for step in (regular, [*shuffled]):
            with pytest.raises(ValueError, match=r"goes back \d+.*of \d+ rows"):
                simulate.read_log({"step": step, "loss": np.ones(len(step))})

    def test_a_restart_that_drops_most_rows_is_refused(self):
        step = [*range(600), *range(100, 400)]
        with pytest.raises(ValueError, match=r"goes back once.*of 900 rows"):
            simulate.read_log({"step": step, "loss": np.ones(900)})


def test_one_number_is_a_column():
    log = simulate.read_log({"loss": [1.0, 2.0], "lr": 0.5, "weight_norm": ["oops", "3.0"]})
    np.testing.assert_array_equal(log.lr, [0.5, 0.5])
    np.testing.assert_array_equal(log.norm, [math.nan, 3.0])


def test_columns_of_a_trajectory_keep_their_units():
    run = simulate.norm_map(0.5, 0.01, 2.0, norm=3.0, steps=20)
    log = simulate.read_log({name: run[name].values for name in ("norm", "grad_norm", "rotation")})
    np.testing.assert_array_equal(log.grad_norm, run.grad_norm)


def write(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, delimiter):
    rows = [["epoch", "phase", "step", "loss", "lr", "weight_norm"], [0, "train", 0, 1.5, 0.1, 3.0]]
    rows += [[0, "train", 10, "nan", "", 2.9], [0, "train", 20, "inf", 0.05, 2.8]]
    log = simulate.read_log(write(tmp_path / "log.csv", rows, delimiter), wd=0.01)
    # a logged NaN differs from a missing value
    np.testing.assert_array_equal(log.loss, [1.5, math.inf, math.inf])
    np.testing.assert_array_equal(log.lr, [0.1, math.nan, 0.05])
    assert log.step.values.tolist() == [0, 10, 20]
    assert set(log.data_vars) == {"loss", "lr", "norm", "epoch"}


def test_a_norm_that_is_nan_in_between_was_not_logged(tmp_path):
    gradients = np.random.default_rng(0).uniform(1.6, 2.4, 900)
    start = theory.equilibrium_norm(0.5, 0.02, 2.0)
    run = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(gradients), norm=start, steps=900)
    loss = np.random.default_rng(1).uniform(0.08, 0.12, 900)
    # at a norm that was logged, at one that was not, and next to one
    for at in (600, 602, 603):
        bad = loss.copy()
        bad[at] = 3.0
        rows = np.column_stack([bad, run.norm, run.grad_norm / run.norm]).tolist()
        for row in rows[::7]:
            row[1] = "nan"
        path = write(tmp_path / "log.csv", [["loss", "weight_norm", "grad_norm"], *rows])
        found = simulate.diagnose(path, lr=0.5, wd=0.02, optimizer=theory.SGD())
        assert [(spike.step, spike.cause) for spike in found.spikes] == [(at, "bad batch")]
        assert found.remarks == ()
        # the gradient was logged everywhere
        assert np.isfinite(found.log.grad_norm).all()
        np.testing.assert_allclose(found.log.grad_norm, run.grad_norm, rtol=0.02)
    for row in rows[700:]:
        row[1] = "nan"
    (_, lost) = simulate.diagnose(
        write(tmp_path / "lost.csv", [["loss", "weight_norm"], *[r[:2] for r in rows]])
    ).spikes
    assert (lost.step, lost.cause) == (700, "overflow")


def test_csv_with_irregular_lines(tmp_path):
    text = '\ufeff\r\nstep, "loss" ,lr\r\n0,1.5,0.1\r\n   \r\nstep, "loss" ,lr\r\n1,,0.1\r\n2,2.5,0.1\r\n3,3.'
    (tmp_path / "log.csv").write_bytes(text.encode())
    log = simulate.read_log(tmp_path / "log.csv", names={"loss": "loss"})
    assert log.step.values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(log.loss, [1.5, math.nan, 2.5])


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"2 cells in.*in line 3"):
        simulate.read_log(write(tmp_path / "ragged.csv", [["loss", "lr"], [1, 2], [1, 2, 3]]))
    with pytest.raises(ValueError, match="different column names, got 'loss' more than once"):
        simulate.read_log(write(tmp_path / "doubled.csv", [["", "", "loss", "loss"], [0, 0, 1, 2]]))
    # columns without a name, as of lines that end with a comma
    unnamed = simulate.read_log(write(tmp_path / "unnamed.csv", [["loss", "", ""], [1, "", ""], [2, "", ""]]))
    assert unnamed.loss.values.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"path must be a log.*doubled.csv, ragged.csv, unnamed.csv"):
        simulate.read_log(tmp_path)
    with pytest.raises(ValueError, match=r"path must exist, got .*none\.csv"):
        simulate.read_log(tmp_path / "none.csv")


def test_a_saved_trajectory_is_a_log(tmp_path):
    run = simulate.norm_map(0.5, 0.01, 2.0, norm=3.0, steps=20)
    simulate.save(run, tmp_path / "run.zarr")
    read = simulate.read_log(tmp_path / "run.zarr", wd=0.02)
    xr.testing.assert_equal(read, run)
    assert read.attrs["wd"] == 0.02


def written_events(folder, scalars):
    """Event file of tags, steps and values, in their order."""
    event_file = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer = event_file.EventFileWriter(str(folder))
    for tag, step, value in scalars:
        writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
    writer.close()
    return folder


def test_event_files_of_tensorboard(tmp_path):
    scalars = [("train/loss", step, 1.0 + step) for step in range(6)]
    scalars += [("weight_norm", step, 3.0) for step in range(0, 6, 2)]
    # a restart logs a step again
    written_events(tmp_path, [*scalars, ("train/loss", 5, 9.0)])
    for place in (tmp_path, next(tmp_path.iterdir())):
        log = simulate.read_log(place, lr=0.1)
        np.testing.assert_array_equal(log.loss, [1, 2, 3, 4, 5, 9])
        np.testing.assert_array_equal(log.norm, [3, math.nan] * 3)


def test_event_files_with_repeated_steps(tmp_path):
    restarted = [("loss", step, float(row)) for row, step in enumerate([0, 1, 2, 3, 4, 5, 3, 4])]
    log = simulate.read_log(written_events(tmp_path / "restarted", restarted))
    assert log.step.values.tolist() == [0, 1, 2, 3, 4]
    assert log.loss.values.tolist() == [0, 1, 2, 6, 7]
    within = [(tag, step, 1.0) for _ in range(10) for step in range(20) for tag in ("my/loss", "other")]
    place = written_events(tmp_path / "epochs", [*within, *(("loss", step, 1.0) for step in range(200))])
    with pytest.raises(ValueError, match=r"step must grow.*tag.*times.*180 of 200"):
        simulate.read_log(place, names={"loss": "my/loss"})
    # steps of unused tags do not matter
    assert simulate.read_log(place).sizes["step"] == 200


def test_event_files_without_tensorboard(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install tensorboard"):
        simulate.read_log(tmp_path)


def test_the_command_reads_what_the_function_reads(tmp_path):
    from typer.testing import CliRunner

    from empirical.cli.main import app

    loss = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    loss[300] = math.inf
    path = write(tmp_path / "log.csv", [["my loss", "lr"], *[[value, 0.1] for value in loss]])
    picture = tmp_path / "spikes.png"
    arguments = ["diagnose", str(path), "--column", "loss=my loss", "--wd", "0.01", "--picture", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "step 300: overflow" in result.output
    assert picture.read_bytes()[:4] == b"\x89PNG"
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert found["cause"] == "overflow"
    assert found["spikes"][0]["step"] == 300
    assert found["spikes"][0]["peak_loss"] is None
    few = write(tmp_path / "few.csv", [["loss"], *[[value] for value in loss[:5]]])
    assert "But the log lacks enough rows: it has 5" in CliRunner().invoke(app, ["diagnose", str(few)]).output
    assert json.loads(CliRunner().invoke(app, ["diagnose", str(few), "--json"]).output)["missing"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["none.csv"], "none.csv"),
        (["log.csv", "--column", "loss"], "--column"),
        (["log.csv", "--optimizer", "SGB()"], "SGB()"),
        (["log.csv", "--picture", "no/such/folder.png"], "picture"),
        (["log.csv", "--lr", "-1"], "lr"),
        (["run.zarr", "--column", "loss=nope"], "--column must be left out with a trajectory"),
        (["epochs.csv"], "step must grow"),
        (["epochs.csv"], "--steps-by-row"),
        (["epochs.csv", "--steps-per-row", "0"], "--steps-per-row must be"),
        (["run.zarr", "--steps-by-row"], "--steps-by-row must be left out with a trajectory"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, word, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from empirical.cli.main import app

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "log.csv", [["loss"], [1.0]])
    write(tmp_path / "epochs.csv", [["step", "loss"], *([step, 1.0] for step in [*range(9)] * 3)])
    if "run.zarr" in arguments:
        simulate.save(simulate.norm_map(0.5, 0.01, 2.0, norm=3.0, steps=20), tmp_path / "run.zarr")
    result = CliRunner().invoke(app, ["diagnose", *arguments])
    assert result.exit_code == 2
    assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_command_numbers_rows(tmp_path):
    from typer.testing import CliRunner

    from empirical.cli.main import app

    loss = np.random.default_rng(0).uniform(0.1, 0.2, 400)
    loss[300] = math.inf
    path = write(tmp_path / "log.csv", [["step", "loss"], *([t % 40, value] for t, value in enumerate(loss))])
    for options, step in ((["--steps-by-row"], 300), (["--steps-per-row", "10"], 3000), (["--column", "step="], 300)):
        result = CliRunner().invoke(app, ["diagnose", str(path), *options])
        assert f"step {step}: overflow" in result.output
