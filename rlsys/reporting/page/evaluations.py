"""Evaluations: accuracy by strategy, against k and against tokens spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from rlsys.reporting.page.collect import Evaluation
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.plots import Curves, Series, common_range
from rlsys.reporting.page.schema import Baseline, Benchmark, Estimate, Point

METRICS = {"accuracy": ("accuracy", "percent"), "roc_auc": ("ROC-AUC", "figure")}
"""Metric -> its name, and how its values are written."""
BASELINES = {"chance": "chance", "first": "always the first", "longer": "always the longest"}
MEAN = "mean of the benchmarks"
NEAR = 0.15
"""Greedy and chance are drawn if they are this near to the curves; farther off they would press these together."""


def metric_of(benchmark: Benchmark) -> tuple[str, str]:
    return METRICS.get(benchmark.metric, (benchmark.metric.replace("_", " "), "figure"))


def strategies(evaluations: Sequence[Evaluation]) -> list[str]:
    """Every strategy that occurs, in order of appearance: its place is its style in every plot."""
    everywhere = (strategy for one in evaluations for benchmark in one.report.benchmarks.values() for strategy in benchmark.strategies)
    return list(dict.fromkeys(everywhere))


def mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Plain mean of independent estimates; None where one is missing.

    Its interval is recovered from theirs: a mean's distance to its lower bound is the root of the sum of the squared distances to the
    lower bounds, over their number, and so upwards (Zou and Donner 2008, doi 10.1002/sim.3095).
    """
    values = [one.value for one in estimates if one is not None]
    if not estimates or len(values) < len(estimates) or None in values:
        return None
    centre = sum(values) / len(values)
    intervals = [one.ci95 for one in estimates]
    if None in intervals:
        return Estimate(value=centre)
    below, above = (math.hypot(*(value - interval[side] for value, interval in zip(values, intervals))) / len(values) for side in (0, 1))
    return Estimate(value=centre, ci95=(centre - below, centre + above))


def averaged(evaluation: Evaluation) -> Benchmark | None:
    """A benchmark that stands for the mean of all whose figure is an accuracy; None if these are fewer than two."""
    every = [one for one in evaluation.report.benchmarks.values() if one.metric == "accuracy"]
    if len(every) < 2:
        return None
    points: dict[str, dict[int, Point]] = {}
    for strategy in strategies([evaluation]):
        for k in evaluation.report.k:
            point = _mean_point([one.strategies.get(strategy, {}).get(k) for one in every])
            if point is not None:
                points.setdefault(strategy, {})[k] = point
    chances = [one.baselines.get("chance") for one in every]
    return Benchmark(
        units=sum(one.units for one in every),
        items=sum(one.items for one in every),
        metric="accuracy",
        baselines={"chance": Baseline(value=_plain_mean([one and one.value for one in chances]))},
        greedy=_mean_point([one.greedy for one in every]),
        strategies=points,
    )


def _mean_point(points: Sequence[Point | None]) -> Point | None:
    overall = mean([point and point.overall for point in points])
    if overall is None:
        return None
    spent = ("samples_per_item", "tokens_per_item", "coverage")
    return Point(overall=overall, **{name: _plain_mean([getattr(point, name) for point in points]) for name in spent})


def _plain_mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def benchmarks(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[tuple[Evaluation, Benchmark]]]]:
    """The mean first, then each benchmark, with the evaluations that have it."""
    averages = [(one, average) for one in evaluations if (average := averaged(one)) is not None]
    if averages:
        yield MEAN, averages
    for name in dict.fromkeys(name for one in evaluations for name in one.report.benchmarks):
        yield name, [(one, one.report.benchmarks[name]) for one in evaluations if name in one.report.benchmarks]


# --- sections -------------------------------------------------------------------------------------------------------


def by_strategy(evaluations: Sequence[Evaluation]) -> Section:
    """Of each evaluation the figures of every strategy at its largest k in an open table, those of all k in a closed one."""
    tables = []
    for evaluation in evaluations:
        average = averaged(evaluation)
        columns = ({MEAN: average} if average else {}) | evaluation.report.benchmarks
        of = f": {evaluation.name}" if len(evaluations) > 1 else ""
        tables.append(_figures_table(f"Figures by strategy at its largest k{of}", columns, largest_only=True))
        if len(evaluation.report.k) > 1:
            tables.append(_figures_table(f"Figures by strategy and k{of}", columns, largest_only=False))
        tables += [_spent_table(f"What it cost{of}", columns), _others_table(f"Other figures{of}", evaluation.report.benchmarks)]
    lead = f"Overall figures with 95% intervals; {MEAN}: those whose figure is an accuracy." if evaluations else ""
    return Section("Evaluation by strategy", lead, [table for table in tables if table.rows])


def _figures_table(title: str, columns: dict[str, Benchmark], largest_only: bool) -> Table:
    rows: list[list[Cell | str]] = []
    for key, words in BASELINES.items():
        values = [one.baselines.get(key) for one in columns.values()]
        if any(values):
            cells = (Cell(value.value, metric_of(one)[1]) if value else "" for value, one in zip(values, columns.values()))
            rows.append([words, *cells])
    if any(one.greedy for one in columns.values()):
        rows.append(["greedy", *(_cell(one.greedy and one.greedy.overall, one) for one in columns.values())])
    for strategy in dict.fromkeys(strategy for one in columns.values() for strategy in one.strategies):
        ks = sorted({k for one in columns.values() for k in one.strategies.get(strategy, ())})
        for k in ks[-1:] if largest_only else ks:
            points = [one.strategies.get(strategy, {}).get(k) for one in columns.values()]
            rows.append([f"{strategy}@{k}", *(_cell(point and point.overall, one) for point, one in zip(points, columns.values()))])
    heads = [name if one.metric == "accuracy" else f"{name} ({metric_of(one)[0]})" for name, one in columns.items()]
    return Table(title, ["judged by", *heads], rows, folded=not largest_only)


def _cell(estimate: Estimate | None, benchmark: Benchmark) -> Cell | str:
    return "" if estimate is None else Cell(estimate.value, metric_of(benchmark)[1], estimate.ci95)


def _spent_table(title: str, columns: dict[str, Benchmark]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, one in columns.items():
        judged = {"greedy": one.greedy} if one.greedy else {}
        judged |= {f"{strategy}@{k}": point for strategy, points in one.strategies.items() for k, point in sorted(points.items())}
        for judge, point in judged.items():
            rows.append([name, judge, Cell(point.samples_per_item, "plain"), Cell(point.tokens_per_item, "count"), Cell(point.coverage)])
    return Table(title, ["benchmark", "judged by", "samples per item", "tokens per item", "items with a verdict"], rows, folded=True)


def _others_table(title: str, columns: dict[str, Benchmark]) -> Table:
    """What benchmarks tell beside their overall figure, by the greedy judge and by each strategy at its largest k."""
    rows: list[list[Cell | str]] = []
    for name, one in columns.items():
        judged = {"greedy": one.greedy} if one.greedy else {}
        judged |= {f"{strategy}@{max(points)}": points[max(points)] for strategy, points in one.strategies.items() if points}
        rows += [[name, judge, key, Cell(value, "figure")] for judge, found in judged.items() for key, value in found.others.items()]
    return Table(title, ["benchmark", "judged by", "figure", "value"], rows, folded=True)


def by_k(evaluations: Sequence[Evaluation]) -> Section:
    """Every strategy's figure against k, for the mean and for each benchmark."""
    plots = []
    for name, found in benchmarks(evaluations):
        plots += _curves(evaluations, name, found, "k", "samples per item, k (log scale)", lambda k, point: float(k))
    lead = "What more samples of the same judge buy. The mean's intervals are put together from those of its benchmarks."
    return Section("Accuracy against k", lead, plots=plots)


def by_tokens(evaluations: Sequence[Evaluation]) -> Section:
    """The same against the generated tokens that it took."""
    plots = []
    for name, found in benchmarks(evaluations):
        label = "generated tokens per item (log scale)"
        plots += _curves(evaluations, name, found, "tokens spent", label, lambda k, point: point.tokens_per_item or None)
    return Section("Accuracy against tokens spent", "The same figures by what they cost: left and up is better.", plots=plots)


def _curves(
    evaluations: Sequence[Evaluation],
    name: str,
    found: Sequence[tuple[Evaluation, Benchmark]],
    against: str,
    x_label: str,
    place: Callable[[int, Point], float | None],
) -> list[Curves]:
    """One plot for each evaluation, with a common vertical range; none for one that has no curve of two points."""
    order = strategies(evaluations)
    plots = []
    for evaluation, benchmark in found:
        metric, form = metric_of(benchmark)
        series = [_curve(strategy, points, order.index(strategy), place) for strategy, points in benchmark.strategies.items()]
        series = [one for one in series if one.y]
        if max((len(one.y) for one in series), default=0) < 2:
            continue
        of = f" ({evaluation.name})" if len(evaluations) > 1 else ""
        levels = _levels(benchmark, series)
        title = f"{name}: {metric} against {against}{of}"
        note = "Bars are 95% intervals; curves are moved apart a little sideways."
        plots.append(Curves(title, note, form == "percent", x_label, metric, series, levels, log2=True))
    return common_range(plots)


def _curve(strategy: str, points: dict[int, Point], style: int, place: Callable[[int, Point], float | None]) -> Series:
    found = [(place(k, point), point.overall) for k, point in sorted(points.items())]
    found = sorted((x, one.value, one.ci95) for x, one in found if x is not None and one.value is not None)
    return Series(strategy, [y for _, y, _ in found], [x for x, _, _ in found], [interval for _, _, interval in found], style)


def _levels(benchmark: Benchmark, series: Sequence[Series]) -> dict[str, float]:
    heights = [value for one in series for _, value, _ in one.points]
    levels = {"greedy": benchmark.greedy.overall.value} if benchmark.greedy else {}
    chance = benchmark.baselines.get("chance")
    levels |= {"chance": chance.value} if chance else {}
    low, high = min(heights) - NEAR, max(heights) + NEAR
    return {name: value for name, value in levels.items() if value is not None and low <= value <= high}
