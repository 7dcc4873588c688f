"""Scale-invariant losses with value and gradient in plain NumPy, the reference for the compiled code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simulate.landscapes import _kernels
from simulate.landscapes._kernels import Parts
from simulate.maps.layout import unlabelled
from simulate.maps.noise import stream_key
from theory.arguments import FloatArray, check_choice, check_integer, check_number, check_real, quote, to_float

_LOSSES = {"squared": _kernels.SQUARED, "logistic": _kernels.LOGISTIC}


class ScaleInvariantLoss(Protocol):
    """Interface of the losses for `descend`. A new one is a frozen dataclass and a branch in the kernel."""

    @property
    def dim(self) -> int:
        """Number of weights."""

    def value(self, weights: npt.ArrayLike) -> Any:
        """Return the loss of weights (..., dim)."""

    def gradient(self, weights: npt.ArrayLike) -> FloatArray:
        """Return the gradient at weights (..., dim)."""

    def parts(self) -> Parts:
        """Return the form of the compiled loop."""


@dataclass(frozen=True)
class Ratio2D:
    """Ratio of two quadratic forms in the plane, f(x, y) = h m y² / (2m x² + h y²), a function of direction only.

    The minimum 0 is the x axis, with the curvature h on the unit circle. The maximum m is the y axis. In the angle φ
    from the x axis, f = (h/2) sin²φ / (cos²φ + q sin²φ) with q = h/2m. For q = 1 this is half of h sin²φ, for large q
    a narrow valley in a plateau. As q goes to 0, f goes to (h/2) tan²φ.

    With weight decay, full-batch descent has a cycle of period 2 across the valley, near the edge of stability. Let
    s = 1-ηλ and c = 1+(q-1)ηλ/2. In the cycle φ changes its sign at sin²φ = ηλ/2, and η̃h = 2c². The Jacobian of a step
    in (ln ρ, φ) has the determinant -1+2s(q-1)(1-s²)/c there. For q > 1 (m < h/2) the cycle attracts. For q = 1, the
    Rayleigh quotient, oscillations around it are undamped. For q < 1 they grow into periods, which are larger for
    smaller q.

    Parameters
    ----------
    sharpness : h > 0, curvature at the minimum on the unit circle (units of the loss).
    highest : m > 0, largest value of the loss.

    Raises
    ------
    TypeError, ValueError : a parameter is not a number or out of range.

    Source: docs/mathematics.md §1, §4.

    Examples
    --------
    >>> valley = Ratio2D(sharpness=4.0, highest=2.0)
    >>> valley.value([1.0, 0.0]), valley.value([0.0, 3.0]), valley.value([[1.0, 1.0], [2.0, 2.0]]).tolist()
    (0.0, 2.0, [1.0, 1.0])
    """

    sharpness: float = 1.0
    highest: float = 0.5

    def __post_init__(self) -> None:
        for name in ("sharpness", "highest"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), above=0))

    @property
    def dim(self) -> int:
        """Two weights."""
        return 2

    def value(self, weights: npt.ArrayLike) -> Any:
        """Return the loss of weights (..., 2)."""
        x, y = np.moveaxis(_unit(weights, 2)[0], -1, 0)
        return to_float(self.sharpness * self.highest * y**2 / (2 * self.highest * x**2 + self.sharpness * y**2))

    def gradient(self, weights: npt.ArrayLike) -> FloatArray:
        """Return the gradient at weights (..., 2)."""
        unit, norm = _unit(weights, 2)
        x, y = np.moveaxis(unit, -1, 0)
        below = 2 * self.highest * x**2 + self.sharpness * y**2
        slope = 4 * self.sharpness * self.highest**2 * x * y / below**2
        return np.asarray(np.stack([-slope * y, slope * x], axis=-1) / norm)

    def parts(self) -> Parts:
        """Return the form of the compiled loop."""
        return Parts(_kernels.RATIO, _frozen([[]]), _frozen([]), _frozen([self.sharpness, self.highest]), 0)


@dataclass(frozen=True, eq=False, repr=False)
class RayleighQuotient:
    """Rayleigh quotient f(x) = x'Ax / (2 x'x) of a diagonal matrix A.

    Parameters
    ----------
    spectrum : d >= 2 real numbers, the diagonal of A (units of the loss).

    Raises
    ------
    TypeError, ValueError : the spectrum has fewer than two numbers, or one that is not finite.

    Source: docs/mathematics.md §1, §4.

    Examples
    --------
    >>> quotient = RayleighQuotient([1.0, 2.0, 5.0])
    >>> quotient.sharpness, quotient.lowest, quotient.value([0.0, 3.0, 0.0])
    (4.0, 0.5, 1.0)
    """

    spectrum: npt.ArrayLike

    def __post_init__(self) -> None:
        spectrum = _frozen(check_real("spectrum", self.spectrum))
        if spectrum.ndim != 1 or spectrum.size < 2:
            raise ValueError(f"spectrum must be a list of at least 2 numbers, got shape {spectrum.shape}")
        object.__setattr__(self, "spectrum", spectrum)

    def __repr__(self) -> str:
        return f"RayleighQuotient(dim={self.dim}, sha={_digest(self.spectrum)})"

    @property
    def dim(self) -> int:
        """Number of weights."""
        return int(np.size(self.spectrum))

    @property
    def lowest(self) -> float:
        """Smallest value of the loss, half the smallest eigenvalue."""
        return float(np.asarray(self.spectrum).min()) / 2

    @property
    def sharpness(self) -> float:
        """Largest curvature at the minimum on the unit sphere: largest minus smallest eigenvalue."""
        return float(np.ptp(np.asarray(self.spectrum)))

    def value(self, weights: npt.ArrayLike) -> Any:
        """Return the loss of weights (..., dim)."""
        unit, _ = _unit(weights, self.dim)
        return to_float((np.asarray(self.spectrum) * unit**2).sum(axis=-1) / 2)

    def gradient(self, weights: npt.ArrayLike) -> FloatArray:
        """Return the gradient at weights (..., dim)."""
        unit, norm = _unit(weights, self.dim)
        spectrum = np.asarray(self.spectrum)
        quotient = (spectrum * unit**2).sum(axis=-1, keepdims=True)
        return np.asarray((spectrum - quotient) * unit / norm)

    def parts(self) -> Parts:
        """Return the form of the compiled loop."""
        return Parts(_kernels.RAYLEIGH, _frozen([[]]), np.asarray(self.spectrum), _frozen([]), 0)


@dataclass(frozen=True, eq=False, repr=False)
class NormalizedRegression:
    """Regression with predictions zᵢ = s⟨x, aᵢ⟩/‖x‖ that do not depend on the norm of the weights x.

    The loss is the mean over the examples of ½(zᵢ-yᵢ)² ("squared") or of ln(1+exp(-yᵢzᵢ)) ("logistic").

    Parameters
    ----------
    inputs : aᵢ, shape (examples, d), d >= 2.
    targets : yᵢ, shape (examples,); -1 or +1 for the logistic loss.
    batch_size : number of examples of each mini-batch, drawn with replacement; None is the full batch.
    loss : "squared" or "logistic".
    output_norm : s > 0.

    Raises
    ------
    TypeError, ValueError : a parameter is not a number, out of range, or of the wrong shape.

    Source: docs/mathematics.md §1, §2.

    Examples
    --------
    >>> regression = NormalizedRegression([[1.0, 0.0], [0.0, 2.0]], [1.0, 0.0])
    >>> regression.value([3.0, 0.0]), regression.value([0.0, 1.0])
    (0.0, 1.25)
    """

    inputs: npt.ArrayLike
    targets: npt.ArrayLike
    batch_size: int | None = None
    loss: str = "squared"
    output_norm: float = 1.0

    def __post_init__(self) -> None:
        inputs, targets = _frozen(check_real("inputs", self.inputs)), _frozen(check_real("targets", self.targets))
        if inputs.ndim != 2 or inputs.shape[0] < 1 or inputs.shape[1] < 2:
            raise ValueError(f"inputs must have the shape (examples >= 1, weights >= 2), got {inputs.shape}")
        if targets.shape != inputs.shape[:1]:
            raise ValueError(f"targets must have the shape {inputs.shape[:1]} of the examples, got {targets.shape}")
        check_choice("loss", self.loss, _LOSSES)
        invalid = targets[np.abs(targets) != 1]
        if self.loss == "logistic" and invalid.size:
            raise ValueError(f"targets must be -1 or +1 for the logistic loss, got {quote(float(invalid[0]))}")
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", check_integer("batch_size", self.batch_size, at_least=1))
        object.__setattr__(self, "output_norm", check_number("output_norm", self.output_norm, above=0))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)

    def __repr__(self) -> str:
        examples = f"examples={np.size(self.targets)}, dim={self.dim}, batch_size={self.batch_size}"
        digest = _digest(self.inputs, self.targets)
        return f"NormalizedRegression({examples}, loss={self.loss!r}, output_norm={self.output_norm}, sha={digest})"

    @property
    def dim(self) -> int:
        """Number of weights."""
        return int(np.shape(self.inputs)[1])

    def batch(self, seed: int, walker: int, step: int) -> npt.NDArray[np.int64]:
        """Return the examples in the mini-batch of a walker of `descend` at a step; all for the full batch.

        Examples
        --------
        >>> NormalizedRegression(np.eye(3), [1.0, 0.0, 0.0]).batch(seed=0, walker=0, step=5).tolist()
        [0, 1, 2]
        """
        examples = np.size(self.targets)
        if self.batch_size is None:
            return np.arange(examples)
        key = np.uint64(stream_key(seed, walker))
        draws = step * self.batch_size + np.arange(self.batch_size)
        return np.array([_kernels.example_index(key, draw, examples) for draw in draws])

    def value(self, weights: npt.ArrayLike, batch: npt.NDArray[np.int64] | None = None) -> Any:
        """Return the loss of weights (..., dim) on a mini-batch; default all examples."""
        predictions, targets, _, _, _ = self._predictions(weights, batch)
        if self.loss == "squared":
            return to_float(((predictions - targets) ** 2).mean(axis=-1) / 2)
        return to_float(np.logaddexp(0, -targets * predictions).mean(axis=-1))

    def gradient(self, weights: npt.ArrayLike, batch: npt.NDArray[np.int64] | None = None) -> FloatArray:
        """Return the gradient at weights (..., dim) on a mini-batch; default all examples."""
        predictions, targets, inputs, unit, norm = self._predictions(weights, batch)
        slopes = self._slopes(predictions, targets)
        euclidean = self.output_norm * slopes @ inputs / targets.size
        return np.asarray((euclidean - (euclidean * unit).sum(axis=-1, keepdims=True) * unit) / norm)

    def sharpness_at(self, weights: npt.ArrayLike) -> float:
        """Return the largest curvature of the full-batch loss on the unit sphere, at the direction of `weights`.

        Source: arXiv 2209.03695.

        Examples
        --------
        >>> NormalizedRegression([[1.0, 0.0], [0.0, 2.0]], [1.0, 0.0]).sharpness_at([5.0, 0.0])
        2.0
        """
        predictions, targets, inputs, unit, _ = self._predictions(weights, None)
        if unit.ndim != 1:
            raise ValueError(f"weights must have the shape ({self.dim},), got {unit.shape}")
        slopes = self._slopes(predictions, targets)
        curvatures = np.ones_like(slopes) if self.loss == "squared" else np.abs(slopes) * (1 - np.abs(slopes))
        flat = self.output_norm**2 * (inputs.T * curvatures) @ inputs / targets.size
        # on the sphere, a slope along the weights adds curvature in every orthogonal direction
        across = np.linalg.svd(unit[np.newaxis])[2][1:]
        radial_slope = float((slopes * predictions).mean())
        return float(np.linalg.eigvalsh(across @ flat @ across.T)[-1]) - radial_slope

    def parts(self) -> Parts:
        """Return the form of the compiled loop."""
        inputs, targets = np.asarray(self.inputs), np.asarray(self.targets)
        return Parts(_LOSSES[self.loss], inputs, targets, _frozen([self.output_norm]), self.batch_size or 0)

    def _slopes(self, predictions: FloatArray, targets: FloatArray) -> FloatArray:
        """Return the derivative of the loss of each example with respect to its prediction."""
        if self.loss == "squared":
            return np.asarray(predictions - targets)
        return np.asarray(-targets * np.exp(-np.logaddexp(0, targets * predictions)))

    def _predictions(self, weights: npt.ArrayLike, batch: npt.NDArray[np.int64] | None) -> tuple[FloatArray, ...]:
        unit, norm = _unit(weights, self.dim)
        inputs, targets = np.asarray(self.inputs), np.asarray(self.targets)
        if batch is not None:
            inputs, targets = inputs[batch], targets[batch]
        return self.output_norm * unit @ inputs.T, targets, inputs, unit, norm


def _unit(weights: npt.ArrayLike, dim: int) -> tuple[FloatArray, FloatArray]:
    """Check weights (..., dim); return their directions and norms."""
    checked = check_real("weights", unlabelled(weights))
    if checked.shape[-1:] != (dim,):
        raise ValueError(f"weights must have {dim} numbers along the last axis, got shape {checked.shape}")
    norm = np.sqrt((checked * checked).sum(axis=-1, keepdims=True))
    if (norm == 0).any():
        raise ValueError("weights must not be zero: a scale-invariant loss has no value there")
    return np.asarray(checked / norm), norm


def _frozen(values: npt.ArrayLike) -> FloatArray:
    """Contiguous read-only copy: a single memory layout, so the loop is compiled once."""
    array = np.array(values, dtype=np.float64, order="C")
    array.flags.writeable = False
    return array


def _digest(*arrays: npt.ArrayLike) -> str:
    """Short hash of data, which identifies the landscape of a continued run."""
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()[:12]
