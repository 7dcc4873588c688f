"""Settings of all tests and doctests, made before anything is imported, and runs that several test modules share."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings

# The same examples in every run, and no limit of time: a busy machine is no failure.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
# Test processes run side by side, and the networks are tiny: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Decoded images are cached in a folder of the tests, never in the home of the user.
CACHE = tempfile.TemporaryDirectory(prefix="bnwd-tests-")
os.environ["BNWD_CACHE"] = CACHE.name

# The longest files begin first, so that the processes end together.
LONGEST = (
    "tests/test_notebooks",
    "tests/properties",
    "tests/empirical/studies",
    "tests/empirical/sweeps",
    "tests/test_",
)


def pytest_collection_modifyitems(items):
    """Sort the tests by file."""
    items.sort(
        key=lambda item: next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))
    )


@pytest.fixture(scope="session")
def figures_folder(tmp_path_factory):
    """Folder of the figures of the paper in their fast version, which one of the test processes trains and draws."""
    from filelock import FileLock

    from empirical import draw_figures

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, aside = shared / "figures", shared / "figures.partial"
    with FileLock(shared / "figures.lock"), ThreadPoolExecutor(1) as executor:
        if not folder.is_dir():
            draw_figures(aside, fast=True, formats=("pdf", "svg"), executor=executor, progress=False)
            aside.rename(folder)
    return folder
