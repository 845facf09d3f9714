"""Rejection sampling (arXiv 2504.02495; docs/method.md, section 3): which trajectories are worth learning from, and why not.

Of a row's samples without a hint the incorrect ones are rejected, and all of them where none is incorrect: the row is too easy. Of
those with a hint (the ground truth stood in the prompt) only the incorrect ones are. The hint is never learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.trajectories import TRAJECTORIES, with_scores_of
from rlsys.io.files import atomic_write
from rlsys.judging.requests import JudgeResult, RenderedRequest, Sample
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.rewards.rules import is_correct, rule_reward, unshuffle

KEPT, TOO_EASY, INCORRECT = "kept", "too easy", "incorrect"
"""Why a sample is kept or not; besides `parse failure: REASON`."""

AT_ONCE = 4096
"""Samples of one row group of a file."""

SAMPLED = pa.schema([*TRAJECTORIES, ("hinted", pa.bool_()), ("kept", pa.bool_()), ("why", pa.string())])
"""The table of everything that was sampled."""


def correct(sample: Sample, record: Record, score_format: ScoreFormat = DEFAULT_FORMAT) -> bool:
    """Eq. 10; a sample that did not parse is not correct."""
    return sample["scores"] is not None and is_correct(unshuffle(sample["scores"], sample["order"]), record.rewards, score_format.single)


def decisions(samples: Sequence[Sample], record: Record, hinted: bool, score_format: ScoreFormat = DEFAULT_FORMAT) -> list[str]:
    """Why each sample of a row is kept or rejected."""
    right = [correct(sample, record, score_format) for sample in samples]
    if not hinted and all(right):
        return [TOO_EASY] * len(samples)
    return [_decision(sample, good) for sample, good in zip(samples, right)]


def _decision(sample: Sample, right: bool) -> str:
    if sample["scores"] is None:
        return f"parse failure: {sample['failure']}"
    return KEPT if right else INCORRECT


def table_rows(answer: JudgeResult, step: int, group: int, score_format: ScoreFormat = DEFAULT_FORMAT) -> list[dict[str, Any]]:
    """The rows of SAMPLED for the samples of one answer.

    Args:
        step: number of the round.
        group: number of the row that was asked.
        score_format: how the scores were read.
    """
    record, hinted = answer.rendered.request.record, answer.rendered.request.hinted
    prompts = {tuple(prompt.order): prompt for prompt in answer.rendered.prompts}
    rows = []
    for number, (sample, why) in enumerate(zip(answer.samples, decisions(answer.samples, record, hinted, score_format))):
        prompt, right = prompts[tuple(sample["order"])], correct(sample, record, score_format)
        rows.append(
            {
                "step": step,
                "group": group,
                "sample": number,
                "prompt_id": record.id,
                "source": record.source,
                "family": record.family,
                "order": sample["order"],
                "ground_truth": record.rewards,
                "prompt": prompt.text,
                "text": sample["text"],
                "scores": None if sample["scores"] is None else unshuffle(sample["scores"], sample["order"]),
                "parse_failure": sample.get("failure"),
                "correct": right,
                "reward": rule_reward(right),
                "finish_reason": "length" if sample.get("truncated") else "stop",
                "weight_version": 0,
                "prompt_token_count": len(prompt.tokens),
                "token_count": sample["tokens"],
                "rollout_logprob": sample["logprob"] / sample["tokens"] if sample["tokens"] else None,
                "hinted": hinted,
                "kept": why == KEPT,
                "why": why,
            }
        )
    return rows


def judged_rows(
    asked: Iterable[RenderedRequest],
    sampled: Iterable[dict[str, Any]],
    step: int = 0,
    asks_of_a_row: int = 1,
    score_format: ScoreFormat = DEFAULT_FORMAT,
) -> Iterator[dict[str, Any]]:
    """Rows of SAMPLED, from what was asked and, in the same order, what `JudgeResult.row` wrote of it.

    Raises:
        DataError: something else was asked then.
    """
    for number, (question, row) in enumerate(zip(asked, sampled, strict=True)):
        source, name = question.request.record.key
        if (row.get("source", source), row["id"]) != (source, name):
            raise DataError(f"sample of row {row['id']!r} where {name!r} was asked: the data has changed.")
        yield from table_rows(JudgeResult(question, row["samples"]), step, number // asks_of_a_row, score_format)


def write_sampled(path: Path, rows: Iterable[dict[str, Any]], score_format: ScoreFormat = DEFAULT_FORMAT) -> Counter[str]:
    """Write a table of SAMPLED aside, then rename; how many samples were kept or rejected, by reason."""
    schema = with_scores_of(SAMPLED, score_format)
    counts: Counter[str] = Counter()
    rows = iter(rows)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while portion := list(islice(rows, AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(portion, schema=schema))
            counts.update(row["why"] for row in portion)
    return counts
