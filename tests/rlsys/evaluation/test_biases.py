"""Biases of judged rows, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from rlsys.evaluation.biases import length_bias, order_consistency, parse_failures, position_bias, tokens_spent


def sample(order, scores, **keys) -> dict:
    return {"order": list(order), "scores": None if scores is None else list(scores)} | keys


FAILED = sample((0, 1), None, failure="no_box", tokens=7)


def test_position_bias():
    rows = [
        [sample((0, 1), (9, 2)), sample((1, 0), (9, 2)), FAILED],  # the first shown wins twice
        [sample((0, 1), (3, 8)), sample((1, 0), (5, 5))],  # the second wins; a tie is shared
        [sample((2, 0, 1), (1, 1, 6))],  # the third wins
    ]
    found = position_bias(rows)
    assert found.n == 5
    assert found.first == pytest.approx((1 + 1 + 0 + 0.5 + 0) / 5)
    assert found.first_expected == pytest.approx((4 / 2 + 1 / 3) / 5)
    assert found.places == pytest.approx([2.5 / 5, (0 + 0 + 1 + 0.5 + 0) / 5, 1 / 1])


def test_position_bias_of_a_judge_that_only_looks_at_places():
    rows = [[sample(order, (9, 1, 1)) for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0))]]
    found = position_bias(rows)
    assert found.first == 1 and found.first_expected == pytest.approx(1 / 3) and found.places == [1, 0, 0]
    assert order_consistency(rows).other_order == 0


def test_order_consistency():
    rows = [
        # Response 0 wins in both orders, twice in the first: other orders agree 2 of 2, the same order 1 of 1.
        [sample((0, 1), (9, 2)), sample((0, 1), (7, 2)), sample((1, 0), (2, 9)), FAILED],
        # In order (0, 1) response 0 and then a tie; in order (1, 0) response 1: 0 of 2, and 0 of 1.
        [sample((0, 1), (9, 2)), sample((0, 1), (5, 5)), sample((1, 0), (9, 2))],
        # One sample has nothing to agree with.
        [sample((0, 1), (9, 2))],
    ]
    assert order_consistency(rows).to_json() == {"other_order": (1 + 0) / 2, "same_order": (1 + 0) / 2, "rows": 2}


def test_length_bias():
    responses = [("short", "much longer"), ("aaaa", "bbbb")]
    rows = [[sample((0, 1), (2, 9)), sample((1, 0), (2, 9)), FAILED], [sample((0, 1), (8, 3))]]
    found = length_bias(rows, responses, best=[0, None])
    # The longer one wins the first sample and loses the second, which showed it first; of two equally long ones each is half the longest.
    assert found.longest_wins == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.longest_expected == 0.5 and found.longest_is_best == 0 and found.n == 3
    growth = math.log(len("short") / len("much longer"))
    assert found.correlation == pytest.approx(spearmanr([2 - 9, 9 - 2, 8 - 3], [growth, growth, 0]).statistic)


def test_an_empty_response_is_a_short_one():
    found = length_bias([[sample((0, 1), (9, 2))], [sample((0, 1), (5, 4))]], [("much longer", ""), ("", "longer")])
    assert found.longest_wins == 0.5 and found.correlation == pytest.approx(1.0)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5, unique=True), st.permutations(range(5)))
def test_a_judge_of_length_alone(lengths, order):
    """It always picks the longest, whatever the order, and its scores are a perfect monotone function of length."""
    order = [response for response in order if response < len(lengths)]
    row = [sample(order, [lengths[response] for response in order])]
    found = length_bias([row] * 2, [["x" * length for length in lengths]] * 2, best=[int(np.argmax(lengths)), int(np.argmin(lengths))])
    assert found.longest_wins == 1 and found.longest_is_best == 0.5
    assert found.longest_expected == pytest.approx(1 / len(lengths))
    if len(lengths) > 2:  # a difference of length need not be one of log length, but no pair goes the other way
        assert found.correlation > 0


def test_parse_failures_and_tokens():
    rows = [
        [FAILED, sample((0, 1), (9, 2), tokens=10)],
        [sample((0, 1), None, failure="wrong_count", tokens=3, truncated=True), FAILED, sample((0, 1), None)],
    ]
    assert parse_failures(rows).to_json() == {
        "samples": 5,
        "failed": 4,
        "cut_off": 1,
        "reasons": {"no_box": 2, "wrong_count": 1, "unknown": 1},
    }
    # 17 in the first row, 10 in the second; one sample does not say.
    assert tokens_spent(rows).to_json() == {"total": 27, "per_row": 13.5, "per_sample": 27 / 4}


def test_nothing_to_measure():
    rows = [[FAILED], [sample((0,), (7,))]]  # one response has no rival
    assert position_bias(rows).to_json() == {"first": None, "first_expected": None, "places": [], "n": 0}
    assert order_consistency(rows).to_json() == {"other_order": None, "same_order": None, "rows": 0}
    nothing = {"longest_wins": None, "longest_expected": None, "longest_is_best": None, "correlation": None, "n": 0}
    assert length_bias(rows, [("a", "b"), ("c",)]).to_json() == nothing
    assert tokens_spent([[sample((0, 1), (1, 2))]]).to_json() == {"total": 0, "per_row": None, "per_sample": None}
