"""The preference record that every reader produces and every later stage consumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TeacherJudgement:
    """A teacher's judgement of a record, from which cold-start trajectories are rendered.

    Notes and scores are in the record's own response order; `rlsys.prompts.rendering` writes them in presentation order.
    """

    criteria: str
    """The principle by which the responses are judged, one or two sentences."""
    notes: tuple[str, ...]
    """One remark per response; it never mentions a response's number."""
    scores: tuple[int, ...]
    """One integer per response, 1..10 (0..1 for a single response)."""


@dataclass(frozen=True)
class Record:
    """A query with its candidate responses and their ground-truth rewards.

    `rewards` has one float per response and exactly one maximum (Eq. 10 needs a single best response); for a single response it is 0.0
    or 1.0. `rlsys.data.readers.check` raises if a record violates this.

    Example:
        Record(
            id="r1", source="llmbar", context=({"role": "user", "content": "What is the capital of Norway?"},),
            responses=("Oslo", "Bergen"), rewards=(1.0, 0.0),
        )
    """

    id: str
    """Unique within one source only; `key` is unique across sources."""
    source: str
    """Origin: the reader's name, or the subset that a benchmark names; in a mixture, prefixed with NAME/ of its part."""
    context: tuple[dict[str, str], ...]
    """Messages {role, content}; the last one is the user's query or a tool result."""
    responses: tuple[str, ...]
    """Candidate texts, possibly empty."""
    rewards: tuple[float, ...]
    """Ground truth, one per response; only the order matters, not the scale. All zero if not `labelled`."""
    strength: float | None = None
    """How strongly the best response is preferred, in the source's own units, where known."""
    reference: str | None = None
    """A reference answer, where the source has one."""
    family: str | None = None
    """Subset or task family, by which results are broken down."""
    worked: TeacherJudgement | None = field(default=None, compare=False)
    """A teacher's judgement, in generated tasks only. Never shown to the policy in RL."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """Rules by which a program checks any answer to the query (`rlsys.rewards.checks`); empty if there are none."""
    labelled: bool = True
    """False if the row has no ground truth and can only be judged (format `responses`)."""

    @property
    def key(self) -> tuple[str, str]:
        """(source, id): identifies the record wherever rows are compared, excluded or grouped."""
        return self.source, self.id

    @property
    def n(self) -> int:
        """Number of responses."""
        return len(self.responses)

    @property
    def best(self) -> int:
        """Index of the unique best response (0 for a single response)."""
        return max(range(self.n), key=lambda i: self.rewards[i])

    @property
    def has_truth(self) -> bool:
        """Whether the ground truth names a single best response or, for a single response, its label."""
        return self.labelled and (self.n == 1 or self.rewards.count(max(self.rewards)) == 1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict without fields that are None or default; `from_json` is the inverse."""
        row = {key: value for key, value in asdict(self).items() if value is not None}
        if self.labelled:
            del row["labelled"]
        if not self.checks:
            del row["checks"]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Record:
        """Return the record that `to_json` wrote. Types are checked by `rlsys.data.readers` (format `rlsys`)."""
        worked = row.get("worked")
        return cls(
            id=row["id"],
            source=row["source"],
            context=tuple(dict(message) for message in row["context"]),
            responses=tuple(row["responses"]),
            rewards=tuple(float(reward) for reward in row["rewards"]),
            strength=row.get("strength"),
            reference=row.get("reference"),
            family=row.get("family"),
            worked=TeacherJudgement(worked["criteria"], tuple(worked["notes"]), tuple(worked["scores"])) if worked else None,
            checks=tuple(row.get("checks") or ()),
            labelled=row.get("labelled") is not False,
        )


class NoUniqueBest(ValueError):
    """The record's rewards have no single maximum: the record is skipped and counted; the file is not at fault."""
