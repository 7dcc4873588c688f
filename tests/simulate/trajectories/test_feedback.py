"""The test for feedback: noise never earns "periodic", and trained networks and landscapes do."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import simulate
import theory
from simulate import Ratio2D, classify, descend, find_periods, load, norm_map, oscillate
from simulate.trajectories.feedback import _statistics, driven_log_norm, find_drive, find_feedback
from simulate.trajectories.periods import after_transient
from simulate.trajectories.verdicts import SCORE_MIN, pool_scores
from tests.simulate.trajectories.noise import driven_run, log_gradients, random_noise
from tests.simulate.trajectories.waves import sawtooth, with_rotation

TRACES = sorted((Path(__file__).parents[2] / "traces").glob("convnet_*.zarr"))


def with_law_rotation(run):
    """A stored run with the rotation that follows from its norms under plain SGD."""
    kept = (1 - run.attrs["lr"] * run.attrs["wd"]) ** (2 * int(run.step[1] - run.step[0]))
    sq_norm = run.norm.values.astype(float) ** 2
    drive = sq_norm[:-1] * (sq_norm[1:] - kept * sq_norm[:-1])
    rotation = np.arctan(np.sqrt(drive / kept) / sq_norm[:-1])
    return run.isel(step=slice(-1)).assign(rotation=("step", rotation)), drive


@pytest.fixture(scope="module", params=TRACES, ids=lambda path: path.stem)
def trained(request):
    return with_law_rotation(load(request.param))


def windows(run, count):
    """Parts of a run with this number of periods."""
    onsets = find_periods(run).onsets
    settled = after_transient(run)
    for begin, end in zip(onsets[:-1:count], onsets[count::count], strict=False):
        yield settled.sel(step=slice(begin - 5, end + 5))


def share_of_noise_called_periodic(runs, most_relaxations, seed):
    random = np.random.default_rng(seed)
    verdicts = Counter()
    for _ in range(runs):
        noise = random_noise(random, most_relaxations)
        verdict = classify(driven_run(log_gradients(**noise, random=random), noise["intrinsic_lr"])).verdict
        verdicts[verdict] += 1
    assert verdicts["undetermined"] == verdicts["transient"] == 0
    return verdicts["periodic"] / runs


def test_noise_is_not_periodic():
    # 1 % of 100 runs: at most 4 with probability 0.997
    assert share_of_noise_called_periodic(100, 100, seed=5) <= 0.04


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_error_rate_over_noise_of_all_kinds():
    assert share_of_noise_called_periodic(3000, 1000, seed=0) <= 0.01


@pytest.mark.parametrize("share", [0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2])
def test_gradients_of_training_in_random_order(trained, share):
    """Blocks of the gradients of real periods, up to half a period long, in random order."""
    run, drive = trained
    intrinsic_lr, stride = run.attrs["lr"] * run.attrs["wd"], int(run.step[1] - run.step[0])
    length = max(1, round(share * find_periods(run).mean / stride))
    blocks = drive[: drive.size // length * length].reshape(-1, length)
    shuffled = np.random.default_rng(0).permutation(blocks).ravel()
    result = classify(driven_run(np.log(shuffled) / 2, intrinsic_lr, stride))
    assert result.periods.count > 50
    assert result.verdict == "no clear period"
    assert result.feedback.score < SCORE_MIN


@pytest.mark.parametrize("is_sgd", [True, False])
def test_the_drive_of_a_run_gives_its_norms(trained, is_sgd):
    run, _ = trained
    sq_norm = run.norm.values.astype(float)[:500] ** 2
    # decay so fast that every growth is positive
    log_norm = driven_log_norm(find_drive(sq_norm, 0.5, is_sgd), 0.5, is_sgd, sq_norm[0])
    np.testing.assert_allclose(log_norm, np.log(sq_norm[:-1]) / 2, rtol=1e-10, atol=1e-10)


def test_training_is_periodic(trained):
    result = classify(trained[0])
    assert result.verdict == "periodic"
    assert result.feedback.score > 5
    assert result.feedback.response > 0.25 > -0.1 > result.feedback.surrogate_response
    assert result.feedback.variation < result.feedback.surrogate_variation
    assert "feedback score" in result.reason


def test_power_over_the_number_of_periods(trained):
    run, _ = trained
    found = {
        count: [find_feedback(part, find_periods(part, discard=0)).score >= SCORE_MIN for part in windows(run, count)]
        for count in (15, 60)
    }
    assert np.mean(found[60]) == 1
    assert np.mean(found[15]) >= 0.75


@pytest.mark.parametrize("intrinsic_lr", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("ridge", [1, 5, 20])
def test_landscapes_are_periodic(ridge, intrinsic_lr):
    run = descend(Ratio2D(1.0, ridge), 1.0, intrinsic_lr, norm=1.0, steps=int(120 / intrinsic_lr))
    assert classify(run).verdict == "periodic"


def test_the_reduced_model_is_periodic_and_its_gradients_in_random_order_are_not():
    run = oscillate(0.5, 0.01, steps=30_000, seed=3)
    assert classify(run).verdict == "periodic"
    grad_norm = np.random.default_rng(0).permutation(run.grad_norm.values)
    shuffled = norm_map(0.5, 0.01, simulate.RecordedGradient(grad_norm), norm=5.0, steps=grad_norm.size)
    result = classify(shuffled)
    assert result.periods.count > 30
    assert result.verdict == "no clear period"


def test_scores_of_noise_have_the_stated_distribution():
    """Independent lognormal gradients are exchangeable with their surrogates, so scores are about standard normal."""
    scores = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        run = driven_run(random.normal(size=4000), 0.02)
        scores.append(find_feedback(after_transient(run), find_periods(run)).score)
    # the limits on variation and response only lower a score
    assert stats.binomtest(sum(score > 1 for score in scores), 60, 0.16, alternative="greater").pvalue > 1e-3
    # three standard errors of the mean of 60 scores
    assert np.mean(scores) < 3 / math.sqrt(60)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_turning_points(seed):
    random = np.random.default_rng(seed)
    count = 40
    lengths, troughs, peaks = random.integers(5, 30, count), random.normal(0, 0.2, count), random.normal(2, 0.4, count)
    # one falls to each trough and rises to each peak at once
    log_norm = [3.0]
    for length, trough, peak in zip(lengths, troughs, peaks, strict=True):
        log_norm += [*np.linspace(log_norm[-1], trough, length)[1:], peak]
    log_norm += [0.0]
    variation, response, contrast = _statistics(np.array(log_norm), 0.5)
    # the last trough ends the last period
    between = lengths[1:].astype(float)
    assert variation == pytest.approx(between.std() / between.mean(), rel=1e-12)
    trough, peak = troughs[:-1], peaks[:-1]
    # spreads below a tenth of the threshold count as none
    spread = np.sqrt(trough.var() + 0.05**2), np.sqrt(peak.var() + 0.05**2)
    assert contrast == pytest.approx(math.log(spread[0] / spread[1]), rel=1e-12)
    # the products of the covariance cancel
    assert response == pytest.approx(-np.cov(trough, peak, ddof=0)[0, 1] / np.prod(spread), rel=1e-9)


def test_units_are_free(trained):
    run, _ = trained
    part = next(windows(run, 15))
    scaled = part.assign(norm=2 * part.norm.astype(float)).assign_attrs(
        lr=4 * part.attrs["lr"], wd=part.attrs["wd"] / 4
    )
    plain, other = (find_feedback(rows, find_periods(rows, discard=0)) for rows in (part, scaled))
    assert other.score == pytest.approx(plain.score, rel=1e-6)


class TestImpossible:
    def test_rows_too_far_apart(self):
        run = with_rotation(sawtooth(90, 10, 0.9, 40), 0.2).isel(step=slice(None, None, 13))
        with pytest.warns(UserWarning, match="rows lie 13 steps apart"):
            result = classify(run, discard=0)
        assert result.verdict == "undetermined"
        assert math.isnan(result.feedback.score)
        assert "log every 9 steps or more often" in result.reason

    def test_unknown_decay(self):
        run = with_rotation(sawtooth(90, 10, 0.9, 40), 0.2).assign_attrs(optimizer="Adam(dim=5)")
        assert "decay of the norm" in str(classify(run, discard=0).feedback)


def test_other_optimizers_drive_the_squared_norm():
    """Sizes of AdamW steps that ignore the norm, and some that respond to it."""
    random, kept = np.random.default_rng(0), 0.99**2

    def run_of(respond):
        sq_norm, values = 1.0, np.empty(20_000)
        for t in range(values.size):
            values[t] = sq_norm
            drive = math.exp(random.normal()) * 4e-3
            if respond:
                # destabilizations are much likelier at a small norm
                is_unstable = random.random() < 0.2 * (0.2 / sq_norm) ** 12
                drive = 0.3 if is_unstable else 1e-4
            sq_norm = kept * sq_norm + drive
        run = with_rotation(np.log(values) / 2, 0.3)
        return run.assign_attrs(optimizer="AdamW(dim=100)")

    assert classify(run_of(respond=True)).verdict == "periodic"
    assert classify(run_of(respond=False)).verdict != "periodic"


def test_pooled_scores():
    assert pool_scores([3.0, 1.0, math.nan]) == pytest.approx(4 / math.sqrt(2))
    assert math.isnan(pool_scores([math.nan]))
    assert math.isnan(pool_scores([]))


def momentum_noise(intrinsic_lr, momentum, seed, spread=2.0, dim=16, steps=12_000):
    """Norm under heavy ball with gradients of heavy-tailed size in random directions orthogonal to the weights."""
    random, rule = np.random.default_rng(seed), theory.SGD(momentum=momentum)
    weights = random.normal(size=dim)
    state, norms = rule.start(weights), np.empty(steps)
    for t in range(steps):
        norms[t] = math.sqrt(weights @ weights)
        noise = random.normal(size=dim)
        across = noise - (noise @ weights) / norms[t] ** 2 * weights
        size = math.exp(spread * random.normal()) / norms[t]
        weights, state = rule.update(weights, across / math.sqrt(across @ across) * size, state, 1.0, intrinsic_lr)
    run = with_rotation(np.log(norms), 0.3)
    return run.assign_attrs(lr=1.0, wd=intrinsic_lr, optimizer=repr(rule))


def test_with_momentum_noise_is_not_periodic():
    runs = [momentum_noise(0.0015, 0.5, seed) for seed in range(4)]
    results = [classify(run) for run in runs]
    assert sum(math.isfinite(result.feedback.score) for result in results) >= 3
    assert [result.verdict for result in results].count("periodic") == 0


def test_a_buffer_that_remembers_too_long_is_not_tested():
    result = classify(momentum_noise(0.001, 0.9, seed=0))
    assert math.isnan(result.feedback.score)
    assert "momentum buffer" in str(result.feedback)
    assert result.verdict in ("undetermined", "no clear period")


def test_extreme_units(trained):
    run, _ = trained
    part = next(windows(run, 15))
    huge = part.assign(norm=part.norm.astype(float) * 2.0**400)
    scores = [find_feedback(rows, find_periods(rows, discard=0)).score for rows in (part, huge)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
