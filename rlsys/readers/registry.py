"""Every format by its name, and which of them reads the rows at hand."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlsys.readers import chats, formats, published
from rlsys.readers.fields import DataError, Row, check, renamed
from rlsys.records import NoUniqueBest, Record

Reader = Callable[[Row], list[Record]]
_MODULES = {
    formats: (
        "rlsys", "responses", "trl_preference", "trl_unpaired", "hh_rlhf", "ultrafeedback", "ultrafeedback_binarized", "helpsteer2",
        "helpsteer3", "offsetbias", "llmbar", "skywork", "rewardbench", "rewardbench2", "rmb_pair", "rmb_bon", "ppe_preference",
        "ppe_best_of_k", "judgebench", "realmistake", "pandalm",
    ),
    chats: ("sharegpt", "kto", "arena", "arena_votes"),
    published: (
        "auto_j", "alpaca_eval", "shp", "pku_saferlhf", "pku_saferlhf_safer", "summarize_from_feedback", "webgpt", "nectar", "prometheus",
        "biggen", "evalbiasbench", "rm_bench", "hhh_alignment",
    ),
}  # fmt: skip
READERS: dict[str, Reader] = {name: getattr(module, name) for module, names in _MODULES.items() for name in names}


def reader_of(format: str, rows: Iterable[Mapping[str, Any]] = ()) -> Reader:
    """The reader of a format.

    Raises:
        DataError: there is none of that name; the message proposes those that read `rows`, or else those whose names are like it.
    """
    if format in READERS:
        return READERS[format]
    fitting = formats_of(rows) or difflib.get_close_matches(format, READERS, n=1, cutoff=0.4)
    hint = f" Did you mean {' or '.join(fitting)}?" if fitting else ""
    raise DataError(f"unknown format {format!r}.{hint} Known formats: {', '.join(READERS)}.")


def formats_of(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> list[str]:
    """The formats that read most of `rows`, at most three of them: first those that make use of most of their keys."""
    rows = list(rows)
    used: dict[str, int] = {}
    for name, reader in READERS.items():
        read = [keys for keys in (_used(reader, row, columns or {}) for row in rows) if keys is not None]
        if 2 * len(read) > len(rows):
            used[name] = max(read)
    # Sorting is stable: of equals, the plain formats come first.
    return sorted((name for name in used if used[name] == max(used.values())), key=lambda name: name == "responses")[:3]


def _used(reader: Reader, keys: Mapping[str, Any], columns: Mapping[str, str]) -> int | None:
    """How many keys of a row its reader looks at; None: it cannot read it."""
    row = Row(renamed(dict(keys), columns), "")
    try:
        for record in reader(row):
            check(record)
    except NoUniqueBest:
        pass
    except DataError:
        return None
    return len(row.asked & row.keys())
