"""Layers of the networks, with the normalization that a run uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from empirical.networks.normalization import apply_weight_norm, normalization_layer

_FROZEN_NORM = 10.0
# For some frozen matrices a very small network has several basins, whose gradient norms differ by up to 5 %. With this
# seed, twelve seeds of a network of width 8 agree to 1 %.
_FROZEN_SEED = 3


@dataclass(frozen=True)
class Layers:
    """Factory of the layers of one network.

    Attributes
    ----------
    normalization : "batch", "layer", "group", "instance", "weight", "rms", "none" or a "module:name".
    eps : ε of the normalization.
    scale_invariant : True for no affine parameters, no biases, and a frozen last layer of norm 10.

    Examples
    --------
    >>> Layers("batch", 1e-12, scale_invariant=True).linear(3, 2)
    Linear(in_features=3, out_features=2, bias=False)
    """

    normalization: str
    eps: float
    scale_invariant: bool

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
        frozen matrix is part of the architecture. It is random but equal in all runs, so that runs with different seeds
        train the same network.

        Source: arXiv 2106.15739 §4 (fully scale-invariant setup).
        """
        layer = nn.Linear(features, classes, bias=not self.scale_invariant)
        if self.scale_invariant:
            fixed = torch.randn(classes, features, generator=torch.Generator().manual_seed(_FROZEN_SEED))
            with torch.no_grad():
                layer.weight.copy_(fixed * (_FROZEN_NORM / fixed.norm()))
            layer.weight.requires_grad_(False)
        return layer

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
