"""Format eval.json as tables of plain text cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


def overview(document: dict[str, Any], every: bool = False) -> Grid:
    """Return a table with a row for greedy, each strategy at each k, and each baseline, and a column for each benchmark.

    Args:
        document: the contents of eval.json.
        every: show every strategy at every k; otherwise those other than vote and meta only at the largest.
    """
    benchmarks = document["benchmarks"]
    rows = [("greedy", *(_shown(found["greedy"]["overall"], found) for found in benchmarks.values()))]
    strategies = list(dict.fromkeys(name for found in benchmarks.values() for name in found["strategies"]))
    largest = str(document["k"][-1])
    leading = [name for name in strategies if name in LEADING] or strategies[:1]
    for name in strategies:
        for k in map(str, document["k"]):
            if every or k == largest or name in leading:
                points = (found["strategies"].get(name, {}).get(k) for found in benchmarks.values())
                cells = (_shown(point["overall"], found) if point else "" for point, found in zip(points, benchmarks.values()))
                rows.append((f"{name}@{k}", *cells))
    for name, title in (("chance", "baseline: chance"), ("first", "baseline: first"), ("longer", "baseline: longer wins")):
        cells = (
            "" if found["baselines"][name] is None else _share(found["baselines"][name]["value"], found) for found in benchmarks.values()
        )
        rows.append((title, *cells))
    named = {"accuracy": "accuracy", "roc_auc": "ROC AUC"}
    header = (f"{name}: {named[found['metric']]}, {found['units']:,} units" for name, found in benchmarks.items())
    title = f"{document['model']}: 95% intervals, {document['draws']} draws"
    return Grid(title, ("", *header), tuple(rows))


def by_group(document: dict[str, Any]) -> Iterator[Grid]:
    """Yield the tables of each benchmark: figures by section and subset, further figures, cost and biases."""
    largest = str(document["k"][-1])
    for name, found in document["benchmarks"].items():
        points = {"greedy": found["greedy"]} | {f"{strategy}@{largest}": at[largest] for strategy, at in found["strategies"].items()}
        groups = [group for group, figure in found["greedy"]["groups"].items() if figure["n"] < found["units"] or group != "all"]
        if groups:
            rows = ((f"{group} ({found['greedy']['groups'][group]['n']:,})", *_cells(points, group, found)) for group in groups)
            yield Grid(f"{name}, by group", ("", *points), tuple(rows))
        others = [other for other in found["greedy"]["others"] if other != "verdicts"]
        if others:
            rows = ((other, *(_share(point["others"][other], found) for point in points.values())) for other in others)
            yield Grid(f"{name}, further figures", ("", *points), tuple(rows))
        yield Grid(
            f"{name}, cost",
            ("", *points),
            (
                ("samples an item", *(f"{point['samples_per_item']:.1f}" for point in points.values())),
                ("tokens an item", *(f"{point['tokens_per_item']:,.0f}" for point in points.values())),
                ("items with a verdict", *(f"{point['coverage']:.1%}" for point in points.values())),
            ),
        )
        measured = (row for row in _biases(found) if set(row[1:]) - {"", NONE})
        yield Grid(f"{name}, what accuracy does not show", ("", "greedy", "samples"), tuple(measured))


def _cells(points: dict[str, Any], group: str, found: dict[str, Any]) -> Iterator[str]:
    return (_shown(point["groups"][group], found) for point in points.values())


def _biases(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    position, length, failures = found["position"], found["length"], found["parse_failures"]
    sides = (position, position["samples"])
    yield "first place wins", *map(_share, (side["first"] for side in sides))
    yield "without bias", *map(_share, (side["first_expected"] for side in sides))
    yield "same winner in another order", *map(_share, (side["other_order"] for side in sides))
    yield "same winner in the same order", *map(_share, (side["same_order"] for side in sides))
    yield "longest response wins", "", _share(length["longest_wins"])
    yield "longest response is best", "", _share(length["longest_is_best"])
    correlation = length["correlation"]
    yield "score against length, rank correlation", "", NONE if correlation is None else f"{correlation:+.2f}"
    for reason in dict.fromkeys([*failures["greedy"]["reasons"], *failures["reasons"]]):
        counts = ((side["reasons"].get(reason, 0), side["samples"]) for side in (failures["greedy"], failures))
        yield f"parse failure: {reason}", *(f"{count:,} of {total:,}" for count, total in counts)
    if failures["greedy"]["cut_off"] or failures["cut_off"]:
        counts = ((side["cut_off"], side["failed"]) for side in (failures["greedy"], failures))
        yield "cut off at rollout.max_tokens", *(f"{count:,} of {total:,} failures" for count, total in counts)


def _shown(figure: dict[str, Any], found: dict[str, Any]) -> str:
    value = _share(figure["value"], found)
    if value == NONE:
        return value
    if figure["ci95"] is None:
        return f"{value} ({TOO_FEW})"
    low, high = (_share(bound, found) for bound in figure["ci95"])
    return f"{value} ({low} to {high})"


def _share(value: float | None, found: dict[str, Any] | None = None) -> str:
    """Format a fraction as a percentage, or an AUC as a number."""
    if value is None or value != value:
        return NONE
    return f"{value:.3f}" if found and found["metric"] == "roc_auc" else f"{value:.1%}"


def markdown_page(document: dict[str, Any], grids: Sequence[Grid]) -> str:
    """Return the tables as one Markdown page."""
    meta = f", meta reward model {document['meta_rm']}" if document["meta_rm"] else ""
    about = f"Model {document['model']}{meta}; temperature {document['temperature']:g}, seed {document['seed']}."
    return "\n\n".join([f"# Evaluation\n\n{about}", *(grid.markdown() for grid in grids)]) + "\n"
