"""A judge with real prompts and real reading of scores, whose engine quotes the responses around the scores that it decided on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa

from rlsys.data.chain import SAMPLES
from rlsys.judging.requests import JudgeResult, RenderedRequest, collect_results
from rlsys.prompts.rendering import Prompter, seed_for
from rlsys.serving.contract import (
    ChatChoice,
    ChatRequest,
    ChatResponse,
    JudgeBackend,
    SampleDone,
    ScoreRequest,
    ScoreResponse,
    TextDelta,
)
from rlsys.serving.judging import JudgeSettings, Sampling, judge


class QuotingJudge(JudgeBackend):
    """Scores the first response 2, the others 7 and more, and quotes all of them before and after its scores."""

    model, version = "quoting", "v1"

    def __init__(self, prompter: Prompter, max_prompt_tokens: int = 8000) -> None:
        self.prompts: list[str] = []
        self._prompter = prompter
        self._settings = JudgeSettings("quoting", "v1", 2, "vote", 0.5, 1.0, max_prompt_tokens, max_prompt_tokens * 20, 4000, False, False)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        return await judge(request, self._settings, self._prompter, self._sampled)

    async def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        response = await self.score(request)
        for number, sample in enumerate(response.samples):
            yield TextDelta(number, sample.text or "")
            yield SampleDone(number, sample)
        yield response

    async def chat(self, request: ChatRequest) -> ChatResponse:
        text = request.messages[-1].content
        return ChatResponse(choices=[ChatChoice(text=text, finish_reason="stop", tokens=1)] * request.n, prompt_tokens=1)

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        response = await self.chat(request)
        for number, choice in enumerate(response.choices):
            yield TextDelta(number, choice.text)
        yield response

    async def _sampled(self, rendered: RenderedRequest, sampling: Sampling, on_text: Any) -> JudgeResult:
        rows = []
        for group, item in enumerate(rendered.asked):
            self.prompts.append(item.text)
            shown = [self._prompter.defuse(item.record.responses[index]) for index in item.order]
            assert all(text.strip() in item.text for text in shown), "the prompt shows other texts than the defused responses"
            quoted = "\n".join(shown)
            box = ", ".join(str(decided(index, len(shown))) for index in item.order)
            for number, _ in enumerate(item.seeds):
                row = {"group": group, "sample": number, "token_ids": [1], "logprobs": [-0.5], "finish_reason": "stop", "weight_version": 0}
                rows.append(row | {"text": f"{quoted}\nScores: \\boxed{{{box}}}\n{quoted}", "certainty": None})
        batch = pa.RecordBatch.from_pylist(rows, schema=SAMPLES)
        (result,) = collect_results([rendered], batch, None, self._prompter.score_format)
        return result


def decided(index: int, n: int) -> int:
    """The score that the judge gives the response `index` of n."""
    return 0 if n == 1 else 2 if index == 0 else 7 + seed_for(index) % 3
