"""Networks of a run at chosen steps. The run is repeated, identical to the bit, and stopped at each step."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from empirical.config import RunConfig
from empirical.runs.loop import load_model, train
from empirical.runs.preparation import prepare
from simulate._files import atomic_write


def networks_at(
    config: RunConfig, steps: Sequence[int], folder: Path, *, progress: bool | None = None
) -> list[nn.Module]:
    """Train a run up to each step in turn, and return its networks there.

    Parameters
    ----------
    config : settings of the run. Its own `steps` is ignored.
    steps : increasing numbers of steps.
    folder : folder for the weights: one file `…-step-….pt` per run and step, reused by later calls. Created if missing.
    progress : show a progress bar. Default: only in a terminal.
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"steps must increase, got {list(steps)}")
    # the folder may hold files of other runs
    prefix = config.identity[:12]
    files = [folder / f"{prefix}-step-{step}.pt" for step in steps]
    if not all(file.exists() for file in files):
        run_folder = folder / f"{prefix}-stopped"
        # a run that is already past the first step cannot go back
        shutil.rmtree(run_folder, ignore_errors=True)
        for step, file in zip(steps, files, strict=True):
            train(dataclasses.replace(config, steps=step), run_folder, progress=progress)
            with atomic_write(file) as partial:
                torch.save(load_model(run_folder, trust=True).state_dict(), partial)
        shutil.rmtree(run_folder)
    networks = []
    for file in files:
        network = prepare(config).problem.model
        network.load_state_dict(torch.load(file, weights_only=True))
        networks.append(network.eval())
    return networks
