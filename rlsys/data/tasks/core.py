"""Task families, and how a sampled item becomes a record: split, wrong answers, positions, the teacher's judgement.

Steps: (split, seed, index) -> random stream -> family.sample until the item is in the split -> family.build -> wrong answers chosen so that
length is uninformative -> the correct one inserted at a uniform position -> notes and scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rlsys.data.records import Record, TeacherJudgement
from rlsys.rewards.checks import Check

SPLITS = ("train", "heldout")
LEVELS = (1, 2, 3)
MAX_RESPONSES = 4
RIGHT_SCORE, WRONG_SCORE = 9, 2
HELDOUT_SHARE = 5
"""One item in this many is held out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its correct answer, wrong answers and teacher notes."""

    query: str
    criteria: str
    """The teacher's principle; it states the answer if there is a single one."""
    right: str
    wrong: Sequence[str]
    """At least MAX_RESPONSES - 1 distinct near misses, none equal to `right`."""
    note: Callable[[str], str]
    """Returns a remark on one response, without the verdict. The wording is the same for correct and wrong answers."""
    checks: tuple[Check, ...] = ()
    """Rules that decide whether any text is a correct answer (`rlsys.rewards.checks`); empty if only the given answers are labelled."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of task. `sample(rng, level)` picks an item's facts, which decide its split; `build(rng, level, facts)` phrases it."""

    name: str
    about: str
    sample: Callable[[random.Random, int], tuple[Any, ...]]
    build: Callable[[random.Random, int, Any], Item]


def in_split(split: str, family: str, facts: tuple[Any, ...]) -> bool:
    """Whether the item with these facts is in `split`: a fixed hash, so that seed, count, level and wording do not matter."""
    digest = blake2b(f"{family}:{facts!r}".encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "big") % HELDOUT_SHARE == 0) == (split == "heldout")


def make_record(family: Family, split: str, seed: int, index: int, level: int, responses: tuple[int, ...]) -> Record:
    """Return record number `index` of a split. It depends only on the arguments, not on other records."""
    rng = random.Random(f"{split}/{seed}/{index}")
    count = rng.choice(responses)
    item_level = rng.randint(1, level)
    facts = family.sample(rng, item_level)
    while not in_split(split, family.name, facts):
        facts = family.sample(rng, item_level)
    item = family.build(rng, item_level, facts)
    shown = choose_wrong(rng, item.right, item.wrong, max(count - 1, 1))
    if count == 1:
        if rng.random() < 0.5:
            shown = [item.right]
    else:
        shown.insert(rng.randrange(count), item.right)
    correct = [response == item.right for response in shown]
    high, low = (1, 0) if count == 1 else (RIGHT_SCORE, WRONG_SCORE)
    return Record(
        id=f"{split}-{index:08d}-{family.name}",
        source="tasks",
        context=({"role": "user", "content": item.query},),
        responses=tuple(shown),
        rewards=tuple(float(ok) for ok in correct),
        reference=item.right,
        family=family.name,
        checks=item.checks,
        worked=TeacherJudgement(
            criteria=item.criteria,
            notes=tuple(f"{item.note(response)}: {'correct' if ok else 'wrong'}." for response, ok in zip(shown, correct)),
            scores=tuple(high if ok else low for ok in correct),
        ),
    )


def choose_wrong(rng: random.Random, right: str, pool: Sequence[str], count: int) -> list[str]:
    """Return `count` distinct answers of `pool` such that the correct one's rank by length is uniform where the pool allows it.

    One coin with a uniformly sampled bias decides for all picks whether a shorter or a longer answer is chosen: with a fair coin, the
    correct one of four answers would too often be of medium length.
    """
    left = list(pool)
    rng.shuffle(left)
    length = len(right)
    sides = {side: [text for text in left if (len(text) > length) - (len(text) < length) == side] for side in (-1, 0, 1)}
    shorter_share = rng.random()
    chosen: list[str] = []
    while len(chosen) < count:
        pick = left[0]
        if len(pick) != length:
            wanted = -1 if rng.random() < shorter_share else 1
            if sides[-1] and sides[1]:
                pick = sides[wanted][0]
            elif sides[0]:
                pick = sides[0][0]
        side = (len(pick) > length) - (len(pick) < length)
        sides[side].remove(pick)
        left.remove(pick)
        chosen.append(pick)
    return chosen


def near_numbers(rng: random.Random, right: int, offsets: Sequence[int]) -> list[str]:
    """Return one wrong number per offset, on either side of `right`, none negative; as with lengths, the correct rank is about uniform."""
    lower_share = rng.random()
    found: dict[str, None] = {}
    for offset in offsets:
        number = right - offset if rng.random() < lower_share and offset <= right else right + offset
        found[str(number)] = None
    return list(found)


def expected(right: str) -> Callable[[str], str]:
    """Return the most common kind of note: the response's answer next to the expected one."""
    return lambda response: f"says {response}, expected {right}"


def others(rng: random.Random, words: Sequence[str], excluded: Sequence[str], count: int) -> list[str]:
    """Return `count` distinct words, none of them excluded."""
    found: list[str] = []
    while len(found) < count:
        word = rng.choice(words)
        if word not in excluded and word not in found:
            found.append(word)
    return found
