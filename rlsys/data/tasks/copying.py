"""Task families that manipulate given words: copy, reverse, pick, change case, wrap in punctuation, spell."""

from __future__ import annotations

import random

from rlsys.data.tasks.core import Family, Item, expected
from rlsys.data.tasks.words import ADJECTIVES, NOUNS, ORDINALS, VERBS

COPY_QUERIES = ("Repeat exactly: {}", "Copy this: {}", "Say this again, word for word: {}", "Write the same words: {}")
REVERSE_QUERIES = ("Say these words backwards: {}", "Reverse the order of these words: {}", "Write from last word to first: {}")
PICK_QUERIES = ("What is the {} word here: {}", "Give the {} word of: {}", "Which word is {}: {}")
CASE_QUERIES = ("Write in {}: {}", "Put this in {}: {}", "Change to {}: {}")
WRAP_QUERIES = ("Put in {}: {}", "Write inside {}: {}", "Use {} around: {}")
SPELL_QUERIES = ("Spell {} with dashes.", "Spell the word {}, letter by letter.", "How do you spell {}?")
WRAPPERS = {
    "round brackets": ("(", ")"),
    "square brackets": ("[", "]"),
    "double quotes": ('"', '"'),
    "stars": ("*", "*"),
    "dashes": ("-", "-"),
    "slashes": ("/", "/"),
}
CASES = {"lower case": str.lower, "capitals": str.upper, "title case": str.title, "sentence case": str.capitalize}


def _sample_sentence(rng: random.Random, level: int) -> tuple[str, ...]:
    words = ["the", rng.choice(ADJECTIVES), rng.choice(NOUNS), rng.choice(VERBS)]
    if level > 1:
        words += ["near", "the", rng.choice(ADJECTIVES), rng.choice(NOUNS)]
    if level > 2:
        words += ["and", "the", rng.choice(NOUNS)]
    return tuple(words)


def _build_copy(rng: random.Random, level: int, facts: tuple[str, ...]) -> Item:
    right = " ".join(facts)
    wrong: dict[str, tuple[str, str]] = {}
    while len(wrong) < 5:
        place = rng.randrange(len(facts))
        lists = [words for words in (ADJECTIVES, NOUNS, VERBS) if facts[place] in words]
        if lists:
            word = rng.choice(lists[0])
            if word != facts[place]:
                wrong[" ".join((*facts[:place], word, *facts[place + 1 :]))] = (word, facts[place])

    def note(response: str) -> str:
        if response in wrong:
            return f"{response} has {{}}, not {{}}".format(*wrong[response])
        return f"{response} has every word"

    return Item(rng.choice(COPY_QUERIES).format(right), "Each word must be the same.", right, list(wrong), note)


def _sample_words(rng: random.Random, level: int) -> tuple[str, ...]:
    return tuple(rng.sample(NOUNS, level + 2))


def _build_reverse(rng: random.Random, level: int, facts: tuple[str, ...]) -> Item:
    right = " ".join(reversed(facts))
    wrong: dict[str, None] = {}
    while len(wrong) < 3:
        text = " ".join(rng.sample(facts, len(facts)))
        if text != right:
            wrong[text] = None
    return Item(rng.choice(REVERSE_QUERIES).format(" ".join(facts)), f"Backwards: {right}.", right, list(wrong), expected(right))


def _sample_pick(rng: random.Random, level: int) -> tuple[str, tuple[str, ...]]:
    words = tuple(rng.sample(NOUNS, 4 + (level > 1) + 2 * (level > 2)))
    return rng.choice((ORDINALS[0], "last") if level == 1 else (*ORDINALS[1 : len(words) - 1], "last")), words


def _build_pick(rng: random.Random, level: int, facts: tuple[str, tuple[str, ...]]) -> Item:
    place, words = facts
    right = words[-1 if place == "last" else ORDINALS.index(place)]
    wrong = [word for word in words if word != right]
    return Item(rng.choice(PICK_QUERIES).format(place, " ".join(words)), f"The {place} word is {right}.", right, wrong, expected(right))


def _sample_case(rng: random.Random, level: int) -> tuple[str, tuple[str, ...]]:
    words = (*rng.sample(ADJECTIVES, level), rng.choice(NOUNS))
    return rng.choice(("lower case", "capitals", "title case")), words


def _build_case(rng: random.Random, level: int, facts: tuple[str, tuple[str, ...]]) -> Item:
    wanted, words = facts
    text = " ".join(words)
    right = CASES[wanted](text)
    names = {change(text): name for name, change in CASES.items()}
    if level > 1:
        # One word has the wrong case.
        parts = right.split()
        place = rng.randrange(len(parts))
        parts[place] = parts[place].lower() if wanted == "capitals" else parts[place].upper()
        names[" ".join(parts)] = "mixed case"
    wrong = [variant for variant in names if variant != right]
    query = rng.choice(CASE_QUERIES).format(wanted, rng.choice([variant for variant in wrong if names[variant] != "mixed case"]))
    return Item(query, f"It must be in {wanted}.", right, wrong, lambda response: f"{response} is {names[response]}, expected {wanted}")


def _sample_wrap(rng: random.Random, level: int) -> tuple[str, tuple[str, ...]]:
    words = (rng.choice(NOUNS),) if level == 1 else (*rng.sample(ADJECTIVES, level - 1), rng.choice(NOUNS))
    return rng.choice(tuple(WRAPPERS)), words


def _build_wrap(rng: random.Random, level: int, facts: tuple[str, tuple[str, ...]]) -> Item:
    wanted, words = facts
    text = " ".join(words)
    made: dict[str, tuple[str, str]] = {}

    def wrap(name: str, start: int, stop: int) -> str:
        inner = " ".join(words[start:stop])
        left, right = WRAPPERS[name]
        wrapped = " ".join((*words[:start], f"{left}{inner}{right}", *words[stop:]))
        made[wrapped] = (inner, name)
        return wrapped

    right = wrap(wanted, 0, len(words))
    wrong = [wrap(name, 0, len(words)) for name in rng.sample([name for name in WRAPPERS if name != wanted], 5 if level == 1 else 3)]
    if level > 1:
        # The right punctuation around too few words.
        wrong += [wrap(wanted, 1, len(words)), wrap(wanted, 0, len(words) - 1)]

    def note(response: str) -> str:
        inner, name = made[response]
        return f"{inner} is in {name}, expected {wanted}" if level == 1 else f"{inner} is in {name}, expected {text} in {wanted}"

    return Item(rng.choice(WRAP_QUERIES).format(wanted, text), f"All of it must be in {wanted}.", right, wrong, note)


def _sample_spelling(rng: random.Random, level: int) -> tuple[str]:
    low, high = ((3, 4), (5, 5), (6, 8))[level - 1]
    while not low <= len(word := rng.choice(NOUNS + ADJECTIVES)) <= high:
        pass
    return (word,)


def _build_spelling(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    (word,) = facts
    wrong: dict[str, None] = {}
    while len(wrong) < 6:
        place = rng.randrange(len(word) - 1)
        slip = rng.randrange(4)
        if slip == 0:
            text = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        elif slip == 1:
            text = word[:place] + rng.choice("abcdefghiklmnoprstuwy") + word[place + 1 :]
        elif slip == 2:
            text = word[: place + 1] + word[place] + word[place + 1 :]
        else:
            text = word[: place + 1] + word[place + 2 :]
        if text != word:
            wrong["-".join(text)] = None
    right = "-".join(word)
    return Item(rng.choice(SPELL_QUERIES).format(word), f"The letters are {right}.", right, list(wrong), expected(right))


COPYING = (
    Family("copy", "a sentence repeated word for word", _sample_sentence, _build_copy),
    Family("reverse", "words in reverse order", _sample_words, _build_reverse),
    Family("pick_word", "the first, last or n-th of several words", _sample_pick, _build_pick),
    Family("letter_case", "lower case, capitals or title case", _sample_case, _build_case),
    Family("wrapping", "words inside given punctuation", _sample_wrap, _build_wrap),
    Family("spelling", "a word spelled letter by letter", _sample_spelling, _build_spelling),
)
