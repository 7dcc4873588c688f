"""Callback of the Hugging Face Trainer that records scale-invariant weights with a `Monitor`."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from empirical._model_copy import Inputs
from empirical.measures._group_settings import PacedScheduler, is_known_ahead
from empirical.measures._step_hooks import RecordedSteps, StepHooks
from empirical.measures.monitor import Monitor, ScalarWriter
from empirical.measures.step_check import inner_optimizer
from theory.arguments import check_integer


def _base_class() -> Any:
    """`transformers.TrainerCallback`; `object` without Transformers, so that this module can be imported."""
    try:
        return importlib.import_module("transformers").TrainerCallback
    except ModuleNotFoundError:
        return object


_TrainerCallback: Any = _base_class()


class TrainerMonitorCallback(RecordedSteps, _TrainerCallback):  # type: ignore[misc]
    """Callback of `transformers.Trainer` that records the scale-invariant weights at each step, without changing it.

    Each step of the optimizer gives a row. Gradients are those the optimizer gets: accumulated over micro-batches,
    unscaled and clipped. Steps that a gradient scaler skips are counted and left out. The weights are found right
    before the first step, on the first batch in training. Each `train` starts a new trajectory, and its step numbers
    continue those of the trainer.

    The loss is that of the step as it is differentiated, from the losses that the model returns. It is their mean over
    micro-batches, or their sum where the Trainer passes `num_items_in_batch`, because each loss is then divided by the
    items of the whole step. It is NaN where the model returns no loss, as with `compute_loss_func` and label smoothing.
    What an overridden `compute_loss` adds to the loss of the model is not in it.

    It supports one device, or copies of the model on several (DDP). The loss is then that of the samples of its own
    process. The Trainer does not report errors to callbacks. After an error outside the model, hooks stay until the
    next `train`; call `remove_hooks` to use the same model and optimizer elsewhere.

    Parameters
    ----------
    inputs : some training samples, to find the scale-invariant weights; default: the first batch in training. Of a
        batch with one sample a second one is made, by rotating it along its last axis.
    weights, every, norms_only, writer, write_every : as for `Monitor`; only the first process writes.

    Attributes
    ----------
    monitor : the `Monitor` of the last training; None before its first step.

    Raises
    ------
    ImportError : Transformers is not installed.
    TypeError, ValueError : an argument is out of range. At the first step of training: as for `Monitor`.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments  # doctest: +SKIP
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...                                      num_attention_heads=2))  # doctest: +SKIP
    >>> samples = [{"input_ids": row, "labels": row} for row in torch.randint(32, (16, 8))]  # doctest: +SKIP
    >>> options = TrainingArguments("out", max_steps=3, weight_decay=0.1, use_cpu=True, report_to="none",
    ...                             save_strategy="no", disable_tqdm=True)  # doctest: +SKIP
    >>> callback = TrainerMonitorCallback()  # doctest: +SKIP
    >>> output = Trainer(model, options, train_dataset=samples, callbacks=[callback]).train()  # doctest: +SKIP
    {'train_runtime': ...}
    >>> callback.trajectory().sizes["step"]  # doctest: +SKIP
    3
    """

    def __init__(
        self,
        inputs: Inputs | None = None,
        *,
        weights: Sequence[str] | None = None,
        every: int = 1,
        norms_only: bool = False,
        writer: ScalarWriter | None = None,
        write_every: int = 100,
    ) -> None:
        if _TrainerCallback is object:
            raise ImportError(
                "TrainerMonitorCallback needs Transformers: pip install 'bnwd[transformers]', or pip install "
                "transformers accelerate"
            )
        super().__init__()
        self._inputs, self._writer = inputs, writer
        self._options: dict[str, Any] = {
            "weights": weights,
            "every": check_integer("every", every, at_least=1),
            "norms_only": norms_only,
            "write_every": check_integer("write_every", write_every, at_least=1),
        }
        self._model: Any = None
        self._state: Any = None
        self._scheduler: Any = None
        self._forward_hooks: list[Any] = []
        self._batch: dict[str, Any] | None = None
        self._micro_loss: Tensor | None = None
        self._is_normalized = False

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Hook into model and optimizer. The Trainer calls it after reading a checkpoint."""
        self._forget()
        self._model, self._state, self._scheduler = model, state, lr_scheduler
        self._batch = None
        self._hooks = [StepHooks(inner_optimizer(optimizer), self._monitor_of_step)]
        self._watch_forward_passes()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what is left of a step that raised an error. The Trainer calls it."""
        self._micro_loss = None
        for hooks in self._hooks:
            hooks.losses.clear()
            hooks.drop_unfinished_step()
        if not self._forward_hooks:
            self._watch_forward_passes()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the loss of a micro-batch that is not the last one of its step. The Trainer calls it."""
        self._end_micro_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compute the loss of the step from its micro-batches. The Trainer calls it."""
        self._end_micro_batch()
        for hooks in self._hooks:
            # a loss that is missing is NaN on the CPU
            device = hooks.losses[-1].device
            total = torch.stack([loss.to(device).float() for loss in hooks.losses]).sum()
            hooks.loss = total if self._is_normalized else total / len(hooks.losses)
            hooks.losses.clear()
            # with a scaler this precedes the optimizer's step, which may be skipped
            hooks.expect_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step that was skipped. The Trainer calls it."""
        for hooks in self._hooks:
            hooks.count_skipped()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks from model and optimizer. The Trainer calls it."""
        self.remove_hooks()

    def remove_hooks(self) -> None:
        """Remove the hooks from model and optimizer; the recorded steps stay. Call it after a training that failed."""
        self._remove_hooks()
        self._batch = None

    def _remove_hooks(self) -> None:
        super()._remove_hooks()
        self._remove_forward_hooks()

    def _remove_forward_hooks(self) -> None:
        for handle in self._forward_hooks:
            handle.remove()
        self._forward_hooks = []

    def _watch_forward_passes(self) -> None:
        """Hook into the training passes of the model. Copies of the model have the hooks too, and are left out."""
        watched = self._model

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is watched and module.training and torch.is_grad_enabled() and not self.monitors:
                self._note_batch(args, kwargs)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if module is not watched:
                return
            if output is None:
                # the pass raised an error
                self._remove_forward_hooks()
            elif module.training and torch.is_grad_enabled():
                self._micro_loss = _loss_of(output)
                self._is_normalized = kwargs.get("num_items_in_batch") is not None

        self._forward_hooks = [
            watched.register_forward_pre_hook(before, with_kwargs=True),
            watched.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def _note_batch(self, args: Any, kwargs: Any) -> None:
        if self._batch is None and self._inputs is None:
            named = inspect.signature(self._model.forward).bind_partial(*args).arguments if args else {}
            self._batch = _two_samples({**named, **kwargs})

    def _end_micro_batch(self) -> None:
        loss, self._micro_loss = self._micro_loss, None
        for hooks in self._hooks:
            hooks.losses.append(torch.tensor(math.nan) if loss is None else loss)

    def _monitor_of_step(self) -> Monitor:
        """Return the monitor, which is created at the first step."""
        if self.monitors:
            return self.monitors[0]
        try:
            inputs = self._batch if self._inputs is None else self._inputs
            if inputs is None:
                raise ValueError(
                    f"inputs must be given, because {type(self._model).__name__} was not called itself in training, "
                    "got None"
                )
            monitor = Monitor(
                self._model,
                self._hooks[0].optimizer,
                inputs,
                writer=self._writer if self._state.is_world_process_zero else None,
                first_step=self._state.global_step,
                **self._options,
            )
        except Exception:
            self.remove_hooks()
            raise
        self._batch = None
        self.monitors = [monitor]
        return monitor

    def _steps_left(self) -> int | None:
        return max(0, self._state.max_steps - self._state.global_step) or None

    def _paced_scheduler(self) -> PacedScheduler | None:
        return PacedScheduler(self._scheduler) if is_known_ahead(self._scheduler) else None


def _loss_of(output: Any) -> Tensor | None:
    """Return the loss in the output of a model of Transformers, as the Trainer takes it; None if there is none.

    It shares its memory, because the Trainer multiplies it in place by the number of processes.
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, (tuple, list)) and output else getattr(output, "loss", None)
    return loss.detach().reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _two_samples(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy keyword arguments of a model; of one sample make two, the second one rotated along its last axis."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    first = next((copy for copy in copies.values() if copy.ndim), None)
    if first is not None and len(first) == 1:
        for name, copy in copies.items():
            if copy.ndim and len(copy) == 1:
                copies[name] = torch.cat([copy, copy.roll(1, -1) if copy.ndim > 1 else copy])
    return {**inputs, **copies}
