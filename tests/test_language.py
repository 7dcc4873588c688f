"""The rules of docs/glossary.md: words, names, and the length of sentences; docs/check_language.py applies them."""

import ast
import importlib.util
import inspect
import re
from collections import defaultdict

import pytest

import empirical
import simulate
import theory
from simulate.trajectories.contract import VARIABLES
from tests.pages import ROOT

SPEC = importlib.util.spec_from_file_location("check_language", ROOT / "docs/check_language.py")
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)
PACKAGES = {"theory": theory, "simulate": simulate, "simulate.plots": simulate.plots, "empirical": empirical}


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", check.pages(), ids=relative)
def test_sentences_are_short(page):
    _, mean, percentile = check.length_statistics(page)
    assert mean <= check.MEAN_WORDS
    assert percentile <= check.PERCENTILE_WORDS


@pytest.mark.parametrize("path", [*check.pages(), *check.python_files()], ids=relative)
def test_no_word_is_used_in_a_meaning_that_has_another_one(path):
    assert list(check.words_to_avoid(check.prose(path))) == []


def test_names_say_what_they_hold():
    by_file = {relative(path): list(check.names_to_avoid(path)) for path in check.files_with_checked_names()}
    assert {path: names for path, names in by_file.items() if names} == {}


def test_the_check_finds_what_it_looks_for(tmp_path):
    for sentence in (
        "A probe shows it.",
        "The norm is at rest.",
        "No jump comes.",
        "The next break is near.",
        "It swings.",
    ):
        assert list(check.words_to_avoid(sentence)), sentence
    for sentence in (
        "No angular jump comes.",
        "The norm falls.",
        "The rest of the steps.",
        "This breaks the invariance.",
    ):
        assert not list(check.words_to_avoid(sentence)), sentence
    module = tmp_path / "module.py"
    module.write_text(
        '"""First at rest.\n\n>>> jump = 1\n"""\nfound = "no jump here"  # a trial\nleast_fall = angular_jump = 1\n',
        encoding="utf-8",
    )
    words = [context for context, _ in check.words_to_avoid(check.prose_of_python(module))]
    assert len(words) == 3
    assert [name for name, _ in check.names_to_avoid(module)] == ["found", "least_fall"]
    page = tmp_path / "page.md"
    page.write_text(
        "# No sentence\n\nOne two three. Word " + "word " * 39 + "end.\n\n```\ncode is none\n```\n", encoding="utf-8"
    )
    assert check.sentence_lengths(page) == [3, 41]
    assert check.length_statistics(page) == (2, 22.0, 41)


def test_public_names_use_the_words_of_the_glossary():
    names = {f"{package}.{name}" for package, module in PACKAGES.items() for name in module.__all__}
    for package, module in PACKAGES.items():
        for name in module.__all__:
            thing = getattr(module, name)
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if inspect.isfunction(thing) or (inspect.isclass(thing) and not is_error):
                names |= {f"{package}.{name}({parameter})" for parameter in inspect.signature(thing).parameters}
            if inspect.isclass(thing):
                names |= {f"{package}.{name}.{member}" for member in vars(thing) if not member.startswith("_")}
    assert [name for name in sorted(names) if any(map(check.has_forbidden_part, re.split(r"[.()]", name)))] == []
    assert check.has_forbidden_part("jump_norm")
    assert check.has_forbidden_part("SegmentProbe")
    assert not check.has_forbidden_part("angular_jump_norm")


def test_names_of_the_glossary_exist():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    names = {name for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    public = {name for module in PACKAGES.values() for name in module.__all__}
    parameters = {
        *inspect.signature(theory.angular_jump_norm).parameters,
        *inspect.signature(simulate.find_periods).parameters,
    }
    assert names - public - parameters - set(VARIABLES) == {"intrinsic_lr"}
    assert "intrinsic_lr" in inspect.signature(empirical.calibrate).parameters
    assert len(names) > 20


def test_no_public_looking_name_of_a_module_exists_twice():
    places = defaultdict(list)
    for package in check.PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(ROOT).parts):
                continue
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = [
                    name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)
                ]
                names += [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
                for name in names:
                    if not name.startswith("_"):
                        places[name].append(relative(path))
    assert {name: paths for name, paths in places.items() if len(set(paths)) > 1} == {}
