"""`rlsys score`: judge generated texts by the rule that RL is trained with."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.commands.judge import Settings
from launch.console import only_json, row_output, to_stderr
from launch.options import AsJson
from rlsys.io.files import finite_json
from rlsys.system.terminal import Table


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of {text, rewards, order?, ...}.")],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL rows here instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Extract the scores from generated texts and judge them against ground truth.

    FILE holds one JSON object per line: text (a generation with boxed scores), rewards (ground truth, one per response), and optionally
    order (the original index of the response shown at each place), finish_reason (length: the text was cut off) and prompt (which may
    begin the model's thought). For each line the command writes {scores, reason, correct, reward}; reason is the reason for a parse
    failure. Where rewards have no unique maximum, correct and reward are null and set_aside holds the reason. The summary goes to stderr.

    Example: rlsys score texts.jsonl --output judged.jsonl
    Another: rlsys score released.jsonl prompt.scores.numbers=decimal prompt.scores.single=[1,10]
    """
    from rlsys.config.files import load_config
    from rlsys.rewards.extraction import ScoreFormat
    from rlsys.rewards.rescoring import read_texts, rescore

    score_format = ScoreFormat(**load_config(None, settings).prompt.scores.model_dump())
    judged: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    with only_json(as_json) as write_json, row_output(output, as_json) as rows_file:
        for text in read_texts(file):
            row = rescore(text, score_format)
            counts["rows"] += 1
            counts["correct"] += bool(row["correct"])
            counts["set_aside"] += "set_aside" in row
            if row["reason"] is not None:
                counts[f"reason {row['reason']}"] += 1
            if as_json:
                judged.append(row)
            if rows_file is not None:
                rows_file.write(json.dumps(finite_json(row)) + "\n")
        summary = _summary(counts)
        write_json({"rows": judged, "summary": summary})
        if not as_json:
            sys.stdout.flush()
            _print(summary)


def _summary(counts: Counter[str]) -> dict[str, Any]:
    """Return {rows, set_aside, correct, accuracy, reward (mean), parse_failures: {reason: rows}}.

    Means are over rows that are not set aside, None if there are none.
    """
    correct, aside = counts["correct"], counts["set_aside"]
    rows = counts["rows"] - aside
    failures = {name.removeprefix("reason "): number for name, number in sorted(counts.items()) if name.startswith("reason ")}
    accuracy = correct / rows if rows else None
    reward = (2 * correct - rows) / rows if rows else None
    figures = {"correct": correct, "accuracy": accuracy, "reward": reward}
    return {"rows": counts["rows"], "set_aside": aside, **figures, "parse_failures": failures}


def _print(summary: dict[str, Any]) -> None:
    table = Table("scored texts", "")
    labels = {"set_aside": "set aside: no single best response", "reward": "mean reward"}
    for name in ("rows", "set_aside", "correct", "accuracy", "reward"):
        value = summary[name]
        table.add_row(labels.get(name, name), f"{value:.3f}" if isinstance(value, float) else str(value))
    for reason, number in summary["parse_failures"].items():
        table.add_row(f"parse failure: {reason}", str(number))
    to_stderr().print(table)
