"""Multilayer perceptron with hidden layers of equal width."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from empirical.networks.layers import Layers


def mlp(make: Layers, shape: tuple[int, ...], classes: int, *, width: int, depth: int = 2) -> nn.Sequential:
    """Build a multilayer perceptron inputs-width-…-width-classes, with normalization before each ReLU.

    Parameters
    ----------
    make : factory of the layers. Instance normalization is not possible, because there are no pixels.
    shape : shape of one sample, with any number of axes.
    classes : number of classes.
    width : units of each hidden layer.
    depth : number of hidden layers.

    Examples
    --------
    >>> net = mlp(Layers("batch", 1e-12, scale_invariant=True), (1, 8, 8), 10, width=64)
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['linear1.weight', 'linear2.weight']
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(1, depth + 1):
        layers[f"linear{number}"] = make.linear(math.prod(shape) if number == 1 else width, width)
        if make.normalizes_activations:
            layers[f"norm{number}"] = make.normalizing(width)
        layers[f"relu{number}"] = nn.ReLU()
    layers["head"] = make.head(width, classes)
    return nn.Sequential(layers)
