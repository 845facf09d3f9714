"""The pictures in docs/ are drawn from the figures in its pages. If this fails: `.venv/bin/python tests/docs_pictures.py`."""

from __future__ import annotations

import json
import re

import pytest
from docs_pictures import DOCS, PICTURES, SOURCE, ladder, policy, policy_plot
from page_folders import plots, told, write


def table() -> list[list[str]]:
    """The rungs in docs/ladder.md."""
    text = (DOCS / "ladder.md").read_text()
    body = re.search(r"^\| rung \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()]


def test_every_figure_of_the_table_is_in_the_source() -> None:
    source = ladder()
    assert source["n"] == 400 and source["baselines"] == {"chance": 0.379, "first": 0.385, "longer": 0.347}
    assert len(source["rungs"]) == len(table()) == 19
    for rung, (_, value, interval, difference, _, tokens) in zip(source["rungs"], table(), strict=True):
        low, high = rung["ci95"]
        assert (f"{rung['value']:.1%}", f"{low:.1%} to {high:.1%}") == (value, interval)
        change = rung["minus_previous"]
        told = "" if change is None else "{:+.1%} ({:+.1%} to {:+.1%})".format(change["mean"], *change["ci95"])
        assert told == difference.strip("*")
        assert tokens == ("" if rung["tokens_per_item"] is None else f"{rung['tokens_per_item']:,.0f}")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_from_them(name) -> None:
    from PIL import Image

    with Image.open(DOCS / name) as picture:
        assert json.loads(picture.text[SOURCE]) == ladder()


def test_the_page_of_the_source_shows_them(tmp_path) -> None:
    write(tmp_path / "ladder" / "ladder.json", ladder())
    by_k = plots(told(tmp_path / "ladder"))["Accuracy against k: test rows, 400 rows"]
    drawn = {f"{one['name']}@{x:g}": f"{y:.1%}" for one in by_k["series"] for x, y in zip(one["x"], one["y"])}
    figures = {row[0].replace("RL, one sample (vote@1)", "vote@1"): row[1] for row in table()}
    assert drawn == {name.replace("meta", "guided vote"): value for name, value in figures.items() if re.match(r"(vote|meta)@", name)}
    assert by_k["levels"] == {"base (primed), greedy": 0.47, "RL, greedy": 0.582, "Bradley-Terry baseline": 0.95, "chance": 0.379}


def test_the_picture_of_policies_is_drawn_from_their_table() -> None:
    from PIL import Image

    source = policy()
    with Image.open(DOCS / "policy.png") as picture:
        assert json.loads(picture.text[SOURCE]) == source
    line = next(line for line in (DOCS / "policy.md").read_text().splitlines() if line.startswith("| the checks | gold |"))
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    (checks,) = (one for one in policy_plot().panels[0].series if one.name == "the checks")
    assert [f"{value:.1%}" for value in checks.y] == cells and list(checks.x) == source["steps"]
