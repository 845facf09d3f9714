"""Texts that others wrote, made fit to be shown; and a ground truth in words."""

from __future__ import annotations

from collections.abc import Sequence


def plain(text: str) -> str:
    """`text` with control characters, those that turn its direction included, and lone surrogates replaced: it cannot move a cursor."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def truth_in_words(ground_truth: Sequence[float], order: Sequence[int]) -> str:
    """What a judgement should have said, with responses numbered from 1 as they were shown, for example "[2] is the best response".

    Args:
        ground_truth: rewards in the record's own order.
        order: order[p] is the index of the response shown at place p.
    """
    if len(ground_truth) == 1:
        return f"the response is {'right' if ground_truth[0] else 'wrong'}"
    return f"[{1 + max(range(len(order)), key=lambda place: ground_truth[order[place]])}] is the best response"
