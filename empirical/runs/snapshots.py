"""Networks of a run at chosen steps: the run is made again, bit for bit the same, and stopped there."""

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
    """Train a run up to each of these steps, one after the other, and give its networks there.

    Parameters
    ----------
    config : of the run; its own `steps` do not matter.
    steps : increasing.
    folder : for the weights, `…-step-….pt`, named by run and step, which are used again; made if it does not exist.
    progress : show a progress bar; by default only in a terminal.

    Returns
    -------
    networks in eval mode, with the statistics of the whole training set.

    Raises
    ------
    ValueError : steps do not increase.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     found = networks_at(RunConfig(lr=0.5, wd=0.01, width=8), [3, 5], Path(place))
    >>> len(found)
    2
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"steps must increase, got {list(steps)}")
    # another run may have been there
    own = config.identity[:12]
    files = [folder / f"{own}-step-{step}.pt" for step in steps]
    if not all(file.exists() for file in files):
        place = folder / f"{own}-stopped"
        # a folder that was trained further than the first step does not go back
        shutil.rmtree(place, ignore_errors=True)
        for step, file in zip(steps, files, strict=True):
            train(dataclasses.replace(config, steps=step), place, progress=progress)
            with atomic_write(file) as aside:
                torch.save(load_model(place).state_dict(), aside)
        shutil.rmtree(place)
    networks = []
    for file in files:
        network = prepare(config).problem.model
        network.load_state_dict(torch.load(file, weights_only=True))
        networks.append(network.eval())
    return networks
