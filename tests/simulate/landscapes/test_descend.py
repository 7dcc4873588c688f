import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
import theory
from simulate.landscapes import NormalizedRegression, Ratio2D, RayleighQuotient, descend
from simulate.trajectories.contract import VARIABLES

FIXED = settings(deadline=None, derandomize=True, max_examples=40)
COLUMNS = ("norm", "grad_norm", "effective_lr", "rotation", "loss", "radial_defect")


def regression(examples=30, dim=6, seed=0, **more):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(examples, dim))
    return NormalizedRegression(inputs, np.sign(inputs[:, 0] + generator.normal(size=examples)), **more)


LANDSCAPES = {
    "ratio": Ratio2D(3.0, 0.7),
    "quotient": RayleighQuotient([-1.0, 0.5, 2.0]),
    "full batch": regression(),
    "squared": regression(batch_size=4, output_norm=2.0),
    "logistic": regression(batch_size=4, loss="logistic", output_norm=3.0),
}
OPTIMIZERS = [
    theory.SGD(momentum=m, nesterov=n, decoupled=d)
    for m in (0.0, 0.9)
    for n in ((False, True) if m else (False,))
    for d in (False, True)
]


@pytest.fixture(params=LANDSCAPES, ids=str)
def landscape(request):
    return LANDSCAPES[request.param]


def by_hand(landscape, lrs, wd, weights, *, optimizer=None, seed=0, walker=0, fixed=None):
    """Columns of one walker, its last weights and its last state, in NumPy with the optimizers of `theory`."""
    rule = optimizer or theory.SGD()
    x = np.array(weights, dtype=float)
    state, start_norm, rows = rule.start(x), np.linalg.norm(weights), []
    for t, lr in enumerate(lrs):
        batch = (landscape.batch(seed, walker, t),) if isinstance(landscape, NormalizedRegression) else ()
        gradient, norm = landscape.gradient(x, *batch), np.linalg.norm(x)
        used_gradient = norm**2 * gradient if fixed == "effective_lr" else gradient
        following, state = rule.update(x, used_gradient, state, lr, wd)
        along = following @ x / norm
        rows.append(
            (
                norm,
                norm * np.linalg.norm(gradient),
                lr if fixed == "effective_lr" else lr / norm**2,
                math.atan2(np.linalg.norm(following - along * x / norm), along),
                landscape.value(x, *batch),
            )
        )
        x = following * start_norm / np.linalg.norm(following) if fixed == "norm" else following
    return np.array(rows).T, x, state


class TestAgainstTheReadableLoop:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
    @pytest.mark.parametrize("fixed", [None, "norm", "effective_lr"])
    def test_every_column(self, landscape, optimizer, fixed):
        wd = 0.0 if fixed == "norm" else 0.3
        lrs = theory.Cosine(0.05, 0.01, 50)
        run = descend(
            landscape, lrs, wd, steps=50, seed=3, optimizer=optimizer, walkers=3, norm=[1.0, 1.3, 1.6], fixed=fixed
        )
        starts = descend(landscape, lrs, wd, steps=0, seed=3, walkers=3, norm=[1.0, 1.3, 1.6]).final_weights.values
        for i, start in enumerate(starts):
            rows, weights, state = by_hand(
                landscape, lrs(np.arange(50)), wd, start, optimizer=optimizer, seed=3, walker=i, fixed=fixed
            )
            for name, expected in zip(COLUMNS, rows, strict=False):
                # an angle or a gradient near zero is a difference of numbers of order 1
                np.testing.assert_allclose(run[name].values[i], expected, rtol=1e-12, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(run.final_weights.values[i], weights, rtol=1e-12, atol=1e-12)
            if state:
                np.testing.assert_allclose(run.final_velocity.values[i], state[0], rtol=1e-11, atol=1e-11)
        assert ("final_velocity" in run) == (optimizer.momentum > 0)

    def test_another_optimizer_differs(self):
        runs = [descend(LANDSCAPES["squared"], 0.05, 0.3, steps=50, optimizer=rule).final_norm for rule in OPTIMIZERS]
        # decoupled decay is the same without momentum
        assert runs[0] == runs[1]
        assert len({float(norm) for norm in runs}) == len(OPTIMIZERS) - 1

    def test_weights_are_taken_as_they_are(self):
        weights = np.array([[0.3, -0.4], [5.0, 1e-3]])
        run = descend(Ratio2D(), 0.1, 0.01, steps=5, weights=weights)
        np.testing.assert_array_equal(run.norm.isel(step=0), np.sqrt((weights**2).sum(axis=1)))
        rows, last, _ = by_hand(Ratio2D(), [0.1] * 5, 0.01, weights[0])
        np.testing.assert_allclose(run.final_weights.values[0], last, rtol=1e-14)
        np.testing.assert_allclose(run.loss.values[0], rows[4], rtol=1e-13)

    @FIXED
    @given(
        name=st.sampled_from(list(LANDSCAPES)),
        intrinsic_lr=st.floats(0, 0.9),
        lr=st.floats(1e-2, 10.0),
        norm=st.floats(0.2, 10.0),
        seed=st.integers(0, 1000),
    )
    def test_norm_obeys_the_one_step_law(self, name, intrinsic_lr, lr, norm, seed):
        run = descend(LANDSCAPES[name], lr, intrinsic_lr / lr, steps=100, norm=norm, seed=seed)
        squares = np.append(run.norm.values, run.final_norm) ** 2
        law = (1 - intrinsic_lr) ** 2 * squares[:-1] + (lr * run.grad_norm.values) ** 2 / squares[:-1]
        np.testing.assert_allclose(squares[1:], law, rtol=1e-13)
        turn = theory.rotation(run.norm.values, lr, intrinsic_lr / lr, run.grad_norm.values)
        np.testing.assert_allclose(run.rotation, turn, rtol=1e-10, atol=1e-14)
        # a gradient that is all rounding may point anywhere
        assert (run.radial_defect * run.grad_norm).max() < 1e-14

    @pytest.mark.parametrize("lr", [0.3, theory.Cosine(0.5, 0.01, 400)], ids=["constant", "schedule"])
    def test_replay_reproduces_the_norm(self, landscape, lr):
        run = descend(landscape, lr, 0.05, steps=400, walkers=2, seed=1)
        assert float(abs(simulate.replay(run).norm / run.norm - 1).max()) < 1e-10

    def test_replay_refuses_runs_of_another_law(self):
        for more, message in (
            ({"fixed": "norm"}, "without a constraint, got 'fixed norm'"),
            ({"fixed": "effective_lr"}, "without a constraint, got 'fixed effective lr'"),
            ({"optimizer": theory.SGD(momentum=0.5)}, r"optimizer SGD\(\).*got SGD\(momentum=0.5\)"),
        ):
            run = descend(Ratio2D(), 0.1, 0.0, steps=5, **more)
            with pytest.raises(ValueError, match=message):
                simulate.replay(run)


CALLS = {
    "one": ({"lr": 0.1, "wd": 0.02}, ()),
    "walkers": ({"lr": 0.1, "wd": 0.02, "walkers": 3}, (3,)),
    "several lr": ({"lr": [0.1, 0.2], "wd": 0.02}, (2,)),
    "one lr in a list": ({"lr": [0.1], "wd": 0.02}, (1,)),
    "several wd": ({"lr": 0.1, "wd": np.array([0.0, 0.2, 0.3]), "walkers": 3, "norm": np.array([1.0, 2.0, 3.0])}, (3,)),
    "schedule": ({"lr": theory.Cosine(0.2, 0.05, 12), "wd": 0.02}, ()),
    "schedule for a batch": ({"lr": theory.Cosine(0.2, 0.05, 12), "wd": [0.1, 0.2]}, (2,)),
    "heavy ball": ({"lr": 0.1, "wd": 0.02, "walkers": 2, "optimizer": theory.SGD(momentum=0.9)}, (2,)),
    "Nesterov": (
        {"lr": 0.1, "wd": 0.02, "optimizer": theory.SGD(momentum=0.9, nesterov=True, decoupled=True)},
        (),
    ),
    "fixed norm": ({"lr": 0.1, "wd": 0.0, "norm": [0.3, 3.0], "fixed": "norm"}, (2,)),
    "fixed norm, momentum": ({"lr": 0.1, "wd": 0, "fixed": "norm", "optimizer": theory.SGD(momentum=0.5)}, ()),
    "fixed effective_lr": ({"lr": 0.1, "wd": 0.01, "fixed": "effective_lr"}, ()),
}


@pytest.fixture(params=CALLS, ids=str)
def call(request):
    arguments, shape = CALLS[request.param]
    others = {name: value for name, value in arguments.items() if name not in ("lr", "wd")}

    def run(steps, start=None, **more):
        kept = {name: value for name, value in others.items() if start is None or name not in ("walkers", "norm")}
        landscape = LANDSCAPES["squared"]
        if start is None:
            more.setdefault("seed", 3)
        return descend(landscape, arguments["lr"], arguments["wd"], steps=steps, start=start, **kept, **more)

    return run, shape


def assert_goes_on(whole, first, second):
    for name in COLUMNS:
        joined = np.concatenate([first[name].values, second[name].values], axis=-1)
        np.testing.assert_array_equal(joined, whole[name].values, err_msg=name)
    for name in ("final_norm", "final_weights", "final_velocity", "held_norm", "status", "status_step", "walker"):
        if name in whole.variables:
            xr.testing.assert_identical(second[name], whole[name])
    np.testing.assert_array_equal(np.append(first.step, second.step), whole.step)
    assert second.attrs == whole.attrs


class TestConformance:
    def test_zero_steps_give_zero_rows_and_the_start(self, call):
        run, shape = call
        none, one = run(0), run(1)
        assert none.norm.shape == (*shape, 0)
        np.testing.assert_array_equal(none.final_norm, one.norm.isel(step=0))
        assert (none.status == "complete").all()
        assert (none.status_step == 0).all()
        assert one.norm.shape == (*shape, 1)
        assert (one.status_step == 1).all()

    @pytest.mark.parametrize("stride", [2, 3, 11, 12, 100])
    def test_stride_keeps_every_nth_row(self, call, stride):
        run, _ = call
        xr.testing.assert_identical(run(12, record_every=stride), run(12).isel(step=slice(None, None, stride)))

    def test_same_seed_same_run_other_seed_another(self, call):
        run, _ = call
        xr.testing.assert_identical(run(12), run(12))
        assert (run(12).loss != run(12, seed=4).loss).all()

    def test_the_contract_is_kept(self, call):
        run, shape = call
        result = run(12)
        dims = ("batch",) if shape else ()
        for name in COLUMNS:
            assert result[name].dims == (*dims, "step"), name
            assert result[name].shape == (*shape, 12), name
            assert np.isfinite(result[name]).all(), name
        for name in ("final_norm", "status", "status_step", "walker"):
            assert result[name].dims == dims, name
        assert result.final_weights.dims == (*dims, "weight")
        for name in result.variables:
            assert result[name].attrs.get("units") is not None or name == "walker", name
            if name in VARIABLES:
                assert (result[name].attrs["units"], result[name].attrs["long_name"]) == VARIABLES[name], name
        assert result.attrs["source"] == "landscape"
        assert result.attrs["seed"] == 3
        in_time = "lr" in result.data_vars
        for name in ("lr", "wd"):
            varies = name == "lr" and in_time
            assert (name in result.attrs) == (not shape and not varies), name
            assert (name in result.coords) == (bool(shape) and not varies), name
        if in_time:
            assert result.lr.dims == ("step",)

    @pytest.mark.parametrize(("cut", "stride"), [(7, 1), (0, 1), (12, 1), (7, 3), (6, 4), (1, 5)])
    def test_a_run_that_is_cut_goes_on_bit_for_bit(self, call, cut, stride):
        run, _ = call
        first = run(cut, record_every=stride)
        assert_goes_on(run(12, record_every=stride), first, run(12 - cut, start=first, record_every=stride))

    def test_also_twice_and_from_disk(self, call, tmp_path):
        run, _ = call
        first = run(3)
        second = run(4, start=first)
        simulate.save(second, tmp_path / "run.zarr")
        third = run(5, start=simulate.load(tmp_path / "run.zarr"))
        joined = np.concatenate([part.loss.values for part in (first, second, third)], axis=-1)
        np.testing.assert_array_equal(joined, run(12).loss.values)

    def test_another_state_gives_another_run(self, call):
        # the control of the two tests above: noise, weights and velocity all matter
        run, _ = call
        first, whole = run(7), run(12)
        changes = [first.assign_attrs(seed=4), first.assign(final_weights=first.final_weights * [1, 1, 1, 1, 1, 1.1])]
        changes += [first.assign(final_velocity=first.final_velocity * 2)] if "final_velocity" in first else []
        changes += [first.assign_attrs(updates=8)]
        for changed in changes:
            other = run(5, start=changed)
            assert (other.loss.values[..., 1:] != whole.loss.values[..., 8:]).any()

    def test_some_walkers_go_on_alone(self):
        whole = descend(LANDSCAPES["squared"], 0.1, 0.02, steps=12, walkers=4)
        first = descend(LANDSCAPES["squared"], 0.1, 0.02, steps=7, walkers=4)
        two = descend(LANDSCAPES["squared"], 0.1, 0.02, steps=5, start=first.isel(batch=[3, 1]))
        one = descend(LANDSCAPES["squared"], 0.1, 0.02, steps=5, start=first.isel(batch=2))
        np.testing.assert_array_equal(two.loss, whole.loss.values[[3, 1], 7:])
        np.testing.assert_array_equal(one.loss, whole.loss.values[2, 7:])
        assert one.norm.dims == ("step",)

    def test_walkers_are_independent(self):
        five, two, one = (
            descend(LANDSCAPES["squared"], 0.1, 0.02, steps=40, walkers=n, optimizer=theory.SGD(momentum=0.9))
            for n in (5, 2, 1)
        )
        for name in (*COLUMNS, "final_weights", "final_velocity"):
            np.testing.assert_array_equal(five[name].values[:2], two[name].values, err_msg=name)
            np.testing.assert_array_equal(five[name].values[0], one[name].values, err_msg=name)
        assert len(set(five.final_norm.values)) == 5

    def test_starts_are_spread_over_the_sphere(self):
        starts = descend(regression(dim=3), 0.1, 0.0, steps=0, walkers=4000, norm=2.0).final_weights.values / 2
        np.testing.assert_allclose((starts**2).sum(axis=1), 1, rtol=1e-14)
        # E[x] = 0, E[xx'] = 1/3; the standard deviations of the means are 0.009 and at most 0.005
        assert abs(starts.mean(axis=0)).max() < 4 * 0.0092
        assert abs(starts.T @ starts / 4000 - np.eye(3) / 3).max() < 4 * 0.005

    def test_inputs_are_left_alone(self, call):
        run, _ = call
        first = run(7)
        before = first.copy(deep=True)
        run(5, start=first)
        xr.testing.assert_identical(first, before)
        arguments = {"lr": np.array([0.1, 0.2]), "wd": np.array([0.1, 0.0]), "weights": np.ones((2, 6))}
        copies = {name: value.copy() for name, value in arguments.items()}
        run_of_arrays = descend(LANDSCAPES["squared"], steps=5, **arguments)
        for name, value in copies.items():
            np.testing.assert_array_equal(arguments[name], value)
            arguments[name][:] = -1
        assert run_of_arrays.lr.values.tolist() == [0.1, 0.2]

    def test_lr_and_wd_may_change_between_calls(self):
        first = descend(Ratio2D(), 0.1, 0.01, steps=5, weights=[1.0, 1.0])
        second = descend(Ratio2D(), 0.2, 0.0, steps=5, start=first)
        rows, _, _ = by_hand(Ratio2D(), [0.2] * 5, 0.0, first.final_weights.values)
        np.testing.assert_allclose(second.norm, rows[0], rtol=1e-14)
        assert (second.attrs["lr"], second.attrs["wd"]) == (0.2, 0.0)


class TestEndOfTheFloatingPointRange:
    def test_without_gradients_the_norm_falls_to_the_origin(self):
        # at the minimum: 0.5^t is exact, and its square leaves the normal numbers, which end at 2^-1022
        run = descend(Ratio2D(), 0.5, 1.0, steps=2000, weights=[1.0, 0.0])
        assert (run.status.item(), run.status_step.item(), run.sizes["step"]) == ("collapsed", 511, 512)
        np.testing.assert_array_equal(run.norm, 0.5 ** np.arange(512))
        assert run.final_norm.item() == 0.5**511
        assert np.isfinite(run[list(COLUMNS)].to_array()).all()

    def test_with_gradients_it_does_not(self):
        run = descend(Ratio2D(), 0.5, 1.0, steps=2000, weights=[1.0, 1e-3])
        assert run.status.item() == "complete"
        assert run.norm.min() > 0.01

    def test_a_long_decay_phase_may_lose_the_gradient(self):
        # across a narrow valley the weights shrink by some exp(1/2ηλ) before the edge is reached: here below 1e-308
        lost = descend(Ratio2D(1.0, 5.0), 1.0, 1e-3, steps=400_000, record_every=1000, weights=[1.0, 0.1])
        assert lost.status.item() == "collapsed"
        assert lost.loss.values[-1] == 0.0
        kept = descend(Ratio2D(1.0, 5.0), 1.0, 1e-2, steps=400_000, record_every=1000, weights=[1.0, 0.1])
        assert kept.status.item() == "complete"

    def test_a_step_that_overflows_at_once(self):
        run = descend(RayleighQuotient([0.0, 1e170]), 1.0, 0.0, steps=5, weights=[1.0, 1.0])
        assert (run.status.item(), run.status_step.item(), run.sizes["step"]) == ("diverged", 0, 1)
        np.testing.assert_array_equal(run.final_weights, [1.0, 1.0])
        assert run.grad_norm.item() == pytest.approx(0.5e170)
        assert run.rotation.item() == pytest.approx(math.pi / 2)

    def test_the_angle_of_an_overflowing_step_is_nan(self):
        run = descend(RayleighQuotient([0.0, 1e200]), 1e200, 0.0, steps=5, weights=[1.0, 1.0])
        assert (run.status.item(), run.sizes["step"]) == ("diverged", 1)
        assert np.isnan(run.rotation.item())
        assert np.isfinite(run.grad_norm.item())

    def test_gradients_that_overflow(self):
        run = descend(NormalizedRegression(np.eye(2), [1e200, 0.0]), 0.1, 0.0, steps=5, weights=[1.0, 1.0])
        assert (run.status.item(), run.status_step.item()) == ("diverged", 0)
        np.testing.assert_array_equal(run.final_weights, [1.0, 1.0])

    @pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
    def test_in_a_batch_the_others_go_on(self, optimizer):
        weights = [[1.0, 1.0], [1.0, 0.0], [1e-153, 1e-153]]
        run = descend(Ratio2D(1e3, 500.0), 1.0, 0.5, steps=12_000, weights=weights, optimizer=optimizer)
        assert run.status.values.tolist() == ["complete", "collapsed", "diverged"]
        assert run.status_step.values[[0, 2]].tolist() == [12_000, 0]
        for walker, last in enumerate(run.status_step.values):
            for name in COLUMNS:
                assert np.isfinite(run[name][walker, : last + 1]).all(), name
                assert np.isnan(run[name][walker, last + 1 :]).all(), name
        assert np.isfinite(run.final_weights).all()
        alone = descend(Ratio2D(1e3, 500.0), 1.0, 0.5, steps=12_000, weights=weights[0], optimizer=optimizer)
        np.testing.assert_array_equal(run.norm[0], alone.norm)

    def test_tiny_gradients_are_not_zero(self):
        # their squares are
        run = descend(Ratio2D(), 0.1, 0.0, steps=1, weights=[1.0, 1e-200])
        assert run.grad_norm.item() == pytest.approx(1e-200, rel=1e-12)
        assert run.rotation.item() == pytest.approx(1e-201, rel=1e-12)

    def test_a_walker_that_has_ended_stays_as_it_is(self):
        arguments = {"lr": 0.5, "wd": 1.0}
        weights = [[1.0, 1.0], [1.0, 0.0]]
        whole = descend(Ratio2D(), **arguments, steps=1000, weights=weights)
        first = descend(Ratio2D(), **arguments, steps=600, weights=weights)
        assert_goes_on(whole, first, descend(Ratio2D(), **arguments, steps=400, start=first))
        alone = descend(Ratio2D(), **arguments, steps=400, start=first.isel(batch=1))
        assert (alone.sizes["step"], alone.status.item(), alone.status_step.item()) == (0, "collapsed", 511)

    def test_a_free_norm_at_a_fixed_effective_lr_overflows(self):
        # each step multiplies the norm by √(1+(ηg̃)²); on the sphere the same run goes on for ever
        quotient = RayleighQuotient([0.0, 1.0, 2.0])
        free = descend(quotient, 20.0, 0.0, steps=3000, fixed="effective_lr")
        assert free.status.item() == "diverged"
        assert descend(quotient, 20.0, 0.0, steps=3000, fixed="norm").status.item() == "complete"


class TestFixed:
    def test_the_norm_is_constant(self):
        run = descend(LANDSCAPES["squared"], 0.3, 0.0, steps=500, walkers=3, norm=[0.1, 1.0, 7.0], fixed="norm")
        for walker, norm in zip(run.norm.values, [0.1, 1.0, 7.0], strict=True):
            np.testing.assert_allclose(walker, norm, rtol=1e-14)
        np.testing.assert_allclose(run.effective_lr[0], 0.3 / 0.1**2, rtol=1e-13)

    def test_both_kinds_have_the_same_directions(self):
        # up to rounding, which full-batch descent at a minimum does not amplify
        quotient = RayleighQuotient([0.0, 1.0, 2.0])
        sphere = descend(quotient, 0.4, 0.0, steps=40, fixed="norm")
        free = descend(quotient, 0.4, 0.0, steps=40, fixed="effective_lr", norm=1.0)
        large = descend(quotient, 0.4 * 9, 0.0, steps=40, fixed="norm", norm=3.0)
        for other in (free, large):
            for name in ("loss", "rotation", "grad_norm", "effective_lr"):
                np.testing.assert_allclose(other[name], sphere[name], rtol=1e-12, atol=1e-13, err_msg=name)
        growth = np.sqrt(1 + (0.4 * free.grad_norm.values) ** 2).prod()
        assert free.final_norm.item() == pytest.approx(growth, rel=1e-13)
        # the norm of an ordinary run grows, and its effective learning rate decreases
        ordinary = descend(quotient, 0.4, 0.0, steps=40)
        assert ordinary.effective_lr.values[-1] < 0.95 * 0.4
        assert abs(ordinary.loss / sphere.loss - 1).max() > 0.1

    def test_decay_of_a_free_norm_only_scales_it(self):
        # x⁺ = (1-ηλ)x - ηρ²∇f: the effective learning rate of the direction is η/(1-ηλ)
        quotient = RayleighQuotient([0.0, 1.0, 2.0])
        decayed = descend(quotient, 0.4, 0.25, steps=40, fixed="effective_lr")
        plain = descend(quotient, 0.4 / 0.9, 0.0, steps=40, fixed="effective_lr")
        np.testing.assert_allclose(decayed.loss, plain.loss, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(decayed.norm, plain.norm * 0.9 ** np.arange(40), rtol=1e-12)


def settled_ratio(highest, intrinsic_lr):
    """η̃h of the cycle of period 2 for a `Ratio2D` of curvature 1, where x⁺/ρ⁺ is the mirror image of x/ρ."""
    q = 1 / (2 * highest)
    return 2 * (1 + (q - 1) * intrinsic_lr / 2) ** 2


class TestEdgeOfStability:
    @pytest.mark.parametrize("intrinsic_lr", [0.003, 0.01, 0.05])
    @pytest.mark.parametrize("highest", [0.1, 0.2])
    def test_full_batch_descent_settles_there(self, highest, intrinsic_lr):
        run = descend(Ratio2D(1.0, highest), 1.0, intrinsic_lr, steps=int(500 / intrinsic_lr), weights=[1.0, 0.01])
        late = run.isel(step=slice(-1000, None))
        np.testing.assert_allclose(late.effective_lr, settled_ratio(highest, intrinsic_lr), rtol=1e-9)
        # there every step turns by the equilibrium angle, from one side of the valley to the other
        np.testing.assert_allclose(late.rotation, theory.equilibrium_rotation(1.0, intrinsic_lr), rtol=1e-9)
        # which is near the edge of stability, to first order in ηλ
        critical = theory.critical_norm(1.0, 1.0, wd=intrinsic_lr)
        assert abs(float(late.norm.mean()) / critical - 1) < 0.75 * intrinsic_lr / highest
        # and not at the equilibrium norm of the initial gradient
        constant = simulate.norm_map(
            1.0, intrinsic_lr, run.grad_norm.values[0], norm=1.0, steps=int(500 / intrinsic_lr)
        )
        assert constant.final_norm.item() == pytest.approx(
            theory.equilibrium_norm(1.0, intrinsic_lr, run.grad_norm.values[0]), rel=1e-9
        )
        assert constant.final_norm.item() < 0.6 * critical
        # the curvature alone decides: four times of it, with the same shape, doubles the norm
        steeper = descend(Ratio2D(4.0, 4 * highest), 1.0, intrinsic_lr, steps=int(500 / intrinsic_lr), weights=[1, 0.1])
        assert steeper.final_norm.item() == pytest.approx(2 * late.norm.values[-1], rel=1e-9)

    def test_the_cycle_attracts_below_half_the_curvature_and_repels_above(self):
        intrinsic_lr = 0.01

        def deviations(highest):
            # of ln η̃, early and late, from a start 1e-3 beside the cycle in ln ρ
            angle = math.acos(1 - intrinsic_lr) / 2
            norm = 1.001 / math.sqrt(settled_ratio(highest, intrinsic_lr))
            weights = [norm * math.cos(angle), norm * math.sin(angle)]
            run = descend(Ratio2D(1.0, highest), 1.0, intrinsic_lr, steps=30_000, weights=weights)
            logarithm = abs(np.log(run.effective_lr.values / settled_ratio(highest, intrinsic_lr)))
            return logarithm[:100].max(), logarithm[-1000:].max()

        first, last = deviations(0.3)
        assert last < first / 1000
        first, last = deviations(0.5)
        assert last == pytest.approx(first, rel=0.01)
        first, last = deviations(0.8)
        assert last > 20 * first

    @pytest.mark.parametrize("highest", [0.35, 0.4, 0.48, 0.52, 0.6])
    def test_oscillations_grow_or_decay_by_the_determinant(self, highest):
        intrinsic_lr = 0.01
        q, s = 1 / (2 * highest), 1 - intrinsic_lr
        determinant = -1 + 2 * s * (q - 1) * (1 - s * s) / (1 + (q - 1) * intrinsic_lr / 2)
        angle = math.acos(s) / 2
        norm = 1.0001 / math.sqrt(settled_ratio(highest, intrinsic_lr))
        weights = [norm * math.cos(angle), norm * math.sin(angle)]
        run = descend(Ratio2D(1.0, highest), 1.0, intrinsic_lr, steps=1000, weights=weights)
        deviation = abs(np.log(run.effective_lr.values / settled_ratio(highest, intrinsic_lr)))
        # two complex eigenvalues: each step multiplies by the root of the determinant's modulus
        growth = math.log(deviation[800:1000].max() / deviation[:200].max()) / 800
        assert growth == pytest.approx(math.log(abs(determinant)) / 2, rel=0.05)

    @pytest.mark.parametrize("spectrum", [[0.0, 1.0], [0.0, 0.5, 1.0, 2.0]], ids=str)
    def test_a_rayleigh_quotient_oscillates_around_it(self, spectrum):
        # neutral: the oscillation is undamped, so from a start elsewhere the norm crosses the edge back and forth
        quotient = RayleighQuotient(spectrum)
        run = descend(quotient, 1.0, 0.01, steps=20_000)
        periods = simulate.find_periods(run)
        critical = theory.critical_norm(1.0, quotient.sharpness, wd=0.01)
        assert periods.count > 50
        assert (periods.trough_norms < critical).all()
        assert (periods.peak_norms > critical).all()
        # the geometric mean of η̃ is at the edge within a factor that the constant-gradient equilibrium misses
        middle = math.exp(float(np.log(run.effective_lr[5000:]).mean())) * quotient.sharpness
        assert 1.5 < middle < 2.5
        assert theory.equilibrium_effective_lr(1.0, 0.01, run.grad_norm.values[0]) * quotient.sharpness < 1

    def test_a_rayleigh_quotient_stays_exactly_at_equilibrium(self):
        for intrinsic_lr in (0.01, 0.05):
            angle, norm = math.acos(1 - intrinsic_lr) / 2, math.sqrt(0.5)
            weights = [norm * math.cos(angle), norm * math.sin(angle)]
            run = descend(RayleighQuotient([0.0, 1.0]), 1.0, intrinsic_lr, steps=10_000, weights=weights)
            np.testing.assert_allclose(run.effective_lr, 2.0, rtol=1e-9)


class TestPeriods:
    def run(self, highest, intrinsic_lr=0.01, weights=(1.0, 0.1)):
        return descend(Ratio2D(1.0, highest), 1.0, intrinsic_lr, steps=int(200 / intrinsic_lr), weights=weights)

    def test_small_periods(self):
        # beside the neutral cycle
        intrinsic_lr = 0.01
        angle, norm = math.acos(1 - intrinsic_lr) / 2, math.sqrt(0.5 / 1.3)
        run = self.run(0.5, intrinsic_lr, (norm * math.cos(angle), norm * math.sin(angle)))
        classification = simulate.classify(run)
        assert classification.verdict == "periodic"
        assert classification.periods.count > 50
        assert 0.15 < classification.periods.norm_rise < 0.35
        assert classification.periods.lengths.std() < 0.05 * classification.periods.mean

    def test_large_periods(self):
        run = self.run(50.0)
        classification = simulate.classify(run)
        assert classification.verdict == "periodic"
        assert classification.periods.count > 50
        assert classification.periods.norm_rise > 2
        # between destabilizations ln ρ decays by J without growth: T ηλ ≈ J
        assert classification.periods.outside_growth < 0.05
        # single steps throw the weights out of the valley
        assert run.rotation.max() > 1

    def test_no_periods(self):
        assert str(simulate.classify(self.run(0.1))) == "equilibrium"
        assert simulate.find_periods(self.run(0.1)).count == 0

    @pytest.mark.parametrize(("highest", "smallest", "largest"), [(0.1, 0, 1e-9), (0.5, 0.05, 0.2), (50.0, 0.5, 2)])
    def test_fourth_powers_of_the_norm(self, highest, smallest, largest):
        # exact is E[ρ⁴] with the mean square of the changes of ρ² (docs/mathematics.md §2), which large periods feel
        late = self.run(highest).isel(step=slice(1000, None))
        squares, a = late.norm.values**2, 0.99**2
        pushes, changes = late.grad_norm.values[:-1] ** 2, np.diff(squares) ** 2
        ends = (squares[-1] ** 2 - squares[0] ** 2) / 2
        law = pushes.sum() + changes.sum() / 2 - ends
        assert (1 - a) * (squares[:-1] ** 2).sum() == pytest.approx(law, rel=1e-9)
        # without that term it is the equilibrium formula
        ratio = float((late.norm**4).mean()) ** 0.25 / theory.equilibrium_norm(1.0, 0.01, math.sqrt(pushes.mean()))
        assert smallest <= abs(ratio - 1) < largest


class TestOnTheSphere:
    """The three regimes of training on the sphere at a constant effective learning rate (arXiv 2209.03695)."""

    def mean_loss(self, landscape, lr, walkers=8, steps=4000):
        """Mean mini-batch loss of the third and the last quarter, and the full-batch loss at the end."""
        run = descend(landscape, lr, 0.0, steps=steps, fixed="norm", walkers=walkers)
        quarter = steps // 4
        third, last = (float(run.loss[:, i * quarter : (i + 1) * quarter].mean()) for i in (2, 3))
        return third, last, float(landscape.value(run.final_weights).mean())

    def test_interpolation_converges_at_small_lr_only(self):
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(100, 20))
        truth = generator.normal(size=20)
        interpolated = NormalizedRegression(inputs, inputs @ truth / np.linalg.norm(truth), batch_size=4)
        at_random = float(interpolated.value(generator.normal(size=(2000, 20))).mean())
        # convergence: to a minimum that all examples share, at every learning rate below a threshold
        for lr in (0.03, 0.1, 0.2):
            assert self.mean_loss(interpolated, lr)[2] < 1e-25
        # chaotic equilibrium: stationary, far above the minimum, higher at larger learning rates, below a random point
        levels = []
        for lr in (0.5, 0.7, 1.0):
            third, last, _ = self.mean_loss(interpolated, lr)
            assert abs(last / third - 1) < 0.05
            levels.append(last)
        assert 0.2 < levels[0] < 0.9 * levels[1] < 0.8 * levels[2] < 0.6 * at_random
        # divergence-like: the learning rate no longer matters
        wild = [self.mean_loss(interpolated, lr)[1] for lr in (30.0, 100.0, 1000.0)]
        assert max(wild) / min(wild) < 1.03
        # not the loss of a random point: a huge step follows the gradients of the examples, which depend on the truth
        assert wild[0] < 0.8 * at_random

    def test_with_random_labels_the_loss_becomes_that_of_a_random_point(self):
        generator = np.random.default_rng(0)
        inputs, labels = generator.normal(size=(60, 100)), np.sign(generator.normal(size=60))
        noise = NormalizedRegression(inputs, labels, batch_size=1, loss="logistic", output_norm=4.0)
        full = NormalizedRegression(inputs, labels, loss="logistic", output_norm=4.0)
        at_random = float(noise.value(generator.normal(size=(4000, 100))).mean())
        lowest = descend(full, 0.1, 0.0, steps=3000, fixed="norm", record_every=2999).loss.values[-1]
        assert lowest < 0.03 * at_random

        def full_loss(lr):
            run = descend(noise, lr, 0.0, steps=3000, fixed="norm", walkers=8, record_every=3000)
            losses = []
            for _ in range(50):
                run = descend(noise, lr, 0.0, steps=50, fixed="norm", start=run, record_every=50)
                losses.append(float(noise.value(run.final_weights).mean()))
            return float(np.mean(losses))

        # small, medium and large lr; the standard deviation of a random point's loss, 0.28, leaves 0.014 here
        settled, chaotic, wild, wilder = (full_loss(lr) for lr in (1e-3, 0.02, 10.0, 100.0))
        assert settled < 2 * lowest
        assert 10 * lowest < chaotic < 0.8 * at_random
        assert abs(wild / at_random - 1) < 0.03
        assert abs(wilder / at_random - 1) < 0.03

    def test_a_full_batch_converges_up_to_the_edge_of_stability(self):
        # which on the sphere, without decay, is η̃h = 2 to the letter
        quotient = RayleighQuotient([0.0, 0.5, 1.0, 2.0])
        for share, converges in ((0.9, True), (0.99, True), (1.01, False), (1.1, False)):
            lr = share * 2 / quotient.sharpness
            run = descend(quotient, lr, 0.0, steps=5000, fixed="norm", walkers=4)
            assert ((run.loss.values[:, -1] - quotient.lowest < 1e-20).all()) == converges, share
            assert ((run.rotation.values[:, -1] < 1e-8).all()) == converges, share


class TestNoise:
    LR, K = 0.5, 1e-3

    def landscape(self, batch_size):
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(200, 10))
        targets = inputs @ generator.normal(size=10) / 3 + generator.normal(size=200)
        return NormalizedRegression(inputs, targets, batch_size=batch_size)

    def test_mini_batches_hold_the_norm_at_the_equilibrium_of_the_mean_square(self):
        run = descend(self.landscape(8), self.LR, self.K / self.LR, steps=60_000, walkers=2)
        late = run.isel(step=slice(5_000, None))
        square = (late.grad_norm**2).mean("step").values
        predicted = theory.equilibrium_norm(self.LR, self.K / self.LR, np.sqrt(square))
        measured = (late.norm**4).mean("step").values ** 0.25
        # §2: 1 + (1-a)V²/2a, some 3e-4 in ρ⁴, and the ends of the window
        np.testing.assert_allclose(measured, predicted, rtol=5e-4)
        # the whole trace is there, not its mean alone
        np.testing.assert_allclose(late.norm.median("step"), predicted, rtol=2e-3)
        assert str(simulate.classify(run.isel(batch=0))) == "equilibrium"
        # and fluctuates as independent gradients make it
        share = float(late.grad_norm.var() / late.grad_norm.mean() ** 2)
        assert share > 0.05
        spread = float(((late.grad_norm**2).std("step") / square).mean()) * math.sqrt(2 * self.K) / 4
        np.testing.assert_allclose(np.log(late.norm).std("step"), spread, rtol=0.15)
        # far from the edge of stability, and not at the equilibrium of the mean gradient
        assert float(late.effective_lr.mean()) * self.landscape(8).sharpness_at(run.final_weights[0]) < 0.2
        mean = theory.equilibrium_norm(self.LR, self.K / self.LR, late.grad_norm.mean("step").values)
        assert (measured / mean > 1.02).all()

    def test_a_full_batch_does_not_settle_there(self):
        run = descend(self.landscape(None), self.LR, self.K / self.LR, steps=20_000)
        assert str(simulate.classify(run)) != "equilibrium"
        sharpness = self.landscape(None).sharpness_at(run.final_weights)
        assert float(run.effective_lr[-5000:].max()) * sharpness > 2


GOOD = {"landscape": Ratio2D(), "lr": 0.1, "wd": 0.01, "steps": 3}
START = descend(**GOOD)
MOVING = descend(**GOOD, optimizer=theory.SGD(momentum=0.5))
BAD = [
    ({"landscape": "ratio"}, TypeError, r"^landscape must be a .*got str"),
    ({"landscape": Ratio2D}, TypeError, r"^landscape must be a .*got type"),
    ({"lr": 0}, ValueError, r"^lr must be a finite number > 0, got 0.0"),
    ({"lr": "0.1"}, TypeError, r"^lr must be "),
    ({"lr": [0.1, math.nan]}, ValueError, r"^lr must be .*got nan at index 1"),
    ({"lr": [[0.1]]}, ValueError, r"^lr must be a number or have one value for each walker, got shape \(1, 1\)"),
    ({"lr": lambda step: 0.1}, ValueError, r"^lr must give one value for each step"),
    ({"lr": lambda step: 0.1 - step}, ValueError, r"^lr must be .*got -0.9 at index 1"),
    ({"wd": -1.0}, ValueError, r"^wd must be a finite number >= 0, got -1.0"),
    ({"wd": math.inf}, ValueError, r"^wd must be .*got inf"),
    ({"wd": None}, TypeError, r"^wd must be "),
    ({"wd": 20.0}, ValueError, r"^lr \* wd must be < 2 here, got 2"),
    ({"lr": theory.Constant(0.1), "wd": [1.0, 20.0]}, ValueError, r"^lr \* wd must be < 2 here, got 2"),
    ({"steps": -1}, ValueError, r"^steps must be a whole number >= 0, got -1"),
    ({"steps": 2.0}, TypeError, r"^steps must be a whole number >= 0, got 2.0"),
    ({"record_every": 0}, ValueError, r"^record_every must be a whole number >= 1, got 0"),
    ({"seed": -1}, ValueError, r"^seed must be a whole number >= 0.*got -1"),
    ({"seed": 2**63}, ValueError, r"^seed must be a whole number >= 0 and <= "),
    ({"seed": True}, TypeError, r"^seed must be a whole number"),
    ({"walkers": 0}, ValueError, r"^walkers must be a whole number >= 1, got 0"),
    ({"walkers": 2, "lr": [0.1, 0.2, 0.3]}, ValueError, r"^shapes must broadcast together, got .*walkers \(2,\)"),
    ({"norm": 0.0}, ValueError, r"^norm must be a finite number > 0, got 0.0"),
    ({"norm": 1e-160}, ValueError, r"^norm must be .*got 1e-160"),
    ({"norm": 1e160}, ValueError, r"^norm must be .*got 1e\+160"),
    ({"norm": "a"}, TypeError, r"^norm must be "),
    ({"weights": [1.0, 2.0, 3.0]}, ValueError, r"^weights must have the shape \(2,\) or \(walkers, 2\), got \(3,\)"),
    ({"weights": [1.0, math.nan]}, ValueError, r"^weights must be .*got nan at index 1"),
    ({"weights": [0.0, 0.0]}, ValueError, r"^norm of weights must be .*got 0.0"),
    ({"weights": [1e200, 0.0]}, ValueError, r"^norm of weights must be .*got inf"),
    ({"weights": [1.0, 0.0], "norm": 2.0}, ValueError, r"^norm must be left out with weights"),
    ({"optimizer": theory.AdamW(dim=2)}, ValueError, r"^optimizer must be a theory.SGD, got AdamW"),
    ({"optimizer": "AdamW(dim=2)"}, ValueError, r"^optimizer must be a theory.SGD, got AdamW"),
    ({"optimizer": "sgd"}, ValueError, r"^optimizer must be written like SGD.*got 'sgd'"),
    ({"fixed": "loss"}, ValueError, r"^fixed must be one of None, 'norm', 'effective_lr'; got 'loss'"),
    ({"fixed": 3}, ValueError, r"^fixed must be one of .*got 3"),
    ({"fixed": "norm"}, ValueError, r"^wd must be 0 with fixed='norm', got 0.01"),
    ({"start": 3}, TypeError, r"^start must be a trajectory that descend returned, got int"),
    ({"start": simulate.norm_map}, TypeError, r"^start must be a trajectory that descend returned"),
    ({"start": START.assign_attrs(source="map")}, ValueError, r"^start must have the source 'landscape', got 'map'"),
    ({"start": START, "landscape": Ratio2D(2.0)}, ValueError, r"^start must have the landscape 'Ratio2D\(sharp.*2.0"),
    ({"start": START, "optimizer": theory.SGD(momentum=0.5)}, ValueError, r"^start must have the optimizer 'SGD\(mom"),
    (
        {"start": START, "fixed": "norm", "wd": 0},
        ValueError,
        r"^start.*constraint 'fixed norm', got 'none'",
    ),
    ({"start": START.drop_vars("final_weights")}, ValueError, r"must have the variable 'final_weights'"),
    (
        {"start": MOVING.drop_vars("final_velocity"), "optimizer": theory.SGD(momentum=0.5)},
        ValueError,
        r"must have the variable 'final_velocity'",
    ),
    ({"start": START, "walkers": 2}, ValueError, r"^walkers, norm and weights must be left out with start"),
    ({"start": START, "norm": 2.0}, ValueError, r"^walkers, norm and weights must be left out with start"),
    ({"start": START, "weights": [1.0, 0.0]}, ValueError, r"^walkers, norm and weights must be left out with start"),
    ({"start": START, "seed": 5}, ValueError, r"^seed must be that of start, 0, or left out; got 5"),
    ({"start": START, "lr": [0.1, 0.2]}, ValueError, r"^lr must be a number or have one value for each of 1 walkers"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:45] for _, _, message in BAD])
def test_bad_values_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        descend(**{**GOOD, **arguments})
