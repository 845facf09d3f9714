"""The trajectory table that every step writes: one row per sample, with its prompt, judgement and what the learner made of it.

Key and units are those of `rlsys.data.chain`, whose example this continues: record "r1" with rewards (1.0, 0.0), shown in the order [1, 0].
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


# --- reading ---------------------------------------------------------------------------------------------------------


def read_trajectories(path: Path, required: Sequence[str], never_null: Sequence[str] = (), others: bool = True) -> pa.Table:
    """Read a table of trajectories.

    Args:
        required: columns that it must have.
        never_null: those of them that must not be null in any row.
        others: read its other columns, too.

    Raises:
        DataError: the file is not Parquet, lacks a column, or a column has another type or a null.
    """
    try:
        table = pq.read_table(path, columns=None if others else list(required))
    except NOT_PARQUET as error:
        raise unreadable(path, error) from error
    check_columns(table.schema, path, required)
    for name in never_null:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py() + 1
            raise DataError(f"{name}: expected {table[name].type}, found null.", key=name, file=str(path), row=row)
    return table


NOT_PARQUET = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises for a file that is not Parquet, or is damaged; the last is for the name of a column."""


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is not Parquet, or is damaged."""
    return DataError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}). Write it again, or restore it from a copy.")


def check_columns(schema: pa.Schema, path: Path, required: Iterable[str]) -> None:
    """Check the columns of a table of trajectories.

    Raises:
        DataError: a `required` column is missing, or one of TRAJECTORIES or REWARD_COLUMNS has another type, or is there twice.
    """
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise unreadable(path, error) from error
    if missing := sorted(set(required) - set(names)):
        raise DataError(f"{path}: has no column {', '.join(missing)}; expected a table of trajectories of a run.")
    for field in (*TRAJECTORIES, *REWARD_COLUMNS):
        found = schema.get_all_field_indices(field.name)
        if len(found) > 1:
            raise DataError(f"{path}: has {len(found)} columns {field.name}; expected a table of trajectories of a run.")
        # Decimal scores have the type of `with_scores_of`, which whole ones fit.
        expected = pa.list_(pa.float64()) if field.name == "scores" else field.type
        if found and not _fits(actual := schema.field(found[0]).type, expected):
            raise DataError(f"{path}: {field.name}: expected a column of {expected}, found {actual}.", key=field.name)


def _fits(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column may have type `actual`: that of `expected` in another width, or a number for a decimal one, or nothing but nulls."""
    is_list = pa.types.is_list
    if is_list(expected):
        return pa.types.is_null(actual) or is_list(actual) and _fits(actual.value_type, expected.value_type)
    numbers = pa.types.is_integer(actual), pa.types.is_floating(actual)
    kinds = [
        (pa.types.is_boolean, pa.types.is_boolean(actual)),
        (pa.types.is_string, pa.types.is_string(actual) or pa.types.is_large_string(actual)),
        (pa.types.is_integer, numbers[0]),
        (pa.types.is_floating, any(numbers)),
    ]
    return pa.types.is_null(actual) or any(is_kind(expected) and fits for is_kind, fits in kinds)


def rows_of(batch: pa.RecordBatch | pa.Table, path: Path, first: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of trajectories. Bytes of a text that are not UTF-8, such as lone surrogates, become U+FFFD.

    Args:
        first: number of the first row in the file, for messages.

    Raises:
        DataError: order, scores and ground truth of a row do not fit together; names file and row.
    """
    for number, values in enumerate(zip(*map(_values, batch.columns)), first):
        row = dict(zip(batch.schema.names, values))
        try:
            check_judgement(row)
        except DataError as error:
            raise error.at(str(path), number) from error
        yield row


def check_judgement(row: dict[str, Any]) -> None:
    """Check that order, scores and ground truth of a sample, as far as it has them, are about the same responses.

    Raises:
        DataError: they are not; names the key.
    """
    order, scores, truth = (row.get(name) for name in ("order", "scores", "ground_truth"))
    n = next((len(value) for value in (order, scores, truth) if value is not None), 0)
    if order is not None and (None in order or sorted(order) != list(range(n))):
        raise DataError(f"order: expected each of 0 .. {n - 1} once, the index of the response at each place, found {order}.", key="order")
    if scores is not None and order is None and "order" in row:
        raise DataError("order: expected the index of the response at each place, found null beside scores.", key="order")
    for name, value in (("scores", scores), ("ground_truth", truth)):
        if value is not None and (None in value or len(value) != n or not n):
            raise DataError(f"{name}: expected {n or 'one or more'} numbers, one per response, found {value}.", key=name)


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return list(column.to_pylist())
    return [None if value is None else value.decode("utf-8", "replace") for value in column.cast(pa.large_binary()).to_pylist()]


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
