"""Runs the cells of docs/python.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/python.md"
CELL = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def run_page(url: str) -> dict[str, object]:
    """Run all cells, in order, against the service at `url`; returns their names."""
    names: dict[str, object] = {"__name__": "notebook"}
    text = PAGE.read_text()
    for cell in CELL.finditer(text):
        line = text[: cell.start()].count("\n") + 1
        exec(compile("\n" * line + cell[1].replace("http://127.0.0.1:8000", url), str(PAGE), "exec"), names)  # noqa: S102
    return names
