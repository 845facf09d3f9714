"""Arrow schemas of the batches that travel between actors, and of the trajectory table that every step writes.

A batch moves as one record batch: REQUESTS -> (rollout actors) -> SAMPLES -> (reward actor) -> LEARNER and TRAJECTORIES. Its key is
(group, sample): `group` numbers the prompts of the batch from 0, `sample` the samples of a group. Rows of one group are adjacent.

Units: token ids are indices into the model's vocabulary, counts are in tokens, log-probabilities are natural (nats). The examples
continue the one in `rlsys.data.batches`: record "r1" with rewards (1.0, 0.0), shown in the order [1, 0].
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
        ("group", pa.int32()),  # key: index of the prompt in the batch, from 0
        ("prompt_tokens", TOKENS),  # token ids
        ("seeds", pa.list_(pa.int64())),  # sampling seeds, one per requested sample: the length is the group size
    ]
)
"""What to sample. Key: group; one row per prompt.

Example, two samples of one prompt: {"group": 0, "prompt_tokens": [151644, 872], "seeds": [1830521917, 402731]}.
"""

SAMPLES = pa.schema(
    [
        ("group", pa.int32()),  # key, as in REQUESTS
        ("sample", pa.int32()),  # key: index in the group, 0 .. group size - 1
        ("tokens", TOKENS),  # generated token ids, including the end-of-sequence id if it was generated
        ("logprobs", FLOATS),  # nats, one per token: the engine's, at the sampling temperature
        ("text", pa.string()),  # decoded, without special tokens
        ("finish_reason", pa.string()),  # "stop" | "length"
        ("weight_version", pa.int64()),  # version of the weights that generated it, of its oldest token if they changed midway
        ("certainty", pa.float32()),  # self-certainty, nats, mean over the tokens; null unless rollout.self_certainty
    ]
)
"""What the engines generated. Key: (group, sample), the sort order; one row per sample.

Example: {"group": 0, "sample": 1, "tokens": [3838, 151645], "logprobs": [-0.7, -0.1], "text": "... \\boxed{2, 9}", "finish_reason": "stop",
"weight_version": 3, "certainty": None}.
"""

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
        ("weight_version", pa.int64()),  # as in SAMPLES
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


def with_scores_of(schema: pa.Schema, score_format: ScoreFormat) -> pa.Schema:
    """Return `schema` with the type of `scores` that `score_format` yields: decimals are float64."""
    if score_format.numbers == "integer":
        return schema
    index = schema.get_field_index("scores")
    return schema.set(index, pa.field("scores", pa.list_(pa.float64())))


LEARNER = pa.schema(
    [
        ("group", pa.int32()),  # key with the row's position in the group; not unique by itself
        ("prompt_tokens", TOKENS),  # token ids
        ("tokens", TOKENS),  # generated token ids, the ones that the loss covers
        ("rollout_logprobs", FLOATS),  # nats, one per token, by the engine; zeros in supervised rows
        ("advantage", pa.float32()),  # group-relative reward (GRPO), dimensionless; 1 in supervised rows
    ]
)
"""What the learner trains on: one row per sample of the groups that have an advantage. Rows follow the order of (group, sample).

Example: {"group": 0, "prompt_tokens": [151644, 872], "tokens": [3838, 151645], "rollout_logprobs": [-0.7, -0.1], "advantage": 0.7}.
"""

GROUPS = pa.schema(
    [
        ("group", pa.int32()),  # key: index of the prompt in the batch, from 0
        ("prompt_id", pa.string()),  # Record.id
        ("source", pa.string()),  # Record.source
        ("family", pa.string()),  # Record.family, or null
        ("order", pa.list_(pa.int32())),  # order[p]: index in the record of the response shown at position p
        ("rewards", pa.list_(pa.float64())),  # ground truth, in the record's own order; any scale
        ("prompt", pa.string()),
        ("prompt_tokens", TOKENS),  # token ids
    ]
)
"""What the reward actor needs about each prompt to judge its samples. Key: group; one row per prompt.

Example: {"group": 0, "prompt_id": "r1", "source": "llmbar", "family": None, "order": [1, 0], "rewards": [1.0, 0.0],
"prompt": "... Response 1: Bergen ...", "prompt_tokens": [151644, 872]}.
"""

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
