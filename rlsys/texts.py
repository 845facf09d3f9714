"""Texts that others wrote, made fit to be shown."""

from __future__ import annotations


def plain(text: str) -> str:
    """`text` with control characters, those that turn its direction included, and lone surrogates replaced: it cannot move a cursor."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
