"""Task families about the form of a text: how it begins, its letters, their case, order, length and repetition."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from rlsys.data.tasks.core import Family, Item, others
from rlsys.data.tasks.numeric import number_word
from rlsys.data.tasks.words import ADJECTIVES, CATEGORIES, NOUNS
from rlsys.data.tasks.writing import DESCRIPTIONS, NOUN_LAST, NOUN_NOT_LAST, NOUN_THEN_MORE, counted, near_counts

FIRST_QUERIES = ("Write a sentence that begins with {}.", "Let the first word of a sentence be {}.", "Begin a short sentence with {}.")
INITIALS_QUERIES = ("Write {} {} with {}.", "Give {} {} with {}.", "Think of {} {} with {}.")
CASE_QUERIES = (
    "Write a sentence about the {} in {} letters.",
    "Say something about the {} in {} letters only.",
    "Describe the {} in {} letters.",
)
LETTER_QUERIES = (
    "Describe the {} without the letter {}.",
    "Write about the {}, but never use the letter {}.",
    "Say how the {} is; avoid the letter {}.",
)
ORDER_QUERIES = (
    "List {} {} in alphabetical order.",
    "Name {} {}, sorted by the alphabet.",
    "Write down {} {} from A to Z.",
    "Give {} {} in alphabetical order.",
)
LENGTH_QUERIES = ("Describe the {1} in {0} words.", "Write about the {1} in {0} words.", "Use {0} words to describe the {1}.")
REPEAT_QUERIES = ("Write the word {} exactly {} times.", "Repeat the word {}: exactly {} times.", "Say {} exactly {} times.")
NOUN_FIRST = ("{} and {} are here.", "{} or {} will do.", "{} is near the {}.", "{} and {} again.")
SENTENCES = ("The {} is here.", "We saw a {} today.", "She likes the {} best.", "My {} is very old.", "This {} was lost.", "I know the {}.")
LETTERS = tuple("bcdfghlmnprstw")
"""Initials of many of the words in the lists."""
RARE, COMMON = "bcfgkmpvwy", "adehilnorstu"


def _spoken(parts: Sequence[str]) -> str:
    """Join parts as in a sentence: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _distinct(rng: random.Random, make: Callable[[], str], count: int, wanted: Callable[[str], bool] = lambda text: True) -> list[str]:
    """Return `count` different texts of `make` that are `wanted`."""
    found: dict[str, None] = {}
    for _ in range(1000):
        text = make()
        if wanted(text):
            found[text] = None
        if len(found) == count:
            return list(found)
    raise AssertionError(f"{len(found)} of {count} texts after 1000 attempts")


def _sample_first(rng: random.Random, level: int) -> tuple[str]:
    return (rng.choice(NOUNS),)


def _build_first(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    (target,) = facts

    def begin(word: str, other: str) -> str:
        return rng.choice(NOUN_FIRST).format(word.capitalize(), other)

    other = others(rng, NOUNS, facts, 12)
    # At level 2 the word is in the sentence, but not at its beginning; at level 1 it is missing.
    plain = [begin(one, two) for one, two in zip(other[:6], other[6:])]
    inside = [begin(one, target) for one in other[:3]] + [rng.choice((*NOUN_LAST, *NOUN_THEN_MORE)).format(target) for _ in range(3)]
    inside += [rng.choice(NOUN_NOT_LAST).format(target, one) for one in other[3:5]]
    wrong = plain if level == 1 else inside if level == 2 else inside[:4] + plain[:3]
    query = rng.choice(FIRST_QUERIES).format(target)
    return Item(
        query,
        f"The first word must be {target}.",
        begin(target, other[-1]),
        list(dict.fromkeys(wrong)),
        lambda response: f"begins with {response.split()[0].lower()}, expected {target}",
        ({"rule": "first_word", "word": target},),
    )


def _sample_initials(rng: random.Random, level: int) -> tuple[str, ...]:
    return tuple(rng.sample(LETTERS, rng.randint(*((1, 2), (2, 3), (3, 4))[level - 1])))


def _build_initials(rng: random.Random, level: int, facts: tuple[str, ...]) -> Item:
    pool = {letter: [word for word in (*NOUNS, *ADJECTIVES) if word[0] == letter] for letter in LETTERS}

    def write(letters: Sequence[str]) -> str:
        return " ".join(rng.choice(pool[letter]) for letter in letters)

    def near_miss() -> str:
        letters = list(facts)
        if level > 1 and len(letters) > 1 and rng.random() < 0.5:
            one, two = rng.sample(range(len(letters)), 2)
            letters[one], letters[two] = letters[two], letters[one]
        else:
            letters[rng.randrange(len(letters))] = rng.choice([letter for letter in LETTERS if letter not in facts])
        return write(letters)

    several, wanted = len(facts) > 1, _spoken(facts)
    words = f"{number_word(len(facts))} words" if several else "a word"
    return Item(
        rng.choice(INITIALS_QUERIES).format(words, "that begin" if several else "that begins", wanted),
        f"The {'words' if several else 'word'} must begin with {wanted}.",
        write(facts),
        _distinct(rng, near_miss, 6),
        lambda response: f"begins with {_spoken([word[0] for word in response.split()])}, expected {wanted}",
        ({"rule": "initials", "letters": list(facts)},),
    )


def _sample_case(rng: random.Random, level: int) -> tuple[str, str]:
    return rng.choice(NOUNS), rng.choice(("upper", "lower"))


def _build_case(rng: random.Random, level: int, facts: tuple[str, str]) -> Item:
    noun, wanted = facts
    shape, other = (str.upper, str.lower) if wanted == "upper" else (str.lower, str.upper)

    def near_miss() -> str:
        words = rng.choice(SENTENCES).format(noun).split()
        # At level 1 every word is wrong, at higher levels some or one of them.
        wrong = len(words) if level == 1 else rng.randint(1, len(words) - 1) if level == 2 else 1
        places = rng.sample(range(len(words)), wrong)
        return " ".join((other if place in places else shape)(word) for place, word in enumerate(words))

    kind = "capital" if wanted == "upper" else "small"

    def note(response: str) -> str:
        words = response.split()
        right = sum(word == shape(word) for word in words)
        return f"{number_word(right)} of {number_word(len(words))} words in {kind} letters, expected all"

    return Item(
        rng.choice(CASE_QUERIES).format(noun, kind),
        f"Every word must be in {kind} letters.",
        shape(rng.choice(SENTENCES).format(noun)),
        _distinct(rng, near_miss, 4, lambda text: not any(text == shape(one.format(noun)) for one in SENTENCES)),
        note,
        ({"rule": "case", "of": wanted}, {"rule": "includes", "words": [noun]}),
    )


def _sample_letter(rng: random.Random, level: int) -> tuple[str, str]:
    letter = rng.choice((RARE, RARE + COMMON, COMMON)[level - 1])
    return rng.choice([noun for noun in NOUNS if letter not in noun]), letter


def _build_letter(rng: random.Random, level: int, facts: tuple[str, str]) -> Item:
    noun, letter = facts

    def describe() -> str:
        a, b = rng.sample(ADJECTIVES, 2)
        return rng.choice(DESCRIPTIONS[rng.randint(2, 4)]).format(n=noun, a=a, b=b)

    (right,) = _distinct(rng, describe, 1, lambda text: letter not in text)
    return Item(
        rng.choice(LETTER_QUERIES).format(noun, letter),
        f"The letter {letter} must not be there.",
        right,
        _distinct(rng, describe, 6, lambda text: letter in text),
        lambda response: f"has the letter {letter} {number_word(response.count(letter))} times, expected none",
        ({"rule": "no_letter", "letter": letter},),
    )


def _sample_order(rng: random.Random, level: int) -> tuple[int, int]:
    return rng.randint(*((2, 4), (3, 5), (4, 6))[level - 1]), rng.randrange(len(CATEGORIES))


def _build_order(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    count, index = facts
    category = CATEGORIES[index]

    def listing() -> list[str]:
        return sorted(rng.sample(category.words, count))

    def near_miss() -> str:
        items = listing()
        # At level 1 in any other order, at higher levels two neighbours are exchanged.
        place = rng.randrange(count - 1)
        items[place], items[place + 1] = items[place + 1], items[place]
        if level == 1:
            rng.shuffle(items)
        return ", ".join(items)

    return Item(
        rng.choice(ORDER_QUERIES).format(number_word(count), category.plural),
        f"The {category.plural} must be in alphabetical order.",
        ", ".join(listing()),
        _distinct(rng, near_miss, 6, lambda text: text.split(", ") != sorted(text.split(", "))),
        lambda response: f"says {' before '.join(response.split(', '))}, expected alphabetical order",
        ({"rule": "item_count", "count": count}, {"rule": "alphabetical"}),
    )


def _sample_length(rng: random.Random, level: int) -> tuple[str, int, str]:
    return rng.choice(("at most", "at least")), rng.randint(*((3, 5), (3, 6), (4, 7))[level - 1]), rng.choice(NOUNS)


def _build_length(rng: random.Random, level: int, facts: tuple[str, int, str]) -> Item:
    bound, count, noun = facts
    most = bound == "at most"
    # Words beyond the limit: one or two at level 1, one at higher levels.
    beyond = (1, 2) if level == 1 else (1,)

    def describe(number: int) -> str:
        a, b = rng.sample(ADJECTIVES, 2)
        return rng.choice(DESCRIPTIONS[number]).format(n=noun, a=a, b=b)

    def near_miss() -> str:
        step = rng.choice(beyond)
        return describe(count + step if most else count - step)

    right = describe(count - rng.choice((0, 1)) if most else count + rng.choice((0, 1)))
    limit = f"{bound} {number_word(count)}"
    return Item(
        rng.choice(LENGTH_QUERIES).format(limit, noun),
        f"Count the words: {limit}.",
        right,
        _distinct(rng, near_miss, 4),
        lambda response: counted(response.replace(",", "").split(), limit),
        ({"rule": "max_words" if most else "min_words", "count": count},),
    )


def _sample_repeat(rng: random.Random, level: int) -> tuple[str, int]:
    return rng.choice(NOUNS), rng.randint(*((2, 4), (3, 6), (5, 8))[level - 1])


def _build_repeat(rng: random.Random, level: int, facts: tuple[str, int]) -> Item:
    word, count = facts

    def write(number: int) -> str:
        return rng.choice((" ", ", ")).join([word] * number)

    counts = near_counts(rng, count, level)
    return Item(
        rng.choice(REPEAT_QUERIES).format(word, number_word(count)),
        f"Count the words: exactly {number_word(count)}.",
        write(count),
        _distinct(rng, lambda: write(rng.choice(counts)), 3),
        lambda response: counted(response.replace(",", "").split(), number_word(count)),
        ({"rule": "repeats", "word": word, "count": count},),
    )


FORMS = (
    Family("first_word", "a sentence that begins with a given word", _sample_first, _build_first),
    Family("initials", "words that begin with given letters", _sample_initials, _build_initials),
    Family("letters_case", "a sentence in capital or small letters", _sample_case, _build_case),
    Family("without_letter", "a description without a letter", _sample_letter, _build_letter),
    Family("alphabetical", "a list in alphabetical order", _sample_order, _build_order),
    Family("length_limit", "a description of at most or at least some words", _sample_length, _build_length),
    Family("repetition", "a word repeated an exact number of times", _sample_repeat, _build_repeat),
)
