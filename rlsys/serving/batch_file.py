"""Requests to a teacher as a file, in the format of OpenAI's batch API, and the answers to them as trajectories of a cold start.

    request  {"custom_id": "row-3-sample-0-1f0c9a7b2d44", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    answer   {"custom_id": "...", "response": {"status_code": 200, "body": {"choices": [...]}}, "error": null}
             or {"custom_id": "...", "completion": text}

A `custom_id` ends with a digest of the prompt, so that answers to other rows, or to another template, are not taken for answers to these.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.judging.requests import Sampling
from rlsys.prompts.rendering import UserTurns, hint_for, seed_for, shuffled
from rlsys.rewards.rules import is_correct, unshuffle
from rlsys.rewards.thoughts import after_thought
from rlsys.serving.endpoint import request_body

URL = "/v1/chat/completions"
KEPT, INCORRECT, FAILED, MISSING = "kept", "incorrect", "no answer: the endpoint failed", "no answer"
"""What became of a request; another outcome is `parse failure: REASON`."""


@dataclass(frozen=True)
class TeacherRequest:
    """A row, in one order of its responses, for one answer of a teacher."""

    record: Record
    order: tuple[int, ...]
    custom_id: str
    prompt: str
    """The user turn to learn: `prompt` of a row of sft.data."""
    asked: str
    """The user turn that the teacher gets: with a hint, if hints are asked for."""
    seed: int

    def line(self, model: str, sampling: Sampling) -> dict[str, Any]:
        """Return the line of the batch file."""
        return {"custom_id": self.custom_id, "method": "POST", "url": URL, "body": request_body(model, self.asked, sampling, self.seed)}


def teacher_requests(
    records: Iterable[tuple[int, Record]], turns: UserTurns, samples: int, seed: int, hinted: bool = False
) -> Iterator[TeacherRequest]:
    """Yield the requests of numbered records: `samples` for each, every one with the responses in an order of its own.

    Args:
        hinted: show the teacher the ground truth, where there is one.
    """
    for number, record in records:
        for sample in range(samples):
            order = tuple(shuffled(record.n, "teacher", seed, record.id, sample))
            hint = hint_for(record, order, turns.score_format.single) if hinted and record.has_truth else ""
            prompt, asked = turns.user_turn(record, order), turns.hinted_turn(record, order, hint)
            digest = hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()
            name = f"row-{number}-{'hinted' if hint else 'sample'}-{sample}-{digest}"
            yield TeacherRequest(record, order, name, prompt, asked, seed_for("teacher", seed, record.id, sample))


@dataclass
class Trajectories:
    """What became of the answers to `requests`: the rows to learn, and a count by outcome."""

    requests: Iterable[TeacherRequest]
    turns: UserTurns
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of every request."""

    def rows(self, answers: dict[str, Answer]) -> Iterator[dict[str, Any]]:
        """Yield {prompt, completion, id} of each answer that is kept: one that parses and, where its row has a ground truth, is right.

        Raises:
            DataError: no request has the id of an answer.
        """
        left = dict(answers)
        for request in self.requests:
            answer = left.pop(request.custom_id, None)
            outcome, text = (MISSING, "") if answer is None else self._judged(request, answer)
            self.outcomes[outcome] += 1
            if outcome == KEPT:
                yield {"prompt": request.prompt, "completion": text, "id": request.record.id}
        if left:
            raise DataError(
                f"{len(left)} of {len(answers)} answers belong to none of the requests, the first is {next(iter(left))!r}: the rows, the "
                "template, --samples, --seed or --hint differ from those that the requests were written with."
            )

    def _judged(self, request: TeacherRequest, answer: Answer) -> tuple[str, str]:
        """Return (outcome, the text without a thought)."""
        if answer.text is None:
            return FAILED, ""
        found = self.turns.score_format.extract(answer.text, request.record.n, answer.truncated)
        if found.scores is None:
            return f"parse failure: {found.failure}", ""
        scores, record = unshuffle(found.scores, request.order), request.record
        if record.has_truth and not is_correct(scores, record.rewards, self.turns.score_format.single):
            return INCORRECT, ""
        return KEPT, (after_thought(answer.text) or "").strip()


@dataclass(frozen=True)
class Answer:
    """A teacher's answer; `text` is None if the endpoint failed, or answered without one (a refusal, a content filter)."""

    text: str | None
    truncated: bool = False


def read_answers(rows: Iterable[tuple[int, dict[str, Any]]], file: str) -> dict[str, Answer]:
    """Return the answers of a batch's output file by `custom_id`.

    Raises:
        DataError: a row has another form, or an id occurs twice; the message names file and row.
    """
    found: dict[str, Answer] = {}
    for number, row in rows:
        name = row.get("custom_id")
        if not isinstance(name, str):
            raise DataError(f"custom_id: expected the id of a request, found {name!r}.", file=file, row=number)
        if name in found:
            raise DataError(f"custom_id: {name!r} was answered in an earlier row, too.", file=file, row=number)
        try:
            found[name] = _answer(row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            expected = '{"custom_id", "response": {"status_code", "body": {"choices": [...]}}} or {"custom_id", "completion": text}'
            raise DataError(f"expected {expected}, found the keys {', '.join(row)}.", file=file, row=number) from error
    return found


def _answer(row: dict[str, Any]) -> Answer:
    if "completion" in row:
        if not isinstance(row["completion"], str):
            raise ValueError
        return Answer(row["completion"])
    response = row.get("response")
    if row.get("error") or (isinstance(response, dict) and response.get("status_code", 200) != 200):
        return Answer(None)
    choices = row["response"]["body"]["choices"]
    if choices == []:
        return Answer(None)
    message, truncated = dict(choices[0]["message"]), choices[0].get("finish_reason") == "length"
    content = "" if message.get("content") is None and truncated else message.get("content")
    if not isinstance(content, str | None):
        raise ValueError
    return Answer(content, truncated)
