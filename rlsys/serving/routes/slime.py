"""POST /slime, as slime's rollouts ask a remote reward model (`--rm-type remote_rm --rm-url`)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from rlsys.serving.contract import Message
from rlsys.serving.gathering import Gathering, GroupOptions
from rlsys.serving.guard import Guard
from rlsys.serving.markup import conversation_of, without_end
from rlsys.serving.streams import answer


class SampleRequest(BaseModel):
    """One sample of a policy."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompt: str | Annotated[list[Message], Field(min_length=1)]
    """The prompt as the policy reads it, or as messages."""
    response: str
    label: Any = None
    """Accepted, and not used: a judge needs no reference."""


def router(judge: Guard) -> APIRouter:
    """Return the route."""
    routes, gathering = APIRouter(tags=["slime"]), Gathering(judge)

    @routes.post("/slime", summary="A reward for slime")
    async def slime(request: Request, body: SampleRequest, options: Annotated[GroupOptions, Query()]) -> float:
        """Return the reward of a sample, a number in [0, 1].

        slime sends every sample in a request of its own: with `?group=8` (its --n-samples-per-prompt) the responses to a prompt wait for
        each other and are judged together.
        """
        conversation = conversation_of(body.prompt) if isinstance(body.prompt, str) else body.prompt
        return (await answer(request, gathering.reward(conversation, without_end(body.response), options))).value

    return routes
