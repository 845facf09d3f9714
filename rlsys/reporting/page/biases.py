"""Biases of the judge by benchmark: position, length, consistency."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.documents.evaluation import BenchmarkReport
from rlsys.reporting.page.collect import Evaluation
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.evaluations import MEAN, benchmarks
from rlsys.reporting.page.plots import Categories, Series

BIASES: tuple[tuple[str, str, dict[str, str], dict[str, str]], ...] = (
    (
        "Position: how often the response shown first wins",
        "share of samples",
        {"position.first": "greedy", "position.samples.first": "samples"},
        {"position.first_expected": "without bias"},
    ),
    (
        "Length: how often the longest response wins",
        "share of samples",
        {"length.longest_wins": "samples"},
        {"length.longest_is_best": "the longest is the best"},
    ),
    (
        "Consistency: how often two samples of an item agree",
        "share of pairs of samples with the same winner",
        {
            "position.other_order": "greedy, other order",
            "position.samples.other_order": "samples, other order",
            "position.samples.same_order": "samples, same order",
        },
        {},
    ),
)
"""(title, axis label, measured values, expected values), the values as dotted path in a benchmark -> label."""


def section(evaluations: Sequence[Evaluation]) -> Section:
    """Return the section on position, length and consistency by benchmark, with the values expected without bias."""
    plots = [plot for title, label, measured, expected in BIASES for plot in _plot(evaluations, title, label, measured, expected)]
    tables = [_table(evaluations)] if plots else []
    return Section("Biases", "What accuracy does not show: whether the judge prefers a position or longer responses.", tables, plots)


def _plot(
    evaluations: Sequence[Evaluation], title: str, label: str, measured: dict[str, str], expected: dict[str, str]
) -> list[Categories]:
    names = [
        name
        for name, found in benchmarks(evaluations)
        if name != MEAN and any(_at(one, key) is not None for _, one in found for key in measured)
    ]
    series = []
    for number, evaluation in enumerate(evaluations):
        of = f" ({evaluation.name})" if len(evaluations) > 1 else ""
        for place, (key, words) in enumerate(measured.items()):
            series.append(Series(words + of, _everywhere(evaluation, names, key), style=number * len(measured) + place))
    for key, words in expected.items():
        # The expected value depends on the benchmark and hardly on the judge.
        found = zip(*(_everywhere(evaluation, names, key) for evaluation in evaluations))
        series.append(Series(words, [next((one for one in values if one is not None), None) for values in found], expected=True))
    series = [one for one in series if one.points]
    return [Categories(title, x_label=label, categories=names, series=series)] if names else []


def _everywhere(evaluation: Evaluation, names: Sequence[str], key: str) -> list[float | None]:
    return [_at(evaluation.report.benchmarks.get(name), key) for name in names]


def _at(benchmark: BenchmarkReport | None, key: str) -> float | None:
    """Return the value at a dotted path, or None if there is none."""
    found: object = benchmark
    for part in key.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, float) else None


def _table(evaluations: Sequence[Evaluation]) -> Table:
    shares = {
        f"{title.partition(':')[0].lower()}: {words}": key
        for title, _, measured, expected in BIASES
        for key, words in (measured | expected).items()
    }
    rows: list[list[Cell | str]] = []
    for name, found in benchmarks(evaluations):
        for evaluation, benchmark in found:
            if benchmark.position or benchmark.length:
                correlation = Cell(_at(benchmark, "length.correlation"), "signed")
                rows.append([name, evaluation.name, *(Cell(_at(benchmark, key)) for key in shares.values()), correlation])
    columns = ["benchmark", "judge", *shares, "score with log length, Spearman"]
    return Table("Biases by benchmark", columns, rows, folded=True)
