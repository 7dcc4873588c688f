"""Files and folders: atomic writes, locks, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

LOCK = "lock"  # file that a process locks while it writes a folder


class FolderInUseError(ValueError):
    """Another process is writing the folder."""


def lock_folder(path: Path, wanted: str, is_ours: Callable[[set[str]], bool]) -> filelock.BaseFileLock:
    """Make a folder if there is none, and hold it against other processes until the lock is released.

    Parameters
    ----------
    path : the folder.
    wanted : what it may be besides new or empty, for the message.
    is_ours : whether the names in it, if any, are those of what is wanted.

    Raises
    ------
    ValueError : the folder cannot be written, or holds something else.
    FolderInUseError : it is being written by another process.

    Examples
    --------
    >>> import tempfile
    >>> lock_folder(Path(tempfile.mkdtemp()), "a run", lambda names: not names).release()
    """
    shown = str(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_ours({file.name for file in path.iterdir()}):
            raise ValueError(f"out must be a new or empty folder or {wanted}, got {shown!r}")
        lock = filelock.FileLock(path / LOCK)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(f"out must not be in use, but another process is writing {shown!r} now") from None
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {shown!r} ({error.strerror})") from None
    return lock


def is_locked(folder: Path) -> bool:
    """Tell whether a process is writing the run folder now.

    Examples
    --------
    >>> is_locked(Path("no such folder"))
    False
    """
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
    """Check, before any work, that a file can be written, aside and renamed.

    Parameters
    ----------
    name : of the argument.
    path : of the file; its folder must exist.

    Raises
    ------
    ValueError : it is a folder, is in none, or cannot be written.

    Examples
    --------
    >>> check_writable("out", "no such folder/model.json")
    Traceback (most recent call last):
    ...
    ValueError: out must be a file in an existing folder, got 'no such folder/model.json'
    """
    target = Path(path)
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
    """Check, before any work, that there is nothing at a path yet.

    Examples
    --------
    >>> check_unused("out", "no such folder").name
    'no such folder'
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"{name} must not exist yet, got {str(target)!r}")
    return target


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Where to write what then becomes `path`, a file or a new folder; dropped if the writing fails.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target) as aside:
    ...     _ = aside.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    aside = path.with_name(path.name + ".partial")
    # of a process that was killed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            (shutil.rmtree if aside.is_dir() else os.unlink)(aside)
        raise


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    r"""Write JSON aside and rename, so that a reader never sees half a file.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(target, {"a": 1}); target.read_text()
    '{\n "a": 1\n}'
    """
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.flush()
        os.fsync(file.fileno())
