"""Monitor of scale-invariant weights for any training loop, with a forecast of their norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import theory
from empirical.groups import scale_invariant_groups
from empirical.steps.contract import WeightLayout
from empirical.steps.telemetry import records, scalar_products
from simulate.diagnosis.forecast import Forecast, forecast
from simulate.trajectories.contract import RUNNING, variable_attributes
from simulate.trajectories.folder import trajectory_of_records
from theory.arguments import warn_user

# relative deviation of a step from that of plain SGD: far above rounding, far below the effect of clipping or scaling
_STEP_TOLERANCE = 0.01
_WRITTEN = ("loss", "lr", "norm", "grad_norm", "rotation", "radial_defect")


class ScalarWriter(Protocol):
    """Interface of a writer for scalars, such as `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""


class Monitor:
    """Recorder of the scale-invariant weights of a model at each step of its optimizer; it changes neither.

    Call `before_step(loss)` after the backward pass and `after_step()` after the optimizer's step. With accumulated
    gradients, call them once per step of the optimizer. With a gradient scaler pass it as `scale`; steps that it skips
    are counted and left out.

    Parameters
    ----------
    model : the model to train.
    optimizer : its optimizer, with the same `lr` and `weight_decay` for all recorded weights.
    inputs : some training samples, to find the scale-invariant weights.
    weights : names of the scale-invariant weights to record; default: all. Name all weights of a group, or none.
    writer : writer of TensorBoard, or any object with its `add_scalar`.
    write_every : write the numbers of every n-th step.
    first_step : number of the first step, for a training that continues.

    Raises
    ------
    TypeError, ValueError : `model` or `optimizer` has the wrong type, or the model has no scale-invariant weights, or
        they have different settings.

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
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        *,
        weights: Sequence[str] | None = None,
        writer: ScalarWriter | None = None,
        write_every: int = 100,
        first_step: int = 0,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if writer is not None and not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer must have the method add_scalar, got {type(writer).__name__}")
        self._every = theory.arguments.check_integer("write_every", write_every, at_least=1)
        self._first = theory.arguments.check_integer("first_step", first_step)
        groups = {name: group.weights for name, group in scale_invariant_groups(model, inputs).items()}
        if weights is not None:
            invariant = {name for members in groups.values() for name in members}
            unknown = sorted(set(weights) - invariant)
            if unknown:
                raise ValueError(
                    f"weights must be names of scale-invariant weights, {sorted(invariant)}, got {unknown}"
                )
            split = [
                members
                for members in groups.values()
                if set(members) & set(weights) and not set(members) <= set(weights)
            ]
            if split:
                raise ValueError(
                    f"weights must name all or none of {split[0]}, which are scale-invariant only together; got "
                    f"{sorted(weights)}. A layer with bias=False is scale-invariant on its own"
                )
            groups = {name: members for name, members in groups.items() if set(members) <= set(weights)}
        if not groups:
            raise ValueError(
                "model must have scale-invariant weights, got none. Weights right before a normalization layer are "
                "scale-invariant: add such a layer"
            )
        self._model, self._optimizer, self._writer = model, optimizer, writer
        self._layout = WeightLayout.of(model, groups)
        self._names = [name for members in groups.values() for name in members]
        self._shapes = {name: self._layout.places[name][1] for name in self._names}
        self._lost: set[str] = set()
        self._settings()
        device = self._weights()[0].device
        self._before, self._gradient, self._after = (
            torch.empty(1, self._layout.measured_size, dtype=torch.float64, device=device) for _ in range(3)
        )
        self._slices = list(self._layout.groups.values())
        self._rows: list[np.ndarray[Any, Any]] = []
        self._pending: tuple[Tensor, float, float] | None = None
        self._wds: list[float] = []
        self._warned: set[str] = set()
        self._parameter_ids: list[int] = []
        self._all_move = True
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

        Warns
        -----
        UserWarning : once, if the weights changed since the last `after_step`, so that steps are missing.
        """
        if (size := torch.as_tensor(loss).numel()) != 1:
            raise ValueError(f"loss must be one number, the loss of the mini-batch, got {size} numbers")
        factor = float(scale.get_scale()) if hasattr(scale, "get_scale") else float(scale)
        if not factor > 0:
            raise ValueError(f"scale must be a number > 0, got {scale!r}")
        weights = self._weights()
        if all(p.grad is None for p in weights):
            raise ValueError(
                "scale-invariant weights must have a gradient before the step, got none; call before_step after "
                "backward"
            )
        lr, wd = self._settings()
        _fill(self._before, [p.detach() for p in weights])
        same = [id(p) for p in weights] == self._parameter_ids
        self._parameter_ids = [id(p) for p in weights]
        if self._rows and same and not self._lost and not torch.equal(self._before, self._after):
            self._warn(
                "unseen",
                "weights changed since the last after_step: weights were loaded, or steps were not recorded. Call "
                "before_step and after_step at every step of the optimizer",
            )
        # the optimizer does not move weights without a gradient
        self._all_move = all(p.grad is not None for p in weights)
        _fill(self._gradient, [torch.zeros_like(p) if p.grad is None else p.grad for p in weights])
        self._gradient /= factor
        self._pending = (torch.as_tensor(loss).detach().double().cpu().reshape(()), lr, wd)

    def after_step(self) -> None:
        """Record the change of the weights; call it after the optimizer's step.

        Raises
        ------
        RuntimeError : `before_step` was not called.

        Warns
        -----
        UserWarning : once, if a step of plain SGD contradicts the gradient recorded by `before_step`.
        """
        if self._pending is None:
            raise RuntimeError("after_step must follow before_step")
        loss, lr, wd = self._pending
        self._pending = None
        _fill(self._after, [p.detach() for p in self._weights()])
        if torch.equal(self._before, self._after) and self._overflowed():
            # a gradient scaler skips the step if any gradient of the optimizer overflowed
            self.skipped += 1
            return
        self._check_step(lr, wd)
        products = torch.empty(1, len(self._slices), 3, 3, dtype=torch.float64, device=self._before.device)
        scalar_products(self._before, self._gradient, self._after, self._slices, products)
        row = records(products[0].cpu().numpy(), loss.numpy(), np.asarray(lr))
        self._rows.append(row)
        self._wds.append(wd)
        if self._writer is not None and (len(self._rows) - 1) % self._every == 0:
            self._write(row, lr)

    def trajectory(self) -> xr.Dataset:
        """Return the recorded steps as a trajectory of the common contract, with status "running".

        Raises
        ------
        ValueError : no step was recorded yet.
        """
        if not self._rows:
            raise ValueError("monitor must have recorded at least one step, got none")
        rows = np.stack(self._rows)
        attributes: dict[str, Any] = {
            "optimizer": type(self._optimizer).__name__ if self.rule is None else repr(self.rule),
            "wd": self._wds[-1],
            "skipped_steps": self.skipped,
            "torch_version": torch.__version__,
        }
        if np.ptp(rows["lr"]) == 0:
            attributes["lr"] = float(rows["lr"][0])
        run = trajectory_of_records(
            rows,
            status=RUNNING,
            first_norm=float(rows["norm"][0]),
            groups=list(self._layout.groups),
            attributes=attributes,
            first_step=self._first,
        )
        if len(set(self._wds)) == 1:
            return run
        del run.attrs["wd"]
        return run.assign(wd=("step", np.array(self._wds), variable_attributes("wd")))

    def forecast(
        self, *, grad_norm_max: float | None = None, delta: float = 0.1, rotation: float | None = None
    ) -> Forecast:
        """Predict where the norm is heading at the present learning rate and weight decay; `print` it.

        Parameters
        ----------
        grad_norm_max : upper bound of g̃ for the earliest angular jump; default: the largest recorded g̃.
        delta : threshold δ of an angular jump, a step with 1 - cos θ > δ.
        rotation : angle per step in radians for which the forecast suggests lr or wd.

        Returns
        -------
        Forecast

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
        >>> monitor.forecast().heading in ("falls", "rises")
        True
        """
        return forecast(self.trajectory(), grad_norm_max=grad_norm_max, delta=delta, rotation=rotation)

    @property
    def has_gradient(self) -> bool:
        """Whether any recorded weight has a gradient; without one there is no step to record."""
        return any(p.grad is not None for p in self._weights())

    @property
    def rule(self) -> theory.Optimizer | None:
        """The optimizer in terms of `theory`; None if `theory` does not know it."""
        group = self._group()
        size = self._layout.measured_size
        kinds: dict[str, Any] = {"Adam": theory.Adam, "AdamW": theory.AdamW, "Lion": theory.Lion}
        name = type(self._optimizer).__name__
        if name == "SGD" and group.get("dampening", 0) == 0:
            return theory.SGD(momentum=float(group["momentum"]), nesterov=bool(group["nesterov"]))
        if name in kinds and "betas" in group:
            rule: theory.Optimizer = kinds[name](dim=size, betas=tuple(float(beta) for beta in group["betas"]))
            return rule
        return None

    def _check_step(self, lr: float, wd: float) -> None:
        """Warn if plain SGD moved the weights otherwise than by the recorded gradient."""
        if self.rule != theory.SGD() or self._group().get("maximize") or self._lost or not self._all_move:
            return
        expected = self._before - lr * (self._gradient + wd * self._before)
        apart, moved = (float((self._after - point).norm()) for point in (expected, self._before))
        rounding = max(torch.finfo(p.dtype).eps for p in self._weights()) * float(self._after.norm())
        if apart > _STEP_TOLERANCE * moved + rounding:
            self._warn(
                "another step",
                f"a step moved the weights by {moved:.3g} and missed lr * (gradient + wd * weights) by {apart:.3g}. "
                "Call before_step after everything that changes gradients (clipping, unscaling); pass `scale` for "
                "gradients that are still scaled, and only for those",
            )

    def _warn(self, topic: str, message: str) -> None:
        """Warn the user once per topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            warn_user(message)

    def _overflowed(self) -> bool:
        gradients = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return any(gradient is not None and not torch.isfinite(gradient).all() for gradient in gradients)

    def _write(self, row: np.ndarray[Any, Any], lr: float) -> None:
        step = self._first + len(self._rows) - 1
        assert self._writer is not None
        for name in _WRITTEN:
            self._writer.add_scalar(f"bnwd/{name}", float(row[name]), step)
        self._writer.add_scalar("bnwd/effective_lr", lr / float(row["norm"]) ** 2, step)
        for group, norm, angle in zip(self._layout.groups, row["group_norm"], row["group_rotation"], strict=True):
            self._writer.add_scalar(f"bnwd/norm/{group}", float(norm), step)
            self._writer.add_scalar(f"bnwd/rotation/{group}", float(angle), step)

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

    def _group(self) -> dict[str, Any]:
        return next(iter(self._groups()), self._optimizer.param_groups[0])

    def _groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer with recorded weights."""
        recorded = {id(p) for p in self._weights()}
        return [g for g in self._optimizer.param_groups if any(id(p) in recorded for p in g["params"])]

    def _settings(self) -> tuple[float, float]:
        settings = {(float(group["lr"]), float(group.get("weight_decay", 0))) for group in self._groups()}
        if not settings:
            raise ValueError(f"optimizer must move the scale-invariant weights of the model, got none of {self._names}")
        if len(settings) > 1:
            raise ValueError(
                "optimizer must move all scale-invariant weights with one lr and weight_decay, got "
                f"{sorted(settings)}: {self._names_by_settings()}. Choose some by `weights`. A bias that is "
                "scale-invariant only together with its layer's weights needs their settings, or bias=False"
            )
        return settings.pop()

    def _names_by_settings(self) -> str:
        names_by_id = {id(weight): name for weight, name in zip(self._weights(), self._names, strict=True)}
        parts = []
        for group in self._optimizer.param_groups:
            names = [names_by_id[id(p)] for p in group["params"] if id(p) in names_by_id]
            if names:
                listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                parts.append(f"{float(group['lr']):g}, {float(group.get('weight_decay', 0)):g} for {listed}")
        return "; ".join(parts)


def _fill(vector: Tensor, tensors: list[Tensor]) -> None:
    torch.cat([tensor.reshape(-1).to(vector) for tensor in tensors], out=vector[0])
