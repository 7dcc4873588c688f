import dataclasses
import functools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import simulate
import theory
from simulate._files import write_json
from simulate.period_model.model import PeriodModel, simulated_periods
from simulate.period_model.reduced_model import Trend

REFERENCE = PeriodModel.reference()
TRACES = Path(__file__).parents[2] / "traces"


@pytest.fixture(scope="module")
def calibration_runs():
    return [simulate.load(TRACES / f"convnet_{name}.zarr") for name in ("1e-2", "2e-3")]


def test_it_reproduces_its_calibration_runs():
    for run in REFERENCE.calibration_runs:
        same = [other for other in REFERENCE.calibration_runs if other.intrinsic_lr == run.intrinsic_lr]
        simulated = simulated_periods(REFERENCE, 0.5, run.intrinsic_lr / 0.5, periods=2000, seed=5)
        # seeds of one setting have one simulation: their standard errors and that of the simulation
        error = np.hypot(run.period_stderr, simulated.stderr)
        assert abs(simulated.mean - run.period) < 3 * error, run
        assert abs(simulated.mean / np.mean([other.period for other in same]) - 1) < 3 * error / run.period
        assert simulated.trough_norm / 0.5**0.5 == pytest.approx(run.trough_norm, rel=0.05)
        assert simulated.peak_norm / 0.5**0.5 == pytest.approx(run.peak_norm, rel=0.05)
        # the law weighs the measurement, of a standard error of up to 4 %, against the trend of other networks
        assert simulate.period(0.5, run.intrinsic_lr / 0.5).period == pytest.approx(run.period, rel=0.07)
        # the reduced model as it is, without correction
        assert run.simulated_period == pytest.approx(run.period, rel=0.2)


def test_the_reference_model_stores_its_configurations():
    runs = [json.loads(run.run) for run in REFERENCE.calibration_runs]
    assert {(run["model"], run["dataset"], run["batch_size"]) for run in runs} == {("convnet", "digits", 64)}
    assert sorted((run["wd"], run["seed"]) for run in runs) == [(0.004, 0), (0.004, 1), (0.02, 0), (0.02, 1)]


def test_stored_calibration_runs_give_nearly_the_same_model(calibration_runs):
    model = PeriodModel.from_runs(calibration_runs)
    assert [run.count for run in model.calibration_runs] == [474, 129]
    for intrinsic_lr in (0.01, 0.005, 0.002, 0.001):
        wd = intrinsic_lr / 0.5
        simulated, expected = (simulated_periods(one, 0.5, wd, periods=1000).mean for one in (model, REFERENCE))
        assert simulated == pytest.approx(expected, rel=0.08)
        assert model.predict(0.5, wd).period == pytest.approx(REFERENCE.predict(0.5, wd).period, rel=0.08)


def test_a_single_run_and_the_order_of_runs(calibration_runs):
    model = PeriodModel.from_runs(calibration_runs[::-1])
    assert model == PeriodModel.from_runs(calibration_runs)
    single = PeriodModel.from_runs(calibration_runs[:1])
    assert single.reduced_model.loss_decay.power == 0
    assert [len(kind) for kind in single.law.kinds] == [1]
    simulated, expected = (simulated_periods(one, 0.5, 0.02, periods=1000).mean for one in (single, model))
    assert simulated == pytest.approx(expected, rel=0.1)
    assert single.predict(0.5, 0.02).period == pytest.approx(model.predict(0.5, 0.02).period, rel=0.1)


def test_calibration_recovers_a_simulated_model():
    # calibration runs simulated by a model whose constants are known
    simulated_runs = [REFERENCE.oscillate(0.5, wd, steps=round(800 / wd), seed=4) for wd in (0.02, 0.004)]
    model = PeriodModel.from_runs(simulated_runs)
    for intrinsic_lr in (0.01, 0.002, 0.001):
        raw = [one.reduced_model.simulate(intrinsic_lr, 2000, 1) for one in (REFERENCE, model)]
        assert raw[1].mean == pytest.approx(raw[0].mean, rel=0.1)
        assert raw[1].trough_norm == pytest.approx(raw[0].trough_norm, rel=0.05)
    assert model.reduced_model.loss_decay.at(1.0) == pytest.approx(REFERENCE.reduced_model.loss_decay.at(1.0), rel=0.15)
    assert model.reduced_model.hazard[1] == pytest.approx(REFERENCE.reduced_model.hazard[1], rel=0.15)
    assert model.reduced_model.peak_residual_sd == pytest.approx(REFERENCE.reduced_model.peak_residual_sd, rel=0.1)


def test_a_fitted_model_always_destabilizes_again():
    # a network whose destabilizations hardly depend on the norm: ln h = ln L - 1.4 - 0.5 ln η̃
    reduced = dataclasses.replace(REFERENCE.reduced_model)
    object.__setattr__(reduced, "hazard", (-1.4, -0.5))
    network = dataclasses.replace(REFERENCE, reduced_model=reduced)
    model = PeriodModel.from_runs([network.oscillate(0.5, wd, steps=round(30 / wd), seed=2) for wd in (0.02, 0.01)])
    assert model.reduced_model.hazard[1] == 1.0
    for wd in (0.02, 0.004):
        run = model.oscillate(0.5, wd, steps=round(4000 / wd))
        least = float(run.norm.min())
        assert least > 0.02 * float(run.norm.median())
        # control: with the hazard of the network the norm vanishes
        assert network.oscillate(0.5, wd, steps=round(200 / wd)).norm.min() < 1e-6 * least


def test_a_stored_model_whose_norm_could_vanish_keeps_its_law(tmp_path):
    REFERENCE.save(tmp_path / "old.json")
    content = json.loads((tmp_path / "old.json").read_text(encoding="utf-8"))
    content["reduced_model"]["hazard"][1] = 0.4
    write_json(tmp_path / "old.json", {name: value for name, value in content.items() if name != "digest"})
    model = PeriodModel.load(tmp_path / "old.json")
    assert model.reduced_model is None
    assert "calibrate the network again" in model.reduced_model_error
    assert model.law.period(0.5, 0.004) == REFERENCE.law.period(0.5, 0.004)


def test_simulated_periods_depend_on_lr_times_wd_alone_and_norms_scale_with_the_root_of_lr():
    one, other = simulated_periods(REFERENCE, 0.5, 0.004), simulated_periods(REFERENCE, 2.0, 0.001)
    assert one.mean == pytest.approx(other.mean, rel=1e-12)
    assert other.trough_norm == pytest.approx(2 * one.trough_norm, rel=1e-12)
    assert other.peak_norm == pytest.approx(2 * one.peak_norm, rel=1e-12)
    assert other.effective_lr_at_destabilization == pytest.approx(one.effective_lr_at_destabilization, rel=1e-12)


def test_more_periods_reduce_the_standard_error():
    few, many = (simulated_periods(REFERENCE, 0.5, 0.004, periods=n, seed=n) for n in (100, 10_000))
    assert abs(few.mean - many.mean) < 4 * few.stderr
    assert many.stderr == pytest.approx(few.stderr / 10, rel=0.4)
    assert many.count == 10_000
    one, again, other = (simulated_periods(REFERENCE, 0.5, 0.004, seed=seed) for seed in (3, 3, 4))
    assert one == again != other


def test_trajectories_obey_the_one_step_law_and_the_contract():
    run = simulate.oscillate(0.5, 0.02, steps=5000, seed=2)
    np.testing.assert_allclose(simulate.replay(run).norm, run.norm, rtol=1e-10)
    assert run.attrs["source"] == "period_model"
    np.testing.assert_allclose(run.effective_lr, 0.5 / run.norm**2, rtol=1e-12)
    assert simulate.classify(run).verdict == "periodic"
    measured, predicted = simulate.find_periods(run), REFERENCE.reduced_model.simulate(0.01, 2000, 0)
    assert abs(measured.mean - predicted.mean) < 4 * measured.stderr
    # shortest possible decay phase: ln(peak/trough) over the decay of a step
    shortest = np.log(measured.peak_norms[:-1] / measured.trough_norms[1:]) / -np.log1p(-0.01)
    assert (shortest <= measured.lengths[:-1]).all()


def test_start_norm_and_batches():
    run = simulate.oscillate(0.5, [0.02, 0.01, 0.01], steps=100, norm=[3.0, 4.0, 5.0])
    np.testing.assert_allclose(run.norm[:, 0], [3.0, 4.0, 5.0], rtol=1e-12)
    assert run.norm.dims == ("batch", "step")
    np.testing.assert_array_equal(run.wd, [0.02, 0.01, 0.01])
    first_part = simulate.oscillate(0.5, [0.02, 0.01, 0.01], steps=40, norm=[3.0, 4.0, 5.0])
    second_part = simulate.oscillate(0.5, [0.02, 0.01, 0.01], steps=60, start=first_part)
    joined = xr.concat([first_part.norm, second_part.norm], "step")
    np.testing.assert_array_equal(joined, run.norm)
    np.testing.assert_array_equal(second_part.step, np.arange(40, 100))
    np.testing.assert_array_equal(second_part.final_oscillation, run.final_oscillation)


def test_walkers_do_not_depend_on_faster_ones():
    # ηλ = 0.2 uses exp of the library, which must not change the other walkers
    wd = np.array([0.02, 0.004, 0.4, 0.01])
    with pytest.warns(UserWarning, match="outside the range"):
        mixed = simulate.oscillate(0.5, wd, steps=4000, seed=1)
    slow = simulate.oscillate(0.5, wd[:2], steps=4000, seed=1)
    np.testing.assert_array_equal(mixed.norm[:2], slow.norm)
    np.testing.assert_array_equal(mixed.loss[:2], slow.loss)


@pytest.mark.parametrize(
    ("name", "wd", "law_error", "model_error"), [("5e-3", 0.01, 0.13, 0.12), ("1e-3", 0.002, 0.06, 0.15)]
)
def test_periods_of_held_out_runs(name, wd, law_error, model_error):
    # errors as in docs/mathematics.md §5; the measured means have standard errors of 2 and 5 %
    measured = simulate.find_periods(simulate.load(TRACES / f"convnet_{name}.zarr").assign_attrs(lr=0.5, wd=wd))
    assert measured.count > 70
    assert simulated_periods(REFERENCE, 0.5, wd, periods=5000).mean == pytest.approx(measured.mean, rel=model_error)
    assert simulate.period(0.5, wd).period == pytest.approx(measured.mean, rel=law_error)


def test_extreme_initial_norms_return():
    run = simulate.oscillate(0.5, 0.02, steps=4000, norm=np.array([1e-6, 7e5]))
    assert all(np.isfinite(run[name]).all() for name in ("norm", "loss", "grad_norm", "effective_lr", "rotation"))
    assert (run.norm.isel(step=slice(3000, None)) < 50).all()
    assert (run.norm.isel(step=slice(3000, None)) > 0.5).all()


def test_saving_and_loading(tmp_path):
    path = tmp_path / "model.json"
    REFERENCE.save(path)
    assert PeriodModel.load(path) == REFERENCE
    REFERENCE.save(path)
    assert list(tmp_path.iterdir()) == [path]
    for text in (
        "{",
        "[]",
        '{"schema": 3}',
        '{"schema": 2}',
        '{"schema": 1}',
        json.dumps({**json.loads(path.read_text()), "reduced_model": 3}),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="path must"):
            PeriodModel.load(path)


def test_outside_the_calibrated_range_it_warns():
    for wd in (0.05, 1e-4):
        for call in (REFERENCE.predict, simulate.period, functools.partial(simulated_periods, REFERENCE)):
            with pytest.warns(UserWarning, match="outside the range of the model"):
                call(0.5, wd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (REFERENCE.predict, simulate.period, functools.partial(simulated_periods, REFERENCE)):
            call(0.5, 0.02)
            call(0.1, 0.1)
            call(0.5, 0.01 / 30 / 0.5)


def test_a_model_without_destabilizations_has_no_period():
    steady = dataclasses.replace(
        REFERENCE, reduced_model=dataclasses.replace(REFERENCE.reduced_model, hazard=(-80.0, 1.0))
    )
    simulated = simulated_periods(steady, 0.5, 0.02, periods=20)
    assert simulated.count == 0
    assert np.isnan(simulated.mean)
    assert np.isnan(simulated.trough_norm)


def test_a_model_is_printed_as_a_few_lines():
    lines = str(REFERENCE).splitlines()
    assert lines[0] == "period model, calibrated with SGD() at"
    assert len(lines) == 1 + len(REFERENCE.calibration_runs)
    assert all("lr * wd = " in line and " periods, T = " in line for line in lines[1:])
    without = dataclasses.replace(REFERENCE, reduced_model=None, reduced_model_error="too few periods")
    assert str(without).endswith("without a reduced model: too few periods")


def test_trends():
    trend = Trend.through([1.0, 0.2, 0.04], [3.0, 6.0, 12.0])
    assert [trend.at(share) for share in (1.0, 0.2, 0.04)] == pytest.approx([3, 6, 12])
    assert Trend.through([1.0, 1.0], [2.0, 8.0]).at(1.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate.period(0.0, 0.1), "lr must be"),
        (lambda: REFERENCE.reduced_model.simulate(0.01, periods=0, seed=0), "periods must be"),
        (lambda: REFERENCE.reduced_model.simulate(1.5, periods=10, seed=0), "intrinsic_lr must be"),
        (lambda: simulate.period(0.5, 0.0), "wd must be"),
        (lambda: simulate.period(0.5, 3.0), "lr \\* wd must be < 1"),
        (lambda: simulate.period(0.5, 0.02, level=1.0), "level must be"),
        (lambda: simulate.period(0.5, 0.02, level=0), "level must be"),
        (lambda: simulated_periods(REFERENCE, 0.0, 0.1), "lr must be"),
        (lambda: simulated_periods(REFERENCE, 0.5, 3.0), "lr \\* wd must be < 1"),
        (lambda: simulated_periods(REFERENCE, 0.5, 0.02, periods=1), "periods must be"),
        (lambda: simulated_periods(REFERENCE, 0.5, 0.02, seed=-1), "seed must be"),
        (lambda: simulate.oscillate(0.5, 0.02, steps=-1), "steps must be"),
        (lambda: simulate.oscillate(0.5, 0.02, steps=5, norm=0.0), "norm must be"),
        (lambda: simulate.oscillate(0.5, [[0.02]], steps=5), "lr, wd and norm must"),
        (lambda: simulate.oscillate(0.5, 0.02, steps=5, norm=1e-7), "norm must be within a factor of 1e"),
        (
            lambda: PeriodModel.from_runs([simulate.oscillate(0.5, 0.02, steps=700)]),
            r"calibration_runs\[0\] must have at least",
        ),
        (
            lambda: PeriodModel.from_runs([simulate.oscillate(0.5, 0.02, steps=9000, record_every=2)]),
            r"calibration_runs\[0\] must have every step",
        ),
        (
            lambda: PeriodModel.from_runs([simulate.norm_map(0.5, 0.02, 1.0, norm=1.0, steps=500)]),
            r"calibration_runs\[0\]: .*loss",
        ),
        (lambda: dataclasses.replace(REFERENCE, rise=0.0), "rise must be"),
        (lambda: dataclasses.replace(REFERENCE.reduced_model, hazard=(1.0,)), "hazard must be 2 numbers"),
        (lambda: dataclasses.replace(REFERENCE.reduced_model, hazard=(1.0, 0.4)), "hazard must .* p >= 1, got 0.4"),
        (lambda: dataclasses.replace(REFERENCE, calibration_runs=()), "calibration_runs must"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate.period(0.5, 0.02, model="convnet"), "model must be a PeriodModel"),
        (lambda: simulate.period([0.5], 0.02), "lr must be"),
        (lambda: PeriodModel.from_runs([]), "calibration_runs must"),
    ],
)
def test_bad_types_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_coupled_momentum_is_refused(calibration_runs):
    other = calibration_runs[0].assign_attrs(optimizer=repr(theory.SGD(momentum=0.9)))
    with pytest.raises(ValueError, match=r"must use an.* got SGD\(momentum=0.9\)"):
        PeriodModel.from_runs([other])


def periodic_run(rule, lr, intrinsic_lr, *, cycle=150, seed=0):
    """Periodic trajectory whose norms follow from its gradient norms, under a rule with decoupled decay."""
    generator = np.random.default_rng(seed)
    lengths = generator.normal(cycle, 0.2 * cycle, 40).astype(int)
    grad_norm = np.concatenate([np.r_[60.0, np.full(n, 0.1)] for n in lengths])
    run = simulate.norm_map(1.0, intrinsic_lr, simulate.RecordedGradient(grad_norm), norm=5.0, steps=grad_norm.size)
    # the norms of AdamW are proportional to lr
    return run.assign(norm=run.norm * lr, loss=run.norm * 0 + 1.0).assign_attrs(
        lr=lr, wd=intrinsic_lr / lr, optimizer=repr(rule)
    )


def test_norms_of_adamw_are_proportional_to_lr():
    rule = theory.AdamW(dim=100)
    model = PeriodModel.from_runs([periodic_run(rule, 1e-3, 0.005), periodic_run(rule, 1e-3, 0.001, cycle=700)])
    assert model.reduced_model is None
    assert "not AdamW" in model.reduced_model_error
    one, other = model.predict(1e-3, 3.0), model.predict(2e-3, 1.5)
    assert one.period == pytest.approx(other.period, rel=1e-9)
    assert one.period * 0.003 == pytest.approx(0.75, rel=0.3)
    assert other.norm == pytest.approx(2 * one.norm, rel=1e-9)
    with pytest.raises(ValueError, match="not AdamW"):
        simulated_periods(model, 1e-3, 3.0)


def test_a_fixed_norm_is_refused(calibration_runs):
    with pytest.raises(ValueError, match="without a constraint, got 'fixed norm'"):
        PeriodModel.from_runs([calibration_runs[0].assign_attrs(constraint="fixed norm")])


def test_two_optimizers_are_refused(calibration_runs):
    other = periodic_run(theory.AdamW(dim=100), 1e-3, 0.005)
    with pytest.raises(ValueError, match=r"calibration_runs must use one optimizer, got AdamW\(.*SGD\(\)"):
        PeriodModel.from_runs([calibration_runs[0], other])


def test_models_from_lists_predict_and_their_optimizer_is_stored_with_its_module(tmp_path):
    reference = PeriodModel.reference()
    by_hand = dataclasses.replace(reference, calibration_runs=list(reference.calibration_runs))
    assert by_hand.predict(0.5, 0.01) == reference.predict(0.5, 0.01)
    own = dataclasses.replace(reference, optimizer=OwnSGD(), reduced_model=None)
    own.save(tmp_path / "own.json")
    assert PeriodModel.load(tmp_path / "own.json") == own


class OwnSGD(theory.SGD):
    """Optimizer of a user."""
