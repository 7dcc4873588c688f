"""Data sets as tensors on the device, and the order of the samples in a run."""

from __future__ import annotations

from empirical.data.batches import augment, batch_indices, equal_batches, steps_per_epoch
from empirical.data.contract import Data, user_data
from empirical.data.loading import load_data

__all__ = ["Data", "augment", "batch_indices", "equal_batches", "load_data", "steps_per_epoch", "user_data"]
