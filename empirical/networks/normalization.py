"""Normalizations built from primitive tensor operations, with correct derivatives of every order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from theory.references import import_reference, is_reference

# the largest number of groups of a group normalization
_MOST_GROUPS = 8
# number of samples, mean and variance of each channel
Statistics = tuple[int, Tensor, Tensor]


class Normalization(nn.Module):
    """Base class of normalizations of activations (batch, channels, …), with ε and optional γ and β per channel.

    Parameters
    ----------
    channels : size of axis 1 of the input.
    eps : ε added to the variance. It breaks scale invariance unless it is small compared with the variance.
    affine : True to multiply by a trained γ and add a trained β.
    """

    def __init__(self, channels: int, eps: float = 1e-12, affine: bool = False) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.gamma = nn.Parameter(torch.ones(channels)) if affine else None
        self.beta = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalized input of shape (batch, channels, …)."""
        normalized = self.normalized(inputs)
        if self.gamma is None or self.beta is None:
            return normalized
        shape = (1, -1, *(1 for _ in inputs.shape[2:]))
        return normalized * self.gamma.reshape(shape) + self.beta.reshape(shape)

    def normalized(self, inputs: Tensor) -> Tensor:
        """Return the normalized input, before γ and β."""
        raise NotImplementedError

    def divided(self, centred: Tensor, variance: Tensor) -> Tensor:
        """Divide centred values by the standard deviation."""
        # the derivative of rsqrt contains a third power, which overflows float32 much earlier
        return centred / torch.sqrt(variance + self.eps)


class BatchNorm(Normalization):
    """Normalize each channel by the mean and variance of the batch.

    Train mode uses the statistics of the batch and stores nothing, so training has no hidden state. Eval mode uses the
    statistics recorded inside `record_statistics`, usually those of the whole training set. Unlike PyTorch's fused
    batch norm, this layer has correct third derivatives and `torch.func` Hessians.

    Parameters are those of `Normalization`.

    Examples
    --------
    >>> normalized = BatchNorm(3, eps=1e-12)(torch.arange(12.0).reshape(4, 3))
    >>> normalized.mean(0).abs().max().item() < 1e-6, round(normalized.var(0, correction=0)[0].item(), 5)
    (True, 1.0)
    """

    def __init__(self, channels: int, eps: float = 1e-12, affine: bool = False) -> None:
        super().__init__(channels, eps, affine)
        self.recording, self.recorded = False, 0
        self.mean: Tensor
        self.variance: Tensor
        # NaN until recorded, so that a missing recording is obvious
        self.register_buffer("mean", torch.full((channels,), torch.nan))
        self.register_buffer("variance", torch.full((channels,), torch.nan))

    def normalized(self, inputs: Tensor) -> Tensor:
        """Return the normalized input, before γ and β."""
        if not (self.training or self.recording):
            shape = (1, -1, *(1 for _ in inputs.shape[2:]))
            return self.divided(inputs - self.mean.reshape(shape), self.variance.reshape(shape))
        axes = (0, *range(2, inputs.ndim))
        mean = inputs.mean(axes, keepdim=True)
        centred = inputs - mean
        variance = (centred * centred).mean(axes, keepdim=True)
        if self.recording:
            self.record((len(inputs), mean.detach().reshape(-1), variance.detach().reshape(-1)))
        return self.divided(centred, variance)

    def record(self, batch: Statistics) -> None:
        """Pool the statistics of a batch with those of the batches before it."""
        before = [(self.recorded, self.mean, self.variance)] if self.recorded else []
        self.recorded, self.mean, self.variance = pool_statistics([*before, batch])


def pool_statistics(batches: Sequence[Statistics]) -> Statistics:
    """Return the number of samples, mean and variance of several batches together.

    Examples
    --------
    >>> one, three = torch.tensor([1.0]), torch.tensor([3.0])
    >>> pool_statistics([(5, one, 0 * one), (5, three, 0 * one)])
    (10, tensor([2.]), tensor([1.]))
    """
    total = sum(samples for samples, _, _ in batches)
    means = torch.stack([mean for _, mean, _ in batches])
    variances = torch.stack([variance for _, _, variance in batches])
    shares = means.new_tensor([samples for samples, _, _ in batches]) / total
    mean = shares @ means
    return total, mean, shares @ (variances + (means - mean).square())


class FusedBatchNorm(BatchNorm):
    """The same layer with PyTorch's fused code: faster, but correct only in values and first derivatives.

    Examples
    --------
    >>> normalized = FusedBatchNorm(3, eps=1e-12)(torch.arange(12.0).reshape(4, 3))
    >>> normalized.mean(0).abs().max().item() < 1e-6
    True
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalized input of shape (batch, channels, …)."""
        if not self.training or self.recording:
            return super().forward(inputs)
        return batch_norm(inputs, None, None, self.gamma, self.beta, training=True, eps=self.eps)


class GroupNorm(Normalization):
    """Normalize groups of channels of each sample by their mean and variance over channels and pixels.

    Parameters
    ----------
    groups : number of groups, a divisor of `channels`. 1 is layer normalization, `channels` instance normalization.
    channels, eps, affine : as in `Normalization`.

    Raises
    ------
    ValueError : in the forward pass, if a group has only one or two values.

    Examples
    --------
    >>> normalized = GroupNorm(2, 6)(torch.arange(12.0).reshape(2, 6))
    >>> [round(value, 3) for value in normalized[0].tolist()]
    [-1.225, 0.0, 1.225, -1.225, 0.0, 1.225]
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-12, affine: bool = False) -> None:
        super().__init__(channels, eps, affine)
        self.groups = groups

    def normalized(self, inputs: Tensor) -> Tensor:
        """Return the normalized input, before γ and β."""
        grouped = inputs.reshape(len(inputs), self.groups, -1)
        # one value would always become 0, and two would become ±1
        if grouped.shape[2] < 3:
            raise ValueError(
                f"normalization must have more than two values to normalize, got activations of shape "
                f"{tuple(inputs.shape[1:])} in {self.groups} groups"
            )
        centred = grouped - grouped.mean(dim=2, keepdim=True)
        return self.divided(centred, (centred * centred).mean(dim=2, keepdim=True)).reshape(inputs.shape)


class RMSNorm(Normalization):
    """Divide each sample by the root mean square of its values, without subtracting a mean.

    Parameters are those of `Normalization`.

    Examples
    --------
    >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])).square().mean().item()
    1.0
    """

    def normalized(self, inputs: Tensor) -> Tensor:
        """Return the normalized input, before γ and β."""
        square = (inputs * inputs).mean(dim=tuple(range(1, inputs.ndim)), keepdim=True)
        return self.divided(inputs, square)


class NormalizedWeight(nn.Module):
    """Parametrization of weight normalization: a filter v acts as γv/‖v‖. See `apply_weight_norm`.

    Parameters
    ----------
    filters : size of axis 0 of the weight.
    eps : ε added to the squared norm of a filter.
    affine : True for a trained γ per filter, False for γ = 1.
    """

    def __init__(self, filters: int, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(filters)) if affine else None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with filters of norm 1, multiplied by γ."""
        square = (weight * weight).sum(dim=tuple(range(1, weight.ndim)), keepdim=True)
        normalized = weight / torch.sqrt(square + self.eps)
        if self.gamma is None:
            return normalized
        return normalized * self.gamma.reshape(-1, *(1 for _ in weight.shape[1:]))


def apply_weight_norm(layer: nn.Module, eps: float, affine: bool) -> nn.Module:
    """Add weight normalization to a layer, in place; return the layer.

    The trained parameter becomes `parametrizations.weight.original`.

    Examples
    --------
    >>> layer = apply_weight_norm(nn.Linear(3, 2, bias=False), eps=1e-12, affine=False)
    >>> [round(norm, 5) for norm in layer.weight.norm(dim=1).tolist()]
    [1.0, 1.0]
    """
    filters = layer.get_parameter("weight").shape[0]
    return nn.utils.parametrize.register_parametrization(layer, "weight", NormalizedWeight(filters, eps, affine))


def normalization_layer(kind: str, channels: int, eps: float, affine: bool) -> nn.Module:
    """Build the layer that normalizes activations (batch, channels, …).

    Parameters
    ----------
    kind : "batch", "layer", "group" (at most 8 groups of at least four channels), "instance" or "rms"; "weight" or
        "none" for the identity; or the "module:name" of a class or function (channels, eps, affine).
    channels, eps, affine : as in `Normalization`.

    Examples
    --------
    >>> normalization_layer("group", 16, 1e-12, affine=False).groups
    4
    """
    if is_reference(kind):
        own = import_reference("normalization", kind)(channels, eps, affine)
        if not isinstance(own, nn.Module):
            raise TypeError(f"normalization must return a torch.nn.Module, got {type(own).__name__} from {kind!r}")
        return own
    if kind == "batch":
        return BatchNorm(channels, eps, affine)
    if kind == "rms":
        return RMSNorm(channels, eps, affine)
    if kind in ("layer", "group", "instance"):
        most = {"layer": 1, "group": max(1, min(_MOST_GROUPS, channels // 4)), "instance": channels}[kind]
        groups = next(count for count in range(most, 0, -1) if channels % count == 0)
        return GroupNorm(groups, channels, eps, affine)
    return nn.Identity()


def fuse_layers(model: nn.Module) -> nn.Module:
    """Convert every `BatchNorm` of a model to a `FusedBatchNorm`, in place; return the model.

    A ReLU after it in an `nn.Sequential` then works in place, because the backward pass does not need its input.

    Examples
    --------
    >>> fuse_layers(nn.Sequential(nn.Linear(2, 3), BatchNorm(3), nn.ReLU()))[1:]
    Sequential(
      (1): FusedBatchNorm()
      (2): ReLU(inplace=True)
    )
    """
    for module in model.modules():
        if type(module) is BatchNorm:
            module.__class__ = FusedBatchNorm
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for layer, following in pairwise(module):
                if isinstance(layer, FusedBatchNorm) and isinstance(following, nn.ReLU):
                    following.inplace = True
    return model


@contextmanager
def record_statistics(model: nn.Module) -> Iterator[None]:
    """Context in which every `BatchNorm` uses the batch statistics and records them for eval mode.

    Statistics of several batches are pooled.

    Examples
    --------
    >>> layer = BatchNorm(2).eval()
    >>> with record_statistics(layer):
    ...     _ = layer(torch.tensor([[1.0, 0.0], [3.0, 0.0]])), layer(torch.tensor([[5.0, 3.0]]))
    >>> layer.mean.tolist()
    [3.0, 1.0]
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for layer in layers:
        layer.recording, layer.recorded = True, 0
    try:
        yield
    finally:
        for layer in layers:
            layer.recording = False
