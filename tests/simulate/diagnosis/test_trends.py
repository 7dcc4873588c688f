"""What the loss does apart from spikes: slow rises, oscillations and repetitions of series with a known answer."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import empirical
import simulate
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.rules import THRESHOLDS, Thresholds
from simulate.diagnosis.trends import chance_of_lock, find_trends, locked_share

FIXED = settings(deadline=None, derandomize=True, max_examples=15)


def trends_of(loss, places=(), t=THRESHOLDS, **attrs):
    log = xr.Dataset({"loss": ("step", np.asarray(loss, dtype=float))}, {"step": np.arange(len(loss))}, attrs)
    return find_trends(Rows.of(log), list(places), t)


def kinds(loss, places=(), **attrs):
    return [trend.kind for trend in trends_of(loss, places, **attrs)]


def noise(seed, count, kept=0.0):
    """Noise with standard deviation 1, correlated between neighbours."""
    draws = np.random.default_rng(seed).normal(size=count)
    for row in range(1, count):
        draws[row] = kept * draws[row - 1] + math.sqrt(1 - kept**2) * draws[row]
    return draws


class TestRises:
    @FIXED
    @given(st.integers(0, 999), st.floats(0.0, 0.9), st.floats(0.05, 0.5))
    def test_a_training_that_improves_or_stays_has_no_trend(self, seed, kept, spread):
        time = np.linspace(0, 1, 3000)
        for level in (np.ones(3000), 0.2 + np.exp(-5 * time), 1 + np.cos(math.pi * time)):
            assert kinds((0.02 + level) * np.exp(spread * noise(seed, 3000, kept))) == []

    @FIXED
    @given(st.integers(0, 999), st.floats(2, 50), st.floats(0.2, 0.6), st.sampled_from([1e-3, 1.0, 1e3]))
    def test_a_slow_rise_is_found_in_any_unit(self, seed, factor, start, unit):
        time = np.linspace(0, 1, 2000)
        level = np.exp(math.log(factor) * np.clip((time - start) / 0.3, 0, 1))
        loss = unit * level * np.exp(0.05 * noise(seed, 2000))
        (trend,) = trends_of(loss)
        assert trend.kind == "slow rise"
        assert trend.step <= 2000 * (start + 0.1)
        assert trend.last_step >= 2000 * (start + 0.2)
        assert f"ends at {np.median(loss[-50:]):.3g}." in trend.text

    def test_a_rise_that_ends_is_found_if_it_lasted(self):
        level = np.ones(2000)
        level[800:1400] = 3.0
        loss = level + 0.05 * noise(0, 2000)
        assert kinds(loss) == ["lasting rise"]
        assert "decreased again later" in trends_of(loss)[0].text
        # a spike that begins there is reported itself
        assert kinds(loss, [(800, 1400)]) == []
        level = np.ones(2000)
        level[800:860] = 3.0
        assert kinds(level + 0.05 * noise(0, 2000)) == []

    def test_spikes_are_no_rise(self):
        loss = 1 + 0.05 * noise(0, 2000)
        loss[500::200] = 100.0
        assert kinds(loss) == []

    def test_too_few_rows_have_no_trend(self):
        rise = np.linspace(1, 9, THRESHOLDS.trend_blocks * THRESHOLDS.least_block_rows)
        assert kinds(rise) == ["slow rise"]
        assert kinds(rise[1:]) == []

    def test_a_diagnosis_names_the_trend(self):
        loss = np.linspace(1, 5, 2000) + 0.05 * noise(0, 2000)
        diagnosis = simulate.diagnose({"loss": loss})
        assert diagnosis.cause == "slow rise"
        assert diagnosis.to_dict()["trends"][0]["kind"] == "slow rise"
        assert "slow rise, step 0 to 1999: The median loss rose from its lowest level 1.1" in str(diagnosis)


class TestRepetition:
    @FIXED
    @given(st.integers(0, 999), st.integers(15, 120), st.booleans())
    def test_a_fixed_order_of_batches_is_found(self, seed, epoch, is_known):
        batches = 0.1 * noise(seed, epoch)
        loss = 1 + np.tile(batches, 3000 // epoch + 1)[:3000] + 0.1 * noise(seed + 1, 3000)
        (trend,) = trends_of(loss, **({"epoch_length": epoch} if is_known else {}))
        assert trend.kind == "repetition"
        assert f"repeats every {epoch} steps" in trend.text
        assert ("That is an epoch" in trend.text) == is_known
        assert "the order of the data causes it" in trend.text
        (other,) = trends_of(loss, epoch_length=epoch + 1)
        assert "look for what else recurs" in other.text

    @FIXED
    @given(st.integers(0, 999), st.integers(20, 100))
    def test_batches_in_random_order_do_not_repeat(self, seed, epoch):
        random = np.random.default_rng(seed)
        batches = 0.1 * noise(seed, epoch)
        loss = 1 + np.concatenate([random.permutation(batches) for _ in range(3000 // epoch)])
        assert kinds(loss, epoch_length=epoch) == []

    @FIXED
    @given(st.integers(0, 999), st.integers(15, 120))
    def test_a_small_last_batch_is_found(self, seed, epoch):
        random = np.random.default_rng(seed)
        since = np.arange(3000) % epoch
        sizes = np.repeat(random.exponential(size=3000 // epoch + 1), epoch)[:3000]
        loss = 1 + sizes * np.exp(-since / (0.2 * epoch)) + 0.1 * noise(seed, 3000)
        (trend,) = trends_of(loss, epoch_length=epoch)
        assert trend.kind == "repetition"
        assert f"epoch of {epoch} steps" in trend.text or f"every {epoch} steps" in trend.text
        # another number of steps per epoch explains nothing
        assert all("place in the epoch" not in trend.text for trend in trends_of(loss, epoch_length=1.31 * epoch))

    @FIXED
    @given(st.integers(0, 999), st.integers(15, 120))
    def test_noise_and_oscillations_do_not_depend_on_the_place_in_the_epoch(self, seed, epoch):
        assert kinds(np.full(3000, 2.3), epoch_length=epoch) == []
        walk = np.cumsum(1 + 0.3 * noise(seed, 3000))
        for loss in (2 + noise(seed, 3000, kept=0.9) / 4, 2 + np.sin(2 * np.pi * walk / (1.15 * epoch))):
            assert all("place in the epoch" not in trend.text for trend in trends_of(loss, epoch_length=epoch))

    @pytest.mark.parametrize("sampling", ["all_samples", "without_replacement"])
    def test_a_network_trained_with_a_small_last_batch(self, sampling):
        settings = {"model": "convnet", "width": 2, "samples": 1156, "sampling": sampling, "steps": 1500}
        run = empirical.train(empirical.RunConfig(lr=0.5, wd=0.01, **settings))
        trends = simulate.diagnose(run).trends
        found = [trend.text for trend in trends if "place in the epoch of 19 steps" in trend.text]
        assert bool(found) == (sampling == "all_samples"), trends

    @pytest.mark.parametrize("is_shuffled", [False, True])
    def test_a_network_trained_in_one_order(self, is_shuffled):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(640, 20, generator=generator)
        # labels that a linear network cannot learn, and some batches with more noise
        targets = (inputs[:, 0] + torch.randn(640, generator=generator) > 0).long()
        model = nn.Linear(20, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            order = torch.randperm(640, generator=generator) if is_shuffled else torch.arange(640)
            for chosen in order.split(16):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        found = [trend for trend in simulate.diagnose({"loss": losses}).trends if trend.kind == "repetition"]
        assert [" 40 steps" in trend.text for trend in found] == ([] if is_shuffled else [True])


class TestOscillation:
    @FIXED
    @given(st.integers(0, 999), st.integers(100, 500), st.floats(0.1, 0.5))
    def test_the_period_is_found(self, seed, period, size):
        loss = np.exp(size * np.sin(2 * math.pi * np.arange(4000) / period) + 0.1 * noise(seed, 4000))
        (trend,) = trends_of(loss)
        assert trend.kind == "oscillation"
        assert float(trend.text.split("about ")[1].split()[0]) == pytest.approx(period, rel=0.1)

    @FIXED
    @given(st.integers(0, 999), st.floats(0.0, 0.98))
    def test_correlated_noise_does_not_oscillate(self, seed, kept):
        assert kinds(np.exp(0.3 * noise(seed, 4000, kept))) == []

    @pytest.mark.parametrize(
        ("wd", "answer"), [(1e-6, "so the norm is not the cause"), (0.05, "the norm may be the cause")]
    )
    def test_it_says_whether_the_norm_can_oscillate_so_fast(self, wd, answer):
        loss = np.exp(0.3 * np.sin(2 * math.pi * np.arange(4000) / 200) + 0.05 * noise(0, 4000))
        (trend,) = trends_of(loss, lr=0.1, wd=wd, optimizer="SGD()")
        assert answer in trend.text
        # momentum would make decay faster
        (trend,) = trends_of(loss, lr=0.1, wd=wd)
        assert "norm" not in trend.text
        (trend,) = trends_of(loss)
        assert "norm" not in trend.text
        (trend,) = trends_of(loss, lr=0.1, wd=wd, epoch_length=200)
        assert "epoch of 200 steps" in trend.text
        assert "not the norm" in trend.text

    def test_thresholds(self):
        loss = np.exp(0.3 * np.sin(2 * math.pi * np.arange(4000) / 200) + 0.05 * noise(0, 4000))
        assert trends_of(loss, t=dataclasses.replace(Thresholds(), oscillation_height=1.01)) == []
        assert trends_of(loss, t=dataclasses.replace(Thresholds(), oscillation_periods=21.0)) == []


class TestPlaceInTheEpoch:
    @FIXED
    @given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), st.floats(2, 1e4))
    def test_the_share_contains_all_positions_and_no_shorter_one_does(self, steps, period):
        share = locked_share(steps, period)
        assert 0 <= share < 1
        positions = np.mod(steps, period)
        covered = [np.ptp(np.sort(np.mod(positions - start, period))) / period for start in positions]
        assert share == pytest.approx(min(covered), abs=1e-9)

    def test_the_chance_agrees_with_draws(self):
        random = np.random.default_rng(0)
        for count, share in [(3, 0.1), (4, 0.3)]:
            drawn = [locked_share(row, 1.0) <= share for row in random.uniform(size=(20_000, count))]
            assert np.mean(drawn) == pytest.approx(chance_of_lock(count, share), abs=0.01)
