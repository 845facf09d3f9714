"""`rlsys bench reward`: every sample is judged, and the figures follow from the seconds."""

from __future__ import annotations

import pytest

from launch.bench.reward import PHASES, batch, render
from rlsys.rewards.extraction import FAILURES, NOT_A_NUMBER, TRUNCATED
from rlsys.rewards.rules import judge


def test_batches_are_judged_whole(bench, record_ratio) -> None:
    document = bench("reward", "--groups", 60, "--samples", 4, "--prompt-tokens", 50, "--repeats", 3)
    asked, answered = batch(60, 4, 50)
    truths = dict(zip(asked["group"].to_pylist(), zip(asked["rewards"].to_pylist(), asked["order"].to_pylist())))
    pairs = zip(answered["text"].to_pylist(), answered["group"].to_pylist())
    judgements = [judge(text, *truths[group]) for text, group in pairs]
    assert document["counts"]["samples"] == document["samples"] == len(judgements) == 240
    assert document["counts"]["reward_sum"] == sum(one.reward for one in judgements)
    assert sum(document["counts"]["parse_failures"].values()) == sum(one.failure is not None for one in judgements) > 0
    assert document["file_bytes"] > 0 and len(document["batches"]) == 3
    for phase in PHASES:
        assert document["median"][phase] == sorted(one[phase] for one in document["batches"])[1] > 0
    assert document["samples_per_s"] == pytest.approx(240 / sum(document["median"].values()))
    assert render(document).row_count == len(PHASES)
    record_ratio("reward: judging and writing a batch over copying it", document["times_of_one_copy"])


def test_the_texts_are_long_and_malformed_in_every_way() -> None:
    asked, answered = batch(300, 4, 10)
    truths = dict(zip(asked["group"].to_pylist(), zip(asked["rewards"].to_pylist(), asked["order"].to_pylist())))
    judgements = [judge(text, *truths[group]) for text, group in zip(answered["text"].to_pylist(), answered["group"].to_pylist())]
    # Of integers, and of texts that ended by themselves.
    assert {one.failure for one in judgements} == {None, *FAILURES} - {NOT_A_NUMBER, TRUNCATED}
    assert 0.05 < sum(one.failure is not None for one in judgements) / len(judgements) < 0.15
    assert 0.2 < sum(one.correct for one in judgements) / len(judgements) < 0.6
    lengths = [len(tokens) for tokens in answered["token_ids"].to_pylist()]
    assert 60 < min(lengths) and max(lengths) < 350 and lengths == [len(row) for row in answered["logprobs"].to_pylist()]
