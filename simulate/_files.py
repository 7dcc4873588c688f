"""Atomic writes, locks and JSON files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from theory.arguments import check_path

LOCK = "lock"  # file that a process locks while it writes a folder


class FolderInUseError(ValueError):
    """Raised if another process is writing the folder."""


def lock_folder(path: Path, expected: str, is_ours: Callable[[set[str]], bool]) -> filelock.BaseFileLock:
    """Create a folder if it does not exist, and lock it for this process.

    Parameters
    ----------
    path : folder.
    expected : contents that the folder may have besides none, for the message: "a run".
    is_ours : function that says whether the names of its files are those of the expected contents.
    """
    name = str(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_ours({file.name for file in path.iterdir()}):
            raise ValueError(f"out must be a new or empty folder or {expected}, got {name!r}")
        lock = filelock.FileLock(path / LOCK)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(f"out must not be in use, but another process is writing {name!r} now") from None
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {name!r} ({error.strerror})") from None
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process is writing the run folder now."""
    path = folder / LOCK
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def check_writable(name: str, path: str | os.PathLike[str]) -> Path:
    """Check that a file can be written, before the work for it begins.

    Raises
    ------
    ValueError : the path is a folder, its folder does not exist, or the file cannot be written.
    """
    target = check_path(name, path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ValueError(f"{name} must be a file in an existing folder, got {os.fspath(path)!r}")
    aside = target.with_name(target.name + ".partial")
    try:
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise ValueError(
            f"{name} must be a file that can be written, got {os.fspath(path)!r}: {error.strerror}"
        ) from None
    return target


def check_unused(name: str, path: str | os.PathLike[str]) -> Path:
    """Check that nothing exists at a path, before the work for it begins."""
    target = check_path(name, path)
    if target.exists():
        raise ValueError(f"{name} must not exist yet, got {str(target)!r}")
    return target


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file or a new folder under a temporary name, and rename it to `path` on success.

    The context variable is the temporary path. It is removed if the block raises.
    """
    aside = path.with_name(path.name + ".partial")
    # left by a process that was killed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            (shutil.rmtree if aside.is_dir() else os.unlink)(aside)
        raise


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    r"""Write JSON atomically: a reader never sees half a file."""
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.flush()
        os.fsync(file.fileno())
