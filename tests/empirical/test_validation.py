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

import simulate
from empirical.studies.validation import checks, study
from empirical.studies.validation.study import MARKER, PRESETS, REPORT, RUNS, TABLE, Preset, digits_rows, validate
from empirical.sweeps.task import run_path
from simulate._files import is_locked
from simulate.trajectories.folder import count_steps
from tests.html_pages import checked

CONFIGS = PRESETS["digits"].runs
NAMES = list(CONFIGS)


def folder_of(out, name):
    return run_path(out / RUNS, CONFIGS[name])


def shortened():
    """The runs of the real preset, just long enough for rows after the first 2/ηλ steps; the verdicts mean nothing."""
    runs = PRESETS["digits"].runs.items()
    return Preset(
        {n: dataclasses.replace(c, steps=min(c.steps, round(2 / c.lr / c.wd) + 110)) for n, c in runs}, digits_rows
    )


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:Degrees of freedom")
def test_the_machinery_from_training_to_report(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "digits", shortened())
    out = tmp_path / "report"
    result = validate("digits", out, progress=False)
    assert len(result.rows) == 30
    assert not result.holds, "runs of a few hundred steps cannot have sixty periods"
    # what needs no statistics holds in short runs too
    for row in result.rows:
        if row.claim.startswith(("replay", "control, replay", "norm inside", "same losses", "control, losses")):
            assert row.holds, row
    with open(out / TABLE, encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [line["claim"] for line in table] == [row.claim for row in result.rows]
    assert [line["verdict"] for line in table] == [row.verdict for row in result.rows]
    found = checked(out / REPORT)
    assert len(re.findall("<svg", found.text)) == 6
    assert [cell for cell, _ in found.column(0, "verdict")] == [row.verdict for row in result.rows]
    shown = [float(value or "nan") for _, value in found.column(0, "predicted")]
    np.testing.assert_array_equal(shown, [row.predicted for row in result.rows])
    assert len(list((out / RUNS).glob("runs/*/*"))) == len(NAMES)
    for name, run in PRESETS["digits"].runs.items():
        place = run_path(out / RUNS, run)
        assert [[name, None], [place.relative_to(out).as_posix(), None]] in found.tables[1]
        assert simulate.load(place).attrs["lr"] == run.lr
    # the next call replaces this report, and an unfinished one is continued
    study._claim_folder(out, "digits", PRESETS["digits"])
    assert [p.name for p in out.iterdir()] == [MARKER]
    (out / RUNS).mkdir()
    study._claim_folder(out, "digits", PRESETS["digits"])
    assert sorted(p.name for p in out.iterdir()) == [RUNS, MARKER]


def test_what_is_not_our_report_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / MARKER).write_text('{"made_by": "someone else"}')
    with pytest.raises(ValueError, match="out must be a new or empty folder or an earlier report"):
        validate("digits", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt", MARKER]


INTERRUPTED = """
import sys
from empirical.cli.main import main
if __name__ == "__main__":
    main(["validate", "--out", sys.argv[1]])
"""


def test_stopping_keeps_the_runs_and_the_next_call_goes_on(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "report"
    script.write_text(INTERRUPTED)

    def stopped_after(steps, number):
        process = subprocess.Popen([sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True)
        while sum(count_steps(folder_of(out, name)) for name in NAMES) < steps and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, number)
        _, message = process.communicate()
        return process.returncode, message, {name: count_steps(folder_of(out, name)) for name in NAMES}

    code, message, first = stopped_after(200, signal.SIGINT)
    assert code == 130, message
    assert "Traceback" not in message
    assert str(out) in message
    # killed with -9, the training processes notice that they are alone and end their runs in order
    code, _, second = stopped_after(sum(first.values()) + 200, signal.SIGKILL)
    assert code == -signal.SIGKILL
    begun = [name for name in NAMES if second[name]]
    while any(is_locked(folder_of(out, name)) for name in begun):
        time.sleep(0.1)
    assert all(second[name] >= first[name] for name in NAMES)
    assert {simulate.load(folder_of(out, name)).status.item() for name in begun} <= {"interrupted", "complete"}
    code, _, third = stopped_after(sum(second.values()) + 200, signal.SIGTERM)
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
    assert all(row.holds for row in checks.equilibrium("same", noisy(0), noisy(1)))
    norm, rotation, spread = checks.equilibrium("other gradients", noisy(0), noisy(1, scale=1.1))
    assert not norm.holds
    assert rotation.holds
    assert spread.holds
    assert norm.difference == pytest.approx(1.1**-0.5 - 1, abs=0.01)
    # bursts of gradient: the norm formula still holds, rotation and spread do not
    bursts = np.where(np.arange(8000) % 100 < 3, 12.0, 0.2)
    burst = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(bursts), norm=2.6, steps=8000)
    norm, rotation, spread = checks.equilibrium("bursts", burst, burst)
    assert not rotation.holds
    assert not spread.holds
    assert checks.not_equilibrium("bursts", burst).holds
    assert not checks.not_equilibrium("at rest", noisy(0)).holds


def test_replay_check_can_fail():
    run = noisy(0, steps=300)
    assert checks.replay("map", run).holds
    assert not checks.replay("map", run, control=True).holds
    wrong = run.assign(grad_norm=run.grad_norm * 1.001)
    assert not checks.replay("wrong", wrong).holds
    assert checks.replay("wrong", wrong, control=True).holds


def test_envelope_error_is_that_of_the_worst_window():
    run = noisy(0, steps=400, low=1.0)
    assert checks.envelope_fit(run).outside < 1e-12
    jumped = run.assign(norm=run.norm.where(run.step != 200, run.norm * 1.5))
    assert checks.envelope_fit(jumped).outside > 0.1
    # brute force over every window
    import theory

    worst = 0.0
    norm, gradient = np.append(jumped.norm, jumped.final_norm), jumped.grad_norm.values
    for start in range(301):
        part = gradient[start : start + 100]
        bounds = theory.norm_envelope(100, norm[start], 0.5, 0.02, part.min(), part.max())
        seen = norm[start : start + 101]
        worst = max(worst, (seen / bounds.upper - 1).max(), (bounds.lower / seen - 1).max())
    assert checks.envelope_fit(jumped).outside == pytest.approx(worst, rel=1e-12)


def sawtooth(length, seed, scale=1.0, lr=0.5):
    """Falls of about `length` steps ended by jumps, with a gradient that the map turns into this trace."""
    generator = np.random.default_rng(seed)
    lengths = generator.normal(length, 0.2 * length, 90).astype(int)
    gradient = np.concatenate([np.r_[60.0 * scale**2, np.full(n, 0.1 * scale**2)] for n in lengths])
    gradient /= scale**2
    return simulate.norm_map(
        lr, 0.005 / lr, simulate.RecordedGradient(gradient), norm=5.0 * lr**0.5, steps=gradient.size
    )


def test_period_checks_can_fail():
    a, b, c = sawtooth(150, 0), sawtooth(150, 1, lr=0.1), sawtooth(220, 2)
    assert checks.periodic("a", [a]).holds
    assert not checks.periodic("few", [a.isel(step=slice(3000))]).holds
    assert checks.equal_periods(["a", "b"], [[a], [b]]).holds
    assert not checks.equal_periods(["a", "c"], [[a], [c]]).holds
    assert checks.equal_periods(["a", "c"], [[a], [c]], equal=False).holds
    assert not checks.equal_periods(["a", "b"], [[a], [b]], equal=False).holds
    ratio = checks.peak_ratio(["a", "b"], [[a], [b]])
    assert ratio.predicted == pytest.approx(5**0.5)
    assert ratio.holds
    assert not checks.peak_ratio(["a", "b"], [[a], [b.assign(norm=1.2 * b.norm)]]).holds


def test_the_error_of_a_mean_sees_scatter_between_runs():
    same, apart = [sawtooth(150, seed) for seed in (0, 1, 2)], [sawtooth(n, 0) for n in (120, 150, 180)]
    lengths = [checks.equal_periods(["a", "b"], [runs, runs]).error for runs in (same, apart)]
    assert lengths[1] > 2 * lengths[0]


def test_loss_check_can_fail():
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=20)
    first = run.assign(loss=run.norm * 0 + 1.0)
    assert checks.same_losses("a", first, first.assign(loss=first.loss + 1e-7)).holds
    assert not checks.same_losses("a", first, first.assign(loss=first.loss + 1e-5)).holds
    assert checks.same_losses("a", first, first.assign(loss=first.loss + 1e-5), control=True).holds


@pytest.mark.acceptance
def test_every_claim_holds_at_full_size(tmp_path):
    result = validate("digits", tmp_path / "report", progress=False)
    assert result.holds, str(result)
