"""A record's ground truth as a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def describe_ground_truth(ground_truth: Sequence[float], order: Sequence[int]) -> str:
    """State the correct judgement, with responses numbered from 1 as displayed, for example "[2] is the best response".

    Args:
        ground_truth: rewards in the record's own order.
        order: order[p] is the index of the response displayed at position p.
    """
    if len(ground_truth) == 1:
        return f"the response is {'right' if ground_truth[0] else 'wrong'}"
    best_position = max(range(len(order)), key=lambda position: ground_truth[order[position]])
    return f"[{1 + best_position}] is the best response"
