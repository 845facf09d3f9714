"""Terminal output. Strings are plain text: brackets are not parsed as markup, and control characters are replaced.

Styles are passed separately, never as markup. All output goes through this module (enforced by `tests/test_architecture.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, overload

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from rlsys.system.printable import printable

WIDTH = 140
"""Line width for files and job logs, which have no terminal size."""


def stdout() -> Console:
    """Create a console for standard output."""
    return _console(sys.stdout.isatty())


def stderr() -> Console:
    """Create a console for standard error."""
    return _console(sys.stderr.isatty(), stderr=True)


def silent() -> Console:
    """Create a console that discards its output."""
    return Console(quiet=True)


def _console(terminal: bool, **options: Any) -> Console:
    return Console(width=None if terminal else WIDTH, markup=False, emoji=False, highlight=False, **options)


@overload
def as_text(value: str | Text, style: str = "") -> Text: ...
@overload
def as_text(value: RenderableType, style: str = "") -> RenderableType: ...
def as_text(value: RenderableType, style: str = "") -> RenderableType:
    """Convert a string to sanitised text in one style; return other renderables unchanged."""
    return Text(printable(value), style) if isinstance(value, str) else value


def print_text(console: Console, text: str | Text, style: str | None = None) -> None:
    """Print `text` without markup; the terminal wraps long lines."""
    console.print(as_text(text), style=style, highlight=False, soft_wrap=True)


class Table(RichTable):
    """A table whose strings are plain text on any console.

    Args:
        headers: one per column.
        title, caption: above and below the table.
        options: of `rich.table.Table`.
    """

    def __init__(self, *headers: str, title: str | Text = "", caption: str | Text = "", **options: Any):
        super().__init__(title=as_text(title, "table.title") or None, caption=as_text(caption, "table.caption") or None, **options)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: RenderableType = "", footer: RenderableType = "", **options: Any) -> None:
        super().add_column(as_text(header), as_text(footer), **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(cell if cell is None else as_text(cell) for cell in cells), **options)


def panel(title: str, parts: RenderableType, style: str) -> Panel:
    """Draw `parts` in a frame with a title."""
    return Panel(parts, title=as_text(title), title_align="left", border_style=style)


def progress(console: Console) -> Progress:
    """Create a progress bar for tasks with a `pace` field; it is hidden if the console is not a terminal."""
    columns: Iterable[Any] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
