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

from empirical._model_copy import one_line
from empirical.groups import scale_invariant_groups
from theory.arguments import check_choice, check_integer, check_items, check_number, quote

Loss = Callable[[Tensor, Tensor], Tensor]
_EXACT_TRACE = 1000  # number of weights up to which traces are exact
_IGNORED = -100  # target that PyTorch's cross-entropy ignores
_LEAST_VECTORS = 20  # least dimension of the Krylov space


@dataclass(frozen=True)
class TraceEstimate:
    """Trace of a matrix and its standard error, which is 0 for an exact trace."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ± {self.stderr:.2g}" if self.stderr else "")


@dataclass(frozen=True)
class Curvature:
    """Curvature of the loss of one batch in train mode.

    Attributes
    ----------
    loss, gradient_norm : loss of the batch, and norm of its gradient by the chosen weights.
    hessian_eigenvalues, gauss_newton_eigenvalues : largest eigenvalues over the chosen weights, descending, shape (k,).
    fisher_eigenvalues : those of the Fisher matrix of the model's own distribution of targets; None for a custom loss.
    hessian_trace, gauss_newton_trace, fisher_trace : traces of the same matrices.
    spherical_sharpness : ρ²·λ_max(H), with the Hessian H over all scale-invariant weights together and their norm ρ. It
        does not depend on the scale of the weights. NaN for a model without such weights.
    tangent_sharpness : ρ²·λ_max(PHP), within the tangent space of the sphere; the h of `theory.critical_norm`.
    norm : ρ.
    products : number of matrix-vector products; each costs about two gradients.
    """

    loss: float
    gradient_norm: float
    hessian_eigenvalues: npt.NDArray[np.float64]
    gauss_newton_eigenvalues: npt.NDArray[np.float64]
    fisher_eigenvalues: npt.NDArray[np.float64] | None
    hessian_trace: TraceEstimate | None
    gauss_newton_trace: TraceEstimate | None
    fisher_trace: TraceEstimate | None
    spherical_sharpness: float
    tangent_sharpness: float
    norm: float
    products: int


class LossCurvature:
    """Loss of one batch as a function of some weights: value, gradient, and products with curvature matrices.

    It copies the model and puts the copy in train mode; parameters, buffers and random state of the model do not
    change. The graph of the batch is built once, so dropout drops the same units in every product. Products use two
    backward passes of autograd, which are correct through PyTorch's fused normalizations; `torch.func.hessian` is not.

    Parameters are those of `curvature`.
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
        chosen = list(named) if weights is None else list(check_items("weights", weights))
        unknown = [name for name in chosen if name not in named]
        if unknown or not chosen:
            raise ValueError(f"weights must be names of trained parameters, got {quote(unknown or chosen)}")
        self._weights = [named[name] for name in chosen]
        self._kind = loss if isinstance(loss, str) else None
        self._function: Loss = _LOSSES[loss] if isinstance(loss, str) else loss
        device = self._weights[0].device
        tensors = [_as_tensor(name, values, device) for name, values in (("inputs", inputs), ("targets", targets))]
        inputs, self._targets = (
            values.to(self._weights[0].dtype) if values.is_floating_point() else values for values in tensors
        )
        # fused attention has no second derivative
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), sdpa_kernel(SDPBackend.MATH):
            try:
                self._outputs = self._model(inputs)
            except Exception as error:  # the model is the caller's
                raise ValueError(f"model must accept inputs, but raised {one_line(error)}") from error
            try:
                self._loss = self._function(self._outputs, self._targets)
            except Exception as error:  # so is the loss
                raise ValueError(
                    f"targets must fit the outputs of the model, but loss raised {one_line(error)}"
                ) from error
        if not isinstance(self._loss, Tensor) or self._loss.numel() != 1:
            raise ValueError("loss must return one number for the batch")
        gradient: Sequence[Tensor | None] = [None]
        if self._loss.requires_grad:
            gradient = torch.autograd.grad(self._loss, self._weights, create_graph=True, allow_unused=True)
        if all(part is None for part in gradient):
            raise ValueError("loss must depend on the weights, but its gradient is empty")
        self._gradient = _flatten(gradient, self._weights)
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
        """Gradient, shape (size,)."""
        return self._gradient.detach()

    @property
    def point(self) -> Tensor:
        """Weights, shape (size,)."""
        return torch.cat([weight.detach().reshape(-1) for weight in self._weights])

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return H v."""
        self.products += 1
        if not self._gradient.requires_grad:
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(
            self._gradient, self._weights, vector.to(self._gradient), retain_graph=True, allow_unused=True
        )
        return _flatten(parts, self._weights).to(vector)

    def tangent_product(self, vector: Tensor) -> Tensor:
        """Return P H P v with the projection P onto the tangent space of the sphere through the weights."""
        radial = self.point / self.point.norm()
        tangent = vector - radial * (radial @ vector)
        product = self.hessian_product(tangent)
        projected: Tensor = product - radial * (radial @ product)
        return projected

    def gauss_newton_product(self, vector: Tensor) -> Tensor:
        """Return Jᵀ B J v with the Jacobian J of the outputs and the Hessian B of the loss by the outputs."""
        return self._through_outputs(vector, self._output_hessian_product)

    def fisher_product(self, vector: Tensor) -> Tensor:
        """Return F v with the Fisher matrix F: batch mean of the covariance of gradients of -ln p, for targets from p.

        For the cross-entropy p is the softmax of the outputs. For the mean squared error p is normal, with the variance
        for which the loss is -ln p up to a constant. Both equal the Gauss-Newton matrix, but are computed differently.
        """
        if self._kind is None:
            raise ValueError("loss must be 'cross_entropy' or 'mse' for a Fisher matrix, got a function")
        return self._through_outputs(vector, self._output_fisher_product)

    def _through_outputs(self, vector: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        self.products += 1
        # J v by two backward passes: Jᵀu is linear in u, so no layer needs a second derivative
        cotangent = torch.zeros_like(self._outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            self._outputs, self._weights, cotangent, create_graph=True, retain_graph=True, allow_unused=True
        )
        (pushed,) = torch.autograd.grad(_flatten(pulled, self._weights), cotangent, vector.to(self._gradient))
        parts = torch.autograd.grad(
            self._outputs, self._weights, between(pushed).detach(), retain_graph=True, allow_unused=True
        )
        return _flatten(parts, self._weights).to(vector)

    def _output_hessian_product(self, pushed: Tensor) -> Tensor:
        outputs = self._outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._function(outputs, self._targets), outputs, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(pushed)
        product: Tensor = torch.autograd.grad(slope, outputs, pushed)[0]
        return product

    def _output_fisher_product(self, pushed: Tensor) -> Tensor:
        count = self._outputs.numel()
        if self._kind == "mse":
            # -ln p = (z-y)²/2s with 2s = number of outputs: the variance of its derivative is 1/s
            product: Tensor = pushed * (2 / count)
            return product
        probabilities = torch.softmax(self._outputs.detach(), dim=1)
        centred: Tensor = pushed - torch.sum(probabilities * pushed, dim=1, keepdim=True)
        if self._targets.is_floating_point():
            samples: float | Tensor = count / self._outputs.shape[1]
        else:
            is_counted = (self._targets != _IGNORED).to(probabilities.dtype)
            centred, samples = centred * is_counted.unsqueeze(1), is_counted.sum()
        covariance: Tensor = probabilities * centred / samples
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
    model : any module whose output is a tensor, with any kind of normalization. It does not change, nor do its buffers.
    inputs, targets : one batch. With batch normalization the loss is a function of the whole batch.
    k : number of eigenvalues, the largest ones.
    loss : "cross_entropy", "mse", or a function of outputs and targets that returns one number.
    weights : names of the parameters for eigenvalues and traces; default: all trained ones.
    traces : whether to compute traces: exactly for up to 1000 weights, else by Hutchinson's method.
    vectors : number of random vectors of Hutchinson's method. The error falls with its square root.
    tolerance : relative tolerance of the eigenvalues. 1e-3 takes about 25 products, each of two gradients.
    dtype : data type of the computation. None keeps that of the model, which is faster and less accurate.
    seed : seed of random vectors and of dropout.

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
    >>> result = curvature(model, torch.randn(16, 5), torch.arange(16) % 3)
    >>> result.hessian_eigenvalues.shape, result.spherical_sharpness >= result.tangent_sharpness > 0
    ((1,), True)
    """
    count, vectors = check_integer("k", k, at_least=1), check_integer("vectors", vectors, at_least=2)
    tolerance = check_number("tolerance", tolerance, above=0, below=1)
    seed = check_integer("seed", seed, at_most=2**63 - 1)
    if not np.ndim(inputs) or len(inputs) < 2:
        raise ValueError(
            "inputs must be a batch of at least 2 samples, which are needed to find scale-invariant weights"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = LossCurvature(model, inputs, targets, loss=loss, weights=weights, dtype=dtype)
    if count > whole.size:
        raise ValueError(f"k must be at most the number of weights, {whole.size}, got {count}")
    matrices = {"hessian": whole.hessian_product, "gauss_newton": whole.gauss_newton_product}
    if isinstance(loss, str):
        matrices["fisher"] = whole.fisher_product
    measured: dict[str, Any] = {"fisher_eigenvalues": None}
    for name, product in matrices.items():
        measured[f"{name}_eigenvalues"] = largest_eigenvalues(product, whole.point, count, tolerance, seed)
    for name in ("hessian", "gauss_newton", "fisher"):
        is_known = traces and name in matrices
        measured[f"{name}_trace"] = trace(matrices[name], whole.point, vectors, seed) if is_known else None
    samples = torch.as_tensor(inputs, device=next(model.parameters()).device)
    groups = scale_invariant_groups(model, samples)
    members = [name for group in groups.values() for name in group.weights]
    sharpness = tangent = norm = math.nan
    products = whole.products
    if members:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sphere = LossCurvature(model, inputs, targets, loss=loss, weights=members, dtype=dtype)
        norm = float(sphere.point.norm())
        (top,) = largest_eigenvalues(sphere.hessian_product, sphere.point, 1, tolerance, seed)
        (within,) = largest_eigenvalues(sphere.tangent_product, sphere.point, 1, tolerance, seed)
        sharpness, tangent = norm**2 * float(top), norm**2 * float(within)
        products += sphere.products
    return Curvature(
        loss=whole.loss,
        gradient_norm=float(whole.gradient.norm()),
        **measured,
        spherical_sharpness=sharpness,
        tangent_sharpness=tangent,
        norm=norm,
        products=products,
    )


def largest_eigenvalues(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int, tolerance: float, seed: int
) -> npt.NDArray[np.float64]:
    """Largest eigenvalues of a symmetric matrix A from products with it, descending.

    `product` returns A v for vectors v with the size and type of `like`. `tolerance` is relative. `seed` is that of the
    first vector.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = like.numel()

    def multiply(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        tensor = torch.as_tensor(vector.reshape(-1), dtype=torch.float64).to(like)
        return product(tensor).double().cpu().numpy()

    # a Krylov space must be larger than the number of eigenvalues
    if size <= max(2 * count + 1, _LEAST_VECTORS):
        dense = np.stack([multiply(column) for column in np.eye(size)])
        return np.asarray(np.linalg.eigvalsh((dense + dense.T) / 2)[::-1][:count], dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=size)
    if not multiply(start).any():
        # the Krylov space would be empty
        return np.zeros(count)
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    space = max(2 * count + 1, _LEAST_VECTORS)
    eigenvalues = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance, ncv=space, return_eigenvectors=False)
    return np.asarray(np.sort(eigenvalues)[::-1], dtype=np.float64)


def trace(product: Callable[[Tensor], Tensor], like: Tensor, vectors: int, seed: int) -> TraceEstimate:
    """Trace of a matrix from products with it: exact for up to 1000 rows, else by Hutchinson's method.

    `vectors` is the number of random vectors of signs; the other arguments are those of `largest_eigenvalues`.
    """
    size = like.numel()
    if size <= _EXACT_TRACE:
        total = sum(
            float(product(unit)[i]) for i, unit in enumerate(torch.eye(size, dtype=like.dtype, device=like.device))
        )
        return TraceEstimate(total, 0.0)
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(vectors):
        signs = torch.as_tensor(random.choice([-1.0, 1.0], size=size)).to(like)
        samples.append(float(signs @ product(signs)))
    return TraceEstimate(float(np.mean(samples)), float(np.std(samples, ddof=1) / math.sqrt(vectors)))


def _mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the outputs with loss='mse', {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    return ((outputs - targets) ** 2).mean()


_LOSSES: dict[str, Loss] = {"cross_entropy": nn.functional.cross_entropy, "mse": _mean_squared_error}


def _as_tensor(name: str, values: Any, device: torch.device) -> Tensor:
    """Tensor of an argument on a device."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array, got {quote(values)}") from error
    if tensor.ndim == 0 or tensor.is_meta:
        raise ValueError(f"{name} must hold samples, got {quote(tensor)}")
    return tensor.to(device)


def _flatten(parts: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(weight).reshape(-1) if part is None else part.reshape(-1)
            for part, weight in zip(parts, weights, strict=True)
        ]
    )
