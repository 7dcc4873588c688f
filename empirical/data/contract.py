"""Data of a run: tensors on the device. Images stay bytes until a mini-batch needs them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theory.arguments import quote

# mean and standard deviation of each colour in the paper, for pixels from 0 to 1
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# images that fit into the cache of a processor as float64
_AT_ONCE = 128
# fields of `Data` with one entry per sample
_INPUTS = ("inputs", "test_inputs", "validation_inputs")
_TARGETS = ("targets", "test_targets", "validation_targets")


@dataclass(frozen=True)
class Data:
    """Inputs (samples, …) and class numbers (samples,) for training, testing and validation.

    Attributes
    ----------
    inputs, targets : training set. Images may be uint8, see `network_inputs`.
    test_inputs, test_targets, validation_inputs, validation_targets : the other sets; None if missing.
    mean, scale : mean and standard deviation of each colour over uint8 training images, shape (colours, 1, 1).
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    validation_inputs: Tensor | None = None
    validation_targets: Tensor | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of training samples."""
        return len(self.inputs)

    def network_inputs(self, inputs: Tensor) -> Tensor:
        """Return samples as network input: bytes normalized with `mean` and `scale`, other types unchanged."""
        if self.mean is None or self.scale is None or inputs.dtype != torch.uint8:
            return inputs
        return (inputs.to(self.mean.dtype) - self.mean) / self.scale

    def evenly_spaced(self, samples: int | None) -> Data:
        """Return data with at most so many samples of each set, evenly spaced over it; None keeps all."""
        if samples is None:
            return self

        def choose(values: Tensor | None) -> Tensor | None:
            if values is None or len(values) <= samples:
                return values
            return values[torch.arange(samples, device=values.device) * len(values) // samples]

        chosen: dict[str, Any] = {name: choose(getattr(self, name)) for name in (*_INPUTS, *_TARGETS)}
        return dataclasses.replace(self, **chosen)

    def channels_last(self) -> Data:
        """Return the same data with images whose colours are adjacent in memory, which convolutions process faster."""

        def convert(values: Tensor | None) -> Tensor | None:
            if values is None or values.ndim != 4:
                return values
            return values.contiguous(memory_format=torch.channels_last)

        converted: dict[str, Any] = {name: convert(getattr(self, name)) for name in _INPUTS}
        return dataclasses.replace(self, **converted)

    def as_numbers(self) -> Data:
        """Return the same data with all images as network input: faster, but at least four times the memory."""
        images = {"test_inputs": self.test_inputs, "validation_inputs": self.validation_inputs}
        converted = {name: self.network_inputs(values) for name, values in images.items() if values is not None}
        return dataclasses.replace(self, inputs=self.network_inputs(self.inputs), **converted)


def add_statistics(data: Data, dtype: torch.dtype, pixel_constants: str = "data") -> Data:
    """Return data with `mean` and `scale` of uint8 images, computed part by part; other data unchanged.

    `pixel_constants` is as in `RunConfig`. Raise ValueError if its constants do not fit the data.
    """
    shape = data.inputs.shape
    fits = data.inputs.dtype == torch.uint8 and len(shape) == 4 and shape[1] == len(_CIFAR10[0])
    if pixel_constants != "data" and not fits:
        raise ValueError(
            f"pixel_constants must be 'data' unless the data are uint8 images with {len(_CIFAR10[0])} colours, got "
            f"{pixel_constants!r} for {data.inputs.dtype} of shape {tuple(shape[1:])}"
        )
    if data.inputs.dtype != torch.uint8:
        return data
    if pixel_constants == "cifar10":
        mean, scale = (
            (255 * torch.tensor(values, dtype=torch.float64, device=data.inputs.device)).to(dtype).view(-1, 1, 1)
            for values in _CIFAR10
        )
        return dataclasses.replace(data, mean=mean, scale=scale)
    numbers = data.inputs[:, 0].numel()
    # whole numbers below 2⁵³: exact
    total, square = (torch.zeros(data.inputs.shape[1], dtype=torch.float64, device=data.inputs.device) for _ in "ab")
    for part in data.inputs.split(_AT_ONCE):
        values = part.double()
        total += values.sum((0, 2, 3))
        square += (values * values).sum((0, 2, 3))
    mean = total / numbers
    # a constant colour is only centred
    scale = (square / numbers - mean * mean).clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return dataclasses.replace(data, mean=mean.to(dtype).view(-1, 1, 1), scale=scale.to(dtype).view(-1, 1, 1))


def _tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except Exception as error:  # objects of libraries raise errors of many kinds
        raise TypeError(
            f"data must hold arrays of numbers as inputs and targets, got {quote(values)} ({type(error).__name__})"
        ) from None


def user_data(data: Any, dtype: torch.dtype, device: torch.device, pixel_constants: str = "data") -> Data:
    """Check and convert a user's (inputs, targets) or (inputs, targets, test_inputs, test_targets).

    uint8 images of shape (samples, colours, height, width) stay bytes until a mini-batch needs them.

    Examples
    --------
    >>> import numpy as np
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
        x, y = _tensor(inputs), _tensor(targets)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise ValueError(
                f"data must hold as many targets (one class number each) as inputs, got shapes {tuple(x.shape)} and "
                f"{tuple(y.shape)}"
            )
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"data must have whole class numbers as targets, got {y.dtype}")
        x = x.to(device=device, dtype=dtype) if x.is_floating_point() else x.to(device)
        tensors += [x, y.to(device=device, dtype=torch.int64)]
    own = Data(*tensors)
    return add_statistics(own, dtype, pixel_constants) if own.inputs.ndim == 4 or pixel_constants != "data" else own
