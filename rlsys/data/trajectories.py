"""The trajectory table that every step writes: one row per sample, with its prompt, judgement and what the learner made of it.

Key and units are those of `rlsys.data.chain`, whose example this continues: record "r1" with rewards (1.0, 0.0), shown in the order [1, 0].
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from rlsys.data.readers.fields import DataError
from rlsys.rewards.extraction import ScoreFormat

TRAJECTORIES = pa.schema(
    [
        ("step", pa.int32()),  # key across files: the step that trained on the batch, from 1
        ("group", pa.int32()),  # key
        ("sample", pa.int32()),  # key
        ("prompt_id", pa.string()),  # Record.id, unique within its source
        ("source", pa.string()),  # Record.source
        ("family", pa.string()),  # Record.family, or null
        ("order", pa.list_(pa.int32())),  # order[p]: index in the record of the response shown at position p
        ("ground_truth", pa.list_(pa.float64())),  # Record.rewards, in the record's own order
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("scores", pa.list_(pa.int32())),  # points, in the record's own order; null after a parse failure; see with_scores_of
        ("parse_failure", pa.string()),  # reason (docs/judging.md), or null
        ("correct", pa.bool_()),  # Eq. 10
        ("reward", pa.float32()),  # Eq. 11: +1 or -1
        ("advantage", pa.float32()),  # group-relative reward (GRPO), dimensionless
        ("finish_reason", pa.string()),  # "stop" | "length"
        ("weight_version", pa.int64()),  # as in Sample
        ("prompt_token_count", pa.int32()),  # tokens
        ("token_count", pa.int32()),  # generated tokens
        ("rollout_logprob", pa.float32()),  # nats, mean over the generated tokens, by the engine
        ("trainer_logprob", pa.float32()),  # the same by the trainer; null if the sample was not trained on
        ("reference_logprob", pa.float32()),  # the same by the reference model; null as trainer_logprob
    ]
)
"""The table of a step, trajectories/step_000001.parquet. Key: (group, sample) within a step; one row per sample.

Example: {"step": 1, "group": 0, "sample": 1, "prompt_id": "r1", "order": [1, 0], "ground_truth": [1.0, 0.0], "text": "... \\boxed{2, 9}",
"scores": [9, 2], "correct": True, "reward": 1.0, "advantage": 0.7, ...}.
"""

REWARD_COLUMNS = pa.schema(
    [
        ("judge_score", pa.float32()),  # the judge's mean score of the sample, joined over parts; null without a judgement
        ("gold", pa.bool_()),  # whether the sample passes the row's checks, or null
        ("bt", pa.float32()),  # score of the Bradley-Terry model, or null
    ]
)
"""Further columns of a policy's trajectories (`rlsys policy`). There order, ground_truth, scores and parse_failure are null, `correct` is
`gold`, and `reward` is whatever was trained on, null in a group without one."""

REWARDS = pa.schema([TRAJECTORIES.field("group"), TRAJECTORIES.field("sample"), TRAJECTORIES.field("reward"), *REWARD_COLUMNS])
"""A policy's rewards. Key: (group, sample)."""


def with_scores_of(schema: pa.Schema, score_format: ScoreFormat) -> pa.Schema:
    """Return `schema` with the type of `scores` that `score_format` yields: decimals are float64."""
    if score_format.numbers == "integer":
        return schema
    index = schema.get_field_index("scores")
    return schema.set(index, pa.field("scores", pa.list_(pa.float64())))


RowKey = tuple[str | int | None, str]
"""(source, id), or (group, id)."""


def row_keys(table: pa.Table, by_group: bool = False) -> list[RowKey]:
    """Return the row that each sample of a trajectory table belongs to: (source, id), as in `Record.key`.

    Args:
        by_group: return (group, id) instead, as for tables written before they had a source.
    """
    name = "group" if by_group or "source" not in table.column_names else "source"
    first = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return list(zip(first, table["prompt_id"].to_pylist()))


LEARNED_FROM = ("prompt_id", "prompt", "text", "correct", "parse_failure")
"""Columns that the meta reward model requires."""
HELDOUT_FILES = "heldout_"
"""File name prefix of the held-out tables among a run's trajectories."""


def trajectory_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files that paths and globs match, each once. Globs skip a run's held-out tables; a path may name one.

    Raises:
        DataError: no patterns, or a pattern that matches no file.
    """
    if not patterns:
        raise DataError("meta_rm.data: no trajectories given; expected files or globs, for example [runs/latest/trajectories/*.parquet].")
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if Path(pattern) not in found:
            found = [path for path in found if not path.name.startswith(HELDOUT_FILES)]
        if not found:
            raise DataError(f"meta_rm.data: {pattern}: no such file; expected the trajectories/*.parquet of a run.")
        files.update(dict.fromkeys(found))
    return list(files)
