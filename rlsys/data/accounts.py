"""Counts of what became of every row read: used, or set aside for a reason. Used and set aside add up to the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NO_UNIQUE_BEST, MALFORMED, TOO_LONG, EXCLUDED = "no unique best", "malformed", "too long", "excluded"
"""Common reasons for setting a row aside; other modules add more."""


@dataclass
class RowCounts:
    """Counts of one source. `rows` is incremented when a row is read, `used` or `aside` when its outcome is known.

    A row of several records counts once per record if all of them are read, and once if one of them is sampled. A row that is sampled again
    in a later epoch counts again.

    Example: RowCounts(rows=1000, used=980, aside=Counter({"too long": 15, "malformed": 5})).
    """

    rows: int = 0
    used: int = 0
    aside: Counter[str] = field(default_factory=Counter)
    """Rows set aside, by reason."""

    @property
    def settled(self) -> int:
        """Number of rows whose outcome is known: all of them, except while sampling."""
        return self.used + self.aside.total()

    def to_json(self) -> dict[str, Any]:
        """Return {rows, used, set_aside: {reason: count}}; `from_json` is the inverse."""
        return {"rows": self.rows, "used": self.used, "set_aside": {reason: count for reason, count in self.aside.items() if count}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RowCounts:
        """Return the counts that `to_json` wrote."""
        return cls(value["rows"], value["used"], Counter(value["set_aside"]))

    def __str__(self) -> str:
        """Return, for example, "1,000 rows: 980 used; set aside: 15 too long, 5 malformed"."""
        aside = ", ".join(f"{count:,} {reason}" for reason, count in self.aside.most_common() if count)
        return f"{self.rows:,} rows: {self.used:,} used" + (f"; set aside: {aside}" if aside else "")


def sum_counts(counts: Iterable[RowCounts]) -> RowCounts:
    """Return the sum of several counts."""
    total = RowCounts()
    for source in counts:
        total.rows += source.rows
        total.used += source.used
        total.aside += source.aside
    return total
