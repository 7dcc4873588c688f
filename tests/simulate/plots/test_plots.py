import math

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt

import simulate
import theory
from simulate import BoundedGradient, RecordedGradient, norm_map, plots
from simulate.trajectories.contract import make_trajectory


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


def first_curve(ax):
    ax.figure.canvas.draw()
    return ax.lines[0].get_xdata(), ax.lines[0].get_ydata()


class TestPlotTrajectory:
    def test_short_curves_are_drawn_row_by_row(self, run):
        axes = plots.plot_trajectory(run)
        assert len(axes) == 2  # the map has no loss
        for ax, name in zip(axes, ("norm", "effective_lr"), strict=True):
            step, values = first_curve(ax)
            np.testing.assert_array_equal(step, run.step)
            np.testing.assert_array_equal(values, run[name])
            assert ax.get_yscale() == "log"
        assert axes[-1].get_xlabel() == "step"
        assert [ax.get_ylabel() for ax in axes] == ["norm ρ", "effective lr η̃ = η/ρ²"]

    @pytest.mark.parametrize("steps", [4001, 10_007, 60_000])
    @pytest.mark.parametrize("most_points", [4000, 150, 2])
    def test_the_band_of_long_curves_contains_the_extremes(self, steps, most_points):
        random = np.random.default_rng(steps).uniform(1.0, 3.0, steps)
        run = norm_map(0.1, 0.01, RecordedGradient(random), norm=1.0, steps=steps)
        spikes = run.norm.values.copy()
        spikes[[0, 17, steps // 2, steps - 1]] = [0.3, 40.0, 0.2, 30.0]
        run = run.assign(norm=("step", spikes))
        step, values = first_curve(plots.plot_trajectory(run, variables=["norm"], most_points=most_points)[0])
        assert len(values) <= most_points
        assert set(values) <= set(spikes)
        starts = np.append(np.unique(step), steps)
        assert starts[0] == 0
        for begin, end in zip(starts[:-1].astype(int), starts[1:].astype(int), strict=True):
            band = values[step == begin]
            assert (band.min(), band.max()) == (spikes[begin:end].min(), spikes[begin:end].max())

    def test_long_curves_of_strided_rows_lie_at_their_steps(self):
        run = norm_map(0.1, 0.01, BoundedGradient(1.0, 3.0), norm=1.0, steps=50_000, record_every=10, seed=0)
        step, _ = first_curve(plots.plot_trajectory(run, variables=["norm"], most_points=100)[0])
        np.testing.assert_array_equal(np.unique(step), np.arange(0, 50_000, 1000))

    def test_missing_values_leave_the_rest(self):
        recorded = np.ones((2, 9000))
        recorded[1, 5000] = 1e200
        run = norm_map(0.1, 0.01, RecordedGradient(recorded), norm=1.0, steps=9000).isel(batch=1)
        step, values = first_curve(plots.plot_trajectory(run, variables=["norm"])[0])
        assert np.isfinite(values).all()
        assert step.max() <= 5000
        assert (values.min(), values.max()) == (run.norm.min(), run.norm.max())

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_very_short_trajectories(self, steps):
        axes = plots.plot_trajectory(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=steps))
        assert len(first_curve(axes[0])[0]) == steps

    def test_values_that_are_zero_are_drawn_on_a_plain_scale(self):
        run = norm_map(0.1, 0.01, 0.0, norm=1.0, steps=10)
        (ax,) = plots.plot_trajectory(run, variables=["grad_norm"])
        assert first_curve(ax)[1].tolist() == [0.0] * 10
        assert ax.get_yscale() == "linear"

    def test_all_options_together(self):
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
        assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
            "measured",
            "simulated",
            "predicted equilibrium",
            "onset of a period",
        ]
        assert axes[1].get_legend() is None
        axes[0].figure.canvas.draw()

    def test_given_axes_are_used(self, run):
        figure, axes = plt.subplots(2, 1)
        assert list(plots.plot_trajectory(run, axes)) == list(axes)
        (returned,) = plots.plot_trajectory(run, axes[0], variables=["norm"])
        assert returned is axes[0]
        assert plt.get_fignums() == [figure.number]

    def test_one_name_is_one_variable(self, run):
        (ax,) = plots.plot_trajectory(run, variables="rotation")
        np.testing.assert_array_equal(first_curve(ax)[1], run.rotation)

    def test_variables_that_are_not_there_at_every_step_are_left_out(self, run):
        axes = plots.plot_trajectory(run, variables=["final_norm", "norm", "nothing"])
        assert len(axes) == 1

    @pytest.mark.parametrize("variables", [[], ["loss"], "loss", ["final_norm"]])
    def test_nothing_to_draw(self, run, variables):
        with pytest.raises(ValueError, match=r"variables must name.*at every step"):
            plots.plot_trajectory(run, variables=variables)

    @pytest.mark.parametrize("count", [1, 3])
    def test_wrong_number_of_axes(self, run, count):
        axes = plt.subplots(count, 1, squeeze=False)[1][:, 0]
        with pytest.raises(ValueError, match=rf"axes must be 2, one for each of \['norm', .*\]; got {count}"):
            plots.plot_trajectory(run, axes)

    @pytest.mark.parametrize(("points", "error"), [(0, ValueError), (1, ValueError), (10.0, TypeError)])
    def test_too_few_points(self, run, points, error):
        with pytest.raises(error, match=r"most_points must be.*2, got "):
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
    def test_few_or_no_points(self, steps, grad_norm):
        ax = plots.plot_phase(norm_map(0.1, 0.01, grad_norm, norm=1.0, steps=steps))
        ax.figure.canvas.draw()
        assert len(ax.collections[0].get_offsets()) == (steps if grad_norm else 0)

    @pytest.mark.parametrize("wd", [0.0, 15.0])
    def test_no_line_where_there_is_no_equilibrium(self, wd):
        ax = plots.plot_phase(norm_map(0.1, wd, 2.0, norm=1.0, steps=50))
        assert len(ax.lines) == 0
        ax.figure.canvas.draw()

    @pytest.mark.parametrize(
        "law",
        [{"optimizer": "SGD(momentum=0.9)"}, {"optimizer": "Adam(dim=9)"}, {"optimizer": "RMSprop"},
         {"constraint": "fixed norm"}],
    )  # fmt: skip
    def test_no_line_under_another_law(self, run, law):
        assert not plots.plot_phase(run.assign_attrs(law)).lines
        assert not plots.plot_phase(run.assign_coords(law)).lines, "a coordinate where it is swept"

    @pytest.mark.parametrize("name", ["lr", "wd"])
    def test_a_line_only_at_constant_lr_and_wd(self, run, name):
        constant = run.assign({name: ("step", np.full(100, run.attrs[name]))})
        expected = plots.plot_phase(run).lines[0].get_data()
        np.testing.assert_allclose(plots.plot_phase(constant).lines[0].get_data(), expected)
        varied = constant.assign({name: constant[name] * np.linspace(1.0, 0.9, 100)})
        ax = plots.plot_phase(varied)
        assert not ax.lines
        assert ax.get_legend() is None

    def test_below_the_line_the_norm_falls(self, run):
        grad_norm, effective_lr = plots.plot_phase(run).lines[0].get_data()
        balance = (grad_norm * effective_lr)[0]
        decreases = np.diff(np.append(run.norm, run.final_norm)) < 0
        below = run.grad_norm.values * run.effective_lr.values < balance
        np.testing.assert_array_equal(decreases, below)
        assert 0 < below.mean() < 1

    @pytest.mark.parametrize("name", ["norm", "grad_norm", "effective_lr"])
    def test_missing_variables(self, run, name):
        with pytest.raises(ValueError, match=f"trajectory must have the variable '{name}'"):
            plots.plot_phase(run.drop_vars(name))

    def test_no_single_trajectory(self):
        with pytest.raises(ValueError, match="trajectory must be one run"):
            plots.plot_phase(norm_map([0.1, 0.2], 0.01, 2.0, norm=1.0, steps=3))


def measured_periods(lengths, rise=0.1, intrinsic_lr=0.005):
    """Measured periods of these lengths."""
    lengths = np.asarray(lengths, dtype=float)
    return simulate.MeasuredPeriods(
        onsets=np.cumsum(np.append(100, lengths)).astype(int),
        lengths=lengths,
        trough_norms=np.ones(lengths.size),
        peak_norms=np.full(lengths.size, 2.0),
        rise=rise,
        intrinsic_lr=intrinsic_lr,
        decay=-np.log1p(-intrinsic_lr),
    )


def bars(ax):
    """Left and right ends, and heights of the bars."""
    return np.array([(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in ax.containers[0]]).T


class TestPlotPeriods:
    @pytest.mark.parametrize("lengths", [np.arange(90, 130), [100, 100, 101], [200], [200] * 7, [70, 140, 140, 350]])
    def test_bars_are_the_shares_of_the_periods(self, lengths):
        left, right, height = bars(plots.plot_periods(measured_periods(lengths)))
        assert height.sum() == pytest.approx(1)
        for low, high, share in zip(left, right, height, strict=True):
            inside = (np.asarray(lengths) > low) & (np.asarray(lengths) < high)
            assert share == pytest.approx(inside.mean())

    @pytest.mark.parametrize("stride", [1, 7, 50])
    def test_bins_hold_equally_many_of_the_lengths_that_rows_allow(self, stride):
        random = np.random.default_rng(stride)
        lengths = stride * random.integers(100, 160, 500)
        left, right, _ = bars(plots.plot_periods(measured_periods(lengths)))
        within = [
            np.sum((np.arange(0, 200 * stride, stride) > a) & (np.arange(0, 200 * stride, stride) < b))
            for a, b in zip(left, right, strict=True)
        ]
        assert len(set(within)) == 1
        assert len(left) > 4

    def test_mean_and_its_error_are_marked(self):
        periods = measured_periods([90, 100, 110, 120])
        ax = plots.plot_periods(periods)
        (line,) = ax.lines
        assert set(line.get_xdata()) == {periods.mean} == {105.0}
        spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches[len(bars(ax)[0]) :]]
        assert [(span.x0, span.x1) for span in spans] == [
            pytest.approx((periods.mean - periods.stderr, periods.mean + periods.stderr))
        ]
        (text,) = ax.get_legend().get_texts()
        assert text.get_text() == "mean 105.0 ± 6.5 steps (4 periods)"

    def test_one_period_has_no_error(self):
        ax = plots.plot_periods(measured_periods([90]))
        assert ax.get_legend().get_texts()[0].get_text() == "mean 90 steps (1 period)"
        assert len(ax.patches) == 1

    @pytest.mark.parametrize("intrinsic_lr", [1e-5, 0.005, 0.9])
    def test_the_scale_at_the_top_is_the_length_times_the_intrinsic_learning_rate(self, intrinsic_lr):
        ax = plots.plot_periods(measured_periods([90, 100, 110], intrinsic_lr=intrinsic_lr))
        ax.figure.canvas.draw()
        (top,) = ax.child_axes
        np.testing.assert_allclose(top.get_xlim(), np.array(ax.get_xlim()) * intrinsic_lr)
        assert top.get_xlabel() == f"T·ηλ, ηλ = {intrinsic_lr:.3g}"
        assert ax.get_xlabel() == "period T in steps, rises of ln ρ ≥ 0.1"

    def test_without_decay_there_is_no_such_scale(self):
        ax = plots.plot_periods(measured_periods([90, 100], intrinsic_lr=0.0))
        assert ax.child_axes == []

    def test_predicted_is_an_outline_on_the_same_bins(self):
        measured, predicted = measured_periods(np.arange(90, 130)), measured_periods(np.arange(95, 160, 3))
        ax = plots.plot_periods(measured, predicted=predicted)
        left, right, height = bars(ax)
        outline = next(patch for patch in ax.patches if not patch.get_fill())
        steps = outline.get_xy()
        assert set(np.append(left, right)) == set(steps[:, 0])
        # its shares too add up to 1, whatever their number
        assert len(height) * steps[:, 1].mean() > 0
        tops = [steps[(steps[:, 0] == a) | (steps[:, 0] == b)] for a, b in zip(left, right, strict=True)]
        shares = [
            np.sum((predicted.lengths > a) & (predicted.lengths < b)) / 22 for a, b in zip(left, right, strict=True)
        ]
        assert sum(shares) == pytest.approx(1)
        for share, top in zip(shares, tops, strict=True):
            assert np.isclose(top[:, 1], share).any()
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [
            "measured mean 109.5 ± 1.8 steps (40 periods)",
            "predicted mean 126.5 ± 4.2 steps (22 periods)",
        ]

    def test_given_axes_are_used(self):
        figure, ax = plt.subplots()
        assert plots.plot_periods(measured_periods([90, 100]), ax) is ax
        assert plt.get_fignums() == [figure.number]

    def test_nothing_to_draw(self):
        none = simulate.find_periods(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=5000), rise=0.3)
        with pytest.raises(ValueError, match=r"^periods must hold.*none at rise=0.3"):
            plots.plot_periods(none)
        with pytest.raises(ValueError, match=r"^predicted must hold.*period, got none"):
            plots.plot_periods(measured_periods([90, 100], rise=0.3), predicted=none)
        assert plt.get_fignums() == []

    def test_periods_of_another_rise_are_no_prediction(self):
        with pytest.raises(ValueError, match=r"^predicted must have.*0.1, got 0.3"):
            plots.plot_periods(measured_periods([90, 100]), predicted=measured_periods([90, 100], rise=0.3))

    @pytest.mark.parametrize("value", [None, [90.0, 100.0], "periods"])
    def test_no_periods(self, value):
        with pytest.raises(TypeError, match=r"^periods must be.*find_periods, got "):
            plots.plot_periods(value)


ALL = ["equilibrium", "periodic", "no clear period", "transient", "undetermined", "collapsed", "diverged"]


def diagram(lr, wd, verdicts=("equilibrium", "periodic"), period=20.0):
    """A phase diagram of these axes, its verdicts in turn along lr."""
    lr, wd = np.asarray(lr, dtype=float), np.asarray(wd, dtype=float)
    cells = np.empty((lr.size, wd.size), dtype=object)
    cells[...] = np.resize(np.array(verdicts, dtype=object), lr.size)[:, np.newaxis]
    variables = {"verdict": (("lr", "wd"), cells), "period": (("lr", "wd"), np.full(cells.shape, period))}
    return xr.Dataset(variables, coords={"lr": lr, "wd": wd})


def cells_drawn(ax):
    """Corners of the cells of each verdict, by its place in the legend."""
    return {
        text.get_text(): [path.get_extents() for path in mesh.get_paths()]
        for text, mesh in zip(ax.get_legend().get_texts(), ax.collections, strict=True)
    }


class TestPlotPhaseDiagram:
    def test_cells_are_around_their_settings(self):
        lr, wd = np.geomspace(0.01, 1, 7), np.geomspace(0.001, 0.5, 4)
        drawn = cells_drawn(plots.plot_phase_diagram(diagram(lr, wd, ALL)))
        assert list(drawn) == ALL
        for place, verdict in enumerate(ALL):
            settings = {(a, b) for a in lr[place :: len(ALL)] for b in wd}
            middles = {(math.sqrt(box.x0 * box.x1), math.sqrt(box.y0 * box.y1)) for box in drawn[verdict]}
            assert len(drawn[verdict]) == len(settings) == len(middles)
            np.testing.assert_allclose(sorted(middles), sorted(settings), rtol=1e-12)

    @pytest.mark.parametrize("lr", [[0.1, 0.2, 0.8, 0.9], [0.1, 0.5], [0.3]])
    def test_cells_meet_half_way_on_a_logarithmic_scale(self, lr):
        ax = plots.plot_phase_diagram(diagram(lr, [0.1, 0.2], ["periodic"]))
        boxes = cells_drawn(ax)["periodic"]
        inner = sorted({round(math.log(edge), 12) for box in boxes for edge in (box.x0, box.x1)})
        assert len(inner) == len(lr) + 1
        between = (np.log(lr[:-1]) + np.log(lr[1:])) / 2
        np.testing.assert_allclose(inner[1:-1], between, atol=1e-12)
        assert all(box.x0 < value < box.x1 for box, value in zip(boxes, lr, strict=False))
        assert ax.get_xlim() == pytest.approx((math.exp(inner[0]), math.exp(inner[-1])))
        assert ax.get_xscale() == ax.get_yscale() == "log"

    def test_only_verdicts_that_occur_are_in_the_legend(self):
        ax = plots.plot_phase_diagram(diagram([0.1, 0.2], [0.1], ["collapsed", "periodic"]))
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["periodic", "collapsed"]

    def test_verdicts_differ_in_grey(self):
        ax = plots.plot_phase_diagram(diagram(np.geomspace(0.1, 1, len(ALL)), [0.1], ALL))
        ax.figure.canvas.draw()
        looks = [
            (float(np.dot(mesh.get_facecolor()[0, :3], [0.299, 0.587, 0.114])), mesh.get_hatch() or "")
            for mesh in ax.collections
        ]
        for one, (grey, pattern) in enumerate(looks):
            for other_grey, other_pattern in looks[:one]:
                assert pattern != other_pattern or abs(grey - other_grey) > 0.15

    def test_numbers_are_the_scaled_periods_of_periodic_cells(self):
        ax = plots.plot_phase_diagram(diagram([0.1, 0.2, 0.4], [0.1, 0.3], period=200.0))
        numbers = {text.get_position(): text.get_text() for text in ax.texts if "λ" not in text.get_text()}
        assert numbers == {(0.2, 0.1): "4", (0.2, 0.3): "12"}
        assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "0.2", "0.4"]
        assert ax.get_legend().get_title().get_text() == "numbers: T·ηλ"

    def test_without_periodic_cells_there_are_no_numbers(self):
        ax = plots.plot_phase_diagram(diagram([0.1, 0.2], [0.1], ["equilibrium"]))
        assert all("λ" in text.get_text() for text in ax.texts)
        assert ax.get_legend().get_title().get_text() == ""

    @pytest.mark.parametrize("count", [7, 20, 100])
    def test_of_many_cells_some_have_a_number(self, count):
        grid = np.geomspace(0.01, 0.9, count)
        ax = plots.plot_phase_diagram(diagram(grid, grid, ["periodic"]))
        numbers = [text for text in ax.texts if "λ" not in text.get_text()]
        assert 9 <= len(numbers) <= 36
        assert all(text.get_position()[0] in grid for text in numbers)

    @pytest.mark.parametrize(
        ("lr", "wd", "powers"),
        [
            (np.geomspace(0.01, 1, 20), np.geomspace(0.01, 0.5, 20), [-3, -2, -1]),
            (np.geomspace(1e-5, 10, 13), np.geomspace(1e-6, 1e-2, 9), list(range(-11, 0))),
            ([0.2], [0.2], []),
        ],
    )
    def test_lines_of_equal_products(self, lr, wd, powers):
        ax = plots.plot_phase_diagram(diagram(lr, wd))
        products = [np.unique(np.round(np.log10(line.get_xdata() * line.get_ydata()), 9)) for line in ax.lines]
        assert all(product.size == 1 for product in products)
        drawn = [int(product[0]) for product in products]
        assert set(powers) <= set(drawn)
        # from edge to edge
        for line in ax.lines:
            for x, y in zip(*line.get_data(), strict=True):
                on_edge = np.isclose(x, ax.get_xlim()).any() or np.isclose(y, ax.get_ylim()).any()
                assert on_edge
        labels = [text.get_text() for text in ax.texts if "λ" in text.get_text()]
        assert {f"ηλ = $10^{{{power}}}$" for power in powers} <= set(labels) <= {f"ηλ = $10^{{{n}}}$" for n in drawn}

    @pytest.mark.parametrize("count", [5, 20])
    def test_no_text_lies_on_another(self, count):
        lr, wd = np.geomspace(0.01, 1, count), np.geomspace(0.01, 0.5, count)
        ax = plots.plot_phase_diagram(diagram(lr, wd, ["periodic"]))
        ax.figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts]
        for one, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:one])

    def test_a_loaded_diagram_looks_the_same(self, tmp_path):
        simulated = simulate.phase_diagram(
            np.geomspace(0.1, 1, 5), [0.01, 0.05, 0.25], model=simulate.Ratio2D(1.0, 0.1)
        )
        simulate.save(simulated, tmp_path / "diagram")
        first, second = (plots.plot_phase_diagram(one) for one in (simulated, simulate.load(tmp_path / "diagram")))
        assert [t.get_text() for t in first.texts] == [t.get_text() for t in second.texts]
        assert cells_drawn(first).keys() == cells_drawn(second).keys() == {"equilibrium", "periodic"}

    def test_given_axes_are_used(self):
        figure, ax = plt.subplots()
        assert plots.plot_phase_diagram(diagram([0.1], [0.1]), ax) is ax
        assert plt.get_fignums() == [figure.number]

    def test_no_diagram(self, run):
        with pytest.raises(TypeError, match=r"^diagram must be.*phase_diagram, got list"):
            plots.plot_phase_diagram([1.0])
        with pytest.raises(ValueError, match=r"^diagram must have.*wd, got \["):
            plots.plot_phase_diagram(run)
        with pytest.raises(ValueError, match=r"^diagram must have.*lr and wd"):
            plots.plot_phase_diagram(diagram([0.1], [0.1]).drop_vars("period"))
        with pytest.raises(ValueError, match=r"^diagram must have.*lr and wd"):
            plots.plot_phase_diagram(diagram([0.1, 0.2], [0.1]).isel(lr=0))
        with pytest.raises(ValueError, match=r"^verdict must be one of .*; got 'unknown'"):
            plots.plot_phase_diagram(diagram([0.1], [0.1], ["unknown"]))
        assert plt.get_fignums() == []


def test_figures_are_written(tmp_path):
    run = bursts()
    axes = plots.plot_trajectory(run, periods=simulate.find_periods(run), simulated=simulate.replay(run))
    pictures = {
        "trajectory": axes[0],
        "phase": plots.plot_phase(run),
        "periods": plots.plot_periods(measured_periods([180, 200, 210]), predicted=measured_periods([190, 205])),
        "phase diagram": plots.plot_phase_diagram(diagram(np.geomspace(0.1, 1, len(ALL)), [0.1, 0.2], ALL)),
    }
    for name, figure in ((name, ax.figure) for name, ax in pictures.items()):
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        picture = plt.imread(tmp_path / f"{name}.png")[..., :3]
        # blue or coloured ink on white
        assert (picture == 1).all(axis=-1).mean() > 0.3
        assert (picture.max(axis=-1) - picture.min(axis=-1) > 0.3).mean() > 0.002


class TestGroups:
    def run(self, steps=1000):
        rows = np.arange(steps)
        norms = np.stack([np.exp(-rows / steps), np.ones(steps), np.exp(rows / steps)], axis=1)
        rotation = np.where(rows[:, None] % 2, 1e-3, 1e-1) * norms
        return make_trajectory(
            {"norm": np.linalg.norm(norms, axis=1), "group_norm": 3 * norms, "group_rotation": rotation},
            step=7 + 2 * rows,
            source="training",
            final_norm=1.0,
            status="running",
            status_step=2 * steps,
            groups=["first", "second", "last"],
        )

    def test_colours_are_geometric_means_of_parts(self):
        norm, rotation = plots.plot_groups(self.run(), most_columns=10)
        for ax, values in ((norm, self.run().group_norm / 3), (rotation, self.run().group_rotation)):
            parts = np.exp(np.log(values.values).reshape(10, 100, 3).mean(axis=1))
            np.testing.assert_allclose(np.asarray(ax.collections[0].get_array()), parts.T, rtol=1e-12)
        assert [label.get_text() for label in norm.get_yticklabels()] == ["first", "second", "last"]
        assert norm.yaxis_inverted()
        assert norm.get_xlim() == (7, 7 + 2 * 1000)
        # equal factors up and down have equal colours
        limits = norm.collections[0].get_clim()
        assert limits[0] * limits[1] == pytest.approx(1)

    def test_what_was_not_recorded_is_left_out(self):
        (ax,) = plots.plot_groups(self.run(3).drop_vars("group_rotation"))
        assert ax.collections[0].get_array().shape == (3, 3)
        with pytest.raises(ValueError, match="group_norm"):
            plots.plot_groups(norm_map(0.1, 0.01, 2.0, norm=1.0, steps=5))
        with pytest.raises(ValueError, match=r"variables.*loss"):
            plots.plot_groups(self.run(3), variables=["loss"])
        with pytest.raises(ValueError, match="axes must be 2"):
            plots.plot_groups(self.run(3), ax)
