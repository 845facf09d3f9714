"""`rlsys score`: judge texts again by the rule that RL is trained with."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from launch.commands.judge import Settings
from launch.console import UserError, only_json, to_stderr
from launch.options import AsJson
from rlsys.io.files import atomic_output, finite_json
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.rewards.extraction import ScoreFormat


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of {text, rewards, order?, ...}.")],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL rows here instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Extract the scores from generated texts and judge them against ground truth.

    FILE holds one JSON object per line: text (a generation with its scores in a box), rewards (ground truth, one per
    response), and optionally order (place by place, the index of the response that was shown there), finish_reason
    (length: it was cut off) and prompt (which may have begun the model's thought). For each the command writes {scores,
    reason, correct, reward}; reason says why a text could not be parsed. Where the rewards have no single highest one,
    nothing is correct or wrong: correct and reward are null, set_aside says why. The summary goes to stderr.

    Example: rlsys score texts.jsonl --output judged.jsonl
    Another: rlsys score released.jsonl prompt.scores.numbers=decimal prompt.scores.single=[1,10]
    """
    from rlsys.config.files import load_config
    from rlsys.rewards.extraction import ScoreFormat

    score_format = ScoreFormat(**load_config(None, settings).prompt.scores.model_dump())

    judged: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    with only_json(as_json) as write_json, ExitStack() as stack:
        sink = None
        if output is not None:
            sink = stack.enter_context(stack.enter_context(atomic_output(output)).open("w", encoding="utf-8"))
        elif not as_json:
            sink = sys.stdout
        for text in read_rows(file):
            row = _judged(text, score_format)
            counts["rows"] += 1
            counts["correct"] += bool(row["correct"])
            counts["set_aside"] += "set_aside" in row
            if row["reason"] is not None:
                counts[f"reason {row['reason']}"] += 1
            if as_json:
                judged.append(row)
            if sink is not None:
                sink.write(json.dumps(finite_json(row)) + "\n")
        summary = _summary(counts)
        write_json({"rows": judged, "summary": summary})
        if not as_json:
            sys.stdout.flush()
            _print(summary)


class Text(NamedTuple):
    """A row of the file."""

    where: str
    text: str
    rewards: tuple[float, ...]
    order: tuple[int, ...] | None
    truncated: bool
    thought: str
    """The mark of a thought that its prompt begins."""


def _judged(row: Text, score_format: ScoreFormat) -> dict[str, Any]:
    from rlsys.data.records import NoUniqueBest
    from rlsys.rewards.rules import check_order, judge, unshuffle

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
        raise UserError(f"{row.where}: {error}") from error
    return {"scores": scores, "reason": failure, "correct": correct, "reward": reward}


def read_rows(file: Path) -> Iterator[Text]:
    """The rows of a file; empty lines are skipped.

    Raises:
        UserError: a row that is no such thing, by file and row number (from 1).
        DataError: the file cannot be read, is empty, or a row is no object.
    """
    from rlsys.data.readers import strict_rows

    for number, row in strict_rows(file):
        where = f"{file}, row {number}"
        yield _checked(row, where)


def _checked(row: dict[str, Any], where: str) -> Text:
    from rlsys.rewards.thoughts import open_mark

    text, rewards, order = row.get("text"), row.get("rewards"), row.get("order")
    if not isinstance(text, str):
        raise UserError(f"{where}: text must be a string (found {_short(text)}).")
    if not isinstance(rewards, list) or not rewards or not all(_is_number(reward) for reward in rewards):
        raise UserError(f"{where}: rewards must be a list of numbers, one per response (found {_short(rewards)}).")
    if order is not None and not (isinstance(order, list) and all(type(place) is int for place in order)):
        raise UserError(f"{where}: order must be a list of integers (found {_short(order)}).")
    finish_reason, prompt = row.get("finish_reason"), row.get("prompt")
    if finish_reason not in (None, "stop", "length"):
        raise UserError(f"{where}: finish_reason must be stop or length (found {_short(finish_reason)}).")
    if not isinstance(prompt, str | None):
        raise UserError(f"{where}: prompt must be a string (found {_short(prompt)}).")
    order = None if order is None else tuple(order)
    return Text(where, text, tuple(map(float, rewards)), order, finish_reason == "length", open_mark(prompt or ""))


def _is_number(value: Any) -> bool:
    """Whether JSON `value` is a finite number (bool is not; Python's JSON also reads NaN and Infinity)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _summary(counts: Counter[str]) -> dict[str, Any]:
    """{rows, set_aside, correct, accuracy, reward (mean), parse_failures: {reason: rows}}; means are of the rows that are not set aside,
    None without any."""
    correct, aside = counts["correct"], counts["set_aside"]
    rows = counts["rows"] - aside
    failures = {name.removeprefix("reason "): number for name, number in sorted(counts.items()) if name.startswith("reason ")}
    accuracy = correct / rows if rows else None
    reward = (2 * correct - rows) / rows if rows else None
    figures = {"correct": correct, "accuracy": accuracy, "reward": reward}
    return {"rows": counts["rows"], "set_aside": aside, **figures, "parse_failures": failures}


def _print(summary: dict[str, Any]) -> None:
    table = Table("scored texts", "")
    words = {"set_aside": "set aside: no single best response", "reward": "mean reward"}
    for name in ("rows", "set_aside", "correct", "accuracy", "reward"):
        value = summary[name]
        table.add_row(words.get(name, name), f"{value:.3f}" if isinstance(value, float) else str(value))
    for reason, number in summary["parse_failures"].items():
        table.add_row(f"parse failure: {reason}", str(number))
    to_stderr().print(table)
