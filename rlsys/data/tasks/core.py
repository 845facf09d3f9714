"""What a task family is, and how one drawn item becomes a record: split, wrong answers, positions, the teacher's judgement.

Life of a record: (split, seed, index) -> random stream -> family.draw until the item lies in the split -> family.build -> wrong answers
chosen so that length tells nothing -> the right one put at a uniform place -> notes and scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rlsys.data.records import Record, TeacherJudgement

SPLITS = ("train", "heldout")
LEVELS = (1, 2, 3)
MAX_RESPONSES = 4
RIGHT_SCORE, WRONG_SCORE = 9, 2
HELDOUT_SHARE = 5
"""One item in so many is held out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with what a program knows about its answers."""

    query: str
    criteria: str
    """The teacher's principle; it holds the worked-out answer where there is a single one."""
    right: str
    wrong: Sequence[str]
    """At least MAX_RESPONSES - 1 different near misses, none equal to `right`."""
    note: Callable[[str], str]
    """What there is to say about one response, up to but without the verdict. The same words for right and wrong answers."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of task. `draw(rng, level)` picks an item's facts, which alone decide its split; `build(rng, level, facts)` words it."""

    name: str
    about: str
    draw: Callable[[random.Random, int], tuple[Any, ...]]
    build: Callable[[random.Random, int, Any], Item]


def in_split(split: str, family: str, facts: tuple[Any, ...]) -> bool:
    """Whether the item with these facts belongs to `split`: a fixed hash, so that no seed, count, level or wording moves an item."""
    digest = blake2b(f"{family}:{facts!r}".encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "big") % HELDOUT_SHARE == 0) == (split == "heldout")


def make_record(family: Family, split: str, seed: int, index: int, level: int, responses: tuple[int, ...]) -> Record:
    """Record number `index` of a split. Depends on the arguments only, never on other records."""
    rng = random.Random(f"{split}/{seed}/{index}")
    count = rng.choice(responses)
    item_level = rng.randint(1, level)
    facts = family.draw(rng, item_level)
    while not in_split(split, family.name, facts):
        facts = family.draw(rng, item_level)
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
        worked=TeacherJudgement(
            criteria=item.criteria,
            notes=tuple(f"{item.note(response)}: {'correct' if ok else 'wrong'}." for response, ok in zip(shown, correct)),
            scores=tuple(high if ok else low for ok in correct),
        ),
    )


def choose_wrong(rng: random.Random, right: str, pool: Sequence[str], count: int) -> list[str]:
    """Pick `count` different answers of `pool` such that the right one's rank by length is uniform wherever the pool allows it.

    One coin with a uniformly drawn bias decides for all picks whether an answer of another length is a shorter or a longer one:
    with a fair coin the right answer among four would be of middle length too often.
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
    """One wrong number per offset, on either side of `right`, none below zero. As with lengths, the right one's rank is about uniform."""
    lower_share = rng.random()
    found: dict[str, None] = {}
    for offset in offsets:
        number = right - offset if rng.random() < lower_share and offset <= right else right + offset
        found[str(number)] = None
    return list(found)


def expected(right: str) -> Callable[[str], str]:
    """The commonest note: what the response says beside the answer that the criteria worked out."""
    return lambda response: f"says {response}, expected {right}"


def others(rng: random.Random, words: Sequence[str], excluded: Sequence[str], count: int) -> list[str]:
    """`count` different words, none of them excluded."""
    found: list[str] = []
    while len(found) < count:
        word = rng.choice(words)
        if word not in excluded and word not in found:
            found.append(word)
    return found
