"""Check the language of the project: `python docs/check_language.py` prints words to avoid and sentence lengths.

The rules are those of docs/glossary.md. Checked are Markdown and notebooks outside code, and docstrings, comments and
messages of Python files.
"""

from __future__ import annotations

import io
import keyword
import math
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("theory", "simulate", "empirical")
MEAN_WORDS, PERCENTILE_WORDS = 18, 30

# pattern of a word that is not used in this meaning: what is used in its place
FORBIDDEN = {
    r"\bprob(e|es|ed|ing)\b": "calibration run, calibrate, period model",
    r"\btrials?\b": "study, test",
    r"\b(at|to|of|from|in|no|and|or|on|where|how|this) rest(s|ed|ing)?\b(?! of)|\brests\b|\bresting\b": "equilibrium",
    r"\bling(ers?|ered|ering)\b|\bquiet(er|ly)?\b": "equilibrium",
    r"\b(a|the|each|every|next|last|first|between|before|after|of|in|such|no) breaks?\b": "destabilization",
    r"\bswings?\b|\bswinging\b": "oscillates, periodic",
    r"(?<!angular )\bjump(s|ed|ing)?\b": "angular jump, destabilization or norm rise",
    r"\b(a|the|each|every|free|of|in|during|long|last|next|whole|this|that|its) falls?\b": "decay phase, decay",
    r"\b(segments?)\b": "calibration run",
    r"(?<!learning )\brates\b": "learning rates; lr and wd",
    r"\bintrinsic rates?\b": "intrinsic learning rate",
    r"\btold\b|\btells?\b|\btelling\b": "say, show, report",
    r"\blets? expect\b|\bnot to be said\b|\bsays? (no|nothing)\b": "predicts; undetermined",
    r"\bblind(ly)?\b": "held-out",
    r"\bfloors?\b|\bstaircases?\b|\bdoors?\b|\brooms?\b": "package, lower bound; no metaphors",
    r"\bheld against\b|\bhold(s)? .{0,40} against\b": "compared with",
}
# names that do not say what they hold, and parts of names that are words for something else
FORBIDDEN_NAMES = {"each", "found", "held", "judged", "k", "known", "made", "seen", "told", "wanted"}
# by file, `k`: the number of eigenvalues, as in SciPy; everywhere, the function of NumPy and math
ALLOWED_NAMES = {"curvature": ("k",)}
LIBRARY_NAMES = ("floor",)
FORBIDDEN_PARTS = {"break", "breaks", "fall", "falls", "floor", "jump", "jumps", "probe", "rest", "rests", "segment"}
FORBIDDEN_PARTS |= {"swing", "swings", "trial", "trials"}
# the few places where such a word has its ordinary meaning
ALLOWED = (
    r"fall[- ]?back",
    r"false[- ]positive rates",
)


def names_to_avoid(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each forbidden name of a Python file, and its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        allowed = (*ALLOWED_NAMES.get(path.stem, ()), *LIBRARY_NAMES)
        if token.type != tokenize.NAME or token.string in allowed or keyword.iskeyword(token.string):
            continue
        if token.string in FORBIDDEN_NAMES or has_forbidden_part(token.string):
            yield token.string, token.start[0]


def has_forbidden_part(name: str) -> bool:
    """Whether a name contains a word for something else, such as `jump` without `angular`."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("angular_jump", "").split("_")
    return not FORBIDDEN_PARTS.isdisjoint(parts)


def words_to_avoid(text: str) -> Iterator[tuple[str, str]]:
    """Yield each forbidden word of a text with its context, and what to use in its place."""
    for pattern in ALLOWED:
        text = re.sub(pattern, "", text, flags=re.IGNORECASE)
    for pattern, instead in FORBIDDEN.items():
        for match in re.finditer(pattern, text, flags=re.IGNORECASE):
            start, end = max(match.start() - 30, 0), match.end() + 20
            yield " ".join(text[start:end].split()), instead


def prose_of_markdown(text: str) -> str:
    """Text of a page without code, formulas, tables' rules, links' targets and HTML."""
    text = re.sub(r"^---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1[^\n]*$", "", text)
    text = re.sub(r"\$\$.*?\$\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$", "x", text)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>", "", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`\n]+`", "x", text)


def sentences(prose: str) -> Iterator[str]:
    """Yield the sentences of the paragraphs and list items of a page; headings and tables have none."""
    blocks: list[str] = []
    for line in prose.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "|")):
            blocks.append("")
        elif re.match(r"([-*+]|\d+\.) ", stripped):
            blocks += ["", re.sub(r"^([-*+]|\d+\.) ", "", stripped)]
        elif blocks and blocks[-1]:
            blocks[-1] += " " + stripped
        else:
            blocks.append(stripped)
    for block in blocks:
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9*\"“(x])", block):
            if len(re.findall(r"\w+", sentence)) >= 3:
                yield sentence


def sentence_lengths(path: Path) -> list[int]:
    """Number of words of each sentence of a page."""
    prose = prose_of_markdown(path.read_text(encoding="utf-8"))
    return [len(re.findall(r"[\w’'.\-–]*\w", sentence)) for sentence in sentences(prose)]


def length_statistics(path: Path) -> tuple[int, float, int]:
    """Count, mean and 90th percentile of the lengths of the sentences of a page, in words; zeros without sentences."""
    lengths = sorted(sentence_lengths(path))
    if not lengths:
        return 0, 0.0, 0
    return len(lengths), sum(lengths) / len(lengths), lengths[math.ceil(0.9 * len(lengths)) - 1]


def pages() -> list[Path]:
    """README and the pages of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_files() -> list[Path]:
    """Python files whose text people read."""
    folders = (*PACKAGES, "tests", "benchmarks", "notebooks", "docs")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    # these two name the words
    return sorted(path for path in files if path.name not in ("check_language.py", "test_language.py"))


def prose_of_python(path: Path) -> str:
    """Docstrings, comments and messages of a file, without the code in docstrings."""
    parts = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            parts.append(token.string)
        elif token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)) and " " in token.string:
            text = re.sub(r"(?m)^\s*(>>>|\.\.\.) .*$", "", token.string)
            parts.append(re.sub(r"`[^`\n]+`|\{[^{}]*\}", "x", text))
    return "\n".join(parts)


def prose(path: Path) -> str:
    """Text of a page or Python file that people read."""
    return prose_of_python(path) if path.suffix == ".py" else prose_of_markdown(path.read_text(encoding="utf-8"))


def files_with_checked_names() -> list[Path]:
    """Python files whose local names are checked: all but tests and the files of the site."""
    return [path for path in python_files() if path.relative_to(ROOT).parts[0] not in ("tests", "docs")]


def main() -> int:
    """Print every page with the lengths of its sentences, then every word and name to avoid; 1 if there is any."""
    print(f"{'page':<44}{'sentences':>10}{'mean':>7}{'90 %':>6}   words, at most {MEAN_WORDS} and {PERCENTILE_WORDS}")
    problems = 0
    for path in pages():
        count, mean, percentile = length_statistics(path)
        too_long = mean > MEAN_WORDS or percentile > PERCENTILE_WORDS
        problems += too_long
        note = "   too long" if too_long else ""
        print(f"{path.relative_to(ROOT)!s:<44}{count:>10}{mean:>7.1f}{percentile:>6}{note}")
    for path in [*pages(), *python_files()]:
        for context, instead in words_to_avoid(prose(path)):
            problems += 1
            print(f"{path.relative_to(ROOT)}: “{context}”, instead: {instead}")
    for path in files_with_checked_names():
        for name, line in names_to_avoid(path):
            problems += 1
            print(f"{path.relative_to(ROOT)}:{line}: the name {name} does not say what it holds")
    print(f"{problems} problems")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
