"""Compiled inner loops of the kernel engine: forward pass, backward pass, update and telemetry of MLP and ConvNet.

In the ConvNet the samples are the innermost axis of images. The input of a layer is (channels, height+2,
(breadth+2)·batch), framed by zeros, and its output is (channels, height, breadth·batch). So a shift by one pixel is a
shift by `batch` numbers, and one long loop covers a row of the whole mini-batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from simulate._compilation import compile_cached

# Sums may be reordered for the vector units. Infinities and NaN are kept, so that an overflow stays visible.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
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


@compile_cached(**_OPTIONS)
def replica_products(before: Any, gradient: Any, after: Any, bounds: Any, products: Any) -> None:
    """Apply `_step_products` to each replica and group.

    `before`, `gradient`, `after` (K, weights); `bounds` (groups, 2): start and stop of each group; `products`
    (K, groups, 3, 3).
    """
    for i in range(len(before)):
        for j in range(len(bounds)):
            start, stop = bounds[j]
            _step_products(before[i][start:stop], gradient[i][start:stop], after[i][start:stop], products[i, j])


@compile_cached(**_OPTIONS)
def vector_products(first: Any, second: Any, products: Any) -> None:
    """Write the scalar products of two vectors into `products` (3,): first², first·second, second²."""
    ff, fs, ss = 0.0, 0.0, 0.0
    for i in range(first.size):
        f, s = np.float64(first[i]), np.float64(second[i])
        ff += f * f
        fs += f * s
        ss += s * s
    products[0], products[1], products[2] = ff, fs, ss


@compile_cached(**_OPTIONS)
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


@compile_cached(**_OPTIONS)
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
    if height % 2 or length // batch % 2:
        # the last row or column is in no window
        out[:] = 0
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


@numba.njit(**_INNER)
def _pool_windows(framed: Any, out: Any, batch: int, height: int, breadth: int) -> None:
    """Maximum over windows of `height` × `breadth` pixels inside a frame."""
    channels, rows, length = out.shape
    for c in range(channels):
        for y in range(rows):
            for x in range(length // batch):
                for n in range(batch):
                    largest = framed[c, y * height + 1, (x * breadth + 1) * batch + n]
                    for i in range(height):
                        for j in range(breadth):
                            value = framed[c, y * height + i + 1, (x * breadth + j + 1) * batch + n]
                            largest = value if value > largest else largest
                    out[c, y, x * batch + n] = largest


@numba.njit(**_INNER)
def _back_through_windows(slope: Any, framed: Any, out: Any, batch: int, height: int, breadth: int) -> None:
    """Pass the gradient of each maximum to the first pixel with this value; the other pixels get 0."""
    channels, rows, length = slope.shape
    out[:] = 0
    for c in range(channels):
        for y in range(rows):
            for x in range(length // batch):
                for n in range(batch):
                    largest = framed[c, y * height + 1, (x * breadth + 1) * batch + n]
                    row, column = y * height, x * breadth
                    for i in range(height):
                        for j in range(breadth):
                            value = framed[c, y * height + i + 1, (x * breadth + j + 1) * batch + n]
                            if value > largest:
                                largest, row, column = value, y * height + i, x * breadth + j
                    out[c, row, column * batch + n] = slope[c, y, x * batch + n]


class ConvWork(NamedTuple):
    """Work arrays of `train_convnet`, one per convolution l = 0 … L-1, and sizes of its layers.

    Attributes
    ----------
    framed : input of each convolution, and output of the last layer, with a frame of zeros; L+1 arrays.
    slopes : loss gradient with respect to the same without a frame; L+1 arrays, the first of which is not used.
    normalized, inner_slopes, framed_slopes : normalized output of each convolution, loss gradient with respect to it,
        and that with a frame. Without pooling, `inner_slopes[l]` is `slopes[l + 1]`.
    scales : 1/√(variance+ε) of each channel.
    gradients, following, transposed : loss gradient, next value and transposed form of the weights.
    features : output after the last pooling.
    pooled : 1 if 2×2 pooling follows a convolution, else 0.
    window : height and breadth of the last pooling.
    """

    framed: Any
    slopes: Any
    normalized: Any
    inner_slopes: Any
    framed_slopes: Any
    scales: Any
    gradients: Any
    following: Any
    transposed: Any
    features: Any
    pooled: Any
    window: Any


def make_work(weights: Any, pooled: Any, window: Any, image: Any, batch: int) -> ConvWork:
    """Make the work arrays for images of shape (colours, height, breadth) and mini-batches of `batch` samples."""
    kind = weights[0].dtype
    (height, breadth), sizes = image[1:], []
    for is_pooled in pooled:
        sizes.append((height, breadth))
        height, breadth = (height // 2, breadth // 2) if is_pooled else (height, breadth)
    outputs = [len(layer) for layer in weights]

    def plain(channels: int, size: Any) -> Any:
        return np.empty((channels, size[0], size[1] * batch), kind)

    def framed(channels: int, size: Any) -> Any:
        return np.zeros((channels, size[0] + 2, (size[1] + 2) * batch), kind)

    ends = [*sizes, (height, breadth)]
    slopes = tuple(plain(channels, size) for channels, size in zip([image[0], *outputs], ends, strict=True))
    return ConvWork(
        framed=tuple(framed(channels, size) for channels, size in zip([image[0], *outputs], ends, strict=True)),
        slopes=slopes,
        normalized=tuple(map(plain, outputs, sizes)),
        inner_slopes=tuple(
            plain(channels, size) if is_pooled else slope
            for channels, size, is_pooled, slope in zip(outputs, sizes, pooled, slopes[1:], strict=True)
        ),
        framed_slopes=tuple(map(framed, outputs, sizes)),
        scales=tuple(np.empty(channels, kind) for channels in outputs),
        gradients=tuple(map(np.empty_like, weights)),
        following=tuple(np.empty(layer.size, kind) for layer in weights),
        transposed=tuple(np.empty((layer.shape[1], len(layer), 3, 3), kind) for layer in weights),
        features=plain(outputs[-1], (height // window[0], breadth // window[1])),
        pooled=np.array(pooled, np.int64),
        window=np.array(window, np.int64),
    )


@compile_cached(**_OPTIONS)
def train_convnet(
    weights: Any,
    work: Any,
    head: Any,
    bias: Any,
    images: Any,
    targets: Any,
    eps: Any,
    indices: Any,
    lr: Any,
    wd: Any,
    losses: Any,
    products: Any,
) -> None:
    """Train normalized 3×3 convolutions with a frozen head by plain SGD, in place.

    Weights: tuple `weights` of L arrays (outputs, inputs, 3, 3), `head` (classes, features), `bias` (classes,). Data:
    `images` (samples, colours, height, breadth), `indices` (steps, batch). Settings: `lr` (steps,). Telemetry: `losses`
    (steps,) and `products` (steps, L, 3, 3) are written. `work` comes from `make_work`.
    """
    steps, batch = indices.shape
    colours, height, breadth = images.shape[1:]
    layers = len(weights)
    labels = np.empty(batch, np.int64)
    flat = work.features.reshape(head.shape[1], batch)
    window = work.window
    for t in range(steps):
        for n in range(batch):
            sample = indices[t, n]
            labels[n] = targets[sample]
            for c in range(colours):
                for y in range(height):
                    for x in range(breadth):
                        work.framed[0][c, y + 1, (x + 1) * batch + n] = images[sample, c, y, x]
        for layer in range(layers):
            normalized, output = work.normalized[layer], work.framed[layer + 1]
            _convolve(work.framed[layer], weights[layer], normalized, batch)
            _normalize_channels(normalized, work.scales[layer], eps)
            if work.pooled[layer]:
                _pool(normalized, output, batch, 1)
            else:
                _rectify_into_frame(normalized, output, batch)
        _pool_windows(work.framed[layers], work.features, batch, window[0], window[1])
        scores = np.ascontiguousarray(np.dot(head, flat).T)
        for n in range(batch):
            for c in range(bias.size):
                scores[n, c] += bias[c]
        losses[t] = _cross_entropy(scores, labels)
        feature_slope = np.dot(head.T, np.ascontiguousarray(scores.T)).reshape(work.features.shape)
        _back_through_windows(feature_slope, work.framed[layers], work.slopes[layers], batch, window[0], window[1])
        for layer in range(layers - 1, -1, -1):
            slope = work.inner_slopes[layer]
            if work.pooled[layer]:
                _back_through_pool(work.slopes[layer + 1], work.normalized[layer], slope, batch)
            _back_through_channels(slope, work.normalized[layer], work.scales[layer])
            _weight_gradient(work.framed[layer], slope, work.gradients[layer], batch)
            if layer > 0:
                _frame(slope, work.framed_slopes[layer], batch)
                _transpose(weights[layer], work.transposed[layer])
                _convolve(work.framed_slopes[layer], work.transposed[layer], work.slopes[layer], batch)
        for layer in range(layers):
            _update(
                weights[layer].ravel(),
                work.gradients[layer].ravel(),
                work.following[layer],
                lr[t],
                wd,
                products[t, layer],
            )
