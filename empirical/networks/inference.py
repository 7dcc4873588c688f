"""Outputs of networks without gradients, computed layer by layer for small parts of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from empirical.networks.normalization import BatchNorm, FusedBatchNorm, Statistics, pool_statistics

# layers that process each sample on its own
_SAMPLE_LAYERS = (nn.Conv2d, nn.Flatten, nn.Linear, nn.MaxPool2d, nn.ReLU)
_SAMPLES = 64  # samples per part, whose activations stay in the cache of a processor


def infer(model: nn.Module, samples: Tensor, transform: Callable[[Tensor], Tensor] = torch.as_tensor) -> Tensor:
    """Compute `model(transform(samples))` without gradients, for a model in eval mode.

    `transform` maps each sample on its own. Inside `record_statistics`, all samples are one batch. For a sequence of
    convolutional and linear layers with batch normalization, on a processor, this is faster than the forward pass and
    differs by rounding only.

    Examples
    --------
    >>> infer(nn.Sequential(nn.Linear(2, 3), BatchNorm(3)), torch.ones(4, 2)).shape
    torch.Size([4, 3])
    """
    stages = _stages(model, transform) if samples.device.type == "cpu" else []
    with torch.no_grad():
        if not stages:
            outputs: Tensor = model(transform(samples))
            return outputs
        parts, statistics = list(samples.split(_SAMPLES)), None
        for stage in stages:
            statistics = stage.advance(parts, statistics)
        return torch.cat(parts)


@dataclass(frozen=True)
class _Stage:
    """Layers from one batch normalization to the next.

    Attributes
    ----------
    norm : normalization at the beginning; None in the first stage.
    layers : layers after it.
    following : normalization after these, whose statistics the stage computes; None in the last stage.
    pooling : pooling after the following normalization and a ReLU. Both are increasing functions, so it can come before
        them, and they have fewer values to process.
    """

    norm: BatchNorm | None
    layers: Sequence[Callable[[Tensor], Tensor]]
    following: BatchNorm | None
    pooling: nn.MaxPool2d | None

    def advance(self, parts: list[Tensor], statistics: Statistics | None) -> Statistics | None:
        """Replace the inputs of the stage by its outputs.

        Takes the statistics of the first normalization and returns those of the following one.
        """
        batches = []
        for number, values in enumerate(parts):
            if self.norm is not None and statistics is not None:
                _, mean, variance = statistics
                values = batch_norm(values, mean, variance, self.norm.gamma, self.norm.beta, eps=self.norm.eps)
            for layer in self.layers:
                values = layer(values)
            if self.following is not None and self.following.recording:
                batches.append(_statistics(values))
            parts[number] = values if self.pooling is None else _pool(self.pooling, values)
        if self.following is None:
            return None
        if not self.following.recording:
            return self.following.recorded, self.following.mean, self.following.variance
        pooled = pool_statistics(batches)
        self.following.record(pooled)
        return pooled


def _stages(model: nn.Module, transform: Callable[[Tensor], Tensor]) -> list[_Stage]:
    """Stages of a transform and a sequence of known layers; none for another model."""
    if type(model) is not nn.Sequential or model.training:
        return []
    layers = list(model)
    if any(type(layer) not in (*_SAMPLE_LAYERS, BatchNorm, FusedBatchNorm) for layer in layers):
        return []
    stages: list[_Stage] = []
    moved = -1  # place of a pooling that comes before its normalization
    norm: BatchNorm | None = None
    stage: list[Callable[[Tensor], Tensor]] = [transform]
    for number, layer in enumerate(layers):
        if isinstance(layer, BatchNorm):
            pooling = _movable_pooling(layers[number : number + 3])
            stages.append(_Stage(norm, stage, layer, pooling))
            norm, stage, moved = layer, [], -1 if pooling is None else number + 2
        elif number != moved:
            stage.append(layer)
    return [*stages, _Stage(norm, stage, None, None)] if stages else []


def _movable_pooling(layers: Sequence[nn.Module]) -> nn.MaxPool2d | None:
    """Pooling that can come before the normalization and the ReLU in front of it."""
    match layers:
        case [BatchNorm() as norm, nn.ReLU(), nn.MaxPool2d() as pooling]:
            return pooling if norm.gamma is None or bool((norm.gamma >= 0).all()) else None
    return None


def _statistics(values: Tensor) -> Statistics:
    """Mean and variance of each channel of a batch, shape (samples, channels, …)."""
    axes = (0, *range(2, values.ndim))
    mean = values.mean(axes, keepdim=True)
    # the sum of squares minus the squared sum, which needs one pass less, loses digits
    return len(values), mean.reshape(-1), (values - mean).square_().mean(axes)


def _pool(layer: nn.MaxPool2d, values: Tensor) -> Tensor:
    """Compute `layer(values)`; without gradients, larger ones of two values are faster than PyTorch's pooling."""
    if values.ndim == 4 and _is_plain(layer):
        height, width = (2 * (size // 2) for size in values.shape[2:])
        rows = torch.maximum(values[:, :, 0:height:2], values[:, :, 1:height:2])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
    pooled: Tensor = layer(values)
    return pooled


def _is_plain(layer: nn.MaxPool2d) -> bool:
    """Whether this is pooling of 2×2 pixels without overlap."""
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode) == (2, 2, 0, 1, False)
