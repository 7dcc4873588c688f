"""Evaluations of a run on its whole data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from empirical.data import Data, batch_indices
from empirical.networks import recorded_statistics
from empirical.steps import Problem, State

# samples that go through the network at a time
_AT_ONCE = 4096


def evaluate(problem: Problem, data: Data, state: State, *, batch_size: int | None = None) -> dict[str, float]:
    """Loss and error on the whole training and test set, in eval mode with the statistics of the training set.

    Parameters
    ----------
    problem : its model is overwritten by the state.
    data : training set, and test set if there is one.
    state : of one replica.
    batch_size : if given, also the losses, errors and gradients of the mini-batches of one epoch in train mode, at
        the weights of the state, in an order that is the same at every evaluation.

    Returns
    -------
    `train_loss`, `train_error`, the same of `test` and `validation` where there are such sets; with `batch_size` also
    means over the mini-batches: `train_mode_loss`, `train_mode_error`, `mean_grad_norm` (of the norms) and
    `full_grad_norm` (norm of the mean), both of the measured weights and times their norm.

    Examples
    --------
    >>> import theory
    >>> from empirical.steps import Layout
    >>> model = nn.Linear(3, 2, bias=False)
    >>> data = Data(torch.randn(10, 3), torch.zeros(10).long())
    >>> problem = Problem(model, Layout.of(model, {"w": ("weight",)}), data.inputs, data.targets, theory.SGD())
    >>> list(evaluate(problem, data, State.of(problem)))
    ['train_loss', 'train_error']
    """
    model = problem.model
    state.write_into(model, problem.layout)
    values: dict[str, float] = {}
    if batch_size is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            values = _of_batches(problem, data, batch_size)
        # layers with a memory of their own have seen the batches
        state.write_into(model, problem.layout)
    model.eval()
    outputs = record_statistics(model, data)
    values["train_loss"], values["train_error"] = _loss_and_error(outputs, data.targets)
    for name, inputs, targets in (
        ("test", data.test_inputs, data.test_targets),
        ("validation", data.validation_inputs, data.validation_targets),
    ):
        if inputs is not None and targets is not None:
            values[f"{name}_loss"], values[f"{name}_error"] = _loss_and_error(outputs_of(model, data, inputs), targets)
    model.train()
    return values


def record_statistics(model: nn.Module, data: Data) -> Tensor:
    """Give a model in eval mode the statistics of the whole training set; return its outputs there.

    Where the set goes through in parts, the statistics of the parts are pooled: exact for the first normalization,
    while the later ones get inputs that were normalized by the statistics of their part.

    Examples
    --------
    >>> model = nn.Linear(3, 2).eval()
    >>> tuple(record_statistics(model, Data(torch.randn(10, 3), torch.zeros(10).long())).shape)
    (10, 2)
    """
    with recorded_statistics(model):
        outputs = outputs_of(model, data, data.inputs)
    return outputs if data.size <= _AT_ONCE else outputs_of(model, data, data.inputs)


def outputs_of(model: nn.Module, data: Data, inputs: Tensor) -> Tensor:
    """Outputs of a model for all samples of a set, in parts, without gradients.

    Examples
    --------
    >>> tuple(outputs_of(nn.Linear(3, 2), Data(torch.randn(10, 3), torch.zeros(10).long()), torch.randn(5, 3)).shape)
    (5, 2)
    """
    with torch.no_grad():
        return torch.cat([model(data.prepared(part)) for part in inputs.split(_AT_ONCE)])


def _loss_and_error(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    loss = float(cross_entropy(outputs, targets))
    return loss if math.isfinite(loss) else math.nan, _error(outputs, targets)


def _error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(dim=1) != targets).double().mean())


def _of_batches(problem: Problem, data: Data, batch_size: int) -> dict[str, float]:
    model, layout = problem.model.train(), problem.layout
    parameters = dict(model.named_parameters())
    measured = [parameters[name] for name, (place, _) in layout.places.items() if place.stop <= layout.measured]
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
