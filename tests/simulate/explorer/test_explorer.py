import asyncio
import base64
import builtins
import json
import math
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import simulate
import theory
from simulate.explorer import QUANTITIES, explore, explorer, page, picture, plot_exploration, quantities
from simulate.explorer import sliders as sliders_module
from simulate.explorer.quantities import ANGULAR_JUMP_NAMES, EQUILIBRIUM_NAMES, PERIOD_NAMES

SETTING = {"grad_norm_min": 1.0, "grad_norm_max": 10.0, "norm": 10.0}
DOCS = Path(__file__).parents[3] / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# settings in which a curve or a number may be missing
SETTINGS = [
    {"lr": 0.5, "wd": 0.01, **SETTING},
    {"lr": 0.5, "wd": 0.01, "momentum": 0.9, **SETTING},
    {"lr": 0.5, "wd": 0.0, **SETTING},
    {"lr": 0.5, "wd": 0.0, "momentum": 0.9, **SETTING},
    {"lr": 0.5, "wd": 0.01, "grad_norm_min": 0.0, "grad_norm_max": 1.0, "norm": 0.01},
    {"lr": 1.0, "wd": 1.0, **SETTING},
    {"lr": 3.0, "wd": 0.4, **SETTING},
    {"lr": 0.5, "wd": 0.2, "delta": 0.02, "grad_norm_min": 1.0, "grad_norm_max": 30.0, "norm": 1.0},
    {"lr": 0.001, "wd": 1e-5, **SETTING},
]

# sliders that are moved in a browser, and their new positions
MOVES = [
    {},
    {"lr": 5, "wd": 8, "low": 4, "high": 7, "start": 0, "delta": 4},
    {"momentum": 2, "wd": 3},
    {"momentum": 1, "lr": 0, "wd": 0},
    {"high": 10},
    {"low": 4, "wd": 8},
]


@pytest.fixture(autouse=True)
def _headless_matplotlib():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def drawn(request):
    """Setting, its exploration and the axes of its figure, which is drawn."""
    exploration = explore(**request.param)
    figure = Figure(figsize=(11, 5.4))
    axes = plot_exploration(exploration, picture.add_axes(figure))
    FigureCanvasAgg(figure).draw()
    return request.param, exploration, axes


@pytest.fixture(scope="module")
def frames():
    # slow decay is truncated to save time
    return page.explorer_frames(max_steps=20_000)


@pytest.fixture(scope="module")
def shown_numbers(frames, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    return shown_in_browser(page._page(frames), tmp_path_factory.mktemp("browser"))


class TestExplore:
    def test_numbers_equal_theory(self):
        lr, wd, low, high, norm, delta = 0.5, 0.02, 0.3, 6.0, 4.0, 0.2
        values = explore(lr, wd, grad_norm_min=low, grad_norm_max=high, norm=norm, delta=delta).values
        assert tuple(values) == tuple(QUANTITIES) == EQUILIBRIUM_NAMES + ANGULAR_JUMP_NAMES + PERIOD_NAMES
        assert values["equilibrium_norm_min"] == theory.equilibrium_norm(lr, wd, low)
        assert values["equilibrium_norm_max"] == theory.equilibrium_norm(lr, wd, high)
        assert (values["norm_lower"], values["norm_upper"]) == theory.norm_bounds(lr, wd, low, high)
        assert values["equilibrium_rotation"] == theory.equilibrium_rotation(lr, wd)
        assert values["relaxation_time"] == pytest.approx(theory.relaxation_time(lr, wd), rel=1e-12)
        assert values["angular_jump_regime"] == theory.angular_jump_regime(lr, wd, low, high, delta)
        assert values["angular_jump_norm_max"] == theory.angular_jump_norm(lr, wd, high, delta)
        assert values["angular_jump_norm_min"] == theory.angular_jump_norm(lr, wd, low, delta)
        assert math.cos(values["angular_jump_rotation"]) == pytest.approx(1 - delta)
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
        assert (values["angular_jump_earliest"], values["angular_jump_latest"]) == (time.earliest, "never")
        prediction = simulate.period(lr, wd)
        assert [values[name] for name in PERIOD_NAMES] == [getattr(prediction, name) for name in PERIOD_NAMES]

    def test_numbers_with_momentum_equal_theory(self):
        lr, wd, mu = 0.1, 0.001, 0.9
        values = explore(lr, wd, momentum=mu, **SETTING).values
        rule = theory.SGD(momentum=mu)
        assert values["equilibrium_norm_max"] == theory.equilibrium_norm(lr, wd, 10.0, optimizer=rule)
        assert values["norm_lower"] == theory.momentum_lower_bound(lr, wd, 1.0, momentum=mu)
        assert values["relaxation_time"] == theory.momentum_relaxation(lr, wd, momentum=mu).time
        assert values["equilibrium_rotation"] == theory.equilibrium_rotation(lr, wd, optimizer=rule)
        assert "momentum" in values["norm_upper"]
        assert {values[name] for name in ANGULAR_JUMP_NAMES if name != "angular_jump_rotation"} == {
            "no angular jump formula with momentum"
        }
        assert {values[name] for name in PERIOD_NAMES} == {"only for plain SGD with weight decay"}

    @given(
        delta=st.floats(1e-6, 0.999),
        momentum=st.sampled_from([0.0, 0.5, 0.99]),
        wd=st.sampled_from([0.0, 0.01, 1.0]),
    )
    @settings(max_examples=15, deadline=None)
    def test_rotation_of_an_angular_jump_depends_on_delta_only(self, delta, momentum, wd):
        values = explore(1.0, wd, momentum=momentum, delta=delta, steps=1, **SETTING).values
        assert 1 - math.cos(values["angular_jump_rotation"]) == pytest.approx(delta, rel=1e-9)
        if not momentum and wd < 1:
            assert theory.rotation(values["angular_jump_norm_max"], 1.0, wd, 10.0) == pytest.approx(
                values["angular_jump_rotation"], rel=1e-9
            )

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_edge_of_stability_at_edge_sharpness_is_the_equilibrium(self, momentum):
        values = explore(0.5, 0.01, momentum=momentum, **SETTING).values
        edge = theory.critical_norm(0.5, values["edge_sharpness"], wd=0.01, optimizer=theory.SGD(momentum=momentum))
        assert edge == pytest.approx(values["equilibrium_norm_rms"], rel=1e-12)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_trajectory_settles_at_the_rms_equilibrium(self, momentum):
        exploration = explore(0.1, 0.002, momentum=momentum, steps=60_000, **SETTING)
        run, values = exploration.trajectory, exploration.values
        assert run.step.size <= 2000
        assert run.attrs["updates"] == 60_000
        settled = run.norm.values[run.step.values > 20_000]
        # slightly below, by Jensen's inequality for the fourth root
        assert np.mean(settled**4) ** 0.25 == pytest.approx(values["equilibrium_norm_rms"], rel=2e-3)
        size = np.sqrt(np.mean(run.grad_norm.values**2))
        assert theory.equilibrium_norm(0.1, 0.002, size, optimizer=theory.SGD(momentum=momentum)) == pytest.approx(
            values["equilibrium_norm_rms"], rel=0.02
        )

    @given(
        intrinsic_lr=st.floats(1e-4, 0.25),
        ratio=st.floats(1.0, 300.0),
        start=st.floats(0.05, 50.0),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
        seed=st.integers(0, 100),
    )
    @settings(max_examples=60, deadline=None)
    def test_default_trajectory_reaches_the_equilibrium_within_the_bounds(
        self, intrinsic_lr, ratio, start, momentum, seed
    ):
        equilibrium = quantities.equilibrium_values(1.0, intrinsic_lr, 1 / ratio, 1.0, momentum)["equilibrium_norm_rms"]
        exploration = explore(
            1.0,
            intrinsic_lr,
            grad_norm_min=1 / ratio,
            grad_norm_max=1.0,
            norm=start * equilibrium,
            momentum=momentum,
            seed=seed,
        )
        last = exploration.trajectory.final_norm.item()
        assert equilibrium / 3 < last < 3 * equilibrium
        lower, upper = exploration.values["norm_lower"], exploration.values["norm_upper"]
        if not momentum and lower <= exploration.norm <= upper:
            assert lower * (1 - 1e-9) <= exploration.trajectory.norm.min()
            assert exploration.trajectory.norm.max() <= upper * (1 + 1e-9)

    def test_missing_numbers_have_a_reason(self, drawn):
        setting, exploration, _ = drawn
        for name, value in exploration.values.items():
            assert value if isinstance(value, str) else math.isfinite(value), name
        text = str(exploration)
        assert "inf" not in re.split(r"\W+", text)
        assert "nan" not in text
        assert "lr * wd" not in text
        intrinsic_lr = setting["lr"] * setting["wd"]
        if not setting["wd"]:
            assert {exploration.values[name] for name in EQUILIBRIUM_NAMES} == {"none without weight decay"}
        if intrinsic_lr >= 1:
            assert "ηλ must be < 1" in exploration.values["equilibrium_rotation"]
            assert "ηλ must be < 1" in exploration.values["angular_jump_regime"]
        if setting["grad_norm_min"] == 0:
            assert "without gradients" in exploration.values["equilibrium_norm_min"]
            assert "without gradients" in exploration.values["angular_jump_norm_min"]
        if not 0.0003 < intrinsic_lr < 0.011 and intrinsic_lr and not setting.get("momentum"):
            words = "outside the range of the model" if intrinsic_lr < 1 else "ηλ must be < 1"
            assert words in exploration.values["period"]

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"lr": 0.0}, ValueError, "lr must be a finite number > 0, got 0.0"),
            ({"lr": [0.1, 0.2]}, ValueError, "lr must be one number"),
            ({"wd": -1.0}, ValueError, "wd must be a finite number >= 0, got -1.0"),
            ({"lr": 2.0, "wd": 1.0}, ValueError, "lr \\* wd must be < 2 here, got 2"),
            ({"grad_norm_min": 20.0}, ValueError, "grad_norm_min must be <= grad_norm_max, got grad_norm_min=20.0"),
            ({"grad_norm_max": 0.0, "grad_norm_min": 0.0}, ValueError, "grad_norm_max must be a finite number > 0"),
            ({"norm": 0.0}, ValueError, "norm must be a finite number > 0"),
            ({"momentum": 1.0}, ValueError, "momentum must be a finite number >= 0 and < 1"),
            ({"delta": 1.0}, ValueError, "delta must be a finite number > 0 and < 1"),
            ({"steps": 0.5}, TypeError, "steps must be a whole number"),
            ({"norm": "large"}, TypeError, "norm must be a finite number > 0"),
        ],
    )
    def test_invalid_arguments_are_refused(self, change, error, words):
        with pytest.raises(error, match=words):
            explore(**{"lr": 0.5, "wd": 0.01, **SETTING, **change})


def positive_numbers(values, *names):
    return [values[name] for name in names if not isinstance(values[name], str) and values[name] > 0]


class TestNormLevels:
    @given(
        intrinsic_lr=st.floats(1e-6, 0.99),
        ratio=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
    )
    @settings(max_examples=80, deadline=None)
    def test_each_height_belongs_to_one_kind_of_line(self, intrinsic_lr, ratio, momentum):
        values = quantities.equilibrium_values(1.0, intrinsic_lr, ratio, 1.0, momentum)
        levels = quantities.norm_levels(values)
        kinds = [level.kind for level in levels]
        assert len(set(kinds)) == len(kinds)
        heights = {level.kind: positive_numbers(values, *level.names) for level in levels}
        assert all(len(heights[level.kind]) == len(level.names) for level in levels)
        for number, kind in enumerate(kinds):
            for other in kinds[:number]:
                assert not any(a == pytest.approx(b, rel=1e-9) for a in heights[kind] for b in heights[other])
        line_heights = [height for group in heights.values() for height in group]
        for value in positive_numbers(values, *EQUILIBRIUM_NAMES[:5]):
            assert min(abs(math.log(value / height)) for height in line_heights) < 1e-9

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ((0.5, 0.01, 1.0, 10.0, 0.0), ["bounds = equilibrium at ℓ and L", "equilibrium at rms g̃"]),
            ((0.5, 0.01, 10.0, 10.0, 0.0), ["bounds = equilibrium at ℓ and L"]),
            (
                (0.5, 0.1, 0.1, 10.0, 0.0),
                ["bounds (lower bound = equilibrium at ℓ)", "equilibrium at L", "equilibrium at rms g̃"],
            ),
            ((3.0, 0.2, 1.0, 10.0, 0.0), ["bounds", "equilibrium at ℓ and L", "equilibrium at rms g̃"]),
            ((0.1, 0.001, 1.0, 10.0, 0.9), ["lower bound", "equilibrium at ℓ and L", "equilibrium at rms g̃"]),
            ((0.5, 0.0, 1.0, 10.0, 0.0), []),
        ],
        ids=str,
    )
    def test_labels(self, setting, words):
        assert [level.words for level in quantities.norm_levels(quantities.equilibrium_values(*setting))] == words


class TestPlotExploration:
    def test_it_shows_the_numbers(self, drawn):
        _, exploration, (norm, rotation, numbers) = drawn
        heights = [line.get_ydata()[0] for line in norm.lines[1:]]
        assert len({f"{height:.9g}" for height in heights}) == len(heights)
        for value in positive_numbers(exploration.values, *EQUILIBRIUM_NAMES[:5]):
            assert any(value == pytest.approx(height, rel=1e-9) for height in heights)
        angles = {line.get_ydata()[0] for line in rotation.lines[1:]}
        assert angles >= set(positive_numbers(exploration.values, "equilibrium_rotation"))
        threshold = exploration.values["angular_jump_rotation"]
        highest = max([float(exploration.trajectory.rotation.max()), *(angles - {threshold})])
        assert (threshold in angles) == (threshold <= 5 * highest)
        texts = [text.get_text() for text in numbers.texts]
        left, right = texts[::2], texts[1::2]
        assert [words for words in left if words] == [quantity.words for quantity in QUANTITIES.values()]
        assert len(left) == len(right)
        for name, value in exploration.values.items():
            if not isinstance(value, str):
                assert right[left.index(QUANTITIES[name].words)] == QUANTITIES[name].text(value)

    def test_no_text_leaves_the_picture(self, drawn):
        axes = drawn[2]
        figure = axes[0].figure
        for text in [*axes[2].texts, *axes[0].get_legend().get_texts(), axes[0].yaxis.label, axes[1].xaxis.label]:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1, text.get_text()
            assert box.y1 <= figure.bbox.y1, text.get_text()
        assert axes[0].get_legend().get_window_extent().x1 <= axes[2].get_window_extent().x0

    def test_shading_covers_the_norms_of_angular_jumps(self):
        exploration = explore(0.5, 0.2, delta=0.02, grad_norm_min=1.0, grad_norm_max=30.0, norm=1.0)
        norm = plot_exploration(exploration)[0]
        some, every = norm.patches[0].get_bbox(), norm.patches[1].get_bbox()
        assert (some.y0, some.y1) == (
            exploration.values["angular_jump_norm_min"],
            exploration.values["angular_jump_norm_max"],
        )
        assert every.y1 == exploration.values["angular_jump_norm_min"]

    def test_axes_may_be_given(self):
        fig, axes = plt.subplots(1, 3)
        assert plot_exploration(explore(0.5, 0.01, **SETTING), axes)[2] is axes[2]
        assert plt.get_fignums() == [fig.number]

    def test_invalid_arguments_are_refused(self):
        with pytest.raises(TypeError, match=r"^exploration must be an Exploration"):
            plot_exploration({})
        with pytest.raises(ValueError, match="axes must be 3"):
            plot_exploration(explore(0.5, 0.01, **SETTING), plt.subplots(1, 2)[1])


class TestExplorer:
    @pytest.fixture
    def blank(self, monkeypatch):
        """Empty pictures, for tests of the sliders alone."""
        monkeypatch.setattr(sliders_module, "plot_exploration", lambda exploration, axes: axes)
        monkeypatch.setattr(sliders_module, "add_axes", lambda figure: [])

    @pytest.fixture
    def parts(self):
        pytest.importorskip("ipywidgets")
        box, message, image = explorer().children
        return {slider.description: slider for slider in box.children}, message, image

    def test_the_picture_follows_each_slider(self, parts):
        sliders, message, image = parts
        assert len(sliders) == 8
        pictures = {bytes(image.value)}
        for name, value in (
            ("learning rate η", 0.1),
            ("weight decay λ", 0.1),
            ("smallest g̃, ℓ", 0.1),
            ("largest g̃, L", 3.0),
            ("start norm ρ₀", 3.0),
            ("angular jump δ", 0.3),
            ("momentum μ", 0.5),
            ("no weight decay", True),
        ):
            sliders[name].value = value
            picture = bytes(image.value)
            assert picture.startswith(b"\x89PNG")
            assert picture not in pictures, name
            pictures.add(picture)
        assert message.value == ""
        assert plt.get_fignums() == []

    def test_the_least_gradient_never_exceeds_the_largest(self, blank, parts):
        sliders, _, _ = parts
        low, high = sliders["smallest g̃, ℓ"], sliders["largest g̃, L"]
        low.value = 50.0
        assert (low.value, high.value) == (50.0, 50.0)
        high.value = 2.0
        assert (low.value, high.value) == (2.0, 2.0)

    def test_invalid_setting_shows_a_message(self, blank, parts):
        sliders, message, image = parts
        sliders["learning rate η"].value = 3.0
        sliders["weight decay λ"].value = 1.0
        assert "lr * wd must be &lt; 2 here" in message.value
        assert image.layout.display == "none"
        sliders["weight decay λ"].value = 0.01
        assert message.value == ""
        assert image.layout.display != "none"

    def test_several_moves_are_drawn_once(self, blank, parts, monkeypatch):
        sliders, _, _ = parts
        explored = []
        monkeypatch.setattr(
            sliders_module, "explore", lambda *args, **named: explored.append(args) or explore(*args, **named)
        )

        async def moves():
            for value in (0.1, 0.2, 0.3):
                sliders["learning rate η"].value = value
            assert explored == []
            while not explored:
                await asyncio.sleep(0.01)

        asyncio.run(moves())
        assert explored == [(0.3, 0.01)]

    def test_fallback_without_widgets_is_text_and_figure(self):
        pytest.importorskip("ipywidgets")
        formatters = pytest.importorskip("IPython.core.formatters")
        box = explorer()
        shown, _ = formatters.DisplayFormatter().format(box)
        exploration = explore(0.5, 0.01, **SETTING)
        assert shown["text/plain"] == str(exploration)
        assert base64.b64decode(shown["image/png"]) == bytes(box.children[2].value)
        assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
        sliders = {slider.description: slider for slider in box.children[0].children}
        sliders["angular jump δ"].value = 0.3
        moved, _ = formatters.DisplayFormatter().format(box)
        assert moved["text/plain"] == str(explore(0.5, 0.01, delta=0.3, **SETTING))
        assert moved["image/png"] != shown["image/png"]
        sliders["learning rate η"].value, sliders["weight decay λ"].value = 3.0, 1.0
        shown, _ = formatters.DisplayFormatter().format(box)
        assert shown["text/plain"].startswith("Invalid setting: lr * wd must be < 2 here")
        assert "image/png" not in shown

    def test_without_ipywidgets_the_error_says_what_to_install(self, monkeypatch):
        original_import = builtins.__import__

        def missing(name, *args, **named):
            if name == "ipywidgets":
                raise ImportError(name)
            return original_import(name, *args, **named)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(ImportError, match=r"pip install 'bnwd\[notebooks\]'"):
            explorer()


def unpacked(text, low, high):
    levels = np.frombuffer(base64.b64decode(text), "<u2")
    return np.exp(low + (high - low) * levels / 65535)


class TestPage:
    def test_products_and_ratios_of_slider_values_lie_on_the_grid(self):
        for i, lr in enumerate(page.LR):
            np.testing.assert_allclose(lr * np.array(page.WD), page.INTRINSIC_LR[i : i + len(page.WD)], rtol=1e-12)
        for i, ratio in enumerate(page.RATIOS):
            shifted = page.GRAD_NORMS[: len(page.GRAD_NORMS) - i]
            np.testing.assert_allclose(np.array(page.GRAD_NORMS[i:]) * ratio, shifted, rtol=1e-12)
        assert len(page.LR) + len(page.WD) - 1 == len(page.INTRINSIC_LR)
        assert (page.LR[page.INITIAL_POSITIONS["lr"]], page.WD[page.INITIAL_POSITIONS["wd"]]) == (0.5, 0.0125)

    def test_common_settings_are_on_the_sliders(self):
        for common, grid in ((0.1, page.LR), (0.5, page.LR), (1e-4, page.WD), (5e-4, page.WD)):
            assert min(abs(value / common - 1) for value in grid) < 1e-12
        assert min(page.LR) < 1e-3

    @given(
        place=st.tuples(
            *(
                st.sampled_from(range(len(grid)))
                for grid in (page.INTRINSIC_LR, page.MOMENTA, page.RATIOS, page.STARTS, page.DELTAS)
            )
        ),
        lr=st.floats(1e-4, 1e3),
        size=st.floats(1e-4, 1e4),
    )
    @settings(max_examples=80, deadline=None)
    def test_rescaled_frames_equal_explore_at_any_lr_and_gradient(self, frames, place, lr, size):
        i, m, q, s, d = place
        intrinsic_lr, momentum, ratio, delta = page.INTRINSIC_LR[i], page.MOMENTA[m], page.RATIOS[q], page.DELTAS[d]
        stored = [
            *frames.equilibrium[i][m][q],
            *(frames.momentum_angular_jumps[d] if momentum else frames.angular_jumps[i][q][d][s]),
        ]
        stored += frames.period[m][i]
        factors = [lr**quantity.lr_power * size**quantity.grad_norm_power for quantity in QUANTITIES.values()]
        norm = page.STARTS[s] * frames.equilibrium[i][m][q][1] * factors[1]
        steps = int(frames.steps[i, m, q, s])
        exploration = explore(
            lr,
            intrinsic_lr / lr,
            grad_norm_min=ratio * size,
            grad_norm_max=size,
            norm=norm,
            momentum=momentum,
            delta=delta,
            steps=steps,
        )
        for name, value, factor in zip(QUANTITIES, stored, factors, strict=True):
            if isinstance(value, str):
                assert exploration.values[name] == value
            elif name in ("angular_jump_earliest", "angular_jump_latest"):
                # accurate to one step
                assert exploration.values[name] == pytest.approx(value, abs=1)
            else:
                assert exploration.values[name] == pytest.approx(value * factor, rel=1e-9), name
        bands = page.trajectory_bands(exploration.trajectory)
        np.testing.assert_allclose(bands[:2], frames.bands[i, m, q, s, :2] * factors[1], rtol=1e-6)
        np.testing.assert_allclose(bands[2:], frames.bands[i, m, q, s, 2:], rtol=1e-6)

    def test_the_file_holds_the_frames(self, frames):
        text = page._page(frames)
        assert len(text.encode()) < 3_000_000
        data = json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', text)[1])
        assert data["equilibrium"] == frames.equilibrium
        assert data["angular_jumps"] == frames.angular_jumps
        assert data["momentum_angular_jumps"] == frames.momentum_angular_jumps
        assert "lr * wd" not in text
        assert data["period"] == frames.period
        assert data["steps"] == frames.steps.tolist()
        for name, part in (("norms", slice(0, 2)), ("rotations", slice(2, 4))):
            bands = frames.bands[..., part, :]
            # half of one of 65535 levels
            allowed = (data[name][2] - data[name][1]) / 65535 / 2 * 1.01
            np.testing.assert_allclose(unpacked(*data[name]).reshape(bands.shape), bands, rtol=allowed * 1.01)
            assert allowed < 2e-4
        assert re.findall(r"@[A-Z]+@", text) == []

    def test_page_loads_nothing_and_labels_every_slider(self, frames):
        text = page._page(frames)
        assert re.findall(r"https?:|\bsrc=|@import|\bfetch\(|\bimport\(|<link", text) == []
        sliders = re.findall(r'<input type="range" id="(\w+)"', text)
        assert sorted(sliders) == sorted(page.INITIAL_POSITIONS)
        assert sorted(re.findall(r'<label for="(\w+)"', text)) == sorted(sliders)

    def test_file_is_replaced_only_when_complete(self, frames, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "explorer_frames", lambda *, seed: frames)
        target = tmp_path / "explorer.html"
        target.write_text("old", encoding="utf-8")
        page.write_explorer_page(target)
        assert [path.name for path in tmp_path.iterdir()] == ["explorer.html"]
        assert target.read_text(encoding="utf-8") == page._page(frames)

    def test_other_arguments_are_refused_before_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "equilibrium_values", None)
        with pytest.raises(ValueError, match=r"path must be.*existing folder, got"):
            page.write_explorer_page(tmp_path / "missing" / "page.html")
        with pytest.raises(TypeError, match="seed must be a whole number"):
            page.write_explorer_page(tmp_path / "page.html", seed=0.5)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number", range(len(MOVES)), ids=lambda number: str(MOVES[number]))
    def test_a_browser_shows_the_numbers_of_explore(self, shown_numbers, number):
        places, shown = {**page.INITIAL_POSITIONS, **MOVES[number]}, shown_numbers[number]
        # L carries ℓ along
        places["low"] = max(places["low"], places["high"] - 4)
        exploration = explore(
            page.LR[places["lr"]],
            page.WD[places["wd"]],
            momentum=page.MOMENTA[places["momentum"]],
            grad_norm_min=page.GRAD_NORMS[places["low"]],
            grad_norm_max=page.GRAD_NORMS[places["high"]],
            norm=float(shown["start"].split("=")[1].split()[0]),
            delta=page.DELTAS[places["delta"]],
        )
        for name, value in exploration.values.items():
            if isinstance(value, str):
                assert shown[name] == value
            else:
                number, *units = shown[name].split()
                # the start norm has four digits, so steps to an angular jump may differ by one
                wide = {"rel": 2e-3, "abs": 1} if name.startswith("angular_jump_") else {"rel": 6e-4}
                assert float(number) == pytest.approx(value, **wide), name
                assert units == QUANTITIES[name].units.split()
        for name, values in (("lr", page.LR), ("wd", page.WD), ("low", page.GRAD_NORMS), ("high", page.GRAD_NORMS)):
            assert float(shown[name].split()[0]) == pytest.approx(values[places[name]], rel=6e-3)
        assert shown["drawn"] == shown["keys"]
        assert shown["words"] >= {level.words for level in quantities.norm_levels(exploration.values)}
        assert shown["cut"] == 0

    @pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_in_a_frame_it_sends_its_height_and_follows_the_theme(self, frames, tmp_path, theme):
        reporter = """<script>addEventListener("message", () => parent.postMessage(
            {theme: document.documentElement.dataset.theme, fits: document.documentElement.scrollHeight <= innerHeight},
            "*"))</script></body>"""
        (tmp_path / "explorer.html").write_text(page._page(frames).replace("</body>", reporter), encoding="utf-8")
        frame = re.search(r"<iframe.*</iframe>", (DOCS / "explorer.md").read_text(encoding="utf-8"))[0]
        script = (DOCS / "_static" / "explorer.js").read_text(encoding="utf-8")
        chosen = f"""addEventListener("message", ({{ data }}) => {{
            if (data.theme) document.body.dataset.themeReceived = `${{data.theme}} ${{data.fits}}`;
            else setTimeout(() => {{ document.body.dataset.theme = "{theme}"; }}, 100); }});"""
        around = f"<script>{script}</script>{frame.replace('../', '')}<script>{chosen}</script>"
        around = f'<body style="width: 480px" data-theme="auto">{around}</body>'
        done = dom(around, tmp_path)
        assert re.search(r'data-theme-received="(.*?)"', done)[1] == f"{theme} true"
        assert int(re.search(r"height: (\d+)px", done)[1]) > 1500


def shown_in_browser(text, folder):
    """Return, for each of MOVES, numbers, slider values and lines that the page shows after its sliders were moved."""
    script = """
        const shots = [];
        for (const moves of MOVES) {
          for (const [id, place] of Object.entries({ ...D.initial, ...moves })) input[id].value = place;
          for (const id in moves) input[id].dispatchEvent(new Event("input"));
          update();
          // labels that leave the figure or overlap another label
          const boxes = [...document.querySelectorAll("#picture text")].map((text) => text.getBoundingClientRect());
          const all = document.getElementById("picture").getBoundingClientRect();
          const leaves = (a) => a.left < all.left || a.right > all.right || a.bottom > all.bottom;
          const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
          const cut = boxes.filter((a, i) => leaves(a) || boxes.slice(0, i).some((b) => touch(a, b)));
          const parts = [document.getElementById("sliders"), document.querySelector("main")];
          shots.push({ html: parts.map((part) => part.outerHTML).join(""), cut: cut.length });
        }
        document.body.textContent = "shots" + encodeURIComponent(JSON.stringify(shots)) + "shots";
    """.replace("MOVES", json.dumps(MOVES))
    dumped = dom(text.replace("</body>", f"<script>{script}</script></body>"), folder)
    return [shown_numbers_of(**shot) for shot in json.loads(urllib.parse.unquote(dumped.split("shots")[1]))]


def shown_numbers_of(html, cut):
    shown = dict(re.findall(r'<output[^>]* id="(\w+)-value">(.*?)</output>', html))
    for names, value in re.findall(r'<td [^>]*data-names="([\w ]+)">(.*?)</td>', html):
        shown |= dict.fromkeys(names.split(), value)
    drawing, keys = re.search(r'<svg id="picture".*?</svg>', html, re.S)[0], re.search(r"<ul .*?</ul>", html, re.S)[0]
    kinds = re.compile(r'class="(simulated|bound|ends|rms|threshold)"|fill="url\(#(\w+)\)"')
    shown["drawn"], shown["keys"] = ({a + b for a, b in kinds.findall(part)} for part in (drawing, keys))
    shown["words"] = set(re.findall(r"</svg>(.*?)</li>", keys))
    return shown | {"cut": cut}


def dom(text, folder):
    """Return the document that a browser makes of a page."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    flags = "--disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
    command = [CHROMIUM, "--headless", "--no-sandbox", *flags.split(), f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=500,2000", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout
