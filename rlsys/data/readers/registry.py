"""Every format by its name, and which of them reads the rows at hand."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlsys.data.readers import chats, formats, published
from rlsys.data.readers.fields import DataError, Row, check, renamed
from rlsys.data.records import NoUniqueBest, Record

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
COMMONLY = {
    "dpo": "trl_preference", "orpo": "trl_preference", "mtbench": "arena", "tldr": "summarize_from_feedback",
}  # fmt: skip
"""Other names that go about, in letters and digits alone."""
READERS: dict[str, Reader] = {name: getattr(module, name) for module, names in _MODULES.items() for name in names}


def reader_of(format: str, rows: Iterable[Mapping[str, Any]] = ()) -> Reader:
    """The reader of a format.

    Raises:
        DataError: there is none of that name; the message proposes those that read `rows`, or else those whose names are like it.
    """
    if format in READERS:
        return READERS[format]
    fitting, like = formats_of(rows), _named_like(format)
    meant = [name for name in fitting if name in like] or fitting or like
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    raise DataError(f"unknown format {format!r}.{hint} Known formats: {', '.join(READERS)}.")


def _named_like(format: str) -> list[str]:
    """Formats of that name in another spelling; or of which it is a part, or which are a part of it; or else the one most like it."""
    wanted, names = _letters(format), {_letters(name): name for name in READERS}
    wanted = _letters(COMMONLY.get(wanted, wanted))
    if wanted in names:
        return [names[wanted]]
    parts = [name for letters, name in names.items() if len(wanted) > 1 and (wanted in letters or letters in wanted)]
    return parts or [names[letters] for letters in difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


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
