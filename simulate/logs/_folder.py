"""Files and folders: which reader fits, by content, and which file of a folder is the log."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import xarray as xr

from simulate.logs._column_names import has_meaning, may_have_meaning
from simulate.logs._content import decode, foreign_file, is_event_file, read_content
from simulate.logs._delimited import NUMBERS_ALONE, read_delimited
from simulate.logs._events import EVENT_FILE, read_event_files
from simulate.logs._json import read_json
from simulate.logs._long_form import read_long_lines
from simulate.logs._table import Table, format_names
from simulate.logs._text import read_text
from simulate.trajectories.folder import CONFIG, STATUS, STEPS, load
from theory.arguments import quote

# names of logs in a folder; the first that exists is taken
_LOG_NAMES = (
    *("trainer_state.json", "trainer_log.jsonl", "metrics.csv", "results.csv", "metrics.json", "metrics.jsonl"),
    *("scalars.json", "summary.csv", "progress.csv", "history.csv", "history.json", "log.csv", "log.jsonl"),
    *("log.json", "log.txt", "train.log", "training.log", "train_log.txt"),
)
_LOG_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".log", ".txt", ".gz", ".bz2", ".xz")
_LONGEST_PATH = 200  # in a message
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


def read_path(path: Path, names: Mapping[str, str]) -> Table | xr.Dataset:
    """Read a file or folder: a table, or a trajectory of `bnwd`.

    Raises
    ------
    ValueError : the path does not exist or has no log.
    """
    # of a text that is too long for a path, the methods of `Path` raise an error of the system
    if os.path.isdir(path):
        return _read_folder(path, names)
    if not os.path.exists(path):
        raise ValueError(_no_such_file(path))
    return _read_file(path, names)


def _no_such_file(path: Path) -> str:
    text = str(path)
    start = text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}…"
    advice = "Check the path"
    if "\n" in text:
        advice = "Write the text of a log into a file first"
    elif os.path.islink(path):
        advice = "It is a link to a file that does not exist"
    elif os.access(path.parent, os.R_OK) and path.parent.is_dir():
        for name in get_close_matches(path.name, os.listdir(path.parent), n=1):
            advice = f"Is it {str(path.parent / name)!r}?"
    return f"path must exist, got {quote(start)}: there is no such file or folder. {advice}"


def _read_file(path: Path, names: Mapping[str, str]) -> Table:
    if EVENT_FILE in path.name and path.is_file():
        return read_event_files(path, names)
    content, remarks = read_content(path)
    if is_event_file(content):
        return read_event_files(path, names)
    table = _read_text_file(path, decode(path, content), names)
    table.remarks[:0] = remarks
    return table


def _read_text_file(path: Path, text: str, names: Mapping[str, str]) -> Table:
    given = set(names.values())

    def is_relevant(name: str) -> bool:
        return name in given or may_have_meaning(name)

    table = read_json(path, text, is_relevant) or read_long_lines(text)
    problem = None
    if table is None:
        try:
            table = read_delimited(text)
        except ValueError as error:
            problem = error
    is_log = table is not None and (
        table.form == NUMBERS_ALONE or any(name in given or has_meaning(name) for name in table.columns)
    )
    if not is_log:
        # a printed text may have a table of settings
        table = read_text(text, is_relevant) or table
    if table is not None:
        return table
    if problem is not None:
        raise problem
    raise foreign_file(
        path,
        "a text without numbers after a name such as loss",
        "Write one line for each step, such as 'step 10 loss 2.3', or a CSV file with a line of names",
    )


def _read_folder(path: Path, names: Mapping[str, str]) -> Table | xr.Dataset:
    if (path / "zarr.json").is_file() or ((path / CONFIG).is_file() and _has_run(path)):
        return load(path)
    if (file := _log_of_folder(path)) is not None:
        table = _read_file(file, names)
        table.remarks.insert(0, f"The log is {file.relative_to(path)}.")
        return table
    if next(path.rglob(f"*{EVENT_FILE}*"), None) is not None:
        return read_event_files(path, names)
    logs = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _LOG_SUFFIXES and file.is_file()]
    if len(logs) == 1:
        return _read_file(logs[0], names)
    if logs:
        raise ValueError(
            f"path must be a log or a folder with one, got {str(path)!r} with {len(logs)} files: "
            f"{', '.join(format_names(file.name for file in logs))}. Choose one of them"
        )
    raise ValueError(
        f"path must be a file, a run folder or a folder with a log, got {str(path)!r}: it has neither a log such as "
        "metrics.csv or trainer_state.json nor event files of TensorBoard. Choose the file of the log"
    )


def _has_run(path: Path) -> bool:
    return any((path / name).exists() for name in (STATUS, STEPS))


def _log_of_folder(path: Path) -> Path | None:
    """File with a usual name; of the checkpoints of Hugging Face that of the newest."""
    for name in _LOG_NAMES:
        if (path / name).is_file():
            return path / name
    states = [file for file in path.glob(f"checkpoint-*/{_STATE}") if _CHECKPOINT.fullmatch(file.parent.name)]
    return max(states, key=lambda file: int(file.parent.name.partition("-")[2]), default=None)
