"""Arrow schemas of what travels between actors and of the trajectory table that every step leaves behind.

A batch moves as one record batch: REQUESTS -> (rollout actors) -> SAMPLES -> (reward actor) -> TRAJECTORIES.
Rows of one group are neighbours; `group` numbers the prompts of the batch from 0.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from rlsys.data.readers.fields import DataError
from rlsys.rewards.extraction import ScoreFormat

TOKENS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())

REQUESTS = pa.schema(
    [
        ("group", pa.int32()),  # which prompt of the batch
        ("prompt_tokens", TOKENS),
        ("seeds", pa.list_(pa.int64())),  # one per sample wanted: its length is the group size
    ]
)
"""What to sample: one row per prompt."""

SAMPLES = pa.schema(
    [
        ("group", pa.int32()),
        ("sample", pa.int32()),  # 0 .. group size - 1
        ("tokens", TOKENS),  # generated ids, the end-of-sequence id included when it was generated
        ("logprobs", FLOATS),  # the engine's log-probability of each of them, at the sampling temperature
        ("text", pa.string()),  # special tokens left out
        ("finish_reason", pa.string()),  # "stop" | "length"
        ("weight_version", pa.int64()),  # of the weights that generated it
        ("certainty", pa.float32()),  # self-certainty, mean over the tokens; null unless rollout.self_certainty
    ]
)
"""What came back: one row per sample, ordered by (group, sample)."""

TRAJECTORIES = pa.schema(
    [
        ("step", pa.int32()),
        ("group", pa.int32()),
        ("sample", pa.int32()),
        ("prompt_id", pa.string()),  # Record.id, unique within its source
        ("source", pa.string()),  # Record.source
        ("family", pa.string()),
        ("order", pa.list_(pa.int32())),  # order[p]: original index of the response shown at place p
        ("ground_truth", pa.list_(pa.float64())),  # Record.rewards, in the record's own order
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("scores", pa.list_(pa.int32())),  # in the record's own order; null after a parse failure; see with_scores_of
        ("parse_failure", pa.string()),  # reason, or null
        ("correct", pa.bool_()),
        ("reward", pa.float32()),  # +1 or -1
        ("advantage", pa.float32()),
        ("finish_reason", pa.string()),
        ("weight_version", pa.int64()),
        ("prompt_token_count", pa.int32()),
        ("token_count", pa.int32()),
        ("rollout_logprob", pa.float32()),  # means over the generated tokens
        ("trainer_logprob", pa.float32()),  # null where the sample was not trained on
        ("reference_logprob", pa.float32()),
    ]
)
"""The table of a step: trajectories/step_000001.parquet."""


def with_scores_of(schema: pa.Schema, score_format: ScoreFormat) -> pa.Schema:
    """`schema` with the type that scores have as they are read: decimals are float64."""
    if score_format.numbers == "integer":
        return schema
    place = schema.get_field_index("scores")
    return schema.set(place, pa.field("scores", pa.list_(pa.float64())))


LEARNER = pa.schema(
    [
        ("group", pa.int32()),
        ("prompt_tokens", TOKENS),
        ("tokens", TOKENS),
        ("rollout_logprobs", FLOATS),
        ("advantage", pa.float32()),
    ]
)
"""What the learner trains on: one row per sample of the groups that carry an advantage; supervised rows have advantage 1."""

GROUPS = pa.schema(
    [
        ("group", pa.int32()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("family", pa.string()),
        ("order", pa.list_(pa.int32())),
        ("rewards", pa.list_(pa.float64())),  # ground truth, in the record's own order
        ("prompt", pa.string()),
        ("prompt_tokens", TOKENS),
    ]
)
"""What the reward actor must know about each prompt of a batch to judge its samples."""

RowKey = tuple[str | int | None, str]


def row_keys(table: pa.Table, by_group: bool = False) -> list[RowKey]:
    """Which row each sample of a trajectory table belongs to: (source, id), as `Record.key`.

    Args:
        by_group: (group, id) instead; so it is in tables of before there was a source, too.
    """
    name = "group" if by_group or "source" not in table.column_names else "source"
    first = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return list(zip(first, table["prompt_id"].to_pylist()))


LEARNED_FROM = ("prompt_id", "prompt", "text", "correct", "parse_failure")
"""Columns that the meta reward model cannot do without."""
HELDOUT_FILES = "heldout_"
"""How the held-out tables among a run's trajectories begin."""


def trajectory_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, each once. A glob leaves out a run's held-out tables; a path may name one.

    Raises:
        DataError: nothing named, or a pattern without a file.
    """
    if not patterns:
        raise DataError("meta_rm.data: no trajectories named; expected files or globs, for example [runs/latest/trajectories/*.parquet].")
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if Path(pattern) not in found:
            found = [path for path in found if not path.name.startswith(HELDOUT_FILES)]
        if not found:
            raise DataError(f"meta_rm.data: {pattern}: no such file; expected the trajectories/*.parquet of a run.")
        files.update(dict.fromkeys(found))
    return list(files)
