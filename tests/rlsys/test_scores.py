"""Scores: what counts as a score, what counts as correct, and what a critique is paid."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.scores import FAILURES, extract, is_correct, judge, rule_reward, score_range, unshuffle

NAN = float("nan")


def reference_extract(text: str, n: int, low: int, high: int) -> tuple[tuple[int, ...] | None, str | None]:
    """The extractor again, character by character, without regular expressions and without int()."""
    opening, body = "\\boxed{", None
    for start in range(len(text)):
        if text[start : start + len(opening)] != opening:
            continue
        inside = []
        for char in text[start + len(opening) :]:
            if char == "}":
                body = "".join(inside)
                break
            if char == "{":
                break
            inside.append(char)
    if body is None:
        return None, "no_box"
    items, current = [], ""
    for char in body:
        if char == ",":
            items.append(current)
            current = ""
        else:
            current += char
    items.append(current)
    if all(char in " \t\r\n" for char in body):
        items = []
    if len(items) != n:
        return None, "wrong_count"
    values = []
    for item in items:
        while item and item[0] in " \t\r\n":
            item = item[1:]
        while item and item[-1] in " \t\r\n":
            item = item[:-1]
        negative = item[:1] == "-"
        if item[:1] in ("+", "-"):
            item = item[1:]
        if not item:
            return None, "not_an_integer"
        value = 0
        for char in item:
            if char not in "0123456789":
                return None, "not_an_integer"
            value = min(value * 10 + "0123456789".index(char), 10**12)
        values.append(-value if negative else value)
    if any(value < low or value > high for value in values):
        return None, "out_of_range"
    return tuple(values), None


PIECES = (
    *("\\boxed{", "\\boxed{", "\\boxed {", "\\\\boxed{", "boxed{", "\\Boxed{", "{", "}", "}"),
    *("\\", ",", ", ", " ", "\n", "\t", "\r", "\u00a0"),
    *("0", "1", "2", "8", "9", "10", "11", "007", "-1", "+3", "--2", "1.5", "1e1", "8/10", "1_0"),
    *("\u0663", "\u00b2", "\uff18", "\x00", "\ud800"),
    *("8, 9", "\\boxed{8, 9}", "\\boxed{1}", "\\text{", "Scores: ", "**", "nan", "\U0001f600", "A"),
)

LONG = ("9" * 5000, "0" * 5000 + "7", "-" + "0" * 5000)  # int() refuses these


def piece(rng: random.Random) -> str:
    return rng.choice(LONG) if rng.random() < 0.002 else rng.choice(PIECES)


def pasted(rng: random.Random) -> str:
    return "".join(piece(rng) for _ in range(rng.randrange(12)))


def test_a_hundred_thousand_adversarial_strings_agree_with_the_slow_reference() -> None:
    rng = random.Random(20250404)
    outcomes = dict.fromkeys((None, *FAILURES), 0)
    for _ in range(100_000):
        text, n = pasted(rng), rng.choice((1, 2, 2, 4))
        if rng.random() < 0.5:
            text += "\\boxed{" + ",".join(piece(rng) for _ in range(n)) + "}"
        low, high = score_range(n)
        result = extract(text, n, low, high)
        assert (result.scores is None) != (result.failure is None)
        assert tuple(result) == reference_extract(text, n, low, high), ascii(text)
        outcomes[result.failure] += 1
    assert min(outcomes.values()) > 500, f"the generator should reach every outcome often: {outcomes}"


@settings(max_examples=1500, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet=st.characters()),  # lone surrogates included
        st.text(alphabet="\\boxed{}, 0123456789+-.\n"),
        st.lists(st.one_of(st.sampled_from(PIECES + LONG), st.text(max_size=5)), max_size=20).map("".join),
    ),
    n=st.integers(1, 5),
)
def test_any_text_agrees_with_the_slow_reference(text: str, n: int) -> None:
    low, high = score_range(n)
    assert tuple(extract(text, n, low, high)) == reference_extract(text, n, low, high)


@given(st.lists(st.integers(1, 10), min_size=2, max_size=6), st.text(alphabet=st.characters(exclude_characters="\\"), max_size=40))
def test_scores_written_in_the_output_form_are_read_back(scores: list[int], tail: str) -> None:
    text = f"Specific Criteria: x\nAnalysis: y\nScores: \\boxed{{{', '.join(map(str, scores))}}}{tail}"
    assert extract(text, len(scores), 1, 10).scores == tuple(scores)


@pytest.mark.parametrize("text", ["Scores: \\boxed{8, 9}", "**Scores: \\boxed{8, 9}**", "### Output: \\boxed{8,9}", "\\boxed{ 08 ,\n+9 }"])
def test_forms_seen_in_real_outputs(text: str) -> None:
    assert extract(text, 2, 1, 10).scores == (8, 9)


@pytest.mark.parametrize(
    ("text", "n", "reason"),
    [
        ("", 2, "no_box"),
        ("Scores: 8, 9", 2, "no_box"),
        ("\\boxed{8, 9", 2, "no_box"),
        ("\\boxed{\\text{8}, 9}", 2, "no_box"),
        ("\\boxed{}", 2, "wrong_count"),
        ("\\boxed{ }", 1, "wrong_count"),
        ("\\boxed{8}", 2, "wrong_count"),
        ("\\boxed{8; 9}", 2, "wrong_count"),
        ("\\boxed{8, 9, 10}", 2, "wrong_count"),
        ("\\boxed{8, }", 2, "not_an_integer"),
        ("\\boxed{8, 9.0}", 2, "not_an_integer"),
        ("\\boxed{8/10, 9/10}", 2, "not_an_integer"),
        ("\\boxed{s_1, s_2}", 2, "not_an_integer"),
        ("\\boxed{\u0668, 9}", 2, "not_an_integer"),  # an Arabic-Indic eight: int() would take it
        ("\\boxed{1_0, 9}", 2, "not_an_integer"),  # int() would take it
        ("\\boxed{8\x00, 9}", 2, "not_an_integer"),
        ("\\boxed{0, 9}", 2, "out_of_range"),
        ("\\boxed{8, 11}", 2, "out_of_range"),
        ("\\boxed{8, -9}", 2, "out_of_range"),
        ("\\boxed{" + "9" * 5000 + ", 1}", 2, "out_of_range"),  # int() would raise
        ("\\boxed{2}", 1, "out_of_range"),
    ],
)
def test_everything_else_is_a_failure_with_its_reason(text: str, n: int, reason: str) -> None:
    assert extract(text, n, *score_range(n)) == (None, reason)


def test_the_last_well_formed_box_counts_even_where_an_earlier_one_is_better() -> None:
    assert extract("\\boxed{1, 2} then \\boxed{3, 4}", 2, 1, 10).scores == (3, 4)
    assert extract("\\boxed{1, 2} then \\boxed{3, 4", 2, 1, 10).scores == (1, 2)
    assert extract("\\boxed{1, 2} then \\boxed{3}", 2, 1, 10).failure == "wrong_count"


@pytest.mark.parametrize("unit", ["\\boxed{", "\\boxed{8, 9}", "\\boxed", "{", "\\", "0", "\\boxed{" + "0" * 100, " ", ","])
def test_a_long_adversarial_text_is_read_to_its_end(unit: str) -> None:
    # Two million characters: anything quadratic would not come back within the life of the test run.
    text = unit * (2_000_000 // len(unit))
    assert extract("\\boxed{" + text + "\\boxed{8, 9}", 2, 1, 10).scores == (8, 9)
    extract("\\boxed{1," + text + "x}", 2, 1, 10)


def test_the_papers_case_study_votes_20_against_27() -> None:
    boxes = [("Scores: \\boxed{8, 8}", (0, 1)), ("Scores: \\boxed{9, 5}", (1, 0)), ("Scores: \\boxed{10, 7}", (1, 0))]
    judged = [judge(text, (0.0, 1.0), order) for text, order in boxes]
    assert [one.scores for one in judged] == [(8, 8), (5, 9), (7, 10)]
    assert [sum(column) for column in zip(*(one.scores for one in judged))] == [20, 27]
    assert [one.reward for one in judged] == [-1.0, 1.0, 1.0]  # the first is a tie


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_scores_find_their_way_back_from_any_order(order: tuple[int, ...]) -> None:
    own = (4, 9, 2, 7)
    shown = [own[original] for original in order]
    assert unshuffle(shown, order) == own
    judgement = judge(f"\\boxed{{{', '.join(map(str, shown))}}}", (0.1, 0.9, 0.2, 0.3), order)
    assert judgement == (own, None, True, 1.0)


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(*[st.tuples(st.integers(1, 10), st.integers(-3, 3))] * n)))
def test_correct_means_the_truly_best_is_strictly_first(pairs: tuple[tuple[int, int], ...]) -> None:
    scores, rewards = [s for s, _ in pairs], [float(r) for _, r in pairs]
    if rewards.count(max(rewards)) > 1:
        with pytest.raises(ValueError, match="exactly one highest"):
            is_correct(scores, rewards)
        return
    winners = [i for i in range(len(scores)) if scores[i] == max(scores)]
    assert is_correct(scores, rewards) == (winners == [rewards.index(max(rewards))])


@pytest.mark.parametrize(("score", "reward", "right"), [(0, 0.0, True), (1, 1.0, True), (0, 1.0, False), (1, 0.0, False)])
def test_a_single_response_is_right_when_its_label_is_hit(score: int, reward: float, right: bool) -> None:
    assert judge(f"\\boxed{{{score}}}", (reward,)) == ((score,), None, right, 1.0 if right else -1.0)


def test_a_parse_failure_is_paid_minus_one_and_keeps_its_reason() -> None:
    assert judge("no scores", (1.0, 0.0)) == (None, "no_box", False, -1.0)
    assert judge("\\boxed{0}", (0.0,)).reward == rule_reward(True) == 1.0


@pytest.mark.parametrize("order", [(0, 0), (0,), (0, 1, 2), (1, 2), (-1, 0), ()])
def test_an_order_that_is_no_permutation_is_an_error_even_where_nothing_parses(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="order"):
        judge("\\boxed{1, 2}", (1.0, 0.0), order)
    with pytest.raises(ValueError, match="order"):
        judge("", (1.0, 0.0), order)


@pytest.mark.parametrize("rewards", [(), (1.0, 1.0), (NAN, 1.0), (1.0, NAN), (NAN, NAN), (NAN,), (2.0,), (0.5,)])
def test_rewards_that_are_no_ground_truth_are_an_error(rewards: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rewards"):
        judge("", rewards)


def test_scores_and_rewards_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 scores for 2 rewards"):
        is_correct((1, 2, 3), (1.0, 0.0))
