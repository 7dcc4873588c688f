"""What the pages of the documentation say is done here; things of one's own that must be refused are refused."""

import json
import re

import pytest

import empirical
import theory
from empirical.cli.main import run_command_line
from tests.pages import ROOT, blocks, run_page

# tests/test_readme.py runs the blocks of getting started
PAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md") if path.stem != "getting_started")


def test_there_is_a_page_for_each():
    own = [page.stem for page in PAGES if page.stem.startswith("add_")]
    assert own == ["add_a_data_set", "add_a_model", "add_a_normalization", "add_an_optimizer"]
    assert all(len(blocks(page)) >= 2 for page in PAGES if page.stem in own)


# Lightning about PyTorch 2.13, and about data that are in memory already
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    run_page(page, tmp_path, monkeypatch, capsys)


def module(tmp_path, monkeypatch, name, text):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("field", ["model", "normalization", "dataset"])
@pytest.mark.parametrize("reference", ["no_such_module:name", "math:no_such_name"])
def test_a_reference_to_nothing_is_refused_before_anything_is_written(field, reference, tmp_path):
    config = empirical.RunConfig(lr=0.1, wd=0.01, **{field: reference})
    with pytest.raises(ValueError, match=rf"{field} .*{reference}.*PYTHONPATH"):
        empirical.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["model", "normalization", "dataset"])
@pytest.mark.parametrize("reference", ["math:pi", "platform:node"])
def test_a_reference_to_something_else_is_refused(field, reference, tmp_path):
    config = empirical.RunConfig(lr=0.1, wd=0.01, **{field: reference})
    with pytest.raises((TypeError, ValueError)):
        empirical.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimizer_must_be_found_again():
    class Local(theory.SGD):
        pass

    with pytest.raises(ValueError, match=r"optimizer .*top level"):
        empirical.RunConfig(lr=0.1, wd=0.01, optimizer=Local())
    for text in ("math:sqrt()", "decimal:Decimal()", "no_such_module:SGD()"):
        with pytest.raises(ValueError, match=r"optimizer .*" + re.escape(text.partition("(")[0])):
            theory.optimizers.check_optimizer(text)


def test_other_code_under_the_same_name_is_another_run(tmp_path, monkeypatch):
    text = "from torch import nn\ndef build(make, shape, classes, width={}):\n    return nn.Sequential(nn.Flatten(), "
    text += "make.linear(64, width), make.normalizing(width), nn.ReLU(), make.head(width, classes))\n"
    config = empirical.RunConfig(lr=0.1, wd=0.01, steps=5, model="changing:build")
    module(tmp_path, monkeypatch, "changing", text.format(8))
    empirical.train(config, tmp_path / "run")
    import changing

    monkeypatch.setattr(changing.build, "__defaults__", (9,))
    with pytest.raises(ValueError, match="other data"):
        empirical.train(config, tmp_path / "run")


def test_the_command_line_finds_what_lies_in_the_current_folder(tmp_path, monkeypatch, capsys):
    (text,) = (block for block in blocks("docs/add_an_optimizer.md") if block.startswith("# my_optimizers.py"))
    (tmp_path / "my_sign.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    rule = ["--lr", "0.001", "--wd", "0.5", "--optimizer", "my_sign:SignDescent(dim=300)"]
    with pytest.raises(SystemExit, match="0"):
        run_command_line(["predict", *rule])
    assert "0.547791" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        run_command_line(["train", *rule, "--width", "8", "--steps", "5", "--out", "run"])
    again = empirical.resume(tmp_path / "run")
    # with the number of weights that it measured
    assert again.attrs["optimizer"] == "my_sign:SignDescent(dim=576)"


def test_the_options_in_a_file_are_those_of_the_commands(tmp_path, monkeypatch, capsys):
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bnwd.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        run_command_line(["--config", "bnwd.toml", "predict"])
    assert "7.75082" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        run_command_line(["--config", "bnwd.toml", "train", "--wd", "0.02", "--steps", "5"])
    config = json.loads(empirical.resume(tmp_path / "runs/b").attrs["config"])
    assert [config[name] for name in ("lr", "wd", "model", "steps")] == [0.5, 0.02, "convnet", 5]
