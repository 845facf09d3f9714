"""Task families about general knowledge: categories, first letters, capitals, opposites, word forms, the calendar."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlsys.data.tasks.core import Family, Item, expected, others
from rlsys.data.tasks.facts import CAPITALS, OPPOSITES, PASTS, PLURALS, RARE_CAPITALS
from rlsys.data.tasks.numeric import number_word
from rlsys.data.tasks.words import CATEGORIES, DAYS, MONTHS

KIND_QUERIES = ("Which of these is {}: {}?", "Which one is {}: {}?", "Pick the word for {}: {}.")
NOT_KIND_QUERIES = ("Which of these is not {}: {}?", "Which one is not {}: {}?")
ODD_QUERIES = ("Which is the odd one out: {}?", "Which word does not fit: {}?", "Three belong together; which does not: {}?")
LETTER_QUERIES = ("Name {} that starts with {}.", "Give {} whose name begins with {}.", "Think of {} that starts with the letter {}.")
CAPITAL_QUERIES = (
    "What is the capital of {}?",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
    "{} has which capital?",
    "Give the capital city of {}.",
)
COUNTRY_QUERIES = ("{} is the capital of which country?", "Which country has the capital {}?", "Name the country whose capital is {}.")
OPPOSITE_QUERIES = (
    "What is the opposite of {}?",
    "Give the opposite of {}.",
    "Which word means the opposite of {}?",
    "Say the reverse of {}.",
)
PLURAL_QUERIES = ("What is the plural of {}?", "Write the plural of {}.", "One {}, two what?", "Give the plural form of {}.")
PAST_QUERIES = (
    "What is the past tense of {}?",
    "Write {} in the past tense.",
    "Today I {}, yesterday I what?",
    "Give the simple past of {}.",
)
CALENDAR_QUERIES = ("Which {} comes {} {} {}?", "Name the {} that is {} {} {}.", "What {} is {} {} {}?")

KIND_OF = {word: category for category in CATEGORIES for word in category.words}
UNRELATED = {  # the words of all entries without a common topic
    entry[0]: tuple(word for other in OPPOSITES if not set(entry[4]) & set(other[4]) for word in other[:4]) for entry in OPPOSITES
}


def _sample_kind(rng: random.Random, level: int) -> tuple[str, tuple[str, ...]]:
    """Return the correct word, and all words of the question."""
    if level == 1:
        words = [rng.choice(category.words) for category in rng.sample(CATEGORIES, 4)]
        return words[0], tuple(sorted(words))
    kind, other = rng.sample(CATEGORIES, 2)
    odd = rng.choice(other.words)
    return odd, tuple(sorted((odd, *rng.sample(kind.words, 3))))


def _build_kind(rng: random.Random, level: int, facts: tuple[str, tuple[str, ...]]) -> Item:
    right, words = facts
    wrong = [word for word in words if word != right]
    shown = ", ".join(rng.sample(words, len(words)))
    if level == 1:
        wanted = KIND_OF[right].label
        query = rng.choice(KIND_QUERIES).format(wanted, shown)
        criteria = f"The answer must be {wanted}."
    else:
        wanted = f"not {KIND_OF[wrong[0]].label}"
        query = rng.choice(NOT_KIND_QUERIES).format(KIND_OF[wrong[0]].label, shown) if level == 2 else rng.choice(ODD_QUERIES).format(shown)
        criteria = f"Three are {KIND_OF[wrong[0]].plural}; the answer must not be one."
    return Item(query, criteria, right, wrong, lambda response: f"{response} is {KIND_OF[response].label}, expected {wanted}")


def _sample_letter(rng: random.Random, level: int) -> tuple[str, str]:
    category = rng.choice(CATEGORIES)
    return category.label, rng.choice(category.words)[: 2 if level == 3 else 1].lower()


def _build_letter(rng: random.Random, level: int, facts: tuple[str, str]) -> Item:
    label, start = facts
    category = next(category for category in CATEGORIES if category.label == label)

    def fits(word: str) -> bool:
        return word.lower().startswith(start)

    right = rng.choice([word for word in category.words if fits(word)])
    wrong = others(rng, category.words, [word for word in category.words if fits(word)], 5)
    if level > 1:
        # The right letter, but another category.
        elsewhere = [word for word, kind in KIND_OF.items() if fits(word) and kind is not category]
        wrong = wrong[:3] + rng.sample(elsewhere, min(3, len(elsewhere)))

    def note(response: str) -> str:
        letters = response[: len(start)].lower()
        if level == 1:
            return f"{response} starts with {letters}, expected {start}"
        return f"{response} is {KIND_OF[response].label} and starts with {letters}, expected {label} with {start}"

    query = rng.choice(LETTER_QUERIES).format(label, start)
    return Item(query, f"It must be {label} that starts with {start}.", right, wrong, note)


def _sample_capital(rng: random.Random, level: int) -> tuple[str]:
    return (rng.choice(CAPITALS if level < 3 else RARE_CAPITALS)[0],)


def _build_capital(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    table = CAPITALS if level < 3 else RARE_CAPITALS
    country, city = next(entry for entry in table if entry[0] == facts[0])
    criteria = f"The capital of {country} is {city}."
    # From level 2 on, the question may also be reversed.
    if level > 1 and rng.random() < 0.5:
        wrong = others(rng, [entry[0] for entry in table], (country,), 6)
        return Item(rng.choice(COUNTRY_QUERIES).format(city), criteria, country, wrong, expected(country))
    wrong = others(rng, [entry[1] for entry in table], (city,), 6)
    return Item(rng.choice(CAPITAL_QUERIES).format(country), criteria, city, wrong, expected(city))


def _sample_opposite(rng: random.Random, level: int) -> tuple[str]:
    # A pair is one item in both directions: training on "hot" also teaches "cold".
    return (rng.choice(OPPOSITES)[0],)


def _build_opposite(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    entry = next(entry for entry in OPPOSITES if entry[0] == facts[0])
    word, right, synonym = entry[:3] if rng.random() < 0.5 else (entry[1], entry[0], entry[3])
    wrong = others(rng, UNRELATED[entry[0]], (), 6)
    if level > 1:
        # The word itself and a synonym; at level 3 one of the two nearly always appears.
        wrong = [*wrong[: 5 - level], synonym, word]
    criteria = f"The opposite of {word} is {right}."
    return Item(rng.choice(OPPOSITE_QUERIES).format(word), criteria, right, wrong, expected(right))


def _form(tiers: Sequence[Sequence[tuple[str, ...]]], word: str) -> str:
    return next(form for tier in tiers for base, form in tier if base == word)


def _sample_plural(rng: random.Random, level: int) -> tuple[str]:
    return (rng.choice(PLURALS[level - 1])[0],)


def _build_plural(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    (word,) = facts
    right = _form(PLURALS, word)
    stem = word[:-1]
    slips = (word, word + "s", word + "es", stem + "ies", stem + "ves", word + "en", word + "ses", stem, stem + "s")
    wrong = [slip for slip in dict.fromkeys(slips) if slip != right]
    criteria = f"One {word}, two {right}."
    return Item(rng.choice(PLURAL_QUERIES).format(word), criteria, right, wrong, expected(right))


def _sample_past(rng: random.Random, level: int) -> tuple[str]:
    return (rng.choice(PASTS[level - 1])[0],)


def _build_past(rng: random.Random, level: int, facts: tuple[str]) -> Item:
    (word,) = facts
    right = _form(PASTS, word)
    stem = word.rstrip("e") or word
    # The last one ensures that something is shorter even than "ate".
    slips = (word, word + "s", stem + "ing", stem + "ed", stem + "t", right + "ed", word + "en", right[:-1])
    wrong = [slip for slip in dict.fromkeys(slips) if slip != right]
    criteria = f"Today {word}, yesterday {right}."
    return Item(rng.choice(PAST_QUERIES).format(word), criteria, right, wrong, expected(right))


def _sample_calendar(rng: random.Random, level: int) -> tuple[str, int, str]:
    """Return the start, the number of steps and the direction."""
    names = DAYS + MONTHS
    steps = rng.randint(*((1, 3), (2, 4), (4, 6))[level - 1])
    return rng.choice(names), steps, rng.choice(("after", "before"))


def _build_calendar(rng: random.Random, level: int, facts: tuple[str, int, str]) -> Item:
    start, steps, way = facts
    unit, names = ("day", DAYS) if start in DAYS else ("month", MONTHS)
    sign = 1 if way == "after" else -1
    path = [names[(names.index(start) + sign * step) % len(names)] for step in range(1, steps + 1)]
    right = path[-1]
    query = rng.choice(CALENDAR_QUERIES).format(unit, f"{number_word(steps)} {unit}{'s' * (steps > 1)}", way, start)
    wrong = others(rng, names, (right,), 6)
    return Item(query, f"{way.capitalize()} {start}: {', '.join(path)}.", right, wrong, expected(right))


KNOWLEDGE = (
    Family("kind", "the word that is, or is not, in a category", _sample_kind, _build_kind),
    Family("first_letter", "a member of a category with a given first letter", _sample_letter, _build_letter),
    Family("capital", "capitals of countries", _sample_capital, _build_capital),
    Family("opposite", "words of opposite meaning", _sample_opposite, _build_opposite),
    Family("plural", "plural forms", _sample_plural, _build_plural),
    Family("past_tense", "past tenses", _sample_past, _build_past),
    Family("calendar", "days and months, counted forward or back", _sample_calendar, _build_calendar),
)
