"""Marks training rows that a model always gets right: RL has nothing to learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.loops.judge import running_judge, write_rows
from rlsys.algorithms.rejection import correct
from rlsys.config.schema import Config
from rlsys.data.mixtures import open_mixture
from rlsys.data.records import Record
from rlsys.io.resumable import ResumableRows
from rlsys.judging.requests import JudgeResult, judge_request
from rlsys.judging.results import check_resumed_items
from rlsys.system.terminal import print_text


def filter_rows(config: Config, output: Path, samples: int, rows: int | None, again: bool, console: Console) -> None:
    """Sample every row of data.train and write how many samples were right.

    Args:
        output: JSONL file, one row of `filter_row` per line; an interrupted call resumes after the last line.
        samples: samples per row; a row is easy if all of them are right.
        rows: number of rows, in the order of a run; None: all.
        again: discard the rows in `output`.
    """
    source = open_mixture(config.data, "train", config.seed)
    total = min(rows or len(source), len(source))

    def filtered(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
        with running_judge(config, console) as judge:
            asks = (judge_request(record, samples, "filter", config.seed) for record in records)
            yield from map(filter_row, judge.answer(asks, config.rollout.temperature))

    identity = {"samples": samples, "rows": rows, "config": config.model_dump(mode="json", exclude={"run"})}
    with ResumableRows(output, identity, again) as file:
        if not file.complete:
            records = check_resumed_items(islice(source.once(), total), islice(file.rows(), file.done))
            write_rows(file, total, records, filtered, console, "filtering the training rows")
            aside = ", ".join(f"{count:,} rows ({reason})" for reason, count in source.account.aside.items() if count)
            if aside:
                print_text(console, f"no record to ask about in {aside}")
        found = list(file.rows())
    easy, too_long = sum(row["easy"] for row in found), sum("skipped" in row for row in found)
    if too_long:
        print_text(
            console, f"{too_long:,} of {len(found):,} rows were not asked about: their prompt is longer than prompt.max_tokens", "yellow"
        )
    print_text(
        console, f"{output}: {len(found):,} rows, {easy:,} right {samples} times of {samples}; data.exclude={output} leaves those out"
    )


def filter_row(answer: JudgeResult) -> dict[str, Any]:
    """Return {id, source, right, samples, easy, failures, tokens}, and `skipped` if the prompt was too long."""
    record = answer.record
    right = sum(correct(sample, record) for sample in answer.samples)
    return {
        "id": record.id,
        "source": record.source,
        "right": right,
        "samples": len(answer.samples),
        "easy": bool(answer.samples) and right == len(answer.samples),
        "failures": sum(sample["scores"] is None for sample in answer.samples),
        "tokens": sum(sample["tokens"] for sample in answer.samples),
        **({"skipped": answer.rendered.skipped} if answer.rendered.skipped else {}),
    }
