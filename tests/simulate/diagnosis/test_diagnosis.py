"""Diagnosis of loss spikes: they are found, and their causes are right, or unknown if the log lacks the evidence."""

import dataclasses
import functools
import itertools
import math
import re

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

import simulate
import theory
from simulate.diagnosis.diagnosis import diagnose_run
from simulate.diagnosis.log_rows import Rows, find_contradiction
from simulate.diagnosis.rules import (
    BAD_BATCH,
    CLIPPING,
    DATA_ORDER,
    DATA_SHIFT,
    LARGE_UPDATE,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    RULES,
    THRESHOLDS,
    UNKNOWN,
    Spacing,
    SpikeFeatures,
    Thresholds,
    explain,
)
from simulate.diagnosis.spikes import find_spikes, spike_features

FIXED = settings(deadline=None, derandomize=True, max_examples=25)
LR, WD = 0.5, 0.02  # ηλ = 0.01


def noise(count, seed, level=0.1):
    return level * np.random.default_rng(seed).uniform(0.8, 1.25, count)


@functools.cache
def periodic(periods=3, decay_steps=150, seed=0, lr=LR, wd=WD, longer=0, level=0.02):
    """Norm that decays almost freely until some large gradients raise it; the loss follows them."""
    burst = np.array([4.0, 15.0, 40.0, 60.0, 30.0, 10.0])
    phases = [noise(decay_steps + longer * number**2, seed + number, level) for number in range(periods)]
    gradients = np.concatenate([np.append(phase, burst) for phase in phases])
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=6.0, steps=gradients.size)
    # the rotation of a step determines the loss of the next
    rotation = np.append(0.0, run.rotation.values[:-1])
    return as_training(run).assign(loss=("step", noise(gradients.size, seed + 99) + 3 * rotation**2)), decay_steps + 6


@functools.cache
def at_equilibrium(count=800, seed=0, lr=LR, wd=WD):
    """Norm at equilibrium, with random loss and gradients."""
    gradients = noise(count, seed, 2.0)
    start = theory.equilibrium_norm(lr, wd, 2.0)
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=start, steps=count)
    return as_training(run).assign(loss=("step", noise(count, seed + 99)))


def as_training(run):
    """Mark the run as a training, which has data."""
    return run.assign_attrs(source="training")


def with_columns(run, **columns):
    return run.assign({name: (run[name].dims, values) for name, values in columns.items()})


def with_losses(run, at, losses):
    """Replace losses from a row on."""
    loss = run.loss.values.copy()
    loss[at : at + len(losses)] = losses
    return with_columns(run, loss=loss)


@settings(FIXED, max_examples=10)
@given(st.integers(0, 10**6), st.integers(3, 4), st.integers(120, 250), st.floats(0.005, 0.03))
def test_spikes_after_decay_phases_are_norm_driven(seed, periods, decay_steps, intrinsic_lr):
    # longer decay phases would end at equilibrium
    assume(decay_steps * intrinsic_lr < 2.5)
    run, length = periodic(periods, decay_steps, seed, wd=intrinsic_lr / LR)
    found = simulate.diagnose(run)
    assert {spike.cause for spike in found.spikes} == {NORM_DRIVEN}
    assert all(spike.step % length >= decay_steps - 3 for spike in found.spikes)


def test_numbers_of_a_norm_driven_spike():
    run, length = periodic(5)
    found = simulate.diagnose(run)
    assert found.cause == NORM_DRIVEN
    assert len(found.spikes) == 5
    for number, spike in enumerate(found.spikes):
        trough = number * length + 150
        assert trough <= spike.step <= trough + 4
        near = slice(trough - 3, trough + 8)
        assert spike.norm_rise == pytest.approx(float(np.log(run.norm[near].max() / run.norm[near].min())), rel=1e-6)
        assert spike.growth_explained == pytest.approx(1, abs=1e-9)
        assert 0.9 < spike.decay_ratio <= 1.01
        assert spike.norm_decay == pytest.approx(1.5, rel=0.15)
        assert spike.effective_lr == pytest.approx(float(run.effective_lr[near].max()), rel=1e-6)
        assert spike.peak_loss == run.loss[spike.step : spike.last_step + 1].max()
    assert found.next_step == pytest.approx(found.spikes[-1].step + length, abs=2)
    assert "norm had decayed" in str(found)
    assert "double the time" in str(found)


def test_the_next_spike_is_expected_after_an_equal_decay_phase():
    run, length = periodic(5)
    short = run.isel(step=slice(0, 2 * length + 80))
    found = simulate.diagnose(short)
    assert len(found.spikes) == 2
    assert found.next_step == pytest.approx(2 * length + 150, abs=15)
    assert math.isnan(found.next_stderr)
    assert f"near step {found.next_step:.0f} if the norm decays as before." in str(found)
    several = simulate.diagnose(run)
    assert f"near step {several.next_step:.0f} ± {several.next_stderr:.0f}." in str(several)


class TestNumbersByHand:
    """Numbers of the diagnosis are recomputed from the columns of the log."""

    DECAY_STEPS, LENGTH = 150, 156  # and six steps of large gradients
    # lr decreases by a fifth from one spike to the next
    SCHEDULE = np.geomspace(0.6, 0.2, 5 * LENGTH)

    @pytest.fixture(scope="class")
    @classmethod
    def logs(cls):
        """Logs, steps from row to row, and spikes."""
        # gradients that slow the decay by some percent
        slowed = periodic(5, level=0.5)[0].isel(step=slice(0, -20))
        every_second = periodic(5)[0].isel(step=slice(0, None, 2))
        logs = (slowed, 1), (periodic(5, lr=lr_schedule(cls.SCHEDULE))[0], 1), (every_second, 2)
        return [(run, gap, simulate.diagnose(run).spikes) for run, gap in logs]

    def peaks_and_troughs(self, run, gap, decay_steps=DECAY_STEPS):
        """Rows of the highest norm after each destabilization, and of the lowest before the next."""
        norm, length = run.norm.values, decay_steps + 6
        for number in range(5):
            start, end = number * length // gap, (number * length + decay_steps) // gap
            early, late = slice(max(start - 4, 0), start + 20), slice(end - 10, end + 3)
            yield early.start + int(np.argmax(norm[early])), late.start + int(np.argmin(norm[late]))

    def decays(self, run, gap):
        """Factors of the norm from row to row by decay alone, 1 - ηλ at each step."""
        lr = run.lr.values if "lr" in run.variables else np.full(run.sizes["step"], run.attrs["lr"])
        return (1 - lr * WD) ** gap

    def test_decay_and_growth(self, logs):
        for run, gap, found in logs:
            norm, decays = run.norm.values, self.decays(run, gap)
            assert {spike.cause for spike in found} == {NORM_DRIVEN}
            assert len(found) >= 4
            for spike, (peak, trough) in zip(found, self.peaks_and_troughs(run, gap), strict=False):
                evidence = " ".join(spike.evidence)
                alone = np.prod(decays[peak:trough])
                assert spike.norm_decay == pytest.approx(np.log(norm[peak] / norm[trough]), rel=1e-12)
                assert spike.decay_ratio == pytest.approx(np.log(norm[trough] / norm[peak]) / np.log(alone), rel=1e-12)
                assert f"The norm had decayed by {100 * (1 - norm[trough] / norm[peak]):.0f}%" in evidence
                first, last = (run.step.values.tolist().index(step) for step in (spike.step, spike.last_step))
                grown = norm[first : last + 2].max() / norm[trough]
                assert f"the norm grew by {100 * (grown - 1):.0f}%" in evidence

    def test_the_advised_weight_decay(self, logs):
        for run, gap, found in logs:
            steps, decays = int(run.step[-1] - run.step[0]), self.decays(run, gap)
            for spike, (peak, trough) in zip(found, self.peaks_and_troughs(run, gap), strict=False):
                # at the learning rate at its end
                duration = gap * np.log(np.prod(decays[peak:trough])) / np.log(decays[trough])
                assert f"With wd < {WD * duration / steps:.2g} a decay of this depth" in spike.advice
                assert f"longer than this log ({steps} steps)" in spike.advice

    def test_with_the_advised_wd_the_decay_takes_as_long_as_the_log(self):
        run, _ = periodic(5)
        spike = simulate.diagnose(run).spikes[-1]
        advised = float(spike.advice.rpartition("wd < ")[2].partition(" ")[0])
        free = simulate.norm_map(LR, advised, 0.0, norm=1.0, steps=run.sizes["step"])
        assert -np.log(free.final_norm) == pytest.approx(spike.norm_decay, rel=0.03)

    def test_advice_raises_the_learning_rate_over_a_relaxation_time(self):
        lr = np.where(np.arange(800) < 500, 0.05, 0.5)
        log = {"loss": with_losses(at_equilibrium(), 503, [2.0, 1.5, 0.3]).loss.values, "lr": lr}
        (spike,) = simulate.diagnose(log, wd=0.002).spikes
        # (1 - 0.5 · 0.002)^(2 · 500) = 1/e
        assert "Raise the learning rate over about 500 steps, in which ρ² decays by a factor e" in spike.advice

    @pytest.mark.parametrize("gap", [1, 2, 3])
    @pytest.mark.parametrize("without", [[], [-2, -3], [-2, -5, -6, -7]], ids=["even", "gap at the end", "gaps"])
    def test_the_next_spike_from_one_decay_phase(self, gap, without):
        # up to half of the third decay phase, with equally many rows for each distance
        whole, length = periodic(5, self.DECAY_STEPS * gap, wd=WD / gap)
        run = whole.isel(step=slice(0, 2 * length + 80 * gap, gap))
        log = run.isel(step=np.delete(np.arange(run.sizes["step"]), without))
        found = simulate.diagnose(log)
        *_, (peak, trough) = itertools.islice(self.peaks_and_troughs(run, gap, self.DECAY_STEPS * gap), 2)
        norm, factor = log.norm.values, (1 - LR * WD / gap) ** found.spikes[-1].decay_ratio
        # steps that the norm takes to the trough
        left = np.log(norm[trough] / norm[-1]) / np.log(factor)
        assert found.spikes[-1].norm_decay == pytest.approx(np.log(norm[peak] / norm[trough]), rel=1e-12)
        assert found.next_step == pytest.approx(float(log.step[-1]) + left, rel=1e-12)
        assert math.isnan(found.next_stderr)

    def test_the_next_spike_from_distances(self):
        run, _ = periodic(5, 120, longer=5)
        found = simulate.diagnose(run)
        at = [spike.step for spike in found.spikes]
        distances = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert len(distances) == 4
        mean = sum(distances) / 4
        assert found.next_step == pytest.approx(at[-1] + mean)
        assert found.next_stderr == pytest.approx(math.sqrt(sum((distance - mean) ** 2 for distance in distances) / 3))
        assert found.next_stderr > 5


@pytest.mark.parametrize("seed", range(3))
def test_causes_in_the_data(seed):
    run = at_equilibrium(seed=seed)
    one = simulate.diagnose(with_losses(run, 500, [3.0, 0.4, 0.2]))
    assert [s.cause for s in one.spikes] == [BAD_BATCH]
    # a high loss by chance may precede it
    assert 497 <= one.spikes[0].step <= 500
    lasting = simulate.diagnose(with_losses(run, 500, noise(300, seed, 2.0)))
    assert lasting.spikes[0].cause == DATA_SHIFT
    decaying = simulate.diagnose(with_losses(run, 500, 3.0 * np.exp(-np.arange(60) / 12) + 0.1))
    assert [s.cause for s in decaying.spikes] == [DATA_SHIFT]


def test_noise_has_no_spikes():
    for seed in range(10):
        found = simulate.diagnose(at_equilibrium(seed=seed))
        assert found.spikes == ()
        assert found.cause == "no spikes"
        assert "no loss stands out" in str(found)


@pytest.mark.parametrize("wait", [1, 5, 15])
def test_an_lr_step(wait):
    lr = np.where(np.arange(800) < 500, 0.05, 0.5)
    start = theory.equilibrium_norm(0.05, WD, 2.0)
    run = simulate.norm_map(lr_schedule(lr), WD, simulate.RecordedGradient(noise(800, 0, 2.0)), norm=start, steps=800)
    run = as_training(run).assign(loss=("step", noise(800, 99)))
    (spike,) = simulate.diagnose(with_losses(run, 500 + wait, [2.0, 1.5, 0.8, 0.3])).spikes
    assert spike.cause == LR_STEP
    assert "a factor of 10 in the 30 steps before" in " ".join(spike.evidence)
    assert "most at step 500" in " ".join(spike.evidence)
    assert f"Raise the learning rate over about {1 / (2 * theory.free_decay(0.5, WD)):.0f} steps" in spike.advice
    # long after the lr step it is not the cause
    late = with_losses(run, 700, [2.0, 0.2])
    assert [s.cause for s in simulate.diagnose(late).spikes] == [BAD_BATCH]
    # nor is a decrease
    steady = at_equilibrium().drop_vars("effective_lr")
    fallen = with_losses(steady, 501, [2.0, 0.2]).assign(lr=("step", np.where(np.arange(800) < 500, LR, LR / 10)))
    assert LR_STEP not in [s.cause for s in simulate.diagnose(fallen).spikes]


@pytest.mark.parametrize(
    "rule", [theory.SGD(momentum=0.9), theory.SGD(momentum=0.5, nesterov=True), theory.AdamW(dim=1)]
)
def test_lr_advice_depends_on_the_optimizer(rule):
    lr = np.where(np.arange(800) < 500, 0.05, 0.5)
    log = {"loss": with_losses(at_equilibrium(), 503, [2.0, 1.5, 0.3]).loss.values, "lr": lr, "norm": np.full(800, 3.0)}
    (spike,) = simulate.diagnose(log, wd=0.002, optimizer=rule).spikes
    assert spike.cause == LR_STEP
    assert f"about {1 / (2 * theory.free_decay(0.5, 0.002, optimizer=rule)):.0f} steps" in spike.advice
    assert repr(rule) in spike.advice
    # its decay is not known
    (adam,) = simulate.diagnose(log, wd=0.002, optimizer=theory.Adam(dim=1)).spikes
    assert (adam.cause, adam.advice) == (LR_STEP, "A smaller rise rotates the weights less.")


class TestSimulations:
    """They have no data that could be bad."""

    @pytest.mark.parametrize("seed", range(3))
    def test_destabilizations_of_the_reduced_model_are_norm_driven(self, seed):
        found = simulate.diagnose(simulate.oscillate(0.5, 0.01, steps=3000, seed=seed))
        assert len(found.spikes) > 5
        assert {spike.cause for spike in found.spikes} == {NORM_DRIVEN}

    @pytest.mark.parametrize("source", ["map", "ode", "random_walk", "landscape", "period_model"])
    def test_spikes_that_are_not_norm_driven_are_unknown(self, source):
        losses = noise(150, 1, 2.0) if source == "map" else [3.0, 0.4, 0.2]
        run = with_losses(at_equilibrium(400), 250, losses)
        assert simulate.diagnose(run).cause in (BAD_BATCH, DATA_SHIFT)
        found = simulate.diagnose(run.assign_attrs(source=source))
        assert {spike.cause for spike in found.spikes} == {UNKNOWN}
        assert f"a simulation ({source}) has no data" in found.spikes[0].evidence[-1]
        assert all(spike.advice == "" for spike in found.spikes)
        # data sets from elsewhere may have a source, too
        attributes = {key: value for key, value in run.attrs.items() if key != "schema"}
        assert simulate.diagnose(run.drop_attrs().assign_attrs(attributes, source="cluster")).cause != UNKNOWN


class TestOverflow:
    def test_a_skipped_step(self):
        run = with_losses(at_equilibrium(), 500, [math.inf])
        (spike,) = simulate.diagnose(run).spikes
        assert (spike.step, spike.last_step, spike.cause) == (500, 500, OVERFLOW)
        assert spike.advice == ""

    def test_lost_weights(self):
        run = at_equilibrium()
        columns = {name: np.where(np.arange(800) < 600, run[name], math.nan) for name in ("loss", "norm", "grad_norm")}
        (spike,) = simulate.diagnose(with_columns(run, **columns)).spikes
        assert (spike.step, spike.last_step, spike.cause) == (600, 799, OVERFLOW)
        assert "to the end" in spike.evidence[0]
        assert "loss scalers" in spike.advice

    def test_an_infinite_gradient_alone(self):
        run = at_equilibrium()
        gradients = run.grad_norm.values.copy()
        gradients[300] = math.inf
        (spike,) = simulate.diagnose(with_columns(run, grad_norm=gradients)).spikes
        assert (spike.step, spike.cause) == (300, OVERFLOW)
        assert "gradient" in spike.evidence[0]

    def test_only_columns_that_are_not_finite_are_named(self):
        run = at_equilibrium()
        norm = run.norm.values.copy()
        norm[600:] = math.inf
        log = {"loss": run.loss.values, "norm": norm, "grad_norm": (run.grad_norm / run.norm).values}
        (spike,) = simulate.diagnose(log, lr=LR, wd=WD).spikes
        assert (spike.step, spike.last_step, spike.cause) == (600, 799, OVERFLOW)
        assert spike.evidence[0] == "The norm is not finite from here to the end."
        # a norm that was not logged in the same row is not lost
        loss, norm = run.loss.values.copy(), run.norm.values.copy()
        loss[300], norm[300] = math.inf, math.nan
        (spike,) = simulate.diagnose({**log, "loss": loss, "norm": norm}, lr=LR, wd=WD).spikes
        assert spike.evidence[0] == "The loss is not finite for 1 step."

    def test_a_rise_before_the_overflow_is_reported(self):
        run = with_losses(at_equilibrium(), 500, [4.0, 40.0, math.inf, 0.1])
        overflow = simulate.diagnose(run).spikes[-1]
        assert (overflow.step, overflow.cause) == (502, OVERFLOW)
        assert "check the steps before" in overflow.evidence[-1]


class TestDivergence:
    """A trajectory that ends as "diverged" has finite rows; its status shows the overflow."""

    LOSSES = (2.3, 2.2, 2.4, 2.1, 2.5, 3.0, 5.0, 18.0, 1.2e6, 2.6e15)

    def diverged(self, losses, **more):
        return at_equilibrium(len(losses)).assign(loss=("step", np.array(losses)), status="diverged", **more)

    def test_it_is_an_overflow_after_the_last_row(self):
        found = simulate.diagnose(self.diverged(self.LOSSES, status_step=10))
        (spike,) = found.spikes
        assert (spike.step, spike.last_step, spike.cause) == (10, 10, OVERFLOW)
        assert "step 10: overflow. The run diverged at this step: its numbers left the floating-point range" in str(
            found
        )
        assert "It had already risen to 2.6e+15" in str(found)
        assert "no spikes" not in str(found)
        assert found.to_dict()["spikes"][0]["peak_loss"] is None
        # without the number of updates it is the step after the last
        assert simulate.diagnose(self.diverged(self.LOSSES)).spikes[0].step == 10

    def test_a_simulation_that_diverges(self):
        # one step is as long as 1e160 times the norm
        run = simulate.descend(simulate.RayleighQuotient([0.0, 1.0, 2.0]), 1e30, 0.0, steps=30, norm=1e-130)
        assert run.status.item() == "diverged"
        (spike,) = simulate.diagnose(run).spikes
        assert (spike.step, spike.cause) == (run.status_step.item(), OVERFLOW)

    def test_it_is_reported_once(self):
        losses = np.append(noise(300, 0), [math.nan] * 5)
        (spike,) = simulate.diagnose(self.diverged(losses, status_step=300)).spikes
        assert (spike.step, spike.last_step, spike.cause) == (300, 304, OVERFLOW)

    @pytest.mark.parametrize("status", ["complete", "running", "interrupted", "collapsed"])
    def test_other_statuses_are_no_overflow(self, status):
        run = at_equilibrium(300)
        assert simulate.diagnose(run.assign(status=status, status_step=300)).spikes == ()

    def test_no_next_spike_is_expected_after_it(self):
        run, _ = periodic(5)
        assert simulate.diagnose(run.assign(status="complete")).next_step > run.sizes["step"]
        found = simulate.diagnose(run.assign(status="diverged", status_step=run.sizes["step"]))
        assert math.isnan(found.next_step)
        assert [spike.cause for spike in found.spikes] == [NORM_DRIVEN] * 5 + [OVERFLOW]


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("lacking", "word"),
        [
            (["norm", "grad_norm", "rotation", "effective_lr"], "norm of the scale-invariant weights"),
            (["lr"], "learning rate"),
            (["wd"], "weight decay"),
        ],
    )
    def test_it_is_named_and_causes_are_unknown(self, lacking, word):
        for run in (periodic()[0], with_losses(at_equilibrium(), 500, [3.0, 0.2])):
            kept = {key: value for key, value in run.attrs.items() if key not in lacking}
            found = simulate.diagnose(run.drop_vars(lacking, errors="ignore").drop_attrs().assign_attrs(kept))
            assert {spike.cause for spike in found.spikes} == {UNKNOWN}
            assert any(word in text for text in found.missing)
            assert word in str(found)
            # and the option that supplies it
            option = {"lr": "(lr=, or --lr)", "wd": "(wd=, or --wd)"}.get(lacking[0], "--column norm=")
            assert option in str(found)

    def test_the_norm_alone_gives_the_rotation(self):
        run, _ = periodic()
        bare = run[["loss", "norm"]].assign_attrs(run.attrs)
        assert simulate.diagnose(bare).cause == NORM_DRIVEN
        assert simulate.diagnose(with_losses(at_equilibrium(), 500, [3.0, 0.2])[["loss", "norm"]]).cause == BAD_BATCH

    def test_sparse_rows_show_no_bad_batch(self):
        run = with_losses(at_equilibrium(8000), 5000, [3.0] * 10).isel(step=slice(None, None, 10))
        found = simulate.diagnose(run)
        assert [spike.cause for spike in found.spikes] == [UNKNOWN]
        assert "rows lie 10 steps apart" in str(found)

    def test_the_decay_of_adam_is_not_known(self):
        run, _ = periodic()
        found = simulate.diagnose(run, optimizer=theory.Adam(dim=10))
        assert {spike.cause for spike in found.spikes} == {UNKNOWN}
        assert "Adam" in str(found)
        unknown_rule = simulate.diagnose(run.assign_attrs(optimizer="RMSprop"))
        assert {spike.cause for spike in unknown_rule.spikes} == {UNKNOWN}
        assert "optimizer whose one-step law" in str(unknown_rule)
        assert "(optimizer=, or --optimizer)" in str(unknown_rule)

    def test_assuming_plain_sgd_is_reported(self):
        run = with_losses(at_equilibrium(), 500, [3.0, 0.2])
        bare = run.drop_attrs().assign_attrs(lr=LR, wd=WD)
        remark = "plain SGD is assumed"
        assert remark in str(simulate.diagnose(bare))
        assert any(remark in text for text in simulate.diagnose(bare).to_dict()["remarks"])
        assert remark not in str(simulate.diagnose(bare, optimizer=theory.SGD()))
        # the diagnosis does not use it
        assert simulate.diagnose({"loss": np.full(400, 0.1)}).remarks == ()

    @pytest.mark.parametrize(
        ("log", "limit"),
        [
            ({"loss": noise(400, 0), "step": np.arange(400) * 100}, "every step: rows lie 100 steps apart"),
            ({"loss": noise(5, 0)}, f"enough rows: it has 5; a spike needs {THRESHOLDS.least_rows} earlier rows"),
            (
                {"loss": noise(THRESHOLDS.compared_rows - 1, 0)},
                f"enough rows: it has {THRESHOLDS.compared_rows - 1}; a spike needs",
            ),
            (
                {"loss": np.where(np.arange(400) == 5, np.nan, noise(400, 0)), "weight_norm": np.ones(400)},
                "a loss in 1 of 400 rows",
            ),
            ({"loss": noise(400, 0), "step": [*range(300), *range(303, 403)]}, "3 of 403 steps"),
            (
                {"loss": noise(400, 0), "weight_norm": np.where(np.arange(400) < 300, 1.0, np.nan)},
                "norms after step 299, so",
            ),
        ],
        ids=["sparse", "five", "few", "no loss", "holes", "norms end"],
    )
    def test_limits_are_reported_without_spikes_too(self, log, limit):
        found = simulate.diagnose(log)
        assert found.cause == "no spikes"
        (missing,) = found.to_dict()["missing"]
        assert missing.startswith(limit)
        assert f"But the log lacks {missing}." in str(found)

    def test_a_complete_log_has_no_limits(self):
        for found in (
            simulate.diagnose({"loss": noise(THRESHOLDS.compared_rows, 0)}),
            simulate.diagnose(periodic()[0]),
        ):
            assert found.missing == ()
            assert "lacks" not in str(found)

    def test_too_few_rows_have_no_spikes(self):
        for count in (*range(1, 6), *range(45, THRESHOLDS.least_rows + 2)):
            loss = noise(count, 0)
            loss[-1] = 1e6
            found = simulate.diagnose({"loss": loss})
            assert found.spikes == ()
            assert f"it has {count}" in found.missing[0]

    def test_norms_at_some_rows(self):
        run, _ = periodic(decay_steps=300)
        norm = np.where(np.arange(run.sizes["step"]) % 2 == 0, run.norm.values, math.nan)
        found = simulate.diagnose(with_columns(run, norm=norm))
        assert found.log.sizes["step"] == (run.sizes["step"] + 1) // 2
        assert set(found.missing) <= {"every step: rows lie 2 steps apart"}

    def test_a_loss_at_some_rows_is_no_overflow(self):
        run = at_equilibrium()
        loss = np.where(np.arange(800) % 10 == 0, run.loss.values, math.nan)
        assert simulate.diagnose(with_columns(run, loss=loss)).spikes == ()


def test_a_norm_that_something_else_changed_is_not_explained():
    run, length = periodic(3)
    norm = run.norm.values.copy()
    # weights are scaled up while the loss is high
    norm[2 * length - 2 :] *= 3
    found = simulate.diagnose(with_columns(run, norm=norm).drop_vars("effective_lr"))
    spike = next(s for s in found.spikes if s.step >= length + 150)
    assert spike.cause == UNKNOWN
    assert "something else changed the norm" in spike.evidence[-1]


def test_without_a_decay_phase_no_spike_is_norm_driven():
    run = at_equilibrium()
    rotation = run.rotation.values.copy()
    rotation[497:500] = 1.0
    found = simulate.diagnose(with_losses(with_columns(run, rotation=rotation), 500, [3.0, 2.0, 0.3]))
    assert [spike.cause for spike in found.spikes] == [UNKNOWN]
    assert "had not decayed" in found.spikes[0].evidence[-1]


NUMBERS = st.one_of(st.just(math.nan), st.floats(-1, 20), st.sampled_from([0.0, 0.048, 0.1, 0.2, 0.3, 1.0, 1.5, 2.0]))
DRAWN_FEATURES = {
    "bool": st.booleans(),
    "float": NUMBERS,
    "int": st.integers(0, 10**6),
    "str": st.sampled_from(["", "map", "a {column}"]),
    "tuple[float, ...]": st.tuples(*(NUMBERS for _ in THRESHOLDS.outlier_ratios)),
}
DRAWN_FEATURES["Spacing"] = st.builds(Spacing, **{f.name: DRAWN_FEATURES[f.type] for f in dataclasses.fields(Spacing)})


def spike_with(cause):
    """Features by which the rules find this cause."""
    numbers = {field.name: math.nan for field in dataclasses.fields(SpikeFeatures)}
    common = numbers | {
        "has_columns": True,
        "is_dense": True,
        "simulation": "",
        "optimizer": "SGD()",
        "gradient_column": "",
        "span": 1000,
        "arrival_step": 500,
        "trough": 500,
        "mean_excess_ratios": (1.0, 1.0, 1.0),
        "contradicts_law": False,
        "turned_before": 1.0,
        "spacing": Spacing(**({field.name: math.nan for field in dataclasses.fields(Spacing)} | {"count": 1})),
    }
    by_data = {"excess_ratio": 4.0, "arrival_loss": 3.0, "largest_loss": 3.0, "first_mean": 2.0, "largest_mean": 2.0}
    by_norm = {
        "turned_before": 3.0,
        "norm_decay": 0.5,
        "decay_ratio": 0.9,
        "norm_growth": 0.05,
        "growth_explained": 1.0,
        "chance_before": 0.005,
        "rise_ratio": 12.0,
        "similar_spikes": 1,
    }
    own = {
        LR_STEP: {"lr": 0.4, "lowest_lr": 0.1, "lr_step": 490.0, "turned_before": 1.5},
        NORM_DRIVEN: by_norm | {"growth_explained": 1.0},
        LARGE_UPDATE: {
            "turned_before": 3.0,
            "update_before": 3.0,
            "spacing": dataclasses.replace(common["spacing"], possible_decay=0.01, total_decay=0.01),
            "chance_before": 0.005,
            "rise_ratio": 12.0,
        },
        CLIPPING: {"capped_before": 0.95, "cap": 1.0},
        BAD_BATCH: by_data | {"share_left": 0.01, "left_ratio": 0.5},
        DATA_SHIFT: by_data | {"share_left": 0.5, "left_ratio": 5.0},
    }[cause]
    return SpikeFeatures(**(common | own))


GROWN = dataclasses.replace(spike_with(NORM_DRIVEN), turned_before=1.0, norm_growth=0.4)
# unlikely together with similar spikes only
SIMILAR = dataclasses.replace(
    spike_with(NORM_DRIVEN), chance_before=0.1, rise_ratio=4.5, similar_spikes=3, typical_chance=0.03, typical_rise=4.0
)


def heavy_tailed(spread=1.0, seed=0, count=4000, lr=LR, wd=0.04):
    """Log whose losses and gradients depend on the batch of each step alone."""
    gradients = 2 * np.exp(spread * np.random.default_rng(seed).normal(size=count))
    start = float(theory.equilibrium_norm(lr, wd, 2.0))
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=start, steps=count)
    return as_training(run).assign(loss=("step", gradients**2))


class TestChance:
    """A norm-driven spike needs more than a norm that decayed and a batch that raised it."""

    # without this rule
    ANY = dataclasses.replace(THRESHOLDS, single_chance=1.0, single_rise=-1e9)

    @pytest.mark.parametrize("spread", [0.75, 1.5, 3.0])
    def test_heavy_tailed_batches_are_not_norm_driven(self, spread):
        run = heavy_tailed(spread)
        causes = [spike.cause for spike in diagnose_run(run).spikes]
        assert len(causes) > 50
        assert NORM_DRIVEN not in causes
        assert [spike.cause for spike in diagnose_run(run, self.ANY).spikes].count(NORM_DRIVEN) > 0.5 * len(causes)

    def test_the_reason_and_what_decides_it_are_named(self):
        found = simulate.diagnose(heavy_tailed())
        similar = [spike for spike in found.spikes if "chance may explain" in str(spike)]
        assert len(similar) > 50
        for spike in similar:
            assert spike.advice == ""
            assert f"The medians of {len(similar)} such spikes are" in str(spike)
            assert "A run with half the weight decay decides it" in spike.evidence[-1]
        assert "Halve the weight decay" not in str(found)
        assert math.isnan(found.next_step)

    def test_norm_driven_spikes_report_both_numbers(self):
        for spike in simulate.diagnose(periodic(4)[0]).spikes:
            assert re.search(r"as far before 0\.\d% of the usual rows, and the loss rose by \d+\.\d", str(spike))

    def test_chance_is_a_share_of_rows(self):
        # the three steps before the spike rotate farther than all others, but for two
        run = periodic(2)[0]
        rows = Rows.of(run)
        places = find_spikes(rows)
        features = spike_features(rows, places)[1]
        arrival = features.arrival_step
        in_spikes = np.zeros(run.sizes["step"], dtype=bool)
        for first, last in places:
            in_spikes[first : last + 1] = True
        largest = {row: rows.rotation[row - 3 : row].max() for row in range(3, arrival - 10)}
        usual = [turned for row, turned in largest.items() if not in_spikes[row - 3 : row].any()]
        turned = rows.rotation[arrival - 3 : arrival].max()
        assert features.chance_before == pytest.approx((1 + sum(usual >= turned)) / (1 + len(usual)))

    def test_a_rise_is_measured_in_usual_changes(self):
        # losses whose changes are normal, and a rise of a known height
        log_loss = np.random.default_rng(0).normal(size=3000)
        log_loss[2500:2505] += 20
        columns = {"loss": np.exp(log_loss), "norm": np.geomspace(9, 1, 3000), "lr": LR}
        rows = Rows.of(simulate.read_log(columns, wd=WD))
        (features,) = spike_features(rows, [(2500, 2504)])
        rise = log_loss[2500:2505].mean() - log_loss[2470:2490].mean()
        assert features.rise_ratio == pytest.approx(rise / math.sqrt(1 / 5 + 1 / 20), rel=0.1)
        # it does not depend on the unit of the loss, and a loss may be negative
        negative = columns | {"loss": log_loss}
        (other,) = spike_features(Rows.of(simulate.read_log(negative, wd=WD)), [(2500, 2504)])
        assert other.rise_ratio == pytest.approx(features.rise_ratio)

    def test_two_spikes_in_few_rows_are_unknown(self):
        run = periodic(2, wd=WD / 2)[0].isel(step=slice(0, None, 2))
        spikes = simulate.diagnose(run).spikes
        assert [spike.cause for spike in spikes] == [UNKNOWN] * 2
        assert "single spike needs at most 1% and at least 6.0" in str(spikes[-1])

    @pytest.mark.parametrize("factor", [10, 30])
    def test_a_bad_batch_between_destabilizations_is_not_norm_driven(self, factor):
        run, length = periodic(5)
        at = 3 * length + 80
        gradients = run.grad_norm.values.copy()
        gradients[at] *= 100 * factor
        again = simulate.norm_map(
            LR, WD, simulate.RecordedGradient(gradients), norm=float(run.norm[0]), steps=gradients.size
        )
        spikes = simulate.diagnose(with_losses(as_training(again).assign(loss=run.loss), at, [0.1 * factor])).spikes
        assert [spike.cause for spike in spikes].count(NORM_DRIVEN) >= 3
        assert {spike.cause for spike in spikes if spike.step <= at <= spike.last_step} <= {BAD_BATCH, UNKNOWN}

    def test_the_reduced_model_needs_no_test_of_chance(self):
        steady = dataclasses.replace(spike_with(NORM_DRIVEN), chance_before=1.0)
        assert explain(steady).cause == UNKNOWN
        assert explain(dataclasses.replace(steady, simulation="map")).cause == UNKNOWN
        assert explain(dataclasses.replace(steady, simulation="period_model")).cause == NORM_DRIVEN

    def test_too_few_usual_rows_are_named(self):
        few = dataclasses.replace(spike_with(NORM_DRIVEN), rise_ratio=math.nan)
        assert "too few usual rows" in " ".join(explain(few).evidence)


class TestRules:
    @settings(FIXED, max_examples=60)
    @given(st.builds(SpikeFeatures, **{f.name: DRAWN_FEATURES[f.type] for f in dataclasses.fields(SpikeFeatures)}))
    def test_any_features_have_exactly_one_cause(self, features):
        features = dataclasses.replace(features, lowest_lr=abs(features.lowest_lr) + 0.01)
        matching = [rule for rule in RULES if rule.condition(features, THRESHOLDS)]
        explanation = explain(features)
        # of several rules the first counts; the last always holds
        assert explanation.cause == matching[0].cause
        assert matching[-1] is RULES[-1]
        assert explanation.evidence[0].startswith("The loss rose from")
        assert all(sentence.endswith(".") and "{s." not in sentence for sentence in explanation.evidence)
        assert explanation.cause != UNKNOWN or explanation.advice == ""

    def test_a_log_that_says_nothing_has_no_cause(self):
        silent = dataclasses.replace(spike_with(BAD_BATCH), has_columns=False)
        assert (explain(silent).cause, explain(silent).advice) == (UNKNOWN, "")
        assert (
            "too few steps" in explain(dataclasses.replace(spike_with(BAD_BATCH), turned_before=math.nan)).evidence[1]
        )

    # sign 1: the feature must be at least the threshold; -1: at most
    @pytest.mark.parametrize(
        ("spike", "threshold", "feature", "sign"),
        [
            (spike_with(NORM_DRIVEN), "far_rotation", "turned_before", 1),
            (GROWN, "norm_rise", "norm_growth", 1),
            (GROWN, "free_decay_ratio", "decay_ratio", 1),
            (spike_with(NORM_DRIVEN), "least_decay", "norm_decay", 1),
            (spike_with(NORM_DRIVEN), "least_decay_ratio", "decay_ratio", 1),
            (spike_with(NORM_DRIVEN), "least_growth", "norm_growth", 1),
            (spike_with(NORM_DRIVEN), "least_explained", "growth_explained", 1),
            (spike_with(NORM_DRIVEN), "most_explained", "growth_explained", -1),
            (spike_with(NORM_DRIVEN), "single_chance", "chance_before", -1),
            (spike_with(NORM_DRIVEN), "single_rise", "rise_ratio", 1),
            (SIMILAR, "least_similar", "similar_spikes", 1),
            (SIMILAR, "typical_chance", "typical_chance", -1),
            (SIMILAR, "typical_rise", "typical_rise", 1),
            (SIMILAR, "member_rise", "rise_ratio", 1),
            (dataclasses.replace(SIMILAR, chance_before=0.04, rise_ratio=1.0), "typical_chance", "chance_before", -1),
            (spike_with(LARGE_UPDATE), "far_rotation", "turned_before", 1),
            (spike_with(LARGE_UPDATE), "single_chance", "chance_before", -1),
            (spike_with(CLIPPING), "often_capped", "capped_before", 1),
            (dataclasses.replace(spike_with(BAD_BATCH), share_left=0.03), "bad_batch_left", "share_left", -1),
            (dataclasses.replace(spike_with(BAD_BATCH), share_left=0.03), "bad_batch_ratio", "left_ratio", -1),
            (dataclasses.replace(spike_with(BAD_BATCH), left_ratio=2.0), "bad_batch_little", "share_left", -1),
            (dataclasses.replace(spike_with(BAD_BATCH), rise_ratio=8.0), "data_rise", "rise_ratio", 1),
            (spike_with(BAD_BATCH), "excess", "excess_ratio", 1),
            (spike_with(BAD_BATCH), "usual_rotation", "turned_before", -1),
            (dataclasses.replace(spike_with(DATA_SHIFT), left_ratio=1.0), "data_shift_left", "share_left", 1),
            (dataclasses.replace(spike_with(DATA_SHIFT), share_left=0.06), "data_shift_little", "share_left", 1),
            (dataclasses.replace(spike_with(DATA_SHIFT), share_left=0.06), "data_shift_ratio", "left_ratio", 1),
            (spike_with(DATA_SHIFT), "excess", "excess_ratio", 1),
        ],
    )
    @settings(FIXED, max_examples=4)
    @given(st.floats(1e-6, 1.0))
    def test_a_rule_needs_its_feature_within_the_threshold(self, spike, threshold, feature, sign, distance):
        cause = explain(spike).cause
        assert cause != UNKNOWN
        limit = getattr(spike, feature) * (1 - sign * distance)
        assert explain(spike, dataclasses.replace(THRESHOLDS, **{threshold: limit})).cause == cause
        limit = getattr(spike, feature) * (1 + sign * distance)
        assert explain(spike, dataclasses.replace(THRESHOLDS, **{threshold: limit})).cause == UNKNOWN

    def test_spikes_at_one_place_of_the_epoch_come_from_the_order_of_the_data(self):
        locked = dataclasses.replace(spike_with(LARGE_UPDATE).spacing, count=4, epoch_chance=0.001)
        for cause in (BAD_BATCH, DATA_SHIFT, LARGE_UPDATE, CLIPPING):
            spike = dataclasses.replace(spike_with(cause), spacing=locked)
            from_norm = cause == LARGE_UPDATE
            assert explain(spike).cause == (UNKNOWN if from_norm else DATA_ORDER)
            assert explain(dataclasses.replace(spike, has_columns=False)).cause == DATA_ORDER
            assert explain(spike, Thresholds(lock_chance=0.0005)).cause == cause
        assert explain(dataclasses.replace(spike_with(NORM_DRIVEN), spacing=locked)).cause == UNKNOWN

    def test_a_log_that_contradicts_the_law_supports_no_cause(self):
        for cause in (NORM_DRIVEN, LARGE_UPDATE, CLIPPING, BAD_BATCH, DATA_SHIFT):
            spike = dataclasses.replace(spike_with(cause), contradicts_law=True)
            assert (explain(spike).cause, explain(spike).advice) == (UNKNOWN, "")

    def test_without_norms_a_large_step_is_the_cause_if_the_norm_cannot_be(self):
        possible = dataclasses.replace(
            spike_with(BAD_BATCH).spacing, distance=1000.0, possible_decay=0.01, total_decay=0.01
        )
        spike = dataclasses.replace(
            spike_with(BAD_BATCH), has_columns=False, gradient_before=3.0, gradient_then=5.0, spacing=possible
        )
        assert explain(spike).cause == LARGE_UPDATE
        assert "The gradient norm rose before the loss, to 3.0 times" in explain(spike).evidence[1]
        assert (
            "Since the start weight decay reduces the norm by at most 1.0%, so the norm is not the cause"
            in explain(spike).evidence[2]
        )
        assert explain(dataclasses.replace(spike, gradient_before=1.9)).cause == UNKNOWN
        for decay in (0.06, math.nan):
            other = dataclasses.replace(possible, total_decay=decay)
            assert explain(dataclasses.replace(spike, spacing=other)).cause == UNKNOWN

    def test_an_lr_step_needs_a_rise_and_more_rotation(self):
        spike = spike_with(LR_STEP)
        assert explain(spike, Thresholds(lr_rise=3.99)).cause == LR_STEP
        assert explain(spike, Thresholds(lr_rise=4.01)).cause == UNKNOWN
        assert explain(spike, Thresholds(usual_rotation=1.6)).cause == UNKNOWN
        # rows that are several steps apart have no rotation of their own
        assert explain(dataclasses.replace(spike, is_dense=False, turned_before=0.1)).cause == LR_STEP

    def test_thresholds_reach_every_part(self):
        run = with_losses(at_equilibrium(), 500, [3.0, 0.4, 0.2])

        def found(**changed):
            return {spike.cause for spike in diagnose_run(run, dataclasses.replace(THRESHOLDS, **changed)).spikes}

        assert found() == {BAD_BATCH}
        assert found(outlier_ratios=((1, 1e9), (5, 1e9), (20, 1e9))) == set()
        assert found(bad_batch_left=-1.0, bad_batch_little=-1.0) == {UNKNOWN}
        assert found(data_shift_left=-1.0) == {DATA_SHIFT}
        assert found(least_rows=600) == set()
        assert diagnose_run(run, Thresholds(compared_rows=900)).missing[0].startswith("enough rows: it has 800")
        assert find_contradiction(Rows.of(run)).text == ""
        assert "contradict the SGD update" in find_contradiction(Rows.of(run), Thresholds(law_share=-1.0)).text


def clipped_at(bound, gradients):
    """Norm of a training with clipped gradients, logged before each step."""
    norm, norms = 8.0, []
    for gradient in gradients:
        norms.append(norm)
        norm = math.hypot((1 - LR * WD) * norm, LR * min(gradient, bound))
    return np.array(norms)


class TestNormsThatContradictTheLaw:
    """Contradictions are reported with a correction."""

    GRADIENTS = np.random.default_rng(3).uniform(0.2, 1.0, 900)

    def log(self, norm, gradients=GRADIENTS, wd=WD, **settings):
        loss = noise(len(norm), 99)
        loss[500] = 3.0
        columns = {"loss": loss, "norm": norm, "grad_norm": gradients[: len(norm)]}
        return simulate.read_log(columns, lr=LR, wd=wd, **settings)

    @settings(FIXED, max_examples=12)
    @given(st.integers(0, 10**6), st.floats(1e-3, 0.05), st.sampled_from([None, 5]))
    def test_a_correct_log_has_no_contradiction(self, seed, wd, digits):
        gradients = np.random.default_rng(seed).uniform(0.2, 1.0, 900)
        norm, norms = 8.0, []
        for gradient in gradients:
            norms.append(norm if digits is None else float(f"{norm:.{digits}g}"))
            norm = math.hypot((1 - LR * wd) * norm, LR * gradient)
        assert find_contradiction(Rows.of(self.log(np.array(norms), gradients, wd))).text == ""

    def test_norms_after_the_step(self):
        right = clipped_at(math.inf, self.GRADIENTS)
        found = simulate.diagnose(self.log(right[1:]))
        assert "if each norm is the one after its step: log the norm before the step." in found.remarks[-1]
        assert "weights were reset" not in str(found)
        assert simulate.diagnose(self.log(right)).remarks[1:] == ()

    def test_clipped_gradients(self):
        found = simulate.diagnose(self.log(clipped_at(0.5, self.GRADIENTS)))
        assert "clipped at 0.5:" in found.remarks[-1]

    @pytest.mark.parametrize("logged_wd", [WD / 3, 2 * WD, 0.0])
    def test_another_weight_decay(self, logged_wd):
        found = simulate.diagnose(self.log(clipped_at(math.inf, self.GRADIENTS), wd=logged_wd))
        corrected = float(found.remarks[-1].rpartition("wd = ")[2].partition(";")[0].rstrip("."))
        assert corrected == pytest.approx(WD, rel=0.03)
        assert ("momentum" in found.remarks[-1]) == (logged_wd < WD)

    def test_scaled_gradients(self):
        found = simulate.diagnose(self.log(clipped_at(math.inf, self.GRADIENTS), 4 * self.GRADIENTS))
        assert "gradients 0.25 times as large" in found.remarks[-1]

    def test_without_gradients_the_weight_decay_is_corrected(self):
        norm = 8.0 * (1 - LR * WD) ** np.arange(900) * (1 + 1e-4 * np.random.default_rng(0).uniform(size=900))
        found = simulate.diagnose(self.log(norm, np.zeros(900), wd=WD / 3))
        assert f"They match it for wd = {WD:.2g}" in found.remarks[-1]
        # a weight decay that changes is not among the corrections
        norm = 8.0 * np.exp(-np.cumsum(np.random.default_rng(0).uniform(0, 0.02, 900)))
        assert "Check the optimizer" in simulate.diagnose(self.log(norm, np.zeros(900))).remarks[-1]

    def test_several_rows_per_step(self):
        found = simulate.diagnose(self.log(np.repeat(clipped_at(math.inf, self.GRADIENTS)[:225], 4)))
        assert "every 4th row only: log one row for each step" in found.remarks[-1]

    def test_a_contradiction_without_correction(self):
        momentum = simulate.norm_map(
            LR, WD, simulate.RecordedGradient(self.GRADIENTS), norm=8.0, steps=900, optimizer=theory.SGD(momentum=0.9)
        )
        log = self.log(momentum.norm.values * np.exp(np.random.default_rng(0).normal(0, 0.02, 900)))
        assert "Check the optimizer" in simulate.diagnose(log).remarks[-1]
        # only plain SGD has a law for single steps
        assert simulate.diagnose(log, optimizer=theory.SGD(momentum=0.9)).remarks == ()

    def test_it_needs_a_training_at_every_step(self):
        wrong = self.log(clipped_at(0.5, self.GRADIENTS))
        assert find_contradiction(Rows.of(wrong)).text != ""
        for other in (
            wrong.assign_attrs(source="map", schema=1),
            wrong.isel(step=slice(None, None, 3)),
            wrong.isel(step=slice(0, THRESHOLDS.least_rows)),
            wrong.drop_vars("grad_norm"),
            wrong.drop_vars("norm"),
            with_columns(wrong, grad_norm=np.full(900, math.nan)),
        ):
            assert find_contradiction(Rows.of(other)).text == ""

    def test_clipping_in_a_destabilization_is_named(self):
        run, _ = periodic(4)
        gradients = (run.grad_norm / run.norm).values
        bound = float(np.quantile(gradients, 0.97))
        norm = float(run.norm[0])
        norms = []
        for gradient in gradients:
            norms.append(norm)
            norm = math.hypot((1 - LR * WD) * norm, LR * min(gradient, bound))
        log = {"loss": run.loss.values, "norm": norms, "grad_norm": gradients}
        assert "the gradients were clipped, or something else changed the norm" in str(
            simulate.diagnose(log, lr=LR, wd=WD)
        )


class TestNormsThatDecreaseTooFast:
    """Rows that are epochs, another wd, or another norm: the norm decreases faster than weight decay allows."""

    @staticmethod
    def log(rule, times, **columns):
        """A bad batch at row 500, and a norm that decreases so many times as fast as by weight decay."""
        loss = noise(800, 0)
        loss[500:502] = [3.0, 0.2]
        norm = np.exp(-times * LR * WD / 10 * np.arange(800))
        columns = {"loss": loss, "weight_norm": norm, **columns}
        return simulate.diagnose(columns, lr=LR, wd=WD / 10, optimizer=rule)

    @pytest.mark.parametrize("rule", [theory.SGD(), theory.SGD(momentum=0.5), theory.AdamW(), "AdamW"], ids=str)
    def test_such_a_log_supports_no_cause(self, rule):
        momentum = getattr(rule, "momentum", 0.0)
        (spike,) = self.log(rule, 5 / (1 - momentum)).spikes
        assert (spike.cause, spike.advice) == (UNKNOWN, "")
        assert "contradicts the law of the norm" in spike.evidence[1]
        remark = self.log(rule, 5 / (1 - momentum)).remarks[-1]
        times = re.search(r"decreases (\S+) times as fast as weight decay allows", remark)
        assert times is not None
        assert float(times[1]) == pytest.approx(5, rel=0.01)
        assert "--steps-per-row" in remark
        # negative control
        assert self.log(rule, 0.9 / (1 - momentum)).spikes[0].cause == BAD_BATCH

    def test_rows_that_are_epochs_need_their_number_of_steps(self):
        found = self.log(theory.SGD(), 25, epoch=np.arange(800))
        assert found.log.attrs["row_unit"] == "epochs"
        assert "the number of steps in an epoch" in str(found.missing)
        assert found.spikes[0].cause == UNKNOWN
        assert "decreases" not in str(found)

    def test_weights_that_were_replaced_once_contradict_one_row_only(self):
        norm = np.exp(-0.5 * LR * WD / 10 * np.arange(800))
        norm[300:] *= 0.5
        found = self.log(theory.AdamW(), 1.0, weight_norm=norm)
        assert found.spikes[0].cause == BAD_BATCH

    def test_clipped_gradients_leave_the_norms_usable(self):
        random = np.random.default_rng(0)
        gradients = np.exp(random.normal(size=800))
        clipped = np.minimum(gradients, 1.5)
        norms = [2.0]
        for g in clipped[:-1]:
            norms.append(math.hypot((1 - LR * WD) * norms[-1], LR * g))
        loss = noise(800, 0)
        loss[500:502] = [3.0, 0.2]
        columns = {"loss": loss, "weight_norm": norms, "grad_norm": gradients}
        found = simulate.diagnose(columns, lr=LR, wd=WD)
        assert "They match it with gradients clipped at 1.5" in found.remarks[-1]
        assert found.spikes[0].cause == BAD_BATCH


class TestLogsOfLanguageModels:
    """A loss far above 0, a large loss at the start, and no norm of the weights."""

    @staticmethod
    def log(size=2.0, **columns):
        random, step = np.random.default_rng(3), np.arange(6000)
        loss = 3.2 + 7.5 * np.exp(-step / 400) + 0.04 * random.normal(size=6000)
        gradient = 0.32 + 3 * np.exp(-step / 300) + 0.02 * np.abs(random.normal(size=6000))
        shape = np.exp(-(((np.arange(40) - 12) / 9) ** 2))
        loss[4000:4040] += size * shape
        gradient[3997:4037] += 1.5 * size * shape
        return {"loss": loss, "lr": 6e-4 * np.minimum(1, (step + 1) / 700), "grad_norm": gradient, **columns}

    def test_the_whole_spike_is_found(self):
        (spike,) = simulate.diagnose(self.log(), wd=0.1, optimizer="AdamW").spikes
        assert 3995 <= spike.step <= 4005
        assert spike.last_step >= 4012
        assert spike.cause == UNKNOWN
        assert "The gradient norm rose before the loss, to" in str(spike)
        assert "so the norm may be the cause" in str(spike)

    def test_a_small_spike_counts_beside_the_large_loss_at_the_start(self):
        assert [3995 <= s.step <= 4010 for s in simulate.diagnose(self.log(0.5)).spikes] == [True]

    def test_without_decay_the_norm_is_excluded_and_the_step_is_the_cause(self):
        (spike,) = simulate.diagnose(self.log(), wd=0.0, optimizer="AdamW").spikes
        assert spike.cause == LARGE_UPDATE
        assert "β₂" in spike.advice
        # decay is not known under an optimizer that is assumed, nor before the log begins
        assert simulate.diagnose(self.log(), wd=0.0).spikes[0].cause == UNKNOWN
        late = self.log(step=np.arange(6000) + 5000)
        assert simulate.diagnose(late, wd=0.0, optimizer="AdamW").spikes[0].cause == UNKNOWN

    def test_columns_and_lines_for_the_next_time_are_printed(self):
        found = simulate.diagnose(self.log(params_norm=np.full(6000, 238.0)))
        text = str(found)
        assert text.startswith(found.description)
        assert "loss from 'loss', lr from 'lr', gradient norm from 'grad_norm', norm of all weights from" in text
        assert "no weight norm" in text
        assert "monitor = empirical.Monitor(model, optimizer, inputs)" in text
        assert found.to_dict()["description"] == found.description
        named = simulate.diagnose(self.log(norm=np.ones(6000)))
        assert "norm" in named.log
        alone = {"loss": self.log()["loss"], "norm": self.log()["grad_norm"]}
        assert "may be the norm of the weights or that of the gradient" in str(simulate.diagnose(alone))

    @pytest.mark.parametrize("digits", [1, 6])
    def test_only_a_limit_of_the_gradient_is_clipping(self, digits):
        gradient = np.minimum(np.random.default_rng(0).uniform(0.95, 1.5, 800), 1.0)
        rounded = np.round(gradient, digits)
        cap = Rows.of(simulate.read_log({"loss": noise(800, 0), "grad_norm": rounded})).gradient_cap
        assert cap == (1.0 if digits == 6 else math.inf)
        free = np.random.default_rng(0).uniform(0.5, 1.5, 800)
        assert Rows.of(simulate.read_log({"loss": noise(800, 0), "grad_norm": free})).gradient_cap == math.inf

    def test_the_start_of_a_training_does_not_hide_a_spike(self):
        loss = 0.03 + 1.4 * np.exp(-np.arange(260) / 2) + 0.003 * np.random.default_rng(0).normal(size=260)
        loss[190] = 2.0
        assert [s.step for s in simulate.diagnose({"loss": loss}).spikes] == [190]

    @pytest.mark.parametrize("every", [100, 400])
    def test_spikes_in_the_same_batch_of_every_epoch(self, every):
        loss = noise(2000, 0)
        loss[170::every] = 3.0
        columns = {"loss": loss, "epoch": np.arange(2000) // every, "step": np.arange(2000)}
        found = simulate.diagnose(columns)
        assert found.cause == DATA_ORDER
        assert f"of the epoch of {every} steps" in str(found)
        loss = noise(2000, 0)
        for epoch in range(2000 // every):
            loss[every * epoch + np.random.default_rng(epoch).integers(every)] = 3.0
        assert DATA_ORDER not in str(simulate.diagnose(columns | {"loss": loss}))


class TestIrregularLogs:
    @pytest.mark.parametrize("missing", [[0], [5], list(range(60)), [150, 151]])
    def test_some_missing_norms(self, missing):
        run, length = periodic(3)
        norm = run.norm.values.copy()
        norm[missing] = math.nan
        whole, found = simulate.diagnose(run), simulate.diagnose(with_columns(run, norm=norm))
        assert [s.step for s in found.spikes if s.step > length] == [s.step for s in whole.spikes if s.step > length]
        assert found.spikes[-1].cause == NORM_DRIVEN
        norm[missing] = 0.0
        assert simulate.diagnose(with_columns(run, norm=norm)).spikes[-1].cause == NORM_DRIVEN

    def test_a_bad_batch_in_every_epoch(self):
        run = at_equilibrium(1200)
        loss = run.loss.values.copy()
        loss[400:1200:100] = 3.0
        found = simulate.diagnose(with_columns(run, loss=loss))
        assert [(s.step, s.cause) for s in found.spikes[:-1]] == [(step, BAD_BATCH) for step in range(400, 1100, 100)]

    def test_warm_up_is_no_spike(self):
        step = np.arange(800)
        for seed in range(10):
            fading = np.exp(0.1 * np.random.default_rng(seed).normal(size=800))
            loss = (2.3 * np.exp(-step / 150) + 0.1) * fading
            for lr in (np.minimum(step / 100, 1) * 0.5, np.zeros(800)):
                assert simulate.diagnose({"loss": loss, "lr": lr}, wd=1e-4).spikes == ()

    def test_a_missing_loss_is_no_overflow(self):
        loss = at_equilibrium().loss.values.copy()
        loss[::10] = math.nan
        assert simulate.diagnose({"loss": loss}).spikes == ()
        loss[700:] = math.nan
        assert [(s.step, s.cause) for s in simulate.diagnose({"loss": loss}).spikes] == [(700, OVERFLOW)]

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_replaced_weights_are_no_bad_data(self, factor):
        run = at_equilibrium()
        norm = run.norm.values.copy()
        # afterwards the norm obeys the one-step law
        later = simulate.RecordedGradient(run.grad_norm.values[500:])
        norm[500:] = simulate.norm_map(LR, WD, later, norm=factor * norm[500], steps=300).norm
        found = simulate.diagnose(
            with_columns(with_losses(run, 500, [3.0, 0.4, 0.2]), norm=norm).drop_vars("effective_lr")
        )
        assert {s.cause for s in found.spikes} == {UNKNOWN}
        assert any("weights were reset" in " ".join(s.evidence) for s in found.spikes)

    def test_clipping_is_advised_where_the_gradient_was_large(self):
        run = at_equilibrium()
        usual = simulate.diagnose(with_losses(run, 500, [3.0, 0.2])).spikes[0]
        assert "Clipping" not in usual.advice
        gradients = run.grad_norm.values.copy()
        gradients[500] *= 8
        # the norm obeys the one-step law
        again = simulate.norm_map(LR, WD, simulate.RecordedGradient(gradients), norm=float(run.norm[0]), steps=800)
        hard = with_losses(as_training(again).assign(loss=run.loss), 500, [3.0, 0.2])
        large = simulate.diagnose(hard).spikes[0]
        assert large.cause == BAD_BATCH
        assert "Clipping" in large.advice
        assert "of the scale-invariant weights" in large.advice
        # the advice names the clipped column
        columns = {
            "loss": hard.loss.values,
            "norm": hard.norm.values,
            "total/grad": (hard.grad_norm / hard.norm).values,
        }
        named = simulate.diagnose(columns, lr=LR, wd=WD, names={"gradient": "total/grad"}).spikes[0]
        assert named.advice == large.advice.replace("of the scale-invariant weights", "in column 'total/grad'")

    def test_an_overdue_spike_is_not_expected(self):
        run, _ = periodic(5)
        steady = simulate.norm_map(LR, WD, 0.5, norm=float(run.final_norm), steps=3000)
        parts = {name: np.append(run[name], steady[name]) for name in ("norm", "grad_norm", "rotation")}
        log = {**parts, "loss": np.append(run.loss, noise(3000, 7)), "lr": LR}
        assert math.isnan(simulate.diagnose(log, wd=WD).next_step)

    def test_a_ramp_of_the_learning_rate(self):
        # a tenth of the way at a time
        lr = np.interp(np.arange(900), [0, 500, 520, 900], [0.05, 0.05, 1.0, 1.0])
        run = simulate.norm_map(
            lr_schedule(lr), 0.02, simulate.RecordedGradient(noise(900, 3, 2.0)), norm=3.0, steps=900
        )
        loss = noise(900, 4) + 3 * np.append(0, run.rotation.values[:-1]) ** 2 * (np.arange(900) > 500)
        found = simulate.diagnose(run.assign(loss=("step", loss)))
        assert found.spikes[0].cause == LR_STEP
        assert "in the 30 steps before" in " ".join(found.spikes[0].evidence)

    def test_a_high_loss_at_the_start_hides_no_spike(self):
        run = with_losses(at_equilibrium(), 500, [3.0, 0.2])
        loss = run.loss.values.copy()
        loss[0] = 100.0
        assert [s.cause for s in simulate.diagnose(with_columns(run, loss=loss)).spikes] == [BAD_BATCH]

    def test_a_data_frame_says_the_same(self):
        run, _ = periodic(4)
        frame = run[["loss", "norm", "grad_norm", "rotation"]].to_dataframe()
        found = simulate.diagnose(frame, lr=LR, wd=WD)
        assert [(s.step, s.cause) for s in found.spikes] == [(s.step, s.cause) for s in simulate.diagnose(run).spikes]


def lr_schedule(values):
    return lambda step: np.asarray(values)[np.minimum(np.asarray(step, dtype=int), len(values) - 1)]


class TestInvariance:
    """A diagnosis does not depend on units."""

    @settings(FIXED, max_examples=6)
    @given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 5))
    def test_of_loss_and_weights(self, loss, weight, seed):
        for run in (periodic(3, 120, seed)[0], with_losses(at_equilibrium(400, seed), 250, [3.0, 0.2])):
            # L → a L, w → b w: g̃ → a g̃, η → b²/a η, λ → a/b² λ
            scaled = with_columns(
                run, loss=run.loss.values * loss, norm=run.norm.values * weight, grad_norm=run.grad_norm.values * loss
            ).drop_vars("effective_lr")
            other = simulate.diagnose(scaled, lr=LR * weight**2 / loss, wd=WD * loss / weight**2)
            own = simulate.diagnose(run)
            assert [(s.step, s.last_step, s.cause) for s in other.spikes] == [
                (s.step, s.last_step, s.cause) for s in own.spikes
            ]
            for one, two in zip(own.spikes, other.spikes, strict=True):
                assert two.decay_ratio == pytest.approx(one.decay_ratio, rel=1e-6, nan_ok=True)
                assert two.growth_explained == pytest.approx(one.growth_explained, rel=1e-6, nan_ok=True)

    def test_of_earlier_rows(self):
        run, length = periodic(6)
        whole = simulate.diagnose(run)
        late = simulate.diagnose(run.isel(step=slice(length, None)))
        assert [s.step for s in late.spikes] == [s.step for s in whole.spikes if s.step >= length]


def spikes_of(loss, lr_rises_at=None):
    """First and last rows of the spikes of a loss."""
    lr = {} if lr_rises_at is None else {"lr": np.where(np.arange(loss.size) < lr_rises_at, 0.1, 0.2)}
    return find_spikes(Rows.of(simulate.read_log({"loss": loss, **lr})))


class TestFindSpikes:
    @settings(FIXED, max_examples=15)
    @given(st.integers(0, 10**6), st.integers(250, 900), st.floats(4.0, 1e3), st.integers(1, 30))
    def test_it_finds_outliers_only(self, seed, at, height, length):
        loss = noise(1000, seed)
        assert spikes_of(loss) == []
        loss[at : at + length] = 0.25 * height
        ((first, last),) = spikes_of(loss)
        assert at - 3 <= first <= at
        assert last == at + length - 1

    @settings(FIXED, max_examples=12)
    @given(st.integers(0, 10**6))
    def test_spikes_do_not_overlap(self, seed):
        loss = np.exp(np.random.default_rng(seed).normal(size=1000) * 2)
        found = spikes_of(loss)
        assert all(first <= last for first, last in found)
        assert all(one[1] < two[0] for one, two in itertools.pairwise(found))

    def test_short_logs_have_none(self):
        for count in (1, 2, *range(45, 60)):
            assert spikes_of(np.geomspace(1, 1e9, count)) == []

    def test_a_higher_level_is_reported_once(self):
        loss = np.append(noise(500, 0), noise(1500, 1, 3.0))
        assert len(spikes_of(loss)) == 1

    def test_an_expected_spike_may_be_lower(self):
        loss = noise(600, 0)
        loss[405] = 0.15
        assert spikes_of(loss) == []
        assert spikes_of(loss, lr_rises_at=400) == [(405, 405)]
        assert spikes_of(loss, lr_rises_at=370) == []


class TestPicture:
    @pytest.fixture(autouse=True)
    def _without_a_screen(self):
        mpl.use("Agg")
        yield
        plt.close("all")

    def test_spikes_are_marked_by_cause(self):
        run, _ = periodic(4)
        mixed = with_losses(run, 300 + 100, [math.inf])
        found = simulate.diagnose(mixed)
        axes = simulate.plots.plot_diagnosis(found)
        assert [ax.get_ylabel() for ax in axes] == ["mini-batch loss", "norm ρ", "effective lr η̃ = η/ρ²"]
        labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
        assert labels == [NORM_DRIVEN, OVERFLOW, "next expected"]
        marked = {line.get_label(): line.get_xdata() for line in axes[0].lines}
        assert list(marked[NORM_DRIVEN]) == [s.step for s in found.spikes if s.cause == NORM_DRIVEN]
        assert np.isfinite(np.concatenate([line.get_ydata() for line in axes[0].lines[1:]])).all()

    def test_a_loss_alone(self):
        axes = simulate.plots.plot_diagnosis(simulate.diagnose({"loss": noise(300, 0)}))
        assert len(axes) == 1
        assert axes[0].get_legend() is None

    def test_bad_input(self):
        found = simulate.diagnose({"loss": noise(300, 0)})
        with pytest.raises(TypeError, match=r"diagnosis must be a simulate\.Diagnosis, got Dataset"):
            simulate.plots.plot_diagnosis(found.log)
        with pytest.raises(ValueError, match="axes must be 1"):
            simulate.plots.plot_diagnosis(found, plt.subplots(2)[1])


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        ({"weight_norm": [1.0]}, ValueError, r"loss of each step, got \['norm'\]"),
        ({"loss": [math.nan] * 3}, ValueError, "at least one finite loss"),
        ("no such file", ValueError, "no such file"),
        (3, TypeError, "source must be a path"),
        (xr.Dataset({"loss": (("lr", "step"), np.ones((2, 3)))}), ValueError, "one run with dimension"),
        (
            at_equilibrium(60).assign_coords(step=np.arange(60) % 20),
            ValueError,
            r"log\.step must be whole numbers that grow",
        ),
        (
            at_equilibrium(60).assign_coords(step=np.arange(60) / 2),
            ValueError,
            r"log\.step must be whole numbers that grow",
        ),
        (
            at_equilibrium(60).assign_attrs(constraint="fixed norm"),
            ValueError,
            "log must come from a run without a constraint, got 'fixed norm'",
        ),
    ],
)
def test_bad_logs_are_named(log, error, message):
    with pytest.raises(error, match=message):
        simulate.diagnose(log)


def test_names_are_not_for_trajectories(tmp_path):
    run = at_equilibrium(60)
    simulate.save(run, tmp_path / "run.zarr")
    for log in (run, tmp_path / "run.zarr"):
        with pytest.raises(ValueError, match=r"names must be.*a trajectory.*'loss': 'nope'"):
            simulate.diagnose(log, names={"loss": "nope"})
        assert simulate.diagnose(log, names={}).spikes == ()
