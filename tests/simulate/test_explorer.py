import asyncio
import base64
import builtins
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

import simulate
import theory
from simulate.explorer import QUANTITIES, explore, explorer, page, plot_explored, quantities
from simulate.explorer import sliders as sliders_module
from simulate.explorer.quantities import JUMPS, PERIOD, REST

SETTING = {"grad_norm_min": 1.0, "grad_norm_max": 10.0, "norm": 10.0}
DOCS = Path(__file__).parents[2] / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# wherever a picture or a number may be missing
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


@pytest.fixture(autouse=True)
def _without_a_screen():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def frames():
    with pytest.MonkeyPatch.context() as patch:
        # slow decay, cut short
        patch.setattr(quantities, "_MOST_STEPS", 50_000)
        return page.explorer_frames()


class TestExplore:
    def test_numbers_are_those_of_theory(self):
        lr, wd, low, high, norm, delta = 0.5, 0.02, 0.3, 6.0, 4.0, 0.2
        found = explore(lr, wd, grad_norm_min=low, grad_norm_max=high, norm=norm, delta=delta).values
        assert tuple(found) == tuple(QUANTITIES) == REST + JUMPS + PERIOD
        assert found["equilibrium_norm_min"] == theory.equilibrium_norm(lr, wd, low)
        assert found["equilibrium_norm_max"] == theory.equilibrium_norm(lr, wd, high)
        assert (found["norm_lower"], found["norm_upper"]) == theory.norm_bounds(lr, wd, low, high)
        assert found["equilibrium_rotation"] == theory.equilibrium_rotation(lr, wd)
        assert found["relaxation_time"] == pytest.approx(theory.relaxation_time(lr, wd), rel=1e-12)
        assert found["angular_jump_regime"] == theory.angular_jump_regime(lr, wd, low, high, delta)
        assert found["jump_norm_max"] == theory.angular_jump_norm(lr, wd, high, delta)
        assert found["jump_norm_min"] == theory.angular_jump_norm(lr, wd, low, delta)
        assert math.cos(found["jump_angle"]) == pytest.approx(1 - delta)
        time = theory.steps_to_angular_jump(norm, lr, wd, low, high, delta)
        assert (found["jump_earliest"], found["jump_latest"]) == (time.earliest, "never")
        assert found["period"] == simulate.period(lr, wd).mean

    def test_with_momentum_they_are_those_of_momentum(self):
        lr, wd, mu = 0.1, 0.001, 0.9
        found = explore(lr, wd, momentum=mu, **SETTING).values
        rule = theory.SGD(momentum=mu)
        assert found["equilibrium_norm_max"] == theory.equilibrium_norm(lr, wd, 10.0, optimizer=rule)
        assert found["norm_lower"] == theory.momentum_lower_bound(lr, wd, 1.0, momentum=mu)
        assert found["relaxation_time"] == theory.momentum_relaxation(lr, wd, momentum=mu).time
        assert found["equilibrium_rotation"] == theory.equilibrium_rotation(lr, wd, optimizer=rule)
        assert "momentum" in found["norm_upper"]
        assert {found[name] for name in JUMPS if name != "jump_angle"} == {"no jump formula with momentum"}
        assert {found[name] for name in PERIOD} == {"the reference model is of plain SGD with weight decay"}

    @given(
        delta=st.floats(1e-6, 0.999),
        momentum=st.sampled_from([0.0, 0.5, 0.99]),
        wd=st.sampled_from([0.0, 0.01, 1.0]),
    )
    @settings(max_examples=15, deadline=None)
    def test_the_angle_of_a_jump_needs_nothing_but_delta(self, delta, momentum, wd):
        found = explore(1.0, wd, momentum=momentum, delta=delta, steps=1, **SETTING).values
        assert 1 - math.cos(found["jump_angle"]) == pytest.approx(delta, rel=1e-9)
        if not momentum and wd < 1:
            assert theory.rotation(found["jump_norm_max"], 1.0, wd, 10.0) == pytest.approx(
                found["jump_angle"], rel=1e-9
            )

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_the_curvature_is_that_whose_edge_is_the_equilibrium(self, momentum):
        found = explore(0.5, 0.01, momentum=momentum, **SETTING).values
        edge = theory.critical_norm(0.5, found["edge_sharpness"], wd=0.01, optimizer=theory.SGD(momentum=momentum))
        assert edge == pytest.approx(found["equilibrium_norm_rms"], rel=1e-12)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_the_trajectory_comes_to_the_equilibrium_of_the_rms(self, momentum):
        found = explore(0.1, 0.002, momentum=momentum, steps=60_000, **SETTING)
        run, values = found.trajectory, found.values
        assert run.step.size <= 2000
        assert run.attrs["updates"] == 60_000
        settled = run.norm.values[run.step.values > 20_000]
        # by Jensen's inequality of the fourth root a little below
        assert np.mean(settled**4) ** 0.25 == pytest.approx(values["equilibrium_norm_rms"], rel=2e-3)
        size = np.sqrt(np.mean(run.grad_norm.values**2))
        assert theory.equilibrium_norm(0.1, 0.002, size, optimizer=theory.SGD(momentum=momentum)) == pytest.approx(
            values["equilibrium_norm_rms"], rel=0.02
        )

    @given(
        k=st.floats(1e-4, 0.25),
        ratio=st.floats(1.0, 300.0),
        start=st.floats(0.05, 50.0),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
        seed=st.integers(0, 100),
    )
    @settings(max_examples=60, deadline=None)
    def test_by_default_it_reaches_its_rest_and_stays_in_its_bounds(self, k, ratio, start, momentum, seed):
        rest = quantities.rest_values(1.0, k, 1 / ratio, 1.0, momentum)["equilibrium_norm_rms"]
        found = explore(
            1.0, k, grad_norm_min=1 / ratio, grad_norm_max=1.0, norm=start * rest, momentum=momentum, seed=seed
        )
        last = found.trajectory.final_norm.item()
        assert rest / 3 < last < 3 * rest
        lower, upper = found.values["norm_lower"], found.values["norm_upper"]
        if not momentum and lower <= found.norm <= upper:
            assert lower * (1 - 1e-9) <= found.trajectory.norm.min()
            assert found.trajectory.norm.max() <= upper * (1 + 1e-9)

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_what_does_not_exist_is_said(self, setting):
        found = explore(**setting)
        for name, value in found.values.items():
            assert value if isinstance(value, str) else math.isfinite(value), name
        said = str(found)
        assert "inf" not in re.split(r"\W+", said)
        assert "nan" not in said
        assert "lr * wd" not in said
        k = setting["lr"] * setting["wd"]
        if not setting["wd"]:
            assert {found.values[name] for name in REST} == {"none without weight decay"}
        if k >= 1:
            assert "ηλ must be < 1" in found.values["equilibrium_rotation"]
            assert "ηλ must be < 1" in found.values["angular_jump_regime"]
        if setting["grad_norm_min"] == 0:
            assert "without gradients" in found.values["equilibrium_norm_min"]
            assert "without gradients" in found.values["jump_norm_min"]
        if not 0.0003 < k < 0.011 and k and not setting.get("momentum"):
            words = "outside the range of the model" if k < 1 else "ηλ must be < 1"
            assert words in found.values["period"]

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
    def test_other_arguments_are_refused(self, change, error, words):
        with pytest.raises(error, match=words):
            explore(**{"lr": 0.5, "wd": 0.01, **SETTING, **change})


def known(values, *names):
    return [values[name] for name in names if not isinstance(values[name], str) and values[name] > 0]


class TestNormLevels:
    @given(
        k=st.floats(1e-6, 0.99),
        ratio=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
    )
    @settings(max_examples=80, deadline=None)
    def test_every_height_is_drawn_in_one_way(self, k, ratio, momentum):
        values = quantities.rest_values(1.0, k, ratio, 1.0, momentum)
        levels = quantities.norm_levels(values)
        kinds = [level.kind for level in levels]
        assert len(set(kinds)) == len(kinds)
        heights = {level.kind: known(values, *level.names) for level in levels}
        assert all(len(heights[level.kind]) == len(level.names) for level in levels)
        for number, kind in enumerate(kinds):
            for other in kinds[:number]:
                assert not any(a == pytest.approx(b, rel=1e-9) for a in heights[kind] for b in heights[other])
        drawn = [height for group in heights.values() for height in group]
        for value in known(values, *REST[:5]):
            assert min(abs(math.log(value / height)) for height in drawn) < 1e-9

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
    def test_their_words(self, setting, words):
        assert [level.words for level in quantities.norm_levels(quantities.rest_values(*setting))] == words


class TestPlotExplored:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_it_shows_the_numbers(self, setting):
        found = explore(**setting)
        norm, rotation, numbers = plot_explored(found)
        norm.figure.canvas.draw()
        heights = [line.get_ydata()[0] for line in norm.lines[1:]]
        assert len({f"{height:.9g}" for height in heights}) == len(heights)
        for value in known(found.values, *REST[:5]):
            assert any(value == pytest.approx(height, rel=1e-9) for height in heights)
        angles = {line.get_ydata()[0] for line in rotation.lines[1:]}
        assert angles >= set(known(found.values, "equilibrium_rotation"))
        norm_rise = found.values["jump_angle"]
        most = max([float(found.trajectory.rotation.max()), *(angles - {norm_rise})])
        assert (norm_rise in angles) == (norm_rise <= 5 * most)
        texts = [text.get_text() for text in numbers.texts]
        left, right = texts[::2], texts[1::2]
        assert [words for words in left if words] == [quantity.words for quantity in QUANTITIES.values()]
        assert len(left) == len(right)
        for name, value in found.values.items():
            if not isinstance(value, str):
                assert right[left.index(QUANTITIES[name].words)] == QUANTITIES[name].text(value)

    def test_no_text_leaves_the_picture(self):
        for setting in SETTINGS:
            axes = plot_explored(explore(**setting))
            figure = axes[0].figure
            figure.canvas.draw()
            for text in [*axes[2].texts, *axes[0].get_legend().get_texts(), axes[0].yaxis.label, axes[1].xaxis.label]:
                box = text.get_window_extent()
                assert box.x0 >= 0
                assert box.y0 >= 0
                assert box.x1 <= figure.bbox.x1, text.get_text()
                assert box.y1 <= figure.bbox.y1, text.get_text()
            assert axes[0].get_legend().get_window_extent().x1 <= axes[2].get_window_extent().x0
            plt.close(figure)

    def test_the_shaded_norms_are_those_that_jump(self):
        found = explore(0.5, 0.2, delta=0.02, grad_norm_min=1.0, grad_norm_max=30.0, norm=1.0)
        norm = plot_explored(found)[0]
        some, every = norm.patches[0].get_bbox(), norm.patches[1].get_bbox()
        assert (some.y0, some.y1) == (found.values["jump_norm_min"], found.values["jump_norm_max"])
        assert every.y1 == found.values["jump_norm_min"]

    def test_axes_may_be_given(self):
        fig, axes = plt.subplots(1, 3)
        assert plot_explored(explore(0.5, 0.01, **SETTING), axes)[2] is axes[2]
        assert plt.get_fignums() == [fig.number]

    def test_other_arguments_are_refused(self):
        with pytest.raises(TypeError, match="explored must be an Explored"):
            plot_explored({})
        with pytest.raises(ValueError, match="axes must be 3"):
            plot_explored(explore(0.5, 0.01, **SETTING), plt.subplots(1, 2)[1])


class TestExplorer:
    @pytest.fixture
    def parts(self):
        pytest.importorskip("ipywidgets")
        box, message, image = explorer().children
        return {slider.description: slider for slider in box.children}, message, image

    def test_the_picture_follows_each_slider(self, parts):
        sliders, message, image = parts
        assert len(sliders) == 8
        seen = {bytes(image.value)}
        for name, value in (
            ("learning rate η", 0.1),
            ("weight decay λ", 0.1),
            ("least g̃, ℓ", 0.1),
            ("largest g̃, L", 3.0),
            ("norm at start ρ₀", 3.0),
            ("jump δ", 0.3),
            ("momentum μ", 0.5),
            ("no weight decay", True),
        ):
            sliders[name].value = value
            picture = bytes(image.value)
            assert picture.startswith(b"\x89PNG")
            assert picture not in seen, name
            seen.add(picture)
        assert message.value == ""
        assert plt.get_fignums() == []

    def test_the_least_gradient_never_exceeds_the_largest(self, parts):
        sliders, _, _ = parts
        low, high = sliders["least g̃, ℓ"], sliders["largest g̃, L"]
        low.value = 50.0
        assert (low.value, high.value) == (50.0, 50.0)
        high.value = 2.0
        assert (low.value, high.value) == (2.0, 2.0)

    def test_a_setting_without_meaning_is_answered_by_a_message(self, parts):
        sliders, message, image = parts
        sliders["learning rate η"].value = 3.0
        sliders["weight decay λ"].value = 1.0
        assert "lr * wd must be &lt; 2 here" in message.value
        assert image.layout.display == "none"
        sliders["weight decay λ"].value = 0.01
        assert message.value == ""
        assert image.layout.display != "none"

    def test_a_row_of_moves_is_drawn_once(self, parts, monkeypatch):
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

    def test_where_there_are_no_widgets_it_is_its_words_and_its_picture(self, monkeypatch):
        pytest.importorskip("ipywidgets")
        formatters = pytest.importorskip("IPython.core.formatters")
        box = explorer()
        shown, _ = formatters.DisplayFormatter().format(box)
        found = explore(0.5, 0.01, **SETTING)
        assert shown["text/plain"] == str(found)
        assert base64.b64decode(shown["image/png"]) == bytes(box.children[2].value)
        assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
        sliders = {slider.description: slider for slider in box.children[0].children}
        sliders["jump δ"].value = 0.3
        moved, _ = formatters.DisplayFormatter().format(box)
        assert moved["text/plain"] == str(explore(0.5, 0.01, delta=0.3, **SETTING))
        assert moved["image/png"] != shown["image/png"]
        sliders["learning rate η"].value, sliders["weight decay λ"].value = 3.0, 1.0
        shown, _ = formatters.DisplayFormatter().format(box)
        assert shown["text/plain"].startswith("This setting has no meaning. lr * wd must be < 2 here")
        assert "image/png" not in shown

    def test_without_ipywidgets_it_says_what_to_install(self, monkeypatch):
        found = builtins.__import__

        def missing(name, *args, **named):
            if name == "ipywidgets":
                raise ImportError(name)
            return found(name, *args, **named)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(ImportError, match=r"pip install 'bnwd\[notebooks\]'"):
            explorer()


def unpacked(text, low, high):
    levels = np.frombuffer(base64.b64decode(text), "<u2")
    return np.exp(low + (high - low) * levels / 65535)


class TestPage:
    def test_products_and_ratios_of_the_sliders_lie_on_the_grid(self):
        for i, lr in enumerate(page.LR):
            np.testing.assert_allclose(lr * np.array(page.WD), page.INTRINSIC[i : i + len(page.WD)], rtol=1e-12)
        for i, ratio in enumerate(page.RATIOS):
            shifted = page.GRAD_NORMS[: len(page.GRAD_NORMS) - i]
            np.testing.assert_allclose(np.array(page.GRAD_NORMS[i:]) * ratio, shifted, rtol=1e-12)
        assert len(page.LR) + len(page.WD) - 1 == len(page.INTRINSIC)
        assert (page.LR[page.FIRST["lr"]], page.WD[page.FIRST["wd"]]) == (0.5, 0.0125)

    def test_common_settings_are_on_the_sliders(self):
        for wanted, there in ((0.1, page.LR), (0.5, page.LR), (1e-4, page.WD), (5e-4, page.WD)):
            assert min(abs(value / wanted - 1) for value in there) < 1e-12
        assert min(page.LR) < 1e-3

    @given(
        place=st.tuples(
            *(
                st.sampled_from(range(len(grid)))
                for grid in (page.INTRINSIC, page.MOMENTA, page.RATIOS, page.STARTS, page.DELTAS)
            )
        ),
        lr=st.floats(1e-4, 1e3),
        size=st.floats(1e-4, 1e4),
    )
    @settings(max_examples=80, deadline=None)
    def test_frames_rescaled_are_what_explore_says_at_any_rate_and_gradient(self, frames, place, lr, size):
        i, m, q, s, d = place
        k, momentum, ratio, delta = page.INTRINSIC[i], page.MOMENTA[m], page.RATIOS[q], page.DELTAS[d]
        stored = [*frames.rest[i][m][q], *(frames.momentum_jumps[d] if momentum else frames.jumps[i][q][d][s])]
        stored += frames.period[m][i]
        factors = [lr**quantity.lr_power * size**quantity.grad_norm_power for quantity in QUANTITIES.values()]
        norm = page.STARTS[s] * frames.rest[i][m][q][1] * factors[1]
        steps = int(frames.steps[i, m, q, s])
        found = explore(
            lr,
            k / lr,
            grad_norm_min=ratio * size,
            grad_norm_max=size,
            norm=norm,
            momentum=momentum,
            delta=delta,
            steps=steps,
        )
        for name, value, factor in zip(QUANTITIES, stored, factors, strict=True):
            if isinstance(value, str):
                assert found.values[name] == value
            elif name in ("jump_earliest", "jump_latest"):
                # known to a step
                assert found.values[name] == pytest.approx(value, abs=1)
            else:
                assert found.values[name] == pytest.approx(value * factor, rel=1e-9), name
        bands = page.bands_of(found.trajectory)
        np.testing.assert_allclose(bands[:2], frames.bands[i, m, q, s, :2] * factors[1], rtol=1e-6)
        np.testing.assert_allclose(bands[2:], frames.bands[i, m, q, s, 2:], rtol=1e-6)

    def test_the_file_holds_the_frames(self, frames):
        text = page._page(frames)
        assert len(text.encode()) < 3_000_000
        data = json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', text)[1])
        assert data["rest"] == frames.rest
        assert data["jumps"] == frames.jumps
        assert data["momentum_jumps"] == frames.momentum_jumps
        assert "lr * wd" not in text
        assert data["period"] == frames.period
        assert data["steps"] == frames.steps.tolist()
        for name, part in (("norms", slice(0, 2)), ("rotations", slice(2, 4))):
            wanted = frames.bands[..., part, :]
            # half of one of 65535 levels
            allowed = (data[name][2] - data[name][1]) / 65535 / 2 * 1.01
            np.testing.assert_allclose(unpacked(*data[name]).reshape(wanted.shape), wanted, rtol=allowed * 1.01)
            assert allowed < 2e-4
        assert re.findall(r"@[A-Z]+@", text) == []

    def test_it_asks_for_nothing_and_every_slider_has_a_label(self, frames):
        text = page._page(frames)
        assert re.findall(r"https?:|\bsrc=|@import|\bfetch\(|\bimport\(|<link", text) == []
        sliders = re.findall(r'<input type="range" id="(\w+)"', text)
        assert sorted(sliders) == sorted(page.FIRST)
        assert sorted(re.findall(r'<label for="(\w+)"', text)) == sorted(sliders)

    def test_it_is_written_aside(self, frames, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "explorer_frames", lambda *, seed: frames)
        target = tmp_path / "explorer.html"
        target.write_text("old", encoding="utf-8")
        page.write_explorer_page(target)
        assert [path.name for path in tmp_path.iterdir()] == ["explorer.html"]
        assert target.read_text(encoding="utf-8") == page._page(frames)

    def test_other_arguments_are_refused_before_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "rest_values", None)
        with pytest.raises(ValueError, match="path must be a file in an existing folder, got"):
            page.write_explorer_page(tmp_path / "missing" / "page.html")
        with pytest.raises(TypeError, match="seed must be a whole number"):
            page.write_explorer_page(tmp_path / "page.html", seed=0.5)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
    @pytest.mark.parametrize(
        "moves",
        [
            {},
            {"lr": 5, "wd": 8, "low": 4, "high": 7, "start": 0, "delta": 4},
            {"momentum": 2, "wd": 3},
            {"momentum": 1, "lr": 0, "wd": 0},
            {"high": 10},
            {"low": 4, "wd": 8},
        ],
        ids=str,
    )
    def test_a_browser_shows_the_numbers_of_explore(self, frames, tmp_path, moves):
        places = {**page.FIRST, **moves}
        # L carries ℓ along
        places["low"] = max(places["low"], places["high"] - 4)
        shown = in_a_browser(page._page(frames), tmp_path, moves)
        found = explore(
            page.LR[places["lr"]],
            page.WD[places["wd"]],
            momentum=page.MOMENTA[places["momentum"]],
            grad_norm_min=page.GRAD_NORMS[places["low"]],
            grad_norm_max=page.GRAD_NORMS[places["high"]],
            norm=float(shown["start"].split("=")[1].split()[0]),
            delta=page.DELTAS[places["delta"]],
        )
        for name, value in found.values.items():
            if isinstance(value, str):
                assert shown[name] == value
            else:
                number, *units = shown[name].split()
                # steps to a jump from a start of four digits
                wide = {"rel": 2e-3, "abs": 1} if name.startswith("jump_") else {"rel": 6e-4}
                assert float(number) == pytest.approx(value, **wide), name
                assert units == QUANTITIES[name].units.split()
        for name, values in (("lr", page.LR), ("wd", page.WD), ("low", page.GRAD_NORMS), ("high", page.GRAD_NORMS)):
            assert float(shown[name].split()[0]) == pytest.approx(values[places[name]], rel=6e-3)
        assert shown["drawn"] == shown["keys"]
        assert shown["words"] >= {level.words for level in quantities.norm_levels(found.values)}
        assert shown["cut"] == "0"

    @pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_in_a_frame_it_is_as_high_as_it_needs_and_of_the_theme_around_it(self, frames, tmp_path, theme):
        seen = """<script>addEventListener("message", () => parent.postMessage(
            {theme: document.documentElement.dataset.theme, fits: document.documentElement.scrollHeight <= innerHeight},
            "*"))</script></body>"""
        (tmp_path / "explorer.html").write_text(page._page(frames).replace("</body>", seen), encoding="utf-8")
        frame = re.search(r"<iframe.*</iframe>", (DOCS / "explorer.md").read_text(encoding="utf-8"))[0]
        script = (DOCS / "_static" / "explorer.js").read_text(encoding="utf-8")
        chosen = f"""addEventListener("message", ({{ data }}) => {{
            if (data.theme) document.body.dataset.seen = `${{data.theme}} ${{data.fits}}`;
            else setTimeout(() => {{ document.body.dataset.theme = "{theme}"; }}, 100); }});"""
        around = f"<script>{script}</script>{frame.replace('../', '')}<script>{chosen}</script>"
        around = f'<body style="width: 480px" data-theme="auto">{around}</body>'
        done = dom(around, tmp_path)
        assert re.search(r'data-seen="(.*?)"', done)[1] == f"{theme} true"
        assert int(re.search(r"height: (\d+)px", done)[1]) > 1500


def in_a_browser(text, folder, moves):
    """Numbers, slider values and lines that the page shows after its sliders were moved."""
    moved = "".join(
        f"input.{name}.value = {place}; input.{name}.dispatchEvent(new Event('input'));"
        for name, place in moves.items()
    )
    # labels that leave the picture or touch another one
    cut = """const boxes = [...document.querySelectorAll("#picture text")].map((text) => text.getBoundingClientRect());
        const all = document.getElementById("picture").getBoundingClientRect();
        const leaves = (a) => a.left < all.left || a.right > all.right || a.bottom > all.bottom;
        const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
        const cut = boxes.filter((a, i) => leaves(a) || boxes.slice(0, i).some((b) => touch(a, b)));
        document.body.dataset.cut = cut.length;
        """
    done = dom(text.replace("</body>", f"<script>{moved}{cut}</script></body>"), folder)
    seen = dict(re.findall(r'<output[^>]* id="(\w+)-value">(.*?)</output>', done))
    for names, value in re.findall(r'<td [^>]*data-names="([\w ]+)">(.*?)</td>', done):
        seen |= dict.fromkeys(names.split(), value)
    picture, keys = re.search(r'<svg id="picture".*?</svg>', done, re.S)[0], re.search(r"<ul .*?</ul>", done, re.S)[0]
    kinds = re.compile(r'class="(simulated|bound|ends|rest|jump)"|fill="url\(#(\w+)\)"')
    seen["drawn"], seen["keys"] = ({a + b for a, b in kinds.findall(part)} for part in (picture, keys))
    seen["words"] = set(re.findall(r"</svg>(.*?)</li>", keys))
    return seen | {"cut": re.search(r'data-cut="(\d+)"', done)[1]}


def dom(text, folder):
    """What a browser has made of a page."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    quiet = "--disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet.split(), f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=500,2000", "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout
