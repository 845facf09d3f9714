"""Counts over the rows that `rlsys judge` reads and writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlsys.data.accounts import MALFORMED
from rlsys.data.readers import DataError, SetAside
from rlsys.data.records import Record
from rlsys.judging.results import row_status


def require_record(rows: Iterator[Record | SetAside], file: Path) -> Iterator[Record | SetAside]:
    """Yield the rows, the first of them only after a usable record was found.

    Raises:
        DataError: no row is usable.
    """
    leading: list[SetAside] = []
    for row in rows:
        if isinstance(row, Record):
            yield from leading
            yield row
            yield from rows
            return
        leading.append(row)
    first = f"; row {leading[0].row}: {leading[0].message}" if leading else ""
    raise DataError(f"no usable row among {len(leading):,}{first}", file=str(file))


def summarise_rows(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the output rows of `rlsys judge`.

    Returns:
        {rows; account: {outcome: count}, which adds up to rows; samples, parsed, failures, cut_off (failures at the token limit), tokens,
        prompt_tokens, skipped, no_verdict, judged (rows with a ground truth), correct, accuracy, first_malformed}.
    """
    account, first_malformed = Counter({"verdict": 0}), None
    total: dict[str, Any] = dict.fromkeys(
        ("rows", "samples", "parsed", "cut_off", "tokens", "prompt_tokens", "skipped", "no_verdict", "judged", "correct"), 0
    )
    failures: Counter[str] = Counter()
    for row in rows:
        account[row_status(row)] += 1
        if row.get("set_aside") == MALFORMED and first_malformed is None:
            first_malformed = f"row {row['row']}: {row['skipped']}"
        total["rows"] += 1
        total["samples"] += row["k"]
        total["skipped"] += "skipped" in row
        total["no_verdict"] += row["best"] is None
        for name in ("parsed", "tokens", "prompt_tokens"):
            total[name] += row.get(name, 0)
        total["cut_off"] += sum(sample["scores"] is None and sample.get("truncated", False) for sample in row["samples"])
        failures.update(row.get("failures", {}))
        if row["correct"] is not None:
            total["judged"] += 1
            total["correct"] += row["correct"]
    accuracy = total["correct"] / total["judged"] if total["judged"] else None
    return total | {"account": dict(account), "failures": dict(failures), "accuracy": accuracy, "first_malformed": first_malformed}
