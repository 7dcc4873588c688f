"""Folders and files may name any code. Reading them imports and runs none of it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import empirical
import simulate
from empirical import RunConfig
from empirical.sweeps.store import SweepFolder
from simulate._files import write_json
from simulate.trajectories.setting import Setting
from theory.optimizers import check_optimizer, optimizer_class
from theory.references import loaded_class
from theory.rules import ShortRepr

TRAP = "trap_module_of_a_folder:Trap"
HARMFUL = [TRAP, "os:system", "subprocess:Popen", "builtins:exec", "pathlib:Path"]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Module that leaves a mark when it is imported."""
    mark = tmp_path / "executed"
    (tmp_path / "trap_module_of_a_folder.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_module_of_a_folder", raising=False)
    return mark


@pytest.fixture
def folder(tmp_path):
    """Folder of a short run."""
    empirical.train(RunConfig(lr=0.5, wd=0.01, width=4, steps=30), tmp_path / "run", progress=False)
    return tmp_path / "run"


def name_code(folder: Path, setting: str, name: str) -> None:
    """Let a run folder name code."""
    content = json.loads((folder / "config.json").read_text())
    value = {name: {}} if setting == "optimizer" else name
    content["config"][setting] = value
    attributes = content.get("attributes", {})
    if setting == "optimizer":
        attributes["optimizer"] = f"{name}()"
    attributes["config"] = json.dumps(content["config"])
    write_json(folder / "config.json", content)


def read_everything(folder: Path) -> None:
    """Use all functions that read a folder; they may refuse it."""
    for read in (
        simulate.load,
        lambda path: empirical.write_run_report(path, path / "report.html"),
        lambda path: simulate.diagnose(simulate.load(path)),
        lambda path: simulate.classify(simulate.load(path), discard=0),
        empirical.load_model,
        empirical.resume,
        empirical.open_sweep,
        simulate.read_log,
    ):
        with contextlib.suppress(TypeError, ValueError):
            read(folder)


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("setting", ["optimizer", "model", "dataset", "normalization"])
def test_a_run_that_names_code_is_read_without_it(folder, trap, setting, name, monkeypatch):
    def forbidden(*arguments, **settings):
        raise AssertionError(f"called with {arguments}")

    monkeypatch.setattr("os.system", forbidden)
    name_code(folder, setting, name)
    read_everything(folder)
    assert not trap.exists()
    for function in (empirical.resume, empirical.load_model):
        with pytest.raises(ValueError, match=rf"^path must .*{name}.*trust=True"):
            function(folder)
    assert not trap.exists()


def test_with_trust_it_is_imported(folder, trap):
    name_code(folder, "model", TRAP)
    with pytest.raises(ValueError, match="model must be"):
        empirical.resume(folder, trust=True)
    assert trap.exists()


@pytest.mark.parametrize("name", HARMFUL)
def test_a_sweep_that_names_code_is_refused(tmp_path, trap, name):
    SweepFolder(tmp_path / "sweep").begin(empirical.grid(lr=[0.1, 0.5], wd=0.01))
    assert empirical.open_sweep(tmp_path / "sweep").sizes["lr"] == 2
    file = tmp_path / "sweep" / "sweep.json"
    content = json.loads(file.read_text())
    content["common"]["optimizer"] = {name: {}}
    write_json(file, content)
    with pytest.raises(ValueError, match=r"optimizer must be .* must not import code"):
        empirical.open_sweep(tmp_path / "sweep")
    assert not trap.exists()


def test_a_period_model_that_names_code_is_refused(tmp_path, trap):
    file = tmp_path / "model.json"
    simulate.PeriodModel.reference().save(file)
    content = json.loads(file.read_text())
    for name in HARMFUL:
        write_json(file, {**content, "optimizer": f"{name}()"})
        with pytest.raises(ValueError, match="optimizer must be"):
            simulate.PeriodModel.load(file)
    assert not trap.exists()


class Own(ShortRepr):
    """Optimizer of the caller's own process."""

    def update(self):
        pass

    def equilibrium_norm(self):
        pass


def test_classes_of_the_own_process_and_of_this_package_are_found():
    assert loaded_class(f"{__name__}:Own", ShortRepr) is Own
    assert optimizer_class(f"{__name__}:Own", trust=False) is Own
    assert optimizer_class("empirical.studies.claims:CorrectedSGD", trust=False).__name__ == "CorrectedSGD"
    for name in (*HARMFUL, f"{__name__}:read_everything", f"{__name__}:Nothing", "empirical.nothing:Nothing"):
        assert loaded_class(name, ShortRepr) is None
        with pytest.raises(ValueError, match="must not import code"):
            check_optimizer(f"{name}()", trust=False)


def test_a_log_that_names_an_unknown_optimizer_has_no_law(trap):
    run = simulate.norm_map(0.5, 0.01, 2.0, norm=2.0, steps=50).assign_attrs(optimizer=f"{TRAP}()")
    setting = Setting.of(run)
    assert setting.optimizer is None
    with pytest.raises(ValueError, match="must not import code"):
        setting.law()
    assert not trap.exists()
    np.testing.assert_array_equal(setting.constants(), (0.5, 0.01))


def test_the_fresh_process_of_the_command_imports_nothing(folder, trap):
    name_code(folder, "optimizer", TRAP)
    script = f"from empirical.cli.main import run_command_line; run_command_line(['report', {str(folder)!r}])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert not trap.exists()
