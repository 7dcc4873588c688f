"""The diagnosis of real trainings with known causes of their spikes."""

import concurrent.futures
import math

import numpy as np
import pytest
import torch

import empirical
import simulate
import theory
from empirical.studies.diagnosis import (
    DIAGNOSIS_STUDIES,
    INDEPENDENT_STUDY,
    LOGS,
    NO_EFFECT,
    diagnosis_outcome,
    find_causes,
    has_effect,
    judge_diagnoses,
    judge_log,
    write_diagnosis_page,
)
from empirical.studies.labelled_runs import (
    LABELS,
    NOISE,
    IndependentGradients,
    LabelledRun,
    development_runs,
    held_out_runs,
    independent_gradients,
    log_independent_gradients,
    train_labelled,
)
from empirical.studies.study import FAILS, HOLDS, goals_table
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LR_STEP, NORM_DRIVEN, OVERFLOW, UNKNOWN

STEADY = {"width": 16, "lr": 0.5, "wd": 0.01, "steps": 800}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("label", "event"),
    [
        (BAD_BATCH, "wrong labels"),
        (BAD_BATCH, "one label"),
        (BAD_BATCH, "noise for images"),
        (LR_STEP, "lr times 10"),
        (DATA_SHIFT, "labels renamed"),
        (DATA_SHIFT, "labels drawn"),
        (DATA_SHIFT, "pixels shuffled"),
        (OVERFLOW, "infinite"),
        (OVERFLOW, "skipped"),
        (NOISE, None),
    ],
)
def test_the_event_is_found(label, event):
    case = LabelledRun(label=label, settings=STEADY, event=event, at=None if event is None else 700, seed=3)
    log = train_labelled(case)
    for name, remove in LOGS.items():
        outcome = diagnosis_outcome(case, simulate.diagnose(remove(log)))
        assert outcome == "right" if name in ("full", "no gradient norm") else outcome != "wrong", name


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "convnet", "width": 8, "lr": 0.5, "wd": 0.008, "steps": 900},
        {"width": 64, "lr": 0.5, "wd": 0.008, "samples": 200, "sampling": "full_batch", "steps": 1750},
    ],
    ids=["ConvNet", "full batch"],
)
def test_periods_are_norm_driven(settings):
    case = LabelledRun(label=NORM_DRIVEN, settings=settings, seed=1)
    log = train_labelled(case)
    diagnosis = simulate.diagnose(log)
    assert diagnosis_outcome(case, diagnosis) == "right"
    explained = [spike.growth_explained for spike in diagnosis.spikes if spike.cause == NORM_DRIVEN]
    np.testing.assert_allclose(explained, 1, atol=0.01)
    # they include the troughs that `find_periods` finds
    onsets = simulate.find_periods(log.assign_attrs(lr=0.5), discard=100).onsets
    near = [min(abs(onset - spike.step) for spike in diagnosis.spikes) for onset in onsets]
    assert np.mean(np.array(near) <= 15) > 0.8


def test_a_log_is_what_the_training_did():
    # the same run by `empirical.train`
    settings = {"width": 8, "lr": 0.5, "wd": 0.02, "steps": 50, "sampling": "full_batch", "samples": 100}
    case = LabelledRun(label=NOISE, settings=settings)
    log = train_labelled(case)
    run = empirical.train(empirical.RunConfig(**case.settings))
    for name in ("loss", "norm", "grad_norm"):
        np.testing.assert_allclose(log[name], run[name], rtol=2e-3)
    assert {"wd": 0.02, "optimizer": "SGD()"}.items() <= log.attrs.items()
    replayed = simulate.replay(log.assign(final_norm=log.norm[-1]).assign_attrs(lr=0.5))
    np.testing.assert_allclose(replayed.norm, log.norm, rtol=1e-5)


def test_a_monitor_is_a_log():
    torch.manual_seed(0)
    inputs, targets = torch.randn(256, 20, generator=torch.Generator().manual_seed(0)), torch.arange(256) % 4
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 8), torch.nn.BatchNorm1d(8, eps=1e-12), torch.nn.ReLU(), torch.nn.Linear(8, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.01)
    monitor = empirical.Monitor(model, optimizer, inputs)
    for step in range(400):
        chosen = torch.randint(256, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        wrong = 1 if step == 300 else 0
        loss = torch.nn.functional.cross_entropy(model(inputs[chosen]) * (8 if wrong else 1), targets[chosen])
        loss.backward()
        monitor.before_step(loss)
        optimizer.step()
        monitor.after_step()
    (spike,) = simulate.diagnose(monitor.trajectory()).spikes
    assert (spike.step, spike.cause) == (300, BAD_BATCH)


def labelled(label, event=None, at=None, **settings):
    return LabelledRun(label=label, settings=settings, event=event, at=at)


def lines_of(path):
    """Lines of a page, with single spaces."""
    return [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]


class TestOutcome:
    """Wrong, missed and unknown diagnoses are recognized."""

    LOSS = np.random.default_rng(0).uniform(1, 2, 400)

    def overflow_at(self, *spikes):
        loss = self.LOSS.copy()
        for step in spikes:
            loss[step] = np.inf
        return simulate.diagnose({"loss": loss})

    def unknown_at(self, *spikes):
        loss = self.LOSS.copy()
        for step in spikes:
            loss[step] = 90.0
        return simulate.diagnose({"loss": loss})

    def test_noise(self):
        case = labelled(NOISE)
        assert diagnosis_outcome(case, self.overflow_at()) == "right"
        assert diagnosis_outcome(case, self.overflow_at(200)) == "wrong"
        assert diagnosis_outcome(case, self.unknown_at(200)) == "unknown"

    def test_an_event(self):
        case = labelled(OVERFLOW, "infinite", 200)
        assert (
            diagnosis_outcome(case, self.overflow_at(200)) == diagnosis_outcome(case, self.overflow_at(229)) == "right"
        )
        assert diagnosis_outcome(case, self.overflow_at()) == diagnosis_outcome(case, self.overflow_at(231)) == "missed"
        assert diagnosis_outcome(case, self.overflow_at(100, 200)) == "wrong"
        assert diagnosis_outcome(case, self.unknown_at(200)) == "unknown"
        assert diagnosis_outcome(labelled(BAD_BATCH, "one label", 200), self.overflow_at(200)) == "wrong"

    def test_periods(self):
        case = labelled(NORM_DRIVEN)
        assert diagnosis_outcome(case, self.overflow_at(200)) == "wrong"
        assert diagnosis_outcome(case, self.overflow_at()) == "missed"
        assert diagnosis_outcome(case, self.unknown_at(200)) == "unknown"


def test_events_without_effect_are_not_counted(tmp_path):
    dead = simulate.read_log({"loss": np.full(400, 2.3)}, lr=0.1, wd=0.1)
    case = labelled(BAD_BATCH, "one label", 300)
    assert not has_effect(case, dead)
    outcomes = judge_log(case, dead)
    assert outcomes["full"] == NO_EFFECT
    write_diagnosis_page(tmp_path / "page.md", {"a": ([case], [outcomes])})
    assert "| a | 0 | 0 % | 0 % | 0 % | 0 % |" in lines_of(tmp_path / "page.md")
    high = dead.assign(loss=("step", np.where(np.arange(400) == 310, 2.4, 2.3)))
    assert has_effect(case, high)
    lost = dead.assign(loss=("step", np.where(np.arange(400) < 300, 2.3, np.nan)))
    assert has_effect(labelled(OVERFLOW, "infinite", 300), lost)


def test_the_page_counts(tmp_path):
    cases = [labelled(NOISE, width=4), labelled(OVERFLOW, "infinite", 7, width=5)]
    outcomes = [dict.fromkeys(LOGS, "right") | {"spikes": "none"}, dict.fromkeys(LOGS, UNKNOWN) | {"spikes": "1"}]
    results = write_diagnosis_page(tmp_path / "page.md", {"a": (cases, outcomes), "held-out": (cases, outcomes)})
    page = lines_of(tmp_path / "page.md")
    assert page[0] == "<!-- written by `python -m empirical.studies.diagnosis` -->"
    assert "| a | 2 | 50 % | 50 % | 0 % | 0 % |" in page
    assert "| noise | 1 | 100 % | 0 % | 0 % | 0 % |" in page
    assert "| no norm | 2 | 50 % | 50 % | 0 % | 0 % |" in page
    assert "| width=5 | overflow: infinite, step 7 | 1 | unknown |" in page
    # goals of the held-out runs
    assert [result.verdict for result in results] == [FAILS, FAILS] + [HOLDS] * 6
    assert "| held-out runs, full logs: right | 50% (1 of 2) | ≥ 90% | fails |" in page
    assert goals_table(results).text().count("holds") == 6


def test_held_out_cases_are_new():
    def kinds(cases):
        return {str(sorted((k, str(v)) for k, v in case.settings.items())) for case in cases}

    development, held_out = development_runs(), held_out_runs()
    assert not kinds(development) & kinds(held_out)
    assert not {case.seed for case in development} & {case.seed for case in held_out}
    for cases in (development, held_out):
        assert {case.label for case in cases} == set(LABELS)
        for case in cases:
            empirical.RunConfig(**case.settings)
    assert len(held_out) >= 30


class TestIndependentGradients:
    MOMENTUM, ADAMW = theory.SGD(momentum=0.9), theory.AdamW(dim=1)

    @pytest.mark.parametrize("rule", [theory.SGD(), MOMENTUM, ADAMW], ids=["SGD", "momentum", "AdamW"])
    def test_the_norm_is_at_equilibrium(self, rule):
        case = IndependentGradients(
            distribution="gamma", spread=50.0, intrinsic_lr=0.01, optimizer=rule, steps=600, seed=1
        )
        log = log_independent_gradients(case)
        assert 0.8 < float(log.norm[300:].mean()) < 1.25
        decay = theory.free_decay(log.attrs["lr"], log.attrs["wd"], optimizer=rule)
        assert decay == pytest.approx(case.intrinsic_lr, rel=0.15)
        np.testing.assert_allclose(log.loss, log.grad_norm**2, rtol=1e-12)

    def test_correlation_time(self):
        case = IndependentGradients(
            distribution="lognormal", spread=2.0, intrinsic_lr=0.1, correlation_time=1.0, loss="g", steps=6000
        )
        log_loss = np.log(log_independent_gradients(case).loss.values)
        assert log_loss.std() == pytest.approx(2.0, rel=0.1)
        # the correlation of steps 10 apart is 1/e
        assert np.corrcoef(log_loss[10:], log_loss[:-10])[0, 1] == pytest.approx(math.exp(-1), abs=0.08)

    @pytest.mark.timeout(300)
    def test_their_spikes_are_not_norm_driven(self):
        heavy = [
            IndependentGradients(intrinsic_lr=0.02, steps=2500, seed=seed, **kind)
            for seed, kind in enumerate(
                [
                    *({"distribution": "lognormal", "spread": spread} for spread in (0.75, 1.5, 3.0)),
                    {"distribution": "student-t", "spread": 2.0},
                    {"distribution": "gamma", "spread": 0.3},
                    {"distribution": "lognormal", "spread": 1.0, "loss": "log(1 + g²)"},
                    {"distribution": "lognormal", "spread": 2.0, "optimizer": self.MOMENTUM},
                    {"distribution": "lognormal", "spread": 2.0, "optimizer": self.ADAMW},
                    {"distribution": "lognormal", "spread": 1.0, "correlation_time": 0.03},
                ]
            )
        ]
        with concurrent.futures.ThreadPoolExecutor(1) as here:
            causes = [cause for found in find_causes(heavy, here, progress=False) for cause in found]
        result = INDEPENDENT_STUDY.judge(causes)
        assert result.values.size >= 250
        assert result.verdict == HOLDS

    def test_the_cases_of_the_study(self):
        cases = independent_gradients()
        assert len({str(case) for case in cases}) * 3 == len(cases)
        assert {repr(case.optimizer) for case in cases} == {repr(theory.SGD()), repr(self.MOMENTUM), repr(self.ADAMW)}
        assert {case.intrinsic_lr for case in cases} == {5e-4, 5e-3, 2e-2}

    def test_the_page_counts_their_causes(self, tmp_path):
        case = IndependentGradients(distribution="lognormal", spread=1.0, intrinsic_lr=0.01)
        found = [(case, [UNKNOWN, NORM_DRIVEN]), (case, [BAD_BATCH, UNKNOWN])]
        (result,) = write_diagnosis_page(tmp_path / "page.md", {}, found)
        assert result.verdict == FAILS
        assert "| lognormal 1, SGD(), loss g² | 1 | 1 | 0 | 2 |" in lines_of(tmp_path / "page.md")


@pytest.mark.acceptance
@pytest.mark.timeout(3000)
def test_diagnoses_of_independent_gradients():
    cases = independent_gradients()
    with concurrent.futures.ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        causes = [cause for found in find_causes(cases, executor, progress=False) for cause in found]
    result = INDEPENDENT_STUDY.judge(causes)
    assert result.values.size >= 1000
    assert result.verdict == HOLDS


@pytest.mark.acceptance
@pytest.mark.timeout(3000)
def test_diagnoses_of_held_out_runs():
    cases = held_out_runs()
    with concurrent.futures.ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        outcomes = judge_diagnoses(cases, executor, progress=False)
    results = [study.judge(outcomes) for study in DIAGNOSIS_STUDIES]
    assert len(results) == len(LOGS)
    assert all(result.values.size >= 60 and result.verdict == HOLDS for result in results), goals_table(results).text()


def test_labelled_runs_are_judged():
    case = LabelledRun(label=NOISE, settings={"width": 4, "lr": 0.5, "wd": 0.02, "steps": 300})
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        (outcomes,) = judge_diagnoses([case], here, progress=False)
    assert (outcomes["full"], outcomes["loss alone"], outcomes["spikes"]) == ("right", "right", "none")


def test_other_optimizers_train_too():
    for rule in (theory.SGD(momentum=0.9), theory.AdamW(dim=1)):
        log = train_labelled(labelled(NOISE, width=4, lr=1e-3, wd=0.1, steps=20, optimizer=rule))
        assert log.loss.values[-5:].mean() < log.loss.values[0]
        assert log.attrs["optimizer"] == repr(rule)
