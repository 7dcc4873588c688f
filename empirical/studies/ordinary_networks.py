"""Networks and data as in ordinary trainings: layers of `torch.nn` with biases, affine parameters and a trained head.

A `RunConfig` names them in `model` and `dataset`, as "empirical.studies.ordinary_networks:plain_mlp".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from empirical.networks.layers import Layers

_WIDENING, _HEADS, _CHANNELS_PER_GROUP = 2, 2, 4
_CHARACTERS, _CONTEXT, _TEXTS = 16, 6, 2000
_WAVES, _TOKENS, _VALUES, _KINDS = 2000, 8, 4, 8


def plain_mlp(make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 32, depth: int = 2) -> nn.Module:
    """Build inputs-width-…-width-classes with a normalization before each ReLU."""
    sizes = [math.prod(shape), *(width for _ in range(depth))]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), _normalize_vectors(make, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def plain_convnet(make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 8, depth: int = 2) -> nn.Module:
    """Build 3×3 convolutions with width, 2 width, … channels, pooling after each, and a linear layer."""
    channels = [shape[0], *(width * 2**number for number in range(depth))]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), _normalize_images(make, outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def separable_convnet(
    make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 8, depth: int = 2
) -> nn.Module:
    """Build pairs of a 3×3 convolution of each channel and a 1×1 convolution, both normalized, and a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), _normalize_images(make, width), nn.ReLU()]
    channels = [width * 2**number for number in range(depth + 1)]
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), _normalize_images(make, inputs), nn.ReLU()]
        layers += [nn.Conv2d(inputs, outputs, 1), _normalize_images(make, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def residual_net(make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 8, depth: int = 1) -> nn.Module:
    """Build a ResNet on images of half size: a stem, `depth` blocks, and a block with twice the channels."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, stride=2, padding=1, bias=False),
        _normalize_images(make, width),
        nn.ReLU(),
    ]
    layers += [_ResidualBlock(make, width, width, 1) for _ in range(depth)]
    layers.append(_ResidualBlock(make, width, 2 * width, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


def residual_mlp(make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 32, depth: int = 2) -> nn.Module:
    """Build blocks of two linear layers that add to a stream, which is normalized before each block and at the end."""
    blocks = [_FeedForward(make, width) for _ in range(depth)]
    stream = [nn.Flatten(), nn.Linear(math.prod(shape), width), *blocks]
    return nn.Sequential(*stream, _normalize_vectors(make, width), nn.Linear(width, classes))


def small_transformer(
    make: Layers, shape: tuple[int, ...], classes: int, *, width: int = 16, depth: int = 1
) -> nn.Module:
    """Build a transformer that classifies images by four patches, or sequences (tokens, features).

    It normalizes before attention and before each feed-forward block.
    """
    return _Transformer(make, shape, classes, width, depth)


def next_characters() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw contexts of a synthetic text and their next characters; the same in every call.

    Each character depends on the two before it. Contexts are one-hot, of shape (samples, context, characters).

    Examples
    --------
    >>> contexts, characters = next_characters()
    >>> contexts.shape, characters.shape
    ((2000, 6, 16), (2000,))
    """
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(_CHARACTERS, 0.1), size=(_CHARACTERS, _CHARACTERS))
    text = np.zeros(_TEXTS + _CONTEXT, dtype=np.int64)
    for place in range(2, text.size):
        text[place] = rng.choice(_CHARACTERS, p=chances[text[place - 2], text[place - 1]])
    windows = np.lib.stride_tricks.sliding_window_view(text, _CONTEXT + 1)
    return np.eye(_CHARACTERS, dtype=np.float32)[windows[:, :-1]], windows[:, -1].copy()


def waves() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw noisy waves and the number of their cycles; the same in every call.

    Eight tokens of four values hold one to eight cycles with a random phase. Noise of half their size is added.

    Examples
    --------
    >>> tokens, cycles = waves()
    >>> tokens.shape, int(cycles.max())
    ((2000, 8, 4), 7)
    """
    rng = np.random.default_rng(1)
    kinds = rng.integers(_KINDS, size=_WAVES)
    times = np.arange(_TOKENS * _VALUES) / (_TOKENS * _VALUES)
    phases = 2 * np.pi * (np.outer(kinds + 1, times) + rng.uniform(size=(_WAVES, 1)))
    values = np.sqrt(2) * np.sin(phases) + rng.normal(scale=0.5, size=phases.shape)
    return values.astype(np.float32).reshape(_WAVES, _TOKENS, _VALUES), kinds


def _normalize_vectors(make: Layers, features: int) -> nn.Module:
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm1d,
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
    }
    return kinds[make.normalization](features)


def _normalize_images(make: Layers, channels: int) -> nn.Module:
    if make.normalization == "group":
        return nn.GroupNorm(max(1, channels // _CHANNELS_PER_GROUP), channels)
    if make.normalization == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    assert make.normalization == "batch"
    return nn.BatchNorm2d(channels)


class _ResidualBlock(nn.Module):
    """Two normalized 3×3 convolutions, added to the input or to a 1×1 convolution of it."""

    def __init__(self, make: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = _normalize_images(make, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _normalize_images(make, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, _normalize_images(make, outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the block."""
        inner = relu(self.norm1(self.conv1(images)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(images))


class _FeedForward(nn.Module):
    """Normalization, a linear layer, GELU and a linear layer, added to the input."""

    def __init__(self, make: Layers, features: int) -> None:
        super().__init__()
        self.norm = _normalize_vectors(make, features)
        self.linear1 = nn.Linear(features, _WIDENING * features)
        self.linear2 = nn.Linear(_WIDENING * features, features)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream after the block."""
        added: Tensor = self.linear2(gelu(self.linear1(self.norm(stream))))
        return stream + added


class _Attention(nn.Module):
    """Normalization and self-attention with two heads, added to the input."""

    def __init__(self, make: Layers, features: int) -> None:
        super().__init__()
        self.norm = _normalize_vectors(make, features)
        self.inner = nn.Linear(features, 3 * features)
        self.outer = nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the block, (batch, tokens, features)."""
        by_head = self.inner(self.norm(tokens)).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*by_head.unbind())
        added: Tensor = self.outer(attended.transpose(1, 2).flatten(2))
        return tokens + added


class _Transformer(nn.Module):
    """Transformer: embedding, learned positions, blocks, normalization, mean over tokens, linear layer."""

    def __init__(self, make: Layers, shape: tuple[int, ...], classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.has_images = len(shape) == 3
        # four patches of half the height and breadth
        tokens, features = (4, math.prod(shape) // 4) if self.has_images else shape
        self.embed = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        blocks = [block for _ in range(depth) for block in (_Attention(make, width), _FeedForward(make, width))]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = _normalize_vectors(make, width), nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores (batch, classes)."""
        if self.has_images:
            half, breadth = inputs.shape[2] // 2, inputs.shape[3] // 2
            patches = inputs.unfold(2, half, half).unfold(3, breadth, breadth)
            inputs = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = self.norm(self.blocks(self.embed(inputs) + self.position))
        scores: Tensor = self.head(tokens.mean(dim=1))
        return scores
