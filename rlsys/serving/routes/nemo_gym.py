"""POST /compare, as NeMo Gym's `GenRMStrategy` asks its server genrm_compare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from rlsys.serving.contract import Message, ServingError
from rlsys.serving.guard import Guard
from rlsys.serving.rewards import RewardOptions, Rewards, judge_groups
from rlsys.serving.streams import answer


class CompareRequest(BaseModel):
    """Responses to compare."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    conversation_history: list[Message] = Field(min_length=1)
    response_objs: list[dict[str, Any]] = Field(min_length=1)
    """Objects of OpenAI's Responses API; their output texts are judged, without reasoning."""
    principle: str | None = None
    """Principles to judge by, instead of those that the judge would write."""


class CompareResponse(BaseModel):
    """Rewards, in the order of the responses."""

    rewards: list[float]
    comparison_results: None = None
    """Results of pairs: none, as all responses are judged together."""
    metrics: dict[str, float]


def router(judge: Guard) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["NeMo Gym"])

    @routes.post("/compare", summary="Rewards for NeMo Gym")
    async def compare(request: Request, body: CompareRequest, options: Annotated[RewardOptions, Query()]) -> CompareResponse:
        """Return a reward in [0, 1] for each response; all are judged together."""
        responses = [output_text(response, index) for index, response in enumerate(body.response_objs)]
        work = judge_groups(judge, [(body.conversation_history, responses)], options, body.principle)
        (rewards,) = await answer(request, work)
        return CompareResponse(rewards=rewards.values, metrics=_metrics(rewards))

    return routes


def output_text(response: dict[str, Any], index: int) -> str:
    """Return the output text of a response object; empty if the policy wrote none."""
    if not isinstance(output := response.get("output"), list):
        raise ServingError(f"response_objs.{index}.output: expected a list of items, as in OpenAI's Responses API.", 422)
    return "".join(_texts(output))


def _texts(output: list[Any]) -> Iterator[str]:
    for item in output:
        if isinstance(item, dict) and item.get("type") == "message" and isinstance(content := item.get("content"), list):
            for part in content:
                if isinstance(part, dict) and part.get("type") == "output_text" and isinstance(text := part.get("text"), str):
                    yield text


def _metrics(rewards: Rewards) -> dict[str, float]:
    return {
        "mean_judge_score": sum(rewards.scores) / len(rewards.scores),
        "judge_parsed": rewards.parsed,
        "judge_tokens": float(rewards.generated_tokens),
    }
