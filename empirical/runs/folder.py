"""The folder of a run as training writes it; `simulate.load` reads it.

`steps.log` and `evaluations.log` are append-only, each record with a check; everything else is written aside and
renamed. A process that is killed at any moment loses only the steps since the last checkpoint: resuming cuts the logs
back to it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from empirical.steps.contract import State
from simulate._files import LOCK, atomic_write, lock_folder, write_json
from simulate.trajectories.contract import COMPLETE, RUNNING
from simulate.trajectories.folder import CONFIG, EVALS, STATUS, STEPS, STORE, store_run
from simulate.trajectories.log import (
    CHECK,
    count_records,
    evaluation_log,
    evaluation_record,
    read_records,
    sealed,
    step_log,
)

_CHECKPOINTS_KEPT = 2


class StorageError(RuntimeError):
    """The disk refused what a run had to write; what was written before is kept, and the run can be resumed.

    Attributes
    ----------
    path : the run folder.
    reason : of the operating system, such as "No space left on device".
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{reason} while writing {path}; the run can be resumed from there once that is solved")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class RunFolder:
    """One run folder, held by one process at a time.

    Parameters
    ----------
    path : the folder; made if it does not exist.
    labelled : write the labelled store when the run has ended; without it the folder keeps few files.
    pace : seconds for which records may wait in memory before they are written, if no checkpoint or end comes first.

    Raises
    ------
    ValueError : the folder cannot be written, holds something that is no run, or is being written by another process.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
    >>> folder.described is None
    True
    >>> folder.close()
    """

    def __init__(self, path: str | os.PathLike[str], *, labelled: bool = True, pace: float = 0.0) -> None:
        self.path = Path(path)
        self._labelled, self._pace, self._written = labelled, pace, time.monotonic()
        self._waiting: dict[str, list[npt.NDArray[Any]]] = {}
        # False too where it cannot be looked for, which held_folder tells
        is_new = not os.path.exists(path)
        # a process that was killed while it began a run leaves no more than these
        beginnings = {LOCK, CONFIG + ".partial"}
        self._lock = lock_folder(
            self.path, "a run to be continued", lambda names: CONFIG in names or names <= beginnings
        )
        self._unused = self.path if is_new else None
        self.described: dict[str, Any] | None = None
        if (self.path / CONFIG).exists():
            self.described = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))

    def close(self) -> None:
        """Let other processes have the folder; if it was made for a run that never began, drop it."""
        if self._unused is not None:
            with suppress(OSError):
                (self._unused / LOCK).unlink()
                self._unused.rmdir()
        self._lock.release()

    def begin(self, described: Mapping[str, Any]) -> None:
        """Write (or, for a continued run, renew) the description of the run; it is readable from now on."""
        self._unused = None
        for left in self.path.glob("*.partial"):
            (shutil.rmtree if left.is_dir() else os.unlink)(left)
        # a log keeps the kind of records that it began with
        are_checked = self.described is None or bool(self.described.get("checked"))
        self.described = {**described, "checked": are_checked}
        write_json(self.path / CONFIG, self.described)
        # the store of a shorter run would hide the log that grows now
        shutil.rmtree(self.path / STORE, ignore_errors=True)
        self.set_status(RUNNING)

    def restart(self) -> None:
        """Drop the logs and checkpoints of a run that never reached a usable checkpoint."""
        for file in (self.path / STEPS, self.path / EVALS, *self.checkpoints()):
            file.unlink(missing_ok=True)

    def set_status(self, status: str, **more: Any) -> None:
        """Write the state of the run."""
        write_json(self.path / STATUS, {"status": status, **more})

    def append_steps(self, records: npt.NDArray[Any]) -> None:
        """Append records of steps."""
        self._append(STEPS, records)

    def append_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Append an evaluation; what was not evaluated is NaN."""
        log = evaluation_log(self._description)
        names = [name for name in log.names or () if name not in ("eval_step", CHECK)]
        row = (step, *(values.get(name, np.nan) for name in names))
        self._append(EVALS, np.array([row], dtype=evaluation_record(names)))

    def _append(self, name: str, records: npt.NDArray[Any]) -> None:
        self._waiting.setdefault(name, []).append(records)
        if time.monotonic() - self._written >= self._pace:
            self.flush()

    def flush(self) -> None:
        """Write the records that wait."""
        waiting, self._waiting = self._waiting, {}
        for name, parts in waiting.items():
            log = (step_log if name == STEPS else evaluation_log)(self._description)
            path, records = self.path / name, np.concatenate(parts)
            first = path.stat().st_size // log.itemsize if path.exists() else 0
            with open(path, "ab") as file:
                file.write((sealed(records, first) if CHECK in (log.names or ()) else records).tobytes())
        self._written = time.monotonic()

    @property
    def _description(self) -> dict[str, Any]:
        assert self.described is not None, "begin comes first"
        return self.described

    def save_checkpoint(self, step: int, state: State, random_state: torch.Tensor) -> None:
        """Write a checkpoint after all records of the steps before it are safe; keep the last two."""
        self.flush()
        for name in (STEPS, EVALS):
            if (self.path / name).exists():
                with open(self.path / name, "rb") as file:
                    os.fsync(file.fileno())
        target = self.path / f"checkpoint-{step:012d}.pt"
        content = {
            "step": step,
            "weights": state.weights,
            "buffers": dict(state.buffers),
            "slots": list(state.slots),
            "random": random_state,
        }
        content["digest"] = _digest(content)
        memory = io.BytesIO()
        torch.save(content, memory)
        with atomic_write(target) as aside, open(aside, "wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        for old in self.checkpoints()[:-_CHECKPOINTS_KEPT]:
            old.unlink()

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return checkpoint_files(self.path)

    def restore(self, device: torch.device) -> tuple[int, State, torch.Tensor] | None:
        """Return step, state and random state of the last checkpoint, and cut the logs back to it.

        Returns
        -------
        None for a run that was killed before its first checkpoint.

        Raises
        ------
        ValueError : there are checkpoints, but none is intact.
        """
        files = self.checkpoints()
        written = count_records(self.path / STEPS, step_log(self._description))
        for file in reversed(files):
            found = read_checkpoint(file, device)
            # records are flushed before their checkpoint is written: a shorter log means a damaged disk, so go back
            if found is not None and found[0] <= written:
                self._cut(found[0])
                return found
        if files:
            raise ValueError(
                f"out must hold an intact checkpoint to go on from, but all in {str(self.path)!r} are damaged; "
                "simulate.load still reads the trajectory, and another folder can take the run from its start"
            )
        return None

    def _cut(self, step: int) -> None:
        if (self.path / STEPS).exists():
            os.truncate(self.path / STEPS, step * step_log(self._description).itemsize)
        log = evaluation_log(self._description)
        kept = read_records(self.path / EVALS, log)
        every = self._description["config"]["evaluate_every"]
        # the extra evaluation after the last step of a shorter run is not part of a longer one
        kept = kept[(kept["eval_step"] <= step) & (kept["eval_step"] % every == 0)]
        with atomic_write(self.path / EVALS) as aside:
            aside.write_bytes((sealed(kept, 0) if CHECK in (log.names or ()) else kept).tobytes())

    def finish(self, status: str, step: int, message: str = "") -> None:
        """Write the final status, then the labelled store, if there is to be one."""
        self.flush()
        self.set_status(status, status_step=step, **({"message": message} if message else {}))
        self.store()

    def norm_after(self, steps: int) -> float:
        """Norm after so many steps, as the run wrote it when it made the last of them."""
        if steps == 0:
            return float(self._description["first_norm"])
        # the norm before the next step is the same number, but added up in another order
        return float(read_records(self.path / STEPS, step_log(self._description), steps - 1, steps)["next_norm"][0])

    def store(self) -> None:
        """Write the labelled store of a finished run, if there is to be one, and it is not there yet."""
        if self._labelled and not (self.path / STORE).is_dir():
            store_run(self.path)

    def check_space(self, needed: int) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises
        ------
        ValueError : fewer than `needed` bytes are free.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ValueError(
                f"out must be on a disk with {in_bytes(needed)} free for this run, got {str(self.path)!r} with "
                f"{in_bytes(free)}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run ended by itself with the number of steps in its description."""
        file = self.path / STATUS
        return file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] == COMPLETE


def in_bytes(count: float) -> str:
    """Write a number of bytes in readable units.

    Examples
    --------
    >>> in_bytes(999), in_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(len(units) - 1, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {units[power]}"


def checkpoint_files(path: Path) -> list[Path]:
    """Checkpoint files of a run folder, oldest first.

    Examples
    --------
    >>> checkpoint_files(Path("no such folder"))
    []
    """
    return sorted(path.glob("checkpoint-*.pt"))


def read_checkpoint(file: Path, device: torch.device) -> tuple[int, State, torch.Tensor] | None:
    """Step, state and random state of one checkpoint; None where the file is damaged.

    Examples
    --------
    >>> read_checkpoint(Path("no such file"), torch.device("cpu")) is None
    True
    """
    try:
        # weights_only: whatever the file holds, none of it is executed
        content = torch.load(file, map_location=device, weights_only=True)
        if content.get("digest", "") not in ("", _digest(content)):
            return None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError):
        return None
    state = State(content["weights"], content["buffers"], tuple(content["slots"]))
    return content["step"], state, content["random"].cpu()


def _digest(content: Mapping[str, Any]) -> str:
    """Hash of all numbers of a checkpoint."""
    total = hashlib.sha256(repr(content["step"]).encode())
    named = sorted(content["buffers"].items())
    for tensor in (content["weights"], *content["slots"], content["random"], *(buffer for _, buffer in named)):
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_same_run(there: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue a folder that holds another run, and say what differs.

    Parameters
    ----------
    there, wanted : descriptions (`config.json`) of the run in the folder and of the one that is asked for.
    path : the folder, for the message.

    Raises
    ------
    ValueError : their identities differ.

    Examples
    --------
    >>> check_same_run({"identity": "a", "config": {"wd": 1}}, {"identity": "b", "config": {"wd": 2}}, Path("run"))
    Traceback (most recent call last):
    ...
    ValueError: out must be a new folder or one of the same run, but 'run' holds another: wd=1 there, 2 here
    """
    if there["identity"] == wanted["identity"]:
        return
    old, new = there["config"], wanted["config"]
    differs = [f"{n}={old.get(n)!r} there, {new[n]!r} here" for n in new if new[n] != old.get(n)]
    decisive = [text for text in differs if not text.startswith(("steps=", "device="))]
    what = "; ".join(decisive) or "another model or other data"
    raise ValueError(f"out must be a new folder or one of the same run, but {str(path)!r} holds another: {what}")
