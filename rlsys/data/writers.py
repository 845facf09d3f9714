"""Writing records (`Record.to_json`) as JSONL or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK_ROWS = 4096
RECORD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("context", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("responses", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.float64())),
        ("strength", pa.float64()),
        ("reference", pa.string()),
        ("family", pa.string()),
        ("worked", pa.struct([("criteria", pa.string()), ("notes", pa.list_(pa.string())), ("scores", pa.list_(pa.int32()))])),
        ("labelled", pa.bool_()),
        ("checks", pa.string()),  # JSON: the arguments differ from rule to rule
    ]
)


def write_jsonl(rows: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Write `rows` in chunks, so that memory use does not depend on their number."""
    with pq.ParquetWriter(path, RECORD_SCHEMA) as writer:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            writer.write_table(record_table(chunk))


def record_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return `rows` as a table with RECORD_SCHEMA."""
    rows = [row | {"checks": json.dumps(row["checks"])} if "checks" in row else row for row in rows]
    return pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)
