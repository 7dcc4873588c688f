"""Tests lie where the code that they test lies."""

from tests.pages import ROOT

# these test several packages together
ACROSS_PACKAGES = {"tests", "tests/properties"}
CODE = [path.relative_to(ROOT) for name in ("theory", "simulate", "empirical") for path in (ROOT / name).rglob("*.py")]
TESTS = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]


def test_folders_of_tests_are_named_like_folders_of_code():
    folders = {f"tests/{path.parent.as_posix()}" for path in CODE}
    assert {path.parent.as_posix() for path in TESTS} - folders - ACROSS_PACKAGES == set()
    assert [path for path in TESTS if not (ROOT / path.parent / "__init__.py").is_file()] == []


def test_tests_named_like_one_module_of_a_package_lie_in_the_folder_of_its_name():
    folders = {}
    for path in CODE:
        folders.setdefault((path.parts[0], path.stem.lstrip("_")), []).append("tests" / path.parent)
    named = [(path, folders.get((path.parts[1], path.stem.removeprefix("test_")), ())) for path in TESTS]
    assert [path.as_posix() for path, there in named if len(there) == 1 and path.parent not in there] == []
    assert sum(len(there) == 1 for _, there in named) > 20
