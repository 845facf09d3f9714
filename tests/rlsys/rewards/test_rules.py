"""Correctness (Eq. 10) and reward (Eq. 11) of a critique."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.records import NoUniqueBest
from rlsys.rewards.extraction import ScoreFormat
from rlsys.rewards.rules import GroundTruth, is_correct, judge, rule_reward, unshuffle

NAN = float("nan")


def test_the_papers_case_study_votes_20_against_27() -> None:
    boxes = [("Scores: \\boxed{8, 8}", (0, 1)), ("Scores: \\boxed{9, 5}", (1, 0)), ("Scores: \\boxed{10, 7}", (1, 0))]
    judged = [judge(text, (0.0, 1.0), order) for text, order in boxes]
    assert [one.scores for one in judged] == [(8, 8), (5, 9), (7, 10)]
    assert [sum(column) for column in zip(*(one.scores for one in judged))] == [20, 27]
    assert [one.reward for one in judged] == [-1.0, 1.0, 1.0]  # the first is a tie


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_scores_are_unshuffled_from_any_order(order: tuple[int, ...]) -> None:
    own = (4, 9, 2, 7)
    shown = [own[original] for original in order]
    assert unshuffle(shown, order) == own
    judgement = judge(f"\\boxed{{{', '.join(map(str, shown))}}}", (0.1, 0.9, 0.2, 0.3), order)
    assert judgement == (own, None, True, 1.0)


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(*[st.tuples(st.integers(1, 10), st.integers(-3, 3))] * n)))
def test_correct_means_the_best_response_alone_has_the_highest_score(pairs: tuple[tuple[int, int], ...]) -> None:
    scores, rewards = [s for s, _ in pairs], [float(r) for _, r in pairs]
    if rewards.count(max(rewards)) > 1:
        with pytest.raises(ValueError, match="exactly one highest"):
            is_correct(scores, rewards)
        return
    winners = [i for i in range(len(scores)) if scores[i] == max(scores)]
    assert is_correct(scores, rewards) == (winners == [rewards.index(max(rewards))])


@pytest.mark.parametrize(("score", "reward", "right"), [(0, 0.0, True), (1, 1.0, True), (0, 1.0, False), (1, 0.0, False)])
def test_a_single_response_is_correct_if_the_score_equals_its_label(score: int, reward: float, right: bool) -> None:
    assert judge(f"\\boxed{{{score}}}", (reward,)) == ((score,), None, right, 1.0 if right else -1.0)


def test_a_parse_failure_has_reward_minus_one_and_keeps_its_reason() -> None:
    assert judge("no scores", (1.0, 0.0)) == (None, "no_box", False, -1.0)
    assert judge("\\boxed{0}", (0.0,)).reward == rule_reward(True) == 1.0


@pytest.mark.parametrize("order", [(0, 0), (0,), (0, 1, 2), (1, 2), (-1, 0), ()])
def test_an_invalid_order_is_an_error_even_after_a_parse_failure(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="order"):
        judge("\\boxed{1, 2}", (1.0, 0.0), order)
    with pytest.raises(ValueError, match="order"):
        judge("", (1.0, 0.0), order)


@pytest.mark.parametrize("rewards", [(), (1.0, 1.0), (NAN, 1.0), (1.0, NAN), (NAN, NAN), (0.0, NAN, 1.0), (NAN,), (2.0,), (0.5,)])
def test_invalid_ground_truth_is_an_error(rewards: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rewards"):
        judge("", rewards)


def test_only_a_tie_among_several_responses_is_reported_as_no_unique_best() -> None:
    with pytest.raises(NoUniqueBest):
        judge("", (1.0, 1.0))
    for rewards in [(), (0.5,)]:
        with pytest.raises(ValueError) as error:
            judge("", rewards)
        assert not isinstance(error.value, NoUniqueBest)


@pytest.mark.parametrize("scores", [(1, 2, 3), (1,)])
def test_scores_and_rewards_of_different_lengths_are_an_error(scores: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{len(scores)} scores for 2 rewards"):
        is_correct(scores, (1.0, 0.0))


def test_a_single_score_is_between_0_and_1_and_complete_unless_stated_otherwise() -> None:
    assert is_correct((1,), (1.0,)) and not is_correct((0,), (1.0,))
    assert not is_correct((0.5,), (1.0,)) and not is_correct((0.5,), (0.0,))
    truth, text = GroundTruth((1.0, 0.0)), "\\boxed{7, 3}"
    assert judge(text, (1.0, 0.0)).failure is truth.judge(text).failure is None
    assert judge(text, (1.0, 0.0), truncated=True).failure == truth.judge(text, truncated=True).failure == "truncated"


@pytest.mark.parametrize(("score", "reward", "right"), [("8", 1.0, True), ("5.5", 1.0, False), ("5.5", 0.0, False), ("2.5", 0.0, True)])
def test_a_single_score_is_correct_if_nearer_to_the_correct_end_of_its_range(score: str, reward: float, right: bool) -> None:
    score_format = ScoreFormat("decimal", single=(1, 10))
    assert judge(f"\\boxed{{{score}}}", (reward,), score_format=score_format).correct is right
