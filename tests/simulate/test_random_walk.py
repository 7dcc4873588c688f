import numpy as np
import pytest
import xarray as xr

import simulate
import theory

DIM, WALKERS = 300, 32
# rule, lr, wd, steps, allowed error of the mean of ρ^p and of 1 - cos θ
CASES = [
    (theory.SGD(), 0.1, 0.1, 2000, 1e-6, 1e-6),
    (theory.SGD(momentum=0.9), 0.1, 0.1, 4000, 0.01, 0.01),
    (theory.SGD(momentum=0.9, nesterov=True), 0.1, 0.1, 4000, 0.01, 0.01),
    (theory.SGD(momentum=0.9, decoupled=True), 0.1, 0.1, 6000, 0.01, 0.01),
    (theory.SGD(momentum=0.9, nesterov=True, decoupled=True), 0.1, 0.1, 6000, 0.01, 0.01),
    (theory.AdamW(dim=DIM), 0.1, 0.1, 6000, 0.01, 0.01),
    (theory.Adam(dim=DIM), 1e-3, 0.1, 6000, 0.01, 0.01),
    (theory.Lion(dim=DIM), 0.1, 0.1, 6000, 0.01, 0.03),
]


@pytest.mark.parametrize(("rule", "lr", "wd", "steps", "norm_error", "turn_error"), CASES, ids=lambda c: repr(c)[:40])
def test_closed_forms_are_those_of_random_walks(rule, lr, wd, steps, norm_error, turn_error):
    walk = simulate.random_walk(lr, wd, 2.0, dim=DIM, steps=steps, optimizer=rule, walkers=WALKERS, seed=0)
    settled = walk.isel(step=slice(steps // 3, None))
    power = 4 if isinstance(rule, theory.SGD) else 2
    predicted = theory.equilibrium_norm(lr, wd, 2.0, optimizer=rule) ** power
    each = (settled.norm**power).mean("step") / predicted - 1
    # within 1 %, of which the scatter of the walkers explains some
    assert abs(float(each.mean())) < norm_error + 4 * float(each.std(ddof=1)) / WALKERS**0.5 * (norm_error > 1e-3)
    turn = float((1 - np.cos(settled.rotation)).mean())
    expected = 1 - np.cos(theory.equilibrium_rotation(lr, wd, grad_norm=2.0, optimizer=rule))
    assert turn == pytest.approx(expected, rel=turn_error)


def test_the_formula_of_another_rule_does_not_fit():
    walk = simulate.random_walk(0.1, 0.1, 2.0, dim=DIM, steps=2000, optimizer=theory.SGD(momentum=0.9), seed=0)
    measured = float((walk.norm.isel(step=slice(700, None)) ** 4).mean()) ** 0.25
    assert abs(measured / theory.equilibrium_norm(0.1, 0.1, 2.0) - 1) > 0.1


@pytest.mark.parametrize("rule", [theory.SGD(), theory.SGD(momentum=0.5), theory.AdamW(dim=40)], ids=repr)
def test_contract(rule):
    walk = simulate.random_walk(0.1, 0.05, 2.0, dim=40, steps=10, optimizer=rule, walkers=3, seed=1)
    assert walk.norm.dims == ("batch", "step")
    assert walk.status.values.tolist() == ["complete"] * 3
    assert walk.status_step.values.tolist() == [10] * 3
    assert walk.attrs["optimizer"] == repr(rule)
    assert walk.attrs["source"] == "random_walk"
    np.testing.assert_allclose(walk.effective_lr, 0.1 / walk.norm**2)
    again = simulate.random_walk(0.1, 0.05, 2.0, dim=40, steps=10, optimizer=rule, walkers=3, seed=1)
    xr.testing.assert_identical(again, walk)
    thinned = simulate.random_walk(0.1, 0.05, 2.0, dim=40, steps=10, optimizer=rule, walkers=3, seed=1, record_every=4)
    xr.testing.assert_identical(thinned.norm, walk.norm.isel(step=[0, 4, 8]))
    xr.testing.assert_identical(thinned.final_norm, walk.final_norm)
    empty = simulate.random_walk(0.1, 0.05, 2.0, dim=40, steps=0, optimizer=rule)
    assert empty.sizes["step"] == 0


def test_plain_sgd_follows_the_norm_map_exactly():
    walk = simulate.random_walk(theory.Cosine(0.1, 0.01, 50), 0.5, 2.0, dim=5, steps=50, norm=3.0, walkers=2, seed=0)
    norm = simulate.norm_map(theory.Cosine(0.1, 0.01, 50), 0.5, 2.0, norm=3.0, steps=50)
    for walker in walk.norm:
        np.testing.assert_allclose(walker, norm.norm, rtol=1e-12)
    assert abs(simulate.replay(walk).norm / walk.norm - 1).max() < 1e-12


def test_overflow_is_a_status():
    walk = simulate.random_walk(1e200, 0.0, 1e200, dim=5, steps=10, norm=1.0, walkers=2)
    assert set(walk.status.values.tolist()) == {"diverged"}
    assert walk.sizes["step"] < 10
    assert np.isfinite(walk.final_norm).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1), ("wd", -1), ("grad_norm", 0), ("dim", 1), ("steps", -1), ("walkers", 0), ("norm", 0), ("seed", -1)],
)
def test_bad_values_are_named(name, value):
    settings = {"lr": 0.1, "wd": 0.1, "grad_norm": 1.0, "dim": 5, "steps": 3}
    with pytest.raises((ValueError, TypeError), match=name):
        simulate.random_walk(**{**settings, name: value})
