"""Answers of a batch file, in the shapes that endpoints write."""

from __future__ import annotations

import pytest

from rlsys.data.readers import DataError
from rlsys.serving.batch_file import Answer, read_answers


def row(*choices: dict) -> dict:
    return {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": list(choices)}}, "error": None}


def said(finish_reason: str = "stop", **message: object) -> dict:
    return {"message": {"role": "assistant"} | message, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    "answer, expected",
    [
        (row(said(content="yes")), Answer("yes")),
        (row(said("length", content="ye")), Answer("ye", truncated=True)),
        (row(said("length", content=None)), Answer("", truncated=True)),
        (row(said("length")), Answer("", truncated=True)),
        (row(said(refusal="I cannot judge this.")), Answer(None)),
        (row(said(content=None, refusal="I cannot judge this.")), Answer(None)),
        (row(said("content_filter")), Answer(None)),
        (row(), Answer(None)),
    ],
)
def test_an_answer_without_text_is_a_failure_of_its_own_row(answer, expected):
    assert read_answers([(1, answer), (2, answer | {"custom_id": "b"})], "a.jsonl") == {"a": expected, "b": expected}


@pytest.mark.parametrize("choice", [{}, {"message": "yes"}, {"message": {"content": 3}}, "yes"])
def test_another_form_is_named(choice):
    with pytest.raises(DataError, match=r"(?s)a\.jsonl.*row 7.*expected \{"):
        read_answers([(7, row(choice))], "a.jsonl")
