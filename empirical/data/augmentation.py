"""Random crops and flips of whole mini-batches, on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def augmented(images: Tensor, padding: int) -> Tensor:
    """Crop each image at a random place of its padded self and flip half of them, by torch's random numbers.

    Parameters
    ----------
    images : (samples, colours, height, width), bytes or floats.
    padding : pixels of value 0 added on every side before the crop.

    Examples
    --------
    >>> tuple(augmented(torch.zeros(5, 3, 8, 8), padding=2).shape)
    (5, 3, 8, 8)
    """
    count, device = len(images), images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count), device=device)
    flips = torch.randint(0, 2, (count,), device=device).bool()
    return cropped(images, padding, offsets, flips)


def cropped(images: Tensor, padding: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Crop at given places and flip given images, left to right.

    Parameters
    ----------
    images, padding : as in `augmented`.
    offsets : (2, samples), first row and column of each crop in the padded image, 0 … 2·padding.
    flips : (samples,), which ones to flip.

    Examples
    --------
    >>> image = torch.arange(4.0).view(1, 1, 2, 2)
    >>> cropped(image, 1, torch.tensor([[1], [0]]), torch.tensor([False]))[0, 0].tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    count, _, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    along = torch.arange(width, device=images.device).expand(count, -1)
    columns = offsets[1][:, None] + torch.where(flips[:, None], along.flip(1), along)
    sample = torch.arange(count, device=images.device)[:, None, None]
    # indices on both sides of a slice put the colours last
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
