"""Contents of a page: sections of headlines, tables, plots and critiques, as plain data that HTML, Markdown and JSON are rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.evaluation.statistics import TOO_FEW
from rlsys.reporting.page.plots import Plot

FORMS = {
    "percent": "{:.1%}",
    "signed_percent": "{:+.1%}",
    "signed": "{:+.3f}",
    "figure": "{:.3f}",
    "score": "{:.2f}",
    "count": "{:,.0f}",
    "minutes": "{:,.1f}",
    "plain": "{:g}",
}
"""Number formats: fractions as percentages, other measures with three decimals, mean scores with two, tokens and seconds as integers."""


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
class Headline:
    """The answer in one line: an accuracy for each stage of training and each way of judging, in order."""

    name: str
    measured: str
    """What the accuracies are of, and over how many rows."""
    figures: Sequence[tuple[str, Cell, str]]
    """(stage or way of judging, accuracy, remark)."""
    facts: Sequence[tuple[str, Cell | str]] = ()
    """(name, value): chance, steps, minutes, model."""

    def document(self) -> dict[str, Any]:
        figures = [{"name": name, **cell.document(), "remark": remark} for name, cell, remark in self.figures]
        facts = {name: fact.document() if isinstance(fact, Cell) else fact for name, fact in self.facts}
        return {"name": self.name, "measured": self.measured, "figures": figures, "facts": facts}


@dataclass(frozen=True)
class Critique:
    """One judgement of a row, or one answer of a policy; scores and gold (position of the best response, from 0) are in the order shown."""

    source: str
    id: str
    correct: bool | None
    failure: str | None
    """Reason for a parse failure, if known."""
    turns: Sequence[tuple[str, str]]
    """The conversation, (role, content); empty if it is not known apart from the prompt."""
    responses: Sequence[str]
    """As shown; empty if they are not known apart from the prompt, and for a policy."""
    prompt: str
    """The whole prompt; empty if it is not known."""
    text: str
    scores: list[float] | None
    gold: int | None = None
    """None: unknown, or a single response."""
    truth: str = ""
    """Description of the ground truth; empty if unknown."""
    answers: bool = False
    """Whether it is an answer of a policy, which has no scores."""

    @property
    def verdict(self) -> str:
        if self.answers:
            return {True: "passes its checks", False: "fails its checks", None: "not checked"}[self.correct]
        if self.scores is None:
            return f"not parsed: {self.failure}" if self.failure else "not parsed"
        return {True: "correct", False: "wrong", None: "no verdict"}[self.correct]

    @property
    def right(self) -> bool:
        return bool(self.correct) and (self.answers or self.scores is not None)

    def document(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Comparison:
    """The same row at several stages of a run."""

    source: str
    id: str
    critiques: dict[str, Critique]
    """By stage, in order; they differ in the judgement alone."""

    @property
    def first(self) -> Critique:
        return next(iter(self.critiques.values()))

    def document(self) -> dict[str, Any]:
        return {"source": self.source, "id": self.id, "critiques": {stage: one.document() for stage, one in self.critiques.items()}}


@dataclass(frozen=True)
class Section:
    title: str
    lead: str = ""
    """Introduction, one or two sentences."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    headlines: Sequence[Headline] = ()
    comparisons: Sequence[Comparison] = ()
    critiques: Sequence[Critique] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.headlines or self.tables or self.plots or self.comparisons or self.critiques or self.notes)
