"""Requests to a judge and their results: records to be judged, each by several samples.

A `JudgeRequest` is a record with one response order per sample. Samples with the same order share a `PromptItem`, which is encoded only
once. Results hold samples in the format that `rlsys.judging.voting.table` reads, with scores in the order shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from rlsys.data.chain import PromptItem, Sample
from rlsys.data.records import Record
from rlsys.prompts.rendering import Prompter, UserTurns, hint_for, seed_for, shuffled
from rlsys.rewards.extraction import ScoreFormat

SampleRow = dict[str, Any]
"""A judged sample as files hold it: {order, scores or None, failure?, meta_reward?, logprob?, certainty?, tokens, truncated?, text}; see
`rlsys.judging.voting.table`."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    temperature: float
    top_p: float
    max_tokens: int
    min_tokens: int = 0


@dataclass(frozen=True)
class JudgeRequest:
    """A record to be judged by one sample for each of `orders`."""

    record: Record
    orders: Sequence[Sequence[int]]
    seeds: Sequence[int]
    """Sampling seeds, one for each order."""
    hinted: bool = False
    """Whether the prompt reveals the ground truth."""
    others: Sequence[str] = ()
    """Earlier judgements of the same responses in the same order, appended to the prompt."""
    principles: str | None = None
    """Principles to judge by; None: the judge writes its own."""


def judge_request(
    record: Record, k: int, *key: str | int, order: Sequence[int] | None = None, hinted: bool = False, first: int = 0
) -> JudgeRequest:
    """Request k samples of a record. Orders and seeds depend on (*key, record.id) alone.

    Args:
        order: use this order for every sample instead of a random one for each.
        first: number of samples of the record that were requested before.
    """
    numbers = range(first, first + k)
    orders = [order or shuffled(record.n, *key, record.id, sample) for sample in numbers]
    return JudgeRequest(record, orders, [seed_for(*key, record.id, sample) for sample in numbers], hinted)


@dataclass(frozen=True)
class RenderedRequest:
    """A `JudgeRequest` with its prompts, one for each distinct order, which carry the seeds of the samples in that order."""

    request: JudgeRequest
    prompts: list[PromptItem]
    skipped: str | None = None
    """Human-readable reason for skipping the request; None if it is not skipped."""

    @property
    def asked(self) -> list[PromptItem]:
        """The prompts to sample."""
        return [] if self.skipped else self.prompts


@dataclass
class JudgeResult:
    """The samples of a request, in the order of its `orders`; empty if the request was skipped."""

    rendered: RenderedRequest
    samples: list[SampleRow] = field(default_factory=list)
    billed_tokens: int | None = None
    """Prompt tokens that an endpoint reported, of every sample; None: an engine sampled."""

    @property
    def record(self) -> Record:
        return self.rendered.request.record

    @property
    def prompt_tokens(self) -> int:
        """Total tokens of the prompts. A prompt shared by several samples counts once for an engine, for each of them at an endpoint."""
        if self.billed_tokens is not None:
            return self.billed_tokens
        return sum(len(prompt.token_ids) for prompt in self.rendered.prompts) if self.samples else 0

    def extended(self, later: JudgeResult) -> JudgeResult:
        """Append the samples of a later request for the same record."""
        one, two = self.rendered, later.rendered
        both = JudgeRequest(
            one.request.record,
            [*one.request.orders, *two.request.orders],
            [*one.request.seeds, *two.request.seeds],
            one.request.hinted,
            two.request.others,
            one.request.principles,
        )
        rendered = RenderedRequest(both, [*one.prompts, *two.prompts], one.skipped or two.skipped)
        billed = None if self.billed_tokens is None else self.billed_tokens + (later.billed_tokens or 0)
        return JudgeResult(rendered, [*self.samples, *later.samples], billed)

    def row(self, text: bool = True) -> dict[str, Any]:
        """Return the row for a file: {id, source, samples, tokens (generated), prompt_tokens} and, for a skipped request, skipped (reason).

        Args:
            text: include the texts of the samples.
        """
        row = {
            "id": self.record.id,
            "source": self.record.source,
            "samples": [{name: value for name, value in sample.items() if text or name != "text"} for sample in self.samples],
            "tokens": sum(sample["tokens"] for sample in self.samples),
            "prompt_tokens": self.prompt_tokens,
        }
        return row | ({"skipped": self.rendered.skipped} if self.rendered.skipped else {})


class Answering(Protocol):
    """Whatever answers requests: engines, a model behind an endpoint, or a teacher."""

    def answer(self, asks: Iterable[JudgeRequest], prompter: Any, sampling: Sampling, max_prompt_tokens: int) -> Iterator[JudgeResult]:
        """Yield the results of `asks`, in order."""
        ...


def render_requests(requests: Iterable[JudgeRequest], prompter: Prompter, max_prompt_tokens: int) -> Iterator[RenderedRequest]:
    """Render the prompts of each request. Prompts are never truncated: a request with one over `max_prompt_tokens` is skipped."""
    for request in requests:
        prompts: list[PromptItem] = []
        too_long = None
        for order, seeds in _seeds_by_order(request).items():
            text = prompter.render(request.record, order, _hint(request, order, prompter), request.principles)
            prompts.append(PromptItem(request.record, order, text, prompter.encode(text), seeds))
            if (length := len(prompts[-1].token_ids)) > max_prompt_tokens:
                too_long = f"its prompt has {length} tokens, more than {max_prompt_tokens}"
                break
        yield RenderedRequest(request, prompts, too_long)


def render_turns(request: JudgeRequest, turns: UserTurns) -> RenderedRequest:
    """Render the user turns of a request, for an endpoint with a chat template and a tokenizer of its own; `token_ids` are empty."""
    prompts = [
        PromptItem(
            request.record, order, turns.hinted_turn(request.record, order, _hint(request, order, turns), request.principles), [], seeds
        )
        for order, seeds in _seeds_by_order(request).items()
    ]
    return RenderedRequest(request, prompts)


def _seeds_by_order(request: JudgeRequest) -> dict[tuple[int, ...], list[int]]:
    seeds: dict[tuple[int, ...], list[int]] = {}
    for order, seed in zip(request.orders, request.seeds, strict=True):
        seeds.setdefault(tuple(order), []).append(seed)
    return seeds


def _hint(request: JudgeRequest, order: Sequence[int], turns: UserTurns) -> str:
    hints = [hint_for(request.record, order, turns.score_format.single)] if request.hinted else []
    hints += [turns.other_judgements(request.others)] if request.others else []
    return "\n\n".join(hints)


def collect_results(
    batch: Sequence[RenderedRequest], samples: pa.RecordBatch, meta_rewards: Sequence[float] | None, score_format: ScoreFormat
) -> list[JudgeResult]:
    """Assign the samples of the prompts that `batch` asked, numbered from 0 in that order, and extract their scores.

    Args:
        samples: SAMPLES.
        meta_rewards: the meta RM's logit for each sample.

    Raises:
        KeyError: a sample is missing.
    """
    metas = [None] * samples.num_rows if meta_rewards is None else meta_rewards
    found = {(row["group"], row["sample"]): (Sample(**row), meta) for row, meta in zip(samples.to_pylist(), metas, strict=True)}
    results, group = [], 0
    for rendered in batch:
        groups = {tuple(prompt.order): group + i for i, prompt in enumerate(rendered.asked)}
        group += len(groups)
        taken: Counter[int] = Counter()
        rows = []
        for order in rendered.request.orders if groups else ():
            own = groups[tuple(order)]
            rows.append(_sample_row(*found[own, taken[own]], order, score_format))
            taken[own] += 1
        results.append(JudgeResult(rendered, rows))
    return results


def _sample_row(sample: Sample, meta_reward: float | None, order: Sequence[int], score_format: ScoreFormat) -> SampleRow:
    return {
        **_judged(sample.text, sample.truncated, order, score_format),
        "logprob": sum(sample.logprobs),
        **({} if sample.certainty is None else {"certainty": sample.certainty}),
        "tokens": len(sample.token_ids),
        **({"truncated": True} if sample.truncated else {}),
        "text": sample.text,
        **({} if meta_reward is None else {"meta_reward": meta_reward}),
    }


def endpoint_sample(text: str, truncated: bool, tokens: int, order: Sequence[int], score_format: ScoreFormat) -> SampleRow:
    """Return a sample that an endpoint generated: without log-probability, self-certainty and meta reward."""
    return {
        **_judged(text, truncated, order, score_format),
        "tokens": tokens,
        **({"truncated": True} if truncated else {}),
        "text": text,
    }


def _judged(text: str, truncated: bool, order: Sequence[int], score_format: ScoreFormat) -> SampleRow:
    scores, failure = score_format.extract(text, len(order), truncated)
    return {"order": list(order), "scores": None if scores is None else list(scores), **({"failure": failure} if failure else {})}
