"""Hooks of an optimizer that record its steps with a monitor, for the callbacks of trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from torch import Tensor

from empirical.measures._group_settings import PacedScheduler
from empirical.measures.monitor import Monitor, ScheduleAhead
from empirical.measures.step_check import StepReport
from simulate.diagnosis.forecast import Forecast
from theory.arguments import check_choice

if TYPE_CHECKING:
    import pandas as pd


class StepHooks:
    """Hooks of an optimizer that record its steps with a monitor, each from its beginning to its end.

    Trainers clip gradients after their last event, so that only hooks of the optimizer see final gradients. A step of a
    derived optimizer may call that of its base class; then the outer one counts. If an optimizer evaluates its closure
    several times in a step, the first evaluation counts. Steps in which no recorded weight has a gradient are counted
    as skipped.

    Parameters
    ----------
    optimizer : the optimizer of PyTorch, without a wrapper.
    monitor : function that returns the monitor of the optimizer; it is called when gradients are final.

    Attributes
    ----------
    losses : losses of the micro-batches since the last step. The callback fills the list; each step clears it.
    loss : loss of the next step. The callback sets it; each step sets it back to NaN.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, monitor: Callable[[], Monitor]) -> None:
        self.optimizer, self._monitor = optimizer, monitor
        self.losses: list[Tensor] = []
        self.loss: Tensor | float = math.nan
        self._depth = 0
        self._is_due = self._is_handled = self._is_recorded = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def expect_step(self) -> None:
        """Note that a step follows, which a gradient scaler may skip."""
        if self._depth == 0:
            self.count_skipped()
            self._is_due = True

    def count_skipped(self) -> None:
        """Count the expected step as skipped, if it did not take place."""
        if self._is_due:
            self._is_due = False
            self._monitor().skipped += 1

    def drop_unfinished_step(self) -> None:
        """Drop a step that raised an error before it ended."""
        self._depth = 0

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        # the step of a derived optimizer calls that of its base class, which calls this hook again
        if self._depth > 1:
            return None
        self._is_due = self._is_handled = self._is_recorded = False
        # a closure computes and clips the gradients
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._recording_closure(kwargs["closure"])}
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._recording_closure(args[1]), *args[2:]), kwargs
        self._record()
        return None

    def _recording_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closure_and_record() -> Any:
            result = closure()
            self._record()
            return result

        return closure_and_record

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            if self._is_recorded:
                self._monitor().after_step()
            self.losses.clear()
            self.loss = math.nan

    def _record(self) -> None:
        if self._is_handled:
            return
        self._is_handled = True
        monitor = self._monitor()
        self._is_recorded = monitor.has_gradient
        if self._is_recorded:
            # a fused optimizer gets scaled gradients and their scale
            scale = getattr(self.optimizer, "grad_scale", None)
            monitor.before_step(self.loss, scale=1.0 if scale is None else float(scale))
        else:
            monitor.skipped += 1


class RecordedSteps:
    """Base of the callbacks of trainers: what they return about the steps that they recorded.

    Attributes
    ----------
    monitors : the monitors of the last training, one per optimizer; empty before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.monitors: list[Monitor] = []
        self._hooks: list[StepHooks] = []

    @property
    def monitor(self) -> Monitor | None:
        """The first monitor of the last training; None before the first training."""
        return self.monitors[0] if self.monitors else None

    def trajectory(self, group: str | None = None) -> xr.Dataset:
        """Return the recorded steps, as `Monitor.trajectory` does.

        Parameters
        ----------
        group : name of a group. It must be given if several optimizers have monitors.

        Raises
        ------
        ValueError : no step was recorded yet, or there is no such group.
        """
        return self.monitors[self._number_of_monitor(group)].trajectory(group)

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
        """Predict where the norm is heading until the end of training, as `Monitor.forecast` does.

        Parameters
        ----------
        group : name of a group. It must be given if several optimizers have monitors.
        grad_norm_max, delta, rotation : as in `Monitor.forecast`.
        steps_left, schedule : as in `Monitor.forecast`. Default: the steps that the trainer has left, and its
            scheduler. After the end of training, and where the trainer does not know them: those of `Monitor.forecast`.

        Raises
        ------
        ValueError : fewer than two steps were recorded, or an argument is out of range.
        """
        number = self._number_of_monitor(group)
        if steps_left is None:
            steps_left = self._steps_left()
        if schedule is None and steps_left is not None:
            schedule = self._paced_scheduler()
        return self.monitors[number].forecast(
            group,
            grad_norm_max=grad_norm_max,
            delta=delta,
            rotation=rotation,
            steps_left=steps_left,
            schedule=schedule,
        )

    def table(self) -> pd.DataFrame:
        """Return one row per group, as `Monitor.table` does, of all optimizers.

        Raises
        ------
        ValueError : fewer than two steps were recorded.
        """
        import pandas as pd

        self._check_started()
        return pd.concat([monitor.table() for monitor in self.monitors])

    def check_steps(self) -> list[StepReport]:
        """Return how the steps of each optimizer compare with its settings and state, as `Monitor.check_steps` does.

        Raises
        ------
        ValueError : no step was recorded yet.
        """
        self._check_started()
        return [report for monitor in self.monitors for report in monitor.check_steps()]

    def _steps_left(self) -> int | None:
        """Number of steps that the trainer has left; None if it does not know, or has none."""
        raise NotImplementedError

    def _paced_scheduler(self) -> PacedScheduler | None:
        """Scheduler of the trainer; None if it has none whose learning rates are known ahead."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Remove hooks and forget earlier training."""
        self._remove_hooks()
        self.monitors, self._hooks = [], []

    def _remove_hooks(self) -> None:
        for hooks in self._hooks:
            hooks.remove()

    def _check_started(self) -> None:
        if not self.monitors:
            raise ValueError(
                "trainer must have begun to train with this callback, but has not; call this after a step of training"
            )

    def _number_of_monitor(self, group: str | None) -> int:
        self._check_started()
        if len(self.monitors) == 1:
            return 0
        names = [name for monitor in self.monitors for name in monitor.groups]
        if group is None:
            raise ValueError(
                f"group must be given, because {len(self.monitors)} optimizers step separately: one of {names}, got "
                "None"
            )
        check_choice("group", group, names)
        return next(number for number, monitor in enumerate(self.monitors) if group in monitor.groups)
