"""Data sets as tensors on the device, and the order in which a run draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from theory.arguments import choice

# The split is part of the data set, the same for every run.
_TRAINING_SAMPLES, _SPLIT_SEED = 1437, 0


@dataclass(frozen=True)
class Data:
    """Inputs (samples, …) and class numbers (samples,) for training and for testing; `test` may be missing."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of training samples."""
        return len(self.inputs)


def load_data(name: str, dtype: torch.dtype, device: torch.device) -> Data:
    """Load an embedded data set, normalized to mean 0 and variance 1 over the training samples.

    Parameters
    ----------
    name : "digits": 1797 images of handwritten digits, 8×8, ten classes; 1437 for training, 360 for testing.
    dtype, device : of the inputs.

    Returns
    -------
    Data with inputs of shape (samples, 1, 8, 8).

    Raises
    ------
    ValueError : unknown name.

    Source: scikit-learn's copy of the test set of the UCI "Optical Recognition of Handwritten Digits".

    Examples
    --------
    >>> data = load_data("digits", torch.float32, torch.device("cpu"))
    >>> tuple(data.inputs.shape), len(data.test_inputs)
    ((1437, 1, 8, 8), 360)
    """
    choice("dataset", name, ["digits"])
    # scikit-learn takes a second to import
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    images, classes = images[order].reshape(-1, 1, 8, 8), classes[order]
    training = images[:_TRAINING_SAMPLES]
    images = (images - training.mean()) / training.std()
    inputs = torch.as_tensor(images, dtype=dtype, device=device)
    targets = torch.as_tensor(classes, dtype=torch.int64, device=device)
    cut = _TRAINING_SAMPLES
    return Data(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:])


def user_data(data: Any, dtype: torch.dtype, device: torch.device) -> Data:
    """Check a user's own (inputs, targets) or (inputs, targets, test_inputs, test_targets).

    Raises
    ------
    TypeError, ValueError : no such tuple of tensors or arrays, or lengths differ.

    Examples
    --------
    >>> user_data((np.zeros((5, 3)), [0, 1, 0, 1, 2]), torch.float32, torch.device("cpu")).size
    5
    """
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 4):
        raise TypeError(
            "data must be (inputs, targets) or (inputs, targets, test_inputs, test_targets), "
            f"got {type(data).__name__}" + (f" of {len(data)}" if isinstance(data, (tuple, list)) else "")
        )
    tensors: list[Tensor] = []
    for inputs, targets in zip(data[::2], data[1::2], strict=True):
        x, y = torch.as_tensor(inputs), torch.as_tensor(targets)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise ValueError(
                f"data must hold as many targets (one class number each) as inputs, got shapes {tuple(x.shape)} and "
                f"{tuple(y.shape)}"
            )
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"data must have whole class numbers as targets, got {y.dtype}")
        x = x.to(device=device, dtype=dtype) if x.is_floating_point() else x.to(device)
        tensors += [x, y.to(device=device, dtype=torch.int64)]
    return Data(*tensors)


def batch_indices(
    size: int, batch_size: int, sampling: str, data_seed: int, start: int, stop: int
) -> npt.NDArray[np.int64]:
    """Sample numbers of the mini-batches of steps start … stop-1.

    The order of each epoch is a function of (data_seed, epoch) alone, so that any step can be drawn without the ones
    before it, and a resumed run goes on with the same batches.

    Parameters
    ----------
    size : number of training samples.
    batch_size : at most `size`.
    sampling : "without_replacement" or "with_replacement".
    data_seed : key of the order.
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
    """Whole mini-batches in the training set.

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
