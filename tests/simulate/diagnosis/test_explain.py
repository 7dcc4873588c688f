"""Each set of features has one cause, each threshold decides, and chance explains no norm-driven spike."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory
from simulate.diagnosis.diagnosis import diagnose_run
from simulate.diagnosis.law_check import find_contradiction
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.rules import (
    BAD_BATCH,
    CLIPPING,
    DATA_ORDER,
    DATA_SHIFT,
    LARGE_UPDATE,
    LR_STEP,
    NORM_DRIVEN,
    RULES,
    THRESHOLDS,
    UNKNOWN,
    Spacing,
    SpikeFeatures,
    Thresholds,
    explain,
)
from simulate.diagnosis.spikes import find_spikes, spike_features
from tests.simulate.diagnosis.logs import FIXED, LR, WD, as_training, at_equilibrium, periodic, with_losses

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
        "data_shifts": 1,
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
            assert re.search(r"before only 0\.\d% of the usual rows, and the loss rose by \d+\.\d", str(spike))

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
        assert "a share up to 1% and a rise of at least 6.0" in str(spikes[-1])

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
            (
                dataclasses.replace(spike_with(NORM_DRIVEN), loss_after=0.2, largest_loss=1.0, usual_loss=0.0),
                "most_left",
                "loss_after",
                -1,
            ),
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
            (spike_with(DATA_SHIFT), "most_data_shifts", "data_shifts", -1),
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
        unlikely = dataclasses.replace(spike_with(BAD_BATCH), chance_before=0.005, rise_ratio=12.0, spacing=possible)
        spike = dataclasses.replace(unlikely, has_columns=False, gradient_before=3.0, gradient_then=5.0)
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
        assert found(data_shift_left=-1.0, next_share=0.0) == {DATA_SHIFT}
        assert found(least_rows=600) == set()
        assert diagnose_run(run, Thresholds(compared_rows=900)).missing[0].startswith("enough rows: it has 800")
        assert find_contradiction(Rows.of(run)).text == ""
        assert "contradict the SGD update" in find_contradiction(Rows.of(run), Thresholds(law_share=-1.0)).text
