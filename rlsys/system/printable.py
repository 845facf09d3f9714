"""Sanitise untrusted text for display."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace control characters (bidirectional controls included) and lone surrogates, so that `text` cannot move the cursor."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
