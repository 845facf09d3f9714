"""The plots of a page: their data and how each kind is drawn (shared style is in `drawing`)."""

from __future__ import annotations

import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlsys.documents.core import Interval
from rlsys.reporting.page.drawing import (
    COLOURS,
    GREY,
    LEVEL_LINES,
    LINES,
    MARKERS,
    WIDTH,
    draw_intervals,
    error_bars,
    figure_for,
    finished,
    in_percent,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MANY = 8
"""Categories above which a plot takes the whole width."""


@dataclass(frozen=True)
class Series:
    """A data series: y[i] at x[i], or at the plot's category i. None: no point."""

    name: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    ci95: Sequence[Interval | None] = ()
    style: int = 0
    """Index of colour, marker and line style; the same subject has the same style in every plot."""
    variant: int = 0
    """Further markers of the same colour: seeds of one kind."""
    expected: bool = False
    """The value expected without the effect shown, drawn as a grey tick."""

    @property
    def look(self) -> dict[str, Any]:
        turn, number = divmod(self.style, len(COLOURS))
        return {"color": COLOURS[number], "marker": MARKERS[(number + self.variant) % len(MARKERS)], "linestyle": LINES[turn % len(LINES)]}

    @property
    def points(self) -> list[tuple[int, float, Interval | None]]:
        """(index, value, interval) of the existing points."""
        intervals = self.ci95 or [None] * len(self.y)
        return [(i, y, interval) for i, (y, interval) in enumerate(zip(self.y, intervals, strict=True)) if y is not None]


@dataclass(frozen=True)
class Plot(ABC):
    """Base class: title, caption, and whether values are fractions to format as percentages."""

    title: str
    note: str = ""
    percent: bool = True

    @property
    def wide(self) -> bool:
        """Whether the plot always takes the whole width of the page, where there is room."""
        return False

    @abstractmethod
    def draw(self, width: float = WIDTH) -> Figure:
        """Draw the plot. `width`: of the figure, inches."""

    def document(self) -> dict[str, Any]:
        """Return the plotted data."""
        return {"kind": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class Curves(Plot):
    """Lines over a numeric axis: steps, samples, tokens."""

    x_label: str = ""
    y_label: str = ""
    series: list[Series] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)
    """Horizontal lines, at most five: name -> y value."""
    log2: bool = False
    smooth: int = 1
    """Window of the moving mean; if above 1, the points themselves are drawn faintly."""
    y_range: Interval | None = None

    def draw(self, width: float = WIDTH) -> Figure:
        series = drawn_once(self.series, self.percent)
        figure = figure_for(3.6, [one.name for one in series] + list(self.levels), width)
        axes = figure.subplots()
        self.draw_into(axes)
        axes.set(xlabel=self.x_label)
        return finished(figure, axes, self.title)

    def draw_into(self, axes: Axes) -> None:
        """Draw curves, levels and y axis."""
        series = drawn_once(self.series, self.percent)
        for number, one in enumerate(series):
            # Offset series slightly, so that intervals at the same x do not overlap.
            apart = (number - (len(series) - 1) / 2) * 0.05
            places = [one.x[i] * 2**apart if self.log2 else one.x[i] for i, _, _ in one.points]
            self._line(axes, one, places)
        for (name, height), line in zip(self.levels.items(), LEVEL_LINES):
            axes.axhline(height, color=GREY, linestyle=line, linewidth=1.3, label=short(name))
        if self.log2:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for one in series for x in one.x})
            if all(float(x).is_integer() and x <= 1024 for x in ticks) and len(ticks) <= 10:
                axes.set_xticks(ticks)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", integer=True)
        if self.percent:
            in_percent(axes.yaxis)
        if span := self.y_range or span_of([self]):
            axes.set_ylim(span)
        axes.set(ylabel=self.y_label)

    def _line(self, axes: Axes, one: Series, places: list[float]) -> None:
        values = [value for _, value, _ in one.points]
        look, label = one.look, short(one.name)
        if self.smooth > 1:
            axes.plot(places, values, look["marker"], color=look["color"], alpha=0.3, markersize=3)
            axes.plot(places, moving_mean(values, self.smooth), color=look["color"], linestyle=look["linestyle"], linewidth=2, label=label)
            return
        axes.plot(places, values, linewidth=1.6, label=label, **look)
        draw_intervals(axes, places, values, look["color"], yerr=error_bars(one.points))


@dataclass(frozen=True)
class Panels(Plot):
    """Curves over one axis in panels one below the other, each with its own scale. The series of a name look the same in each."""

    panels: list[Curves] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        return True

    def draw(self, width: float = WIDTH) -> Figure:
        names = list(dict.fromkeys(one.name for panel in self.panels for one in panel.series))
        figure = figure_for(0.6 + 1.7 * len(self.panels), names, width)
        every = list(figure.subplots(len(self.panels), 1, sharex=True, squeeze=False)[:, 0])
        for axes, panel in zip(every, self.panels):
            panel.draw_into(axes)
        every[-1].set(xlabel=self.panels[-1].x_label)
        figure.align_ylabels(every)
        return finished(figure, every, self.title)


@dataclass(frozen=True)
class Categories(Plot):
    """Values by category, one row each: dots with intervals, or bars from 0."""

    x_label: str = ""
    categories: list[str] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)
    """Vertical lines, at most five: name -> x value."""
    bars: bool = False

    @property
    def wide(self) -> bool:
        return len(self.categories) > MANY

    def draw(self, width: float = WIDTH) -> Figure:
        series = drawn_once(self.series, self.percent)
        measured = [one for one in series if not one.expected]
        lanes = [[number for number, one in enumerate(measured) if one.y[i] is not None] for i in range(len(self.categories))]
        most = max(map(len, lanes), default=1) or 1
        labels = [textwrap.fill(short(name, 56), int(30 * max(1, width / WIDTH)), break_on_hyphens=False) for name in self.categories]
        row = 0.3 + max(0.12 * (most - 1), 0.08 * any("\n" in label for label in labels))
        figure = figure_for(1.2 + max(row * len(self.categories), 0.9), [one.name for one in series] + list(self.levels), width)
        axes = figure.subplots()
        thickness = 0.7 / most
        for number, one in enumerate(measured):
            # A category's series stand one below the other, around its middle.
            places = [i + (lanes[i].index(number) - (len(lanes[i]) - 1) / 2) * thickness for i, _, _ in one.points]
            values = [value for _, value, _ in one.points]
            if self.bars:
                axes.barh(places, values, thickness * 0.9, color=one.look["color"], label=short(one.name))
            else:
                axes.plot(values, places, **one.look | {"linestyle": "none"}, label=short(one.name))
                draw_intervals(axes, values, places, one.look["color"], xerr=error_bars(one.points))
        for one in series:
            if one.expected:
                places = [i for i, _, _ in one.points]
                axes.plot([value for _, value, _ in one.points], places, "|", color=GREY, markersize=14, mew=2, label=short(one.name))
        for (name, place), line in zip(self.levels.items(), LEVEL_LINES):
            axes.axvline(place, color=GREY, linestyle=line, linewidth=1.3, label=short(name))
        axes.set_yticks(range(len(self.categories)), labels)
        axes.set_ylim(len(self.categories) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        if self.percent:
            in_percent(axes.xaxis)
        if self.bars:
            axes.set_xlim(left=0)
        elif span := span_of([self]):
            axes.set_xlim(span)
        # Right-aligned: a centred long label would overflow on the right, as category names take up the left.
        axes.set_xlabel(self.x_label, loc="right")
        return finished(figure, axes, self.title)


@dataclass(frozen=True)
class Distribution(Plot):
    """Shares by category in columns from 0, side by side."""

    x_label: str = ""
    y_label: str = ""
    categories: list[str] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)

    def draw(self, width: float = WIDTH) -> Figure:
        figure = figure_for(3.2, [one.name for one in self.series], width)
        axes = figure.subplots()
        thickness = 0.8 / max(1, len(self.series))
        for number, one in enumerate(self.series):
            places = [i + (number - (len(self.series) - 1) / 2) * thickness for i, _, _ in one.points]
            axes.bar(places, [value for _, value, _ in one.points], thickness * 0.9, color=one.look["color"], label=short(one.name))
        axes.set_xticks(range(len(self.categories)), self.categories)
        axes.grid(axis="x", visible=False)
        if self.percent:
            in_percent(axes.yaxis)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        return finished(figure, axes, self.title)


@dataclass(frozen=True)
class Reliability(Plot):
    """Reliability diagram: observed fraction against predicted probability by bin, with a histogram of predictions."""

    event: str = ""
    """The event whose probability is predicted."""
    bins: list[dict[str, Any]] = field(default_factory=list)
    """`table` of `rlsys.evaluation.calibration.summarise`."""
    base_rate: float = 0.0

    def draw(self, width: float = WIDTH) -> Figure:
        figure = figure_for(4.6, ["perfectly calibrated", f"base rate {self.base_rate:.0%}", "held-out, by bin"], width)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        filled = [entry for entry in self.bins if entry["n"]]
        points = [(i, entry["observed"], entry["ci95"]) for i, entry in enumerate(filled)]
        upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
        upper.axhline(self.base_rate, color=GREY, linestyle=":", label=f"base rate {self.base_rate:.0%}")
        places, heights = [entry["predicted"] for entry in filled], [entry["observed"] for entry in filled]
        upper.plot(places, heights, color=COLOURS[0], marker=MARKERS[0], label="held-out, by bin")
        draw_intervals(upper, places, heights, COLOURS[0], yerr=error_bars(points))
        upper.set(ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
        middles = [(entry["low"] + entry["high"]) / 2 for entry in self.bins]
        lower.bar(middles, [entry["n"] for entry in self.bins], [0.9 * (entry["high"] - entry["low"]) for entry in self.bins], color=GREY)
        lower.set(xlabel=f"predicted probability: {self.event}", ylabel="count")
        for axis in (upper.xaxis, upper.yaxis):
            in_percent(axis)
        return finished(figure, upper, self.title)


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the centred moving mean over `width` values, with shorter windows at the ends."""
    before, after = (width - 1) // 2, width // 2
    windows = [values[max(0, i - before) : i + after + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def drawn_once(series: Sequence[Series], percent: bool) -> list[Series]:
    """Return the series without those that would cover another one; their names join its name.

    Fractions are equal if they are printed alike, to a tenth of a percent; other values up to rounding.
    """
    joined: list[tuple[Series, list[str]]] = []
    for one in series:
        names = next((names for other, names in joined if _covers(other, one, 5e-4 if percent else 0.0)), None)
        if names is None:
            joined.append((one, [one.name]))
        else:
            names.append(one.name)
    return [replace(one, name=" = ".join(dict.fromkeys(names))) for one, names in joined]


def _covers(one: Series, other: Series, tolerance: float) -> bool:
    def numbers(series: Series) -> list[float]:
        return [number for _, value, interval in series.points for number in (value, *(interval or ()))]

    def shape(series: Series) -> tuple[Any, ...]:
        return series.expected, list(series.x), [(i, interval is None) for i, _, interval in series.points]

    pairs = zip(numbers(one), numbers(other))
    return shape(one) == shape(other) and all(math.isclose(a, b, rel_tol=1e-9, abs_tol=tolerance) for a, b in pairs)


def span_of(plots: Sequence[Curves | Categories]) -> Interval | None:
    """Return a range that holds all values, intervals and levels of the plots, with a margin; None if there are none.

    It does not magnify what is next to nothing: it spans at least 10 points of a percentage, or a tenth of the largest value.
    """
    numbers = [
        number for plot in plots for one in plot.series for _, value, interval in one.points for number in (value, *(interval or ()))
    ]
    numbers += [level for plot in plots for level in plot.levels.values()]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    least = 0.1 if any(plot.percent for plot in plots) else 0.1 * max(abs(low), abs(high)) or 0.1
    missing = max(0.0, least - (high - low)) / 2
    margin = 0.05 * max(high - low, least)
    # Beyond zero, and beyond 100%, there is nothing to see.
    below = min(missing, low) if low >= 0 else missing
    above = min(missing, 1 - high) if high <= 1 and any(plot.percent for plot in plots) else missing
    return low - below - (missing - above) - margin, high + above + (missing - below) + margin


def common_range(plots: Sequence[Curves]) -> list[Curves]:
    """Give the plots a common y range, so that they can be compared side by side."""
    span = span_of(plots)
    return [replace(plot, y_range=span) for plot in plots]
