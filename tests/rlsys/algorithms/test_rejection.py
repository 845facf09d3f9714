"""Rejection sampling: the rule against a plain loop, the table's rows against what was asked, and the file against a kill."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms import rejection
from rlsys.data.chain import PromptItem
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest
from rlsys.rewards.extraction import ScoreFormat

FAILURES = ("no_box", "wrong_count")


def record(rewards: tuple[float, ...], name: str = "r1", source: str = "s") -> Record:
    responses = tuple(f"response {i}" for i in range(len(rewards)))
    return Record(name, source, ({"role": "user", "content": "?"},), responses, rewards, family="f")


def sample(order: tuple[int, ...], scores: list[float] | None, **more: object) -> dict[str, object]:
    """Scores as shown, or a failure."""
    told = {"order": list(order), "scores": scores, "logprob": -6.0, "tokens": 4, "text": f"text of {scores}"}
    return told | ({"failure": FAILURES[len(order) % 2]} if scores is None else {}) | more


@st.composite
def rows(draw: st.DrawFn) -> tuple[Record, list[dict[str, object]]]:
    """A record of 1 to 4 responses and up to 5 samples, few scores, so that ties and rows without a mistake are likely."""
    n = draw(st.integers(1, 4))
    best = draw(st.integers(0, n - 1))
    rewards = (float(draw(st.booleans())),) if n == 1 else tuple(1.0 if i == best else -float(i) for i in range(n))
    scores = st.lists(st.integers(0, 1) if n == 1 else st.integers(8, 10), min_size=n, max_size=n)
    drawn = draw(st.lists(st.tuples(st.permutations(range(n)), st.none() | scores), max_size=5))
    return record(rewards), [sample(tuple(order), found) for order, found in drawn]


def slow_correct(one: dict[str, object], row: Record) -> bool:
    """Place by place: nobody else is given as much as the best response; a single one is given what it deserves."""
    if one["scores"] is None:
        return False
    given_to = dict(zip(one["order"], one["scores"]))
    if len(given_to) == 1:
        return given_to[0] == row.rewards[0]
    best = max(given_to, key=lambda response: row.rewards[response])
    return all(score < given_to[best] for response, score in given_to.items() if response != best)


@given(rows(), st.booleans())
def test_why_a_sample_is_kept_or_not(drawn: tuple[Record, list[dict[str, object]]], hinted: bool) -> None:
    row, samples = drawn
    right = [slow_correct(one, row) for one in samples]
    expected = []
    for one, good in zip(samples, right):
        if one["scores"] is None:
            expected.append(f"parse failure: {one['failure']}")
        elif not good:
            expected.append("incorrect")
        else:
            expected.append("kept" if hinted or False in right else "too easy")
    assert rejection.decisions(samples, row, hinted) == expected
    assert [rejection.correct(one, row) for one in samples] == right


def test_one_wrong_sample_makes_a_row_worth_learning() -> None:
    row, right, wrong = record((1.0, 0.0)), sample((1, 0), [2, 9]), sample((1, 0), [9, 2])
    assert rejection.decisions([right, right], row, hinted=False) == ["too easy", "too easy"]
    assert rejection.decisions([right, right], row, hinted=True) == ["kept", "kept"]
    assert rejection.decisions([right, wrong], row, hinted=False) == ["kept", "incorrect"]
    assert rejection.decisions([right, sample((0, 1), None)], row, hinted=False) == ["kept", "parse failure: no_box"]
    assert rejection.decisions([wrong, sample((0, 1), [5, 5])], row, hinted=True) == ["incorrect", "incorrect"]
    assert rejection.decisions([], row, hinted=False) == []


@pytest.mark.parametrize(("score", "reward", "why"), [(4, 1.0, "kept"), (3, 1.0, "incorrect"), (2, 0.0, "kept"), (3, 0.0, "incorrect")])
def test_a_single_response_is_judged_by_the_range_that_was_asked_for(score: int, reward: float, why: str) -> None:
    one = sample((0,), [score])
    assert rejection.decisions([one], record((reward,)), True, ScoreFormat(single=(1, 5))) == [why]


def rendered_request(row: Record, orders: list[tuple[int, ...]], hinted: bool = False) -> RenderedRequest:
    different = list(dict.fromkeys(orders))
    prompts = [
        PromptItem(row, order, f"prompt {order}", [7] * (number + 3), [i for i, each in enumerate(orders) if each == order])
        for number, order in enumerate(different)
    ]
    return RenderedRequest(JudgeRequest(row, orders, list(range(len(orders))), hinted), prompts)


def test_the_rows_of_an_answer_by_hand() -> None:
    row = record((0.0, 1.0, 0.5))
    samples = [
        sample((1, 2, 0), [9, 4, 2]),
        sample((0, 1, 2), [9, 4, 2], truncated=True),
        sample((1, 2, 0), None, tokens=0, logprob=0.0),
    ]
    result = JudgeResult(rendered_request(row, [(1, 2, 0), (0, 1, 2), (1, 2, 0)]), samples)
    first, second, third = rejection.table_rows(result, step=2, group=5)
    assert set(first) == set(rejection.SAMPLED.names) - {"advantage", "trainer_logprob", "reference_logprob"}
    assert [(one["step"], one["group"], one["sample"]) for one in (first, second, third)] == [(2, 5, 0), (2, 5, 1), (2, 5, 2)]
    assert (first["prompt_id"], first["source"], first["family"], first["ground_truth"]) == ("r1", "s", "f", (0.0, 1.0, 0.5))
    assert (first["scores"], second["scores"], third["scores"]) == ((2, 9, 4), (9, 4, 2), None)  # in the record's own order
    assert [one["prompt"] for one in (first, second, third)] == ["prompt (1, 2, 0)", "prompt (0, 1, 2)", "prompt (1, 2, 0)"]
    assert [one["prompt_token_count"] for one in (first, second, third)] == [3, 4, 3]
    assert [(one["correct"], one["reward"], one["kept"]) for one in (first, second, third)] == [
        (True, 1.0, True),
        (False, -1.0, False),
        (False, -1.0, False),
    ]
    assert [one["why"] for one in (first, second, third)] == ["kept", "incorrect", "parse failure: wrong_count"]
    assert [one["finish_reason"] for one in (first, second, third)] == ["stop", "length", "stop"]
    assert [one["parse_failure"] for one in (first, second, third)] == [None, None, "wrong_count"]
    assert [one["rollout_logprob"] for one in (first, second, third)] == [-1.5, -1.5, None]  # a text of no token has none
    assert [one["weight_version"] for one in (first, second, third)] == [0, 0, 0]  # rejective fine-tuning samples once, before it tunes
    assert not any(one["hinted"] for one in (first, second, third))
    (told,) = rejection.table_rows(JudgeResult(rendered_request(row, [(1, 2, 0)], hinted=True), samples[:1]), 0, 0)
    assert told["hinted"] and told["why"] == "kept"


def test_what_was_sampled_belongs_to_what_was_asked() -> None:
    asked = [
        rendered_request(record((1.0, 0.0), name, source), [(0, 1)]) for source, name in (("s", "a"), ("s", "b"), ("t", "a"), ("t", "b"))
    ]
    written = [{"id": name, "source": source, "samples": [sample((0, 1), [9, 2])]} for source, name in ("sa", "sb", "ta", "tb")]
    found = list(rejection.judged_rows(asked, written, step=1, requests_per_row=2))
    assert [(one["source"], one["prompt_id"], one["group"], one["step"]) for one in found] == [
        ("s", "a", 0, 1),
        ("s", "b", 0, 1),
        ("t", "a", 1, 1),
        ("t", "b", 1, 1),
    ]
    without_sources = [{"id": one["id"], "samples": one["samples"]} for one in written]
    assert list(rejection.judged_rows(asked, without_sources, step=1, requests_per_row=2)) == found
    for other in ({"id": "z"}, {"source": "z"}):
        with pytest.raises(DataError, match="where 'b' was requested: the data has changed"):
            list(rejection.judged_rows(asked, [written[0], written[1] | other, *written[2:]]))
    with pytest.raises(ValueError, match="shorter"):
        list(rejection.judged_rows(asked, written[:3]))


def test_a_skipped_request_has_no_rows() -> None:
    asked = [rendered_request(record((1.0, 0.0), "a"), [(0, 1)]), rendered_request(record((1.0, 0.0), "b"), [(0, 1)])]
    written = [{"id": "a", "source": "s", "samples": []}, {"id": "b", "source": "s", "samples": [sample((0, 1), [2, 9])]}]
    (one,) = rejection.judged_rows(asked, written)
    assert (one["prompt_id"], one["group"]) == ("b", 1)


def table(*scores: list[float] | None) -> list[dict[str, object]]:
    rendered = rendered_request(record((1.0, 0.0)), [(0, 1)] * len(scores))
    return rejection.table_rows(JudgeResult(rendered, [sample((0, 1), s) for s in scores]), 0, 0)


def test_the_file_has_all_rows_in_order_for_any_row_group_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = table([9, 2], None, [2, 9], [5, 5], [9, 1], None, [3, 2])
    whole = tmp_path / "whole.parquet"
    counts = rejection.write_sampled(whole, iter(written))
    assert counts == Counter({"kept": 3, "incorrect": 2, "parse failure: no_box": 2}) == Counter(one["why"] for one in written)
    found = pq.read_table(whole)
    assert found.schema.equals(rejection.SAMPLED) and found.column("why").to_pylist() == [one["why"] for one in written]
    assert found.column("scores").to_pylist() == [one["scores"] and list(one["scores"]) for one in written]
    monkeypatch.setattr(rejection, "ROW_GROUP", 3)
    portions = tmp_path / "portions.parquet"
    assert rejection.write_sampled(portions, iter(written)) == counts
    assert pq.ParquetFile(portions).num_row_groups == 3 and pq.read_table(portions).equals(found)
    assert rejection.write_sampled(tmp_path / "none.parquet", []) == Counter()
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_scores_with_a_fraction_keep_it(tmp_path: Path) -> None:
    rejection.write_sampled(tmp_path / "rows.parquet", table([8.5, 2.0]), ScoreFormat(numbers="decimal"))
    assert pq.read_table(tmp_path / "rows.parquet").column("scores").to_pylist() == [[8.5, 2.0]]


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"

    def interrupted():
        yield from table([9, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rejection.write_sampled(path, interrupted())
    assert not path.exists()
    rejection.write_sampled(path, table([9, 2], [2, 9]))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        rejection.write_sampled(path, interrupted())
    assert path.read_bytes() == before
    rejection.write_sampled(path, table([2, 9]))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"] and pq.read_table(path).num_rows == 1
