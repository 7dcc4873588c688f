"""The BN-MLP: hidden layers of equal width."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from empirical.networks.head import head
from empirical.networks.layers import Layers


def mlp(
    inputs: int, classes: int, *, width: int, normalization: str, eps: float, scale_invariant: bool, depth: int = 2
) -> nn.Sequential:
    """Multilayer perceptron inputs-width-…-width-classes with ReLU; normalization before each ReLU.

    Parameters
    ----------
    inputs, classes : numbers of input values and of classes.
    width : units of each hidden layer.
    normalization : "batch", "layer", "group", "weight", "rms" or "none".
    eps : ε of the normalization.
    scale_invariant : no affine parameters and no biases, frozen last layer of norm 10.
    depth : number of hidden layers.

    Examples
    --------
    >>> net = mlp(64, 10, width=64, normalization="batch", eps=1e-12, scale_invariant=True)
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['linear1.weight', 'linear2.weight']
    """
    make = Layers(normalization, eps, scale_invariant)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(1, depth + 1):
        layers[f"linear{number}"] = make.linear(inputs if number == 1 else width, width)
        if make.normalizes_activations:
            layers[f"norm{number}"] = make.normalizing(width)
        layers[f"relu{number}"] = nn.ReLU()
    layers["head"] = head(width, classes, frozen=scale_invariant)
    return nn.Sequential(layers)
