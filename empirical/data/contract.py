"""Data of a run: tensors on the device. Images stay bytes until a mini-batch needs them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_AT_ONCE = 1024


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

    def as_numbers(self) -> Data:
        """Return the same data with all images as network input: faster, but at least four times the memory."""
        images = {"test_inputs": self.test_inputs, "validation_inputs": self.validation_inputs}
        converted = {name: self.network_inputs(values) for name, values in images.items() if values is not None}
        return dataclasses.replace(self, inputs=self.network_inputs(self.inputs), **converted)


def add_statistics(data: Data, dtype: torch.dtype) -> Data:
    """Return data with `mean` and `scale` of uint8 images, computed part by part; other data unchanged."""
    if data.inputs.dtype != torch.uint8:
        return data
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


def user_data(data: Any, dtype: torch.dtype, device: torch.device) -> Data:
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
    own = Data(*tensors)
    return add_statistics(own, dtype) if own.inputs.ndim == 4 else own
