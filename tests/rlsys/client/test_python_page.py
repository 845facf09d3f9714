"""docs/python.md runs, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

from judge_services import FakeJudge, fake_service

PAGE = Path(__file__).resolve().parents[3] / "docs/python.md"
CELL = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def run_page(url: str) -> dict[str, object]:
    """Run the cells that ask a service, against the one at `url`; returns their names."""
    names: dict[str, object] = {"__name__": "notebook"}
    text = PAGE.read_text()
    for cell in CELL.finditer(text):
        line = text[: cell.start()].count("\n") + 1
        exec(compile("\n" * line + cell[1].replace("http://127.0.0.1:8000", url), str(PAGE), "exec"), names)  # noqa: S102
    return names


def test_the_page_runs(capsys):
    judge = FakeJudge()
    with fake_service(judge) as url:
        names = run_page(url)
    shown = capsys.readouterr().out
    assert "samples parsed)" in shown and "critique 0 <b>" in shown and "422 http" in shown and "the limit is 32" in shown
    assert len(judge.asked) == 2 + 20 + 1 + 1 and 0 <= names["accuracy"] <= 1
    assert [request.principles for request in judge.asked].count("The answer must be true, and a child must understand it.") == 1
