"""Networks of the package: multilayer perceptron, ConvNet, pre-activation ResNet and vision transformer.

Each is built from the factory `make` of its layers, the shape of one sample, and the number of classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from empirical.networks.layers import Layers

_GROUPS, _PAPER_PIXELS = 3, 32
_BLOCKS, _STAGES = 2, 4
_MOST_HEADS, _WIDENING = 4, 2


def mlp(make: Layers, shape: tuple[int, ...], classes: int, *, width: int, depth: int = 2) -> nn.Sequential:
    """Build a multilayer perceptron inputs-width-…-width-classes, with normalization before each ReLU.

    Instance normalization is not possible, because there are no pixels.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(1, depth + 1):
        layers[f"linear{number}"] = make.linear(math.prod(shape) if number == 1 else width, width)
        if make.normalizes_activations:
            layers[f"norm{number}"] = make.normalizing(width)
        layers[f"relu{number}"] = nn.ReLU()
    layers["head"] = make.head(width, classes)
    return nn.Sequential(layers)


def convnet(make: Layers, shape: tuple[int, int, int], classes: int, *, width: int, depth: int = 3) -> nn.Sequential:
    """Build the ConvNet of the paper: 1 + `depth` convolutions 3×3, each with normalization and ReLU.

    The first convolution has w channels. The others form up to three groups of nearly equal length. The last one of
    each group doubles the channels, and 2×2 max pooling follows it. Hence depth 3 has w, 2w, 4w, 8w channels. At the
    end, max pooling reduces images of 32×32 pixels to one pixel, and smaller ones, too.

    Source: arXiv 2106.15739 §4 and its published code (w = 32, depth 3).
    """
    channels, height, breadth = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    outputs = width
    for number, is_pooled in enumerate([False, *_pooled_convolutions(depth)], start=1):
        outputs *= 2 if is_pooled else 1
        layers[f"conv{number}"] = make.convolution(channels, outputs)
        if make.normalizes_activations:
            layers[f"norm{number}"] = make.normalizing(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        if is_pooled:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            height, breadth = height // 2, breadth // 2
        channels = outputs
    size = _PAPER_PIXELS >> poolings(depth)
    last = min(size, height), min(size, breadth)
    layers["pool"], layers["flatten"] = nn.MaxPool2d(last), nn.Flatten()
    layers["head"] = make.paper_head(channels * (height // last[0]) * (breadth // last[1]), classes, bias=True)
    return nn.Sequential(layers)


def _pooled_convolutions(depth: int) -> list[bool]:
    """Whether pooling follows each convolution but the first: the last one of each group."""
    longer, remaining = divmod(depth, _GROUPS)
    groups = (longer + (remaining > 0), longer + (remaining == 2), longer)
    return [place == length for length in groups for place in range(1, length + 1)]


def poolings(depth: int) -> int:
    """Number of 2×2 poolings in a ConvNet, so its images need 2 to this power pixels.

    Examples
    --------
    >>> [poolings(depth) for depth in (1, 2, 3, 9)]
    [1, 2, 3, 3]
    """
    return sum(_pooled_convolutions(depth))


class PreActivationBlock(nn.Module):
    """Residual block: normalization, ReLU and convolution, twice.

    If the shape changes, the shortcut takes the first normalized and rectified input. It normalizes that again before
    its 1×1 convolution. No normalization follows the second convolution, which writes into the residual stream. So its
    weights are scale-invariant only together with all other weights that write there.
    """

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = make.normalizing(inputs)
        self.conv1 = make.convolution(inputs, outputs, stride=stride)
        self.norm2 = make.normalizing(outputs)
        self.conv2 = make.convolution(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(norm=make.normalizing(inputs), conv=make.convolution(inputs, outputs, 1, stride))
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the residual stream after the block, shape (batch, outputs, height, width)."""
        activated = relu(self.norm1(inputs))
        stream: Tensor = self.conv2(relu(self.norm2(self.conv1(activated))))
        return stream + (inputs if self.shortcut is None else self.shortcut(activated))


def resnet18(make: Layers, shape: tuple[int, int, int], classes: int, *, width: int) -> nn.Sequential:
    """Build the pre-activation ResNet-18 of the paper: four stages of two blocks with w, 2w, 4w, 8w channels.

    Every stage but the first halves the image. Average pooling reduces images of 32×32 pixels to one pixel, and smaller
    ones, too.

    Source: arXiv 2106.15739 §4 and its published code (w = 64).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=make.convolution(shape[0], width))
    channels, (height, breadth) = width, shape[1:]
    for stage in range(_STAGES):
        for block in range(_BLOCKS):
            outputs, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage + 1}block{block + 1}"] = PreActivationBlock(make, channels, outputs, stride)
            channels, height, breadth = outputs, -(-height // stride), -(-breadth // stride)
    layers["norm"], layers["relu"] = make.normalizing(channels), nn.ReLU()
    size = _PAPER_PIXELS >> (_STAGES - 1)
    last = min(size, height), min(size, breadth)
    layers["pool"], layers["flatten"] = nn.AvgPool2d(last), nn.Flatten()
    layers["head"] = make.paper_head(channels * (height // last[0]) * (breadth // last[1]), classes)
    return nn.Sequential(layers)


class _TokenNorm(nn.Module):
    """Normalization of the features of each token; input (batch, tokens, features)."""

    def __init__(self, make: Layers, features: int) -> None:
        super().__init__()
        self.norm = make.normalizing(features)

    def forward(self, tokens: Tensor) -> Tensor:
        normalized: Tensor = self.norm(tokens.flatten(0, -2)).view(tokens.shape)
        return normalized


class TransformerBlock(nn.Module):
    """Attention, then two linear layers around a ReLU. Both are added to the residual stream of tokens.

    Queries and keys are normalized, so the weights of each are scale-invariant alone. Weights that write into the
    residual stream are scale-invariant only together with all others that write there. `heads` divides `features`.
    """

    def __init__(self, make: Layers, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _TokenNorm(make, features), _TokenNorm(make, features)
        self.query, self.key, self.value = (make.linear(features, features) for _ in range(3))
        self.query_norm, self.key_norm = _TokenNorm(make, features // heads), _TokenNorm(make, features // heads)
        self.output = make.linear(features, features)
        self.linear1 = make.linear(features, _WIDENING * features)
        self.linear2 = make.linear(_WIDENING * features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual stream after the block, (batch, tokens, features)."""
        normalized = self.norm1(tokens)
        query = self.query_norm(self._by_head(self.query(normalized)))
        key = self.key_norm(self._by_head(self.key(normalized)))
        attended = scaled_dot_product_attention(query, key, self._by_head(self.value(normalized)))
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        stream: Tensor = tokens + self.linear2(relu(self.linear1(self.norm2(tokens))))
        return stream

    def _by_head(self, tokens: Tensor) -> Tensor:
        split: Tensor = tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


class VisionTransformer(nn.Module):
    """Vision transformer: patches with learned positions, blocks, normalization, mean over tokens, linear layer.

    `width` is the size of a token, `depth` the number of blocks. Instance normalization is not possible, because tokens
    have no pixels.
    """

    def __init__(self, make: Layers, shape: tuple[int, int, int], classes: int, *, width: int, depth: int = 2) -> None:
        super().__init__()
        colours, height, breadth = shape
        # four patches along the shorter side, fewer for images smaller than 4 pixels
        self.patch = max(1, min(height, breadth) // 4)
        tokens = (height // self.patch) * (breadth // self.patch)
        heads = next(count for count in range(_MOST_HEADS, 0, -1) if width % count == 0 and width // count > 2)
        self.embed = make.linear(colours * self.patch**2, width)
        # positions are added to the tokens, so they are invariant only if the stream is normalized
        is_trained = make.normalizes_activations or not make.scale_invariant
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width), requires_grad=is_trained)
        self.blocks = nn.Sequential(*(TransformerBlock(make, width, heads) for _ in range(depth)))
        self.norm = _TokenNorm(make, width)
        self.head = make.head(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (batch, classes) of images (batch, colours, height, width)."""
        size = self.patch
        patches = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = self.norm(self.blocks(self.embed(patches) + self.position))
        scores: Tensor = self.head(tokens.mean(dim=1))
        return scores
