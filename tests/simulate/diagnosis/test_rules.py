"""Rules that leave a cause unknown: what precedes or follows the spike fits another cause as well."""

import dataclasses
import math

import numpy as np
import pytest

import simulate
import theory
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.rules import (
    BAD_BATCH,
    DATA_ORDER,
    DATA_SHIFT,
    LARGE_UPDATE,
    THRESHOLDS,
    UNKNOWN,
    Spacing,
    SpikeFeatures,
    Thresholds,
    explain,
)
from simulate.diagnosis.spikes import find_spikes, spike_features

NOTHING = Spacing(**({field.name: math.nan for field in dataclasses.fields(Spacing)} | {"count": 1}))


def spike(**features):
    """Features of a loss that rose at once, from 0.1 to 3, after steps with usual rotation."""
    unknown = {field.name: math.nan for field in dataclasses.fields(SpikeFeatures)}
    common = {
        "has_columns": True,
        "is_dense": True,
        "simulation": "",
        "optimizer": "SGD()",
        "gradient_column": "",
        "span": 1000,
        "contradicts_law": False,
        "spacing": NOTHING,
        "arrival_step": 500,
        "arrival_loss": 3.0,
        "largest_loss": 3.0,
        "usual_loss": 0.1,
        "first_mean": 2.0,
        "largest_mean": 2.0,
        "mean_excess_ratios": (20.0, 20.0, 20.0),
        "excess_ratio": 20.0,
        "turned_before": 0.9,
        "chance_before": 0.5,
        "rise_ratio": 20.0,
        "lr": 0.1,
        "lowest_lr": 0.1,
        "compared_lr": 0.1,
        "norm_decay": 0.3,
        "decay_ratio": 0.9,
        "norm_growth": 0.2,
        "similar_spikes": 0,
        "data_shifts": 1,
        "log_largest": 3.0,
    }
    return SpikeFeatures(**(unknown | common | features))


SHIFT = spike(next_share=0.9, share_left=0.4, left_ratio=50.0)
BATCH = spike(next_share=0.0, share_left=0.01, left_ratio=0.5)


class TestLastingLoss:
    """After a decay of the norm, a lasting loss is a data shift only if the next batch is bad, too."""

    def test_a_batch_may_begin_a_destabilization(self):
        assert explain(SHIFT).cause == DATA_SHIFT
        begun = dataclasses.replace(SHIFT, next_share=0.3)
        assert (explain(begun).cause, explain(begun).advice) == (UNKNOWN, "")
        assert "after one step 30% was left: one batch may have begun a destabilization" in explain(begun).evidence[-1]
        assert explain(begun, Thresholds(next_share=0.29)).cause == DATA_SHIFT

    @pytest.mark.parametrize("norm", [{"norm_decay": 0.05}, {"decay_ratio": 0.2}])
    def test_without_a_deep_decay_the_loss_that_is_left_decides(self, norm):
        relearned = dataclasses.replace(SHIFT, next_share=0.3, **norm)
        assert explain(relearned).cause == DATA_SHIFT

    def test_one_batch_is_over_if_the_next_loss_is_usual(self):
        # later losses are above usual ones, because the step changed the weights
        after = dataclasses.replace(BATCH, share_left=0.04, left_ratio=3.0)
        assert explain(after).cause == BAD_BATCH
        assert explain(dataclasses.replace(after, next_share=0.1)).cause == UNKNOWN
        assert explain(dataclasses.replace(after, share_left=0.06)).cause == UNKNOWN


class TestUsualRows:
    """The data are named only if the rows before were usual and comparable."""

    @pytest.mark.parametrize("data", [SHIFT, BATCH])
    def test_a_learning_rate_that_has_grown(self, data):
        grown = dataclasses.replace(data, compared_lr=0.06)
        assert explain(grown).cause == UNKNOWN
        assert "the learning rate rose from 0.06 to 0.1" in explain(grown).evidence[-1]
        assert explain(dataclasses.replace(data, compared_lr=0.07)).cause == explain(data).cause

    @pytest.mark.parametrize("data", [SHIFT, BATCH])
    def test_a_small_spike_of_a_network_that_has_learned_its_samples(self, data):
        # the usual loss is 0.1, the loss in the spike 3
        small = dataclasses.replace(data, log_largest=23.0)
        assert explain(small).cause == UNKNOWN
        assert "small beside the loss of 23 that the log reaches" in explain(small).evidence[-1]
        for change in ({"log_largest": 22.0}, {"usual_loss": 2.0, "log_largest": 19.0}):
            assert explain(dataclasses.replace(small, **change)).cause == explain(data).cause

    def test_several_data_shifts_in_one_log(self):
        assert explain(dataclasses.replace(SHIFT, data_shifts=2)).cause == UNKNOWN
        assert explain(dataclasses.replace(BATCH, data_shifts=2)).cause == BAD_BATCH

    @pytest.mark.parametrize("data", [SHIFT, BATCH])
    def test_a_small_spike_after_a_rare_rotation(self, data):
        rare = dataclasses.replace(data, excess_ratio=6.0, chance_before=0.04)
        assert explain(rare).cause == UNKNOWN
        assert "before only 4.0% of the usual rows" in explain(rare).evidence[-1]
        for change in ({"excess_ratio": 20.0}, {"chance_before": 0.06}):
            assert explain(dataclasses.replace(rare, **change)).cause == explain(data).cause

    def test_without_norms_a_large_step_must_be_rare(self):
        spacing = dataclasses.replace(NOTHING, total_decay=0.01)
        large = spike(has_columns=False, gradient_before=3.0, chance_before=0.005, spacing=spacing)
        assert explain(large).cause == LARGE_UPDATE
        assert explain(dataclasses.replace(large, chance_before=0.05)).cause == UNKNOWN
        assert explain(dataclasses.replace(large, rise_ratio=5.0)).cause == UNKNOWN


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(0.8, 1.25, count)


def features_of(columns, **settings):
    rows = Rows.of(simulate.read_log(columns, **settings))
    return spike_features(rows, find_spikes(rows))


class TestFeatures:
    def test_the_next_loss(self):
        loss = noise(600)
        loss[400:403] = 21.0, 11.0, 3.0
        (found,) = features_of({"loss": loss})
        assert found.next_share == pytest.approx(0.5, abs=0.02)

    def test_the_lowest_learning_rate_of_the_compared_rows(self):
        loss, lr = noise(600), np.full(600, 0.1)
        loss[400], lr[:150], lr[250:] = 20.0, 0.01, 0.2
        (found,) = features_of({"loss": loss, "lr": lr})
        assert (found.lowest_lr, found.compared_lr) == (0.2, 0.1)

    @pytest.mark.parametrize(("second", "cause"), [(320, UNKNOWN), (301, UNKNOWN)])
    def test_two_spikes_at_one_row_of_a_short_epoch_are_chance(self, second, cause):
        loss = noise(500)
        loss[[300 - 80, second]] = 30.0
        log = simulate.read_log({"loss": loss}).assign_attrs(epoch_length=20)
        assert {found.cause for found in simulate.diagnose(log).spikes} == {cause}

    def test_four_spikes_at_one_row_of_an_epoch_are_not(self):
        loss = noise(900)
        loss[[100, 300, 500, 700]] = 30.0
        log = simulate.read_log({"loss": loss}).assign_attrs(epoch_length=100)
        assert {found.cause for found in simulate.diagnose(log).spikes} == {DATA_ORDER}

    def test_in_rows_that_lie_apart_rotation_counts_before_the_first_high_row(self):
        # the norm grows from the first high row on, because of the data
        growth = np.full(400, 0.01)
        growth[300:306] = 0.2
        norm = 8 * np.exp(np.cumsum(np.r_[0.0, growth[:-1]] - 0.01) + 0.001 * noise(400, 1))
        loss = noise(400)
        loss[300:306] = 2.5, 3.0, 3.0, 40.0, 50.0, 40.0
        columns = {"step": 5 * np.arange(400), "loss": loss, "weight_norm": norm, "lr": np.full(400, 0.1)}
        (found,) = features_of(columns, wd=0.02, optimizer=theory.SGD())
        assert found.arrival_step > 1500
        assert found.turned_before < THRESHOLDS.far_rotation
        dense = {**columns, "step": np.arange(400)}
        (found,) = features_of(dense, wd=0.1, optimizer=theory.SGD())
        assert found.turned_before > THRESHOLDS.far_rotation

    def test_without_norms_gradients_are_compared(self):
        gradient, loss = noise(600, 1), noise(600)
        gradient[398:401], loss[400] = 5.0, 30.0
        columns = {"loss": loss, "lr": np.full(600, 0.1), "gradient_norm": gradient}
        (found,) = features_of(columns, wd=1e-4, optimizer=theory.SGD())
        assert found.chance_before < THRESHOLDS.single_chance
        (found,) = features_of({**columns, "gradient_norm": noise(600, 1)}, wd=1e-4, optimizer=theory.SGD())
        assert found.chance_before > 2 * THRESHOLDS.single_chance
