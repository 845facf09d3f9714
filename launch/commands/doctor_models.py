"""`rlsys doctor --models`: which families of models are computed right, measured on tiny ones; and the table of docs/models.md."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.console import UserError, to_stderr
from rlsys.io.files import atomic_output
from rlsys.system.printable import printable
from rlsys.system.terminal import Table, progress

MARK = "<!-- What follows is written by `rlsys doctor --models --write docs/models.md`; edit what stands above. -->"
STYLES = {"packed": "green", "plain": "green", "refused": "yellow", "WRONG": "bold red", "CRASH": "bold red"}
ROUNDING = 1e-4
"""Differences below this are told as rounding: their digits depend on the machine."""


def measure(wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Measure the families whose name or type holds one of `wanted`, all of them without; progress goes to stderr.

    Returns:
        transformers and torch (versions), counts by verdict, and families: a list of `rlsys.models.zoo_check.FamilyResult.as_dict`.

    Raises:
        UserError: no family is called like this.
    """
    from transformers.utils import logging

    from rlsys.models.zoo import FAMILIES
    from rlsys.models.zoo_check import measure_all

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = [family for family in FAMILIES if not wanted or any(_called(family.name, family.model_type, word) for word in wanted)]
    if not chosen:
        raise UserError(f"--family {', '.join(wanted)}: no family of the zoo is called like this; without --family all of them are told.")
    console = to_stderr()
    found = []
    with progress(console) as bar:
        task = bar.add_task("measuring", total=len(chosen), pace="")
        for family, measured in zip(chosen, measure_all(chosen), strict=True):
            bar.update(task, advance=1, description=f"{family.name}: {measured.verdict}")
            found.append(measured)
    return {
        **{name: importlib.metadata.version(name) for name in ("transformers", "torch")},
        "counts": dict(Counter(measured.verdict for measured in found)),
        "families": [measured.as_dict() for measured in found],
    }


def _called(name: str, model_type: str, word: str) -> bool:
    return word.lower() in name.lower() or word.lower() == model_type


def table(document: dict[str, Any]) -> Table:
    """The document of `measure`, for a person."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in document["counts"].items())
    shown = Table("family", "verdict", "nats off", "gradient off", "why", title=f"transformers {document['transformers']}: {counts}")
    for row in document["families"]:
        cells = _cells(row)
        shown.add_row(printable(cells[0]), cells[2], *cells[3:5], printable(cells[5]), style=STYLES[row["verdict"]])
    return shown


def write(document: dict[str, Any], path: Path) -> None:
    """Put the table into Markdown file `path`, below MARK; what stands above it is kept."""
    above, mark, _ = path.read_text(encoding="utf-8").partition(MARK) if path.is_file() else ("", "", "")
    lines = [
        f"{above if mark or not above else above + chr(10)}{MARK}",
        "",
        f"transformers {document['transformers']}. "
        + ", ".join(f"{count} {verdict}" for verdict, count in document["counts"].items())
        + ".",
        "",
        "| family | transformers' class | | log-probability off by, nats | gradient off by | why |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in document["families"]]
    with atomic_output(path) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def verdicts(path: Path) -> dict[str, str]:
    """{family: verdict} of a table that `write` wrote."""
    rows = (line.split(" | ") for line in path.read_text(encoding="utf-8").partition(MARK)[2].splitlines() if line.startswith("| "))
    return {cells[0].removeprefix("| "): cells[2] for cells in rows if cells[0] != "| family"}


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    ways = {"packed": row["packed"], "plain": row["plain"]}
    told = {
        "packed": ["packed"],
        "plain": ["plain"],
        "WRONG": [name for name, way in ways.items() if way["error"] is not None],
    }.get(row["verdict"], [])
    error, gradient = (max((ways[name][key] for name in told), default=None) for key in ("error", "gradient"))
    return row["family"], row["architecture"], row["verdict"], _figure(error), _figure(gradient), _why(ways)


def _figure(value: float | None) -> str:
    return "" if value is None else f"< {ROUNDING:.0e}" if value < ROUNDING else f"{value:.2g}"


def _why(ways: dict[str, Any]) -> str:
    said = {name: way["refused"] or way["crashed"] for name, way in ways.items() if way["refused"] or way["crashed"]}
    if len(set(said.values())) == 1 and len(said) == 2:
        return next(iter(said.values()))
    return " ".join(f"{name}: {text}" for name, text in said.items())
