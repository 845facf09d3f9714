"""The ladder's arithmetic, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from rlsys.data.records import Record
from rlsys.evaluation.ladder import row_accuracy, rung
from rlsys.judging.voting import find_strategy, subsets


def record(name: str, rewards: tuple[float, ...]) -> Record:
    return Record(name, "test", ({"role": "user", "content": "q"},), tuple(f"r{i}" for i in range(len(rewards))), rewards)


def test_rightness_is_the_share_of_draws_in_which_the_best_response_wins():
    rng = np.random.default_rng(0)
    records = [record(f"row{i}", tuple(float(j == i % n) for j in range(n))) for i, n in enumerate([2, 4, 2, 3, 2])]
    rows = []
    for one in records[:-1]:
        samples = []
        for _ in range(6):
            order = rng.permutation(one.n).tolist()
            scores = None if rng.random() < 0.2 else rng.integers(1, 5, one.n).tolist()
            samples.append({"order": order, "scores": scores, "tokens": 3})
        rows.append({"id": one.id, "samples": samples})
    for k in (1, 3, 6):
        found = row_accuracy(rows, {one.id: one.best for one in records}, find_strategy("vote"), k, 6, 40, seed=7)
        for one, row in zip(records, rows):
            total = 0.0
            for chosen in subsets(6, k, 40, 7):
                sums = [0.0] * one.n
                parsed = False
                for sample in (row["samples"][i] for i in chosen):
                    if sample["scores"] is not None:
                        parsed = True
                        for place, response in enumerate(sample["order"]):
                            sums[response] += sample["scores"][place]
                if parsed and sums[one.best] == max(sums):
                    total += 1 / sums.count(max(sums))
            assert found[one.id] == pytest.approx(total / 40)
        assert found["row4"] == 0, "a row that could not be asked is never right"


def test_a_rung_is_compared_row_by_row():
    after, before = {"a": 1.0, "b": 0.5, "c": 1.0}, {"c": 0.0, "a": 1.0, "b": 0.0}
    found = rung("rl", "after RL", after, 3, before, 12.5)
    assert found.value == pytest.approx(2.5 / 3) and found.minus_previous.mean == pytest.approx(0.5)
    assert found.ci95 is None and found.minus_previous.ci95 is None, "three rows are too few"
    many = rung("rl", "after RL", {str(i): i % 4 / 3 for i in range(40)}, 3, {str(i): i % 3 / 3 for i in range(40)}, 12.5)
    assert many.ci95[0] < many.value < many.ci95[1]
    assert many.minus_previous.ci95[0] < many.minus_previous.mean < many.minus_previous.ci95[1]
    assert rung("base", "base", before, 3, None, None).minus_previous is None
