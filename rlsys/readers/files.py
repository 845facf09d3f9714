"""From a file to records: streaming (`read`) and random access (`RecordFile`), with a report of what was set aside and why."""

from __future__ import annotations

import difflib
import operator
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsys.readers.fields import DataError, Row, check
from rlsys.readers.formats import READERS
from rlsys.readers.sources import Source, open_source
from rlsys.records import NoUniqueBest, Record

MESSAGES = 20
"""Malformed rows whose message a report keeps; all of them are counted."""
ID_LIMIT = 1_000_000
"""Ids of a file that are watched for repetition (64-bit hashes, under 100 MB); ids made from row numbers cannot repeat and are not."""


@dataclass
class Report:
    """What reading a file came to; `rlsys data check` prints it. Counts grow while the file is being read."""

    file: str = ""
    format: str = ""
    rows: int = 0
    """Rows seen; blank lines are not rows."""
    records: int = 0
    """Good records. A row may hold several (ppe_best_of_k, rewardbench2)."""
    no_unique_best: int = 0
    """Records set aside because no single response is the best: ties and splits, in good rows."""
    malformed_count: int = 0
    """Rows set aside because they are not what the format says."""
    malformed: list[tuple[int, str]] = field(default_factory=list)
    """(row, message) of the first `MESSAGES` of them."""
    dropped_responses: int = 0
    """Responses without a score that were left out of good rows (ultrafeedback)."""
    unchecked_ids: int = 0
    """Records whose id was not compared with earlier ones, as it came after `ID_LIMIT` others."""
    responses: dict[int, int] = field(default_factory=dict)
    """Good records by their number of responses."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict of all fields; `malformed` as [{row, message}]."""
        return asdict(self) | {
            "malformed": [{"row": row, "message": message} for row, message in self.malformed],
            "responses": {str(n): count for n, count in sorted(self.responses.items())},
        }

    def summary(self) -> str:
        """The report in lines for a person."""
        by_n = ", ".join(f"{count:,} with {n} response{'s' if n > 1 else ''}" for n, count in sorted(self.responses.items()))
        lines = [f"{self.file} ({self.format}): {self.rows:,} rows, {self.records:,} records{f' ({by_n})' if by_n else ''}"]
        if self.no_unique_best:
            lines.append(f"no unique best response, set aside: {self.no_unique_best:,}")
        if self.dropped_responses:
            lines.append(f"responses without a score, left out: {self.dropped_responses:,}")
        if self.unchecked_ids:
            lines.append(f"ids not checked for repetition (after the first {ID_LIMIT:,}): {self.unchecked_ids:,}")
        if self.malformed_count:
            lines.append(f"malformed rows, set aside: {self.malformed_count:,}")
            lines.extend(f"  {message}" for _, message in self.malformed)
            if self.malformed_count > len(self.malformed):
                lines.append(f"  ... and {self.malformed_count - len(self.malformed):,} more")
        return "\n".join(lines)


def read(path: str | Path, format: str, *, strict: bool = False, report: Report | None = None) -> Iterator[Record]:
    """The records of a file in its own order, streamed: memory does not grow with the file (`.json` excepted).

    Args:
        path: a .jsonl, .jsonl.gz, .json (a list, or {"data": [...]}) or .parquet file.
        format: a name in READERS.
        strict: raise at the first malformed row instead of counting it. Rows without a unique best are counted either way.
        report: filled while reading.

    Raises:
        DataError: at once for an unknown format or a file that cannot be opened; while iterating for a damaged or empty file and,
            if `strict`, for a malformed row. It names file, row and key.
    """
    path, report = Path(path), report if report is not None else Report()
    reader, source = _reader(format), open_source(path)
    return (record for _, _, _, record in _records(path, source, format, reader, strict, report))


class RecordFile(Sequence[Record]):
    """Random access to the good records of a file, without holding them: 14 bytes of index a record (.json is held whole).

    The first pass reads every row, so that all problems are known (`report`) before anything else starts. Parquet is then decoded a row
    group at a time: ask for the records of a batch by `take`, which visits each row group once. A .jsonl.gz is unpacked to a temporary
    file.

    Raises:
        DataError: as `read`; later, if the file changes under it.
    """

    def __init__(self, path: str | Path, format: str, strict: bool = False):
        self._path, self._reader = Path(path), _reader(format)
        self._source = open_source(self._path)
        self.report = Report()
        self._places, self._numbers, self._parts = array("Q"), array("I"), array("H")
        for number, place, part, _ in _records(self._path, self._source, format, self._reader, strict, self.report):
            self._places.append(place)
            self._numbers.append(number)
            self._parts.append(part)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices: they would hold many records
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._path} has {len(self)} records, index {index} is outside.")
        row = Row(self._source.fetch(self._places[index]), _name(self._path, self._numbers[index]))
        return self._reader(row)[self._parts[index]]

    def take(self, indices: Sequence[int]) -> list[Record]:
        """The records at `indices`, in that order, fetched in the file's order."""
        records = {index: self[index] for index in sorted(set(indices))}
        return [records[index] for index in indices]


def _reader(format: str) -> Callable[[Row], list[Record]]:
    if format not in READERS:
        nearest = difflib.get_close_matches(format, READERS, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise DataError(f"unknown format {format!r}.{hint} Known formats: {', '.join(READERS)}.")
    return READERS[format]


def _name(path: Path, number: int) -> str:
    return f"{path.stem.removesuffix('.jsonl')}:{number}"


def _records(
    path: Path, source: Source, format: str, reader: Callable[[Row], list[Record]], strict: bool, report: Report
) -> Iterator[tuple[int, int, int, Record]]:
    """Good records as (row number, place, which of the row's records, record); the rest goes into the report."""
    report.file, report.format = str(path), format
    seen: set[int] = set()
    for number, place, raw in source.scan():
        report.rows += 1
        try:
            if isinstance(raw, DataError):
                raise raw
            row = Row(raw, _name(path, number))
            good, ties = _convert(row, reader)
            if row.has_id:
                _check_ids([record for _, record in good], seen, report)
        except DataError as error:
            placed = error.at(str(path), number)
            report.malformed_count += 1
            if len(report.malformed) < MESSAGES:
                report.malformed.append((number, str(placed)))
            if strict:
                raise placed from error
            continue
        report.no_unique_best += ties
        report.dropped_responses += row.dropped
        for part, record in good:
            report.records += 1
            report.responses[record.n] = report.responses.get(record.n, 0) + 1
            yield number, place, part, record
    if not report.rows:
        raise DataError("the file holds no rows.", file=str(path))


def _convert(row: Row, reader: Callable[[Row], list[Record]]) -> tuple[list[tuple[int, Record]], int]:
    """(good records with their place among the row's records, how many had no unique best)."""
    try:
        records = reader(row)
    except NoUniqueBest:
        return [], 1
    good, ties = [], 0
    for part, record in enumerate(records):
        try:
            check(record)
            good.append((part, record))
        except NoUniqueBest:
            ties += 1
    return good, ties


def _check_ids(records: list[Record], seen: set[int], report: Report) -> None:
    """Raise DataError if an id of the same source came before; hashes, since the ids of a large file would not fit."""
    hashes = [hash((record.source, record.id)) for record in records]
    for record, key in zip(records, hashes, strict=True):
        if key in seen:
            raise DataError(f"id: expected an id that no earlier row has, found {record.id!r} again.", key="id")
    room = max(0, ID_LIMIT - len(seen))
    seen.update(hashes[:room])
    report.unchecked_ids += max(0, len(hashes) - room)
