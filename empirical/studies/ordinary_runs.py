"""Labelled runs of ordinary networks: trained head, biases and affine parameters, usual optimizers and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import theory
from empirical.studies.labelled_runs import (
    BAD_EPOCH,
    DIVERGENCE,
    NOISE,
    LabelledRun,
)
from simulate.diagnosis.rules import BAD_BATCH, DATA_SHIFT, LARGE_UPDATE, LR_STEP, NORM_DRIVEN, OVERFLOW
from simulate.diagnosis.trends import SLOW_RISE

_MODULE = "empirical.studies.ordinary_networks:"
_MLP, _CONVNET, _RESIDUAL = ({"model": f"{_MODULE}{name}"} for name in ("plain_mlp", "plain_convnet", "residual_net"))
_TRANSFORMER = {"model": f"{_MODULE}small_transformer", "normalization": "layer"}
_RESIDUAL_MLP, _SEPARABLE = ({"model": f"{_MODULE}{name}"} for name in ("residual_mlp", "separable_convnet"))
_LAYER, _GROUP, _RMS, _INSTANCE = ({"normalization": name} for name in ("layer", "group", "rms", "instance"))
_TEXT, _WAVES = ({"dataset": f"{_MODULE}{name}"} for name in ("next_characters", "waves"))
# training samples of the data sets
_SIZES = {"digits": 1437, "mnist5k": 4000, "gaussian": 1000, _TEXT["dataset"]: 2000, _WAVES["dataset"]: 2000}
_MOMENTUM, _NESTEROV = theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, nesterov=True)
_LESS_MOMENTUM, _MORE_MOMENTUM = theory.SGD(momentum=0.8), theory.SGD(momentum=0.95)
_LEAST_MOMENTUM, _MOST_MOMENTUM = theory.SGD(momentum=0.6), theory.SGD(momentum=0.97)
_ADAMW, _ADAMW_95, _ADAMW_98, _ADAMW_99, _ADAMW_9999, _ADAMW_995 = (
    theory.AdamW(dim=1, betas=betas)
    for betas in ((0.9, 0.999), (0.9, 0.95), (0.9, 0.98), (0.8, 0.99), (0.9, 0.9999), (0.95, 0.995))
)
_STEPS, _EVENT_STEPS, _WARM_UP = 3000, 2500, 100

# settings of a network, with the largest gradient norm as "clip" and the form of the learning rate as "schedule"
_Network = Mapping[str, Any]

_FIRST: tuple[_Network, ...] = (
    {**_MLP, "width": 32, "lr": 0.1, "wd": 5e-3},
    {**_MLP, "width": 32, "lr": 0.1, "wd": 5e-4},
    {**_MLP, "width": 24, "lr": 0.05, "wd": 5e-4, "optimizer": _MOMENTUM},
    {**_MLP, "width": 32, "lr": 3e-3, "wd": 0.1, "optimizer": _ADAMW},
    {**_MLP, **_LAYER, "width": 32, "lr": 3e-3, "wd": 0.1, "optimizer": _ADAMW_95, "clip": 1.0, "schedule": "cosine"},
    {**_CONVNET, "width": 6, "batch_size": 32, "samples": 700, "lr": 0.1, "wd": 5e-4},
    {**_MLP, "width": 16, "label_noise": 0.1, "lr": 0.1, "wd": 5e-3},
    {**_CONVNET, "width": 6, "batch_size": 32, "samples": 700, "lr": 0.05, "wd": 5e-4, "optimizer": _NESTEROV}
    | {"schedule": "steps"},
    {**_RESIDUAL, "width": 4, "batch_size": 32, "samples": 700, "lr": 0.05, "wd": 1e-3, "optimizer": _MOMENTUM}
    | {"schedule": "cosine"},
    {**_TRANSFORMER, "width": 12, "batch_size": 32, "samples": 800, "lr": 3e-3, "wd": 0.1, "optimizer": _ADAMW}
    | {"clip": 1.0, "schedule": "cosine"},
    {**_MLP, "width": 24, "dataset": "mnist5k", "samples": 1500, "batch_size": 50, "lr": 0.03, "wd": 1e-3}
    | {"optimizer": _MOMENTUM},
    {**_MLP, **_LAYER, "width": 32, "lr": 0.1, "wd": 2e-3, "clip": 1.0},
)
_OTHER_QUIET_FIRST: tuple[_Network, ...] = (
    {**_MLP, "width": 12, "label_noise": 0.2, "batch_size": 32, "lr": 0.05, "wd": 2e-3, "optimizer": _MOMENTUM},
    {**_MLP, "width": 16, "dataset": "mnist5k", "batch_size": 64, "lr": 3e-3, "wd": 0.05, "optimizer": _ADAMW_95},
    {**_MLP, "width": 48, "lr": 0.3, "wd": 1e-3, "schedule": "steps"},
    {**_CONVNET, "width": 4, "batch_size": 32, "lr": 5e-3, "wd": 0.05, "optimizer": _ADAMW},
    {**_TRANSFORMER, "width": 8, "batch_size": 32, "lr": 0.1, "wd": 5e-4, "clip": 1.0},
    {**_MLP, "width": 16, "batch_size": 16, "lr": 0.1, "wd": 2e-3},
)
_SECOND: tuple[_Network, ...] = (
    {**_MLP, "width": 40, "lr": 0.15, "wd": 4e-3, "batch_size": 72},
    {**_MLP, "width": 20, "depth": 3, "lr": 0.08, "wd": 6e-4, "batch_size": 56},
    {**_MLP, "width": 28, "lr": 0.03, "wd": 8e-4, "optimizer": _NESTEROV},
    {**_MLP, "width": 40, "lr": 2e-3, "wd": 0.2, "optimizer": _ADAMW_95},
    {**_RESIDUAL_MLP, **_RMS, "width": 24, "lr": 2e-3, "wd": 0.1, "optimizer": _ADAMW, "clip": 1.0}
    | {"schedule": "cosine"},
    {**_CONVNET, **_GROUP, "width": 8, "batch_size": 32, "samples": 640, "lr": 0.15, "wd": 1e-3},
    {**_MLP, "width": 20, "label_noise": 0.15, "lr": 0.15, "wd": 4e-3},
    {**_CONVNET, "width": 5, "batch_size": 36, "samples": 800, "lr": 0.03, "wd": 1e-3, "optimizer": _MOMENTUM}
    | {"schedule": "steps"},
    {**_RESIDUAL, "width": 5, "batch_size": 32, "samples": 600, "lr": 0.1, "wd": 8e-4, "schedule": "cosine"},
    {**_TRANSFORMER, **_TEXT, "width": 16, "batch_size": 64, "lr": 4e-3, "wd": 0.1, "optimizer": _ADAMW_95}
    | {"clip": 1.0, "schedule": "cosine"},
    {**_MLP, "width": 32, "dataset": "mnist5k", "samples": 2000, "batch_size": 64, "lr": 0.02, "wd": 2e-3}
    | {"optimizer": _MOMENTUM},
    {**_RESIDUAL_MLP, **_LAYER, "width": 28, "lr": 0.08, "wd": 3e-3, "clip": 1.0},
)
_OTHER_QUIET_SECOND: tuple[_Network, ...] = (
    {**_MLP, "width": 14, "label_noise": 0.25, "batch_size": 40, "lr": 0.03, "wd": 3e-3, "optimizer": _NESTEROV},
    {**_MLP, "width": 20, "dataset": "mnist5k", "batch_size": 48, "lr": 2e-3, "wd": 0.08, "optimizer": _ADAMW},
    {**_MLP, "width": 56, "lr": 0.2, "wd": 1.5e-3, "schedule": "steps"},
    {**_CONVNET, **_GROUP, "width": 4, "batch_size": 32, "lr": 4e-3, "wd": 0.08, "optimizer": _ADAMW},
    {**_TRANSFORMER, **_TEXT, "width": 8, "batch_size": 48, "lr": 0.2, "wd": 5e-4, "clip": 1.0},
    {**_MLP, "width": 20, "batch_size": 20, "lr": 0.08, "wd": 3e-3},
)
_THIRD: tuple[_Network, ...] = (
    {**_MLP, "width": 36, "dataset": "gaussian", "batch_size": 60, "lr": 0.12, "wd": 3e-3},
    {**_MLP, "width": 24, "depth": 4, "lr": 0.06, "wd": 8e-4, "optimizer": _LESS_MOMENTUM},
    {**_MLP, "width": 30, "batch_size": 48, "lr": 0.01, "wd": 1e-3, "optimizer": _MORE_MOMENTUM},
    {**_MLP, "width": 44, "lr": 2.5e-3, "wd": 0.15, "optimizer": _ADAMW_99},
    {**_RESIDUAL_MLP, **_LAYER, **_WAVES, "width": 20, "batch_size": 50, "lr": 3e-3, "wd": 0.08}
    | {"optimizer": _ADAMW_98, "clip": 0.5, "schedule": "cosine"},
    {**_CONVNET, **_INSTANCE, "width": 7, "batch_size": 32, "samples": 720, "lr": 0.12, "wd": 8e-4},
    {**_MLP, "width": 18, "label_noise": 0.12, "batch_size": 56, "lr": 0.12, "wd": 6e-3},
    {**_SEPARABLE, "width": 8, "batch_size": 32, "samples": 680, "lr": 0.04, "wd": 8e-4, "optimizer": _MOMENTUM}
    | {"schedule": "linear"},
    {**_RESIDUAL, "width": 4, "depth": 2, "batch_size": 40, "samples": 640, "lr": 0.03, "wd": 1.5e-3}
    | {"optimizer": _NESTEROV, "schedule": "cosine"},
    {**_TRANSFORMER, **_WAVES, "width": 12, "depth": 2, "batch_size": 64, "lr": 2e-3, "wd": 0.1}
    | {"optimizer": _ADAMW_98, "clip": 1.0, "schedule": "cosine"},
    {**_TRANSFORMER, **_RMS, "width": 14, "depth": 2, "batch_size": 48, "samples": 900, "lr": 0.03, "wd": 1e-3}
    | {"optimizer": _MOMENTUM, "clip": 2.0, "schedule": "linear"},
    {**_MLP, **_RMS, "width": 28, "dataset": "mnist5k", "samples": 1200, "batch_size": 40, "lr": 0.08, "wd": 2e-3}
    | {"clip": 0.5},
)
_OTHER_QUIET_THIRD: tuple[_Network, ...] = (
    {**_MLP, "width": 16, "dataset": "gaussian", "label_noise": 0.2, "lr": 0.04, "wd": 2e-3}
    | {"optimizer": _LESS_MOMENTUM},
    {**_MLP, **_WAVES, "width": 24, "batch_size": 40, "lr": 2e-3, "wd": 0.1, "optimizer": _ADAMW_99},
    {**_CONVNET, **_INSTANCE, "width": 5, "batch_size": 40, "lr": 4e-3, "wd": 0.05, "optimizer": _ADAMW},
    {**_SEPARABLE, "width": 6, "batch_size": 48, "lr": 0.15, "wd": 1e-3, "schedule": "steps"},
    {**_TRANSFORMER, **_RMS, **_TEXT, "width": 10, "batch_size": 40, "lr": 0.02, "wd": 1e-3, "optimizer": _MOMENTUM},
    {**_MLP, "width": 24, "batch_size": 12, "lr": 0.06, "wd": 2e-3},
)
_HELD_OUT: tuple[_Network, ...] = (
    {**_MLP, "width": 34, "dataset": "mnist5k", "samples": 1000, "batch_size": 80, "lr": 0.14, "wd": 2e-3},
    {**_MLP, "width": 26, "depth": 3, "lr": 0.08, "wd": 1e-3, "batch_size": 44, "optimizer": _LEAST_MOMENTUM},
    {**_RESIDUAL_MLP, "width": 22, "batch_size": 60, "lr": 6e-3, "wd": 1.2e-3, "optimizer": _MOST_MOMENTUM},
    {**_MLP, **_WAVES, "width": 38, "batch_size": 72, "lr": 2.2e-3, "wd": 0.12, "optimizer": _ADAMW_995},
    {**_RESIDUAL_MLP, **_RMS, **_TEXT, "width": 22, "batch_size": 56, "lr": 2.5e-3, "wd": 0.12}
    | {"optimizer": _ADAMW_95, "clip": 0.8, "schedule": "linear"},
    {**_CONVNET, "width": 7, "batch_size": 40, "samples": 760, "lr": 0.1, "wd": 1e-3},
    {**_MLP, "width": 22, "label_noise": 0.1, "dataset": "gaussian", "batch_size": 52, "lr": 0.1, "wd": 5e-3},
    {**_SEPARABLE, **_GROUP, "width": 8, "batch_size": 36, "samples": 700, "lr": 0.06, "wd": 1e-3}
    | {"optimizer": _LESS_MOMENTUM, "schedule": "steps"},
    {**_RESIDUAL, **_GROUP, "width": 6, "batch_size": 36, "samples": 680, "lr": 0.05, "wd": 1e-3}
    | {"optimizer": _MOMENTUM, "schedule": "cosine"},
    {**_TRANSFORMER, **_RMS, **_TEXT, "width": 14, "batch_size": 56, "lr": 3e-3, "wd": 0.08}
    | {"optimizer": _ADAMW_995, "clip": 1.0, "schedule": "cosine"},
    {**_TRANSFORMER, **_WAVES, "width": 14, "batch_size": 40, "samples": 1200, "lr": 0.05, "wd": 8e-4}
    | {"optimizer": _NESTEROV, "clip": 1.5},
    {**_CONVNET, **_GROUP, "width": 8, "batch_size": 44, "samples": 800, "lr": 0.09, "wd": 2.5e-3, "clip": 0.7},
)
_OTHER_QUIET_HELD_OUT: tuple[_Network, ...] = (
    {**_RESIDUAL_MLP, "width": 14, "label_noise": 0.2, "batch_size": 36, "lr": 0.03, "wd": 2e-3}
    | {"optimizer": _MOMENTUM},
    {**_MLP, **_RMS, **_TEXT, "width": 24, "batch_size": 56, "lr": 2e-3, "wd": 0.1, "optimizer": _ADAMW_95},
    {**_SEPARABLE, **_INSTANCE, "width": 6, "batch_size": 40, "lr": 3e-3, "wd": 0.06, "optimizer": _ADAMW_98},
    {**_RESIDUAL, **_GROUP, "width": 4, "batch_size": 44, "lr": 0.12, "wd": 1e-3, "schedule": "linear"},
    {**_TRANSFORMER, **_WAVES, "width": 10, "batch_size": 36, "lr": 0.15, "wd": 6e-4, "clip": 0.8},
    {**_MLP, "width": 22, "depth": 3, "batch_size": 14, "lr": 0.05, "wd": 2.5e-3},
)
# Each event happens in some of the networks, by their numbers.
_Events = Mapping[str, Sequence[tuple[int, str]]]
_ALL = range(len(_FIRST))


def _in_all(*events: str) -> list[tuple[int, str]]:
    return [(number, events[number % len(events)]) for number in _ALL]


_FIRST_EVENTS: _Events = {
    BAD_BATCH: _in_all("wrong labels", "noise for images", "one label"),
    DATA_SHIFT: _in_all("labels renamed", "negatives", "labels drawn", "pixels shuffled"),
    LR_STEP: [(number, f"lr times {(5, 10, 20)[number % 3]}") for number in (0, 1, 2, 3, 4, 6, 7, 10)],
    BAD_EPOCH: [(number, "random labels") for number in (0, 1, 2, 3, 5, 6, 10, 11)],
    SLOW_RISE: [(number, "labels drawn") for number in (0, 2, 3, 5, 6, 9, 10)],
    DIVERGENCE: [(0, "lr steps"), (2, "lr grows"), (3, "lr steps"), (6, "lr grows"), (9, "lr grows"), (10, "lr steps")],
    OVERFLOW: [(1, "skipped"), (3, "infinite"), (5, "skipped")],
}
_SECOND_EVENTS: _Events = {
    BAD_BATCH: _in_all("noise added", "wrong labels", "images turned", "one label"),
    DATA_SHIFT: _in_all("images turned", "labels drawn", "pixels shuffled", "labels renamed", "noise added"),
    LR_STEP: [(number, f"lr times {(15, 4, 8)[number % 3]}") for number in (0, 1, 2, 3, 5, 6, 8, 11)],
    BAD_EPOCH: [(number, "random labels") for number in (0, 1, 2, 3, 4, 6, 9, 10)],
    SLOW_RISE: [(number, "labels drawn") for number in (1, 2, 4, 5, 6, 7, 10)],
    DIVERGENCE: [(1, "lr grows"), (2, "lr steps"), (3, "lr grows"), (4, "lr steps"), (6, "lr steps"), (10, "lr grows")],
    OVERFLOW: [(2, "infinite"), (6, "skipped"), (9, "skipped")],
}
_THIRD_EVENTS: _Events = {
    BAD_BATCH: _in_all("labels shuffled", "images mixed", "wrong labels", "noise for images", "images shifted"),
    DATA_SHIFT: _in_all("labels merged", "images shifted", "labels renamed", "negatives", "labels drawn"),
    LR_STEP: [(number, f"lr times {(6, 25, 12)[number % 3]}") for number in (0, 1, 2, 3, 4, 6, 7, 9)],
    BAD_EPOCH: [(number, "random labels") for number in (0, 1, 3, 5, 6, 8, 9, 11)],
    SLOW_RISE: [(number, "labels drawn") for number in (0, 2, 3, 5, 7, 8, 11)],
    DIVERGENCE: [(0, "lr grows"), (2, "lr grows"), (3, "lr steps"), (5, "lr steps"), (6, "lr grows"), (11, "lr steps")],
    OVERFLOW: [(1, "skipped"), (4, "infinite"), (10, "skipped")],
}
_HELD_OUT_EVENTS: _Events = {
    BAD_BATCH: _in_all("images blank", "labels shuffled", "negatives", "images mixed", "one label"),
    DATA_SHIFT: _in_all("images mixed", "labels merged", "noise added", "labels renamed", "pixels shuffled"),
    LR_STEP: [(number, f"lr times {(7, 18, 9)[number % 3]}") for number in (0, 1, 2, 3, 5, 6, 7, 10)],
    BAD_EPOCH: [(number, "random labels") for number in (0, 1, 2, 4, 5, 6, 7, 10)],
    SLOW_RISE: [(number, "labels drawn") for number in (0, 1, 3, 4, 6, 8, 10)],
    DIVERGENCE: [(0, "lr steps"), (1, "lr grows"), (3, "lr grows"), (6, "lr steps"), (7, "lr grows"), (10, "lr steps")],
    OVERFLOW: [(0, "infinite"), (3, "skipped"), (9, "infinite")],
}
_FULL = {"sampling": "full_batch"}
# In most of them the spikes end if weight decay does: see `spikes_need_decay`. The others are not counted.
_PERIODIC_FIRST: tuple[_Network, ...] = (
    {**_MLP, "width": 64, "samples": 350, "lr": 0.5, "wd": 4e-3, **_FULL},
    {**_MLP, "width": 32, "samples": 300, "batch_size": 100, "lr": 0.5, "wd": 0.01},
    {**_MLP, **_LAYER, "width": 48, "lr": 0.5, "wd": 4e-3},
    {**_MLP, **_LAYER, "width": 32, "batch_size": 128, "lr": 0.3, "wd": 6e-3},
    {**_MLP, **_LAYER, "width": 48, "lr": 0.05, "wd": 4e-3, "optimizer": _MOMENTUM},
    {**_MLP, **_LAYER, "width": 48, "lr": 0.05, "wd": 0.01, "optimizer": _NESTEROV},
    {**_MLP, **_LAYER, "width": 48, "lr": 3e-3, "wd": 1.0, "optimizer": _ADAMW},
    {**_MLP, "width": 32, "samples": 300, "lr": 0.01, "wd": 0.5, "optimizer": _ADAMW, **_FULL},
    {**_TRANSFORMER, "width": 12, "batch_size": 64, "samples": 256, "lr": 0.3, "wd": 5e-3},
    {**_TRANSFORMER, "width": 12, "batch_size": 64, "samples": 256, "lr": 0.01, "wd": 0.3, "optimizer": _ADAMW},
    {**_TRANSFORMER, "width": 12, "batch_size": 64, "samples": 256, "lr": 0.03, "wd": 5e-3, "optimizer": _MOMENTUM},
    {**_CONVNET, "width": 6, "batch_size": 64, "samples": 256, "lr": 0.5, "wd": 0.01},
    {**_RESIDUAL, "width": 5, "batch_size": 64, "samples": 256, "lr": 0.5, "wd": 5e-3, "steps": 2000},
)
_PERIODIC_SECOND: tuple[_Network, ...] = (
    {**_MLP, "width": 48, "samples": 400, "lr": 0.6, "wd": 5e-3, **_FULL},
    {**_MLP, "width": 40, "samples": 360, "batch_size": 120, "lr": 0.4, "wd": 0.012},
    {**_MLP, **_LAYER, "width": 40, "batch_size": 72, "lr": 0.6, "wd": 3e-3},
    {**_MLP, **_LAYER, "width": 56, "dataset": "mnist5k", "samples": 1000, "batch_size": 100, "lr": 0.4, "wd": 6e-3},
    {**_MLP, **_LAYER, "width": 40, "lr": 0.04, "wd": 6e-3, "optimizer": _MOMENTUM},
    {**_MLP, **_LAYER, "width": 40, "samples": 350, "lr": 0.06, "wd": 4e-3, "optimizer": _NESTEROV, **_FULL},
    {**_MLP, **_LAYER, "width": 40, "lr": 4e-3, "wd": 0.7, "optimizer": _ADAMW},
    {**_RESIDUAL_MLP, **_LAYER, "width": 28, "batch_size": 100, "samples": 400, "lr": 0.35, "wd": 6e-3},
    {**_RESIDUAL_MLP, **_RMS, "width": 24, "batch_size": 70, "samples": 350, "lr": 0.3, "wd": 6e-3},
    {**_TRANSFORMER, "width": 16, "batch_size": 50, "samples": 300, "lr": 0.35, "wd": 6e-3},
    {**_CONVNET, **_GROUP, "width": 8, "batch_size": 50, "samples": 250, "lr": 0.5, "wd": 8e-3},
    {**_RESIDUAL, "width": 6, "batch_size": 64, "samples": 320, "lr": 0.4, "wd": 7e-3, "steps": 2000},
)


_PERIODIC_THIRD: tuple[_Network, ...] = (
    {**_MLP, "width": 44, "samples": 270, "batch_size": 90, "lr": 0.6, "wd": 8e-3},
    {**_MLP, **_LAYER, "width": 44, "batch_size": 80, "lr": 0.45, "wd": 5e-3},
    {**_MLP, **_RMS, "width": 40, "batch_size": 96, "lr": 0.4, "wd": 6e-3},
    {**_MLP, **_LAYER, "width": 44, "batch_size": 56, "lr": 0.08, "wd": 5e-3, "optimizer": _LESS_MOMENTUM},
    {**_MLP, **_LAYER, "width": 36, "batch_size": 72, "lr": 0.02, "wd": 6e-3, "optimizer": _MORE_MOMENTUM},
    {**_MLP, **_LAYER, "width": 44, "lr": 4e-3, "wd": 0.8, "optimizer": _ADAMW_99},
    {**_RESIDUAL_MLP, **_LAYER, **_WAVES, "width": 32, "samples": 500, "batch_size": 100, "lr": 0.4, "wd": 5e-3},
    {**_TRANSFORMER, "width": 14, "depth": 2, "batch_size": 70, "samples": 280, "lr": 0.3, "wd": 5e-3},
    {**_TRANSFORMER, **_RMS, "width": 14, "batch_size": 60, "samples": 240, "lr": 0.3, "wd": 6e-3},
    {**_TRANSFORMER, **_RMS, "width": 12, "batch_size": 64, "samples": 320, "lr": 0.01, "wd": 0.35}
    | {"optimizer": _ADAMW_98},
    {**_CONVNET, **_INSTANCE, "width": 8, "batch_size": 60, "samples": 240, "lr": 0.5, "wd": 8e-3},
    {**_SEPARABLE, "width": 8, "batch_size": 64, "samples": 256, "lr": 0.5, "wd": 8e-3},
    {**_RESIDUAL, "width": 4, "depth": 2, "batch_size": 70, "samples": 280, "lr": 0.45, "wd": 6e-3, "steps": 2000},
    {**_MLP, **_LAYER, "width": 48, "dataset": "mnist5k", "samples": 900, "batch_size": 90, "lr": 0.05, "wd": 6e-3}
    | {"optimizer": _NESTEROV},
    {**_MLP, **_LAYER, "width": 48, "dataset": "gaussian", "samples": 800, "batch_size": 80, "lr": 0.5, "wd": 5e-3},
    {**_RESIDUAL_MLP, **_RMS, "width": 28, "batch_size": 75, "samples": 450, "lr": 0.04, "wd": 8e-3}
    | {"optimizer": _MOMENTUM},
)
_PERIODIC_HELD_OUT: tuple[_Network, ...] = (
    {**_MLP, "width": 52, "samples": 320, "batch_size": 80, "lr": 0.5, "wd": 8e-3},
    {**_MLP, **_LAYER, "width": 38, "batch_size": 88, "lr": 0.5, "wd": 5e-3},
    {**_MLP, **_RMS, "width": 46, "batch_size": 72, "lr": 0.45, "wd": 5e-3},
    {**_MLP, **_LAYER, "width": 50, "batch_size": 60, "lr": 0.15, "wd": 5e-3, "optimizer": _LEAST_MOMENTUM},
    {**_MLP, **_RMS, "width": 40, "batch_size": 80, "lr": 0.012, "wd": 6e-3, "optimizer": _MOST_MOMENTUM},
    {**_MLP, **_LAYER, "width": 38, "batch_size": 80, "lr": 3.5e-3, "wd": 0.9, "optimizer": _ADAMW_995},
    {**_RESIDUAL_MLP, **_RMS, **_WAVES, "width": 28, "samples": 450, "batch_size": 90, "lr": 0.35, "wd": 6e-3},
    {**_TRANSFORMER, "width": 14, "batch_size": 60, "samples": 240, "lr": 0.35, "wd": 5e-3},
    {**_TRANSFORMER, **_RMS, "width": 16, "depth": 2, "batch_size": 64, "samples": 256, "lr": 0.25, "wd": 6e-3},
    {**_TRANSFORMER, "width": 14, "batch_size": 56, "samples": 280, "lr": 8e-3, "wd": 0.35} | {"optimizer": _ADAMW_95},
    {**_CONVNET, "width": 5, "batch_size": 54, "samples": 270, "lr": 0.45, "wd": 9e-3},
    {**_SEPARABLE, **_GROUP, "width": 8, "batch_size": 60, "samples": 300, "lr": 0.45, "wd": 8e-3},
    {**_RESIDUAL, **_GROUP, "width": 6, "batch_size": 60, "samples": 240, "lr": 0.4, "wd": 7e-3, "steps": 2000},
    {**_MLP, **_RMS, "width": 44, "dataset": "mnist5k", "samples": 800, "batch_size": 80, "lr": 0.05, "wd": 6e-3}
    | {"optimizer": _MOMENTUM},
    {**_MLP, **_LAYER, **_WAVES, "width": 44, "samples": 600, "batch_size": 100, "lr": 0.45, "wd": 5e-3},
    {**_RESIDUAL_MLP, **_LAYER, "width": 30, "batch_size": 64, "samples": 384, "lr": 0.05, "wd": 7e-3}
    | {"optimizer": _NESTEROV},
)
# The gradients grow and stay large, which the second moment follows too slowly.
_LARGE_UPDATES: tuple[_Network, ...] = (
    {**_MLP, **_LAYER, "width": 32, "lr": 2e-3, "wd": 0.01, "optimizer": _ADAMW, "event": "gradients times 100"},
    {**_MLP, **_LAYER, "width": 24, "lr": 2e-3, "wd": 0.01, "optimizer": _ADAMW_9999, "event": "gradients times 1000"},
    {**_RESIDUAL_MLP, **_RMS, "width": 24, "lr": 2e-3, "wd": 0.01, "optimizer": _ADAMW}
    | {"event": "gradients times 100"},
    {**_TRANSFORMER, "width": 12, "batch_size": 32, "lr": 2e-3, "wd": 0.01, "optimizer": _ADAMW}
    | {"event": "gradients times 30"},
    {**_TRANSFORMER, "width": 16, "batch_size": 32, "lr": 2e-3, "wd": 0.01, "optimizer": _ADAMW}
    | {"event": "gradients times 100"},
)


def ordinary_development_runs() -> list[LabelledRun]:
    """Labelled runs of ordinary networks with which the rules of the diagnosis are developed.

    The second part was held-out at first: 82 % of its diagnoses were right, 14 % unknown and 3.5 % wrong. The rules
    then excluded lasting losses after which the next batch is usual, and rows with a lower learning rate. The third
    part was held-out next: 83 % right, 10 % unknown and 4.5 % wrong. The rules then excluded small spikes, data shifts
    that recur, and destabilizations after which the loss stays high.
    """
    return [
        *_make_runs(_FIRST, _OTHER_QUIET_FIRST, _FIRST_EVENTS, _PERIODIC_FIRST, 1000),
        *_make_runs(_SECOND, _OTHER_QUIET_SECOND, _SECOND_EVENTS, _PERIODIC_SECOND, 2000),
        *_make_runs(_THIRD, _OTHER_QUIET_THIRD, _THIRD_EVENTS, _PERIODIC_THIRD, 3000),
        *_large_updates(1500),
    ]


def ordinary_held_out_runs() -> list[LabelledRun]:
    """Labelled runs of other ordinary networks, trained only after the rules are fixed.

    All have other sizes, learning rates and weight decays. Only here are residual and separable ConvNets with
    GroupNorm, a residual MLP with batch normalization, momentum 0.6 and 0.97, and some pairs of events and networks.
    """
    return _make_runs(_HELD_OUT, _OTHER_QUIET_HELD_OUT, _HELD_OUT_EVENTS, _PERIODIC_HELD_OUT, 4000)


def is_ordinary(case: LabelledRun) -> bool:
    """Return whether a run has a network of `empirical.studies.ordinary_networks`."""
    return str(case.settings.get("model")).startswith(_MODULE)


def _make_runs(
    networks: Sequence[_Network], quiet: Sequence[_Network], events: _Events, periodic: Sequence[_Network], seed: int
) -> list[LabelledRun]:
    runs = [_make_run(NORM_DRIVEN, network, _STEPS, seed + number) for number, network in enumerate(periodic)]
    for number, network in enumerate((*networks, *quiet)):
        runs.append(_make_run(NOISE, network, _STEPS, seed + 100 + number))
    for label, where in events.items():
        for number, event in where:
            seed += 1
            runs.append(_make_run(label, networks[number], _EVENT_STEPS, seed + 200, event, 0.55 + 0.02 * number))
    return runs


def _large_updates(seed: int) -> list[LabelledRun]:
    runs = []
    for number, network in enumerate(_LARGE_UPDATES):
        settings = dict(network)
        event = settings.pop("event")
        runs.append(_make_run(LARGE_UPDATE, settings, _EVENT_STEPS, seed + number, event, 0.6))
    return runs


def _make_run(
    label: str, network: _Network, steps: int, seed: int, event: str | None = None, share: float = 0.0
) -> LabelledRun:
    """Build a run; its event is after this share of its steps, or with `BAD_EPOCH` at the next start of an epoch."""
    settings = {"scale_invariant": False, "norm_eps": 1e-5, "steps": steps, **network}
    clip, schedule, lr = settings.pop("clip", None), settings.pop("schedule", None), settings["lr"]
    steps = settings["steps"]
    if schedule == "cosine":
        settings["lr"] = theory.WarmUp(_WARM_UP, theory.Cosine(lr, 0.1 * lr, steps=steps - _WARM_UP))
    elif schedule == "steps":
        settings["lr"] = theory.StepDecay(lr, milestones=(steps // 2, 3 * steps // 4), factor=0.2)
    elif schedule == "linear":
        settings["lr"] = theory.Linear(lr, 0.1 * lr, steps=steps)
    at = None if event is None else round(share * steps)
    if label == SLOW_RISE:
        at = steps // 2
    elif label == DIVERGENCE:
        at = round(0.4 * steps)
    elif at is not None and label == BAD_EPOCH:
        size = settings.get("samples", _SIZES[settings.get("dataset", "digits")])
        at += -at % (size // settings.get("batch_size", 64))
    return LabelledRun(label=label, settings=settings, event=event, at=at, seed=seed, clip=clip)
