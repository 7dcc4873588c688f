"""Loading a data set by name, and taking a part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from empirical.config import check_choice_of_samples, check_dataset
from empirical.data.contract import Data, measured, user_data
from empirical.data.embedded import EMBEDDED
from empirical.data.hub import HUB, from_files, from_hub
from theory.references import import_reference, is_reference


def load_data(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    classes: Sequence[int] | None = None,
    samples: int | None = None,
    validation: float = 0.0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Data:
    """Load a data set, normalized by mean and scale over its training samples.

    Parameters
    ----------
    name : "digits" (default of runs; 8×8), "mnist5k" (28×28), "gaussian", "random_labels" (all embedded), "cifar10",
        "cifar100", "svhn", "mnist", "fashion_mnist" or any id "owner/name" (through Hugging Face), or the path of local
        files, or the "module:name" of a function without arguments that returns what `user_data` takes.
    dtype, device : of the inputs; images other than the smallest stay uint8 until they are drawn.
    classes : class numbers to keep, which become 0, 1, …; None keeps all.
    samples : number of training samples to keep, as many of each class as can be; None keeps all.
    validation : share of the training samples that is set apart.
    label_noise : share of the remaining training samples that gets another label, drawn at random.
    seed : of these three choices.

    Returns
    -------
    Data with inputs of shape (samples, colours, height, width).

    Raises
    ------
    TypeError, ValueError : an unknown name, an argument out of range, or data that cannot be loaded.

    Examples
    --------
    >>> data = load_data("digits", torch.float32, torch.device("cpu"))
    >>> tuple(data.inputs.shape), len(data.test_inputs)
    ((1437, 1, 8, 8), 360)
    >>> load_data("digits", torch.float32, torch.device("cpu"), classes=(3, 8), samples=50).targets.bincount().tolist()
    [25, 25]
    """
    check_dataset(name)
    check_choice_of_samples(classes, samples, validation, label_noise)
    if name in EMBEDDED:
        data = EMBEDDED[name]()
    elif is_reference(name):
        data = user_data(import_reference("dataset", name)(), dtype, torch.device("cpu"))
    else:
        data = from_files(name) if name not in HUB and Path(name).exists() else from_hub(name)
    for_samples, for_validation, for_labels = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    if classes is not None:
        data = _of_classes(data, classes)
    if samples is not None:
        data = _some(data, samples, for_samples)
    if validation:
        data = _set_apart(data, validation, for_validation)
    if label_noise:
        data = _with_noise(data, label_noise, for_labels)
    return measured(_moved(data, dtype, device), dtype)


def _moved(data: Data, dtype: torch.dtype, device: torch.device) -> Data:
    def moved(values: Tensor) -> Tensor:
        return values.to(device=device, dtype=dtype if values.is_floating_point() else values.dtype)

    present = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return Data(**{name: moved(values) for name, values in present.items() if values is not None})


def _of_classes(data: Data, classes: Sequence[int]) -> Data:
    present = set(data.targets.unique().tolist())
    missing = [number for number in classes if number not in present]
    if missing:
        raise ValueError(f"classes must be among those of the data set, {sorted(present)}, got {missing}")
    numbers = torch.full((max(*present, *classes) + 1,), -1)
    numbers[torch.tensor(list(classes))] = torch.arange(len(classes))

    def kept(inputs: Tensor | None, targets: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if inputs is None or targets is None:
            return None, None
        renamed = numbers[targets]
        return inputs[renamed >= 0], renamed[renamed >= 0]

    inputs, targets = kept(data.inputs, data.targets)
    assert inputs is not None
    assert targets is not None
    return Data(inputs, targets, *kept(data.test_inputs, data.test_targets))


def _some(data: Data, samples: int, generator: np.random.Generator) -> Data:
    if samples > data.size:
        raise ValueError(f"samples must be <= {data.size}, the size of the training set, got {samples}")
    shuffled = generator.permutation(data.size)
    classes = data.targets.numpy()[shuffled]
    # number of each sample among those of its class, in shuffled order: taking the least ones balances the classes
    rank = np.empty(data.size, dtype=np.int64)
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        rank[own] = np.arange(len(own))
    chosen = np.sort(shuffled[np.argsort(rank, kind="stable")[:samples]])
    return dataclasses.replace(data, inputs=data.inputs[chosen], targets=data.targets[chosen])


def _set_apart(data: Data, share: float, generator: np.random.Generator) -> Data:
    count = round(share * data.size)
    if not 0 < count < data.size:
        raise ValueError(f"validation must leave samples on both sides, got {share!r} of {data.size}")
    order = generator.permutation(data.size)
    apart, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        data,
        inputs=data.inputs[kept],
        targets=data.targets[kept],
        validation_inputs=data.inputs[apart],
        validation_targets=data.targets[apart],
    )


def _with_noise(data: Data, share: float, generator: np.random.Generator) -> Data:
    classes = int(data.targets.max()) + 1
    chosen = generator.permutation(data.size)[: round(share * data.size)]
    targets = data.targets.clone()
    # by 1 … classes-1 further: never the same
    targets[chosen] = (targets[chosen] + torch.as_tensor(generator.integers(1, classes, len(chosen)))) % classes
    return dataclasses.replace(data, targets=targets)
