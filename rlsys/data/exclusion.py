"""Rows of the training data that a run leaves out, as `rlsys filter` names them."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from rlsys.data.mixtures import Mixture
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.trajectories import RowKey

MOST_TOLD = 3
"""Rows that a message names."""


@dataclass(frozen=True)
class Exclusion:
    """What `data.exclude` comes to on given rows."""

    rows: Set[RowKey] = frozenset()
    """(source, id) of those that are left out."""
    unknown: tuple[str, ...] = ()
    """Ids that no row has."""

    def __str__(self) -> str:
        """In words, for the screen."""
        told = f"data.exclude leaves out {len(self.rows):,} rows"
        if self.unknown:
            told += f"; it names {len(self.unknown):,} more that no training row has, for example {_examples(self.unknown)}"
        return told


def read_exclusion(path: Path | None, source: Mixture) -> Exclusion:
    """The rows of `source` that a file of {id, source?, easy?} leaves out, except those that it says are hard (`easy` false).

    A source is that of the record (`Record.source`), or its end after the name of a mixture's part. Without one, the id must be unique. The
    training rows are read once for it (generated ones are not).

    Raises:
        DataError: a row is not of that form; an id without a source that rows of several sources have; or no row of all that are named.
    """
    if path is None:
        return Exclusion()
    named = excluded_ids(path)
    known: dict[str, set[str]] = {}
    for part in source.parts:
        for name, sources in part.rows.sources_of(named.keys()).items():
            known.setdefault(name, set()).update(part.prefix + each for each in sources)
    rows: set[RowKey] = set()
    unknown = []
    for name, wanted in named.items():
        for one in wanted:
            found = _matching(one, known.get(name, set()))
            if len(found) > 1:
                raise DataError(
                    f"{path}: id {name!r}: rows of several sources have it ({', '.join(sorted(found))}): say which one is meant, as "
                    f'{{"id": {json.dumps(name)}, "source": {json.dumps(min(found))}}}. `rlsys filter` writes both.'
                )
            rows.update((each, name) for each in found)
            unknown += [] if found else [name]
    if named and not rows:
        raise DataError(
            f"data.exclude={path}: none of its {len(named):,} ids is that of a training row, for example {_examples(unknown)}. "
            "Is it of other data?"
        )
    return Exclusion(rows, tuple(unknown))


def excluded_ids(path: Path) -> dict[str, set[str | None]]:
    """id -> the sources that are named with it, None for none."""
    named: dict[str, set[str | None]] = {}
    for number, row in strict_rows(path):
        source = row.get("source")
        if row.get("id") is None or not isinstance(source, str | None):
            raise DataError(f'expected {{"id": text, "source": text, "easy": true or false}}, found {row}.', file=str(path), row=number)
        if row.get("easy", True):
            named.setdefault(str(row["id"]), set()).add(source)
    return named


def _matching(wanted: str | None, sources: set[str]) -> set[str]:
    """The sources of rows that an entry means."""
    if wanted is None or wanted in sources:
        return sources if wanted is None else {wanted}
    return {source for source in sources if source.endswith(f"/{wanted}")}


def _examples(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names[:MOST_TOLD])
