"""What a person sees in a terminal. Strings are text: brackets in a name, a path or an error are no markup, and no control
character gets through. Style is given beside the text, never inside of it.

Everything that is printed goes through this module (`tests/test_architecture.py` holds that).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from rlsys.system.printable import printable

WIDTH = 140
"""Columns of what is printed into a file or a job's log, where there is no terminal to ask."""


def stdout() -> Console:
    return _console(sys.stdout.isatty())


def stderr() -> Console:
    return _console(sys.stderr.isatty(), stderr=True)


def silent() -> Console:
    """Prints nothing."""
    return Console(quiet=True)


def _console(terminal: bool, **options: Any) -> Console:
    return Console(width=None if terminal else WIDTH, markup=False, emoji=False, highlight=False, **options)


def as_text(value: RenderableType, style: str = "") -> RenderableType:
    """A string as it is, in one style; anything else comes back as it was given."""
    return Text(printable(value), style) if isinstance(value, str) else value


def print_text(console: Console, what: str | Text, style: str | None = None) -> None:
    """Print `what` as it is; a long line is left to the terminal to wrap."""
    console.print(as_text(what), style=style, highlight=False, soft_wrap=True)


class Table(RichTable):
    """A table whose strings are text, on any console.

    Args:
        headers: a column each.
        title, caption: over and under the table.
        options: of `rich.table.Table`.
    """

    def __init__(self, *headers: str, title: RenderableType = "", caption: RenderableType = "", **options: Any):
        super().__init__(title=as_text(title, "table.title") or None, caption=as_text(caption, "table.caption") or None, **options)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: RenderableType = "", footer: RenderableType = "", **options: Any) -> None:
        super().add_column(as_text(header), as_text(footer), **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(cell if cell is None else as_text(cell) for cell in cells), **options)


def panel(title: str, parts: RenderableType, style: str) -> Panel:
    """`parts` in a frame with a title."""
    return Panel(parts, title=as_text(title), title_align="left", border_style=style)


def progress(console: Console) -> Progress:
    """A bar for tasks with a `pace`; nothing where nobody watches."""
    columns: Iterable[Any] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
