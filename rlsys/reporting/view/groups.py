"""Summaries of groups, filters on them, and the comparison of two tables on the same rows."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rlsys.data.readers import DataError
from rlsys.reporting.view.tables import Row


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt in a table."""

    place: int
    """Index in its table, from 0."""
    group: int
    first: int
    """Index of its first sample in its table."""
    id: str
    source: str | None
    family: str | None
    outcomes: str
    """One letter per sample: r right, w wrong, n no ground truth, f parse failure."""
    cut_off: int
    """Samples that reached the token limit."""
    reward: float | None
    """Mean over the samples, in [-1, 1]; None if the table has none."""
    lead: float | None
    """See `lead`; None without a ground truth, or if nothing was parsed."""
    versions: tuple[int, int] | None
    """Lowest and highest weight version of the samples."""

    @property
    def failed(self) -> int:
        return self.outcomes.count("f")

    @property
    def key(self) -> tuple[str | None, str]:
        """The data row that it belongs to."""
        return self.source, self.id


def summarise(rows: Iterable[Row]) -> Iterator[Group]:
    """Yield the groups of a table's samples, in order."""
    first = 0
    for place, ((group, row_id), samples) in enumerate(groupby(rows, lambda row: (row["group"], row["prompt_id"]))):
        found = list(samples)
        head, rewards = found[0], [row["reward"] for row in found if row.get("reward") is not None]
        versions = [row["weight_version"] for row in found if row.get("weight_version") is not None]
        yield Group(
            place,
            group,
            first,
            row_id,
            head.get("source"),
            head.get("family"),
            "".join(map(_outcome, found)),
            sum(row.get("finish_reason") == "length" for row in found),
            sum(rewards) / len(rewards) if rewards else None,
            lead(found),
            (min(versions), max(versions)) if versions else None,
        )
        first += len(found)


def _outcome(row: Row) -> str:
    # A policy's samples have no scores, but may be right or wrong by their checks.
    if row.get("parse_failure") is not None or (row.get("scores") is None and row.get("correct") is None):
        return "f"
    return {True: "r", False: "w", None: "n"}[row.get("correct")]


def lead(samples: Sequence[Row]) -> float | None:
    """Return how far the samples put the best response ahead of the best of the others; negative if behind.

    For two or more responses: the difference of their mean scores over the parsed samples, in points. For a single response: the share of
    right samples minus that of wrong ones, in [-1, 1].
    """
    parsed = [row for row in samples if row.get("scores") is not None]
    if len({len(row["scores"]) for row in parsed}) > 1:
        raise DataError(f"group {samples[0]['group']}: expected samples of the same responses, found scores of different numbers of them.")
    truth = parsed[0].get("ground_truth") if parsed else None
    if not truth:
        return None
    if len(truth) == 1:
        return sum(1 if row["correct"] else -1 for row in parsed) / len(parsed)
    means = mean_scores(parsed)
    best: int = truth.index(max(truth))
    return means[best] - max(score for response, score in enumerate(means) if response != best)


def mean_scores(parsed: Sequence[Row]) -> list[float]:
    """Return each response's mean score over parsed samples, in the record's own order."""
    return [sum(scores) / len(parsed) for scores in zip(*(row["scores"] for row in parsed), strict=True)]


# --- filters --------------------------------------------------------------------------------------------------------

Pair = tuple[Group, Group | None]
"""A group, and the group of the same row in the other table, if two tables are compared."""


def _any(test: Callable[[Group], bool]) -> Callable[[Pair], bool]:
    return lambda pair: any(test(group) for group in pair if group is not None)


def _wrong(group: Group) -> bool:
    return group.lead is not None and group.lead <= 0


FILTERS: dict[str, tuple[str, Callable[[Pair], bool]]] = {
    "all": ("all", lambda pair: True),
    "wrong": ("wrong and confident", _any(_wrong)),
    "unparsed": ("unparsed", _any(lambda group: group.failed > 0)),
    "cut_off": ("cut off", _any(lambda group: group.cut_off > 0)),
    "mixed": ("right and wrong", _any(lambda group: "r" in group.outcomes and group.outcomes.strip("r") != "")),
    "changed": ("largest change", lambda pair: pair[1] is not None and change(pair) != (0.0, 0.0)),
}
"""Name -> (label, test). `wrong` puts the most confident first, `changed` the largest change; the others keep the table's order."""


def change(pair: Pair) -> tuple[float, float]:
    """Return the change from a pair's first group to its second: (mean reward, lead); 0 where either has none."""
    before, after = pair
    assert after is not None
    return _difference(before.reward, after.reward), _difference(before.lead, after.lead)


def _difference(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else after - before


def ordered(pairs: list[Pair], name: str) -> list[Pair]:
    """Sort the pairs that passed the filter `name`."""
    if name == "wrong":
        return sorted(pairs, key=lambda pair: min(group.lead for group in pair if group is not None and group.lead is not None))
    if name == "changed":
        return sorted(pairs, key=lambda pair: [-abs(part) for part in change(pair)])
    return pairs


def matched(groups: Sequence[Group], others: Sequence[Group]) -> list[Pair]:
    """Pair the groups of two tables that belong to the same data row; a row's first group with its first group there, and so on."""
    by_key: dict[tuple[str | None, str], deque[Group]] = defaultdict(deque)
    for group in others:
        by_key[group.key].append(group)
    return [(group, by_key[group.key].popleft()) for group in groups if by_key.get(group.key)]


def families(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return each family's number of groups and mean reward (in both tables, if two are compared), by name."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair[0].family is not None:
            found[pair[0].family].append(pair)
    return [{"name": name, "groups": len(found[name]), "rewards": _mean_rewards(found[name])} for name in sorted(found)]


def _mean_rewards(pairs: Sequence[Pair]) -> list[float | None]:
    sides = ([pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None])
    rewards = [[group.reward for group in side if group.reward is not None] for side in sides if side]
    return [sum(side) / len(side) if side else None for side in rewards]
