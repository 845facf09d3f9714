"""Files of rows for the tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsys.data.readers import Report, read
from rlsys.data.records import Record


def write(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSONL; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, format: str, **options: Any) -> tuple[list[Record], Report]:
    """Read all records of a file, and the reader's report on its rows."""
    report = Report()
    return list(read(path, format, report=report, **options)), report
