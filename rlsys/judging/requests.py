"""Requests to a judge and their results: records to be judged, each by several samples.

A `JudgeRequest` is a record with one response order per sample. Samples with the same order share a prompt, which is encoded only once.
Results hold samples in the format that `rlsys.judging.voting.table` reads, with scores in the order shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rlsys.data.records import Record
from rlsys.data.trajectories import REQUESTS
from rlsys.prompts.rendering import Prompter, hint_for, seed_for, shuffled
from rlsys.rewards.extraction import ScoreFormat

Sample = dict[str, Any]
"""{order, scores or None, failure?, meta_reward?, logprob, certainty?, tokens, truncated?, text}; see `rlsys.judging.voting.table`."""


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


@dataclass
class Prompt:
    """A rendered prompt of a `JudgeRequest`, with the samples that share its order."""

    order: Sequence[int]
    text: str
    tokens: list[int]
    samples: list[int]


@dataclass
class RenderedRequest:
    """A `JudgeRequest` with its prompts, one for each distinct order."""

    request: JudgeRequest
    prompts: list[Prompt]
    skipped: str | None = None
    """Human-readable reason for skipping the request; None if it is not skipped."""


@dataclass
class JudgeResult:
    """The samples of a request, in the order of its `orders`; empty if the request was skipped."""

    rendered: RenderedRequest
    samples: list[Sample] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Total tokens of the prompts; a prompt shared by several samples counts once."""
        return sum(len(prompt.tokens) for prompt in self.rendered.prompts) if self.samples else 0

    def extended(self, later: JudgeResult) -> JudgeResult:
        """Append the samples of a later request for the same record."""
        one, two = self.rendered, later.rendered
        both = JudgeRequest(
            one.request.record,
            [*one.request.orders, *two.request.orders],
            [*one.request.seeds, *two.request.seeds],
            one.request.hinted,
            two.request.others,
        )
        shifted = [replace(prompt, samples=[len(one.request.orders) + sample for sample in prompt.samples]) for prompt in two.prompts]
        return JudgeResult(RenderedRequest(both, [*one.prompts, *shifted], one.skipped or two.skipped), [*self.samples, *later.samples])

    def row(self, text: bool = True) -> dict[str, Any]:
        """Return the row for a file: {id, source, samples, tokens (generated), prompt_tokens} and, for a skipped request, skipped (reason).

        Args:
            text: include the texts of the samples.
        """
        row = {
            "id": self.rendered.request.record.id,
            "source": self.rendered.request.record.source,
            "samples": [{name: value for name, value in sample.items() if text or name != "text"} for sample in self.samples],
            "tokens": sum(sample["tokens"] for sample in self.samples),
            "prompt_tokens": self.prompt_tokens,
        }
        return row | ({"skipped": self.rendered.skipped} if self.rendered.skipped else {})


def render_requests(requests: Iterable[JudgeRequest], prompter: Prompter, max_prompt_tokens: int) -> Iterator[RenderedRequest]:
    """Render the prompts of each request. Prompts are never truncated: a request with one over `max_prompt_tokens` is skipped."""
    for request in requests:
        by_order: dict[tuple[int, ...], list[int]] = {}
        for sample, order in enumerate(request.orders):
            by_order.setdefault(tuple(order), []).append(sample)
        prompts = []
        for order, samples in by_order.items():
            hints = [hint_for(request.record, order, prompter.score_format.single)] if request.hinted else []
            hints += [prompter.other_judgements(request.others)] if request.others else []
            text = prompter.render(request.record, order, "\n\n".join(hints))
            prompts.append(Prompt(order, text, prompter.encode(text), samples))
        longest = max(len(prompt.tokens) for prompt in prompts)
        too_long = f"its prompt has {longest} tokens, more than {max_prompt_tokens}" if longest > max_prompt_tokens else None
        yield RenderedRequest(request, prompts, too_long)


def request_batch(batch: Sequence[RenderedRequest]) -> pa.RecordBatch:
    """Return a record batch (schema REQUESTS) of all prompts that are not skipped, with groups numbered from 0."""
    prompts = [(rendered.request, prompt) for rendered in batch if not rendered.skipped for prompt in rendered.prompts]
    columns = {
        "group": range(len(prompts)),
        "prompt_tokens": [prompt.tokens for _, prompt in prompts],
        "seeds": [[request.seeds[sample] for sample in prompt.samples] for request, prompt in prompts],
    }
    return pa.record_batch(columns, schema=REQUESTS)


def collect_results(
    batch: Sequence[RenderedRequest], samples: pa.RecordBatch, meta_rewards: Sequence[float] | None, prompter: Prompter
) -> list[JudgeResult]:
    """Assign the samples generated for `request_batch(batch)` to their requests and extract the scores.

    Args:
        samples: SAMPLES schema, ordered by group and sample.
        meta_rewards: the meta RM's logit for each sample.
    """
    rows = iter(samples.select(["tokens", "logprobs", "text", "finish_reason", "certainty"]).to_pylist())
    metas = iter(meta_rewards if meta_rewards is not None else [])
    results = []
    for rendered in batch:
        if rendered.skipped:
            results.append(JudgeResult(rendered))
            continue
        found: list[Sample] = [{}] * len(rendered.request.orders)
        for prompt in rendered.prompts:
            for index in prompt.samples:
                found[index] = _sample(next(rows), prompt.order, prompter.score_format)
                if meta_rewards is not None:
                    found[index]["meta_reward"] = next(metas)
        results.append(JudgeResult(rendered, found))
    return results


def _sample(row: dict[str, Any], order: Sequence[int], score_format: ScoreFormat) -> Sample:
    truncated = row["finish_reason"] == "length"
    scores, failure = score_format.extract(row["text"], len(order), truncated)
    return {
        "order": list(order),
        "scores": None if scores is None else list(scores),
        **({"failure": failure} if failure else {}),
        "logprob": sum(row["logprobs"]),
        **({} if row["certainty"] is None else {"certainty": row["certainty"]}),
        "tokens": len(row["tokens"]),
        **({"truncated": True} if truncated else {}),
        "text": row["text"],
    }
