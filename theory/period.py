"""Periods of training: balance of growth and decay, law of the period, decay phases (docs/mathematics.md §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from theory.arguments import (
    FloatArray,
    Number,
    Value,
    broadcast,
    check_choice,
    check_intrinsic_lr,
    check_lr,
    check_number,
    check_real,
    check_wd,
    to_float,
)
from theory.optimizers import SGD, Adam, AdamW, OptimizerLike, check_optimizer


class Balance(NamedTuple, Generic[Value]):
    """Decay, growth and change of ln ρ over a run, floats or arrays of one shape: change = growth - decay."""

    decay: Value
    """Decrease of ln ρ by weight decay, -Σ ln(1-ηλ)."""
    growth: Value
    """Increase of ln ρ by gradients, Σ(-ln cos θ)."""
    change: Value
    """Change of ln ρ over the run, ln(ρ_N/ρ₀)."""


def balance(norm: ArrayLike, final_norm: ArrayLike, rotation: ArrayLike, lr: ArrayLike, wd: ArrayLike) -> Balance:
    """Split the change of ln ρ over a run into decay and growth, exactly: change = growth - decay.

    In a stationary run the mean change per step is 0, so the geometric mean of cos θ is 1-ηλ, at equilibrium or not.
    Rounding of an angle changes its growth by up to 1e-16 tan θ, which matters for angles very close to π/2.

    Parameters
    ----------
    norm, final_norm : ρ > 0 before the first and after the last step.
    rotation : θ of each step, 0 <= θ < π/2 radians, with the steps as last axis.
    lr, wd : η > 0, λ >= 0, ηλ < 1; numbers, or arrays that broadcast with `rotation`, for example one η per step.

    Returns
    -------
    Balance(decay, growth, change), without units. The balance is exact for plain SGD on scale-invariant weights.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from theory import rotation
    >>> angle = rotation(1.0, 0.1, 0.01, 2.0)
    >>> final = 0.999 / np.cos(angle)  # ρ⁺ = (1-ηλ)ρ/cos θ
    >>> parts = balance(1.0, final, [angle], 0.1, 0.01)
    >>> round(parts.growth - parts.decay - parts.change, 12)
    0.0
    """
    angle = check_real("rotation", rotation, at_least=0, below=np.pi / 2)
    if angle.ndim == 0:
        raise ValueError("rotation must have the steps as last axis, got one number")
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    angle, intrinsic_lr = broadcast(rotation=angle, wd=intrinsic_lr)
    # -ln cos θ = ½ ln(1 + tan² θ) is accurate at all angles
    growth = np.log1p(np.tan(angle) ** 2).sum(axis=-1) / 2
    first, last, growth, decay = broadcast(
        norm=check_real("norm", norm, above=0),
        final_norm=check_real("final_norm", final_norm, above=0),
        rotation=np.asarray(growth),
        lr=np.asarray(0 - np.log1p(-intrinsic_lr).sum(axis=-1)),
    )
    return Balance(to_float(decay), to_float(growth), to_float(np.log(last / first)))


@dataclass(frozen=True)
class BalanceLaw:
    """Period of a network as a function of ηλ: T·(-ln(1-ηλ)) = J/(1-φ), with J and φ measured on that network.

    The identity is exact. That J is linear in ln ηλ, and φ or its odds a power of ηλ, is an approximation. Fitted at
    two values of ηλ and used at no larger ηλ, it has an error of about 5 % with the odds and 10 % with the share
    (docs/validation.md).

    Parameters
    ----------
    norm_rise : J > 0 at the reference, the mean rise of ln ρ in a destabilization.
    norm_rise_slope : increase of J per unit of ln(reference/ηλ).
    outside_growth : φ < 1 at the reference, the share of growth outside the detected destabilizations.
    outside_growth_power : exponent of ηλ in φ, or in its odds.
    reference : ηλ to which `norm_rise` and `outside_growth` refer, 0 < reference < 1.
    power_of : "share": φ ∝ (ηλ)^outside_growth_power. "odds": φ/(1-φ) ∝ (ηλ)^outside_growth_power, which keeps φ
        below 1: T·(-ln(1-ηλ)) = J·(1 + odds).

    Raises
    ------
    TypeError, ValueError : a parameter is not a number or is out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> law = BalanceLaw(0.52, norm_rise_slope=0.2, outside_growth=0.27, outside_growth_power=0.6, reference=0.01)
    >>> round(law.period(0.5, 0.02), 1)
    70.9
    """

    norm_rise: float
    norm_rise_slope: float
    outside_growth: float
    outside_growth_power: float
    reference: float
    power_of: str = "share"

    def __post_init__(self) -> None:
        check_number("norm_rise", self.norm_rise, above=0)
        check_number("norm_rise_slope", self.norm_rise_slope)
        check_number("outside_growth", self.outside_growth, below=1)
        check_number("outside_growth_power", self.outside_growth_power)
        check_number("reference", self.reference, above=0, below=1)
        check_choice("power_of", self.power_of, ("share", "odds"))

    def norm_rise_at(self, intrinsic: FloatArray) -> FloatArray:
        """Norm rise J at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).norm_rise_at(np.array(0.01)))
        0.5
        """
        return np.asarray(self.norm_rise + self.norm_rise_slope * np.log(self.reference / intrinsic))

    def outside_growth_at(self, intrinsic: FloatArray) -> FloatArray:
        """Share φ of growth outside destabilizations at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).outside_growth_at(np.array(0.01)))
        0.3
        >>> float(BalanceLaw(0.5, 0.2, 0.5, 1.0, 0.01, "odds").outside_growth_at(np.array(0.04)))
        0.8
        """
        outside, inside = self._growth(intrinsic)
        return np.asarray(outside / (outside + inside))

    def _growth(self, intrinsic: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Growth outside and inside destabilizations at ηλ, up to a common factor; digits of both are kept."""
        with np.errstate(over="ignore"):
            outside = self.outside_growth * (intrinsic / self.reference) ** self.outside_growth_power
        return outside, 1 - outside if self.power_of == "share" else np.full_like(outside, 1 - self.outside_growth)

    @overload
    def period(self, lr: Number, wd: Number) -> float: ...
    @overload
    def period(self, lr: ArrayLike, wd: ArrayLike) -> FloatArray: ...
    def period(self, lr: ArrayLike, wd: ArrayLike) -> Any:
        """Mean period T in steps.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1; numbers or arrays that broadcast.

        Returns
        -------
        T: float or array; NaN where the law gives no period (J <= 0 or φ >= 1), far from the reference.

        Raises
        ------
        TypeError, ValueError : an argument is not a number or is out of range.

        Examples
        --------
        >>> law = BalanceLaw(0.5, norm_rise_slope=0.0, outside_growth=0.0, outside_growth_power=1.0, reference=0.01)
        >>> round(law.period(1.0, 0.01), 3)  # 0.5/-ln(0.99)
        49.75
        """
        lr, wd = check_lr(lr), check_real("wd", wd, above=0)
        intrinsic_lr = check_intrinsic_lr(lr, check_wd(wd), below=1.0)
        norm_rise = self.norm_rise_at(intrinsic_lr)
        outside, inside = self._growth(intrinsic_lr)
        total = outside + inside
        has_period = (norm_rise > 0) & (inside > 0) & (total > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return to_float(np.where(has_period, norm_rise * total / inside / -np.log1p(-intrinsic_lr), np.nan))


@overload
def least_decay_steps(lr: Number, wd: Number, ratio: Number) -> float: ...
@overload
def least_decay_steps(lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike) -> FloatArray: ...
def least_decay_steps(lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike) -> Any:
    """Least number of steps in which the norm can decrease by a factor, for any gradients: ln(ratio)/(-ln(1-ηλ)).

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    ratio : norm at the peak over norm at the trough, >= 1. All are numbers or arrays that broadcast.

    Returns
    -------
    whole number of steps, as float or array; `inf` without decay for a ratio above 1.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> least_decay_steps(0.5, 0.01, ratio=2.0)
    139.0
    """
    log_ratio = np.log(check_real("ratio", ratio, at_least=1))
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    log_ratio, intrinsic_lr = broadcast(ratio=log_ratio, wd=intrinsic_lr)
    return to_float(whole_steps(log_ratio, 0 - np.log1p(-intrinsic_lr)))


def whole_steps(log_ratio: FloatArray, decay: FloatArray) -> FloatArray:
    """Least whole number of steps that decay by `log_ratio`; a quotient within 1e-12 of a whole number is that."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(log_ratio == 0, 0.0, log_ratio / decay)
        near = np.round(steps)
        return np.where(np.abs(steps - near) <= 1e-12 * steps, near, np.ceil(steps))


@overload
def free_decay(lr: Number, wd: Number, *, optimizer: OptimizerLike = None) -> float: ...
@overload
def free_decay(lr: ArrayLike, wd: ArrayLike, *, optimizer: OptimizerLike = None) -> FloatArray: ...
def free_decay(lr: ArrayLike, wd: ArrayLike, *, optimizer: OptimizerLike = None) -> Any:
    """Decrease of ln ρ per step without gradients, once the momentum buffer has adapted: -ln(1-ηλ), about ηλ.

    With coupled decay and momentum the weights follow a linear recursion. Its roots z solve z² - Tz + D = 0, with
    T = 1+μ-ηλ and D = μ for heavy ball, or T = (1+μ)(1-ηλ) and D = μ(1-ηλ) for Nesterov. The decrease is -ln of the
    larger root, about ηλ/(1-μ). For large ηλ the roots are complex, and it is -ln of their modulus. With decoupled
    decay the roots are 1-ηλ and μ: the buffer moves the weights longer than they decay if μ > 1-ηλ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1; numbers or arrays that broadcast.
    optimizer : default `theory.SGD()`. For `AdamW`, `Lion` and user-defined optimizers it is the decay of the weights
        alone, by 1-ηλ per step, without steps that their moments still cause.

    Returns
    -------
    float or array; NaN for `Adam`, whose decay acts through the normalized gradient.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from theory.optimizers import SGD, AdamW
    >>> round(free_decay(0.1, 0.01), 7), round(free_decay(0.1, 0.01, optimizer=SGD(momentum=0.9)), 7)
    (0.0010005, 0.0111892)
    >>> free_decay(0.1, 0.01, optimizer=AdamW(dim=10)) == free_decay(0.1, 0.01)
    True
    """
    rule = check_optimizer(optimizer)
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    if isinstance(rule, Adam) and not isinstance(rule, AdamW):
        return to_float(np.full(intrinsic_lr.shape, np.nan))
    if not (isinstance(rule, SGD) and rule.momentum):
        return to_float(0 - np.log1p(-intrinsic_lr))
    if rule.decoupled:
        return to_float(np.minimum(0 - np.log1p(-intrinsic_lr), -np.log(rule.momentum)))
    trace, one_minus_product, discriminant = rule.free_recursion(intrinsic_lr)
    real = log_root(intrinsic_lr, trace, one_minus_product, np.maximum(discriminant, 0))
    log_product = np.log(rule.momentum) + (np.log1p(-intrinsic_lr) if rule.nesterov else 0)
    return to_float(0 - np.where(discriminant >= 0, real, log_product / 2))


def log_root(
    change: FloatArray, trace: FloatArray, one_minus_product: FloatArray, discriminant: FloatArray
) -> FloatArray:
    """Return the logarithm of the larger root p of z² - trace·z + π, where trace = 1 + π - change.

    1-p is the smaller root of u² - (1-π+change)u + change, which is accurate for p close to 1.
    """
    root = np.sqrt(discriminant)
    larger = (trace + root) / 2
    distance = 2 * change / (one_minus_product + change + root)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(larger < 0.5, np.log(larger), np.log1p(-distance))


@overload
def least_time_between_angular_jumps(lr: Number, wd: Number, delta: Number) -> float: ...
@overload
def least_time_between_angular_jumps(lr: ArrayLike, wd: ArrayLike, delta: ArrayLike) -> FloatArray: ...
def least_time_between_angular_jumps(lr: ArrayLike, wd: ArrayLike, delta: ArrayLike) -> Any:
    """Least mean number of steps between angular jumps in a long run of bounded norm, for any gradients.

    It is ln(1-δ)/ln(1-ηλ), and 1 for δ < ηλ, because a step is one angular jump at most. The norm is bounded if g̃ is
    bounded and ηλ > 0. While the norm grows, every step may be an angular jump.

    N steps contain at most (-N ln(1-ηλ) + ln(ρ_N/ρ₀))/(-ln(1-δ)) angular jumps, because each adds more than -ln(1-δ) to
    ln ρ and only decay reduces ln ρ.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    steps >= 1: float or array; inf without decay, where each angular jump raises the norm permanently.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(least_time_between_angular_jumps(0.5, 0.01, delta=0.1), 2)
    21.02
    """
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    intrinsic_lr, delta = broadcast(wd=intrinsic_lr, delta=check_real("delta", delta, above=0, below=1))
    with np.errstate(divide="ignore"):
        return to_float(np.maximum(np.log1p(-delta) / np.log1p(-intrinsic_lr), 1))


@overload
def largest_clipped_share(lr: Number, wd: Number, ratio: Number) -> float: ...
@overload
def largest_clipped_share(lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike) -> FloatArray: ...
def largest_clipped_share(lr: ArrayLike, wd: ArrayLike, ratio: ArrayLike) -> Any:
    """Largest share of steps of norm >= `ratio` times that of the weights, in a long run of bounded norm.

    Each such step adds at least ln(1 + (ratio/(1-ηλ))²)/2 to ln ρ, and only decay reduces ln ρ, by -ln(1-ηλ) per step.
    The quotient bounds their share, for any gradients under plain SGD. It also bounds how many steps can be clipped to
    this ratio. For a ratio of √C times that at equilibrium, √(2ηλ), it is about 1/C.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    ratio : η‖∇f‖/ρ > 0 from which steps count. All are numbers or arrays that broadcast.

    Returns
    -------
    share between 0 and 1: float or array; 0 without decay.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §4; arXiv 2202.00980 for relative clipping.

    Examples
    --------
    >>> round(largest_clipped_share(0.5, 0.004, ratio=2 * (2 * 0.002) ** 0.5), 3)
    0.251
    """
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    intrinsic_lr, least = broadcast(wd=intrinsic_lr, ratio=check_real("ratio", ratio, above=0))
    return to_float(np.minimum(-np.log1p(-intrinsic_lr) / (np.log1p((least / (1 - intrinsic_lr)) ** 2) / 2), 1))


@overload
def decay_phase_product(steps: Number, product: Number, lr: Number, wd: Number, tail: Number) -> float: ...
@overload
def decay_phase_product(
    steps: ArrayLike, product: ArrayLike, lr: ArrayLike, wd: ArrayLike, tail: ArrayLike
) -> FloatArray: ...
def decay_phase_product(steps: ArrayLike, product: ArrayLike, lr: ArrayLike, wd: ArrayLike, tail: ArrayLike) -> Any:
    """Product of loss and effective learning rate in a decay phase, for a cross-entropy tail dL/dτ = -cL².

    While gradients are small, η̃ grows by 1/(1-ηλ)² per step, and the loss decreases in the time of the sphere,
    dτ = η̃dt. So 1/(Lη̃) relaxes to c/κ(ηλ)² by (1-ηλ)² per step, and Lη̃ follows a logistic curve to κ(ηλ)²/c ≈ 2ηλ/c.

    Parameters
    ----------
    steps : t >= 0 since the beginning of the decay phase.
    product : Lη̃ > 0 at the beginning (no units).
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    tail : c > 0, fitted per run, because it is not a constant of the network (no units). All broadcast.

    Returns
    -------
    Lη̃ after t steps: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is not a number or is out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> round(decay_phase_product(2000, 1e-4, 0.5, 0.01, tail=50.0), 6)  # near 2·0.005/50
    0.000202
    """
    elapsed, start = check_real("steps", steps, at_least=0), check_real("product", product, above=0)
    constant = check_real("tail", tail, above=0)
    intrinsic_lr = check_intrinsic_lr(check_lr(lr), check_wd(wd), below=1.0)
    elapsed, start, intrinsic_lr, constant = broadcast(steps=elapsed, product=start, wd=intrinsic_lr, tail=constant)
    with np.errstate(over="ignore"):
        # with y = 1/(Lη̃): y⁺ = a(y + c), a = (1-ηλ)²; the sum a + … + a^t is computed without cancellation
        log_a = 2 * np.log1p(-intrinsic_lr)
        sum_of_powers = np.where(
            intrinsic_lr > 0,
            (1 - intrinsic_lr) ** 2 * np.expm1(elapsed * log_a) / np.where(intrinsic_lr > 0, np.expm1(log_a), 1),
            elapsed,
        )
        return to_float(start / (np.exp(elapsed * log_a) + start * constant * sum_of_powers))
