"""Groups of scale-invariant weights, and norms below which ε breaks scale invariance (docs/mathematics.md §10)."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import FloatArray, Number, broadcast, check_real, to_float


def total_grad_norm(norm: ArrayLike, grad_norm: ArrayLike) -> Any:
    """Effective gradient norm of all groups together: g̃² = r Σ g̃ᵢ²/rᵢ with r = Σ rᵢ = Σ ρᵢ².

    It is at least Σ g̃ᵢ, with equality exactly if rᵢ ∝ g̃ᵢ, as when each group is at its own equilibrium.

    Parameters
    ----------
    norm : ρᵢ > 0 of each group, groups as last axis.
    grad_norm : g̃ᵢ = ρᵢ‖∇ᵢ‖ >= 0 of each group (units of the loss); broadcasts with `norm`.

    Returns
    -------
    g̃ of all weights together: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range, or there is no axis of groups.

    Source: docs/mathematics.md §10.

    Examples
    --------
    >>> round(total_grad_norm([1.0, 1.0], [3.0, 1.0]), 4), round(total_grad_norm([3**0.5, 1.0], [3.0, 1.0]), 4)
    (4.4721, 4.0)
    """
    norms, gradients = broadcast(
        norm=check_real("norm", norm, above=0), grad_norm=check_real("grad_norm", grad_norm, at_least=0)
    )
    if norms.ndim == 0 or norms.shape[-1] == 0:
        raise ValueError(f"norm and grad_norm must have the groups as last axis, got shape {norms.shape}")
    # relative to the largest norm and quotient, no square overflows
    relative = norms / norms.max(axis=-1, keepdims=True)
    quotients = gradients / relative
    largest = quotients.max(axis=-1, keepdims=True)
    shares = quotients / np.where(largest > 0, largest, 1)
    squares = (relative**2).sum(axis=-1) * (shares**2).sum(axis=-1)
    return to_float(np.sqrt(squares) * largest[..., 0])


@overload
def invariance_norm(eps: Number, variance: Number, tolerance: Number) -> float: ...
@overload
def invariance_norm(eps: ArrayLike, variance: ArrayLike, tolerance: ArrayLike) -> FloatArray: ...
def invariance_norm(eps: ArrayLike, variance: ArrayLike, tolerance: ArrayLike) -> Any:
    """Weight norm below which the ε of a normalization layer breaks scale invariance by more than a tolerance.

    The normalized output of a channel changes by a share c/(1+c) of the relative change of the weights' scale, with
    c = ε/(σ²ρ²). The share is 0 for an invariant channel and 1 without normalization. It equals `tolerance` at
    ρ² = ε(1/tolerance-1)/σ².

    Parameters
    ----------
    eps : ε >= 0 of the layer (squared units of its input).
    variance : σ² > 0 of the channel's input at weights of norm 1.
    tolerance : allowed share of the change of scale, 0 < tolerance < 1. All broadcast.

    Returns
    -------
    ρ of the channel's weights: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §10.

    Examples
    --------
    >>> round(invariance_norm(1e-5, variance=0.5, tolerance=0.01), 4)
    0.0445
    """
    share = check_real("tolerance", tolerance, above=0, below=1)
    variance, eps = check_real("variance", variance, above=0), check_real("eps", eps, at_least=0)
    eps, variance, share = broadcast(eps=eps, variance=variance, tolerance=share)
    return to_float(np.sqrt(eps / variance) * np.sqrt((1 - share) / share))


@overload
def decay_invariance_norm(
    eps: Number, variance: Number, wd: Number, output_slope: Number, tolerance: Number
) -> float: ...
@overload
def decay_invariance_norm(
    eps: ArrayLike, variance: ArrayLike, wd: ArrayLike, output_slope: ArrayLike, tolerance: ArrayLike
) -> FloatArray: ...
def decay_invariance_norm(
    eps: ArrayLike, variance: ArrayLike, wd: ArrayLike, output_slope: ArrayLike, tolerance: ArrayLike
) -> Any:
    """Weight norm below which the radial gradient caused by ε exceeds a share of the weight decay.

    The radial gradient is ⟨∇f,w⟩ = ⟨∂f/∂z,z⟩c/(1+c) with c = ε/(σ²ρ²); the weight decay is λρ². Because weight decay is
    a weak force, the law of the norm fails long before c ~ 1, below ρ⁴ ≈ ε|⟨∂f/∂z,z⟩|/(tolerance·λσ²).

    Parameters
    ----------
    eps, variance : as in `invariance_norm`.
    wd : λ > 0.
    output_slope : ⟨∂f/∂z,z⟩ of the channel's normalized output z, summed over batch and positions (units of the loss).
    tolerance : allowed share of the decay, > 0. All are numbers or arrays that broadcast.

    Returns
    -------
    ρ of the channel's weights: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §10.

    Examples
    --------
    >>> round(decay_invariance_norm(1e-5, 0.5, wd=1e-3, output_slope=0.01, tolerance=0.1), 4)
    0.2115
    """
    eps, variance = check_real("eps", eps, at_least=0), check_real("variance", variance, above=0)
    wd, slope = check_real("wd", wd, above=0), np.abs(check_real("output_slope", output_slope))
    share = check_real("tolerance", tolerance, above=0)
    eps, variance, wd, slope, share = broadcast(eps=eps, variance=variance, wd=wd, output_slope=slope, tolerance=share)
    # |slope|·ε = share·λ r (σ²r + ε) is quadratic in r = ρ²; it is solved in units of ε/σ² without cancellation
    unit = np.sqrt(eps / variance)
    force = np.where(eps > 0, 4 * (slope / share / wd) / np.where(eps > 0, eps / variance, 1), 0.0)
    return to_float(unit * np.sqrt(np.where(eps > 0, force / (2 * (1 + np.sqrt(1 + force))), 0.0)))
