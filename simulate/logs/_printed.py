"""Printed texts in which numbers do not follow their names: rewritten, so that each number follows its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from simulate.logs._cells import LOST, NUMBER, is_number
from simulate.logs._column_names import LOSS_COMPONENTS, is_epoch, is_loss, is_step, normalize

# "loss at step 10: 2.3" has the step before the loss
_LOSS_AT_STEP = re.compile(
    r"(?P<loss>\b(?:train(?:ing)? )?loss\b)(?: \([^()\n]*\))? (?:at|after|for|in) "
    r"(?P<step>step|iteration|iter|epoch|batch) "
    r"(?P<number>\d+)(?:/\d+)?\s*(?:[:=]|is\b)\s*(?=[+-]?[.\dni])",
    re.IGNORECASE,
)
# "2epoch:train:81-160batch:" has numbers before their names, of which the last one counts
_BEFORE_NAME = re.compile(r"\b(?:\d+-)?(\d+)(epoch|iter|step|batch|num_updates)(?::|(?= results:))")
# "Batch 4/200" may be a batch and their number, or an epoch and a batch of it
_WITH_SLASH = re.compile(r"\b(?P<name>batch|step|iter)(?P<between>:? )(?P<first>\d+)/(?P<second>\d+)\b", re.IGNORECASE)
_MOST_PLACES = 2000  # of these, from which their meaning is decided
# names over the numbers of the next lines, and the first of these numbers
_NAMES_ABOVE = re.compile(r"[ \t]*[A-Za-z_]\w*(?:[ \t]{2,}[A-Za-z_][\w/@.\-]*){2,}[ \t]*")
_FIRST_CELL = re.compile(r"\d+(?:/\d+)?")
# a line of a box, as of the loggers of OpenAI Baselines: | loss | 2.3 |
_BOX_LINE = re.compile(
    rf"\|\s*(?P<name>[A-Za-z_][\w/.\- ]*?)\s*\|\s*(?P<number>{NUMBER}|{LOST})\s*\|\s*$", re.IGNORECASE
)


def name_numbers(text: str) -> list[str]:
    r"""Return the lines of a text, in which each number follows its name.

    Examples
    --------
    >>> name_numbers("loss at step 10: 2.3")
    ['step 10 loss: 2.3']
    >>> name_numbers("2epoch:train:81-160batch: loss=2.3")
    ['epoch: 2, train:batch: 160,  loss=2.3']
    >>> name_numbers("Epoch  GPU_mem  box_loss  Size\n 3/50  6.1G  2.3  640: 100%")
    ['', 'Epoch: 3/50, GPU_mem: 6.1G, box_loss: 2.3, Size: 640']
    """
    if _LOSS_AT_STEP.search(text):
        text = _LOSS_AT_STEP.sub(r"\g<step> \g<number> \g<loss>: ", text)
    if _BEFORE_NAME.search(text):
        text = _BEFORE_NAME.sub(r"\2: \1, ", text)
    text = _name_epochs(text)
    lines = text.splitlines()
    if any(map(_NAMES_ABOVE.fullmatch, lines)):
        lines = _join_names_above(lines)
    return _join_boxes(lines) if any(map(_BOX_LINE.match, lines)) else lines


def _name_epochs(text: str) -> str:
    """Name the epochs in places such as "Batch 4/200", if the second number changes more often than the first one."""
    numbers: dict[str, tuple[set[str], set[str]]] = {}
    for match in islice(_WITH_SLASH.finditer(text), _MOST_PLACES):
        first, second = numbers.setdefault(match["name"], (set(), set()))
        first.add(match["first"])
        second.add(match["second"])
    within_epochs = {name for name, (first, second) in numbers.items() if len(second) > len(first)}
    if not within_epochs:
        return text

    def rewrite(match: re.Match[str]) -> str:
        name, between = match["name"], match["between"]
        is_within = name in within_epochs
        return f"epoch{between}{match['first']}, {name}{between}{match['second']}" if is_within else match[0]

    return _WITH_SLASH.sub(rewrite, text)


def _join_names_above(lines: Sequence[str]) -> list[str]:
    """Write names before the numbers in the lines below them; of lines for the same step the last one counts."""
    joined: list[str] = []
    names: Sequence[str] = ()
    last_cell = ""
    for line in lines:
        if _NAMES_ABOVE.fullmatch(line) and (above := _usual_names(line.split())):
            names, last_cell = above, ""
            joined.append("")
            continue
        cells = [cell.rstrip(":") for cell in line.split()[: len(names)]]
        if not names or not _are_cells(names, cells):
            joined.append(line)
            continue
        pairs = zip(names, cells, strict=True)
        row = ", ".join(f"{name}: {cell}" for name, cell in pairs if is_number(cell) or _FIRST_CELL.fullmatch(cell))
        # a bar of progress is written again and again
        if cells[0] == last_cell:
            joined[-1] = row
        else:
            joined.append(row)
        last_cell = cells[0]
    return joined


def _usual_names(names: Sequence[str]) -> Sequence[str]:
    """Names of a line with an epoch or a step and a loss, empty if it has none; parts of a loss are named as such."""
    if not (is_epoch(names[0]) or is_step(names[0])):
        return ()
    if not any(map(is_loss, names)):
        parts = LOSS_COMPONENTS | {"total"}
        names = [f"{name}_loss" if normalize(name) in parts else name for name in names]
    return names if any(map(is_loss, names)) else ()


def _are_cells(names: Sequence[str], cells: Sequence[str]) -> bool:
    """Whether these are the numbers of the names above, at least of the losses."""
    if len(cells) < len(names) or not _FIRST_CELL.fullmatch(cells[0]):
        return False
    return all(is_number(cell) for name, cell in zip(names, cells, strict=True) if is_loss(name))


def _join_boxes(lines: Sequence[str]) -> list[str]:
    """Join the lines of each box, which have one name and one number, to one line."""
    joined: list[str] = []
    box: list[str] = []
    for line in lines:
        if match := _BOX_LINE.match(line):
            box.append(f"{match['name'].strip()}: {match['number']}")
        elif not line.strip().startswith("|"):
            if box:
                joined.append(", ".join(box))
                box = []
            joined.append(line)
    return [*joined, ", ".join(box)]
