"""Prepare a run from its settings: check and build everything before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empirical.config import CUSTOM, RunConfig
from empirical.data import Data, augment, batch_indices, equal_batches, load_data, steps_per_epoch, user_data
from empirical.groups import scale_invariant_groups
from empirical.networks import build_network
from empirical.runs.evaluation import evaluate
from empirical.steps import ENGINES, Hyper, Problem, TrainingState, WeightLayout, choose_engine
from simulate.trajectories.contract import BATCH_EVALUATIONS, CONSTRAINTS, EVALUATIONS, VALIDATION_EVALUATIONS
from simulate.trajectories.folder import RunDescription
from theory.arguments import quote
from theory.optimizers import format_optimizer, with_dim
from theory.references import is_reference
from theory.schedules import learning_rates

ALL_TRAINED = "all trained weights"
# samples for finding scale-invariant weights; largest size in bytes of images that are stored as numbers
_SAMPLE_COUNT, MAX_BYTES_AS_NUMBERS = 1024, 2**26


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs to begin.

    Attributes
    ----------
    config : settings, with the chosen engine.
    problem, data : network with optimizer, and data set.
    description : description of the run, which its folder stores.
    start : state before the first step.
    """

    config: RunConfig
    problem: Problem
    data: Data
    description: RunDescription
    start: TrainingState

    @property
    def batch_size(self) -> int:
        """Number of samples per mini-batch; all samples in full-batch descent."""
        return self.data.size if self.config.sampling == "full_batch" else self.config.batch_size

    def hyper(self, step: int, count: int) -> Hyper:
        """Return the learning rates and weight decays of steps step … step+count-1."""
        config = self.config
        lr = torch.as_tensor(learning_rates(config.lr, step, step + count))[None]
        other_lr = lr if config.other_lr is None else torch.full_like(lr, config.other_lr)
        wd = torch.tensor([config.wd], dtype=torch.float64)
        other_wd = wd if config.other_wd is None else torch.full_like(wd, config.other_wd)
        return Hyper(lr, other_lr, wd, other_wd)

    def batches(self, step: int, count: int) -> Tensor:
        """Return the sample indices of these steps, shape (1, count, batch)."""
        config, device = self.config, self.problem.inputs.device
        if config.sampling == "full_batch" and config.micro_batch is None:
            return torch.arange(self.data.size, device=device).expand(1, count, -1)
        # in full-batch descent the order decides which samples are in one micro-batch
        sampling = "without_replacement" if config.sampling == "full_batch" else config.sampling
        indices = batch_indices(
            self.data.size, self.batch_size, sampling, config.resolved_data_seed, step, step + count
        )
        return torch.as_tensor(indices, device=device)[None]

    def steps_at_once(self, step: int) -> int:
        """Return how many steps from this one on have mini-batches of one size."""
        config = self.config
        if config.sampling != "all_samples":
            return config.steps
        return equal_batches(self.data.size, config.batch_size, config.sampling, step)

    @functools.cached_property
    def evaluation_data(self) -> Data:
        """The samples that are evaluated."""
        return self.data.evenly_spaced(self.config.evaluation_samples)

    def evaluate(
        self, state: TrainingState, data: Data | None = None, progress: bool | None = False
    ) -> dict[str, float]:
        """Evaluate a state as the settings ask, on `evaluation_data` or on other samples of these data."""
        batch_size = min(self.config.batch_size, self.data.size) if self.config.evaluate_batches else None
        data = self.evaluation_data if data is None else data
        return evaluate(self.problem, data, state, batch_size=batch_size, progress=progress)


def prepare(
    config: RunConfig,
    model: nn.Module | None = None,
    data: Any = None,
    *,
    alike: Setup | None = None,
    max_bytes_as_numbers: int = MAX_BYTES_AS_NUMBERS,
    progress: bool | None = False,
) -> Setup:
    """Check all settings, then build network, data and initial state.

    Parameters
    ----------
    config, model, data : as in `train`.
    alike : a prepared run of the same shape, whose data are reused.
    max_bytes_as_numbers : largest size of images that are stored as numbers; larger ones stay bytes.
    progress : show a progress bar while images are decoded. None: only in a terminal.
    """
    device, dtype = _select_device(config.device), getattr(torch, config.weight_dtype)
    for name, argument, setting in (("model", model, config.model), ("data", data, config.dataset)):
        if argument is None and setting == CUSTOM:
            raise ValueError(
                f"{name} must be given: 'custom' stands for the argument `{name}` of train, resume and load_model in "
                f"Python. Elsewhere, pass the 'module:name' of a function that returns it. Got None"
            )
    if alike is not None:
        dataset = alike.data
    else:
        dataset = (
            _load_training_data(config, dtype, device, max_bytes_as_numbers, progress)
            if data is None
            else user_data(data, dtype, device, config.pixel_constants)
        )
    samples = dataset.network_inputs(dataset.inputs[:_SAMPLE_COUNT])
    batch_size = dataset.size if config.sampling == "full_batch" else config.batch_size
    per_epoch = steps_per_epoch(dataset.size, batch_size, config.sampling)
    config = mark_own(config, model, data)
    if model is None:
        network = build_network(config, samples, classes=int(dataset.targets.max()) + 1).to(device)
    elif isinstance(model, nn.Module):
        network = copy.deepcopy(model).to(device=device, dtype=dtype).train()
        _check_forward(network, samples[:2], config)
    else:
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    invariant = {name: group.weights for name, group in scale_invariant_groups(network, samples).items()}
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model must have parameters that require a gradient, got none")
    groups = invariant or {ALL_TRAINED: tuple(trained)}
    if config.other_lr == 0:
        grouped = {name for members in groups.values() for name in members}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in grouped)
    layout = WeightLayout.of(network, groups)
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    problem = Problem(
        network,
        layout,
        dataset.inputs,
        dataset.targets,
        config.optimizer,
        autocast,
        fixed=config.fixed,
        micro_batch=config.micro_batch,
        transform=_sample_transform(dataset, config.augmentation),
    )
    if config.replicas > 1 and _draws_random_numbers(network, samples[:2]):
        raise ValueError(
            f"replicas must be 1 for a network that draws random numbers in training, got {config.replicas}"
        )
    if config.engine == "auto":
        engine = choose_engine(problem, batch_size) if config.replicas == 1 else "replicas"
        config = dataclasses.replace(config, engine=engine)
    if config.engine in ("replicas", "compiled"):
        # these engines use this layout, so evaluations can use it without a second copy of the images
        dataset = dataset.channels_last()
        transform = _sample_transform(dataset, config.augmentation)
        problem = dataclasses.replace(problem, inputs=dataset.inputs, transform=transform)
    # raises for a network that the engine cannot train
    ENGINES[config.engine](problem)
    if config.init_norm is not None:
        state = TrainingState.of(problem)
        state.weights[:, : layout.measured_size] *= config.init_norm / measured_norm(state, layout)
        state.write_into(network, layout)
    description = _describe(config, problem, groups, bool(invariant), dataset, per_epoch)
    return Setup(config, problem, dataset, description, TrainingState.of(problem))


def _check_forward(network: nn.Module, samples: Tensor, config: RunConfig) -> None:
    """Check that a user's module accepts the data."""
    try:
        with torch.random.fork_rng(), torch.no_grad():
            copy.deepcopy(network)(samples)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        source = "`data`" if config.dataset == CUSTOM else f"dataset {config.dataset!r} (or of `data`)"
        raise ValueError(
            f"model must take inputs of shape {tuple(samples.shape[1:])}, those of {source}, got the error: {error}"
        ) from error


def _draws_random_numbers(network: nn.Module, samples: Tensor) -> bool:
    """Return whether a forward pass draws random numbers on the device of the network."""
    on_gpu = samples.device.type == "cuda"
    state: Callable[[], Tensor] = torch.cuda.get_rng_state if on_gpu else torch.get_rng_state
    with torch.random.fork_rng(), torch.no_grad():
        before = state()
        copy.deepcopy(network).train()(samples)
        return not torch.equal(before, state())


def _load_training_data(
    config: RunConfig, dtype: torch.dtype, device: torch.device, max_bytes: int, progress: bool | None
) -> Data:
    dataset = load_data(
        config.dataset,
        dtype,
        device,
        classes=config.classes,
        samples=config.samples,
        validation=config.validation,
        label_noise=config.label_noise,
        seed=config.dataset_seed,
        pixel_constants=config.pixel_constants,
        progress=progress,
    )
    # batches of small image sets are faster as numbers; large sets and images to be padded stay bytes
    is_small = dataset.inputs.numel() * dtype.itemsize <= max_bytes
    return dataset.as_numbers() if is_small and config.augmentation is None else dataset


def _sample_transform(data: Data, augmentation: int | None) -> Callable[[Tensor], Tensor] | None:
    """Return the function applied to the samples of a mini-batch, or None."""
    if augmentation is not None:
        if data.inputs.ndim != 4:
            raise ValueError(f"augmentation must be None for data other than images, got {augmentation}")
        return lambda images: data.network_inputs(augment(images, augmentation))
    return data.network_inputs if data.inputs.dtype == torch.uint8 and data.mean is not None else None


def _describe(
    config: RunConfig, problem: Problem, groups: dict[str, tuple[str, ...]], invariant: bool, data: Data, per_epoch: int
) -> RunDescription:
    # training does not need the number of weights, but predictions do
    rule = with_dim(config.optimizer, problem.layout.measured_size)
    attributes: dict[str, Any] = {
        "optimizer": format_optimizer(rule),
        "constraint": CONSTRAINTS[config.fixed],
        "wd": float(config.wd),
        "config": json.dumps(config.to_dict()),
        "scale_invariant": invariant,
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if not callable(config.lr):
        attributes["lr"] = float(config.lr)
    identity = config.identity
    # the identity includes what a user's function returns now
    has_own_model, has_own_data = (name == CUSTOM or is_reference(name) for name in (config.model, config.dataset))
    if has_own_model or has_own_data:
        digest = hashlib.sha256(identity.encode())
        if has_own_model:
            digest.update(repr([(name, tuple(p.shape)) for name, p in problem.model.named_parameters()]).encode())
        if has_own_data:
            digest.update(data.inputs.cpu().numpy().tobytes() + data.targets.cpu().numpy().tobytes())
        identity = digest.hexdigest()
    return RunDescription(
        identity=identity,
        config=config.to_dict(),
        attributes=attributes,
        groups=groups,
        evaluations=(
            *EVALUATIONS,
            *(VALIDATION_EVALUATIONS if data.validation_inputs is not None else ()),
            *(BATCH_EVALUATIONS if config.evaluate_batches else ()),
        ),
        first_norm=measured_norm(TrainingState.of(problem), problem.layout),
        epochs_per_step=1 / per_epoch,
    )


def mark_own(config: RunConfig, model: Any, data: Any) -> RunConfig:
    """Return the settings of a run with a caller's module and arrays, if these are not None."""
    return dataclasses.replace(
        config, model=config.model if model is None else CUSTOM, dataset=config.dataset if data is None else CUSTOM
    )


def own_digest(model: nn.Module | None, data: Data | None) -> str:
    """Return a digest of the module and the samples that a caller passed to a sweep; "" if there are none."""
    if model is None and data is None:
        return ""
    layers = [] if model is None else [(name, type(layer).__qualname__) for name, layer in model.named_modules()]
    digest = hashlib.sha256(repr(layers).encode())
    weights = () if model is None else model.state_dict().values()
    samples = () if data is None else (data.inputs, data.targets, data.test_inputs, data.test_targets)
    for tensor in (*weights, *samples):
        if tensor is not None:
            digest.update(repr((tensor.shape, tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _select_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device must be available to torch on this machine, got {quote(name)}") from None
    return device


def measured_norm(state: TrainingState, layout: WeightLayout) -> float:
    """Return the norm of the measured weights of the first replica."""
    return float(state.weights[0, : layout.measured_size].double().norm())
