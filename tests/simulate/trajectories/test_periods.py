import math
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.signal import find_peaks

import theory
from simulate import RecordedGradient, classify, find_periods, norm_map
from simulate.trajectories.periods import zigzag
from tests.simulate.trajectories.waves import sawtooth, trajectory, with_rotation

FIXED = settings(deadline=None, derandomize=True, max_examples=60)
seeds = st.integers(0, 10_000)
rises = st.floats(0.05, 0.5)


def random_walk(seed):
    random = np.random.default_rng(seed)
    return np.cumsum(random.normal(size=random.integers(2, 2000))) * random.uniform(0.01, 0.3)


def noisy_sawtooth(seed):
    random = np.random.default_rng(seed)
    wave = sawtooth(random.integers(5, 80), random.integers(1, 20), random.uniform(0.05, 1), random.integers(1, 20))
    return wave + random.uniform(0, 0.3) * random.normal(size=wave.size)


def decays_with_bursts(seed):
    """ln ρ of the norm map, driven by short bursts of gradient at random times."""
    random = np.random.default_rng(seed)
    burst = random.random(3000) < 0.01
    grad_norm = np.where(burst, random.uniform(1, 10, 3000), random.uniform(0.04, 0.06, 3000))
    run = norm_map(0.5, random.uniform(0.002, 0.04), RecordedGradient(grad_norm), norm=1.0, steps=3000)
    return np.log(run.norm.values)


class TestAgainstPeakProminence:
    @pytest.mark.parametrize("trace", [random_walk, noisy_sawtooth, decays_with_bursts])
    @FIXED
    @given(seed=seeds, rise=rises)
    def test_same_events_except_one_at_an_end(self, trace, seed, rise):
        values = trace(seed)
        troughs, peaks = zigzag(values, rise)
        # a trough without a decrease before it has no prominence: only the first trough can be missing
        for ours, theirs in (
            (troughs, find_peaks(-values, prominence=rise)[0]),
            (peaks, find_peaks(values, prominence=rise)[0]),
        ):
            assert len(set(ours) ^ set(theirs)) <= 1

    @FIXED
    @given(seed=seeds, rise=rises)
    def test_another_rise_gives_other_events(self, seed, rise):
        values = random_walk(seed)
        assume(values.size > 1000 and values.std() > 1)
        coarse, fine = zigzag(values, 2 * rise)[0], zigzag(values, rise / 4)[0]
        assert set(coarse) < set(fine)

    @FIXED
    @given(seed=seeds, rise=rises)
    def test_troughs_and_peaks_alternate_with_moves_of_at_least_the_rise(self, seed, rise):
        values = random_walk(seed)
        troughs, peaks = zigzag(values, rise)
        assert len(troughs) - len(peaks) in (0, 1)
        turns = np.empty(len(troughs) + len(peaks), dtype=int)
        turns[0::2], turns[1::2] = troughs, peaks
        assert (np.diff(turns) > 0).all()
        assert (abs(np.diff(values[turns])) >= rise).all()
        # each trough is the lowest point between its peaks, each peak the highest between its troughs
        for j in range(1, len(turns) - 1):
            between = values[turns[j - 1] : turns[j + 1] + 1]
            assert values[turns[j]] == (between.min() if j % 2 == 0 else between.max())

    @pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    def test_no_trough_where_none_is_complete(self, values):
        troughs, peaks = zigzag(np.array(values, dtype=float), 0.1)
        assert len(troughs) == len(peaks) == 0


UNCLEAR = "outside the detected rises"
any_clarity = pytest.mark.filterwarnings(f"ignore:.*{UNCLEAR}:UserWarning")


class TestSawtooth:
    @any_clarity
    @FIXED
    @given(
        decay_steps=st.integers(2, 200),
        rise=st.integers(1, 50),
        height=st.floats(0.2, 3),
        teeth=st.integers(2, 15),
        intrinsic_lr=st.floats(1e-4, 0.5),
        first=st.integers(0, 1000),
    )
    def test_found_exactly(self, decay_steps, rise, height, teeth, intrinsic_lr, first):
        periods = find_periods(
            trajectory(sawtooth(decay_steps, rise, height, teeth), intrinsic_lr=intrinsic_lr, first=first), discard=0
        )
        length = decay_steps + rise
        # the last trough has no whole rise after it where the rise is one row; that row is then missing
        troughs = teeth if rise > 1 and height * (1 - 1 / rise) >= 0.1 else teeth - 1
        assert periods.onsets.tolist() == [first + decay_steps + j * length for j in range(troughs)]
        assert periods.count == max(troughs - 1, 0)
        assert periods.lengths.tolist() == [length] * periods.count
        if periods.count:
            # exp and ln of numbers near 1 round a few times
            np.testing.assert_allclose(periods.trough_norms, 1, rtol=1e-14)
            np.testing.assert_allclose(periods.peak_norms, math.exp(height), rtol=1e-14)
            assert periods.mean == length
            assert math.isclose(periods.norm_rise, height, rel_tol=1e-13)
        if periods.count > 1:
            assert periods.std == periods.stderr == 0

    @pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
    def test_outside_growth_follows_from_the_slower_decay(self, share):
        # growth in each step of the decay phase cancels all but `share` of the decay
        intrinsic_lr, decay_steps, rise, teeth = 0.01, 90, 10, 12
        decay = -math.log1p(-intrinsic_lr)
        periods = find_periods(
            trajectory(sawtooth(decay_steps, rise, share * decay * decay_steps, teeth), intrinsic_lr=intrinsic_lr),
            discard=0,
        )
        expected = 1 - share * decay_steps / (decay_steps + rise)
        assert math.isclose(periods.outside_growth, expected, rel_tol=1e-12)
        assert math.isclose(periods.mean * decay, periods.norm_rise / (1 - periods.outside_growth), rel_tol=1e-12)

    def test_outside_growth_of_the_norm_map_is_the_growth_outside_the_bursts(self):
        # one burst in 200 steps, faint gradients in between
        intrinsic_lr, cycle, cycles = 0.005, 200, 40
        grad_norm = np.full((cycles, cycle), 0.3)
        grad_norm[:, -1] = 10.0
        run = norm_map(0.5, intrinsic_lr / 0.5, RecordedGradient(grad_norm.ravel()), norm=1.0, steps=cycle * cycles)
        # after 20 decay times cycle equals cycle to exp(-20)
        periods = find_periods(run, discard=round(20 / intrinsic_lr))
        assert periods.lengths.tolist() == [cycle] * periods.count
        # by the law each step grows ln ρ by ln(1+(η̃g̃/(1-ηλ))²)/2 beside the decay -ln(1-ηλ)
        growth = np.log1p((run.effective_lr * run.grad_norm / (1 - intrinsic_lr)) ** 2) / 2
        last = growth.values[-cycle:]
        # the norm rise J of the one step is its growth minus its decay
        norm_rise = last[-1] + math.log1p(-intrinsic_lr)
        assert math.isclose(last.sum(), -cycle * math.log1p(-intrinsic_lr), rel_tol=1e-6)
        assert math.isclose(periods.outside_growth, 1 - norm_rise / last.sum(), abs_tol=1e-6)
        assert 0.02 < periods.outside_growth < 0.5

    def test_statistics(self):
        gaps = [100, 110, 120, 90, 100]
        wave = np.concatenate([sawtooth(gap - 10, 10, 0.5, 1) for gap in [50, *gaps, 60]])
        periods = find_periods(trajectory(wave), discard=0)
        # from trough to trough: a rise of 10 steps, and the next decay phase
        assert periods.lengths.tolist() == [*gaps, 60]
        assert periods.mean == np.mean([*gaps, 60])
        assert periods.std == np.std([*gaps, 60], ddof=1)
        assert periods.stderr == periods.std / math.sqrt(6)

    def test_norm_rise_is_a_mean_of_logarithms(self):
        wave = np.concatenate([[0.5, 0.3, 0.0], [0.2, 0.4, 0.1], [0.5, 1.1, 0.2], [0.9]])
        periods = find_periods(trajectory(wave), discard=0)
        assert periods.onsets.tolist() == [2, 5, 8]
        np.testing.assert_allclose(periods.trough_norms, np.exp([0.0, 0.1]))
        np.testing.assert_allclose(periods.peak_norms, np.exp([0.4, 1.1]))
        assert math.isclose(periods.norm_rise, (0.4 + 1.0) / 2)

    def test_one_period_has_no_spread(self):
        periods = find_periods(trajectory(sawtooth(20, 5, 0.5, 2)), discard=0)
        assert periods.count == 1
        assert periods.mean == 25
        assert math.isnan(periods.std)
        assert math.isnan(periods.stderr)

    @pytest.mark.parametrize("teeth", [0, 1])
    def test_without_periods_there_are_no_means(self, teeth):
        periods = find_periods(trajectory(sawtooth(20, 5, 0.5, teeth)), discard=0)
        assert periods.count == len(periods.trough_norms) == len(periods.peak_norms) == 0
        assert len(periods.onsets) == teeth
        for number in (periods.mean, periods.std, periods.stderr, periods.norm_rise, periods.outside_growth):
            assert math.isnan(number)

    @pytest.mark.parametrize("intrinsic_lr", [0.0, 1.0, 1.5])
    def test_outside_growth_is_nan_unless_the_intrinsic_lr_is_between_0_and_1(self, intrinsic_lr):
        periods = find_periods(trajectory(sawtooth(20, 5, 0.5, 5), intrinsic_lr=intrinsic_lr), discard=0)
        assert periods.count == 4
        assert math.isnan(periods.outside_growth)

    @pytest.mark.parametrize(("rise", "count"), [(0.1, 4), (0.49, 4), (0.51, 0)])
    def test_only_rises_above_the_threshold_count(self, rise, count):
        periods = find_periods(trajectory(np.append(sawtooth(20, 5, 0.5, 5), 0.5)), rise=rise, discard=0)
        assert periods.count == count
        assert periods.rise == rise


class TestDiscard:
    @pytest.mark.parametrize("intrinsic_lr", [0.01, 0.004, 0.03])
    @pytest.mark.parametrize("first", [0, 777])
    def test_default_is_twice_the_time_scale_of_the_decay(self, intrinsic_lr, first):
        run = trajectory(sawtooth(20, 5, 0.5, 100), intrinsic_lr=intrinsic_lr, first=first)
        periods = find_periods(run)
        discarded = round(2 / intrinsic_lr)
        assert periods.onsets.tolist() == find_periods(run, discard=discarded).onsets.tolist()
        every = np.arange(first + 20, first + 2500, 25)
        # a trough in the first row that is kept does not count
        assert periods.onsets.tolist() == every[every > first + discarded].tolist()

    def test_a_varying_learning_rate_is_averaged(self):
        run = trajectory(sawtooth(20, 5, 0.5, 100)).assign(lr=("step", np.linspace(0.9, 0.1, 2500)))
        run.attrs.pop("lr")
        assert math.isclose(find_periods(run).intrinsic_lr, 0.01, rel_tol=1e-12)
        assert find_periods(run).onsets.tolist() == find_periods(run, discard=200).onsets.tolist()

    def test_nothing_is_discarded_without_decay(self):
        assert find_periods(trajectory(sawtooth(20, 5, 0.5, 5), intrinsic_lr=0.0)).onsets[0] == 20

    def test_all_may_be_discarded(self):
        assert find_periods(trajectory(sawtooth(20, 5, 0.5, 5)), discard=10_000).count == 0


class TestStride:
    @pytest.mark.parametrize(("intrinsic_lr", "stride"), [(1e-3, 11), (1e-3, 100), (0.05, 2), (0.01, 2)])
    def test_rows_too_far_apart_give_a_warning(self, intrinsic_lr, stride):
        run = trajectory(sawtooth(20, 5, 0.5, 200), intrinsic_lr=intrinsic_lr, stride=stride)
        with pytest.warns(UserWarning, match=f"rows lie {stride} steps apart; periods are biased above"):
            find_periods(run)

    @any_clarity
    @pytest.mark.parametrize(("intrinsic_lr", "stride"), [(1e-3, 10), (1e-3, 1), (0.05, 1), (0.9, 1), (0.0, 100)])
    def test_rows_that_are_close_do_not(self, intrinsic_lr, stride):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="rows lie")
            find_periods(trajectory(sawtooth(20, 5, 0.5, 200), intrinsic_lr=intrinsic_lr, stride=stride))

    def test_onsets_and_lengths_are_steps_not_rows(self):
        periods = find_periods(trajectory(sawtooth(20, 5, 0.5, 10), intrinsic_lr=1e-4, stride=7), discard=0)
        assert periods.onsets[0] == 20 * 7
        assert set(periods.lengths) == {25 * 7}


class TestNoClearPeriod:
    def slow(self, share, intrinsic_lr=0.01, teeth=8):
        """A sawtooth with φ = 1 - 0.9·share: growth cancels all but `share` of the decay between the rises."""
        return with_rotation(sawtooth(900, 100, -math.log1p(-intrinsic_lr) * share * 900, teeth), 0.2, intrinsic_lr)

    @pytest.mark.parametrize(("share", "unclear"), [(0.12, False), (0.112, False), (0.110, True), (0.10, True)])
    def test_growth_outside_the_rises_gives_a_warning(self, share, unclear):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            periods = find_periods(self.slow(share), discard=0)
        assert (periods.outside_growth > 0.9) == unclear
        outside = f"{1 - 0.9 * share:.3g}"
        message = f"{outside} of the growth of ln ρ lies {UNCLEAR}, above 0.9: no clear period at rise=0.1"
        assert [str(warning.message) for warning in caught] == [message] * unclear
        # the warning points to the line of the call
        assert {warning.filename for warning in caught} <= {__file__}

    def test_at_another_rise_it_may_be_clear(self):
        # small waves in 40 steps on a slow one in 1600, which alone passes the larger rise
        waves = np.tile(sawtooth(30, 10, 0.06, 40), 8) + 2 * sawtooth(800, 800, 0.06, 8)
        with pytest.warns(UserWarning, match=f"{UNCLEAR}.* rise=0.1"):
            find_periods(trajectory(waves), rise=0.1, discard=0)
        assert find_periods(trajectory(waves), rise=0.05, discard=0).outside_growth < 0.9

    @pytest.mark.parametrize("teeth", [0, 1])
    def test_no_warning_without_periods(self, teeth):
        assert find_periods(self.slow(0.1, teeth=teeth), discard=0).count == 0

    @pytest.mark.parametrize("intrinsic_lr", [0.0, 1.0, 1.5])
    def test_no_warning_if_the_share_is_undetermined(self, intrinsic_lr):
        assert find_periods(trajectory(sawtooth(900, 5, 0.2, 5), intrinsic_lr=intrinsic_lr), discard=0).count == 4

    def test_classify_does_not_warn_of_unclear_periods(self):
        classification = classify(self.slow(0.10), discard=0)
        assert classification.verdict == "no clear period"
        assert classification.periods.outside_growth > 0.9

    def test_classify_warns_of_rows_too_far_apart(self):
        coarse = self.slow(0.10).isel(step=slice(None, None, 2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            classify(coarse, discard=0)
        assert [str(warning.message)[:25] for warning in caught] == ["rows lie 2 steps apart; p"]
        assert caught[0].filename == __file__


@pytest.mark.parametrize("rule", [theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, decoupled=True)])
def test_outside_growth_uses_the_decay_of_the_optimizer(rule):
    # decay phases without growth: all growth is in the rises, each of which lasts one step of decay
    decay = theory.free_decay(0.5, 0.002 / 0.5, optimizer=rule)
    decay_steps = round(0.9 / decay)
    run = trajectory(sawtooth(decay_steps, 1, decay * decay_steps, 12), intrinsic_lr=0.002).assign_attrs(
        optimizer=repr(rule)
    )
    periods = find_periods(run, discard=0)
    assert periods.decay == decay
    assert periods.outside_growth == pytest.approx(1 / (decay_steps + 1), rel=1e-6)


class TestInvariance:
    @FIXED
    @given(seed=seeds, scale=st.floats(1e-6, 1e6), rise=rises)
    def test_units_of_the_weights_are_free(self, seed, scale, rise):
        run = trajectory(random_walk(seed))
        plain = find_periods(run, rise=rise, discard=0)
        scaled = find_periods(run.assign(norm=run.norm * scale), rise=rise, discard=0)
        np.testing.assert_array_equal(scaled.onsets, plain.onsets)
        np.testing.assert_allclose(scaled.trough_norms, scale * plain.trough_norms, rtol=1e-14)
        np.testing.assert_allclose(scaled.peak_norms, scale * plain.peak_norms, rtol=1e-14)
        if plain.count:
            np.testing.assert_allclose(scaled.outside_growth, plain.outside_growth, rtol=1e-9)

    def test_rows_after_the_end_do_not_count(self):
        # two gradients side by side, one of which overflows after 20 cycles
        cycle = np.append(np.full(99, 0.01), 10.0)
        recorded = np.tile(cycle, (2, 30))
        recorded[1, 2000] = 1e200
        batch = norm_map(0.5, 0.02, RecordedGradient(recorded), norm=1.0, steps=3000)
        ended = batch.isel(batch=1)
        assert ended.status.item() == "diverged"
        assert np.isnan(ended.norm[2001:]).all()
        periods, of_whole = find_periods(ended), find_periods(batch.isel(batch=0, step=slice(2001)))
        assert periods.onsets.tolist() == of_whole.onsets.tolist()
        assert periods.count > 10
        assert classify(ended).verdict == "periodic"

    def test_infinite_and_zero_norms_do_not_count(self):
        run = trajectory(np.append(sawtooth(20, 5, 0.5, 10), [-np.inf, np.inf, np.nan]))
        assert find_periods(run, discard=0).onsets.tolist() == [20 + 25 * j for j in range(10)]

    def test_the_trajectory_is_not_changed(self):
        run = trajectory(random_walk(0), rotation=random_walk(0))
        before = run.copy(deep=True)
        find_periods(run)
        classify(run)
        xr.testing.assert_identical(run, before)


class TestBadInput:
    RUN = trajectory(sawtooth(20, 5, 0.5, 20), rotation=np.ones(500))

    @pytest.mark.parametrize("function", [find_periods, classify])
    @pytest.mark.parametrize("value", [None, 3, "run", np.ones(3), xr.DataArray([1.0])], ids=str)
    def test_no_trajectory(self, function, value):
        with pytest.raises(TypeError, match=rf"^trajectory must be an xarray\.Dataset .*got {type(value).__name__}"):
            function(value)

    @pytest.mark.parametrize("function", [find_periods, classify])
    def test_batches(self, function):
        batch = norm_map([0.1, 0.2], 0.01, 2.0, norm=1.0, steps=3)
        with pytest.raises(ValueError, match=r"trajectory must be.*'step'\); select one"):
            function(batch)

    @pytest.mark.parametrize("function", [find_periods, classify])
    @pytest.mark.parametrize(
        ("rise", "error"),
        [(0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ([0.1, 0.2], ValueError), ("0.1", TypeError)],
        ids=str,
    )
    def test_bad_rise(self, function, rise, error):
        with pytest.raises(error, match=r"^rise must be .*got "):
            function(self.RUN, rise=rise)

    @pytest.mark.parametrize("function", [find_periods, classify])
    @pytest.mark.parametrize(("discard", "error"), [(-1, ValueError), (1.5, TypeError), ("3", TypeError)], ids=str)
    def test_bad_discard(self, function, discard, error):
        with pytest.raises(error, match=r"^discard must be.*0, got "):
            function(self.RUN, discard=discard)

    def test_missing_variables(self):
        with pytest.raises(ValueError, match="trajectory must have the variable 'norm'"):
            find_periods(self.RUN.drop_vars("norm"))
        with pytest.raises(ValueError, match="trajectory must have the variable 'rotation'"):
            classify(self.RUN.drop_vars("rotation"))

    @pytest.mark.parametrize("name", ["lr", "wd"])
    def test_missing_settings(self, name):
        without = self.RUN.copy()
        del without.attrs[name]
        with pytest.raises(ValueError, match=f"trajectory must have '{name}'"):
            find_periods(without)

    @pytest.mark.parametrize("discard", [499, 500, 10_000])
    def test_nothing_left_to_classify(self, discard):
        with pytest.raises(ValueError, match=r"trajectory must have.*fewer than two"):
            classify(self.RUN, discard=discard)

    def test_no_rotation_at_equilibrium_beyond_one(self):
        with pytest.raises(ValueError, match=r"lr \* wd.*here, got 1\.5"):
            classify(norm_map(1.0, 1.5, 2.0, norm=1.0, steps=100))
