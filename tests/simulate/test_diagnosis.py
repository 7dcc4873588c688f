"""Spikes of a loss: found where they are, and each told by what tells it; unknown where the log lacks that."""

import itertools
import math

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

import simulate
import theory
from simulate.diagnosis.diagnosis import (
    BAD_BATCH,
    DATA_SHIFT,
    LR_STEP,
    NORM_DRIVEN,
    OVERFLOW,
    UNKNOWN,
)
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import FEWEST, LOOKED_BACK, find_spikes
from simulate.diagnosis.step_law import contradiction

FIXED = settings(deadline=None, derandomize=True, max_examples=25)
LR, WD = 0.5, 0.02  # ηλ = 0.01


def noise(count, seed, level=0.1):
    return level * np.random.default_rng(seed).uniform(0.8, 1.25, count)


def breaking(periods=4, fall=150, seed=0, lr=LR, wd=WD, longer=0, level=0.02):
    """Norm that falls freely, with gradients that then grow over some steps and jump it up; loss that follows them."""
    burst = np.array([4.0, 15.0, 40.0, 60.0, 30.0, 10.0])
    falls = [noise(fall + longer * number**2, seed + number, level) for number in range(periods)]
    gradients = np.concatenate([np.append(each, burst) for each in falls])
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=6.0, steps=gradients.size)
    # a step of the norm makes the loss of the next
    turned = np.append(0.0, run.rotation.values[:-1])
    return trained(run).assign(loss=("step", noise(gradients.size, seed + 99) + 3 * turned**2)), fall + 6


def resting(count=800, seed=0, lr=LR, wd=WD):
    """Norm at rest, loss and gradients as usual."""
    gradients = noise(count, seed, 2.0)
    start = theory.equilibrium_norm(lr, wd, 2.0)
    run = simulate.norm_map(lr, wd, simulate.RecordedGradient(gradients), norm=start, steps=count)
    return trained(run).assign(loss=("step", noise(count, seed + 99)))


def trained(run):
    """As if it were of a training, which has data."""
    return run.assign_attrs(source="training")


def changed(run, **columns):
    return run.assign({name: (run[name].dims, values) for name, values in columns.items()})


def hit(run, at, losses):
    """Losses that come from elsewhere."""
    loss = run.loss.values.copy()
    loss[at : at + len(losses)] = losses
    return changed(run, loss=loss)


@FIXED
@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(100, 250), st.floats(0.005, 0.03))
def test_breaks_after_falls_are_norm_driven(seed, periods, fall, rate):
    # longer falls would end at rest
    assume(fall * rate < 2.5)
    run, length = breaking(periods, fall, seed, wd=rate / LR)
    found = simulate.diagnose(run)
    assert {spike.cause for spike in found.spikes} == {NORM_DRIVEN}
    assert all(spike.step % length >= fall - 3 for spike in found.spikes)


def test_a_break_in_numbers():
    run, length = breaking(5)
    found = simulate.diagnose(run)
    assert found.cause == NORM_DRIVEN
    assert len(found.spikes) == 5
    for number, spike in enumerate(found.spikes):
        trough = number * length + 150
        assert trough <= spike.step <= trough + 4
        near = slice(trough - 3, trough + 8)
        assert spike.norm_rise == pytest.approx(float(np.log(run.norm[near].max() / run.norm[near].min())), rel=1e-6)
        assert spike.growth_explained == pytest.approx(1, abs=1e-9)
        assert 0.9 < spike.fall_rate <= 1.01
        assert spike.fall == pytest.approx(1.5, rel=0.15)
        assert spike.effective_lr == pytest.approx(float(run.effective_lr[near].max()), rel=1e-6)
        assert spike.peak_loss == run.loss[spike.step : spike.last_step + 1].max()
    assert found.next_step == pytest.approx(found.spikes[-1].step + length, abs=2)
    assert "norm had fallen" in str(found)
    assert "doubles the time" in str(found)


def test_the_next_is_expected_after_one_fall_like_the_last():
    run, length = breaking(5)
    short = run.isel(step=slice(0, 2 * length + 80))
    found = simulate.diagnose(short)
    assert len(found.spikes) == 2
    assert found.next_step == pytest.approx(2 * length + 150, abs=15)
    assert math.isnan(found.next_stderr)
    assert f"about step {found.next_step:.0f}, from one fall like the last." in str(found)
    several = simulate.diagnose(run)
    assert f"about step {several.next_step:.0f} ± {several.next_stderr:.0f}." in str(several)


class TestNumbersByHand:
    """What is said of a fall is counted again from the columns of the log."""

    FALL, LENGTH = 150, 156  # and six steps of large gradients
    # lr falls by a fifth on the way from one spike to the next
    SCHEDULE = np.geomspace(0.6, 0.2, 5 * LENGTH)

    def logs(self):
        # gradients that slow the falls down by some percent
        yield breaking(5, level=0.5)[0].isel(step=slice(0, -20)), 1
        yield breaking(5, lr=lr_schedule(self.SCHEDULE))[0], 1
        yield breaking(5)[0].isel(step=slice(0, None, 2)), 2

    def falls(self, run, gap):
        """Rows of the highest norm after each break, and of the lowest before the next."""
        norm = run.norm.values
        for number in range(5):
            begins, breaks = number * self.LENGTH // gap, (number * self.LENGTH + self.FALL) // gap
            early, late = slice(max(begins - 4, 0), begins + 20), slice(breaks - 10, breaks + 3)
            yield early.start + int(np.argmax(norm[early])), late.start + int(np.argmin(norm[late]))

    def decays(self, run, gap):
        """Factors of the norm from row to row by decay alone, 1 - ηλ at each step."""
        lr = run.lr.values if "lr" in run.variables else np.full(run.sizes["step"], run.attrs["lr"])
        return (1 - lr * WD) ** gap

    def test_falls_and_growth(self):
        for run, gap in self.logs():
            norm, decays = run.norm.values, self.decays(run, gap)
            found = simulate.diagnose(run).spikes
            assert {spike.cause for spike in found} == {NORM_DRIVEN}
            assert len(found) >= 4
            for spike, (peak, trough) in zip(found, self.falls(run, gap), strict=False):
                told = " ".join(spike.evidence)
                alone = np.prod(decays[peak:trough])
                assert spike.fall == pytest.approx(np.log(norm[peak] / norm[trough]), rel=1e-12)
                assert spike.fall_rate == pytest.approx(np.log(norm[trough] / norm[peak]) / np.log(alone), rel=1e-12)
                assert f"The norm had fallen by {100 * (1 - norm[trough] / norm[peak]):.0f}%" in told
                first, last = (run.step.values.tolist().index(step) for step in (spike.step, spike.last_step))
                grown = norm[first : last + 2].max() / norm[trough]
                assert f"the norm grew by {100 * (grown - 1):.0f}%" in told

    def test_the_advised_weight_decay(self):
        for run, gap in self.logs():
            steps = int(run.step[-1] - run.step[0])
            decays = self.decays(run, gap)
            for spike, (peak, trough) in zip(simulate.diagnose(run).spikes, self.falls(run, gap), strict=False):
                # at the learning rate of its end
                takes = gap * np.log(np.prod(decays[peak:trough])) / np.log(decays[trough])
                assert f"with wd < {WD * takes / steps:.2g} a fall of this depth" in spike.advice
                assert f"longer than this log ({steps} steps)" in spike.advice

    def test_with_it_the_fall_takes_as_long_as_the_log(self):
        run, _ = breaking(5)
        spike = simulate.diagnose(run).spikes[-1]
        advised = float(spike.advice.rpartition("wd < ")[2].partition(" ")[0])
        still = simulate.norm_map(LR, advised, 0.0, norm=1.0, steps=run.sizes["step"])
        assert -np.log(still.final_norm) == pytest.approx(spike.fall, rel=0.03)

    def test_the_learning_rate_is_raised_over_a_relaxation_time(self):
        lr = np.where(np.arange(800) < 500, 0.05, 0.5)
        log = {"loss": hit(resting(), 503, [2.0, 1.5, 0.3]).loss.values, "lr": lr}
        (spike,) = simulate.diagnose(log, wd=0.002).spikes
        # (1 - 0.5 · 0.002)^(2 · 500) = 1/e
        assert "Raised over some 500 steps, in which the squared norm decays by a factor e" in spike.advice

    @pytest.mark.parametrize("gap", [1, 2, 3])
    @pytest.mark.parametrize("without", [[], [-2, -3], [-2, -5, -6, -7]], ids=["even", "gap at the end", "gaps"])
    def test_the_next_spike_from_one_fall(self, gap, without):
        # up to half of the third fall
        run = breaking(5)[0].isel(step=slice(0, 2 * self.LENGTH + 80, gap))
        log = run.isel(step=np.delete(np.arange(run.sizes["step"]), without))
        found = simulate.diagnose(log)
        *_, (peak, trough) = itertools.islice(self.falls(run, gap), 2)
        norm, each = log.norm.values, (1 - LR * WD) ** found.spikes[-1].fall_rate
        # of the steps that are left the norm would take so many
        left = np.log(norm[trough] / norm[-1]) / np.log(each)
        assert found.spikes[-1].fall == pytest.approx(np.log(norm[peak] / norm[trough]), rel=1e-12)
        assert found.next_step == pytest.approx(float(log.step[-1]) + left, rel=1e-12)
        assert math.isnan(found.next_stderr)

    def test_the_next_spike_from_distances(self):
        run, _ = breaking(5, 120, longer=5)
        found = simulate.diagnose(run)
        at = [spike.step for spike in found.spikes]
        apart = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert len(apart) == 4
        mean = sum(apart) / 4
        assert found.next_step == pytest.approx(at[-1] + mean)
        assert found.next_stderr == pytest.approx(math.sqrt(sum((each - mean) ** 2 for each in apart) / 3))
        assert found.next_stderr > 5


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_with_the_data(seed):
    run = resting(seed=seed)
    one = simulate.diagnose(hit(run, 500, [3.0, 0.4, 0.2]))
    assert [s.cause for s in one.spikes] == [BAD_BATCH]
    # a chance record may stand before it
    assert 497 <= one.spikes[0].step <= 500
    lasting = simulate.diagnose(hit(run, 500, noise(300, seed, 2.0)))
    assert lasting.spikes[0].cause == DATA_SHIFT
    decaying = simulate.diagnose(hit(run, 500, 3.0 * np.exp(-np.arange(60) / 12) + 0.1))
    assert [s.cause for s in decaying.spikes] == [DATA_SHIFT]


def test_noise_has_no_spikes():
    for seed in range(20):
        found = simulate.diagnose(resting(seed=seed))
        assert found.spikes == ()
        assert found.cause == "no spikes"
        assert "no loss stands out" in str(found)


@pytest.mark.parametrize("wait", [1, 5, 15])
def test_a_step_of_the_learning_rate(wait):
    lr = np.where(np.arange(800) < 500, 0.05, 0.5)
    rest = theory.equilibrium_norm(0.05, WD, 2.0)
    run = simulate.norm_map(lr_schedule(lr), WD, simulate.RecordedGradient(noise(800, 0, 2.0)), norm=rest, steps=800)
    run = trained(run).assign(loss=("step", noise(800, 99)))
    (spike,) = simulate.diagnose(hit(run, 500 + wait, [2.0, 1.5, 0.8, 0.3])).spikes
    assert spike.cause == LR_STEP
    assert "a factor of 10 in the 30 steps before" in " ".join(spike.evidence)
    assert "most at step 500" in " ".join(spike.evidence)
    assert f"Raised over some {1 / (2 * theory.free_decay(0.5, WD)):.0f} steps" in spike.advice
    # long after it, it is no reason
    late = hit(run, 700, [2.0, 0.2])
    assert [s.cause for s in simulate.diagnose(late).spikes] == [BAD_BATCH]
    # nor is one that falls
    still = resting().drop_vars("effective_lr")
    fallen = hit(still, 501, [2.0, 0.2]).assign(lr=("step", np.where(np.arange(800) < 500, LR, LR / 10)))
    assert LR_STEP not in [s.cause for s in simulate.diagnose(fallen).spikes]


@pytest.mark.parametrize(
    "rule", [theory.SGD(momentum=0.9), theory.SGD(momentum=0.5, nesterov=True), theory.AdamW(dim=1)]
)
def test_advice_for_the_learning_rate_is_that_of_the_optimizer(rule):
    lr = np.where(np.arange(800) < 500, 0.05, 0.5)
    log = {"loss": hit(resting(), 503, [2.0, 1.5, 0.3]).loss.values, "lr": lr, "norm": np.full(800, 3.0)}
    (spike,) = simulate.diagnose(log, wd=0.002, optimizer=rule).spikes
    assert spike.cause == LR_STEP
    assert f"some {1 / (2 * theory.free_decay(0.5, 0.002, optimizer=rule)):.0f} steps" in spike.advice
    assert repr(rule) in spike.advice
    # its decay is not known
    (adam,) = simulate.diagnose(log, wd=0.002, optimizer=theory.Adam(dim=1)).spikes
    assert (adam.cause, adam.advice) == (LR_STEP, "A smaller rise turns the weights less.")


class TestSimulations:
    """They have no data that could be bad."""

    @pytest.mark.parametrize("seed", range(3))
    def test_breaks_of_the_period_model_are_those_of_the_norm(self, seed):
        found = simulate.diagnose(simulate.oscillate(0.5, 0.01, steps=6000, seed=seed))
        assert len(found.spikes) > 10
        assert {spike.cause for spike in found.spikes} == {NORM_DRIVEN}

    @pytest.mark.parametrize("source", ["map", "ode", "random_walk", "landscape", "period_model"])
    @pytest.mark.parametrize("losses", [[3.0, 0.4, 0.2], noise(300, 1, 2.0)], ids=["short", "lasting"])
    def test_what_the_norm_does_not_tell_is_unknown(self, source, losses):
        run = hit(resting(), 500, losses)
        assert simulate.diagnose(run).cause in (BAD_BATCH, DATA_SHIFT)
        found = simulate.diagnose(run.assign_attrs(source=source))
        assert {spike.cause for spike in found.spikes} == {UNKNOWN}
        assert f"a simulation ({source}) has no data" in found.spikes[0].evidence[-1]
        assert all(spike.advice == "" for spike in found.spikes)
        # a data set of anyone may say where it comes from
        ours = {key: value for key, value in run.attrs.items() if key != "schema"}
        assert simulate.diagnose(run.drop_attrs().assign_attrs(ours, source="cluster")).cause != UNKNOWN


class TestOverflow:
    def test_one_step_that_was_skipped(self):
        run = hit(resting(), 500, [math.inf])
        (spike,) = simulate.diagnose(run).spikes
        assert (spike.step, spike.last_step, spike.cause) == (500, 500, OVERFLOW)
        assert spike.advice == ""

    def test_weights_that_are_lost(self):
        run = resting()
        broken = {name: np.where(np.arange(800) < 600, run[name], math.nan) for name in ("loss", "norm", "grad_norm")}
        (spike,) = simulate.diagnose(changed(run, **broken)).spikes
        assert (spike.step, spike.last_step, spike.cause) == (600, 799, OVERFLOW)
        assert "to the end" in spike.evidence[0]
        assert "loss scalers" in spike.advice

    def test_an_infinite_gradient_alone(self):
        run = resting()
        gradients = run.grad_norm.values.copy()
        gradients[300] = math.inf
        (spike,) = simulate.diagnose(changed(run, grad_norm=gradients)).spikes
        assert (spike.step, spike.cause) == (300, OVERFLOW)
        assert "gradient" in spike.evidence[0]

    def test_only_what_is_not_finite_is_named(self):
        run = resting()
        norm = run.norm.values.copy()
        norm[600:] = math.inf
        log = {"loss": run.loss.values, "norm": norm, "grad_norm": (run.grad_norm / run.norm).values}
        (spike,) = simulate.diagnose(log, lr=LR, wd=WD).spikes
        assert (spike.step, spike.last_step, spike.cause) == (600, 799, OVERFLOW)
        assert spike.evidence[0] == "The norm is not finite from here, to the end."
        # a norm that was not logged in the same row is not lost
        loss, norm = run.loss.values.copy(), run.norm.values.copy()
        loss[300], norm[300] = math.inf, math.nan
        (spike,) = simulate.diagnose({**log, "loss": loss, "norm": norm}, lr=LR, wd=WD).spikes
        assert spike.evidence[0] == "The loss is not finite from here, for 1 step."

    def test_what_rose_before(self):
        run = hit(resting(), 500, [4.0, 40.0, math.inf, 0.1])
        overflow = simulate.diagnose(run).spikes[-1]
        assert (overflow.step, overflow.cause) == (502, OVERFLOW)
        assert "see what comes before" in overflow.evidence[-1]


class TestDivergence:
    """A trajectory that ends as "diverged" has no row with numbers that are none; its status tells."""

    LOSSES = (2.3, 2.2, 2.4, 2.1, 2.5, 3.0, 5.0, 18.0, 1.2e6, 2.6e15)

    def diverged(self, losses, **more):
        return resting(len(losses)).assign(loss=("step", np.array(losses)), status="diverged", **more)

    def test_it_is_an_overflow_after_the_last_row(self):
        found = simulate.diagnose(self.diverged(self.LOSSES, status_step=10))
        (spike,) = found.spikes
        assert (spike.step, spike.last_step, spike.cause) == (10, 10, OVERFLOW)
        assert "step 10: overflow. The run diverged at this step: its numbers left the range of floating point" in str(
            found
        )
        assert "It had risen to 2.6e+15 already" in str(found)
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

    def test_it_is_told_once(self):
        losses = np.append(noise(300, 0), [math.nan] * 5)
        (spike,) = simulate.diagnose(self.diverged(losses, status_step=300)).spikes
        assert (spike.step, spike.last_step, spike.cause) == (300, 304, OVERFLOW)

    @pytest.mark.parametrize("status", ["complete", "running", "interrupted", "collapsed"])
    def test_no_other_status_is_one(self, status):
        run = resting(300)
        assert simulate.diagnose(run.assign(status=status, status_step=300)).spikes == ()

    def test_nothing_is_expected_after_it(self):
        run, _ = breaking(5)
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
    def test_it_is_named_and_nothing_is_claimed(self, lacking, word):
        for run in (breaking()[0], hit(resting(), 500, [3.0, 0.2])):
            kept = {key: value for key, value in run.attrs.items() if key not in lacking}
            found = simulate.diagnose(run.drop_vars(lacking, errors="ignore").drop_attrs().assign_attrs(kept))
            assert {spike.cause for spike in found.spikes} == {UNKNOWN}
            assert any(word in text for text in found.missing)
            assert word in str(found)
            # and how it is given
            option = {"lr": "(lr=, or --lr)", "wd": "(wd=, or --wd)"}.get(lacking[0], "--column norm=")
            assert option in str(found)

    def test_the_norm_alone_tells_how_far_steps_turn(self):
        run, _ = breaking()
        bare = run[["loss", "norm"]].assign_attrs(run.attrs)
        assert simulate.diagnose(bare).cause == NORM_DRIVEN
        assert simulate.diagnose(hit(resting(), 500, [3.0, 0.2])[["loss", "norm"]]).cause == BAD_BATCH

    def test_of_rows_far_apart_no_batch_is_blamed(self):
        run = hit(resting(8000), 5000, [3.0] * 10).isel(step=slice(None, None, 10))
        found = simulate.diagnose(run)
        assert [spike.cause for spike in found.spikes] == [UNKNOWN]
        assert "rows lie 10 steps apart" in str(found)

    def test_adam_has_no_known_decay(self):
        run, _ = breaking()
        found = simulate.diagnose(run, optimizer=theory.Adam(dim=10))
        assert {spike.cause for spike in found.spikes} == {UNKNOWN}
        assert "Adam" in str(found)
        of_ones_own = simulate.diagnose(run.assign_attrs(optimizer="RMSprop"))
        assert {spike.cause for spike in of_ones_own.spikes} == {UNKNOWN}
        assert "optimizer whose law" in str(of_ones_own)
        assert "(optimizer=, or --optimizer)" in str(of_ones_own)

    def test_an_optimizer_that_was_taken_for_plain_sgd_is_told(self):
        run = hit(resting(), 500, [3.0, 0.2])
        bare = run.drop_attrs().assign_attrs(lr=LR, wd=WD)
        taken = "it was taken for plain SGD"
        assert taken in str(simulate.diagnose(bare))
        assert any(taken in text for text in simulate.diagnose(bare).to_dict()["remarks"])
        assert taken not in str(simulate.diagnose(bare, optimizer=theory.SGD()))
        # nothing rests on it
        assert simulate.diagnose({"loss": np.full(400, 0.1)}).remarks == ()

    @pytest.mark.parametrize(
        ("log", "limit"),
        [
            ({"loss": noise(400, 0), "step": np.arange(400) * 100}, "every step: rows lie 100 steps apart"),
            ({"loss": noise(5, 0)}, f"enough rows: it has 5, and the first {FEWEST} of a log are not judged"),
            ({"loss": noise(LOOKED_BACK - 1, 0)}, f"enough rows: it has {LOOKED_BACK - 1}, and the first"),
            ({"loss": ["oops", *noise(400, 0)]}, "a loss in 1 of 401 rows"),
            ({"loss": noise(400, 0), "step": [*range(300), *range(303, 403)]}, "3 of 403 steps"),
            (
                {"loss": noise(400, 0), "norm": np.where(np.arange(400) < 300, 1.0, np.nan)},
                "norms after step 299, from",
            ),
        ],
        ids=["sparse", "five", "few", "no number", "holes", "norms end"],
    )
    def test_what_limits_a_verdict_is_told_without_spikes_too(self, log, limit):
        found = simulate.diagnose(log)
        assert found.cause == "no spikes"
        (told,) = found.to_dict()["missing"]
        assert told.startswith(limit)
        assert f"But the log lacks {told}." in str(found)

    def test_nothing_limits_a_whole_log(self):
        for found in (simulate.diagnose({"loss": noise(LOOKED_BACK, 0)}), simulate.diagnose(breaking()[0])):
            assert found.missing == ()
            assert "lacks" not in str(found)

    def test_as_few_rows_as_are_told_of_have_no_spikes(self):
        for count in range(1, FEWEST + 2):
            loss = noise(count, 0)
            loss[-1] = 1e6
            found = simulate.diagnose({"loss": loss})
            assert found.spikes == ()
            assert f"it has {count}" in found.missing[0]

    def test_norms_logged_now_and_then(self):
        run, _ = breaking(fall=300)
        norm = np.where(np.arange(run.sizes["step"]) % 2 == 0, run.norm.values, math.nan)
        found = simulate.diagnose(changed(run, norm=norm))
        assert found.log.sizes["step"] == (run.sizes["step"] + 1) // 2
        assert set(found.missing) <= {"every step: rows lie 2 steps apart"}

    def test_a_loss_logged_now_and_then_is_no_overflow(self):
        run = resting()
        loss = np.where(np.arange(800) % 10 == 0, run.loss.values, math.nan)
        assert simulate.diagnose(changed(run, loss=loss)).spikes == ()


def test_a_norm_that_something_else_changed_is_not_explained():
    run, length = breaking(3)
    norm = run.norm.values.copy()
    # weights are scaled up while the loss is high
    norm[2 * length - 2 :] *= 3
    found = simulate.diagnose(changed(run, norm=norm).drop_vars("effective_lr"))
    spike = next(s for s in found.spikes if s.step >= length + 150)
    assert spike.cause == UNKNOWN
    assert "changed by something else" in spike.evidence[-1]


def test_without_a_fall_the_norm_is_not_blamed():
    run = resting()
    rotation = run.rotation.values.copy()
    rotation[497:500] = 1.0
    found = simulate.diagnose(hit(changed(run, rotation=rotation), 500, [3.0, 2.0, 0.3]))
    assert [spike.cause for spike in found.spikes] == [UNKNOWN]
    assert "had not fallen" in found.spikes[0].evidence[-1]


def clipped_at(bound, gradients):
    """Norm of a training with clipped gradients, of which the log has the norm before."""
    norm, norms = 8.0, []
    for gradient in gradients:
        norms.append(norm)
        norm = math.hypot((1 - LR * WD) * norm, LR * min(gradient, bound))
    return np.array(norms)


class TestNormsThatContradictTheLaw:
    """It is said, and why it may be."""

    GRADIENTS = np.random.default_rng(3).uniform(0.2, 1.0, 900)

    def log(self, norm, gradients=GRADIENTS, wd=WD, **settings):
        loss = noise(len(norm), 99)
        loss[500] = 3.0
        columns = {"loss": loss, "norm": norm, "grad_norm": gradients[: len(norm)]}
        return simulate.training_log(columns, lr=LR, wd=wd, **settings)

    @FIXED
    @given(st.integers(0, 10**6), st.floats(1e-3, 0.05), st.sampled_from([None, 5]))
    def test_a_right_log_has_nothing_of_it(self, seed, wd, digits):
        gradients = np.random.default_rng(seed).uniform(0.2, 1.0, 900)
        norm, norms = 8.0, []
        for gradient in gradients:
            norms.append(norm if digits is None else float(f"{norm:.{digits}g}"))
            norm = math.hypot((1 - LR * wd) * norm, LR * gradient)
        assert contradiction(Rows.of(self.log(np.array(norms), gradients, wd))) == ""

    def test_norms_after_the_step(self):
        right = clipped_at(math.inf, self.GRADIENTS)
        found = simulate.diagnose(self.log(right[1:]))
        assert "taken for the one after its step: log it before the step." in found.remarks[-1]
        assert "set anew" not in str(found)
        assert simulate.diagnose(self.log(right)).remarks[1:] == ()

    def test_clipped_gradients(self):
        found = simulate.diagnose(self.log(clipped_at(0.5, self.GRADIENTS)))
        assert "clipped at 0.5:" in found.remarks[-1]

    @pytest.mark.parametrize("said", [WD / 3, 2 * WD, 0.0])
    def test_another_decay(self, said):
        found = simulate.diagnose(self.log(clipped_at(math.inf, self.GRADIENTS), wd=said))
        told = float(found.remarks[-1].rpartition("wd = ")[2].partition(";")[0].rstrip("."))
        assert told == pytest.approx(WD, rel=0.03)
        assert ("momentum" in found.remarks[-1]) == (said < WD)

    def test_gradients_of_another_size(self):
        found = simulate.diagnose(self.log(clipped_at(math.inf, self.GRADIENTS), 4 * self.GRADIENTS))
        assert "gradients 0.25 times as large" in found.remarks[-1]

    def test_without_gradients_the_decay_is_told(self):
        norm = 8.0 * (1 - LR * WD) ** np.arange(900) * (1 + 1e-4 * np.random.default_rng(0).uniform(size=900))
        found = simulate.diagnose(self.log(norm, np.zeros(900), wd=WD / 3))
        assert f"It does with wd = {WD:.2g}" in found.remarks[-1]
        # a decay that changes is none of what is tried
        norm = 8.0 * np.exp(-np.cumsum(np.random.default_rng(0).uniform(0, 0.02, 900)))
        assert "Reasons may be" in simulate.diagnose(self.log(norm, np.zeros(900))).remarks[-1]

    def test_steps_that_take_several_rows(self):
        found = simulate.diagnose(self.log(np.repeat(clipped_at(math.inf, self.GRADIENTS)[:225], 4)))
        assert "every 4th row only: log one row for each step" in found.remarks[-1]

    def test_what_nothing_explains(self):
        momentum = simulate.norm_map(
            LR, WD, simulate.RecordedGradient(self.GRADIENTS), norm=8.0, steps=900, optimizer=theory.SGD(momentum=0.9)
        )
        log = self.log(momentum.norm.values * np.exp(np.random.default_rng(0).normal(0, 0.02, 900)))
        assert "Reasons may be another optimizer" in simulate.diagnose(log).remarks[-1]
        # of no other optimizer is the law known in single steps
        assert simulate.diagnose(log, optimizer=theory.SGD(momentum=0.9)).remarks == ()

    def test_it_takes_a_training_at_every_step(self):
        wrong = self.log(clipped_at(0.5, self.GRADIENTS))
        assert contradiction(Rows.of(wrong)) != ""
        for other in (
            wrong.assign_attrs(source="map", schema=1),
            wrong.isel(step=slice(None, None, 3)),
            wrong.isel(step=slice(0, FEWEST)),
            wrong.drop_vars("grad_norm"),
            wrong.drop_vars("norm"),
            changed(wrong, grad_norm=np.full(900, math.nan)),
        ):
            assert contradiction(Rows.of(other)) == ""

    def test_clipped_gradients_in_a_break_are_named(self):
        run, _ = breaking(4)
        gradients = (run.grad_norm / run.norm).values
        bound = float(np.quantile(gradients, 0.97))
        norm = float(run.norm[0])
        norms = []
        for gradient in gradients:
            norms.append(norm)
            norm = math.hypot((1 - LR * WD) * norm, LR * min(gradient, bound))
        log = {"loss": run.loss.values, "norm": norms, "grad_norm": gradients}
        told = str(simulate.diagnose(log, lr=LR, wd=WD))
        assert "they were clipped, or the norm was changed by something else" in told


class TestLogsAsTheyAre:
    @pytest.mark.parametrize("missing", [[0], [5], list(range(60)), [150, 151]])
    def test_a_norm_that_is_missing_now_and_then(self, missing):
        run, length = breaking(5)
        norm = run.norm.values.copy()
        norm[missing] = math.nan
        whole, found = simulate.diagnose(run), simulate.diagnose(changed(run, norm=norm))
        assert [s.step for s in found.spikes if s.step > length] == [s.step for s in whole.spikes if s.step > length]
        assert found.spikes[-1].cause == NORM_DRIVEN
        norm[missing] = 0.0
        assert simulate.diagnose(changed(run, norm=norm)).spikes[-1].cause == NORM_DRIVEN

    def test_a_bad_batch_in_every_epoch(self):
        run = resting(2000)
        loss = run.loss.values.copy()
        loss[400:2000:100] = 3.0
        found = simulate.diagnose(changed(run, loss=loss))
        assert [(s.step, s.cause) for s in found.spikes[:-1]] == [(step, BAD_BATCH) for step in range(400, 1900, 100)]

    def test_warm_up_is_no_spike(self):
        step = np.arange(800)
        for seed in range(10):
            fading = np.exp(0.1 * np.random.default_rng(seed).normal(size=800))
            loss = (2.3 * np.exp(-step / 150) + 0.1) * fading
            for lr in (np.minimum(step / 100, 1) * 0.5, np.zeros(800)):
                assert simulate.diagnose({"loss": loss, "lr": lr}, wd=1e-4).spikes == ()

    def test_a_loss_that_was_not_logged_is_no_overflow(self):
        loss = resting().loss.values.copy()
        loss[::10] = math.nan
        assert simulate.diagnose({"loss": loss}).spikes == ()
        loss[700:] = math.nan
        assert [(s.step, s.cause) for s in simulate.diagnose({"loss": loss}).spikes] == [(700, OVERFLOW)]

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_weights_that_were_replaced_are_no_bad_data(self, factor):
        run = resting()
        norm = run.norm.values.copy()
        # after that it obeys its law
        later = simulate.RecordedGradient(run.grad_norm.values[500:])
        norm[500:] = simulate.norm_map(LR, WD, later, norm=factor * norm[500], steps=300).norm
        found = simulate.diagnose(changed(hit(run, 500, [3.0, 0.4, 0.2]), norm=norm).drop_vars("effective_lr"))
        assert {s.cause for s in found.spikes} == {UNKNOWN}
        assert any("set anew" in " ".join(s.evidence) for s in found.spikes)

    def test_clipping_is_advised_where_the_gradient_was_large(self):
        run = resting()
        usual = simulate.diagnose(hit(run, 500, [3.0, 0.2])).spikes[0]
        assert "clipped" not in usual.advice
        gradients = run.grad_norm.values.copy()
        gradients[500] *= 8
        # the norm obeys its law
        again = simulate.norm_map(LR, WD, simulate.RecordedGradient(gradients), norm=float(run.norm[0]), steps=800)
        hard = hit(trained(again).assign(loss=run.loss), 500, [3.0, 0.2])
        large = simulate.diagnose(hard).spikes[0]
        assert large.cause == BAD_BATCH
        assert "clipped" in large.advice
        assert "that of the scale-invariant weights" in large.advice
        # of which gradients the bound is
        columns = {
            "loss": hard.loss.values,
            "norm": hard.norm.values,
            "total/grad": (hard.grad_norm / hard.norm).values,
        }
        named = simulate.diagnose(columns, lr=LR, wd=WD, names={"gradient": "total/grad"}).spikes[0]
        assert named.advice == large.advice.replace("of the scale-invariant weights", "in column 'total/grad'")

    def test_what_did_not_come_in_time_is_not_expected(self):
        run, _ = breaking(5)
        quiet = simulate.norm_map(LR, WD, 0.5, norm=float(run.final_norm), steps=3000)
        parts = {name: np.append(run[name], quiet[name]) for name in ("norm", "grad_norm", "rotation")}
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

    def test_one_loss_at_the_start_hides_nothing(self):
        run = hit(resting(), 500, [3.0, 0.2])
        loss = run.loss.values.copy()
        loss[0] = 100.0
        assert [s.cause for s in simulate.diagnose(changed(run, loss=loss)).spikes] == [BAD_BATCH]

    def test_a_data_frame_says_the_same(self):
        run, _ = breaking(4)
        frame = run[["loss", "norm", "grad_norm", "rotation"]].to_dataframe()
        found = simulate.diagnose(frame, lr=LR, wd=WD)
        assert [(s.step, s.cause) for s in found.spikes] == [(s.step, s.cause) for s in simulate.diagnose(run).spikes]


def lr_schedule(values):
    return lambda step: np.asarray(values)[np.minimum(np.asarray(step, dtype=int), len(values) - 1)]


class TestInvariance:
    """A diagnosis does not depend on units."""

    @FIXED
    @given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 5))
    def test_of_loss_and_weights(self, loss, weight, seed):
        for run in (breaking(seed=seed)[0], hit(resting(seed=seed), 500, [3.0, 0.2])):
            # L → a L, w → b w: g̃ → a g̃, η → b²/a η, λ → a/b² λ
            scaled = changed(
                run, loss=run.loss.values * loss, norm=run.norm.values * weight, grad_norm=run.grad_norm.values * loss
            ).drop_vars("effective_lr")
            other = simulate.diagnose(scaled, lr=LR * weight**2 / loss, wd=WD * loss / weight**2)
            own = simulate.diagnose(run)
            assert [(s.step, s.last_step, s.cause) for s in other.spikes] == [
                (s.step, s.last_step, s.cause) for s in own.spikes
            ]
            for one, two in zip(own.spikes, other.spikes, strict=True):
                assert two.fall_rate == pytest.approx(one.fall_rate, rel=1e-6, nan_ok=True)
                assert two.growth_explained == pytest.approx(one.growth_explained, rel=1e-6, nan_ok=True)

    def test_of_what_came_before(self):
        run, length = breaking(6)
        whole = simulate.diagnose(run)
        late = simulate.diagnose(run.isel(step=slice(length, None)))
        assert [s.step for s in late.spikes] == [s.step for s in whole.spikes if s.step >= length]


class TestFindSpikes:
    @FIXED
    @given(st.integers(0, 10**6), st.integers(250, 900), st.floats(4.0, 1e3), st.integers(1, 30))
    def test_it_finds_what_stands_out_and_nothing_else(self, seed, at, height, length):
        loss = noise(1000, seed)
        assert find_spikes(loss, None, None) == []
        loss[at : at + length] = 0.25 * height
        ((first, last),) = find_spikes(loss, None, None)
        assert at - 3 <= first <= at
        assert last == at + length - 1

    @FIXED
    @given(st.integers(0, 10**6))
    def test_spikes_do_not_overlap(self, seed):
        loss = np.exp(np.random.default_rng(seed).normal(size=2000) * 2)
        found = find_spikes(loss, None, None)
        assert all(first <= last for first, last in found)
        assert all(one[1] < two[0] for one, two in itertools.pairwise(found))

    def test_short_logs_have_none(self):
        for count in range(60):
            assert find_spikes(np.geomspace(1, 1e9, count), None, None) == []

    def test_a_higher_level_is_reported_once(self):
        loss = np.append(noise(500, 0), noise(1500, 1, 3.0))
        assert len(find_spikes(loss, None, None)) == 1

    def test_less_is_enough_where_one_is_expected(self):
        loss = noise(600, 0)
        loss[405] = 0.15
        assert find_spikes(loss, None, None) == []
        assert find_spikes(loss, None, None, [400]) == [(405, 405)]
        assert find_spikes(loss, None, None, [370]) == []


class TestPicture:
    @pytest.fixture(autouse=True)
    def _without_a_screen(self):
        mpl.use("Agg")
        yield
        plt.close("all")

    def test_spikes_are_marked_by_cause(self):
        run, _ = breaking(4)
        mixed = hit(run, 300 + 100, [math.inf])
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
        ({"norm": [1.0]}, ValueError, r"loss of each step, got \['norm'\]"),
        ({"loss": [math.nan] * 3}, ValueError, "a loss that is a number"),
        ("no such file", ValueError, "no such file"),
        (3, TypeError, "columns must be a mapping"),
        (xr.Dataset({"loss": (("lr", "step"), np.ones((2, 3)))}), ValueError, "one run with dimension"),
        (resting(60).assign_coords(step=np.arange(60) % 20), ValueError, r"log\.step must be whole numbers that grow"),
        (resting(60).assign_coords(step=np.arange(60) / 2), ValueError, r"log\.step must be whole numbers that grow"),
        (
            resting(60).assign_attrs(optimizer="SGD() with fixed norm"),
            ValueError,
            "in which nothing is held fixed",
        ),
    ],
)
def test_bad_logs_are_named(log, error, message):
    with pytest.raises(error, match=message):
        simulate.diagnose(log)


def test_names_are_for_columns_that_have_none_of_their_own(tmp_path):
    run = resting(60)
    simulate.save(run, tmp_path / "run.zarr")
    for log in (run, tmp_path / "run.zarr"):
        with pytest.raises(ValueError, match=r"names must be left out with a trajectory.*'loss': 'nope'"):
            simulate.diagnose(log, names={"loss": "nope"})
        assert simulate.diagnose(log, names={}).spikes == ()
