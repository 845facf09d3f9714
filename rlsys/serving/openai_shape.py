"""Requests of OpenAI's chat completions: what is understood, what makes no difference, and what is refused by name."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlsys.serving.contract import Message, ServingError

_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""Keys that do not change the answer."""
_NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tool_choice": "none",
}
"""Keys that are not supported, and the values that ask for nothing."""


def _refuse_unknown(extra: dict[str, Any] | None) -> None:
    for key, value in (extra or {}).items():
        if key not in _IGNORED and value is not None and value != [] and value != {} and value != _NEUTRAL.get(key, []):
            raise ValueError(f"{key[:60]}: not supported here; leave it out")


class TextPart(BaseModel):
    """Text of a message's content. Images, audio and files are refused."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """An assistant's refusal, which is judged as any other text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """A turn. Tool calls, names, images and audio are refused."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part]

    @model_validator(mode="after")
    def _check(self) -> ChatMessage:
        _refuse_unknown({key: value for key, value in (self.model_extra or {}).items() if key != "tool_call_id"})
        return self

    def message(self) -> Message:
        """Return the message as the judge takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(BaseModel):
    """A request of OpenAI's chat completions, with the judge's own `strategy` and `principles`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    n: Annotated[int, Field(ge=1)] | None = None
    """Choices; of a judgement: samples, over which the vote is taken."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Left out: 1 for chat, the service's default for judgements."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """For chat only."""
    seed: int | None = None
    """Left out: drawn at random, so that a request that is repeated has another answer."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    strategy: str | None = None
    """For judgements only: voting strategy."""
    principles: str | None = None
    """For judgements only: principles to judge by, instead of those that the judge would write."""

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        _refuse_unknown(self.model_extra)
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens: two names of one limit, with different values")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    def chosen_seed(self) -> int:
        """Return the seed within the judge's range."""
        return secrets.randbelow(2**32) if self.seed is None else self.seed % 2**32

    def conversation_and_candidates(self) -> tuple[list[Message], list[str]]:
        """Divide the messages into a conversation and its trailing assistant messages, the candidate responses.

        Raises:
            ServingError: one of the two is empty.
        """
        messages = [one.message() for one in self.messages]
        end = len(messages)
        while end and messages[end - 1].role == "assistant":
            end -= 1
        if not messages[end:]:
            raise ServingError(f"messages: for a judgement by {self.model!r}, end with the candidate responses, an assistant message each.")
        if not messages[:end]:
            raise ServingError("messages: expected a conversation before the candidate responses, found assistant messages only.")
        return messages[:end], [message.content for message in messages[end:]]
