"""Shared plot style, helpers and rendering to files.

Colours are from Okabe and Ito (2008), distinguishable with common forms of colour blindness; each also has its own marker.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.documents.core import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ErrorBars = list[list[float]] | None
"""Lengths of the error bars below and above each point."""

INK = "#1a1b1c"
"""Colour of text and axes; the page replaces it with its text colour, for light and dark themes."""
GREY = "#7f8081"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.")
LEVEL_LINES: tuple[Any, ...] = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))
"""Of lines across a plot; their colour is grey."""
WIDTH = 5.2
"""Inches: two plots fit side by side on a desktop page, and one is still readable on a phone."""
WIDE = 10.8
"""Inches: a plot that stands alone beside no other, with letters of the same size."""
STYLE = {
    "font.size": 10,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "legend.fontsize": 9,
    "legend.columnspacing": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.markersize": 5,
    # A dollar sign in a name is not math.
    "text.parse_math": False,
    # Keep text as text, for search and screen readers, and ids reproducible.
    "svg.fonttype": "none",
    "svg.hashsalt": "rlsys",
}


def figure_for(height: float, labels: Sequence[str], width: float) -> Figure:
    """Return an empty figure with room for a legend of `labels` below the axes. Sizes are in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    return Figure(figsize=(width, height + 0.22 * -(-len(labels) // _columns(labels, width))), layout="constrained")


def finished(figure: Figure, axes: Axes | Sequence[Axes], title: str) -> Figure:
    """Add the title, and a legend of what `axes` show, to the figure."""
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(short(title, 120), int(54 * width / WIDTH), break_on_hyphens=False), x=0.01, horizontalalignment="left")
    handles: dict[str, Any] = {}
    for one in axes if isinstance(axes, Iterable) else [axes]:
        handles |= dict(zip(*one.get_legend_handles_labels()[::-1]))
    labels = list(handles)
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=_columns(labels, width), handlelength=2.4)
    return figure


def _columns(labels: Sequence[str], width: float) -> int:
    """Return the number of legend columns that fit."""
    longest = max((len(short(label)) for label in labels), default=1)
    return max(1, min(len(labels), int(68 * width / WIDTH) // (longest + 7)))


def error_bars(points: Sequence[tuple[int, float, Interval | None]]) -> ErrorBars:
    """Return error bars for (index, value, interval) points, or None if none has an interval.

    Lengths are clipped at 0, as rounding can put a value slightly outside its interval.
    """
    if not any(interval for _, _, interval in points):
        return None
    below = [max(value - interval[0], 0.0) if interval else 0.0 for _, value, interval in points]
    above = [max(interval[1] - value, 0.0) if interval else 0.0 for _, value, interval in points]
    return [below, above]


def draw_intervals(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, xerr: ErrorBars = None, yerr: ErrorBars = None) -> None:
    """Draw error bars, paler than their curves, so that curves stay visible where many overlap."""
    axes.errorbar(x, y, yerr, xerr, fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.5)


def in_percent(axis: Axis) -> None:
    """Format the axis as percentages."""
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")


def short(text: str, length: int = 60) -> str:
    """Return `text` on one line, truncated; a leading "_" is escaped, as matplotlib would omit the label from legends."""
    text = " ".join(text.split()) or "?"
    text = f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


# --- files ----------------------------------------------------------------------------------------------------------


def render(draw: Callable[[], Figure], name: str, png: Path | None = None) -> str:
    """Draw a figure, write it as PNG (150 dpi, white background) and return it as inline SVG with ids prefixed by `name`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = draw()
        if png is not None:
            figure.savefig(png, format="png", dpi=150, facecolor="white")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Return only the svg element, scaled to its container, with ids unique in the page and the page's own colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<[^>]*?\bid=")', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").replace(COLOURS[0], "var(--blue)")
