"""Output rows: one for every input row, in input order, with a reason if there is no verdict, also after a restart."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from rlsys.data.readers import DataError, SetAside, read_all
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeResult, RenderedRequest, judge_request
from rlsys.judging.results import check_resumed_items, in_input_order, result_row, row_status
from rlsys.judging.summary import require_record, summarise_rows
from rlsys.judging.voting import STRATEGIES, Options, find_strategy

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
    """Return the rows of identical samples, reading records ahead as engines do."""
    waiting = []
    for record in records:
        waiting.append(record)
        if len(waiting) > ahead:
            yield verdict(waiting.pop(0), skip)
    for record in waiting:
        yield verdict(record, skip)


def verdict(record: Record, skip: str) -> dict:
    too_long = "its prompt has 9 tokens, more than 8" if record.id == skip else None
    rendered = RenderedRequest(judge_request(record, 2, "k"), [], too_long)
    samples = [] if too_long else [{"order": [0, 1], "scores": [9, 2], "logprob": -1.0, "tokens": 3, "text": ""}] * 2
    return result_row(JudgeResult(rendered, samples), find_strategy("vote"), Options(), 0, (0, 1), False)


def lines(path, **more) -> list[dict]:
    return list(in_input_order(read_all(path, "responses", truth=False), lambda records: verdicts(records, **more)))


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
    summary = summarise_rows(found)
    assert summary["account"] == {"verdict": 2, "malformed": 4, "too long": 1} and summary["rows"] == len(LINES)
    assert summary["first_malformed"].startswith("row 1: malformed: expected JSON")
    nothing = [found[1] | {"best": None, "totals": None}, found[1] | {"best": None}]
    assert summarise_rows(nothing)["account"] == {"verdict": 0, "nothing parsed": 1, "abstained": 1}
    assert Counter(summary["account"]).total() == summary["rows"]


@pytest.mark.parametrize("done", range(len(LINES) + 1))
def test_a_killed_run_resumes_after_the_last_line(path, done):
    whole = lines(path)
    items = check_resumed_items(read_all(path, "responses", truth=False), whole[:done])
    asked = []

    def left(records):
        return verdicts(asked.append(record) or record for record in records)

    again = list(in_input_order(islice(items, done, None), left))
    assert whole[:done] + again == whole
    assert [record.id for record in asked] == [line["id"] for line in whole[done:] if line.get("set_aside") != "malformed"]


def test_a_changed_input_is_rejected(path):
    whole = lines(path)
    path.write_text(path.read_text().replace('"a"', '"z"'))
    with pytest.raises(DataError, match="line 2 of the output is about 'a', found 'z'"):
        list(check_resumed_items(read_all(path, "responses", truth=False), whole[:3]))
    with pytest.raises(DataError, match="found nothing"):
        list(check_resumed_items([], whole[:1]))


def test_the_judge_is_not_called_without_records(path):
    aside = SetAside(1, "x", "malformed", "why")

    def never(records):
        raise AssertionError("engines would start")

    assert [line["id"] for line in in_input_order([aside], never)] == ["x"]
    with pytest.raises(ValueError, match=r"no usable row among 1; row 1: why"):
        list(require_record(iter([aside]), path))


def judged(record: Record, scores: list[list[float] | None], name: str = "vote", single=(0, 1), text=False, **options) -> dict:
    """Return the row of a record whose responses were shown in its own order."""
    order = list(range(record.n))
    known = {"order": order, "logprob": -1.0, "certainty": 1.0, "tokens": 3, "text": "said"}
    samples = [
        known | {"scores": each, "meta_reward": float(-place)} | ({"failure": "no_box"} if each is None else {})
        for place, each in enumerate(scores)
    ]
    rendered = RenderedRequest(judge_request(record, len(scores), "k", order=order), [])
    return result_row(JudgeResult(rendered, samples), find_strategy(name), Options(**options), 0, single, text)


def labelled(*rewards: float, source: str = "s") -> Record:
    return Record("a", source, ({"role": "user", "content": "?"},), tuple("wxyz"[: len(rewards)]), rewards)


def test_all_fields_of_a_line():
    found = judged(labelled(0.0, 1.0), [[2, 9], None, [3, 4]])
    samples = found.pop("samples")
    assert found == {
        "id": "a",
        "source": "s",
        "n": 2,
        "k": 3,
        "totals": [5.0, 13.0],
        "best": 1,
        "tied": False,
        "abstained": False,
        "parsed": 2,
        "spent": 3,
        "failures": {"no_box": 1},
        "tokens": 9,
        "prompt_tokens": 0,
        "gold": 1,
        "correct": True,
    }
    assert [each["scores"] for each in samples] == [[2, 9], None, [3, 4]] and all("text" not in each for each in samples)
    assert [each["text"] for each in judged(labelled(0.0, 1.0), [[2, 9]], text=True)["samples"]] == ["said"]
    json.dumps(judged(labelled(1.0), [[1], None]))  # plain numbers and booleans, of a single response too


@pytest.mark.parametrize(
    ("rewards", "has_labels", "truth"),
    [
        ((1.0, 0.0), True, True),
        ((1.0, 1.0), True, False),
        ((0.0, 0.0, -1.0), True, False),
        ((0.0, 0.0, 1.0), True, True),
        ((0.0,), True, True),
        ((1.0,), True, True),
        ((1.0, 0.0), False, False),
        ((0.0,), False, False),
    ],
)
def test_without_a_unique_best_response_there_is_no_correctness(rewards, has_labels, truth):
    record = replace(labelled(*rewards), labelled=has_labels)
    assert record.has_truth == truth
    for scores in ([[1.0] * record.n], [[0.0] * record.n], [None]):
        found = judged(record, scores)
        assert (found["gold"] is None) == (found["correct"] is None) == (not truth)
    rendered = RenderedRequest(judge_request(record, 1, "k"), [], "its prompt has 9 tokens, more than 8")
    skipped = result_row(JudgeResult(rendered), find_strategy("vote"), Options(), 0, (0, 1), False)
    assert (skipped["gold"] is None) == (not truth) and skipped["correct"] is (False if truth else None)
    assert (skipped["best"], skipped["totals"], skipped["k"], row_status(skipped)) == (None, None, 0, "too long")


def test_a_withheld_or_missing_verdict_is_not_correct():
    record = labelled(1.0, 0.0)
    assert [judged(record, [[9, 8]], "abstain", margin=margin)["correct"] for margin in (1.0, 1.5)] == [True, False]
    withheld, nothing = judged(record, [[9, 8]], "abstain", margin=1.5), judged(record, [None, None])
    assert (row_status(withheld), withheld["best"], withheld["totals"]) == ("abstained", None, [9.0, 8.0])
    assert (row_status(nothing), nothing["best"], nothing["totals"], nothing["correct"]) == ("nothing parsed", None, None, False)
    assert row_status(judged(record, [[9, 8]])) == "verdict" and row_status({"skipped": "as older files say it"}) == "too long"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize(("score", "reward", "right"), [(4, 1.0, True), (4, 0.0, False), (2, 0.0, True), (2, 1.0, False), (3, 1.0, False)])
def test_a_single_response_is_correct_on_its_side_of_the_middle(name, score, reward, right):
    assert judged(labelled(reward), [[score]] * 4, name, single=(1, 5))["correct"] is right
    assert judged(labelled(reward), [None] * 4, name, single=(1, 5))["correct"] is False


@pytest.mark.parametrize(
    ("name", "options", "scores", "right"),
    [
        ("vote", {}, [[1], [0], [0]], False),
        ("majority", {}, [[1], [1], [0]], True),  # it counts winners, so the mean of all scores decides
        ("adaptive", {}, [[1], [0], [0]], False),
        ("meta", {"k_meta": 1}, [[1], [0], [0]], True),  # the first has the highest meta reward
        ("meta", {"k_meta": 2}, [[1], [0], [0]], False),  # 1/2 is neither
        ("meta", {"k_meta": 2}, [[1], None, [1]], True),
        ("synthesis", {}, [[0], [0], [1]], True),
        ("synthesis", {}, [[1], [1], [0]], False),
        ("synthesis", {}, [[1], [1], None], False),  # no verdict, whatever the drafts said
    ],
)
def test_a_single_response_is_judged_by_the_scores_that_the_strategy_uses(name, options, scores, right):
    found = judged(labelled(1.0), scores, name, **options)
    assert found["correct"] is right
    assert row_status(found) == "verdict" or not right
