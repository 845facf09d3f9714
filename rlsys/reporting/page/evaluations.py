"""Evaluations: accuracy by strategy, against k and against tokens spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from rlsys.documents.core import Estimate, Interval
from rlsys.documents.evaluation import Baseline, BenchmarkBaselines, BenchmarkReport, Point
from rlsys.documents.runs import RunBaselines
from rlsys.reporting.page.collect import Evaluation
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.plots import Curves, Series, common_range

METRICS = {"accuracy": ("accuracy", "percent"), "roc_auc": ("ROC-AUC", "figure")}
"""Metric -> its name, and how its values are written."""
BASELINES = {"chance": "chance", "first": "always the first", "longer": "always the longest"}
MEAN = "mean of the benchmarks"
NEAR = 0.15
"""Greedy and baselines other than chance are plotted only this close to the curves, as distant ones would compress the axis."""


def baselines_named(found: RunBaselines | BenchmarkBaselines) -> dict[str, float]:
    """Return the accuracies of trivial judges that are known, by name."""
    values = {words: getattr(found, key) for key, words in BASELINES.items()}
    numbers = {words: value.value if isinstance(value, Baseline) else value for words, value in values.items()}
    return {words: value for words, value in numbers.items() if value is not None}


def metric_of(benchmark: BenchmarkReport) -> tuple[str, str]:
    return METRICS.get(benchmark.metric, (benchmark.metric.replace("_", " "), "figure"))


def strategies(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return all strategies in order of appearance; the index determines the style in every plot."""
    names = (strategy for one in evaluations for benchmark in one.report.benchmarks.values() for strategy in benchmark.strategies)
    return list(dict.fromkeys(names))


def mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean of independent estimates, or None if one is missing.

    Its interval is derived from theirs: the distance from the mean to its lower bound is the root of the summed squared distances to the
    lower bounds, divided by their number, and likewise for the upper bound (Zou and Donner 2008, doi 10.1002/sim.3095).
    """
    values = [one.value for one in estimates if one is not None and one.value is not None]
    if not estimates or len(values) < len(estimates):
        return None
    centre = sum(values) / len(values)
    intervals = [one.ci95 for one in estimates if one is not None and one.ci95 is not None]
    if len(intervals) < len(values):
        return Estimate(value=centre)
    below, above = (math.hypot(*(value - interval[side] for value, interval in zip(values, intervals))) / len(values) for side in (0, 1))
    return Estimate(value=centre, ci95=(centre - below, centre + above))


def averaged(evaluation: Evaluation) -> BenchmarkReport | None:
    """Return a pseudo-benchmark with the mean of all benchmarks scored by accuracy; None if there are fewer than two."""
    every = [one for one in evaluation.report.benchmarks.values() if one.metric == "accuracy"]
    if len(every) < 2:
        return None
    points: dict[str, dict[int, Point]] = {}
    for strategy in strategies([evaluation]):
        for k in evaluation.report.k:
            point = _mean_point([one.strategies.get(strategy, {}).get(k) for one in every])
            if point is not None:
                points.setdefault(strategy, {})[k] = point
    chances = [one.baselines.chance for one in every]
    return BenchmarkReport(
        units=sum(one.units for one in every),
        items=sum(one.items for one in every),
        metric="accuracy",
        baselines=BenchmarkBaselines(chance=Baseline(value=_plain_mean([one.value if one else None for one in chances]))),
        greedy=_mean_point([one.greedy for one in every]),
        strategies=points,
    )


def _mean_point(points: Sequence[Point | None]) -> Point | None:
    present = [point for point in points if point is not None]
    overall = mean([point.overall for point in present]) if len(present) == len(points) else None
    if overall is None:
        return None
    return Point(
        overall=overall,
        samples_per_item=_plain_mean([point.samples_per_item for point in present]),
        tokens_per_item=_plain_mean([point.tokens_per_item for point in present]),
        coverage=_plain_mean([point.coverage for point in present]),
    )


def _plain_mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def benchmarks(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[tuple[Evaluation, BenchmarkReport]]]]:
    """Yield the mean, then each benchmark, with the evaluations that include it."""
    averages = [(one, average) for one in evaluations if (average := averaged(one)) is not None]
    if averages:
        yield MEAN, averages
    for name in dict.fromkeys(name for one in evaluations for name in one.report.benchmarks):
        yield name, [(one, one.report.benchmarks[name]) for one in evaluations if name in one.report.benchmarks]


# --- sections -------------------------------------------------------------------------------------------------------


def by_strategy(evaluations: Sequence[Evaluation]) -> Section:
    """Return the section with tables per evaluation: every strategy at its largest k, and folded, at all k, cost and further figures."""
    tables = []
    for evaluation in evaluations:
        average = averaged(evaluation)
        columns = ({MEAN: average} if average else {}) | evaluation.report.benchmarks
        of = f": {evaluation.name}" if len(evaluations) > 1 else ""
        tables.append(_figures_table(f"Figures by strategy at its largest k{of}", columns, largest_only=True))
        if len(evaluation.report.k) > 1:
            tables.append(_figures_table(f"Figures by strategy and k{of}", columns, largest_only=False))
        tables += [_spent_table(f"Cost{of}", columns), _others_table(f"Other figures{of}", evaluation.report.benchmarks)]
    lead = f"Overall figures with 95% intervals. The {MEAN} covers those scored by accuracy." if evaluations else ""
    return Section("Evaluation by strategy", lead, [table for table in tables if table.rows])


def _figures_table(title: str, columns: dict[str, BenchmarkReport], largest_only: bool) -> Table:
    rows: list[list[Cell | str]] = []
    for key, words in BASELINES.items():
        values = [getattr(one.baselines, key) for one in columns.values()]
        if any(values):
            cells = (Cell(value.value, metric_of(one)[1]) if value else "" for value, one in zip(values, columns.values()))
            rows.append([words, *cells])
    if any(one.greedy for one in columns.values()):
        rows.append(["greedy", *(_cell(one.greedy, one) for one in columns.values())])
    for strategy in dict.fromkeys(strategy for one in columns.values() for strategy in one.strategies):
        ks = sorted({k for one in columns.values() for k in one.strategies.get(strategy, ())})
        for k in ks[-1:] if largest_only else ks:
            points = [one.strategies.get(strategy, {}).get(k) for one in columns.values()]
            rows.append([f"{strategy}@{k}", *(_cell(point, one) for point, one in zip(points, columns.values()))])
    heads = [name if one.metric == "accuracy" else f"{name} ({metric_of(one)[0]})" for name, one in columns.items()]
    return Table(title, ["judged by", *heads], rows, folded=not largest_only)


def _cell(point: Point | None, benchmark: BenchmarkReport) -> Cell | str:
    return "" if point is None else Cell(point.overall.value, metric_of(benchmark)[1], point.overall.ci95)


def _spent_table(title: str, columns: dict[str, BenchmarkReport]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, one in columns.items():
        judged = {"greedy": one.greedy} if one.greedy else {}
        judged |= {f"{strategy}@{k}": point for strategy, points in one.strategies.items() for k, point in sorted(points.items())}
        for judge, point in judged.items():
            rows.append([name, judge, Cell(point.samples_per_item, "plain"), Cell(point.tokens_per_item, "count"), Cell(point.coverage)])
    return Table(title, ["benchmark", "judged by", "samples per item", "tokens per item", "items with a verdict"], rows, folded=True)


def _others_table(title: str, columns: dict[str, BenchmarkReport]) -> Table:
    """Return the further figures of benchmarks, for the greedy judge and each strategy at its largest k."""
    rows: list[list[Cell | str]] = []
    for name, one in columns.items():
        judged = {"greedy": one.greedy} if one.greedy else {}
        judged |= {f"{strategy}@{max(points)}": points[max(points)] for strategy, points in one.strategies.items() if points}
        rows += [[name, judge, key, Cell(value, "figure")] for judge, found in judged.items() for key, value in found.others.items()]
    return Table(title, ["benchmark", "judged by", "figure", "value"], rows, folded=True)


def by_k(evaluations: Sequence[Evaluation]) -> Section:
    """Return the section that plots every strategy against k, for the mean and each benchmark."""
    plots: list[Curves] = []
    for name, found in benchmarks(evaluations):
        plots += _curves(evaluations, name, found, "k", "samples per item, k (log scale)", lambda k, point: float(k))
    lead = "The gain from more samples of the same judge. Intervals of the mean are derived from those of its benchmarks."
    return Section("Accuracy against k", lead, plots=plots)


def by_tokens(evaluations: Sequence[Evaluation]) -> Section:
    """Return the section that plots every strategy against its generated tokens."""
    plots: list[Curves] = []
    for name, found in benchmarks(evaluations):
        label = "generated tokens per item (log scale)"
        plots += _curves(evaluations, name, found, "tokens spent", label, lambda k, point: point.tokens_per_item or None)
    return Section("Accuracy against tokens spent", "The same figures against their cost: up and left is better.", plots=plots)


def _curves(
    evaluations: Sequence[Evaluation],
    name: str,
    found: Sequence[tuple[Evaluation, BenchmarkReport]],
    against: str,
    x_label: str,
    place: Callable[[int, Point], float | None],
) -> list[Curves]:
    """Return one plot per evaluation, with a common y range; evaluations without a curve of at least two points have none."""
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
        note = "Bars are 95% intervals; curves are offset horizontally for legibility."
        plots.append(Curves(title, note, form == "percent", x_label, metric, series, levels, log2=True))
    return common_range(plots)


def _curve(strategy: str, points: dict[int, Point], style: int, place: Callable[[int, Point], float | None]) -> Series:
    curve: list[tuple[float, float, Interval | None]] = []
    for k, point in sorted(points.items()):
        x, y = place(k, point), point.overall.value
        if x is not None and y is not None:
            curve.append((x, y, point.overall.ci95))
    curve.sort(key=lambda one: one[:2])
    return Series(strategy, [y for _, y, _ in curve], [x for x, _, _ in curve], [interval for _, _, interval in curve], style)


def _levels(benchmark: BenchmarkReport, series: Sequence[Series]) -> dict[str, float]:
    heights = [value for one in series for _, value, _ in one.points]
    greedy = benchmark.greedy.overall.value if benchmark.greedy else None
    levels = ({} if greedy is None else {"greedy": greedy}) | baselines_named(benchmark.baselines)
    low, high = min(heights) - NEAR, max(heights) + NEAR
    return {name: value for name, value in levels.items() if name == BASELINES["chance"] or low <= value <= high}
