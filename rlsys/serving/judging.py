"""From a request to prompts, and from samples to the response: all of a service's judging except the engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlsys.data.readers import DataError
from rlsys.data.readers.messages import as_messages, ask
from rlsys.data.records import Record
from rlsys.judging.requests import JudgeRequest, JudgeResult, RenderedRequest, SampleRow, render_requests
from rlsys.judging.sampling_plans import sampling_plan
from rlsys.judging.voting import STRATEGIES, Options, SampleTable, Strategy, decide, find_strategy, margin
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.defusing import Defuser
from rlsys.prompts.rendering import Prompter
from rlsys.rewards.extraction import ScoreFormat
from rlsys.serving.contract import ChatRequest, Message, SampleResult, ScoreRequest, ScoreResponse, ServingError
from rlsys.serving.tasks import gather_or_cancel


@dataclass(frozen=True)
class JudgeSettings:
    """What a judge uses where a request says nothing, and what its engine can do."""

    model: str
    version: str
    k: int
    strategy: str
    """As in `rlsys vote`, also FILE.py:NAME; requests may only name registered ones."""
    temperature: float
    top_p: float
    max_prompt_tokens: int
    max_prompt_chars: int
    """More cannot fit `max_prompt_tokens`; checked first, as encoding megabytes takes seconds."""
    max_tokens: int
    """Of a sample."""
    meta_rm: bool
    """Whether a meta reward model scores every sample."""
    self_certainty: bool


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one request."""

    temperature: float
    top_p: float
    max_tokens: int


class Sampler(Protocol):
    """Samples the prompts of a request; `on_text` receives the text of its single sample as it grows."""

    def __call__(self, rendered: RenderedRequest, sampling: Sampling, on_text: Callable[[str], None] | None) -> Awaitable[JudgeResult]: ...


@dataclass(frozen=True)
class Listener:
    """What hears of a judgement while it is made."""

    text: Callable[[int, str], None]
    """(sample, more of its text)"""
    sample: Callable[[int, SampleResult], None]
    """(sample, its result)"""


async def judge(
    request: ScoreRequest, settings: JudgeSettings, prompter: Prompter, sampler: Sampler, listener: Listener | None = None
) -> ScoreResponse:
    """Answer a request.

    Raises:
        ServingError: a value of the request is unusable, or its prompt is too long.
    """
    record, strategy, sampling = record_of(request), strategy_for(request, settings), sampling_for(request, settings)
    plan = sampling_plan(strategy, request.k or settings.k, Options(), request.seed)
    result: JudgeResult | None = None
    while (asked := plan(record, result)) is not None:
        asked = replace(asked, principles=request.principles)
        first = len(result.samples) if result else 0
        # A listener hears of each sample by itself, so each is a request by itself.
        asks = [asked] if listener is None else one_by_one(asked)
        rendered = await _rendered(asks, prompter, settings)
        calls = [_sampled(one, sampling, sampler, listener, first + number, request.critiques) for number, one in enumerate(rendered)]
        for more in await gather_or_cancel(calls):
            result = result.extended(more) if result else more
    assert result is not None, "a plan requests samples of every record"
    return response_of(request, result, strategy, settings, prompter.score_format)


async def _rendered(asks: Sequence[JudgeRequest], prompter: Prompter, settings: JudgeSettings) -> list[RenderedRequest]:
    record, given = asks[0].record, asks[0].principles or ""
    check_chars("the request", record.context, [*record.responses, given], settings)
    # In a thread: a long prompt must not hold up the samples of others.
    return await asyncio.to_thread(_render, asks, prompter, settings)


def _render(asks: Sequence[JudgeRequest], prompter: Prompter, settings: JudgeSettings) -> list[RenderedRequest]:
    rendered = []
    for one in render_requests(asks, prompter, settings.max_prompt_tokens):
        if one.skipped:  # The others are as long.
            raise ServingError(f"{one.skipped}; {_prompt_limit(settings)}.", 422)
        rendered.append(one)
    return rendered


def check_chars(what: str, turns: Sequence[Mapping[str, str]], texts: Sequence[str], settings: JudgeSettings) -> None:
    """Raise ServingError if turns {role, content} and texts are too long whatever their tokens are; a turn has at least one."""
    if len(turns) > settings.max_prompt_tokens:
        raise ServingError(f"{what} has {len(turns):,} turns, too many for any prompt; {_prompt_limit(settings)}.", 422)
    if (count := sum(len(turn["role"]) + len(turn["content"]) for turn in turns) + sum(map(len, texts))) > settings.max_prompt_chars:
        raise ServingError(f"{what} has {count:,} characters, too many for any prompt; {_prompt_limit(settings)}.", 422)


def _prompt_limit(settings: JudgeSettings) -> str:
    return f"the limit is prompt.max_tokens={settings.max_prompt_tokens}, a setting of `rlsys serve`"


async def _sampled(
    rendered: RenderedRequest, sampling: Sampling, sampler: Sampler, listener: Listener | None, number: int, critiques: bool
) -> JudgeResult:
    if listener is None:
        return await sampler(rendered, sampling, None)
    text = listener.text
    result = await sampler(rendered, sampling, lambda more: text(number, more))
    listener.sample(number, sample_result(result.samples[0], critiques))
    return result


def one_by_one(request: JudgeRequest) -> list[JudgeRequest]:
    """Return a request for each sample of `request`."""
    return [replace(request, orders=[order], seeds=[seed]) for order, seed in zip(request.orders, request.seeds, strict=True)]


# --- requests ----------------------------------------------------------------------------------------------------------


def record_of(request: ScoreRequest) -> Record:
    """Return the record to judge, as `rlsys judge` would read it from a file of format `responses`.

    Raises:
        ServingError: the conversation does not end with a query, or has a message without text.
    """
    if isinstance(request.conversation, str):
        context = ask(request.conversation)
    else:
        try:
            context = as_messages([message.model_dump() for message in request.conversation], "conversation")
        except DataError as error:
            raise ServingError(str(error)) from error
    last = context[-1]
    if last["role"] not in ("user", "tool") or not last["content"].strip():
        found = "blank text" if last["role"] in ("user", "tool") else f"a turn of {last['role']}"
        raise ServingError(f"conversation: expected the user's query or a tool result as the last turn, found {found}.")
    if request.principles is not None and not request.principles.strip():
        raise ServingError("principles: expected text, or null to have the judge write its own, found blank text.")
    responses = tuple(request.responses)
    return Record(request_id(request), "responses", context, responses, (0.0,) * len(responses), labelled=False)


def request_id(request: ScoreRequest) -> str:
    """Return the request's id, or one that is derived from what is judged."""
    if request.id is not None:
        return request.id
    content = request.model_dump(include={"conversation", "responses", "principles"})
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def strategy_for(request: ScoreRequest, settings: JudgeSettings) -> Strategy:
    """Return the strategy of a request.

    Raises:
        ServingError: it does not exist, or needs what the samples of this judge do not have.
    """
    # A client must not be able to name a file, which would be executed.
    if request.strategy is not None and request.strategy not in STRATEGIES:
        raise ServingError(f"strategy: expected one of {', '.join(STRATEGIES)}, found {ascii(request.strategy[:60])}.", 422)
    strategy = find_strategy(request.strategy or settings.strategy)
    if problem := missing_of(strategy, settings.meta_rm, settings.self_certainty):
        raise ServingError(f"strategy: {problem}", 422)
    return strategy


def missing_of(strategy: Strategy, meta_rm: bool, self_certainty: bool) -> str | None:
    """Return what the strategy needs of every sample that this judge's samples do not have; None if they have all."""
    if "meta_reward" in strategy.needs and not meta_rm:
        return f"{strategy.name} needs a meta reward model; start the service with --meta-rm."
    if "certainty" in strategy.needs and not self_certainty:
        return f"{strategy.name} needs each sample's self-certainty; start the service with rollout.self_certainty=true."
    return None


def sampling_for(request: ScoreRequest, settings: JudgeSettings) -> Sampling:
    """Return the sampling parameters of a request."""
    temperature = settings.temperature if request.temperature is None else request.temperature
    return Sampling(temperature, settings.top_p, allowed_tokens(request.max_tokens, settings))


def allowed_tokens(asked: int | None, settings: JudgeSettings) -> int:
    """Return the maximum length of a sample."""
    if asked is not None and asked > settings.max_tokens:
        limit = f"the limit is rollout.max_tokens={settings.max_tokens}, a setting of `rlsys serve`"
        raise ServingError(f"max_tokens: {asked}; {limit}.", 422)
    return asked or settings.max_tokens


class ChatRenderer:
    """Renders plain chat for a model's chat template; nothing in a message can end its turn."""

    def __init__(self, chat: Chat):
        self._chat = chat
        self._defuse = Defuser([], chat, boxes=False)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a prompt.

        Raises:
            ServingError: the chat template does not support the conversation.
        """
        try:
            return self._chat.tokens([{"role": message.role, "content": self._defuse(message.content)} for message in messages])
        except ChatError as error:
            raise ServingError(f"messages: {error}") from error


def check_chat_length(tokens: int, request: ChatRequest, settings: JudgeSettings) -> int:
    """Return the maximum length of an answer to a prompt of `tokens` tokens.

    Raises:
        ServingError: the prompt or the answer asked for is too long.
    """
    if tokens > settings.max_prompt_tokens:
        raise ServingError(f"messages: the prompt has {tokens} tokens; {_prompt_limit(settings)}.", 422)
    return allowed_tokens(request.max_tokens, settings)


# --- responses ---------------------------------------------------------------------------------------------------------


def response_of(
    request: ScoreRequest, result: JudgeResult, strategy: Strategy, settings: JudgeSettings, score_format: ScoreFormat
) -> ScoreResponse:
    """Return the response to a request, from its samples."""
    table = SampleTable(strategy.needs)
    table.add({"id": result.record.id, "samples": result.samples})
    try:
        ((_, samples),) = table.groups()
        (levels,) = strategy(samples, Options()).levels
        (verdict,) = decide(table, strategy, Options(), seed=request.seed)
    except ValueError as error:
        raise ServingError(str(error), 422) from error
    known = bool(math.isfinite(levels[0]))
    low, high = (0, 1) if strategy.counts == "winners" else score_format.limits(result.record.n)
    return ScoreResponse(
        id=result.record.id,
        scores=levels.tolist() if known else None,
        score_range=(low, high),
        best=verdict["best"],
        margin=float(margin(levels)) if known and result.record.n > 1 else None,
        tied=verdict["tied"],
        abstained=verdict["abstained"],
        parsed=sum(sample["scores"] is not None for sample in result.samples),
        samples=[sample_result(sample, request.critiques) for sample in result.samples],
        prompt_tokens=sum({prompt.text: len(prompt.token_ids) for prompt in result.rendered.prompts}.values()),
        generated_tokens=sum(sample["tokens"] for sample in result.samples),
        strategy=strategy.name,
        model=settings.model,
        version=settings.version,
    )


def sample_result(sample: SampleRow, critiques: bool) -> SampleResult:
    """Return a sample as the contract has it: scores in the request's order."""
    order, shown = sample["order"], sample["scores"]
    fields: dict[str, Any] = {
        "scores": None if shown is None else [float(score) for _, score in sorted(zip(order, shown))],
        "order": order,
        "parse_failure": sample.get("failure"),
        "meta_reward": sample.get("meta_reward"),
        "tokens": sample["tokens"],
        "truncated": sample.get("truncated", False),
        "text": sample["text"] if critiques else None,
    }
    return SampleResult(**fields)
