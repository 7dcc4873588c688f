import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import simulate
import theory
from simulate.trajectories.contract import CONSTRAINTS, SCHEMA, upgrade
from simulate.trajectories.setting import Setting
from theory.optimizers import format_optimizer

OPTIMIZERS = st.one_of(
    st.just(theory.SGD()),
    st.builds(theory.SGD, momentum=st.floats(0.01, 0.99), nesterov=st.booleans()),
    st.builds(theory.AdamW, dim=st.integers(1, 10**6)),
    st.builds(theory.Lion, dim=st.integers(1, 10**6)),
    st.builds(theory.Muon, rows=st.integers(1, 100), columns=st.integers(1, 100), nesterov=st.booleans()),
)
POSITIVE = st.floats(1e-6, 1e3)


@given(optimizer=OPTIMIZERS, constraint=st.sampled_from(list(CONSTRAINTS.values())), lr=POSITIVE, wd=POSITIVE)
def test_what_a_trajectory_says_is_read(optimizer, constraint, lr, wd):
    labels = {"optimizer": format_optimizer(optimizer), "constraint": constraint}
    as_attributes = xr.Dataset(attrs={"lr": lr, "wd": wd, **labels})
    as_coordinates = xr.Dataset(coords={"lr": lr, "wd": wd, **labels})
    for trajectory in (as_attributes, as_coordinates):
        setting = Setting.of(trajectory)
        assert (setting.optimizer, setting.constraint) == (optimizer, constraint)
        assert setting.constants() == (lr, wd)
        assert setting.intrinsic_lr == lr * wd
        if constraint == "none":
            assert setting.law() == optimizer
        else:
            with pytest.raises(ValueError, match=f"run must.*{constraint!r}"):
                setting.law("run")


@given(lrs=st.lists(POSITIVE, min_size=1, max_size=20), wd=POSITIVE)
def test_settings_that_vary(lrs, wd):
    setting = Setting.of(xr.Dataset({"lr": ("step", lrs)}, attrs={"wd": wd}))
    assert setting.intrinsic_lr == pytest.approx(np.mean(lrs) * wd)
    if len(set(lrs)) == 1:
        assert setting.constants() == (lrs[0], wd)
    else:
        with pytest.raises(ValueError, match="lr varies in time"):
            setting.constants()


def test_a_trajectory_that_says_nothing():
    setting = Setting.of(xr.Dataset())
    assert (setting.optimizer, setting.constraint) == (theory.SGD(), "none")
    for name in ("lr", "wd"):
        with pytest.raises(ValueError, match=f"trajectory must have '{name}'"):
            getattr(setting, name)


def test_muon_without_a_shape_has_no_formulas():
    # as in the trajectory of a group of several matrices
    setting = Setting.of(xr.Dataset(attrs={"optimizer": "Muon(momentum=0.9)"}))
    assert (setting.optimizer, setting.optimizer_text) == (None, "Muon(momentum=0.9)")
    with pytest.raises(ValueError, match="rows and columns"):
        setting.known_optimizer()


def test_an_optimizer_that_is_not_known():
    setting = Setting.of(xr.Dataset(attrs={"optimizer": "RMSprop(momentum=0.9)"}))
    assert (setting.optimizer, setting.optimizer_text) == (None, "RMSprop(momentum=0.9)")
    for read in (setting.known_optimizer, setting.law):
        with pytest.raises(ValueError, match=r"optimizer must.*'RMSprop\(momentum=0.9\)'"):
            read()


@pytest.mark.parametrize("name", ["optimizer", "constraint"])
def test_a_batch_with_several_settings_has_none(name):
    batch = xr.Dataset(coords={name: ("batch", ["one", "other"])})
    with pytest.raises(ValueError, match=f"trajectory must have one {name}.*one, other"):
        Setting.of(batch)
    assert Setting.of(batch.isel(batch=0)) is not None


@given(optimizer=OPTIMIZERS, fixed=st.sampled_from(list(CONSTRAINTS)))
def test_schema_1_named_the_constraint_in_the_optimizer(optimizer, fixed):
    text = format_optimizer(optimizer)
    old = xr.Dataset(attrs={"schema": 1, "optimizer": text + (f" with fixed {fixed}" if fixed else "")})
    assert upgrade(old).attrs == {"schema": SCHEMA, "optimizer": text, "constraint": CONSTRAINTS[fixed]}
    assert upgrade(upgrade(old)).identical(upgrade(old))


def test_schema_1_named_constraints_in_swept_optimizers_too():
    labels = ["SGD()", "SGD() with fixed norm", "SGD(momentum=0.5)"]
    old = xr.Dataset(coords={"optimizer": ("fixed", labels), "fixed": range(3)}, attrs={"schema": 1})
    settings = [Setting.of(upgrade(old).isel(fixed=number)) for number in range(3)]
    assert [setting.constraint for setting in settings] == ["none", "fixed norm", "none"]
    assert [setting.optimizer for setting in settings] == [theory.SGD(), theory.SGD(), theory.SGD(momentum=0.5)]
    # labels of a dimension stay distinct
    along = xr.Dataset(coords={"optimizer": labels[:2]}, attrs={"schema": 1})
    assert upgrade(along).optimizer.values.tolist() == labels[:2]
    assert upgrade(along).constraint.values.tolist() == ["none", "fixed norm"]


def test_a_setting_that_is_no_number_is_refused_when_it_is_read():
    setting = Setting.of(xr.Dataset(attrs={"lr": "cosine", "wd": 0.01}))
    assert float(setting.wd) == 0.01
    with pytest.raises(ValueError, match=r"'lr'.*cosine"):
        setting.constants()


def test_a_present_trajectory_is_not_changed():
    run = simulate.descend(simulate.Ratio2D(), 0.1, 0.0, steps=3, fixed="norm")
    assert run.attrs["constraint"] == "fixed norm"
    assert upgrade(run).identical(run)


@pytest.mark.parametrize(
    ("rule", "power"), [(theory.AdamW(dim=40), 1), (theory.Lion(dim=40), 1), (theory.SGD(momentum=0.5), None)]
)
def test_trajectories_have_the_effective_lr_that_suits_their_optimizer(rule, power, tmp_path):
    """η/ρ² always, and η/ρ where the length of a step does not depend on the gradient, in simulation and in files."""
    run = simulate.random_walk(0.01, 0.1, steps=50, norm=2.0, dim=40, walkers=2, seed=0, optimizer=rule)
    simulate.save(run, tmp_path / "run")
    for trajectory in (run, simulate.load(tmp_path / "run")):
        np.testing.assert_allclose(trajectory.effective_lr, 0.01 / trajectory.norm**2)
        assert ("angular_lr" in trajectory) == (power == 1)
        if power:
            np.testing.assert_allclose(trajectory.angular_lr, 0.01 / trajectory.norm)
            assert simulate.plots.plot_trajectory(trajectory[{"batch": 0}])[-1].get_ylabel() == "effective lr η/ρ"
