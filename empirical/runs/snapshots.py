"""Networks of a run at chosen steps. The run is repeated, identical to the bit, and stopped at each step."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from empirical.config import RunConfig
from empirical.runs.folder import READING_ERRORS, read_tensors, tensor_digest
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
    folder : folder for the weights, created if missing: one file `…-step-….pt` per run and step. Later calls use it
        again unless it is damaged.
    progress : show a progress bar. Default: only in a terminal.
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"steps must increase, got {list(steps)}")
    # the folder may hold files of other runs
    prefix = config.identity[:12]
    files = [folder / f"{prefix}-step-{step}.pt" for step in steps]
    networks = [_read_network(config, file) for file in files]
    if not all(networks):
        run_folder = folder / f"{prefix}-stopped"
        # a run that is already past the first step cannot go back
        shutil.rmtree(run_folder, ignore_errors=True)
        for step, file in zip(steps, files, strict=True):
            train(dataclasses.replace(config, steps=step), run_folder, progress=progress)
            with atomic_write(file) as partial:
                numbers = load_model(run_folder, trust=True).state_dict()
                torch.save({"numbers": numbers, "digest": _digest(numbers)}, partial)
        shutil.rmtree(run_folder)
        networks = [_read_network(config, file) for file in files]
    read = [network for network in networks if network is not None]
    if len(read) < len(steps):
        raise ValueError(f"folder must keep what is written to it, got {str(folder)!r}, whose networks cannot be read")
    return read


def _read_network(config: RunConfig, file: Path) -> nn.Module | None:
    """Read the network of one step. Return None if the file is missing or damaged."""
    network = prepare(config).problem.model
    try:
        content = read_tensors(file)
        if content["digest"] != _digest(content["numbers"]):
            return None
        network.load_state_dict(content["numbers"])
    except READING_ERRORS:
        return None
    return network.eval()


def _digest(numbers: Mapping[str, Tensor]) -> str:
    return tensor_digest(" ".join(numbers), numbers.values())
