"""Stochastic gradient descent with heavy-ball or Nesterov momentum and coupled or decoupled decay.

With momentum the closed forms hold for gradients that are orthogonal to the weights and independent in time, in many
dimensions. Plain SGD needs neither independence nor many dimensions (docs/mathematics.md §2, §7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from theory.adaptive import Blend, DirectionVariance, variance_of_odd_function
from theory.arguments import FloatArray, check_flag, check_number
from theory.rules import ShortRepr


@dataclass(frozen=True, repr=False)
class SGD(ShortRepr):
    """Stochastic gradient descent as in `torch.optim.SGD`, with optional momentum and coupled or decoupled decay.

    Parameters
    ----------
    momentum : μ, 0 <= μ < 1.
    nesterov : whether to use Nesterov momentum in PyTorch's form.
    decoupled : whether decay acts on the weights directly, x⁺ = x - η(direction + λx), instead of through the momentum.

    With momentum the norm fluctuates, which changes E[ρ⁴] and E[1 - cos θ] by terms of order 1/d. In random walks of
    300 dimensions with μ = 0.9 the changes are 0.3 % and 0.1 % at ηλ = 0.01, 0.8 % and 0.2 % at 0.5. For heavy ball,
    E[ρ²]/E‖∇f‖² and E⟨x⁺,x⟩/E[ρ²] are exact in any dimension.

    Source: docs/mathematics.md §1, §2, §7.

    Examples
    --------
    >>> SGD().update(np.array(2.0), np.array(1.0), (), lr=0.1, wd=0.5)[0].item()
    1.8
    >>> SGD(momentum=0.9)
    SGD(momentum=0.9)
    """

    wd_exponent: ClassVar[int] = 1
    norm_exponent: ClassVar[float] = 0.5
    norm_power: ClassVar[int] = 4
    rate_exponent: ClassVar[int] = 0

    momentum: float = 0.0
    nesterov: bool = False
    decoupled: bool = False

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, at_least=0, below=1)
        for name in ("nesterov", "decoupled"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov must be False without momentum, got True")

    @property
    def intrinsic_lr_limit(self) -> float:
        """ηλ at which the decay alone makes the iteration unstable.

        Examples
        --------
        >>> SGD().intrinsic_lr_limit, SGD(momentum=0.5).intrinsic_lr_limit
        (2.0, 3.0)
        """
        # coupled decay acts like an additional curvature λ: x - ηλx
        return 2.0 if self.decoupled else self.stability_limit

    @property
    def stability_limit(self) -> float:
        """Largest η̃h at which steps on a quadratic of curvature h do not grow.

        Examples
        --------
        >>> SGD().stability_limit, SGD(momentum=0.5).stability_limit, SGD(momentum=0.5, nesterov=True).stability_limit
        (2.0, 3.0, 1.5)
        """
        limit = 2 + 2 * float(self.momentum)
        return limit / (1 + 2 * float(self.momentum)) if self.nesterov else limit

    def direction_variance(self, s: FloatArray) -> DirectionVariance:
        """Return the variance of the directions over that of the gradients, for the decay s of the weights per step.

        Examples
        --------
        >>> float(SGD(momentum=0.5).direction_variance(np.asarray(1.0)).autocorrelation(1.0))
        3.0
        """
        mu = self.momentum
        return variance_of_odd_function([1.0], 1.0, Blend.of_momentum(mu, self.nesterov), s)

    def edge_with_decay(self, intrinsic_lr: FloatArray, falling: bool) -> FloatArray:
        """Largest η̃h at which the direction is stable under weight decay.

        If `falling`, the norm decays freely by a factor q per step. The direction is then unstable once a step across
        the weights multiplies by -q. Otherwise growth keeps the norm constant, q = 1. NaN where q is not real and the
        norm rings.

        Examples
        --------
        >>> [float(SGD().edge_with_decay(np.array(0.1), falling)) for falling in (False, True)]
        [1.9, 1.8]
        """
        mu, s = float(self.momentum), 1 - intrinsic_lr
        if self.decoupled:
            q = np.maximum(s, mu) if falling else np.ones_like(s)
            share = q * (1 + mu) + mu if self.nesterov else q
            return np.asarray((q * q + q * (s + mu) + mu * s) / share)
        trace, _, discriminant = self.free_recursion(intrinsic_lr)
        q = np.ones_like(s)
        if falling:
            q = np.where(discriminant >= 0, (trace + np.sqrt(np.maximum(discriminant, 0))) / 2, np.nan)
        if self.nesterov:
            return np.asarray(s + q * q / ((1 + mu) * q + mu))
        return np.asarray((q * q + mu) / q + trace)

    def free_recursion(self, intrinsic_lr: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """T, 1-D and T²-4D of the recursion x⁺ = Tx - Dx⁻ without gradients, for coupled decay and ηλ < 1.

        Examples
        --------
        >>> [round(float(x), 6) for x in SGD(momentum=0.25).free_recursion(np.array(0.2))]
        [1.05, 0.75, 0.1025]
        """
        mu, s = float(self.momentum), 1 - intrinsic_lr
        # T²-4D as a product of factors; each form keeps its digits in its half of the range of ηλ
        if self.nesterov:
            near_zero, near_one = s * ((1 - mu) ** 2 - (1 + mu) ** 2 * intrinsic_lr), s * ((1 + mu) ** 2 * s - 4 * mu)
            trace, one_minus_determinant = (1 + mu) * s, 1 - mu + mu * intrinsic_lr
        else:
            root = np.sqrt(mu)
            near_zero = ((1 + root) ** 2 - intrinsic_lr) * (((1 - mu) / (1 + root)) ** 2 - intrinsic_lr)
            near_one = (s + root * (2 + root)) * (s - root * (2 - root))
            trace, one_minus_determinant = s + mu, np.full_like(s, 1 - mu)
        return trace, one_minus_determinant, np.where(intrinsic_lr < 0.5, near_zero, near_one)

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: zero velocity, or nothing without momentum.

        Examples
        --------
        >>> SGD().start(np.ones(2)), SGD(momentum=0.9).start(np.ones(2))
        ((), (array([0., 0.]),))
        """
        return (weights * 0,) if self.momentum else ()

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step.

        Parameters
        ----------
        weights, gradient : arrays or tensors of one shape; the gradient is that of the loss, without decay.
        state : state after the previous step, or from `start`.
        lr, wd : numbers, or arrays that broadcast against `weights`.

        The decay is added to the gradient instead of multiplying the weights by (1 - ηλ). Rounding of that factor would
        bias the decay by up to 3e-8/ηλ in float32.

        Examples
        --------
        >>> SGD().update(np.array(1.0), np.array(0.0), (), lr=0.1, wd=0.5)[0].item()
        0.95
        """
        velocity = state[0] if state else None
        return sgd_update(weights, gradient, velocity, lr, wd, self.momentum, self.nesterov, self.decoupled)

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ*; without momentum ρ*⁴ = ηg̃²/(λ(2-ηλ)), exactly.

        Examples
        --------
        >>> float(SGD().equilibrium_norm(np.array(1.0), np.array(1.0), np.array(4.0)))
        2.0
        """
        mu, intrinsic_lr = self.momentum, lr * wd
        growth: Any
        if self.decoupled:
            # divided by ηλ: with s = 1-ηλ, 1-s² = ηλ(2-ηλ) and 1-sμ = 1-μ+ηλμ
            shrinkage = (1 - mu + mu * intrinsic_lr) * (2 - intrinsic_lr) * (1 - mu * mu)
            growth = (
                (1 + mu + mu * intrinsic_lr - 2 * mu**3 * intrinsic_lr)
                if self.nesterov
                else 1 + (1 - intrinsic_lr) * mu
            )
        elif self.nesterov:
            shrinkage = (1 - mu + mu * intrinsic_lr) * (2 + 2 * mu - intrinsic_lr * (1 + 2 * mu))
            growth = 1 + mu + mu * intrinsic_lr + 2 * mu * mu * intrinsic_lr
        else:
            shrinkage, growth = (2 - intrinsic_lr if mu == 0 else (1 - mu) * (2 - intrinsic_lr / (1 + mu))), 1.0
        with np.errstate(divide="ignore"):
            # fourth roots first: lr/wd may overflow where its fourth root does not
            ratio = np.sqrt(np.sqrt(lr)) / np.sqrt(np.sqrt(wd))
            return np.asarray(np.sqrt(grad_norm) * (ratio * np.sqrt(np.sqrt(growth / shrinkage))))

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ*; without momentum ηλ, exactly.

        Examples
        --------
        >>> float(SGD().equilibrium_turn(np.array(0.5), np.array(0.1), np.array(1.0)))
        0.05
        """
        mu, intrinsic_lr = self.momentum, lr * wd
        turn: Any
        if self.decoupled and self.nesterov:
            turn = (
                (1 - mu)
                * (1 + 2 * mu - 2 * mu**3 + intrinsic_lr * mu * (1 + mu) ** 2)
                / (1 + mu + mu * intrinsic_lr - 2 * mu**3 * intrinsic_lr)
            )
        elif self.decoupled:
            turn = (1 - mu) / (1 + mu - mu * intrinsic_lr)
        elif self.nesterov:
            turn = (1 + 2 * mu - 2 * mu**3 + intrinsic_lr * mu * (1 + 3 * mu + 2 * mu * mu)) / (
                1 + mu + intrinsic_lr * mu * (1 + 2 * mu)
            )
        else:
            turn = 1 / (1 + mu)
        return np.asarray(intrinsic_lr * turn)

    def norm_rate(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the rate of ρ⁴, 4ηλ/(1-μ), or 4ηλ with decoupled decay.

        Examples
        --------
        >>> float(SGD().norm_rate(*map(np.array, (0.5, 0.01, 2.0))))
        0.02
        """
        return 4 * lr * wd / (1 if self.decoupled else 1 - self.momentum)

    def norm_growth(self, lr: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the growth of ρ⁴: in the long run a gradient moves the weights by η/(1-μ) times itself.

        Examples
        --------
        >>> float(SGD().norm_growth(*map(np.array, (0.5, 2.0))))
        2.0
        """
        return 2 * (lr * grad_norm / (1 - self.momentum)) ** 2


def sgd_update(
    weights: Any, gradient: Any, velocity: Any, lr: Any, wd: Any, momentum: Any, nesterov: bool, decoupled: bool
) -> tuple[Any, tuple[Any, ...]]:
    """Return weights and state after one SGD step, for any types with ``+ - *``; `velocity` is None for plain SGD.

    Examples
    --------
    >>> sgd_update(1.0, 2.0, 0.5, lr=0.1, wd=0.0, momentum=0.9, nesterov=False, decoupled=False)
    (0.755, (2.45,))
    """
    decay = wd * weights
    direction = gradient if decoupled else gradient + decay
    state: tuple[Any, ...] = ()
    if velocity is not None:
        velocity = momentum * velocity + direction
        direction = direction + momentum * velocity if nesterov else velocity
        state = (velocity,)
    return weights - lr * (direction + decay if decoupled else direction), state
