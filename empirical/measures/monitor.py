"""Monitor of scale-invariant weights for any training loop, with a forecast of their norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

import theory
from empirical._model_copy import Inputs
from empirical.groups import Group, find_groups
from empirical.measures._group_settings import (
    GroupSetting,
    PacedScheduler,
    check_optimizers,
    is_known_ahead,
    lrs_ahead,
    setting_of_group,
    settings_of_weights,
)
from empirical.measures.step_check import StepCheck, StepReport
from empirical.steps.telemetry import change_products, records, step_products, vector_products
from simulate.diagnosis.forecast import Forecast, forecast
from simulate.trajectories.contract import RUNNING, effective_lrs, variable_attributes
from simulate.trajectories.folder import trajectory_of_records
from simulate.trajectories.groups import group_trajectory
from theory.arguments import check_choice, check_integer, quote, warn_user

if TYPE_CHECKING:
    import pandas as pd

# steps that are checked: the first ones, then every tenth of those recorded
_FIRST_CHECKS, _CHECK_EVERY, _LATEST_CHECKS = 5, 10, 100
# median |cos| of gradient and weights above which weights are not scale-invariant in training; and as a multiple of the
# group's own
_LARGEST_DEFECT, _DEFECT_FACTOR = 0.02, 10.0
_FORECAST_COLUMNS = ("equilibrium_norm", "share_of_way", "rotation", "rotation_ratio", "steps_to_settle", "remark")
_SAME = 1e-13  # relative difference of the squared norm of equal weights
_WRITTEN = ("loss", "lr", "norm", "grad_norm", "rotation", "radial_defect")
ScheduleAhead = Callable[[int], float] | Sequence[float] | LRScheduler | PacedScheduler


class ScalarWriter(Protocol):
    """Interface of a writer for scalars, such as `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""


@dataclass(frozen=True)
class _Row:
    """One recorded step: scalar products of each group, shape (groups, 5), as in `step_products`."""

    step: int
    loss: float
    sums: npt.NDArray[np.float64]
    settings: tuple[GroupSetting, ...]


@dataclass
class _Pending:
    """A step between `before_step` and `after_step`; without weights it is not recorded."""

    weights: list[Tensor] = field(default_factory=list)
    loss: float = math.nan
    products: list[Tensor] = field(default_factory=list)
    settings: list[GroupSetting | None] = field(default_factory=list)
    is_checked: bool = False


class Monitor:
    """Recorder of the scale-invariant weights of a model at the steps of its optimizer; it changes neither.

    Call `before_step(loss)` after the backward pass and `after_step()` after the optimizer's step. With accumulated
    gradients, call them once per step of the optimizer. With a gradient scaler pass it as `scale`; recorded steps that
    it skips are counted and left out.

    Groups may have different learning rates, weight decays and optimizers. Then each group has its own trajectory and
    forecast. The first steps and every tenth recorded step are compared with those that settings and state of the
    optimizer prescribe (`check_steps`).

    Parameters
    ----------
    model : the model to train.
    optimizer : its optimizer, or a list of all that move its weights.
    inputs : some training samples, to find the scale-invariant weights: a tensor, a tuple of arguments, or a dict of
        keyword arguments.
    weights : names of the scale-invariant weights to record; default: all. Name all weights of a group, or none.
    every : record the steps that are multiples of it. The others cost nothing.
    norms_only : record the norms alone, without gradients, rotation and check. It needs no copy of the weights.
    writer : writer of TensorBoard, or any object with its `add_scalar`.
    write_every : write the numbers of a recorded step that is at least so many steps after the last one.
    first_step : number of the first step, for a training that continues.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value, or the model has no scale-invariant weights that
        an optimizer moves.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    >>> inputs, targets = torch.randn(16, 5), torch.zeros(16).long()
    >>> monitor = Monitor(model, optimizer, inputs)
    >>> for _ in range(3):
    ...     loss = nn.functional.cross_entropy(model(inputs), targets)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     monitor.before_step(loss)
    ...     optimizer.step()
    ...     monitor.after_step()
    >>> monitor.trajectory().sizes["step"]
    3
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        inputs: Inputs,
        *,
        weights: Sequence[str] | None = None,
        every: int = 1,
        norms_only: bool = False,
        writer: ScalarWriter | None = None,
        write_every: int = 100,
        first_step: int = 0,
    ) -> None:
        self._optimizers = check_optimizers(optimizer)
        if writer is not None and not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer must have the method add_scalar, got {type(writer).__name__}")
        self._every = check_integer("every", every, at_least=1)
        self._write_every = check_integer("write_every", write_every, at_least=1)
        self._first = check_integer("first_step", first_step)
        self._model, self._writer, self._norms_only = _inner_model(model), writer, bool(norms_only)
        self._groups = _choose_groups(*find_groups(self._model, inputs), weights, _shared_parameters(self._model))
        self._names = [name for group in self._groups.values() for name in group.weights]
        self._starts = np.cumsum([0, *(len(group.weights) for group in self._groups.values())])[:-1]
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        self._shapes = {name: parameters[name].shape for name in self._names}
        self._lost: set[str] = set()
        if not any(settings_of_weights(self._optimizers, self._weights())):
            raise ValueError(f"optimizer must move the scale-invariant weights of the model, got none of {self._names}")
        self._checks = [StepCheck() for _ in self._optimizers]
        self._before: list[Tensor] = []
        self._rows: list[_Row] = []
        self._steps = 0
        self._next_write = 0
        self._pending: _Pending | None = None
        self._last_squares: npt.NDArray[np.float64] | None = None
        self._last_ids: list[int] = []
        self._mixed: dict[str, str] = {}
        self._warned: set[str] = set()
        self.skipped = 0

    def before_step(self, loss: Tensor | float, *, scale: float | Any = 1.0) -> None:
        """Record weights and gradient; call it after the backward pass and before the optimizer's step.

        Parameters
        ----------
        loss : unscaled mini-batch loss that was differentiated.
        scale : factor by which the gradients are scaled: a number, or the `torch.amp.GradScaler`; 1 after `unscale_`.

        Raises
        ------
        ValueError : no scale-invariant weight has a gradient, `scale` is not above 0, or the loss is not one number.
        """
        self._pending = None
        if (self._first + self._steps) % self._every:
            self._pending = _Pending()
            return
        if (size := torch.as_tensor(loss).numel()) != 1:
            raise ValueError(f"loss must be one number, the loss of the mini-batch, got {size} numbers")
        factor = float(scale.get_scale()) if hasattr(scale, "get_scale") else float(scale)
        if not factor > 0:
            raise ValueError(f"scale must be a number > 0, got {quote(scale)}")
        weights = self._weights()
        if all(p.grad is None for p in weights):
            raise ValueError(
                "scale-invariant weights must have a gradient before the step, got none; call before_step after "
                "backward"
            )
        pending = _Pending(
            weights, float(torch.as_tensor(loss).detach()), settings=settings_of_weights(self._optimizers, weights)
        )
        pending.is_checked = not self._norms_only and (
            len(self._rows) < _FIRST_CHECKS or len(self._rows) % _CHECK_EVERY == 0
        )
        if pending.is_checked:
            watched = self._tensors_by_name(weights)
            for check, optimizer in zip(self._checks, self._optimizers, strict=True):
                check.before(optimizer, watched, scale=factor)
        if self._norms_only:
            pending.products = [vector_products(p, p) for p in weights]
        else:
            scales = torch.tensor([1.0, factor, factor**2], dtype=torch.float64)
            pending.products = [_products_with_gradient(p) / scales.to(p.device) for p in weights]
            if [(p.shape, p.dtype, p.device) for p in self._before] != [(p.shape, p.dtype, p.device) for p in weights]:
                self._before = [torch.empty_like(p, requires_grad=False) for p in weights]
            for copy, p in zip(self._before, weights, strict=True):
                copy.copy_(p.detach())
        self._pending = pending

    def after_step(self) -> None:
        """Record the change of the weights; call it after the optimizer's step.

        Raises
        ------
        RuntimeError : `before_step` was not called.

        Warns
        -----
        UserWarning : once for each reason: weights changed between steps, gradients changed after `before_step`, or
            steps are not those that settings and state of the optimizer prescribe.
        """
        if self._pending is None:
            raise RuntimeError("after_step must follow before_step")
        pending, self._pending = self._pending, None
        if not pending.weights:
            self._steps += 1
            return
        sums = np.full((len(self._names), 5), np.nan)
        before = _to_numpy(pending.products)
        sums[:, :3] = before
        self._check_continuity(before[:, 0], pending.weights)
        weights = self._weights()
        if self._norms_only:
            changes = _to_numpy([vector_products(p, p) for p in weights])
            # only the norm after the step is known: w² + Δ² with Δ² so that it is right
            sums[:, 1:] = np.nan
            sums[:, 3], sums[:, 4] = 0.0, changes[:, 2] - before[:, 0]
        else:
            if pending.is_checked:
                copies = self._tensors_by_name(self._before)
                for check in self._checks:
                    check.after(copies)
            changes = _to_numpy([change_products(copy, p) for copy, p in zip(self._before, weights, strict=True)])
            # w·Δ from Δ² and Δ·(w+Δ)
            sums[:, 3], sums[:, 4] = changes[:, 1] - changes[:, 0], changes[:, 0]
        self._last_squares, self._last_ids = changes[:, 2], [id(p) for p in weights]
        if not sums[:, 4].any() and self._overflowed():
            # a gradient scaler skips the step if any gradient of an optimizer overflowed
            self.skipped += 1
            return
        self._rows.append(
            _Row(self._steps, pending.loss, np.add.reduceat(sums, self._starts), self._group_settings(pending, before))
        )
        if pending.is_checked:
            self._warn_of_steps()
        if self._writer is not None and self._steps >= self._next_write:
            self._next_write = self._steps + self._write_every
            self._write()
        self._steps += 1

    def trajectory(self, group: str | None = None) -> xr.Dataset:
        """Return the recorded steps as a trajectory of the common contract, with status "running".

        Parameters
        ----------
        group : name of a group, for its own trajectory; default: all groups together. Where groups have different
            settings, this has no `lr` and `wd`, but `group_lr` and `group_wd`.

        Raises
        ------
        ValueError : no step was recorded yet, or there is no such group.
        """
        if group is not None:
            check_choice("group", group, list(self._groups))
        if not self._rows:
            raise ValueError("monitor must have recorded at least one step, got none")
        run = self._all_groups()
        return run if group is None else group_trajectory(run, group)

    def forecast(
        self,
        group: str | None = None,
        *,
        grad_norm_max: float | None = None,
        delta: float = 0.1,
        rotation: float | None = None,
        steps_left: int | None = None,
        schedule: ScheduleAhead | None = None,
    ) -> Forecast:
        """Predict where the norm is heading at the present learning rate and weight decay, or under a schedule.

        Parameters
        ----------
        group : name of a group. Default: all groups together if they have the same settings, else the group with the
            largest norm. `table` has all groups.
        grad_norm_max : upper bound of g̃ for the earliest angular jump; default: the largest recorded g̃.
        delta : threshold δ of an angular jump, a step with 1 - cos θ > δ.
        rotation : angle per step in radians for which the forecast suggests lr or wd.
        steps_left : number of steps until the end of training.
        schedule : the scheduler of PyTorch, a function that gives the learning rate of a step, or a sequence of
            learning rates that begins with that of the last recorded step. Only the ratios to it count.

        Returns
        -------
        Forecast; `print` it.

        Raises
        ------
        ValueError : fewer than two steps were recorded, or an argument is out of range.

        Source: docs/mathematics.md §2, §4, §5, §8.

        Examples
        --------
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
        >>> inputs, targets = torch.randn(16, 5), torch.zeros(16).long()
        >>> monitor = Monitor(model, optimizer, inputs)
        >>> for _ in range(3):
        ...     loss = nn.functional.cross_entropy(model(inputs), targets)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     monitor.before_step(loss)
        ...     optimizer.step()
        ...     monitor.after_step()
        >>> monitor.forecast(steps_left=1000).heading in ("falls", "rises")
        True
        """
        run = self.trajectory(group)
        if group is None and "group_lr" in run:
            group = str(run.group.values[int(np.argmax(run.group_norm.values[-1]))])
            run = group_trajectory(run, group)
        return self._forecast_of(
            run,
            list(self._groups) if group is None else [group],
            grad_norm_max=grad_norm_max,
            delta=delta,
            rotation=rotation,
            steps_left=steps_left,
            schedule=schedule,
        )

    def _forecast_of(
        self,
        run: xr.Dataset,
        of_groups: Sequence[str],
        *,
        steps_left: int | None = None,
        schedule: ScheduleAhead | None = None,
        **options: Any,
    ) -> Forecast:
        """Forecast of the trajectory of some groups with one setting."""
        last = self._rows[-1].settings[list(self._groups).index(of_groups[0])]
        # the forecast begins after the last recorded step
        unrecorded = self._steps - 1 - self._rows[-1].step
        # earlier settings of the optimizer do not matter for what comes
        run.attrs["optimizer"] = last.optimizer_text(sum(map(self._size, of_groups)))
        return forecast(
            run,
            steps_left=None if steps_left is None else steps_left + unrecorded,
            schedule=self._future_lrs(schedule, of_groups[0], steps_left),
            obstacle="; ".join(filter(None, map(self._obstacle, of_groups))),
            **options,
        )

    def table(self) -> pd.DataFrame:
        """Return one row per group: where its norm is, where it settles, and when.

        Returns
        -------
        pandas.DataFrame with the columns `weights` (how many), `optimizer`, `lr`, `wd`, `norm`, `equilibrium_norm`,
        `share_of_way` (share of the way of ln ρ from the first norm to equilibrium), `rotation` (radians per step),
        `rotation_ratio` (over its equilibrium value), `steps_to_settle`, and `remark`, which says why a number is
        missing.

        Raises
        ------
        ValueError : fewer than two steps were recorded.
        """
        # importing pandas takes half a second
        import pandas as pd

        if len(self._rows) < 2:
            raise ValueError(f"monitor must have recorded at least two steps, got {len(self._rows)}")
        run, rows = self._all_groups(), {}
        for number, name in enumerate(self._groups):
            setting, first = self._rows[-1].settings[number], float(run.group_norm[0, number])
            row: dict[str, Any] = {
                "weights": self._size(name),
                "optimizer": setting.optimizer_text(self._size(name)),
                "lr": setting.lr,
                "wd": setting.wd,
                "norm": float(run.group_final_norm[number]),
                **dict.fromkeys(_FORECAST_COLUMNS, math.nan),
            }
            try:
                outlook = self._forecast_of(group_trajectory(run, name), [name])
            except ValueError as error:  # weights that were frozen, or removed
                row["remark"] = str(error)
            else:
                settles = 0 < outlook.equilibrium_norm < math.inf
                way = math.log(outlook.equilibrium_norm / first) if settles else math.nan
                row |= {
                    "equilibrium_norm": outlook.equilibrium_norm,
                    "share_of_way": math.log(outlook.norm / first) / way if way else math.nan,
                    "rotation": outlook.rotation,
                    "rotation_ratio": outlook.rotation / (outlook.equilibrium_rotation or math.nan),
                    "steps_to_settle": outlook.steps_to_settle,
                    "remark": outlook.equilibrium_obstacle,
                }
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")

    def check_steps(self) -> list[StepReport]:
        """Return what the comparison of steps with the optimizer's settings and state found, for each optimizer.

        Print a report for its numbers and findings: decay that does not arrive, weights that do not move, steps that
        clipping determines, and steps that differ from those of the optimizer.
        """
        return [check.report() for check in self._checks]

    @property
    def has_gradient(self) -> bool:
        """Whether any recorded weight has a gradient; without one there is no step to record."""
        return any(p.grad is not None for p in self._weights())

    @property
    def groups(self) -> dict[str, Group]:
        """The recorded groups of scale-invariant weights by name."""
        return dict(self._groups)

    @property
    def rule(self) -> theory.Optimizer | None:
        """The optimizer of all groups in terms of `theory`; None if `theory` does not know it, or groups differ."""
        settings = [setting for setting in settings_of_weights(self._optimizers, self._weights()) if setting]
        if len({setting.rule for setting in settings}) != 1 or settings[0].rule is None:
            return None
        return theory.optimizers.with_dim(settings[0].rule, sum(map(self._size, self._groups)))

    def _all_groups(self) -> xr.Dataset:
        sums, last = np.stack([row.sums for row in self._rows]), self._rows[-1]
        lrs, wds = (np.array([[s[i] for s in row.settings] for row in self._rows]) for i in (0, 1))
        is_common = bool((lrs == lrs[:, :1]).all() and (wds == wds[:, :1]).all())
        is_common &= len({(s.rule, s.name) for s in last.settings}) == 1
        texts = [self._optimizer_text(number) for number in range(len(self._groups))]
        attributes: dict[str, Any] = {"skipped_steps": self.skipped, "torch_version": torch.__version__}
        if is_common:
            attributes["optimizer"] = self._optimizer_text(0, sum(map(self._size, self._groups)))
            for name, values in (("lr", lrs), ("wd", wds)):
                if np.ptp(values) == 0:
                    attributes[name] = float(values[0, 0])
        products = step_products(sums)
        run = trajectory_of_records(
            records(products, np.array([row.loss for row in self._rows]), lrs[:, 0]),
            status=RUNNING,
            first_norm=math.nan,
            groups=list(self._groups),
            attributes=attributes,
        )
        along, squares = np.abs(sums[..., 1]), np.sqrt(sums[..., 0] * sums[..., 2])
        new: dict[str, tuple[Any, npt.NDArray[Any]]] = {
            "group_radial_defect": (("step", "group"), np.divide(along, squares, out=0 * along, where=squares > 0)),
            "group_final_norm": ("group", np.sqrt(sums[-1, :, 0] + 2 * sums[-1, :, 3] + sums[-1, :, 4])),
        }
        if self._norms_only:
            run = run.drop_vars(["grad_norm", "rotation", "radial_defect", "group_grad_norm", "group_rotation"])
            del new["group_radial_defect"]
        if not is_common:
            run = run.drop_vars(["lr", "effective_lr", "angular_lr"], errors="ignore")
            new |= {"group_lr": (("step", "group"), lrs), "group_wd": (("step", "group"), wds)}
        elif "wd" not in attributes:
            new["wd"] = ("step", wds[:, 0])
        run = run.assign({name: (*value, variable_attributes(name)) for name, value in new.items()})
        steps = self._first + np.array([row.step for row in self._rows])
        run["status_step"] = run.status_step.copy(data=self._first + self._steps)
        return run.assign_coords(
            step=("step", steps, variable_attributes("step")),
            group_optimizer=("group", np.array(texts, dtype=object), variable_attributes("group_optimizer")),
        )

    def _optimizer_text(self, number: int, dim: int | None = None) -> str:
        """Text of a group's optimizer over all rows."""
        first, last = self._rows[0].settings[number], self._rows[-1].settings[number]
        if any((row.settings[number].rule, row.settings[number].name) != (last.rule, last.name) for row in self._rows):
            return f"{first.name.partition('(')[0]} with changing settings"
        return last.optimizer_text(dim or self._size(list(self._groups)[number]))

    def _group_settings(self, pending: _Pending, before: npt.NDArray[np.float64]) -> tuple[GroupSetting, ...]:
        """Setting of each group; groups whose weights have no common setting are remembered."""
        settings = []
        for start, (name, group) in zip(self._starts, self._groups.items(), strict=True):
            part = slice(start, start + len(group.weights))
            setting, self._mixed[name] = setting_of_group(pending.settings[part], before[part, 0].tolist())
            settings.append(setting)
        result = tuple(settings)
        return self._rows[-1].settings if self._rows and self._rows[-1].settings == result else result

    def _obstacle(self, name: str) -> str:
        """Why the norm of a group obeys no law that `theory` knows; empty if nothing speaks against it."""
        if self._mixed[name]:
            return self._mixed[name]
        sums = np.stack([row.sums[list(self._groups).index(name)] for row in self._rows])
        sizes = np.sqrt(sums[:, 0] * sums[:, 2])
        defects = np.abs(sums[sizes > 0, 1]) / sizes[sizes > 0]
        defect, own = float(np.median(defects)) if defects.size else 0.0, self._groups[name].defect
        if defect > max(_LARGEST_DEFECT, _DEFECT_FACTOR * own):
            return (
                f"the weights are not scale-invariant in training: |cos| of gradient and weights is {defect:.2g}, and "
                f"{own:.1g} when they were found"
            )
        return ""

    def _future_lrs(self, schedule: ScheduleAhead | None, name: str, steps_left: int | None) -> Any:
        """Schedule for a group as `forecast` takes it, after the last recorded step."""
        if not isinstance(schedule, (LRScheduler, PacedScheduler)):
            return schedule
        paced = schedule if isinstance(schedule, PacedScheduler) else PacedScheduler(schedule)
        if not is_known_ahead(paced.scheduler):
            kind = type(paced.scheduler).__name__
            raise ValueError(f"schedule must not depend on the training, got {kind}; pass the learning rates ahead")
        if steps_left is None:
            raise ValueError("steps_left must be given with a scheduler of PyTorch, got None")
        steps_left = check_integer("steps_left", steps_left)
        last, number = self._rows[-1], list(self._groups).index(name)
        weight = dict(zip(self._names, self._weights(), strict=True))[self._groups[name].weights[0]]
        lr, first = last.settings[number].lr, self._first
        return lrs_ahead(paced, weight, lr, first + last.step, first + self._steps, steps_left)

    def _size(self, name: str) -> int:
        return sum(self._shapes[weight].numel() for weight in self._groups[name].weights)

    def _tensors_by_name(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        named = zip(self._names, tensors, strict=True)
        return {name: tensor for name, tensor in named if name not in self._lost}

    def _check_continuity(self, squares: npt.NDArray[np.float64], weights: Sequence[Tensor]) -> None:
        """Warn if the weights are not those after the last step."""
        last, self._last_squares = self._last_squares, None
        if last is None or self._every > 1 or self._lost or [id(p) for p in weights] != self._last_ids:
            return
        if np.abs(squares - last).max() > _SAME * squares.max():
            self._warn(
                "unseen",
                "weights changed since the last after_step: weights were loaded, or steps were not recorded. Call "
                "before_step and after_step at every step of the optimizer",
            )

    def _warn_of_steps(self) -> None:
        for number, check in enumerate(self._checks):
            for fault in check.report(last=_LATEST_CHECKS).faults:
                # faults repeat with other numbers
                self._warn(f"{number} {''.join(c for c in fault if c.isalpha())[:40]}", fault)

    def _warn(self, topic: str, message: str) -> None:
        """Warn the user once per topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            warn_user(message)

    def _overflowed(self) -> bool:
        gradients = (p.grad for o in self._optimizers for group in o.param_groups for p in group["params"])
        return any(gradient is not None and not torch.isfinite(gradient).all() for gradient in gradients)

    def _write(self) -> None:
        assert self._writer is not None
        row = self._rows[-1]
        lrs = [setting.lr for setting in row.settings]
        record = records(step_products(row.sums), np.asarray(row.loss), np.asarray(lrs[0]))
        step, names = self._first + row.step, set(_WRITTEN) if len(set(lrs)) == 1 else set(_WRITTEN) - {"lr"}
        numbers = {name: float(record[name]) for name in sorted(names)}
        if len(set(lrs)) == 1:
            optimizer = row.settings[0].optimizer_text(sum(map(self._size, self._groups)))
            numbers |= effective_lrs(lrs[0], float(record["norm"]), optimizer)
        for group, norm, angle, lr in zip(
            self._groups, record["group_norm"], record["group_rotation"], lrs, strict=True
        ):
            numbers[f"norm/{group}"], numbers[f"rotation/{group}"] = float(norm), float(angle)
            if len(set(lrs)) > 1:
                numbers[f"lr/{group}"] = lr
        for name, number in numbers.items():
            if not self._norms_only or name.partition("/")[0] in ("loss", "lr", "effective_lr", "angular_lr", "norm"):
                self._writer.add_scalar(f"bnwd/{name}", number, step)

    def _weights(self) -> list[Tensor]:
        """The recorded parameters as they are now; they may have been replaced, frozen or removed."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        weights: list[Tensor] = []
        for name in self._names:
            parameter: Tensor | None = parameters.get(name)
            if parameter is None or parameter.shape != self._shapes[name]:
                if name not in self._lost:
                    self._lost.add(name)
                    warn_user(f"{name} was removed or changed its shape; its norm is NaN from this step on")
                parameter = torch.full(self._shapes[name], math.nan, device=next(self._model.parameters()).device)
            weights.append(parameter)
        return weights


def _inner_model(model: Any) -> Any:
    """Return the model inside `DistributedDataParallel`, `DataParallel` or `torch.compile`."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _shared_parameters(model: nn.Module) -> list[str]:
    """Names of the first parameter that a model uses under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return next((same for same in names.values() if len(same) > 1), [])


def _choose_groups(
    groups: Mapping[str, Group], is_normalizing: bool, weights: Sequence[str] | None, shared: Sequence[str]
) -> dict[str, Group]:
    """Choose the groups with the weights of these names, all by default."""
    if not groups and is_normalizing and shared:
        raise ValueError(
            f"model must have scale-invariant weights, got none. {' and '.join(shared)} are one tensor. If it is "
            "an embedding and the last layer, it scales the outputs. Without sharing, it may be scale-invariant with "
            "the weights of the residual stream. empirical.weight_roles shows what decay does to each weight"
        )
    if not groups:
        raise ValueError(
            "model must have scale-invariant weights, got none. "
            + (
                "It has normalization layers. But their inputs contain a part that does not scale with the weights: "
                "a residual stream that begins with a normalization or with frozen weights, a bias, or an encoding"
                if is_normalizing
                else "Weights right before a normalization layer are scale-invariant: add such a layer"
            )
        )
    if weights is None:
        return dict(groups)
    invariant = {name for group in groups.values() for name in group.weights}
    if unknown := sorted(set(weights) - invariant):
        raise ValueError(f"weights must be names of scale-invariant weights, {sorted(invariant)}, got {unknown}")
    chosen = {name: group for name, group in groups.items() if set(group.weights) <= set(weights)}
    split = [g.weights for name, g in groups.items() if name not in chosen and set(g.weights) & set(weights)]
    if split:
        raise ValueError(
            f"weights must name all or none of {split[0]}, which are scale-invariant only together; got "
            f"{sorted(weights)}"
        )
    return chosen


def _products_with_gradient(weight: Tensor) -> Tensor:
    """w², w·g and g² of a weight and its gradient; without a gradient the optimizer does not move it."""
    if weight.grad is None:
        return vector_products(weight, torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape))
    return vector_products(weight, weight.grad)


def _to_numpy(products: Sequence[Tensor]) -> npt.NDArray[np.float64]:
    return torch.stack([product.to(products[0].device) for product in products]).cpu().numpy()
