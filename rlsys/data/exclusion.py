"""Training rows that a run excludes (`data.exclude`), as listed by `rlsys filter`."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from rlsys.data.mixtures import Mixture
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.trajectories import RowKey

MAX_EXAMPLES = 3
"""Rows that a message names."""


@dataclass(frozen=True)
class Exclusion:
    """The result of applying `data.exclude` to the training rows."""

    rows: Set[RowKey] = frozenset()
    """(source, id) of the excluded rows."""
    unknown: tuple[str, ...] = ()
    """Ids that match no row."""

    def __str__(self) -> str:
        """Return a one-line summary for the console."""
        summary = f"data.exclude excludes {len(self.rows):,} rows"
        if self.unknown:
            summary += f"; {len(self.unknown):,} of its ids match no training row, for example {_examples(self.unknown)}"
        return summary


def read_exclusion(path: Path | None, source: Mixture) -> Exclusion:
    """Return the rows of `source` that a file of {id, source?, easy?} excludes; entries with `easy` false are ignored.

    An entry's `source` is `Record.source`, with or without the prefix of a mixture's part. Without it, the id must be unique. The training
    rows are read once for this, except generated ones.

    Raises:
        DataError: an entry has another form; an id without a source occurs in several sources; or no entry matches a row.
    """
    if path is None:
        return Exclusion()
    excluded = excluded_ids(path)
    known: dict[str, set[str]] = {}
    for part in source.parts:
        for record in part.find(excluded.keys()):
            known.setdefault(record.id, set()).add(record.source)
    rows: set[RowKey] = set()
    unknown = []
    for name, wanted_sources in excluded.items():
        for wanted in wanted_sources:
            found = _matching(wanted, known.get(name, set()))
            if len(found) > 1:
                raise DataError(
                    f"{path}: id {name!r} occurs in several sources ({', '.join(sorted(found))}): specify one, as in "
                    f'{{"id": {json.dumps(name)}, "source": {json.dumps(min(found))}}}. `rlsys filter` writes both.'
                )
            rows.update((match, name) for match in found)
            unknown += [] if found else [name]
    if excluded and not rows:
        raise DataError(
            f"data.exclude={path}: none of its {len(excluded):,} ids matches a training row, for example {_examples(unknown)}. "
            "Was it made from other data?"
        )
    return Exclusion(rows, tuple(unknown))


def excluded_ids(path: Path) -> dict[str, set[str | None]]:
    """Return {id: the sources given with it, None for an entry without one}."""
    excluded: dict[str, set[str | None]] = {}
    for number, row in strict_rows(path):
        source = row.get("source")
        if row.get("id") is None or not isinstance(source, str | None):
            raise DataError(f'expected {{"id": text, "source": text, "easy": true or false}}, found {row}.', file=str(path), row=number)
        if row.get("easy", True):
            excluded.setdefault(str(row["id"]), set()).add(source)
    return excluded


def _matching(wanted: str | None, sources: set[str]) -> set[str]:
    """Return the sources that an entry refers to."""
    if wanted is None or wanted in sources:
        return sources if wanted is None else {wanted}
    return {source for source in sources if source.endswith(f"/{wanted}")}


def _examples(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names[:MAX_EXAMPLES])
