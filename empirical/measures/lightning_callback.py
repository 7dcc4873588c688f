"""Callback of PyTorch Lightning that records scale-invariant weights with a `Monitor`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from empirical.groups import Group
from empirical.measures._group_settings import PacedScheduler, is_known_ahead
from empirical.measures._step_hooks import RecordedSteps, StepHooks
from empirical.measures.monitor import Monitor, ScalarWriter
from empirical.measures.step_check import inner_optimizer
from theory.arguments import check_integer, quote, warn_user

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _base_class() -> Any:
    """Lightning's `Callback`; `object` without Lightning, so that this module can be imported."""
    # importing both packages costs seconds: take the one that is imported already
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError:
            continue
    return object


_Callback: Any = _base_class()


class MonitorCallback(RecordedSteps, _Callback):  # type: ignore[misc]
    """Callback that records the scale-invariant weights of a Lightning module at each step, without changing training.

    Each step of the optimizer gives a row, also with accumulated gradients and in manual optimization. Gradients are
    those the optimizer gets: accumulated over micro-batches, unscaled, and clipped if the trainer clips. The loss is
    the mean over the micro-batches of the step. In manual optimization it is the sum of the losses that were
    differentiated since the optimizer's gradients were None, and NaN for steps that bypass Lightning
    (`use_pl_optimizer=False`). In the last step of an epoch Lightning divides by `accumulate_grad_batches` even if
    fewer micro-batches are left: the recorded gradient is smaller, while the loss is still the mean.

    Several optimizers step separately. Each one that moves scale-invariant weights has its own monitor. It records the
    groups that this optimizer moves alone, one row per step of this optimizer. Then `trajectory` and `forecast` need
    the name of a group. Groups that several optimizers move are left out, with a warning.

    Steps that a gradient scaler skips, or in which no recorded weight has a gradient, are counted and left out. If an
    optimizer evaluates its closure several times in a step, the first evaluation counts. Each `fit` starts a new
    trajectory, and its step numbers continue those of the trainer. It supports one device, or copies of the module on
    several (DDP); the loss is then that of the samples of its own process.

    Parameters
    ----------
    inputs : some training samples, to find the scale-invariant weights.
    submodule : name of the part of the module that takes `inputs`, for modules without `forward`; default: the module.
    weights, every, norms_only, writer, write_every : as for `Monitor`; only the process of rank 0 writes.
    write : write to the trainer's TensorBoard logger if there is no `writer`.

    Attributes
    ----------
    monitor : the `Monitor` of the last `fit`, of its first optimizer; None before the first.
    monitors : all monitors of the last `fit`, one per optimizer.

    Raises
    ------
    ImportError : Lightning is not installed.
    TypeError, ValueError : an argument is out of range. When training begins: as for `Monitor`; each group is moved by
        several optimizers; or `write` is set and the trainer has no TensorBoard logger.

    Examples
    --------
    >>> import lightning.pytorch as pl  # doctest: +SKIP
    >>> class Classifier(pl.LightningModule):  # doctest: +SKIP
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    ...
    ...     def training_step(self, batch):
    ...         return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    ...
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.01)
    >>> samples = torch.utils.data.TensorDataset(torch.randn(48, 5), torch.arange(48) % 3)  # doctest: +SKIP
    >>> callback = MonitorCallback(samples.tensors[0], submodule="net")  # doctest: +SKIP
    >>> trainer = pl.Trainer(max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False,
    ...                      enable_progress_bar=False, enable_model_summary=False)  # doctest: +SKIP
    >>> trainer.fit(Classifier(), torch.utils.data.DataLoader(samples, batch_size=16))  # doctest: +SKIP
    >>> callback.trajectory().sizes["step"]  # doctest: +SKIP
    3
    """

    def __init__(
        self,
        inputs: Tensor,
        *,
        submodule: str | None = None,
        weights: Sequence[str] | None = None,
        every: int = 1,
        norms_only: bool = False,
        writer: ScalarWriter | None = None,
        write: bool = False,
        write_every: int = 100,
    ) -> None:
        if _Callback is object:
            raise ImportError(
                "MonitorCallback needs Lightning: pip install 'bnwd[lightning]', or pip install lightning"
            )
        super().__init__()
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs must be a torch.Tensor, got {type(inputs).__name__}")
        self._inputs, self._submodule, self._weights = inputs, submodule, weights
        self._writer, self._write, self._norms_only = writer, write, norms_only
        self._every = check_integer("every", every, at_least=1)
        self._write_every = check_integer("write_every", write_every, at_least=1)
        self._trainer: Any = None
        self._total_steps: float = math.inf
        self._schedulers: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the weights and hook into the optimizers. Lightning calls it after reading a checkpoint."""
        # a refused fit must not show the trajectory of an earlier one
        self._forget()
        is_automatic = pl_module.automatic_optimization
        self._trainer, self._total_steps, self._schedulers = trainer, math.inf, []
        if is_automatic:
            self._total_steps = trainer.estimated_stepping_batches
            self._schedulers = list(trainer.lr_scheduler_configs)
        for optimizer, monitor in self._create_monitors(trainer, pl_module):
            self.monitors.append(monitor)
            self._hooks.append(StepHooks(optimizer, partial(_itself, monitor)))

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Drop the losses of micro-batches whose gradients are dropped. Lightning calls it."""
        for hooks in self._hooks_of(optimizer):
            hooks.losses.clear()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Record the loss of a micro-batch, scaled and divided as it is differentiated. Lightning calls it."""
        for hooks in self._hooks:
            # Lightning does not notice if gradients are dropped in manual optimization
            if all(p.grad is None for group in hooks.optimizer.param_groups for p in group["params"]):
                hooks.losses.clear()
            hooks.losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Compute the loss of the step from its micro-batches. Lightning calls it."""
        for hooks in self._hooks_of(optimizer):
            # with a scaler this precedes the optimizer's step, which may be skipped
            hooks.expect_step()
            if hooks.losses:
                scaler = getattr(trainer.precision_plugin, "scaler", None)
                parts = len(hooks.losses) if pl_module.automatic_optimization else 1
                hooks.loss = sum(map(float, hooks.losses)) / parts / (1.0 if scaler is None else scaler.get_scale())
                hooks.losses.clear()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Drop a step that raised an error before it ended. Lightning calls it."""
        for hooks in self._hooks:
            hooks.drop_unfinished_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step that was skipped. Lightning calls it."""
        for hooks in self._hooks:
            hooks.count_skipped()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks from the optimizer. Lightning calls it."""
        self._remove_hooks()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks from the optimizer. Lightning calls it."""
        self._remove_hooks()

    def _hooks_of(self, optimizer: Any) -> list[StepHooks]:
        return [hooks for hooks in self._hooks if hooks.optimizer is inner_optimizer(optimizer)]

    def _create_monitors(self, trainer: Any, pl_module: Any) -> list[tuple[torch.optim.Optimizer, Monitor]]:
        """Create a monitor of each optimizer that moves scale-invariant weights."""
        part, inputs = _submodule_of(pl_module, self._submodule), self._inputs.to(pl_module.device)
        options: dict[str, Any] = {
            "every": self._every,
            "norms_only": self._norms_only,
            "writer": self._find_writer(trainer) if trainer.is_global_zero else None,
            "write_every": self._write_every,
            "first_step": trainer.global_step,
        }
        optimizers = [inner_optimizer(optimizer) for optimizer in trainer.optimizers]
        try:
            monitor = Monitor(part, optimizers, inputs, weights=self._weights, **options)
        except NotImplementedError as error:
            raise ValueError(
                f"submodule must name a part with a method forward, got {quote(self._submodule)}, "
                f"and {type(part).__name__} has none"
            ) from error
        if len(optimizers) == 1:
            return [(optimizers[0], monitor)]
        names = _weights_by_optimizer(part, monitor.groups, optimizers)
        return [
            (optimizer, Monitor(part, optimizer, inputs, weights=weights, **options))
            for optimizer, weights in zip(optimizers, names, strict=True)
            if weights
        ]

    def _steps_left(self) -> int | None:
        # -1 and infinity: the trainer does not know
        if not 0 <= self._total_steps < math.inf:
            return None
        return max(0, int(self._total_steps) - self._trainer.global_step) or None

    def _paced_scheduler(self) -> PacedScheduler | None:
        if len(self._schedulers) != 1:
            return None
        (config,) = self._schedulers
        if not is_known_ahead(config.scheduler):
            return None
        batches, per_step = self._trainer.num_training_batches, self._trainer.accumulate_grad_batches
        if config.interval == "step":
            period = math.lcm(config.frequency, per_step) // per_step
        elif batches < math.inf:
            period = config.frequency * math.ceil(batches / per_step)
        else:
            return None
        return PacedScheduler(config.scheduler, period, self._trainer.global_step)

    def _find_writer(self, trainer: Any) -> ScalarWriter | None:
        if self._writer is not None or not self._write:
            return self._writer
        experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        writer: ScalarWriter | None = next((logger for logger in experiments if hasattr(logger, "add_scalar")), None)
        if writer is None:
            kinds = [type(logger).__name__ for logger in trainer.loggers]
            raise ValueError(f"write needs a TensorBoardLogger among the trainer's loggers, got {kinds}")
        return writer


def _weights_by_optimizer(
    part: Any, groups: Mapping[str, Group], optimizers: Sequence[torch.optim.Optimizer]
) -> list[list[str]]:
    """Names of the weights of the groups that each optimizer moves alone."""
    parameters = dict(part.named_parameters(remove_duplicate=False))
    moved = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    names: list[list[str]] = [[] for _ in optimizers]
    shared: list[str] = []
    for name, group in groups.items():
        weights = {id(parameters[weight]) for weight in group.weights}
        movers = [number for number, of_optimizer in enumerate(moved) if weights & of_optimizer]
        if len(movers) == 1:
            names[movers[0]] += group.weights
        elif movers:
            shared.append(name)
    if not any(names):
        raise ValueError(
            f"trainer has {len(optimizers)} optimizers, which step separately and share the weights of each group, "
            f"{shared}; give all weights of a group to one optimizer, or call a Monitor in training_step"
        )
    if shared:
        warn_user(f"groups {shared} are left out: several optimizers, which step separately, share their weights")
    return names


def _itself(monitor: Monitor) -> Monitor:
    return monitor


def _submodule_of(module: Any, name: str | None) -> Any:
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError:
        names = sorted(child for child, _ in module.named_children())
        raise ValueError(
            f"submodule must be the name of a part of the module, such as {names}, got {quote(name)}"
        ) from None
