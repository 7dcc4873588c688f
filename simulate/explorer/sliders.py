"""The explorer in a notebook: sliders, and the picture that follows them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from simulate.explorer.picture import axes_on, plot_explored
from simulate.explorer.quantities import Explored, explore

_MEANINGLESS = "This setting has no meaning."
_PATIENCE = 0.05  # seconds in which no slider has moved


def explorer() -> Any:
    """Make a widget for notebooks: sliders, and the picture of `plot_explored`, which follows them.

    Returns
    -------
    ipywidgets.VBox. Its sliders keep ℓ <= L; a setting without meaning is answered by a message. What shows no widgets,
    like pages of stored notebooks, shows the words of `explore` and the picture.

    Raises
    ------
    ImportError : ipywidgets is not installed.

    Examples
    --------
    >>> explorer()  # doctest: +SKIP
    """
    widgets = _ipywidgets()
    sliders = _sliders(widgets)
    image = widgets.Image(format="png", layout={"max_width": "100%"})
    message = widgets.HTML()
    row = widgets.Box(list(sliders.values()), layout={"flex_flow": "row wrap"})
    box = _box_class(widgets)([row, message, image])
    _tie(sliders["grad_norm_min"], sliders["grad_norm_max"])

    def update() -> None:
        setting = {name: slider.value for name, slider in sliders.items()}
        decays = not setting.pop("no_decay")
        try:
            explored = explore(setting.pop("lr"), setting.pop("wd") * decays, **setting)
        except ValueError as error:
            message.value, image.layout.display = _warning(str(error)), "none"
            box.instead = {"text/plain": f"{_MEANINGLESS} {error}"}
            return
        image.value, image.layout.display, message.value = _png(explored), "", ""
        box.instead = {"text/plain": str(explored), "image/png": base64.b64encode(image.value).decode("ascii")}

    moved = _Debounced(update)
    for slider in sliders.values():
        slider.observe(moved, names="value")
    update()
    return box


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError:
        raise ImportError("explorer needs ipywidgets: pip install 'bnwd[notebooks]'") from None
    return ipywidgets


def _box_class(widgets: Any) -> Any:
    class Explorer(widgets.VBox):  # type: ignore[misc]
        """Box that carries what is shown in its place where there are no widgets, by MIME type."""

        instead: Mapping[str, str]

        def _repr_mimebundle_(self, **named: Any) -> dict[str, Any]:
            return {**super()._repr_mimebundle_(**named), **self.instead}

    return Explorer


def _sliders(widgets: Any) -> dict[str, Any]:
    wide = {"style": {"description_width": "8.5em"}, "layout": {"width": "26em"}}

    def logarithmic(words: str, value: float, low: float, high: float) -> Any:
        return widgets.FloatLogSlider(
            value=value, min=low, max=high, step=0.05, description=words, readout_format=".3g", **wide
        )

    return {
        "lr": logarithmic("learning rate η", 0.5, -3, 0.5),
        "wd": logarithmic("weight decay λ", 0.01, -5, 0),
        "momentum": widgets.FloatSlider(value=0.0, min=0.0, max=0.99, step=0.01, description="momentum μ", **wide),
        "grad_norm_min": logarithmic("least g̃, ℓ", 1.0, -2, 2),
        "grad_norm_max": logarithmic("largest g̃, L", 10.0, -2, 2),
        "norm": logarithmic("norm at start ρ₀", 10.0, -1, 2),
        "delta": widgets.FloatSlider(value=0.1, min=0.01, max=0.9, step=0.01, description="jump δ", **wide),
        "no_decay": widgets.Checkbox(value=False, description="no weight decay", **wide),
    }


def _tie(low: Any, high: Any) -> None:
    """Let each of two sliders push the other along, so that low <= high."""

    def low_moved(change: Any) -> None:
        high.value = max(high.value, low.value)

    def high_moved(change: Any) -> None:
        low.value = min(low.value, high.value)

    low.observe(low_moved, names="value")
    high.observe(high_moved, names="value")


class _Debounced:
    """Calls once after a row of events; at once where no event loop runs."""

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
        self._waiting = loop.call_later(_PATIENCE, self._call)


def _warning(text: str) -> str:
    import html

    return f"<p role='alert'><strong>{_MEANINGLESS}</strong> {html.escape(text)}</p>"


def _png(explored: Explored) -> bytes:
    import io

    # not pyplot's, which would keep it
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(11, 5.4), dpi=90), io.BytesIO()
    plot_explored(explored, axes_on(figure))
    figure.savefig(picture, format="png")
    return picture.getvalue()
