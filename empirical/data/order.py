"""Order of the training samples in a run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def batch_indices(
    size: int, batch_size: int, sampling: str, data_seed: int, start: int, stop: int
) -> npt.NDArray[np.int64]:
    """Sample numbers of the mini-batches of steps start … stop-1.

    The order of an epoch depends on (data_seed, epoch) alone. So any step can be computed without earlier ones, and a
    resumed run continues with the same batches.

    Parameters
    ----------
    size : number of training samples.
    batch_size : samples per batch, at most `size`.
    sampling : "without_replacement" or "with_replacement".
    data_seed : seed of the order.
    start, stop : step numbers.

    Returns
    -------
    array of shape (stop-start, batch_size).

    Examples
    --------
    >>> indices = batch_indices(10, 5, "without_replacement", 0, 0, 2)
    >>> sorted(indices.ravel().tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    per_epoch = steps_per_epoch(size, batch_size)
    first, last = start // per_epoch, -(-stop // per_epoch)
    epochs = np.empty((last - first, per_epoch, batch_size), dtype=np.int64)
    for epoch in range(first, last):
        generator = np.random.Generator(np.random.Philox(key=np.array([data_seed, epoch], dtype=np.uint64)))
        if sampling == "with_replacement":
            epochs[epoch - first] = generator.integers(size, size=(per_epoch, batch_size))
        else:
            epochs[epoch - first] = generator.permutation(size)[: per_epoch * batch_size].reshape(per_epoch, -1)
    offset = first * per_epoch
    return epochs.reshape(-1, batch_size)[start - offset : stop - offset]


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Number of complete mini-batches in an epoch.

    Raises
    ------
    ValueError : the batch is larger than the training set.

    Examples
    --------
    >>> steps_per_epoch(1437, 64)
    22
    """
    if batch_size > size:
        raise ValueError(f"batch_size must be <= {size}, the number of training samples, got {batch_size}")
    return size // batch_size
