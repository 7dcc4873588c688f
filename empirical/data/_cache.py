"""Keep decoded images in the user's cache folder, so that only the first start decodes them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from empirical.data.contract import Data
from simulate._files import atomic_write
from theory.arguments import warn_user

# part of the name of an entry, so that versions of the package with another format have entries of their own
_FORMAT = 1
# environment variables that name the cache folder, and the folder of the package below it
_VARIABLES = {"BNWD_CACHE": "", "XDG_CACHE_HOME": "bnwd"}
_IDENTITY, _DIGEST_SIZE = "identity", 32


def load_cached(source: str, files: Sequence[Path], decode: Callable[[], Data]) -> Data:
    """Return the data of a source from its cache entry, or decode them and write the entry.

    An entry is the SHA-256 digest of the following .npz file. It is valid for files with the same absolute paths, sizes
    and modification times; otherwise the data are decoded and the entry is replaced. Where the cache cannot be written,
    the data are decoded at each call.

    Parameters
    ----------
    source : name of the source. Each source has one entry.
    files : files that the data are decoded from. Without files nothing is cached.
    decode : function that returns the data, with images as uint8.

    Warns
    -----
    UserWarning : the entry is damaged. It is written again.
    """
    folder = _cache_folder()
    if folder is None or not files:
        return decode()
    identity = _identity(files)
    entry = folder / f"{hashlib.sha256(f'{_FORMAT} {source}'.encode()).hexdigest()[:32]}.npz"
    data = _read(entry, identity)
    if data is not None:
        return data
    with _lock(entry):
        # another process may have written it meanwhile
        data = _read(entry, identity)
        if data is None:
            data = decode()
            _write(entry, identity, data)
    return data


def _cache_folder() -> Path | None:
    """Return the folder named by the environment, or that in the user's home; None without a home."""
    for variable, below in _VARIABLES.items():
        if os.environ.get(variable):
            return Path(os.environ[variable]).absolute() / below
    try:
        return Path.home() / ".cache" / "bnwd"
    except RuntimeError:
        return None


def _identity(files: Sequence[Path]) -> str:
    """Return a hash of absolute path, size and modification time of each file."""
    states = [(file, file.stat()) for file in files]
    text = json.dumps([(str(file.absolute()), state.st_size, state.st_mtime_ns) for file, state in states])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(entry: Path, identity: str) -> Data | None:
    """Read an entry; None if it is missing, damaged or of other files."""
    try:
        with open(entry, "rb") as file:
            digest = file.read(_DIGEST_SIZE)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                raise ValueError("wrong digest")
            file.seek(_DIGEST_SIZE)
            with np.load(file) as arrays:
                if str(arrays[_IDENTITY]) != identity:
                    return None
                return Data(**{name: torch.from_numpy(arrays[name]) for name in arrays.files if name != _IDENTITY})
    except OSError:
        return None
    except ValueError as error:
        warn_user(f"the cached images in {str(entry)!r} are damaged ({error}); they are decoded again")
        with contextlib.suppress(OSError):
            entry.unlink()
        return None


@contextlib.contextmanager
def _lock(entry: Path) -> Iterator[None]:
    """Wait until no other process writes the entry. Do nothing where the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(entry.with_suffix(".lock")))
        yield


def _write(entry: Path, identity: str, data: Data) -> None:
    """Write an entry atomically. Write nothing where the folder cannot be written or the disk is full."""
    present = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    arrays = {name: values.numpy() for name, values in present.items() if values is not None}
    with contextlib.suppress(OSError), atomic_write(entry) as aside, open(aside, "w+b") as file:
        file.write(bytes(_DIGEST_SIZE))
        np.savez(file, allow_pickle=False, **{_IDENTITY: np.array(identity)}, **arrays)
        file.seek(_DIGEST_SIZE)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
