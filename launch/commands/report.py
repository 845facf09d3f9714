"""`rlsys report`: an HTML page of runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson
from rlsys.io.files import atomic_output

PAGE = Path("page.html")


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, evaluations, reward models or ladders.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page; other files are named after it.")] = PAGE,
    title: Annotated[str | None, typer.Option("--title", help="Title of the page. Default: the names of the folders.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a self-contained HTML page of results from runs, evaluations and ladders.

    Each DIR may be a run of `rlsys train` (complete or still running), a run of `rlsys meta-rm`, an evaluation (eval.json) or a ladder
    (ladder.json), detected by its contents; several of a kind are shown side by side. PAGE.md, PAGE.json (all figures shown) and every
    plot as PNG are written next to PAGE.html.

    Example: rlsys report runs/first runs/meta runs/eval --output results.html
    """
    from rlsys.reporting.page import Page, collect, outline, write_page

    with only_json(as_json) as write_json:
        sources = collect(folders)
        page = Page(title or "rlsys: " + ", ".join(dict.fromkeys(source.name for source in sources)), outline(sources))
        document = write_page(page, output, atomic_output)
        write_json(document)
        console = to_stderr() if as_json else to_stdout()
        contents = f"{len(page.sections)} section(s), {len(page.plots())} plot(s), {output.stat().st_size / 1e3:,.0f} kB"
        print_text(console, f"{output}: {contents}; also written as .md and .json, and each plot as .png")
