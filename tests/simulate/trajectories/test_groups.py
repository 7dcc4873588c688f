import numpy as np
import pytest

import empirical
import simulate
from simulate.trajectories.contract import make_trajectory, variable_attributes

ROWS = np.arange(6)


def two_groups(stride=1, **options):
    norms = np.stack([3.0 + ROWS, 4.0 + ROWS], axis=1)
    columns = {"norm": np.linalg.norm(norms, axis=1), "loss": 1.0 / (1 + ROWS), "group_norm": norms}
    return make_trajectory(
        columns | options.pop("columns", {}),
        step=stride * ROWS,
        source="training",
        final_norm=13.0,
        status="running",
        status_step=6 * stride,
        groups=["a", "b"],
        attributes={"lr": 0.5, "wd": 0.01, "optimizer": "SGD(momentum=0.9)"} | options,
    )


def test_a_group_has_its_own_numbers():
    lrs = np.stack([np.full(6, 0.1), np.linspace(0.2, 0.1, 6)], axis=1)
    wds = np.full((6, 2), [0.01, 0.02])
    run = two_groups(columns={"group_lr": lrs, "group_wd": wds})
    run = run.assign(group_final_norm=("group", [9.5, 10.5])).assign_coords(
        group_optimizer=("group", ["SGD()", "Muon"])
    )
    a, b = (simulate.group_trajectory(run, name) for name in "ab")
    assert a.norm.values.tolist() == run.group_norm.values[:, 0].tolist()
    assert (a.attrs["lr"], a.attrs["wd"], a.attrs["optimizer"], a.attrs["group"]) == (0.1, 0.01, "SGD()", "a")
    assert "lr" not in b.attrs
    np.testing.assert_array_equal(b.lr, lrs[:, 1])
    np.testing.assert_allclose(b.effective_lr, lrs[:, 1] / run.group_norm.values[:, 1] ** 2)
    assert (b.attrs["wd"], b.attrs["optimizer"], float(b.final_norm)) == (0.02, "Muon", 10.5)
    assert b.norm.attrs == variable_attributes("norm")
    assert "group" not in b.coords


def test_the_last_row_is_left_out_where_the_norm_after_it_is_not_known():
    own = simulate.group_trajectory(two_groups(), "b")
    assert own.step.values.tolist() == [0, 1, 2, 3, 4]
    assert float(own.final_norm) == 9.0
    assert (own.attrs["lr"], own.attrs["optimizer"]) == (0.5, "SGD(momentum=0.9)")


def test_the_number_of_weights_of_all_groups_is_not_that_of_one():
    assert simulate.group_trajectory(two_groups(optimizer="AdamW(dim=96)"), "a").attrs["optimizer"] == "AdamW"


def test_groups_of_a_training_obey_the_law_of_their_own_norm():
    run = empirical.train(empirical.RunConfig(lr=0.3, wd=0.02, model="mlp", width=8, steps=40, dtype="float64"))
    for name in run.group.values:
        own = simulate.group_trajectory(run, str(name))
        assert abs(simulate.replay(own).norm / own.norm - 1).max() < 1e-9


def test_bad_input():
    with pytest.raises(ValueError, match="group must be one of a, b; got 'c'"):
        simulate.group_trajectory(two_groups(), "c")
    with pytest.raises(ValueError, match="group_norm"):
        simulate.group_trajectory(two_groups().drop_vars("group_norm"), "a")
    with pytest.raises(ValueError, match="group_final_norm"):
        simulate.group_trajectory(two_groups(stride=5), "a")
