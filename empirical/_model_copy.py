"""Copy of a model in double precision, whose forward pass repeats exactly."""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

# what a model takes: a tensor, positional arguments, or keyword arguments
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]

_TINY_EPS = 1e-30
# ε of normalizations in common models: 1e-12 to 1e-3
_LARGEST_EPS, _LARGEST_ADDED_EPS = 1e-2, 1e-3
_NORMALIZATIONS = {
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "native_group_norm",
    "native_layer_norm",
    "rms_norm",
}
_ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__", "clamp", "clamp_", "clamp_min", "clip"}
_PARTS_OF_NORMALIZATIONS = {*_NORMALIZATIONS, "normalize", "rsqrt", "std", "std_mean", "var", "var_mean"}
_CASTS = {"float", "half", "bfloat16"}
_NARROW_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")  # of Tensor.type
_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
# entries in the output of Hugging Face models that are no part of a loss
_NOT_IN_LOSS = {
    "attentions",
    "cross_attentions",
    "decoder_attentions",
    "decoder_hidden_states",
    "encoder_attentions",
    "encoder_hidden_states",
    "encoder_last_hidden_state",
    "hidden_states",
    "past_key_values",
}
# attributes of a module that a forward pass may change, and those that belong to PyTorch
_SIMPLE, _CONTAINERS = (bool, int, float, str), (list, dict, set, deque)
_ATTRIBUTES_OF_ALL = frozenset(vars(nn.Module()))
_REPEATS = 1e-12  # largest relative difference of two equal passes
_SMALL = 1_000_000  # number of weights below which several threads only wait for each other


class _DoublePrecision(TorchFunctionMode):
    """Mode that computes in double precision, whatever types the code of the model names.

    Parameters
    ----------
    has_tiny_eps : make the ε of normalizations tiny, also where the code adds it.

    Attributes
    ----------
    used : `id` of parameters in the order of their first use.
    is_normalizing : whether any function of a normalization was called.
    """

    def __init__(self, has_tiny_eps: bool) -> None:
        super().__init__()
        self._has_tiny_eps = has_tiny_eps
        self.used: dict[int, None] = {}
        self.is_normalizing = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch with wider types and, for normalizations, another ε."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # attributes such as the type of a tensor
            return func(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, nn.Parameter):
                    self.used[id(item)] = None
        self.is_normalizing |= name in _PARTS_OF_NORMALIZATIONS
        if name in _CASTS or (name == "type" and str(args[1:]).rstrip("',>)").endswith(_NARROW_TYPES)):
            return args[0].double()
        if func is embedding:  # the row of padding gets no gradient, but it is scaled with the others
            kwargs = {**kwargs, "padding_idx": None}
        limit = 0.0
        if self._has_tiny_eps:
            limit = _LARGEST_EPS if name in _NORMALIZATIONS else _LARGEST_ADDED_EPS if name in _ADDITIONS else 0.0
            if name == "rms_norm" and len(args) < 4 and kwargs.get("eps") is None:
                kwargs = {**kwargs, "eps": _TINY_EPS}
        # an operation in place must change its first argument, not a copy
        is_in_place = name.startswith(("__i", "__set")) or (name.endswith("_") and not name.endswith("__"))
        args = [value if is_in_place and number == 0 else _replace(value, limit) for number, value in enumerate(args)]
        # alpha is a factor, not an addend
        kwargs = {key: _replace(value, 0.0 if key == "alpha" else limit) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        return widen(result) if isinstance(result, Tensor) else result


def _replace(value: Any, limit: float) -> Any:
    """Widen a type or tensor, and make a number up to `limit` tiny."""
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else widen(value)
    return _TINY_EPS if isinstance(value, (float, np.floating)) and 0 < value <= limit else value


def widen(tensor: Tensor) -> Tensor:
    """Convert floating-point numbers to double precision."""
    return tensor.to(_WIDER[tensor.dtype]) if tensor.dtype in _WIDER else tensor


class ModelCopy:
    """Copy of a model, in double precision on the CPU, whose forward pass repeats.

    Before each pass, buffers, frozen parameters, counters and random generators are set back. Each module keeps its
    mode. A model in eval mode is copied in train mode.

    Parameters
    ----------
    model : module to copy; it does not change.
    has_tiny_eps : make the ε of normalizations tiny.

    Attributes
    ----------
    model : the copy.
    parameters : trained parameters of the copy by name.

    Raises
    ------
    ValueError : the model cannot be copied.
    """

    def __init__(self, model: nn.Module, has_tiny_eps: bool = False) -> None:
        self.model = _copy(model)
        if not model.training:
            self.model.train()
        self._mode, self._needs_derivatives = _DoublePrecision(has_tiny_eps), False
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            if not parameter.is_leaf:  # a compiled module records its conversion
                parameter.detach_().requires_grad_()
        self._constants = {name: tensor.detach().clone() for name, tensor in self._untrained()}
        self._settings = [(module, set(vars(module)), _changing_attributes(module)) for module in self.model.modules()]

    @property
    def is_normalizing(self) -> bool:
        """Whether any pass called a function of a normalization."""
        return self._mode.is_normalizing

    @contextmanager
    def pass_of(self, inputs: Inputs) -> Iterator[Tensor]:
        """Run a forward pass and give its output as a flat vector; derivatives are to be computed within."""
        self._restore()
        with _fixed_randomness(), self._mode, _without_compilation():
            yield _flatten(_call(self.model, inputs))

    def output(self, inputs: Inputs) -> Tensor:
        """Output of a forward pass as a flat vector, without derivatives."""
        try:
            with torch.set_grad_enabled(self._needs_derivatives), self.pass_of(inputs) as output:
                return output.detach()
        except ValueError:
            if self._needs_derivatives:
                raise
        self._needs_derivatives = True  # some models compute gradients in their forward pass, for example forces
        return self.output(inputs)

    def check_repeats(self, inputs: Inputs) -> Tensor:
        """Return the output of two equal passes.

        Raises
        ------
        ValueError : the outputs differ.
        """
        first, second = self.output(inputs), self.output(inputs)
        if first.shape != second.shape or not torch.isfinite(first).all():
            raise ValueError("model must return finite numbers of one shape in two equal passes, but does not")
        difference = float((first - second).abs().max()) / max(float(first.abs().max()), 1e-300)
        if difference > _REPEATS:
            raise ValueError(
                f"model must return equal outputs in two equal passes, but they differ by {difference:.1%}. Random "
                "numbers must come from PyTorch, NumPy, random, or a generator that is an attribute of a module"
            )
        return first

    def forward_order(self) -> list[str]:
        """Names of the trained parameters, in the order of their first use; unused ones come last."""
        rank = {identity: number for number, identity in enumerate(self._mode.used)}
        return sorted(self.parameters, key=lambda name: rank.get(id(self.parameters[name]), len(rank)))

    def randomize(self, generator: torch.Generator) -> None:
        """Draw all trained parameters anew, with activations of order one."""
        with torch.no_grad():
            for parameter in self.parameters.values():
                if parameter.ndim > 1:
                    parameter.normal_(0, max(1, parameter[0].numel()) ** -0.5, generator=generator)
                else:
                    parameter.normal_(generator=generator).tanh_().mul_(0.5).add_(1)

    def _restore(self) -> None:
        for module, names, settings in self._settings:
            for name in vars(module).keys() - names:  # made by the pass before
                del vars(module)[name]
            for name, value in settings.items():
                _restore_attribute(module, name, value)
        with torch.no_grad():
            for name, tensor in self._untrained():
                if name in self._constants and tensor.shape == self._constants[name].shape:
                    tensor.copy_(self._constants[name])

    def _untrained(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers and frozen parameters, which a forward pass may change (running means, a teacher)."""
        yield from self.model.named_buffers()
        yield from ((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)


@contextmanager
def preserved_global_state(model: nn.Module) -> Iterator[None]:
    """Bound the threads of small models, and set back threads and global random generators at the end."""
    threads = torch.get_num_threads()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (models use the global generator)
    if sum(p.numel() for p in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        # the caller may have switched derivatives off
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _fixed_randomness() -> Iterator[None]:
    # equal random numbers in every pass, so that dropout does not look like a change of the function
    torch.default_generator.manual_seed(0)  # that of the CPU: others must not change
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield


def _without_compilation() -> Any:
    # loading the compiler takes seconds, and no model is compiled without it
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _copy(model: nn.Module) -> nn.Module:
    # tensors that a hook computed, such as the weight of the old weight_norm, cannot be copied
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        duplicate = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"model must be a module that copy.deepcopy can copy, got {one_line(error)}") from error
    for module in duplicate.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    return duplicate._apply(lambda tensor: widen(tensor.cpu()))  # type: ignore[no-any-return]


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization in one process and on the CPU, where SyncBatchNorm cannot run."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _call(model: nn.Module, inputs: Inputs) -> Any:
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    except NotImplementedError:
        raise
    except Exception as error:
        raise ValueError(
            f"model must accept inputs (a tensor, a tuple of arguments, or a dict of keywords) in double precision on "
            f"the CPU, got {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """Kind and message of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _flatten(output: Any) -> Tensor:
    """All numbers of an output as one vector. An output may be a tensor, or tensors in containers."""
    tensors = [tensor for tensor in tensors_of(output) if tensor.is_floating_point() or tensor.is_complex()]
    if not tensors:
        raise TypeError(f"model must return floating-point tensors, got {type(output).__name__}")
    flat = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in map(widen, tensors)]
    return torch.cat([tensor.reshape(-1) for tensor in flat])


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Tensors of an output or input, also in containers."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key not in _NOT_IN_LOSS:
                yield from tensors_of(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_of(getattr(output, field.name))


def draw_samples(inputs: Inputs, generator: torch.Generator, most: int) -> Inputs:
    """Draw some samples of all inputs that have one, in double precision on the CPU.

    Samples are along the first axis of the first tensor. Other inputs of this length are drawn with them. Images of
    bytes become numbers from 0 to 1.
    """
    count = count_samples(inputs)
    chosen = torch.randperm(count, generator=generator)[:most] if most < count else None

    def draw(tensor: Tensor) -> Tensor:
        if chosen is not None and tensor.ndim and len(tensor) == count:
            tensor = tensor[chosen.to(tensor.device)]
        tensor = tensor.detach().cpu()
        return tensor.double() / 255 if tensor.dtype == torch.uint8 else widen(tensor).clone()

    drawn = _map_tensors(inputs, draw)
    return tuple(drawn) if isinstance(drawn, list) else drawn


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change all tensors in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_map_tensors(item, change) for item in value]
        return items if isinstance(value, list) else type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def count_samples(inputs: Inputs) -> int:
    """Return the length of the first tensor; 0 if there is none."""
    return next((len(tensor) for tensor in tensors_of(inputs) if tensor.ndim), 0)


def sample_size(inputs: Inputs) -> int:
    """Return the number of numbers in one sample of the largest input."""
    return max((tensor[0].numel() for tensor in tensors_of(inputs) if tensor.ndim and len(tensor)), default=1)


def _changing_attributes(module: nn.Module) -> dict[str, Any]:
    """State of a module outside its parameters and buffers, which a forward pass may change."""
    own = {name: value for name, value in vars(module).items() if name not in _ATTRIBUTES_OF_ALL}
    return {
        name: _state_of(value)
        for name, value in own.items()
        if value is None or _is_generator(value) or isinstance(value, (*_SIMPLE, *_CONTAINERS, Tensor))
    }


def _state_of(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, (np.random.RandomState, torch.Generator)):
        return value.get_state()
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, _CONTAINERS) else value


def _restore_attribute(module: nn.Module, name: str, value: Any) -> None:
    current = vars(module).get(name)
    if isinstance(current, np.random.Generator):
        current.bit_generator.state = value
    elif isinstance(current, (np.random.RandomState, torch.Generator)):
        current.set_state(value)
    elif isinstance(current, random.Random):
        current.setstate(value)
    elif name in vars(module) and current is not value:
        vars(module)[name] = _state_of(value)


def _is_generator(value: Any) -> bool:
    return isinstance(value, (np.random.Generator, np.random.RandomState, torch.Generator, random.Random))
