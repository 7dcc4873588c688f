"""The period finder compared with another algorithm: prominence of the peaks of -ln ρ in `scipy.signal`."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import find_peaks

import simulate
import theory
from simulate import BoundedGradient, NormalizedRegression, Ratio2D, RayleighQuotient
from simulate.trajectories.setting import Setting

FIXED = settings(deadline=None, derandomize=True, max_examples=150)
RISES = (0.1, 0.2, 0.3)
TRACES = Path(__file__).parents[2] / "traces"


def troughs_by_prominence(run, rise, discard):
    """Step numbers of the troughs of ln ρ whose prominence is at least `rise`."""
    norm, step = run.norm.values, run.step.values
    kept = np.isfinite(norm) & (norm > 0) & (step >= step[0] + discard)
    step, log_norm = step[kept], np.log(norm[kept])
    # an infinite value before the first row gives the first trough the prominence of the rise after it
    peaks, _ = find_peaks(-np.append(np.inf, log_norm), prominence=rise)
    # nothing is known about the norm before the first row
    return step[peaks[peaks > 1] - 1]


def count_same_events(run, rise, discard):
    """Assert that both find the same troughs except at most one; return their number."""
    with warnings.catch_warnings():
        # the comparison holds for any spacing of rows, and for unclear periods
        warnings.filterwarnings("ignore", message="rows lie|.*outside the detected rises")
        periods = simulate.find_periods(run, rise=rise, discard=discard)
    ours, theirs = set(periods.onsets), set(troughs_by_prominence(run, rise, discard))
    assert len(ours) == len(periods.onsets)
    assert abs(len(ours) - len(theirs)) <= 1
    # common troughs are at the same steps
    assert len(ours ^ theirs) <= 1
    return len(ours)


def count_same_events_at_all_rises(run):
    """Do so for each run and rise, without the first 2/ηλ steps; return the number of troughs for each rise."""
    if run.norm.dims != ("step",):
        batch = run.stack(run=[name for name in run.norm.dims if name != "step"], create_index=False)
        return sum(count_same_events_at_all_rises(batch.isel(run=i)) for i in range(batch.sizes["run"]))
    intrinsic_lr = Setting.of(run).intrinsic_lr
    counts = np.array(
        [count_same_events(run, rise, round(2 / intrinsic_lr) if intrinsic_lr > 0 else 0) for rise in RISES]
    )
    # a larger rise never finds more
    assert (np.diff(counts) <= 0).all()
    return counts


@st.composite
def noisy_oscillations(draw):
    """Trajectories whose ln ρ falls and rises alternately by random amounts, with two kinds of noise."""
    generator = np.random.default_rng(draw(st.integers(0, 100_000)))
    turns = generator.integers(2, 60)
    depth = draw(st.floats(0.02, 3.0))
    heights = np.where(np.arange(turns) % 2, 0.0, depth) + draw(st.floats(0, 1)) * depth * generator.normal(size=turns)
    lengths = generator.integers(1, draw(st.integers(2, 100)), turns)
    log_norm = np.interp(np.arange(lengths.sum()), np.cumsum(lengths), heights)
    # always some noise: of two equal rows, either could be the trough
    log_norm += draw(st.floats(1e-6, 0.2)) * generator.normal(size=log_norm.size)
    log_norm += draw(st.floats(0, 0.03)) * np.cumsum(generator.normal(size=log_norm.size))
    step = draw(st.integers(0, 1000)) + draw(st.integers(1, 20)) * np.arange(log_norm.size)
    return xr.Dataset({"norm": ("step", np.exp(log_norm))}, {"step": step}, {"lr": 0.5, "wd": 0.02})


class TestSynthetic:
    @FIXED
    @given(run=noisy_oscillations(), rise=st.sampled_from(RISES))
    def test_noisy_oscillations(self, run, rise):
        count_same_events(run, rise, 0)

    @FIXED
    @given(run=noisy_oscillations(), rise=st.sampled_from(RISES), first=st.integers(0, 300))
    def test_wherever_the_trace_begins_and_ends(self, run, rise, first):
        rows = run.sizes["step"]
        part = run.isel(step=slice(min(first, rows // 2), rows - min(first, rows // 3)))
        count_same_events(part, rise, 0)

    def test_most_of_them_have_events(self):
        counts = []

        @settings(deadline=None, derandomize=True, max_examples=50, database=None)
        @given(run=noisy_oscillations())
        def collect(run):
            counts.append(count_same_events(run, 0.1, 0))

        collect()
        assert np.median(counts) >= 5


LANDSCAPES = {
    "large": (Ratio2D(1.0, 50.0), 0.01),
    "medium": (Ratio2D(1.0, 0.8), 0.02),
    "slow": (Ratio2D(3.0, 5.0), 0.003),
    "fast": (Ratio2D(1.0, 0.1), 0.4),
    "neutral": (RayleighQuotient([0.0, 1.0]), 0.01),
    "many directions": (RayleighQuotient([0.0, 0.5, 1.0, 2.0]), 0.01),
}


def regression(loss="squared", batch_size=None):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(60, 20))
    targets = np.sign(inputs @ generator.normal(size=20) + generator.normal(size=60))
    return NormalizedRegression(inputs, targets, batch_size=batch_size, loss=loss, output_norm=2.0)


class TestSimulated:
    @pytest.mark.parametrize("name", LANDSCAPES)
    def test_landscapes(self, name):
        landscape, intrinsic_lr = LANDSCAPES[name]
        run = simulate.descend(landscape, 1.0, intrinsic_lr, steps=round(300 / intrinsic_lr), walkers=3, norm=0.8)
        assert count_same_events_at_all_rises(run)[0] >= 3 * 10

    @pytest.mark.parametrize("loss", ["squared", "logistic"])
    @pytest.mark.parametrize("batch_size", [None, 4])
    def test_regression(self, loss, batch_size):
        run = simulate.descend(regression(loss, batch_size), 0.5, 0.06, steps=10_000, walkers=3)
        assert count_same_events_at_all_rises(run)[0] > 0

    @pytest.mark.parametrize("stride", [2, 10, 50])
    def test_rows_far_apart(self, stride):
        landscape, intrinsic_lr = LANDSCAPES["large"]
        run = simulate.descend(landscape, 1.0, intrinsic_lr, steps=30_000, norm=0.8, record_every=stride)
        assert count_same_events_at_all_rises(run)[0] >= 10

    @pytest.mark.parametrize("dim", [2, 3, 30])
    def test_random_walks(self, dim):
        # with few dimensions and strong decay the norm oscillates under momentum
        run = simulate.random_walk(0.5, 0.6, dim=dim, steps=2000, walkers=4, optimizer=theory.SGD(momentum=0.5))
        assert count_same_events_at_all_rises(run)[0] >= 4 * 10

    @pytest.mark.parametrize(("low", "high"), [(0.0, 5.0), (0.01, 30.0), (1.0, 3.0)])
    def test_the_norm_map_under_random_gradients(self, low, high):
        run = simulate.norm_map(0.5, [0.02, 0.1, 0.4, 1.2], BoundedGradient(low, high), norm=2.0, steps=5000, seed=1)
        assert count_same_events_at_all_rises(run)[0] >= 10


def stored_trajectories():
    """Return every trajectory in tests/traces that can be loaded."""
    trajectories = {}
    for path in sorted(TRACES.glob("*")):
        try:
            trajectories[path.name] = simulate.load(path)
        except ValueError:
            continue
    return trajectories


STORED = stored_trajectories()


class TestStored:
    def test_there_are_some(self):
        assert STORED, f"no trajectory in {TRACES}"

    @pytest.mark.parametrize("name", STORED)
    def test_same_events(self, name):
        count_same_events_at_all_rises(STORED[name])
