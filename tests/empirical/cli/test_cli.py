import concurrent.futures
import dataclasses
import io
import json
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import empirical
import simulate
import theory
from empirical.cli.application import name_options
from empirical.cli.main import app, run_command_line
from empirical.cli.training import announce_cost
from empirical.config import CHOICES, RunConfig
from empirical.presets import PAPER_EXPERIMENTS
from empirical.reports.comparison import compare_run
from empirical.studies.claims import CLAIMS
from empirical.studies.paper_figures import all_figures
from simulate._files import write_json
from simulate.trajectories.folder import STATUS, count_steps

COMMANDS = ["predict", "simulate", "train", "sweep", "calibrate", "validate", "diagnose", "claims"]
COMMANDS += ["figures", "paper", "report", "explore", "transfer"]


def bnwd(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def one_line_error(result, *words):
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("bnwd: ")
    assert all(word in line for word in words), line
    return True


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_every_encoding_of_the_output_will_do(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    with pytest.raises(SystemExit) as ended:
        run_command_line(["predict", "--lr", "0.5", "--wd", "0.01", "--grad-norm", "1"])
    sys.stdout.flush()
    assert ended.value.code == 0
    # click writes UTF-8 where the encoding is ASCII
    letter = "\\u03c1" if encoding in ("cp1252", "latin-1") else "ρ"
    assert f"equilibrium norm {letter}*".encode() in written.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = bnwd(command, "--help")
    assert result.exit_code == 0
    assert f"Example: bnwd {command}" in result.output


@pytest.mark.parametrize("command", [[], *([command] for command in sorted(get_command(app).commands))], ids=str)
def test_h_is_short_for_help(command):
    short, long = bnwd(*command, "-h"), bnwd(*command, "--help")
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output
    assert "-h, --help" in short.output


def test_every_command_is_tested():
    assert set(get_command(app).commands) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_accepted(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = " ".join(bnwd(command, "--help").output.partition("Example: bnwd ")[2].split()).split(", or bnwd ")
    for example in examples:
        name, *arguments = example.split()
        assert name == command
        # other tests run the slow commands
        parsed = get_command(app).commands[command].make_context(command, list(arguments))
        assert parsed.args == []
        if command in ("predict", "simulate"):
            assert bnwd(*example.split()).exit_code == 0


def test_transfer_prints_the_rule_and_names_options():
    arguments = ("transfer", "--lr", 3e-4, "--wd", 0.1, "--optimizer", "AdamW")
    values = json.loads(bnwd(*arguments, "--batch-size", 128, 512, "--json").stdout)
    after = theory.transfer(3e-4, 0.1, batch_size=(128, 512), optimizer="AdamW")
    assert (values["lr"], values["wd"], values["rule"]) == after
    assert values["memory_before"] / values["memory_after"] == pytest.approx(4, rel=1e-3)
    assert "not kept" in values["period"]
    assert "0.0006" in bnwd(*arguments, "--batch-size", 128, 512).output
    for options, words in (
        ([], "one of batch_size, samples and width"),
        (["--samples", 1, 0], "--samples must be"),
        (["--width", 1, 2, "--keep", "rotation"], "--keep must be"),
    ):
        result = bnwd(*arguments, *options)
        assert result.exit_code == 2
        assert words in result.output


def test_predict_says_why_a_period_is_undetermined(tmp_path):
    runs = [
        dataclasses.replace(run, norm_rise=run.norm_rise / 4, rises=tuple(rise / 4 for rise in run.rises))
        if run.intrinsic_lr > 0.005
        else run
        for run in simulate.PeriodModel.reference().calibration_runs
    ]
    dataclasses.replace(simulate.PeriodModel.reference(), calibration_runs=tuple(runs)).save(tmp_path / "model.json")
    output = bnwd("predict", "--lr", 0.5, "--wd", 0.01, "--period-model", tmp_path / "model.json").output
    assert "undetermined" in output
    assert "calibrate at 0.0045" in " ".join(output.split())


def test_predict_prints_the_numbers_of_theory():
    output = bnwd("predict", "--lr", 0.5, "--wd", 0.01, "--grad-norm", 12).output
    for value in (
        theory.equilibrium_norm(0.5, 0.01, 12.0),
        theory.equilibrium_effective_lr(0.5, 0.01, 12.0),
        theory.equilibrium_rotation(0.5, 0.01),
        theory.relaxation_time(0.5, 0.01),
        theory.angular_jump_norm(0.5, 0.01, 12.0, 0.1),
    ):
        assert f"{value:.6g}" in output


def test_predict_and_train_take_an_optimizer(tmp_path):
    rule, name = theory.SGD(momentum=0.9), "SGD(momentum=0.9)"
    output = bnwd("predict", "--lr", 0.05, "--wd", 0.01, "--optimizer", name).output
    assert f"{theory.equilibrium_norm(0.05, 0.01, optimizer=rule):.6g}" in output
    common = ("--lr", 0.05, "--wd", 0.01, "--width", 8, "--steps", 5)
    assert bnwd("train", *common, "--optimizer", name, "--out", tmp_path / "run").exit_code == 0
    assert simulate.load(tmp_path / "run").attrs["optimizer"] == name


def test_neither_help_nor_predict_loads_torch():
    code = f"""
import sys
from empirical.cli.main import app
from empirical.config import CHOICES, RunConfig
for command in {[[], *([command] for command in COMMANDS)]}:
    try:
        app([*command, "--help"])
    except SystemExit as end:
        assert not end.code
    loaded = {{"torch", "sympy", "scipy", "numba"}} & set(sys.modules)
    assert not loaded, (command, loaded)
app(["predict", "--lr", "0.5", "--wd", "0.01"], standalone_mode=False)
assert not {{"torch", "sympy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_predict_as_json_has_the_values_of_theory_and_the_reference_model():
    arguments = ("--lr", 0.5, "--wd", 0.01, "--grad-norm-range", 1, 30, "--norm", 9, "--sharpness", 50)
    values = json.loads(bnwd("predict", *arguments, "--period-model", "reference", "--json").stdout)
    bounds, model = theory.norm_bounds(0.5, 0.01, 1.0, 30.0), simulate.PeriodModel.reference()
    prediction = model.predict(0.5, 0.01)
    assert values == {
        "lr": 0.5,
        "wd": 0.01,
        "optimizer": "SGD()",
        "equilibrium_norm": theory.equilibrium_norm(0.5, 0.01),
        "equilibrium_effective_lr": theory.equilibrium_effective_lr(0.5, 0.01),
        "equilibrium_rotation": theory.equilibrium_rotation(0.5, 0.01),
        "relaxation_time": theory.relaxation_time(0.5, 0.01),
        "free_decay": 1 / theory.free_decay(0.5, 0.01),
        "angular_jump_norm": theory.angular_jump_norm(0.5, 0.01, 1.0, 0.1),
        "norm_lower": bounds.lower,
        "norm_upper": bounds.upper,
        "angular_jumps": theory.angular_jump_regime(0.5, 0.01, 1.0, 30.0, 0.1),
        "angular_jump_earliest": theory.steps_to_angular_jump(9.0, 0.5, 0.01, 1.0, 30.0, 0.1).earliest,
        "angular_jump_latest": None,
        "critical_norm": theory.critical_norm(0.5, 50.0, wd=0.01),
        "period_verdict": prediction.verdict,
        "period": prediction.period,
        "period_lower": prediction.period_interval.lower,
        "period_upper": prediction.period_interval.upper,
        "period_network": "convnet, digits",
        "period_calibrated": "yes",
        "grad_norm": 1.0,
    }


def test_predict_speaks_of_a_network_and_a_gradient_only_if_they_are_given():
    common = ("predict", "--lr", 0.5, "--wd", 0.01)
    values = json.loads(bnwd(*common, "--json").stdout)
    assert (values["period_verdict"], values["grad_norm"]) == ("undetermined", 1.0)
    assert not {"period", "period_network"} & set(values)
    output = bnwd(*common).stdout
    assert "convnet" not in output
    assert "it depends on the network" in output
    assert "empirical.Monitor" in output
    assert "empirical.Monitor" not in bnwd(*common, "--grad-norm", 12).stdout
    # no number depends on the gradient
    assert "g̃ " not in bnwd("predict", "--lr", 1e-3, "--wd", 0.1, "--optimizer", "AdamW(dim=4096)").stdout.replace(
        "every g̃", ""
    )


@pytest.mark.parametrize(("lr", "wd"), [(0.5, 0.02), (0.3, 0.011), (0.1, 0.0037)])
def test_every_way_to_ask_gives_the_same_period(lr, wd):
    model = simulate.PeriodModel.reference()
    prediction = simulate.period(lr, wd)
    assert prediction == model.predict(lr, wd) == simulate.period(lr, wd, model=model)
    assert prediction.period == model.law.period(lr, wd)
    command = ("predict", "--lr", lr, "--wd", wd, "--period-model", "reference")
    printed = json.loads(bnwd(*command, "--json").stdout)
    ends = (prediction.period_interval.lower, prediction.period_interval.upper)
    assert printed["period"] == prediction.period
    assert (printed["period_lower"], printed["period_upper"]) == ends
    assert printed["period_verdict"] == prediction.verdict
    assert f"{prediction.period:.6g} steps" in bnwd(*command).stdout
    explored = simulate.explore(lr, wd, grad_norm_min=1.0, grad_norm_max=2.0, norm=1.0, steps=10)
    assert explored.values["period"] == prediction.period
    comparison = compare_run(simulate.oscillate(lr, wd, steps=round(40 / (lr * wd))), model)
    rows = {row.quantity: row.predicted for row in comparison.comparisons}
    assert rows["period, balance law"] == prediction.period
    assert comparison.prediction == str(prediction)


def test_predict_takes_a_period_model_and_marks_extrapolation(tmp_path):
    simulate.PeriodModel.reference().save(tmp_path / "own.json")
    output = bnwd("predict", "--lr", 0.5, "--wd", 5e-4, "--period-model", tmp_path / "own.json").stdout
    assert "own.json" in output
    line = next(line for line in output.splitlines() if "calibrated" in line)
    assert " no " in line


def test_predict_rejects_period_models_of_other_optimizers(tmp_path):
    content = json.loads(
        (Path(simulate.__file__).parent / "period_model" / "reference_model.json").read_text(encoding="utf-8")
    )
    run = json.loads(content["calibration_runs"][0]["run"])
    other = {**run, "optimizer": {"SGD": {"momentum": 0.9, "decoupled": True}}}
    for calibration_run in content["calibration_runs"]:
        calibration_run["run"] = json.dumps(other)
    content["optimizer"] = "SGD(momentum=0.9, decoupled=True)"
    write_json(tmp_path / "other.json", content)
    refused = bnwd("predict", "--lr", 0.5, "--wd", 0.01, "--period-model", tmp_path / "other.json")
    assert one_line_error(refused, "--period-model must be calibrated with plain SGD", "momentum=0.9")


def test_predict_leaves_out_a_period_beyond_the_law():
    values = json.loads(bnwd("predict", "--lr", 0.5, "--wd", 1.9, "--period-model", "reference", "--json").stdout)
    assert "equilibrium_norm" in values
    assert "period" not in values
    assert values["period_verdict"] == "undetermined"


@pytest.mark.parametrize("optimizer", ["SGD(momentum=0.9)", "AdamW(dim=100)", "Adam(dim=100)", "Lion(dim=100)"])
def test_predict_names_what_is_not_available(optimizer):
    values = json.loads(bnwd("predict", "--lr", 0.01, "--wd", 0.1, "--optimizer", optimizer, "--json").stdout)
    assert {"equilibrium_norm", "equilibrium_rotation"} <= set(values)
    assert values["optimizer"] == optimizer
    # steps of a fixed size have the effective learning rate η/ρ
    is_sgd = optimizer.startswith("SGD")
    name = "equilibrium_effective_lr" if is_sgd else "equilibrium_angular_lr"
    assert values[name] == pytest.approx(0.01 / values["equilibrium_norm"] ** (2 if is_sgd else 1))
    assert {"equilibrium_effective_lr", "equilibrium_angular_lr"} & set(values) == {name}
    assert not {"period", "angular_jump_norm"} & set(values)
    # that of heavy ball is exact: here the norm rings
    assert values["relaxation_time"] == pytest.approx(theory.relaxation_time(0.01, 0.1, optimizer=optimizer), rel=0.3)
    assert {"angular jumps", "periods"} <= set(values["not_known"].split(", "))
    assert ("free_decay" in values) == (optimizer != "Adam(dim=100)")
    refused = bnwd("predict", "--lr", 0.01, "--wd", 0.1, "--optimizer", optimizer, "--grad-norm-range", 1, 2)
    assert one_line_error(refused, "--grad-norm-range must be left out")
    refused = bnwd("predict", "--lr", 0.01, "--wd", 0.1, "--optimizer", optimizer, "--delta", 0.2)
    assert one_line_error(refused, "--delta must be left out")


def test_predict_names_the_gradients_and_prints_never():
    lines = bnwd("predict", "--lr", 0.5, "--wd", 0.01, "--grad-norm", 3).stdout.splitlines()
    notes = {line.split("  ")[0]: line.rsplit("  ", 1)[1] for line in lines if line.startswith("equilibrium")}
    assert notes["equilibrium norm ρ*"] == notes["equilibrium effective lr η/ρ*²"] == "for g̃ = 3"
    assert notes["equilibrium rotation θ*"] == "for every g̃"
    adam = bnwd("predict", "--lr", 0.01, "--wd", 0.1, "--optimizer", "AdamW(dim=100)").stdout.splitlines()
    assert adam[0].split() == ["optimizer", "AdamW(dim=100)"]
    assert "assumed" in lines[0]
    assert adam[1].endswith("for every g̃, if gradients are independent in time")
    lines = bnwd("predict", "--lr", 0.5, "--wd", 0).stdout.splitlines()
    assert next(line for line in lines if line.startswith("relaxation")).split()[2] == "never"


def test_momentum_is_part_of_the_optimizer():
    assert one_line_error(bnwd("predict", "--lr", 0.1, "--wd", 0.1, "--momentum", 0.9), '"SGD(momentum=0.9)"')
    # control: a command without an optimizer
    assert "SGD" not in bnwd("report", "run", "--momentum", 0.9).stderr


def test_predict_if_a_step_reverses_the_weights():
    values = json.loads(bnwd("predict", "--lr", 3, "--wd", 0.5, "--json").stdout)
    assert values["equilibrium_norm"] == theory.equilibrium_norm(3.0, 0.5)
    assert "equilibrium_rotation" not in values


def test_version():
    assert bnwd("--version").stdout == f"bnwd {theory.__version__}\n"


@pytest.mark.parametrize("command", [("explore",), ("calibrate",), ("report", "run.zarr")])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate.save(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=300), "run.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.iterdir())
    for out in ("folder", "file/below"):
        result = bnwd(*command, "--out", out)
        assert result.exit_code == 2, result.output
        assert "must be a file" in result.stderr
        assert sorted(tmp_path.iterdir()) == before


class TestSettingsFile:
    def run(self, folder, text, *arguments):
        (folder / "bnwd.toml").write_text(text, encoding="utf-8")
        return bnwd("--config", folder / "bnwd.toml", *arguments)

    def test_options_of_the_command_line_come_first(self, tmp_path):
        text = '[predict]\nlr = 0.5\nwd = 0.01\ngrad-norm = 4.0\noptimizer = "SGD(momentum=0.5)"\njson = true\n'
        values = json.loads(self.run(tmp_path, text, "predict", "--wd", 0.02).stdout)
        rule = theory.SGD(momentum=0.5)
        assert values["equilibrium_norm"] == theory.equilibrium_norm(0.5, 0.02, 4.0, optimizer=rule)

    def test_a_run_from_a_file(self, tmp_path):
        text = "[train]\nlr = 0.5\nwd = 0.02\nwidth = 8\nsteps = 20\nscale_invariant = false\n[predict]\nlr = 1\n"
        assert self.run(tmp_path, text, "train", "--out", tmp_path / "run").exit_code == 0
        config = json.loads(simulate.load(tmp_path / "run").attrs["config"])
        assert (config["lr"], config["width"], config["scale_invariant"]) == (0.5, 8, False)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[trian]\nlr = 1\n", ("config must be one of", "train", "trian")),
            ("[train]\nspeed = 1\n", ("config [train] must be one of", "wd", "speed")),
            ("train = 3\n", ("config must contain tables", "train = 3")),
            ("[train\n", ("config must be a TOML file",)),
            ('[train]\nlr = "fast"\nwd = 1\n', ("--lr must be a valid number, got 'fast' in", "bnwd.toml")),
            ("[train]\nlr = [0.1]\nwd = 1\n", ("--lr", "[0.1]", "bnwd.toml")),
        ],
    )
    def test_unknown_names_and_values_are_rejected(self, text, words, tmp_path):
        assert one_line_error(self.run(tmp_path, text, "train", "--out", tmp_path / "run"), *words)
        assert not (tmp_path / "run").exists()

    def test_a_missing_file_is_rejected(self, tmp_path):
        assert one_line_error(
            bnwd("--config", tmp_path / "no.toml", "predict"), "config must be a TOML file", "no.toml"
        )


def test_the_shell_completes_commands_and_options():
    def complete(words):
        request = {"_BNWD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        return CliRunner().invoke(app, [], env=request, prog_name="bnwd").output

    assert complete("bnwd pre").split() == ["predict"]
    for name, choices in CHOICES.items():
        assert complete(f"bnwd train --{name.replace('_', '-')} ").split() == list(choices)
    assert complete("bnwd calibrate --model c").split() == ["convnet"]
    assert complete("bnwd figures --name p").split() == ["phase-picture", "periods"]
    assert complete("bnwd figures --format ").split() == ["pdf", "svg", "png"]
    assert "momentum" in complete("bnwd claims --name mo").split()
    assert "mlp64" in complete("bnwd validate --held-out --network mlp6").split()
    assert "--grad-norm" in complete("bnwd predict --gr").split()


def test_train_has_an_option_for_every_setting():
    options = {option.name: option for option in get_command(app).commands["train"].params}
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    assert set(options) == {*fields, "out"}
    text = " ".join(bnwd("train", "--help").output.split())
    for name, field in fields.items():
        option = options[name]
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert option.required == (field.default is field.default_factory is dataclasses.MISSING)
        if field.default is not dataclasses.MISSING:
            assert option.default == field.default
        # one sentence, as in the documentation
        assert re.match(r"\w.{10,250}\.", option.help), name
        assert option.help[:30] in text
    assert options["optimizer"].default == "SGD()"


def test_every_setting_can_be_given_as_an_option(tmp_path):
    update = {"lr": 0.4, "wd": 0.02, "optimizer": theory.SGD(momentum=0.5)}
    network = {"model": "convnet", "width": 4, "depth": 2, "normalization": "layer", "norm_eps": 1e-8}
    weights = {"scale_invariant": False, "other_lr": 0.1, "other_wd": 0.0, "fixed": "effective_lr", "init_norm": 2.0}
    head = {"seeded_head": True}
    data = {"dataset": "random_labels", "classes": (3, 1), "samples": 90, "validation": 0.1, "label_noise": 0.2}
    batches = {"dataset_seed": 1, "batch_size": 30, "sampling": "with_replacement", "micro_batch": 15}
    execution = {"steps": 3, "seed": 2, "data_seed": 4, "dtype": "float64", "engine": "eager", "replicas": 2}
    evaluation = {"evaluate_every": 2, "evaluation_samples": 40, "evaluate_batches": True}
    config = RunConfig(**update, **network, **weights, **head, **data, **batches, **execution, **evaluation)
    # augmentation excludes replicas, and the pixel constants are for images of three colours
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}
    assert changed == {f.name for f in dataclasses.fields(config)} - {"augmentation", "device", "pixel_constants"}
    arguments = ["--augmentation", 1, "--replicas", 1]
    for name in changed - {"replicas", "classes"}:
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        arguments += [flag] if value is True else [flag.replace("--", "--no-", 1)] if value is False else [flag, value]
    arguments += ["--classes", 3, "--classes", 1]
    result = bnwd("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    stored = RunConfig.from_dict(json.loads(simulate.load(tmp_path / "run").attrs["config"]))
    assert stored == dataclasses.replace(config, augmentation=1, replicas=1)


def test_simulate_saves_a_trajectory(tmp_path):
    out = tmp_path / "decay.zarr"
    arguments = ("simulate", "--lr", 0.5, "--wd", 0.01, "--grad-norm", 2, "--norm", 3, "--steps", 50, "--out", out)
    result = bnwd(*arguments)
    assert result.exit_code == 0
    assert simulate.load(out).identical(simulate.norm_map(0.5, 0.01, 2.0, norm=3.0, steps=50, seed=0))
    assert one_line_error(bnwd(*arguments), "--out must not exist", "decay.zarr")


def test_simulate_keeps_some_rows_and_reports_missing_memory(tmp_path, monkeypatch):
    out = tmp_path / "decay.zarr"
    arguments = ("simulate", "--lr", 0.5, "--wd", 0.01, "--norm", 3, "--steps", 50, "--out", out)
    assert bnwd(*arguments, "--record-every", 10).exit_code == 0
    assert simulate.load(out).step.values.tolist() == [0, 10, 20, 30, 40]

    def too_large(*_, **__):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("simulate.norm_map", too_large)
    result = bnwd(*arguments[:-2])
    assert result.exit_code == 1
    assert result.stderr == "bnwd: not enough memory (Unable to allocate 1 TiB); use fewer steps, rows or samples\n"


def test_train_prints_the_result(tmp_path):
    out = tmp_path / "run"
    result = bnwd("train", "--lr", 0.5, "--wd", 0.02, "--width", 8, "--steps", 200, "--out", out)
    assert result.exit_code == 0, result.output
    assert "complete after 200 steps" in result.output
    assert simulate.load(out).sizes["step"] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "--lr", 0, "--wd", 0.01), ("lr must be", "> 0", "0.0")),
        (("predict", "--lr", 0.5, "--wd", -1), ("wd must be", ">= 0", "-1.0")),
        (("predict", "--lr", 10, "--wd", 1), ("lr * wd must be < 2", "10")),
        (("predict", "--lr", "nan", "--wd", 1), ("lr must be", "nan")),
        (("predict", "--lr", "fast", "--wd", 1), ("--lr must be a valid number, got 'fast'; see bnwd predict --help",)),
        (("predict", "--lr=1", "--wd=fast"), ("--wd", "'fast'")),
        (("predict", "--lr", 1, "--wd", 1, "--grad-norm-range", 1, "x"), ("--grad-norm-range", "'1 x'")),
        (("train", "--lr", 1, "--wd", 1, "--out", "run", "--steps", 1.5), ("--steps must be a valid integer", "'1.5'")),
        (("predict", "--lr", 1), ("'--wd'", "see bnwd predict --help")),
        (("predict", "--speed", 1), ("--speed", "see bnwd predict --help")),
        (
            ("predict", "--lr", 1, "--wd", 0.1, "--period-model", "no.json"),
            ("--period-model must be a saved period model", "no.json"),
        ),
        (("report", "file", "--period-model", "no.json"), ("--period-model must be", "no.json")),
        (("paper",), ("EXPERIMENT must be",)),
        (("paper", "figure-7"), ("EXPERIMENT must be one of", "figure-2", "'figure-7'")),
        (("paper", "figure-2", "--network", "mlp"), ("--network must be one of", "'mlp'")),
        (("paper", "figure-2", "--full", "--width", "8"), ("--width", "--full")),
        (("paper", "subset", "--samples", "500"), ("samples must be", "500")),
        (("claims", "--name", "luck"), ("--name must be one of", "momentum", "'luck'")),
        (("claims", "--fast", "--name", "momentum"), ("--name must select at least one",)),
        (("figures", "--name", "cake"), ("--name must be one of", "norm", "'cake'")),
        (("figures", "--format", "gif"), ("--format must be one of", "svg", "'gif'")),
        (("figures", "--out", "file/figures"), ("out must be a folder", "file/figures")),
        (("validate", "--network", "mlp64"), ("--network", "--held-out")),
        (("validate", "--held-out", "--network", "mlp1"), ("--network must be one of", "mlp64", "'mlp1'")),
        (("diagnose", "no.csv"), ("log must exist", "no.csv")),
        (("diagnose", "file", "--picture", "no/where.png"), ("--picture must be a file", "no/where.png")),
        (("simulate", "--lr", 0.5, "--wd", 0.01, "--norm", -3), ("norm must be", "-3")),
        (("train", "--lr", 0.5, "--wd", 0.01, "--out", "run", "--model", "vgg"), ("model must be one of", "vgg")),
        (("train", "--lr", 0.5, "--wd", 0.01, "--out", "run", "--dataset", "faces"), ("dataset must be", "faces")),
        (("train", "--lr", 0.5, "--wd", 0.01, "--out", "file/run"), ("out must be a folder", "file/run")),
        (("validate", "--preset", "moon"), ("preset must be one of", "moon")),
        (("validate", "--out", "."), ("out must be a new or empty folder", ".")),
        (("validate", "--out", "file"), ("out must be", "file")),
        (("predict", "--lr", 1, "--wd", 0.1, "--optimizer", "SGD(momentun=0.9)"), ("setting of SGD", "momentum")),
        (("predict", "--lr", 1, "--wd", 0.1, "--optimizer", "AdamW()"), ("optimizer needs dim", "AdamW(dim=4096)")),
        (("predict", "--lr", 0.5, "--wd", 0.01, "--optimizer", "Adagrad()"), ("optimizer must be", "Adagrad()")),
        (("sweep", "nothing.toml", "--out", "sweep"), ("file must be a TOML file", "nothing.toml")),
        (("sweep", "file", "--out", "sweep"), ("file:",)),
        (("calibrate", "--until", "periods=5", "--out", "model.json"), ("periods must be", "5")),
        (("calibrate", "--until", "stderr=0", "--out", "model.json"), ("until must be", "0")),
        (("calibrate", "--ratio", 1, "--out", "model.json"), ("ratio must be", "1")),
        (("forecast",), ("forecast",)),
    ],
)
def test_invalid_input_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    assert one_line_error(bnwd(*arguments), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", [(), ("--config", "file")], ids=str)
def test_without_a_command_it_prints_the_help(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = bnwd(*command)
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)
    assert "..." not in result.stdout.partition("Commands:")[2]


def test_options_are_named_in_place_of_arguments_whatever_the_error():
    with pytest.raises(ValueError, match=r"^--out must be new"), name_options(path="--out"):
        raise json.JSONDecodeError("path must be new", "{}", 0)
    with pytest.raises(TypeError, match=r"^name it with --column"), name_options(names="--column"):
        raise TypeError("name it with `names`")
    with pytest.raises(UnicodeDecodeError), name_options(path="--out"):
        b"\xff".decode()


def test_the_help_of_figures_names_them_all():
    text = " ".join(bnwd("figures", "--help").output.split())
    assert [figure.name for figure in all_figures() if figure.name not in text] == []


def test_paper_lists_all_experiments_with_their_costs():
    listed = bnwd("paper", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == list(PAPER_EXPERIMENTS)
    # the estimates of the original experiment are larger
    full = bnwd("paper", "--list", "--full").stdout
    row, full_row = (next(line for line in text.splitlines() if line.startswith("figure-2")) for text in (listed, full))
    assert row.split()[-1] == "min"
    assert full_row.split()[-1] in ("h", "days")


def test_claims_lists_all_claims_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = bnwd("claims", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [claim.name for claim in CLAIMS]
    fast = bnwd("claims", "--fast", "--list").stdout.splitlines()
    assert fast == [line for line in listed if line.split()[1] == "*"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_run_is_exit_code_2(tmp_path):
    common = ("--lr", 0.5, "--width", 8, "--steps", 5, "--out", tmp_path / "run")
    assert bnwd("train", "--wd", 0.01, *common).exit_code == 0
    assert one_line_error(bnwd("train", "--wd", 0.02, *common), "holds another", "wd=0.01 there, 0.02 here")


@pytest.fixture
def in_this_process(monkeypatch):
    """Train in a thread; the tests of `sweep` start processes."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        monkeypatch.setattr("empirical.dask_executor", lambda *, workers: executor)
        yield


def test_paper_trains_an_experiment_and_draws_it(in_this_process, tmp_path):
    size = ("--width", 1, "--samples", 128, "--epochs", 3)
    result = bnwd("paper", "wd", "--dataset", "digits", *size, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.count("too short (complete)") == 5
    assert "5 runs, about" in result.stderr
    page, image = tmp_path / "wd.md", tmp_path / "wd.png"
    text = page.read_text(encoding="utf-8")
    assert "# wd: period against the weight decay" in text
    assert "bnwd paper wd --network=convnet --dataset=digits --width=1 --samples=128 --epochs=3" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    # runs are reused
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("config.json")}
    assert len(before) == 5
    assert bnwd("paper", "wd", "--dataset", "digits", *size, "--out", tmp_path).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("config.json")}


@pytest.mark.usefixtures("in_this_process")
def test_calibrate_prints_measurements_and_predictions(tmp_path):
    common = ("--model", "mlp", "--width", 64, "--runs", tmp_path / "runs", "--intrinsic-lr", 0.02)
    result = bnwd("calibrate", *common, "--seeds", 1, "--until", "periods=12", "--out", tmp_path / "model.json")
    assert result.exit_code == 0, result.output
    model = simulate.PeriodModel.load(tmp_path / "model.json")
    lines = result.output.splitlines()
    measured, predicted = lines[1 : lines.index("")], lines[lines.index("") + 2 :][:5]
    assert len(measured) == len(model.calibration_runs) >= 2
    for line, calibration_run in zip(measured, model.calibration_runs, strict=True):
        assert calibration_run.verdict in line
        assert f" {calibration_run.count} " in line
    for line, wd in zip(predicted, (0.04, 0.02, 0.008, 0.004, 0.002), strict=True):
        prediction = model.predict(0.5, wd)
        assert line.startswith(f"{0.5 * wd:.3g} ")
        assert prediction.verdict in line
        has_period = f"{prediction.period:.4g}" in line.split()
        assert has_period == (prediction.verdict == "periodic"), "a number only where the period is clear"


@pytest.mark.usefixtures("in_this_process")
def test_calibrate_reports_a_network_at_equilibrium(tmp_path):
    common = ("--width", 4, "--until", "periods=10", "--seeds", 1, "--intrinsic-lr", 0.05)
    result = bnwd("calibrate", *common, "--out", tmp_path / "model.json")
    assert result.exit_code == 0, result.output
    assert result.output.count("equilibrium") > 6
    assert "no reduced model: its calibration runs show no clear period" in result.output
    with pytest.raises(ValueError, match="at least 10 periods at the lowest"):
        simulate.PeriodModel.load(tmp_path / "model.json").law.period(0.5, 0.01)


def test_a_failed_run_of_a_sweep_is_exit_code_1_and_divergence_is_none(tmp_path):
    two = "[run]\nwd = 0.0\nwidth = 8\nsteps = 30\nnormalization = 'none'\nscale_invariant = false\n"
    two += "[[runs]]\nlr = 0.3\n[[runs]]\nlr = 1e30\n"
    three = two + "[[runs]]\nlr = 0.1\nmodel = 'no_such_module:build'\n"

    def sweep(text):
        (tmp_path / "sweep.toml").write_text(text)
        return bnwd("sweep", tmp_path / "sweep.toml", "--out", tmp_path / "sweep", "--workers", 1, "--no-traces")

    failed = sweep(three)
    assert failed.exit_code == 1
    assert "no_such_module" in failed.stderr
    assert all(words in failed.output for words in ("1 complete", "1 diverged", "1 failed"))
    # the other runs are stored, so nothing is trained
    diverged = sweep(two)
    assert (diverged.exit_code, "1 diverged" in diverged.output) == (0, True)
    assert [line.split()[:3] for line in diverged.output.splitlines()[:3]] == [
        ["lr", "status", "status_step"],
        ["0.3", "complete", "30"],
        ["1e+30", "diverged", "1"],
    ]


@pytest.fixture
def sweep_file(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text("[run]\nwd = 0.02\nwidth = 8\nsteps = 30\n[grid]\nlr = [0.3, 0.5]\n")
    return file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--until", "0.05"), ("--until must have the form name=number", "0.05")),
        (("--until", "mean=0.05"), ("--until must be stderr=", "mean=0.05")),
        (("--until", "periods=0"), ("periods must be", "0")),
        (("--until", "stderr=-1"), ("until must be", "-1")),
        (("--max-steps", 50), ("--max-steps must be None without until or periods",)),
        (("--resource", "GPU"), ("--resource must have the form",)),
        (("--resource", "GPU=1"), ("resources must be None without a scheduler",)),
        (("--workers", 0), ("workers must be", "0")),
        (("--scheduler", "nowhere.json"), ("scheduler must be an address", "nowhere.json")),
        (("--threads", 0), ("threads must be", "0")),
    ],
)
def test_invalid_options_of_a_sweep_start_nothing(tmp_path, sweep_file, options, words):
    assert one_line_error(bnwd("sweep", sweep_file, "--out", tmp_path / "sweep", *options), *words)
    assert not (tmp_path / "sweep").exists()


def test_ctrl_c_keeps_the_trajectory_and_prints_its_folder(tmp_path):
    out = tmp_path / "run"
    command = "from empirical.cli.main import run_command_line; run_command_line()"
    arguments = ["train", "--lr", "0.5", "--wd", "0.01", "--width", "8", "--steps", "100000", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True)
    while count_steps(out) < 200 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in message
    assert message.strip().splitlines()[-1].startswith("bnwd: interrupted after ")
    assert str(out) in message
    assert simulate.load(out).sizes["step"] == json.loads((out / STATUS).read_text())["status_step"] >= 200


def test_a_long_run_announces_its_cost(tmp_path, capsys):
    config = RunConfig(lr=0.5, wd=0.01, width=8, steps=20)
    empirical.train(config, tmp_path / "short", announce=announce_cost)
    assert not capsys.readouterr().err
    empirical.train(config, tmp_path / "long", announce=partial(announce_cost, longer_than=0))
    assert re.search(r"bnwd: this run takes about .* (s|min|h), at most .*B of disk", capsys.readouterr().err)


def test_a_full_disk_is_a_one_line_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        result = bnwd("train", "--lr", 0.5, "--wd", 0.01, "--width", 8, "--steps", 900, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("bnwd: File too large while writing")
    assert "can be resumed" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["paper", "--list"], ["predict", "--lr", "0.5", "--wd", "0.01"]])
def test_a_closed_pipe_ends_the_command_quietly(arguments):
    """As in `bnwd … | head`: the reader is gone before the first line."""
    script = f"from empirical.cli.main import run_command_line; run_command_line({arguments!r})"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        command.stdout.close()
        message = command.stderr.read()
    assert (command.returncode, message) == (0, "")
