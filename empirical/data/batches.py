"""Mini-batches: order of the training samples, and random crops and flips of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

_NO_SAMPLE = -1


def batch_indices(
    size: int, batch_size: int, sampling: str, data_seed: int, start: int, stop: int
) -> npt.NDArray[np.int64]:
    """Sample numbers of the mini-batches of steps start … stop-1.

    The order of an epoch depends on (data_seed, epoch) alone. So any step can be computed without earlier ones, and a
    resumed run continues with the same batches.
    The result has the shape (stop-start, batch size). `sampling` is as in `RunConfig`. With "all_samples", the
    incomplete batch at the end of an epoch must be asked for alone: see `equal_batches`.

    Examples
    --------
    >>> indices = batch_indices(10, 5, "without_replacement", 0, 0, 2)
    >>> sorted(indices.ravel().tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    per_epoch = steps_per_epoch(size, batch_size, sampling)
    first, last = start // per_epoch, -(-stop // per_epoch)
    epochs = np.empty((last - first, per_epoch, batch_size), dtype=np.int64)
    for epoch in range(first, last):
        generator = np.random.Generator(np.random.Philox(key=np.array([data_seed, epoch], dtype=np.uint64)))
        if sampling == "with_replacement":
            epochs[epoch - first] = generator.integers(size, size=(per_epoch, batch_size))
        else:
            order = generator.permutation(size)[: per_epoch * batch_size]
            # places of an incomplete batch that have no sample
            order = np.pad(order, (0, per_epoch * batch_size - order.size), constant_values=_NO_SAMPLE)
            epochs[epoch - first] = order.reshape(per_epoch, -1)
    offset = first * per_epoch
    batches = epochs.reshape(-1, batch_size)[start - offset : stop - offset]
    if len(batches) == 1:
        return batches[:, batches[0] != _NO_SAMPLE]
    assert (batches != _NO_SAMPLE).all(), "an incomplete batch among others"
    return batches


def equal_batches(size: int, batch_size: int, sampling: str, step: int) -> int:
    """Number of steps from this one on, within its epoch, whose mini-batches have equal sizes.

    Examples
    --------
    >>> [equal_batches(10, 4, "all_samples", step) for step in (0, 1, 2, 3)]
    [2, 1, 1, 2]
    """
    per_epoch = steps_per_epoch(size, batch_size, sampling)
    complete = size // batch_size if sampling == "all_samples" else per_epoch
    place = step % per_epoch
    return complete - place if place < complete else per_epoch - place


def steps_per_epoch(size: int, batch_size: int, sampling: str = "without_replacement") -> int:
    """Number of mini-batches in an epoch, with `sampling` as in `RunConfig`.

    Examples
    --------
    >>> steps_per_epoch(1437, 64), steps_per_epoch(1437, 64, "all_samples")
    (22, 23)
    """
    if batch_size > size:
        raise ValueError(f"batch_size must be <= {size}, the number of training samples, got {batch_size}")
    return -(-size // batch_size) if sampling == "all_samples" else size // batch_size


def augment(images: Tensor, padding: int) -> Tensor:
    """Pad each image, crop it at a random place, and flip half of the images, with the random state of torch.

    Images (samples, colours, height, width) are bytes or floats. `padding` is the number of pixels of value 0 added on
    every side.

    Examples
    --------
    >>> tuple(augment(torch.zeros(5, 3, 8, 8), padding=2).shape)
    (5, 3, 8, 8)
    """
    count, device = len(images), images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count), device=device)
    flips = torch.randint(0, 2, (count,), device=device).bool()
    return crop(images, padding, offsets, flips)


def crop(images: Tensor, padding: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad and crop images at given places, and flip some of them left to right.

    `offsets` (2, samples) has the first row and column of each crop in the padded image, `flips` (samples,) is True for
    images to flip.
    """
    count, _, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    along = torch.arange(width, device=images.device).expand(count, -1)
    columns = offsets[1][:, None] + torch.where(flips[:, None], along.flip(1), along)
    sample = torch.arange(count, device=images.device)[:, None, None]
    # index arrays on both sides of a slice move the colours to the last axis
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
