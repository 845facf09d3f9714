"""Where a judge is right, counted again from the rows of a Parquet table, with plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq
import pytest
from page_folders import judge_run

from rlsys.documents.runs import RunBaselines
from rlsys.evaluation.breakdown import baselines, by_place, by_responses, picks, written_scores


@pytest.fixture(scope="module", params=[1, 3])
def samples(request, tmp_path_factory) -> list[dict]:
    """Held-out trajectories with one and with three samples a row."""
    run = judge_run(tmp_path_factory.mktemp("run"), rows=240, samples=request.param)
    return pq.read_table(run / "trajectories" / "heldout_rl.parquet").to_pylist()


def wilson(right: int, n: int) -> tuple[float, float]:
    """The textbook formula."""
    z, p = 1.959963984540054, right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def place_of(sample: dict) -> int:
    """Place, from 1, of the response with the highest ground truth."""
    for place, response in enumerate(sample["order"], 1):
        if all(sample["ground_truth"][response] >= other for other in sample["ground_truth"]):
            return place
    raise AssertionError


def test_accuracy_by_number_of_responses_and_by_place(samples) -> None:
    numbers, places = by_responses(samples), by_place(samples)
    assert list(numbers) == [1, 2, 4] and list(places) == [(2, 1), (2, 2), (4, 1), (4, 2), (4, 3), (4, 4)]
    groups = {n: [s for s in samples if len(s["order"]) == n] for n in numbers}
    groups |= {(n, place): [s for s in samples if len(s["order"]) == n and place_of(s) == place] for n, place in places}
    for key, own in groups.items():
        found = (numbers | places)[key]
        right, rows = sum(s["correct"] for s in own), len({s["prompt_id"] for s in own})
        assert (found.rows, found.samples, found.accuracy) == (rows, len(own), right / len(own))
        if rows == len(own):
            assert found.ci95 == pytest.approx(wilson(right, rows))
        elif rows >= 20:
            # The rows are the independent units: near the normal interval of the mean of their means.
            means = [mean(s["correct"] for s in own if s["prompt_id"] == row) for row in {s["prompt_id"] for s in own}]
            assert found.ci95[1] - found.ci95[0] == pytest.approx(2 * 1.96 * stdev(means) / math.sqrt(rows), rel=0.15)
            assert found.ci95[0] < found.accuracy < found.ci95[1]
        else:
            assert found.ci95 is None
    assert sum(group.samples for group in numbers.values()) == len(samples)


def test_the_place_that_wins(samples) -> None:
    found = picks(samples)
    for n in (2, 4):
        wins, count = [0.0] * n, 0
        for s in samples:
            if len(s["order"]) == n and s["scores"] is not None:
                count += 1
                shown = [s["scores"][response] for response in s["order"]]
                tops = [place for place in range(n) if shown[place] == max(shown)]
                for place in tops:
                    wins[place] += 1 / len(tops)
        assert [found[n, place + 1] for place in range(n)] == pytest.approx([won / count for won in wins])
        assert sum(found[n, place + 1] for place in range(n)) == pytest.approx(1)


def test_the_scores_that_are_written(samples) -> None:
    found = written_scores(samples)
    parsed = [s for s in samples if s["scores"] is not None and len(s["scores"]) > 1]
    every = [score for s in parsed for score in s["scores"]]
    assert found.samples == len(parsed) and found.counts == {score: every.count(score) for score in (1, 2, 9)}
    best = [s["scores"][s["ground_truth"].index(1.0)] for s in parsed]
    assert found.best == pytest.approx(sum(best) / len(best))
    assert found.others == pytest.approx((sum(every) - sum(best)) / (len(every) - len(best)))
    assert found.ties == sum(sorted(s["scores"])[-1] == sorted(s["scores"])[-2] for s in parsed) / len(parsed)


def test_baselines_without_texts_are_those_of_the_records(tmp_path: Path) -> None:
    from rlsys.documents.core import read_document
    from rlsys.documents.runs import RunSummary

    run = judge_run(tmp_path / "run", samples=2)
    told = read_document(run / "summary.json", RunSummary).baselines
    found = baselines(pq.read_table(run / "trajectories" / "heldout_base.parquet").to_pylist())
    assert (found.chance, found.first, found.pairs_n) == (pytest.approx(told.chance), pytest.approx(told.first), told.pairs_n)
    assert baselines([]) == RunBaselines(chance=None, first=None, pairs_n=0)


def test_nothing_parsed() -> None:
    sample = {"source": "s", "prompt_id": "r", "order": [1, 0], "ground_truth": [1.0, 0.0], "scores": None, "correct": False}
    assert picks([sample]) == {}
    found = written_scores([sample])
    assert (found.samples, found.counts, found.best, found.others, found.ties) == (0, {}, None, None, None)
    assert by_place([sample])[2, 2].accuracy == 0.0 and by_place([sample])[2, 2].ci95 is None
