"""`rlsys report`: one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson
from rlsys.io.files import atomic_output

PAGE = Path("page.html")


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, evaluations, reward models, ladders.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page; all else gets its name.")] = PAGE,
    title: Annotated[str | None, typer.Option("--title", help="Headline of the page. Default: the names of the folders.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs, evaluations and ladders came to as one HTML page that needs no network.

    A DIR is recognised by what lies in it: a run of `rlsys train` (complete or under way), of `rlsys meta-rm`, an evaluation (eval.json)
    or a ladder (ladder.json). Several of a kind stand side by side. Beside PAGE.html go PAGE.md, PAGE.json with every figure shown, and
    each plot as PNG.

    Example: rlsys report runs/first runs/meta runs/eval --output results.html
    """
    from rlsys.reporting.page import Page, collect, outline, write_page

    with only_json(as_json) as write_json:
        sources = collect(folders)
        page = Page(title or "rlsys: " + ", ".join(dict.fromkeys(source.name for source in sources)), outline(sources))
        document = write_page(page, output, atomic_output)
        write_json(document)
        console = to_stderr() if as_json else to_stdout()
        told = f"{len(page.sections)} section(s), {len(page.plots())} plot(s), {output.stat().st_size / 1e3:,.0f} kB"
        print_text(console, f"{output}: {told}; beside it the same as .md and .json, and each plot as .png")
