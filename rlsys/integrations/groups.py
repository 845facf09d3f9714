"""Rewards for groups: all responses to one prompt are judged together, whether they arrive together or one at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.client import GRM, Verdict
from rlsys.client.background import BackgroundLoop
from rlsys.client.grm import Conversation, Options
from rlsys.serving.contract import ServingError

LOG = logging.getLogger("rlsys.integrations")
SKIPPED = (413, 422)
"""HTTP statuses of requests that exceed a limit, such as a prompt that is too long; other refusals concern every request."""
REFUSALS = 8
"""So many refused groups, and none judged, are an error: the limit concerns every group."""


@dataclass
class Counts:
    """Responses by outcome."""

    judged: int = 0
    unparsed: int = 0
    """No sample of their judgement had scores."""
    refused: int = 0
    """Their judgement exceeds a limit of the judge."""
    incomplete: int = 0
    """The rest of their group did not arrive."""

    @property
    def unjudged(self) -> float:
        """Share of responses without a reward."""
        missing = self.unparsed + self.refused + self.incomplete
        return missing / max(1, missing + self.judged)


class GroupJudge:
    """Gives each response its score as a share of the score range, 0 to 1, or None if it has no score.

    Args:
        judge: the service's address, a model as in `GRM`, or a `GRM`.
        token: of the service; None: the environment variable RLSYS_TOKEN.
        k: samples of each judgement.
        strategy: how they are aggregated (docs/voting.md).
        max_responses: larger groups are judged in parts of nearly equal size.
        options: further arguments of `GRM.score`, for example principles or seed.
    """

    def __init__(
        self,
        judge: str | GRM,
        *,
        token: str | None = None,
        k: int = 8,
        strategy: str = "vote",
        max_responses: int = 32,
        options: Options | None = None,
    ):
        if max_responses < 3:
            raise ValueError(f"max_responses={max_responses}: expected at least 3, so that no response of a group is judged alone.")
        self.grm = judge if isinstance(judge, GRM) else open_judge(judge, token)
        self.k, self.strategy, self.max_responses, self.options = k, strategy, max_responses, options or Options()
        self.counts = Counts()
        self._refusals = 0

    def rewards(self, prompts: Sequence[Conversation], responses: Sequence[str]) -> list[float | None]:
        """Return the reward of each response; all responses to equal prompts are judged together, in whatever order they come.

        Raises:
            ServingError: the judge cannot be reached, refuses every request, or has refused the first `REFUSALS` groups and judged none.
        """
        parts, rows = self._rows(prompts, responses)
        return self._rewards(parts, self.grm.score_many(rows, self.k, self.strategy, return_exceptions=True, **self.options))

    async def arewards(self, prompts: Sequence[Conversation], responses: Sequence[str]) -> list[float | None]:
        """Like `rewards`."""
        parts, rows = self._rows(prompts, responses)
        return self._rewards(parts, await self.grm.ascore_many(rows, self.k, self.strategy, return_exceptions=True, **self.options))

    def _rows(self, prompts: Sequence[Conversation], responses: Sequence[str]) -> tuple[list[list[int]], list[dict[str, Any]]]:
        """Return (the indices that are judged together, one row to score for each of these lists)."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses: expected as many.")
        parts = list(self._parts(prompts))
        return parts, [{"conversation": prompts[part[0]], "responses": [responses[i] for i in part]} for part in parts]

    def _rewards(self, parts: Sequence[Sequence[int]], found: Sequence[Verdict | ServingError]) -> list[float | None]:
        rewards: dict[int, float | None] = {}
        for part, one in zip(parts, found, strict=True):
            rewards.update(zip(part, self._counted(one, len(part)), strict=True))
        refusals = [one for one in found if isinstance(one, ServingError)]
        if refusals and self._refusals >= REFUSALS and not self.counts.judged + self.counts.unparsed:
            raise refusals[0]
        return [rewards[i] for i in range(len(rewards))]

    def _parts(self, prompts: Sequence[Conversation]) -> Iterator[list[int]]:
        """Yield the indices that are judged together."""
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt_key(prompt), []).append(i)
        for indices in groups.values():
            parts = math.ceil(len(indices) / self.max_responses)
            bounds = [len(indices) * part // parts for part in range(parts + 1)]
            yield from (indices[start:end] for start, end in zip(bounds, bounds[1:]))

    def _counted(self, found: Verdict | ServingError, n: int) -> list[float | None]:
        if isinstance(found, ServingError):
            if found.status not in SKIPPED:
                raise found
            self.counts.refused += n
            self._refusals += 1
            LOG.warning("%d responses have no reward: %s", n, found)
            return [None] * n
        rewards = shares(found)
        self.counts.judged += n * (rewards[0] is not None)
        self.counts.unparsed += n * (rewards[0] is None)
        return rewards


def shares(verdict: Verdict) -> list[float | None]:
    """Return each response's score as a share of the score range, 0 to 1; None without scores."""
    if verdict.scores is None or verdict.score_range is None:
        return [None] * len(verdict.responses)
    low, high = verdict.score_range
    return [(score - low) / (high - low) for score in verdict.scores]


@dataclass
class _Group:
    conversation: Conversation
    size: int
    responses: list[str] = field(default_factory=list)
    rewards: asyncio.Future[list[float | None]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    timer: asyncio.TimerHandle | None = None


class GroupCollector:
    """Collects responses that arrive one at a time, and judges those to one prompt when the group is complete.

    A group is judged whole or not at all, as scores of smaller groups are not comparable: the members of one that stays incomplete for
    `wait_s` after its latest response have no reward, with a warning.

    Args:
        group_size: responses to each prompt.
    """

    def __init__(self, judge: GroupJudge, group_size: int, wait_s: float = 120.0):
        _check_size(group_size)
        self.judge, self.group_size, self.wait_s = judge, group_size, wait_s
        self._open: dict[str, _Group] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._background = BackgroundLoop("rlsys-groups")

    async def reward(self, conversation: Conversation, response: str, group_size: int | None = None) -> float | None:
        """Return the reward of a response, when its group was judged; None if the rest of its group does not arrive.

        Callers may be in any event loop.

        Args:
            group_size: of this response's group, if not the usual one, for example of a prompt for validation.
        """
        size = self.group_size if group_size is None else group_size
        _check_size(size)
        return await self._background.arun(self._reward(conversation, response, size))

    async def _reward(self, conversation: Conversation, response: str, size: int) -> float | None:
        key = f"{size} {prompt_key(conversation)}"
        group = self._open.setdefault(key, _Group(conversation, size))
        number = len(group.responses)
        group.responses.append(response)
        if group.timer:
            group.timer.cancel()
        if len(group.responses) == size:
            self._judge(self._open.pop(key))
        else:
            group.timer = asyncio.get_running_loop().call_later(self.wait_s, self._give_up, key)
        return (await asyncio.shield(group.rewards))[number]

    def _give_up(self, key: str) -> None:
        group = self._open.pop(key)
        found, advice = len(group.responses), "Is group_size right, and do all samples of a prompt reach one process?"
        LOG.warning("%d of %d responses to a prompt arrived, which have no reward: %g s passed. %s", found, group.size, self.wait_s, advice)
        self.judge.counts.incomplete += found
        group.rewards.set_result([None] * found)

    def _judge(self, group: _Group) -> None:
        task = asyncio.ensure_future(self._finish(group))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _finish(self, group: _Group) -> None:
        try:
            group.rewards.set_result(await self.judge.arewards([group.conversation] * len(group.responses), group.responses))
        except Exception as error:  # noqa: BLE001  # every waiting caller gets it
            group.rewards.set_exception(error)


def _check_size(group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"group_size={group_size}: expected at least 1, the number of samples of each prompt.")


def open_judge(judge: str, token: str | None = None) -> GRM:
    """Connect to a service if `judge` is a URL; start engines for a model otherwise."""
    if judge.startswith(("http://", "https://")):
        return GRM.connect(judge, token=token)
    return GRM(judge)


def prompt_key(conversation: Conversation) -> str:
    """Return a text that is equal for equal conversations."""
    return json.dumps(conversation, sort_keys=True, default=lambda message: message.model_dump())


def as_text(content: Any) -> str:
    """Return a message's content as text: a string, or a list of parts of which those with text count.

    Raises:
        ValueError: there is a part without text, such as an image.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise ValueError("a message has a part without text, such as an image: a judge reads text only.")
    return "".join(texts)


def as_conversation(prompt: Any) -> Conversation:
    """Return a prompt, a text or messages with role and content, as a conversation."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message["role"], "content": as_text(message.get("content"))} for message in prompt]


def as_response(completion: Any) -> str:
    """Return a completion, a text or the messages that follow a prompt, as text; several messages each with their role."""
    if isinstance(completion, str):
        return completion
    said = [(message["role"], as_text(message.get("content"))) for message in completion]
    return said[0][1] if len(said) == 1 else "\n\n".join(f"{role}: {text}" for role, text in said)
