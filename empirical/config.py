"""Configuration of a training run: all settings that determine its trajectory, as plain numbers and strings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import theory
from theory.arguments import (
    check_choice,
    check_flag,
    check_integer,
    check_intrinsic_lr,
    check_number,
    check_real,
    quote,
    suggestion,
)
from theory.optimizers import OPTIMIZERS, check_optimizer, optimizer_class, optimizer_class_name, with_dim
from theory.references import is_reference
from theory.schedules import SCHEDULES, learning_rates

# default width of each model, and default depth of the models with a variable depth
DEFAULT_WIDTHS = {"mlp": 64, "convnet": 4, "resnet18": 64, "transformer": 64}
DEFAULT_DEPTHS = {"mlp": 2, "convnet": 3, "transformer": 2}
EMBEDDED_DATASETS = ("digits", "mnist5k", "gaussian", "random_labels")
HUB_DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist")
NORMALIZATIONS = ("batch", "layer", "group", "instance", "weight", "rms", "none")
# words that a setting may be; model, normalization and dataset may also refer to something of the user
CHOICES: dict[str, tuple[str, ...]] = {
    "model": tuple(DEFAULT_WIDTHS),
    "normalization": NORMALIZATIONS,
    "fixed": ("norm", "effective_lr"),
    "dataset": (*EMBEDDED_DATASETS, *HUB_DATASETS),
    "pixel_constants": ("data", "cifar10"),
    "sampling": ("without_replacement", "all_samples", "with_replacement", "full_batch"),
    "dtype": ("float32", "float64", "bfloat16"),
    "engine": ("auto", "eager", "kernel", "replicas", "compiled"),
}
CUSTOM = "custom"

# Not part of a run's identity: a longer run continues a shorter one, on any device.
_OUTSIDE_IDENTITY = ("steps", "device")
# settings in which replicas that train together may differ
_MAY_DIFFER_BETWEEN_REPLICAS = ("lr", "wd", "other_lr", "other_wd", "init_norm", "seed", "data_seed", "steps")

_Class = TypeVar("_Class", bound=type[Any])


def _is_number(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "iuf"
    except Exception:  # objects of other libraries raise errors of many kinds
        return False


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Part of the settings of a run, which checks its own settings. `RunConfig` describes them all.

    `RunConfig` inherits every part. Hence its settings are flat, and each part is also a class of its own. Every part
    first calls the check of the part before it.
    """

    def __post_init__(self) -> None:
        """Check that each setting is one value, and a number or a bool if its type says so."""
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), str(f.type)
            is_many = isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)
            if is_many and not kind.startswith("tuple"):
                raise ValueError(
                    f"{f.name} must be one {'number' if kind.startswith('float') else 'value'}, got {quote(value)}; "
                    f"for several runs use empirical.grid({f.name}=[…]) in Python, or the table [grid] in a file"
                )
            is_other_kind = callable(value) if f.name == "lr" else value is None and f.default is None
            if kind.startswith("float") and not is_other_kind and not _is_number(value):
                schedule = " or a schedule such as theory.Cosine" if f.name == "lr" else ""
                raise TypeError(f"{f.name} must be a number{schedule}, got {quote(value)}")
            if kind == "bool":
                object.__setattr__(self, f.name, check_flag(f.name, value))

    def _check_each(self, check: Callable[..., Any], *names: str, **limits: float) -> None:
        """Apply a check to several settings. None is allowed where it is the default."""
        for name in names:
            value = getattr(self, name)
            if value is not None or getattr(type(self), name) is not None:
                check(name, value, **limits)


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(_Settings):
    """Learning rate, weight decay and optimizer."""

    lr: float | theory.Schedule
    wd: float
    optimizer: theory.Optimizer = field(default_factory=theory.SGD)

    def __post_init__(self) -> None:
        super().__post_init__()
        # files and the command line give the optimizer as text
        object.__setattr__(self, "optimizer", check_optimizer(self.optimizer))
        if not dataclasses.is_dataclass(self.optimizer):
            raise TypeError(f"optimizer must be {', '.join(OPTIMIZERS)} or a dataclass, got {quote(self.optimizer)}")
        if isinstance(self.optimizer, theory.Muon):
            raise ValueError(
                f"optimizer must take all weights as one vector, but {self.optimizer!r} takes one matrix; train with "
                "torch.optim.Muon in your own loop, and measure with empirical.Monitor"
            )
        optimizer_class_name(self.optimizer)
        check_number("wd", self.wd, at_least=0)
        if not callable(self.lr):
            check_number("lr", self.lr, above=0)
        elif type(self.lr).__name__ not in SCHEDULES:
            raise ValueError(f"lr must be a number or one of {', '.join(SCHEDULES)}, got {quote(self.lr)}")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(_Settings):
    """The network, and which of its weights are trained."""

    model: str = "mlp"
    width: int | None = None
    depth: int | None = None
    normalization: str = "batch"
    norm_eps: float = 1e-12
    scale_invariant: bool = True
    seeded_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("model", self.model), ("normalization", self.normalization)):
            if value not in CHOICES[name] and not is_reference(value) and (name, value) != ("model", CUSTOM):
                raise ValueError(
                    f"{name} must be one of {', '.join(CHOICES[name])}, or the 'module:name' of your own; "
                    f"got {quote(value)}{suggestion(value, CHOICES[name])}"
                )
        self._check_each(check_integer, "width", "depth", at_least=1)
        if self.depth is not None and self.model in DEFAULT_WIDTHS and self.model not in DEFAULT_DEPTHS:
            raise ValueError(f"depth must be None for model={self.model!r}, whose depth is fixed, got {self.depth}")
        if self.model == "mlp" and self.normalization == "instance":
            raise ValueError(
                "normalization must not be 'instance' for model='mlp', because its channels are single numbers"
            )
        if self.scale_invariant and self.normalization == "none" and self.model != CUSTOM:
            raise ValueError(
                "scale_invariant must be False with normalization='none', got True: without it no weight is invariant"
            )

    @property
    def resolved_width(self) -> int | None:
        """`width`, or the default of the model; None for a custom model."""
        return self.width if self.width is not None else DEFAULT_WIDTHS.get(self.model)

    @property
    def resolved_depth(self) -> int | None:
        """`depth`, or the default of the model; None for a model of fixed depth."""
        return self.depth if self.depth is not None else DEFAULT_DEPTHS.get(self.model)


@dataclass(frozen=True, kw_only=True)
class WeightSettings(_Settings):
    """Initial norm and constraint of the scale-invariant weights, and the update of the other weights."""

    other_lr: float | None = None
    other_wd: float | None = None
    fixed: str | None = None
    init_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_each(check_number, "other_lr", "other_wd", at_least=0)
        if self.fixed is not None:
            check_choice("fixed", self.fixed, CHOICES["fixed"])
        self._check_each(check_number, "init_norm", above=0)


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Settings):
    """The data, and how mini-batches are drawn from them."""

    dataset: str = "digits"
    classes: tuple[int, ...] | None = None
    samples: int | None = None
    validation: float = 0.0
    label_noise: float = 0.0
    dataset_seed: int = 0
    pixel_constants: str = "data"
    augmentation: int | None = None
    batch_size: int = 64
    sampling: str = "without_replacement"
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name, names = self.dataset, CHOICES["dataset"]
        if not isinstance(name, str) or not (
            name in (*names, CUSTOM) or name.count("/") == 1 or is_reference(name) or Path(name).exists()
        ):
            raise ValueError(
                f"dataset must be one of {', '.join(names)}, an id 'owner/name' of Hugging Face, an existing path, or "
                f"the 'module:name' of your own function; got {quote(name)}{suggestion(name, names)}"
            )
        if self.classes is not None:
            classes = self.classes
            if isinstance(classes, (str, int)) or len(set(classes)) != len(classes) or len(classes) < 2:
                raise ValueError(f"classes must be at least two different class numbers, got {quote(self.classes)}")
            # files and the command line give a list
            object.__setattr__(self, "classes", tuple(check_integer("classes", number) for number in classes))
        self._check_each(check_integer, "samples", at_least=2)
        check_number("validation", self.validation, at_least=0, below=1)
        check_number("label_noise", self.label_noise, at_least=0, at_most=1)
        self._check_each(check_integer, "dataset_seed", "augmentation")
        self._check_each(check_integer, "batch_size", "micro_batch", at_least=1)
        check_choice("pixel_constants", self.pixel_constants, CHOICES["pixel_constants"])
        check_choice("sampling", self.sampling, CHOICES["sampling"])


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings(_Settings):
    """Length, random seeds, number format and hardware."""

    steps: int = 10_000
    seed: int = 0
    data_seed: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    engine: str = "auto"
    replicas: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("steps", self.steps)
        self._check_each(check_integer, "seed", "data_seed", at_most=2**63 - 1)
        check_choice("dtype", self.dtype, CHOICES["dtype"])
        if not isinstance(self.device, str) or not self.device:
            raise TypeError(f"device must be a string such as 'cpu', 'cuda' or 'auto', got {quote(self.device)}")
        check_choice("engine", self.engine, CHOICES["engine"])
        if check_integer("replicas", self.replicas, at_least=1) > 1 and self.engine == "kernel":
            raise ValueError(
                f"replicas must be 1 with engine='kernel', which trains one run at a time, got {self.replicas}"
            )

    @property
    def weight_dtype(self) -> str:
        """Type of the weights: float32 for bfloat16, else `dtype`."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def resolved_data_seed(self) -> int:
        """Seed of the order of the data: `data_seed`, or `seed`."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(_Settings):
    """When and on what a run is evaluated."""

    evaluate_every: int = 1000
    evaluation_samples: int | None = None
    evaluate_batches: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("evaluate_every", self.evaluate_every, at_least=1)
        self._check_each(check_integer, "evaluation_samples", at_least=2)


# settings of optimizers, which people look for in the configuration of a run
_OF_OPTIMIZERS = ("momentum", "nesterov", "betas", "weight_decay")
_OPTIMIZER_HINT = "; weight decay is wd, and others are part of the optimizer: optimizer='SGD(momentum=0.9)'"


def _suggest_settings(cls: _Class) -> _Class:
    """Make a dataclass suggest the closest field when it is given an unknown setting."""
    init: Callable[..., None] = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in fields:
                hint = _OPTIMIZER_HINT if name in _OF_OPTIMIZERS else suggestion(name, fields)
                raise TypeError(f"{cls.__name__} has no setting {name!r}{hint}")
        init(self, *args, **settings)

    cls.__init__ = checked
    return cls


# the order of the fields is that of the parts from the last to the first
@_suggest_settings
@dataclass(frozen=True, kw_only=True)
class RunConfig(EvaluationSettings, ExecutionSettings, DataSettings, WeightSettings, NetworkSettings, UpdateSettings):
    """Settings of one training run. They are checked on construction.

    Only `lr` and `wd` are required. A value of None selects the default that is named below. `bnwd train` has an option
    for each setting; its help is the first sentence about the setting.

    Parameters
    ----------
    lr : learning rate η > 0. In Python it may be a schedule such as `theory.Cosine`.
    wd : weight decay λ >= 0, as in `torch.optim`: coupled for SGD and Adam, decoupled for AdamW and Lion. ηλ must be
        below the limit of the optimizer, which is 2 for SGD.
    optimizer : `theory.SGD()`, `theory.AdamW(dim=…)`, …, its text form, or your own (docs/add_an_optimizer.md); None is
        `theory.SGD()`. Its `dim` does not affect training: the trajectory stores the optimizer with the number of
        measured weights as `dim`.
    model : "mlp", "convnet", "resnet18", "transformer", or the "module:name" of your own (docs/add_a_model.md). The
        convnet and the pre-activation ResNet are those of the paper, and the transformer acts on image patches. `train`
        sets "custom" for a module that is passed to it.
    width : hidden units (mlp), channels w of the first convolution (convnet, resnet18) or token size (transformer);
        default 4 for the convnet, 64 for the others. The paper has 32 and 64.
    depth : hidden layers (mlp, default 2), convolutions after the first (convnet, default 3) or blocks (transformer,
        default 2).
    normalization : "batch", "layer", "group", "instance", "rms", "weight", "none" (a control), or the "module:name" of
        your own (docs/add_a_normalization.md). "weight" is weight normalization of each filter.
    norm_eps : number ε that normalization adds to the variance. PyTorch's default of 1e-5 breaks scale invariance at
        small norms.
    scale_invariant : train scale-invariant weights only, or all weights. True: no affine parameters, and a frozen last
        layer of norm 10. All trained weights are then scale-invariant, except values and first linear layers of the
        transformer. False: all parameters are trained.
    seeded_head : draw the frozen last layer from `seed`, as in the paper. By default it is the same in all runs, so
        that runs with different seeds train the same network.
    other_lr : learning rate of trained weights that are not scale-invariant, by default `lr`; 0 freezes them.
    other_wd : weight decay of trained weights that are not scale-invariant, by default `wd`.
    fixed : "norm" or "effective_lr" of the scale-invariant weights stays constant. "norm" rescales these weights to
        their initial norm after every step, which is training on a sphere; it needs `wd=0`. "effective_lr" multiplies
        their gradient by ρ², so that `lr` is the effective learning rate; it needs SGD. With either, the norm does not
        follow the one-step law of the optimizer. Default None: neither.
    init_norm : initial norm ρ of the scale-invariant weights, by default the norm after initialization.
    dataset : "digits", "mnist5k", "gaussian", "random_labels", "cifar10", "cifar100", "svhn", "mnist", "fashion_mnist",
        an id "owner/name" of Hugging Face, the path of local images, or the "module:name" of your own
        (docs/add_a_data_set.md). The first four need no download; the others are cached after the first download.
        `train` sets "custom" for data that are passed to it.
    classes : class numbers to keep, by default all.
    samples : number of training samples to keep, by default all.
    validation : share of the training samples to set apart for validation.
    label_noise : share of the remaining training samples that get a wrong label.
    dataset_seed : seed of the choice of `samples`, `validation` and `label_noise`.
    pixel_constants : mean and standard deviation of each colour, with which images of bytes are normalized. "data":
        those of the training images. "cifar10": (0.4914, 0.4822, 0.4465) and (0.2023, 0.1994, 0.2010), as in the paper.
    augmentation : number of pixels of padding for random crops; half of the training images are then also flipped.
        Default None: no augmentation.
    batch_size : samples per mini-batch, on which periods depend.
    sampling : "without_replacement", "all_samples", "with_replacement" or "full_batch". The first two draw a new order
        in each epoch. "without_replacement" drops the incomplete batch at its end, and "all_samples" keeps it, as the
        paper does. "full_batch" uses all training samples in every step and ignores `batch_size`.
    micro_batch : samples per forward pass, for batches that exceed the memory; by default the whole batch. The
        gradients are accumulated. Batch normalization then uses the statistics of each micro-batch, so the loss is
        another, noisier function than that of the whole batch. In full-batch descent, micro-batches are drawn anew in
        each step, as in the paper.
    steps : number of updates.
    seed : seed of the initial trained weights.
    data_seed : seed of the order of the data, by default `seed`.
    dtype : "float32", "float64" or "bfloat16" (matrix products only). "bfloat16" keeps the weights in float32 and
        computes matrix products in bfloat16, which is fast on hardware with bfloat16 units. It changes the loss by
        rounding: check that the periods are those of float32.
    device : "cpu", "cuda", "cuda:1", … or "auto", which uses a GPU if there is one.
    engine : "auto", "eager", "kernel", "replicas" or "compiled". "eager" is plain autograd, the reference for the other
        engines. "kernel" is compiled code, several times as fast, for fully scale-invariant networks with batch
        normalization, plain SGD and the CPU. "replicas" is PyTorch's fused layers, replayed as one graph on a GPU.
        "compiled" is `torch.compile`, which needs a compiler. "auto" takes "kernel" where it is the fastest, else
        "replicas". Folder and trajectory of a run name the engine that was used; the results of engines differ by
        rounding.
    replicas : number of runs that a sweep may train side by side in the same steps. It changes the rounding, so it is
        part of the run's identity (docs/sweeps.md).
    evaluate_every : number of steps between evaluations on the training and test set. One more evaluation follows the
        last step.
    evaluation_samples : largest number of training samples and of test samples that are evaluated, by default all. They
        are evenly spaced over each set and equal in every evaluation. Normalization uses the statistics of these
        training samples.
    evaluate_batches : also evaluate losses and gradients of mini-batches. Each evaluation then passes the mini-batches
        of an epoch, or of `evaluation_samples`, through the network at fixed weights. It records loss and error in
        train mode, the mean gradient norm, and the norm of the mean gradient. This costs about as much as an epoch.

    Raises
    ------
    TypeError, ValueError : a setting is unknown or out of range, or settings contradict each other.

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.01, model="convnet", steps=1000)
    >>> config.resolved_width, config.resolved_data_seed
    (4, 0)
    >>> RunConfig(lr=-0.5, wd=0.01)
    Traceback (most recent call last):
    ...
    ValueError: lr must be a finite number > 0, got -0.5
    """

    def __post_init__(self) -> None:
        """Check all parts, and then the settings that restrict settings of another part."""
        super().__post_init__()
        lr = learning_rates(self.lr, 0, self.steps) if callable(self.lr) else check_real("lr", self.lr)
        check_intrinsic_lr(lr, check_real("wd", self.wd), below=self.optimizer.intrinsic_lr_limit)
        if self.fixed == "norm" and self.wd != 0:
            raise ValueError(f"wd must be 0 with fixed='norm', got {quote(self.wd)}")
        if self.fixed == "effective_lr" and not isinstance(self.optimizer, theory.SGD):
            raise ValueError(f"optimizer must be SGD with fixed='effective_lr', got {quote(self.optimizer)}")
        # a smaller ε would vanish, and a channel without variance would be divided by zero
        check_number("norm_eps", self.norm_eps, at_least=float(np.finfo(self.weight_dtype).tiny))
        if self.replicas > 1 and self.sampling == "all_samples":
            raise ValueError(f"replicas must be 1 with sampling='all_samples', got {self.replicas}")
        if self.replicas > 1 and self.augmentation is not None:
            raise ValueError(f"replicas must be 1 with augmentation, which draws random numbers, got {self.replicas}")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of all settings that determine the trajectory. Runs with equal identity can continue each other.

        Examples
        --------
        >>> short, long = RunConfig(lr=0.5, wd=0.01, steps=10), RunConfig(lr=0.5, wd=0.01, steps=20, width=64)
        >>> short.identity == long.identity, short.identity == RunConfig(lr=0.4, wd=0.01).identity
        (True, False)
        """
        # defaults are left out, so that settings added later do not change the identity of old runs
        defaults = {f.name: _plain(f.default) for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
        decisive = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _OUTSIDE_IDENTITY and not (name in defaults and value == defaults[name])
        }
        return hashlib.sha256(json.dumps({**decisive, **self._resolved}, sort_keys=True).encode()).hexdigest()

    @property
    def _resolved(self) -> dict[str, int | None]:
        """Settings whose default depends on other settings, with that default filled in."""
        return {"width": self.resolved_width, "depth": self.resolved_depth, "data_seed": self.resolved_data_seed}

    def settings_without(self, names: Collection[str]) -> str:
        """All settings except some, as text with defaults filled in.

        The `dim` of an optimizer is ignored, because it does not affect training.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01, width=64), RunConfig(lr=0.1, wd=0.01)
        >>> one.settings_without({"lr"}) == other.settings_without({"lr"})
        True
        """
        settings = {**self.to_dict(), **self._resolved, "optimizer": _plain(with_dim(self.optimizer, 1))}
        return json.dumps({name: value for name, value in settings.items() if name not in names}, sort_keys=True)

    @property
    def shape(self) -> str:
        """Settings that runs must share to train together as replicas, as text with defaults filled in.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01), RunConfig(lr=0.1, wd=0.02, seed=3)
        >>> one.shape == other.shape, one.shape == RunConfig(lr=0.5, wd=0.01, width=8).shape
        (True, False)
        """
        return self.settings_without(_MAY_DIFFER_BETWEEN_REPLICAS)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values. Optimizer and schedule become {name: settings}.

        Examples
        --------
        >>> RunConfig(lr=theory.Constant(0.5), wd=0.01).to_dict()["lr"]
        {'Constant': {'lr': 0.5}}
        """
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, trust: bool = False) -> RunConfig:
        """Build a configuration from the output of `to_dict`.

        Parameters
        ----------
        content : settings as plain values, for example from a file.
        trust : whether the module of a user-defined optimizer may be imported. Otherwise it must be loaded already.

        Raises
        ------
        ValueError : a field, optimizer or schedule is unknown.

        Examples
        --------
        >>> config = RunConfig(lr=theory.WarmUp(5, theory.Cosine(0.5, 0.1, steps=9)), wd=0.01)
        >>> RunConfig.from_dict(config.to_dict()) == config
        True
        """
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in content:
            check_choice("field", name, fields)
        return cls(**{name: from_plain(value, trust=trust) for name, value in content.items()})


def _plain(value: Any) -> Any:
    """Setting as a number, text or list, or as {name: settings} for an optimizer or schedule."""
    if type(value) in (int, float, str, bool, type(None)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        optimizer_or_schedule: Any = value
        # defaults are left out, so that settings added later do not change the identity of old runs
        settings = {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.default is dataclasses.MISSING or getattr(value, f.name) != f.default
        }
        is_schedule = type(value) in SCHEDULES.values()
        return {type(value).__name__ if is_schedule else optimizer_class_name(optimizer_or_schedule): settings}
    if isinstance(value, tuple):
        return list(value)
    return value.item() if hasattr(value, "item") else value


def from_plain(value: Any, *, trust: bool = True) -> Any:
    """Build an optimizer or schedule from {name: settings}; return any other value unchanged.

    `trust` is that of `theory.optimizers.optimizer_class`.
    """
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not isinstance(settings := next(iter(value.values())), dict):
        raise ValueError(f"an optimizer or schedule must be one name with its settings, got {quote(value)}")
    (name,) = value
    kind = SCHEDULES[name] if name in SCHEDULES else optimizer_class(name, trust=trust)
    return kind(**{key: from_plain(item, trust=trust) for key, item in settings.items()})
