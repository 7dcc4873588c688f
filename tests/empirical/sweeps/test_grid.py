import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from empirical import RunConfig
from empirical.sweeps.grid import check_different, grid, read_sweep, swept_settings

positive_values = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=4, unique=True)


@settings(deadline=None)
@given(lr=positive_values, wd=positive_values, seeds=st.integers(1, 4))
def test_a_grid_holds_every_combination_once_in_order(lr, wd, seeds):
    runs = grid(lr=lr, wd=wd, seed=range(seeds), model="convnet")
    assert [(run.lr, run.wd, run.seed) for run in runs] == list(itertools.product(lr, wd, range(seeds)))
    assert {run.model for run in runs} == {"convnet"}
    axes = {"lr": lr, "wd": wd, "seed": list(range(seeds))}
    assert swept_settings(runs) == {name: values for name, values in axes.items() if len(values) > 1}


def test_lists_are_axes_and_tuples_are_values():
    runs = grid(lr=np.array([0.1, 0.2]), wd=0.01, classes=(1, 2), optimizer=["SGD()", theory.SGD(momentum=0.9)])
    assert [type(run.lr) for run in runs] == [float] * 4
    assert {run.classes for run in runs} == {(1, 2)}
    assert swept_settings(runs) == {"lr": [0.1, 0.2], "optimizer": [theory.SGD(), theory.SGD(momentum=0.9)]}
    assert [run.classes for run in grid(lr=0.1, wd=0.01, classes=[(1, 2), (3, 4)])] == [(1, 2), (3, 4)]


def test_steps_and_defaults_do_not_count_as_different():
    assert swept_settings([RunConfig(lr=0.1, wd=0.01, steps=5), RunConfig(lr=0.2, wd=0.01, steps=9, width=64)]) == {
        "lr": [0.1, 0.2]
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": [], "wd": 0.01}, r"lr.*\[\]"),
        ({"lr": 0.1, "wd": 0.01, "speed": 1}, "speed"),
        ({"lr": [0.1, -0.1], "wd": 0.01}, r"lr.*-0\.1"),
        ({"lr": [0.1, 0.1], "wd": 0.01}, "different runs"),
        ({"lr": 0.1, "wd": 0.01, "width": [None, 64]}, "different runs"),
        ({"lr": 0.1, "wd": 0.01, "steps": [10, 20]}, "different runs"),
        ({"lr": 0.1, "wd": 0.01, "optimizer": "Sgd()"}, r"optimizer.*Sgd\(\)"),
    ],
)
def test_invalid_grids_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        grid(**settings)


@pytest.mark.parametrize(("configs", "kind"), [([], ValueError), ([{"lr": 0.1}], TypeError)])
def test_invalid_lists_are_rejected(configs, kind):
    with pytest.raises(kind, match="configs must hold"):
        check_different(configs)


def write_file(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_the_same_runs_as_keywords(tmp_path):
    path = write_file(
        tmp_path,
        """
        [run]
        model = "convnet"
        classes = [3, 8]
        optimizer = "SGD(momentum=0.5)"
        [grid]
        lr = [0.1, {Cosine = {lr = 0.5, lr_end = 0.1, steps = 50}}]
        wd = [0.01, 0.02]
        """,
    )
    rule = theory.SGD(momentum=0.5)
    lr = [0.1, theory.Cosine(0.5, 0.1, 50)]
    assert read_sweep(path) == grid(model="convnet", classes=(3, 8), optimizer=rule, lr=lr, wd=[0.01, 0.02])


def test_names_may_have_hyphens_as_on_the_command_line(tmp_path):
    text = "[run]\nwd = 0.01\nlr = 0.1\nbatch-size = 32\n[grid]\ndata-seed = [1, 2]\n"
    assert read_sweep(write_file(tmp_path, text)) == grid(wd=0.01, lr=0.1, batch_size=32, data_seed=[1, 2])
    text = "[run]\nwd = 0.01\nlr = 0.1\n[[runs]]\ndata-seed = 1\n[[runs]]\ndata_seed = 2\n"
    assert read_sweep(write_file(tmp_path, text)) == grid(wd=0.01, lr=0.1, data_seed=[1, 2])


def test_a_file_may_list_runs(tmp_path):
    path = write_file(tmp_path, "[run]\nwd = 0.01\n[[runs]]\nlr = 0.1\n[[runs]]\nlr = 0.2\nwidth = 8\n")
    assert read_sweep(path) == (RunConfig(lr=0.1, wd=0.01), RunConfig(lr=0.2, wd=0.01, width=8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = 0.1", r"table.*lr"),
        ("[run]\nlr = ", "Invalid value"),
        ("[run]\nlr = 0.1\n", "wd"),
        ("run = 3\n", r"run .*3"),
        ("[runs]\nlr = 0.1\n", "runs"),
        ("[run]\nbatch-size = 32\nbatch_size = 32\n", "batch_size must be given once"),
        ("[run]\nbatch-size = 32\n[grid]\nbatch_size = [32]\n", "batch_size must be given once"),
        ("[run]\nlr = 0.1\nwd = [0.02, 0.01]\n", r"wd.*\(0.02, 0.01\).*\[grid\]"),
        ("[run]\nlr = 0.1\nwd = 0.1\nwidht = 8\n", r"widht', did you mean 'width'\?"),
        ("[run]\nwd = 0.01\n[grid]\nlr = 0.1\n", "grid.lr must be a list"),
        ("[run]\nwd = 0.01\nlr = 0.1\n[grid]\nlr = [0.1]\n", "lr must be given once"),
        ("[run]\nwd = 0.01\n[grid]\nlr = [0.1]\n[[runs]]\nlr = 0.1\n", "got both"),
        ("[run]\nwd = 0.01\nlr = {Cosine = 1}\n", "one name with its settings"),
        ("[run]\nwd = 0.01\nlr = {Sine = {lr = 1}}\n", "optimizer must be one of"),
    ],
)
def test_errors_name_the_file(tmp_path, text, message):
    path = write_file(tmp_path, text)
    with pytest.raises(ValueError, match=f"sweep.toml: .*{message}"):
        read_sweep(path)


def test_a_missing_file_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"path.*nothing\.toml"):
        read_sweep(tmp_path / "nothing.toml")
