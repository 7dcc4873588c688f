"""Layers of the networks, with the normalization that a run uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from empirical.networks.normalization import apply_weight_norm, normalization_layer

_FROZEN_NORM = 10.0
# For some frozen matrices a very small network has several basins, whose gradient norms differ by up to 5 %. With this
# seed, twelve seeds of an MLP of width 8 agree to 1 %.
_HEAD_SEED = 3


@dataclass(frozen=True)
class Layers:
    """Factory of the layers of one network.

    Attributes
    ----------
    normalization : "batch", "layer", "group", "instance", "weight", "rms", "none" or a "module:name".
    eps : ε of the normalization.
    scale_invariant : True for no affine parameters, no biases, and a frozen last layer of norm 10.
    seeded_head : True to draw a frozen last layer with the other weights, False to draw it from a constant seed.

    Examples
    --------
    >>> Layers("batch", 1e-12, scale_invariant=True).linear(3, 2)
    Linear(in_features=3, out_features=2, bias=False)
    """

    normalization: str
    eps: float
    scale_invariant: bool
    seeded_head: bool = False

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """Make a linear layer that is followed by a normalization."""
        return self._weighted(nn.Linear(inputs, outputs, bias=self._has_bias))

    def convolution(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Module:
        """Make a convolution that is followed by a normalization; with stride 1 it keeps the image size."""
        padding = size // 2
        return self._weighted(nn.Conv2d(inputs, outputs, size, stride, padding, bias=self._has_bias))

    def normalizing(self, channels: int) -> nn.Module:
        """Make a normalization of activations; the identity for "none" and "weight"."""
        return normalization_layer(self.normalization, channels, self.eps, affine=not self.scale_invariant)

    def head(self, features: int, classes: int) -> nn.Module:
        """Make the last layer, which returns class scores.

        With `scale_invariant` it is frozen, has no bias and norm 10, so all trained weights can be scale-invariant. The
        matrix is normally distributed. Unless `seeded_head` is True, it is the same in all runs, so that runs with
        different seeds train the same network.

        Source: arXiv 2106.15739 §4 (fully scale-invariant setup).
        """
        layer = nn.Linear(features, classes, bias=not self.scale_invariant)
        if self.scale_invariant:
            with self._head_random_state():
                fixed = torch.randn(classes, features)
            with torch.no_grad():
                layer.weight.copy_(fixed)
            _freeze(layer)
        return layer

    def paper_head(self, features: int, classes: int, *, bias: bool = False) -> nn.Module:
        """Make the last layer as in the published code of the paper.

        It has PyTorch's default initialization. With `scale_invariant` its weights are scaled to norm 10, and it is
        frozen with its initial bias.
        """
        if not self.scale_invariant:
            return nn.Linear(features, classes, bias=bias)
        with self._head_random_state():
            layer = nn.Linear(features, classes, bias=bias)
        _freeze(layer)
        return layer

    @contextmanager
    def _head_random_state(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[], enabled=not self.seeded_head):
            if not self.seeded_head:
                torch.manual_seed(_HEAD_SEED)
            yield

    @property
    def normalizes_activations(self) -> bool:
        """Whether activations are normalized, by a layer before each ReLU."""
        return self.normalization not in ("none", "weight")

    @property
    def _has_bias(self) -> bool:
        return not (self.scale_invariant or self.normalizes_activations)

    def _weighted(self, layer: nn.Module) -> nn.Module:
        if self.normalization == "weight":
            return apply_weight_norm(layer, self.eps, affine=not self.scale_invariant)
        return layer


def _freeze(head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight *= _FROZEN_NORM / head.weight.norm()
    head.requires_grad_(False)
