"""Optimizers: one frozen object each, for formula, simulation and training alike.

The closed forms hold for gradients that are orthogonal to the weights and independent in time, in many dimensions;
plain SGD needs neither (docs/mathematics.md §2, §7).
"""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from theory.arguments import FloatArray, one_real, whole_number


class Optimizer(Protocol):
    """What an optimizer must tell.

    To add one: write these methods as a frozen dataclass, and list it in `OPTIMIZERS`.

    1. `start` and `update` use only ``+ - * / **`` and comparisons, which NumPy arrays, torch tensors and sympy symbols
       share, so that one rule moves a random walk and a network and is what the derivations start from.
    2. The closed forms take checked arrays of one shape and return arrays; the public functions of
       `theory.equilibrium` validate once.
    """

    wd_exponent: ClassVar[int]
    """The directions do not change when λ ∝ η^-wd_exponent …"""
    norm_exponent: ClassVar[float]
    """… and ρ₀ ∝ η^norm_exponent."""

    @property
    def intrinsic_lr_limit(self) -> float:
        """ηλ must lie below this for an equilibrium."""

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: arrays that broadcast against `weights`, whose last axis is flat."""

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step; `gradient` is that of the loss alone, without decay."""

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return the norm at which decay and growth balance."""

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ of one step at equilibrium."""


class _ShortRepr:
    """Shows only what differs from the default: `SGD()`, `SGD(momentum=0.9)`."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        shown = [f"{f.name}={v!r}" for f in fields if (v := getattr(self, f.name)) != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class SGD(_ShortRepr):
    """Stochastic gradient descent as `torch.optim.SGD`: with heavy-ball or Nesterov momentum, decay coupled or not.

    Parameters
    ----------
    momentum : μ, 0 <= μ < 1.
    nesterov : Nesterov momentum in PyTorch's form.
    decoupled : decay acts on the weights directly, x⁺ = x - η(direction + λx), instead of through the momentum.

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

    momentum: float = 0.0
    nesterov: bool = False
    decoupled: bool = False

    def __post_init__(self) -> None:
        one_real("momentum", self.momentum, at_least=0, below=1)
        for name in ("nesterov", "decoupled"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
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
        # coupled decay is one more direction of curvature, λ: x - ηλx
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

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: no velocity.

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
        weights, gradient : arrays or tensors of one shape (gradient of the loss alone, without decay).
        state : of the step before, or of `start`.
        lr, wd : numbers, or arrays that broadcast against `weights`.

        The decay is added to the gradient, not factored out as (1 - ηλ): that factor is rounded before it is used,
        which in float32 would bias the decay by up to 3e-8/ηλ.

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
        mu, k = self.momentum, lr * wd
        if self.decoupled:
            # per ηλ: with s = 1-ηλ, 1-s² = ηλ(2-ηλ) and 1-sμ = 1-μ+ηλμ
            rest = (1 - mu + mu * k) * (2 - k) * (1 - mu * mu)
            growth = (1 + mu + mu * k - 2 * mu**3 * k) if self.nesterov else 1 + (1 - k) * mu
        elif self.nesterov:
            rest = (1 - mu + mu * k) * (2 + 2 * mu - k * (1 + 2 * mu))
            growth = 1 + mu + mu * k + 2 * mu * mu * k
        else:
            rest, growth = (1 - mu) * (2 - k / (1 + mu)), np.ones_like(k)
        with np.errstate(divide="ignore"):
            return np.sqrt(grad_norm) * (lr * growth / (wd * rest)) ** 0.25

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ*; without momentum ηλ, exactly.

        Examples
        --------
        >>> float(SGD().equilibrium_turn(np.array(0.5), np.array(0.1), np.array(1.0)))
        0.05
        """
        mu, k = self.momentum, lr * wd
        if self.decoupled and self.nesterov:
            turn = (1 - mu) * (1 + 2 * mu - 2 * mu**3 + k * mu * (1 + mu) ** 2) / (1 + mu + mu * k - 2 * mu**3 * k)
        elif self.decoupled:
            turn = (1 - mu) / (1 + mu - mu * k)
        elif self.nesterov:
            turn = (1 + 2 * mu - 2 * mu**3 + k * mu * (1 + 3 * mu + 2 * mu * mu)) / (1 + mu + k * mu * (1 + 2 * mu))
        else:
            turn = np.full_like(k, 1 / (1 + mu))
        return k * turn


def sgd_update(
    weights: Any, gradient: Any, velocity: Any, lr: Any, wd: Any, momentum: Any, nesterov: bool, decoupled: bool
) -> tuple[Any, tuple[Any, ...]]:
    """One step of SGD on anything that knows ``+ - *``; `velocity` None stands for plain SGD.

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


@dataclass(frozen=True, repr=False)
class _Adaptive(_ShortRepr):
    dim: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        whole_number("dim", self.dim, at_least=1)
        object.__setattr__(self, "betas", checked_betas(self.betas))
        one_real("eps", self.eps, at_least=0)

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: means of gradient and squared gradient, and the step number."""
        return weights * 0, weights * 0, weights[..., :1] * 0

    def _moments(self, gradient: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        beta1, beta2 = self.betas
        mean, square, step = state
        step = step + 1
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient * gradient
        direction = mean / (1 - beta1**step) / ((square / (1 - beta2**step)) ** 0.5 + self.eps)
        return direction, (mean, square, step)


@dataclass(frozen=True, repr=False)
class AdamW(_Adaptive):
    """AdamW as `torch.optim.AdamW`: decoupled decay.

    Parameters
    ----------
    dim : number of scale-invariant weights, which the closed forms need.
    betas : (β₁, β₂), each in [0, 1).
    eps : added to the root of the mean square; the closed forms are for 0.

    Source: docs/mathematics.md §7; arXiv 2305.17212.

    Examples
    --------
    >>> AdamW(dim=100)
    AdamW(dim=100)
    """

    intrinsic_lr_limit: ClassVar[float] = 2.0
    wd_exponent: ClassVar[int] = 1
    norm_exponent: ClassVar[float] = 1.0

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step."""
        direction, state = self._moments(gradient, state)
        return weights - lr * (direction + wd * weights), state

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ* ≈ √(ηd/(2λ)), with its corrections in ηλ, β₁ and β₂; it does not depend on the gradient.

        Examples
        --------
        >>> round(float(AdamW(dim=200).equilibrium_norm(np.array(1e-3), np.array(0.1), np.array(1.0))), 3)
        0.999
        """
        (beta1, beta2), k = self.betas, lr * wd
        own, e = beta1 * (1 - k), 1 - beta2
        w = 2 * e / (1 + beta2)
        cross = 1 - beta1 * beta2
        # the mean square in the denominator fluctuates, and knows the present gradient
        known = (
            2 * e * (1 - beta1) / cross - 0.75 * w - 0.25 * w * (1 - beta1) * (1 + beta1 * beta2) / (1 + beta1) / cross
        )
        growth = (1 - beta1) / (1 + beta1) * (1 + own) / (1 - own) * (1 - known)
        with np.errstate(divide="ignore"):
            return np.sqrt(lr * self.dim * growth / (wd * (2 - k))) * np.ones_like(grad_norm)

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ* = ηλ(1-β₁)/(1+β₁(1-ηλ)).

        Examples
        --------
        >>> float(AdamW(dim=200, betas=(0.0, 0.9)).equilibrium_turn(np.array(0.5), np.array(0.1), np.array(1.0)))
        0.05
        """
        beta1, k = self.betas[0], lr * wd
        return k * (1 - beta1) / (1 + beta1 * (1 - k)) * np.ones_like(grad_norm)


@dataclass(frozen=True, repr=False)
class Adam(_Adaptive):
    """Adam with L2 regularization as `torch.optim.Adam(weight_decay=)`: the decay goes through the moments.

    Parameters
    ----------
    dim : number of scale-invariant weights, which the closed forms need.
    betas : (β₁, β₂), each in [0, 1).
    eps : added to the root of the mean square; the closed forms are for 0.

    Source: docs/mathematics.md §7.

    Examples
    --------
    >>> Adam(dim=100, betas=(0.5, 0.9))
    Adam(dim=100, betas=(0.5, 0.9))
    """

    intrinsic_lr_limit: ClassVar[float] = np.inf
    wd_exponent: ClassVar[int] = 2
    norm_exponent: ClassVar[float] = 1.0

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step."""
        direction, state = self._moments(gradient + wd * weights, state)
        return weights - lr * direction, state

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ*, which tends to (ηg̃√d/(2λ))^⅓ for small steps.

        Examples
        --------
        >>> round(float(Adam(dim=400).equilibrium_norm(np.array(1e-5), np.array(1e-4), np.array(1.0))), 3)
        1.0
        """
        shrink = self._shrink(lr, wd, grad_norm)
        c = (1 - self.betas[0]) / (1 + self.betas[0])
        with np.errstate(divide="ignore"):
            return lr * np.sqrt(self.dim / (shrink * (2 + (1 - c) * shrink)))

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ* = cE, c = (1-β₁)/(1+β₁), E the effective decay per step.

        Examples
        --------
        >>> float(Adam(dim=400).equilibrium_turn(np.array(1e-3), np.array(0.0), np.array(1.0)))
        0.0
        """
        beta1 = self.betas[0]
        return (1 - beta1) / (1 + beta1) * self._shrink(lr, wd, grad_norm)

    def _shrink(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Effective decay E per step: E³(2+(1-c)E)²/(2-cE) = (η²λd/g̃)², by Newton's method.

        In y, E = (2/c)/(1+exp(-y)), the logarithm of the left side has a slope between 1 and 5: Newton cannot stray.
        """
        c = (1 - self.betas[0]) / (1 + self.betas[0])
        with np.errstate(divide="ignore"):
            target = 2 * (2 * np.log(lr) + np.log(wd) + np.log(self.dim / grad_norm))
        y = np.where(np.isfinite(target), target / 3, 0.0)
        for _ in range(60):
            rest = 1 / (1 + np.exp(np.clip(y, -700, 700)))  # 1 - E c/2
            shrink = 2 / c / (1 + np.exp(np.clip(-y, -700, 700)))
            value = 3 * np.log(shrink) + 2 * np.log(2 + (1 - c) * shrink) - np.log(2 * rest)
            slope = rest * (3 + 2 * (1 - c) * shrink / (2 + (1 - c) * shrink)) + (1 - rest)
            y = y - np.where(np.isfinite(target), (value - target) / slope, 0.0)
        return np.where(np.isfinite(target), 2 / c / (1 + np.exp(np.clip(-y, -700, 700))), 0.0)


@dataclass(frozen=True, repr=False)
class Lion(_ShortRepr):
    """Lion: the sign of a blend of momentum and gradient, with decoupled decay.

    Parameters
    ----------
    dim : number of scale-invariant weights, which the closed forms need.
    betas : (β₁, β₂): blend in the step, decay of the momentum, each in [0, 1).

    Source: arXiv 2302.06675; docs/mathematics.md §7.

    Examples
    --------
    >>> Lion(dim=100)
    Lion(dim=100)
    """

    intrinsic_lr_limit: ClassVar[float] = 2.0
    wd_exponent: ClassVar[int] = 1
    norm_exponent: ClassVar[float] = 1.0

    dim: int
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        whole_number("dim", self.dim, at_least=1)
        object.__setattr__(self, "betas", checked_betas(self.betas))

    def start(self, weights: Any) -> tuple[Any, ...]:
        """Return the state before the first step: no momentum."""
        return (weights * 0,)

    def update(self, weights: Any, gradient: Any, state: tuple[Any, ...], lr: Any, wd: Any) -> tuple[Any, Any]:
        """Return weights and state after one step."""
        (momentum,) = state
        beta1, beta2 = self.betas
        blend = beta1 * momentum + (1 - beta1) * gradient
        sign = (blend > 0) * 1.0 - (blend < 0) * 1.0
        return weights - lr * (sign + wd * weights), (beta2 * momentum + (1 - beta2) * gradient,)

    def equilibrium_norm(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return ρ* with ρ*² = ηdq/(λ(2-ηλ)); it does not depend on the gradient.

        Examples
        --------
        >>> lone = Lion(dim=200, betas=(0.0, 0.0))  # the sign of the gradient
        >>> round(float(lone.equilibrium_norm(np.array(1e-3), np.array(0.1), np.array(1.0))), 4)
        1.0
        """
        k = lr * wd
        with np.errstate(divide="ignore"):
            return np.sqrt(lr * self.dim * self._repetition(k) / (wd * (2 - k))) * np.ones_like(grad_norm)

    def equilibrium_turn(self, lr: FloatArray, wd: FloatArray, grad_norm: FloatArray) -> FloatArray:
        """Return 1 - cos θ*, cos θ* = s + (1-s²)(q-1)/(2sq) with s = 1-ηλ.

        Examples
        --------
        >>> lone = Lion(dim=200, betas=(0.0, 0.0))
        >>> round(float(lone.equilibrium_turn(np.array(0.5), np.array(0.1), np.array(1.0))), 12)
        0.05
        """
        k = lr * wd
        q = self._repetition(k)
        # (q-1)/s stays finite where s vanishes, but q-1 alone is known only by its sum
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = np.where(k == 1, self._first_correlation() * (2 / np.pi), (q - 1) / (1 - k)) / (2 * q)
        return (k - k * (2 - k) * drift) * np.ones_like(grad_norm)

    def _first_correlation(self) -> float:
        return 2 * float(np.arcsin(self._correlation()))

    def _correlation(self) -> float:
        """Correlation of the blend with that of the step before; c_k = β₂^(k-1) times it for k steps."""
        beta1, beta2 = self.betas
        fresh, old = 1 - beta1, beta1 * (1 - beta2)
        past = old * old / (1 - beta2 * beta2)
        return (fresh * old + past * beta2) / (fresh * fresh + past)

    def _repetition(self, k: FloatArray) -> FloatArray:
        """Q = 1 + 2 Σ_k (2/π) asin(c_k) s^k, summed over k in closed form for each power of the arcsine's series."""
        beta2, correlation, s = self.betas[1], self._correlation(), 1 - k
        total, coefficient, power = np.zeros_like(k), 1.0, correlation
        for n in range(10_000):
            term = coefficient / (2 * n + 1) * power
            total = total + term * s / (1 - s * beta2 ** (2 * n + 1))
            if abs(term) < 1e-18:
                break
            coefficient *= (2 * n + 1) / (2 * n + 2)
            power *= correlation * correlation
        return 1 + 4 / np.pi * total


def checked_betas(betas: Any) -> tuple[float, float]:
    """Check (β₁, β₂): two numbers in [0, 1).

    Examples
    --------
    >>> checked_betas([0.9, 0.99])
    (0.9, 0.99)
    """
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers (β₁, β₂), got {betas!r}")
    first, second = (one_real("betas", beta, at_least=0, below=1) for beta in betas)
    return first, second


OPTIMIZERS: dict[str, type[Any]] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "Lion": Lion}


def optimizer_named(text: str) -> Optimizer:
    """Optimizer from its short form, as trajectories carry it in their attribute `optimizer`.

    Raises
    ------
    ValueError : no optimizer of `OPTIMIZERS` is written like this.

    Examples
    --------
    >>> optimizer_named("SGD(momentum=0.9)")
    SGD(momentum=0.9)
    """
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            made: Optimizer = OPTIMIZERS[call.func.id](**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
            return made
    except (SyntaxError, KeyError):
        pass
    raise ValueError(f"optimizer must be written like SGD(momentum=0.9), one of {', '.join(OPTIMIZERS)}; got {text!r}")
