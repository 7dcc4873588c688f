"""Causes of spikes are right in logs with known ones, and their numbers are those computed by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import simulate
import theory
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LR_STEP, NORM_DRIVEN, UNKNOWN
from tests.simulate.diagnosis.logs import (
    FIXED,
    LR,
    WD,
    as_training,
    at_equilibrium,
    lr_schedule,
    noise,
    periodic,
    with_columns,
    with_losses,
)


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
    assert "half as often" in str(found)


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
                assert f"With wd below {WD * duration / steps:.2g} the norm needs" in spike.advice
                assert f"more than the {steps} steps of this log" in spike.advice

    def test_with_the_advised_wd_the_decay_takes_as_long_as_the_log(self):
        run, _ = periodic(5)
        spike = simulate.diagnose(run).spikes[-1]
        advised = float(spike.advice.rpartition("wd below ")[2].partition(" ")[0])
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
