"""Readers of conversational formats: ShareGPT pairs, KTO, and human votes of chatbot arenas."""

from __future__ import annotations

import json
from typing import Any

from rlsys.data.readers.dialogues import prompt_of, replies, split
from rlsys.data.readers.fields import DataError, Row, as_text, boolean, required, row_id, text, wrong
from rlsys.data.readers.formats import FIRST, SECOND, TIE, each_against
from rlsys.data.readers.messages import Messages, as_messages, written_out
from rlsys.data.records import Record

WINNERS = {"model_a": FIRST, "model_b": SECOND, "both_bad": TIE, "bothbad": TIE}


def sharegpt(row: Row) -> list[Record]:
    """ShareGPT pairs (LLaMA-Factory): conversations [{from, value}], chosen and rejected {from, value}, messages or texts; system."""
    context = prompt_of(row, "conversations")
    return each_against(row_id(row, "id"), "sharegpt", context, replies(row, "chosen", context), replies(row, "rejected", context))


def kto(row: Row) -> list[Record]:
    """KTO: messages [{role, content}] or conversations [{from, value}] that end with the answer, and label or kto_tag (boolean)."""
    key = "messages" if row.get("messages") is not None else "conversations"
    label = boolean(row, "label" if row.get("label") is not None else "kto_tag")
    context, (answer,) = _answered(prompt_of(row, key), key)
    return [Record(row_id(row, "id"), "kto", context, (answer,), (float(label),))]


def arena(row: Row) -> list[Record]:
    """MT-bench human judgements, Chatbot Arena conversations: conversation_a, conversation_b, winner (model_a, model_b or a tie), turn.

    Conversations are cut after turn number `turn` (from 1). Their common beginning is the context, the rest is judged. `question_id`
    identifies the question, not the row.
    """
    winner = text(row, "winner")
    if winner not in WINNERS and not winner.startswith("tie"):
        raise wrong("winner", '"model_a", "model_b" or a tie', winner)
    sides = [as_messages(required(row, key, "a list of messages"), key) for key in ("conversation_a", "conversation_b")]
    if row.get("turn") is not None:
        turn = int(_turn_count(row["turn"]))
        sides = [_first_turns(messages, turn) for messages in sides]
    context, answers = split(sides, ("conversation_a", "conversation_b"))
    return [Record(row_id(row, "id"), "arena", context, answers, WINNERS.get(winner, TIE))]


def arena_votes(row: Row) -> list[Record]:
    """Arena human preferences (55k): prompt, response_a, response_b, each a JSON list of turns as text; winner_model_a, _b, winner_tie."""
    asked, *sides = (_turns(row, key) for key in ("prompt", "response_a", "response_b"))
    if not all(len(side) == len(asked) for side in sides):
        raise DataError(f"response_a: expected an answer to each of the {len(asked)} prompts, found another number.", key="response_a")
    conversations = [_interleave(asked, side) for side in sides]
    first, second = (boolean(row, f"winner_model_{side}") for side in "ab")
    context, answers = split(conversations, ("response_a", "response_b"))
    return [Record(row_id(row, "id"), "arena_votes", context, answers, TIE if first == second else FIRST if first else SECOND)]


def _answered(messages: Messages, key: str) -> tuple[Messages, tuple[str]]:
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    if end == len(messages) or not end:
        raise wrong(key, "a conversation that ends with the assistant's answer", messages[-1]["role"])
    return messages[:end], (written_out(messages[end:]),)


def _turn_count(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise wrong("turn", "a number of turns", value)
    return value


def _first_turns(messages: Messages, turns: int) -> Messages:
    """Return the messages up to the answer to user turn number `turns`."""
    queries = [position for position, message in enumerate(messages) if message["role"] == "user"]
    return messages[: queries[turns]] if turns < len(queries) else messages


def _turns(row: Row, key: str) -> list[str]:
    value = required(row, key, "a list of texts")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise wrong(key, "a list of texts in JSON", value) from error
    if not isinstance(value, list) or not value:
        raise wrong(key, "a list of texts", value)
    return [as_text("" if said is None else said, f"{key}[{position}]", blank=True) for position, said in enumerate(value)]


def _interleave(asked: list[str], answers: list[str]) -> Messages:
    both = zip(asked, answers, strict=True)
    return tuple({"role": role, "content": said} for pair in both for role, said in zip(("user", "assistant"), pair, strict=True))
