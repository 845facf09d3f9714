"""Contents of a page: sections of tables, plots and critiques, as plain data that HTML, Markdown and JSON are rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.evaluation.statistics import TOO_FEW
from rlsys.reporting.page.plots import Plot

FORMS = {"percent": "{:.1%}", "signed_percent": "{:+.1%}", "signed": "{:+.3f}", "figure": "{:.3f}", "count": "{:,.0f}", "plain": "{:g}"}
"""Number formats: fractions as percentages, other measures with three decimals, tokens and seconds as integers."""


@dataclass(frozen=True)
class Cell:
    """A number in a table with its 95% interval: () if it has none, None if there are too few rows. A value of None prints "none"."""

    value: float | None
    form: str = "percent"
    ci95: tuple[float, ...] | None = ()

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        write = FORMS[self.form].format
        if self.ci95 is None:
            return f"{write(self.value)} ({TOO_FEW})"
        return write(self.value) + (f" ({write(self.ci95[0])} to {write(self.ci95[1])})" if self.ci95 else "")

    def document(self) -> dict[str, Any]:
        return {"value": self.value} | ({} if self.ci95 == () else {"ci95": self.ci95 and list(self.ci95)})


@dataclass(frozen=True)
class Table:
    """Rows of cells and texts; `folded` tables are collapsed by default."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    folded: bool = False

    def document(self) -> dict[str, Any]:
        rows = [[cell.document() if isinstance(cell, Cell) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows}


@dataclass(frozen=True)
class Critique:
    """One critique; scores and gold (position of the best response, from 0) are in the order shown to the judge."""

    source: str
    id: str
    correct: bool | None
    failure: str | None
    """Reason for a parse failure, if known."""
    prompt: str
    text: str
    scores: list[float] | None
    gold: int | None = None
    """None: unknown, or a single response."""
    truth: str = ""
    """Description of the ground truth; empty if unknown."""

    @property
    def verdict(self) -> str:
        if self.scores is None:
            return f"not parsed: {self.failure}" if self.failure else "not parsed"
        return {True: "correct", False: "wrong", None: "no verdict"}[self.correct]

    def document(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Section:
    title: str
    lead: str = ""
    """Introduction, one or two sentences."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    critiques: Sequence[Critique] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.tables or self.plots or self.critiques or self.notes)
