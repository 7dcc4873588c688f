"""Event files of TensorBoard: scalars of both kinds, and folders whose parts belong to one run."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from simulate.logs._column_names import EVALUATION_WORDS, TRAINING_WORDS, is_loss, may_have_meaning, normalize
from simulate.logs._columns import find_columns
from simulate.logs._steps import last_repetition
from simulate.logs._table import Cells, Table, format_names
from theory.arguments import FloatArray

EVENT_FILE = "events.out.tfevents"
_STEP = "step"
_HEADER = struct.Struct("<QI")  # length of a record and its checksum; a checksum of four bytes follows the record
_LARGEST_RECORD = 2**31
_TENSOR_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
_VALUE_FIELDS = ("float_val", "double_val", "int_val", "int64_val")

Series = dict[str, tuple[list[int], list[float]]]  # steps and values by tag


def read_event_files(place: Path, names: Mapping[str, str]) -> Table:
    """Read the scalars of one run: an event file, or a folder with event files.

    Raises
    ------
    ImportError : TensorBoard is not installed.
    ValueError : there are several runs, or no scalars.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise ImportError("event files need TensorBoard: pip install tensorboard, or export them as CSV") from None
    files = sorted(place.rglob(f"*{EVENT_FILE}*"), key=lambda file: file.name) if place.is_dir() else [place]
    named_tags = {name for name in names.values() if name}
    by_folder: dict[Path, Series] = {}
    all_tags: dict[str, None] = {}
    with _progress(files) as bar:
        for file in files:
            series = by_folder.setdefault(file.parent, {})
            _read_file(file, Event, series, all_tags, named_tags, bar)
    base = place if place.is_dir() else place.parent
    remarks: list[str] = []
    series = _choose_run(base, by_folder, remarks, named_tags)
    if not all_tags:
        raise ValueError(f"path must have scalars, got event files without any, {str(place)!r}")
    columns = _columns(series, names)
    tags = list(dict.fromkeys([*series, *all_tags]))
    return Table(columns, "events", "event files of TensorBoard", remarks, names_seen=tags)


def _progress(files: Collection[Path]) -> Any:
    total = sum(file.stat().st_size for file in files)
    return tqdm(total=total, desc="event files", unit="B", unit_scale=True, disable=None, delay=2, leave=False)


def _read_file(
    file: Path, event_type: Any, series: Series, all_tags: dict[str, None], named_tags: Collection[str], bar: Any
) -> None:
    """Add the scalars of a file to the series of its folder."""
    relevance: dict[str, bool] = {}
    parse = event_type.FromString
    with file.open("rb") as stream:
        for record in _records(stream, bar):
            event = parse(record)
            for value in event.summary.value:
                tag = value.tag
                relevant = relevance.get(tag)
                if relevant is None:
                    relevant = relevance[tag] = tag in named_tags or may_have_meaning(tag) or _is_add_scalars(file, tag)
                    if value.WhichOneof("value") in ("simple_value", "tensor") and not tag.startswith("_hparams_"):
                        all_tags[tag] = None
                if not relevant:
                    continue
                number = value.simple_value if value.HasField("simple_value") else _tensor_number(value)
                if number is None:
                    continue
                steps, values = series.setdefault(tag, ([], []))
                steps.append(event.step)
                values.append(number if math.isfinite(number) else math.inf)


def _records(stream: BinaryIO, bar: Any) -> Iterator[bytes]:
    """Records of an event file, up to the last complete one."""
    content = stream.read()
    at, size, reported = 0, len(content), 0
    while at + _HEADER.size <= size:
        length, _ = _HEADER.unpack_from(content, at)
        end = at + _HEADER.size + length
        if length > _LARGEST_RECORD or end + 4 > size:
            break
        yield content[at + _HEADER.size : end]
        at = end + 4
        if at - reported > 2**20:
            bar.update(at - reported)
            reported = at
    bar.update(size - reported)


def _tensor_number(value: Any) -> float | None:
    """Number of a tensor with one element; None for others, as of texts and histograms."""
    if value.WhichOneof("value") != "tensor":
        return None
    tensor = value.tensor
    if tensor.dtype not in _TENSOR_TYPES or any(dim.size != 1 for dim in tensor.tensor_shape.dim):
        return None
    if tensor.tensor_content:
        return float(np.frombuffer(tensor.tensor_content, dtype=_TENSOR_TYPES[tensor.dtype])[0])
    for name in _VALUE_FIELDS:
        if numbers := getattr(tensor, name):
            return float(numbers[0])
    # a proto leaves out zeros
    return 0.0 if not tensor.half_val else None


def _is_add_scalars(file: Path, tag: str) -> bool:
    return file.parent.name.startswith(f"{tag.replace('/', '_')}_")


def _choose_run(
    base: Path, by_folder: Mapping[Path, Series], remarks: list[str], named_tags: Collection[str]
) -> Series:
    """Series of the one run; folders of validation and of hyperparameters do not count."""
    merged: dict[Path, Series] = {}
    for folder, series in by_folder.items():
        for tag, values in series.items():
            # a folder of SummaryWriter.add_scalars has the name of the tag and of the line
            prefix = f"{tag.replace('/', '_')}_"
            is_part = folder.name.startswith(prefix) and folder != base
            parent, name = (folder.parent, f"{tag}/{folder.name.removeprefix(prefix)}") if is_part else (folder, tag)
            merged.setdefault(parent, {})[name] = values
    training = {folder: series for folder, series in merged.items() if not _is_evaluation(folder, base)}
    with_loss = {folder: s for folder, s in training.items() if any(is_loss(tag) or tag in named_tags for tag in s)}
    if len(with_loss) > 1:
        runs = format_names(str(folder.relative_to(base)) for folder in with_loss)
        raise ValueError(
            f"path must be of one run, got {len(with_loss)} with event files in {str(base)!r}: {', '.join(runs)}. "
            "Choose one of these folders"
        )
    if not with_loss:
        candidates = training or merged
        return max(candidates.values(), key=len, default={})
    (folder,) = with_loss
    chosen = dict(with_loss[folder])
    # what the parent logs beside, as the learning rate
    for other in (base, folder.parent):
        if other != folder and other in training:
            chosen = {**training[other], **chosen}
    if folder != base:
        remarks.append(f"The run is in the folder {str(folder.relative_to(base))!r}.")
    return chosen


def _is_evaluation(folder: Path, base: Path) -> bool:
    if folder == base:
        return False
    words = set(normalize(folder.name).split("_"))
    return bool(words & EVALUATION_WORDS) and not words & TRAINING_WORDS


def _columns(series: Series, names: Mapping[str, str]) -> dict[str, Cells]:
    """Columns of the tags with a meaning, over their steps; steps of other tags may count something else."""
    ones = np.ones(1)
    tags = Table({**dict.fromkeys(series, ones), _STEP: ones}, "events", "")
    meanings = find_columns(tags, names)
    used = {*meanings.names.values(), *meanings.loss_parts, *meanings.variables.values()} & set(series)
    if not used:
        return dict.fromkeys(series, ones)
    values = {tag: _values_by_step(tag, *series[tag]) for tag in series if tag in used}
    steps = np.unique(np.concatenate([own for own, _ in values.values()]))
    columns: dict[str, Cells] = {}
    for tag, (own, numbers) in values.items():
        column = np.full(steps.size, np.nan)
        column[np.searchsorted(steps, own)] = numbers
        columns[tag] = column
    # of these a remark may follow
    columns.update({tag: np.full(steps.size, np.nan) for tag in series if tag not in used})
    return {**columns, _STEP: steps}


def _values_by_step(tag: str, steps: list[int], values: list[float]) -> tuple[FloatArray, FloatArray]:
    """Steps and values of a tag; of steps that were logged again the last values."""
    step, numbers = np.array(steps, dtype=float), np.array(values, dtype=float)
    kept, _ = last_repetition(step, np.ones(step.size, dtype=bool), f"tag {tag!r}")
    step, numbers = step[kept], numbers[kept]
    is_last = np.append(step[1:] != step[:-1], True) if step.size else np.ones(0, dtype=bool)
    return step[is_last], numbers[is_last]
