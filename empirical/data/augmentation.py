"""Random crops and flips of mini-batches, on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def augment(images: Tensor, padding: int) -> Tensor:
    """Pad each image, crop it at a random place, and flip half of the images, with the random state of torch.

    Parameters
    ----------
    images : (samples, colours, height, width), bytes or floats.
    padding : pixels of value 0 added on every side before the crop.

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

    Parameters
    ----------
    images, padding : as in `augment`.
    offsets : (2, samples), first row and column of each crop in the padded image, 0 … 2·padding.
    flips : (samples,), True for images to flip.

    Examples
    --------
    >>> image = torch.arange(4.0).view(1, 1, 2, 2)
    >>> crop(image, 1, torch.tensor([[1], [0]]), torch.tensor([False]))[0, 0].tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    count, _, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    along = torch.arange(width, device=images.device).expand(count, -1)
    columns = offsets[1][:, None] + torch.where(flips[:, None], along.flip(1), along)
    sample = torch.arange(count, device=images.device)[:, None, None]
    # index arrays on both sides of a slice move the colours to the last axis
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
