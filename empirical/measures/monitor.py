"""Telemetry of scale-invariant weights in anyone's training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from empirical.groups import scale_invariant_groups
from empirical.steps.contract import Layout
from empirical.steps.telemetry import records, scalar_products
from simulate.trajectories.contract import RUNNING
from simulate.trajectories.folder import trajectory_of_records


class Monitor:
    """Watches a model and its optimizer, step by step, without touching either.

    Call `before_step(loss)` after the backward pass and `after_step()` after the optimizer's step.

    Parameters
    ----------
    model : the model that is trained.
    optimizer : a `torch.optim.SGD` with coupled weight decay, one and the same `lr` and `weight_decay` for all
        scale-invariant weights.
    inputs : some training samples, to find the scale-invariant weights.

    Raises
    ------
    TypeError, ValueError : no model, no optimizer, no scale-invariant weights, or they have different settings.

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

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        groups = scale_invariant_groups(model, inputs)
        if not groups:
            raise ValueError("model must have scale-invariant weights (before a normalization layer), found none")
        members = {name: group.weights for name, group in groups.items()}
        self._layout = Layout.of(model, members)
        parameters = dict(model.named_parameters())
        self._measured = [parameters[name] for names in members.values() for name in names]
        self._optimizer = optimizer
        self._settings()
        device = self._measured[0].device
        self._before, self._gradient, self._after = (
            torch.empty(1, self._layout.measured, dtype=torch.float64, device=device) for _ in range(3)
        )
        self._slices = list(self._layout.groups.values())
        self._rows: list[np.ndarray[Any, Any]] = []
        self._pending: tuple[Tensor, float] | None = None
        self._wd = 0.0

    def before_step(self, loss: Tensor | float) -> None:
        """Note weights and gradient; call it after the backward pass and before the optimizer's step.

        Parameters
        ----------
        loss : the mini-batch loss that was differentiated.

        Raises
        ------
        ValueError : a scale-invariant weight has no gradient.
        """
        missing = [n for n, p in zip(self._layout.places, self._measured, strict=False) if p.grad is None]
        if missing:
            raise ValueError(f"every scale-invariant weight must have a gradient before the step, got none: {missing}")
        lr, self._wd = self._settings()
        _fill(self._before, [p.detach() for p in self._measured])
        _fill(self._gradient, [p.grad for p in self._measured if p.grad is not None])
        self._pending = (torch.as_tensor(loss).detach().double().cpu(), lr)

    def after_step(self) -> None:
        """Note what the step changed; call it after the optimizer's step.

        Raises
        ------
        RuntimeError : `before_step` was not called.
        """
        if self._pending is None:
            raise RuntimeError("after_step must follow before_step")
        loss, lr = self._pending
        self._pending = None
        _fill(self._after, [p.detach() for p in self._measured])
        products = torch.empty(1, len(self._slices), 3, 3, dtype=torch.float64, device=self._before.device)
        scalar_products(self._before, self._gradient, self._after, self._slices, products)
        self._rows.append(records(products[0].cpu().numpy(), loss.numpy(), np.asarray(lr)))

    def trajectory(self) -> xr.Dataset:
        """Return what was seen so far as a trajectory of the common contract, with status "running".

        Raises
        ------
        ValueError : no step was seen yet.
        """
        if not self._rows:
            raise ValueError("monitor must have seen at least one step, got none")
        rows = np.stack(self._rows)
        attributes: dict[str, Any] = {"optimizer": "SGD()", "wd": self._wd, "torch_version": torch.__version__}
        if np.ptp(rows["lr"]) == 0:
            attributes["lr"] = float(rows["lr"][0])
        return trajectory_of_records(
            rows,
            status=RUNNING,
            first_norm=float(rows["norm"][0]),
            groups=list(self._layout.groups),
            attributes=attributes,
        )

    def _settings(self) -> tuple[float, float]:
        ours = {id(p) for p in self._measured}
        found = {
            (float(group["lr"]), float(group.get("weight_decay", 0)))
            for group in self._optimizer.param_groups
            if any(id(p) in ours for p in group["params"])
        }
        if len(found) != 1:
            raise ValueError(
                f"optimizer must move all scale-invariant weights with one lr and weight_decay, got {sorted(found)}"
            )
        return found.pop()


def _fill(vector: Tensor, tensors: list[Tensor]) -> None:
    torch.cat([tensor.reshape(-1) for tensor in tensors], out=vector[0])
