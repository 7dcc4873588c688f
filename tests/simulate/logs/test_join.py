import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import simulate

COLUMNS = ["run - train/loss", "run - train/lr", "run - train/grad_norm", "run - weight_norm"]


def columns_of(seed=0, rows=30):
    random = np.random.default_rng(seed)
    table = pd.DataFrame(random.uniform(1, 2, (rows, len(COLUMNS))), columns=COLUMNS)
    table.insert(0, "Step", 10 * np.arange(rows))
    return table


@given(st.data())
def test_a_log_in_several_files_is_the_log_in_one(tmp_path_factory, data):
    folder, table = tmp_path_factory.mktemp("logs"), columns_of(data.draw(st.integers(0, 99)))
    places = data.draw(st.lists(st.integers(0, 2), min_size=len(COLUMNS), max_size=len(COLUMNS)))
    step_names = data.draw(st.permutations(["Step", "train/global_step", "iteration"]))
    paths = []
    for number in sorted(set(places)):
        mine = [name for name, place in zip(COLUMNS, places, strict=True) if place == number]
        part = table[["Step", *mine]].rename(columns={"Step": step_names[number]})
        paths.append(str(folder / f"{number}.csv"))
        part.to_csv(paths[-1], index=False)
    table.to_csv(folder / "whole.csv", index=False)
    whole, joined = simulate.read_log(folder / "whole.csv"), simulate.read_log(data.draw(st.permutations(paths)))
    xr.testing.assert_identical(joined.drop_attrs(), whole.drop_attrs())
    assert {meaning: name for meaning, name in joined.attrs["columns"].items() if meaning != "step"} == {
        meaning: name for meaning, name in whole.attrs["columns"].items() if meaning != "step"
    }


def test_steps_that_one_file_lacks_have_no_number(tmp_path):
    table = columns_of()
    table[["Step", COLUMNS[0]]].to_csv(tmp_path / "loss.csv", index=False)
    table[["Step", COLUMNS[3]]].iloc[::3].to_csv(tmp_path / "norm.csv", index=False)
    log = simulate.read_log([tmp_path / "loss.csv", tmp_path / "norm.csv"])
    np.testing.assert_array_equal(log.loss, table[COLUMNS[0]])
    np.testing.assert_array_equal(np.isnan(log.norm), np.arange(30) % 3 > 0)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"value": [1, 2]}, "logs with steps"),
        ({"step": [5, 4], "value": [1, 2]}, "logs whose steps grow"),
    ],
)
def test_logs_that_cannot_be_joined(columns, words, tmp_path):
    columns_of().to_csv(tmp_path / "loss.csv", index=False)
    pd.DataFrame(columns).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match=rf"^path must be of {words}.*other\.csv"):
        simulate.read_log([tmp_path / "loss.csv", tmp_path / "other.csv"])


def test_a_trajectory_cannot_be_joined(tmp_path):
    columns_of().to_csv(tmp_path / "loss.csv", index=False)
    simulate.save(simulate.norm_map(0.5, 0.02, 2.0, norm=2.6, steps=30), tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=r"is a trajectory"):
        simulate.read_log([str(tmp_path / "loss.csv"), tmp_path / "run.zarr"])


def test_one_path_in_a_list_is_that_log(tmp_path):
    columns_of().to_csv(tmp_path / "loss.csv", index=False)
    one, many = simulate.read_log(tmp_path / "loss.csv"), simulate.read_log([tmp_path / "loss.csv"])
    xr.testing.assert_identical(one, many)


def test_files_that_do_not_name_their_quantity_are_refused(tmp_path):
    # as TensorBoard exports its scalars
    for name in ("loss", "lr"):
        table = pd.DataFrame({"Wall time": [1.0, 2.0], "Step": [0, 1], "Value": [2.0, 1.0]})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match=r"name their quantities.*loss\.csv"):
        simulate.read_log([tmp_path / "loss.csv", tmp_path / "lr.csv"])


def test_a_quantity_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        pd.DataFrame({"step": [0, 1], "Wall time": [5.0, 6.0], "loss": [2.0, 1.0]}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    with pytest.raises(ValueError, match=r"different columns.*'loss' is in .*one\.csv.*two\.csv"):
        simulate.read_log([tmp_path / "one.csv", tmp_path / "two.csv"])


def test_steps_of_one_kind_are_matched(tmp_path):
    pd.DataFrame({"trainer/global_step": [0, 10, 20], "loss": [3.0, 2.0, 1.0]}).to_csv(tmp_path / "a.csv", index=False)
    norms = {"Step": [0, 1, 2], "trainer/global_step": [0, 10, 20], "weight_norm": [5.0, 6.0, 7.0]}
    pd.DataFrame(norms).to_csv(tmp_path / "b.csv", index=False)
    pd.DataFrame({"trainer/global_step": [0, 10], "lr": [0.1, 0.2]}).to_csv(tmp_path / "c.csv", index=False)
    for names in (["a", "b", "c"], ["b", "a", "c"], ["c", "b", "a"]):
        log = simulate.read_log([tmp_path / f"{name}.csv" for name in names])
        assert log.step.values.tolist() == [0, 10, 20]
        assert log.norm.values.tolist() == [5.0, 6.0, 7.0]
        assert log.lr.values.tolist()[:2] == [0.1, 0.2]


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"]])
def test_the_given_name_of_the_steps_counts_in_any_order(names, tmp_path):
    pd.DataFrame({"my time": [0, 10, 20], "step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    pd.DataFrame({"my time": [0, 10, 20], "weight_norm": [5.0, 6.0, 7.0]}).to_csv(tmp_path / "b.csv", index=False)
    log = simulate.read_log([tmp_path / f"{name}.csv" for name in names], names={"step": "my time"})
    assert log.step.values.tolist() == [0, 10, 20]
    assert log.norm.values.tolist() == [5.0, 6.0, 7.0]
