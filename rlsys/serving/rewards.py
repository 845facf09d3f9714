"""Rewards in [0, 1] from a judge, for callers whose own requests have no place for k, a strategy, or a judgement without scores.

What these bodies cannot carry is asked for in the URL: `/get_reward?k=8&strategy=meta&unparsed=0.5`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rlsys.serving.contract import Message, ScoreRequest, ScoreResponse, ServingError
from rlsys.serving.guard import Guard

Conversation = str | list[Message]
MAX_JUDGEMENTS = 256
"""Judgements of one request. More responses, or more prompts, take several requests."""


class RewardOptions(BaseModel):
    """The query of the URL."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    k: Annotated[int, Field(ge=1)] | None = None
    """Samples of each judgement. Left out: the service's default."""
    strategy: str | None = None
    """Voting strategy. Left out: the service's default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of response orders and samples. The same request with the same seed has the same rewards."""
    unparsed: Annotated[float, Field(ge=0, le=1)] | None = None
    """Reward of responses whose judgement has no scores, as no sample could be parsed. Left out: such a request is refused."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of responses that were judged together, or in several parts."""

    values: list[float]
    """One for each response, in [0, 1]: the score's place in the range of the judge's scores."""
    scores: list[float]
    """One for each response, as the judge gave them; those of a judgement without scores are the reward put into the judge's range."""
    judgements: list[ScoreResponse]

    @property
    def parsed(self) -> float:
        """Share of the samples that have scores."""
        return sum(one.parsed for one in self.judgements) / sum(len(one.samples) for one in self.judgements)

    @property
    def prompt_tokens(self) -> int:
        return sum(one.prompt_tokens for one in self.judgements)

    @property
    def generated_tokens(self) -> int:
        return sum(one.generated_tokens for one in self.judgements)


async def judge_groups(
    judge: Guard, groups: Sequence[tuple[Conversation, Sequence[str]]], options: RewardOptions, principles: str | None = None
) -> list[Rewards]:
    """Judge each group of responses to one conversation; groups above the service's limit in several parts.

    Raises:
        ServingError: too many judgements, or one that is refused, failed, or has no scores while `options.unparsed` is left out.
    """
    parts = [split(len(responses), judge.limits.max_responses) for _, responses in groups]
    if (count := sum(map(len, parts))) > MAX_JUDGEMENTS:
        held = f"at most {judge.limits.max_responses} responses each (--max-responses of `rlsys serve`)"
        raise ServingError(f"{count} judgements of {held}: the limit is {MAX_JUDGEMENTS} in one request; send several requests.", 422)
    requests = [
        _request(conversation, [responses[index] for index in part], options, principles)
        for (conversation, responses), own in zip(groups, parts, strict=True)
        for part in own
    ]
    if count == 1:
        judgements = iter([await judge.score(requests[0])])
    else:
        judgements = iter(await judge.several([partial(judge.score_line, request) for request in requests]))
    return [
        _joined(len(responses), own, [next(judgements) for _ in own], options)
        for (_, responses), own in zip(groups, parts, strict=True)
    ]  # fmt: skip


def split(n: int, most: int) -> list[list[int]]:
    """Divide indices 0 .. n - 1 into as few parts of at most `most` as possible, of nearly equal size.

    An index that would be alone is judged beside one of another part, as a single response is scored by other rules than several.
    """
    count = -(-n // most)
    parts = [list(range(start, end)) for start, end in pairwise(n * part // count for part in range(count + 1))]
    if most == 1 or n == 1:
        return parts
    return [part if len(part) > 1 else sorted([part[0], part[0] + (1 if part[0] == 0 else -1)]) for part in parts]


def _request(conversation: Conversation, responses: list[str], options: RewardOptions, principles: str | None) -> ScoreRequest:
    return ScoreRequest(
        conversation=conversation,
        responses=responses,
        k=options.k,
        strategy=options.strategy,
        seed=options.seed,
        principles=principles,
    )


def _joined(n: int, parts: list[list[int]], judgements: list[ScoreResponse], options: RewardOptions) -> Rewards:
    """Put the scores of the parts together; a response that was judged twice has the mean of both."""
    rewards: list[list[float]] = [[] for _ in range(n)]
    scores: list[list[float]] = [[] for _ in range(n)]
    for part, judgement in zip(parts, judgements, strict=True):
        low, high = judgement.score_range or (0.0, 1.0)
        if judgement.scores is None:
            found = [low + (high - low) * _unparsed(judgement, options)] * len(part)
        else:
            found = judgement.scores
        for index, score in zip(part, found, strict=True):
            scores[index].append(score)
            rewards[index].append((score - low) / (high - low))
    return Rewards([_mean(one) for one in rewards], [_mean(one) for one in scores], judgements)


def _unparsed(judgement: ScoreResponse, options: RewardOptions) -> float:
    if options.unparsed is not None:
        return options.unparsed
    reasons = sorted({sample.parse_failure for sample in judgement.samples if sample.parse_failure})
    found = f"none of {len(judgement.samples)} samples has scores ({', '.join(reasons)})"
    raise ServingError(f"{found}. Ask for a larger k, another seed, or name the reward of such responses in the URL: ?unparsed=0.5.", 422)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
