"""What clients send to a judge and get back, whatever carries it: HTTP, Python, or the adapters of other libraries.

`JudgeBackend` is a running judge; `ScoreRequest` and `ScoreResponse` are its contract, which the OpenAPI page of `rlsys serve` shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class ServingError(Exception):
    """A request that is refused or failed; the message names the field or limit, and says what to do.

    Args:
        status: HTTP status: 400 malformed, 413 too large, 422 a limit exceeded, 429 too busy, 503 not ready, 504 out of time.
        retry_after_s: seconds after which the client may try again, with 429 and 503.
    """

    def __init__(self, message: str, status: int = 400, retry_after_s: float | None = None):
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s

    def __reduce__(self) -> tuple[type[ServingError], tuple[str, int, float | None]]:
        # An exception with several arguments is otherwise not restored on the other side of a remote call.
        return type(self), (str(self), self.status, self.retry_after_s)


def _encodable(text: str) -> str:
    # JSON's escapes can spell half a surrogate pair, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected text in valid Unicode, found a lone surrogate") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")  # A newer service may send more.


class Message(_Model):
    role: Text
    content: Text


class ScoreRequest(_Model):
    """Responses to score."""

    conversation: Text | list[Message]
    """The user's query, or messages of which the last one is the query or a tool result."""
    responses: list[Text] = Field(min_length=1)
    """Candidate responses, judged together."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Samples. null: the service's default."""
    strategy: Text | None = None
    """Voting strategy (docs/voting.md). null: the service's default."""
    critiques: bool = False
    """Return the text of every sample."""
    principles: Text | None = None
    """Principles to judge by, instead of those that the judge would write."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of response orders, samples and tie-breaking. The same request with the same seed has the same answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Sampling temperature; 0 is greedy. null: the service's default."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Generated tokens per sample, at most the service's limit. null: that limit. A judgement that is cut off has no scores."""
    id: Text | None = None
    """Returned with the answer. It also enters the seeds, like the id of a row in `rlsys judge`. null: derived from the content."""


class SampleResult(_Answer):
    """One judgement."""

    scores: list[float] | None
    """One per response, in the request's order; null after a parse failure."""
    order: list[int]
    """order[p] is the index of the response that was shown at place p."""
    parse_failure: str | None = None
    """Reason why no scores were found."""
    meta_reward: float | None = None
    """The meta reward model's logit that the judgement is correct; null without one, or if it is not finite."""
    tokens: int
    """Generated tokens."""
    truncated: bool = False
    """Whether the token limit cut the text off."""
    text: str | None = None
    """Principles, critique and scores, if `critiques` asked for them."""


class ScoreResponse(_Answer):
    """The vote over all samples."""

    id: str
    scores: list[float] | None
    """One per response, in the request's order: the mean score of the samples that the strategy uses, or, if it counts winners, each
    response's share of the samples. null if no sample parsed."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest value that `scores` can have: those of the judge's score format, which differ for a single response, or 0 and 1 if
    the strategy counts winners; also where no sample parsed. null: an older service."""
    best: int | None
    """Index of the best response; null if nothing parsed or the strategy abstained. Ties are broken at random, by the seed."""
    margin: float | None
    """Highest minus second-highest of `scores`; null without scores, or with a single response."""
    tied: bool
    """Whether several responses share the highest score."""
    abstained: bool
    parsed: int
    """Samples with scores."""
    samples: list[SampleResult]
    prompt_tokens: int
    """Tokens of the distinct prompts; samples with the same order share one."""
    generated_tokens: int
    strategy: str
    model: str
    version: str
    """Identifies the weights and the service's defaults: equal requests with equal versions and seeds have equal answers."""


@dataclass(frozen=True)
class TextDelta:
    """More text of one sample, as it is generated."""

    sample: int
    text: str


@dataclass(frozen=True)
class SampleDone:
    """A finished sample."""

    sample: int
    result: SampleResult


class ChatRequest(_Model):
    """Plain chat with the judge's model, under its chat template."""

    messages: list[Message] = Field(min_length=1)
    n: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """null: the service's limit."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ChatChoice(_Model):
    text: str
    finish_reason: str
    """stop or length."""
    tokens: int


class ChatResponse(_Model):
    choices: list[ChatChoice]
    prompt_tokens: int


class JudgeBackend(Protocol):
    """A running judge. Every method raises ServingError for a request that is refused, and stops its samples if it is cancelled."""

    model: str
    version: str

    async def score(self, request: ScoreRequest) -> ScoreResponse: ...

    def stream(self, request: ScoreRequest) -> AsyncIterator[TextDelta | SampleDone | ScoreResponse]:
        """Yield the samples' texts as they arrive, each finished sample, and the response last."""
        ...

    async def chat(self, request: ChatRequest) -> ChatResponse: ...

    def stream_chat(self, request: ChatRequest) -> AsyncIterator[TextDelta | ChatResponse]:
        """Yield the choices' texts (`TextDelta.sample` is the choice) as they arrive, and the response last."""
        ...
