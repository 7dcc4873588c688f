"""Layers of the networks, with the normalization that a run uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from empirical.networks.head import head
from empirical.networks.normalization import apply_weight_norm, normalization_layer


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
        """Make the last layer, which returns class scores; frozen if `scale_invariant`."""
        return head(features, classes, frozen=self.scale_invariant)

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
