"""The ladder's arithmetic: how right each rung is on each row, and what it adds to another, paired by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rlsys.evaluation.statistics import mean_ci, paired_difference
from rlsys.judging.voting import Options, SampleTable, Strategy, subsets, take, tied

RowAccuracy = dict[str, float]
"""Row id -> share of the draws in which the best response wins, in [0, 1]. A tie at the top is shared out; no verdict is 0."""


def row_accuracy(
    rows: Iterable[Mapping[str, Any]], gold: Mapping[str, int], strategy: Strategy, k: int, k_max: int, draws: int, seed: int
) -> RowAccuracy:
    """How right a strategy is with k samples, over `draws` random subsets of the first k_max of each row.

    Args:
        rows: {id, samples} as `rlsys eval` writes them; one without samples could not be asked.
        gold: row id -> index of its best response, of the rows that are counted; one that has no samples is never right.

    Raises:
        KeyError: a row that is not to be counted.
    """
    found = dict.fromkeys(gold, 0.0)
    table = SampleTable(strategy.needs)
    for row in rows:
        if row["samples"]:
            table.add(dict(row))
    names = [name for _, name in table.ids]
    index = subsets(k_max, k, draws, seed)
    for positions, samples in table.groups(k_max):
        top = tied(strategy(take(samples, index), Options()).totals)
        share = top / np.maximum(top.sum(axis=-1, keepdims=True), 1)
        for position, of_row in zip(positions, share.mean(axis=1)):
            found[names[position]] = float(of_row[gold[names[position]]])
    return found


def rung(
    name: str, title: str, right: RowAccuracy, seed: int, against: RowAccuracy | None, tokens: float | None, ablation: bool = False
) -> dict[str, Any]:
    """One entry of ladder.json. `against`: the rung that it is compared with; `tokens`: generated for a row."""
    values = list(right.values())
    difference = None if against is None else paired_difference(values, [against[row] for row in right])
    return {
        "name": name,
        "title": title,
        "value": sum(values) / len(values),
        "ci95": mean_ci(values),
        "seed": seed,
        "minus_previous": difference,
        "tokens_per_item": tokens,
        "ablation": ablation,
    }
