"""Compiled inner loops of the kernel engine: forward pass, backward pass, update and telemetry of MLP and ConvNet.

In the ConvNet the samples are the innermost axis of images. The input of a layer is (channels, height+2,
(breadth+2)·batch), framed by zeros, and its output is (channels, height, breadth·batch). So a shift by one pixel is a
shift by `batch` numbers, and one long loop covers a row of the whole mini-batch.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Sums may be reordered for the vector units. Infinities and NaN are kept, so that an overflow stays visible.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_OUTER: Any = {**_OPTIONS, "cache": True}
# Functions are inlined, because code that is called differs between a caller from the cache and one compiled in this
# process. It would round differently, and a resumed run would not be bit-identical.
_INNER: Any = {**_OPTIONS, "forceinline": True}


@numba.njit(**_INNER)
def _step_products(before: Any, gradient: Any, after: Any, products: Any) -> None:
    """Write all scalar products of weights, gradient and change into `products` (3, 3), in double precision.

    `before`, `gradient`, `after` (weights,): weights before the step, loss gradient there, weights after the step.
    """
    ww, wg, gg, wc, gc, cc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(before.size):
        w, g = np.float64(before[i]), np.float64(gradient[i])
        c = np.float64(after[i]) - w
        ww += w * w
        wg += w * g
        gg += g * g
        wc += w * c
        gc += g * c
        cc += c * c
    products[0, 0], products[0, 1], products[0, 2] = ww, wg, wc
    products[1, 0], products[1, 1], products[1, 2] = wg, gg, gc
    products[2, 0], products[2, 1], products[2, 2] = wc, gc, cc


@numba.njit(**_OUTER)
def replica_products(before: Any, gradient: Any, after: Any, bounds: Any, products: Any) -> None:
    """Apply `_step_products` to each replica and group.

    `before`, `gradient`, `after` (K, weights); `bounds` (groups, 2): start and stop of each group; `products`
    (K, groups, 3, 3).
    """
    for i in range(len(before)):
        for j in range(len(bounds)):
            start, stop = bounds[j]
            _step_products(before[i][start:stop], gradient[i][start:stop], after[i][start:stop], products[i, j])


@numba.njit(**_OUTER)
def vector_products(first: Any, second: Any, products: Any) -> None:
    """Write the scalar products of two vectors into `products` (3,): first², first·second, second²."""
    ff, fs, ss = 0.0, 0.0, 0.0
    for i in range(first.size):
        f, s = np.float64(first[i]), np.float64(second[i])
        ff += f * f
        fs += f * s
        ss += s * s
    products[0], products[1], products[2] = ff, fs, ss


@numba.njit(**_OUTER)
def change_products(before: Any, after: Any, products: Any) -> None:
    """Write scalar products of the change from `before` to `after` into `products` (3,): change², change·after, after².

    The change is computed in double precision, because its part across the weights may be far smaller than they are.
    """
    cc, ca, aa = 0.0, 0.0, 0.0
    for i in range(before.size):
        a = np.float64(after[i])
        c = a - np.float64(before[i])
        cc += c * c
        ca += c * a
        aa += a * a
    products[0], products[1], products[2] = cc, ca, aa


@numba.njit(**_INNER)
def _normalize_units(values: Any, scale: Any, eps: Any) -> None:
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


@numba.njit(**_INNER)
def _back_through_units(slope: Any, normalized: Any, scale: Any) -> None:
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


@numba.njit(**_INNER)
def _rectify(normalized: Any, active: Any) -> None:
    for i in range(normalized.shape[0]):
        for j in range(normalized.shape[1]):
            # this comparison keeps NaN
            active[i, j] = normalized.dtype.type(0) if normalized[i, j] <= 0 else normalized[i, j]


@numba.njit(**_INNER)
def _cross_entropy(scores: Any, labels: Any) -> Any:
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


@numba.njit(**_INNER)
def _update(weights: Any, gradient: Any, following: Any, lr: Any, wd: Any, products: Any) -> None:
    """Make one step of SGD with weight decay, in place, and write the telemetry into `products` (3, 3).

    `following` is a work array of the size of `weights`.
    """
    step_size, decay = weights.dtype.type(lr), weights.dtype.type(wd)
    for i in range(weights.size):
        following[i] = weights[i] - step_size * (gradient[i] + decay * weights[i])
    _step_products(weights, gradient, following, products)
    for i in range(weights.size):
        weights[i] = following[i]


@numba.njit(**_OUTER)
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
        _normalize_units(normalized1, scale1, eps)
        _rectify(normalized1, active1)
        np.dot(active1, second.T, normalized2)
        _normalize_units(normalized2, scale2, eps)
        _rectify(normalized2, active2)
        np.dot(active2, head.T, scores)
        losses[t] = _cross_entropy(scores, labels)
        np.dot(scores, head, slope2)
        _back_through_units(slope2, normalized2, scale2)
        np.dot(slope2.T, active1, gradient2)
        np.dot(slope2, second, slope1)
        _back_through_units(slope1, normalized1, scale1)
        np.dot(slope1.T, x, gradient1)
        _update(first.ravel(), gradient1.ravel(), following1, lr[t], wd, products[t, 0])
        _update(second.ravel(), gradient2.ravel(), following2, lr[t], wd, products[t, 1])


@numba.njit(**_INNER)
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


@numba.njit(**_INNER)
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


@numba.njit(**_INNER)
def _transpose(weights: Any, out: Any) -> None:
    """Weights of the transposed convolution: channels exchanged, the 3×3 window rotated by 180°."""
    for o in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            for row in range(3):
                for column in range(3):
                    out[c, o, 2 - row, 2 - column] = weights[o, c, row, column]


@numba.njit(**_INNER)
def _frame(values: Any, framed: Any, batch: int) -> None:
    channels, height, length = values.shape
    for c in range(channels):
        for y in range(height):
            framed[c, y + 1, batch : batch + length] = values[c, y]


@numba.njit(**_INNER)
def _normalize_channels(values: Any, scale: Any, eps: Any) -> None:
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


@numba.njit(**_INNER)
def _back_through_channels(slope: Any, normalized: Any, scale: Any) -> None:
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


@numba.njit(**_INNER)
def _rectify_into_frame(normalized: Any, framed: Any, batch: int) -> None:
    channels, height, length = normalized.shape
    zero = normalized.dtype.type(0)
    for c in range(channels):
        for y in range(height):
            for i in range(length):
                value = normalized[c, y, i]
                # this comparison keeps NaN
                framed[c, y + 1, i + batch] = zero if value <= 0 else value


@numba.njit(**_INNER)
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


@numba.njit(**_INNER)
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


@numba.njit(**_OUTER)
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
        _normalize_channels(normalized1, scale1, eps)
        _rectify_into_frame(normalized1, framed2, batch)
        _convolve(framed2, second, normalized2, batch)
        _normalize_channels(normalized2, scale2, eps)
        _pool(normalized2, framed3, batch, 1)
        _convolve(framed3, third, normalized3, batch)
        _normalize_channels(normalized3, scale3, eps)
        _pool(normalized3, features, batch, 0)
        scores = np.ascontiguousarray(np.dot(head, flat).T)
        losses[t] = _cross_entropy(scores, labels)
        slope = np.dot(head.T, np.ascontiguousarray(scores.T)).reshape(features.shape)
        _back_through_pool(slope, normalized3, slope3, batch)
        _back_through_channels(slope3, normalized3, scale3)
        _weight_gradient(framed3, slope3, gradient3, batch)
        _frame(slope3, framed_slope3, batch)
        _transpose(third, back3)
        _convolve(framed_slope3, back3, pooled2, batch)
        _back_through_pool(pooled2, normalized2, slope2, batch)
        _back_through_channels(slope2, normalized2, scale2)
        _weight_gradient(framed2, slope2, gradient2, batch)
        _frame(slope2, framed_slope2, batch)
        _transpose(second, back2)
        _convolve(framed_slope2, back2, slope1, batch)
        _back_through_channels(slope1, normalized1, scale1)
        _weight_gradient(framed1, slope1, gradient1, batch)
        _update(first.ravel(), gradient1.ravel(), following1, lr[t], wd, products[t, 0])
        _update(second.ravel(), gradient2.ravel(), following2, lr[t], wd, products[t, 1])
        _update(third.ravel(), gradient3.ravel(), following3, lr[t], wd, products[t, 2])
