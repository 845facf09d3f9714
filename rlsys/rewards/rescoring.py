"""Judging generated texts from a file by the rule that RL is trained with (`rlsys score`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rlsys.data.readers import strict_rows
from rlsys.data.records import NoUniqueBest
from rlsys.rewards.extraction import ScoreFormat
from rlsys.rewards.rules import check_order, judge, unshuffle
from rlsys.rewards.thoughts import open_mark


class GeneratedText(NamedTuple):
    """A generated text with its ground truth."""

    where: str
    """File and row, for error messages."""
    text: str
    rewards: tuple[float, ...]
    order: tuple[int, ...] | None
    truncated: bool
    thought: str
    """Opening mark of a thought that the prompt begins, or empty."""


def rescore(row: GeneratedText, score_format: ScoreFormat) -> dict[str, Any]:
    """Judge a text; return {scores, reason, correct, reward}, and `set_aside` if the ground truth has no unique best response.

    Raises:
        ValueError: order or ground truth are invalid; the message says where.
    """
    n = len(row.rewards)
    order = range(n) if row.order is None else row.order
    score_format = replace(score_format, thought=row.thought)
    try:
        check_order(order, n)
        scores, failure, correct, reward = judge(row.text, row.rewards, order, score_format, row.truncated)
    except NoUniqueBest as error:
        shown, failure = score_format.extract(row.text, n, row.truncated)
        scores = None if shown is None else unshuffle(shown, order)
        return {"scores": scores, "reason": failure, "correct": None, "reward": None, "set_aside": str(error)}
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    return {"scores": scores, "reason": failure, "correct": correct, "reward": reward}


def read_texts(file: Path) -> Iterator[GeneratedText]:
    """Read the rows of a JSONL file; blank lines are skipped.

    Raises:
        ValueError: a row is invalid; the message names file and row number (from 1).
        DataError: the file cannot be read or is empty, or a row is not a JSON object.
    """
    for number, row in strict_rows(file):
        yield _parse_row(row, f"{file}, row {number}")


def _parse_row(row: dict[str, Any], where: str) -> GeneratedText:
    text, rewards, order = row.get("text"), row.get("rewards"), row.get("order")
    if not isinstance(text, str):
        raise ValueError(f"{where}: text must be a string (found {_short(text)}).")
    if not isinstance(rewards, list) or not rewards or not all(_is_number(reward) for reward in rewards):
        raise ValueError(f"{where}: rewards must be a list of numbers, one per response (found {_short(rewards)}).")
    if order is not None and not (isinstance(order, list) and all(type(place) is int for place in order)):
        raise ValueError(f"{where}: order must be a list of integers (found {_short(order)}).")
    finish_reason, prompt = row.get("finish_reason"), row.get("prompt")
    if finish_reason not in (None, "stop", "length"):
        raise ValueError(f"{where}: finish_reason must be stop or length (found {_short(finish_reason)}).")
    if not isinstance(prompt, str | None):
        raise ValueError(f"{where}: prompt must be a string (found {_short(prompt)}).")
    order = None if order is None else tuple(order)
    return GeneratedText(where, text, tuple(map(float, rewards)), order, finish_reason == "length", open_mark(prompt or ""))


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number; bool is not, and Python also reads NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
