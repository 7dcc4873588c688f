"""Atomic writes, locks, and JSON files with digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from theory.arguments import check_path, quote

DIGEST, SCHEMA_WITH_DIGESTS = "digest", 3
_LARGEST_JSON = 2**31  # bytes; a sweep of a million runs has a tenth of it
LOCK = "lock"  # file that a process locks while it writes a folder


class FolderInUseError(ValueError):
    """Raised if another process is writing the folder."""


class DamagedFileError(ValueError):
    """Raised if a file cannot be used.

    Parameters
    ----------
    name : argument that led to the file.
    path : the file.
    reason, advice : what is wrong, and what to do.
    """

    def __init__(self, name: str, path: Path, reason: str, advice: str = "Restore it from a copy") -> None:
        super().__init__(f"{name} must lead to intact files, but {str(path)!r} is damaged: {reason}. {advice}")
        self.name, self.path, self.reason, self.advice = name, path, reason, advice

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.path, self.reason, self.advice)


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
            raise ValueError(f"out must be a new or empty folder or {expected}, got {quote(name)}")
        lock = filelock.FileLock(path / LOCK)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(f"out must not be in use, but another process is writing {name!r} now") from None
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {quote(name)} ({error.strerror})") from None
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
    r"""Write JSON atomically: a reader never sees half a file. A mapping gets a digest, which `read_json` checks."""
    if isinstance(content, Mapping):
        content = json.loads(json.dumps({name: value for name, value in content.items() if name != DIGEST}))
        content = {**content, DIGEST: digest_of_json(content)}
    with atomic_write(path) as aside, open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.flush()
        os.fsync(file.fileno())


def read_json(
    path: Path, name: str, *, schema: int | None = None, digest_since: int = SCHEMA_WITH_DIGESTS
) -> dict[str, Any]:
    """Read a mapping that `write_json` wrote, without its digest. Errors name the file.

    Parameters
    ----------
    path : file.
    name : argument that led to the file, for the message.
    schema : schema of the file, if it does not name its own.
    digest_since : schema since which a digest must be there. A digest that is there is always checked.

    Raises
    ------
    DamagedFileError : the file is missing, not a regular file, damaged, or holds something else.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "numbers.json"
    >>> write_json(file, {"norm": 1.5})
    >>> read_json(file, "path")
    {'norm': 1.5}
    >>> _ = file.write_text(file.read_text().replace("1.5", "2.5"))
    >>> read_json(file, "path")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    simulate._files.DamagedFileError: path must lead to intact files, but '...' is damaged: its digest is another. ...
    """
    try:
        check_regular(path, name, _LARGEST_JSON)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedFileError(name, path, error.strerror or "it cannot be read") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedFileError(name, path, f"it is not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise DamagedFileError(name, path, f"it holds a {type(content).__name__} in place of a mapping")
    stored = content.pop(DIGEST, None)
    schema = content.get("schema") if schema is None else schema
    if stored is None and isinstance(schema, int) and schema >= digest_since:
        raise DamagedFileError(name, path, "its digest is missing")
    if stored is not None and stored != digest_of_json(content):
        raise DamagedFileError(name, path, "its digest is another")
    return content


def digest_of_json(content: Mapping[str, Any]) -> str:
    """Digest of a mapping as JSON, whatever the order and the spaces in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def check_regular(path: Path, name: str, most: float = math.inf) -> int:
    """Check that a path is a regular file of at most that many bytes, before it is opened. Return its size.

    Opening a pipe would wait for a writer, and a device may never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFileError(name, path, "it is not a regular file")
    if status.st_size > most:
        raise DamagedFileError(name, path, f"it has {status.st_size} bytes")
    return status.st_size
