"""Write the folder of a run, which `simulate.load` reads.

`steps.log` and `evaluations.log` are append-only, and each record has a checksum. All other files are written to a
temporary name and renamed. A process that is killed at any moment loses only the steps since the last checkpoint:
resuming cuts the logs back to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from empirical.steps.contract import TrainingState
from simulate._files import LOCK, DamagedFileError, atomic_write, check_regular, lock_folder, write_json
from simulate.trajectories.contract import COMPLETE, RUNNING
from simulate.trajectories.folder import (
    CONFIG,
    EVALS,
    STATUS,
    STEPS,
    STORE,
    RunDescription,
    read_status,
    store_run,
)
from simulate.trajectories.log import count_records, evaluation_record, read_records, records_with_checks
from simulate.trajectories.store_digest import check_digest

_CHECKPOINTS_KEPT = 2
READING_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError,
)  # fmt: skip


class StorageError(RuntimeError):
    """A run could not write to disk. Everything written before is kept, and the run can be resumed.

    Attributes
    ----------
    path : the run folder.
    reason : message of the operating system, e.g. "No space left on device".
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{reason} while writing {path}; the run can be resumed from there once this is solved")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Folder that is deleted at the end. The message of an error that refers to it says so."""
    folder = Path(tempfile.mkdtemp(prefix="bnwd-"))
    try:
        yield folder
    except (KeyboardInterrupt, RuntimeError) as error:
        if str(folder) in str(error):
            what = str(error).partition("; ")[0].replace(str(folder), "a temporary folder")
            error.args = (f"{what}; nothing is kept, pass out=FOLDER to go on from there another time",)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RunFolder:
    """Folder of one run, locked by one process at a time.

    Parameters
    ----------
    path : the folder. Created if missing.
    labelled : write the labelled store at the end of the run. Without it the folder has fewer files.
    pace : longest time in seconds that records wait in memory. A checkpoint or the end of the run writes them earlier.

    Raises
    ------
    ValueError : the folder cannot be written, contains something other than a run, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str], *, labelled: bool = True, pace: float = 0.0) -> None:
        self.path = Path(path)
        self._labelled, self._pace, self._written = labelled, pace, time.monotonic()
        self._waiting: dict[str, list[npt.NDArray[Any]]] = {}
        # also False where looking for it fails; lock_folder raises in that case
        is_new = not os.path.exists(path)
        # files that a process may leave that was killed while it created the run
        initial_files = {LOCK, CONFIG + ".partial"}
        self._lock = lock_folder(
            self.path, "a run to be continued", lambda names: CONFIG in names or names <= initial_files
        )
        self._unused = self.path if is_new else None
        self.description = RunDescription.read(self.path) if (self.path / CONFIG).exists() else None

    def close(self) -> None:
        """Unlock the folder. Delete it if it was created for a run that never began."""
        if self._unused is not None:
            with suppress(OSError):
                (self._unused / LOCK).unlink()
                self._unused.rmdir()
        self._lock.release()

    def begin(self, description: RunDescription) -> None:
        """Write the description of the run, or renew it for a continued run. Then `simulate.load` can read the run."""
        self._unused = None
        for partial in self.path.glob("*.partial"):
            (shutil.rmtree if partial.is_dir() else os.unlink)(partial)
        # a log keeps the record format that it began with
        are_checked = self.description is None or self.description.checked
        self.description = dataclasses.replace(description, checked=are_checked)
        self.description.write(self.path)
        # the store of the shorter run would hide the growing log
        shutil.rmtree(self.path / STORE, ignore_errors=True)
        self.set_status(RUNNING)

    def restart(self) -> None:
        """Delete the logs and checkpoints of a run without a usable checkpoint."""
        for file in (self.path / STEPS, self.path / EVALS, *self.checkpoints()):
            file.unlink(missing_ok=True)

    def set_status(self, status: str, **more: Any) -> None:
        """Write the status of the run."""
        write_json(self.path / STATUS, {"status": status, **more})

    def append_steps(self, records: npt.NDArray[Any]) -> None:
        """Append step records."""
        self._append(STEPS, records)

    def append_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Append an evaluation. Missing values become NaN."""
        names = self._known_description.evaluations
        row = (step, *(values.get(name, np.nan) for name in names))
        self._append(EVALS, np.array([row], dtype=evaluation_record(names)))

    def _append(self, name: str, records: npt.NDArray[Any]) -> None:
        self._waiting.setdefault(name, []).append(records)
        if time.monotonic() - self._written >= self._pace:
            self.flush()

    def flush(self) -> None:
        """Write the waiting records."""
        waiting, self._waiting = self._waiting, {}
        for name, parts in waiting.items():
            description = self._known_description
            log = description.step_log if name == STEPS else description.evaluation_log
            path, records = self.path / name, np.concatenate(parts)
            first = path.stat().st_size // log.itemsize if path.exists() else 0
            with open(path, "ab") as file:
                file.write((records_with_checks(records, first) if description.checked else records).tobytes())
        self._written = time.monotonic()

    @property
    def _known_description(self) -> RunDescription:
        assert self.description is not None, "call begin first"
        return self.description

    def save_checkpoint(self, step: int, state: TrainingState, random_state: torch.Tensor) -> None:
        """Write all records of earlier steps, then a checkpoint. Keep the last two checkpoints."""
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
        with atomic_write(target) as partial, open(partial, "wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        for old in self.checkpoints()[:-_CHECKPOINTS_KEPT]:
            old.unlink()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint files, oldest first."""
        return checkpoint_files(self.path)

    def restore(self, start: TrainingState) -> tuple[int, TrainingState, torch.Tensor] | None:
        """Load the last intact checkpoint, of the form and on the device of `start`. Cut the logs back to it.

        Returns
        -------
        Step, state and random state. None if there is no checkpoint.

        Raises
        ------
        ValueError : all checkpoints are damaged.
        """
        files = self.checkpoints()
        written = count_records(self.path / STEPS, self._known_description.step_log)
        for file in reversed(files):
            checkpoint = read_checkpoint(file, start)
            # records are written before their checkpoint, so a shorter log is damaged: use an earlier checkpoint
            if checkpoint is not None and checkpoint[0] <= written:
                self._cut(checkpoint[0])
                return checkpoint
        if files:
            raise ValueError(
                f"out must hold an intact checkpoint, but all in {str(self.path)!r} are damaged; read the trajectory "
                "with simulate.load, or train the run again in another folder"
            )
        return None

    def _cut(self, step: int) -> None:
        if (self.path / STEPS).exists():
            os.truncate(self.path / STEPS, step * self._known_description.step_log.itemsize)
        description = self._known_description
        records = read_records(self.path / EVALS, description.evaluation_log)
        every = description.config["evaluate_every"]
        # a longer run does not have the extra evaluation after the last step of a shorter run
        records = records[(records["eval_step"] <= step) & (records["eval_step"] % every == 0)]
        with atomic_write(self.path / EVALS) as partial:
            partial.write_bytes((records_with_checks(records, 0) if description.checked else records).tobytes())

    def finish(self, status: str, step: int, message: str = "") -> None:
        """Write the final status, then the labelled store if the folder has one."""
        self.flush()
        self.set_status(status, status_step=step, **({"message": message} if message else {}))
        self.store()

    def norm_after(self, steps: int) -> float:
        """Return the norm after `steps` steps, as recorded by the last of them."""
        if steps == 0:
            return float(self._known_description.first_norm)
        # not the norm before the next step: it is summed in another order, so its last bits differ
        log = self._known_description.step_log
        return float(read_records(self.path / STEPS, log, steps - 1, steps)["next_norm"][0])

    def store(self) -> None:
        """Write the labelled store of a finished run, if the folder has one and it is missing or damaged."""
        if not self._labelled:
            return
        with suppress(DamagedFileError):
            if (self.path / STORE).is_dir() and check_digest(self.path / STORE, "out"):
                return
        store_run(self.path)

    def check_space(self, needed: int) -> None:
        """Check that the disk has enough free space.

        Raises
        ------
        ValueError : fewer than `needed` bytes are free.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ValueError(
                f"out must be on a disk with {format_bytes(needed)} free for this run, got {str(self.path)!r} with "
                f"{format_bytes(free)}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run finished the number of steps in its description."""
        return self.description is not None and read_status(self.path, self.description).get("status") == COMPLETE


def format_bytes(count: float) -> str:
    """Format a number of bytes with a unit.

    Examples
    --------
    >>> format_bytes(999), format_bytes(1_500_000)
    ('999 B', '1.5 MB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(len(units) - 1, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {units[power]}"


def checkpoint_files(path: Path) -> list[Path]:
    """Return the checkpoint files of a run folder, oldest first."""
    return sorted(path.glob("checkpoint-*.pt"))


def read_tensors(file: Path, device: torch.device | None = None) -> Any:
    """Read what `torch.save` has written. Raise one of `READING_ERRORS` for many kinds of damage, but not for all."""
    check_regular(file, "path")
    with warnings.catch_warnings():
        # PyTorch warns of a newer form, where a file is damaged
        warnings.simplefilter("ignore")
        # weights_only: never execute code from the file
        return torch.load(file, map_location=device, weights_only=True)


def read_checkpoint(file: Path, start: TrainingState) -> tuple[int, TrainingState, torch.Tensor] | None:
    """Read step, state and random state of one checkpoint, of the form and on the device of `start`.

    Return None if the file is damaged, has no digest, or is of another form.
    """
    try:
        content = read_tensors(file, start.weights.device)
        if content.get("digest", "") != _digest(content):
            return None
        state = TrainingState(content["weights"], content["buffers"], tuple(content["slots"]))
        is_of_this_run = _form(state) == _form(start) and type(content["step"]) is int and content["step"] >= 0
        random_state = content["random"].cpu()
    except READING_ERRORS:
        return None
    return (content["step"], state, random_state) if is_of_this_run else None


def _form(state: TrainingState) -> tuple[Any, ...]:
    """Shapes and types of all tensors of a state."""
    tensors = (state.weights, *state.slots, *(state.buffers[name] for name in sorted(state.buffers)))
    return sorted(state.buffers), len(state.slots), [(tensor.shape, tensor.dtype) for tensor in tensors]


def _digest(content: Mapping[str, Any]) -> str:
    """Return a hash of all numbers of a checkpoint."""
    named = sorted(content["buffers"].items())
    tensors = (content["weights"], *content["slots"], content["random"], *(buffer for _, buffer in named))
    return tensor_digest(repr(content["step"]), tensors)


def tensor_digest(text: str, tensors: Iterable[torch.Tensor]) -> str:
    """Return a hash of a text and of all numbers of some tensors."""
    total = hashlib.sha256(text.encode())
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_same_run(stored: RunDescription, requested: RunDescription, path: Path) -> None:
    """Raise ValueError if a folder holds another run than the requested one. The error lists the different settings."""
    if stored.identity == requested.identity:
        return
    old, new = stored.config, requested.config
    differences = [f"{n}={old.get(n)!r} there, {new[n]!r} here" for n in new if new[n] != old.get(n)]
    decisive = [text for text in differences if not text.startswith(("steps=", "device="))]
    what = "; ".join(decisive) or "another model or other data"
    raise ValueError(f"out must be a new folder or one of the same run, but {str(path)!r} holds another: {what}")
