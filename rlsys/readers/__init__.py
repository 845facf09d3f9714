"""Readers of preference data: one small function per format users have, over JSONL, JSON and Parquet files.

`read` streams the records of a file; `RecordFile` gives random access with a few bytes of memory a record. Malformed rows are counted and
set aside (or raised, if strict) and rows without a unique best response are counted apart: see `Report`.
"""

from __future__ import annotations

from rlsys.readers.fields import DataError, check
from rlsys.readers.files import RecordFile, Report, read
from rlsys.readers.formats import READERS

__all__ = ["READERS", "DataError", "RecordFile", "Report", "check", "read"]
