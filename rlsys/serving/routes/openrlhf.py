"""POST /get_reward, as OpenRLHF's trainer asks a remote reward model (`--reward.remote_url`)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from rlsys.serving.contract import ServingError
from rlsys.serving.gathering import Gathering, GroupOptions, Reward, each
from rlsys.serving.guard import Guard
from rlsys.serving.markup import conversation_of, without_end
from rlsys.serving.rewards import judge_groups
from rlsys.serving.streams import answer


class RewardRequest(BaseModel):
    """Texts of a policy."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    query: list[str] = Field(min_length=1)
    """Each prompt together with its response."""
    prompts: list[str]
    """The prompt with which each query starts. The responses to equal prompts are judged together."""
    labels: list[Any] | None = None
    """Accepted, and not used: a judge needs no reference."""


class RewardResponse(BaseModel):
    """One number for each query, in each list."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def router(judge: Guard) -> APIRouter:
    """Return the route."""
    routes, gathering = APIRouter(tags=["OpenRLHF"]), Gathering(judge)

    @routes.post("/get_reward", summary="Rewards for OpenRLHF")
    async def get_reward(request: Request, body: RewardRequest, options: Annotated[GroupOptions, Query()]) -> RewardResponse:
        """Return a reward in [0, 1] for each query.

        OpenRLHF 0.11 sends every response in a request of its own: with `?group=8` (the trainer's samples per prompt) the responses to a
        prompt wait for each other and are judged together.
        """
        return _response(await answer(request, _rewards(judge, gathering, body, options)))

    return routes


async def _rewards(judge: Guard, gathering: Gathering, body: RewardRequest, options: GroupOptions) -> list[Reward]:
    responses = _responses(body)
    if options.group > 1:
        if len(responses) != 1:
            raise ServingError(f"query: {len(responses)} queries with group={options.group} in the URL, where each request has one.")
        return [await gathering.reward(conversation_of(body.prompts[0]), responses[0], options)]
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(body.prompts):
        members.setdefault(prompt, []).append(index)
    groups = [(conversation_of(prompt), [responses[index] for index in own]) for prompt, own in members.items()]
    judged = await judge_groups(judge, groups, options)
    found = {index: reward for own, rewards in zip(members.values(), judged) for index, reward in zip(own, each(rewards))}
    return [found[index] for index in range(len(responses))]


def _responses(body: RewardRequest) -> list[str]:
    for name, values in (("prompts", body.prompts), ("labels", body.labels)):
        if values is not None and len(values) != len(body.query):
            raise ServingError(f"{name}: expected one for each of {len(body.query)} queries, found {len(values)}.")
    for index, (query, prompt) in enumerate(zip(body.query, body.prompts)):
        if not query.startswith(prompt):
            raise ServingError(f"query.{index}: expected a text that starts with prompts.{index}, so that the rest is the response.", 422)
    return [without_end(query.removeprefix(prompt)) for query, prompt in zip(body.query, body.prompts)]


def _response(rewards: list[Reward]) -> RewardResponse:
    values = [reward.value for reward in rewards]
    logs = {"judge_score": [reward.score for reward in rewards], "judge_parsed": [reward.parsed for reward in rewards]}
    return RewardResponse(rewards=values, scores=values, extra_logs=logs)
