"""Curvature of a loss at the weights of a model: eigenvalues and traces of Hessian, Gauss-Newton and Fisher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from empirical.groups import scale_invariant_groups
from theory.arguments import check_choice, check_integer, check_number

Loss = Callable[[Tensor, Tensor], Tensor]
_EXACT_TRACE = 1000  # weights up to which a trace is summed over all unit vectors
_IGNORED = -100  # target that PyTorch's cross-entropy leaves out
_LEAST_VECTORS = 20  # of a Krylov space


@dataclass(frozen=True)
class Trace:
    """A trace, with the standard error of its estimate; 0 where it is exact.

    Examples
    --------
    >>> print(Trace(12.0, 0.5))
    12 ± 0.5
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ± {self.stderr:.2g}" if self.stderr else "")


@dataclass(frozen=True)
class Curvature:
    """Curvature of the loss of one batch in train mode.

    Attributes
    ----------
    loss, gradient_norm : of the batch, over the chosen weights.
    hessian_eigenvalues, gauss_newton_eigenvalues : the k largest, descending, over the chosen weights.
    fisher_eigenvalues : of the Fisher matrix of the model's own distribution of targets; None for a loss of one's own.
    hessian_trace, gauss_newton_trace, fisher_trace : of the same matrices.
    spherical_sharpness : ρ²·λ_max(H), H the Hessian over all scale-invariant weights together, ρ their norm: what does
        not depend on their scale. NaN for a model without such weights.
    tangent_sharpness : the same within the tangent space of the sphere, ρ²·λ_max(PHP); that of `theory.critical_norm`.
    norm : ρ.
    products : products with a matrix that were made, each of about two gradients.
    """

    loss: float
    gradient_norm: float
    hessian_eigenvalues: npt.NDArray[np.float64]
    gauss_newton_eigenvalues: npt.NDArray[np.float64]
    fisher_eigenvalues: npt.NDArray[np.float64] | None
    hessian_trace: Trace | None
    gauss_newton_trace: Trace | None
    fisher_trace: Trace | None
    spherical_sharpness: float
    tangent_sharpness: float
    norm: float
    products: int


class Landscape:
    """The loss of one batch as a function of some weights of a model: its value, gradient, and products with curvature.

    It works on a copy of the model, in train mode: parameters, buffers and random state of the model stay as they are.
    The graph of the batch is built once, so that dropout drops the same units in every product. Second derivatives are
    those of autograd's own backward pass, which are right through PyTorch's fused normalizations too; other routes,
    such as `torch.func.hessian`, are not.

    Parameters
    ----------
    model : any module whose output is a tensor.
    inputs, targets : one batch.
    loss : "cross_entropy", "mse", or a function of outputs and targets that gives a number.
    weights : names of parameters; default all that are trained.
    dtype : of the copy; None keeps that of the model.

    Raises
    ------
    TypeError, ValueError : no module, no batch, unknown names, a loss that is no number, or one that does not depend on
        the weights.

    Examples
    --------
    >>> model = nn.Linear(3, 1, bias=False)
    >>> landscape = Landscape(model, torch.eye(3), torch.zeros(3, 1), loss="mse")
    >>> landscape.hessian_product(torch.tensor([3.0, 0.0, 0.0]).double()).tolist()  # of Σw²/3
    [2.0, 0.0, 0.0]
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        targets: Any,
        *,
        loss: str | Loss = "cross_entropy",
        weights: Sequence[str] | None = None,
        dtype: torch.dtype | None = torch.float64,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(loss, str):
            check_choice("loss", loss, _LOSSES)
        elif not callable(loss):
            raise TypeError(f"loss must be a name or a function of outputs and targets, got {type(loss).__name__}")
        self._model = copy.deepcopy(model)
        self._model.zero_grad(set_to_none=True)
        if dtype is not None:
            self._model.to(dtype)
        self._model.train()
        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        chosen = list(named) if weights is None else list(weights)
        unknown = [name for name in chosen if name not in named]
        if unknown or not chosen:
            raise ValueError(f"weights must be names of trained parameters, got {unknown or chosen!r}")
        self._weights = [named[name] for name in chosen]
        self._kind = loss if isinstance(loss, str) else None
        self._function: Loss = _LOSSES[loss] if isinstance(loss, str) else loss
        device = self._weights[0].device
        given = (torch.as_tensor(values, device=device) for values in (inputs, targets))
        inputs, self._targets = (
            values.to(self._weights[0].dtype) if values.is_floating_point() else values for values in given
        )
        # fused attention knows no second derivative
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), sdpa_kernel(SDPBackend.MATH):
            self._outputs = self._model(inputs)
            self._loss = self._function(self._outputs, self._targets)
        if not isinstance(self._loss, Tensor) or self._loss.numel() != 1:
            raise ValueError("loss must give one number for the batch")
        gradient: Sequence[Tensor | None] = [None]
        if self._loss.requires_grad:
            gradient = torch.autograd.grad(self._loss, self._weights, create_graph=True, allow_unused=True)
        if all(part is None for part in gradient):
            raise ValueError("loss must depend on the weights, it does not")
        self._gradient = _flat(gradient, self._weights)
        self.products = 0

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self._weights)

    @property
    def loss(self) -> float:
        """Loss of the batch."""
        return float(self._loss.detach())

    @property
    def gradient(self) -> Tensor:
        """Gradient, flat."""
        return self._gradient.detach()

    @property
    def point(self) -> Tensor:
        """The weights, flat."""
        return torch.cat([weight.detach().reshape(-1) for weight in self._weights])

    @property
    def has_fisher(self) -> bool:
        """Whether the loss is the logarithm of a distribution of targets that is known."""
        return self._kind is not None

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return H v."""
        self.products += 1
        if not self._gradient.requires_grad:
            return torch.zeros_like(vector)
        found = torch.autograd.grad(
            self._gradient, self._weights, vector.to(self._gradient), retain_graph=True, allow_unused=True
        )
        return _flat(found, self._weights).to(vector)

    def tangent_product(self, vector: Tensor) -> Tensor:
        """Return P H P v, P the projection across the weights: the Hessian within the sphere that they lie on."""
        across = self.point / self.point.norm()
        flat = vector - across * (across @ vector)
        product = self.hessian_product(flat)
        within: Tensor = product - across * (across @ product)
        return within

    def gauss_newton_product(self, vector: Tensor) -> Tensor:
        """Return Jᵀ B J v, B the Hessian of the loss by the outputs."""
        return self._through_outputs(vector, self._bent)

    def fisher_product(self, vector: Tensor) -> Tensor:
        """Return F v, F the mean over the batch of the covariance of the gradients of -ln p, targets drawn from p.

        With the cross-entropy p is the softmax of the outputs; with the mean squared error p is normal with the
        variance for which the loss is -ln p up to a constant. For both it is the Gauss-Newton matrix, computed another
        way.

        Raises
        ------
        ValueError : the loss is one's own, whose distribution is not known.
        """
        if self._kind is None:
            raise ValueError("loss must be 'cross_entropy' or 'mse' for a Fisher matrix, got a function")
        return self._through_outputs(vector, self._covariance)

    def _through_outputs(self, vector: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        self.products += 1
        # J v by two backward passes: Jᵀu is linear in u, so nothing of second order is asked of any layer
        probe = torch.zeros_like(self._outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            self._outputs, self._weights, probe, create_graph=True, retain_graph=True, allow_unused=True
        )
        (pushed,) = torch.autograd.grad(_flat(pulled, self._weights), probe, vector.to(self._gradient))
        found = torch.autograd.grad(
            self._outputs, self._weights, between(pushed).detach(), retain_graph=True, allow_unused=True
        )
        return _flat(found, self._weights).to(vector)

    def _bent(self, pushed: Tensor) -> Tensor:
        outputs = self._outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._function(outputs, self._targets), outputs, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(pushed)
        bent: Tensor = torch.autograd.grad(slope, outputs, pushed)[0]
        return bent

    def _covariance(self, pushed: Tensor) -> Tensor:
        count = self._outputs.numel()
        if self._kind == "mse":
            # -ln p = (z-y)²/2s with 2s the number of outputs: the variance of its slope is 1/s
            spread: Tensor = pushed * (2 / count)
            return spread
        shares = torch.softmax(self._outputs.detach(), dim=1)
        centred: Tensor = pushed - torch.sum(shares * pushed, dim=1, keepdim=True)
        if self._targets.is_floating_point():
            samples: float | Tensor = count / self._outputs.shape[1]
        else:
            told = (self._targets != _IGNORED).to(shares.dtype)
            centred, samples = centred * told.unsqueeze(1), told.sum()
        covariance: Tensor = shares * centred / samples
        return covariance


def curvature(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    k: int = 1,
    *,
    loss: str | Loss = "cross_entropy",
    weights: Sequence[str] | None = None,
    traces: bool = True,
    vectors: int = 30,
    tolerance: float = 1e-8,
    dtype: torch.dtype | None = torch.float64,
    seed: int = 0,
) -> Curvature:
    """Measure the curvature of the loss of a batch at the weights of a model, in train mode.

    Parameters
    ----------
    model : any module whose output is a tensor, with normalizations of any make. It stays as it is, buffers included.
    inputs, targets : one batch, whose loss is meant: batch normalization makes it a function of the whole batch.
    k : how many of the largest eigenvalues.
    loss : "cross_entropy", "mse", or a function of outputs and targets that gives a number.
    weights : names of the parameters over which eigenvalues and traces are taken; default all that are trained.
    traces : whether to compute traces: exactly up to 1000 weights, else estimated by Hutchinson's method.
    vectors : random vectors of such an estimate; its error falls with the square root of their number.
    tolerance : relative, of the eigenvalues. 1e-3 takes about 25 products, each of two gradients.
    dtype : of the computation; None keeps that of the model, which is faster and has its rounding.
    seed : of random vectors, and of dropout.

    Returns
    -------
    Curvature

    Raises
    ------
    TypeError, ValueError : an argument is out of range.

    Source: docs/mathematics.md §4.

    Examples
    --------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> found = curvature(model, torch.randn(16, 5), torch.arange(16) % 3)
    >>> found.hessian_eigenvalues.shape, found.spherical_sharpness >= found.tangent_sharpness > 0
    ((1,), True)
    """
    k, vectors = check_integer("k", k, at_least=1), check_integer("vectors", vectors, at_least=2)
    tolerance = check_number("tolerance", tolerance, above=0, below=1)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    if not hasattr(inputs, "__len__") or len(inputs) < 2:
        raise ValueError("inputs must be a batch of at least 2 samples, by which scale-invariant weights are found")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = Landscape(model, inputs, targets, loss=loss, weights=weights, dtype=dtype)
    if k > whole.size:
        raise ValueError(f"k must be at most the number of weights, {whole.size}, got {k}")
    matrices = {"hessian": whole.hessian_product, "gauss_newton": whole.gauss_newton_product}
    if whole.has_fisher:
        matrices["fisher"] = whole.fisher_product
    eigenvalues = {
        name: largest_eigenvalues(product, whole.point, k, tolerance, seed) for name, product in matrices.items()
    }
    found: dict[str, Trace] = {}
    if traces:
        found = {name: trace(product, whole.point, vectors, seed) for name, product in matrices.items()}
    groups = scale_invariant_groups(model, _tensor(inputs, model))
    members = [name for group in groups.values() for name in group.weights]
    sharpness = tangent = norm = math.nan
    products = whole.products
    if members:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sphere = Landscape(model, inputs, targets, loss=loss, weights=members, dtype=dtype)
        norm = float(sphere.point.norm())
        (top,) = largest_eigenvalues(sphere.hessian_product, sphere.point, 1, tolerance, seed)
        (within,) = largest_eigenvalues(sphere.tangent_product, sphere.point, 1, tolerance, seed)
        sharpness, tangent = norm**2 * float(top), norm**2 * float(within)
        products += sphere.products
    return Curvature(
        loss=whole.loss,
        gradient_norm=float(whole.gradient.norm()),
        hessian_eigenvalues=eigenvalues["hessian"],
        gauss_newton_eigenvalues=eigenvalues["gauss_newton"],
        fisher_eigenvalues=eigenvalues.get("fisher"),
        hessian_trace=found.get("hessian"),
        gauss_newton_trace=found.get("gauss_newton"),
        fisher_trace=found.get("fisher"),
        spherical_sharpness=sharpness,
        tangent_sharpness=tangent,
        norm=norm,
        products=products,
    )


def largest_eigenvalues(
    product: Callable[[Tensor], Tensor], like: Tensor, k: int, tolerance: float, seed: int
) -> npt.NDArray[np.float64]:
    """Largest eigenvalues of a symmetric matrix that is known by its products, descending.

    Parameters
    ----------
    product : v ↦ A v.
    like : a vector of the size and kind of v.
    k : how many.
    tolerance : relative.
    seed : of the first vector.

    Examples
    --------
    >>> largest_eigenvalues(lambda v: torch.tensor([1.0, 2.0, 5.0]) * v, torch.zeros(3), 2, 1e-8, 0).tolist()
    [5.0, 2.0]
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = like.numel()

    def multiplied(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        given = torch.as_tensor(vector.reshape(-1), dtype=torch.float64).to(like)
        return product(given).double().cpu().numpy()

    # a Krylov space needs room beside the wanted vectors
    if size <= max(2 * k + 1, _LEAST_VECTORS):
        dense = np.stack([multiplied(column) for column in np.eye(size)])
        return np.asarray(np.linalg.eigvalsh((dense + dense.T) / 2)[::-1][:k], dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=size)
    if not multiplied(start).any():
        # a Krylov space that is nothing
        return np.zeros(k)
    operator = LinearOperator((size, size), matvec=multiplied, dtype=np.float64)
    space = max(2 * k + 1, _LEAST_VECTORS)
    found = eigsh(operator, k=k, which="LA", v0=start, tol=tolerance, ncv=space, return_eigenvectors=False)
    return np.asarray(np.sort(found)[::-1], dtype=np.float64)


def trace(product: Callable[[Tensor], Tensor], like: Tensor, vectors: int, seed: int) -> Trace:
    """Trace of a matrix that is known by its products: exact up to 1000 rows, else Hutchinson's estimate.

    Parameters
    ----------
    product, like, seed : as in `largest_eigenvalues`.
    vectors : random vectors of signs.

    Examples
    --------
    >>> print(trace(lambda v: torch.tensor([1.0, 2.0, 5.0]) * v, torch.zeros(3), 10, 0))
    8
    """
    size = like.numel()
    if size <= _EXACT_TRACE:
        total = sum(
            float(product(unit)[i]) for i, unit in enumerate(torch.eye(size, dtype=like.dtype, device=like.device))
        )
        return Trace(total, 0.0)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(vectors):
        signs = torch.as_tensor(random.choice([-1.0, 1.0], size=size)).to(like)
        found.append(float(signs @ product(signs)))
    return Trace(float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(vectors)))


def _mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the outputs with loss='mse', {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    return ((outputs - targets) ** 2).mean()


_LOSSES: dict[str, Loss] = {"cross_entropy": nn.functional.cross_entropy, "mse": _mean_squared_error}


def _flat(parts: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(weight).reshape(-1) if part is None else part.reshape(-1)
            for part, weight in zip(parts, weights, strict=True)
        ]
    )


def _tensor(inputs: Any, model: nn.Module) -> Tensor:
    return torch.as_tensor(inputs, device=next(model.parameters()).device)
