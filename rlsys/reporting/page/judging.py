"""Where the judges of training runs are right: by number of responses and place of the best one, what they pick, the scores they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.evaluation.breakdown import Group, Place, Scores, by_place, by_responses, picks, written_scores
from rlsys.evaluation.heldout import chance
from rlsys.reporting.page.collect import TrainingRun
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.plots import Categories, Distribution, Plot, Series
from rlsys.reporting.page.runs import stage_name

BINS = 10
"""Columns of the distribution of scores that are not small integers."""
MOST = 21
"""Integer scores that have a column each."""
MANY_GROUPS = 24
"""Groups of rows above which places are in the table only."""


def section(runs: Sequence[TrainingRun]) -> Section:
    """Return the section with what the held-out accuracy of each judge consists of."""
    plots: list[Plot] = []
    tables: list[Table] = []
    for run in runs:
        if stages := {stage_name(stage): rows for stage, rows in run.judged.items()}:
            of = f" ({run.name})" if len(runs) > 1 else ""
            plots += [*_accuracy_plots(stages, of), *_distribution(stages, of)]
            tables += [_accuracy_table(stages, of), _score_table(stages, of)]
    lead = (
        "The held-out accuracy taken apart. Places are numbered as the responses were shown to the judge; a parse failure counts as wrong."
    )
    return Section("Where the judge is right", lead if plots else "", [table for table in tables if table.rows], plots)


def _accuracy_plots(stages: Mapping[str, Sequence[dict[str, Any]]], of: str) -> list[Plot]:
    groups = {stage: _groups(rows) for stage, rows in stages.items()}
    names = {name: group for own in groups.values() for name, group in own.items()}
    title, keys = f"Accuracy by responses and place of the best one{of}", sorted(names)
    if len(names) > MANY_GROUPS:
        title, keys = f"Accuracy by number of responses{of}", [key for key in keys if not key[1]]
    series = []
    for style, (stage, own) in enumerate(groups.items()):
        found = [own.get(key) for key in keys]
        values, intervals = [one.accuracy if one else None for one in found], [one.ci95 if one else None for one in found]
        series.append(Series(stage, values, ci95=intervals, style=style))
    series.append(Series("chance", [chance(n) for n, _ in keys], expected=True))
    labels = [f"{_name(key)}, {names[key].rows:,} row{'s' * (names[key].rows != 1)}" for key in keys]
    plots: list[Plot] = [Categories(title, "Bars are 95% intervals.", True, "accuracy", labels, series)]
    return [*plots, *_picks(stages, names, of)]


def _picks(stages: Mapping[str, Sequence[dict[str, Any]]], groups: Mapping[Place, Group], of: str) -> list[Plot]:
    won = {stage: own for stage, rows in stages.items() if (own := picks(rows))}
    places = sorted({place for own in won.values() for place in own})
    if not places or len(places) > MANY_GROUPS:
        return []
    styles = {stage: style for style, stage in enumerate(stages)}
    series = [Series(stage, [own.get(place) for place in places], style=styles[stage]) for stage, own in won.items()]
    right = [groups[place].rows / groups[place[0], 0].rows if place in groups else 0.0 for place in places]
    series.append(Series("where the best one is", right, expected=True))
    note = "Share of the parsed judgements of as many responses; equal highest scores share it."
    names = [f"place {place} of {n}" for n, place in places]
    return [Categories(f"Place with the highest score{of}", note, True, "share of judgements", names, series)]


def _groups(rows: Sequence[dict[str, Any]]) -> dict[Place, Group]:
    """Return the accuracy by (number of responses, place of the best one); place 0 stands for all rows with as many responses."""
    return {(n, 0): group for n, group in by_responses(rows).items()} | by_place(rows)


def _name(key: Place) -> str:
    n, place = key
    return f"best at place {place} of {n}" if place else f"{n} response{'s' * (n > 1)}"


def _accuracy_table(stages: Mapping[str, Sequence[dict[str, Any]]], of: str) -> Table:
    found = {stage: _groups(rows) for stage, rows in stages.items()}
    table: list[list[Cell | str]] = []
    for key in sorted({key for own in found.values() for key in own}):
        groups = [own.get(key) for own in found.values()]
        count = next(group.rows for group in groups if group)
        accuracies = [Cell(group.accuracy, "percent", group.ci95) if group else "" for group in groups]
        table.append([_name(key), Cell(count, "count"), Cell(chance(key[0])), *accuracies])
    title = f"Accuracy by number of responses and place of the best one, 95% intervals{of}"
    return Table(title, ["rows with", "rows", "chance", *found], table, folded=True)


def _distribution(stages: Mapping[str, Sequence[dict[str, Any]]], of: str) -> list[Plot]:
    found = {stage: written_scores(rows) for stage, rows in stages.items()}
    values = sorted({score for scores in found.values() for score in scores.counts})
    if not values:
        return []
    names, place = _columns(values)
    series = []
    for style, (stage, scores) in enumerate(found.items()):
        total = sum(scores.counts.values())
        counts = [0] * len(names)
        for score, count in scores.counts.items():
            counts[place(score)] += count
        if total:
            series.append(Series(stage, [count / total for count in counts], style=style))
    note = "Of the parsed judgements of two or more responses."
    return [Distribution(f"Scores that the judge writes{of}", note, True, "score", "share of scores", names, series)]


def _columns(values: Sequence[float]) -> tuple[list[str], Callable[[float], int]]:
    """Return the names of the columns for these scores, ascending, and what finds the column of a score."""
    low, high = values[0], values[-1]
    if all(float(value).is_integer() for value in values):
        low, high = min(int(low), 1), max(int(high), 10)
        if high - low < MOST:
            return [str(score) for score in range(low, high + 1)], lambda score: int(score) - low
    width = (high - low) / BINS or 1.0
    names = [f"{low + place * width:.3g} to {low + (place + 1) * width:.3g}" for place in range(BINS)]
    return names, lambda score: min(int((score - low) / width), BINS - 1)


def _score_table(stages: Mapping[str, Sequence[dict[str, Any]]], of: str) -> Table:
    rows: list[list[Cell | str]] = [[stage, *_score_cells(written_scores(samples))] for stage, samples in stages.items()]
    columns = ["stage", "parsed judgements", "different scores", "mean of the best response", "mean of the others", "highest score shared"]
    return Table(f"Scores of judgements of two or more responses{of}", columns, rows, folded=True)


def _score_cells(scores: Scores) -> list[Cell | str]:
    counts = [Cell(scores.samples, "count"), Cell(len(scores.counts), "count")]
    return [*counts, Cell(scores.best, "score"), Cell(scores.others, "score"), Cell(scores.ties)]
