"""Updates of optimizers, recomputed from the state after the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from theory.matrix import QUINTIC

_LEAST_COSINE = 0.9  # between the step of a user-defined Muon and orthogonalized momentum
_BIAS = 0.125  # assumed systematic error of an update, relative to the resolution of the weights
_LEAST_STEP = 0.01  # smaller steps of a weight, relative to the root mean square of its tensor, do not count


class Watched(NamedTuple):
    """One weight before the step; `product` is ⟨momentum, weight⟩ where decay acts through the momentum."""

    name: str
    weight: Tensor
    gradient: Tensor
    gradient_norm: Tensor
    product: Tensor | None


def update_name(optimizer: Any, group: Mapping[str, Any]) -> str:
    """Update that a group prescribes: SGD, Adam, AdamW, Muon, Lion or other Muon; empty if it is not known."""
    if isinstance(optimizer, torch.optim.SGD):
        return "SGD"
    if isinstance(optimizer, torch.optim.Adam):
        return "AdamW" if group.get("decoupled_weight_decay", False) else "Adam"
    if isinstance(optimizer, torch.optim.Muon):
        return "Muon"
    name = type(optimizer).__name__
    if name == "Lion" and {"lr", "betas", "weight_decay"} <= set(group):
        return "Lion"
    return "other Muon" if "Muon" in name and {"lr", "momentum", "weight_decay"} <= set(group) else ""


def has_step_of_torch(optimizer: Any) -> bool:
    """Whether an optimizer is one of PyTorch's, or a subclass with the same step."""
    for base in (torch.optim.SGD, torch.optim.Adam, torch.optim.Muon):
        if isinstance(optimizer, base):
            kind = type(optimizer)
            # torch.compile wraps these methods of each class once more
            pairs = ((kind.step, base.step), (kind._init_group, base._init_group))
            return all(inspect.unwrap(own) is inspect.unwrap(of_torch) for own, of_torch in pairs)
    return False


def coupled_buffer(kind: str, settings: Mapping[str, Any]) -> str | None:
    """Name of the momentum through which decay acts; None if it acts on the weights or there is none."""
    if settings["weight_decay"] == 0 or kind not in ("Adam", "SGD"):
        return None
    if kind == "Adam":
        return "exp_avg"
    return "momentum_buffer" if settings["momentum"] and not settings["nesterov"] else None


def adds_momentum_to_gradient(settings: Mapping[str, Any]) -> bool:
    """Whether `foreach` of SGD may have added the momentum to the gradient in place, as PyTorch 2 does."""
    keys = ("weight_decay", "maximize", "fused")
    possible = bool(settings.get("nesterov")) and settings.get("foreach", False) is not False
    return possible and not any(settings.get(key) for key in keys)


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of the settings of a group as numbers, because schedulers change them after the step."""
    settings = {key: value for key, value in group.items() if key != "params"}
    for key in {"lr", "weight_decay", "momentum", "dampening", "eps"} & set(settings):
        settings[key] = float(settings[key])
    if "betas" in settings:
        settings["betas"] = betas_of(group)
    return settings


def betas_of(group: Mapping[str, Any]) -> tuple[float, float]:
    first, second = group["betas"]
    return float(first), float(second)


def prescribed_update(
    kind: str, settings: Mapping[str, Any], state: Mapping[str, Any], start: Tensor, end: Tensor, slope: Tensor
) -> tuple[Tensor, float]:
    """Return what the step subtracts from the weights without decay, and the decay lr * wd that acts on them."""
    lr, intrinsic_lr = settings["lr"], settings["lr"] * settings["weight_decay"]
    if kind in ("Adam", "AdamW"):
        (beta1, beta2), step = settings["betas"], torch.as_tensor(state["step"]).double()
        if state_entry(state, "exp_avg", start, widen=False).dtype == torch.float16:
            raise ValueError("squares of gradients in float16 are too coarse to recompute the step")
        square = state_entry(state, "max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq", start)
        root = square.sqrt().div_((1 - beta2**step).sqrt()).add_(settings["eps"])
        update = root.reciprocal_().mul_(state_entry(state, "exp_avg", start)).mul_(lr / (1 - beta1**step))
        return update, intrinsic_lr if kind == "AdamW" else 0.0
    if kind == "SGD":
        momentum = settings["momentum"]
        if momentum == 0:
            return lr * slope, intrinsic_lr
        buffer = state_entry(state, "momentum_buffer", start)
        if not settings["nesterov"]:
            return lr * buffer, 0.0
        sums = [slope + momentum * buffer]
        if adds_momentum_to_gradient(settings):
            sums.append(slope)
        return min(
            (lr * total for total in sums), key=lambda update: float((start - end - update).norm())
        ), intrinsic_lr
    if kind == "Lion":
        (beta1, beta2), mean = settings["betas"], state_entry(state, "exp_avg", start)
        own = 1 - beta1 - beta1 * (1 - beta2) / beta2
        blend = beta1 / beta2 * mean + own * slope
        # where the two parts cancel up to the resolution of the state, the sign is that of the step
        resolution = 4 * torch.finfo(state["exp_avg"].dtype).eps * (beta1 / beta2 * mean.abs() + abs(own) * slope.abs())
        taken = start - end - intrinsic_lr * start
        return torch.where(blend.abs() <= resolution, taken, lr * blend.sign()), intrinsic_lr
    mean, momentum = state_entry(state, "momentum_buffer", start), settings["momentum"]
    if kind == "Muon":
        rows, columns = start.shape
        blend = slope.lerp(mean, momentum) if settings["nesterov"] else mean
        factor = math.sqrt(max(1, rows / columns))
        if settings["adjust_lr_fn"] == "match_rms_adamw":
            factor = 0.2 * math.sqrt(max(rows, columns))
        return lr * factor * _orthogonalized(blend, settings), intrinsic_lr
    return _best_direction([mean, slope.lerp(mean, momentum), slope + momentum * mean, slope], start, end, settings)


def _best_direction(
    blends: Sequence[Tensor], start: Tensor, end: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """Fit the step across the weights by one of several orthogonalized momenta times a factor."""
    if start.ndim < 2:
        raise ValueError("the update of vectors is not known")
    step, square = start - end, scalar_product(start, start)
    across = step - scalar_product(step, start) / square * start
    best, best_cosine = step, 0.0
    for blend in blends:
        direction = _orthogonalized(blend.flatten(1), settings).reshape(start.shape)
        tangent = direction - scalar_product(direction, start) / square * start
        overlap, length = float(scalar_product(across, tangent)), float(scalar_product(tangent, tangent))
        cosine = overlap / math.sqrt(max(length * float(scalar_product(across, across)), 1e-300))
        if cosine > best_cosine:
            best, best_cosine = direction * (overlap / length), cosine
    if best_cosine < _LEAST_COSINE:
        raise ValueError("the step is not along the orthogonalized momentum")
    return best, settings["lr"] * settings["weight_decay"]


def _orthogonalized(matrix: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Newton-Schulz iteration of Muon in bfloat16 (Keller Jordan, kellerjordan.github.io/posts/muon)."""
    a, b, c = settings.get("ns_coefficients", QUINTIC)
    wide = matrix.bfloat16()
    tall = matrix.size(0) > matrix.size(1)
    wide = wide.T if tall else wide
    wide = wide / wide.norm().clamp(min=settings.get("eps", 1e-7))
    for _ in range(int(settings.get("ns_steps", 5))):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.T if tall else wide).to(matrix.dtype)


def state_entry(state: Mapping[str, Any], key: str, like: Tensor, *, widen: bool = True) -> Tensor:
    """Entry of the state of one weight, at least in float32 if `widen`."""
    value = state.get(key)
    if not isinstance(value, Tensor) or value.shape != like.shape or value.layout != torch.strided:
        raise ValueError(f"the state has no tensor {key} of shape {tuple(like.shape)}")
    return value.detach().to(wide_dtype(like)) if widen else value.detach()


def wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def scalar_product(first: Tensor, second: Tensor) -> Tensor:
    """Scalar product of two tensors of the same shape, at least in float32."""
    if first is second:
        return tensor_norm(first) ** 2
    wide = wide_dtype(first)
    return (first.to(wide) * second.to(wide)).sum().double()  # pairwise summation


def watch(name: str, p: Tensor, kind: str, settings: Mapping[str, Any], state: Mapping[str, Any]) -> Watched:
    """Record what the check needs of one weight before the step."""
    assert p.grad is not None
    if p.grad.layout != torch.strided or p.is_complex():
        raise ValueError(f"{name} is complex or its gradient is sparse")
    product = None
    if (key := coupled_buffer(kind, settings)) is not None and isinstance(state.get(key), Tensor):
        product = scalar_product(state_entry(state, key, p), p.detach())
    norm = tensor_norm(p.grad)
    return Watched(name, p, p.grad, norm, product)


def compare_step(
    kind: str,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    item: Watched,
    before: Tensor,
    gradient: Tensor,
    gradient_norm: Tensor,
) -> dict[str, Tensor]:
    """Return sums over one weight: squared distances, decay, and counts of weights that move."""
    weight = item.weight.detach()
    wide = wide_dtype(weight)
    start, end = before.reshape(weight.shape).to(wide), weight.to(wide)
    lr, wd = settings["lr"], settings["weight_decay"]
    slope = gradient.detach().to(wide)
    slope = -slope if settings.get("maximize") else slope
    update, decay = prescribed_update(kind, settings, state, start, end, slope)
    square = scalar_product(start, start)
    planned = update.neg().sub_(start, alpha=decay)
    difference = end - (start + planned).to(weight.dtype).to(wide)
    planned_square = scalar_product(planned, planned)
    moves = planned.abs() > _LEAST_STEP * (planned_square / planned.numel()).sqrt()
    unmoved = (end == start) & moves
    nothing = torch.full_like(square, math.nan)
    full_decay, arrived = lr * wd * square, nothing
    doubt = _BIAS * torch.finfo(weight.dtype).eps * scalar_product(update, start).abs()
    if decay:  # compared with the rounded step without decay, so that rounding itself is no decay
        arrived = scalar_product((start - update).to(weight.dtype).to(wide) - end, start)
    elif wd and (key := coupled_buffer(kind, settings)) is not None:
        buffer = scalar_product(state_entry(state, key, weight), start)
        share = 1 - (settings["betas"][0] if kind == "Adam" else settings["dampening"])
        kept = settings["betas"][0] if kind == "Adam" else settings["momentum"]
        if item.product is None and kind == "SGD":  # the first gradient becomes the momentum as it is
            share = 1.0
        fresh, old = share * scalar_product(slope, start), torch.zeros_like(buffer)
        old = kept * item.product if item.product is not None else old
        arrived = (buffer - fresh - old) * lr / share
        doubt = torch.finfo(gradient.dtype).eps * (old.abs() + fresh.abs()) * lr / share
        arrived = torch.where(gradient_norm > 0, arrived, nothing)
    return {
        "deviation": nothing if kind == "other Muon" else scalar_product(difference, difference),
        "radial": scalar_product(difference, start) ** 2 / square.clamp(min=1e-300),
        "planned": planned_square,
        "rounding": torch.finfo(weight.dtype).eps ** 2 * square,
        "decay": arrived,
        "full_decay": full_decay,
        "doubt": doubt,
        "unmoved": lr * torch.count_nonzero(unmoved).double(),
        "moves": lr * torch.count_nonzero(moves).double(),
        "cleared": ((gradient_norm == 0) & (item.gradient_norm > 0)).double(),
    }


def tensor_norm(tensor: Tensor, order: float = 2) -> Tensor:
    """Norm of all entries together in float64; the largest absolute entry for order infinity."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), order, dtype=wide_dtype(tensor))
    return norm.double()
