import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from simulate import BoundedGradient, RecordedGradient, norm_map, replay

FIXED = settings(deadline=None, derandomize=True, max_examples=60)

# The first r is the square of a rounded root; from there the same operations follow, and the map never expands ln ρ.
# 1e-12 allows for thousands of roundings.
ROUNDING = 1e-12

intrinsic_lrs = st.floats(0, 1.9)
seeds = st.integers(0, 1000)


def difference(replayed, recorded):
    return float(abs(replayed.norm / recorded.norm - 1).max())


def side_by_side(runs, dim):
    return xr.concat(runs, dim, coords="minimal", compat="override", join="outer")


@pytest.fixture(scope="module")
def run():
    return norm_map(0.5, 0.01, BoundedGradient(1.0, 4.0), norm=1.0, steps=300, seed=0)


@FIXED
@given(intrinsic_lr=intrinsic_lrs, lr=st.floats(1e-3, 10), norm=st.floats(0.05, 20), low=st.floats(0.1, 5), seed=seeds)
def test_one_run_is_reproduced(intrinsic_lr, lr, norm, low, seed):
    run = norm_map(lr, intrinsic_lr / lr, BoundedGradient(low, 5.0), norm=norm, steps=300, seed=seed)
    replayed = replay(run)
    assert difference(replayed, run) < ROUNDING
    np.testing.assert_allclose(replayed.final_norm, run.final_norm, rtol=ROUNDING)


@FIXED
@given(first=st.floats(0.01, 1), last=st.floats(0.01, 1), wd=st.floats(0, 1.9), norm=st.floats(0.05, 20), seed=seeds)
def test_varying_learning_rates_are_followed(first, last, wd, norm, seed):
    schedule = theory.WarmUp(20, theory.Cosine(first, last, steps=200))
    run = norm_map(schedule, wd, BoundedGradient(0.5, 5.0), norm=norm, steps=300, seed=seed)
    replayed = replay(run)
    assert difference(replayed, run) < ROUNDING
    np.testing.assert_array_equal(replayed.lr, run.lr)


@FIXED
@given(shape=st.sampled_from([(1,), (3,), (2, 3), (3, 3), (2, 1, 2)]), scheduled=st.booleans(), seed=seeds)
def test_batches_are_reproduced_in_any_order_of_dimensions(shape, scheduled, seed):
    random = np.random.default_rng(seed)
    lr = theory.Cosine(0.5, 0.1, steps=50) if scheduled else random.uniform(0.01, 1, shape)
    wd, norm, high = random.uniform(0, 1.9, shape), random.uniform(0.1, 5, shape), random.uniform(1, 5, shape)
    run = norm_map(lr, wd, BoundedGradient(0.5, high), norm=norm, steps=50, seed=seed)
    replayed = replay(run)
    assert difference(replayed, run) < ROUNDING
    turned = run.transpose(*reversed(run.norm.dims))
    xr.testing.assert_allclose(replay(turned).norm, run.norm.transpose(*turned.norm.dims[1:], "step"), rtol=ROUNDING)


def test_learning_rates_of_a_batch_may_vary_in_time_in_any_order_of_dimensions():
    # equal sizes, so that a mix-up of the dimensions would go unnoticed by shapes
    lr = xr.DataArray(np.random.default_rng(0).uniform(0.1, 1, (3, 3, 20)), dims=("a", "b", "step"))

    def member(i, j):
        return norm_map(
            lambda step: lr.values[i, j, step], 0.1, BoundedGradient(1, 2), norm=1.0, steps=20, seed=3 * i + j
        )

    run = side_by_side([side_by_side([member(i, j) for j in range(3)], "b") for i in range(3)], "a")
    mixed = run.assign(norm=run.norm.transpose("b", "step", "a"), lr=lr)
    assert difference(replay(mixed), run) < ROUNDING


def test_the_contract_is_kept(run):
    replayed = replay(run)
    assert set(replayed.variables) == set(run.variables)
    for name in run.variables:
        assert replayed[name].dims == run[name].dims, name
        assert replayed[name].dtype == run[name].dtype, name
        assert replayed[name].attrs == run[name].attrs, name
    np.testing.assert_array_equal(replayed.grad_norm, run.grad_norm)
    assert (replayed.attrs["lr"], replayed.attrs["wd"]) == (0.5, 0.01)
    assert replayed.attrs["source"] == "map"
    assert replayed.status.item() == "complete"
    assert replayed.status_step.item() == 300


def test_labels_of_a_batch_are_kept():
    run = norm_map([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, norm=1.0, steps=5)
    replayed = replay(run)
    for name in ("lr", "wd", "step"):
        xr.testing.assert_identical(replayed[name], run[name])


def test_the_trajectory_is_left_alone(run):
    before = run.copy(deep=True)
    replay(run)
    xr.testing.assert_identical(run, before)


def test_a_later_part_is_replayed_from_its_own_first_norm(run):
    part = run.isel(step=slice(100, 200))
    replayed = replay(part)
    assert difference(replayed, part) < ROUNDING
    np.testing.assert_array_equal(replayed.step, part.step)
    np.testing.assert_allclose(replayed.final_norm, run.norm.values[200], rtol=ROUNDING)


def test_one_row_is_enough(run):
    np.testing.assert_allclose(replay(run.isel(step=[0])).final_norm, run.norm.values[1], rtol=ROUNDING)


def test_members_that_ended_are_replayed_to_their_end():
    recorded = np.ones((3, 700))
    recorded[1], recorded[2, 2] = 0.0, 1e200
    run = norm_map(0.5, 1.0, RecordedGradient(recorded), norm=1.0, steps=700)
    replayed = replay(run)
    assert set(replayed.status.values) == {"complete", "collapsed", "diverged"}
    for name in ("status", "status_step"):
        np.testing.assert_array_equal(replayed[name], run[name])
    for name in ("norm", "grad_norm", "effective_lr", "rotation", "final_norm"):
        assert replayed[name].dims == run[name].dims, name
        np.testing.assert_allclose(replayed[name], run[name], rtol=ROUNDING, err_msg=name)
    for member in range(3):
        alone = replay(run.isel(batch=member))
        assert difference(alone, run.isel(batch=member)) < ROUNDING
        assert alone.status.item() == run.status.values[member]


def test_runs_of_different_length_side_by_side():
    shorter, longer = (norm_map(0.5, 0.1, 2.0, norm=1.0, steps=n) for n in (5, 2000))
    both = side_by_side([shorter, longer], "member")
    replayed = replay(both)
    np.testing.assert_allclose(replayed.final_norm, [shorter.final_norm, longer.final_norm], rtol=ROUNDING)
    assert replayed.status_step.values.tolist() == [5, 2000]
    assert np.isnan(replayed.norm.isel(member=0)).sum() == 1995


@pytest.mark.parametrize("share", [1e-8, 1e-3])
def test_a_tampered_gradient_does_not_replay(run, share):
    # a share ε more gradient makes the norm ε/2 too large; 100 times what rounding can do at least
    tampered = run.assign(grad_norm=run.grad_norm * (1 + share))
    assert difference(replay(tampered), run) > share / 10 > 100 * ROUNDING


def test_a_single_tampered_step_shows(run):
    values = run.grad_norm.values.copy()
    values[40] *= 1.01
    replayed = replay(run.assign(grad_norm=("step", values)))
    np.testing.assert_allclose(replayed.norm[:41], run.norm[:41], rtol=ROUNDING)
    assert abs(replayed.norm.values[41] / run.norm.values[41] - 1) > 1e-6


@pytest.mark.parametrize("name", ["lr", "wd"])
def test_a_tampered_setting_does_not_replay(run, name):
    assert difference(replay(run.assign_attrs({name: run.attrs[name] * 1.001})), run) > 1e-6


class TestBadInput:
    @pytest.mark.parametrize("value", [None, 3, "run", {"norm": 1}, np.ones(3), xr.DataArray([1.0])], ids=str)
    def test_no_trajectory(self, value):
        with pytest.raises(TypeError, match=rf"^trajectory must be an xarray\.Dataset .*got {type(value).__name__}"):
            replay(value)

    @pytest.mark.parametrize("name", ["norm", "grad_norm"])
    def test_missing_variables(self, run, name):
        with pytest.raises(ValueError, match=f"trajectory must have the variable '{name}'"):
            replay(run.drop_vars(name))

    @pytest.mark.parametrize("name", ["lr", "wd"])
    def test_missing_settings(self, run, name):
        without = run.copy()
        del without.attrs[name]
        with pytest.raises(ValueError, match=f"trajectory must have '{name}'"):
            replay(without)

    def test_missing_rows(self, run):
        recorded = norm_map(0.5, 0.01, BoundedGradient(1.0, 4.0), norm=1.0, steps=300, seed=0, record_every=2)
        for lacking in (recorded, run.isel(step=[0, 1, 3]), run.isel(step=slice(None, None, -1))):
            with pytest.raises(ValueError, match="rows are missing"):
                replay(lacking)

    def test_missing_gradients(self, run):
        with pytest.raises(ValueError, match="grad_norm is NaN before a later value"):
            replay(run.assign(grad_norm=run.grad_norm.where(run.step != 7)))

    def test_no_rows(self):
        with pytest.raises(ValueError, match=r"trajectory must have.*replayed, got none"):
            replay(norm_map(0.5, 0.01, 1.0, norm=1.0, steps=0))

    def test_other_optimizer(self, run):
        with pytest.raises(ValueError, match=r"optimizer SGD\(\) to be replayed, got SGD\(momentum=0\.9\)"):
            replay(run.assign_attrs(optimizer="SGD(momentum=0.9)"))
