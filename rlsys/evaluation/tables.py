"""Format eval.json as tables of plain text cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlsys.documents.core import Estimate
from rlsys.documents.evaluation import Baseline, BenchmarkReport, EvalReport, LengthBias, ParseFailures, Point, Position
from rlsys.evaluation.statistics import TOO_FEW

LEADING = ("vote", "meta")
"""Strategies that the overview shows at every k."""
NONE = "none"
"""Shown for an undefined figure."""


@dataclass(frozen=True)
class Grid:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def overview(report: EvalReport, every: bool = False) -> Grid:
    """Return a table with a row for greedy, each strategy at each k, and each baseline, and a column for each benchmark.

    Args:
        every: show every strategy at every k; otherwise those other than vote and meta only at the largest.
    """
    benchmarks = report.benchmarks
    rows = [("greedy", *(_cell(found.greedy, found) for found in benchmarks.values()))]
    strategies = list(dict.fromkeys(name for found in benchmarks.values() for name in found.strategies))
    largest = report.k[-1]
    leading = [name for name in strategies if name in LEADING] or strategies[:1]
    for name in strategies:
        for k in report.k:
            if every or k == largest or name in leading:
                cells = (_cell(found.strategies.get(name, {}).get(k), found) for found in benchmarks.values())
                rows.append((f"{name}@{k}", *cells))
    for name, title in (("chance", "baseline: chance"), ("first", "baseline: first"), ("longer", "baseline: longer wins")):
        rows.append((title, *(_baseline(found, name) for found in benchmarks.values())))
    named = {"accuracy": "accuracy", "roc_auc": "ROC AUC"}
    header = (f"{name}: {named[found.metric]}, {found.units:,} units" for name, found in benchmarks.items())
    title = f"{report.model}: 95% intervals, {report.draws} draws"
    return Grid(title, ("", *header), tuple(rows))


def by_group(report: EvalReport) -> Iterator[Grid]:
    """Yield the tables of each benchmark: figures by section and subset, further figures, cost and biases."""
    largest = report.k[-1]
    for name, found in report.benchmarks.items():
        if (greedy := found.greedy) is None:
            continue
        points = {"greedy": greedy} | {f"{strategy}@{largest}": at[largest] for strategy, at in found.strategies.items()}
        groups = {group: figure.n or 0 for group, figure in greedy.groups.items() if (figure.n or 0) < found.units or group != "all"}
        if groups:
            rows = ((f"{group} ({n:,})", *_cells(points, group, found)) for group, n in groups.items())
            yield Grid(f"{name}, by group", ("", *points), tuple(rows))
        others = [other for other in greedy.others if other != "verdicts"]
        if others:
            rows = ((other, *(_share(point.others[other], found) for point in points.values())) for other in others)
            yield Grid(f"{name}, further figures", ("", *points), tuple(rows))
        yield Grid(
            f"{name}, cost",
            ("", *points),
            (
                ("samples an item", *(_number(point.samples_per_item, ".1f") for point in points.values())),
                ("tokens an item", *(_number(point.tokens_per_item, ",.0f") for point in points.values())),
                ("items with a verdict", *(_number(point.coverage, ".1%") for point in points.values())),
            ),
        )
        measured = (row for row in _biases(found) if set(row[1:]) - {"", NONE})
        yield Grid(f"{name}, what accuracy does not show", ("", "greedy", "samples"), tuple(measured))


def _cell(point: Point | None, found: BenchmarkReport) -> str:
    return "" if point is None else _shown(point.overall, found)


def _cells(points: dict[str, Point], group: str, found: BenchmarkReport) -> Iterator[str]:
    return (_shown(point.groups[group], found) for point in points.values())


def _baseline(found: BenchmarkReport, name: str) -> str:
    baseline: Baseline | None = getattr(found.baselines, name)
    return "" if baseline is None else _share(baseline.value, found)


def _biases(found: BenchmarkReport) -> Iterator[tuple[str, ...]]:
    position, length, failures = found.position or Position(), found.length or LengthBias(), found.parse_failures or ParseFailures()
    sides = (position, position.samples or Position())
    yield "first place wins", *map(_share, (side.first for side in sides))
    yield "without bias", *map(_share, (side.first_expected for side in sides))
    yield "same winner in another order", *map(_share, (side.other_order for side in sides))
    yield "same winner in the same order", *map(_share, (side.same_order for side in sides))
    yield "longest response wins", "", _share(length.longest_wins)
    yield "longest response is best", "", _share(length.longest_is_best)
    correlation = length.correlation
    yield "score against length, rank correlation", "", NONE if correlation is None else f"{correlation:+.2f}"
    greedy = failures.greedy or ParseFailures()
    for reason in dict.fromkeys([*greedy.reasons, *failures.reasons]):
        counts = ((side.reasons.get(reason, 0), side.samples) for side in (greedy, failures))
        yield f"parse failure: {reason}", *(f"{count:,} of {total:,}" for count, total in counts)
    if greedy.cut_off or failures.cut_off:
        counts = ((side.cut_off, side.failed) for side in (greedy, failures))
        yield "cut off at rollout.max_tokens", *(f"{count:,} of {total:,} failures" for count, total in counts)


def _shown(figure: Estimate, found: BenchmarkReport) -> str:
    value = _share(figure.value, found)
    if value == NONE:
        return value
    if figure.ci95 is None:
        return f"{value} ({TOO_FEW})"
    low, high = (_share(bound, found) for bound in figure.ci95)
    return f"{value} ({low} to {high})"


def _share(value: float | None, found: BenchmarkReport | None = None) -> str:
    """Format a fraction as a percentage, or an AUC as a number."""
    return _number(value, ".3f" if found and found.metric == "roc_auc" else ".1%")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"


def markdown_page(report: EvalReport, grids: Sequence[Grid]) -> str:
    """Return the tables as one Markdown page."""
    meta = f", meta reward model {report.meta_rm}" if report.meta_rm else ""
    about = f"Model {report.model}{meta}; temperature {report.temperature:g}, seed {report.seed}."
    return "\n\n".join([f"# Evaluation\n\n{about}", *(grid.markdown() for grid in grids)]) + "\n"
