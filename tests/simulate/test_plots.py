import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

import simulate
import theory
from simulate import BoundedGradient, RecordedGradient, norm_map, plots


@pytest.fixture(autouse=True)
def _without_a_screen():
    mpl.use("Agg")
    yield
    plt.close("all")


def bursts(cycles=20):
    """A periodic trajectory."""
    grad_norm = np.tile(np.append(np.full(199, 0.3), 10.0), cycles)
    return norm_map(0.5, 0.01, RecordedGradient(grad_norm), norm=1.0, steps=grad_norm.size)


@pytest.fixture
def run():
    return norm_map(0.1, 0.01, BoundedGradient(1.0, 3.0), norm=1.0, steps=100, seed=0)


def drawn(ax):
    ax.figure.canvas.draw()
    return ax.lines[0].get_xdata(), ax.lines[0].get_ydata()


class TestPlotTrajectory:
    def test_short_curves_are_drawn_row_by_row(self, run):
        axes = plots.plot_trajectory(run)
        assert len(axes) == 2  # the map has no loss
        for ax, name in zip(axes, ("norm", "effective_lr"), strict=True):
            step, values = drawn(ax)
            np.testing.assert_array_equal(step, run.step)
            np.testing.assert_array_equal(values, run[name])
            assert ax.get_yscale() == "log"
        assert axes[-1].get_xlabel() == "step"
        assert [ax.get_ylabel() for ax in axes] == ["norm ρ", "effective lr η̃ = η/ρ²"]

    @pytest.mark.parametrize("steps", [4001, 10_007, 300_000])
    @pytest.mark.parametrize("most_points", [4000, 150, 2])
    def test_the_band_of_long_curves_contains_the_extremes(self, steps, most_points):
        random = np.random.default_rng(steps).uniform(1.0, 3.0, steps)
        run = norm_map(0.1, 0.01, RecordedGradient(random), norm=1.0, steps=steps)
        spikes = run.norm.values.copy()
        spikes[[0, 17, steps // 2, steps - 1]] = [0.3, 40.0, 0.2, 30.0]
        run = run.assign(norm=("step", spikes))
        step, values = drawn(plots.plot_trajectory(run, variables=["norm"], most_points=most_points)[0])
        assert len(values) <= most_points
        assert set(values) <= set(spikes)
        starts = np.append(np.unique(step), steps)
        assert starts[0] == 0
        for begin, end in zip(starts[:-1].astype(int), starts[1:].astype(int), strict=True):
            band = values[step == begin]
            assert (band.min(), band.max()) == (spikes[begin:end].min(), spikes[begin:end].max())

    def test_long_curves_of_strided_rows_lie_at_their_steps(self):
        run = norm_map(0.1, 0.01, BoundedGradient(1.0, 3.0), norm=1.0, steps=50_000, record_every=10, seed=0)
        step, _ = drawn(plots.plot_trajectory(run, variables=["norm"], most_points=100)[0])
        np.testing.assert_array_equal(np.unique(step), np.arange(0, 50_000, 1000))

    def test_missing_values_leave_the_rest(self):
        recorded = np.ones((2, 9000))
        recorded[1, 5000] = 1e200
        run = norm_map(0.1, 0.01, RecordedGradient(recorded), norm=1.0, steps=9000).isel(batch=1)
        step, values = drawn(plots.plot_trajectory(run, variables=["norm"])[0])
        assert np.isfinite(values).all()
        assert step.max() <= 5000
        assert (values.min(), values.max()) == (run.norm.min(), run.norm.max())

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_very_short_trajectories(self, steps):
        axes = plots.plot_trajectory(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=steps))
        assert len(drawn(axes[0])[0]) == steps

    def test_values_that_are_zero_are_drawn_on_a_plain_scale(self):
        run = norm_map(0.1, 0.01, 0.0, norm=1.0, steps=10)
        (ax,) = plots.plot_trajectory(run, variables=["grad_norm"])
        assert drawn(ax)[1].tolist() == [0.0] * 10
        assert ax.get_yscale() == "linear"

    def test_all_that_can_be_added(self):
        run = bursts()
        periods = simulate.find_periods(run)
        axes = plots.plot_trajectory(
            run,
            variables=("norm", "grad_norm"),
            simulated=simulate.replay(run),
            periods=periods,
            levels={"norm": 2.0},
        )
        measured, simulated, level, *onsets = axes[0].lines
        assert [line.get_label() for line in (measured, simulated, level)] == [
            "measured",
            "simulated",
            "predicted equilibrium",
        ]
        np.testing.assert_allclose(simulated.get_ydata(), measured.get_ydata(), rtol=1e-12)
        assert set(level.get_ydata()) == {2.0}
        assert [line.get_xdata()[0] for line in onsets] == periods.onsets.tolist()
        assert len(axes[1].lines) == 2 + len(onsets)
        assert {text.get_text() for text in axes[0].get_legend().get_texts()} == {
            "measured",
            "simulated",
            "predicted equilibrium",
        }
        axes[0].figure.canvas.draw()

    def test_given_axes_are_used(self, run):
        figure, axes = plt.subplots(2, 1)
        assert list(plots.plot_trajectory(run, axes)) == list(axes)
        (returned,) = plots.plot_trajectory(run, axes[0], variables=["norm"])
        assert returned is axes[0]
        assert plt.get_fignums() == [figure.number]

    def test_one_name_is_one_variable(self, run):
        (ax,) = plots.plot_trajectory(run, variables="rotation")
        np.testing.assert_array_equal(drawn(ax)[1], run.rotation)

    def test_variables_that_are_not_there_at_every_step_are_left_out(self, run):
        axes = plots.plot_trajectory(run, variables=["final_norm", "norm", "nothing"])
        assert len(axes) == 1

    @pytest.mark.parametrize("variables", [[], ["loss"], "loss", ["final_norm"]])
    def test_nothing_to_draw(self, run, variables):
        with pytest.raises(ValueError, match="variables must name at least one that the trajectory has at every step"):
            plots.plot_trajectory(run, variables=variables)

    @pytest.mark.parametrize("count", [1, 3])
    def test_wrong_number_of_axes(self, run, count):
        axes = plt.subplots(count, 1, squeeze=False)[1][:, 0]
        with pytest.raises(ValueError, match=rf"axes must be 2, one for each of \['norm', .*\]; got {count}"):
            plots.plot_trajectory(run, axes)

    @pytest.mark.parametrize(("points", "error"), [(0, ValueError), (1, ValueError), (10.0, TypeError)])
    def test_too_few_points(self, run, points, error):
        with pytest.raises(error, match=r"most_points must be a whole number >= 2, got "):
            plots.plot_trajectory(run, most_points=points)

    def test_no_single_trajectory(self, run):
        batch = norm_map([0.1, 0.2], 0.01, 2.0, norm=1.0, steps=3)
        with pytest.raises(TypeError, match=r"trajectory must be an xarray\.Dataset"):
            plots.plot_trajectory([1.0, 2.0])
        with pytest.raises(ValueError, match="trajectory must be one run"):
            plots.plot_trajectory(batch)
        with pytest.raises(ValueError, match="trajectory must be one run"):
            plots.plot_trajectory(run, simulated=batch)
        assert plt.get_fignums() == []


class TestPlotPhase:
    def test_points_are_the_rows(self, run):
        ax = plots.plot_phase(run)
        ax.figure.canvas.draw()
        points = ax.collections[0]
        np.testing.assert_array_equal(points.get_offsets(), np.stack([run.grad_norm, run.effective_lr], axis=1))
        np.testing.assert_array_equal(points.get_array(), run.step)
        assert ax.get_xscale() == ax.get_yscale() == "log"

    def test_the_line_is_the_equilibrium(self, run):
        line = plots.plot_phase(run).lines[0]
        grad_norm, effective_lr = line.get_data()
        assert (grad_norm[0], grad_norm[-1]) == (run.grad_norm.min(), run.grad_norm.max())
        np.testing.assert_allclose(effective_lr, theory.equilibrium_effective_lr(0.1, 0.01, grad_norm))

    def test_onsets_are_marked_at_their_rows(self):
        run = bursts()
        periods = simulate.find_periods(run)
        marks = plots.plot_phase(run, periods=periods).collections[-1]
        expected = np.stack([run.grad_norm[periods.onsets], run.effective_lr[periods.onsets]], axis=1)
        np.testing.assert_array_equal(marks.get_offsets(), expected)

    def test_given_axes_are_used(self, run):
        _, ax = plt.subplots()
        assert plots.plot_phase(run, ax) is ax

    @pytest.mark.parametrize(("steps", "grad_norm"), [(0, 2.0), (5, 0.0), (1, 2.0)])
    def test_hardly_anything_to_draw(self, steps, grad_norm):
        ax = plots.plot_phase(norm_map(0.1, 0.01, grad_norm, norm=1.0, steps=steps))
        ax.figure.canvas.draw()
        assert len(ax.collections[0].get_offsets()) == (steps if grad_norm else 0)

    @pytest.mark.parametrize("wd", [0.0, 15.0])
    def test_no_line_where_there_is_no_equilibrium(self, wd):
        ax = plots.plot_phase(norm_map(0.1, wd, 2.0, norm=1.0, steps=50))
        assert len(ax.lines) == 0
        ax.figure.canvas.draw()

    @pytest.mark.parametrize("name", ["norm", "grad_norm", "effective_lr"])
    def test_missing_variables(self, run, name):
        with pytest.raises(ValueError, match=f"trajectory must have the variable '{name}'"):
            plots.plot_phase(run.drop_vars(name))

    def test_no_single_trajectory(self):
        with pytest.raises(ValueError, match="trajectory must be one run"):
            plots.plot_phase(norm_map([0.1, 0.2], 0.01, 2.0, norm=1.0, steps=3))


def test_pictures_are_written(tmp_path):
    run = bursts(40)
    axes = plots.plot_trajectory(run, periods=simulate.find_periods(run), simulated=simulate.replay(run))
    for name, figure in (("trajectory", axes[0].figure), ("phase", plots.plot_phase(run).figure)):
        figure.savefig(tmp_path / f"{name}.png")
        picture = plt.imread(tmp_path / f"{name}.png")[..., :3]
        # blue or coloured ink on white
        assert (picture == 1).all(axis=-1).mean() > 0.3
        assert (picture.max(axis=-1) - picture.min(axis=-1) > 0.3).mean() > 0.002
