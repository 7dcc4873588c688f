"""Learning rate, weight decay and optimizer of each scale-invariant group, read from the optimizers."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import theory
from empirical.measures.step_check import inner_optimizer, rule_of
from theory.optimizers import with_dim

# largest share of a group's squared norm that may have other settings than the rest
_MIXED = 0.05


class GroupSetting(NamedTuple):
    """Learning rate, weight decay and optimizer of some weights; `rule` is None where `theory` does not know it."""

    lr: float
    wd: float
    rule: theory.Optimizer | None
    name: str

    def optimizer_text(self, dim: int) -> str:
        """Text of the optimizer for `dim` weights."""
        return self.name if self.rule is None else repr(with_dim(self.rule, dim))


_UNMOVED = GroupSetting(0.0, 0.0, None, "no optimizer")


def check_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Check the argument `optimizer`: one optimizer, or several; wrappers are removed."""
    several = list(optimizer) if isinstance(optimizer, (tuple, list)) else [optimizer]
    optimizers = [inner_optimizer(one) for one in several]
    wrong = [type(one).__name__ for one in optimizers if not isinstance(one, torch.optim.Optimizer)]
    if wrong or not optimizers:
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several in a list, got {wrong or 'none'}")
    return optimizers


def settings_of_weights(
    optimizers: Sequence[torch.optim.Optimizer], weights: Sequence[Tensor]
) -> list[GroupSetting | None]:
    """Return the settings of each weight at this moment; None for weights that no optimizer moves."""
    settings: dict[int, GroupSetting] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # some optimizers choose their own learning rate
            lr = math.nan if group.get("lr") is None else float(group["lr"])
            by_shape: dict[torch.Size, GroupSetting] = {}
            for weight in group["params"]:
                if weight.shape not in by_shape:
                    rule, name = rule_of(optimizer, group, 1, weight.shape)
                    rule = None if math.isnan(lr) else rule
                    by_shape[weight.shape] = GroupSetting(lr, float(group.get("weight_decay", 0)), rule, name)
                settings[id(weight)] = by_shape[weight.shape]
    return [settings.get(id(weight)) for weight in weights]


def setting_of_group(settings: Sequence[GroupSetting | None], squares: Sequence[float]) -> tuple[GroupSetting, str]:
    """Return the setting of the weights with the largest part of the squared norm.

    The second result says why there is no common law of the norm: it is empty if the others' part is small.
    """
    if len(settings) > 1:
        # the law of Muon is that of one matrix
        settings = [
            s._replace(rule=None, name=f"Muon(momentum={s.rule.momentum:g})")
            if s and isinstance(s.rule, theory.Muon)
            else s
            for s in settings
        ]
    parts: dict[GroupSetting, float] = {}
    for setting, square in zip(settings, squares, strict=True):
        parts[setting or _UNMOVED] = parts.get(setting or _UNMOVED, 0.0) + square
    largest = max(parts, key=lambda setting: parts[setting])
    total = sum(parts.values())
    if not total > 0 or parts[largest] >= (1 - _MIXED) * total:
        return largest, ""
    listed = ", ".join(f"lr {s.lr:.3g} and wd {s.wd:.3g} for {part / total:.0%}" for s, part in parts.items())
    return largest, f"its weights have different settings: {listed} of the squared norm"


class PacedScheduler(NamedTuple):
    """Scheduler of PyTorch that makes a step after every `period` steps of the optimizer, which took `position`."""

    scheduler: LRScheduler
    period: int = 1
    position: int = 0


def is_known_ahead(scheduler: Any) -> bool:
    """Whether an object is a scheduler of PyTorch whose learning rates do not depend on the training."""
    return isinstance(scheduler, LRScheduler) and "metrics" not in inspect.signature(scheduler.step).parameters


def lrs_ahead(
    paced: PacedScheduler, weight: Tensor | None, last_lr: float, last_step: int, next_step: int, steps_left: int
) -> Callable[[int], float] | list[float]:
    """Return the learning rates after the last recorded step, for the parameter group of a weight.

    The scheduler does not notice it.

    Parameters
    ----------
    paced : the scheduler, at the next step.
    weight : weight whose parameter group counts; the first one if the scheduler's optimizer does not have it.
    last_lr, last_step : learning rate at the last recorded step, and its number.
    next_step, steps_left : number of the next step, and of steps from there to the end.

    Returns
    -------
    A function of the step number for `LambdaLR`, otherwise a list that begins with `last_lr`.
    """
    scheduler, period, position = paced
    of_weight = (
        number
        for number, group in enumerate(scheduler.optimizer.param_groups)
        if any(p is weight for p in group["params"])
    )
    index = next(of_weight, 0)
    if isinstance(scheduler, LambdaLR):
        factor, now, base_lr = scheduler.lr_lambdas[index], scheduler.last_epoch, float(scheduler.base_lrs[index])

        def lr_at(step: int) -> float:
            if step <= last_step:
                return last_lr
            further = (position + step - next_step) // period - position // period
            return base_lr * float(factor(max(0, now + further)))

        return lr_at
    lrs = _lrs_of(scheduler, index)
    first = next(lrs)
    repeats = [period - position % period, *itertools.repeat(period, steps_left // period + 1)]
    future = itertools.chain.from_iterable(map(itertools.repeat, itertools.chain([first], lrs), repeats))
    return [last_lr, *itertools.repeat(first, next_step - last_step - 1), *itertools.islice(future, steps_left)]


def _lrs_of(scheduler: LRScheduler, index: int) -> Iterator[float]:
    """Learning rates of a parameter group now and after each further step of a scheduler, from a copy of it."""
    groups = [
        {name: _copy_setting(value) for name, value in group.items() if name != "params"}
        for group in scheduler.optimizer.param_groups
    ]
    stand_in: Any = types.SimpleNamespace(param_groups=groups, defaults=scheduler.optimizer.defaults, step=None)
    twin = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    while True:
        yield float(groups[index]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin.step()


def _copy_setting(value: Any) -> Any:
    # schedulers write into tensors
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
