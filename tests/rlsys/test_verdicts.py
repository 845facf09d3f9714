"""A line for every row that was read: in the order of the input, with the reason where there is no verdict, and again after a restart."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from launch.judge import list_once, summarise
from rlsys.judging import Answer, Question, ask
from rlsys.readers import DataError, SetAside, read_all
from rlsys.records import Record
from rlsys.verdicts import as_before, in_place, verdict_row
from rlsys.voting import Options, find

GOOD = {"id": "a", "prompt": "Name a tree.", "responses": ["oak", "ash"]}
LINES = [
    "not JSON",
    GOOD,
    {"id": "b", "prompt": "?"},
    GOOD | {"id": "c"},
    GOOD | {"id": "c"},
    {"id": 7, "responses": []},
    GOOD | {"id": "d"},
]
NAMES = ["rows:1", "a", "b", "c", "c", "7", "d"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in LINES))
    return path


def verdicts(records, ahead: int = 2, skip: str = "d"):
    """Verdicts of samples that all say the same; records are taken ahead of them, as engines do."""
    waiting = []
    for record in records:
        waiting.append(record)
        if len(waiting) > ahead:
            yield verdict(waiting.pop(0), skip)
    for record in waiting:
        yield verdict(record, skip)


def verdict(record: Record, skip: str) -> dict:
    too_long = "its prompt has 9 tokens, more than 8" if record.id == skip else None
    question = Question(ask(record, 2, "k"), [], too_long)
    samples = [] if too_long else [{"order": [0, 1], "scores": [9, 2], "logprob": -1.0, "tokens": 3, "text": ""}] * 2
    return verdict_row(Answer(question, samples), find("vote"), Options(), 0, (0, 1), False)


def lines(path, **more) -> list[dict]:
    return list(in_place(read_all(path, "responses", truth=False), lambda records: verdicts(records, **more)))


@pytest.mark.parametrize("ahead", [0, 1, 100])
def test_every_row_has_a_line_in_the_order_of_the_input(path, ahead):
    found = lines(path, ahead=ahead)
    assert [line["id"] for line in found] == NAMES
    assert [line.get("set_aside") for line in found] == ["malformed", None, "malformed", None, "malformed", "malformed", "too long"]
    assert [line["row"] for line in found if line.get("set_aside") == "malformed"] == [1, 3, 5, 6]
    assert "expected JSON" in found[0]["skipped"] and "responses" in found[2]["skipped"] and "again" in found[4]["skipped"]
    assert [line["best"] for line in found] == [None, 0, None, 0, None, None, None]


def test_the_account_adds_up(path):
    found = lines(path)
    summary = summarise(found)
    assert summary["account"] == {"verdict": 2, "malformed": 4, "too long": 1} and summary["rows"] == len(LINES)
    assert summary["first_malformed"].startswith("row 1: malformed: expected JSON")
    nothing = [found[1] | {"best": None, "totals": None}, found[1] | {"best": None}]
    assert summarise(nothing)["account"] == {"verdict": 0, "nothing parsed": 1, "abstained": 1}
    assert Counter(summary["account"]).total() == summary["rows"]


@pytest.mark.parametrize("done", range(len(LINES) + 1))
def test_killed_after_any_line_it_goes_on_with_the_next(path, done):
    whole = lines(path)
    items = as_before(read_all(path, "responses", truth=False), whole[:done])
    asked = []

    def left(records):
        return verdicts(asked.append(record) or record for record in records)

    again = list(in_place(islice(items, done, None), left))
    assert whole[:done] + again == whole
    assert [record.id for record in asked] == [line["id"] for line in whole[done:] if line.get("set_aside") != "malformed"]


def test_an_input_that_changed_is_refused(path):
    whole = lines(path)
    path.write_text(path.read_text().replace('"a"', '"z"'))
    with pytest.raises(DataError, match="line 2 of the output is about 'a', found 'z'"):
        list(as_before(read_all(path, "responses", truth=False), whole[:3]))
    with pytest.raises(DataError, match="found nothing"):
        list(as_before([], whole[:1]))


def test_without_a_record_nothing_is_asked(path):
    aside = SetAside(1, "x", "malformed", "why")

    def never(records):
        raise AssertionError("engines would start")

    assert [line["id"] for line in in_place([aside], never)] == ["x"]
    with pytest.raises(ValueError, match=r"no usable row among 1; row 1: why"):
        list(list_once(iter([aside]), path))
