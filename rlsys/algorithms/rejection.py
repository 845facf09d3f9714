"""Rejection sampling (arXiv 2504.02495; docs/method.md, section 3): which trajectories are kept for fine-tuning, and why others are not.

Incorrect samples are rejected. If all samples of a row without a hint are correct, the row is too easy and all are rejected. Samples with a
hint (the ground truth in the prompt) are rejected only if they are incorrect. The hint is never part of the training data.
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
from rlsys.judging.requests import JudgeResult, RenderedRequest, SampleRow
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.rewards.rules import is_correct, rule_reward, unshuffle

KEPT, TOO_EASY, INCORRECT = "kept", "too easy", "incorrect"
"""Decisions on a sample; another one is `parse failure: REASON`."""

ROW_GROUP = 4096
"""Samples in one row group of a Parquet file."""

SAMPLED = pa.schema([*TRAJECTORIES, ("hinted", pa.bool_()), ("kept", pa.bool_()), ("why", pa.string())])
"""Schema of the table of all samples, kept or rejected."""


def correct(sample: SampleRow, record: Record, score_format: ScoreFormat = DEFAULT_FORMAT) -> bool:
    """Evaluate Eq. 10 for a sample; a parse failure is not correct."""
    return sample["scores"] is not None and is_correct(unshuffle(sample["scores"], sample["order"]), record.rewards, score_format.single)


def decisions(samples: Sequence[SampleRow], record: Record, hinted: bool, score_format: ScoreFormat = DEFAULT_FORMAT) -> list[str]:
    """Return the decision on each sample of a row: `kept`, or the reason for rejecting it."""
    correctness = [correct(sample, record, score_format) for sample in samples]
    if not hinted and all(correctness):
        return [TOO_EASY] * len(samples)
    return [_decision(sample, is_right) for sample, is_right in zip(samples, correctness)]


def _decision(sample: SampleRow, is_right: bool) -> str:
    if sample["scores"] is None:
        return f"parse failure: {sample['failure']}"
    return KEPT if is_right else INCORRECT


def table_rows(result: JudgeResult, step: int, group: int, score_format: ScoreFormat = DEFAULT_FORMAT) -> list[dict[str, Any]]:
    """Return the rows of SAMPLED for the samples of one result.

    Args:
        step: number of the round.
        group: number of the data row.
        score_format: how the scores were extracted.
    """
    record, hinted = result.record, result.rendered.request.hinted
    prompts = {tuple(prompt.order): prompt for prompt in result.rendered.prompts}
    rows = []
    for number, (sample, decision) in enumerate(zip(result.samples, decisions(result.samples, record, hinted, score_format))):
        prompt, is_right = prompts[tuple(sample["order"])], correct(sample, record, score_format)
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
                "correct": is_right,
                "reward": rule_reward(is_right),
                "finish_reason": "length" if sample.get("truncated") else "stop",
                "weight_version": 0,
                "prompt_token_count": len(prompt.token_ids),
                "token_count": sample["tokens"],
                "rollout_logprob": sample["logprob"] / sample["tokens"] if sample["tokens"] and "logprob" in sample else None,
                "hinted": hinted,
                "kept": decision == KEPT,
                "why": decision,
            }
        )
    return rows


def judged_rows(
    rendered_requests: Iterable[RenderedRequest],
    sampled: Iterable[dict[str, Any]],
    step: int = 0,
    requests_per_row: int = 1,
    score_format: ScoreFormat = DEFAULT_FORMAT,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of SAMPLED from requests and, in the same order, their rows as written by `JudgeResult.row`.

    Args:
        step: number of the round.
        requests_per_row: consecutive requests that belong to one data row.
        score_format: how the scores were extracted.

    Raises:
        DataError: a row belongs to another record than its request.
    """
    for number, (rendered, row) in enumerate(zip(rendered_requests, sampled, strict=True)):
        source, name = rendered.request.record.key
        if (row.get("source", source), row["id"]) != (source, name):
            raise DataError(f"sample of row {row['id']!r} where {name!r} was requested: the data has changed.")
        yield from table_rows(JudgeResult(rendered, row["samples"]), step, number // requests_per_row, score_format)


def write_sampled(path: Path, rows: Iterable[dict[str, Any]], score_format: ScoreFormat = DEFAULT_FORMAT) -> Counter[str]:
    """Write a table of SAMPLED atomically; return the number of samples for each decision."""
    schema = with_scores_of(SAMPLED, score_format)
    counts: Counter[str] = Counter()
    rows = iter(rows)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while portion := list(islice(rows, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(portion, schema=schema))
            counts.update(row["why"] for row in portion)
    return counts
