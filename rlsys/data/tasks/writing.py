"""Task families about constrained writing: an exact number of words or items, words to use, to avoid or to end with."""

from __future__ import annotations

import random

from rlsys.data.tasks.core import Family, Item, others
from rlsys.data.tasks.numeric import number_word
from rlsys.data.tasks.words import ADJECTIVES, CATEGORIES, NOUNS

WORD_COUNT_QUERIES = (
    "Describe the {1} in exactly {0} words.",
    "Write exactly {0} words about the {1}.",
    "Use exactly {0} words to describe the {1}.",
)
ITEM_COUNT_QUERIES = ("List exactly {} {}.", "Name {} {}, no more, no less.", "Give a list of {} {}.", "Write down exactly {} {}.")
INCLUDE_QUERIES = (
    "Write a sentence with the word {}.",
    "Use {} in a short sentence.",
    "Make a sentence that contains {}.",
    "Say something that has {} in it.",
)
AVOID_QUERIES = ("Describe the {} without the word {}.", "Write about the {}, but never say {}.", "Say how the {} is; avoid the word {}.")
LAST_QUERIES = ("Write a sentence that ends with {}.", "Let the last word of a sentence be {}.", "Finish a short sentence with {}.")
DESCRIPTIONS = {  # number of words -> wordings
    1: ("{a}",),
    2: ("{a} {n}", "{a}, {b}", "looks {a}"),
    3: ("the {a} {n}", "it is {a}", "{a}, {b} {n}"),
    4: ("the {n} is {a}", "it is so {a}", "a {a}, {b} {n}"),
    5: ("the {a} {n} is {b}", "it is {a} and {b}", "this {n} is very {a}"),
    6: ("the {n} is {a} and {b}", "it is a {a}, {b} {n}", "this {a} {n} is very {b}"),
    7: ("the {n} is very {a} and {b}", "this is a very {a}, {b} {n}"),
    8: ("this {a} {n} is not {b} at all", "the {n} is {a} and also very {b}"),
    9: ("this {n} is {a} and it is also {b}", "the {a} {n} is not very {b} at all"),
}
ONE_NOUN = (
    "We saw a {} today.",
    "There is a {} here.",
    "She likes the {} best.",
    "My {} is very old.",
    "He drew a {} for me.",
    "The {} was gone.",
)
TWO_NOUNS = ("The {} is near the {}.", "I saw a {} and a {}.", "We left the {} by the {}.", "A {} and a {} were there.")
THREE_NOUNS = ("The {} and {} are near the {}.", "I saw a {}, a {} and a {}.", "A {}, a {} and a {} were there.")
NOUN_LAST = (
    "We saw a {}.",
    "She likes the {}.",
    "He drew a small {}.",
    "I know this {}.",
    "They talked about the {}.",
    "Nobody found my {}.",
)
NOUN_NOT_LAST = ("The {} is near the {}.", "My {} is behind this {}.", "I took the {} to the {}.", "Your {} stands by the {}.")
NOUN_THEN_MORE = ("We saw a {} today.", "She likes the {} best.", "He drew a {} here.", "I know this {} well.")
TWO_ADJECTIVES = ("The {n} is {a} and {b}.", "It is a {a}, {b} {n}.", "This {n} looks {a} and {b}.", "A {a} but {b} {n}.")


def counted(parts: list[str], wanted: str) -> str:
    """Return every part with its running number: the count is spelled out, token by token."""
    return ", ".join(f"{part} {number_word(i)}" for i, part in enumerate(parts, 1)) + f"; expected {wanted}"


def near_counts(rng: random.Random, wanted: int, level: int) -> list[int]:
    """Return other counts, as often below as above; off by two only at level 1."""
    counts = [wanted - 1, wanted + 1] * 3
    if level == 1:
        counts += [max(wanted - 2, 1), wanted + 2]
    return counts


def _sample_word_count(rng: random.Random, level: int) -> tuple[int, str]:
    return rng.randint(*((2, 4), (3, 6), (5, 8))[level - 1]), rng.choice(NOUNS)


def _build_word_count(rng: random.Random, level: int, facts: tuple[int, str]) -> Item:
    wanted, noun = facts

    def describe(count: int) -> str:
        a, b = rng.sample(ADJECTIVES, 2)
        return rng.choice(DESCRIPTIONS[count]).format(n=noun, a=a, b=b)

    wrong = dict.fromkeys(describe(count) for count in near_counts(rng, wanted, level))
    while len(wrong) < 4:
        wrong[describe(wanted + 1)] = None

    def note(response: str) -> str:
        return counted(response.replace(",", "").split(), number_word(wanted))

    query = rng.choice(WORD_COUNT_QUERIES).format(number_word(wanted), noun)
    criteria, check = f"Count the words: exactly {number_word(wanted)}.", {"rule": "word_count", "count": wanted}
    return Item(query, criteria, describe(wanted), list(wrong), note, (check,))


def _sample_item_count(rng: random.Random, level: int) -> tuple[int, int]:
    return rng.randint(*((2, 5), (3, 6), (5, 8))[level - 1]), rng.randrange(len(CATEGORIES))


def _build_item_count(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    wanted, index = facts
    category = CATEGORIES[index]

    def listing(count: int) -> str:
        return ", ".join(rng.sample(category.words, count))

    wrong = list(dict.fromkeys(listing(count) for count in near_counts(rng, wanted, level)))
    query = rng.choice(ITEM_COUNT_QUERIES).format(number_word(wanted), category.plural)
    criteria = f"Count the {category.plural}: exactly {number_word(wanted)}."
    check = {"rule": "item_count", "count": wanted}
    return Item(query, criteria, listing(wanted), wrong, lambda response: counted(response.split(", "), number_word(wanted)), (check,))


def _sample_include(rng: random.Random, level: int) -> tuple[str, ...]:
    return tuple(sorted(rng.sample(NOUNS, 2 if level == 3 else 1)))


def _build_include(rng: random.Random, level: int, facts: tuple[str, ...]) -> Item:
    templates = (ONE_NOUN, TWO_NOUNS, THREE_NOUNS)[level - 1]

    def sentence(kept: tuple[str, ...]) -> str:
        nouns = [*kept, *others(rng, NOUNS, facts, level - len(kept))]
        rng.shuffle(nouns)
        text = rng.choice(templates).format(*nouns)
        used[text] = nouns
        return text

    used: dict[str, list[str]] = {}
    right = sentence(facts)
    # At level 3, one of the two words is present and one is missing.
    wrong = [sentence((rng.choice(facts),) if level == 3 else ()) for _ in range(6)]
    wanted = " and ".join(facts)
    return Item(
        rng.choice(INCLUDE_QUERIES).format(wanted),
        f"The sentence must have {wanted}.",
        right,
        list(dict.fromkeys(wrong)),
        lambda response: f"has {' and '.join(used[response])}, expected {wanted}",
        ({"rule": "includes", "words": list(facts)},),
    )


def _sample_avoid(rng: random.Random, level: int) -> tuple[str, str]:
    return rng.choice(NOUNS), rng.choice(ADJECTIVES)


def _build_avoid(rng: random.Random, level: int, facts: tuple[str, str]) -> Item:
    noun, banned = facts

    def sentence(with_banned: bool) -> str:
        adjectives = others(rng, ADJECTIVES, (banned,), 2)
        if with_banned:
            # At level 1 the banned word comes first; at higher levels it may come last.
            adjectives[0 if level == 1 else rng.randrange(2)] = banned
        text = rng.choice(TWO_ADJECTIVES[: level + 1]).format(n=noun, a=adjectives[0], b=adjectives[1])
        used[text] = adjectives
        return text

    used: dict[str, list[str]] = {}
    right = sentence(False)
    wrong = list(dict.fromkeys(sentence(True) for _ in range(8)))
    return Item(
        rng.choice(AVOID_QUERIES).format(noun, banned),
        f"The word {banned} must not be there.",
        right,
        wrong,
        lambda response: f"says {' and '.join(used[response])}, must avoid {banned}",
        ({"rule": "excludes", "words": [banned]},),
    )


def _sample_last(rng: random.Random, level: int) -> tuple[str]:
    return (rng.choice(NOUNS),)


def _build_last(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    (target,) = facts
    other = others(rng, NOUNS, facts, 8)
    plain = [template.format(word) for template, word in zip(rng.sample(NOUN_LAST, 6), other)]
    inside = [template.format(target, word) for template, word in zip(NOUN_NOT_LAST, other)]
    more = [template.format(target) for template in NOUN_THEN_MORE]
    last = rng.choice(NOUN_LAST).format(target)
    if level == 1:
        right, wrong = last, plain
    elif level == 2:
        # The word is present, but not at the end.
        right, wrong = rng.choice(NOUN_NOT_LAST).format(other[-1], target), inside
    else:
        right, wrong = last, more + inside[:2] + plain[:3]
    query = rng.choice(LAST_QUERIES).format(target)

    def note(response: str) -> str:
        return f"ends with {response.rstrip('.').split()[-1]}, expected {target}"

    return Item(query, f"The last word must be {target}.", right, wrong, note, ({"rule": "last_word", "word": target},))


WRITING = (
    Family("word_count", "a description with an exact number of words", _sample_word_count, _build_word_count),
    Family("item_count", "a list with an exact number of items", _sample_item_count, _build_item_count),
    Family("include_word", "a sentence that contains given words", _sample_include, _build_include),
    Family("avoid_word", "a description without a banned word", _sample_avoid, _build_avoid),
    Family("last_word", "a sentence that ends with a given word", _sample_last, _build_last),
)
