"""Compiled training steps of the ConvNet: forward pass, backward pass, update and telemetry.

The samples are the innermost axis of images. The input of a layer is (channels, height+2, (breadth+2)·batch), framed by
zeros, and its output is (channels, height, breadth·batch). So a shift by one pixel is a shift by `batch` numbers, and
one long loop covers a row of the whole mini-batch.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from empirical.steps._kernels.mlp import cross_entropy, update
from empirical.steps._kernels.products import INNER, OUTER


@numba.njit(**INNER)
def _convolve(framed: Any, weights: Any, out: Any, batch: int) -> None:
    """Compute a 3×3 convolution, two output channels at a time to reuse the input."""
    channels, height, length = out.shape
    # unsigned, because possibly negative indices would prevent vectorization of these loops
    one, two = np.uint64(batch), np.uint64(2 * batch)
    out[:] = 0
    for a in range(0, channels, 2):
        # with an odd number of channels, the last one is paired with itself and zero weights
        b = min(a + 1, channels - 1)
        paired = weights.dtype.type(b - a)
        for y in range(height):
            for c in range(weights.shape[1]):
                for row in range(3):
                    a0, a1, a2 = weights[a, c, row, 0], weights[a, c, row, 1], weights[a, c, row, 2]
                    b0, b1, b2 = weights[b, c, row, 0], weights[b, c, row, 1], weights[b, c, row, 2]
                    b0, b1, b2 = b0 * paired, b1 * paired, b2 * paired
                    for j in range(length):
                        i = np.uint64(j)
                        left, middle, right = (
                            framed[c, y + row, i],
                            framed[c, y + row, i + one],
                            framed[c, y + row, i + two],
                        )
                        out[a, y, i] += a0 * left + a1 * middle + a2 * right
                        out[b, y, i] += b0 * left + b1 * middle + b2 * right


@numba.njit(**INNER)
def _weight_gradient(framed: Any, slope: Any, gradient: Any, batch: int) -> None:
    """Gradient of the loss with respect to the weights of a convolution, from the gradient of its output."""
    channels, height, length = slope.shape
    zero = slope.dtype.type(0)
    for a in range(0, channels, 2):
        b = min(a + 1, channels - 1)
        for c in range(gradient.shape[1]):
            for row in range(3):
                a0, a1, a2, b0, b1, b2 = zero, zero, zero, zero, zero, zero
                for y in range(height):
                    line = framed[c, y + row]
                    left, middle, right = (
                        line[:length],
                        line[batch : batch + length],
                        line[2 * batch : 2 * batch + length],
                    )
                    slope_a, slope_b = slope[a, y], slope[b, y]
                    for i in range(length):
                        a0 += slope_a[i] * left[i]
                        a1 += slope_a[i] * middle[i]
                        a2 += slope_a[i] * right[i]
                        b0 += slope_b[i] * left[i]
                        b1 += slope_b[i] * middle[i]
                        b2 += slope_b[i] * right[i]
                gradient[a, c, row, 0], gradient[a, c, row, 1], gradient[a, c, row, 2] = a0, a1, a2
                gradient[b, c, row, 0], gradient[b, c, row, 1], gradient[b, c, row, 2] = b0, b1, b2


@numba.njit(**INNER)
def _transpose(weights: Any, out: Any) -> None:
    """Weights of the transposed convolution: channels exchanged, the 3×3 window rotated by 180°."""
    for o in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            for row in range(3):
                for column in range(3):
                    out[c, o, 2 - row, 2 - column] = weights[o, c, row, column]


@numba.njit(**INNER)
def _frame(values: Any, framed: Any, batch: int) -> None:
    channels, height, length = values.shape
    for c in range(channels):
        for y in range(height):
            framed[c, y + 1, batch : batch + length] = values[c, y]


@numba.njit(**INNER)
def _normalize(values: Any, scale: Any, eps: Any) -> None:
    """Normalize each channel over the batch, in place, and write 1/√(variance+ε) into `scale`."""
    channels, height, length = values.shape
    for c in range(channels):
        mean = values.dtype.type(0)
        for y in range(height):
            for i in range(length):
                mean += values[c, y, i]
        mean /= height * length
        square = values.dtype.type(0)
        for y in range(height):
            for i in range(length):
                centred = values[c, y, i] - mean
                values[c, y, i] = centred
                square += centred * centred
        scale[c] = 1 / np.sqrt(square / (height * length) + eps)
        for y in range(height):
            for i in range(length):
                values[c, y, i] *= scale[c]


@numba.njit(**INNER)
def _back_through_relu_and_normalization(slope: Any, normalized: Any, scale: Any) -> None:
    """Turn the slope after the ReLU into that before the normalization, in place."""
    channels, height, length = slope.shape
    zero = slope.dtype.type(0)
    for c in range(channels):
        mean, along = zero, zero
        for y in range(height):
            for i in range(length):
                passed = slope[c, y, i] if normalized[c, y, i] > 0 else zero
                slope[c, y, i] = passed
                mean += passed
                along += passed * normalized[c, y, i]
        mean /= height * length
        along /= height * length
        for y in range(height):
            for i in range(length):
                slope[c, y, i] = scale[c] * (slope[c, y, i] - mean - normalized[c, y, i] * along)


@numba.njit(**INNER)
def _rectify_into_frame(normalized: Any, framed: Any, batch: int) -> None:
    channels, height, length = normalized.shape
    zero = normalized.dtype.type(0)
    for c in range(channels):
        for y in range(height):
            for i in range(length):
                value = normalized[c, y, i]
                # this comparison keeps NaN
                framed[c, y + 1, i + batch] = zero if value <= 0 else value


@numba.njit(**INNER)
def _pool(normalized: Any, out: Any, batch: int, margin: int) -> None:
    """Apply ReLU and the maximum over 2×2 pixels; `out` has a frame of `margin` pixels."""
    channels, height, length = normalized.shape
    zero = normalized.dtype.type(0)
    for c in range(channels):
        for y in range(height // 2):
            for x in range(length // batch // 2):
                at, to = 2 * x * batch, (x + margin) * batch
                for n in range(batch):
                    upper = normalized[c, 2 * y, at + n]
                    # keeps NaN, because either all values of a channel are NaN or none
                    largest = zero if upper <= zero else upper
                    for value in (
                        normalized[c, 2 * y, at + batch + n],
                        normalized[c, 2 * y + 1, at + n],
                        normalized[c, 2 * y + 1, at + batch + n],
                    ):
                        largest = max(largest, value)
                    out[c, y + margin, to + n] = largest


@numba.njit(**INNER)
def _back_through_pool(slope: Any, normalized: Any, out: Any, batch: int) -> None:
    """Pass the gradient of each maximum to the first pixel with this value; the other pixels get 0."""
    channels, height, length = normalized.shape
    zero = slope.dtype.type(0)
    for c in range(channels):
        for y in range(height // 2):
            for x in range(length // batch // 2):
                at, to = 2 * x * batch, x * batch
                for n in range(batch):
                    p, q = normalized[c, 2 * y, at + n], normalized[c, 2 * y, at + batch + n]
                    r, s = normalized[c, 2 * y + 1, at + n], normalized[c, 2 * y + 1, at + batch + n]
                    here = slope[c, y, to + n]
                    first = p >= q and p >= r and p >= s
                    second = (not first) and q >= r and q >= s
                    third = (not first) and (not second) and r >= s
                    out[c, 2 * y, at + n] = here if first else zero
                    out[c, 2 * y, at + batch + n] = here if second else zero
                    out[c, 2 * y + 1, at + n] = here if third else zero
                    out[c, 2 * y + 1, at + batch + n] = zero if first or second or third else here


@numba.njit(**OUTER)
def train_convnet(
    first: Any,
    second: Any,
    third: Any,
    head: Any,
    images: Any,
    targets: Any,
    eps: Any,
    indices: Any,
    lr: Any,
    wd: Any,
    losses: Any,
    products: Any,
) -> None:
    """Train three normalized 3×3 convolutions and a frozen head by plain SGD, in place.

    Weights: `first` (w, colours, 3, 3), `second` and `third` (2w, …, 3, 3), `head` (classes, features). Data: `images`
    (samples, colours, height, breadth), with height and breadth divisible by 4, `indices` (steps, batch). Settings:
    `lr` (steps,). Telemetry: `losses` (steps,) and `products` (steps, 3, 3, 3) are written.
    """
    steps, batch = indices.shape
    colours, height, breadth = images.shape[1:]
    width, wide = first.shape[0], second.shape[0]
    kind = first.dtype
    half, half_breadth = height // 2, breadth // 2
    labels = np.empty(batch, np.int64)
    framed1 = np.zeros((colours, height + 2, (breadth + 2) * batch), kind)
    framed2 = np.zeros((width, height + 2, (breadth + 2) * batch), kind)
    framed3 = np.zeros((wide, half + 2, (half_breadth + 2) * batch), kind)
    normalized1 = np.empty((width, height, breadth * batch), kind)
    normalized2 = np.empty((wide, height, breadth * batch), kind)
    normalized3 = np.empty((wide, half, half_breadth * batch), kind)
    features = np.empty((wide, half // 2, half_breadth // 2 * batch), kind)
    scale1, scale2, scale3 = np.empty(width, kind), np.empty(wide, kind), np.empty(wide, kind)
    slope1, slope2, slope3 = np.empty_like(normalized1), np.empty_like(normalized2), np.empty_like(normalized3)
    pooled2 = np.empty((wide, half, half_breadth * batch), kind)
    framed_slope2 = np.zeros((wide, height + 2, (breadth + 2) * batch), kind)
    framed_slope3 = np.zeros((wide, half + 2, (half_breadth + 2) * batch), kind)
    gradient1, gradient2, gradient3 = np.empty_like(first), np.empty_like(second), np.empty_like(third)
    following1, following2 = np.empty(first.size, kind), np.empty(second.size, kind)
    following3 = np.empty(third.size, kind)
    back2, back3 = np.empty((width, wide, 3, 3), kind), np.empty((wide, wide, 3, 3), kind)
    flat = features.reshape(head.shape[1], batch)
    for t in range(steps):
        for n in range(batch):
            sample = indices[t, n]
            labels[n] = targets[sample]
            for c in range(colours):
                for y in range(height):
                    for x in range(breadth):
                        framed1[c, y + 1, (x + 1) * batch + n] = images[sample, c, y, x]
        _convolve(framed1, first, normalized1, batch)
        _normalize(normalized1, scale1, eps)
        _rectify_into_frame(normalized1, framed2, batch)
        _convolve(framed2, second, normalized2, batch)
        _normalize(normalized2, scale2, eps)
        _pool(normalized2, framed3, batch, 1)
        _convolve(framed3, third, normalized3, batch)
        _normalize(normalized3, scale3, eps)
        _pool(normalized3, features, batch, 0)
        scores = np.ascontiguousarray(np.dot(head, flat).T)
        losses[t] = cross_entropy(scores, labels)
        slope = np.dot(head.T, np.ascontiguousarray(scores.T)).reshape(features.shape)
        _back_through_pool(slope, normalized3, slope3, batch)
        _back_through_relu_and_normalization(slope3, normalized3, scale3)
        _weight_gradient(framed3, slope3, gradient3, batch)
        _frame(slope3, framed_slope3, batch)
        _transpose(third, back3)
        _convolve(framed_slope3, back3, pooled2, batch)
        _back_through_pool(pooled2, normalized2, slope2, batch)
        _back_through_relu_and_normalization(slope2, normalized2, scale2)
        _weight_gradient(framed2, slope2, gradient2, batch)
        _frame(slope2, framed_slope2, batch)
        _transpose(second, back2)
        _convolve(framed_slope2, back2, slope1, batch)
        _back_through_relu_and_normalization(slope1, normalized1, scale1)
        _weight_gradient(framed1, slope1, gradient1, batch)
        update(first.ravel(), gradient1.ravel(), following1, lr[t], wd, products[t, 0])
        update(second.ravel(), gradient2.ravel(), following2, lr[t], wd, products[t, 1])
        update(third.ravel(), gradient3.ravel(), following3, lr[t], wd, products[t, 2])
