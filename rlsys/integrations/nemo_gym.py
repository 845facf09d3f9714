"""NeMo Gym: a resources server that rewards judgements by our rules, so that its trainers train a judge (read and tested with 0.4.0).

A group of responses is judged by the service's own `/compare` (docs/serving.md). This server is for the other direction: the policy is the
judge. `rlsys.integrations.environment.write_nemo_gym_rows` writes its rows; app.py in a folder of NeMo Gym's `resources_servers` is

    from rlsys.integrations.nemo_gym import JudgingServer

    if __name__ == "__main__":
        JudgingServer.run_webserver()
"""

from __future__ import annotations

from typing import Any

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseRunRequest,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from pydantic import BaseModel, ConfigDict

from rlsys.integrations.environment import JudgingTask


class Judging(BaseModel):
    """The ground truth of a row."""

    id: str = ""
    prompt: str = ""
    order: tuple[int, ...]
    rewards: tuple[float, ...]
    thought: str = ""


class JudgingServerConfig(BaseResourcesServerConfig):  # type: ignore[misc]
    name: str = "rlsys_judging"


class JudgingRunRequest(BaseRunRequest):  # type: ignore[misc]
    model_config = ConfigDict(extra="allow")

    judging: Judging


class JudgingVerifyRequest(JudgingRunRequest, BaseVerifyRequest):  # type: ignore[misc]
    pass


class JudgingVerifyResponse(BaseVerifyResponse):  # type: ignore[misc]
    model_config = ConfigDict(extra="allow")

    correct: bool
    """Eq. 10."""
    scores: list[float] | None
    """In the record's own order."""
    parse_failure: str | None


class JudgingServer(SimpleResourcesServer):  # type: ignore[misc]
    """Rewards a judgement by Eq. 10 and 11: +1 if the best response alone has the highest score, else -1."""

    config: JudgingServerConfig

    async def verify(self, body: JudgingVerifyRequest) -> JudgingVerifyResponse:
        judging = body.judging
        task = JudgingTask(judging.id, judging.prompt, judging.order, judging.rewards, judging.thought)
        text, truncated = _text(body.response)
        found = task.judge(text, truncated)
        outcome = {"correct": found.correct, "scores": found.scores and list(found.scores), "parse_failure": found.failure}
        return JudgingVerifyResponse(**body.model_dump(), reward=found.reward, **outcome)


def _text(response: Any) -> tuple[str, bool]:
    """Return the text of a response, and whether the token limit cut it off."""
    messages = [item for item in response.output if item.type == "message"]
    text = "".join(part.text for message in messages for part in message.content if part.type == "output_text")
    return text, getattr(response, "status", None) == "incomplete"
