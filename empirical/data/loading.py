"""Load a data set by name, and select samples from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from empirical.config import DataSettings
from empirical.data.contract import Data, add_statistics, user_data
from empirical.data.embedded import EMBEDDED
from empirical.data.hub import HUB, from_files, from_hub
from theory.references import import_reference, is_reference


def load_data(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    classes: tuple[int, ...] | None = None,
    samples: int | None = None,
    validation: float = 0.0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Data:
    """Load a data set, normalized with mean and standard deviation of its training images.

    Parameters
    ----------
    name : "digits" (8×8), "mnist5k" (28×28), "gaussian" or "random_labels" (no download); "cifar10", "cifar100",
        "svhn", "mnist", "fashion_mnist" or any id "owner/name" (from Hugging Face); the path of local files; or the
        "module:name" of a function without arguments that returns the data, as in `user_data`.
    dtype, device : type and device of the inputs. Images that are bytes stay uint8 until a mini-batch needs them.
    classes : class numbers to keep, renumbered as 0, 1, …; None keeps all.
    samples : number of training samples to keep, balanced over the classes; None keeps all.
    validation : share of the training samples to set apart.
    label_noise : share of the remaining training samples that get a random wrong label.
    seed : seed of `samples`, `validation` and `label_noise`, each with its own random numbers.

    Returns
    -------
    Data with inputs of shape (samples, colours, height, width).

    Raises
    ------
    TypeError, ValueError : the name is unknown, an argument is out of range, or the data cannot be loaded.

    Examples
    --------
    >>> data = load_data("digits", torch.float32, torch.device("cpu"))
    >>> tuple(data.inputs.shape), len(data.test_inputs)
    ((1437, 1, 8, 8), 360)
    >>> load_data("digits", torch.float32, torch.device("cpu"), classes=(3, 8), samples=50).targets.bincount().tolist()
    [25, 25]
    """
    DataSettings(dataset=name, classes=classes, samples=samples, validation=validation, label_noise=label_noise)
    if name in EMBEDDED:
        data = EMBEDDED[name]()
    elif is_reference(name):
        data = user_data(import_reference("dataset", name)(), dtype, torch.device("cpu"))
    else:
        data = from_files(name) if name not in HUB and Path(name).exists() else from_hub(name)
    for_samples, for_validation, for_labels = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    if classes is not None:
        data = _select_classes(data, classes)
    if samples is not None:
        data = _balanced_subset(data, samples, for_samples)
    if validation:
        data = _split_validation(data, validation, for_validation)
    if label_noise:
        data = _add_label_noise(data, label_noise, for_labels)
    return add_statistics(_move(data, dtype, device), dtype)


def _move(data: Data, dtype: torch.dtype, device: torch.device) -> Data:
    def convert(values: Tensor) -> Tensor:
        return values.to(device=device, dtype=dtype if values.is_floating_point() else values.dtype)

    present = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return Data(**{name: convert(values) for name, values in present.items() if values is not None})


def _select_classes(data: Data, classes: Sequence[int]) -> Data:
    present = set(data.targets.unique().tolist())
    missing = [number for number in classes if number not in present]
    if missing:
        raise ValueError(f"classes must be among those of the data set, {sorted(present)}, got {missing}")
    numbers = torch.full((max(*present, *classes) + 1,), -1)
    numbers[torch.tensor(list(classes))] = torch.arange(len(classes))

    def select(inputs: Tensor | None, targets: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if inputs is None or targets is None:
            return None, None
        renamed = numbers[targets]
        return inputs[renamed >= 0], renamed[renamed >= 0]

    inputs, targets = select(data.inputs, data.targets)
    assert inputs is not None
    assert targets is not None
    return Data(inputs, targets, *select(data.test_inputs, data.test_targets))


def _balanced_subset(data: Data, samples: int, generator: np.random.Generator) -> Data:
    if samples > data.size:
        raise ValueError(f"samples must be <= {data.size}, the size of the training set, got {samples}")
    shuffled = generator.permutation(data.size)
    classes = data.targets.numpy()[shuffled]
    # rank of each sample within its class, in shuffled order; the samples of lowest rank are balanced over the classes
    rank = np.empty(data.size, dtype=np.int64)
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        rank[own] = np.arange(len(own))
    chosen = np.sort(shuffled[np.argsort(rank, kind="stable")[:samples]])
    return dataclasses.replace(data, inputs=data.inputs[chosen], targets=data.targets[chosen])


def _split_validation(data: Data, share: float, generator: np.random.Generator) -> Data:
    count = round(share * data.size)
    if not 0 < count < data.size:
        raise ValueError(f"validation must leave training and validation samples, got {share!r} of {data.size}")
    order = generator.permutation(data.size)
    apart, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        data,
        inputs=data.inputs[kept],
        targets=data.targets[kept],
        validation_inputs=data.inputs[apart],
        validation_targets=data.targets[apart],
    )


def _add_label_noise(data: Data, share: float, generator: np.random.Generator) -> Data:
    classes = int(data.targets.max()) + 1
    chosen = generator.permutation(data.size)[: round(share * data.size)]
    targets = data.targets.clone()
    # a shift by 1 … classes-1 always changes the label
    targets[chosen] = (targets[chosen] + torch.as_tensor(generator.integers(1, classes, len(chosen)))) % classes
    return dataclasses.replace(data, targets=targets)
