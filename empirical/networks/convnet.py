"""The ConvNet: three 3×3 convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from empirical.networks.head import head
from empirical.networks.normalization import BatchNorm


def convnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: int,
    normalization: str,
    eps: float,
    scale_invariant: bool,
) -> nn.Sequential:
    """Convolutional network of w, 2w, 2w channels with ReLU; 2×2 pooling after the second and third block.

    Parameters
    ----------
    shape : colours, height and width of an image, at least 4×4.
    classes : number of classes.
    width : channels w of the first block.
    normalization : "batch" or "none".
    eps : ε of the normalization.
    scale_invariant : no affine parameters and no biases, frozen last layer of norm 10.

    Examples
    --------
    >>> net = convnet((1, 8, 8), 10, width=8, normalization="batch", eps=1e-12, scale_invariant=True)
    >>> [tuple(p.shape) for p in net.parameters() if p.requires_grad]
    [(8, 1, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3)]
    """
    colours, height, breadth = shape
    channels = [colours, width, 2 * width, 2 * width]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in (1, 2, 3):
        layers[f"conv{number}"] = nn.Conv2d(
            channels[number - 1], channels[number], 3, padding=1, bias=normalization == "none"
        )
        if normalization == "batch":
            layers[f"norm{number}"] = BatchNorm(channels[number], eps, affine=not scale_invariant)
        layers[f"relu{number}"] = nn.ReLU()
        if number > 1:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["head"] = head(2 * width * (height // 4) * (breadth // 4), classes, frozen=scale_invariant)
    return nn.Sequential(layers)
