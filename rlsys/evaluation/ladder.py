"""Arithmetic of the ladder: the accuracy of each rung on each row, and its paired difference from another rung."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rlsys.documents.runs import Rung
from rlsys.evaluation.statistics import mean_ci, paired_difference
from rlsys.judging.voting import Options, SampleTable, Strategy, subsets, take, tied

RowAccuracy = dict[str, float]
"""Row id -> fraction of resamples in which the best response wins, in [0, 1]. Ties share the win; no verdict counts 0."""


def row_accuracy(
    rows: Iterable[Mapping[str, Any]], gold: Mapping[str, int], strategy: Strategy, k: int, k_max: int, resamples: int, seed: int
) -> RowAccuracy:
    """Return a strategy's accuracy per row with k samples, over `resamples` random subsets of the first k_max samples of each row.

    Args:
        rows: {id, samples} as written by `rlsys eval`; rows that could not be judged have no samples.
        gold: row id -> index of its best response, for all rows to count; rows without samples count as wrong.

    Raises:
        KeyError: a row is not in `gold`.
    """
    accuracy = dict.fromkeys(gold, 0.0)
    table = SampleTable(strategy.needs)
    for row in rows:
        if row["samples"]:
            table.add(dict(row))
    names = [str(name) for _, name in table.ids]
    index = subsets(k_max, k, resamples, seed)
    for positions, samples in table.groups(k_max):
        top = tied(strategy(take(samples, index), Options()).totals)
        share = top / np.maximum(top.sum(axis=-1, keepdims=True), 1)
        for position, win_rates in zip(positions, share.mean(axis=1)):
            accuracy[names[position]] = float(win_rates[gold[names[position]]])
    return accuracy


def rung(
    name: str, title: str, accuracy: RowAccuracy, seed: int, against: RowAccuracy | None, tokens: float | None, ablation: bool = False
) -> Rung:
    """Return one entry of ladder.json. `against`: the rung to compare with; `tokens`: generated per row."""
    values = list(accuracy.values())
    difference = None if against is None else paired_difference(values, [against[row] for row in accuracy])
    return Rung(
        name=name,
        title=title,
        value=sum(values) / len(values),
        ci95=mean_ci(values),
        seed=seed,
        minus_previous=difference,
        tokens_per_item=tokens,
        ablation=ablation,
    )
