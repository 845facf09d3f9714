"""Groups of requests that arrive one by one: trainers that send each response alone still have a prompt's responses judged together."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from rlsys.serving.contract import Message, ServingError
from rlsys.serving.guard import Guard
from rlsys.serving.rewards import Conversation, RewardOptions, Rewards, judge_groups

RETRY_S = 1.0


class GroupOptions(RewardOptions):
    group: Annotated[int, Field(ge=1)] = 1
    """Responses of a prompt, each in a request of its own, that are judged together."""
    wait_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Seconds that a request waits for the others of its group."""


@dataclass(frozen=True)
class Reward:
    """The reward of one response."""

    value: float
    """In [0, 1]."""
    score: float
    """On the judge's own scale."""
    parsed: float
    """Share of the samples that have scores."""


@dataclass(eq=False)
class _Group:
    responses: dict[int, str] = field(default_factory=dict)
    """Of the members that still wait, by number of arrival."""
    arrivals: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    judging: asyncio.Task[dict[int, Reward]] | None = None


class Gathering:
    """Judges a prompt's responses together once all of them have arrived. A group is judged whole or not at all."""

    def __init__(self, judge: Guard):
        self._judge = judge
        self._open: dict[str, _Group] = {}

    async def reward(self, conversation: Conversation, response: str, options: GroupOptions) -> Reward:
        """Return the reward of a response, once its group is complete and judged.

        Raises:
            ServingError: the rest of the group did not arrive in time, too many requests wait, or the judgement is refused or failed.
        """
        self._check(options)
        key = _key(conversation, options)
        group = self._open.setdefault(key, _Group())
        member, group.arrivals = group.arrivals, group.arrivals + 1
        group.responses[member] = response
        if len(group.responses) == options.group:
            del self._open[key]
            group.judging = asyncio.create_task(self._judged(dict(group.responses), conversation, options))
            group.complete.set()
        try:
            await _completed(group, options)
            assert group.judging is not None
            # One member that goes away must not end the judgement of the others.
            return (await asyncio.shield(group.judging))[member]
        finally:
            self._leave(key, group, member)

    def _check(self, options: GroupOptions) -> None:
        limits = self._judge.limits
        if options.group > limits.max_responses:
            raise limits.exceeded(f"group: {options.group}", "max_responses")
        waiting = sum(len(group.responses) for group in self._open.values())
        if waiting >= limits.max_gathering:
            found = f"{waiting} responses wait for the rest of their groups"
            raise ServingError(f"{found}; send all responses of a prompt at about the same time.", 429, RETRY_S)

    def _leave(self, key: str, group: _Group, member: int) -> None:
        """Forget a member that is answered or went away. A judgement for which nobody waits any more is stopped."""
        del group.responses[member]
        if group.responses:
            return
        if group.judging is not None:
            group.judging.cancel()
        else:
            del self._open[key]

    async def _judged(self, members: dict[int, str], conversation: Conversation, options: GroupOptions) -> dict[int, Reward]:
        # Sorted, so that the rewards do not depend on the order of arrival.
        numbers = sorted(members, key=lambda number: members[number])
        (rewards,) = await judge_groups(self._judge, [(conversation, [members[number] for number in numbers])], options)
        return dict(zip(numbers, each(rewards), strict=True))


def each(rewards: Rewards) -> list[Reward]:
    """Return the rewards of a group one by one."""
    return [Reward(value, score, rewards.parsed) for value, score in zip(rewards.values, rewards.scores, strict=True)]


async def _completed(group: _Group, options: GroupOptions) -> None:
    try:
        async with asyncio.timeout(options.wait_s):
            await group.complete.wait()
    except TimeoutError:
        found = f"{len(group.responses)} of the group's {options.group} responses arrived within {options.wait_s:g} s"
        raise ServingError(f"{found} (wait_s of the URL); ask again, to wait for the others once more.", 503, RETRY_S) from None


def _key(conversation: Conversation, options: GroupOptions) -> str:
    messages = conversation if isinstance(conversation, str) else [_pair(message) for message in conversation]
    return json.dumps([messages, options.model_dump()], sort_keys=True)


def _pair(message: Message) -> tuple[str, str]:
    return message.role, message.content
