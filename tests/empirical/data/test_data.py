import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empirical.data import batch_indices, equal_batches, load_data, steps_per_epoch, user_data

CPU = torch.device("cpu")


def test_digits_are_normalized_and_split_without_overlap():
    data = load_data("digits", torch.float64, CPU)
    assert data.inputs.shape == (1437, 1, 8, 8)
    assert data.test_inputs.shape == (360, 1, 8, 8)
    assert abs(data.inputs.mean()) < 1e-12
    assert abs(data.inputs.std(correction=0) - 1) < 1e-12
    assert set(data.targets.tolist()) == set(data.test_targets.tolist()) == set(range(10))
    training_images = {row.numpy().tobytes() for row in data.inputs}
    # all 1797 images differ, so a test image must not be in the training set
    assert not any(row.numpy().tobytes() in training_images for row in data.test_inputs)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 50), st.data())
def test_any_step_can_be_computed_alone(size, data):
    batch = data.draw(st.integers(1, size))
    start = data.draw(st.integers(0, 100))
    count = data.draw(st.integers(0, 30))
    for sampling in ("with_replacement", "without_replacement"):
        whole = batch_indices(size, batch, sampling, 7, 0, start + count)
        part = batch_indices(size, batch, sampling, 7, start, start + count)
        np.testing.assert_array_equal(part, whole[start:])
        assert part.shape == (count, batch)
        assert ((part >= 0) & (part < size)).all()


def test_an_epoch_has_no_sample_twice_and_epochs_differ():
    per_epoch = steps_per_epoch(100, 7)
    epochs = batch_indices(100, 7, "without_replacement", 0, 0, 3 * per_epoch).reshape(3, -1)
    assert all(len(set(epoch)) == epoch.size for epoch in epochs.tolist() for epoch in [np.array(epoch)])
    assert not np.array_equal(epochs[0], epochs[1])
    other = batch_indices(100, 7, "without_replacement", 1, 0, per_epoch)
    assert not np.array_equal(epochs[0], other.ravel())


def test_sampling_with_replacement_is_uniform():
    counts = np.bincount(batch_indices(20, 10, "with_replacement", 0, 0, 20_000).ravel(), minlength=20)
    # 10⁴ draws of each sample: 5 standard deviations of a binomial are 487
    assert abs(counts - 10_000).max() < 5 * np.sqrt(10_000 * 0.95)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (3, "data must be"),
        ((torch.zeros(3, 2),), "data must be"),
        ((torch.zeros(3, 2), torch.zeros(4).long()), "as many targets"),
        ((torch.zeros(3, 2), torch.zeros(3)), "whole class numbers"),
    ],
)
def test_bad_data_raises(data, what):
    with pytest.raises((ValueError, TypeError), match=what):
        user_data(data, torch.float32, CPU)


def test_a_batch_larger_than_the_training_set_raises():
    with pytest.raises(ValueError, match=r"batch_size.*11"):
        steps_per_epoch(10, 11)


@given(size=st.integers(2, 60), batch_size=st.integers(1, 20), start=st.integers(0, 40))
def test_all_samples_are_used_once_in_each_epoch(size, batch_size, start):
    batch_size = min(batch_size, size)
    per_epoch = steps_per_epoch(size, batch_size, "all_samples")
    assert per_epoch == -(-size // batch_size)
    step, batches = 0, []
    while step < 2 * per_epoch:
        count = equal_batches(size, batch_size, "all_samples", step)
        part = batch_indices(size, batch_size, "all_samples", 1, step, step + count)
        # neither an epoch border nor another batch size inside
        assert count <= per_epoch - step % per_epoch
        batches += list(part)
        step += count
    epochs = [np.concatenate(batches[:per_epoch]), np.concatenate(batches[per_epoch:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
    assert [len(batch) for batch in batches[: size // batch_size]] == [batch_size] * (size // batch_size)
    # complete batches are those of the other sampling, and any step can be computed alone
    if start % per_epoch < size // batch_size:
        alone = batch_indices(size, batch_size, "all_samples", 1, start, start + 1)
        epoch, place = divmod(start, per_epoch)
        other = epoch * (size // batch_size) + place
        expected = batch_indices(size, batch_size, "without_replacement", 1, other, other + 1)
        np.testing.assert_array_equal(alone, expected)


def test_pixels_are_normalized_with_the_constants_of_the_paper():
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 5, 4), dtype=np.uint8)
    data = user_data((images, np.arange(20) % 2), torch.float64, torch.device("cpu"), "cifar10")
    mean, scale = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    expected = (images / 255 - mean[:, None, None]) / scale[:, None, None]
    np.testing.assert_allclose(data.network_inputs(data.inputs), expected, rtol=1e-12)
    for inputs in (images[:, :1], images.astype(np.float32), images[:, 0, 0]):
        with pytest.raises(ValueError, match=r"pixel_constants must be 'data'.*got 'cifar10'"):
            user_data((inputs, np.arange(20) % 2), torch.float64, torch.device("cpu"), "cifar10")
