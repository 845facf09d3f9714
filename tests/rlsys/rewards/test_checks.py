"""Checks of texts, against hand-made examples."""

import pytest

from rlsys.rewards.checks import RULES, passes, require_valid, words_of

EXAMPLES = [
    ({"rule": "word_count", "count": 3}, ["the big fox", "It's a fox.", "one - two-three, 4!"], ["the fox", "a b c d"]),
    ({"rule": "max_words", "count": 2}, ["fox", "a fox"], ["a b c"]),
    ({"rule": "min_words", "count": 2}, ["a fox", "a b c"], ["fox"]),
    (
        {"rule": "item_count", "count": 3},
        ["cat, dog, cow", "cat, dog and cow.", "1. cat\n2. dog\n3. cow", "- cat and kitten\n- dog\n\n- cow", "cat; dog; cow"],
        ["cat, dog", "cat, dog, dog", "cat dog cow", "Sure:\ncat\ndog\ncow"],
    ),
    ({"rule": "alphabetical"}, ["ant, bee, cow", "1. Ant\n2. bee"], ["bee, ant", "1. bee\n2. Ant"]),
    ({"rule": "includes", "words": ["fox", "Lamp"]}, ["A lamp and a fox.", "FOX-free? No: fox, lamp"], ["a fox", "foxes and lamps"]),
    ({"rule": "excludes", "words": ["big"]}, ["a bigger fox"], ["Big!", "the big fox"]),
    ({"rule": "first_word", "word": "fox"}, ["Fox it is", '"fox" it is'], ["a fox", "foxes"]),
    ({"rule": "last_word", "word": "fox"}, ["a FOX.", "fox"], ["fox it is", "a firefox"]),
    ({"rule": "initials", "letters": ["b", "k"]}, ["big king", "Bread, kite!"], ["king big", "big", "big red king"]),
    ({"rule": "no_letter", "letter": "e"}, ["a big fox"], ["the fox", "THE FOX"]),
    ({"rule": "case", "of": "upper"}, ["A FOX: 2!"], ["A Fox", "a fox"]),
    ({"rule": "case", "of": "lower"}, ["a fox: 2!"], ["A fox"]),
    ({"rule": "repeats", "word": "fox", "count": 2}, ["fox, Fox.", "fox fox"], ["fox", "fox fox fox", "fox a fox"]),
    ({"rule": "answer", "expected": "New Delhi"}, ["new delhi.", "New Delhi"], ["Delhi", "It is New Delhi"]),
]


def test_every_rule_has_examples():
    assert {check["rule"] for check, _, _ in EXAMPLES} == set(RULES)


@pytest.mark.parametrize("check, good, bad", EXAMPLES)
def test_rules(check, good, bad):
    require_valid([check])
    assert [text for text in good if not passes([check], text)] == []
    assert [text for text in (*bad, "", " ...\n") if passes([check], text)] == []


def test_all_checks_have_to_hold():
    checks = [{"rule": "word_count", "count": 2}, {"rule": "last_word", "word": "fox"}]
    assert passes(checks, "a fox") and not passes(checks, "the big fox") and not passes(checks, "fox a")


def test_no_checks_are_no_verdict():
    with pytest.raises(ValueError, match="no checks"):
        passes([], "text")


def test_words_of_other_scripts_count():
    assert words_of("Zwei Füchse, l\u2019été 3rd") == ["zwei", "füchse", "l\u2019été", "3rd"]


@pytest.mark.parametrize(
    "check, message",
    [
        ({"rule": "count"}, "with a rule of word_count"),
        ({"count": 2}, "with a rule of"),
        ("word_count", "with a rule of"),
        ({"rule": "word_count"}, "expected count .a number from 0 up. with rule word_count, found {}"),
        ({"rule": "word_count", "count": "two"}, "expected count .a number"),
        ({"rule": "word_count", "count": 2, "words": []}, "expected count .a number"),
        ({"rule": "includes", "words": "fox"}, "expected words .a list of texts"),
        ({"rule": "case", "of": "title"}, "expected of .upper or lower"),
        ({"rule": "alphabetical", "count": 1}, "expected no arguments"),
    ],
)
def test_unusable_checks_say_what_is_expected(check, message):
    with pytest.raises(ValueError, match=r"^checks\[1\]: .*" + message):
        require_valid([{"rule": "alphabetical"}, check])
