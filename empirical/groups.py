"""Which weights of a model are scale-invariant: found by measurement, never by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# ε of the normalizations while measuring; PyTorch's own layers refuse 0
_TINY_EPS = 1e-30
_PROBES, _SAMPLES = 4, 64
# Float64 leaves 1e-12 on invariant weights; weights that are not invariant have defects of 1e-3 to 1.
_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Group:
    """Parameters that can be scaled together without changing the output of the model in train mode.

    Attributes
    ----------
    weights : names of the parameters.
    defect : largest absolute cosine between gradient and weights over random losses, with the model's own weights
        and ε: 0 for perfect scale invariance, larger where ε is felt.
    """

    weights: tuple[str, ...]
    defect: float


def scale_invariant_groups(model: nn.Module, inputs: Tensor) -> dict[str, Group]:
    """Find the trained parameters of a model that are scale-invariant.

    A parameter w is scale-invariant if the output in train mode is the same at ½w and 2w and the radial derivative of
    random losses vanishes, for random values of all parameters (so that nothing hides behind a zero initialization)
    and with the ε of every normalization made tiny. Parameters whose value does not matter at all (such as a bias
    before a normalization) are inert and left out. The measurement runs on a float64 copy; model, buffers and the
    random state are not touched.

    Parameters
    ----------
    model : any module whose output is a tensor.
    inputs : some samples, at least 2.

    Returns
    -------
    dict of Group by parameter name, in the order in which the forward pass uses them; empty if there are none.

    Raises
    ------
    TypeError, ValueError : `model` is no module, or `inputs` no tensor of at least two samples.

    Source: docs/mathematics.md §1 (Euler's relation).

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> list(scale_invariant_groups(model, torch.randn(16, 5)))
    ['0.weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(inputs, Tensor) or inputs.ndim == 0 or len(inputs) < 2:
        got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be a tensor of at least 2 samples, got {got}")
    generator = torch.Generator().manual_seed(0)
    samples = _samples(inputs, generator)
    with torch.random.fork_rng(devices=[]):
        own = _measured_copy(model)
        order = _forward_order(own, samples)
        random = _measured_copy(model)
        _randomize(random, generator)
        for module in random.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = _TINY_EPS  # type: ignore[assignment]
        found = [name for name in order if _is_invariant(random, name, samples, generator)]
        defects = _radial_defects(own, found, samples, generator)
    return {name: Group((name,), defects[name]) for name in found}


def _samples(inputs: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(len(inputs), generator=generator)[:_SAMPLES]
    samples = inputs.detach()[chosen.to(inputs.device)].cpu()
    return samples.double() if samples.is_floating_point() else samples


def _measured_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().double().train()


def _output(model: nn.Module, samples: Tensor) -> Tensor:
    # the same random numbers in every call: dropout must not look like a change of the function
    torch.manual_seed(0)
    output: Tensor = model(samples)
    return output


def _forward_order(model: nn.Module, samples: Tensor) -> list[str]:
    """Names of the trained parameters, by the first use of the module that owns them."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    used: dict[str, None] = {}

    def note(prefix: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            used[prefix] = None

        return hook

    hooks = [module.register_forward_pre_hook(note(prefix)) for prefix, module in model.named_modules()]
    with torch.no_grad():
        _output(model, samples)
    for hook in hooks:
        hook.remove()
    rank = {prefix: number for number, prefix in enumerate(used)}
    return sorted(trained, key=lambda name: rank.get(name.rpartition(".")[0], len(rank)))


def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(1 + 0.5 * noise)


def _is_invariant(model: nn.Module, name: str, samples: Tensor, generator: torch.Generator) -> bool:
    parameter = model.get_parameter(name)
    before = parameter.detach().clone()

    def output_at(value: Tensor) -> Tensor:
        with torch.no_grad():
            parameter.copy_(value)
            output = _output(model, samples)
            parameter.copy_(before)
        return output

    reference = output_at(before)
    scale = reference.abs().max()

    def same(value: Tensor) -> bool:
        return bool((output_at(value) - reference).abs().max() <= _TOLERANCE * scale)

    if not (same(before / 2) and same(before * 2)):
        return False
    other = torch.randn(before.shape, generator=generator, dtype=torch.float64) * before.norm() / before.numel() ** 0.5
    inert = same(other)
    return not inert and _radial_defects(model, [name], samples, generator)[name] <= _TOLERANCE


def _radial_defects(
    model: nn.Module, names: list[str], samples: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Largest absolute cosine between weights and gradient over random linear and quadratic losses of the output."""
    parameters = [model.get_parameter(name) for name in names]
    worst = dict.fromkeys(names, 0.0)
    for _ in range(_PROBES if names else 0):
        output = _output(model, samples)
        linear, quadratic = (torch.randn(output.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        loss = (linear * output + quadratic * output * output).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            size = 0.0 if gradient is None else float(gradient.norm() * parameter.detach().norm())
            if gradient is not None and size > 0:
                worst[name] = max(worst[name], abs(float((gradient * parameter.detach()).sum())) / size)
    return worst
