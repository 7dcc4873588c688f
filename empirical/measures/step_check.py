"""Check of an optimizer: which rule its groups follow, and whether its steps are those that its settings prescribe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import theory
from empirical.measures._updates import (
    Watched,
    adds_momentum_to_gradient,
    betas_of,
    compare_step,
    has_step_of_torch,
    settings_of,
    tensor_norm,
    update_name,
    watch,
)
from empirical.measures.step_report import (
    STEP_TOLERANCE,
    GroupRecord,
    GroupSteps,
    StepReport,
    group_steps,
    row_columns,
    step_report,
)
from theory.matrix import QUINTIC

__all__ = ["GroupSteps", "StepCheck", "StepReport", "inner_optimizer", "rule_of"]

_MUON_TOLERANCE = 0.05  # Newton-Schulz iterations run in bfloat16
_ERRORS = (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)  # of states of another form
_OF_TORCH = (torch.optim.SGD, torch.optim.Adam, torch.optim.Muon)
_SHOWN = {"SGD": ("momentum", "dampening", "nesterov"), "Adam": ("amsgrad",), "AdamW": ("amsgrad",)}


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside a wrapper with the attribute `optimizer`, as of Accelerate or Lightning.

    Examples
    --------
    >>> type(inner_optimizer(torch.optim.SGD([torch.ones(2, requires_grad=True)]))).__name__
    'SGD'
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer) and inner is not optimizer:
        optimizer = inner
    return optimizer


def rule_of(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], dim: int, shape: Sequence[int] = ()
) -> tuple[theory.Optimizer | None, str]:
    """Return the optimizer of one parameter group in terms of `theory`, and its name for reports.

    The settings of the group decide, for example `decoupled_weight_decay`, `amsgrad` and `dampening`. They may change
    during training. A user-defined class called Lion counts as Lion; `StepCheck.follows_rule` tests it.

    Parameters
    ----------
    optimizer : the optimizer, or a wrapper with the attribute `optimizer`.
    group : one of its `param_groups`.
    dim : number of scale-invariant weights in the group.
    shape : rows and columns of the weight, if the group is a single matrix. Muon needs it.

    Returns
    -------
    rule : None if `theory` does not know the optimizer.
    name : text of the rule, or the name of the class with the settings that matter.

    Examples
    --------
    >>> optimizer = torch.optim.Adam([torch.ones(2, requires_grad=True)], decoupled_weight_decay=True)
    >>> rule_of(optimizer, optimizer.param_groups[0], dim=2)
    (AdamW(dim=2), 'AdamW(dim=2)')
    """
    optimizer = inner_optimizer(optimizer)
    name = update_name(optimizer, group)
    rule: theory.Optimizer | None = None
    adam_flag = getattr(optimizer, "adam_w_mode", None)  # FusedAdam of Apex and DeepSpeed
    if not name and adam_flag is not None and "betas" in group and group.get("bias_correction", True):
        name = "AdamW" if adam_flag else "Adam"
    elif name != "Lion" and not has_step_of_torch(optimizer):
        name = ""
    try:
        if name == "SGD" and (group["momentum"] == 0 or group["dampening"] == 0):
            momentum = float(group["momentum"])
            rule = theory.SGD(momentum=momentum, nesterov=bool(group["nesterov"]) and momentum > 0)
        elif name in ("Adam", "AdamW") and not group.get("amsgrad", False):
            kind = theory.AdamW if name == "AdamW" else theory.Adam
            rule = kind(dim=dim, betas=betas_of(group), eps=float(group["eps"]))
        elif name == "Lion":
            rule = theory.Lion(dim=dim, betas=betas_of(group))
        elif name == "Muon" and len(shape) == 2 and tuple(group["ns_coefficients"]) == QUINTIC:
            rows, columns = shape
            scale, iterations = group["adjust_lr_fn"] or "original", int(group["ns_steps"])
            rule = theory.Muon(rows, columns, float(group["momentum"]), bool(group["nesterov"]), scale, iterations)
    except (KeyError, TypeError, ValueError):
        rule = None
    if rule is not None:
        return rule, repr(rule)
    class_name = type(optimizer).__name__
    shown = _SHOWN.get(name, ("momentum",) if "Muon" in class_name else ())
    settings = ", ".join(f"{key}={_format_setting(group[key])}" for key in shown if group.get(key))
    return None, (name or class_name) + (f"({settings})" if settings else "")


def _format_setting(value: Any) -> str:
    return str(value) if isinstance(value, bool) else f"{float(value):g}"


@dataclass
class _PendingCheck:
    optimizer: Any
    groups: dict[int, tuple[str, dict[str, Any], list[Watched]]]
    scale: float


class StepCheck:
    """Comparison of the steps of an optimizer with those that its settings, its state and the gradients prescribe.

    The check changes nothing. It keeps some numbers per checked step, and temporary copies of one weight at a time.
    Call `before` right before the step and `after` right after it, for every step or a few of them. Only the updates of
    `torch.optim.SGD`, `Adam`, `AdamW`, `Muon` and of Lion are checked. For other classes called Muon only the decay
    and the share of unmoved weights are.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.arange(1.0, 9.0))
    >>> optimizer, check = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1), StepCheck()
    >>> for _ in range(5):
    ...     weight.grad = torch.randn(8)
    ...     weights_before = {"weight": weight.detach().clone()}
    ...     check.before(optimizer, {"weight": weight})
    ...     optimizer.step()
    ...     check.after(weights_before)
    >>> check.report().findings
    ()
    """

    def __init__(self) -> None:
        self._records: dict[int, GroupRecord] = {}
        self._norms: list[tuple[float, float, float]] = []  # norm, largest entry and resolution of the gradient
        self._gradient_changes: list[float] = []
        self._pending: _PendingCheck | None = None
        self._has_own_step = False

    def before(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], *, scale: float = 1.0) -> None:
        """Record settings and gradients; call it after everything that changes gradients.

        Parameters
        ----------
        optimizer : the optimizer, or a wrapper with the attribute `optimizer`.
        parameters : the watched weights by name.
        scale : factor by which a gradient scaler multiplied the gradients; 1 after `unscale_`.
        """
        optimizer = inner_optimizer(optimizer)
        self._pending = None
        self._has_own_step = isinstance(optimizer, _OF_TORCH) and not has_step_of_torch(optimizer)
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        try:
            norms = _gradient_norms([p.grad for p in tensors if p.grad is not None], scale)
        except _ERRORS as error:  # sparse gradients, for example
            norms = (math.nan, math.nan, math.nan)
            reason = f"norm of the gradients: {_first_line(error)}"
        else:
            reason = "gradients are not finite or zero"
        names = {id(p): name for name, p in parameters.items()}
        groups: dict[int, tuple[str, dict[str, Any], list[Watched]]] = {}
        for index, group in enumerate(optimizer.param_groups):
            watched = [p for p in group["params"] if id(p) in names]
            if not watched:
                continue
            kind = update_name(optimizer, group)
            record = self._records.setdefault(index, GroupRecord())
            record.kind, record.optimizer = kind, rule_of(optimizer, group, sum(p.numel() for p in watched))[1]
            if not kind:
                record.reason = f"the update of {type(optimizer).__name__} is not known"
            elif all(p.grad is None for p in watched):
                record.reason = "no weight has a gradient, and without one the optimizer does not move or decay it"
            elif not 0 < norms[0] < math.inf:
                record.reason = reason
            else:
                try:
                    settings, moved = settings_of(group), [p for p in watched if p.grad is not None]
                    items = [watch(names[id(p)], p, kind, settings, optimizer.state.get(p, {})) for p in moved]
                    groups[index] = kind, settings, items
                except _ERRORS as error:
                    record.reason = _first_line(error)
        if 0 < norms[0] < math.inf:
            self._norms.append(norms)
            self._pending = _PendingCheck(optimizer, groups, scale)

    def after(self, before: Mapping[str, Tensor]) -> None:
        """Compare the step with the prescribed one. Do not call it for steps that a gradient scaler skipped.

        Parameters
        ----------
        before : values of the watched weights before the step, by name.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        norms: list[Tensor] = []
        for index, (kind, settings, watched) in pending.groups.items():
            record = self._records[index]
            try:
                rows = []
                for item in watched:
                    state = pending.optimizer.state.get(item.weight, {})
                    gradient = item.gradient if item.weight.grad is None else item.weight.grad
                    gradient_norm = tensor_norm(gradient)
                    rows.append(compare_step(kind, settings, state, item, before[item.name], gradient, gradient_norm))
                    if kind in ("SGD", "Adam", "AdamW", "Muon") and not adds_momentum_to_gradient(settings):
                        norms.append(torch.stack([item.gradient_norm / pending.scale, gradient_norm]).cpu())
                names = list(rows[0])
                columns = [torch.stack([row[name].double() for name in names]) for row in rows]
                total = torch.stack([column.to(columns[0].device) for column in columns]).sum(0)
                sums = dict(zip(names, total.tolist(), strict=True))
                if sums["cleared"] and kind not in ("Adam", "AdamW"):
                    raise ValueError("gradients were zeroed between the step and the check")
                if not all(map(math.isfinite, (sums["planned"], sums["rounding"]))):
                    raise ValueError("weights or state are not finite")
            except _ERRORS as error:
                record.reason = _first_line(error)
                continue
            record.dtypes |= {str(item.weight.dtype).removeprefix("torch.") for item in watched}
            record.eps = max(torch.finfo(item.weight.dtype).eps for item in watched)
            base = _MUON_TOLERANCE if kind == "Muon" else STEP_TOLERANCE
            record.tolerance = max(base, 4 * record.eps)
            record.rows.append(
                {**sums, "intrinsic_lr": settings["lr"] * settings["weight_decay"], "lr": settings["lr"]}
            )
        if norms:
            recorded, used = (float(part) for part in torch.stack(norms).double().square().sum(0).sqrt())
            if used > 0 and recorded > 0:  # else zeroed after the step
                self._gradient_changes.append(used / recorded)

    def follows_rule(self, index: int) -> bool | None:
        """Whether the checked steps of a group are those of its rule, for example of Lion; None before any check."""
        record = self._records.get(index)
        if record is None or not record.rows:
            return None
        sums = {name: float(column.sum()) for name, column in row_columns(record.rows).items()}
        if math.isnan(sums["deviation"]):
            return None
        return sums["deviation"] <= record.tolerance**2 * sums["planned"] + sums["rounding"]

    def report(self, *, last: int | None = None) -> StepReport:
        """Return the numbers and findings of the checked steps; with `last`, only of that many last ones."""
        recent = slice(0 if last is None else -last, None)
        groups = tuple(group_steps(index, self._records[index], recent) for index in sorted(self._records))
        return step_report(groups, self._norms[recent], self._gradient_changes[recent], self._has_own_step)


def _gradient_norms(gradients: Sequence[Tensor], scale: float) -> tuple[float, float, float]:
    """Norm, largest absolute entry and resolution of all gradients together."""
    if not gradients:
        return 0.0, 0.0, 0.0
    parts = [torch.stack([tensor_norm(g, order) for order in (2, math.inf)]) for g in gradients]
    table = torch.stack([part.to(parts[0].device) for part in parts])
    norm, largest = torch.stack([table[:, 0].square().sum().sqrt(), table[:, 1].amax()]).tolist()
    return norm / scale, largest / scale, max(torch.finfo(g.dtype).eps for g in gradients)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
