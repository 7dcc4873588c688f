"""Pre-activation ResNet for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu

from empirical.networks.layers import Layers

_BLOCKS, _STAGES = 2, 4


class PreActivationBlock(nn.Module):
    """Residual block: normalization, ReLU and convolution, twice.

    If the shape changes, the shortcut has its own normalization and 1×1 convolution. No normalization follows the
    second convolution, which writes into the residual stream. So its weights are scale-invariant only together with all
    other weights that write there.

    Parameters
    ----------
    make : factory of the layers.
    inputs, outputs : number of channels.
    stride : stride of the first convolution and of the shortcut.

    Examples
    --------
    >>> import torch
    >>> block = PreActivationBlock(Layers("batch", 1e-12, scale_invariant=True), 4, 8, stride=2)
    >>> tuple(block(torch.randn(2, 4, 6, 6)).shape)
    (2, 8, 3, 3)
    """

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = make.normalizing(inputs)
        self.conv1 = make.convolution(inputs, outputs, stride=stride)
        self.norm2 = make.normalizing(outputs)
        self.conv2 = make.convolution(outputs, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(norm=make.normalizing(inputs), conv=make.convolution(inputs, outputs, 1, stride))
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the residual stream after the block, shape (batch, outputs, height, width)."""
        inner = self.conv1(relu(self.norm1(inputs)))
        stream: Tensor = self.conv2(relu(self.norm2(inner))) + self.shortcut(inputs)
        return stream


def resnet18(make: Layers, shape: tuple[int, int, int], classes: int, *, width: int) -> nn.Sequential:
    """Build a pre-activation ResNet-18: four stages of two blocks with w, 2w, 4w, 8w channels, then average pooling.

    Parameters
    ----------
    make : factory of the layers.
    shape : colours, height and width of an image. Every stage but the first halves the size.
    classes : number of classes.
    width : channels w of the first stage, 64 in the paper.

    Source: arXiv 2106.15739 §4 (ResNet-18, with a normalization before the convolution of each shortcut).

    Examples
    --------
    >>> net = resnet18(Layers("batch", 1e-12, scale_invariant=True), (3, 32, 32), 10, width=8)
    >>> sum(p.ndim == 4 for p in net.parameters())
    20
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=make.convolution(shape[0], width))
    channels = width
    for stage in range(_STAGES):
        for block in range(_BLOCKS):
            outputs, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage + 1}block{block + 1}"] = PreActivationBlock(make, channels, outputs, stride)
            channels = outputs
    layers["norm"], layers["relu"] = make.normalizing(channels), nn.ReLU()
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = make.head(channels, classes)
    return nn.Sequential(layers)
