"""The description of one training run: everything that decides its trajectory, in plain numbers and words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
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

# default widths, and depths of those whose depth is free
MODELS = {"mlp": 64, "convnet": 8, "resnet18": 64, "transformer": 64}
DEPTHS = {"mlp": 2, "convnet": 3, "transformer": 2}
EMBEDDED_DATASETS = ("digits", "mnist5k", "gaussian", "random_labels")
HUB_DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist")
NORMALIZATIONS = ("batch", "layer", "group", "instance", "weight", "rms", "none")
SAMPLINGS = ("without_replacement", "with_replacement", "full_batch")
CONSTRAINTS = ("norm", "effective_lr")
DTYPES = ("float32", "float64", "bfloat16")
ENGINES = ("auto", "eager", "kernel", "replicas", "compiled")
CUSTOM = "custom"

# Not part of a run's identity: a longer run continues a shorter one, wherever it runs.
_OUTSIDE_IDENTITY = ("steps", "device")
# What the replicas in one step may differ in.
_OF_EACH_REPLICA = ("lr", "wd", "other_lr", "other_wd", "init_norm", "seed", "data_seed", "steps")
_NUMBERS = ("lr", "wd", "norm_eps", "other_lr", "other_wd", "init_norm", "validation", "label_noise")

Class = TypeVar("Class", bound=type[Any])


def _naming_what_it_lacks(cls: Class) -> Class:
    """Let a dataclass tell which of its fields a word that is none of them is like."""
    init: Callable[..., None] = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        known = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no setting {name!r}{suggestion(name, known)}")
        init(self, *args, **settings)

    cls.__init__ = checked
    return cls


@_naming_what_it_lacks
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one training run, checked when it is made.

    Parameters
    ----------
    lr : learning rate η > 0, or a schedule such as `theory.Cosine`.
    wd : weight decay λ >= 0, with ηλ below the limit of the optimizer, 2 for SGD.
    optimizer : `theory.SGD()`, `theory.AdamW(dim=…)`, … or one of your own (docs/add_an_optimizer.md); its `dim`
        plays no role: a trajectory names the one with the number of weights that are measured.
    model : "mlp", "convnet" (3×3 convolutions of w, 2w, 2w, … channels), "resnet18" (pre-activation) or "transformer"
        (of image patches); the "module:name" of a function of your own (docs/add_a_model.md); "custom" is set by
        `train` for a module of your own.
    width : hidden units, channels w or size of a token; default 64, for the convnet 8.
    depth : hidden layers (mlp, default 2), convolutions (convnet, 3) or blocks (transformer, 2).
    normalization : "batch", "layer", "group", "instance", "rms", "weight" (of the filters), "none" as a control,
        or the "module:name" of your own (docs/add_a_normalization.md).
    norm_eps : ε added to the variance. PyTorch's default of 1e-5 breaks scale invariance at small norms.
    scale_invariant : no affine parameters and a frozen last layer of norm 10, so that every trained weight is
        scale-invariant (of the transformer, all but values and first linear layers); False trains everything.
    other_lr, other_wd : learning rate and weight decay of the trained weights that are not scale-invariant; default
        `lr` and `wd`. other_lr=0 freezes them, other_wd=0 leaves them without decay.
    fixed : None, or what is held of the scale-invariant weights: "norm" scales them back after every step to the norm
        they began with (wd must be 0), which is training on a sphere; "effective_lr" gives the optimizer their gradient
        times ρ², so that `lr` is the effective learning rate (only SGD). Both obey the law of another step.
    init_norm : ρ of the scale-invariant weights at the start; default is what the initialization gives.
    dataset : "digits", "mnist5k", "gaussian" or "random_labels" (embedded); "cifar10", "cifar100", "svhn", "mnist",
        "fashion_mnist" or an id "owner/name" (from Hugging Face, once with a connection); a path of local images; the
        "module:name" of a function of your own (docs/add_a_data_set.md);
        "custom" is set by `train` for data of your own.
    classes, samples, validation, label_noise : class numbers and number of training samples to keep (all by default),
        share of them set apart, share of the rest with a wrong label; drawn by `dataset_seed`.
    augmentation : None, or pixels of padding from which training images are cropped at random; half of them are
        flipped.
    batch_size : samples of a mini-batch.
    sampling : "without_replacement" (reshuffled each epoch, incomplete batches dropped), "with_replacement", or
        "full_batch": all training samples in every step, whatever `batch_size` says.
    micro_batch : samples that go through the network at a time, for batches that do not fit into memory; gradients are
        accumulated. Statistics of a batch normalization are then those of each micro-batch, which is another function
        than that of the whole batch, and a noisy one.
    steps : number of updates.
    seed, data_seed : of the initial trained weights and of the order of the data; `data_seed` defaults to `seed`.
    dtype : "float32", "float64", or "bfloat16": weights in float32, matrix products in bfloat16, which is fast on
        processors made for it. The last changes the loss by rounding, so see that its periods are those of float32.
    device : "cpu", "cuda", "cuda:1", …; "auto" takes a GPU where there is one.
    engine : "eager", plain autograd, the reference for all others; "kernel", compiled code for the fully
        scale-invariant networks with batch normalization, plain SGD and the CPU, several times as fast; "replicas",
        PyTorch's fused layers, on a GPU replayed as one graph; "compiled", `torch.compile`, which needs a compiler;
        "auto" takes the kernel where it is the fastest, else "replicas". A run's folder and trajectory name the one
        that was used; results differ by rounding.
    evaluate_every : steps between evaluations on the whole training and test set; one more follows the last step.
    evaluate_batches : evaluate also the mini-batches of an epoch at fixed weights: loss and error with the statistics
        of the batch, mean gradient norm and norm of the mean gradient. Each costs about as much as an epoch.

    Raises
    ------
    TypeError, ValueError : no field of this name, a field is out of range, or fields contradict each other.

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
        self._check_that_each_is_one()
        check_optimizer(self.optimizer)
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
            _choice_or_own("model", self.model, list(MODELS))
        if self.dataset != CUSTOM:
            check_dataset(self.dataset)
        check_choice_of_samples(self.classes, self.samples, self.validation, self.label_noise)
        check_integer("dataset_seed", self.dataset_seed)
        if self.augmentation is not None:
            check_integer("augmentation", self.augmentation)
        _choice_or_own("normalization", self.normalization, NORMALIZATIONS)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("engine", self.engine, ENGINES)
        if check_integer("replicas", self.replicas, at_least=1) > 1:
            if self.engine == "kernel":
                raise ValueError(
                    f"replicas must be 1 with engine='kernel', which trains one by one, got {self.replicas}"
                )
            if self.augmentation is not None:
                raise ValueError(f"replicas must be 1 with augmentation, which is random, got {self.replicas}")
        if self.width is not None:
            check_integer("width", self.width, at_least=1)
        if self.depth is not None:
            check_integer("depth", self.depth, at_least=1)
            if self.model in MODELS and self.model not in DEPTHS:
                raise ValueError(f"depth must be None for model={self.model!r}, whose depth is fixed, got {self.depth}")
        if self.model == "mlp" and self.normalization == "instance":
            raise ValueError("normalization must not be 'instance' for model='mlp', whose channels are single numbers")
        # below it ε is nothing, and a channel without variance is divided by zero
        check_number("norm_eps", self.norm_eps, at_least=float(np.finfo(self.weight_dtype).tiny))
        if not isinstance(self.scale_invariant, bool):
            raise TypeError(f"scale_invariant must be True or False, got {self.scale_invariant!r}")
        if self.scale_invariant and self.normalization == "none" and self.model != CUSTOM:
            raise ValueError("scale_invariant must be False with normalization='none', got True: nothing is invariant")
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
            raise TypeError(f"device must be a word such as 'cpu', 'cuda' or 'auto', got {self.device!r}")
        check_integer("evaluate_every", self.evaluate_every, at_least=1)
        if not isinstance(self.evaluate_batches, bool):
            raise TypeError(f"evaluate_batches must be True or False, got {self.evaluate_batches!r}")

    def _check_that_each_is_one(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name != "classes" and isinstance(value, (list, tuple, range, np.ndarray)) and np.ndim(value):
                kind = "number" if f.name in _NUMBERS else "value"
                raise ValueError(
                    f"{f.name} must be one {kind}, got {value!r}; several make several runs: "
                    f"empirical.grid({f.name}=[…]) in Python, the table [grid] in a file"
                )
            may_be_other = callable(value) if f.name == "lr" else value is None and f.default is None
            if f.name in _NUMBERS and not (may_be_other or _is_number(value)):
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
        """The width, with the model's default filled in; None for a custom model."""
        return self.width if self.width is not None else MODELS.get(self.model)

    @property
    def weight_dtype(self) -> str:
        """Type of the weights, whatever that of the matrix products."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def resolved_depth(self) -> int | None:
        """The depth, with the model's default filled in; None where it is fixed."""
        return self.depth if self.depth is not None else DEPTHS.get(self.model)

    @property
    def resolved_data_seed(self) -> int:
        """The seed of the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def identity(self) -> str:
        """Hash of all that decides the trajectory: runs of one identity can continue each other.

        Examples
        --------
        >>> short, long = RunConfig(lr=0.5, wd=0.01, steps=10), RunConfig(lr=0.5, wd=0.01, steps=20, width=64)
        >>> short.identity == long.identity, short.identity == RunConfig(lr=0.4, wd=0.01).identity
        (True, False)
        """
        return self._identity

    # asked for often, and a cached property would hide its example from the tests
    @functools.cached_property
    def _identity(self) -> str:
        # what is as by default is left out: settings that are added later do not change the identity of old runs
        ordinary = {f.name: _plain(f.default) for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
        decisive = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _OUTSIDE_IDENTITY and not (name in ordinary and value == ordinary[name])
        }
        decisive.update(width=self.resolved_width, depth=self.resolved_depth, data_seed=self.resolved_data_seed)
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def settings_without(self, names: Collection[str]) -> str:
        """All settings but some, as text that is the same whether they were said or left to the default.

        The `dim` of an optimizer plays no role in training, and none here.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01, width=64), RunConfig(lr=0.1, wd=0.01)
        >>> one.settings_without({"lr"}) == other.settings_without({"lr"})
        True
        """
        resolved = {"width": self.resolved_width, "depth": self.resolved_depth, "data_seed": self.resolved_data_seed}
        held = {**self.to_dict(), **resolved, "optimizer": _plain(with_dim(self.optimizer, 1))}
        return json.dumps({name: value for name, value in held.items() if name not in names}, sort_keys=True)

    @property
    def shape(self) -> str:
        """What runs must have in common to be replicas in the same steps.

        Examples
        --------
        >>> one, other = RunConfig(lr=0.5, wd=0.01), RunConfig(lr=0.1, wd=0.02, seed=3)
        >>> one.shape == other.shape, one.shape == RunConfig(lr=0.5, wd=0.01, width=8).shape
        (True, False)
        """
        common = {name: value for name, value in self.to_dict().items() if name not in _OF_EACH_REPLICA}
        return json.dumps({**common, "width": self.resolved_width, "depth": self.resolved_depth})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and words; optimizer and schedule as a name with their own settings.

        Examples
        --------
        >>> RunConfig(lr=theory.Constant(0.5), wd=0.01).to_dict()["lr"]
        {'Constant': {'lr': 0.5}}
        """
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunConfig:
        """Inverse of `to_dict`.

        Raises
        ------
        ValueError : an unknown field, optimizer or schedule.

        Examples
        --------
        >>> config = RunConfig(lr=theory.WarmUp(5, theory.Cosine(0.5, 0.1, steps=9)), wd=0.01)
        >>> RunConfig.from_dict(config.to_dict()) == config
        True
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in content:
            check_choice("field", name, known)
        rich = {name: from_plain(value) for name, value in content.items()}
        if rich.get("classes") is not None:
            rich["classes"] = tuple(rich["classes"])
        return cls(**rich)


def _plain(value: Any) -> Any:
    if type(value) in (int, float, str, bool, type(None)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        optimizer_or_schedule: Any = value
        # only what differs from the default: settings that are added later do not change the identity of old runs
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
    """Optimizer or schedule of its plain form, a name with settings; any other value as it is.

    Raises
    ------
    TypeError, ValueError : an unknown name, or settings out of range.

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


def _choice_or_own(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed and not is_reference(value):
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, or the 'module:name' of your own; "
            f"got {value!r}{suggestion(value, allowed)}"
        )


def check_dataset(name: str) -> str:
    """Check the name of a data set: an embedded one, a short name or id on the hub, one's own, or an existing path.

    Raises
    ------
    ValueError : it is none.

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
            f"'module:name' of a function of your own; got {name!r}{suggestion(name, names)}"
        )
    return name


def check_choice_of_samples(
    classes: Sequence[int] | None, samples: int | None, validation: float, label_noise: float
) -> None:
    """Check what is to be taken of a data set.

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
