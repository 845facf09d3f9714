"""The pictures of docs/ladder.md, docs/report.md and docs/policy.md, drawn from the figures in the tables of the first and the last.

    .venv/bin/python tests/docs_pictures.py

writes docs/ladder-k.png, docs/report.png and docs/policy.png anew. Each picture holds the figures that it was drawn from, as JSON in its
text chunk SOURCE; `tests/rlsys/reporting/test_docs_pictures.py` compares them with the tables.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURES = ("ladder-k.png", "report.png")
"""Of `ladder`; docs/policy.png is that of `policy`."""
SOURCE = "Source"
"""Name of the PNG text chunk."""
NAMES = {
    "base (primed), greedy": "base",
    "base, one sample": "base@1",
    "RFT, greedy": "rft",
    "RFT, one sample": "rft@1",
    "RL, greedy": "rl",
    "RL, one sample (vote@1)": "vote@1",
    "Bradley-Terry baseline": "bt",
}
"""Rung in the table -> its name in ladder.json, where they differ."""
VOTES = {"vote": "vote, k =", "meta": "guided vote, k ="}
NUMBER = re.compile(r"[+-]?[\d.]+(?=%)")
WIDTH = 1200
"""Of the screenshot, in pixels."""


def ladder() -> dict[str, Any]:
    """Return ladder.json with the figures of docs/ladder.md."""
    text = (DOCS / "ladder.md").read_text(encoding="utf-8")
    rows = table_rows(text)
    table = rows[next(number for number, row in enumerate(rows) if row[0] == "rung") + 2 :]
    chance, first, longer = NUMBER.findall(" ".join(text[text.index("chance is") :].split("Bold")[0].split()))
    return {
        "benchmark": "test rows",
        "n": int(re.search(r"(\d+) test rows", text)[1]),  # type: ignore[index]
        "rungs": [rung(row) for row in table],
        "baselines": {"chance": share(chance), "first": share(first), "longer": share(longer)},
    }


def rung(row: list[str]) -> dict[str, Any]:
    """Return a rung of ladder.json from a row of the table."""
    title, value, interval, difference, _, tokens = row
    name = NAMES.get(title, title)
    kind, _, k = title.partition("@")
    changes = [share(number) for number in NUMBER.findall(difference)]
    return {
        "name": name,
        "title": f"{VOTES[kind]} {k}" if kind in VOTES else title,
        "value": share(value),
        "ci95": [share(bound) for bound in interval.split(" to ")],
        "seed": 0,
        "minus_previous": {"mean": changes[0], "ci95": changes[1:]} if changes else None,
        "tokens_per_item": float(tokens.replace(",", "")) if tokens else None,
        "ablation": title.startswith("RFT without"),
    }


def policy() -> dict[str, Any]:
    """Return {steps, panels: {what is shown: {what was trained on: values}}} from the table by steps of docs/policy.md."""
    rows = table_rows((DOCS / "policy.md").read_text(encoding="utf-8"))
    first = next(number for number, row in enumerate(rows) if row[:2] == ["trained on", "shown"])
    panels: dict[str, dict[str, list[float]]] = {}
    for trained, shown, *cells in rows[first + 2 :]:
        panels.setdefault(shown, {})[trained] = [share(cell) if cell.endswith("%") else float(cell) for cell in cells]
    return {"steps": [int(step) for step in rows[first][2:]], "panels": panels}


def policy_plot() -> Any:
    """Return the plot of `policy`: gold above the judge's score."""
    from rlsys.reporting.page.plots import Curves, Panels, Series

    source = policy()
    styles = {name: number for number, name in enumerate(dict.fromkeys(name for panel in source["panels"].values() for name in panel))}
    curves = [
        Curves(
            "",
            "",
            shown == "gold",
            "step",
            "gold: samples that\npass their checks" if shown == "gold" else f"{shown}",
            [Series(name, values, source["steps"], style=styles[name]) for name, values in panel.items()],
        )
        for shown, panel in source["panels"].items()
    ]
    return Panels("Policies trained on the checks, on a judge, and on a Bradley-Terry model", panels=curves)


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all tables of a page, without bold marks."""
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def save(drawn: Path, name: str, source: dict[str, Any]) -> None:
    """Save a picture in docs/ with the figures that it was drawn from."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(SOURCE, json.dumps(source))
    Image.open(drawn).convert("RGB").save(DOCS / name, pnginfo=info, optimize=True)


def share(percent: str) -> float:
    return round(float(percent.strip("%")) / 100, 6)


def main() -> None:
    from browser import chromium_driven
    from page_folders import build, write

    from rlsys.reporting.page.drawing import WIDE, render

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "policy.png"
        render(lambda: policy_plot().draw(WIDE), "policy", drawn)
        save(drawn, "policy.png", policy())
    with tempfile.TemporaryDirectory() as folder, chromium_driven() as browser:
        root = Path(folder)
        write(root / "ladder" / "ladder.json", ladder())
        document = build([root / "ladder"], root / "results.html", "rlsys: ladder")
        (by_k,) = (plot["file"] for section in document["sections"] for plot in section["plots"] if "against k" in plot["title"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto((root / "results.html").as_uri())
        # The headline and the plots of the ladder.
        bottom = page.locator(".plots").last.bounding_box()
        page.screenshot(
            path=root / "report.png", full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom["y"] + bottom["height"] + 16}
        )
        for name, drawn in zip(PICTURES, (root / by_k, root / "report.png"), strict=True):
            save(drawn, name, ladder())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
