"""Figures of diagnosed logs: every cause and every trend is marked, and its mark needs no colour."""

import dataclasses
import math

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

import simulate
from simulate import plots
from simulate.diagnosis.rules import NORM_DRIVEN, OVERFLOW, RULES
from simulate.diagnosis.trends import LASTING_RISE, OSCILLATION, REPETITION, SLOW_RISE, LossTrend
from simulate.plots.diagnosis import log_to_draw
from tests.simulate.diagnosis.logs import noise, periodic, with_losses


@pytest.fixture(autouse=True)
def _without_a_screen():
    mpl.use("Agg")
    yield
    plt.close("all")


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (["loss"], ["loss"]),
        (["loss", "lr"], ["loss"]),
        (["loss", "weight_norm"], ["loss", "norm"]),
        (["loss", "weight_norm", "lr"], ["loss", "norm", "effective_lr"]),
    ],
)
def test_an_axis_for_each_variable_that_the_log_gives(columns, names):
    diagnosis = simulate.diagnose({name: np.full(100, 2.0) for name in columns})
    log = log_to_draw(diagnosis)
    assert list(log) == names
    axes = plots.plot_diagnosis(diagnosis, list(plt.subplots(len(names), squeeze=False)[1][:, 0]))
    for ax, name in zip(axes, names, strict=True):
        ax.figure.canvas.draw()
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), log[name])
    if "effective_lr" in names:
        assert set(log.effective_lr.values) == {0.5}


def test_spikes_are_marked_by_cause():
    run, _ = periodic(4)
    mixed = with_losses(run, 300 + 100, [math.inf])
    found = simulate.diagnose(mixed)
    axes = plots.plot_diagnosis(found)
    assert [ax.get_ylabel() for ax in axes] == ["mini-batch loss", "norm ρ", "effective lr η̃ = η/ρ²"]
    assert labels_of(axes[0]) == [NORM_DRIVEN, OVERFLOW, "next expected"]
    marked = {line.get_label(): line.get_xdata() for line in axes[0].lines}
    assert list(marked[NORM_DRIVEN]) == [s.step for s in found.spikes if s.cause == NORM_DRIVEN]
    assert np.isfinite(np.concatenate([line.get_ydata() for line in axes[0].lines[1:]])).all()


def test_every_cause_has_a_colour_and_a_marker_of_its_own():
    (spike,) = simulate.diagnose(with_losses(periodic(1)[0], 100, [math.inf])).spikes[:1]
    # an overflow needs no rule
    causes = sorted({OVERFLOW, *(rule.cause for rule in RULES)})
    spikes = tuple(
        dataclasses.replace(spike, step=10 * place, last_step=10 * place + 5, peak_loss=1.0, cause=cause)
        for place, cause in enumerate(causes)
    )
    found = dataclasses.replace(simulate.diagnose({"loss": noise(300, 0)}), spikes=spikes)
    (ax,) = plots.plot_diagnosis(found)
    marks = {line.get_label(): (line.get_color(), line.get_marker()) for line in ax.lines[1:]}
    assert set(marks) == set(causes) == set(labels_of(ax))
    assert len({color for color, _ in marks.values()}) == len(causes)
    assert len({marker for _, marker in marks.values()}) == len(causes)


def test_found_trends_are_drawn():
    step, random = np.arange(4000), np.random.default_rng(0)
    rise = np.exp(1.5 * np.clip((step / 4000 - 0.4) / 0.3, 0, 1))
    order = 1 + np.tile(0.1 * random.normal(size=80), 50)
    found = simulate.diagnose({"loss": rise * order * (1 + 0.05 * random.normal(size=4000))})
    assert [trend.kind for trend in found.trends] == [SLOW_RISE, REPETITION]
    assert labels_of(plots.plot_diagnosis(found)[0]) == [SLOW_RISE, REPETITION]


@pytest.mark.parametrize("offset", [0.0, 9.0], ids=["log", "linear"])
@pytest.mark.parametrize("kinds", [(SLOW_RISE,), (LASTING_RISE, OSCILLATION), (REPETITION,)], ids=str)
def test_trends_are_bars_below_the_curve_over_their_steps(kinds, offset):
    loss = noise(300, 0) - offset
    trends = tuple(LossTrend(kind, 100 * place, 100 * place + 150, "") for place, kind in enumerate(kinds))
    found = dataclasses.replace(simulate.diagnose({"loss": loss}), trends=trends)
    (ax,) = plots.plot_diagnosis(found)
    ax.figure.canvas.draw()
    assert labels_of(ax) == list(kinds)
    assert ax.get_yscale() == ("linear" if offset else "log")
    lowest = ax.transAxes.inverted().transform(ax.transData.transform((0, loss.min())))[1]
    assert len(ax.patches) == len(trends)
    for bar, trend in zip(ax.patches, trends, strict=True):
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == (trend.step, trend.last_step)
        assert 0 < bar.get_y() < bar.get_y() + bar.get_height() < lowest
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches]
    assert all(top < bar.get_y() for top, bar in zip(tops, ax.patches[1:], strict=False))


def test_every_trend_has_a_hatch_of_its_own():
    kinds = (SLOW_RISE, LASTING_RISE, OSCILLATION, REPETITION)
    trends = tuple(LossTrend(kind, 0, 299, "") for kind in kinds)
    (ax,) = plots.plot_diagnosis(dataclasses.replace(simulate.diagnose({"loss": noise(300, 0)}), trends=trends))
    assert [bar.get_label() for bar in ax.patches] == list(kinds)
    assert len({bar.get_hatch() for bar in ax.patches}) == len(kinds)


def test_a_loss_alone():
    axes = plots.plot_diagnosis(simulate.diagnose({"loss": noise(300, 0)}))
    assert len(axes) == 1
    assert axes[0].get_legend() is None


def test_bad_input():
    found = simulate.diagnose({"loss": noise(300, 0)})
    with pytest.raises(TypeError, match=r"diagnosis must be a simulate\.Diagnosis, got Dataset"):
        plots.plot_diagnosis(found.log)
    with pytest.raises(ValueError, match="axes must be 1"):
        plots.plot_diagnosis(found, plt.subplots(2)[1])
