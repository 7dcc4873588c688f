"""How often training destabilizes: the balance law of the period (docs/mathematics.md §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from theory.arguments import FloatArray, broadcast, intrinsic_lr, learning_rate, one_real, plain, real, weight_decay


@dataclass(frozen=True)
class BalanceLaw:
    """Period of a network as a function of ηλ: T·(-ln(1-ηλ)) = J/(1-φ), with J and φ measured on that network.

    The identity is exact; that J is linear in ln ηλ and φ a power of it is an approximation, good to some 10 % where
    both were fitted at two values of ηλ and the wanted one is not larger than these.

    Parameters
    ----------
    jump : J at the reference, the mean rise of ln ρ in a destabilization, > 0.
    jump_slope : growth of J per unit of ln(reference/ηλ).
    outside : φ at the reference, the share of growth outside the detected rises, < 1.
    outside_power : φ ∝ (ηλ)^outside_power.
    reference : ηλ at which `jump` and `outside` hold, 0 < reference < 1.

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

    def __post_init__(self) -> None:
        one_real("jump", self.jump, above=0)
        one_real("jump_slope", self.jump_slope)
        one_real("outside", self.outside, below=1)
        one_real("outside_power", self.outside_power)
        one_real("reference", self.reference, above=0, below=1)

    def jump_at(self, intrinsic: FloatArray) -> FloatArray:
        """J at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).jump_at(np.array(0.01)))
        0.5
        """
        return self.jump + self.jump_slope * np.log(self.reference / intrinsic)

    def outside_at(self, intrinsic: FloatArray) -> FloatArray:
        """φ at ηλ.

        Examples
        --------
        >>> float(BalanceLaw(0.5, 0.2, 0.3, 0.6, 0.01).outside_at(np.array(0.01)))
        0.3
        """
        return np.asarray(self.outside * (intrinsic / self.reference) ** self.outside_power)

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
