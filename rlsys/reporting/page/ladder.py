"""The ladder (base, fine-tuned, RL, voting, guided voting): what each rung adds, and whether that is significant."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.documents.core import Difference
from rlsys.documents.runs import Rung
from rlsys.evaluation.statistics import TOO_FEW
from rlsys.reporting.page.collect import Ladder
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.plots import Categories, Series


def section(ladders: Sequence[Ladder]) -> Section:
    """Return the section with a table and a plot of each ladder, and a separate table of its ablations."""
    tables: list[Table] = []
    plots: list[Categories] = []
    notes: list[str] = []
    for ladder in ladders:
        about = f"{ladder.report.benchmark}, {ladder.report.n:,} rows"
        name = f" ({ladder.name})" if len(ladders) > 1 else ""
        rungs = [rung for rung in ladder.report.rungs if not rung.ablation]
        ablations = [rung for rung in ladder.report.rungs if rung.ablation]
        if rungs:
            tables.append(_table(f"Ladder: {about}{name}", rungs, "minus the rung before, paired"))
            plots.append(_plot(f"Accuracy by rung: {about}{name}", rungs))
        if ablations:
            tables.append(_table(f"Ablations: {about}{name}", ablations, "paired difference"))
        notes += ladder.report.notes
    return Section("The ladder", "Accuracy with 95% intervals, and what each rung adds to the one before it.", tables, plots, notes=notes)


def _table(title: str, rungs: Sequence[Rung], difference: str) -> Table:
    columns = ["rung", "description", "seed", "accuracy", difference, "significant?", "tokens per row"]
    rows = [
        [
            rung.name,
            rung.title,
            "" if rung.seed is None else str(rung.seed),
            Cell(rung.value, "percent", rung.ci95),
            Cell(rung.minus_previous.mean, "signed_percent", rung.minus_previous.ci95) if rung.minus_previous else "",
            separation(rung.minus_previous),
            Cell(rung.tokens_per_item, "count") if rung.tokens_per_item is not None else "",
        ]
        for rung in rungs
    ]
    return Table(title, columns, rows)


def separation(difference: Difference | None) -> str:
    """Describe whether the interval of a difference excludes zero."""
    if difference is None:
        return ""
    if difference.ci95 is None:
        return TOO_FEW
    low, high = difference.ci95
    return "up" if low > 0 else "down" if high < 0 else "no: the interval includes zero"


def _plot(title: str, rungs: Sequence[Rung]) -> Categories:
    titles = list(dict.fromkeys(rung.title for rung in rungs))
    seeds = list(dict.fromkeys(rung.seed for rung in rungs))
    series = []
    for style, seed in enumerate(seeds):
        by_title = {rung.title: rung for rung in rungs if rung.seed == seed}
        ordered = [by_title.get(title) for title in titles]
        name = "accuracy" if seed is None else f"seed {seed}"
        values = [rung.value if rung else None for rung in ordered]
        series.append(Series(name, values, ci95=[rung.ci95 if rung else None for rung in ordered], style=style))
    return Categories(title, "Bars are 95% intervals.", x_label="accuracy", categories=titles, series=series)
