"""Networks whose trained weights are scale-invariant, built from a run's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from empirical.config import DEPTHS, RunConfig
from empirical.networks import convnet, mlp, resnet, transformer
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

    Raises
    ------
    ValueError : the inputs are no images of the size that the model needs, or the normalization has nothing to
        normalize by in this network.

    Examples
    --------
    >>> net = build_network(RunConfig(lr=0.1, wd=0.01), torch.zeros(2, 1, 8, 8), classes=10)
    >>> tuple(net(torch.randn(5, 1, 8, 8)).shape)
    (5, 10)
    """
    width, dtype = config.resolved_width, getattr(torch, config.weight_dtype)
    assert width is not None, "a custom model is not built here"
    settings: dict[str, Any] = {
        "width": width,
        "normalization": config.normalization,
        "eps": config.norm_eps,
        "scale_invariant": config.scale_invariant,
    }
    if config.model in DEPTHS:
        settings["depth"] = config.resolved_depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model == "mlp":
            network: nn.Module = mlp.mlp(inputs[0].numel(), classes, **settings)
        else:
            network = _IMAGE_NETWORKS[config.model](_image_shape(config, inputs), classes, **settings)
        network = network.to(dtype)
        _try(config, network, torch.zeros((2, *inputs.shape[1:]), dtype=dtype))
    return network


_IMAGE_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet.convnet,
    "resnet18": resnet.resnet18,
    "transformer": transformer.VisionTransformer,
}


def _image_shape(config: RunConfig, inputs: Tensor) -> tuple[int, int, int]:
    least = 2 ** (config.resolved_depth - 1) if config.model == "convnet" and config.resolved_depth else 1
    if inputs.ndim != 4 or min(inputs.shape[2:]) < least:
        raise ValueError(
            f"data must be images (samples, colours, height, width) of at least {least}×{least} for "
            f"model={config.model!r}, got inputs of shape {tuple(inputs.shape)}"
        )
    return inputs.shape[1], inputs.shape[2], inputs.shape[3]


def _try(config: RunConfig, network: nn.Module, samples: Tensor) -> None:
    """Let a normalization without anything to normalize by show before the training."""
    try:
        with torch.no_grad():
            network(samples)
    except ValueError as error:
        raise ValueError(
            f"normalization={config.normalization!r} has no meaning in model={config.model!r} on inputs of shape "
            f"{tuple(samples.shape[1:])}: {error}"
        ) from None
