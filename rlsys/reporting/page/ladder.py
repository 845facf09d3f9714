"""The ladder (base, fine-tuned, RL, voting, guided voting): what each rung adds, and whether that is significant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlsys.documents.core import Difference
from rlsys.documents.runs import Rung
from rlsys.evaluation.statistics import TOO_FEW
from rlsys.reporting.page.collect import Ladder
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.evaluations import BASELINES, baselines_named
from rlsys.reporting.page.plots import Categories, Curves, Plot, Series

KINDS = {
    "base": "base model",
    "rft": "rejective fine-tuning",
    "rl": "RL",
    "vote": "vote",
    "meta": "guided vote",
    "bt": "Bradley-Terry",
}
"""Kind of a rung -> its name; the place determines the colour."""
VOTE = re.compile(r"\w+@\d{1,6}")
LEVELS = ("base", "rl", "bt")
"""Rungs that the plot against k shows as horizontal lines."""


def section(ladders: Sequence[Ladder]) -> Section:
    """Return the section with a table and a plot of each ladder, and a separate table of its ablations."""
    tables: list[Table] = []
    plots: list[Plot] = []
    notes: list[str] = []
    for ladder in ladders:
        about = f"{ladder.report.benchmark}, {ladder.report.n:,} rows"
        name = f" ({ladder.name})" if len(ladders) > 1 else ""
        rungs = [rung for rung in ladder.report.rungs if not rung.ablation]
        ablations = [rung for rung in ladder.report.rungs if rung.ablation]
        if rungs:
            tables.append(_table(f"Ladder: {about}{name}", rungs, "minus the rung before, paired"))
            base = baselines_named(ladder.report.baselines)
            plots.append(_by_rung(f"Accuracy by rung: {about}{name}", rungs, base))
            plots += _by_k(f"Accuracy against k: {about}{name}", rungs, base)
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


def kind(rung: Rung) -> str:
    """Return the kind of model or vote that a rung is: `vote` of `vote@8`."""
    return rung.name.partition("@")[0]


def _by_rung(title: str, rungs: Sequence[Rung], baselines: dict[str, float]) -> Categories:
    """Plot the rungs one below the other, in one colour per kind."""
    titles = list(dict.fromkeys(rung.title for rung in rungs))
    seeds = list(dict.fromkeys(rung.seed for rung in rungs))
    series = []
    for name in _kinds(rungs):
        for variant, seed in enumerate(seeds):
            by_title = {rung.title: rung for rung in rungs if rung.seed == seed and kind(rung) == name}
            ordered = [by_title.get(title) for title in titles]
            label = KINDS.get(name, name) + (f", seed {seed}" if len(seeds) > 1 else "")
            values, intervals = [rung.value if rung else None for rung in ordered], [rung.ci95 if rung else None for rung in ordered]
            if by_title:
                series.append(Series(label, values, ci95=intervals, style=_style(name), variant=variant))
    return Categories(title, "Bars are 95% intervals.", x_label="accuracy", categories=titles, series=series, levels=baselines)


def _by_k(title: str, rungs: Sequence[Rung], baselines: dict[str, float]) -> list[Curves]:
    """Plot the votes against k, with other rungs as levels, unless no kind of vote has two points."""
    series = []
    for name in _kinds(rungs):
        points = sorted((int(rung.name.partition("@")[2]), rung) for rung in rungs if kind(rung) == name and VOTE.fullmatch(rung.name))
        if len(points) > 1 and len({k for k, _ in points}) == len(points):
            ks, found = [float(k) for k, _ in points], [rung for _, rung in points]
            values, intervals = [rung.value for rung in found], [rung.ci95 for rung in found]
            series.append(Series(KINDS.get(name, name), values, ks, intervals, _style(name)))
    levels = {rung.title: rung.value for rung in rungs if rung.name in LEVELS}
    levels |= {name: value for name, value in baselines.items() if name == BASELINES["chance"]}
    note = "Bars are 95% intervals; curves are offset horizontally for legibility."
    return [Curves(title, note, True, "samples per row, k (log scale)", "accuracy", series, levels, log2=True)] if series else []


def _kinds(rungs: Sequence[Rung]) -> list[str]:
    return list(dict.fromkeys(map(kind, rungs)))


def _style(name: str) -> int:
    return list(KINDS).index(name) if name in KINDS else len(KINDS)
