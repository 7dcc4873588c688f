"""Digest of all files of a zarr store, among the attributes of the store."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulate._files import DIGEST, DamagedFileError, check_regular

ROOT = "zarr.json"
_LARGEST_ROOT, _PIECE = 2**24, 2**18  # bytes; those read at a time


def add_digest(folder: Path) -> None:
    """Write the digest of a store that was just written, and is not read yet, into its root."""
    root = json.loads((folder / ROOT).read_text(encoding="utf-8"))
    root["attributes"][DIGEST] = _digest(folder, root, dict(_sizes(str(folder), "path")))
    (folder / ROOT).write_text(json.dumps(root, indent=1), encoding="utf-8")


def check_digest(folder: Path, name: str) -> bool:
    """Check that no file of a store was changed, added or removed. Return False if the store has no digest.

    Raises
    ------
    DamagedFileError : the store is damaged.
    """
    try:
        check_regular(folder / ROOT, name, _LARGEST_ROOT)
        root = json.loads((folder / ROOT).read_text(encoding="utf-8"))
        stored = root["attributes"].pop(DIGEST, None)
        if stored is None:
            return False
        sizes = dict(_sizes(str(folder), name))
        if stored.partition("-")[0] != str(sum(sizes.values())):
            raise DamagedFileError(name, folder, "its files have other sizes")
        if stored != _digest(folder, root, sizes):
            raise DamagedFileError(name, folder, "its digest is another")
    except OSError as error:
        raise DamagedFileError(name, folder, error.strerror or "it cannot be read") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(name, folder / ROOT, f"it does not describe a store ({type(error).__name__})") from None
    return True


def _sizes(folder: str, name: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Places and sizes of all files but the root."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path, name, f"{prefix}{entry.name}/")
            elif prefix or entry.name != ROOT:
                yield prefix + entry.name, check_regular(Path(entry.path), name)


def _digest(folder: Path, root: Any, sizes: Mapping[str, int]) -> str:
    """Sum of the sizes, and hash of the root and of place, size and checksum of each other file."""
    lines, buffer = [json.dumps(root, sort_keys=True)], memoryview(bytearray(_PIECE))
    for place in sorted(sizes):
        check = 0
        with open(f"{folder}/{place}", "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                check = zlib.crc32(buffer[:count], check)
        lines.append(f"{place} {sizes[place]} {check}")
    total = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{sum(sizes.values())}-{total[:32]}"
