"""`rlsys score`: judge texts again by the rule that RL is trained with."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import UserError, finite, only_json, to_stderr, written_aside
from launch.options import AsJson
from rlsys.screen import Table


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of {text, rewards, order?}.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL rows here instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Extract the scores from generated texts and judge them against ground truth.

    FILE holds one JSON object per line: text (a generation with its scores in a box), rewards (ground truth, one per
    response), and optionally order (place by place, the index of the response that was shown there). For each the command
    writes {scores, reason, correct, reward}; reason says why a text could not be parsed. The summary goes to stderr.

    Example: rlsys score texts.jsonl --output judged.jsonl
    """
    from rlsys.scores import judge

    judged: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    with only_json(as_json) as write_json, ExitStack() as stack:
        sink = None
        if output is not None:
            sink = stack.enter_context(stack.enter_context(written_aside(output)).open("w", encoding="utf-8"))
        elif not as_json:
            sink = sys.stdout
        for where, text, rewards, order in read_rows(file):
            try:
                judgement = judge(text, rewards, order)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from error
            scores = None if judgement.scores is None else list(judgement.scores)
            row = {"scores": scores, "reason": judgement.failure, "correct": judgement.correct, "reward": judgement.reward}
            counts["rows"] += 1
            counts["correct"] += bool(judgement.correct)
            if judgement.failure is not None:
                counts[f"reason {judgement.failure}"] += 1
            if as_json:
                judged.append(row)
            if sink is not None:
                sink.write(json.dumps(finite(row)) + "\n")
        summary = _summary(counts)
        write_json({"rows": judged, "summary": summary})
        if not as_json:
            sys.stdout.flush()
            _print(summary)


def read_rows(file: Path) -> Iterator[tuple[str, str, tuple[float, ...], tuple[int, ...] | None]]:
    """(where it stands, text, rewards, order or None) of each row; empty lines are skipped.

    Raises:
        UserError: a row that is no such thing, by file and row number (from 1).
        DataError: the file cannot be read, is empty, or a row is no object.
    """
    from rlsys.readers import whole_rows

    for number, row in whole_rows(file):
        where = f"{file}, row {number}"
        yield where, *_checked(row, where)


def _checked(row: dict[str, Any], where: str) -> tuple[str, tuple[float, ...], tuple[int, ...] | None]:
    text, rewards, order = row.get("text"), row.get("rewards"), row.get("order")
    if not isinstance(text, str):
        raise UserError(f"{where}: text must be a string (found {_short(text)}).")
    if not isinstance(rewards, list) or not rewards or not all(_is_number(reward) for reward in rewards):
        raise UserError(f"{where}: rewards must be a list of numbers, one per response (found {_short(rewards)}).")
    if order is not None and not (isinstance(order, list) and all(type(place) is int for place in order)):
        raise UserError(f"{where}: order must be a list of integers (found {_short(order)}).")
    return text, tuple(float(reward) for reward in rewards), None if order is None else tuple(order)


def _is_number(value: Any) -> bool:
    """Whether JSON `value` is a finite number (bool is not; Python's JSON also reads NaN and Infinity)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _summary(counts: Counter[str]) -> dict[str, Any]:
    """{rows, correct, accuracy, reward (mean), parse_failures: {reason: rows}}; means are None without rows."""
    rows, correct = counts["rows"], counts["correct"]
    failures = {name.removeprefix("reason "): number for name, number in sorted(counts.items()) if name.startswith("reason ")}
    accuracy = correct / rows if rows else None
    reward = (2 * correct - rows) / rows if rows else None
    return {"rows": rows, "correct": correct, "accuracy": accuracy, "reward": reward, "parse_failures": failures}


def _print(summary: dict[str, Any]) -> None:
    table = Table("scored texts", "")
    for name in ("rows", "correct", "accuracy", "reward"):
        value = summary[name]
        table.add_row({"reward": "mean reward"}.get(name, name), f"{value:.3f}" if isinstance(value, float) else str(value))
    for reason, number in summary["parse_failures"].items():
        table.add_row(f"parse failure: {reason}", str(number))
    to_stderr().print(table)
