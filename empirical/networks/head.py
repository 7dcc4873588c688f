"""The last layer, which turns features into class scores."""

from __future__ import annotations

import torch
from torch import nn

FROZEN_NORM = 10.0


def head(features: int, classes: int, *, frozen: bool) -> nn.Linear:
    """Linear layer; frozen, it has no bias and the fixed norm 10, so that all that is trained is scale-invariant.

    Source: arXiv 2106.15739 §4 (fully scale-invariant setup).

    Examples
    --------
    >>> round(head(16, 10, frozen=True).weight.norm().item(), 4)
    10.0
    """
    layer = nn.Linear(features, classes, bias=not frozen)
    if frozen:
        with torch.no_grad():
            layer.weight.mul_(FROZEN_NORM / layer.weight.norm())
        layer.weight.requires_grad_(False)
    return layer
