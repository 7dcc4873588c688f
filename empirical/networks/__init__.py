"""Networks with scale-invariant weights, built from the settings of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from empirical.config import RunConfig
from empirical.networks.architectures import VisionTransformer, convnet, mlp, poolings, resnet18
from empirical.networks.inference import infer
from empirical.networks.layers import Layers
from empirical.networks.normalization import BatchNorm, record_statistics
from theory.references import import_reference, is_reference

__all__ = ["BatchNorm", "build_network", "infer", "record_statistics"]


def build_network(config: RunConfig, inputs: Tensor, classes: int) -> nn.Module:
    """Build the network of a run, with initial weights from its seed. The global random state does not change.

    Parameters
    ----------
    config : configuration of the run. Its `model` is the name of a network of this package or the "module:name" of a
        function (layers, shape, classes, width=…, depth=…) that returns a module. Sizes that are None are not passed.
    inputs : training inputs, (samples, …); only their shape matters.
    classes : number of classes.

    Returns
    -------
    module in train mode, in float32 or float64 on the CPU.

    Raises
    ------
    TypeError : the function does not return a module.
    ValueError : the function does not exist, the inputs are not images of a suitable size, or the normalization has too
        few values to normalize.

    Examples
    --------
    >>> net = build_network(RunConfig(lr=0.1, wd=0.01), torch.zeros(2, 1, 8, 8), classes=10)
    >>> tuple(net(torch.randn(5, 1, 8, 8)).shape)
    (5, 10)
    """
    make = Layers(config.normalization, config.norm_eps, config.scale_invariant, config.seeded_head)
    build = import_reference("model", config.model) if is_reference(config.model) else _NETWORKS[config.model]
    shape = tuple(inputs.shape[1:]) if config.model not in _OF_IMAGES else _image_shape(config, inputs)
    sizes = {"width": config.resolved_width, "depth": config.resolved_depth}
    given = {name: size for name, size in sizes.items() if size is not None}
    arguments = _check_builder(config.model, build, (make, shape, classes), given)
    dtype = getattr(torch, config.weight_dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build(*arguments, **given)
        if not isinstance(network, nn.Module):
            raise TypeError(f"model must return a torch.nn.Module, got {type(network).__name__} from {config.model!r}")
        network = network.to(dtype)
        _try(config, network, torch.zeros((2, *inputs.shape[1:]), dtype=dtype))
    return network


def _check_builder(
    name: str, build: Callable[..., Any], arguments: tuple[Any, ...], sizes: dict[str, int]
) -> tuple[Any, ...]:
    """Check that a function takes these arguments, and return them."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # of some builtins nothing is known
        return arguments
    try:
        signature.bind(*arguments, **sizes)
    except TypeError as error:
        written = ", ".join(["layers, shape, classes", *(f"{size}=…" for size in sizes)])
        kind = "the class" if inspect.isclass(build) else "the function"
        raise TypeError(
            f"model must be the 'module:name' of a function ({written}) that returns a torch.nn.Module, got {kind} "
            f"{name!r}: {error}"
        ) from None
    return arguments


_OF_IMAGES: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "resnet18": resnet18,
    "transformer": VisionTransformer,
}
_NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, **_OF_IMAGES}


def _image_shape(config: RunConfig, inputs: Tensor) -> tuple[int, int, int]:
    smallest = 2 ** poolings(config.resolved_depth) if config.model == "convnet" and config.resolved_depth else 1
    if inputs.ndim != 4 or min(inputs.shape[2:]) < smallest:
        raise ValueError(
            f"data must be images (samples, colours, height, width) of at least {smallest}×{smallest} for "
            f"model={config.model!r}, got inputs of shape {tuple(inputs.shape)}"
        )
    return inputs.shape[1], inputs.shape[2], inputs.shape[3]


def _try(config: RunConfig, network: nn.Module, samples: Tensor) -> None:
    """Call the network once, so that an unsuitable normalization raises before the training."""
    try:
        with torch.no_grad():
            network(samples)
    except ValueError as error:
        raise ValueError(
            f"normalization={config.normalization!r} has no meaning in model={config.model!r} on inputs of shape "
            f"{tuple(samples.shape[1:])}: {error}"
        ) from None
