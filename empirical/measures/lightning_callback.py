"""The monitor of scale-invariant weights for a Trainer of PyTorch Lightning."""

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


def _base() -> Any:
    """Lightning's `Callback`; `object` where Lightning is not installed, so that this module can be imported."""
    # one package brings the other along: take the one in use, for the other one costs seconds
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError:
            continue
    return object


_Callback: Any = _base()


class MonitorCallback(_Callback):  # type: ignore[misc]
    """Watches the module and the optimizer of a Lightning `Trainer`, step by step, without touching either.

    Each step of the optimizer gives a row, also with accumulated gradients and in manual optimization. Gradients are
    those that the optimizer gets: of all its micro-batches, unscaled, and clipped if the trainer clips. The loss is the
    mean over the micro-batches of the step; in manual optimization, the sum of what was differentiated for it (NaN for
    steps past Lightning, with `use_pl_optimizer=False`). In the last step of an epoch Lightning divides by
    `accumulate_grad_batches` even if fewer micro-batches are left: the gradient is smaller for that, and measured so,
    while the loss is still the mean.

    Steps that a gradient scaler skips, or in which no watched weight has a gradient, are counted and left out. Where an
    optimizer evaluates its closure several times in a step, the first is noted. Each `fit` begins a new trajectory,
    whose steps are numbered on from the trainer's. For one device, or copies of the module on several (DDP), where the
    loss is that of the samples of the own process.

    Parameters
    ----------
    inputs : some training samples, to find the scale-invariant weights.
    submodule : name of the part of the module that takes `inputs` and is watched, for modules without `forward`;
        default the module itself.
    weights, writer, write_every : as for `Monitor`; the writer is used by the process of rank 0 alone.
    write : without a `writer`, write to the trainer's TensorBoard logger.

    Attributes
    ----------
    monitor : the `Monitor` of the last `fit`; None before the first.

    Raises
    ------
    ImportError : Lightning is not installed.
    TypeError, ValueError : an argument is out of range; when training begins: as `Monitor` does, or the trainer has
        several optimizers, or no TensorBoard logger although `write` asks for it.

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
        self._begin()

    def trajectory(self) -> xr.Dataset:
        """Return what was seen so far, as `Monitor.trajectory` does.

        Raises
        ------
        ValueError : no step was seen yet.
        """
        return self._begun().trajectory()

    def forecast(
        self, *, grad_norm_max: float | None = None, delta: float = 0.1, rotation: float | None = None
    ) -> Forecast:
        """Say where the norm is heading, as `Monitor.forecast` does.

        Parameters
        ----------
        grad_norm_max, delta, rotation : as in `Monitor.forecast`.

        Raises
        ------
        ValueError : fewer than two steps were seen, or an argument is out of range.
        """
        return self._begun().forecast(grad_norm_max=grad_norm_max, delta=delta, rotation=rotation)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the weights and listen to the optimizer; Lightning calls it, after it has read a checkpoint."""
        self._let_go()
        self._begin()
        # of a fit that is refused here nothing is told, least of all what an earlier one has seen
        self.monitor = None
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"trainer must have one optimizer, got {len(trainer.optimizers)}; watch each of them with a Monitor "
                "of its own, called in training_step"
            )
        (optimizer,) = trainer.optimizers
        watched = _part(pl_module, self._submodule)
        try:
            self.monitor = Monitor(
                watched,
                optimizer,
                self._inputs.to(pl_module.device),
                weights=self._weights,
                writer=self._chosen_writer(trainer) if trainer.is_global_zero else None,
                write_every=self._every,
                first_step=trainer.global_step,
            )
        except NotImplementedError as error:
            raise ValueError(
                f"submodule must name a part with a method forward, got {self._submodule!r}, "
                f"and {type(watched).__name__} has none"
            ) from error
        # Lightning clips after the last of its own hooks: only the optimizer knows when its gradients are complete
        self._hooks = [
            optimizer.register_step_pre_hook(self._step_begins),
            optimizer.register_step_post_hook(self._step_ends),
        ]

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Forget micro-batches whose gradients are dropped; Lightning calls it."""
        self._losses.clear()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss of a micro-batch, scaled and divided as it is differentiated; Lightning calls it."""
        self._losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Make the loss of the step from those of its micro-batches; Lightning calls it."""
        if self._depth == 0:
            # with a scaler this comes before the optimizer's step, and the step may not come at all
            self._count_skipped()
            self._due = True
        if self._losses:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            parts = len(self._losses) if pl_module.automatic_optimization else 1
            self._loss = sum(map(float, self._losses)) / parts / (1.0 if scaler is None else scaler.get_scale())
            self._losses.clear()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Forget a step that raised before it ended; Lightning calls it."""
        self._depth = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step that did not come; Lightning calls it."""
        self._count_skipped()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the optimizer as it was; Lightning calls it."""
        self._let_go()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the optimizer as it was; Lightning calls it."""
        self._let_go()

    def _begin(self) -> None:
        self._losses: list[Tensor] = []
        self._loss = math.nan
        self._depth = 0
        self._due = self._seen = self._noted = False

    def _begun(self) -> Monitor:
        if self.monitor is None:
            raise ValueError("trainer must have begun to train with this callback, it has not; call it after fit")
        return self.monitor

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _chosen_writer(self, trainer: Any) -> ScalarWriter | None:
        if self._writer is not None or not self._write:
            return self._writer
        experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        chosen: ScalarWriter | None = next((each for each in experiments if hasattr(each, "add_scalar")), None)
        if chosen is None:
            kinds = [type(logger).__name__ for logger in trainer.loggers]
            raise ValueError(f"write needs a TensorBoardLogger among the trainer's loggers, got {kinds}")
        return chosen

    def _step_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        # the step of a derived optimizer calls that of its base, which calls this again
        if self._depth > 1:
            return None
        self._due = self._seen = self._noted = False
        # gradients are made, and clipped, within the closure, if there is one
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._noting(kwargs["closure"], optimizer)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._noting(args[1], optimizer), *args[2:]), kwargs
        self._note(optimizer)
        return None

    def _noting(self, closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
        def closure_and_note() -> Any:
            result = closure()
            self._note(optimizer)
            return result

        return closure_and_note

    def _step_ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            if self._noted:
                self._begun().after_step()
            self._losses.clear()
            self._loss = math.nan

    def _note(self, optimizer: Any) -> None:
        if self._seen:
            return
        self._seen = True
        monitor = self._begun()
        self._noted = monitor.has_gradient
        if self._noted:
            # a fused optimizer gets scaled gradients, and is told their scale
            scale = getattr(optimizer, "grad_scale", None)
            monitor.before_step(self._loss, scale=1.0 if scale is None else float(scale))
        else:
            monitor.skipped += 1

    def _count_skipped(self) -> None:
        if self._due:
            self._begun().skipped += 1
            self._due = False


def _part(module: Any, name: str | None) -> Any:
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError:
        known = sorted(each for each, _ in module.named_children())
        raise ValueError(f"submodule must be the name of a part of the module, such as {known}, got {name!r}") from None
