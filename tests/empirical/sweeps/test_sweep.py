import concurrent.futures

import pytest

import simulate
from empirical import grid, train
from empirical.sweeps.sweep import sweep

RUNS = grid(lr=[0.3, 0.5], wd=0.02, width=8, steps=60, seed=range(2))


def test_a_sweep_makes_every_run_once(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        found = sweep(RUNS, tmp_path, executor)
        again = sweep(RUNS, tmp_path, executor)
    assert (found.status == "complete").all()
    assert again.identical(found)
    for run in RUNS:
        folder = found.folder.sel(lr=run.lr, seed=run.seed).item()
        assert simulate.load(folder).identical(train(run))


def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path):
    bad = grid(lr=0.3, wd=0.02, model="no_such_module:build", steps=5)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        found = sweep([*bad, *RUNS], tmp_path, executor)
    assert found.status.values.tolist() == ["failed"] + ["complete"] * 4
    assert "no_such_module" in found.error.values[0]
    assert len((tmp_path / "summaries.log").read_text().splitlines()) == 5


def test_bad_input_begins_nothing(tmp_path):
    for options in ({"until": 0}, {"max_steps": 5}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            sweep(RUNS, tmp_path / "new", **options)
    with pytest.raises(TypeError, match="executor must be"):
        sweep(RUNS, tmp_path / "new", executor=5)
    assert not (tmp_path / "new").exists()
