"""ConvNet of 3×3 convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from empirical.networks.layers import Layers


def convnet(make: Layers, shape: tuple[int, int, int], classes: int, *, width: int, depth: int = 3) -> nn.Sequential:
    """Build a convolutional network of w, 2w, 2w, … channels, with ReLU and 2×2 pooling after all blocks but the first.

    Parameters
    ----------
    make : factory of the layers.
    shape : colours, height and width of an image. Every pooling halves the size, so depth 3 needs at least 4×4 pixels.
    classes : number of classes.
    width : channels w of the first block.
    depth : number of blocks.

    Examples
    --------
    >>> net = convnet(Layers("batch", 1e-12, scale_invariant=True), (1, 8, 8), 10, width=8)
    >>> [tuple(p.shape) for p in net.parameters() if p.requires_grad]
    [(8, 1, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3)]
    """
    channels, height, breadth = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, depth + 1):
        outputs = width if number == 1 else 2 * width
        layers[f"conv{number}"] = make.convolution(channels, outputs)
        if make.normalizes_activations:
            layers[f"norm{number}"] = make.normalizing(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        if number > 1:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            height, breadth = height // 2, breadth // 2
        channels = outputs
    layers["flatten"] = nn.Flatten()
    layers["head"] = make.head(channels * height * breadth, classes)
    return nn.Sequential(layers)
