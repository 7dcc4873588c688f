"""Logs that a training printed: names with numbers in lines, such as "step 10 | loss 2.3"."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from simulate.logs._cells import LOST, NUMBER
from simulate.logs._column_names import EVALUATION_WORDS, is_epoch, is_loss, is_step, normalize
from simulate.logs._steps import POSITION
from simulate.logs._table import RowCollector, Table

# a name of up to seven words, a separator, a number, and its total; or a place such as [50/1000] without a name
_WORD = r"[A-Za-z_][\w@/.\-]*(?:\((?:train|ms|s|t|group\d*)\))?"
_PAIR = re.compile(
    rf"""(?<![\w.@])(?<![A-Za-z]/)(?P<name>{_WORD}(?:[ ](?:{_WORD}|\([a-z]+\))){{0,6}})["']?"""
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
    rf"(?<![\w/.\-])(?:val|valid|validation|validating|test|testing|eval|evaluation|evaluating|dev)\b"
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
# a summary of an epoch, and rows of steps in the same log
_SUMMARIES = re.compile(r"[|\[]\s*train\s*[|\]](?=.*num_updates)")
# words before the name of a step that do not change its meaning
_PLAIN_WORDS = frozenset(
    {"completed", "train", "training", "current", "finished", "at", "after", "in", "info", "debug", "warning"}
    | {"epoch", "done", "on", "this", "global", "log", "logging", "now", "the"}
)
_LEVELS = frozenset({"INFO", "DEBUG", "WARNING", "WARN", "ERROR"})
_MOST_SEEN = 200


def read_text(text: str, is_relevant: Callable[[str], bool]) -> Table | None:
    """Read names with numbers; None if no line has a loss.

    A row begins at a line with a step. Lines after it that are indented and have no step belong to it. If no line with a
    step has a loss, each line with a loss is a row, or belongs to the step before.
    """
    reader = _TextReader(is_relevant, _clean_lines(text), has_inner_rows="train_inner" in text)
    for line in reader.lines:
        reader.read_line(line)
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
    return text.splitlines()


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
        rest = " ".join(words[start:])
        if (is_step(rest) or is_epoch(rest)) and all(word.lower() in _PLAIN_WORDS for word in words[:start]):
            return rest
    return plain


@cache
def _kind(name: str) -> str:
    if is_step(name):
        return "step"
    if is_epoch(name):
        return "epoch"
    return "loss" if is_loss(name) and not EVALUATION_WORDS & set(normalize(name).split("_")) else ""


class _TextReader:
    """Rows of a text, line by line."""

    def __init__(self, is_relevant: Callable[[str], bool], lines: Sequence[str], *, has_inner_rows: bool) -> None:
        self.lines = lines
        self._has_inner_rows = has_inner_rows
        self._is_relevant = is_relevant
        self._relevance: dict[str, str] = {}  # name in the text: plain name, empty if it cannot be used
        self._seen: dict[str, None] = {}
        self._spellings: dict[str, str] = {}  # by normalized name
        self._with_step: list[dict[str, str]] = []
        self._without_step: list[tuple[int, dict[str, str]]] = []  # and how many rows with a step come before
        self._totals: dict[str, int] = {}
        self._epoch: tuple[str, str] | None = None
        self._row: dict[str, str] | None = None  # to which lines with a deeper indent belong
        self._indent = 0
        self._is_keras = False

    def read_line(self, line: str) -> None:
        """Read one line."""
        totals: dict[str, int] = {}
        pairs, has_step, has_epoch, has_loss = self._read_pairs(line, totals)
        if not pairs:
            if not line.startswith((" ", "\t")):
                self._row = None
            return
        if has_loss and (self._is_evaluation(line) or (self._has_inner_rows and _SUMMARIES.search(line))):
            self._row = None
            return
        self._totals.update(totals)
        bar = _KERAS_BAR.match(line) if has_loss else None
        if bar is not None:
            self._is_keras = True
            if bar[1] == bar[2]:
                pairs.pop(POSITION, None)
                self._add_loose(pairs)
            return
        indent = len(line) - len(line.lstrip())
        belongs_to_row = self._row is not None and indent > self._indent
        if has_step and not belongs_to_row:
            if self._epoch is not None and not has_epoch:
                pairs.setdefault(*self._epoch)
            self._with_step.append(pairs)
            self._row, self._indent = pairs, indent
        elif self._row is not None and belongs_to_row:
            for name, number in pairs.items():
                self._row.setdefault(name, number)
        elif has_loss:
            self._add_first_number(line, pairs)
            self._add_loose(pairs)
        elif has_epoch:
            self._epoch = next((name, number) for name, number in pairs.items() if _kind(name) == "epoch")
            self._row = None

    def _add_loose(self, pairs: dict[str, str]) -> None:
        if self._epoch is not None:
            pairs.setdefault(*self._epoch)
        self._without_step.append((len(self._with_step), pairs))

    def _add_first_number(self, line: str, pairs: dict[str, str]) -> None:
        if both := _EPOCH_AND_STEP.match(line.lstrip()):
            pairs.setdefault("epoch", both[1])
            pairs.setdefault(POSITION, both[2])
        elif first := _FIRST.match(line.lstrip()):
            pairs.setdefault(_FIRST_NUMBER, first[1])

    def _read_pairs(self, line: str, totals: dict[str, int]) -> tuple[dict[str, str], bool, bool, bool]:
        pairs: dict[str, str] = {}
        has_step = has_epoch = has_loss = False
        for name, number, total, inner, length in _PAIR.findall(line):
            if not name:
                if POSITION not in pairs:
                    pairs[POSITION] = inner
                    totals[POSITION] = int(length)
                    has_step = True
                continue
            plain = self._relevance.get(name)
            if plain is None:
                plain = self._classify(name)
            if not plain or plain in pairs:
                continue
            pairs[plain] = number
            kind = _kind(plain)
            if kind == "step":
                has_step = True
                if total:
                    totals[plain] = int(total)
            elif kind == "epoch":
                has_epoch = True
            elif kind == "loss":
                has_loss = True
        if has_step and len(pairs) == 1 and POSITION in pairs:
            # a bar without numbers
            return {}, False, False, False
        return pairs, has_step, has_epoch, has_loss

    def _classify(self, name: str) -> str:
        plain = _plain_name(name)
        # names that differ in capitals are one column
        plain = self._spellings.setdefault(normalize(plain), plain)
        if len(self._seen) < _MOST_SEEN:
            self._seen[plain] = None
        self._relevance[name] = plain if self._is_relevant(plain) else ""
        return self._relevance[name]

    @staticmethod
    def _is_evaluation(line: str) -> bool:
        """Whether a word before the loss says that the line is about other data."""
        mark = _EVALUATION.search(line)
        return mark is not None and mark.start() < line.lower().find("loss")

    def finish(self, text: str) -> Table | None:
        """Columns of the rows with a loss."""
        remarks: list[str] = []
        with_step = sum(map(_has_loss, self._with_step))
        without_step = [row for _, row in self._without_step]
        rows = self._with_step
        if not with_step and self._steps_lead():
            rows = self._join_to_steps()
        elif len(without_step) > with_step:
            rows = without_step
        elif without_step:
            lines = "1 line" if len(without_step) == 1 else f"{len(without_step)} lines"
            remarks.append(f"{lines} with a loss but without a step are left out.")
        if not any(map(_has_loss, rows)):
            return None
        if not text.endswith(("\n", "\r")) and len(rows) > 2 and len(rows[-1]) < len(rows[-2]):
            rows = rows[:-1]
            remarks.append("The last line is incomplete and was skipped.")
        collector = RowCollector(lambda name: True)
        for row in rows:
            collector.add(row.items())
        marks = [name for name, mark in _MARKS.items() if mark.search(text)]
        form = "output of Keras" if self._is_keras else "text log"
        return Table(
            collector.finish(),
            "text",
            form,
            remarks,
            names_seen=[*self._seen, *marks],
            rows_are_epochs=self._is_keras and rows is not self._with_step,
            totals=self._totals,
        )

    def _steps_lead(self) -> bool:
        """Whether lines with a step come before most lines with a loss, one for each."""
        before = {count for count, _ in self._without_step if count}
        return 2 * len(before) > len(self._without_step)

    def _join_to_steps(self) -> list[dict[str, str]]:
        rows = [dict(row) for row in self._with_step]
        for count, pairs in self._without_step:
            if count:
                rows[count - 1] = {**pairs, **rows[count - 1]}
        return rows


def _has_loss(row: dict[str, str]) -> bool:
    return any(_kind(name) == "loss" for name in row)
