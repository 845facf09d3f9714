"""A judge: one engine, of the class that rollouts use, that answers requests one by one; the engine batches them.

The class is an actor like any other, and the base of the replicas of `rlsys serve`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import pyarrow as pa

from actors.rollout.rollout import RolloutActor, RolloutError
from rlsys.config.schema import Config
from rlsys.data.chain import PROMPTS, SAMPLES, Sample, prompt_batch
from rlsys.io.run_folder import find_model
from rlsys.judging.requests import JudgeResult, RenderedRequest, collect_results
from rlsys.prompts.rendering import Prompter, seed_for
from rlsys.serving.contract import (
    ChatChoice,
    ChatRequest,
    ChatResponse,
    SampleDone,
    ScoreRequest,
    ScoreResponse,
    ServingError,
    TextDelta,
)
from rlsys.serving.judging import ChatRenderer, Listener, Sampling, check_chars, check_chat_length, judge
from rlsys.serving.service import ServiceArguments, judge_settings

T = TypeVar("T")
LOST = "the engine that computed this was lost; ask again."
LOST_RETRY_S = 5.0
_CHAT_PROMPT = pa.schema([PROMPTS.field(name) for name in ("group", "prompt_token_ids", "seeds")])


class JudgeActor:
    """Life cycle: construct, `ready`, then any calls at the same time, `shutdown`. All calls run in one event loop."""

    def __init__(
        self,
        name: str,
        arguments: ServiceArguments,
        config: Config,
        meta_rm: str | None,
        log_dir: str,
        threads: int,
        weight_backend: str,
        meta: Any = None,
        gpus: list[str] | None = None,
    ):
        """
        Args:
            config: the engine's, of `rlsys.serving.service.service_config`, like `meta_rm`.
            meta: handle of the actor with the meta reward model; None: samples have no meta reward.
            log_dir, threads, weight_backend, gpus: as for `RolloutActor`.
        """
        self._arguments, self._config, self._meta_rm, self._meta = arguments, config, meta_rm, meta
        self._engine = RolloutActor(
            name,
            find_model(config.model.path),
            config.rollout,
            config.model.dtype,
            config.prompt.max_tokens + config.rollout.max_tokens,
            config.seed,
            weight_backend,
            log_dir,
            threads,
            config.prompt.chat_template_args,
            gpus,
        )

    async def ready(self) -> dict[str, Any]:
        """Start the engine; returns its self-description, and the judge's model and version."""
        found = await self._engine.ready()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._engine.model_path)
        longest = max(map(len, tokenizer.get_vocab()))
        self._settings = judge_settings(self._arguments, self._config, self._meta_rm, longest)
        self._prompter = Prompter.from_config(tokenizer, self._config.prompt)
        self._chat = ChatRenderer(self._prompter.chat)
        return found | {"model": self._settings.model, "version": self._settings.version, "pid": os.getpid()}

    async def identity(self) -> dict[str, str]:
        """Return model and version, as responses name them."""
        return {"model": self._settings.model, "version": self._settings.version}

    async def in_flight(self) -> int:
        """Return the number of unfinished samples."""
        return await self._engine.in_flight()

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        await self._engine.shutdown()

    # --- judging -----------------------------------------------------------------------------------------------------------

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer a request; see `rlsys.serving.contract.JudgeBackend`."""
        return await judge(request, self._settings, self._prompter, self._sample)

    async def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        """Yield the samples' texts as they arrive, each finished sample, and the response last."""
        items: asyncio.Queue[TextDelta | SampleDone] = asyncio.Queue()
        listener = Listener(
            text=lambda number, more: items.put_nowait(TextDelta(number, more)),
            sample=lambda number, result: items.put_nowait(SampleDone(number, result)),
        )
        async with aclosing(_as_they_come(judge(request, self._settings, self._prompter, self._sample, listener), items)) as coming:
            async for item in coming:
                yield item

    async def _sample(self, rendered: RenderedRequest, sampling: Sampling, on_text: Callable[[str], None] | None) -> JudgeResult:
        prompts = prompt_batch(rendered.asked)
        samples = await self._generate(prompts, sampling, on_text)
        metas = None if self._meta is None else await self._meta.score.remote(prompts, samples)
        (result,) = collect_results([rendered], samples, metas, self._prompter.score_format)
        return result

    async def _generate(self, prompts: pa.RecordBatch, sampling: Sampling, on_text: Callable[[str], None] | None) -> pa.RecordBatch:
        try:
            return await self._engine.generate(prompts, sampling.temperature, sampling.top_p, sampling.max_tokens, on_text=on_text)
        except RolloutError as error:
            if self._engine.engine_failure():
                raise ServingError(LOST, 503, LOST_RETRY_S) from error
            raise

    # --- chat --------------------------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> ChatResponse:
        """Answer a conversation; see `rlsys.serving.contract.JudgeBackend`."""
        prompt = await self._chat_prompt(request)
        samples = await self._generate(_chat_batch(prompt, _chat_seeds(request)), self._chat_sampling(prompt, request), None)
        return ChatResponse(choices=_choices(samples), prompt_tokens=len(prompt))

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        """Yield the choices' texts as they arrive, and the response last."""
        prompt = await self._chat_prompt(request)
        sampling, texts = self._chat_sampling(prompt, request), asyncio.Queue[TextDelta]()

        async def choice(number: int, seed: int) -> ChatChoice:
            samples = await self._generate(_chat_batch(prompt, [seed]), sampling, lambda more: texts.put_nowait(TextDelta(number, more)))
            return _choices(samples)[0]

        async def answer() -> ChatResponse:
            async with asyncio.TaskGroup() as group:
                choices = [group.create_task(choice(number, seed)) for number, seed in enumerate(_chat_seeds(request))]
            return ChatResponse(choices=[one.result() for one in choices], prompt_tokens=len(prompt))

        async with aclosing(_as_they_come(answer(), texts)) as coming:
            async for item in coming:
                yield item

    async def _chat_prompt(self, request: ChatRequest) -> list[int]:
        check_chars("the conversation", [message.model_dump() for message in request.messages], [], self._settings)
        return await asyncio.to_thread(self._chat.tokens, request.messages)

    def _chat_sampling(self, prompt: list[int], request: ChatRequest) -> Sampling:
        return Sampling(request.temperature, request.top_p, check_chat_length(len(prompt), request, self._settings))


def _chat_seeds(request: ChatRequest) -> list[int]:
    return [seed_for("chat", request.seed, number) for number in range(request.n)]


def _chat_batch(prompt: list[int], seeds: list[int]) -> pa.RecordBatch:
    return pa.record_batch({"group": [0], "prompt_token_ids": [prompt], "seeds": [seeds]}, schema=_CHAT_PROMPT)


def _choices(samples: pa.RecordBatch) -> list[ChatChoice]:
    assert samples.schema.equals(SAMPLES)
    rows = [Sample(**row) for row in samples.to_pylist()]
    return [ChatChoice(text=row.text, finish_reason=row.finish_reason, tokens=len(row.token_ids)) for row in rows]


async def _as_they_come(answer: Awaitable[T], items: asyncio.Queue[Any]) -> AsyncGenerator[Any]:
    """Yield what is put into `items` while `answer` is computed, and the answer last; stops it when the caller stops."""
    working = asyncio.ensure_future(answer)
    working.add_done_callback(lambda _: items.put_nowait(None))
    try:
        while (item := await items.get()) is not None:
            yield item
        yield working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
