import concurrent.futures
import csv
import dataclasses
import re

import numpy as np
import pytest

import simulate
import theory
from empirical.studies import statistics
from empirical.studies.statistics import distance_from_envelope, in_random_order, period_difference
from empirical.studies.study import FAILS, HOLDS, RUNS_SUBFOLDER, UNDECIDED
from empirical.studies.validation import (
    PRESETS,
    VALIDATION_MARKER,
    VALIDATION_REPORT,
    VALIDATION_TABLE,
    Validation,
    digits_studies,
    prepare_report_folder,
    validate,
    validate_runs,
)
from empirical.sweeps.task import run_path
from tests.html_pages import read_page

CONFIGS = PRESETS["digits"]
NAMES = list(CONFIGS)
STUDIES = {study.name: study for study in digits_studies(CONFIGS)}
# long enough for rows after the transient; verdicts on periods have no meaning
SHORT = {
    name: dataclasses.replace(run, steps=min(run.steps, round(2 / run.lr / run.wd) + 110))
    for name, run in CONFIGS.items()
}


def test_names_are_unique():
    assert len(STUDIES) == len(digits_studies(CONFIGS)) == 23
    assert all(study.reason and study.source for study in STUDIES.values())
    assert len({config.identity for config in CONFIGS.values()}) == len(CONFIGS)


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:Degrees of freedom")
def test_from_training_to_report(tmp_path):
    out = tmp_path / "report"
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        result = validate_runs("digits", SHORT, out, executor=executor, progress=False)
    assert len(result.rows) == 35
    assert not result.holds, "runs of a few hundred steps cannot have sixty periods"
    # exact laws hold in short runs too
    exact = ("replay", "control, replay", "norm inside", "equal losses", "control, losses")
    holding = {row.claim: row.verdict for row in result.rows if row.claim.startswith(exact)}
    assert len(holding) == 19
    assert set(holding.values()) == {HOLDS}, holding
    with open(out / VALIDATION_TABLE, encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [line["claim"] for line in table] == [row.claim for row in result.rows]
    assert [line["verdict"] for line in table] == [row.verdict for row in result.rows]
    page = read_page(out / VALIDATION_REPORT)
    assert len(re.findall("<svg", page.text)) == 6
    assert [cell for cell, _ in page.column(0, "verdict")] == [row.verdict for row in result.rows]
    predicted = [float(value or "nan") for _, value in page.column(0, "predicted")]
    np.testing.assert_array_equal(predicted, [row.numbers.predicted for row in result.rows])
    assert len(list((out / RUNS_SUBFOLDER).glob("runs/*/*"))) == len(NAMES)
    for name, run in SHORT.items():
        place = run_path(out / RUNS_SUBFOLDER, run)
        assert [[name, None], [place.relative_to(out).as_posix(), None]] in page.tables[1]
        assert simulate.load(place).attrs["lr"] == run.lr
    # the next call replaces this report and continues an unfinished one
    prepare_report_folder(out, "digits", SHORT)
    assert [p.name for p in out.iterdir()] == [VALIDATION_MARKER]
    (out / RUNS_SUBFOLDER).mkdir()
    prepare_report_folder(out, "digits", SHORT)
    assert sorted(p.name for p in out.iterdir()) == [RUNS_SUBFOLDER, VALIDATION_MARKER]


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / VALIDATION_MARKER).write_text('{"made_by": "someone else"}')
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        validate("digits", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt", VALIDATION_MARKER]


def run_of(trajectory, other=None):
    return {"run": [trajectory]} | ({} if other is None else {"other": [other]})


def verdict(name, data):
    return dataclasses.replace(STUDIES[name], controls=()).judge(data).verdict


def test_a_failing_row_fails_the_validation(tmp_path):
    study = dataclasses.replace(STUDIES["replay-small-norm"], controls=STUDIES["replay-small-norm"].controls[:1])
    exact = noisy(0, steps=300)
    wrong = exact.assign(grad_norm=exact.grad_norm * 1.001)
    for control, good in ((wrong, True), (exact, False)):
        validation = Validation(rows=study.judge(run_of(exact), [run_of(control)]).rows, folder=tmp_path)
        assert [row.verdict for row in validation.rows] == [HOLDS, HOLDS if good else FAILS]
        assert validation.holds is good
        assert ("fails" in str(validation).split()) is not good
    undecided = study.judge(run_of(exact), [run_of(exact.assign(norm=exact.norm * np.nan))])
    assert [row.verdict for row in undecided.rows] == [HOLDS, UNDECIDED]
    assert not Validation(rows=undecided.rows, folder=tmp_path).holds


def noisy(seed, scale=1.0, steps=6000, low=1.5):
    gradient = simulate.BoundedGradient(low * scale, 2.5 * scale)
    return simulate.norm_map(0.5, 0.02, gradient, norm=2.6, steps=steps, seed=seed)


def test_equilibrium_checks_can_fail():
    names = ("equilibrium-norm", "equilibrium-rotation", "equilibrium-spread")
    assert [verdict(name, run_of(noisy(0), noisy(1))) for name in names] == [HOLDS] * 3
    other = run_of(noisy(0), noisy(1, scale=1.1))
    assert [verdict(name, other) for name in names] == [FAILS, HOLDS, HOLDS]
    numbers = STUDIES["equilibrium-norm"].judge(other).numbers
    assert numbers.difference == pytest.approx(1.1**-0.5 - 1, abs=0.01)
    # with bursts of gradient the norm formula still holds, but rotation and spread do not
    bursts = np.where(np.arange(8000) % 100 < 3, 12.0, 0.2)
    burst = simulate.norm_map(0.5, 0.02, simulate.RecordedGradient(bursts), norm=2.6, steps=8000)
    assert [verdict(name, run_of(burst, burst)) for name in names[1:]] == [FAILS, FAILS]
    rotation = STUDIES["equilibrium-rotation"]
    for control, expected in ((burst, HOLDS), (noisy(0), FAILS)):
        assert rotation.judge(run_of(noisy(0), noisy(1)), [run_of(control)]).rows[1].verdict == expected


def test_envelope_error_is_that_of_the_worst_window():
    run = noisy(0, steps=400, low=1.0)
    assert distance_from_envelope(run_of(run)).measured < 1e-12
    assert [row.verdict for row in STUDIES["envelope"].judge(run_of(run), [run_of(run)] * 2).rows] == [HOLDS] * 3
    kinked = run.assign(norm=run.norm.where(run.step != 200, run.norm * 1.5))
    distance = distance_from_envelope(run_of(kinked)).measured
    assert distance > 0.1
    assert verdict("envelope", run_of(kinked)) == FAILS
    # brute force over every window
    worst = 0.0
    norm, gradient = np.append(kinked.norm, kinked.final_norm), kinked.grad_norm.values
    for start in range(301):
        part = gradient[start : start + 100]
        bounds = theory.norm_envelope(100, norm[start], 0.5, 0.02, part.min(), part.max())
        window = norm[start : start + 101]
        worst = max(worst, (window / bounds.upper - 1).max(), (bounds.lower / window - 1).max())
    assert distance == pytest.approx(worst, rel=1e-12)


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
    a, b, c = ([run] for run in (sawtooth(150, 0), sawtooth(150, 1, lr=0.1), sawtooth(220, 2)))
    assert verdict("periodic-high", {"all": a}) == HOLDS
    assert verdict("periodic-high", {"all": [a[0].isel(step=slice(8000))]}) == UNDECIDED, "too few periods"
    assert verdict("periodic-high", {"all": [noisy(0)]}) == FAILS
    equal = STUDIES["equal-periods"]
    same, different = {"a": a, "b": b}, {"a": a, "c": c}
    assert [row.verdict for row in equal.judge(same, [different, same]).rows] == [HOLDS] * 3
    assert [row.verdict for row in equal.judge(different, [same, same]).rows] == [FAILS, FAILS, HOLDS]
    # equal runs without scatter differ by no standard errors
    even = simulate.norm_map(
        0.5, 0.01, simulate.RecordedGradient(np.resize([60.0] + [0.1] * 150, 9060)), norm=5.0, steps=9060
    )
    assert period_difference({"a": [even], "b": [even]}, of_any_runs=True).values == [0.0]
    assert verdict("equal-periods", {"a": [noisy(0)], "b": [noisy(0)]}) == FAILS, "equal, but not periodic"
    ratio = STUDIES["peak-ratio"].judge(same, [same])
    assert ratio.numbers.predicted == pytest.approx(5**0.5)
    assert ratio.verdict == HOLDS
    assert verdict("peak-ratio", {"a": a, "b": [b[0].assign(norm=1.2 * b[0].norm)]}) == FAILS


def test_most_runs_of_each_group_must_be_periodic():
    periodic, other = sawtooth(150, 0), noisy(0)
    assert statistics._are_periodic([periodic])
    assert statistics._are_periodic([periodic, other, periodic], [periodic])
    assert not statistics._are_periodic([periodic, other])
    # a group cannot make up for another
    assert not statistics._are_periodic([periodic] * 5, [other, periodic, other])


def test_rows_about_periods_fail_for_gradients_in_random_order():
    # by symmetry, the rises of this noise have equal T·ηλ and peaks in the ratio of √η, too
    high, low = (
        [simulate.oscillate(lr, 0.005 / lr, steps=12_000, seed=seed) for seed in seeds]
        for lr, seeds in ((0.5, (1, 2)), (0.1, (3, 4)))
    )
    for name, runs in (
        ("periodic-high", {"all": high}),
        ("equal-periods", {"a": high, "b": low}),
        ("peak-ratio", {"a": high, "b": low}),
    ):
        study = STUDIES[name]
        result = study.judge(runs, [runs] * len(study.controls))
        assert result.verdict == HOLDS
        assert result.rows[-1].verdict == HOLDS, str(result.controls[-1])
        assert "random order" in result.rows[-1].claim
    noise = [in_random_order(lambda runs: runs["all"][0])({"all": [run]}) for run in (high[0], low[0])]
    lengths = [simulate.find_periods(run).mean for run in noise]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.25)


def test_the_error_of_a_mean_includes_scatter_between_runs():
    same, apart = [sawtooth(150, seed) for seed in (0, 1, 2)], [sawtooth(n, 0) for n in (120, 150, 180)]
    errors = [period_difference({"a": runs, "b": runs}).error for runs in (same, apart)]
    assert errors[1] > 2 * errors[0]


def test_loss_check_can_fail():
    run = simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=20)
    first = run.assign(loss=run.norm * 0 + 1.0)
    near, far = ({"high": [first], "low": [first.assign(loss=first.loss + shift)]} for shift in (1e-7, 1e-5))
    study = STUDIES["equal-losses"]
    assert [row.verdict for row in study.judge(near, [far]).rows] == [HOLDS, HOLDS]
    assert [row.verdict for row in study.judge(far, [near]).rows] == [FAILS, FAILS]


@pytest.mark.acceptance
def test_every_claim_holds_at_full_size(tmp_path):
    result = validate("digits", tmp_path / "report", progress=False)
    assert result.holds, str(result)
