"""Callback of PyTorch Lightning that records scale-invariant weights with a `Monitor`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

import theory
from empirical.measures.monitor import Monitor, ScalarWriter
from simulate.diagnosis.forecast import Forecast

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


class MonitorCallback(_Callback):  # type: ignore[misc]
    """Callback that records the scale-invariant weights of a Lightning module at each step, without changing training.

    Each step of the optimizer gives a row, also with accumulated gradients and in manual optimization. Gradients are
    those the optimizer gets: accumulated over micro-batches, unscaled, and clipped if the trainer clips. The loss is
    the mean over the micro-batches of the step. In manual optimization it is the sum of the differentiated losses, and
    NaN for steps that bypass Lightning (`use_pl_optimizer=False`). In the last step of an epoch Lightning divides by
    `accumulate_grad_batches` even if fewer micro-batches are left: the recorded gradient is smaller, while the loss is
    still the mean.

    Steps that a gradient scaler skips, or in which no recorded weight has a gradient, are counted and left out. If an
    optimizer evaluates its closure several times in a step, the first evaluation counts. Each `fit` starts a new
    trajectory, and its step numbers continue those of the trainer. It supports one device, or copies of the module on
    several (DDP); the loss is then that of the samples of its own process.

    Parameters
    ----------
    inputs : some training samples, to find the scale-invariant weights.
    submodule : name of the part of the module that takes `inputs`, for modules without `forward`; default: the module.
    weights, writer, write_every : as for `Monitor`; only the process of rank 0 writes.
    write : write to the trainer's TensorBoard logger if there is no `writer`.

    Attributes
    ----------
    monitor : the `Monitor` of the last `fit`; None before the first.

    Raises
    ------
    ImportError : Lightning is not installed.
    TypeError, ValueError : an argument is out of range. When training begins: as for `Monitor`, the trainer has several
        optimizers, or `write` is set and the trainer has no TensorBoard logger.

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
        self._writer, self._write = writer, write
        self._every = theory.arguments.check_integer("write_every", write_every, at_least=1)
        self.monitor: Monitor | None = None
        self._hooks: list[Any] = []
        self._reset()

    def trajectory(self) -> xr.Dataset:
        """Return the recorded steps, as `Monitor.trajectory` does.

        Raises
        ------
        ValueError : no step was recorded yet.
        """
        return self._started_monitor().trajectory()

    def forecast(
        self, *, grad_norm_max: float | None = None, delta: float = 0.1, rotation: float | None = None
    ) -> Forecast:
        """Predict where the norm is heading, as `Monitor.forecast` does.

        Parameters
        ----------
        grad_norm_max, delta, rotation : as in `Monitor.forecast`.

        Raises
        ------
        ValueError : fewer than two steps were recorded, or an argument is out of range.
        """
        return self._started_monitor().forecast(grad_norm_max=grad_norm_max, delta=delta, rotation=rotation)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the weights and hook into the optimizer. Lightning calls it after reading a checkpoint."""
        self._remove_hooks()
        self._reset()
        # a refused fit must not show the trajectory of an earlier one
        self.monitor = None
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"trainer must have one optimizer, got {len(trainer.optimizers)}; create a Monitor for each, "
                "and call it in training_step"
            )
        (optimizer,) = trainer.optimizers
        part = _submodule_of(pl_module, self._submodule)
        try:
            self.monitor = Monitor(
                part,
                optimizer,
                self._inputs.to(pl_module.device),
                weights=self._weights,
                writer=self._find_writer(trainer) if trainer.is_global_zero else None,
                write_every=self._every,
                first_step=trainer.global_step,
            )
        except NotImplementedError as error:
            raise ValueError(
                f"submodule must name a part with a method forward, got {self._submodule!r}, "
                f"and {type(part).__name__} has none"
            ) from error
        # Lightning clips after its last hook: only hooks of the optimizer see final gradients
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Drop the losses of micro-batches whose gradients are dropped. Lightning calls it."""
        self._losses.clear()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Record the loss of a micro-batch, scaled and divided as it is differentiated. Lightning calls it."""
        self._losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Compute the loss of the step from its micro-batches. Lightning calls it."""
        if self._depth == 0:
            # with a scaler this precedes the optimizer's step, which may be skipped
            self._count_skipped()
            self._due = True
        if self._losses:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            parts = len(self._losses) if pl_module.automatic_optimization else 1
            self._loss = sum(map(float, self._losses)) / parts / (1.0 if scaler is None else scaler.get_scale())
            self._losses.clear()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Drop a step that raised an error before it ended. Lightning calls it."""
        self._depth = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step that was skipped. Lightning calls it."""
        self._count_skipped()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks from the optimizer. Lightning calls it."""
        self._remove_hooks()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks from the optimizer. Lightning calls it."""
        self._remove_hooks()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._loss = math.nan
        self._depth = 0
        self._due = self._is_handled = self._is_recorded = False

    def _started_monitor(self) -> Monitor:
        if self.monitor is None:
            raise ValueError("trainer must have begun to train with this callback, but has not; call this after fit")
        return self.monitor

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _find_writer(self, trainer: Any) -> ScalarWriter | None:
        if self._writer is not None or not self._write:
            return self._writer
        experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        writer: ScalarWriter | None = next((logger for logger in experiments if hasattr(logger, "add_scalar")), None)
        if writer is None:
            kinds = [type(logger).__name__ for logger in trainer.loggers]
            raise ValueError(f"write needs a TensorBoardLogger among the trainer's loggers, got {kinds}")
        return writer

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        # the step of a derived optimizer calls that of its base class, which calls this hook again
        if self._depth > 1:
            return None
        self._due = self._is_handled = self._is_recorded = False
        # a closure computes and clips the gradients
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._recording_closure(kwargs["closure"], optimizer)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._recording_closure(args[1], optimizer), *args[2:]), kwargs
        self._record(optimizer)
        return None

    def _recording_closure(self, closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
        def closure_and_record() -> Any:
            result = closure()
            self._record(optimizer)
            return result

        return closure_and_record

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            if self._is_recorded:
                self._started_monitor().after_step()
            self._losses.clear()
            self._loss = math.nan

    def _record(self, optimizer: Any) -> None:
        if self._is_handled:
            return
        self._is_handled = True
        monitor = self._started_monitor()
        self._is_recorded = monitor.has_gradient
        if self._is_recorded:
            # a fused optimizer gets scaled gradients and their scale
            scale = getattr(optimizer, "grad_scale", None)
            monitor.before_step(self._loss, scale=1.0 if scale is None else float(scale))
        else:
            monitor.skipped += 1

    def _count_skipped(self) -> None:
        if self._due:
            self._started_monitor().skipped += 1
            self._due = False


def _submodule_of(module: Any, name: str | None) -> Any:
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError:
        names = sorted(child for child, _ in module.named_children())
        raise ValueError(f"submodule must be the name of a part of the module, such as {names}, got {name!r}") from None
