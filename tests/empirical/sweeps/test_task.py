import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from empirical import RunConfig, train
from empirical.runs.loop import Interrupted
from empirical.sweeps import task
from empirical.sweeps.task import Summary, SweepOptions, run_path, summarize, summarize_failure, train_and_summarize

CONFIG = RunConfig(lr=0.5, wd=0.02, width=8, steps=600, evaluate_every=300)


def test_a_run_is_trained_and_summarized(tmp_path):
    (summary,) = train_and_summarize([CONFIG], SweepOptions(out=tmp_path))
    run = train(CONFIG)
    classification = simulate.classify(run)
    assert (summary.identity, summary.status, summary.status_step) == (CONFIG.identity, "complete", 600)
    assert summary.error == ""
    assert summary.verdict == classification.verdict
    expected = {
        "final_norm": run.final_norm.item(),
        "norm_min": run.norm.min().item(),
        "norm_max": run.norm.max().item(),
        "test_error": run.test_error.values[-1],
        "train_loss": run.train_loss.values[-1],
        "periods": classification.periods.count,
        "rotation_ratio": classification.rotation_ratio,
    }
    assert {name: summary.numbers[name] for name in expected} == expected


def test_a_longer_run_continues_a_shorter_one(tmp_path):
    options = SweepOptions(out=tmp_path)
    train_and_summarize([dataclasses.replace(CONFIG, steps=300)], options)
    train_and_summarize([CONFIG], options)
    assert simulate.load(run_path(tmp_path, CONFIG)).identical(train(CONFIG, tmp_path / "at_once"))


def test_divergence_is_a_result(tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e30, wd=0.0, normalization="none", scale_invariant=False)
    (summary,) = train_and_summarize([config], SweepOptions(out=tmp_path))
    assert summary.status == "diverged"
    assert summary.is_final
    assert summary.status_step < 600
    json.dumps(summary.to_dict(), allow_nan=False)


def test_an_error_is_reported_with_its_last_lines(tmp_path):
    config = dataclasses.replace(CONFIG, model="no_such_module:build")
    (summary,) = train_and_summarize([config], SweepOptions(out=tmp_path))
    assert summary.status == "failed"
    assert not summary.is_final
    assert "model must be the 'module:name' of something that Python can import" in summary.error.splitlines()[-1]
    assert len(summary.error.splitlines()) <= 8


def test_a_stop_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr("empirical.runs.loop.train_runs", lambda *arguments: [Interrupted(tmp_path, 5)])
    (summary,) = train_and_summarize([CONFIG], SweepOptions(out=tmp_path))
    assert (summary.status, summary.status_step, summary.is_final) == ("interrupted", 5, False)


def test_short_runs_are_in_their_transient_and_empty_ones_have_no_verdict():
    for steps in (0, 1, 5):
        summary = summarize(CONFIG, simulate.norm_map(0.5, 0.02, 2.0, norm=10.0, steps=steps))
        assert summary.verdict == ("transient" if steps else "")
        json.dumps(summary.to_dict(), allow_nan=False)
        assert ("norm_min" in summary.numbers) == (steps > 0)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.floats(), max_size=5), st.text(), st.sampled_from(["complete", "failed"]))
def test_a_summary_survives_json(numbers, error, status):
    summary = dataclasses.replace(
        summarize_failure(CONFIG, ValueError("")), numbers=numbers, error=error, status=status
    )
    again = Summary.from_dict(json.loads(json.dumps(summary.to_dict(), allow_nan=False)))
    finite = {name: value for name, value in numbers.items() if np.isfinite(value)}
    assert again == dataclasses.replace(summary, numbers=finite)


def test_a_summary_keeps_the_last_lines_of_an_error():
    def deep(depth):
        if depth:
            deep(depth - 1)
        raise RuntimeError("at the end")

    with pytest.raises(RuntimeError) as caught:
        deep(30)
    assert summarize_failure(CONFIG, caught.value).error.splitlines()[-1] == "RuntimeError: at the end"
    assert len(summarize_failure(CONFIG, caught.value).error.splitlines()) == task._ERROR_LINES
