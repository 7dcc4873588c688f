"""What is released: wheel and source archive hold what they must and nothing else, and work once installed."""

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import theory

ROOT = Path(__file__).parents[1]
PACKAGES = ("theory", "simulate", "empirical")
RELEASED = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
RELEASED += ("CONTRIBUTING.md", "SECURITY.md", "Makefile", "conftest.py", "constraints.txt")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source archive, built from a copy so that nothing is left in the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in (*PACKAGES, "docs", "tests", "benchmarks", "notebooks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in RELEASED:
        shutil.copy(ROOT / name, tree / name)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree], tree)
    return {"wheel": next(out.glob("*.whl")), "archive": next(out.glob("*.tar.gz"))}


def run(command, folder):
    """Run a command as a user would, away from this repository, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def source_files():
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_has_the_packages_and_nothing_else(built):
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    about = f"bnwd-{theory.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == source_files()
    assert {f"{name}/py.typed" for name in PACKAGES} <= names
    assert f"{about}licenses/LICENSE" in names


def test_the_source_archive_has_what_tests_and_site_need(built):
    with tarfile.open(built["archive"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert source_files() | set(RELEASED) <= names
    assert {"docs/conf.py", "docs/slurm/sweep.sbatch", "tests/pages.py", "notebooks/01_theory.ipynb"} <= names
    assert not {name for name in names if "__pycache__" in name or name.endswith(".pyc")}


def test_the_metadata_say_what_setup_and_readme_say(built):
    wheel = zipfile.ZipFile(built["wheel"])
    about = email.message_from_bytes(wheel.read(f"bnwd-{theory.__version__}.dist-info/METADATA"))
    assert (about["Name"], about["Version"]) == ("bnwd", theory.__version__)
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Description-Content-Type"] == "text/markdown"
    described = about.get_payload(decode=True).decode()
    assert described.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def supported():
    lines = SETUP["metadata"]["classifiers"].splitlines()
    return sorted(int(found[1]) for line in lines if (found := re.fullmatch(r".* :: Python :: 3\.(\d+)", line)))


def test_all_places_name_the_same_pythons():
    oldest, newest = supported()[0], supported()[-1]
    assert supported() == list(range(oldest, newest + 1))
    assert SETUP["options"]["python_requires"] == f">=3.{oldest}"
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert matrix == [f"3.{oldest}", f"3.{newest}"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["ruff"]["target-version"] == f"py3{oldest}"
    assert f"sys.version_info >= (3, {oldest})" in (ROOT / "Makefile").read_text(encoding="utf-8")
    limits = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    assert all(f"3.{minor}" in limits for minor in supported())


def test_the_workflow_knows_targets_of_the_makefile_only():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"make test", "make docs", "make dist"} <= set(commands)
    assert {command.removeprefix("make ") for command in commands} <= set(targets)


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return [canonicalize_name(line.partition("==")[0]) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)]


def test_pins_are_sorted_and_exact():
    assert len(pins()) == len((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    assert pins() == sorted(set(pins()))


def test_all_that_an_installation_needs_is_pinned():
    extras = [name for name in SETUP["options.extras_require"] if name not in ("lightning", "slurm", "tracking")]
    open_, seen = [("bnwd", extra) for extra in ("", *extras)], set()
    while open_:
        name, extra = open_.pop()
        seen.add((name, extra))
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                found = {(canonicalize_name(needed.name), wanted) for wanted in ("", *needed.extras)}
                open_ += sorted(found - seen)
                seen |= found
    # PyTorch pins the parts of its CUDA build itself
    own = {name for name, _ in seen if not re.match("nvidia-|cuda-|triton", name)}
    assert own - {"bnwd"} - set(pins()) == set()


USER = """\
from pathlib import Path

import empirical
import simulate
import theory

rest: float = theory.equilibrium_norm(0.5, 0.01, 12.0)
bounds: theory.Bounds = theory.norm_bounds(0.5, 0.01, 1.0, 30.0)
model: simulate.PeriodModel = simulate.PeriodModel.reference()
verdict: str = model.predict(0.5, 0.01).verdict
config: empirical.RunConfig = empirical.RunConfig(lr=0.5, wd=0.01, steps=20)
for package in (theory, simulate, empirical):
    print(Path(package.__file__ or "").parent)
print(simulate.period(0.5, 0.01).period > 0, verdict, rest > 0, bounds.lower > 0, config.steps)
"""


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["wheel", "archive"])
def test_it_works_where_it_is_installed(kind, built, tmp_path):
    run([sys.executable, "-m", "venv", "--without-pip", "own"], tmp_path)
    python = tmp_path / "own/bin/python"
    packages = next((tmp_path / "own/lib").glob("python*/site-packages"))
    # sees the packages that this one depends on, but no editable installation of itself: no .pth is read there
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, built[kind]], tmp_path)

    command = tmp_path / "own/bin/bnwd"
    assert "Usage: bnwd" in run([command, "--help"], tmp_path)
    assert "7.75" in run([command, "predict", "--lr", "0.5", "--wd", "0.01", "--grad-norm", "12"], tmp_path)
    run([command, "train", "--lr", "0.5", "--wd", "0.01", "--width", "8", "--steps", "20", "--out", "run"], tmp_path)
    loaded = "import simulate; print(simulate.load('run').sizes['step'])"
    assert run([python, "-c", loaded], tmp_path).strip() == "20"

    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    *places, printed = run([python, "user.py"], tmp_path).splitlines()
    assert places == [str(packages / name) for name in PACKAGES]
    assert printed == "True periodic True True 20"
    assert "Success" in run([python, "-m", "mypy", "--strict", "user.py"], tmp_path)
