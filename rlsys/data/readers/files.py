"""From a file to records: streaming (`read`) and by row number (`RecordFile`), with a report of what was set aside and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsys.data.accounts import MALFORMED, TIE, RowCounts
from rlsys.data.readers.fields import DataError, Row, check, printable, renamed
from rlsys.data.readers.packed import PACKED
from rlsys.data.readers.raw import Raw, Source
from rlsys.data.readers.registry import READERS, Reader, formats_of, reader_of
from rlsys.data.readers.sources import first_rows, open_source
from rlsys.data.records import NoUniqueBest, Record

USABLE = "usable"
OUTCOMES = ("", USABLE, TIE, MALFORMED)
FIRST_LOOK = 1024
"""Rows that are checked when a file is opened for drawing."""
MESSAGES = 20
"""Malformed rows whose message a report keeps; all of them are counted."""
ID_LIMIT = 1_000_000
"""Ids of a file that are watched for repetition (64-bit hashes, under 100 MB); ids made from row numbers cannot repeat and are not."""


@dataclass
class Report:
    """What reading a file came to; `rlsys data check` prints it. Counts grow while the file is being read."""

    file: str = ""
    format: str = ""
    rows_in_file: int | None = None
    """Of which `rows` have been seen; None where the file is read from its beginning to its end."""
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
    bytes: int = 0
    """Of all files that are read."""
    passed_over: list[str] = field(default_factory=list)
    """Files of a folder that were not read: empty, or no rows by their names."""

    @property
    def unusable(self) -> float:
        """Share of the rows seen that are malformed, 0..1. Rows without a unique best are what the format says."""
        return self.malformed_count / max(1, self.rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict of all fields; `malformed` as [{row, message}]."""
        return asdict(self) | {
            "unusable": self.unusable,
            "malformed": [{"row": row, "message": message} for row, message in self.malformed],
            "responses": {str(n): count for n, count in sorted(self.responses.items())},
        }

    def summary(self) -> str:
        """The report in lines for a person."""
        by_n = ", ".join(f"{count:,} with {n} response{'s' if n > 1 else ''}" for n, count in sorted(self.responses.items()))
        of = "" if self.rows_in_file is None else f" of {self.rows_in_file:,}"
        lines = [f"{self.file} ({self.format}): {self.rows:,}{of} rows, {self.records:,} records{f' ({by_n})' if by_n else ''}"]
        if self.no_unique_best:
            lines.append(f"no unique best response, set aside: {self.no_unique_best:,}")
        if self.dropped_responses:
            lines.append(f"responses without a score, left out: {self.dropped_responses:,}")
        if self.passed_over:
            lines.append(f"files passed over: {', '.join(self.passed_over)}")
        if self.unchecked_ids:
            lines.append(f"ids not checked for repetition (after the first {ID_LIMIT:,}): {self.unchecked_ids:,}")
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
    """The records of a file in its own order, streamed: memory does not grow with the file (JSON documents excepted).

    Args:
        path: what `open_source` takes: a file, a folder, a pattern, a data set of the hub.
        format: a name in READERS.
        strict: raise at the first malformed row instead of counting it. Rows without a unique best are counted either way.
        report: filled while reading.
        truth: set records without a unique best response aside, as training needs one; False: give them all.
        columns: the names under which the file has the keys of the format, where it has others: {"prompt": "question"}.

    Raises:
        DataError: at once for an unknown format or a file that cannot be opened; while iterating for a damaged or empty file and,
            if `strict`, for a malformed row. It names file, row and key.
    """
    rows = read_all(path, format, strict=strict, report=report, truth=truth, columns=columns)
    return (one for one in rows if isinstance(one, Record))


@dataclass(frozen=True)
class SetAside:
    """A row in which no record was found."""

    row: int
    """1-based; in JSONL the line."""
    id: str
    """Its own, where it has one; else as a record of this row would be called."""
    reason: str
    """MALFORMED or TIE, of `rlsys.data.accounts`."""
    message: str
    """What is wrong with it."""


def read_all(
    path: str | Path,
    format: str,
    *,
    strict: bool = False,
    report: Report | None = None,
    truth: bool = True,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Record | SetAside]:
    """As `read`, and in their places the rows in which no record was found."""
    path, report = Path(path), report if report is not None else Report()
    source = _open(path, format)
    usable = _Check(path, source, format, strict, report, ids=set(), truth=truth, columns=columns)
    return _everything(_some(source.scan(), path), usable)


def _everything(rows: Iterator[tuple[int, Raw]], usable: _Check) -> Iterator[Record | SetAside]:
    for number, raw in rows:
        records = usable(number, raw)
        yield from records
        if not records:
            own = raw.get("id") if isinstance(raw, dict) else None
            name = printable(str(own)) if type(own) in (str, int) else usable.name(number)
            yield SetAside(number, name, OUTCOMES[usable.outcome], usable.fault)


class RecordFile:
    """The rows of a file by number, each read and checked when it is asked for, so that a file of any length opens at once.

    Opening counts the rows and checks the first `FIRST_LOOK` of them, then goes on until one is usable: a wrong format is told before
    anything else starts. `report` counts every row once, however often it is fetched. Ids are compared only where all rows are read in
    their order: while iterating, and if `strict`. Memory: a byte a row, what `Source.fetch` keeps, and a .json whole.

    Args:
        path, format, columns: as for `read`.
        strict: check every row at opening and raise at the first malformed one. This reads the whole file.
        max_unusable: the largest share of malformed rows, 0..1, among those seen at opening or, from `FIRST_LOOK` rows on, since.

    Raises:
        DataError: as `read`; if no row is usable, or more than `max_unusable` allows are not; later, if the file changes under it.
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
        """What became of each row, a place in OUTCOMES; 0: not read yet."""
        at_opening = _Check(self._path, self._source, format, strict, self.report, ids=set() if strict else None, columns=columns)
        for index, (number, raw) in enumerate(_some(self._source.scan(), self._path)):
            if index >= FIRST_LOOK and self.report.records and not strict:
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
        """Rows of the file, good or bad."""
        return len(self._source)

    def __iter__(self) -> Iterator[Record]:
        """All good records in the file's own order, streamed."""
        return read(self._path, self._format, columns=self._columns)

    def scan(self, account: RowCounts) -> Iterator[Record]:
        """The same; counts in `account`, a fresh one, how many were read, and those set aside by reason."""
        report = Report()

        def count_aside() -> None:
            aside = {TIE: report.no_unique_best, MALFORMED: report.malformed_count}
            account.rows += sum(aside.values()) - sum(account.aside[reason] for reason in aside)
            account.aside.update({reason: count - account.aside[reason] for reason, count in aside.items()})

        for record in read(self._path, self._format, report=report, columns=self._columns):
            count_aside()
            account.rows += 1
            yield record
        count_aside()

    def why(self, index: int) -> str:
        """The reason why row `index`, in which `fetch` found no record, is set aside."""
        return OUTCOMES[self._seen[index]]

    def sources_of(self, ids: Set[str]) -> dict[str, set[str]]:
        """id -> the sources of the good records that have it, of those of `ids` that occur. Reads the whole file."""
        found: dict[str, set[str]] = {}
        for record in self:
            if record.id in ids:
                found.setdefault(record.id, set()).add(record.source)
        return found

    def fetch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[list[Record]]:
        """The good records of each of the rows `indices`: none, one or, in some formats, several.

        Args:
            indices: 0-based row numbers, in any order.
            upcoming: row numbers that will be fetched next. They cost less if they are told in time: see `Source.fetch`.
        """
        if self._stat() != self._stamp:
            raise DataError("the file has changed since it was opened: start again, or restore it.", file=str(self._path))
        records = []
        for index, (number, raw) in zip(indices, self._source.fetch(indices, upcoming), strict=True):
            records.append(self._usable(number, raw, count=not self._seen[index]))
            self._seen[index] = self._usable.outcome
        if self.report.rows >= FIRST_LOOK:
            self._refuse_unusable()
        return records

    def _refuse_unusable(self) -> None:
        report = self.report
        if report.unusable > self._max_unusable:
            raise DataError(
                f"{report.malformed_count:,} of the first {report.rows:,} rows are malformed as {self._format}, a larger share than "
                f"data.max_unusable={self._max_unusable:g} allows. The first: {report.malformed[0][1]}",
                file=str(self._path),
            )

    def _stat(self) -> list[tuple[int, int]] | None:
        """What changes when a file does."""
        try:
            return [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in self._source.files)]
        except FileNotFoundError:
            return None


class _Check:
    """From a raw row to its good records; the rest goes into the report. `ids`: hashes of those seen so far; None: not compared."""

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
        """Of the row before, a place in OUTCOMES."""
        self.fault = ""
        """What was wrong with the last row that was set aside."""
        report.file, report.format = str(path), format
        report.bytes = sum(file.stat().st_size for file in source.files)
        report.passed_over = [str(file) for file in getattr(source, "passed_over", ())]

    def __call__(self, number: int, raw: Raw, count: bool = True) -> list[Record]:
        """The good records of row `number`; `count` it in the report or not.

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
            if good and (unread := self._columns.keys() - row.asked):
                raise DataError(f"data.columns: expected keys of the format, found {', '.join(sorted(unread))}, which it does not read.")
            if self._ids is not None and row.has_id:
                _check_ids(good, self._ids, report)
        except DataError as error:
            file, place = self._source.place(number)
            placed = error.at(str(file), place)
            report.malformed_count += 1
            self.outcome, self.fault = OUTCOMES.index(MALFORMED), error.problem
            if len(report.malformed) < MESSAGES:
                report.malformed.append((number, str(placed)))
            if self._strict:
                raise placed from error
            return []
        self.outcome, self.fault = OUTCOMES.index(USABLE if good else TIE), "no single response is the best one"
        report.no_unique_best += ties
        report.dropped_responses += row.dropped
        report.records += len(good)
        for record in good:
            report.responses[record.n] = report.responses.get(record.n, 0) + 1
        return good

    def name(self, number: int) -> str:
        """What a record of row `number` is called where it has no id of its own."""
        return f"{self._stem}:{number}"


def _open(path: Path, format: str) -> Source:
    if format not in READERS:
        try:
            reader_of(format, first_rows(path))
        except DataError as error:
            if "unknown format" in error.problem:
                raise
            # The file cannot be read, either.
            try:
                reader_of(format)
            except DataError as unknown:
                raise DataError(f"{unknown} {error}") from error
    return open_source(path)


def _stem(path: Path) -> str:
    name = path.name
    return Path(next((name.removesuffix(suffix) for suffix in PACKED if name.lower().endswith(suffix)), name)).stem


def _some(rows: Iterator[tuple[int, Raw]], path: Path) -> Iterator[tuple[int, Raw]]:
    """`rows`, of which there must be one."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError("the file holds no rows.", file=str(path))


def _convert(row: Row, reader: Reader, truth: bool) -> tuple[list[Record], int]:
    """(good records, how many were set aside for want of a unique best)."""
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
    """Raise DataError if an id of the same source came before; hashes, since the ids of a large file would not fit."""
    hashes = [hash((record.source, record.id)) for record in records]
    for record, key in zip(records, hashes, strict=True):
        if key in seen:
            raise DataError(f"id: expected an id that no earlier row has, found {record.id!r} again.", key="id")
    room = max(0, ID_LIMIT - len(seen))
    seen.update(hashes[:room])
    report.unchecked_ids += max(0, len(hashes) - room)
