"""Chats and judgements as OpenAI's chat completions, whole or as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlsys.serving.contract import ChatRequest, ChatResponse, SampleDone, SampleResult, ScoreRequest, ScoreResponse, ServingError, TextDelta
from rlsys.serving.errors import as_serving_error, error_body
from rlsys.serving.guard import Guard
from rlsys.serving.openai_shape import CompletionRequest
from rlsys.serving.streams import json_line

Json = dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """What all chunks of an answer share."""

    model: str
    version: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, kind: str, choices: list[Json], **more: Any) -> Json:
        """Return a completion or a chunk of one."""
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": self.version}
        return about | {"choices": choices} | more


@dataclass(frozen=True)
class Piece:
    """More text of a choice; `finish_reason` ends it."""

    choice: int
    text: str
    finish_reason: str | None = None
    about: Json = field(default_factory=dict)
    """What the choice says besides its text."""


@dataclass(frozen=True)
class End:
    """All choices are complete."""

    prompt_tokens: int
    completion_tokens: int
    about: Json = field(default_factory=dict)
    """What the answer says besides its choices."""

    @property
    def usage(self) -> Json:
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


class Answering(Protocol):
    """Answers one request."""

    async def whole(self) -> tuple[list[Piece], End]:
        """Return all choices, each as one piece."""
        ...

    def pieces(self) -> AsyncIterator[Piece | End]:
        """Yield the choices piece by piece, and the end last."""
        ...


class Chatting:
    """Plain chat with the judge's model."""

    def __init__(self, judge: Guard, body: CompletionRequest):
        if body.strategy is not None or body.principles is not None:
            raise ServingError(f"strategy and principles: only for judgements, by the model {judge.model + ':judge'!r}.")
        if body.messages[-1].role == "assistant":
            found = "the last one is an assistant's"
            raise ServingError(f"messages: {found}, which leaves nothing to answer; to have it judged, ask {judge.model + ':judge'!r}.")
        self._judge = judge
        self._request = ChatRequest(
            messages=[message.message() for message in body.messages],
            n=body.n or 1,
            max_tokens=body.token_limit,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=body.top_p or 1.0,
            seed=body.chosen_seed(),
        )

    async def whole(self) -> tuple[list[Piece], End]:
        response = await self._judge.chat(self._request)
        return [Piece(index, choice.text, choice.finish_reason) for index, choice in enumerate(response.choices)], _chat_end(response)

    async def pieces(self) -> AsyncIterator[Piece | End]:
        items = self._judge.stream_chat(self._request)
        try:
            async for item in items:
                if isinstance(item, TextDelta):
                    yield Piece(item.sample, item.text)
                    continue
                for index, choice in enumerate(item.choices):
                    yield Piece(index, "", choice.finish_reason)
                yield _chat_end(item)
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # the guard's iterators are generators


class Judging:
    """A judgement of the trailing assistant messages; every sample is a choice."""

    def __init__(self, judge: Guard, body: CompletionRequest):
        if body.top_p not in (None, 1.0):
            raise ServingError("top_p: not for judgements; leave it out.")
        conversation, candidates = body.conversation_and_candidates()
        self._judge = judge
        self._request = ScoreRequest(
            conversation=conversation,
            responses=candidates,
            k=body.n or 1,
            strategy=body.strategy,
            critiques=True,
            principles=body.principles,
            seed=body.chosen_seed(),
            temperature=body.temperature,
            max_tokens=body.token_limit,
        )

    async def whole(self) -> tuple[list[Piece], End]:
        response = await self._judge.score(self._request)
        return [_sample_piece(index, sample, sample.text or "") for index, sample in enumerate(response.samples)], _score_end(response)

    async def pieces(self) -> AsyncIterator[Piece | End]:
        items = self._judge.stream(self._request)
        try:
            async for item in items:
                if isinstance(item, TextDelta):
                    yield Piece(item.sample, item.text)
                elif isinstance(item, SampleDone):
                    yield _sample_piece(item.sample, item.result, "")
                else:
                    yield _score_end(item)
        finally:
            await items.aclose()  # type: ignore[attr-defined]  # the guard's iterators are generators


async def completion(answering: Answering, about: Completion) -> Json:
    """Return the whole answer."""
    pieces, end = await answering.whole()
    choices = [_choice(piece) for piece in pieces]
    return about.object("chat.completion", choices, usage=end.usage, **end.about)


async def completion_events(answering: Answering, about: Completion, include_usage: bool) -> AsyncIterator[str]:
    """Yield the answer's server-sent events. An error before the first one is raised; a later one is an event, and the last."""
    begun: set[int] = set()
    pieces = answering.pieces()
    try:
        async for piece in pieces:
            if isinstance(piece, Piece):
                yield _event(about.object("chat.completion.chunk", [_delta(piece, piece.choice not in begun)]))
                begun.add(piece.choice)
            elif include_usage or piece.about:
                usage = {"usage": piece.usage} if include_usage else {}
                yield _event(about.object("chat.completion.chunk", [], **usage, **piece.about))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already: the error is an event
        if not begun:
            raise
        refused = as_serving_error(error)
        yield _event(error_body(str(refused), refused.status))
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]  # generators


def _choice(piece: Piece) -> Json:
    message = {"role": "assistant", "content": piece.text}
    return {"index": piece.choice, "message": message, "finish_reason": piece.finish_reason, "logprobs": None} | piece.about


def _delta(piece: Piece, first: bool) -> Json:
    delta = ({"role": "assistant"} if first else {}) | ({"content": piece.text} if piece.text or first else {})
    return {"index": piece.choice, "delta": delta, "finish_reason": piece.finish_reason, "logprobs": None} | piece.about


def _event(chunk: Json) -> str:
    return f"data: {json_line(chunk)}\n\n"


def _chat_end(response: ChatResponse) -> End:
    return End(response.prompt_tokens, sum(choice.tokens for choice in response.choices))


def _score_end(response: ScoreResponse) -> End:
    vote = response.model_dump(exclude={"samples", "prompt_tokens", "generated_tokens", "model", "version", "id"})
    return End(response.prompt_tokens, response.generated_tokens, {"judgement": vote})


def _sample_piece(index: int, sample: SampleResult, text: str) -> Piece:
    about = sample.model_dump(include={"scores", "order", "parse_failure", "meta_reward"})
    return Piece(index, text + verdict(sample), "length" if sample.truncated else "stop", about)


def verdict(sample: SampleResult) -> str:
    """Return the lines that follow a judgement's text: its scores in the request's order, and the order that the text speaks of."""
    if sample.scores is None:
        return f"\n\nNo scores: {sample.parse_failure}."
    shown = _listed([index + 1 for index in sample.order])
    text = f"\n\nScores in the order of the request: {_listed(sample.scores)}."
    return text if sample.order == sorted(sample.order) else f"{text} The text numbers the responses in the order {shown}."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
