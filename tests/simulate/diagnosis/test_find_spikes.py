"""Spikes are outliers of the loss, and only these."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from simulate.diagnosis.log_rows import Rows
from simulate.diagnosis.spikes import find_spikes
from tests.simulate.diagnosis.logs import FIXED, noise


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
