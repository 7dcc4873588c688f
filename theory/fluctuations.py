"""Spread of the norm at equilibrium when the gradient norm fluctuates (docs/mathematics.md §2)."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, overload

from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    Value,
    broadcast,
    check_intrinsic_lr,
    check_lr,
    check_real,
    check_wd,
    to_float,
)
from theory.destabilization import kappa


class Spread(NamedTuple, Generic[Value]):
    """Statistics of the norm at equilibrium under independent g̃, floats or arrays of one shape."""

    mean_ratio: Value
    """E[ρ⁴] divided by its value for constant g̃ with the same mean square."""
    deviation: Value
    """Standard deviation of ln ρ."""
    correlation: Value
    """Correlation of ln ρ between consecutive steps; over n steps it is the n-th power."""


@overload
def equilibrium_spread(lr: Number, wd: Number, variation: Number) -> Spread[float]: ...
@overload
def equilibrium_spread(lr: ArrayLike, wd: ArrayLike, variation: ArrayLike) -> Spread[FloatArray]: ...
def equilibrium_spread(lr: ArrayLike, wd: ArrayLike, variation: ArrayLike) -> Any:
    """Spread of the norm at equilibrium when g̃ fluctuates independently from step to step.

    E[ρ⁴]/ρ*⁴ = 1+(1-a)V²/(2a), sd(ln ρ) = κ(ηλ)V/4, correlation 2a-1, with a = (1-ηλ)² and ρ*⁴ = ηE[g̃²]/(λ(2-ηλ)).
    This holds to first order in κ(ηλ)²V². If E[g̃⁴] is infinite, so are V and E[ρ⁴], and the formulas do not apply. A
    run with much more spread is not at equilibrium.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    variation : V >= 0, standard deviation of g̃² over its mean; E[g̃⁴] must be finite. All are numbers or arrays that
        broadcast.

    Returns
    -------
    Spread(mean_ratio, deviation, correlation), without units; (1, 0, 1) for wd = 0, where there is no equilibrium.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §2.

    Examples
    --------
    >>> spread = equilibrium_spread(0.1, 0.1, variation=0.5)
    >>> round(spread.mean_ratio, 5), round(spread.deviation, 4), round(spread.correlation, 4)
    (1.00254, 0.0178, 0.9602)
    """
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    intrinsic_lr, variation = broadcast(wd=intrinsic_lr, variation=check_real("variation", variation, at_least=0))
    # (1-a)/a = κ(ηλ)²
    width = kappa(intrinsic_lr) * variation
    return Spread(to_float(1 + width**2 / 2), to_float(width / 4), to_float(1 - 2 * intrinsic_lr * (2 - intrinsic_lr)))
