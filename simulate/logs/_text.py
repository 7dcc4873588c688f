"""Logs that a training printed: names with numbers in lines, such as "step 10 | loss 2.3"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from simulate.logs._cells import LOST, NUMBER, to_number
from simulate.logs._column_names import EVALUATION_WORDS, is_epoch, is_loss, is_step, normalize
from simulate.logs._printed import name_numbers
from simulate.logs._steps import POSITION
from simulate.logs._table import Cells, RowCollector, Table

# a name of up to seven words, a separator, a number, and its total; or a place such as [50/1000] without a name
_WORD = r"[A-Za-z_][\w@/.\-]*(?:\((?:train|ms|s|t|group\d*)\))?"
_NEXT_WORD = rf"[ ](?!{LOST}\b)(?:{_WORD}|\([a-z]+\))"
_PAIR = re.compile(
    rf"""(?<![\w.@])(?<![A-Za-z]/)(?P<name>{_WORD}(?:{_NEXT_WORD}){{0,6}})["']?"""
    rf"""(?:\s*[:=]\s*|\s+|(?=\[))["'\[(]*\s*(?:[a-z.]*(?:tensor|float\d*|array)\(\s*)?"""
    rf"""(?P<number>(?:{NUMBER})%?|{LOST}(?![A-Za-z0-9_]))(?:\s*/\s*(?P<total>\d+))?"""
    r"""|[\[|:]\s*(?P<inner>\d+)\s*/\s*(?P<length>\d+)""",
    re.IGNORECASE,
)
_FIRST_NUMBER = "first number"
_FIRST = re.compile(r"(?:.*?\]\s*)?\[?\s*(\d+)\s*\]?\s*(?:[|:,\t\]]|\s(?=[A-Za-z]))")
_EPOCH_AND_STEP = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*\]")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_METRICS = r"loss|losses|acc|accuracy|err|error|ppl|perplexity|top|auc|f1|score|time|bpb|cer|wer|iou|map"
_EVALUATION = re.compile(
    rf"(?<![\w/.\-])(?:val|valid|validation|validating|test|testing|eval|evaluation|evaluating|dev|cv)\b"
    rf"(?!\s*[_/.\-]|\s+(?:{_METRICS})\b)|\((?:val|valid|test|eval)\)",
    re.IGNORECASE,
)
# a bar of Keras: batches of the epoch, then its averages
_KERAS_BAR = re.compile(r"\s*(\d+)/(\d+)\s+(?:\[[=>.]|━|-\s+\d+m?s\b|\S*\d+m?s\b.*(?:/step|/epoch))")
# numbers of llm.c before their units, and marks of its lines
_MARKS = {
    "tok_s": re.compile(r"\d\s+tok/s"),
    "mfu": re.compile(r"\d%.{0,10}MFU"),
    "z_score": re.compile(r"\([+-][\d.]*(?:nan)?z\)"),
}
# short names of the log file of llm.c, read as usual ones
_SHORT_LOSS = re.compile(r"^s:(\d+) trl:", re.MULTILINE)
_SHORT_STEP = re.compile(r"^s:(?=\d+ (?:tel|eval):)", re.MULTILINE)
_SHORT_NAMES = {"step": "s", "train_loss": "trl"}
# words of names that count the steps of a whole training
_COUNTER_WORDS = frozenset({"global", "train", "training", "current", "optimizer", "num"}) | {
    *("step", "steps", "iter", "iteration", "iterations"),
}
_SHARE_REPEATED = 0.5  # of the steps, at least
_LOSS_TOLERANCE = 1e-2  # relative, of a loss that is printed twice
# a summary of an epoch, and rows of steps in the same log
_SUMMARIES = re.compile(r"[|\[]\s*train\s*[|\]](?=.*num_updates)")
# words before the name of a step that do not change its meaning
_PLAIN_WORDS = frozenset(
    {"completed", "train", "training", "current", "finished", "at", "after", "in", "info", "debug", "warning"}
    | {"epoch", "done", "on", "this", "global", "log", "logging", "now", "the"}
)
_LEVELS = frozenset({"INFO", "DEBUG", "WARNING", "WARN", "ERROR"})
_MOST_SEEN = 200
_MARKED_LENGTH = 50_000  # characters at the end of a text
_MOST_PATTERNS = 8
_MOST_PATTERNS_EVER = 40  # compiling one takes as long as reading ten lines
_VALUE = rf"(?:{NUMBER})%?|(?i:{LOST})(?![A-Za-z0-9_])"
_ANY_NUMBER = r"[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?"


def read_text(text: str, is_relevant: Callable[[str], bool]) -> Table | None:
    """Read names with numbers; None if no line has a loss.

    A row begins at a line with a step. Lines after it with a deeper indent belong to it. If no line with a step has a
    loss, each line with a loss is a row, or belongs to the step before.
    """
    reader = _TextReader(is_relevant, _clean_lines(text), has_inner_rows="train_inner" in text)
    reader.read_lines()
    return reader.finish(text)


def position_in_text(text: str) -> list[tuple[str, str]]:
    """Step and epoch in the words before a dict."""
    pairs = [(_plain_name(match["name"]), match["number"]) for match in _PAIR.finditer(text) if match["name"]]
    return [(name, number) for name, number in pairs if is_step(name) or is_epoch(name)]


def _clean_lines(text: str) -> list[str]:
    """Lines without colours; a line that was written over is several lines."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if "\b" in text:
        text = re.sub("\b+", "\n", text)
    if _SHORT_LOSS.search(text):
        text = _SHORT_STEP.sub("step:", _SHORT_LOSS.sub(r"step:\1 train_loss:", text))
    return name_numbers(text)


@cache
def _plain_name(name: str) -> str:
    """Name without words that do not change its meaning: "completed step" is a step, "loss is" a loss."""
    words = name.strip().split(" ")
    while len(words) > 1 and words[-1].lower() in ("is", "was", "of", "at"):
        words.pop()
    while len(words) > 1 and words[0] in _LEVELS:
        words.pop(0)
    plain = " ".join(words)
    if is_step(plain) or is_epoch(plain):
        return plain
    for start in range(1, len(words)):
        ending = " ".join(words[start:])
        if (is_step(ending) or is_epoch(ending)) and all(word.lower() in _PLAIN_WORDS for word in words[:start]):
            return ending
    return plain


@cache
def _kind(name: str) -> str:
    if is_step(name):
        return "step"
    if is_epoch(name):
        return "epoch"
    return "loss" if is_loss(name) and not EVALUATION_WORDS & set(normalize(name).split("_")) else ""


@dataclass(frozen=True)
class _Pairs:
    """Names with numbers in a line: plain names, numbers, places and totals, and what kinds of names there are."""

    names: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    totals: tuple[tuple[str, int], ...] = ()
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Pattern:
    """Lines that differ in their numbers only: an expression whose groups are the numbers with a meaning."""

    expression: re.Pattern[str]
    names: tuple[str, ...]
    totals: tuple[tuple[str, int], ...]
    is_left_out: bool


_Row = tuple[tuple[str, ...], tuple[str, ...]]  # names and numbers


class _TextReader:
    """Rows of a text, line by line."""

    def __init__(self, is_relevant: Callable[[str], bool], lines: Sequence[str], *, has_inner_rows: bool) -> None:
        self.lines = lines
        self._is_relevant = is_relevant
        self._has_inner_rows = has_inner_rows
        self._relevance: dict[str, str] = {}  # name in the text: plain name, empty if it cannot be used
        self._seen: dict[str, None] = {}
        self._spellings: dict[str, str] = {}  # by normalized name
        self._patterns: list[_Pattern] = []  # the last one that fitted first
        self._patterns_left = _MOST_PATTERNS_EVER
        self._with_step: list[_Row] = []
        self._without_step: list[tuple[int, _Row]] = []  # and how many rows with a step come before
        self._totals: dict[str, int] = {}
        self._epoch: tuple[str, str] | None = None
        self._row_line: str | None = None  # line of the last row, to which lines with a deeper indent belong
        self._is_keras = False

    def read_lines(self) -> None:
        """Read all lines."""
        add_row = self._with_step.append
        for line in self.lines:
            for pattern in self._patterns:
                if match := pattern.expression.fullmatch(line):
                    if pattern.is_left_out:
                        self._row_line = None
                    else:
                        add_row((pattern.names, match.groups()))
                        self._row_line = line
                    break
            else:
                self._read_other_line(line)

    def _read_other_line(self, line: str) -> None:
        """Read a line that no pattern fits."""
        pairs = self._find_pairs(line)
        indent = _indent(line)
        is_part = self._row_line is not None and _indent(self._row_line) < indent
        if not pairs.names:
            if line and not indent:
                self._row_line = None
            return
        row = (pairs.names, pairs.numbers)
        has_loss, has_step = "loss" in pairs.kinds, "step" in pairs.kinds
        is_left_out = has_loss and self._is_left_out(line)
        if has_step and not is_part:
            self._add_pattern(line, pairs, is_left_out=is_left_out)
        if is_left_out:
            self._row_line = None
            return
        self._totals.update(pairs.totals)
        if has_loss and (bar := _KERAS_BAR.match(line)):
            self._is_keras = True
            if bar[1] == bar[2]:
                self._add_loose(row)
        elif has_step and not is_part:
            self._with_step.append(self._with_epoch(row))
            self._row_line = line
        elif is_part:
            self._with_step[-1] = _join(self._with_step[-1], row)
        elif has_loss:
            self._add_loose(_join(row, _first_numbers(line)))
        elif "epoch" in pairs.kinds:
            self._epoch = next(pair for pair in zip(*row, strict=True) if _kind(pair[0]) == "epoch")
            self._row_line = None
            # patterns know no epoch of another line
            self._patterns, self._patterns_left = [], 0

    def _add_loose(self, row: _Row) -> None:
        self._without_step.append((len(self._with_step), self._with_epoch(row)))

    def _with_epoch(self, row: _Row) -> _Row:
        return row if self._epoch is None else _join(row, ((self._epoch[0],), (self._epoch[1],)))

    def _find_pairs(self, line: str) -> _Pairs:
        numbers: dict[str, str] = {}
        totals: dict[str, int] = {}
        kinds = set()
        for name, number, total, inner, length in _PAIR.findall(line):
            plain = self._plain_name(name) if name else POSITION
            if not plain or plain in numbers:
                continue
            numbers[plain] = number or inner
            kinds.add(_kind(plain))
            if total or length:
                totals[plain] = int(total or length)
        # a bar without numbers
        if tuple(numbers) == (POSITION,):
            return _Pairs()
        return _Pairs(tuple(numbers), tuple(numbers.values()), tuple(totals.items()), frozenset(kinds))

    def _plain_name(self, name: str) -> str:
        """Name without words that change nothing, empty if it cannot be used."""
        if name not in self._relevance:
            plain = _plain_name(name)
            # names that differ in capitals are one column
            plain = self._spellings.setdefault(normalize(plain), plain)
            if len(self._seen) < _MOST_SEEN:
                self._seen[plain] = None
            self._relevance[name] = plain if self._is_relevant(plain) else ""
        return self._relevance[name]

    def _is_left_out(self, line: str) -> bool:
        """Whether a word before the loss says that the line is about other data or a whole epoch."""
        if self._has_inner_rows and _SUMMARIES.search(line):
            return True
        lower = line.lower()
        if not any(word in lower for word in ("val", "test", "dev", "cv")):
            return False
        mark = _EVALUATION.search(line)
        return mark is not None and mark.start() < lower.find("loss")

    def _add_pattern(self, line: str, pairs: _Pairs, *, is_left_out: bool) -> None:
        """Add the pattern of a line, with which the next lines of its kind are read faster."""
        if not self._patterns_left:
            return
        self._patterns_left -= 1
        parts, names, end = [], [], 0
        for match in _PAIR.finditer(line):
            plain = self._plain_name(match["name"]) if match["name"] else POSITION
            if not plain or plain in names:
                continue
            start, stop = match.span("number" if match["name"] else "inner")
            name_start, name_stop = match.span("name") if match["name"] else (start, start)
            parts += [
                _between(line[end:name_start]),
                _literal(line[name_start:name_stop]),
                _between(line[name_stop:start]),
            ]
            parts.append(f"({_VALUE})" if match["name"] else r"(\d+)")
            names.append(plain)
            end = stop
        parts.append(_between(line[end:]))
        # a line of this kind has the same totals
        pattern = _Pattern(re.compile("".join(parts)), tuple(names), pairs.totals, is_left_out)
        self._patterns = [pattern, *self._patterns[: _MOST_PATTERNS - 1]]

    def finish(self, text: str) -> Table | None:
        """Columns of the rows with a loss."""
        remarks: list[str] = []
        with_step = sum(_has_loss(names) for names, _ in self._with_step)
        without_step = [row for _, row in self._without_step]
        rows = self._with_step
        if not with_step and self._steps_lead():
            rows = self._join_to_steps()
        elif len(without_step) > with_step:
            rows = without_step
        elif without_step:
            lines = "1 line" if len(without_step) == 1 else f"{len(without_step)} lines"
            remarks.append(f"{lines} with a loss but without a step are left out.")
        if not any(_has_loss(names) for names, _ in rows):
            return None
        if not text.endswith(("\n", "\r")) and len(rows) > 2 and len(rows[-1][0]) < len(rows[-2][0]):
            rows = rows[:-1]
            remarks.append("The last line is incomplete and was skipped.")
        collector = RowCollector(lambda name: True)
        for names, numbers in rows:
            collector.add(names, numbers)
        columns = _join_step_columns(collector.finish())
        if _SHORT_LOSS.search(text):
            columns = {_SHORT_NAMES.get(name, name): cells for name, cells in columns.items()}
        marks = [name for name, mark in _MARKS.items() if mark.search(text[-_MARKED_LENGTH:])]
        return Table(
            columns,
            "text",
            "output of Keras" if self._is_keras else "text log",
            remarks,
            names_seen=[*self._seen, *marks],
            rows_are_epochs=self._is_keras and rows is not self._with_step,
            totals=self._totals,
        )

    def _steps_lead(self) -> bool:
        """Whether lines with a step come before most lines with a loss, one for each."""
        before = {count for count, _ in self._without_step if count}
        return 2 * len(before) > len(self._without_step)

    def _join_to_steps(self) -> list[_Row]:
        rows = list(self._with_step)
        for count, row in self._without_step:
            if count:
                rows[count - 1] = _join(rows[count - 1], row)
        return rows


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _join(row: _Row, other: _Row) -> _Row:
    """Add the numbers of another row that the first one lacks."""
    numbers = {**dict(zip(*other, strict=True)), **dict(zip(*row, strict=True))}
    return tuple(numbers), tuple(numbers.values())


def _join_step_columns(columns: dict[str, Cells]) -> dict[str, Cells]:
    """Join columns of steps if lines of different kinds print the same steps, each with a name of its own.

    Rows of the other lines get their step in the column that has a loss in the most rows.
    """
    counters = [name for name in columns if is_step(name) and set(normalize(name).split("_")) <= _COUNTER_WORDS]
    losses = [name for name in columns if _kind(name) == "loss"]
    if len(counters) < 2 or not losses:
        return columns
    with_loss = [
        any(row) for row in zip(*([cell is not None for cell in columns[name]] for name in losses), strict=True)
    ]
    counts = {
        name: sum(cell is not None and has_loss for cell, has_loss in zip(columns[name], with_loss, strict=True))
        for name in counters
    }
    main = max(counters, key=counts.__getitem__)
    # columns in the same lines with the same steps
    same = [name for name in counters if _are_equal(columns[main], columns[name])]
    joined = columns[main]
    for name in counters:
        if name not in same and _repeats_steps(columns, main, name, losses):
            joined = [step if step is not None else other for step, other in zip(joined, columns[name], strict=True)]
    return {name: joined if name in same else cells for name, cells in columns.items()}


def _are_equal(steps: Cells, others: Cells) -> bool:
    """Whether two columns of steps are in the same lines at least once, and equal there."""
    pairs = [(step, other) for step, other in zip(steps, others, strict=True) if None not in (step, other)]
    return bool(pairs) and all(step == other for step, other in pairs)


def _repeats_steps(columns: Mapping[str, Cells], main: str, name: str, losses: Sequence[str]) -> bool:
    """Whether other lines have the same steps under another name, and no other loss under the same name."""
    rows, other_rows = (
        {str(cell): row for row, cell in enumerate(columns[key]) if cell is not None} for key in (main, name)
    )
    if set(rows.values()) & set(other_rows.values()):
        return False
    common = rows.keys() & other_rows.keys()
    if len(common) < _SHARE_REPEATED * max(len(rows), len(other_rows)):
        return False
    for loss in losses:
        cells = columns[loss]
        pairs = [(to_number(cells[rows[step]]), to_number(cells[other_rows[step]])) for step in common]
        if any(abs(first - second) > _LOSS_TOLERANCE * abs(first) for first, second in pairs):
            return False
    return True


def _first_numbers(line: str) -> _Row:
    """Step, or epoch and step, from the numbers at the start of a line."""
    start = line.lstrip()
    if both := _EPOCH_AND_STEP.match(start):
        return ("epoch", POSITION), (both[1], both[2])
    first = _FIRST.match(start)
    return ((_FIRST_NUMBER,), (first[1],)) if first else ((), ())


def _literal(text: str) -> str:
    """Expression for a text whose blanks may vary."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


def _between(text: str) -> str:
    """Expression for the text between two pairs, in which blanks and numbers may vary."""
    parts = re.split(r"(\s*[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?\s*|\s+)", text)
    return "".join(
        re.escape(part) if order % 2 == 0 else (r"\s*" + _ANY_NUMBER + r"\s*" if part.strip() else r"\s*")
        for order, part in enumerate(parts)
    )


@cache
def _has_loss(names: tuple[str, ...]) -> bool:
    return any(_kind(name) == "loss" for name in names)
