"""Values that are not finite, and runs that diverge, are overflows."""

import math

import numpy as np
import pytest

import simulate
from simulate.diagnosis.rules import NORM_DRIVEN, OVERFLOW
from tests.simulate.diagnosis.logs import LR, WD, at_equilibrium, noise, periodic, with_columns, with_losses


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
