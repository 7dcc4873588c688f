"""What a data set is for a run: tensors on the device, images as bytes until they are drawn."""

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
    inputs, targets : of the training set; images may be uint8, see `prepared`.
    test_inputs, test_targets, validation_inputs, validation_targets : of the other sets, None where there are none.
    mean, scale : of each colour over the training images, shape (colours, 1, 1), of images that are uint8.
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

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return samples as a network gets them: bytes normalized by the statistics of the training set.

        Examples
        --------
        >>> data = measured(Data(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1])),
        ...                 torch.float32)
        >>> data.prepared(data.inputs).flatten().tolist()
        [-1.0, 1.0]
        """
        if self.mean is None or self.scale is None or inputs.dtype != torch.uint8:
            return inputs
        return (inputs.to(self.mean.dtype) - self.mean) / self.scale

    def as_numbers(self) -> Data:
        """Return the same data with all images prepared: fast to draw, four times the memory or more.

        Examples
        --------
        >>> images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
        >>> measured(Data(images, torch.tensor([0, 1])), torch.float32).as_numbers().inputs.dtype
        torch.float32
        """

        def numbers(images: Tensor | None) -> Tensor | None:
            return None if images is None else self.prepared(images)

        return dataclasses.replace(
            self,
            inputs=self.prepared(self.inputs),
            test_inputs=numbers(self.test_inputs),
            validation_inputs=numbers(self.validation_inputs),
        )


def measured(data: Data, dtype: torch.dtype) -> Data:
    """Give data whose images are bytes their mean and scale, measured in parts.

    Examples
    --------
    >>> images = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8)
    >>> data = measured(Data(images, torch.zeros(30).long()), torch.float64)
    >>> bool((data.mean.flatten() - images.double().mean((0, 2, 3))).abs().max() < 1e-9)
    True
    """
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
    # a colour that never changes is only centred
    scale = (square / numbers - mean * mean).clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return dataclasses.replace(data, mean=mean.to(dtype).view(-1, 1, 1), scale=scale.to(dtype).view(-1, 1, 1))


def user_data(data: Any, dtype: torch.dtype, device: torch.device) -> Data:
    """Check a user's own (inputs, targets) or (inputs, targets, test_inputs, test_targets).

    Images that are uint8, of shape (samples, colours, height, width), stay so until they are drawn.

    Raises
    ------
    TypeError, ValueError : no such tuple of tensors or arrays, or lengths differ.

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
    return measured(own, dtype) if own.inputs.ndim == 4 else own
