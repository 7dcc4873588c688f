"""Figures of the paper: trained once, drawn in print quality, with observations that the data support."""

import concurrent.futures
import dataclasses
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy import stats

import simulate
import theory
from empirical import RunConfig
from empirical.reports.comparison import last_periods
from empirical.studies.paper_drawings import ONE_COLUMN, STYLE, TWO_COLUMNS, measured_periods
from empirical.studies.paper_figures import all_figures, draw_figures, load_trajectories, write_figures
from empirical.studies.study import NETWORKS_SUBFOLDER, RUNS_SUBFOLDER, train_missing
from simulate.period_model.model import simulated_periods

FIGURES = {figure.name: figure for figure in all_figures(fast=True)}
FORMATS = ("pdf", "svg")
LABELS = {
    "training-curves": {"step", "loss (nats)", "error (%)"},
    "norm": {"step", "norm ρ", "effective lr η/ρ²", "rotation", "(radians per step)", "ηλ = 0.002"},
    "phase-picture": {"gradient norm g̃", "effective lr η̃ = η/ρ²", "step"},
    "periods": {"ηλ", "period T (steps)", "T·ηλ", "reduced model", "balance law"},
    "width": {"width of the network", "spread of ln ρ", "rotation relative to equilibrium", "equilibrium", "periodic"},
    "minima": {"periods between the minima", "angle (degrees)", "test error (%)"},
    "full-batch": {"step", "norm ρ", "training loss (nats)", "onset of a period"},
}


def with_runs(figure, **changes):
    """Return a figure with other settings of its runs."""
    groups = {name: [dataclasses.replace(run, **changes) for run in group] for name, group in figure.runs.items()}
    return dataclasses.replace(figure, runs=groups)


each_figure = pytest.mark.parametrize("name", FIGURES)


@pytest.fixture
def copied_folder(figures_folder, tmp_path_factory):
    """Copy of the figures and their runs: a folder is locked while it is used, and other test processes use it, too."""
    return shutil.copytree(figures_folder, tmp_path_factory.mktemp("copied") / "figures")


@pytest.fixture(scope="module")
def files(figures_folder):
    return {name: [figures_folder / f"{name}.{kind}" for kind in FORMATS] for name in FIGURES}


@pytest.fixture(scope="module")
def runs(figures_folder):
    return {name: load_trajectories(figure, figures_folder / RUNS_SUBFOLDER) for name, figure in FIGURES.items()}


@pytest.fixture(scope="module")
def drawn(runs):
    with matplotlib.rc_context(STYLE):
        return {name: figure.draw(runs[name]) for name, figure in FIGURES.items()}


def line(ax, label):
    (curve,) = [curve for curve in ax.lines if curve.get_label() == label]
    return np.array(curve.get_xdata()), np.array(curve.get_ydata())


def onsets_marked(ax):
    return [mark.get_xdata()[0] for mark in ax.lines if len(set(mark.get_xdata())) == 1 and len(mark.get_xdata()) == 2]


def test_unknown_figures_and_formats_are_refused_at_once(tmp_path):
    for options, error, words in (
        ({"names": ["norm", "norms"]}, ValueError, "names .*'norms'"),
        ({"names": []}, ValueError, "names .*at least one"),
        ({"names": "norm"}, TypeError, "names .*single word 'norm'"),
        ({"formats": ["tiff"]}, ValueError, "formats .*pdf, png, svg.*'tiff'"),
        ({"formats": ()}, ValueError, "formats .*at least one"),
    ):
        with pytest.raises(error, match=words):
            draw_figures(tmp_path / "new", **{"names": ["norm"], "fast": True, **options})
    assert not (tmp_path / "new").exists()


class TestFiles:
    def test_one_file_for_each_figure_and_format(self, files, figures_folder):
        assert {path for path in figures_folder.iterdir() if path.is_file()} == set(itertools.chain(*files.values()))

    @each_figure
    def test_a_pdf_is_vector_with_embedded_fonts_as_wide_as_a_column(self, files, name):
        content = files[name][0].read_bytes()
        assert content.startswith(b"%PDF")
        # TrueType fonts, not outlines of single letters
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        # only the points of a phase picture and its colour scale are pixels
        assert (b"/Subtype /Image" in content) == (name == "phase-picture")
        width = float(re.search(rb"/MediaBox \[ 0 0 ([0-9.]+)", content)[1]) / 72
        assert any(width == pytest.approx(column, abs=0.01) for column in (ONE_COLUMN, TWO_COLUMNS))

    @each_figure
    def test_an_svg_keeps_its_text_and_carries_its_caption(self, files, name):
        root = ElementTree.parse(files[name][1]).getroot()
        texts = {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert texts >= LABELS[name]
        images = list(root.iter("{http://www.w3.org/2000/svg}image"))
        assert bool(images) == (name == "phase-picture")
        assert f"{FIGURES[name].caption} {FIGURES[name].observation}" in "".join(root.itertext())

    def test_a_second_call_trains_nothing_and_gives_the_same_files(self, files, copied_folder):
        stored = [
            *(copied_folder / RUNS_SUBFOLDER).rglob("steps.log"),
            *(copied_folder / NETWORKS_SUBFOLDER).rglob("*.pt"),
            *copied_folder.rglob("whole/*.log"),
        ]
        assert len(stored) > 20
        before = {path: path.stat().st_mtime_ns for path in stored}
        drawn = {name: [copied_folder / path.name for path in paths] for name, paths in files.items()}
        contents = {path: path.read_bytes() for paths in drawn.values() for path in paths}
        chosen = ["periods", "training-curves", "minima"]
        again = draw_figures(copied_folder, chosen, fast=True, formats=FORMATS, executor=NoWorkers(), progress=False)
        assert again == {name: drawn[name] for name in chosen}
        assert {path: path.stat().st_mtime_ns for path in stored} == before
        assert {path: path.read_bytes() for path in contents} == contents

    def test_runs_in_another_folder_are_used(self, copied_folder, tmp_path):
        options = {"fast": True, "executor": NoWorkers(), "progress": False}
        drawn = draw_figures(tmp_path, ["width"], runs=copied_folder / RUNS_SUBFOLDER, formats=("png",), **options)
        assert drawn == {"width": [tmp_path / "width.png"]}
        assert [path.name for path in tmp_path.iterdir()] == ["width.png"]


class NoWorkers(concurrent.futures.Executor):
    """Executor that must not be used."""

    def submit(self, *arguments, **options):
        raise AssertionError("nothing should be trained")


class TestData:
    def test_training_curves(self, drawn, runs):
        (run,) = runs["training-curves"]["all"]
        loss, error = drawn["training-curves"].axes
        onsets = simulate.find_periods(run).onsets[-6:]
        assert onsets_marked(loss) == onsets_marked(error) == onsets.tolist()
        part = run.sel(eval_step=slice(onsets[0], onsets[-1]))
        for ax, label, name, unit in (
            (loss, "training set", "train_loss", 1),
            (error, "training set", "train_error", 100),
            (error, "test set", "test_error", 100),
        ):
            x, y = line(ax, label)
            np.testing.assert_array_equal(x, part.eval_step)
            np.testing.assert_array_equal(y, unit * part[name])

    def test_norm(self, drawn, runs):
        axes = np.reshape(drawn["norm"].axes, (3, 3))
        for column, (run,) in zip(axes.T, runs["norm"].values(), strict=True):
            for ax, name in zip(column, ("norm", "effective_lr", "rotation"), strict=True):
                x, y = line(ax, "measured")
                np.testing.assert_array_equal(y, run[name].sel(step=x))
                assert x[-1] == run.step[-1]
            onsets = simulate.find_periods(run, discard=0).onsets
            assert onsets_marked(column[0]) == [onset for onset in onsets if onset >= x[0]]
            level = theory.equilibrium_rotation(run.attrs["lr"], run.attrs["wd"])
            assert line(column[2], "equilibrium")[1].tolist() == [level, level]

    def test_the_loop_of_the_phase_picture_is_one_period(self, drawn, runs):
        (run,) = runs["phase-picture"]["all"]
        ax = drawn["phase-picture"].axes[0]
        x, y = line(ax, "one period")
        periods = simulate.find_periods(run)
        assert len(x) - 1 in periods.lengths.tolist()
        # averages stay within the range of the data
        assert run.grad_norm.min() < x.min() < x.max() < run.grad_norm.max()
        assert run.effective_lr.min() < y.min() < y.max() < run.effective_lr.max()
        assert sum(text.arrow_patch is not None for text in ax.texts) >= 4

    def test_periods(self, drawn, runs):
        left, right = drawn["periods"].axes
        for lr, bars in zip((0.5, 0.1), zip(left.containers, right.containers, strict=True), strict=True):
            groups = {name: group for name, group in runs["periods"].items() if name.startswith(f"lr={lr:g} ")}
            assert bars[0].get_label() == f"training, η = {lr:g}"
            means = np.array([[simulate.classify(run).periods.mean for run in group] for group in groups.values()])
            expected = np.stack([means.mean(axis=1), stats.sem(means, axis=1)], axis=1)
            order = np.argsort([float(name.rpartition("=")[2]) for name in groups])
            intrinsic_lrs = np.sort([float(name.rpartition("=")[2]) for name in groups])
            for bar, unit in zip(bars, (1, intrinsic_lrs), strict=True):
                np.testing.assert_allclose(bar.lines[0].get_ydata(), expected[order, 0] * unit)
                ends = np.array([segment[:, 1] for segment in bar.lines[2][0].get_segments()])
                np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * expected[order, 1] * unit)
        x, y = line(left, "balance law")
        np.testing.assert_allclose(y, simulate.PeriodModel.reference().law.period(0.1, x / 0.1))

    def test_width(self, drawn, runs):
        for ax, name in zip(drawn["width"].axes, ("log_norm_sd", "rotation_ratio"), strict=True):
            points = {
                (float(x), float(y), marks.get_label())
                for marks in ax.lines
                if marks.get_linestyle() == "None"
                for x, y in zip(*marks.get_data(), strict=True)
            }
            results = {int(width): [simulate.classify(run) for run in group] for width, group in runs["width"].items()}
            assert points == {
                (width, getattr(result, name), result.verdict) for width, group in results.items() for result in group
            }

    def test_minima(self, drawn, runs):
        (minima,) = runs["minima"]["all"]
        left, right = drawn["minima"].axes
        pairs = [(n, minima.angle.values[:, i, i + n].mean(axis=0)) for n in range(1, 6) for i in range(6 - n)]
        expected = [np.rad2deg(np.mean([angle for n, angle in pairs if n == apart])) for apart in range(1, 6)]
        np.testing.assert_allclose(line(left, "mean")[1], expected)
        for bar, name in zip(right.containers, ("test_error", "ensemble_test_error"), strict=True):
            np.testing.assert_allclose(bar.lines[0].get_ydata(), 100 * minima[name].mean("seed"))

    def test_full_batch(self, drawn, runs):
        (run,) = runs["full-batch"]["all"]
        for ax, name in zip(drawn["full-batch"].axes, ("norm", "loss"), strict=True):
            curve = ax.lines[0].get_ydata()
            assert (curve.min(), curve.max()) == (run[name].min(), run[name].max())
            assert onsets_marked(ax) == simulate.find_periods(run).onsets.tolist()

    @each_figure
    def test_curves_differ_in_grey_prints(self, drawn, name):
        def style(curve):
            return curve.get_linestyle(), str(curve.get_marker()), curve.get_linewidth() > 1.1

        for ax in drawn[name].axes:
            labelled = [curve for curve in ax.lines if not curve.get_label().startswith("_") and curve.get_label()]
            for one, other in itertools.combinations(labelled, 2):
                grey = [np.dot(to_rgb(curve.get_color()), (0.3, 0.59, 0.11)) for curve in (one, other)]
                faint = [1.0 if curve.get_alpha() is None else curve.get_alpha() for curve in (one, other)]
                differ = style(one) != style(other) or abs(grey[0] - grey[1]) > 0.25 or faint[0] != faint[1]
                assert differ, (one.get_label(), other.get_label())


class TestObservations:
    """Every sentence of `PaperFigure.observation`."""

    def test_errors_rise_and_the_training_set_is_learned_again(self, runs):
        part, periods = last_periods(runs["training-curves"]["all"][0], 5)
        rises = []
        for begin, end in itertools.pairwise(periods.onsets):
            period = part.sel(eval_step=slice(begin, end), step=slice(begin, end))
            before = float(period.loss[-30:-5].mean())
            assert float(period.loss[:20].max()) > 10 * before
            assert float(period.train_error.min()) < 0.02
            rises.append([float(error.max() / error.min()) for error in (period.train_error, period.test_error)])
        # short periods have few evaluations, which may miss their extremes
        assert (np.median(rises, axis=0) > [5, 2]).all(), rises

    def test_larger_intrinsic_lrs_have_shorter_periods_and_rotation_is_small(self, runs):
        results = [simulate.classify(run) for group in runs["norm"].values() for run in group]
        lengths = [result.periods.mean for result in results]
        assert lengths == sorted(lengths, reverse=True)
        assert all(result.rotation_ratio < 1 for result in results)

    def test_periods_are_clockwise_loops(self, runs):
        (run,) = runs["phase-picture"]["all"]
        part, periods = last_periods(run, 8)
        areas = []
        for begin, end in itertools.pairwise(periods.onsets):
            period = part.sel(step=slice(begin, end))
            x, y = np.log(period.grad_norm.values), np.log(period.effective_lr.values)
            areas.append(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)
        assert max(areas) < 0

    def test_periods_depend_on_the_intrinsic_lr(self, runs):
        lengths = {
            name: np.concatenate([simulate.find_periods(run).lengths for run in group])
            for name, group in runs["periods"].items()
        }
        intrinsic_lrs = sorted({float(name.rpartition("=")[2]) for name in lengths})
        model, means = simulate.PeriodModel.reference(), []
        for intrinsic_lr in intrinsic_lrs:
            one, other = (lengths[f"lr={lr:g} intrinsic_lr={intrinsic_lr:g}"] for lr in (0.5, 0.1))
            error = np.hypot(stats.sem(one), stats.sem(other))
            assert error < 0.15 * one.mean()
            assert abs(one.mean() - other.mean()) < 3 * error
            means.append(np.concatenate([one, other]).mean())
            wd = intrinsic_lr / 0.5
            for predicted in (model.predict(0.5, wd).period, simulated_periods(model, 0.5, wd).mean):
                assert predicted == pytest.approx(means[-1], rel=0.2)
        slope = np.log(means[0] / means[-1]) / np.log(intrinsic_lrs[-1] / intrinsic_lrs[0])
        assert 1 < slope < 1.4

    def test_the_model_was_calibrated_on_other_runs(self):
        calibration_runs = [
            RunConfig.from_dict(json.loads(run.run)) for run in simulate.PeriodModel.reference().calibration_runs
        ]
        chosen = [figure for fast in (True, False) for figure in all_figures(fast) if figure.name == "periods"]
        figure_runs = [run for figure in chosen for run in figure.all_runs]
        assert {run.seed for run in figure_runs}.isdisjoint(run.seed for run in calibration_runs)

    def test_narrow_networks_settle_and_the_widest_are_periodic(self, runs):
        groups = runs["width"]
        assert {simulate.classify(run).verdict for run in groups["8"]} == {"equilibrium"}
        assert {simulate.classify(run).verdict for run in groups["96"]} == {"periodic"}

    def test_minima_differ_and_their_ensemble_is_no_worse(self, runs):
        (minima,) = runs["minima"]["all"]
        degrees = np.rad2deg(minima.angle.values)
        apart = [np.diagonal(degrees, n, axis1=1, axis2=2) for n in range(1, 6)]
        assert apart[0].min() > 5
        means = [angles.mean() for angles in apart]
        assert means == sorted(means)
        assert float(minima.ensemble_test_error[:, -1].mean()) <= float(minima.test_error.mean())

    def test_full_batches_have_periods(self, runs):
        assert simulate.classify(runs["full-batch"]["all"][0]).verdict == "periodic"


def ended_early(run, rows):
    """Return the part of a run that ended after `rows` steps."""
    cut = run.isel(step=slice(0, rows))
    return cut.sel(eval_step=slice(0, rows)) if "eval_step" in cut.dims else cut


class TestRunsThatEndedEarly:
    @pytest.mark.parametrize("rows", [1, 5, 150])
    @pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if figure.measure is None])
    def test_a_short_first_run_does_not_prevent_the_figure(self, runs, name, rows, tmp_path):
        groups = {group: list(trajectories) for group, trajectories in runs[name].items()}
        first = next(iter(groups.values()))
        first[0] = ended_early(first[0], rows)
        with matplotlib.rc_context(STYLE):
            FIGURES[name].draw(groups).savefig(tmp_path / "figure.png")

    def test_periods_are_those_of_the_others(self, runs):
        whole = next(iter(runs["periods"].values()))
        cut = [ended_early(whole[0], 150), *whole[1:]]
        mean, error = measured_periods(cut)
        assert mean == simulate.classify(whole[1]).periods.mean
        assert np.isnan(error)
        assert np.isnan(measured_periods(cut[:1])).all()

    def test_widths_are_those_of_the_others(self, runs):
        groups = {name: [ended_early(group[0], 5), *group[1:]] for name, group in runs["width"].items()}
        for ax in FIGURES["width"].draw(groups).axes:
            points = [curve.get_xdata() for curve in ax.lines if curve.get_linestyle() == "None"]
            assert sorted(np.concatenate(points)) == sorted(int(name) for name in groups)

    def test_figures_without_data_are_left_out(self, tmp_path):
        lengths = {"width": 5, "periods": 5, "full-batch": 300}
        figures = [with_runs(FIGURES[name], steps=steps) for name, steps in lengths.items()]
        (tmp_path / "figures").mkdir()
        with (
            concurrent.futures.ThreadPoolExecutor(1) as here,
            pytest.warns(UserWarning, match="is left out") as warned,
        ):
            drawn = write_figures(figures, tmp_path / "figures", tmp_path / "runs", ["svg"], here, progress=False)
        messages = [str(warning.message) for warning in warned]
        assert len(messages) == 2
        for message, words in zip(messages, ("width .*too short", "periods .*no run has a period"), strict=True):
            assert re.search(words, message)
        assert drawn == {"full-batch": [tmp_path / "figures/full-batch.svg"]}
        assert [path.name for path in (tmp_path / "figures").iterdir()] == ["full-batch.svg"]


@pytest.fixture(scope="module")
def full_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    draw_figures(folder, progress=False)
    return {figure.name: load_trajectories(figure, folder / RUNS_SUBFOLDER) for figure in all_figures()}


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
class TestObservationsAtFullSize(TestObservations):
    @pytest.fixture
    def runs(self, full_runs):
        return full_runs


class TestScales:
    @pytest.mark.parametrize("fast", [True, False])
    def test_the_figure_is_the_same_at_paper_scale(self, fast):
        for figure in all_figures(fast):
            large = figure.at_paper_scale()
            assert (large.name, large.caption, large.draw, large.observation) == (
                figure.name,
                figure.caption,
                figure.draw,
                "",
            )
            assert [(name, [run.seed for run in group]) for name, group in large.runs.items()] == [
                (name, [run.seed for run in group]) for name, group in figure.runs.items()
            ]
            assert {run.dataset for run in large.all_runs} == {"cifar10"}
            for small, full in zip(figure.all_runs, large.all_runs, strict=True):
                assert full.steps * full.lr * full.wd == pytest.approx(small.steps * small.lr * small.wd)
                assert full.steps / full.evaluate_every == small.steps / small.evaluate_every
            assert len(figure.scales()) == len({run.identity for run in figure.all_runs}) / len(
                {run.seed for run in figure.all_runs}
            )

    def test_paper_scale_reaches_the_runs(self, tmp_path, monkeypatch):
        written = []
        monkeypatch.setattr("empirical.studies.paper_figures.write_figures", lambda *args, **_: written.append(args))
        draw_figures(tmp_path, ["norm"], paper_scale=True)
        ((figures, *_),) = written
        assert {run.dataset for figure in figures for run in figure.all_runs} == {"cifar10"}

    def test_runs_at_paper_scale_are_drawn(self, tmp_path):
        # stand-ins with the runs of another network, because those of the paper need a GPU
        figures = [FIGURES[name] for name in ("norm", "phase-picture", "periods")]
        smaller = [
            dataclasses.replace(figure.at_paper_scale(), runs=with_runs(figure, model="mlp", width=24, steps=1200).runs)
            for figure in figures
        ]
        with concurrent.futures.ThreadPoolExecutor(1) as here:
            drawn = write_figures(smaller, tmp_path, tmp_path / "runs", ["svg"], here, progress=False)
        assert list(drawn) == [figure.name for figure in figures]
        text = drawn["periods"][0].read_text(encoding="utf-8")
        # the reference model is of another network
        assert "training, η = 0.1" in text
        assert "balance law" not in text


def broken():
    raise OSError("no such data")


def test_a_failed_training_is_reported(tmp_path):
    run = RunConfig(lr=0.5, wd=0.01, dataset=f"{__name__}:broken", steps=10)
    with concurrent.futures.ThreadPoolExecutor(1) as here, pytest.raises(RuntimeError, match="no such data"):
        train_missing([run], tmp_path / "runs", here, progress=False)
