"""How plots look: one style for all, what they share, and their way into files.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness tell apart; each has a marker of its own as well.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Interval = tuple[float, float]
Reach = list[list[float]] | None
"""How far the intervals of points reach below and above them."""

INK = "#1a1b1c"
"""Of text and axes; in the page it becomes the colour of its text, dark or light."""
GREY = "#7f8081"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.")
WIDTH = 5.2
"""Inches: two plots side by side fill a desktop's page at about their own size, and one is still readable on a phone."""
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
    # A name is a name: a dollar sign in it opens no formula.
    "text.parse_math": False,
    # Text stays text, for search and for readers; ids are the same from one build to the next.
    "svg.fonttype": "none",
    "svg.hashsalt": "rlsys",
}


def figure_for(height: float, labels: Sequence[str]) -> Figure:
    """An empty figure with room for a legend of `labels` under the axes."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    return Figure(figsize=(WIDTH, height + 0.22 * -(-len(labels) // _columns(labels))), layout="constrained")


def finished(figure: Figure, axes: Axes, title: str) -> Figure:
    """The figure with its title and the legend of `axes`."""
    figure.suptitle(textwrap.fill(short(title, 120), 54, break_on_hyphens=False), x=0.01, horizontalalignment="left")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels), handlelength=2.4)
    return figure


def _columns(labels: Sequence[str]) -> int:
    """How many columns of a legend fit beside each other."""
    longest = max((len(short(label)) for label in labels), default=1)
    return max(1, min(len(labels), 68 // (longest + 7)))


def reach(points: Sequence[tuple[int, float, Interval | None]]) -> Reach:
    """That of (place, value, interval); None without any interval. Rounding may put a value a hair outside its own."""
    if not any(interval for _, _, interval in points):
        return None
    below = [max(value - interval[0], 0.0) if interval else 0.0 for _, value, interval in points]
    above = [max(interval[1] - value, 0.0) if interval else 0.0 for _, value, interval in points]
    return [below, above]


def draw_intervals(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, xerr: Reach = None, yerr: Reach = None) -> None:
    """Intervals, paler than what they belong to: where many overlap the curves still stand out."""
    axes.errorbar(x, y, yerr, xerr, fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.5)


def in_percent(axis: Axis) -> None:
    """Write the axis's shares as percent."""
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")


def short(text: str, length: int = 44) -> str:
    """`text` on one line, with its end left out where it is long; a label that begins with "_" would be left out of legends."""
    text = " ".join(text.split()) or "?"
    text = f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


# --- files ----------------------------------------------------------------------------------------------------------


def render(draw: Callable[[], Figure], name: str, png: Path) -> str:
    """Draw, and write it as PNG, 150 dots per inch on white; returns it as SVG to stand in a page, its ids beginning with `name`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = draw()
        figure.savefig(png, format="png", dpi=150, facecolor="white")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The svg element alone, as wide as its place, with ids unique in the page, and the page's colours for ink and for blue."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<[^>]*?\bid=")', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").replace(COLOURS[0], "var(--blue)")
