"""Tables with one metric in each row, and lists of losses: one column per metric, nothing of the evaluation."""

import json

import numpy as np
import pandas as pd
import pytest

import simulate
from tests.simulate.logs.examples import COUNT, LOSSES, ONE

RATES = [round(1e-3 * (t + 1), 6) for t in range(COUNT)]


def records(names=("metricName", "metricValue"), **more):
    """One dict for each metric and step: all losses, all learning rates, three losses of the evaluation."""
    rows = [("train_loss", LOSSES[t], t + 1) for t in range(COUNT)]
    rows += [("learning_rate", RATES[t], t + 1) for t in range(COUNT)]
    rows += [("val_loss", 9.9, step) for step in (10, 20, 30)]
    return [{names[0]: name, names[1]: value, "step": step, **more} for name, value, step in rows]


def check(log):
    assert log.step.values.tolist() == ONE
    assert log.loss.values.tolist() == LOSSES
    assert log.lr.values.tolist() == RATES


@pytest.mark.parametrize("names", [("metricName", "metricValue"), ("tag", "value"), ("key", "value")])
def test_metrics_in_long_form_become_columns(names, tmp_path):
    path = tmp_path / "metrics"
    rows = records(names, timestamp=1731921243100, epoch=None, runContext=None)
    pd.DataFrame(rows).to_csv(path, index=False)
    log = simulate.read_log(path)
    check(log)
    assert log.attrs["form"] == ("Comet metrics" if names[0] == "metricName" else "table of metrics in long form")
    path.write_text(json.dumps(rows), encoding="utf-8")
    check(simulate.read_log(path))
    check(simulate.read_log(pd.DataFrame(rows)))
    evaluation = simulate.read_log(path, names={"loss": "val_loss"}).loss.dropna("step")
    assert evaluation.values.tolist() == [9.9] * 3


@pytest.mark.parametrize("names", [("name", "value"), ("metric", "value"), ("tag", "scalar")])
def test_one_dict_in_each_line(names, tmp_path):
    path = tmp_path / "metrics.jsonl"
    settings = json.dumps({"lr": 0.1, "batch_size": 8})
    rows = [settings, *map(json.dumps, records(names)), "{"]
    path.write_text("\n".join(rows), encoding="utf-8")
    log = simulate.read_log(path)
    check(log)
    assert simulate.describe_log(log) == (
        "table of metrics in long form: 30 rows, every step (1 to 30); loss from 'train_loss', lr from "
        "'learning_rate'; no weight norm, no gradient norm."
    )
    assert "incomplete" in log.attrs["remarks"][0]
    # names of no metric
    path.write_text("\n".join(json.dumps({"step": t, "name": "a.pt", "value": t}) for t in ONE), encoding="utf-8")
    with pytest.raises(ValueError, match="loss"):
        simulate.read_log(path)


def test_rows_of_another_context_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = [
        {"metricName": "loss", "metricValue": loss, "step": step, "runContext": context}
        for step in ONE
        for context, loss in (("train", LOSSES[step - 1]), ("validate", 9.9))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    assert simulate.read_log(path).loss.values.tolist() == LOSSES


def test_several_runs_in_long_form_are_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    pd.DataFrame(records(run="a") + records(run="b")).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"got 2 runs in column 'run': a, b\. Keep the rows of one run"):
        simulate.read_log(path)


def test_lines_with_step_metric_and_value(tmp_path):
    path = tmp_path / "log.txt"
    lines = [f"{t} train {LOSSES[t]:.6f}" for t in range(COUNT)]
    for t in (20, 10, 0):
        lines[t:t] = [f"{t} val 9.9000", f"{t} hella 0.2534"]
    path.write_text("\n".join(lines) + "\n29 tra", encoding="utf-8")
    log = simulate.read_log(path)
    assert log.loss.values.tolist() == LOSSES
    assert log.step.values.tolist() == list(range(COUNT))
    assert (log.attrs["form"], log.attrs["columns"]["loss"]) == ("build-nanogpt log", "train")
    assert "'train' is taken for the loss" in log.attrs["remarks"][0]
    assert "incomplete" in log.attrs["remarks"][1]
    path.write_text("0 train_loss 2.5\n0 lr 0.1\n1 train_loss nan\n1 lr 0.2\n", encoding="utf-8")
    log = simulate.read_log(path)
    np.testing.assert_array_equal(log.loss, [2.5, np.inf])
    np.testing.assert_array_equal(log.lr, [0.1, 0.2])


@pytest.mark.parametrize("text", ["0 apples 2.5\n1 pears 2.4\n", "0 train 2.5\nThe end\n", "0 train 2.5\n0 fit 2.4\n"])
def test_other_lines_of_three_words_are_no_log(text, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="loss"):
        simulate.read_log(path)


def test_a_list_of_numbers_is_the_loss(tmp_path):
    path = tmp_path / "losses.json"
    path.write_text(json.dumps([*LOSSES, None, float("nan")]), encoding="utf-8")
    log = simulate.read_log(path)
    np.testing.assert_array_equal(log.loss, [*LOSSES, np.inf])
    assert log.attrs["row_unit"] == "rows"
    assert log.attrs["remarks"] == ["The file has one list without a name; it is taken for the loss."]
