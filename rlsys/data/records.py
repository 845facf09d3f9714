"""The one preference record that every reader produces and every later stage consumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TeacherJudgement:
    """How a teacher judged a record: the raw material of a cold-start trajectory.

    Notes and scores stand in the record's own response order; `rlsys.prompts.rendering` writes them out in whatever order the
    responses were shown.
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

    `rewards` has one float per response and exactly one maximum (Eq. 10 needs a single best response); for a single
    response it is 0.0 or 1.0. `rlsys.data.readers.check` says what is wrong with a record that breaks this.
    """

    id: str
    """Unique within one source only: `key` tells rows apart."""
    source: str
    """Where it came from: reader name, or the subset a benchmark names; in a mixture, NAME/ of its part before it."""
    context: tuple[dict[str, str], ...]
    """Messages {role, content}; the last one is the user's query, or the result of a tool."""
    responses: tuple[str, ...]
    """Texts; an empty one is a response, too."""
    rewards: tuple[float, ...]
    strength: float | None = None
    """How strongly the best is preferred, in the source's own units, where known."""
    reference: str | None = None
    """A reference answer, where the source has one."""
    family: str | None = None
    """Subset or task family: results are broken down by it."""
    worked: TeacherJudgement | None = field(default=None, compare=False)
    """A teacher's judgement, only in generated tasks. Never shown to the policy in RL."""

    @property
    def key(self) -> tuple[str, str]:
        """(source, id): what tells the record from all others, wherever rows are compared, left out or grouped."""
        return self.source, self.id

    @property
    def n(self) -> int:
        """Number of responses."""
        return len(self.responses)

    @property
    def best(self) -> int:
        """Index of the unique best response (0 for a single response)."""
        return max(range(self.n), key=lambda i: self.rewards[i])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, without the fields that are None; `from_json` reads it back."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Record:
        """The inverse of `to_json`. Types are checked by `rlsys.data.readers` (format name: `rlsys`)."""
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
        )


class NoUniqueBest(ValueError):
    """The record's rewards have no single maximum: it is set aside and counted, not an error in the file."""
