"""The BN-MLP: two hidden layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from empirical.networks.head import head
from empirical.networks.normalization import BatchNorm


def mlp(
    inputs: int, classes: int, *, width: int, normalization: str, eps: float, scale_invariant: bool
) -> nn.Sequential:
    """Multilayer perceptron inputs-width-width-classes with ReLU; normalization before each ReLU.

    Parameters
    ----------
    inputs, classes : numbers of input values and of classes.
    width : units of each hidden layer.
    normalization : "batch" or "none".
    eps : ε of the normalization.
    scale_invariant : no affine parameters and no biases, frozen last layer of norm 10.

    Examples
    --------
    >>> net = mlp(64, 10, width=64, normalization="batch", eps=1e-12, scale_invariant=True)
    >>> [name for name, p in net.named_parameters() if p.requires_grad]
    ['linear1.weight', 'linear2.weight']
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (fan_in, fan_out) in enumerate([(inputs, width), (width, width)], start=1):
        layers[f"linear{number}"] = nn.Linear(fan_in, fan_out, bias=normalization == "none")
        if normalization == "batch":
            layers[f"norm{number}"] = BatchNorm(fan_out, eps, affine=not scale_invariant)
        layers[f"relu{number}"] = nn.ReLU()
    layers["head"] = head(width, classes, frozen=scale_invariant)
    return nn.Sequential(layers)
