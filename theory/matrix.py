"""Muon, which orthogonalizes the momentum of a matrix.

The closed forms hold for gradients with independent Gaussian entries that are independent in time, and for many rows
and columns (docs/mathematics.md §7).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.adaptive import Blend, OddDirection
from theory.arguments import FloatArray, check_choice, check_flag, check_integer, check_number
from theory.rules import ShortRepr

QUINTIC = (3.4445, -4.775, 2.0315)  # coefficients of Newton-Schulz iterations in torch.optim.Muon
_EPS = 1e-7  # least Frobenius norm in these iterations, as there
_POLAR_STEPS = 12  # further cubic iterations, after which the polar factor is exact up to rounding
_NODES, _TERMS = 4096, 400  # of the quadrature, and of the series over odd powers of a correlation
_SCALES = ("original", "match_rms_adamw", "none")


@dataclass(frozen=True, repr=False)
class Muon(ShortRepr, OddDirection):
    """Muon as in `torch.optim.Muon`: steps along the orthogonalized momentum of a matrix, with decoupled decay.

    Successive steps are less correlated than the momentum. For Gaussian matrices whose entries have the correlation c,
    the polar factors of square matrices have the correlation (4/π²)[(1+c⁻²) χ₂(c) + (1-c⁻²) artanh c], with Legendre's
    function χ₂. It takes the place of the arcsine law of `Lion`, and the series for other shapes and for Newton-Schulz
    iterations is computed by quadrature. Random walks of 64×64 and 32×128 weights agree within 0.8 % in ρ²
    and in 1 - cos θ, those of 16×16 weights within 3 %.

    Parameters
    ----------
    rows, columns : shape of the matrix, which the norm at equilibrium needs.
    momentum : β in [0, 1).
    nesterov : whether the step blends the momentum with the gradient.
    scale : factor of the step. "original": √max(1, rows/columns); "match_rms_adamw": 0.2 √max(rows, columns), for steps
        about as long as those of AdamW; "none": 1.
    iterations : number of Newton-Schulz iterations; 0 for the exact polar factor.

    Source: docs/mathematics.md §7; Keller Jordan, kellerjordan.github.io/posts/muon; arXiv 2502.16982, for the scale.

    Examples
    --------
    >>> Muon(rows=64, columns=128)
    Muon(rows=64, columns=128)
    """

    rows: int | None = None
    columns: int | None = None
    momentum: float = 0.95
    nesterov: bool = True
    scale: str = "original"
    iterations: int = 5

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)
        check_number("momentum", self.momentum, at_least=0, below=1)
        object.__setattr__(self, "nesterov", check_flag("nesterov", self.nesterov))
        check_choice("scale", self.scale, _SCALES)
        check_integer("iterations", self.iterations, at_least=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns. Raise ValueError if they were not given."""
        if self.rows is None or self.columns is None:
            raise ValueError(
                "optimizer needs rows and columns, the shape of the matrix, as in Muon(rows=64, columns=128)"
            )
        return self.rows, self.columns

    @property
    def factor(self) -> float:
        """Factor of the step that `scale` names.

        Examples
        --------
        >>> Muon(rows=64, columns=16).factor, Muon(rows=64, columns=16, scale="match_rms_adamw").factor
        (2.0, 1.6)
        """
        rows, columns = self.shape
        if self.scale == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns)) if self.scale == "match_rms_adamw" else 1.0

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: no momentum."""
        return (weights * 0,)

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step; the last axis holds the rows one after another."""
        rows, columns = self.shape
        if weights.shape[-1] != rows * columns:
            raise ValueError(f"weights must have rows * columns = {rows * columns} entries, got {weights.shape[-1]}")
        beta = self.momentum
        momentum = beta * state[0] + (1 - beta) * gradient
        blend = beta * momentum + (1 - beta) * gradient if self.nesterov else momentum
        matrix = blend.reshape((*blend.shape[:-1], rows, columns))
        direction = self.factor * _orthogonalize(matrix, self.iterations).reshape(weights.shape)
        return weights - lr * (direction + wd * weights), (momentum,)

    @property
    def blend(self) -> Blend:
        """Blend of momentum and gradient."""
        return Blend.of_momentum(self.momentum, self.nesterov)

    def odd_function(self) -> tuple[float, Iterable[float]]:
        """Return the coefficients of the matrix arcsine law."""
        return orthogonal_coefficients(*sorted(self.shape), self.iterations)

    @property
    def _square_step(self) -> float:
        """Squared Frobenius norm of a step along an exact polar factor, over η²."""
        return self.factor**2 * min(self.shape)


@functools.lru_cache(maxsize=64)
def orthogonal_coefficients(fewer: int, more: int, iterations: int) -> tuple[float, tuple[float, ...]]:
    """Correlation Σ_k a_k c^(2k+1) of orthogonalized Gaussian matrices, for many rows: sum of all a_k, and the a_k.

    The entries of two `fewer`×`more` matrices have the correlation c. The sum is the mean square of the singular
    values, which is 1 for `iterations` = 0.

    Source: docs/mathematics.md §7.

    Examples
    --------
    Square matrices have a_k = (4/π²)(1/(2k+1) + 1/(2k+3))²:

    >>> total, (first, second, *_) = orthogonal_coefficients(100, 100, 0)
    >>> round(total, 6), round(first * np.pi**2 / 4, 6), round(second * np.pi**2 / 4, 6)
    (1.0, 1.777778, 0.284444)
    """
    root = math.sqrt(fewer / more)
    angles = (np.arange(_NODES) + 0.5) * np.pi / _NODES
    # squared singular values x over the larger number, weighted by x times their density: a semicircle
    squares = 1 + root * root + 2 * root * np.cos(angles)
    values = np.ones_like(squares)
    if iterations:
        values = _iterate(np.sqrt(squares / fewer), iterations)
    ratios = values / np.sqrt(squares)
    total = 2 / _NODES * np.sum((ratios * np.sin(angles)) ** 2)
    # the polynomials orthogonal in this weight are those of Chebyshev, sin((k+1)θ)/sin θ
    sines = np.sin(np.outer(np.arange(1, _TERMS + 1), angles))
    moments = 2 / _NODES * (sines @ (ratios * np.sin(angles)))
    return float(total), tuple((moments**2).tolist())


def _iterate(values: FloatArray, iterations: int) -> FloatArray:
    """Singular values after Newton-Schulz iterations."""
    a, b, c = QUINTIC
    for _ in range(iterations):
        squares = values * values
        values = values * (a + b * squares + c * squares * squares)
    return values


def _orthogonalize(matrix: Any, iterations: int) -> Any:
    """Newton-Schulz iterations as in `torch.optim.Muon`, in the precision of the matrix; 0 for the polar factor."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    matrix = matrix.swapaxes(-1, -2) if is_tall else matrix
    norm = (matrix * matrix).sum((-1, -2))[..., None, None] ** 0.5
    matrix = matrix / (norm + (norm < _EPS) * _EPS)
    a, b, c = QUINTIC
    for _ in range(iterations or _POLAR_STEPS):
        square = matrix @ matrix.swapaxes(-1, -2)
        matrix = a * matrix + (b * square + c * (square @ square)) @ matrix
    for _ in range(0 if iterations else _POLAR_STEPS):
        # cubic iterations converge to the polar factor from singular values below √3
        matrix = 1.5 * matrix - 0.5 * (matrix @ matrix.swapaxes(-1, -2)) @ matrix
    return matrix.swapaxes(-1, -2) if is_tall else matrix
