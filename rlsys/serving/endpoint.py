"""A judge behind an OpenAI-compatible endpoint: it gets the user turns that our template writes, and its answers are scored as an engine's.

Requests run in an event loop of their own thread, a bounded number at a time. Failures that may pass (429, 5xx, a lost connection) are
repeated by the `openai` client with growing pauses, or those of the Retry-After header; any other failure ends the job with one line.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import openai
from openai import AsyncOpenAI

from rlsys.config.endpoint import Endpoint
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest, Sampling, endpoint_sample, render_turns
from rlsys.prompts.rendering import UserTurns

AHEAD = 4
"""Requests that are prepared for each one in flight, so that a slow answer does not stop the others."""
_TOO_LONG = re.compile(
    r"context.?(?:length|window|size)|maximum model length|max_model_len"
    r"|\b(?:prompt|inputs?|messages?)\b[^.:'\"]{0,40}(?:too long|too many tokens|exceed)"
    r"|\bprompt has [\d,]+ tokens",  # `rlsys serve`
    re.IGNORECASE,
)
_ANSWER_TOO_LONG = re.compile(r"max_(?:completion_)?tokens\b.{0,60}\b(?:too large|cannot be greater)", re.IGNORECASE)
_NO_MODEL = re.compile(r"model", re.IGNORECASE)
_QUOTED = 200
"""Characters of an endpoint's own message in ours."""


class EndpointError(Exception):
    """An endpoint that cannot be used or did not answer; the message names its URL, the reason, and what to do."""


class PromptTooLong(Exception):
    """The endpoint refused a prompt for its length."""


@dataclass(frozen=True)
class Completion:
    """An answer of the endpoint."""

    text: str
    truncated: bool
    """Ended at the token limit."""
    prompt_tokens: int
    tokens: int
    """Generated, including those of a hidden thought. Both are 0 where the endpoint reports no usage."""


class EndpointJudge:
    """A model behind an endpoint that answers `JudgeRequest`s. `with EndpointJudge(settings) as judge: ...` connects and disconnects.

    Raises:
        EndpointError: the key is not set or refused, nothing answers at the URL, or it lists several models and none is chosen.
    """

    def __init__(self, settings: Endpoint) -> None:
        if settings.url is None:
            raise EndpointError("expected the URL of an endpoint.")
        try:
            key = settings.key()
        except ValueError as error:
            raise EndpointError(str(error)) from None
        self.settings, self.url, self.model = settings, settings.url, settings.model or ""
        self.unmetered = 0
        """Answers without a report of their tokens."""
        # A key is always given, or the client would send that of another service ($OPENAI_API_KEY) to this one.
        self._client = AsyncOpenAI(base_url=self.url, api_key=key or "none", max_retries=settings.retries, timeout=settings.timeout_s)
        self._client.organization = self._client.project = None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def __enter__(self) -> EndpointJudge:
        try:
            self.model = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    async def _connect(self) -> str:
        """Return the model to ask: the chosen one, else the only one that the endpoint lists. One attempt, to fail at once."""
        try:
            listed = [model.id async for model in self._client.with_options(max_retries=0).models.list()]
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise self._explained(error) from None
        except openai.OpenAIError as error:  # not every endpoint lists its models
            if self.model:
                return self.model
            raise EndpointError(f"{self.url}: the endpoint lists no models ({_reason(error)}); name one.") from None
        if self.model or len(listed) == 1:
            return self.model or listed[0]
        raise EndpointError(f"{self.url}: name one of the endpoint's models: {', '.join(listed) or 'it lists none'}.")

    # --- judging -------------------------------------------------------------------------------------------------

    def answer(
        self, asks: Iterable[JudgeRequest], prompter: UserTurns, sampling: Sampling, max_prompt_tokens: int
    ) -> Iterator[JudgeResult]:
        """Yield the results of `asks`, in order. A request whose prompt is too long for the endpoint is skipped.

        Args:
            max_prompt_tokens: not used: the endpoint has its own tokenizer and limit.

        Raises:
            EndpointError: a request failed for good.
        """
        waiting: deque[tuple[RenderedRequest, list[Future[Completion]]]] = deque()
        pending = 0
        try:
            for ask in asks:
                rendered = render_turns(ask, prompter)
                waiting.append((rendered, self._submit(rendered, sampling)))
                pending += len(ask.orders)
                while waiting and (pending > AHEAD * self.settings.concurrency or all(future.done() for future in waiting[0][1])):
                    pending -= len(waiting[0][1])
                    yield self._result(*waiting.popleft(), prompter)
            while waiting:
                yield self._result(*waiting.popleft(), prompter)
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _submit(self, rendered: RenderedRequest, sampling: Sampling) -> list[Future[Completion]]:
        """Send a request for every sample, in the order of the request's `orders`."""
        texts = {tuple(prompt.order): prompt.text for prompt in rendered.prompts}
        request = rendered.request
        return [
            asyncio.run_coroutine_threadsafe(self.complete(texts[tuple(order)], sampling, seed), self._loop)
            for order, seed in zip(request.orders, request.seeds, strict=True)
        ]

    def _result(self, rendered: RenderedRequest, futures: list[Future[Completion]], prompter: UserTurns) -> JudgeResult:
        try:
            found = [future.result() for future in futures]
        except PromptTooLong as error:
            return JudgeResult(replace(rendered, skipped=str(error)), billed_tokens=0)
        samples = [
            endpoint_sample(one.text, one.truncated, one.tokens, order, prompter.score_format)
            for one, order in zip(found, rendered.request.orders, strict=True)
        ]
        return JudgeResult(rendered, samples, sum(one.prompt_tokens for one in found))

    # --- requests ------------------------------------------------------------------------------------------------

    async def complete(self, text: str, sampling: Sampling, seed: int) -> Completion:
        """Return one answer to a user turn.

        Raises:
            PromptTooLong: the endpoint says so.
            EndpointError: any other failure, after all attempts.
        """
        body = request_body(self.model, text, sampling, seed, self.settings.body)
        async with self._slots:
            try:
                answer = await self._client.chat.completions.create(
                    model=body.pop("model"), messages=body.pop("messages"), extra_body=body, timeout=self.settings.timeout_s
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if _ANSWER_TOO_LONG.search(error.message):
                    raise self._explained(error) from None
                if _TOO_LONG.search(error.message) or error.code == "context_length_exceeded":
                    raise PromptTooLong(f"its prompt is too long for the endpoint ({_reason(error)})") from None
                if error.code == "content_filter":
                    return Completion("", False, 0, 0)
                raise self._explained(error) from None
            except openai.OpenAIError as error:
                raise self._explained(error) from None
        if not getattr(answer, "choices", None):
            raise EndpointError(f"{self.url}: an answer without choices; is this an OpenAI-compatible endpoint?")
        self.unmetered += answer.usage is None
        prompt_tokens, tokens = (answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else (0, 0)
        choice = answer.choices[0]
        return Completion(choice.message.content or "", choice.finish_reason == "length", prompt_tokens, tokens)

    def _explained(self, error: openai.OpenAIError) -> EndpointError:
        """Return the error as one line: where, what, and what to do."""
        return EndpointError(f"{self.url}: {self._explanation(error)}")

    def _explanation(self, error: openai.OpenAIError) -> str:
        variable, reason = self.settings.api_key_env, _reason(error)
        tried = f"after up to {self.settings.retries + 1} attempt(s)"
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                key = f"the key in ${variable}" if variable else "the request, which has no key; name the variable that holds one"
                return f"refused {key} ({reason})."
            case openai.NotFoundError() if _NO_MODEL.search(error.message):
                return f"has no model {self.model!r} ({reason})."
            case openai.NotFoundError():
                return f"no /chat/completions there ({reason}); expected a base URL such as http://127.0.0.1:8000/v1."
            case openai.APITimeoutError():
                return f"no answer within {self.settings.timeout_s:g} s, {tried}."
            case openai.APIConnectionError():
                return f"cannot be reached ({error.__cause__ or reason})."
            case openai.RateLimitError():
                return f"too many requests, {tried} ({reason}); lower the concurrency, or continue later."
            case openai.InternalServerError():
                return f"fails {tried} ({reason})."
            case openai.BadRequestError() if _ANSWER_TOO_LONG.search(error.message):
                return f"has no room for rollout.max_tokens besides the prompt ({reason}); lower rollout.max_tokens."
        return f"refused a request ({reason})."


def request_body(model: str, text: str, sampling: Sampling, seed: int, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the body of a request of `/chat/completions` for one sample.

    Args:
        text: the user turn.
        more: fields that replace ours; None removes one.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
    }
    body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
    return {name: value for name, value in (body | (more or {})).items() if value is not None}


def _reason(error: openai.OpenAIError) -> str:
    """Return the endpoint's own message on one line."""
    status = f"{error.status_code}: " if isinstance(error, openai.APIStatusError) else ""
    message = error.message if isinstance(error, openai.APIError) else str(error)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):
        message = str(error.body.get("message") or error.body.get("detail") or message)
    return status + " ".join(message.split())[:_QUOTED]
