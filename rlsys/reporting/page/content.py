"""What a page is made of: sections that hold tables, plots and critiques. Plain data, so that HTML, Markdown and JSON say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.evaluation.statistics import TOO_FEW
from rlsys.reporting.page.plots import Plot

FORMS = {"percent": "{:.1%}", "signed_percent": "{:+.1%}", "signed": "{:+.3f}", "figure": "{:.3f}", "count": "{:,.0f}", "plain": "{:g}"}
"""How a number is written: shares as percent, measures of other ranges to three digits, tokens and seconds as whole numbers."""


@dataclass(frozen=True)
class Cell:
    """A number of a table with its 95% interval: () for what has none, None where there are too few rows. Value None: "none"."""

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
    """Rows of cells and texts under `columns`; folded: closed until it is asked for."""

    title: str
    columns: list[str]
    rows: list[list[Cell | str]]
    note: str = ""
    folded: bool = False

    def document(self) -> dict[str, Any]:
        rows = [[cell.document() if isinstance(cell, Cell) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows}


@dataclass(frozen=True)
class Critique:
    """One judgement as it was shown: scores and gold (the place of the best response, from 0) are in the order of the prompt."""

    source: str
    id: str
    correct: bool | None
    failure: str | None
    """Why it could not be parsed, where that is known."""
    prompt: str
    text: str
    scores: list[float] | None
    gold: int | None = None
    """None: not known, or a single response."""
    truth: str = ""
    """The ground truth in words; empty: not known."""

    @property
    def verdict(self) -> str:
        if self.scores is None:
            return f"not parsed: {self.failure}" if self.failure else "not parsed"
        return {True: "right", False: "wrong", None: "no verdict"}[self.correct]

    def document(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Section:
    title: str
    lead: str = ""
    """What one sees, in a sentence or two."""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    critiques: list[Critique] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.tables or self.plots or self.critiques or self.notes)
