"""Networks whose trained weights are scale-invariant, built from a run's settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from empirical.config import RunConfig
from empirical.networks import convnet, mlp
from empirical.networks.normalization import BatchNorm, recorded_statistics

__all__ = ["BatchNorm", "build_network", "recorded_statistics"]


def build_network(config: RunConfig, inputs: Tensor, classes: int) -> nn.Module:
    """Build the network of a run with the initial weights of its seed; the global random state is left alone.

    Parameters
    ----------
    config : the run; its `model` must be one of ours.
    inputs : training inputs of shape (samples, colours, height, width), for their shape.
    classes : number of classes.

    Returns
    -------
    module in train mode, float32 or float64 on the CPU.

    Examples
    --------
    >>> net = build_network(RunConfig(lr=0.1, wd=0.01), torch.zeros(2, 1, 8, 8), classes=10)
    >>> tuple(net(torch.randn(5, 1, 8, 8)).shape)
    (5, 10)
    """
    width = config.resolved_width
    assert width is not None, "a custom model is not built here"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        settings: dict[str, Any] = {
            "width": width,
            "normalization": config.normalization,
            "eps": config.norm_eps,
            "scale_invariant": config.scale_invariant,
        }
        if config.model == "mlp":
            network = mlp.mlp(inputs[0].numel(), classes, **settings)
        elif inputs.ndim == 4 and min(inputs.shape[2:]) >= 4:
            network = convnet.convnet((inputs.shape[1], inputs.shape[2], inputs.shape[3]), classes, **settings)
        else:
            raise ValueError(
                "data must be images (samples, colours, height, width) of at least 4×4 for model='convnet', "
                f"got inputs of shape {tuple(inputs.shape)}"
            )
    return network.to(getattr(torch, config.weight_dtype))
