"""The pictures of docs/ladder.md and docs/report.md, drawn from the figures in the table of docs/ladder.md.

    .venv/bin/python tests/docs_pictures.py

writes docs/ladder-k.png and docs/report.png anew. Each picture holds the figures that it was drawn from, as JSON in its text chunk
SOURCE; `tests/rlsys/reporting/test_docs_pictures.py` compares them with the table.
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
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
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


def share(percent: str) -> float:
    return round(float(percent.strip("%")) / 100, 6)


def main() -> None:
    from browser import chromium_driven
    from page_folders import build, write
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(SOURCE, json.dumps(ladder()))
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
            Image.open(drawn).convert("RGB").save(DOCS / name, pnginfo=info, optimize=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
