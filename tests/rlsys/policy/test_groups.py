"""A policy's groups: split for the judge, and its judgements joined to rewards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_groups import judgement

from rlsys.config.policy import Judge
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeResult, RenderedRequest
from rlsys.judging.voting import Options, find_strategy
from rlsys.policy.groups import SampledGroup, joined, levels, split, win_rates

RECORD = Record("r1", "s", ({"role": "user", "content": "Q?"},), (), (), labelled=False)


def rewards_of(texts, scores, strategy="vote", **settings):
    """Rewards and scores of a group whose k judgements gave `scores`, by text."""
    judge = Judge(k=len(scores), strategy=strategy, **settings)
    group = SampledGroup.of(RECORD, texts, judge, 0)
    results = [judgement(request, *scores) for request in group.requests(judge.k, 0)]
    return group.rewards(results, judge, find_strategy(strategy))


TEXTS = ["b", "a", "b", "c"]
SCORES = [{"a": 9, "b": 4, "c": 4}, {"a": 5, "b": 8, "c": 2}]


def test_the_mean_of_the_judgements_goes_back_to_every_sample():
    rewards, scores = rewards_of(TEXTS, SCORES)
    assert rewards.tolist() == scores.tolist() == [6, 7, 6, 3]


def test_ranks():
    assert rewards_of(TEXTS, SCORES, reward="rank")[0].tolist() == [0.5, 1, 0.5, 0]
    tied, scores = rewards_of(["a", "b", "c"], [{"a": 4, "b": 4, "c": 1}], reward="rank")
    assert tied.tolist() == [0.75, 0.75, 0] and scores.tolist() == [4, 4, 1]


def test_win_rates_count_ties_half():
    # a wins 2 of 2 and 1 of 2; b ties one and wins 2 of 2; c ties one.
    assert rewards_of(TEXTS, SCORES, reward="win_rate")[0].tolist() == pytest.approx([(0.25 + 1) / 2, (1 + 0.5) / 2, (0.25 + 1) / 2, 0.125])


def test_win_rates_by_counting():
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 5, (7, 4)).astype(float)
    slow = [[sum((a > b) + (a == b) / 2 for j, b in enumerate(row) if j != i) / 3 for i, a in enumerate(row)] for row in scores]
    assert win_rates(scores) == pytest.approx(np.array(slow))
    assert np.isnan(win_rates(np.full((1, 3), np.nan))).all()


def test_a_judgement_that_did_not_parse_takes_no_part():
    assert rewards_of(TEXTS, [None, *SCORES, None])[0].tolist() == [6, 7, 6, 3]
    assert rewards_of(TEXTS, [None, SCORES[0]], reward="win_rate")[0].tolist() == [0.25, 1, 0.25, 0.25]


def test_a_group_without_a_judgement_has_no_rewards():
    assert rewards_of(TEXTS, [None, None]) is None
    judge = Judge(k=1, max_responses=2)
    group = SampledGroup.of(RECORD, ["a", "b", "c"], judge, 0)
    first, second = group.requests(1, 0)
    scores = {"a": 1, "b": 2, "c": 3}
    assert group.rewards([judgement(first, scores), judgement(second, None)], judge, find_strategy("vote")) is None
    assert group.rewards([judgement(first, scores), judgement(second, scores)], judge, find_strategy("vote"))[0].tolist() == [1, 2, 3]


def test_equal_texts_are_not_judged():
    group = SampledGroup.of(RECORD, ["a", "a"], Judge(), 0)
    assert group.requests(4, 0) == [] and group.rewards([], Judge(), find_strategy("vote")) is None


def test_a_guided_vote_keeps_the_judgements_of_the_highest_meta_reward():
    judge = Judge(k=3, strategy="meta", k_meta=1, meta_rm="m")
    group = SampledGroup.of(RECORD, ["a", "b"], judge, 0)
    (request,) = group.requests(3, 0)
    results = [judgement(request, {"a": 9, "b": 1}, {"a": 2, "b": 6}, None, meta_reward=[-1.0, 3.0, 9.0])]
    assert group.rewards(results, judge, find_strategy("meta"))[0].tolist() == [2, 6]
    wins = group.rewards(results, judge.model_copy(update={"reward": "win_rate"}), find_strategy("meta"))[0]
    assert wins.tolist() == [0, 1]


def test_orders_are_fresh_in_each_judgement_and_step():
    group = SampledGroup.of(RECORD, list("abcd"), Judge(), 0)
    ((one,), (two,)) = (group.requests(8, "policy", 0, step) for step in (1, 2))
    assert len({tuple(order) for order in one.orders}) > 3 and one.orders != two.orders and not set(one.seeds) & set(two.seeds)
    assert group.requests(8, "policy", 0, 1)[0] == one


# --- parts ---


@given(st.integers(2, 40), st.integers(2, 9), st.data())
def test_parts_cover_every_response_and_share_the_anchors(n, limit, data):
    anchors = data.draw(st.integers(1, limit - 1))
    parts = split(n, limit, anchors, (0, "r"))
    assert set().union(*parts) == set(range(n)) and all(len(set(part)) == len(part) <= limit for part in parts)
    if len(parts) > 1:
        assert n > limit and len({part[:anchors] for part in parts}) == 1
        assert {len(part) for part in parts} == {limit}
        assert len(parts) == -(-(n - anchors) // (limit - anchors)), "more parts than necessary"
    else:
        assert n <= limit


def test_parts_are_shifted_to_the_anchors_mean():
    """The example of the module."""
    scores = joined([(1, 0, 3), (1, 2, 4)], [np.array([6.0, 3, 8]), np.array([4.0, 2, 7])], 1)
    assert scores.tolist() == [2, 5, 3, 7, 8]


@given(st.integers(5, 20), st.data())
def test_a_judge_who_is_only_stricter_in_some_parts_joins_to_the_true_differences(n, data):
    """Scores = quality + the part's own leniency: what is joined is the quality up to one constant."""
    quality = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), float)
    parts = split(n, 4, 2, (1, "r"))
    leniency = data.draw(st.lists(st.integers(-5, 5), min_size=len(parts), max_size=len(parts)))
    found = joined(parts, [quality[list(part)] + more for part, more in zip(parts, leniency)], 2)
    assert found - found[0] == pytest.approx(quality - quality[0])


def test_levels_of_nothing():
    (request,) = SampledGroup.of(RECORD, ["a", "b"], Judge(), 0).requests(1, 0)
    assert levels(judgement(request, None), find_strategy("vote"), Options()) is None
    assert levels(JudgeResult(RenderedRequest(request, [], "too long")), find_strategy("vote"), Options()) is None
