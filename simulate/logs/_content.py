"""Content of a file: compressed or not, text or binary, and what foreign binary files are. Nothing is unpickled."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import select
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECONDS_FOR_WRITER = 1.0
_EVENT_MARK = b"brain.Event:"
_PASS = "Load it in Python and pass its columns to simulate.read_log, or write them as CSV"
_FRAME = "Pass the data frame to simulate.read_log, or write it as CSV"

# first bytes of files of other kinds: what they are, and what to do
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", f"Read it with pandas.read_parquet. {_FRAME}"),
    (b"ARROW1", "an Arrow file", f"Read it with pandas.read_feather. {_FRAME}"),
    (b"SQLite format 3\0", "an SQLite database", f"Read a table of it with pandas.read_sql. {_FRAME}"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _PASS),
    (b":W&B", "a binary log of Weights & Biases", "Export it: wandb.Api().run(…).history().to_csv('log.csv')"),
    (b"\x93NUMPY", "an array of NumPy", "Pass its columns: simulate.read_log({'loss': array[:, 0], …})"),
    (b"\x89PNG", "a PNG image", "Export the numbers behind it as CSV"),
    (b"\xff\xd8\xff", "a JPEG image", "Export the numbers behind it as CSV"),
    (b"GIF8", "a GIF image", "Export the numbers behind it as CSV"),
    (b"%PDF", "a PDF document", "Export the numbers behind it as CSV"),
    (b"(\xb5/\xfd", "a file compressed with zstd", "Decompress it first: unzstd FILE"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", "Decompress it first: unzstd FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel file", f"Read it with pandas.read_excel. {_FRAME}"),
    (b"\x7fELF", "a program", "Choose a log"),
    (b"CDF\x01", "a NetCDF file", "Open it with xarray, and pass the data set to simulate.read_log"),
)
_TEXT_SIGNATURES: tuple[tuple[str, str, str], ...] = (
    ("<!doctype html", "an HTML page", "Save the log or the numbers behind the page as CSV"),
    ("<html", "an HTML page", "Save the log or the numbers behind the page as CSV"),
    ("<svg", "an SVG image", "Export the numbers behind it as CSV"),
    ("<?xml", "an XML file", "Write the numbers as CSV"),
    ("{\\rtf", "an RTF document", "Save it as plain text"),
)
_ZIP_CONTENTS: tuple[tuple[str, str, str], ...] = (
    ("data.pkl", "a checkpoint of PyTorch", "Choose the log of the training; a checkpoint has weights, not losses"),
    (".npy", "arrays of NumPy (npz)", "Pass its columns: simulate.read_log(dict(numpy.load(FILE)))"),
    ("xl/", "an Excel file", f"Read it with pandas.read_excel. {_FRAME}"),
    ("word/", "a Word document", "Save it as plain text"),
    (".weights.h5", "a model of Keras", "Choose the log of the training, as of keras.callbacks.CSVLogger"),
)


def foreign_file(path: Path, kind: str, advice: str) -> ValueError:
    """Error that says what a file is and what to do with it."""
    return ValueError(f"path must be a training log, got {kind}, {str(path)!r}. {advice}")


def read_content(path: Path) -> tuple[bytes, list[str]]:
    """Bytes of a file, decompressed, and remarks.

    Raises
    ------
    ValueError : the file cannot be read, is empty or is of another kind.
    """
    try:
        content = _read_bytes(path)
    except OSError as error:
        raise ValueError(f"path must be a file that can be read, got {str(path)!r} ({error.strerror})") from None
    remarks = []
    decompressors: tuple[tuple[bytes, Callable[[], Any]], ...] = (
        (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ", lzma.LZMADecompressor),
    )
    for signature, make in decompressors:
        if content.startswith(signature):
            content, is_complete = _decompress(path, content, make)
            if not is_complete:
                remarks.append("The compressed file ends too early; its beginning was read.")
    if not content.strip():
        raise foreign_file(path, "an empty file", "Check that the training has written to it")
    _reject_other_kinds(path, content)
    return content, remarks


def _read_bytes(path: Path) -> bytes:
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return _read_pipe(path)
    # some devices never end
    for is_kind, kind in ((stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket")):
        if is_kind(mode):
            raise foreign_file(path, f"{kind}, not a file", "Choose the file of the log")
    return path.read_bytes()


def _read_pipe(path: Path) -> bytes:
    """Bytes of a pipe until its writer closes it; a pipe that nothing writes to never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as pipe:
        select.select([descriptor], [], [], _SECONDS_FOR_WRITER)
        try:
            start = os.read(descriptor, 1)
        except BlockingIOError:
            # its writer has not written yet
            start = b""
        else:
            if not start:
                raise foreign_file(path, "a pipe that nothing writes to", "Write the log into a file, and choose that")
        os.set_blocking(descriptor, True)
        return start + pipe.read()


def is_event_file(content: bytes) -> bool:
    """Whether these are the first bytes of an event file of TensorBoard."""
    return _EVENT_MARK in content[:64]


def _decompress(path: Path, content: bytes, make: Callable[[], Any]) -> tuple[bytes, bool]:
    parts, remainder = [], content
    while remainder:
        decompressor = make()
        try:
            parts.append(decompressor.decompress(remainder))
        except (zlib.error, OSError, lzma.LZMAError) as error:
            # padding may follow the last part
            if parts:
                break
            raise ValueError(f"path must be a file that can be decompressed, got {str(path)!r} ({error})") from None
        if not decompressor.eof:
            return b"".join(parts), False
        remainder = decompressor.unused_data
    return b"".join(parts), True


def _reject_other_kinds(path: Path, content: bytes) -> None:
    for signature, kind, advice in _SIGNATURES:
        if content.startswith(signature):
            raise foreign_file(path, kind, advice)
    if content.startswith(b"PK\x03\x04"):
        raise foreign_file(path, *_zip_kind(content))
    if content[:1] == b"\x80" and content[1:2] <= b"\x05":
        raise foreign_file(path, "a pickle of Python, which is never opened because it may run code", _PASS)
    if content[257:262] == b"ustar":
        raise foreign_file(path, "a tar archive", "Unpack it first")
    if content[8:10] == b'{"' and content[4:8] == b"\0\0\0\0":
        advice = "Choose the log of the training; a checkpoint has weights, not losses"
        raise foreign_file(path, "weights in the form of safetensors", advice)
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for text, kind, advice in _TEXT_SIGNATURES:
        if start.startswith(text.encode()):
            raise foreign_file(path, kind, advice)


def _zip_kind(content: bytes) -> tuple[str, str]:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return "a damaged zip archive", "Unpack it first"
    for part, kind, advice in _ZIP_CONTENTS:
        if any(part in name for name in names):
            return kind, advice
    return "a zip archive", "Unpack it first"


def decode(path: Path, content: bytes) -> str:
    """Text of a file: UTF-8, UTF-16 or Latin-1.

    Raises
    ------
    ValueError : the file is binary.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    even, odd = content[:1000:2], content[1:1000:2]
    if 2 * odd.count(0) > len(odd) and not even.count(0):
        return content.decode("utf-16-le", errors="replace")
    if 2 * even.count(0) > len(even) and not odd.count(0):
        return content.decode("utf-16-be", errors="replace")
    if b"\0" in content:
        raise foreign_file(path, "a binary file of an unknown kind", "Write the log as CSV, JSON or text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
