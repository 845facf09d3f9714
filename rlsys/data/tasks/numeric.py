"""Task families about numbers: the criteria compute the answer, each note compares a response with it."""

from __future__ import annotations

import random

from rlsys.data.tasks.core import Family, Item, expected, near_numbers, others
from rlsys.data.tasks.words import NUMBER_WORDS, TENS

SUM_QUERIES = ("What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?", "Work out {} + {}.")
DIFFERENCE_QUERIES = ("What is {} - {}?", "How much is {} minus {}?", "Work out {} - {}.", "Calculate {} - {}.")
PRODUCT_QUERIES = ("What is {} x {}?", "How much is {} times {}?", "Work out {} x {}.", "Multiply {} by {}.")
EXTREME_QUERIES = ("Which is the {} number: {}?", "What is the {} of these: {}?", "Pick the {} number: {}.")
SORT_QUERIES = ("Sort from low to high: {}.", "Put in order, smallest first: {}.", "Sort these numbers upwards: {}.")
PARITY_QUERIES = ("Give an {} number between {} and {}.", "Name an {} number between {} and {}.", "Write an {} number between {} and {}.")
SEQUENCE_QUERIES = ("What comes next: {}?", "Continue with one number: {}.", "Which number follows: {}?", "Give the next number: {}.")
IN_WORDS_QUERIES = ("Write {} in words.", "Spell out the number {}.", "How is {} written in words?")
IN_DIGITS_QUERIES = ("Write {} in digits.", "Give {} as digits.", "How is {} written in digits?")


def number_word(number: int) -> str:
    """Return the English word for 0..99."""
    if number < 20:
        return NUMBER_WORDS[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{NUMBER_WORDS[ones]}" if ones else "")


def _offsets(rng: random.Random, level: int) -> list[int]:
    """Return the errors of the wrong numbers; higher levels also change higher digits."""
    return rng.sample((1, 2, 3, 10) if level < 3 else (1, 2, 10, 100), 3)


def _sample_sum(rng: random.Random, level: int) -> tuple[int, int]:
    if level == 1:
        a, b = rng.randint(2, 20), rng.randint(2, 20)
    elif level == 2:
        a, b = rng.randint(21, 69), rng.randint(11, 39)
    else:
        a, b = rng.randint(100, 499), rng.randint(21, 99)
    return min(a, b), max(a, b)


def _build_sum(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    a, b = rng.sample(facts, 2)
    right = str(a + b)
    wrong = near_numbers(rng, a + b, _offsets(rng, level))
    return Item(rng.choice(SUM_QUERIES).format(a, b), f"The sum must be right: {a} + {b} = {right}.", right, wrong, expected(right))


def _sample_difference(rng: random.Random, level: int) -> tuple[int, int]:
    if level == 1:
        b = rng.randint(2, 15)
        return b + rng.randint(1, 15), b
    if level == 2:
        b = rng.randint(11, 60)
        return b + rng.randint(5, 39), b
    b = rng.randint(21, 99)
    return b + rng.randint(101, 399), b


def _build_difference(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    a, b = facts
    right = str(a - b)
    wrong = near_numbers(rng, a - b, _offsets(rng, level))
    query = rng.choice(DIFFERENCE_QUERIES).format(a, b)
    return Item(query, f"The difference must be right: {a} - {b} = {right}.", right, wrong, expected(right))


def _sample_product(rng: random.Random, level: int) -> tuple[int, int]:
    if level == 1:
        a, b = rng.randint(2, 12), rng.randint(2, 12)
    elif level == 2:
        a, b = rng.randint(11, 25), rng.randint(3, 9)
    else:
        a, b = rng.randint(26, 99), rng.randint(3, 9)
    return min(a, b), max(a, b)


def _build_product(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    a, b = rng.sample(facts, 2)
    right = str(a * b)
    # One factor too many or too few is the classic mistake.
    offsets = rng.sample(sorted({a, b, 1, 2, 10} if level < 3 else {a, b, 1, 10, 100}), 3)
    wrong = near_numbers(rng, a * b, offsets)
    return Item(rng.choice(PRODUCT_QUERIES).format(a, b), f"The product must be right: {a} x {b} = {right}.", right, wrong, expected(right))


def _sample_extreme(rng: random.Random, level: int) -> tuple[str, tuple[int, ...]]:
    if level == 1:
        numbers = rng.sample(range(10, 100), 4)
    elif level == 2:
        numbers = rng.sample(range(100, 1000), 4)
    else:
        start = 100 * rng.randint(1, 9)
        numbers = rng.sample(range(start, start + 100), 4)
    return rng.choice(("largest", "smallest")), tuple(sorted(numbers))


def _build_extreme(rng: random.Random, level: int, facts: tuple[str, tuple[int, ...]]) -> Item:
    which, numbers = facts
    answer = numbers[-1] if which == "largest" else numbers[0]
    right = str(answer)
    shown = ", ".join(map(str, rng.sample(numbers, len(numbers))))
    wrong = [str(number) for number in numbers if number != answer]
    return Item(rng.choice(EXTREME_QUERIES).format(which, shown), f"The {which} number here is {right}.", right, wrong, expected(right))


def _sample_sorting(rng: random.Random, level: int) -> tuple[int, ...]:
    if level == 1:
        return tuple(sorted(rng.sample(range(1, 21), 3)))
    if level == 2:
        return tuple(sorted(rng.sample(range(10, 60), 4)))
    start = 100 * rng.randint(1, 9)
    return tuple(sorted(rng.sample(range(start, start + 100), 4)))


def _build_sorting(rng: random.Random, level: int, facts: tuple[int, ...]) -> Item:
    right = ", ".join(map(str, facts))
    wrong: dict[str, None] = {}
    while len(wrong) < 3:
        text = ", ".join(map(str, rng.sample(facts, len(facts))))
        if text != right:
            wrong[text] = None
    shown = rng.choice((right, *wrong))

    def note(response: str) -> str:
        numbers = [int(part) for part in response.split(", ")]
        falls = [after for before, after in zip(numbers, numbers[1:]) if after < before]
        return f"{response} goes down at {falls[0]}" if falls else f"{response} goes up all the way"

    return Item(rng.choice(SORT_QUERIES).format(shown), f"From low to high: {right}.", right, list(wrong), note)


def _sample_parity(rng: random.Random, level: int) -> tuple[str, int, int]:
    low = 10 * (rng.randint(1, 7) if level < 3 else rng.randint(10, 90))
    high = low + 10 * rng.randint(2, 3 if level == 3 else 9 - low // 10)
    # Bounds other than round tens make many items; all numbers between have two (level 3: three) digits, seven or more of each parity.
    return rng.choice(("even", "odd")), low + rng.randint(0, 9), high + rng.randint(5, 9)


def _build_parity(rng: random.Random, level: int, facts: tuple[str, int, int]) -> Item:
    parity, low, high = facts
    remainder = int(parity == "odd")

    def inside(remainder: int) -> int:
        first = low + 1
        first += (first - remainder) % 2
        return rng.randrange(first, high, 2)

    def note(response: str) -> str:
        number = int(response)
        kind = "odd" if number % 2 else "even"
        ends = f"{response} ends in {response[-1]}, so {kind}"
        if level == 1:
            return f"{ends}, expected {parity}"
        return f"{ends}, and {'inside' if low < number < high else 'outside'}, expected {parity}"

    wrong: dict[str, None] = {}
    while len(wrong) < 3:
        outside = level > 1 and rng.random() < 0.4
        if outside:
            # Right parity, wrong range; the same number of digits as the answers.
            number = rng.randint(10, 99) if level == 2 else rng.randint(100, 999)
            number -= (number - remainder) % 2
            if number < (10 if level == 2 else 100) or low < number < high:
                continue
        else:
            number = inside(1 - remainder)
        wrong[str(number)] = None
    criteria = f"The number must be {parity}, {low} to {high}." if level > 1 else f"The number must be {parity}: look at its last digit."
    return Item(rng.choice(PARITY_QUERIES).format(parity, low, high), criteria, str(inside(remainder)), list(wrong), note)


def _sample_sequence(rng: random.Random, level: int) -> tuple[int, int]:
    if level == 1:
        return rng.randint(1, 40), rng.randint(1, 10)
    if level == 2:
        step = rng.randint(2, 10)
        return rng.randint(5 * step, 5 * step + 60), -step
    return rng.randint(5, 90), rng.randint(11, 29)


def _build_sequence(rng: random.Random, level: int, facts: tuple[int, int]) -> Item:
    start, step = facts
    terms = [start + step * i for i in range(4)]
    right = str(terms[-1] + step)
    sign, size = ("-", -step) if step < 0 else ("+", step)
    criteria = f"Each time {sign} {size}: {terms[-1]} {sign} {size} = {right}."
    wrong = near_numbers(rng, terms[-1] + step, _offsets(rng, level))
    return Item(rng.choice(SEQUENCE_QUERIES).format(", ".join(map(str, terms))), criteria, right, wrong, expected(right))


def _sample_number_words(rng: random.Random, level: int) -> tuple[int, ...]:
    return tuple(rng.randint(13, 99) for _ in range(level))


def _build_number_words(rng: random.Random, level: int, facts: tuple[int, ...]) -> Item:
    def near(number: int) -> list[int]:
        swapped = number % 10 * 10 + number // 10
        close = {number + d for d in (-10, -1, 1, 10)} | {swapped}
        return [n for n in close if n != number and 10 < n < 100]

    def wording(numbers: tuple[int, ...], words: bool) -> str:
        return " and ".join(number_word(n) if words else str(n) for n in numbers)

    to_words = rng.random() < 0.5
    right = wording(facts, to_words)
    wrong: dict[str, None] = {}
    # The last number is the one that goes wrong, so that a response must be read to its end.
    for number in near(facts[-1]):
        wrong[wording((*facts[:-1], number), to_words)] = None
    if len(wrong) < 3:
        for word in others(rng, [str(n) for n in range(13, 100)], [str(n) for n in (facts[-1], *near(facts[-1]))], 3 - len(wrong)):
            wrong[wording((*facts[:-1], int(word)), to_words)] = None
    query = rng.choice(IN_WORDS_QUERIES if to_words else IN_DIGITS_QUERIES).format(wording(facts, not to_words))
    return Item(query, f"{wording(facts, not to_words)} is {right}.", right, list(wrong), expected(right))


NUMERIC = (
    Family("addition", "the sum of two numbers", _sample_sum, _build_sum),
    Family("subtraction", "the difference of two numbers", _sample_difference, _build_difference),
    Family("multiplication", "the product of two numbers", _sample_product, _build_product),
    Family("extreme", "the largest or smallest of four numbers", _sample_extreme, _build_extreme),
    Family("sorting", "numbers in rising order", _sample_sorting, _build_sorting),
    Family("parity", "an even or odd number within bounds", _sample_parity, _build_parity),
    Family("sequence", "the next number of an arithmetic sequence", _sample_sequence, _build_sequence),
    Family("number_words", "numbers between digits and words", _sample_number_words, _build_number_words),
)
