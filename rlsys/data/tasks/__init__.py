"""Verifiable preference tasks: questions whose right answer a program knows, with a programmatic teacher's worked judgement.

The project's own training data. Every record carries `Record.worked`, written by the program that made the question (not by a language
model): the criteria, a note per response, a score per response. Train and held-out share no item: a fixed hash of an item's facts decides
its split. Neither the position nor the length of a response tells whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlsys.data.records import Record
from rlsys.data.tasks.copying import COPYING
from rlsys.data.tasks.core import LEVELS, MAX_RESPONSES, SPLITS, Family, make_record
from rlsys.data.tasks.knowledge import KNOWLEDGE
from rlsys.data.tasks.numeric import NUMERIC
from rlsys.data.tasks.writing import WRITING

__all__ = ["FAMILIES", "Family", "generate"]

FAMILIES: dict[str, Family] = {family.name: family for family in (*NUMERIC, *COPYING, *WRITING, *KNOWLEDGE)}
"""Every family by name, in the order in which `generate` takes turns."""


def generate(
    split: str,
    count: int,
    seed: int,
    families: Sequence[str] = (),
    level: int = 1,
    responses: Sequence[int] = (1, 2, 4),
    start: int = 0,
) -> Iterator[Record]:
    """Yield records number `start` .. `start + count - 1` of a split.

    Record i depends on (split, seed, i, families, level, responses) only; skipping to `start` costs nothing.

    Args:
        split: "train" or "heldout"; no item is in both, whatever the seed.
        families: names out of `FAMILIES`, which take turns; empty means all.
        level: highest difficulty, 1..3; a record's own level is uniform over 1..level.
        responses: numbers of responses to choose among, each 1..4 (1 means a 0/1 label).

    Raises:
        ValueError: at once, not at the first record, when arguments are out of their range; all that are.
    """
    wrong = []
    if split not in SPLITS:
        wrong.append(f"split {split!r}: expected one of {', '.join(SPLITS)}.")
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        wrong.append(f"unknown task family {', '.join(map(repr, unknown))}: expected names among {', '.join(FAMILIES)}.")
    if level not in LEVELS:
        wrong.append(f"level {level!r}: expected 1, 2 or 3.")
    if not responses or any(number not in range(1, MAX_RESPONSES + 1) for number in responses):
        wrong.append(f"responses {tuple(responses)!r}: expected one or more numbers, each 1 to {MAX_RESPONSES}.")
    if count < 0 or start < 0:
        wrong.append(f"count {count}, start {start}: expected numbers from 0 up.")
    if wrong:
        raise ValueError(" ".join(wrong))
    chosen = [FAMILIES[name] for name in families or FAMILIES]
    numbers = tuple(responses)
    return (make_record(chosen[index % len(chosen)], split, seed, index, level, numbers) for index in range(start, start + count))
