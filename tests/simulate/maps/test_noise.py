import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulate.maps.noise import mix_bits, stream_key, uniform, uniform_table

N = 1_000_000


def key(seed, trajectory):
    # as np.uint64, because numba rejects an int this large
    return np.uint64(stream_key(seed, trajectory))


# along the steps of one trajectory, and across the trajectories at one step, and across the seeds
SAMPLES = {
    "steps": lambda: uniform_table(3, 1, 0, N)[0],
    "trajectories": lambda: uniform_table(3, N, 7, 1)[:, 0],
    "seeds": lambda: np.array([uniform(key(seed, 0), 0) for seed in range(N // 10)]),
    "blocks": lambda: uniform_table(0, 1000, 0, 1000).ravel(),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_moments_correlation_and_distribution(name):
    values = SAMPLES[name]()
    n = values.size
    assert ((values > 0) & (values < 1)).all()
    for power in (1, 2, 3, 4):
        # variance of U^p is 1/(2p+1) - 1/(p+1)²
        error = (1 / (2 * power + 1) - 1 / (power + 1) ** 2) ** 0.5 / n**0.5
        assert abs((values**power).mean() - 1 / (power + 1)) < 4 * error
    centred = values - 0.5
    for lag in (1, 2, 3, 10, 1000):
        assert abs(12 * (centred[:-lag] * centred[lag:]).mean()) < 4 / (n - lag) ** 0.5
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    # pairs fill the square evenly
    pairs = np.histogram2d(values[::2], values[1::2], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_neighbouring_trajectories_and_seeds_are_not_correlated():
    for first, second in ((key(0, 0), key(0, 1)), (key(0, 0), key(1, 0))):
        pairs = np.array([(uniform(first, t), uniform(second, t)) for t in range(100_000)])
        assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / 100_000**0.5
        # nor shifted copies of each other
        assert not set(pairs[:, 0]) & set(pairs[:, 1])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_number_depends_on_its_place_alone(seed, trajectory, step):
    value = uniform(key(seed, trajectory), step)
    assert 0 < value < 1
    assert value == uniform(key(seed, trajectory), step)


def test_any_split_gives_the_same():
    whole = uniform_table(5, 4, 0, 20)
    np.testing.assert_array_equal(uniform_table(5, 4, 8, 12), whole[:, 8:])
    np.testing.assert_array_equal(uniform_table(5, 2, 0, 20), whole[:2])


def test_the_generator_is_splitmix64():
    # published test vector of the reference implementation: seed 1234567
    state, expected = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for value in expected:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        assert int(mix_bits(np.uint64(state))) == value
