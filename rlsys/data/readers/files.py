"""Records of a file: streamed (`read`) or by row number (`RecordFile`), with a report of the rows set aside and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsys.data.accounts import MALFORMED, NO_UNIQUE_BEST, RowCounts
from rlsys.data.readers.compression import COMPRESSED_SUFFIXES
from rlsys.data.readers.fields import DataError, Row, check, printable, renamed
from rlsys.data.readers.raw import RawRow, Source
from rlsys.data.readers.registry import READERS, Reader, formats_of, reader_of
from rlsys.data.readers.sources import first_rows, open_source
from rlsys.data.records import NoUniqueBest, Record

USABLE = "usable"
OUTCOMES = ("", USABLE, NO_UNIQUE_BEST, MALFORMED)
FIRST_ROWS = 1024
"""Rows that are checked when a file is opened for random access."""
MESSAGES = 20
"""Malformed rows whose message a report keeps; all are counted."""
ID_LIMIT = 1_000_000
"""Ids of a file that are checked for duplicates (64-bit hashes, under 100 MB); ids generated from row numbers are not checked."""


@dataclass
class Report:
    """Statistics of reading a file, updated while it is read; `rlsys data check` prints them."""

    file: str = ""
    format: str = ""
    rows_in_file: int | None = None
    """Total rows, of which `rows` have been seen; None if the file is streamed."""
    rows: int = 0
    """Rows seen; blank lines are not rows."""
    records: int = 0
    """Good records. A row may yield several (ppe_best_of_k, rewardbench2)."""
    no_unique_best: int = 0
    """Records of well-formed rows set aside because no single response is the best: ties and split votes."""
    malformed_count: int = 0
    """Rows set aside because they violate the format."""
    malformed: list[tuple[int, str]] = field(default_factory=list)
    """(row, message) of the first `MESSAGES` of them."""
    dropped_responses: int = 0
    """Responses without a score, dropped from good rows (ultrafeedback)."""
    unchecked_ids: int = 0
    """Records after the first `ID_LIMIT`, whose ids were not checked for duplicates."""
    responses: dict[int, int] = field(default_factory=dict)
    """Good records by their number of responses."""
    bytes: int = 0
    """Total size of the files read."""
    passed_over: list[str] = field(default_factory=list)
    """Files of a folder that were not read: empty, or not data files by their names."""

    @property
    def unusable(self) -> float:
        """Fraction of the rows seen that are malformed, 0..1. Rows without a unique best are not malformed."""
        return self.malformed_count / max(1, self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict of all fields; `malformed` as [{row, message}]."""
        return asdict(self) | {
            "unusable": self.unusable,
            "malformed": [{"row": row, "message": message} for row, message in self.malformed],
            "responses": {str(n): count for n, count in sorted(self.responses.items())},
        }

    def summary(self) -> str:
        """Return the report as text, several lines."""
        by_n = ", ".join(f"{count:,} with {n} response{'s' if n > 1 else ''}" for n, count in sorted(self.responses.items()))
        of = "" if self.rows_in_file is None else f" of {self.rows_in_file:,}"
        lines = [f"{self.file} ({self.format}): {self.rows:,}{of} rows, {self.records:,} records{f' ({by_n})' if by_n else ''}"]
        if self.no_unique_best:
            lines.append(f"no unique best response, set aside: {self.no_unique_best:,}")
        if self.dropped_responses:
            lines.append(f"responses without a score, dropped: {self.dropped_responses:,}")
        if self.passed_over:
            lines.append(f"files skipped: {', '.join(self.passed_over)}")
        if self.unchecked_ids:
            lines.append(f"ids not checked for duplicates (after the first {ID_LIMIT:,}): {self.unchecked_ids:,}")
        if self.malformed_count:
            lines.append(f"malformed rows, set aside: {self.malformed_count:,}")
            lines.extend(f"  {message}" for _, message in self.malformed)
            if self.malformed_count > len(self.malformed):
                lines.append(f"  ... and {self.malformed_count - len(self.malformed):,} more")
        return "\n".join(lines)


def read(
    path: str | Path,
    format: str,
    *,
    strict: bool = False,
    report: Report | None = None,
    truth: bool = True,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Record]:
    """Stream the records of a file in its own order, in constant memory (except for JSON documents).

    Args:
        path: as for `open_source`: a file, a folder, a glob pattern or a Hub dataset.
        format: a name in READERS.
        strict: raise at the first malformed row instead of counting it. Rows without a unique best are counted either way.
        report: updated while reading.
        truth: set aside records without a unique best response, as training needs one; False: yield them too.
        columns: the file's names of the format's keys, where they differ: {"prompt": "question"}.

    Raises:
        DataError: immediately, for an unknown format or a file that cannot be opened; while iterating, for a damaged or empty file and,
            if `strict`, for a malformed row. It names file, row and key.
    """
    rows = read_all(path, format, strict=strict, report=report, truth=truth, columns=columns)
    return (row for row in rows if isinstance(row, Record))


@dataclass(frozen=True)
class SetAside:
    """A row without a usable record."""

    row: int
    """1-based row number; in JSONL the line number."""
    id: str
    """The row's own id, or the one generated for its record."""
    reason: str
    """MALFORMED or NO_UNIQUE_BEST of `rlsys.data.accounts`."""
    message: str
    """The error."""


def read_all(
    path: str | Path,
    format: str,
    *,
    strict: bool = False,
    report: Report | None = None,
    truth: bool = True,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Record | SetAside]:
    """Like `read`, but also yield the rows without a usable record, in place."""
    path, report = Path(path), report if report is not None else Report()
    source = _open(path, format)
    usable = _Check(path, source, format, strict, report, ids=set(), truth=truth, columns=columns)
    return _with_set_aside(_not_empty(source.scan(), path), usable)


def _with_set_aside(rows: Iterator[tuple[int, RawRow]], usable: _Check) -> Iterator[Record | SetAside]:
    for number, raw in rows:
        records = usable(number, raw)
        yield from records
        if not records:
            own = raw.get("id") if isinstance(raw, dict) else None
            name = printable(str(own)) if type(own) in (str, int) else usable.name(number)
            yield SetAside(number, name, OUTCOMES[usable.outcome], usable.fault)


class RecordFile:
    """Random access to the rows of a file; each is read and checked when fetched, so that files of any size open quickly.

    Opening counts the rows and checks the first `FIRST_ROWS`, continuing until one is usable, so that a wrong format fails early. `report`
    counts every row once, however often it is fetched. Duplicate ids are detected only where rows are read in order: while iterating, and
    if `strict`. Memory: one byte per row, the cache of `Source.fetch`, and the whole of a .json.

    Args:
        path, format, columns: as for `read`.
        strict: check every row when opening, and raise at the first malformed one. This reads the whole file.
        max_unusable: the largest fraction of malformed rows, 0..1, among those seen when opening or, after `FIRST_ROWS` rows, so far.

    Raises:
        DataError: as `read`; if no row is usable, or more than `max_unusable` are malformed; later, if the file changes on disk.
    """

    def __init__(
        self, path: str | Path, format: str, strict: bool = False, columns: Mapping[str, str] | None = None, max_unusable: float = 1.0
    ):
        self._path, self._format, self._columns, self._max_unusable = Path(path), format, columns or {}, max_unusable
        self.report = Report()
        self._source = _open(self._path, format)
        self._stamp = self._stat()
        self._usable = _Check(self._path, self._source, format, strict, self.report, columns=columns)
        self.report.rows_in_file = len(self)
        self._seen = bytearray(len(self))
        """Outcome of each row, an index in OUTCOMES; 0: not read yet."""
        at_opening = _Check(self._path, self._source, format, strict, self.report, ids=set() if strict else None, columns=columns)
        for index, (number, raw) in enumerate(_not_empty(self._source.scan(), self._path)):
            if index >= FIRST_ROWS and self.report.records and not strict:
                break
            at_opening(number, raw)
            self._seen[index] = at_opening.outcome
        if not self.report.records:
            first = f" The first: {self.report.malformed[0][1]}" if self.report.malformed else ""
            fitting = formats_of(first_rows(self._path), self._columns)
            hint = f" Formats that read them: {', '.join(fitting)}." if fitting and format not in fitting else ""
            raise DataError(f"none of the {len(self):,} rows is usable as {format}.{first}{hint}", file=str(path))
        self._refuse_unusable()

    def __len__(self) -> int:
        """Number of rows, good or bad."""
        return len(self._source)

    def __iter__(self) -> Iterator[Record]:
        """Stream all good records in the file's own order."""
        return read(self._path, self._format, columns=self._columns)

    def scan(self, account: RowCounts) -> Iterator[Record]:
        """Like `__iter__`; counts the rows read and set aside in `account`, which must be new."""
        report = Report()

        def count_aside() -> None:
            aside = {NO_UNIQUE_BEST: report.no_unique_best, MALFORMED: report.malformed_count}
            account.rows += sum(aside.values()) - sum(account.aside[reason] for reason in aside)
            account.aside.update({reason: count - account.aside[reason] for reason, count in aside.items()})

        for record in read(self._path, self._format, report=report, columns=self._columns):
            count_aside()
            account.rows += 1
            yield record
        count_aside()

    def skip_reason(self, index: int) -> str:
        """Return why row `index`, for which `fetch` returned no record, is set aside."""
        return OUTCOMES[self._seen[index]]

    def find(self, ids: Set[str]) -> Iterator[Record]:
        """Yield the good records with one of the `ids`. Reads the whole file."""
        return (record for record in self if record.id in ids)

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        """Return the good records of each of the rows `indices`: none, one or, in some formats, several.

        Args:
            indices: 0-based row numbers, in any order.
            upcoming: row numbers that will be fetched next, for prefetching: see `Source.fetch`.
        """
        if self._stat() != self._stamp:
            raise DataError("the file has changed since it was opened: restart, or restore it.", file=str(self._path))
        records = []
        for index, (number, raw) in zip(indices, self._source.fetch(indices, upcoming), strict=True):
            records.append(self._usable(number, raw, count=not self._seen[index]))
            self._seen[index] = self._usable.outcome
        if self.report.rows >= FIRST_ROWS:
            self._refuse_unusable()
        return records

    def _refuse_unusable(self) -> None:
        report = self.report
        if report.unusable > self._max_unusable:
            raise DataError(
                f"{report.malformed_count:,} of the first {report.rows:,} rows are malformed as {self._format}, more than "
                f"data.max_unusable={self._max_unusable:g} allows. The first: {report.malformed[0][1]}",
                file=str(self._path),
            )

    def _stat(self) -> list[tuple[int, int]] | None:
        """Return size and modification time of each file; None if one is missing."""
        try:
            return [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in self._source.files)]
        except FileNotFoundError:
            return None


class _Check:
    """Converts raw rows to good records and reports the rest. `ids`: hashes of the ids seen so far; None: do not check for duplicates."""

    def __init__(
        self,
        path: Path,
        source: Source,
        format: str,
        strict: bool,
        report: Report,
        ids: set[int] | None = None,
        truth: bool = True,
        columns: Mapping[str, str] | None = None,
    ):
        self._source, self._reader, self._strict, self._report, self._ids = source, reader_of(format), strict, report, ids
        self._truth, self._columns = truth, columns or {}
        self._stem = _stem(path)
        self.outcome = 0
        """Outcome of the last row, an index in OUTCOMES."""
        self.fault = ""
        """The error of the last row that was set aside."""
        report.file, report.format = str(path), format
        report.bytes = sum(file.stat().st_size for file in source.files)
        report.passed_over = [str(file) for file in source.skipped_files]

    def __call__(self, number: int, raw: RawRow, count: bool = True) -> list[Record]:
        """Return the good records of row `number`.

        Args:
            count: count the row in the report.


        Raises:
            DataError: the row is malformed, and the check is strict.
        """
        report = self._report if count else Report()
        report.rows += 1
        try:
            if isinstance(raw, DataError):
                raise raw
            row = Row(renamed(raw, self._columns) if self._columns else raw, self.name(number))
            good, ties = _convert(row, self._reader, self._truth)
            if good and (unread := self._columns.keys() - row.used_keys):
                raise DataError(f"data.columns: expected keys of the format, found {', '.join(sorted(unread))}, which it does not use.")
            if self._ids is not None and row.has_id:
                _check_ids(good, self._ids, report)
        except DataError as error:
            file, position = self._source.locate(number)
            placed = DataError(f"{error.problem} {self._source.hint}".rstrip(), key=error.key).at(str(file), position)
            report.malformed_count += 1
            self.outcome, self.fault = OUTCOMES.index(MALFORMED), error.problem
            if len(report.malformed) < MESSAGES:
                report.malformed.append((number, str(placed)))
            if self._strict:
                raise placed from error
            return []
        self.outcome, self.fault = OUTCOMES.index(USABLE if good else NO_UNIQUE_BEST), "no single response is the best one"
        report.no_unique_best += ties
        report.dropped_responses += row.dropped
        report.records += len(good)
        for record in good:
            report.responses[record.n] = report.responses.get(record.n, 0) + 1
        return good

    def name(self, number: int) -> str:
        """Return the id of a record of row `number` that has none of its own."""
        return f"{self._stem}:{number}"


def _open(path: Path, format: str) -> Source:
    if format not in READERS:
        try:
            reader_of(format, first_rows(path))
        except DataError as error:
            if "unknown format" in error.problem:
                raise
            # The file cannot be read either.
            try:
                reader_of(format)
            except DataError as unknown:
                raise DataError(f"{unknown} {error}") from error
    return open_source(path)


def _stem(path: Path) -> str:
    name = path.name
    return Path(next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.lower().endswith(suffix)), name)).stem


def _not_empty(rows: Iterator[tuple[int, RawRow]], path: Path) -> Iterator[tuple[int, RawRow]]:
    """Yield `rows`, of which there must be at least one."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError("the file has no rows.", file=str(path))


def _convert(row: Row, reader: Reader, truth: bool) -> tuple[list[Record], int]:
    """Return (good records, number of records without a unique best)."""
    try:
        records = reader(row)
    except NoUniqueBest:
        return [], 1
    good = []
    for record in records:
        try:
            check(record)
        except NoUniqueBest:
            if truth:
                continue
        good.append(record)
    return good, len(records) - len(good)


def _check_ids(records: list[Record], seen: set[int], report: Report) -> None:
    """Raise DataError if a record's (source, id) was seen before; only hashes are kept, to bound memory."""
    hashes = [hash((record.source, record.id)) for record in records]
    for record, key in zip(records, hashes, strict=True):
        if key in seen:
            raise DataError(f"id: expected a unique id, found {record.id!r} again.", key="id")
    room = max(0, ID_LIMIT - len(seen))
    seen.update(hashes[:room])
    report.unchecked_ids += max(0, len(hashes) - room)
