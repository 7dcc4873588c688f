"""How often training destabilizes: balance of growth and decay, law of the period, falls (docs/mathematics.md §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from theory.arguments import (
    FloatArray,
    broadcast,
    choice,
    intrinsic_lr,
    learning_rate,
    one_real,
    plain,
    real,
    weight_decay,
)
from theory.optimizers import SGD, Adam, AdamW, Optimizer, checked_optimizer


class Balance(NamedTuple):
    """Where the norm of a run came from: -N ln(1-ηλ) = Σ(-ln cos θ) - ln(ρ_N/ρ₀), floats or arrays of one shape."""

    decayed: Any
    """-Σ ln(1-ηλ): what decay took from ln ρ …"""
    grown: Any
    """… Σ(-ln cos θ): what the gradients added …"""
    change: Any
    """… and the rest, ln(ρ_N/ρ₀)."""


def balance(
    norm: npt.ArrayLike, final_norm: npt.ArrayLike, rotation: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike
) -> Balance:
    """Split the change of ln ρ over a run into decay and growth, exactly: change = grown - decayed.

    On stationary runs the change vanishes per step: there the geometric mean of cos θ is 1-ηλ, equilibrium or not.

    Parameters
    ----------
    norm, final_norm : ρ > 0 before the first and after the last step.
    rotation : θ of each step, 0 <= θ < π/2 radians, steps as last axis.
    lr, wd : η > 0, λ >= 0, ηλ < 1; numbers, or arrays that broadcast with `rotation`, such as a schedule's rates.

    Returns
    -------
    Balance(decayed, grown, change), without units. For plain SGD on scale-invariant weights they fit exactly.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from theory import rotation
    >>> angle = rotation(1.0, 0.1, 0.01, 2.0)
    >>> final = 0.999 / np.cos(angle)  # ρ⁺ = (1-ηλ)ρ/cos θ
    >>> parts = balance(1.0, final, [angle], 0.1, 0.01)
    >>> round(parts.grown - parts.decayed - parts.change, 12)
    0.0
    """
    angle = real("rotation", rotation, at_least=0, below=np.pi / 2)
    if angle.ndim == 0:
        raise ValueError("rotation must have the steps as last axis, got one number")
    k = intrinsic_lr(learning_rate(lr), weight_decay(wd), below=1.0)
    angle, k = broadcast(rotation=angle, wd=k)
    # -ln cos θ = -½ ln(1 - sin² θ) keeps its digits at small angles; 0 - … is not -0
    grown = 0 - np.log1p(-(np.sin(angle) ** 2)).sum(axis=-1) / 2
    first, last, grown, decayed = broadcast(
        norm=real("norm", norm, above=0),
        final_norm=real("final_norm", final_norm, above=0),
        rotation=np.asarray(grown),
        lr=np.asarray(0 - np.log1p(-k).sum(axis=-1)),
    )
    return Balance(plain(decayed), plain(grown), plain(np.log(last / first)))


@dataclass(frozen=True)
class BalanceLaw:
    """Period of a network as a function of ηλ: T·(-ln(1-ηλ)) = J/(1-φ), with J and φ measured on that network.

    The identity is exact; that J is linear in ln ηλ and φ or its odds a power of it is an approximation. Where both
    were fitted at two values of ηλ and the wanted one is not larger than these, the odds are good to some 5 %, the
    share to some 10 % (docs/validation.md).

    Parameters
    ----------
    jump : J at the reference, the mean rise of ln ρ in a destabilization, > 0.
    jump_slope : growth of J per unit of ln(reference/ηλ).
    outside : φ at the reference, the share of growth outside the detected rises, < 1.
    outside_power : power of ηλ with which φ, or its odds, grows.
    reference : ηλ at which `jump` and `outside` hold, 0 < reference < 1.
    power_of : "share": φ ∝ (ηλ)^outside_power; "odds": φ/(1-φ) ∝ (ηλ)^outside_power, that is
        T·(-ln(1-ηλ)) = J·(1 + odds), where growth outside the rises comes on top of J and never takes all.
    lowest : ηλ below which J has another slope; 0: nowhere.
    slope_below : that slope; 0 holds J.

    Raises
    ------
    TypeError, ValueError : a parameter is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> law = BalanceLaw(jump=0.52, jump_slope=0.2, outside=0.27, outside_power=0.6, reference=0.01)
    >>> round(law.period(0.5, 0.02), 1)
    70.9
    """

    jump: float
    jump_slope: float
    outside: float
    outside_power: float
    reference: float
    power_of: str = "share"
    lowest: float = 0.0
    slope_below: float = 0.0

    def __post_init__(self) -> None:
        one_real("jump", self.jump, above=0)
        one_real("jump_slope", self.jump_slope)
        one_real("outside", self.outside, below=1)
        one_real("outside_power", self.outside_power)
        one_real("reference", self.reference, above=0, below=1)
        choice("power_of", self.power_of, ("share", "odds"))
        one_real("lowest", self.lowest, at_least=0, below=1)
        one_real("slope_below", self.slope_below)

    def jump_at(self, intrinsic: FloatArray) -> FloatArray:
        """J at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).jump_at(np.array(0.01)))
        0.5
        """
        jump = self.jump + self.jump_slope * np.log(self.reference / np.maximum(intrinsic, self.lowest))
        if not self.slope_below:
            return np.asarray(jump)
        return np.asarray(jump + self.slope_below * np.log(self.lowest / np.minimum(intrinsic, self.lowest)))

    def outside_at(self, intrinsic: FloatArray) -> FloatArray:
        """φ at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).outside_at(np.array(0.01)))
        0.3
        >>> float(BalanceLaw(0.5, 0.2, 0.5, 1.0, 0.01, "odds").outside_at(np.array(0.04)))
        0.8
        """
        factor = (intrinsic / self.reference) ** self.outside_power
        if self.power_of == "share":
            return np.asarray(self.outside * factor)
        # of the odds times the factor, written so that it has no poles for φ >= 0
        return np.asarray(self.outside * factor / (1 - self.outside + self.outside * factor))

    def period(self, lr: npt.ArrayLike, wd: npt.ArrayLike) -> Any:
        """Mean period T in steps.

        Parameters
        ----------
        lr, wd : η > 0, λ > 0, ηλ < 1; numbers or arrays that broadcast.

        Returns
        -------
        T: float or array; NaN where the law gives no period (J <= 0 or φ >= 1, far from the reference).

        Raises
        ------
        TypeError, ValueError : an argument is no number or out of range.

        Examples
        --------
        >>> law = BalanceLaw(jump=0.5, jump_slope=0.0, outside=0.0, outside_power=1.0, reference=0.01)
        >>> round(law.period(1.0, 0.01), 3)  # 0.5/-ln(0.99)
        49.75
        """
        rate, decay = learning_rate(lr), real("wd", wd, above=0)
        k = intrinsic_lr(rate, weight_decay(decay), below=1.0)
        jump, outside = self.jump_at(k), self.outside_at(k)
        good = (jump > 0) & (outside < 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return plain(np.where(good, jump / (1 - outside) / -np.log1p(-k), np.nan))


def least_fall(lr: npt.ArrayLike, wd: npt.ArrayLike, ratio: npt.ArrayLike) -> Any:
    """Least number of steps in which the norm can fall by a factor, whatever the gradients: ln(ratio)/(-ln(1-ηλ)).

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    ratio : norm at the peak over norm at the trough, >= 1. All are numbers or arrays that broadcast.

    Returns
    -------
    whole number of steps, as float or array; `inf` without decay for a ratio above 1.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> least_fall(0.5, 0.01, ratio=2.0)
    139.0
    """
    falls = np.log(real("ratio", ratio, at_least=1))
    k = intrinsic_lr(learning_rate(lr), weight_decay(wd), below=1.0)
    falls, k = broadcast(ratio=falls, wd=k)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(falls == 0, 0.0, falls / -np.log1p(-k))
        # a quotient that is a whole number but for rounding is that number
        near = np.round(steps)
        whole = np.where(np.abs(steps - near) <= 1e-12 * np.maximum(steps, 1), near, np.ceil(steps))
    return plain(whole)


def free_decay(lr: npt.ArrayLike, wd: npt.ArrayLike, *, optimizer: Optimizer | None = None) -> Any:
    """Fall of ln ρ in a step without gradients, once the momentum buffer has followed: -ln(1-ηλ), about ηλ.

    Under coupled decay with momentum the weights follow a linear recursion, whose roots z solve z² - Tz + D = 0: heavy
    ball T = 1+μ-ηλ, D = μ; Nesterov T = (1+μ)(1-ηλ), D = μ(1-ηλ). The fall is -ln of the larger one, about ηλ/(1-μ); of
    two complex ones, for large ηλ, it is that of their size.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1; numbers or arrays that broadcast.
    optimizer : default `theory.SGD()`. Of an optimizer of one's own, decay is taken to be ηλ of the weights themselves.

    Returns
    -------
    float or array; NaN for `Adam`, whose decay goes through the normalized gradient.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> from theory.optimizers import SGD, AdamW
    >>> round(free_decay(0.1, 0.01), 7), round(free_decay(0.1, 0.01, optimizer=SGD(momentum=0.9)), 7)
    (0.0010005, 0.0111892)
    >>> free_decay(0.1, 0.01, optimizer=AdamW(dim=10)) == free_decay(0.1, 0.01)
    True
    """
    rule = checked_optimizer(optimizer)
    k = intrinsic_lr(learning_rate(lr), weight_decay(wd), below=1.0)
    if isinstance(rule, Adam) and not isinstance(rule, AdamW):
        return plain(np.full(k.shape, np.nan))
    if not (isinstance(rule, SGD) and rule.momentum and not rule.decoupled):
        return plain(0 - np.log1p(-k))
    mu = rule.momentum
    # z = 1-u: u² - (2-T)u + ηλ = 0 for both
    linear, product = (1 - mu + k * (1 + mu), mu * (1 - k)) if rule.nesterov else (1 - mu + k, mu + 0 * k)
    discriminant = linear**2 - 4 * k
    with np.errstate(divide="ignore", invalid="ignore"):
        slow = np.log1p(-2 * k / (linear + np.sqrt(np.maximum(discriminant, 0))))
    return plain(0 - np.where(discriminant >= 0, slow, np.log(product) / 2))


def least_time_between_jumps(lr: npt.ArrayLike, wd: npt.ArrayLike, delta: npt.ArrayLike) -> Any:
    """Least mean number of steps between δ-jumps in a long run of bounded norm, whatever the gradients.

    It is ln(1-δ)/ln(1-ηλ); the norm is bounded wherever ηλ > 0 and g̃ is. While the norm grows jumps may come at once.

    N steps hold at most (-N ln(1-ηλ) + ln(ρ_N/ρ₀))/(-ln(1-δ)) of them, because each adds more than -ln(1-δ) to ln ρ and
    only decay takes it away again.

    Parameters
    ----------
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    delta : 0 < δ < 1. All are numbers or arrays that broadcast.

    Returns
    -------
    steps: float or array; inf without decay, where each jump raises the norm for good.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> round(least_time_between_jumps(0.5, 0.01, delta=0.1), 2)
    21.02
    """
    k = intrinsic_lr(learning_rate(lr), weight_decay(wd), below=1.0)
    k, delta = broadcast(wd=k, delta=real("delta", delta, above=0, below=1))
    with np.errstate(divide="ignore"):
        return plain(np.log1p(-delta) / np.log1p(-k))


def fall_product(
    steps: npt.ArrayLike, product: npt.ArrayLike, lr: npt.ArrayLike, wd: npt.ArrayLike, tail: npt.ArrayLike
) -> Any:
    """Product of loss and effective learning rate in a fall, under the loss of a cross-entropy tail, dL/dτ = -cL².

    While gradients are small, η̃ grows by 1/(1-ηλ)² a step and the loss falls with the time dτ = η̃dt of the sphere:
    1/(Lη̃) is driven to c/κ(ηλ)² at the rate of the decay. Lη̃ follows a logistic curve to κ(ηλ)²/c ≈ 2ηλ/c.

    Parameters
    ----------
    steps : t >= 0 since the beginning of the fall.
    product : Lη̃ > 0 at the beginning (no units).
    lr, wd : η > 0, λ >= 0, ηλ < 1.
    tail : c > 0, fitted per run: it is no constant of a network (no units). All are numbers or arrays that broadcast.

    Returns
    -------
    Lη̃ after t steps: float or array.

    Raises
    ------
    TypeError, ValueError : an argument is no number or out of range.

    Source: docs/mathematics.md §5.

    Examples
    --------
    >>> round(fall_product(2000, 1e-4, 0.5, 0.01, tail=50.0), 6)  # near 2·0.005/50
    0.000202
    """
    passed, start = real("steps", steps, at_least=0), real("product", product, above=0)
    constant = real("tail", tail, above=0)
    k = intrinsic_lr(learning_rate(lr), weight_decay(wd), below=1.0)
    passed, start, k, constant = broadcast(steps=passed, product=start, wd=k, tail=constant)
    with np.errstate(over="ignore"):
        # with y = 1/(Lη̃): y⁺ = a(y + c), a = (1-ηλ)²; the sum a + … + a^t is without cancellation
        log_a = 2 * np.log1p(-k)
        summed = np.where(k > 0, (1 - k) ** 2 * np.expm1(passed * log_a) / np.where(k > 0, np.expm1(log_a), 1), passed)
        return plain(start / (np.exp(passed * log_a) + start * constant * summed))
