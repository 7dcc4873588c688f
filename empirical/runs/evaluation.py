"""Evaluate a network on whole data sets during a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical._progress import progress_bar
from empirical.data import Data, batch_indices
from empirical.networks import infer, record_statistics
from empirical.steps import Problem, TrainingState

# samples whose statistics are computed together, and samples per forward pass where statistics are given
_MAX_SAMPLES, _SAMPLES_AT_ONCE = 4096, 256


def evaluate(
    problem: Problem,
    data: Data,
    state: TrainingState,
    *,
    batch_size: int | None = None,
    max_samples: int = _MAX_SAMPLES,
    progress: bool | None = False,
) -> dict[str, float]:
    """Compute loss and error on the training and test set, in eval mode with statistics of the training set.

    Of a large training set, each part is normalized with its own statistics.

    Parameters
    ----------
    problem : its model is overwritten with the state.
    data : training samples to evaluate, and test and validation samples if there are any.
    state : state of one replica.
    batch_size : if given, also evaluate mini-batches of the problem in train mode, at the weights of the state. They
        have as many samples as `data`, an epoch if these are all samples, and the same order at every evaluation.
    max_samples : training samples whose statistics are computed together.
    progress : show a progress bar. Default: only in a terminal.

    Returns
    -------
    `train_loss` and `train_error`, and the same for `test` and `validation` if these sets exist. With `batch_size` also
    means over the mini-batches: `train_mode_loss`, `train_mode_error`, `mean_grad_norm` (mean of the gradient norms)
    and `full_grad_norm` (norm of the mean gradient). Both norms are of the measured weights, times the weight norm.
    """
    model = problem.model
    batches = 0 if batch_size is None else max(1, data.size // batch_size)
    total = passed_samples(data) + batches * (batch_size or 0)
    values: dict[str, float] = {}
    with progress_bar("evaluate", total, "sample", progress) as bar:
        state.write_into(model, problem.layout)
        if batch_size is not None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                values = _evaluate_batches(problem, batch_size, batches, bar.update)
            # running statistics of layers may have changed
            state.write_into(model, problem.layout)
        model.eval()
        outputs = set_training_statistics(model, data, max_samples, bar.update)
        values["train_loss"], values["train_error"] = _loss_and_error(outputs, data.targets)
        for name, inputs, targets in (
            ("test", data.test_inputs, data.test_targets),
            ("validation", data.validation_inputs, data.validation_targets),
        ):
            if inputs is not None and targets is not None:
                outputs = model_outputs(model, data, inputs, report=bar.update)
                values[f"{name}_loss"], values[f"{name}_error"] = _loss_and_error(outputs, targets)
    model.train()
    return values


def passed_samples(data: Data) -> int:
    """Return the number of samples that an evaluation passes through the network."""
    return data.size + sum(len(inputs) for inputs in (data.test_inputs, data.validation_inputs) if inputs is not None)


def set_training_statistics(
    model: nn.Module, data: Data, max_samples: int = _MAX_SAMPLES, report: Callable[[int], object] | None = None
) -> Tensor:
    """Store the statistics of the training set in a model in eval mode; return its outputs on that set.

    A large set is processed in parts. Each is normalized with its own statistics, as a mini-batch is, and those that
    are stored are pooled over the parts. They are exact for the first normalization. `report` receives the number of
    samples of each forward pass.
    """
    count = math.ceil(data.size / max_samples)
    outputs: list[Tensor] = []
    with record_statistics(model):
        for first in range(count):
            # evenly spaced, because the samples may be sorted by class
            outputs.append(model_outputs(model, data, data.inputs[first::count], max_samples, report))
    ordered = outputs[0].new_empty(data.size, *outputs[0].shape[1:])
    for first, part in enumerate(outputs):
        ordered[first::count] = part
    return ordered


def model_outputs(
    model: nn.Module,
    data: Data,
    inputs: Tensor,
    max_samples: int = _SAMPLES_AT_ONCE,
    report: Callable[[int], object] | None = None,
) -> Tensor:
    """Compute the outputs of a model for all inputs, in parts and without gradients."""
    outputs = []
    for part in inputs.split(max_samples):
        outputs.append(infer(model, part, data.network_inputs))
        if report is not None:
            report(len(part))
    return torch.cat(outputs)


def _loss_and_error(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    loss = float(cross_entropy(outputs, targets))
    return loss if math.isfinite(loss) else math.nan, _error(outputs, targets)


def _error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(dim=1) != targets).double().mean())


def _evaluate_batches(
    problem: Problem, batch_size: int, count: int, report: Callable[[int], object]
) -> dict[str, float]:
    model, layout = problem.model.train(), problem.layout
    parameters = dict(model.named_parameters())
    measured = [parameters[name] for name, (place, _) in layout.places.items() if place.stop <= layout.measured_size]
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in measured))
    batches = batch_indices(len(problem.inputs), batch_size, "without_replacement", 0, 0, count)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in measured]
    losses, errors, norms = 0.0, 0.0, 0.0
    for batch in torch.as_tensor(batches, device=problem.inputs.device):
        with problem.precision():
            outputs = model(problem.samples(batch))
        loss = cross_entropy(outputs.to(measured[0].dtype), problem.targets[batch])
        gradients = torch.autograd.grad(loss, measured)
        losses, errors = losses + loss.item(), errors + _error(outputs, problem.targets[batch])
        norms += math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for whole, gradient in zip(total, gradients, strict=True):
            whole += gradient
        report(batch_size)
    full = math.sqrt(sum(float(whole.square().sum()) for whole in total))
    return {
        "train_mode_loss": losses / count,
        "train_mode_error": errors / count,
        "mean_grad_norm": norm * norms / count,
        "full_grad_norm": norm * full / count,
    }
