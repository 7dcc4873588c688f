"""Small vision transformer with normalization before each branch and of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from empirical.networks.layers import Layers

_MOST_HEADS, _WIDENING = 4, 2


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
    residual stream are scale-invariant only together with all others that write there.

    Parameters
    ----------
    make : factory of the layers.
    features : size of a token.
    heads : number of attention heads, a divisor of `features`.

    Examples
    --------
    >>> block = TransformerBlock(Layers("layer", 1e-12, scale_invariant=True), features=8, heads=2)
    >>> tuple(block(torch.randn(3, 5, 8)).shape)
    (3, 5, 8)
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

    Parameters
    ----------
    make : factory of the layers. Instance normalization is not possible, because tokens have no pixels.
    shape : colours, height and width of an image.
    classes : number of classes.
    width : size of a token.
    depth : number of blocks.

    Examples
    --------
    >>> net = VisionTransformer(Layers("layer", 1e-12, scale_invariant=True), (1, 8, 8), 10, width=8, depth=1)
    >>> tuple(net(torch.randn(3, 1, 8, 8)).shape)
    (3, 10)
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
