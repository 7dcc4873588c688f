import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from empirical.studies.validation.study import (
    PRESETS,
    VALIDATION_MARKER,
    VALIDATION_REPORT,
    VALIDATION_RUNS,
    VALIDATION_TABLE,
    Preset,
    digits_rows,
    validate,
)

import simulate
from empirical.studies.validation import checks, study
from empirical.sweeps.task import run_path
from simulate._files import is_locked
from simulate.trajectories.folder import count_steps
from tests.html_pages import read_page

CONFIGS = PRESETS["digits"].runs
NAMES = list(CONFIGS)


def folder_of(out, name):
    return run_path(out / VALIDATION_RUNS, CONFIGS[name])


def shortened():
    """Runs of the preset, just long enough for rows after the transient. Their verdicts have no meaning."""
    runs = PRESETS["digits"].runs.items()
    return Preset(
        {n: dataclasses.replace(c, steps=min(c.steps, round(2 / c.lr / c.wd) + 110)) for n, c in runs}, digits_rows
    )


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:Degrees of freedom")
def test_from_training_to_report(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "digits", shortened())
    out = tmp_path / "report"
    result = validate("digits", out, progress=False)
    assert len(result.rows) == 30
    assert not result.holds, "runs of a few hundred steps cannot have sixty periods"
    # exact laws hold in short runs too
    for row in result.rows:
        if row.claim.startswith(("replay", "control, replay", "norm inside", "equal losses", "control, losses")):
            assert row.holds, row
    with open(out / VALIDATION_TABLE, encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [line["claim"] for line in table] == [row.claim for row in result.rows]
    assert [line["verdict"] for line in table] == [row.verdict for row in result.rows]
    page = read_page(out / VALIDATION_REPORT)
    assert len(re.findall("<svg", page.text)) == 6
    assert [cell for cell, _ in page.column(0, "verdict")] == [row.verdict for row in result.rows]
    predicted = [float(value or "nan") for _, value in page.column(0, "predicted")]
    np.testing.assert_array_equal(predicted, [row.predicted for row in result.rows])
    assert len(list((out / VALIDATION_RUNS).glob("runs/*/*"))) == len(NAMES)
    for name, run in PRESETS["digits"].runs.items():
        place = run_path(out / VALIDATION_RUNS, run)
        assert [[name, None], [place.relative_to(out).as_posix(), None]] in page.tables[1]
        assert simulate.load(place).attrs["lr"] == run.lr
    # the next call replaces this report and continues an unfinished one
    study._prepare_folder(out, "digits", PRESETS["digits"])
    assert [p.name for p in out.iterdir()] == [VALIDATION_MARKER]
    (out / VALIDATION_RUNS).mkdir()
    study._prepare_folder(out, "digits", PRESETS["digits"])
    assert sorted(p.name for p in out.iterdir()) == [VALIDATION_RUNS, VALIDATION_MARKER]


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / VALIDATION_MARKER).write_text('{"made_by": "someone else"}')
    with pytest.raises(ValueError, match="out must be a new or empty folder or an earlier report"):
        validate("digits", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt", VALIDATION_MARKER]


INTERRUPTED = """
import sys
from empirical.cli.main import run_command_line
if __name__ == "__main__":
    run_command_line(["validate", "--out", sys.argv[1]])
"""


def test_an_interrupted_validation_keeps_its_runs_and_is_continued(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "report"
    script.write_text(INTERRUPTED)

    def stop_after(steps, number):
        process = subprocess.Popen([sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True)
        while sum(count_steps(folder_of(out, name)) for name in NAMES) < steps and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, number)
        _, message = process.communicate()
        return process.returncode, message, {name: count_steps(folder_of(out, name)) for name in NAMES}

    code, message, first = stop_after(200, signal.SIGINT)
    assert code == 130, message
    assert "Traceback" not in message
    assert str(out) in message
    # after SIGKILL of the parent, the training processes end their runs properly
    code, _, second = stop_after(sum(first.values()) + 200, signal.SIGKILL)
    assert code == -signal.SIGKILL
    begun = [name for name in NAMES if second[name]]
    while any(is_locked(folder_of(out, name)) for name in begun):
        time.sleep(0.1)
    assert all(second[name] >= first[name] for name in NAMES)
    assert {simulate.load(folder_of(out, name)).status.item() for name in begun} <= {"interrupted", "complete"}
    code, _, third = stop_after(sum(second.values()) + 200, signal.SIGTERM)
    assert code == 130
    assert all(third[name] >= second[name] for name in NAMES)


def test_a_failing_row_fails_the_validation(tmp_path):
    good = checks.Row("a", "rule", True)
    assert study.Validation([good], tmp_path).holds
    assert not study.Validation([good, dataclasses.replace(good, holds=False)], tmp_path).holds
    assert "FAILS" in str(study.Validation([dataclasses.replace(good, holds=False)], tmp_path))


def noisy(seed, scale=1.0, steps=6000, low=1.5):
    gradient = simulate.BoundedGradient(low * scale, 2.5 * scale)
    return simulate.norm_map(0.5, 0.02, gradient, norm=2.6, steps=steps, seed=seed)


def test_equilibrium_checks_can_fail():
    assert all(row.holds for row in checks.equilibrium_rows("same", noisy(0), noisy(1)))
    norm, rotation, spread = checks.equilibrium_rows("other gradients", noisy(0), noisy(1, scale=1.1))
    assert not norm.holds
    assert rotation.holds
    assert spread.holds
    assert norm.difference == pytest.approx(1.1**-0.5 - 1, abs=0.01)
    # with bursts of gradient the norm formula still holds, but rotation and spread do not
    bursts = np.where(np.arange(8000) % 100 < 3, 12.0, 0.2)
    burst = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(bursts), norm=2.6, steps=8000)
    norm, rotation, spread = checks.equilibrium_rows("bursts", burst, burst)
    assert not rotation.holds
    assert not spread.holds
    assert checks.equilibrium_control_row("bursts", burst).holds
    assert not checks.equilibrium_control_row("at equilibrium", noisy(0)).holds


def test_replay_check_can_fail():
    run = noisy(0, steps=300)
    assert checks.replay_row("map", run).holds
    assert not checks.replay_row("map", run, control=True).holds
    wrong = run.assign(grad_norm=run.grad_norm * 1.001)
    assert not checks.replay_row("wrong", wrong).holds
    assert checks.replay_row("wrong", wrong, control=True).holds


def test_envelope_error_is_that_of_the_worst_window():
    run = noisy(0, steps=400, low=1.0)
    assert checks.envelope_fit(run).outside < 1e-12
    kinked = run.assign(norm=run.norm.where(run.step != 200, run.norm * 1.5))
    assert checks.envelope_fit(kinked).outside > 0.1
    # brute force over every window
    import theory

    worst = 0.0
    norm, gradient = np.append(kinked.norm, kinked.final_norm), kinked.grad_norm.values
    for start in range(301):
        part = gradient[start : start + 100]
        bounds = theory.norm_envelope(100, norm[start], 0.5, 0.02, part.min(), part.max())
        window = norm[start : start + 101]
        worst = max(worst, (window / bounds.upper - 1).max(), (bounds.lower / window - 1).max())
    assert checks.envelope_fit(kinked).outside == pytest.approx(worst, rel=1e-12)


def sawtooth(length, seed, scale=1.0, lr=0.5):
    """Trace with decay phases of about `length` steps, each ended by a destabilization."""
    generator = np.random.default_rng(seed)
    lengths = generator.normal(length, 0.2 * length, 90).astype(int)
    gradient = np.concatenate([np.r_[60.0 * scale**2, np.full(n, 0.1 * scale**2)] for n in lengths])
    gradient /= scale**2
    return simulate.norm_map(
        lr, 0.005 / lr, simulate.RecordedGradient(gradient), norm=5.0 * lr**0.5, steps=gradient.size
    )


def test_period_checks_can_fail():
    a, b, c = sawtooth(150, 0), sawtooth(150, 1, lr=0.1), sawtooth(220, 2)
    assert checks.periodic_row("a", [a]).holds
    assert not checks.periodic_row("few", [a.isel(step=slice(3000))]).holds
    assert checks.equal_periods_row(["a", "b"], [[a], [b]]).holds
    assert not checks.equal_periods_row(["a", "c"], [[a], [c]]).holds
    assert checks.equal_periods_row(["a", "c"], [[a], [c]], equal=False).holds
    assert not checks.equal_periods_row(["a", "b"], [[a], [b]], equal=False).holds
    ratio = checks.peak_ratio_row(["a", "b"], [[a], [b]])
    assert ratio.predicted == pytest.approx(5**0.5)
    assert ratio.holds
    assert not checks.peak_ratio_row(["a", "b"], [[a], [b.assign(norm=1.2 * b.norm)]]).holds


def test_the_error_of_a_mean_includes_scatter_between_runs():
    same, apart = [sawtooth(150, seed) for seed in (0, 1, 2)], [sawtooth(n, 0) for n in (120, 150, 180)]
    lengths = [checks.equal_periods_row(["a", "b"], [runs, runs]).error for runs in (same, apart)]
    assert lengths[1] > 2 * lengths[0]


def test_loss_check_can_fail():
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=20)
    first = run.assign(loss=run.norm * 0 + 1.0)
    assert checks.equal_losses_row("a", first, first.assign(loss=first.loss + 1e-7)).holds
    assert not checks.equal_losses_row("a", first, first.assign(loss=first.loss + 1e-5)).holds
    assert checks.equal_losses_row("a", first, first.assign(loss=first.loss + 1e-5), control=True).holds


@pytest.mark.acceptance
def test_every_claim_holds_at_full_size(tmp_path):
    result = validate("digits", tmp_path / "report", progress=False)
    assert result.holds, str(result)
