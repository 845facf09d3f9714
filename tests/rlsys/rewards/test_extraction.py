"""Extraction of scores: against a slow parser without regular expressions, and forms seen in real outputs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.rewards.extraction import FAILURES, GUARDS, NO_BOX, ScoreFormat, extract, score_range
from rlsys.rewards.rules import judge

UNSEEN = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
BEGINS, ENDS = ("<think>", "[think]", "<thinking>", "\u25c1think\u25b7"), ("</think>", "[/think]", "</thinking>", "\u25c1/think\u25b7")


def reference_answer(text: str) -> str | None:
    """Return the text after the last thought, or None if it is not closed; supports only the spellings in PIECES."""
    last = None
    for start, char in enumerate(text):
        for mark in BEGINS + ENDS if char in "<[\u25c1" else ():
            if text[start : start + len(mark)].lower() == mark:
                last = (start + len(mark), mark in ENDS)
    if last is None:
        return text
    return text[last[0] :] if last[1] else None


def reference_box(text: str) -> tuple[str | None, str | None]:
    found, word = (None, "no_box"), "boxed"
    for start in range(len(text)):
        if any(text[start + place : start + place + 1] not in (char, char.upper()) for place, char in enumerate(word)):
            continue
        command, end = start > 0 and text[start - 1] == "\\", start + len(word)
        place = end
        while place < len(text) and (text[place].isspace() or text[place] in UNSEEN):
            place += 1
        if place < len(text) and text[place] == "{":
            body = reference_body(text, place + 1)
            exact = command and text[start:end] == word and place == end
            found = (None, "cut_off_box") if body is None else (body, None) if exact else (None, "malformed_box")
            continue
        if command and place == len(text):
            found = (None, "cut_off_box")
        place = end
        while place < len(text) and (text[place].isspace() or text[place] in UNSEEN + ":=*_~\"'$<([\uff08"):
            place += 1
        number = place + (text[place : place + 1] in tuple("+-"))
        meant = text[place : place + 1] in tuple("\\{\uff5b") or text[number : number + 1].isdecimal()
        if command and meant and place < len(text):
            found = (None, "malformed_box")
    return found


def reference_body(text: str, start: int) -> str | None:
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start:place]
    return None


def reference_bare(text: str, blanks: str) -> str:
    """Strip surrounding blanks and one enclosing pair of braces."""
    while text and text[0] in blanks:
        text = text[1:]
    while text and text[-1] in blanks:
        text = text[:-1]
    inner = text
    if inner[:5] == "\\text":
        inner = inner[5:]
        while inner and inner[0] in " \t\r\n":
            inner = inner[1:]
    if len(inner) < 2 or inner[0] != "{" or inner[-1] != "}":
        return text
    inner, depth = inner[1:-1], 0
    for char in inner:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            return text
    while inner and inner[0] in blanks:
        inner = inner[1:]
    while inner and inner[-1] in blanks:
        inner = inner[:-1]
    return inner


def reference_extract(text: str, n: int, low: int, high: int, decimal: bool = False) -> tuple[tuple[float, ...] | None, str | None]:
    """Extract scores character by character, without regular expressions, int() or float()."""
    blanks = " \t\r\n" + ("\x0b\x0c\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" if decimal else "")
    blanks += "".join(map(chr, range(0x2000, 0x200B))) if decimal else ""
    answer = reference_answer(text)
    if answer is None:
        return None, "unfinished_thought"
    body, failure = reference_box(answer)
    if body is None:
        return None, failure
    body = reference_bare(body, blanks)
    if decimal and body[:1] == "[" and body[-1:] == "]":
        body = body[1:-1]
        while body and body[0] in blanks:
            body = body[1:]
        while body and body[-1] in blanks:
            body = body[:-1]
    items = [""]
    for char in body:
        if char == ",":
            items.append("")
        else:
            items[-1] += char
    items = [reference_bare(item, blanks) for item in items] if body else []
    if any("{" in item or "}" in item for item in items):
        return None, "malformed_box"
    if len(items) != n:
        return None, "wrong_count"
    values = []
    for item in items:
        negative = item[:1] == "-"
        if item[:1] in ("+", "-"):
            item = item[1:]
        whole, fraction = item, ""
        if decimal and "." in item:
            whole, fraction = item[: item.index(".")], item[item.index(".") + 1 :]
        if not whole or (decimal and "." in item and not fraction) or any(char not in "0123456789" for char in whole + fraction):
            return None, "not_a_number" if decimal else "not_an_integer"
        value = 0
        for char in whole:
            value = min(value * 10 + "0123456789".index(char), 10**12)
        for place, char in enumerate(fraction[:12], 1):
            value += "0123456789".index(char) / 10**place
        values.append(-value if negative else value)
    if any(value < low or value > high for value in values):
        return None, "out_of_range"
    return tuple(values), None


PIECES = (
    *("\\boxed{", "\\boxed{", "\\boxed {", "\\\\boxed{", "boxed{", "\\Boxed{", "\\boxed", "\\boxed: ", "\u200b", "{", "}", "}"),
    *("\\", ",", ", ", " ", "\n", "\t", "\r", "\u00a0"),
    *("0", "1", "2", "8", "9", "10", "11", "007", "-1", "+3", "--2", "1.5", "1e1", "8/10", "1_0"),
    *("\u0663", "\u00b2", "\uff18", "\x00", "\ud800"),
    *(
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "</Thinking>",
        "\u25c1think\u25b7",
        "<thin",
        "k>",
        "\\boxed",
        "[",
        "]",
        "8.25",
        "\\text {",
    ),
    *("8, 9", "\\boxed{8, 9}", "\\boxed{1}", "\\text{", "Scores: ", "**", "nan", "\U0001f600", "A"),
)

LONG = ("9" * 5000, "0" * 5000 + "7", "-" + "0" * 5000)  # int() refuses these


def agree(found, expected) -> bool:
    scores, failure = expected
    return found.failure == failure and (scores is None or found.scores == pytest.approx(scores, abs=1e-9))


def piece(rng: random.Random) -> str:
    return rng.choice(LONG) if rng.random() < 0.0005 else rng.choice(PIECES)


def pasted(rng: random.Random) -> str:
    return "".join(piece(rng) for _ in range(rng.randrange(12)))


@pytest.mark.parametrize("numbers", ["integer", "decimal"])
def test_thousands_of_adversarial_strings_agree_with_the_slow_reference(numbers: str) -> None:
    rng, decimal = random.Random(20250404), numbers == "decimal"
    never = {"truncated", "not_an_integer" if decimal else "not_a_number"}
    outcomes = dict.fromkeys({None, *FAILURES} - never, 0)
    for _ in range(15_000):
        text, n = pasted(rng), rng.choice((1, 2, 2, 4))
        if rng.random() < 0.5:
            text += "\\boxed{" + ",".join(piece(rng) for _ in range(n)) + "}"
        low, high = score_range(n)
        result = extract(text, n, low, high, numbers)
        assert (result.scores is None) != (result.failure is None)
        assert agree(result, reference_extract(text, n, low, high, decimal)), ascii(text)
        outcomes[result.failure] += 1
    assert min(outcomes.values()) > 50, f"the generator should reach every outcome often: {outcomes}"


@settings(max_examples=700, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet=st.characters()),  # lone surrogates included
        st.text(alphabet="\\boxed{}, 0123456789+-.\n"),
        st.lists(st.one_of(st.sampled_from(PIECES + LONG), st.text(max_size=5)), max_size=20).map("".join),
    ),
    n=st.integers(1, 5),
    decimal=st.booleans(),
)
def test_any_text_agrees_with_the_slow_reference(text: str, n: int, decimal: bool) -> None:
    low, high = score_range(n)
    found = extract(text, n, low, high, "decimal" if decimal else "integer")
    assert agree(found, reference_extract(text, n, low, high, decimal))


@given(st.lists(st.integers(1, 10), min_size=2, max_size=6), st.text(alphabet=st.characters(exclude_characters="\\"), max_size=40))
def test_scores_in_the_output_format_are_extracted(scores: list[int], tail: str) -> None:
    text = f"Specific Criteria: x\nAnalysis: y\nScores: \\boxed{{{', '.join(map(str, scores))}}}{tail}"
    assert extract(text, len(scores), 1, 10).scores == tuple(scores)


WRAPPED = ("\\boxed{\\text{8, 9}}", "\\boxed{{8}, {9}}", "\\boxed{{8, 9}}", "\\boxed{\\text{8}, \\text{9}}", "\\boxed{\\text{{8}, 9}}")


@pytest.mark.parametrize(
    "text", ["Scores: \\boxed{8, 9}", "**Scores: \\boxed{8, 9}**", "### Output: \\boxed{8,9}", "\\boxed{ 08 ,\n+9 }", *WRAPPED]
)
def test_forms_seen_in_real_outputs(text: str) -> None:
    assert extract(text, 2, 1, 10).scores == (8, 9)


@pytest.mark.parametrize(
    ("text", "n", "reason"),
    [
        ("", 2, "no_box"),
        ("Scores: 8, 9", 2, "no_box"),
        ("\\boxed[8, 9]", 2, "malformed_box"),
        ("\\boxed{8, 9", 2, "cut_off_box"),
        ("\\boxed{8, {9}", 2, "cut_off_box"),
        ("Scores: \\boxed", 2, "cut_off_box"),
        ("\\boxed {8, 9}", 2, "malformed_box"),
        ("\\boxed{\\textbf{8}, 9}", 2, "malformed_box"),
        ("\\boxed{\\frac{8}{10}, 9}", 2, "malformed_box"),
        ("\\boxed{{1}{0}, 9}", 2, "malformed_box"),
        ("\\boxed{1{, }000}", 2, "malformed_box"),
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
def test_everything_else_is_a_parse_failure_with_its_reason(text: str, n: int, reason: str) -> None:
    assert extract(text, n, *score_range(n)) == (None, reason)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("\\boxed{3}", "wrong_count"),
        ("\\boxed{3, 4", "cut_off_box"),
        ("\\boxed{", "cut_off_box"),
        ("\\boxed", "cut_off_box"),
        ("\\boxed{{3}{4}}", "malformed_box"),
        ("\\boxed {3, 4}", "malformed_box"),
        ("\\boxed[3, 4]", "malformed_box"),
        ("\\boxed(3, 4)", "malformed_box"),
        ("\\boxed\\{3, 4\\}", "malformed_box"),
        ("\\boxed\\text{3, 4}", "malformed_box"),
        ("\\boxed 3, 4", "malformed_box"),
        ("\\boxed\u200b{3, 4}", "malformed_box"),
        ("\\boxed\u00a0{3, 4}", "malformed_box"),
        ("\\boxed: 3, 4", "malformed_box"),
        ("\\boxed**{3, 4}**", "malformed_box"),
        ('\\boxed"3, 4"', "malformed_box"),
        ("\\boxed\uff5b3, 4\uff5d", "malformed_box"),
        ("\\boxed\uff13", "malformed_box"),
        ("\\Boxed{3, 4}", "malformed_box"),
        ("\\ boxed{3, 4}", "malformed_box"),
        ("boxed{3, 4}", "malformed_box"),
        ("boxed{3, 4", "cut_off_box"),
        ("\\boxed{}", "wrong_count"),
        ("\\boxed{?, ?}", "not_an_integer"),
        ("<think> No:", "unfinished_thought"),
    ],
)
def test_an_earlier_box_never_replaces_the_last(end: str, reason: str) -> None:
    assert extract("\\boxed{9, 2} then \\boxed{3, 4}", 2, 1, 10).scores == (3, 4)
    assert judge(f"\\boxed{{9, 2}} then {end}", (1.0, 0.0)) == (None, reason, False, -1.0)


@pytest.mark.parametrize("end", ["as in \\boxed form", "\\boxed.", "`\\boxed` scores", "The scores are boxed.", "(boxed) 3, 4"])
def test_the_word_alone_is_not_a_box(end: str) -> None:
    assert extract(f"\\boxed{{9, 2}} {end}", 2, 1, 10).scores == (9, 2)


# --- other formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "scores"),
    [("8.5, 9", (8.5, 9)), ("8.0, 9.0", (8, 9)), ("[8, 9]", (8, 9)), ("8\u00a0,\u202f9", (8, 9)), ("{[8.25, 9]}", (8.25, 9))],
)
def test_the_score_format_of_a_released_judge(body: str, scores: tuple[float, ...]) -> None:
    released = ScoreFormat(numbers="decimal", single=(1, 10))
    assert released.extract(f"\\boxed{{{body}}}", 2).scores == scores
    assert ScoreFormat().extract(f"\\boxed{{{body}}}", 2).scores is None
    assert released.extract("\\boxed{8}", 1).scores == (8,) and ScoreFormat().extract("\\boxed{8}", 1).failure == "out_of_range"
    for bad in ("8.5., 9", "nan, 9", "inf, 9", "1e1, 9", "8., 9", ".5, 9", "8/10, 9"):
        assert released.extract(f"\\boxed{{{bad}}}", 2).failure == "not_a_number"


def test_a_truncated_text_has_no_scores_and_keeps_a_more_specific_reason() -> None:
    for text, reason in (
        ("\\boxed{9, 3} and", "truncated"),
        ("\\boxed{9", "cut_off_box"),
        ("<think>", "unfinished_thought"),
        ("", "no_box"),
    ):
        assert judge(text, (1.0, 0.0), truncated=True) == (None, reason, False, -1.0)


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{8, 9}", "\\boxed", "{", "\\", "0", "\\boxed{" + "0" * 100, " ", ",", "<", "[", "<think>", "\\text{", "}"]
)
def test_a_long_adversarial_text_is_parsed_in_linear_time(unit: str) -> None:
    # Two million characters: a quadratic algorithm would not finish.
    text = unit * (2_000_000 // len(unit))
    assert extract("\\boxed{" + text + "</think>\\boxed{8, 9}", 2, 1, 10).scores == (8, 9)
    extract("\\boxed{1," + text + "x}", 2, 1, 10)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_quoted_defused_box_is_not_a_box(guard: str) -> None:
    quoted = f"The second response claims \\{guard}boxed{{10, 1}}."
    assert extract(f"Scores: \\boxed{{3, 8}}\n{quoted}", 2, 1, 10).scores == (3, 8)
    assert extract(quoted, 2, 1, 10).failure == NO_BOX
