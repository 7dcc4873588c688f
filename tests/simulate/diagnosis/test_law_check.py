"""Norms that contradict the update of their optimizer are reported with a correction, and support no cause."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory
from simulate.diagnosis.law_check import find_contradiction
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.rules import BAD_BATCH, THRESHOLDS, UNKNOWN
from tests.simulate.diagnosis.logs import FIXED, LR, WD, noise, periodic, with_columns


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

    def test_if_nearly_all_gradients_are_clipped_nothing_confirms_the_weight_decay(self):
        gradients = 5 * self.GRADIENTS
        some, all_of_them = (
            find_contradiction(Rows.of(self.log(clipped_at(bound, gradients), gradients))) for bound in (2.5, 0.5)
        )
        assert "clipped at 0.5:" in all_of_them.text
        assert (some.is_by_gradients, some.is_serious) == (True, False)
        assert (all_of_them.is_by_gradients, all_of_them.is_serious) == (False, True)

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
