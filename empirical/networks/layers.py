"""The layers that the networks are made of, in the form that a run asks for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from empirical.networks.head import head
from empirical.networks.normalization import normalization_layer, weight_normed


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Attributes
    ----------
    normalization : "batch", "layer", "group", "instance", "weight", "rms", "none" or a "module:name".
    eps : ε of the normalization.
    scale_invariant : no affine parameters, no biases, and a frozen last layer of norm 10.

    Examples
    --------
    >>> Layers("batch", 1e-12, scale_invariant=True).linear(3, 2)
    Linear(in_features=3, out_features=2, bias=False)
    """

    normalization: str
    eps: float
    scale_invariant: bool

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """Linear layer before a normalization."""
        return self._weighted(nn.Linear(inputs, outputs, bias=self._has_bias))

    def convolution(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Module:
        """Convolution before a normalization, padded so that stride 1 keeps the image's size."""
        padding = size // 2
        return self._weighted(nn.Conv2d(inputs, outputs, size, stride, padding, bias=self._has_bias))

    def normalizing(self, channels: int) -> nn.Module:
        """Normalization of activations; the identity where there is none."""
        return normalization_layer(self.normalization, channels, self.eps, affine=not self.scale_invariant)

    def head(self, features: int, classes: int) -> nn.Module:
        """Last layer, which gives class scores; frozen in the fully scale-invariant form."""
        return head(features, classes, frozen=self.scale_invariant)

    @property
    def normalizes_activations(self) -> bool:
        """Whether there is a layer between a weight and its ReLU."""
        return self.normalization not in ("none", "weight")

    @property
    def _has_bias(self) -> bool:
        return not (self.scale_invariant or self.normalizes_activations)

    def _weighted(self, layer: nn.Module) -> nn.Module:
        if self.normalization == "weight":
            return weight_normed(layer, self.eps, affine=not self.scale_invariant)
        return layer
