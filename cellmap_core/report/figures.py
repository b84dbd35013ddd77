"""Small PNG pictures for pages: legible at 640 pixels width, the same bytes for the same data.

Figures are made without pyplot, which keeps state between calls and asks for a display.
matplotlib is imported when the first picture is drawn, because it takes most of a second.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_INCHES = 6.4
_DPI = 100
_LOG_FLOOR = 1e-6
_PNG = b"\x89PNG"


def new_figure(height: float = 3.6, columns: int = 1) -> tuple[Figure, Any]:
    """A figure 640 pixels wide and ``height`` inches high, with its axes (an array of several)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, columns)


def to_png(figure: Figure) -> bytes:
    """The picture's bytes, free of dates and versions."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def plain(text: str) -> str:
    """A name as it is: matplotlib takes what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


def embedded(title: str, picture: bytes) -> str:
    """A markdown image (of a PNG or JPEG) that carries its own bytes."""
    kind = "png" if picture.startswith(_PNG) else "jpeg"
    text = base64.b64encode(picture).decode("ascii")
    return f"![{title}](data:image/{kind};base64,{text})"


def bar_plot(
    names: Sequence[str],
    values: Sequence[float | None],
    label: str,
    *,
    log: bool = False,
    missing: str = "–",
    reference: Sequence[float | None] | None = None,
    reference_label: str = "",
) -> bytes:
    """PNG of one horizontal bar a name, from the top down.

    Parameters
    ----------
    names, values : sequence
        Of one length; None draws no bar but the text ``missing``.
    label : str
        Of the value axis, with its unit.
    log : bool
        Whether the value axis is logarithmic.
    missing : str
        What stands where there is no value.
    reference : sequence, optional
        A mark on each bar, the bar to beat, named ``reference_label``.
    """
    figure, axes = new_figure(height=0.9 + max(0.19 * len(names), 0.6))
    places = list(range(len(names)))
    axes.barh(places, [v or 0 for v in values], color="#3182bd", height=0.7)
    axes.set_yticks(places, list(map(plain, names)), fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    if log:
        _log_axis(axes, [v for v in values if v])
    for place, value in zip(places, values, strict=True):
        text = f" {value:.3g}" if value is not None else f" {missing}"
        axes.text(value or axes.get_xlim()[0], place, text, va="center", fontsize=7)
    axes.set_xlim(right=axes.get_xlim()[1] * (2.5 if log else 1.1))
    if reference:
        marks = [(r, p) for r, p in zip(reference, places, strict=True) if r is not None]
        axes.plot(
            *zip(*marks, strict=True), "|", color="#d95f02", ms=9, mew=2, label=reference_label
        )
        axes.legend(loc="lower right", fontsize=8)
    return to_png(figure)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    if values:
        axes.set_xlim(max(min(values), _LOG_FLOOR) / 3, max(values))


def curves(
    x: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float | None]]], x_label: str
) -> bytes:
    """PNG of one panel beside the other, each with named curves over the same ``x``.

    Parameters
    ----------
    x : sequence of float
        Shared by all curves.
    panels : mapping
        Panel title → curve name → values; None leaves a gap.
    x_label : str
        Of the shared axis.
    """
    figure, all_axes = new_figure(height=3.4, columns=len(panels))
    some = [all_axes] if len(panels) == 1 else list(all_axes)
    for axes, (title, lines) in zip(some, panels.items(), strict=True):
        for number, (name, values) in enumerate(lines.items()):
            heights = [float("nan") if v is None else v for v in values]
            first = {"color": "black", "lw": 2} if number == 0 else {"lw": 1, "alpha": 0.8}
            axes.plot(x, heights, marker="." if len(x) < 30 else None, label=plain(name), **first)
        axes.set_title(plain(title), fontsize=11)
        axes.set_xlabel(x_label)
        if all(float(value).is_integer() for value in x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        # Beyond a dozen names a legend covers the picture; the table has the numbers.
        if 1 < len(lines) <= 12:
            axes.legend(fontsize=7)
    return to_png(figure)
