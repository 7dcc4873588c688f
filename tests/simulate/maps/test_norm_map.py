import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import theory
from simulate import BoundedGradient, RayleighQuotient, RecordedGradient, descend, norm_map, random_walk, replay
from simulate.trajectories.contract import SCHEMA, VARIABLES

FIXED = settings(deadline=None, derandomize=True, max_examples=60)
EPS = np.finfo(np.float64).eps

learning_rates = st.floats(1e-3, 10.0)
intrinsic_lrs = st.floats(1e-4, 1.99)
norms = st.floats(0.05, 20.0)
grad_norms = st.floats(1e-3, 100.0)


def hand_loop(lr, wd, grad_norm, norm, steps):
    """Norms before each step and after the last one, from lists of η_t and g̃_t, in plain Python."""
    rows, r = [], norm**2
    for t in range(steps):
        rows.append(math.sqrt(r))
        r = (1 - lr[t] * wd) ** 2 * r + (lr[t] * grad_norm[t]) ** 2 / r
    return np.array(rows), math.sqrt(r)


# every way to call it, with the shape of its batch; the first four values are lr, wd, grad_norm, norm
CALLS = {
    "numbers": ((0.1, 0.01, 2.0, 1.0), ()),
    "whole numbers": ((1, 0, 2, 1), ()),
    "schedule": ((theory.Cosine(0.5, 0.1, steps=6), 0.01, 2.0, 1.0), ()),
    "recorded": ((0.1, 0.01, RecordedGradient(np.linspace(1, 2, 7)), 1.0), ()),
    "random": ((0.1, 0.01, BoundedGradient(1.0, 2.0), 1.0), ()),
    "beyond 1": ((1.0, 1.5, 2.0, 1.0), ()),
    "batch of lr": (([0.1, 0.2, 0.3], 0.01, 2.0, 1.0), (3,)),
    "batch of norm": ((0.1, 0.01, 2.0, np.array([1.0, 5.0])), (2,)),
    "batch of all": (([0.1, 0.2], [0.01, 0.0], [2.0, 3.0], [1.0, 2.0]), (2,)),
    "batch of one": (([0.1], 0.01, 2.0, 1.0), (1,)),
    "empty batch": (([], 0.01, 2.0, 1.0), (0,)),
    "empty batch, schedule": ((theory.Linear(0.5, 0.1, steps=6), [], 2.0, 1.0), (0,)),
    "batch of recorded": ((0.1, 0.01, RecordedGradient(np.linspace(1, 2, 14).reshape(2, 7)), 1.0), (2,)),
    "batch of random": ((0.1, 0.01, BoundedGradient([0.5, 1.0], 2.0), 1.0), (2,)),
    "random for a batch": ((0.1, [0.01, 0.02], BoundedGradient(0.5, 2.0), 1.0), (2,)),
    "schedule for a batch": ((theory.Cosine(0.5, 0.1, steps=6), [0.01, 0.02], 2.0, 1.0), (2,)),
    "schedule of wd": ((0.1, theory.Cosine(0.5, 0.1, steps=6), 2.0, 1.0), ()),
    "two schedules": ((theory.Linear(0.5, 0.1, steps=6), theory.Cosine(0.5, 0.1, steps=6), 2.0, 1.0), ()),
    "schedule of wd for a batch": (([0.1, 0.2], theory.Linear(0.5, 0.1, steps=6), 2.0, 1.0), (2,)),
    "schedule of wd, random": ((0.1, theory.Linear(0.5, 0.1, steps=6), BoundedGradient(0.5, [1.0, 2.0]), 1.0), (2,)),
    "grid": (([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, 1.0), (2, 3)),
    "grid with norm": (([[0.1], [0.2]], 0.01, 2.0, [1.0, 2.0, 3.0]), (2, 3)),
    "three axes": ((np.full((2, 1, 1), 0.1), np.full((3, 1), 0.01), [1.0, 2.0], 1.0), (2, 3, 2)),
    "labelled": ((xr.DataArray([0.1, 0.2], dims="a"), 0.01, xr.DataArray([1.0, 2.0, 3.0], dims="b"), 1.0), (2, 3)),
}


@pytest.fixture(params=CALLS, ids=str)
def call(request):
    (lr, wd, grad_norm, norm), shape = CALLS[request.param]
    return lambda steps, **more: norm_map(lr, wd, grad_norm, norm=norm, steps=steps, seed=3, **more), shape


def member(value, shape, index):
    return value if callable(value) else np.broadcast_to(np.asarray(value, dtype=float), shape)[index].item()


class TestConformance:
    def test_zero_steps_give_zero_rows_and_the_start(self, call):
        run, shape = call
        none, one = run(0), run(1)
        assert none.sizes["step"] == 0
        assert none.norm.shape == (*shape, 0)
        assert none.final_norm.shape == shape
        np.testing.assert_array_equal(none.final_norm, one.norm.isel(step=0))
        assert (none.status == "complete").all()
        assert (none.status_step == 0).all()

    def test_rows_follow_each_other_by_the_law(self, call):
        # a handful of roundings per step
        run = call[0](7)
        for t in range(7):
            row = run.isel(step=t)
            lr = row.lr if "lr" in row.variables else run.attrs["lr"]
            wd = row.wd if "wd" in row.variables else run.attrs["wd"]
            following = run.norm.isel(step=t + 1) if t < 6 else run.final_norm
            law = (1 - lr * wd) ** 2 * row.norm**2 + (lr * row.grad_norm) ** 2 / row.norm**2
            np.testing.assert_allclose(following**2, law, rtol=8 * EPS)
            np.testing.assert_allclose(row.effective_lr, lr / row.norm**2, rtol=4 * EPS)
            tangent = np.tan(row.rotation) * (1 - lr * wd)
            np.testing.assert_allclose(tangent, row.effective_lr * row.grad_norm, rtol=16 * EPS)

    @pytest.mark.parametrize("stride", [2, 3, 6, 7, 100])
    def test_stride_keeps_every_nth_row(self, call, stride):
        run, _ = call
        xr.testing.assert_identical(run(7, record_every=stride), run(7).isel(step=slice(None, None, stride)))

    def test_a_shorter_run_is_the_beginning_of_a_longer_one(self, call):
        run, _ = call
        shorter, longer = run(4), run(7)
        np.testing.assert_array_equal(shorter.norm, longer.norm.isel(step=slice(4)))
        np.testing.assert_array_equal(shorter.final_norm, longer.norm.isel(step=4))

    def test_the_contract_is_kept(self, call):
        run, shape = call
        result = run(7)
        dims = result.final_norm.dims
        assert result.final_norm.shape == shape
        for name in ("norm", "grad_norm", "effective_lr", "rotation"):
            assert result[name].dims == (*dims, "step"), name
            assert result[name].shape == (*shape, 7), name
            assert result[name].dtype == np.float64, name
        for name in ("status", "status_step"):
            assert result[name].dims == dims, name
        assert result.step.values.tolist() == list(range(7))
        assert result.step.dtype == result.status_step.dtype == np.int64
        assert (result.status == "complete").all()
        assert (result.status_step == 7).all()
        for name in result.variables:
            if name in VARIABLES:
                assert (result[name].attrs["units"], result[name].attrs["long_name"]) == VARIABLES[name], name
            else:
                assert name in dims, name
        assert result.attrs["source"] == "map"
        assert result.attrs["optimizer"] == "SGD()"
        assert result.attrs["schema"] == SCHEMA
        assert result.attrs["seed"] == 3
        assert result.attrs["bnwd_version"] == theory.__version__
        for name in ("lr", "wd"):
            # attribute of one run, coordinate of a batch, variable where it changes in time
            in_time = name in result.data_vars
            assert (name in result.attrs) == (not shape and not in_time), name
            assert (name in result.coords) == (bool(shape) and not in_time), name
        if "lr" in result.data_vars:
            assert "step" in result.lr.dims

    def test_arguments_are_left_alone(self, request, call):
        arguments, _ = CALLS[request.node.callspec.params["call"]]
        inputs = [v.values if isinstance(v, RecordedGradient) else v for v in arguments]
        before = [np.array(v, copy=True) if not callable(v) else v for v in inputs]
        call[0](7)
        for now, then in zip(inputs, before, strict=True):
            if isinstance(now, (np.ndarray, list, xr.DataArray)):
                np.testing.assert_array_equal(np.asarray(now), then)


class TestOneStep:
    @FIXED
    @given(lr=learning_rates, intrinsic_lr=intrinsic_lrs, grad_norm=grad_norms, norm=norms)
    def test_equals_the_closed_form(self, lr, intrinsic_lr, grad_norm, norm):
        run = norm_map(lr, intrinsic_lr / lr, grad_norm, norm=norm, steps=1)
        _, last = hand_loop([lr], intrinsic_lr / lr, [grad_norm], norm, 1)
        assert run.norm.values.tolist() == [norm]
        np.testing.assert_allclose(run.final_norm, last, rtol=4 * EPS)

    @FIXED
    @given(
        lr=learning_rates, intrinsic_lr=intrinsic_lrs, grad_norm=grad_norms, norm=norms, angle=st.floats(0, 2 * math.pi)
    )
    def test_equals_an_sgd_step_of_a_vector(self, lr, intrinsic_lr, grad_norm, norm, angle):
        # in the plane: x, and a gradient of length g̃/ρ at a right angle to it
        wd = intrinsic_lr / lr
        x = norm * np.array([math.cos(angle), math.sin(angle)])
        gradient = grad_norm / norm * np.array([-math.sin(angle), math.cos(angle)])
        moved, _ = theory.SGD().update(x, gradient, (), lr, wd)
        turn = abs(math.atan2(x[0] * moved[1] - x[1] * moved[0], x @ moved))
        run = norm_map(lr, wd, grad_norm, norm=norm, steps=1)
        # roundings of the vectors that are added, against what is left of them where the decay nearly cancels x
        tolerance = 16 * EPS * (norm + lr * grad_norm / norm) / np.hypot(*moved)
        np.testing.assert_allclose(run.final_norm, np.hypot(*moved), rtol=tolerance)
        np.testing.assert_allclose(run.rotation.item(), turn, rtol=0, atol=tolerance)
        if intrinsic_lr < 1:
            np.testing.assert_allclose(run.rotation.item(), theory.rotation(norm, lr, wd, grad_norm), rtol=4 * EPS)

    def test_without_gradient_only_the_decay_acts(self):
        run = norm_map(0.5, 1.0, 0.0, norm=3.0, steps=2)
        assert run.norm.values.tolist() == [3.0, 1.5]
        assert run.final_norm.item() == 0.75
        assert run.rotation.values.tolist() == [0.0, 0.0]

    def test_without_decay_only_the_gradient_acts(self):
        run = norm_map(1.0, 0.0, 12.0, norm=2.0, steps=1)
        assert run.final_norm.item() == math.sqrt(4 + 36)


class TestSchedules:
    SCHEDULES = (
        theory.Constant(0.3),
        theory.StepDecay(0.5, milestones=(5, 12), factor=0.2),
        theory.Linear(0.5, 0.01, steps=15),
        theory.Cosine(0.5, 0.01, steps=15),
        theory.WarmUp(4, theory.Cosine(0.5, 0.01, steps=12)),
    )

    @pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
    def test_schedule_is_recorded_and_followed(self, schedule):
        run = norm_map(schedule, 0.3, 2.0, norm=1.0, steps=20)
        assert run.lr.dims == ("step",)
        assert "lr" not in run.attrs
        np.testing.assert_array_equal(run.lr, schedule(np.arange(20)))
        rows, last = hand_loop(run.lr.values, 0.3, [2.0] * 20, 1.0, 20)
        # ln r never grows apart, so roundings at most add up: a few for each of 20 steps
        np.testing.assert_allclose(run.norm, rows, rtol=20 * 4 * EPS)
        np.testing.assert_allclose(run.final_norm, last, rtol=20 * 4 * EPS)

    def test_a_constant_schedule_moves_as_its_number(self):
        scheduled = norm_map(theory.Constant(0.3), 0.1, 2.0, norm=1.0, steps=20)
        number = norm_map(0.3, 0.1, 2.0, norm=1.0, steps=20)
        np.testing.assert_array_equal(scheduled.norm, number.norm)
        np.testing.assert_array_equal(scheduled.rotation, number.rotation)

    @pytest.mark.parametrize("rule", [theory.SGD(), theory.SGD(momentum=0.9), theory.SGD(momentum=0.9, decoupled=True)])
    def test_a_schedule_of_wd_moves_as_runs_with_its_values(self, rule):
        wds = theory.Linear(0.3, 0.05, steps=5)
        whole = norm_map(0.1, wds, 2.0, norm=1.0, steps=6, optimizer=rule)
        np.testing.assert_array_equal(whole.wd, wds(np.arange(6)))
        assert "wd" not in whole.attrs
        part = norm_map(0.1, whole.wd.values[0].item(), 2.0, norm=1.0, steps=1, optimizer=rule)
        for t in range(1, 6):
            assert part.final_norm == pytest.approx(whole.norm.values[t], rel=1e-14)
            part = norm_map(0.1, whole.wd.values[t].item(), 2.0, steps=1, optimizer=rule, start=part)
        assert part.final_norm == pytest.approx(whole.final_norm.item(), rel=1e-14)
        # continued, by absolute step numbers
        first = norm_map(0.1, wds, 2.0, norm=1.0, steps=3, optimizer=rule)
        rest = norm_map(0.1, wds, 2.0, steps=3, optimizer=rule, start=first)
        np.testing.assert_array_equal(rest.norm, whole.norm[3:])

    def test_a_schedule_of_wd_cannot_be_an_axis_too(self):
        start = norm_map([[0.1], [0.2]], [0.01, 0.02], 2.0, norm=1.0, steps=1)
        with pytest.raises(ValueError, match="wd must not be a schedule"):
            norm_map(0.1, theory.Constant(0.1), 2.0, steps=1, start=start)
        with pytest.raises(ValueError, match="wd must be"):
            norm_map(0.1, lambda step: -1.0 - step, 2.0, norm=1.0, steps=3)

    def test_any_callable_of_the_steps_will_do(self):
        run = norm_map(lambda step: 0.1 + 0.01 * step, 0.1, 2.0, norm=1.0, steps=3)
        np.testing.assert_allclose(run.lr, [0.1, 0.11, 0.12])


class TestBatches:
    @pytest.mark.parametrize("name", [n for n in CALLS if "labelled" not in n])
    def test_each_member_equals_its_own_run_bit_for_bit(self, name):
        (lr, wd, grad_norm, norm), shape = CALLS[name]
        batch = norm_map(lr, wd, grad_norm, norm=norm, steps=7, seed=3)
        for index in np.ndindex(shape):
            of_batch = batch.isel(dict(zip(batch.final_norm.dims, index, strict=True)))
            alone = norm_map(
                member(lr, shape, index),
                member(wd, shape, index),
                RecordedGradient(of_batch.grad_norm.values),
                norm=member(norm, shape, index),
                steps=7,
            )
            for variable in ("norm", "grad_norm", "effective_lr", "rotation", "final_norm", "status", "status_step"):
                np.testing.assert_array_equal(of_batch[variable], alone[variable], err_msg=variable)

    def test_one_axis_is_called_batch(self):
        run = norm_map([0.1, 0.2], 0.01, 2.0, norm=1.0, steps=2)
        assert run.norm.dims == ("batch", "step")
        assert run.lr.dims == run.wd.dims == ("batch",)
        assert run.lr.values.tolist() == [0.1, 0.2]
        assert run.wd.values.tolist() == [0.01, 0.01]

    def test_axes_of_a_grid_are_called_by_what_varies_along_them(self):
        run = norm_map([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, norm=1.0, steps=2)
        assert run.norm.dims == ("lr", "wd", "step")
        assert run.lr.values.tolist() == [0.1, 0.2]
        assert run.wd.values.tolist() == [0.01, 0.02, 0.03]
        picked = run.sel(lr=0.2, wd=0.03)
        alone = norm_map(0.2, 0.03, 2.0, norm=1.0, steps=2)
        np.testing.assert_array_equal(picked.norm, alone.norm)

    def test_axes_along_which_nothing_else_has_a_name_are_numbered(self):
        run = norm_map([[0.1], [0.2]], 0.01, [[2.0], [3.0]], norm=[1.0, 2.0, 3.0], steps=2)
        assert run.norm.dims == ("batch_0", "batch_1", "step")
        np.testing.assert_array_equal(run.lr, [[0.1] * 3, [0.2] * 3])

    def test_dimensions_and_labels_of_data_arrays_are_kept(self):
        lr = xr.DataArray([0.1, 0.2], dims="lr", coords={"lr": [0.1, 0.2]})
        norm = xr.DataArray([1.0, 2.0, 3.0], dims="start", coords={"start": ["a", "b", "c"]})
        run = norm_map(lr, 0.01, 2.0, norm=norm, steps=2)
        assert set(run.norm.dims) == {"lr", "start", "step"}
        assert run.start.values.tolist() == ["a", "b", "c"]
        alone = norm_map(0.2, 0.01, 2.0, norm=3.0, steps=2)
        np.testing.assert_array_equal(run.sel(lr=0.2, start="c").norm, alone.norm)

    def test_a_data_array_along_lr_without_labels_gets_them(self):
        run = norm_map(xr.DataArray([0.1, 0.2], dims="lr"), xr.DataArray([0.01, 0.02], dims="wd"), 2.0, norm=1, steps=2)
        assert run.lr.dims == ("lr",)
        assert run.wd.dims == ("wd",)
        alone = norm_map(0.2, 0.01, 2.0, norm=1.0, steps=2)
        np.testing.assert_array_equal(run.sel(lr=0.2, wd=0.01).norm, alone.norm)

    def test_a_data_array_without_dimensions_is_a_number(self):
        run = norm_map(xr.DataArray(0.1), 0.01, 2.0, norm=1.0, steps=2, seed=0)
        xr.testing.assert_identical(run, norm_map(0.1, 0.01, 2.0, norm=1.0, steps=2, seed=0))


class TestRandomGradients:
    def test_the_seed_decides(self):
        rule = BoundedGradient([0.5, 1.0], [2.0, 1.0])
        first, again, other = (norm_map(0.1, 0.01, rule, norm=1.0, steps=50, seed=s) for s in (7, 7, 8))
        xr.testing.assert_identical(first, again)
        assert (first.grad_norm != other.grad_norm).isel(batch=0).all()
        assert first.attrs["seed"] == 7

    def test_the_seed_that_was_drawn_is_recorded(self):
        rule = BoundedGradient(0.5, 2.0)
        first, other = (norm_map(0.1, 0.01, rule, norm=1.0, steps=50) for _ in range(2))
        assert first.attrs["seed"] != other.attrs["seed"]
        again = norm_map(0.1, 0.01, rule, norm=1.0, steps=50, seed=first.attrs["seed"])
        xr.testing.assert_identical(first, again)

    def test_global_random_state_plays_no_part(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        norm_map(0.1, 0.01, BoundedGradient(0.5, 2.0), norm=1.0, steps=50)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    def test_values_fill_their_range_evenly(self):
        values = norm_map(0.1, 0.01, BoundedGradient([1.0, 5.0], [3.0, 5.0]), norm=1.0, steps=20_000, seed=0).grad_norm
        assert (values.isel(batch=1) == 5).all()
        counts = np.histogram(values.isel(batch=0), bins=10, range=(1, 3))[0]
        # 2000 in each bin with a standard deviation of 42: five of them
        assert abs(counts - 2000).max() < 5 * 42
        assert counts.sum() == 20_000

    def test_members_of_a_batch_draw_their_own_values(self):
        values = norm_map(0.1, [0.01, 0.01], BoundedGradient(1.0, 3.0), norm=1.0, steps=50, seed=0).grad_norm
        assert (values.isel(batch=0) != values.isel(batch=1)).all()


class TestStatus:
    def test_diverged_keeps_the_rows_up_to_the_failing_update(self):
        # (ηg̃)² overflows in the update of row 2
        run = norm_map(1.0, 0.1, RecordedGradient([1.0, 1.0, 1e200, 1.0]), norm=1.0, steps=4)
        rows, last = hand_loop([1.0] * 2, 0.1, [1.0] * 2, 1.0, 2)
        assert run.status.item() == "diverged"
        assert run.status_step.item() == 2
        assert run.step.values.tolist() == [0, 1, 2]
        np.testing.assert_allclose(run.norm, [*rows, last], rtol=16 * EPS)
        assert run.final_norm.item() == run.norm.values[-1]
        assert run.grad_norm.values.tolist() == [1.0, 1.0, 1e200]

    def test_collapsed_keeps_the_rows_up_to_the_failing_update(self):
        # r = 4^-t leaves the normal numbers, which end at 2^-1022, after t = 511
        run = norm_map(0.5, 1.0, 0.0, norm=1.0, steps=2000)
        assert run.status.item() == "collapsed"
        assert run.status_step.item() == 511
        np.testing.assert_array_equal(run.norm, 0.5 ** np.arange(512))
        assert run.final_norm.item() == 0.5**511

    def test_collapse_at_once(self):
        # at ηλ = 1 the decay alone sends the weights to zero
        run = norm_map(1.0, 1.0, 0.0, norm=1.0, steps=5)
        assert (run.status.item(), run.status_step.item(), run.sizes["step"]) == ("collapsed", 0, 1)
        assert run.final_norm.item() == 1.0

    def test_divergence_at_once(self):
        run = norm_map(1.0, 0.1, 1000.0, norm=1.5e-154, steps=5)
        assert (run.status.item(), run.status_step.item(), run.sizes["step"]) == ("diverged", 0, 1)

    @pytest.mark.parametrize(("stride", "rows"), [(1, 512), (2, 256), (511, 2), (512, 1)])
    def test_stride_and_status(self, stride, rows):
        run = norm_map(0.5, 1.0, 0.0, norm=1.0, steps=2000, record_every=stride)
        assert run.step.values.tolist() == list(range(0, 512, stride))
        assert run.sizes["step"] == rows
        assert run.status_step.item() == 511
        assert run.final_norm.item() == 0.5**511

    def test_in_a_batch_the_others_go_on(self):
        recorded = np.ones((3, 1500))
        recorded[0, 700:], recorded[1], recorded[2, 2] = 1.0, 0.0, 1e200
        run = norm_map(0.5, 1.0, RecordedGradient(recorded), norm=1.0, steps=1500)
        assert run.status.values.tolist() == ["complete", "collapsed", "diverged"]
        assert run.status_step.values.tolist() == [1500, 511, 2]
        for name in ("norm", "grad_norm", "effective_lr", "rotation"):
            assert np.isfinite(run[name]).sum("step").values.tolist() == [1500, 512, 3], name
        assert np.isfinite(run.norm.isel(batch=2, step=slice(3))).all()
        np.testing.assert_array_equal(run.final_norm.values[1:], [0.5**511, run.norm.values[2, 2]])


class TestAgainstTheory:
    @FIXED
    @given(
        intrinsic_lr=st.one_of(st.floats(1e-4, 0.95), st.floats(1.05, 1.9)),
        lr=learning_rates,
        grad_norm=grad_norms,
        start=st.floats(-2, 2),
    )
    def test_settles_at_the_equilibrium_norm(self, intrinsic_lr, lr, grad_norm, start):
        wd = intrinsic_lr / lr
        expected = theory.equilibrium_norm(lr, wd, grad_norm)
        # from far above ln ρ falls by about ηλ a step; near the equilibrium 40 relaxation times leave exp(-40)
        steps = math.ceil(4 / intrinsic_lr + 40 * max(1, theory.relaxation_time(lr, wd)))
        run = norm_map(lr, wd, grad_norm, norm=expected * math.exp(start), steps=steps, record_every=steps)
        # roundings of a few EPS a step balance a pull of at least 4ηλ or, near ηλ = 1, 4(1-ηλ)²: below 1e-11
        np.testing.assert_allclose(run.final_norm, expected, rtol=1e-11)
        if intrinsic_lr < 1:
            settled = norm_map(lr, wd, grad_norm, norm=expected, steps=1)
            np.testing.assert_allclose(settled.rotation, theory.equilibrium_rotation(lr, wd), rtol=1e-11)

    def test_at_intrinsic_lr_one_every_orbit_has_period_two(self):
        run = norm_map(1.0, 1.0, 2.0, norm=4.0, steps=4)
        assert run.norm.values.tolist() == [4.0, 0.5, 4.0, 0.5]

    def test_without_decay_the_norm_grows_as_the_fourth_root_of_time(self):
        # d(r²) = 2(ηg̃)² + (ηg̃)⁴/r²: the second term adds a logarithm, 8 in 2e6
        run = norm_map(0.1, 0.0, 10.0, norm=1.0, steps=1_000_000, record_every=1_000_000)
        np.testing.assert_allclose(run.final_norm**4, 1 + 2e6, rtol=1e-5)

    @FIXED
    @given(
        lr=learning_rates,
        intrinsic_lr=st.floats(1e-4, 1.99),
        high=grad_norms,
        share=st.floats(0, 1),
        norm=norms,
        seed=st.integers(0, 1000),
    )
    def test_stays_inside_the_envelope(self, lr, intrinsic_lr, high, share, norm, seed):
        wd, low = intrinsic_lr / lr, share * high
        run = norm_map(lr, wd, BoundedGradient(low, high), norm=norm, steps=200, seed=seed)
        lower, upper = theory.norm_envelope(np.arange(201), norm, lr, wd, low, high)
        norms = np.append(run.norm.values, run.final_norm)
        # |d ln r⁺/d ln r| <= 1, so roundings at most add up: 200 steps of a few EPS, more where 1-ηλ cancels
        slack = 200 * 8 * EPS / (min(1, abs(1 - intrinsic_lr)) or 1)
        assert (norms >= lower * (1 - slack)).all()
        assert (norms <= upper * (1 + slack)).all()

    @FIXED
    @given(intrinsic_lr=st.floats(1e-4, 1.99), low=st.floats(0.1, 5.0), width=st.floats(0, 5.0), place=st.floats(0, 1))
    def test_never_leaves_the_bounds(self, intrinsic_lr, low, width, place):
        lower, upper = theory.norm_bounds(1.0, intrinsic_lr, low, low + width)
        start = lower + place * (min(upper, 1e9) - lower) if intrinsic_lr != 1 else 1.0
        run = norm_map(1.0, intrinsic_lr, BoundedGradient(low, low + width), norm=start, steps=200, seed=0)
        slack = 200 * 8 * EPS / (min(1, abs(1 - intrinsic_lr)) or 1)
        assert (run.norm >= lower * (1 - slack)).all()
        assert (run.norm <= upper * (1 + slack)).all()

    @pytest.mark.parametrize("intrinsic_lr", [0.01, 0.5, 1.3])
    def test_values_outside_their_range_leave_the_envelope(self, intrinsic_lr):
        weak = norm_map(1.0, intrinsic_lr, BoundedGradient(1.0, 1.9), norm=1.0, steps=200, seed=0)
        strong = norm_map(1.0, intrinsic_lr, BoundedGradient(3.1, 4.0), norm=1.0, steps=200, seed=0)
        lower, upper = theory.norm_envelope(np.arange(200), 1.0, 1.0, intrinsic_lr, 2.0, 3.0)
        assert (weak.norm.values < lower).any()
        assert (strong.norm.values > upper).any()

    @FIXED
    @given(
        lr=learning_rates,
        intrinsic_lr=intrinsic_lrs,
        grad_norm=grad_norms,
        norm=norms,
        scale=st.sampled_from([0.25, 2.0, 8.0]),
    )
    def test_units_of_the_weights_are_free(self, lr, intrinsic_lr, grad_norm, norm, scale):
        # (ρ, η, λ) -> (aρ, a²η, λ/a²): the same rotations; powers of two leave no rounding
        wd = intrinsic_lr / lr
        run = norm_map(lr, wd, grad_norm, norm=norm, steps=30)
        scaled = norm_map(scale**2 * lr, wd / scale**2, grad_norm, norm=scale * norm, steps=30)
        np.testing.assert_array_equal(scaled.norm, scale * run.norm)
        np.testing.assert_array_equal(scaled.rotation, run.rotation)


class TestContinuing:
    """Cuts are tested for all simulators in test_conformance; these tests are specific to `norm_map`."""

    def test_some_of_a_batch_go_on_with_their_own_random_numbers(self):
        rule, settings = BoundedGradient(0.5, 2.0), {"norm": [1.0, 2.0, 3.0, 4.0], "seed": 4}
        whole = norm_map(0.1, 0.1, rule, steps=60, **settings)
        first = norm_map(0.1, 0.1, rule, steps=25, **settings)
        some = norm_map(0.1, 0.1, rule, steps=35, start=first.isel(batch=[3, 1]))
        one = norm_map(0.1, 0.1, rule, steps=35, start=first.isel(batch=3))
        assert one.norm.dims == ("step",)
        for name in ("norm", "grad_norm", "final_norm"):
            later = whole[name] if name == "final_norm" else whole[name].isel(step=slice(25, None))
            np.testing.assert_array_equal(some[name], later.isel(batch=[3, 1]))
            np.testing.assert_array_equal(one[name], later.isel(batch=3))

    def test_settings_may_change(self):
        first = norm_map([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, norm=1.0, steps=20)
        more = norm_map(0.5, [0.1, 0.2, 0.3], [[1.0], [3.0]], steps=20, start=first)
        assert more.norm.dims == ("lr", "wd", "step")
        # the labels are those of the settings that were used
        assert more.lr.values.tolist() == [0.5, 0.5]
        assert more.wd.values.tolist() == [0.1, 0.2, 0.3]
        for i, j in np.ndindex(2, 3):
            of_batch = more.isel(lr=i, wd=j)
            law = norm_map(0.5, 0.1 * (j + 1), [1.0, 3.0][i], norm=first.final_norm.values[i, j], steps=20)
            np.testing.assert_allclose(of_batch.norm, law.norm, rtol=1e-13)

    def test_labelled_settings_find_their_place(self):
        wd = xr.DataArray([0.1, 0.2], dims="a", coords={"a": ["x", "y"]})
        norm = xr.DataArray([1.0, 2.0, 3.0], dims="b")
        whole = norm_map(0.1, wd, 2.0, norm=norm, steps=30)
        first = norm_map(0.1, wd, 2.0, norm=norm, steps=10)
        more = norm_map(0.1, wd, 2.0, steps=20, start=first.transpose(..., "b", "a"))
        xr.testing.assert_equal(more.norm, whole.norm.isel(step=slice(10, None)).transpose("b", "a", "step"))
        with pytest.raises(ValueError, match=r"coordinates of wd.*those of start"):
            norm_map(0.1, wd.assign_coords(a=["x", "z"]), 2.0, steps=20, start=first)
        with pytest.raises(ValueError, match=r"wd must have.*start, .*got \('c',\)"):
            norm_map(0.1, wd.drop_vars("a").rename(a="c"), 2.0, steps=20, start=first)

    def test_an_ended_trajectory_stays_unchanged(self):
        first = norm_map(0.5, 1.0, [0.0, 1.0], norm=1.0, steps=600)
        more = norm_map(0.1, 0.1, 3.0, steps=50, start=first)
        assert more.status.values.tolist() == ["collapsed", "complete"]
        assert more.status_step.values.tolist() == [511, 650]
        assert more.final_norm[0] == first.final_norm[0]
        assert more.norm.isel(batch=0).isnull().all()
        alone = norm_map(0.1, 0.1, 3.0, steps=50, start=first.isel(batch=0), record_every=None)
        assert (alone.status.item(), alone.status_step.item(), alone.sizes["step"]) == ("collapsed", 511, 0)
        assert np.isnan(alone.mean_sq_norm)

    def test_statistics_are_those_of_the_call(self):
        first = norm_map(0.1, 0.1, 3.0, norm=1.0, steps=50)
        rows = norm_map(0.1, 0.1, 3.0, steps=30, start=first)
        more = norm_map(0.1, 0.1, 3.0, steps=30, start=first, record_every=None)
        np.testing.assert_allclose(more.mean_sq_norm, (rows.norm**2).mean(), rtol=1e-13)
        assert more.norm_min == rows.norm.min()

    START = norm_map(0.1, [0.1, 0.2], 2.0, norm=1.0, steps=5, seed=0)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"norm": 1.0}, ValueError, "^norm must be left out with start.*got 1.0"),
            ({"seed": 5}, ValueError, "^seed must be that of start, 0, or left out; got 5"),
            ({"start": 3}, TypeError, "^start must be a trajectory that norm_map returned, got int"),
            ({"optimizer": theory.SGD(0.9)}, ValueError, r"^start must have the optimizer 'SGD\(momentum=0.9\)', got "),
            ({"start": START.drop_vars("final_sq_norm")}, ValueError, "must have the variable 'final_sq_norm'"),
            ({"start": START.drop_attrs()}, ValueError, "^start must have the source 'map', got None"),
            ({"start": replay(START)}, ValueError, "^start must be a trajectory .* attribute 'seed'"),
            ({"start": START.assign(status=START.status == "a")}, ValueError, "^start must have the status complete, "),
            ({"lr": [0.1, 0.2, 0.3]}, ValueError, r"^lr must broadcast to the batch of start, \(2,\), got \(3,\)"),
            ({"wd": [[0.1], [0.2]]}, ValueError, r"^wd must broadcast to the batch of start, \(2,\), got \(2, 1\)"),
            (
                {"grad_norm": BoundedGradient([1, 2, 3], 4)},
                ValueError,
                r"^grad_norm must broadcast to the batch of start",
            ),
            (
                {"grad_norm": RecordedGradient(np.ones(7))},
                ValueError,
                "^values must cover 8 steps, got 7",
            ),
        ],
    )
    def test_arguments_that_do_not_fit_start_are_named(self, arguments, error, message):
        with pytest.raises(error, match=message):
            norm_map(**{"lr": 0.1, "wd": 0.1, "grad_norm": 2.0, "steps": 3, "start": self.START, **arguments})

    def test_a_dimension_of_learning_rates_takes_no_others(self):
        first = norm_map([[0.1], [0.2]], [0.01, 0.02, 0.03], 2.0, norm=1.0, steps=5)
        with pytest.raises(ValueError, match=r"lr must not.*a dimension 'lr'"):
            norm_map(theory.Constant(0.1), 0.1, 2.0, steps=5, start=first)
        with pytest.raises(ValueError, match=r"lr must vary.*dimension than 'lr'"):
            norm_map([0.1, 0.2, 0.3], 0.1, 2.0, steps=5, start=first)


GOOD = {"lr": 0.1, "wd": 0.01, "grad_norm": 2.0, "norm": 1.0, "steps": 3}
NO_NUMBERS = ["0.1", None, 0.1j, [0.1, "a"], [[0.1], [0.1, 0.2]], True, {"a": 1}]
BAD_VALUES = {
    "lr": [0, -0.1, math.nan, math.inf, -math.inf, [0.1, 0.0]],
    "wd": [-0.01, math.nan, math.inf, [0.01, -1.0]],
    "grad_norm": [-1.0, math.nan, math.inf, [1.0, -1.0]],
    "norm": [0, -1.0, math.nan, math.inf, [1.0, 0.0], 1e-160, 1e160],
    "steps": [-1],
    "record_every": [0, -3],
    "seed": [-1],
}


class TestBadInput:
    @pytest.mark.parametrize("name", ["lr", "wd", "grad_norm", "norm"])
    @pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
    def test_no_numbers(self, name, value):
        with pytest.raises(TypeError, match=rf"^{name} must be .*got "):
            norm_map(**{**GOOD, name: value})

    @pytest.mark.parametrize("name", ["steps", "record_every", "seed"])
    @pytest.mark.parametrize("value", ["3", 3.0, [3], True, 1j], ids=repr)
    def test_no_whole_numbers(self, name, value):
        with pytest.raises(TypeError, match=rf"^{name} must be a whole number .*got "):
            norm_map(**{**GOOD, name: value})

    @pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD_VALUES.items() for v in vs], ids=repr)
    def test_out_of_range(self, name, value):
        worst = value if not isinstance(value, list) else value[1]
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got ") as caught:
            norm_map(**{**GOOD, name: value})
        assert (repr(float(worst)) if name in GOOD and name != "steps" else str(worst)) in str(caught.value)
        assert ("index 1" in str(caught.value)) == isinstance(value, list)

    def test_steps_and_norm_have_no_default(self):
        for name in ("steps", "norm"):
            with pytest.raises(TypeError, match=name):
                norm_map(**{key: value for key, value in GOOD.items() if key != name})

    @pytest.mark.parametrize(
        ("lr", "wd"), [(1.0, 2.0), (4.0, 1.0), ([0.1, 1.0], 3.0), (theory.Linear(0.1, 9.0, 2), 1.0)]
    )
    def test_too_large_intrinsic_lr(self, lr, wd):
        with pytest.raises(ValueError, match=r"lr \* wd.*2 here, got"):
            norm_map(lr, wd, 2.0, norm=1.0, steps=3)

    @pytest.mark.parametrize("optimizer", ["SGD(0.9)", theory.SGD, 3, object()])
    def test_unknown_optimizer(self, optimizer):
        error = ValueError if isinstance(optimizer, str) else TypeError
        with pytest.raises(error, match=r"^optimizer must be .*SGD\(momentum=0\.9\)"):
            norm_map(**GOOD, optimizer=optimizer)
        norm_map(**GOOD, optimizer=theory.SGD())

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"shapes must broadcast together, got .*lr \(2,\).*"):
            norm_map([0.1, 0.2], [0.1, 0.2, 0.3], 2.0, norm=1.0, steps=3)
        with pytest.raises(ValueError, match=r"shapes must broadcast together, got .*grad_norm \(2,\)"):
            norm_map([0.1, 0.2, 0.3], 0.1, BoundedGradient([1, 2], 3), norm=1.0, steps=3)

    def test_data_arrays_and_plain_arrays_do_not_mix(self):
        labelled = xr.DataArray([0.1, 0.2], dims="a")
        with pytest.raises(TypeError, match=r"norm must be.*is a DataArray"):
            norm_map(labelled, 0.1, 2.0, norm=[1.0, 2.0], steps=3)
        with pytest.raises(TypeError, match=r"grad_norm must be.*is a DataArray"):
            norm_map(labelled, 0.1, BoundedGradient([1.0, 2.0], 3.0), norm=1.0, steps=3)

    def test_data_arrays_that_disagree(self):
        lr = xr.DataArray([0.1, 0.2], dims="a", coords={"a": [0, 1]})
        with pytest.raises(ValueError, match="coordinates of wd, lr must agree"):
            norm_map(lr, lr.assign_coords(a=[1, 2]), 2.0, norm=1.0, steps=3)

    def test_data_arrays_along_the_steps(self):
        with pytest.raises(ValueError, match="lr must be constant in time"):
            norm_map(xr.DataArray([0.1, 0.2, 0.3], dims="step"), 0.1, 2.0, norm=1.0, steps=3)

    def test_schedules_must_give_one_lr_per_step(self):
        for schedule in (lambda step: 0.1, lambda step: np.full(2, 0.1), lambda step: np.full((3, 2), 0.1)):
            with pytest.raises(ValueError, match=r"lr must give.*step, got shape"):
                norm_map(schedule, 0.1, 2.0, norm=1.0, steps=3)
        with pytest.raises(ValueError, match=r"lr must be.*at index 1"):
            norm_map(lambda step: 1.0 - step, 0.1, 2.0, norm=1.0, steps=3)

    def test_too_few_recorded_values(self):
        with pytest.raises(ValueError, match="values must cover 3 steps, got 2"):
            norm_map(0.1, 0.01, RecordedGradient([1.0, 2.0]), norm=1.0, steps=3)

    @pytest.mark.parametrize(
        ("value", "error"), [(1.0, ValueError), ([-1.0], ValueError), ([math.nan], ValueError), (["a"], TypeError)]
    )
    def test_bad_recorded_values(self, value, error):
        with pytest.raises(error, match=r"^values must "):
            RecordedGradient(value)

    @pytest.mark.parametrize(
        ("low", "high", "error", "message"),
        [
            (-1.0, 1.0, ValueError, "low must be a finite number >= 0, got -1.0"),
            (0.0, math.inf, ValueError, "high must be a finite number >= 0, got inf"),
            (2.0, 1.0, ValueError, "low must be <= high, got low=2.0 > high=1.0"),
            ([1.0, 2.0], [3.0, 1.0], ValueError, "low must be <= high, got low=2.0 > high=1.0"),
            ([1.0, 2.0], [3.0, 3.0, 3.0], ValueError, "shapes must broadcast together"),
            ("1", 2.0, TypeError, "low must be "),
            (1.0, None, TypeError, "high must be "),
        ],
    )
    def test_bad_bounds(self, low, high, error, message):
        with pytest.raises(error, match=message):
            BoundedGradient(low, high)


@pytest.mark.parametrize(
    "simulation",
    [
        lambda optimizer: norm_map(0.01, 0.1, 1.0, norm=1.0, steps=5, optimizer=optimizer),
        lambda optimizer: random_walk(0.01, 0.1, dim=30, steps=5, optimizer=optimizer),
        lambda optimizer: descend(RayleighQuotient([1.0, 2.0]), 0.01, 0.1, steps=5, optimizer=optimizer),
    ],
    ids=["norm_map", "random_walk", "descend"],
)
def test_optimizers_may_be_named(simulation):
    named, given = simulation("SGD(momentum=0.5)"), simulation(theory.SGD(momentum=0.5))
    xr.testing.assert_equal(named, given)
    assert named.attrs["optimizer"] == given.attrs["optimizer"]
    with pytest.raises(ValueError, match="optimizer must be"):
        simulation("Unknown")
    with pytest.raises(TypeError, match="optimizer must be"):
        simulation(object)


def test_a_walk_knows_its_number_of_weights():
    assert random_walk(0.01, 0.1, dim=30, steps=3, optimizer="AdamW").attrs["optimizer"] == "AdamW(dim=30)"
