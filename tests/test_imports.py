import importlib
import json
import subprocess
import sys

import pytest

HEAVY = ("empirical", "matplotlib", "numba", "scipy", "sklearn", "sympy", "torch", "typer", "xarray", "zarr")


def loaded_by(code):
    """The heavy packages in `sys.modules`, and modules of our own, after `code` in a fresh interpreter."""
    tail = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    return {name for name in modules if name in HEAVY or name.startswith(("theory", "simulate", "empirical"))}


@pytest.fixture(scope="module")
def by_theory():
    return loaded_by("import theory")


@pytest.fixture(scope="module")
def by_simulate():
    return loaded_by("import simulate; [getattr(simulate, name) for name in simulate.__all__]")


def test_theory_needs_numpy_only(by_theory):
    assert by_theory & set(HEAVY) == set()
    assert "theory.equilibrium" in by_theory
    assert not {name for name in by_theory if not name.startswith("theory")}


def test_using_theory_loads_nothing_more(by_theory):
    used = loaded_by(
        "import theory; theory.equilibrium_norm(0.1, 0.01); theory.norm_envelope(3, 1.0, 0.1, 0.1, 1.0, 2.0)"
    )
    assert used == by_theory


def test_derivations_are_loaded_on_access_only(by_theory):
    assert not {name for name in by_theory if name.startswith("theory.derivations")}
    accessed = loaded_by("import theory; theory.derivations")
    assert "theory.derivations" in accessed


@pytest.mark.parametrize("package", ["theory", "simulate", "empirical"])
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"{package}.*attribute.*nothing"):
        importlib.import_module(package).nothing  # noqa: B018


def test_simulate_knows_no_networks_and_no_algebra(by_simulate):
    assert by_simulate & {"torch", "sympy", "sklearn", "typer"} == set()
    assert not {name for name in by_simulate if name.startswith("empirical")}
    assert "simulate.maps.norm_map" in by_simulate


def test_a_prediction_loads_neither_trajectories_nor_compiled_code():
    assert loaded_by("import simulate") == {"simulate"}
    reference = "from simulate import PeriodModel; PeriodModel.reference().predict(0.5, 0.01, norms=False)"
    by_command = "from empirical.cli.main import app; app(['predict', '--lr', '0.5', '--wd', '0.01'])"
    command = f"import contextlib\nwith contextlib.suppress(SystemExit): {by_command}"
    assert loaded_by(reference) & set(HEAVY) == set()
    assert loaded_by(command) & set(HEAVY) == {"empirical", "typer"}


def test_simulate_loads_pictures_and_stores_when_they_are_used(by_simulate):
    assert by_simulate & {"matplotlib", "zarr"} == set()
    drawn = loaded_by(
        "import matplotlib; matplotlib.use('Agg'); import simulate;"
        "simulate.plots.plot_trajectory(simulate.norm_map(0.1, 0.01, 2.0, norm=1.0, steps=3))"
    )
    assert "matplotlib" in drawn
    assert drawn & {"torch", "sympy", "empirical"} == set()


def test_using_simulate_loads_no_torch(tmp_path):
    used = loaded_by(
        f"import simulate; run = simulate.norm_map(0.1, 0.01, 2.0, norm=1.0, steps=300); simulate.replay(run);"
        f"simulate.classify(run, discard=0); simulate.save(run, {str(tmp_path / 'run')!r});"
        f"simulate.load({str(tmp_path / 'run')!r})"
    )
    assert used & {"torch", "sympy", "matplotlib", "empirical"} == set()


def test_names_of_empirical_load_what_they_need_only():
    loaded = loaded_by("import empirical; assert 'train' in dir(empirical)")
    assert {name for name in loaded if name in HEAVY or "." in name} == {"empirical"}
    config = loaded_by("from empirical import RunConfig")
    assert "empirical.config" in config
    assert "torch" not in config
    assert "torch" in loaded_by("from empirical import train")


@pytest.mark.parametrize("package", ["theory", "simulate", "empirical"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__) > 20
    assert all(hasattr(module, name) for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))
