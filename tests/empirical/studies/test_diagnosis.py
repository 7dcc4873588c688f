"""The diagnosis of real trainings with known causes of their spikes."""

import concurrent.futures
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import empirical
import simulate
import theory
from empirical.studies.derived_logs import LOGS, WRONG_LOGS
from empirical.studies.diagnosis import (
    DIAGNOSIS_STUDIES,
    HELD_OUT,
    INDEPENDENT_STUDY,
    NO_EFFECT,
    ORDINARY_HELD_OUT,
    diagnosis_outcome,
    find_causes,
    has_effect,
    judge_derived_log,
    judge_diagnoses,
    judge_log,
    write_diagnosis_page,
)
from empirical.studies.labelled_runs import (
    BAD_EPOCH,
    DIVERGENCE,
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
from empirical.studies.ordinary_runs import ordinary_held_out_runs
from empirical.studies.study import FAILS, HOLDS, goals_table
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LARGE_UPDATE, LR_STEP, NORM_DRIVEN, OVERFLOW, UNKNOWN
from simulate.diagnosis.trends import SLOW_RISE
from theory.optimizers import with_dim

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
    for name in LOGS:
        outcome, _ = judge_derived_log(case, log, name)
        assert outcome == "right" if name in ("full", "no gradient norm") else outcome != "wrong", name


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "convnet", "width": 4, "lr": 0.5, "wd": 0.008, "steps": 900},
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
    settings = {"wd": 0.02, "optimizer": "SGD()", "row_unit": "steps", "epoch_length": 1}
    assert log.attrs | settings == log.attrs
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
    ORDINARY = "empirical.studies.ordinary_networks:plain_mlp"

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

    def test_an_early_norm_driven_spike_is_right_if_the_network_has_such_spikes(self):
        found = SimpleNamespace(
            spikes=[SimpleNamespace(step=100, cause=NORM_DRIVEN), SimpleNamespace(step=200, cause=OVERFLOW)], trends=()
        )
        case = labelled(OVERFLOW, "infinite", 200, model="empirical.studies.ordinary_networks:plain_mlp")
        assert diagnosis_outcome(case, found) == "wrong"
        assert diagnosis_outcome(dataclasses.replace(case, has_norm_driven_spikes=True), found) == "right"
        assert diagnosis_outcome(labelled(OVERFLOW, "infinite", 200), found) == "right"

    def test_rows_far_apart(self):
        case = labelled(OVERFLOW, "infinite", 200)
        assert diagnosis_outcome(case, self.overflow_at(240), spacing=10) == "right"
        assert diagnosis_outcome(case, self.overflow_at(251), spacing=10) == "missed"
        epochs = labelled(OVERFLOW, "infinite", 4010)
        assert diagnosis_outcome(epochs, self.overflow_at(200), steps_per_number=20) == "right"
        assert diagnosis_outcome(epochs, self.overflow_at(203), steps_per_number=20) == "missed"

    def test_a_cause_long_after_a_short_event_of_an_ordinary_network(self):
        case = labelled(OVERFLOW, "infinite", 100, model=self.ORDINARY)
        assert diagnosis_outcome(case, self.overflow_at(100, 320)) == "right"
        assert diagnosis_outcome(case, self.overflow_at(100, 340)) == "wrong"
        assert diagnosis_outcome(labelled(OVERFLOW, "infinite", 100), self.overflow_at(100, 340)) == "right"

    def test_slow_events(self):
        assert diagnosis_outcome(labelled(DIVERGENCE, "lr grows", 100), self.overflow_at(300)) == "right"
        assert diagnosis_outcome(labelled(SLOW_RISE, "labels drawn", 100), self.overflow_at(300)) == "wrong"
        assert diagnosis_outcome(labelled(SLOW_RISE, "labels drawn", 100), self.overflow_at(50)) == "wrong"
        assert diagnosis_outcome(labelled(SLOW_RISE, "labels drawn", 100), self.unknown_at(300)) == "unknown"
        assert diagnosis_outcome(labelled(SLOW_RISE, "labels drawn", 100), self.unknown_at()) == "missed"

    def test_periods(self):
        case = labelled(NORM_DRIVEN)
        assert diagnosis_outcome(case, self.overflow_at(200)) == "wrong"
        assert diagnosis_outcome(case, self.overflow_at()) == "missed"
        assert diagnosis_outcome(case, self.unknown_at(200)) == "unknown"


def log_of(loss, **attributes):
    """Complete log with this loss and constant norms."""
    ones = ("step", np.ones(len(loss)))
    names = ("norm", "grad_norm", "gradient_norm", "all_weights_norm", "all_gradient_norm", "lr")
    log = simulate.read_log({"loss": loss}, wd=0.1, optimizer=theory.SGD())
    log = log.assign(dict.fromkeys(names, ones) | {"epoch": ("step", np.arange(len(loss)) // 20)})
    return log.assign_attrs(row_unit="steps", epoch_length=20, **attributes)


def test_events_without_effect_are_not_counted(tmp_path):
    dead = log_of(np.full(400, 2.3))
    case = labelled(BAD_BATCH, "one label", 300)
    assert not has_effect(case, dead)
    outcomes = judge_log(case, dead)
    assert outcomes["full"] == NO_EFFECT
    write_diagnosis_page(tmp_path / "page.md", {"a": ([case], [outcomes])})
    assert "| a | 0 | 0 % | 0 % | 0 % | 0 % |" in lines_of(tmp_path / "page.md")
    high = dead.assign(loss=("step", np.where(np.arange(400) == 310, 2.4, 2.3)))
    assert has_effect(case, high)
    lost = dead.assign(loss=("step", np.where(np.arange(400) < 300, 2.3, np.inf)))
    assert has_effect(labelled(OVERFLOW, "infinite", 300), lost)
    # a cause that the run does not have is wrong in any case
    assert judge_derived_log(case, lost, "full")[0] == "wrong"


def test_effects_in_derived_logs():
    loss = np.full(4000, 0.5) + 1e-3 * np.sin(np.arange(4000))
    loss[3003] = 5.0
    log, case = log_of(loss), labelled(BAD_BATCH, "one label", 3003)
    outcomes = {name: judge_derived_log(case, log, name)[0] for name in LOGS}
    assert outcomes["full"] != NO_EFFECT
    assert outcomes["every 10th step"] == outcomes["every 50th step"] == NO_EFFECT
    assert outcomes["one row per epoch"] != NO_EFFECT
    slow = labelled(SLOW_RISE, "labels drawn", 2000)
    assert not has_effect(slow, log)
    assert has_effect(slow, log_of(loss + np.linspace(0, 3, 4000)))


def test_a_log_that_contradicts_the_law_has_no_cause():
    # a norm that decays faster than by weight decay alone
    log = log_of(np.random.default_rng(0).uniform(1, 2, 400))
    log = log.assign(norm=("step", np.exp(-0.1 * np.arange(400))))
    case = labelled(BAD_BATCH, "one label", 300)
    assert judge_derived_log(case, log, "a quarter of the weight decay")[0] == "right"
    lost = log.assign(loss=log.loss.where(log.step != 300, np.inf))
    assert judge_derived_log(case, lost, "a quarter of the weight decay")[0] == "wrong"
    overflow = labelled(OVERFLOW, "infinite", 300)
    assert judge_derived_log(overflow, lost, "a quarter of the weight decay")[0] == "right"


def test_a_bad_epoch_is_of_the_data():
    case = labelled(BAD_EPOCH, "random labels", 700, **STEADY)
    outcome, diagnosis = judge_derived_log(case, train_labelled(case), "full")
    assert outcome == "right"
    assert {spike.cause for spike in diagnosis.spikes if spike.step >= 698} <= {BAD_BATCH, DATA_SHIFT, UNKNOWN}


def test_the_page_counts(tmp_path):
    cases = [labelled(NOISE, width=4), labelled(OVERFLOW, "infinite", 7, width=5)]
    logs = (*LOGS, *WRONG_LOGS)
    outcomes = [dict.fromkeys(logs, "right") | {"spikes": "none"}, dict.fromkeys(logs, UNKNOWN) | {"spikes": "1"}]
    sets = dict.fromkeys(("a", HELD_OUT, ORDINARY_HELD_OUT), (cases, outcomes))
    results = write_diagnosis_page(tmp_path / "page.md", sets)
    page = lines_of(tmp_path / "page.md")
    assert page[0] == "<!-- written by `python -m empirical.studies.diagnosis` -->"
    assert "| a | 2 | 50 % | 50 % | 0 % | 0 % |" in page
    assert "| noise | 1 | 100 % | 0 % | 0 % | 0 % |" in page
    assert "| no norm | 2 | 50 % | 50 % | 0 % | 0 % |" in page
    assert "| epochs numbered as steps | 2 | 50 % | 50 % | 0 % | 0 % |" in page
    assert "| width=5 | overflow: infinite, step 7 | 1 | unknown |" in page
    # goals of both held-out sets
    count = len(logs) - 1
    assert [result.verdict for result in results] == 2 * ([FAILS, FAILS] + [HOLDS] * count)
    assert "| held-out runs, full logs: right | 50% (1 of 2) | ≥ 90% | fails |" in page
    assert "| ordinary held-out runs, full logs: right | 50% (1 of 2) | ≥ 80% | fails |" in page
    assert goals_table(results).text().count("holds") == 2 * count
    assert len({study.name for studies in DIAGNOSIS_STUDIES.values() for study in studies}) == len(results)


def test_held_out_cases_are_new():
    def kinds(cases):
        return {str(sorted((k, str(v)) for k, v in case.settings.items())) for case in cases}

    development, held_out = development_runs(), held_out_runs()
    assert not kinds(development) & kinds(held_out)
    assert not {case.seed for case in development} & {case.seed for case in held_out}
    for cases in (development, held_out):
        assert {case.label for case in cases} == set(LABELS) - {BAD_EPOCH, SLOW_RISE, DIVERGENCE, LARGE_UPDATE}
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
@pytest.mark.parametrize(
    ("runs", "make_cases"), [(HELD_OUT, held_out_runs), (ORDINARY_HELD_OUT, ordinary_held_out_runs)]
)
def test_diagnoses_of_held_out_runs(runs, make_cases):
    with concurrent.futures.ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        outcomes = judge_diagnoses(make_cases(), executor, progress=False)
    results = [study.judge(outcomes) for study in DIAGNOSIS_STUDIES[runs]]
    assert len(results) == len(LOGS) + len(WRONG_LOGS) + 1
    assert all(result.values.size >= 40 and result.verdict == HOLDS for result in results), goals_table(results).text()


def test_labelled_runs_are_judged():
    case = LabelledRun(label=NOISE, settings={"width": 4, "lr": 0.5, "wd": 0.02, "steps": 300})
    with concurrent.futures.ThreadPoolExecutor(1) as here:
        (outcomes,) = judge_diagnoses([case], here, progress=False)
    assert (outcomes["full"], outcomes["loss alone"], outcomes["spikes"]) == ("right", "right", "none")


def test_other_optimizers_train_too():
    for rule in (theory.SGD(momentum=0.9), theory.AdamW(dim=1)):
        log = train_labelled(labelled(NOISE, width=4, lr=1e-3, wd=0.1, steps=20, optimizer=rule))
        assert log.loss.values[-5:].mean() < log.loss.values[0]
        assert log.attrs["optimizer"] == repr(with_dim(rule, 272))
