"""What became of every row that was read: used, or set aside for a reason. The parts add up to the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TIE, MALFORMED, TOO_LONG, EXCLUDED = "no unique best", "malformed", "too long", "excluded"
"""Why a row is set aside; more reasons are told by who finds them."""


@dataclass
class RowCounts:
    """Counts of one source. `rows` is counted where rows are read, the parts where it is settled what becomes of each.

    A row of several records counts as several where all of them are read, and as one where one of them is drawn. A row that is drawn
    again in a later epoch counts again.
    """

    rows: int = 0
    used: int = 0
    aside: Counter[str] = field(default_factory=Counter)
    """Rows set aside, by reason."""

    @property
    def settled(self) -> int:
        """Rows of which it is known what became of them: all of them, except in the middle of a draw."""
        return self.used + self.aside.total()

    def to_json(self) -> dict[str, Any]:
        """{rows, used, set_aside: {reason: count}}; `from_json` reads it back."""
        return {"rows": self.rows, "used": self.used, "set_aside": {reason: count for reason, count in self.aside.items() if count}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RowCounts:
        """The inverse of `to_json`."""
        return cls(value["rows"], value["used"], Counter(value["set_aside"]))

    def __str__(self) -> str:
        """In words, for the screen: "1,000 rows: 980 used; set aside: 15 too long, 5 malformed"."""
        aside = ", ".join(f"{count:,} {reason}" for reason, count in self.aside.most_common() if count)
        return f"{self.rows:,} rows: {self.used:,} used" + (f"; set aside: {aside}" if aside else "")


def sum_counts(accounts: Iterable[RowCounts]) -> RowCounts:
    """The sum of several accounts."""
    total = RowCounts()
    for one in accounts:
        total.rows += one.rows
        total.used += one.used
        total.aside += one.aside
    return total
