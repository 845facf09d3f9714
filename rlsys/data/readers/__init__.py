"""Readers of preference data: one small function per format, over JSON, CSV, Parquet and Arrow files.

`read` streams the records of a file; `RecordFile` gives random access with a few bytes of memory per record. Malformed rows are set aside
and counted (or raised, if strict), and rows without a unique best response are counted separately: see `Report`. `strict_rows` reads
smaller files, in which every row must be readable.
"""

from __future__ import annotations

from rlsys.data.readers.fields import DataError, check
from rlsys.data.readers.files import RecordFile, Report, SetAside, read, read_all
from rlsys.data.readers.registry import READERS, formats_of
from rlsys.data.readers.sources import strict_rows

__all__ = ["READERS", "DataError", "RecordFile", "Report", "SetAside", "check", "formats_of", "read", "read_all", "strict_rows"]
