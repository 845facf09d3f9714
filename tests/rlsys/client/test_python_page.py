"""docs/python.md runs, cell by cell."""

from __future__ import annotations

from judge_services import FakeJudge, fake_service
from python_page import run_page


def test_the_page_runs(capsys):
    judge = FakeJudge()
    with fake_service(judge) as url:
        names = run_page(url)
    shown = capsys.readouterr().out
    assert "samples parsed)" in shown and "critique 0 <b>" in shown and "422 http" in shown and "the limit is 32" in shown
    assert len(judge.asked) == 2 + 20 + 1 + 1 and 0 <= names["accuracy"] <= 1
    assert [request.principles for request in judge.asked].count("The answer must be true, and a child must understand it.") == 1
