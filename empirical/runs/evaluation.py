"""Evaluate a network on whole data sets during a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical.data import Data, batch_indices
from empirical.networks import record_statistics
from empirical.steps import Problem, TrainingState

_MAX_SAMPLES = 4096


def evaluate(
    problem: Problem,
    data: Data,
    state: TrainingState,
    *,
    batch_size: int | None = None,
    max_samples: int = _MAX_SAMPLES,
) -> dict[str, float]:
    """Compute loss and error on the whole training and test set, in eval mode with statistics of the training set.

    Parameters
    ----------
    problem : its model is overwritten with the state.
    data : training set, and test set if there is one.
    state : state of one replica.
    batch_size : if given, also evaluate the mini-batches of one epoch in train mode, at the weights of the state.
        Their order is the same at every evaluation.
    max_samples : samples per forward pass.

    Returns
    -------
    `train_loss` and `train_error`, and the same for `test` and `validation` if these sets exist. With `batch_size` also
    means over the mini-batches: `train_mode_loss`, `train_mode_error`, `mean_grad_norm` (mean of the gradient norms)
    and `full_grad_norm` (norm of the mean gradient). Both norms are of the measured weights, times the weight norm.
    """
    model = problem.model
    state.write_into(model, problem.layout)
    values: dict[str, float] = {}
    if batch_size is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            values = _evaluate_batches(problem, data, batch_size)
        # running statistics of layers may have changed
        state.write_into(model, problem.layout)
    model.eval()
    outputs = set_training_statistics(model, data, max_samples)
    values["train_loss"], values["train_error"] = _loss_and_error(outputs, data.targets)
    for name, inputs, targets in (
        ("test", data.test_inputs, data.test_targets),
        ("validation", data.validation_inputs, data.validation_targets),
    ):
        if inputs is not None and targets is not None:
            outputs = model_outputs(model, data, inputs, max_samples)
            values[f"{name}_loss"], values[f"{name}_error"] = _loss_and_error(outputs, targets)
    model.train()
    return values


def set_training_statistics(model: nn.Module, data: Data, max_samples: int = _MAX_SAMPLES) -> Tensor:
    """Store the statistics of the whole training set in a model in eval mode; return its outputs on that set.

    A large set is processed in parts, whose statistics are pooled. The result is exact for the first normalization.
    Later ones see inputs that were normalized with the statistics of their part.
    """
    with record_statistics(model):
        outputs = model_outputs(model, data, data.inputs, max_samples)
    return outputs if data.size <= max_samples else model_outputs(model, data, data.inputs, max_samples)


def model_outputs(model: nn.Module, data: Data, inputs: Tensor, max_samples: int = _MAX_SAMPLES) -> Tensor:
    """Compute the outputs of a model for all inputs, in parts and without gradients."""
    with torch.no_grad():
        return torch.cat([model(data.network_inputs(part)) for part in inputs.split(max_samples)])


def _loss_and_error(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    loss = float(cross_entropy(outputs, targets))
    return loss if math.isfinite(loss) else math.nan, _error(outputs, targets)


def _error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(dim=1) != targets).double().mean())


def _evaluate_batches(problem: Problem, data: Data, batch_size: int) -> dict[str, float]:
    model, layout = problem.model.train(), problem.layout
    parameters = dict(model.named_parameters())
    measured = [parameters[name] for name, (place, _) in layout.places.items() if place.stop <= layout.measured_size]
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in measured))
    batches = batch_indices(data.size, batch_size, "without_replacement", 0, 0, data.size // batch_size)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in measured]
    losses, errors, norms = 0.0, 0.0, 0.0
    for batch in torch.as_tensor(batches, device=data.inputs.device):
        with problem.precision():
            outputs = model(problem.samples(batch))
        loss = cross_entropy(outputs.to(measured[0].dtype), data.targets[batch])
        gradients = torch.autograd.grad(loss, measured)
        losses, errors = losses + loss.item(), errors + _error(outputs, data.targets[batch])
        norms += math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for whole, gradient in zip(total, gradients, strict=True):
            whole += gradient
    full = math.sqrt(sum(float(whole.square().sum()) for whole in total))
    count = len(batches)
    return {
        "train_mode_loss": losses / count,
        "train_mode_error": errors / count,
        "mean_grad_norm": norm * norms / count,
        "full_grad_norm": norm * full / count,
    }
