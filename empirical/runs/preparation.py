"""From the settings of a run to what is trained: everything is checked and built before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empirical.config import CUSTOM, RunConfig
from empirical.data import Data, augmented, batch_indices, load_data, steps_per_epoch, user_data
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network
from empirical.runs.evaluation import evaluate
from empirical.steps import ENGINES, Hyper, Layout, Problem, State, chosen_engine
from simulate.trajectories.contract import BATCH_EVALUATIONS, EVALUATIONS, SCHEMA, VALIDATION_EVALUATIONS
from theory.optimizers import format_optimizer, with_dim
from theory.references import is_reference
from theory.schedules import learning_rates

ALL_TRAINED = "all trained weights"
# samples by which a network is looked at; bytes up to which images are kept as numbers
_LOOKED_AT, _SMALL_DATA = 1024, 2**26


@dataclass(frozen=True)
class Setup:
    """A run that is ready to begin.

    Attributes
    ----------
    config : its settings, with the engine that was chosen.
    problem, data : what is trained, on what.
    described : what `config.json` of its folder says.
    start : state before the first step.
    """

    config: RunConfig
    problem: Problem
    data: Data
    described: dict[str, Any]
    start: State

    @property
    def batch_size(self) -> int:
        """Samples of a mini-batch, all of them in full-batch descent."""
        return self.data.size if self.config.sampling == "full_batch" else self.config.batch_size

    def hyper(self, step: int, count: int) -> Hyper:
        """Rates and decays of the steps step … step+count-1."""
        config = self.config
        rates = torch.as_tensor(learning_rates(config.lr, step, step + count))[None]
        other = rates if config.other_lr is None else torch.full_like(rates, config.other_lr)
        decay = torch.tensor([config.wd], dtype=torch.float64)
        other_decay = decay if config.other_wd is None else torch.full_like(decay, config.other_wd)
        return Hyper(rates, other, decay, other_decay)

    def batches(self, step: int, count: int) -> Tensor:
        """Sample numbers of these steps, shape (1, count, batch)."""
        config, device = self.config, self.problem.inputs.device
        if config.sampling == "full_batch":
            return torch.arange(self.data.size, device=device).expand(1, count, -1)
        indices = batch_indices(
            self.data.size, config.batch_size, config.sampling, config.resolved_data_seed, step, step + count
        )
        return torch.as_tensor(indices, device=device)[None]

    def evaluated(self, state: State) -> dict[str, float]:
        """Values of the evaluations that the run asks for."""
        batch_size = min(self.config.batch_size, self.data.size) if self.config.evaluate_batches else None
        return evaluate(self.problem, self.data, state, batch_size=batch_size)


def prepare(
    config: RunConfig, model: nn.Module | None = None, data: Any = None, *, alike: Setup | None = None
) -> Setup:
    """Check everything and build what is trained.

    Parameters
    ----------
    config, model, data : as in `train`.
    alike : a run of the same shape, whose data are used again.

    Raises
    ------
    TypeError, ValueError : bad settings, model or data.

    Examples
    --------
    >>> prepare(RunConfig(lr=0.5, wd=0.01, width=8)).config.engine
    'kernel'
    """
    device, dtype = _device(config.device), getattr(torch, config.weight_dtype)
    for name, given, own in (("model", model, config.model), ("data", data, config.dataset)):
        if given is None and own == CUSTOM:
            raise ValueError(
                f"{name} must be given: 'custom' stands for the argument `{name}` of train, resume and load_model in "
                f"Python; elsewhere write the 'module:name' of a function that makes it; got None"
            )
    if alike is not None:
        held = alike.data
    else:
        held = _data(config, dtype, device) if data is None else user_data(data, dtype, device)
    looked_at = held.prepared(held.inputs[:_LOOKED_AT])
    batch_size = held.size if config.sampling == "full_batch" else config.batch_size
    per_epoch = steps_per_epoch(held.size, batch_size)
    config = dataclasses.replace(
        config, model=config.model if model is None else CUSTOM, dataset=config.dataset if data is None else CUSTOM
    )
    if model is None:
        network = build_network(config, looked_at, classes=int(held.targets.max()) + 1).to(device)
    elif isinstance(model, nn.Module):
        network = copy.deepcopy(model).to(device=device, dtype=dtype).train()
        _meet(network, looked_at[:2], config)
    else:
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = {name: group.weights for name, group in scale_invariant_groups(network, looked_at).items()}
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model must have parameters that require a gradient, got none")
    groups = found or {ALL_TRAINED: tuple(trained)}
    if config.other_lr == 0:
        grouped = {name for members in groups.values() for name in members}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in grouped)
    layout = Layout.of(network, groups)
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    problem = Problem(
        network,
        layout,
        held.inputs,
        held.targets,
        config.optimizer,
        autocast,
        fixed=config.fixed,
        micro_batch=config.micro_batch,
        prepare=_preparation(held, config.augmentation),
    )
    if config.replicas > 1 and _draws(network, looked_at[:2]):
        raise ValueError(
            f"replicas must be 1 for a network that draws random numbers in training, got {config.replicas}"
        )
    if config.engine == "auto":
        engine = chosen_engine(problem, batch_size) if config.replicas == 1 else "replicas"
        config = dataclasses.replace(config, engine=engine)
    # refuses a network that it cannot train
    ENGINES[config.engine](problem)
    if config.init_norm is not None:
        state = State.of(problem)
        state.weights[:, : layout.measured] *= config.init_norm / measured_norm(state, layout)
        state.write_into(network, layout)
    described = _describe(config, problem, groups, bool(found), held, per_epoch)
    return Setup(config, problem, held, described, State.of(problem))


def _meet(network: nn.Module, samples: Tensor, config: RunConfig) -> None:
    """Let a module of the user's own show, before anything else looks at it, that it takes the data."""
    try:
        with torch.random.fork_rng(), torch.no_grad():
            copy.deepcopy(network)(samples)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        where = "`data`" if config.dataset == CUSTOM else f"dataset {config.dataset!r} (or of `data`)"
        raise ValueError(
            f"model must take inputs of shape {tuple(samples.shape[1:])}, those of {where}, got the error: {error}"
        ) from error


def _draws(network: nn.Module, samples: Tensor) -> bool:
    """Tell whether a network uses random numbers of its device when it is called."""
    on_gpu = samples.device.type == "cuda"
    state: Callable[[], Tensor] = torch.cuda.get_rng_state if on_gpu else torch.get_rng_state
    with torch.random.fork_rng(), torch.no_grad():
        before = state()
        copy.deepcopy(network).train()(samples)
        return not torch.equal(before, state())


def _data(config: RunConfig, dtype: torch.dtype, device: torch.device) -> Data:
    held = load_data(
        config.dataset,
        dtype,
        device,
        classes=config.classes,
        samples=config.samples,
        validation=config.validation,
        label_noise=config.label_noise,
        seed=config.dataset_seed,
    )
    # small images are drawn faster as numbers, and large ones, and those to be padded, are kept as bytes
    is_small = held.inputs.numel() * dtype.itemsize <= _SMALL_DATA
    return held.as_numbers() if is_small and config.augmentation is None else held


def _preparation(data: Data, augmentation: int | None) -> Callable[[Tensor], Tensor] | None:
    """What is done to the samples of a mini-batch, if anything."""
    if augmentation is not None:
        if data.inputs.ndim != 4:
            raise ValueError(f"augmentation must be None for data that are no images, got {augmentation}")
        return lambda images: data.prepared(augmented(images, augmentation))
    return data.prepared if data.inputs.dtype == torch.uint8 and data.mean is not None else None


def _describe(
    config: RunConfig, problem: Problem, groups: dict[str, tuple[str, ...]], invariant: bool, data: Data, per_epoch: int
) -> dict[str, Any]:
    # training does not use their number; what is said of the run does
    rule = with_dim(config.optimizer, problem.layout.measured)
    attributes: dict[str, Any] = {
        # what is held makes it another rule
        "optimizer": format_optimizer(rule) + (f" with fixed {config.fixed}" if config.fixed else ""),
        "wd": float(config.wd),
        "config": json.dumps(config.to_dict()),
        "scale_invariant": invariant,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if not callable(config.lr):
        attributes["lr"] = float(config.lr)
    identity = config.identity
    # what a user's function makes today is part of it
    own_model, own_data = (name == CUSTOM or is_reference(name) for name in (config.model, config.dataset))
    if own_model or own_data:
        own = hashlib.sha256(identity.encode())
        if own_model:
            own.update(repr([(name, tuple(p.shape)) for name, p in problem.model.named_parameters()]).encode())
        if own_data:
            own.update(data.inputs.cpu().numpy().tobytes() + data.targets.cpu().numpy().tobytes())
        identity = own.hexdigest()
    return {
        "schema": SCHEMA,
        "identity": identity,
        "config": config.to_dict(),
        "groups": list(groups),
        "evaluations": [
            *EVALUATIONS,
            *(VALIDATION_EVALUATIONS if data.validation_inputs is not None else ()),
            *(BATCH_EVALUATIONS if config.evaluate_batches else ()),
        ],
        "group_weights": {name: list(members) for name, members in groups.items()},
        "attributes": attributes,
        "first_norm": measured_norm(State.of(problem), problem.layout),
        "epochs_per_step": 1 / per_epoch,
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device must be one that torch can use here, got {name!r}") from None
    return device


def measured_norm(state: State, layout: Layout) -> float:
    """Norm of the measured weights of the first replica.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> measured_norm(State(torch.tensor([[3.0, 4.0]]), {}), Layout.of(model, {"w": ("weight",)}))
    5.0
    """
    return float(state.weights[0, : layout.measured].double().norm())
