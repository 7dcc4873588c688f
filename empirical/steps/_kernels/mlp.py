"""Compiled training steps of the BN-MLP: forward pass, backward pass, update and telemetry."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from empirical.steps._kernels.products import INNER, OUTER, step_products


@numba.njit(**INNER)
def _normalize(values: Any, scale: Any, eps: Any) -> None:
    """Normalize each column over the batch, in place, and write 1/√(variance+ε) into `scale` (units,)."""
    batch, units = values.shape
    mean = np.zeros(units, values.dtype)
    scale[:] = 0
    for i in range(batch):
        for j in range(units):
            mean[j] += values[i, j]
    for j in range(units):
        mean[j] /= batch
    for i in range(batch):
        for j in range(units):
            centred = values[i, j] - mean[j]
            values[i, j] = centred
            scale[j] += centred * centred
    for j in range(units):
        scale[j] = 1 / np.sqrt(scale[j] / batch + eps)
    for i in range(batch):
        for j in range(units):
            values[i, j] *= scale[j]


@numba.njit(**INNER)
def _back_through_relu_and_normalization(slope: Any, normalized: Any, scale: Any) -> None:
    """Propagate the gradient from after the ReLU to before the normalization, in place."""
    batch, units = slope.shape
    mean, along = np.zeros(units, slope.dtype), np.zeros(units, slope.dtype)
    for i in range(batch):
        for j in range(units):
            passed = slope[i, j] if normalized[i, j] > 0 else slope.dtype.type(0)
            slope[i, j] = passed
            mean[j] += passed
            along[j] += passed * normalized[i, j]
    for j in range(units):
        mean[j] /= batch
        along[j] /= batch
    for i in range(batch):
        for j in range(units):
            slope[i, j] = scale[j] * (slope[i, j] - mean[j] - normalized[i, j] * along[j])


@numba.njit(**INNER)
def _rectify(normalized: Any, active: Any) -> None:
    for i in range(normalized.shape[0]):
        for j in range(normalized.shape[1]):
            # this comparison keeps NaN
            active[i, j] = normalized.dtype.type(0) if normalized[i, j] <= 0 else normalized[i, j]


@numba.njit(**INNER)
def cross_entropy(scores: Any, labels: Any) -> Any:
    """Return the mean cross-entropy of class scores (batch, classes), and replace the scores by its gradient."""
    batch, classes = scores.shape
    total = 0.0
    for i in range(batch):
        largest = scores[i, 0]
        for c in range(1, classes):
            largest = max(largest, scores[i, c])
        right = scores[i, labels[i]] - largest
        weight = scores.dtype.type(0)
        for c in range(classes):
            scores[i, c] = np.exp(scores[i, c] - largest)
            weight += scores[i, c]
        total += np.log(weight) - right
        for c in range(classes):
            scores[i, c] /= weight * batch
        scores[i, labels[i]] -= scores.dtype.type(1) / batch
    return total / batch


@numba.njit(**INNER)
def update(weights: Any, gradient: Any, following: Any, lr: Any, wd: Any, products: Any) -> None:
    """Make one step of SGD with weight decay, in place, and write the telemetry into `products` (3, 3).

    `following` is a work array of the size of `weights`.
    """
    step_size, decay = weights.dtype.type(lr), weights.dtype.type(wd)
    for i in range(weights.size):
        following[i] = weights[i] - step_size * (gradient[i] + decay * weights[i])
    step_products(weights, gradient, following, products)
    for i in range(weights.size):
        weights[i] = following[i]


@numba.njit(**OUTER)
def train_mlp(
    first: Any,
    second: Any,
    head: Any,
    inputs: Any,
    targets: Any,
    eps: Any,
    indices: Any,
    lr: Any,
    wd: Any,
    losses: Any,
    products: Any,
) -> None:
    """Train a normalized MLP with two hidden layers and a frozen head by plain SGD, in place.

    Weights: `first` (width, features), `second` (width, width), `head` (classes, width). Data: `inputs` (samples,
    features), `indices` (steps, batch). Settings: `lr` (steps,). Telemetry: `losses` (steps,) and `products` (steps, 2,
    3, 3) are written.
    """
    steps, batch = indices.shape
    width, features = first.shape
    kind = first.dtype
    x = np.empty((batch, features), kind)
    labels = np.empty(batch, np.int64)
    normalized1, normalized2 = np.empty((batch, width), kind), np.empty((batch, width), kind)
    active1, active2 = np.empty((batch, width), kind), np.empty((batch, width), kind)
    slope1, slope2 = np.empty((batch, width), kind), np.empty((batch, width), kind)
    scale1, scale2 = np.empty(width, kind), np.empty(width, kind)
    scores = np.empty((batch, head.shape[0]), kind)
    gradient1, gradient2 = np.empty((width, features), kind), np.empty((width, width), kind)
    following1, following2 = np.empty(first.size, kind), np.empty(second.size, kind)
    for t in range(steps):
        for i in range(batch):
            sample = indices[t, i]
            labels[i] = targets[sample]
            for j in range(features):
                x[i, j] = inputs[sample, j]
        np.dot(x, first.T, normalized1)
        _normalize(normalized1, scale1, eps)
        _rectify(normalized1, active1)
        np.dot(active1, second.T, normalized2)
        _normalize(normalized2, scale2, eps)
        _rectify(normalized2, active2)
        np.dot(active2, head.T, scores)
        losses[t] = cross_entropy(scores, labels)
        np.dot(scores, head, slope2)
        _back_through_relu_and_normalization(slope2, normalized2, scale2)
        np.dot(slope2.T, active1, gradient2)
        np.dot(slope2, second, slope1)
        _back_through_relu_and_normalization(slope1, normalized1, scale1)
        np.dot(slope1.T, x, gradient1)
        update(first.ravel(), gradient1.ravel(), following1, lr[t], wd, products[t, 0])
        update(second.ravel(), gradient2.ravel(), following2, lr[t], wd, products[t, 1])
