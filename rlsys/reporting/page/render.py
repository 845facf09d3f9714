"""Render sections as one self-contained HTML page, as Markdown and as JSON, with the plots as PNG files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlsys.data.readers import DataError
from rlsys.documents.core import read_json
from rlsys.reporting.page.content import Cell, Comparison, Critique, Headline, Section, Table
from rlsys.reporting.page.drawing import WIDE, render
from rlsys.reporting.page.plots import Plot
from rlsys.system.printable import printable

MADE_BY = "rlsys report"
FORMS = (".html", ".md", ".json")
AtomicOutput = Callable[[Path], AbstractContextManager[Path]]
"""Context manager that yields a path to write to, which replaces the given path when the block succeeds."""


@dataclass(frozen=True)
class Page:
    """A title and sections."""

    title: str
    sections: Sequence[Section]

    def plots(self) -> list[tuple[str, Plot]]:
        """Return all (name, plot) pairs, with unique names for files and ids."""
        named: dict[str, Plot] = {}
        for section in self.sections:
            for plot in section.plots:
                words = "-".join(re.findall(r"[a-z0-9]+", plot.title.lower()))[:60].strip("-") or "plot"
                name = next(name for i in range(1, len(named) + 2) if (name := words if i == 1 else f"{words}-{i}") not in named)
                named[name] = plot
        return list(named.items())


def write_page(page: Page, output: Path, atomic_output: AtomicOutput) -> dict[str, Any]:
    """Write PAGE.html, PAGE.md, PAGE.json and PAGE-NAME.png for each plot, all or none.

    Args:
        output: PAGE.html.
        atomic_output: context manager that yields a temporary path and moves it into place on success.

    Returns:
        the document in PAGE.json: made_by, title, files, sections: {title, headlines, tables: {title, columns, rows}, plots,
            comparisons, critiques, notes}.

    Raises:
        DataError: `output` is not .html, or would overwrite a .json or .md not written by `rlsys report`.
    """
    if output.suffix != ".html":
        raise DataError(f"{output}: expected a name that ends in .html; Markdown, JSON and plots use the same stem.")
    _refuse_foreign(output)
    page = replace(page, title=printable(page.title))
    pngs = {id(plot): f"{output.stem}-{name}.png" for name, plot in page.plots()}
    with ExitStack() as stack:
        beside = {name: stack.enter_context(atomic_output(output.with_name(name))) for name in pngs.values()}
        drawn = {id(plot): render(plot.draw, name, beside[pngs[id(plot)]]) for name, plot in page.plots()}
        alone = {id(plot) for section in page.sections for plot in without_neighbour(section.plots)}
        wide = {id(plot): render(partial(plot.draw, WIDE), f"{name}-wide") for name, plot in page.plots() if id(plot) in alone}
        document = page_document(page, pngs, [output.with_suffix(suffix).name for suffix in FORMS])
        texts = (html(page, drawn, wide), markdown(page, pngs), json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        for suffix, text in zip(FORMS, texts, strict=True):
            stack.enter_context(atomic_output(output.with_suffix(suffix))).write_text(text, encoding="utf-8")
    return document


def without_neighbour(plots: Sequence[Plot]) -> list[Plot]:
    """Return the plots that take a whole row where two fit: those that are wide, and those without another one beside them."""
    alone: list[Plot] = []
    waiting: list[Plot] = []
    for plot in plots:
        if plot.wide:
            alone, waiting = [*alone, *waiting, plot], []
        else:
            waiting = [] if waiting else [plot]
    return alone + waiting


def _refuse_foreign(output: Path) -> None:
    beside = output.with_suffix(".json")
    if beside.is_file():
        document = read_json(beside)
        if isinstance(document, dict) and document.get("made_by") == MADE_BY:
            return
    for path in (beside, output.with_suffix(".md")):
        if path.exists():
            raise DataError(f"{path}: exists and was not written by `rlsys report`; choose another name or folder for the page.")


def page_document(page: Page, files: dict[int, str], forms: list[str]) -> dict[str, Any]:
    """Return the contents of PAGE.json.

    Args:
        files: id(plot) -> name of its picture.
        forms: names of the other files.
    """
    sections = [
        {
            "title": section.title,
            "headlines": [headline.document() for headline in section.headlines],
            "tables": [table.document() for table in section.tables],
            "plots": [{"file": files[id(plot)], **plot.document()} for plot in section.plots],
            "comparisons": [comparison.document() for comparison in section.comparisons],
            "critiques": [critique.document() for critique in section.critiques],
            "notes": section.notes,
        }
        for section in page.sections
    ]
    return {"made_by": MADE_BY, "title": page.title, "files": [*forms, *files.values()], "sections": sections}


# --- HTML -----------------------------------------------------------------------------------------------------------


def html(page: Page, drawn: dict[int, str], wide: dict[int, str]) -> str:
    """Render the page as HTML.

    Args:
        drawn: id(plot) -> SVG; with `wide` the only text that is not escaped.
        wide: the same, for plots that fill a row of two where there is room.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["number"] = lambda value: isinstance(value, Cell)
    return environment.get_template("page.html.jinja").render(
        page=page, svg=lambda plot: Markup(drawn[id(plot)]), wide=lambda plot: Markup(wide.get(id(plot), ""))
    )


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(page: Page, files: dict[int, str]) -> str:
    """Render the page as GitHub-flavoured Markdown; `files`: id(plot) -> PNG file name."""
    parts = [f"# {_escaped(page.title)}"]
    for section in page.sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += [section.lead] if section.lead else []
        parts += [part for headline in section.headlines for part in _markdown_headline(headline)]
        parts += [f"![{_escaped(plot.title)}]({files[id(plot)]})" for plot in section.plots]
        for table in section.tables:
            parts += [f"**{_escaped(table.title)}**", _markdown_table(table)]
        parts += [f"- {_escaped(note)}" for note in section.notes]
        parts += [part for comparison in section.comparisons for part in _markdown_comparison(comparison)]
        parts += [part for critique in section.critiques for part in _markdown_critique(critique)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [" | ".join(_escaped(str(cell)) for cell in row) for row in (table.columns, *table.rows)]
    return "\n".join(f"| {row} |" for row in (rows[0], " | ".join(["---"] * len(table.columns)), *rows[1:]))


def _markdown_headline(headline: Headline) -> list[str]:
    rows: list[list[Cell | str]] = [[name, cell, remark] for name, cell, remark in headline.figures]
    facts = "; ".join(f"{_escaped(name)}: {_escaped(str(fact))}" for name, fact in headline.facts)
    return [f"**{_escaped(headline.name)}**: {_escaped(headline.measured)}", _markdown_table(Table("", ["", "accuracy", ""], rows)), facts]


def _markdown_comparison(comparison: Comparison) -> list[str]:
    first = comparison.first
    parts = [f"**{_escaped(comparison.source)}, {_escaped(comparison.id)}**", *_markdown_row(first)]
    parts += [f"Ground truth: {_escaped(first.truth)}"] if first.truth else []
    for stage, critique in comparison.critiques.items():
        parts += [f"{_escaped(stage)}: **{_escaped(critique.verdict)}**{_scores(critique)}", _fenced(critique.text)]
    return parts


def _markdown_critique(critique: Critique) -> list[str]:
    head = f"**{_escaped(critique.verdict)}**: {_escaped(critique.source)}, {_escaped(critique.id)}"
    truth = f", ground truth: {_escaped(critique.truth)}" if critique.truth else ""
    return [head + _scores(critique) + truth, *_markdown_row(critique), _fenced(critique.text)]


def _markdown_row(critique: Critique) -> list[str]:
    """Return the query and the responses, if they are known apart from the prompt."""
    turns = [_fenced(f"{role}: {content}" if len(critique.turns) > 1 else content) for role, content in critique.turns]
    return turns + [part for place, text in enumerate(critique.responses, 1) for part in (f"Response {place}:", _fenced(text))]


def _scores(critique: Critique) -> str:
    return "" if critique.scores is None else ", scores " + ", ".join(f"{score:g}" for score in critique.scores)


def _escaped(text: str) -> str:
    """Return `text` on one line, with Markdown and HTML markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$&])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """Return `text` as a code block whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
