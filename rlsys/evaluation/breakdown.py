"""Where a judge is right: by number of responses, by place of the best response, and by the scores that it writes. Pure functions.

A sample is a row of a trajectory table (`rlsys.data.trajectories.TRAJECTORIES`): `order[p]` is the index of the response shown at place p;
`ground_truth` and `scores` (null after a parse failure) are in the record's own order. Places are numbered from 1, as the judge reads them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.documents.core import Interval
from rlsys.documents.runs import RunBaselines
from rlsys.evaluation.heldout import chance, clustered_accuracy_ci

Sample = Mapping[str, Any]
Place = tuple[int, int]
"""(number of responses, place)."""


@dataclass(frozen=True)
class Group:
    """Accuracy over some of the rows; a parse failure counts as wrong."""

    rows: int
    samples: int
    accuracy: float
    ci95: Interval | None
    """Over rows; None if there are too few."""


@dataclass(frozen=True)
class Scores:
    """The scores of the parsed samples with two or more responses."""

    samples: int
    counts: dict[float, int]
    """Times that each score was written, ascending."""
    best: float | None
    """Mean score of the best responses; None if there are no such samples."""
    others: float | None
    """Mean score of the other responses."""
    ties: float | None
    """Fraction of the samples in which several responses share the highest score."""


def by_responses(samples: Sequence[Sample]) -> dict[int, Group]:
    """Return the accuracy by number of responses, ascending."""
    return _groups([(len(sample["order"]), sample) for sample in samples])


def by_place(samples: Sequence[Sample]) -> dict[Place, Group]:
    """Return the accuracy by the place at which the best response was shown, of samples with two or more responses."""
    return _groups([((len(sample["order"]), place_of_best(sample)), sample) for sample in _several(samples)])


def picks(samples: Sequence[Sample]) -> dict[Place, float]:
    """Return how often each place has the highest score: the share of the parsed samples with as many responses. Ties share it."""
    wins: dict[Place, float] = defaultdict(float)
    shown: Counter[int] = Counter()
    for sample in _parsed(samples):
        scores = [sample["scores"][response] for response in sample["order"]]
        shown[len(scores)] += 1
        for place, score in enumerate(scores, 1):
            wins[len(scores), place] += (score == max(scores)) / scores.count(max(scores))
    return {(n, place): wins[n, place] / shown[n] for n in sorted(shown) for place in range(1, n + 1)}


def written_scores(samples: Sequence[Sample]) -> Scores:
    """Return the distribution of the scores, and how they separate the best response from the others."""
    parsed = _parsed(samples)
    best, others, ties = [], [], 0
    for sample in parsed:
        gold = _best(sample)
        best.append(sample["scores"][gold])
        others += [score for response, score in enumerate(sample["scores"]) if response != gold]
        ties += sample["scores"].count(max(sample["scores"])) > 1
    return Scores(
        samples=len(parsed),
        counts=dict(sorted(Counter([*best, *others]).items())),
        best=sum(best) / len(best) if best else None,
        others=sum(others) / len(others) if others else None,
        ties=ties / len(parsed) if parsed else None,
    )


def baselines(samples: Sequence[Sample]) -> RunBaselines:
    """Return what `rlsys.evaluation.heldout.baselines` finds without the texts of the responses: chance and the first one in the file."""
    rows = {_key(sample): sample for sample in samples}.values()
    first = [float(_best(row) == 0) for row in _several(rows)]
    return RunBaselines(
        chance=sum(chance(len(row["order"])) for row in rows) / len(rows) if rows else None,
        first=sum(first) / len(first) if first else None,
        pairs_n=len(first),
    )


def place_of_best(sample: Sample) -> int:
    """Return the place at which the best response was shown."""
    return int(sample["order"].index(_best(sample))) + 1


def _best(sample: Sample) -> int:
    truth = sample["ground_truth"]
    return int(truth.index(max(truth)))


def _several(samples: Sequence[Sample] | Any) -> list[Sample]:
    return [sample for sample in samples if len(sample["order"]) > 1]


def _parsed(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in _several(samples) if sample["scores"] is not None]


def _key(sample: Sample) -> tuple[Any, str]:
    return sample.get("source", sample.get("group")), sample["prompt_id"]


def _groups(samples: Sequence[tuple[Any, Sample]]) -> dict[Any, Group]:
    members: dict[Any, list[Sample]] = {}
    for group, sample in samples:
        members.setdefault(group, []).append(sample)
    found = {}
    for group, own in sorted(members.items()):
        keys: list[Hashable] = [_key(sample) for sample in own]
        correct = [bool(sample["correct"]) for sample in own]
        found[group] = Group(len(set(keys)), len(own), sum(correct) / len(own), clustered_accuracy_ci(keys, correct))
    return found
