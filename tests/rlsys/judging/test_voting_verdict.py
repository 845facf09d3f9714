"""Verdicts: ties, the best response, and coverage against accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.judging import voting
from rlsys.judging.voting import Options, Outcome, Samples, best, coverage_curve, margin, tied

NAN = float("nan")


def outcome(totals: list, abstained: list | None = None) -> Outcome:
    array = np.array(totals, dtype=float)
    leading = array.shape[:-1]
    return Outcome(array, np.ones((*leading, 1), bool), np.zeros(leading, bool) if abstained is None else np.array(abstained))


def test_best_of_clear_rows_and_of_none() -> None:
    decided = outcome([[1, 3, 2], [NAN, NAN, NAN], [9, 1, 1], [5, 4, 3]], [False, False, True, False])
    assert best(decided, [(0, row) for row in range(4)]).tolist() == [1, -1, -1, 0]


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=5))
def test_best_is_one_of_the_highest(totals: list[list[int]]) -> None:
    for row, choice in zip(totals, best(outcome(totals), [("seed", row) for row in range(len(totals))]).tolist()):
        assert row[choice] == max(row)


def test_ties_go_to_each_of_the_tied_equally_often_by_the_key_alone() -> None:
    keys = [(0, f"row {number}") for number in range(3000)]
    choices = best(outcome([[4, 7, 7, 7]] * 3000), keys)
    counts = np.bincount(choices, minlength=4)
    assert counts[0] == 0 and all(abs(count - 1000) < 5 * math.sqrt(1000) for count in counts[1:])
    backwards = best(outcome([[4, 7, 7, 7]] * 3000), keys[::-1])
    np.testing.assert_array_equal(backwards, choices[::-1])  # where a row stands does not matter
    assert (best(outcome([[4, 7, 7, 7]] * 3000), [(1, f"row {number}") for number in range(3000)]) != choices).any()


def test_each_draw_of_a_row_breaks_its_own_tie() -> None:
    choices = best(outcome([[[1, 1]] * 400]), [("seed", "row")])
    assert choices.shape == (1, 400) and 150 < choices.sum() < 250


def test_rounding_makes_no_difference_and_breaks_no_tie() -> None:
    assert tied(np.array([[0.1 + 0.2, 0.3, 0.1]])).tolist() == [[True, True, False]]
    assert tied(np.array([[1e-30, 2e-30]])).tolist() == [[False, True]]
    assert not tied(np.array([[NAN, NAN]])).any()


def test_best_requires_a_key_per_row() -> None:
    with pytest.raises(ValueError, match=r"totals of shape \[2, 2\], 1 keys"):
        best(outcome([[1, 2], [2, 1]]), [(0,)])


@given(st.lists(st.integers(1, 10), min_size=2, max_size=5))
def test_margin_is_best_minus_second(totals: list[int]) -> None:
    second, first = sorted(totals)[-2:]
    assert margin(np.array(totals, dtype=float)) == first - second


def test_margin_without_a_rival_and_without_a_verdict() -> None:
    assert margin(np.array([[4.0], [NAN]])).tolist()[0] == math.inf
    assert np.isnan(margin(np.array([[NAN, NAN], [NAN, NAN]]))).all()


def test_coverage_by_hand() -> None:
    """Five rows. Margin 3: right. Margins 2 and 2: one of two right. Margin 0: wrong. The fifth has no verdict, but counts as a row."""
    curve = coverage_curve(np.array([2.0, NAN, 3.0, 0.0, 2.0]), np.array([True, False, True, False, False]))
    assert curve.threshold.tolist() == [3.0, 2.0, 0.0]
    assert curve.coverage.tolist() == [1 / 5, 3 / 5, 4 / 5]
    assert curve.accuracy.tolist() == pytest.approx([1.0, 2 / 3, 2 / 4])


@given(st.lists(st.tuples(st.sampled_from([NAN, 0.0, 0.5, 1.0, 2.0]), st.booleans()), max_size=12))
def test_coverage_equals_withholding_row_by_row(rows: list[tuple[float, bool]]) -> None:
    curve = coverage_curve(np.array([margin for margin, _ in rows]), np.array([correct for _, correct in rows]))
    assert curve.threshold.tolist() == sorted({margin for margin, _ in rows if not math.isnan(margin)}, reverse=True)
    for threshold, coverage, accuracy in zip(*curve):
        given_out = [correct for margin, correct in rows if margin >= threshold]
        assert coverage == len(given_out) / len(rows)
        assert accuracy == pytest.approx(sum(given_out) / len(given_out))


def test_abstaining_is_a_point_on_the_coverage_curve() -> None:
    samples = Samples(np.random.default_rng(0).integers(1, 11, size=(300, 4, 2)).astype(float))
    correct = voting.vote(samples).totals.argmax(axis=-1) == 0
    curve = coverage_curve(margin(voting.mean(samples).totals), correct)
    withheld = voting.abstain(samples, Options(margin=2.0)).abstained
    point = np.flatnonzero(curve.threshold >= 2.0)[-1]
    assert curve.coverage[point] == pytest.approx(1 - withheld.mean())
    assert curve.accuracy[point] == pytest.approx(correct[~withheld].mean())


def test_coverage_requires_equal_lengths() -> None:
    with pytest.raises(ValueError, match=r"margins \[2\], correct \[3\]"):
        coverage_curve(np.zeros(2), np.zeros(3))
