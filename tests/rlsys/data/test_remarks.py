"""The programmatic teacher of checks: its remarks on any text, held against the checks themselves."""

import random

import pytest

from rlsys.data.records import Record
from rlsys.data.tasks import CHECKED, generate
from rlsys.data.tasks.remarks import CRITERIA, REMARKS, judgement
from rlsys.prompts.rendering import worked_text
from rlsys.rewards.checks import RULES, passes
from rlsys.rewards.rules import judge

LAMP = ({"rule": "word_count", "count": 3}, {"rule": "includes", "words": ["lamp"]})


def notes(checks, *texts, cut=()):
    passed = [passes(checks, text) and place not in cut for place, text in enumerate(texts)]
    return list(judgement(checks, texts, passed).notes)


def test_every_rule_has_a_criterion_and_a_remark():
    assert CRITERIA.keys() == REMARKS.keys() == RULES.keys()


def test_the_first_check_that_fails_is_named_and_all_if_none_does():
    assert notes(LAMP, "a b c d e", "the old cup", "a lamp shines", "!?") == [
        "a one, b two, c three, d four; expected three: wrong.",
        "lacks lamp: wrong.",
        "a one, lamp two, shines three; expected three, has lamp: correct.",
        "says nothing: wrong.",
    ]


def test_a_text_that_was_cut_off_breaks_off():
    assert notes(LAMP, "a lamp shines", cut={0}) == ["breaks off after shines: wrong."]


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        (
            {"rule": "item_count", "count": 3},
            "1. Red wine\n2. Beer\n3. red wine",
            "red one, beer two, red three, red twice; expected three",
        ),
        ({"rule": "alphabetical"}, "- ant\n- dog\n- cat", "says dog before cat, expected alphabetical order"),
        ({"rule": "no_letter", "letter": "p"}, 'It is "apple".', "has p in apple"),
        ({"rule": "case", "of": "upper"}, "THE Cat sat", "says Cat, not in capital letters"),
        ({"rule": "excludes", "words": ["red", "blue"]}, "Blue sky", "says blue"),
        ({"rule": "initials", "letters": ["b", "c"]}, "big cats dig", "begins with b and c and d, expected b and c"),
        ({"rule": "min_words", "count": 4}, "too short", "too one, short two; expected at least four"),
        ({"rule": "min_words", "count": 150}, "much too short", "three in all; expected at least 150"),
        ({"rule": "answer", "expected": "Oslo"}, "Bergen, of course", "says bergen of, expected Oslo"),
    ],
)
def test_a_remark_quotes_what_decides(check, text, expected):
    assert notes((check,), text) == [f"{expected}: wrong."]


@pytest.mark.parametrize("family", CHECKED)
def test_a_judgement_of_any_answers_is_one_that_the_cold_start_accepts(family):
    """Answers of other rows, of all families: mostly long, off the point or wrong in several ways."""
    pool = [text for other in CHECKED for row in generate("train", 3, 1, families=[other], responses=[4]) for text in row.responses]
    rng = random.Random(family)
    for row in generate("train", 40, 0, families=[family], level=3, responses=[4]):
        texts = list(dict.fromkeys([*row.responses, *rng.sample(pool, 3)]))
        passed = [passes(row.checks, text) for text in texts]
        worked = judgement(row.checks, texts, passed)
        assert [note.endswith(": correct.") for note in worked.notes] == passed == [score > 5 for score in worked.scores]
        shown = [texts[passed.index(True)], *(text for text, ok in zip(texts, passed) if not ok)]
        rewards = (1.0, *[0.0] * (len(shown) - 1))
        worked = judgement(row.checks, shown, [reward == 1 for reward in rewards])
        order = rng.sample(range(len(shown)), len(shown))
        text = worked_text(Record(row.id, row.source, row.context, tuple(shown), rewards, worked=worked), order)
        assert judge(text, rewards, order).correct
