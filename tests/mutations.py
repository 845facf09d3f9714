"""Hypothesis strategies that damage valid inputs: JSON values, and the bytes of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

CHARS = st.characters(codec=None) | st.sampled_from("\ud800\udfff\x00\u202e\u200b")
PIECES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n\r\n", b"{", b"}", b"[", b'"', b"'", b",", b":", b"\\", b"null", b"NaN",
    b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"true", b"\\ud800", b"[" * 100_000, b'{"a":' * 5000, b"\xed\xa0\x80", b"{}", b"[]", b"../",
    b"2024-13-45", b"!!python/object:os.system {}", b"&a [*a]", b"<<: *a", b"? [a, b]", b"!!int x", b"0x", b"1_", b"\t", b"--- a\n--- b",
    b"=", b".", b"PAR1", b"ARROW1", b"\\boxed{", b"<think>",
)  # fmt: skip
"""Bytes that a reader may treat in a special way."""


def values(texts: Sequence[str] = (), keys: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Any JSON value; `texts` and `keys` occur in it more often than others."""
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARS, max_size=8)
    return st.recursive(
        simple | st.sampled_from(texts) if texts else simple,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names(keys), inner, max_size=4),
        max_leaves=8,
    )


def names(keys: Sequence[str]) -> st.SearchStrategy[str]:
    some = st.text(CHARS, max_size=6)
    return st.sampled_from(keys) | some if keys else some


@st.composite
def mutated(draw: st.DrawFn, value: Any, other: st.SearchStrategy[Any], keys: Sequence[str] = (), depth: int = 0) -> Any:
    """Return the JSON value with something in it replaced by one of `other`, left out, or added under one of `keys`."""
    kind = draw(st.sampled_from(["replace", "within", "within", "within"])) if isinstance(value, dict | list) and value else "replace"
    if kind == "replace" and depth:
        return draw(other)
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(mutated(value[place], other, keys, depth + 1)), *value[place + 1 :]]
    changed = dict(value) if isinstance(value, dict) else {}
    key = draw(st.sampled_from(sorted(changed)) if changed and draw(st.integers(0, 3)) else names(keys))
    if key in changed and draw(st.integers(0, 3)) == 0:
        del changed[key]
    else:
        changed[key] = draw(mutated(changed[key], other, keys, depth + 1)) if key in changed else draw(other)
    return changed


@st.composite
def mutated_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return one of the `seeds` with a few pieces of it replaced, left out, doubled, or with the end cut off."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 8, 64, len(data)])))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def mutated_json(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return one of the `seeds`, JSON or JSON Lines, with its values changed; it is still JSON."""
    seed = draw(st.sampled_from(seeds)).decode()
    try:
        rows = [json.loads(seed)]
    except ValueError:
        rows = [json.loads(line) for line in seed.splitlines()]
    place, keys = draw(st.integers(0, len(rows) - 1)), sorted(_keys(rows))
    for _ in range(draw(st.integers(1, 2))):
        rows[place] = draw(mutated(rows[place], values(keys=keys), keys))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _keys(value: Any) -> set[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_keys, inner))
