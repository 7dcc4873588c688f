"""Explorer for notebooks: sliders, and a figure that follows them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping
from typing import Any

from simulate.explorer.picture import add_axes, plot_exploration
from simulate.explorer.quantities import Exploration, explore

_INVALID = "Invalid setting:"
_DELAY = 0.05  # seconds without a move of a slider before the figure is drawn


def explorer() -> Any:
    """Make a notebook widget with sliders and the figure of `plot_exploration`, which follows them.

    Returns
    -------
    ipywidgets.VBox. The sliders keep ℓ <= L. An invalid setting shows a message. Where widgets are not supported, as
    in the pages of stored notebooks, the text of `explore` and the figure appear instead.

    Raises
    ------
    ImportError : ipywidgets is not installed.

    Examples
    --------
    >>> explorer()  # doctest: +SKIP
    """
    try:
        import ipywidgets as widgets
    except ImportError:
        raise ImportError("explorer needs ipywidgets: pip install 'bnwd[notebooks]'") from None
    sliders = _sliders(widgets)
    image = widgets.Image(format="png", layout={"max_width": "100%"})
    message = widgets.HTML()
    row = widgets.Box(list(sliders.values()), layout={"flex_flow": "row wrap"})
    box = _box_class(widgets)([row, message, image])
    low, high = sliders["grad_norm_min"], sliders["grad_norm_max"]

    def low_moved(change: Any) -> None:
        high.value = max(high.value, low.value)

    def high_moved(change: Any) -> None:
        low.value = min(low.value, high.value)

    low.observe(low_moved, names="value")
    high.observe(high_moved, names="value")

    def update() -> None:
        setting = {name: slider.value for name, slider in sliders.items()}
        has_decay = not setting.pop("no_decay")
        try:
            exploration = explore(setting.pop("lr"), setting.pop("wd") * has_decay, **setting)
        except ValueError as error:
            message.value = f"<p role='alert'><strong>{_INVALID}</strong> {html.escape(str(error))}</p>"
            image.layout.display = "none"
            box.fallback = {"text/plain": f"{_INVALID} {error}"}
            return
        image.value, image.layout.display, message.value = _png(exploration), "", ""
        box.fallback = {"text/plain": str(exploration), "image/png": base64.b64encode(image.value).decode("ascii")}

    update_later = _Debounced(update)
    for slider in sliders.values():
        slider.observe(update_later, names="value")
    update()
    return box


def _box_class(widgets: Any) -> Any:
    class Explorer(widgets.VBox):  # type: ignore[misc]
        """Box with a fallback by MIME type for readers without widget support."""

        fallback: Mapping[str, str]

        def _repr_mimebundle_(self, **named: Any) -> dict[str, Any]:
            return {**super()._repr_mimebundle_(**named), **self.fallback}

    return Explorer


def _sliders(widgets: Any) -> dict[str, Any]:
    style = {"style": {"description_width": "8.5em"}, "layout": {"width": "26em"}}

    def logarithmic(label: str, value: float, low: float, high: float) -> Any:
        return widgets.FloatLogSlider(
            value=value, min=low, max=high, step=0.05, description=label, readout_format=".3g", **style
        )

    return {
        "lr": logarithmic("learning rate η", 0.5, -3, 0.5),
        "wd": logarithmic("weight decay λ", 0.01, -5, 0),
        "momentum": widgets.FloatSlider(value=0.0, min=0.0, max=0.99, step=0.01, description="momentum μ", **style),
        "grad_norm_min": logarithmic("smallest g̃, ℓ", 1.0, -2, 2),
        "grad_norm_max": logarithmic("largest g̃, L", 10.0, -2, 2),
        "norm": logarithmic("start norm ρ₀", 10.0, -1, 2),
        "delta": widgets.FloatSlider(value=0.1, min=0.01, max=0.9, step=0.01, description="angular jump δ", **style),
        "no_decay": widgets.Checkbox(value=False, description="no weight decay", **style),
    }


class _Debounced:
    """Call a function once after a burst of events, or at once if no event loop runs."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._waiting: Any = None

    def __call__(self, change: Any) -> None:
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._call()
            return
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = loop.call_later(_DELAY, self._call)


def _png(exploration: Exploration) -> bytes:
    # not from pyplot, which keeps its figures in memory
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(11, 5.4), dpi=90), io.BytesIO()
    plot_exploration(exploration, add_axes(figure))
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
