"""Registry of formats by name, and detection of the formats that can read given rows."""

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
        "rlsys", "responses", "prompts", "trl_preference", "trl_unpaired", "hh_rlhf", "ultrafeedback", "ultrafeedback_binarized",
        "helpsteer2", "helpsteer3", "offsetbias", "llmbar", "skywork", "rewardbench", "rewardbench2", "rmb_pair", "rmb_bon",
        "ppe_preference", "ppe_best_of_k", "judgebench", "realmistake", "pandalm",
    ),
    chats: ("sharegpt", "kto", "arena", "arena_votes"),
    published: (
        "auto_j", "alpaca_eval", "shp", "pku_saferlhf", "pku_saferlhf_safer", "summarize_from_feedback", "webgpt", "nectar", "prometheus",
        "biggen", "evalbiasbench", "rm_bench", "hhh_alignment",
    ),
}  # fmt: skip
ALIASES = {
    "dpo": "trl_preference", "orpo": "trl_preference", "mtbench": "arena", "tldr": "summarize_from_feedback",
}  # fmt: skip
"""Other common names of formats, reduced to letters and digits."""
READERS: dict[str, Reader] = {name: getattr(module, name) for module, names in _MODULES.items() for name in names}


def reader_of(format: str, rows: Iterable[Mapping[str, Any]] = ()) -> Reader:
    """Return the reader of a format.

    Raises:
        DataError: there is no such format; the message suggests those that can read `rows`, or else those with similar names.
    """
    if format in READERS:
        return READERS[format]
    readable, similar = formats_of(rows), _similar_names(format)
    suggestions = [name for name in readable if name in similar] or readable or similar
    hint = f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""
    raise DataError(f"unknown format {format!r}.{hint} Known formats: {', '.join(READERS)}.")


def _similar_names(format: str) -> list[str]:
    """Return the format of that name in another spelling; or all that contain it or are contained in it; or the closest match."""
    wanted, names = _letters(format), {_letters(name): name for name in READERS}
    wanted = _letters(ALIASES.get(wanted, wanted))
    if wanted in names:
        return [names[wanted]]
    parts = [name for letters, name in names.items() if len(wanted) > 1 and (wanted in letters or letters in wanted)]
    return parts or [names[letters] for letters in difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def formats_of(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> list[str]:
    """Return at most three formats that can read most of `rows`: those that use the most keys."""
    rows = list(rows)
    used: dict[str, int] = {}
    for name, reader in READERS.items():
        read = [keys for keys in (_used(reader, row, columns or {}) for row in rows) if keys is not None]
        if 2 * len(read) > len(rows):
            used[name] = max(read)
    # `responses` and `prompts` come last: they accept almost any row. The sort is stable.
    return sorted((name for name in used if used[name] == max(used.values())), key=("responses", "prompts").__contains__)[:3]


def _used(reader: Reader, keys: Mapping[str, Any], columns: Mapping[str, str]) -> int | None:
    """Return how many keys of a row the reader looks up, or None if it cannot read the row."""
    row = Row(renamed(dict(keys), columns), "")
    try:
        for record in reader(row):
            check(record)
    except NoUniqueBest:
        pass
    except DataError:
        return None
    return len(row.used_keys & row.keys())
