"""Learning rate, weight decay and optimizer of each scale-invariant group, read from the optimizers."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import theory
from empirical.measures.step_check import rule_of, unwrapped_optimizer
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
    optimizers = [unwrapped_optimizer(one) for one in several]
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
            rule, name = rule_of(optimizer, group, 1)
            setting = GroupSetting(float(group["lr"]), float(group.get("weight_decay", 0)), rule, name)
            settings.update((id(p), setting) for p in group["params"])
    return [settings.get(id(weight)) for weight in weights]


def setting_of_group(settings: Sequence[GroupSetting | None], squares: Sequence[float]) -> tuple[GroupSetting, str]:
    """Return the setting of the weights with the largest part of the squared norm.

    The second result says why there is no common law of the norm: it is empty if the others' part is small.
    """
    parts: dict[GroupSetting, float] = {}
    for setting, square in zip(settings, squares, strict=True):
        parts[setting or _UNMOVED] = parts.get(setting or _UNMOVED, 0.0) + square
    largest = max(parts, key=lambda setting: parts[setting])
    total = sum(parts.values())
    if not total > 0 or parts[largest] >= (1 - _MIXED) * total:
        return largest, ""
    listed = ", ".join(f"lr {s.lr:.3g} and wd {s.wd:.3g} for {part / total:.0%}" for s, part in parts.items())
    return largest, f"its weights have different settings: {listed} of the squared norm"


def relative_lrs(scheduler: LRScheduler) -> Callable[[int], float] | Iterator[float]:
    """Return the future learning rates of a scheduler's first parameter group, which the scheduler does not notice.

    For `LambdaLR` they are a function of the number of steps from now, otherwise an iterator that begins with now.
    """
    if isinstance(scheduler, LambdaLR):
        factor, now = scheduler.lr_lambdas[0], scheduler.last_epoch
        return lambda steps: float(factor(now + steps))
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in scheduler.optimizer.param_groups
    ]
    stand_in: Any = types.SimpleNamespace(param_groups=groups, defaults=scheduler.optimizer.defaults, step=None)
    twin = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})

    def lrs() -> Iterator[float]:
        while True:
            yield float(groups[0]["lr"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                twin.step()

    return lrs()
