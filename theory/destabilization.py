"""When a single step turns the weights by much: rotation of a step and δ-jumps (docs/mathematics.md §1, §4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import broadcast, intrinsic_lr, learning_rate, plain, real, weight_decay


def kappa(delta: Any) -> Any:
    """κ(δ) = √((1-δ)⁻²-1): tangent of the angle whose cosine is 1-δ, without cancellation.

    Parameters
    ----------
    delta : 0 <= δ < 1, number or array.

    Returns
    -------
    κ(δ), without units.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(float(kappa(0.5)), 6)
    1.732051
    """
    return np.sqrt(delta * (2 - delta)) / (1 - delta)


def step_angle(turn: Any, intrinsic_lr: Any) -> Any:
    """Angle of one SGD step with η̃g̃ = `turn`, in radians; above ηλ = 1 the direction flips and it exceeds π/2.

    Examples
    --------
    >>> round(float(step_angle(1.0, 0.0)), 6)  # π/4
    0.785398
    """
    return np.arctan2(turn, 1 - intrinsic_lr)


def rotation(norm: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike) -> Any:
    """Angle θ between the weights before and after one SGD step: tan θ = η̃g̃/(1-ηλ), η̃ = η/ρ².

    Parameters
    ----------
    norm : ρ > 0 before the step.
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm : g̃ >= 0 of the step (units of the loss). All are numbers or arrays that broadcast.

    Returns
    -------
    θ in radians: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §1.

    Examples
    --------
    >>> round(rotation(1.0, lr=0.1, wd=0.01, grad_norm=2.0), 5)
    0.19759
    """
    norm, lr, wd = real("norm", norm, above=0), learning_rate(lr), weight_decay(wd)
    grad_norm = real("grad_norm", grad_norm, at_least=0)
    k = intrinsic_lr(lr, wd, below=1.0)
    norm, lr, grad_norm, k = broadcast(norm=norm, lr=lr, grad_norm=grad_norm, wd=k)
    return plain(step_angle(lr / norm * (grad_norm / norm), k))


def jump_norm(lr: npt.ArrayLike, wd: npt.ArrayLike, grad_norm: npt.ArrayLike, delta: npt.ArrayLike) -> Any:
    """Norm below which, and only below which, a step with this g̃ is a δ-jump: 1 - cos θ > δ.

    ρ² = ηg̃/((1-ηλ)κ(δ)): the inverse of `rotation` at cos θ = 1-δ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    grad_norm : g̃ > 0 of the step (units of the loss).
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    ρ in units of the weights: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: arXiv 2106.15739 §3 (δ-jumps); docs/mathematics.md §4.

    Examples
    --------
    >>> round(jump_norm(0.1, 0.01, grad_norm=2.0, delta=0.1), 5)
    0.64293
    """
    lr, wd = learning_rate(lr), weight_decay(wd)
    grad_norm, delta = real("grad_norm", grad_norm, above=0), real("delta", delta, above=0, below=1)
    k = intrinsic_lr(lr, wd, below=1.0)
    lr, grad_norm, delta, k = broadcast(lr=lr, grad_norm=grad_norm, delta=delta, wd=k)
    return plain(np.sqrt(lr) * np.sqrt(grad_norm / ((1 - k) * kappa(delta))))
