"""Last layer of the networks, from features to class scores."""

from __future__ import annotations

import torch
from torch import nn

FROZEN_NORM = 10.0
# For some frozen matrices a very small network has several basins, whose gradient norms differ by up to 5 %. With this
# seed, twelve seeds of a network of width 8 agree to 1 %.
_FROZEN_SEED = 3


def head(features: int, classes: int, *, frozen: bool) -> nn.Linear:
    """Build the last linear layer. A frozen one has no bias and norm 10, so all trained weights can be scale-invariant.

    The frozen matrix is part of the architecture. It is random but equal in all runs, so that runs with different seeds
    train the same network.

    Source: arXiv 2106.15739 §4 (fully scale-invariant setup).

    Examples
    --------
    >>> round(head(16, 10, frozen=True).weight.norm().item(), 4)
    10.0
    """
    layer = nn.Linear(features, classes, bias=not frozen)
    if frozen:
        fixed = torch.randn(classes, features, generator=torch.Generator().manual_seed(_FROZEN_SEED))
        with torch.no_grad():
            layer.weight.copy_(fixed * (FROZEN_NORM / fixed.norm()))
        layer.weight.requires_grad_(False)
    return layer
