"""Labels of the generated tasks, checked by independent judges that see only the question and the answer."""

from __future__ import annotations

import calendar
import itertools
import re
from collections import Counter

import pytest

from rlsys.data.tasks import CHECKED, FAMILIES, generate
from rlsys.data.tasks.facts import CAPITALS, OPPOSITES, PASTS, PLURALS, RARE_CAPITALS
from rlsys.data.tasks.words import CATEGORIES
from rlsys.rewards.checks import passes, require_valid

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
IN_WORDS = {word: n for n, word in enumerate(ONES)}
for tens, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2):
    IN_WORDS |= {name: 10 * tens} | {f"{name}-{ONES[n]}": 10 * tens + n for n in range(1, 10)}
MARKS = {"round brackets": "({})", "square brackets": "[{}]", "double quotes": '"{}"', "stars": "*{}*", "dashes": "-{}-", "slashes": "/{}/"}
IS_A = {word: category.label for category in CATEGORIES for word in category.words}
TABLES = {
    "capital": {side: other for pair in CAPITALS + RARE_CAPITALS for side, other in (pair, pair[::-1])},
    "opposite": {side: other for entry in OPPOSITES for side, other in (entry[:2], entry[1::-1])},
    "plural": dict(itertools.chain(*PLURALS)),
    "past_tense": dict(itertools.chain(*PASTS)),
}


# --- One judge per family: (query, response) -> correct? It parses the question and knows nothing of the generator. ---


def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text)]


def after_colon(query):
    return query.split(": ", 1)[1].rstrip("?.")


def last_word(text):
    return re.findall(r"[\w-]+", text)[-1]


def written_count(query):
    return next(IN_WORDS[word] for word in query.split() if word in IN_WORDS)


def judge_number_words(query, response):
    def values(text):
        found = re.findall(r"\d+|[a-z]+(?:-[a-z]+)?", text)
        return [int(part) if part.isdigit() else IN_WORDS[part] for part in found if part.isdigit() or part in IN_WORDS]

    return values(query) == values(response) and bool(numbers(query)) != bool(numbers(response))


def judge_sequence(query, response):
    terms = numbers(query)
    steps = {after - before for before, after in zip(terms, terms[1:])}
    return len(steps) == 1 and int(response) == terms[-1] + steps.pop()


def judge_parity(query, response):
    low, high = numbers(query)
    return low < int(response) < high and (int(response) % 2 == 0) == ("even" in query)


def judge_pick(query, response):
    place = re.search(r"\b(first|second|third|fourth|fifth|sixth|last)\b", query.split(":")[0]).group(1)
    index = -1 if place == "last" else "first second third fourth fifth sixth".split().index(place)
    return after_colon(query).split()[index] == response


def judge_letter_case(query, response):
    text = after_colon(query)
    titled = " ".join(word[0].upper() + word[1:].lower() for word in text.split())
    shaped = {"capitals": text.upper(), "lower case": text.lower(), "title case": titled}
    return response == next(shape for name, shape in shaped.items() if f"in {name}:" in query or f"to {name}:" in query)


def judge_wrapping(query, response):
    name = next(name for name in MARKS if name in query.split(":")[0])
    return response == MARKS[name].format(after_colon(query))


def judge_items(query, response):
    items = response.split(", ")
    category = next(category for category in CATEGORIES if re.search(rf"\b{category.plural}\b", query))
    return len(items) == len(set(items)) == written_count(query) and set(items) <= set(category.words)


def judge_include(query, response):
    wanted = re.search(r"the word (.*)\.|Use (.*) in a|that contains (.*)\.|that has (.*) in it", query)
    words = next(group for group in wanted.groups() if group).split(" and ")
    return set(words) <= set(re.findall(r"\w+", response))


def judge_kind(query, response):
    options = after_colon(query).split(", ")
    kinds = {word: IS_A[word] for word in options}
    head = query.split(": ")[0]
    asked = re.search(r"(?:is not|is|for) (an? [a-z ]+)$", head)
    if asked and "not" not in head:
        return kinds[response] == asked.group(1)
    common, count = Counter(kinds.values()).most_common(1)[0]
    assert count == 3 and (not asked or asked.group(1) == common)
    return kinds[response] != common


def judge_letter(query, response):
    kind = re.search(r"(?:Name|Give|Think of) (an? [a-z ]+) (?:that|whose)", query).group(1)
    return IS_A[response] == kind and response.lower().startswith(last_word(query))


def judge_capital(query, response):
    return any(re.search(rf"\b{name}\b", query) for name, other in TABLES["capital"].items() if other == response)


def judge_past(query, response):
    word = re.search(r"tense of (\w+)\?|Write (\w+) in|Today I (\w+),|past of (\w+)\.", query)
    return TABLES["past_tense"][next(group for group in word.groups() if group)] == response


def judge_plural(query, response):
    word = re.search(r"One (\w+),|(\w+)[?.]$", query)
    return TABLES["plural"][word.group(1) or word.group(2)] == response


def judge_calendar(query, response):
    names = list(calendar.day_name) if "day " in query.replace("days ", "day ") else list(calendar.month_name)[1:]
    step = written_count(query) * (1 if " after " in query else -1)
    return names[(names.index(last_word(query)) + step) % len(names)] == response


LIMIT = re.compile(r"(at most|at least) (\w+) words")


def judge_initials(query, response):
    letters = re.findall(r"\b[a-z]\b", query.split(" with ")[1])
    words = response.split()
    return len(words) == len(letters) and all(word.startswith(letter) for word, letter in zip(words, letters))


def judge_case(query, response):
    noun = re.search(r"(?:about|Describe) the (\w+)", query).group(1)
    letters = [char for char in response if char.isalpha()]
    wanted = str.isupper if "capital" in query else str.islower
    return all(map(wanted, letters)) and noun in response.lower().rstrip(".").split()


def judge_order(query, response):
    items = response.split(", ")
    category = next(category for category in CATEGORIES if re.search(rf"\b{category.plural}\b", query))
    return len(items) == written_count(query) and set(items) <= set(category.words) and all(a < b for a, b in zip(items, items[1:]))


def judge_length(query, response):
    bound, number = LIMIT.search(query).groups()
    count = len(response.split())
    return count <= IN_WORDS[number] if bound == "at most" else count >= IN_WORDS[number]


def judge_repetition(query, response):
    word = re.search(r"(?:the word|Say) (\w+)", query).group(1)
    return response.replace(",", "").split() == [word] * written_count(query)


JUDGES = {
    "addition": lambda query, response: int(response) == sum(numbers(query)),
    "subtraction": lambda query, response: int(response) == numbers(query)[0] - numbers(query)[1],
    "multiplication": lambda query, response: int(response) == numbers(query)[0] * numbers(query)[1],
    "extreme": lambda query, response: int(response) == (max if "largest" in query else min)(numbers(query)),
    "sorting": lambda query, response: numbers(response) == sorted(numbers(query)),
    "parity": judge_parity,
    "sequence": judge_sequence,
    "number_words": judge_number_words,
    "copy": lambda query, response: response == query.split(": ")[1],
    "reverse": lambda query, response: response.split() == after_colon(query).split()[::-1],
    "pick_word": judge_pick,
    "letter_case": judge_letter_case,
    "wrapping": judge_wrapping,
    "spelling": lambda query, response: response == "-".join(re.search(r"(?:Spell the word|Spell|you spell) (\w+)", query).group(1)),
    "word_count": lambda query, response: len(response.split()) == written_count(query),
    "item_count": judge_items,
    "include_word": judge_include,
    "avoid_word": lambda query, response: last_word(query) not in re.findall(r"\w+", response),
    "last_word": lambda query, response: last_word(query) == last_word(response),
    "kind": judge_kind,
    "first_letter": judge_letter,
    "capital": judge_capital,
    "opposite": lambda query, response: TABLES["opposite"][last_word(query)] == response,
    "plural": judge_plural,
    "past_tense": judge_past,
    "calendar": judge_calendar,
    "first_word": lambda query, response: re.search(r"(?:with|be) (\w+)\.$", query).group(1) == response.split()[0].lower(),
    "initials": judge_initials,
    "letters_case": judge_case,
    "without_letter": lambda query, response: last_word(query) not in response,
    "alphabetical": judge_order,
    "length_limit": judge_length,
    "repetition": judge_repetition,
}


def query_of(record):
    return record.context[-1]["content"]


def test_there_is_a_judge_for_every_family():
    assert set(JUDGES) == set(FAMILIES) and len(FAMILIES) >= 10


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", sorted(JUDGES))
def test_labels_agree_with_an_independent_judge(family, level):
    for split, seed in (("train", 11), ("heldout", 12)):
        for record in generate(split, 200, seed, families=(family,), level=level):
            for response, reward, note in zip(record.responses, record.rewards, record.worked.notes):
                right = JUDGES[family](query_of(record), response)
                assert right == (reward == 1.0), record
                assert note.endswith(": correct." if right else ": wrong."), record
            assert JUDGES[family](query_of(record), record.reference)


@pytest.mark.parametrize("family", CHECKED)
def test_checks_agree_with_the_labels(family):
    for split, level in (("train", 1), ("heldout", 3)):
        for record in generate(split, 200, 13, families=(family,), level=level):
            require_valid(record.checks)
            for response, reward in zip(record.responses, record.rewards):
                assert passes(record.checks, response) == (reward == 1.0), record
            assert passes(record.checks, record.reference)
            assert not passes(record.checks, "")


def test_only_writing_tasks_carry_checks():
    checked = {record.family for record in generate("train", 2 * len(FAMILIES), 14) if record.checks}
    assert checked == set(CHECKED) and len(CHECKED) >= 8


def test_well_known_facts():
    assert TABLES["capital"]["France"] == "Paris" and TABLES["capital"]["Nairobi"] == "Kenya"
    assert TABLES["opposite"]["cold"] == "hot" and TABLES["plural"]["child"] == "children" and TABLES["past_tense"]["bring"] == "brought"
    assert len(IS_A) == sum(len(category.words) for category in CATEGORIES), "a word stands in two categories"
    assert len(TABLES["opposite"]) == 2 * len(OPPOSITES), "a word has two opposites"
    assert len(TABLES["capital"]) == 2 * len(CAPITALS + RARE_CAPITALS)


def test_wordings_of_one_fact_stay_in_one_split():
    """7 + 5 and 5 + 7, hot and cold, any wording: a training item does not reappear in the held-out split in another form."""

    def opposites(query):
        return frozenset((last_word(query), TABLES["opposite"][last_word(query)]))

    for family, fact in (("addition", lambda query: frozenset(numbers(query))), ("opposite", opposites)):
        seen = {split: {fact(query_of(record)) for record in generate(split, 3000, 1, (family,))} for split in ("train", "heldout")}
        train, heldout = seen["train"], seen["heldout"]
        assert train and heldout and not train & heldout
