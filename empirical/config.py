"""Configuration of a training run: all settings that determine its trajectory, as plain numbers and strings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import theory
from theory.arguments import (
    check_choice,
    check_integer,
    check_intrinsic_lr,
    check_number,
    check_real,
    check_wd,
    suggestion,
)
from theory.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    optimizer_class,
    optimizer_class_name,
    with_dim,
)
from theory.references import is_reference
from theory.schedules import SCHEDULES, learning_rates

# default width of each model, and default depth of the models with a variable depth
DEFAULT_WIDTHS = {"mlp": 64, "convnet": 8, "resnet18": 64, "transformer": 64}
DEFAULT_DEPTHS = {"mlp": 2, "convnet": 3, "transformer": 2}
EMBEDDED_DATASETS = ("digits", "mnist5k", "gaussian", "random_labels")
HUB_DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist")
NORMALIZATIONS = ("batch", "layer", "group", "instance", "weight", "rms", "none")
SAMPLINGS = ("without_replacement", "with_replacement", "full_batch")
CONSTRAINTS = ("norm", "effective_lr")
DTYPES = ("float32", "float64", "bfloat16")
ENGINE_NAMES = ("auto", "eager", "kernel", "replicas", "compiled")
CUSTOM = "custom"

# Not part of a run's identity: a longer run continues a shorter one, on any device.
_OUTSIDE_IDENTITY = ("steps", "device")
# settings in which replicas that train together may differ
_MAY_DIFFER_BETWEEN_REPLICAS = ("lr", "wd", "other_lr", "other_wd", "init_norm", "seed", "data_seed", "steps")
_NUMBER_FIELDS = ("lr", "wd", "norm_eps", "other_lr", "other_wd", "init_norm", "validation", "label_noise")

_Class = TypeVar("_Class", bound=type[Any])


def _suggest_settings(cls: _Class) -> _Class:
    """Make a dataclass suggest the closest field when it is given an unknown setting."""
    init: Callable[..., None] = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in fields:
                raise TypeError(f"{cls.__name__} has no setting {name!r}{suggestion(name, fields)}")
        init(self, *args, **settings)

    cls.__init__ = checked
    return cls


@_suggest_settings
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one training run. They are checked on construction.

    Only `lr` and `wd` are required. A value of None selects the default that is named below.

    Parameters
    ----------
    lr : learning rate η > 0, or a schedule such as `theory.Cosine`.
    wd : weight decay λ >= 0. ηλ must be below the limit of the optimizer, which is 2 for SGD.
    optimizer : `theory.SGD()`, `theory.AdamW(dim=…)`, …, or your own (docs/add_an_optimizer.md). Its `dim` does not
        affect training: the trajectory stores the optimizer with the number of measured weights as `dim`.
    model : "mlp", "convnet" (3×3 convolutions with w, 2w, 2w, … channels), "resnet18" (pre-activation), "transformer"
        (on image patches), or the "module:name" of your own function (docs/add_a_model.md). `train` sets "custom" for a
        module that is passed to it.
    width : hidden units (mlp), channels w (convnet, resnet18) or token size (transformer). Default 8 for the convnet,
        64 for the others.
    depth : hidden layers (mlp, default 2), convolutions (convnet, default 3) or blocks (transformer, default 2).
    normalization : "batch", "layer", "group", "instance", "rms", "weight" (weight normalization of each filter), or
        the "module:name" of your own (docs/add_a_normalization.md). "none" is a control.
    norm_eps : ε that normalization adds to the variance. PyTorch's default of 1e-5 breaks scale invariance at small
        norms.
    scale_invariant : True: no affine parameters, and a frozen last layer of norm 10. All trained weights are then
        scale-invariant, except values and first linear layers of the transformer. False: all parameters are trained.
    other_lr, other_wd : learning rate and weight decay of trained weights that are not scale-invariant; default `lr`
        and `wd`. `other_lr=0` freezes these weights, `other_wd=0` trains them without weight decay.
    fixed : None, "norm" or "effective_lr". "norm" rescales the scale-invariant weights to their initial norm after
        every step, which is training on a sphere; it needs `wd=0`. "effective_lr" multiplies the gradient of these
        weights by ρ², so that `lr` is the effective learning rate; it needs SGD. With either, the norm does not follow
        the one-step law of the optimizer.
    init_norm : initial norm ρ of the scale-invariant weights. By default the norm after initialization.
    dataset : "digits", "mnist5k", "gaussian" or "random_labels" (no download); "cifar10", "cifar100", "svhn", "mnist",
        "fashion_mnist" or any id "owner/name" (from Hugging Face, cached after the first download); the path of local
        images; or the "module:name" of your own function (docs/add_a_data_set.md). `train` sets "custom" for data that
        are passed to it.
    classes : class numbers to keep; default all.
    samples : number of training samples to keep; default all.
    validation : share of the training samples to set apart for validation.
    label_noise : share of the remaining training samples that get a wrong label.
    dataset_seed : seed of the choice of `samples`, `validation` and `label_noise`.
    augmentation : number of pixels of padding for random crops; with it, half of the training images are flipped. None:
        no augmentation.
    batch_size : samples per mini-batch.
    sampling : "without_replacement" (new order in each epoch, incomplete batches dropped), "with_replacement", or
        "full_batch" (all training samples in every step; `batch_size` is ignored).
    micro_batch : number of samples per forward pass, for batches that exceed the memory; default the whole batch. The
        gradients are accumulated. Batch normalization then uses the statistics of each micro-batch, so the loss is
        another, noisier function than that of the whole batch.
    steps : number of updates.
    seed : seed of the initial trained weights.
    data_seed : seed of the order of the data; default `seed`.
    dtype : "float32", "float64" or "bfloat16". "bfloat16" keeps the weights in float32 and computes matrix products in
        bfloat16, which is fast on hardware with bfloat16 units. It changes the loss by rounding: check that the periods
        are those of float32.
    device : "cpu", "cuda", "cuda:1", …. "auto" uses a GPU if there is one.
    engine : "eager": plain autograd, the reference for the other engines. "kernel": compiled code, several times as
        fast, for fully scale-invariant networks with batch normalization, plain SGD and the CPU. "replicas": PyTorch's
        fused layers, replayed as one graph on a GPU. "compiled": `torch.compile`, which needs a compiler. "auto":
        "kernel" where it is the fastest, else "replicas". Folder and trajectory of a run name the engine that was
        used; the results of engines differ by rounding.
    replicas : number of runs that a sweep may train side by side in the same steps (docs/sweeps.md). It changes the
        rounding, so it is part of the run's identity.
    evaluate_every : number of steps between evaluations on the whole training and test set. One more evaluation
        follows the last step.
    evaluate_batches : True: each evaluation also passes the mini-batches of an epoch through the network at fixed
        weights. It records loss and error in train mode, the mean gradient norm, and the norm of the mean gradient.
        This costs about as much as an epoch.

    Raises
    ------
    TypeError, ValueError : a setting is unknown or out of range, or settings contradict each other.

    Examples
    --------
    >>> config = RunConfig(lr=0.5, wd=0.01, model="convnet", steps=1000)
    >>> config.resolved_width, config.resolved_data_seed
    (8, 0)
    >>> RunConfig(lr=-0.5, wd=0.01)
    Traceback (most recent call last):
    ...
    ValueError: lr must be a finite number > 0, got -0.5
    """

    lr: float | theory.Schedule
    wd: float
    optimizer: theory.Optimizer = field(default_factory=theory.SGD)
    model: str = "mlp"
    width: int | None = None
    depth: int | None = None
    normalization: str = "batch"
    norm_eps: float = 1e-12
    scale_invariant: bool = True
    other_lr: float | None = None
    other_wd: float | None = None
    fixed: str | None = None
    init_norm: float | None = None
    dataset: str = "digits"
    classes: tuple[int, ...] | None = None
    samples: int | None = None
    validation: float = 0.0
    label_noise: float = 0.0
    dataset_seed: int = 0
    augmentation: int | None = None
    batch_size: int = 64
    sampling: str = "without_replacement"
    micro_batch: int | None = None
    steps: int = 10_000
    seed: int = 0
    data_seed: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    engine: str = "auto"
    replicas: int = 1
    evaluate_every: int = 1000
    evaluate_batches: bool = False

    def __post_init__(self) -> None:
        self._check_scalars()
        object.__setattr__(self, "optimizer", check_optimizer(self.optimizer))
        if not dataclasses.is_dataclass(self.optimizer):
            raise TypeError(f"optimizer must be {', '.join(OPTIMIZERS)} or a dataclass, got {self.optimizer!r}")
        optimizer_class_name(self.optimizer)
        limit = self.optimizer.intrinsic_lr_limit
        check_integer("steps", self.steps)
        decay = check_wd(check_number("wd", self.wd, at_least=0))
        if callable(self.lr):
            if type(self.lr).__name__ not in SCHEDULES:
                raise ValueError(f"lr must be a number or one of {', '.join(SCHEDULES)}, got {self.lr!r}")
            check_intrinsic_lr(learning_rates(self.lr, 0, self.steps), decay, below=limit)
        else:
            check_intrinsic_lr(check_real("lr", check_number("lr", self.lr, above=0)), decay, below=limit)
        if self.model != CUSTOM:
            _check_choice_or_reference("model", self.model, list(DEFAULT_WIDTHS))
        if self.dataset != CUSTOM:
            check_dataset(self.dataset)
        check_choice_of_samples(self.classes, self.samples, self.validation, self.label_noise)
        check_integer("dataset_seed", self.dataset_seed)
        if self.augmentation is not None:
            check_integer("augmentation", self.augmentation)
        _check_choice_or_reference("normalization", self.normalization, NORMALIZATIONS)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("engine", self.engine, ENGINE_NAMES)
        if check_integer("replicas", self.replicas, at_least=1) > 1:
            if self.engine == "kernel":
                raise ValueError(
                    f"replicas must be 1 with engine='kernel', which trains one run at a time, got {self.replicas}"
                )
            if self.augmentation is not None:
                raise ValueError(
                    f"replicas must be 1 with augmentation, which draws random numbers, got {self.replicas}"
                )
        if self.width is not None:
            check_integer("width", self.width, at_least=1)
        if self.depth is not None:
            check_integer("depth", self.depth, at_least=1)
            if self.model in DEFAULT_WIDTHS and self.model not in DEFAULT_DEPTHS:
                raise ValueError(f"depth must be None for model={self.model!r}, whose depth is fixed, got {self.depth}")
        if self.model == "mlp" and self.normalization == "instance":
            raise ValueError(
                "normalization must not be 'instance' for model='mlp', because its channels are single numbers"
            )
        # a smaller ε would vanish, and a channel without variance would be divided by zero
        check_number("norm_eps", self.norm_eps, at_least=float(np.finfo(self.weight_dtype).tiny))
        if not isinstance(self.scale_invariant, bool):
            raise TypeError(f"scale_invariant must be True or False, got {self.scale_invariant!r}")
        if self.scale_invariant and self.normalization == "none" and self.model != CUSTOM:
            raise ValueError(
                "scale_invariant must be False with normalization='none', got True: without it no weight is invariant"
            )
        if self.other_lr is not None:
            check_number("other_lr", self.other_lr, at_least=0)
        if self.other_wd is not None:
            check_number("other_wd", self.other_wd, at_least=0)
        self._check_fixed()
        if self.init_norm is not None:
            check_number("init_norm", self.init_norm, above=0)
        if self.micro_batch is not None:
            check_integer("micro_batch", self.micro_batch, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("seed", self.seed, at_most=2**63 - 1)
        if self.data_seed is not None:
            check_integer("data_seed", self.data_seed, at_most=2**63 - 1)
        if not isinstance(self.device, str) or not self.device:
            raise TypeError(f"device must be a string such as 'cpu', 'cuda' or 'auto', got {self.device!r}")
        check_integer("evaluate_every", self.evaluate_every, at_least=1)
        if not isinstance(self.evaluate_batches, bool):
            raise TypeError(f"evaluate_batches must be True or False, got {self.evaluate_batches!r}")

    def _check_scalars(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name != "classes" and isinstance(value, (list, tuple, range, np.ndarray)) and np.ndim(value):
                kind = "number" if f.name in _NUMBER_FIELDS else "value"
                raise ValueError(
                    f"{f.name} must be one {kind}, got {value!r}; for several runs use empirical.grid({f.name}=[…]) in "
                    "Python, or the table [grid] in a file"
                )
            has_other_type = callable(value) if f.name == "lr" else value is None and f.default is None
            if f.name in _NUMBER_FIELDS and not (has_other_type or _is_number(value)):
                schedule = " or a schedule such as theory.Cosine" if f.name == "lr" else ""
                raise TypeError(f"{f.name} must be a number{schedule}, got {value!r}")

    def _check_fixed(self) -> None:
        if self.fixed is None:
            return
        check_choice("fixed", self.fixed, CONSTRAINTS)
        if self.fixed == "norm" and self.wd != 0:
            raise ValueError(f"wd must be 0 with fixed='norm', got {self.wd!r}")
        if self.fixed == "effective_lr" and not isinstance(self.optimizer, theory.SGD):
            raise ValueError(f"optimizer must be SGD with fixed='effective_lr', got {self.optimizer!r}")

    @property
    def resolved_width(self) -> int | None:
        """`width`, or the default of the model; None for a custom model."""
        return self.width if self.width is not None else DEFAULT_WIDTHS.get(self.model)

    @property
    def weight_dtype(self) -> str:
        """Type of the weights: float32 for bfloat16, else `dtype`."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def resolved_depth(self) -> int | None:
        """`depth`, or the default of the model; None for a model of fixed depth."""
        return self.depth if self.depth is not None else DEFAULT_DEPTHS.get(self.model)

    @property
    def resolved_data_seed(self) -> int:
        """Seed of the order of the data: `data_seed`, or `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def identity(self) -> str:
        """Hash of all settings that determine the trajectory. Runs with equal identity can continue each other.

        Examples
        --------
        >>> short, long = RunConfig(lr=0.5, wd=0.01, steps=10), RunConfig(lr=0.5, wd=0.01, steps=20, width=64)
        >>> short.identity == long.identity, short.identity == RunConfig(lr=0.4, wd=0.01).identity
        (True, False)
        """
        return self._identity

    # cached because it is used often; the doctest of a cached property would not run, hence two properties
    @functools.cached_property
    def _identity(self) -> str:
        # defaults are left out, so that settings added later do not change the identity of old runs
        defaults = {f.name: _plain(f.default) for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
        decisive = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _OUTSIDE_IDENTITY and not (name in defaults and value == defaults[name])
        }
        decisive.update(width=self.resolved_width, depth=self.resolved_depth, data_seed=self.resolved_data_seed)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def settings_without(self, names: Collection[str]) -> str:
        """All settings except some, as text with defaults filled in.

        The `dim` of an optimizer is ignored, because it does not affect training.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01, width=64), RunConfig(lr=0.1, wd=0.01)
        >>> one.settings_without({"lr"}) == other.settings_without({"lr"})
        True
        """
        resolved = {"width": self.resolved_width, "depth": self.resolved_depth, "data_seed": self.resolved_data_seed}
        settings = {**self.to_dict(), **resolved, "optimizer": _plain(with_dim(self.optimizer, 1))}
        return json.dumps({name: value for name, value in settings.items() if name not in names}, sort_keys=True)

    @property
    def shape(self) -> str:
        """Settings that runs must share to train together as replicas, as text.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01), RunConfig(lr=0.1, wd=0.02, seed=3)
        >>> one.shape == other.shape, one.shape == RunConfig(lr=0.5, wd=0.01, width=8).shape
        (True, False)
        """
        common = {name: value for name, value in self.to_dict().items() if name not in _MAY_DIFFER_BETWEEN_REPLICAS}
        return json.dumps({**common, "width": self.resolved_width, "depth": self.resolved_depth})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values. Optimizer and schedule become {name: settings}.

        Examples
        --------
        >>> RunConfig(lr=theory.Constant(0.5), wd=0.01).to_dict()["lr"]
        {'Constant': {'lr': 0.5}}
        """
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunConfig:
        """Build a configuration from the output of `to_dict`.

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
        settings = {name: from_plain(value) for name, value in content.items()}
        if settings.get("classes") is not None:
            settings["classes"] = tuple(settings["classes"])
        return cls(**settings)


def _plain(value: Any) -> Any:
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
        name = type(value).__name__ if is_schedule else optimizer_class_name(optimizer_or_schedule)
        return {name: settings}
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "item"):
        return value.item()
    return value


def from_plain(value: Any) -> Any:
    """Build an optimizer or schedule from {name: settings}; return any other value unchanged.

    Raises
    ------
    TypeError, ValueError : the name is unknown, or a setting is out of range.

    Examples
    --------
    >>> from_plain({"Constant": {"lr": 0.5}}), from_plain(0.5)
    (Constant(lr=0.5), 0.5)
    """
    if isinstance(value, dict):
        if len(value) != 1 or not isinstance(settings := next(iter(value.values())), dict):
            raise ValueError(f"an optimizer or schedule must be one name with its settings, got {value!r}")
        (name,) = value
        kind = SCHEDULES[name] if name in SCHEDULES else optimizer_class(name)
        return kind(**{key: from_plain(item) for key, item in settings.items()})
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (float, int) or np.asarray(value).dtype.kind in "iuf"


def _check_choice_or_reference(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed and not is_reference(value):
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, or the 'module:name' of your own; "
            f"got {value!r}{suggestion(value, allowed)}"
        )


def check_dataset(name: str) -> str:
    """Check and return the `dataset` of a run, as described in `RunConfig`.

    Raises
    ------
    ValueError : it is not a name, an id "owner/name", a "module:name" or an existing path.

    Examples
    --------
    >>> check_dataset("digits"), check_dataset("owner/name")
    ('digits', 'owner/name')
    """
    names = (*EMBEDDED_DATASETS, *HUB_DATASETS)
    if not isinstance(name, str) or not (
        name in names or name.count("/") == 1 or is_reference(name) or Path(name).exists()
    ):
        raise ValueError(
            f"dataset must be one of {', '.join(names)}, an id 'owner/name' of Hugging Face, an existing path, or the "
            f"'module:name' of your own function; got {name!r}{suggestion(name, names)}"
        )
    return name


def check_choice_of_samples(
    classes: Sequence[int] | None, samples: int | None, validation: float, label_noise: float
) -> None:
    """Check the settings that select samples of a data set, as described in `RunConfig`.

    Raises
    ------
    TypeError, ValueError : an argument is out of range.

    Examples
    --------
    >>> check_choice_of_samples((3, 8), None, 0.1, 0.0)
    """
    if classes is not None:
        if isinstance(classes, (str, int)) or len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"classes must be at least two different class numbers, got {classes!r}")
        for number in classes:
            check_integer("classes", number)
    if samples is not None:
        check_integer("samples", samples, at_least=2)
    check_number("validation", validation, at_least=0, below=1)
    check_number("label_noise", label_noise, at_least=0, at_most=1)
