"""Judging records by many samples each: what is asked of the engines, and what their answers come to.

An `Ask` is a record with the order of its responses in each of its samples. Orders that agree share a prompt, which is then encoded
once. The answers are *samples* as `rlsys.judging.voting.table` reads them, their scores as shown.
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
class Ask:
    """A record to be judged by one sample for each of `orders`."""

    record: Record
    orders: Sequence[Sequence[int]]
    seeds: Sequence[int]
    """Of sampling, one for each order."""
    hinted: bool = False
    """Whether the ground truth is told."""
    others: Sequence[str] = ()
    """Judgements of the same responses in the same order, to be read before one's own."""


def ask(record: Record, k: int, *key: str | int, order: Sequence[int] | None = None, hinted: bool = False, first: int = 0) -> Ask:
    """k samples of a record, shuffled afresh for each one unless `order` is given; all derived from (*key, record.id).

    Args:
        first: how many of the record's samples were asked for before.
    """
    numbers = range(first, first + k)
    orders = [order or shuffled(record.n, *key, record.id, sample) for sample in numbers]
    return Ask(record, orders, [seed_for(*key, record.id, sample) for sample in numbers], hinted)


@dataclass
class Prompt:
    """One rendering of an `Ask`, and the samples that have this order."""

    order: Sequence[int]
    text: str
    tokens: list[int]
    samples: list[int]


@dataclass
class Question:
    """An `Ask` as the engines get it: one prompt for each different order."""

    ask: Ask
    prompts: list[Prompt]
    skipped: str | None = None
    """Why it cannot be asked, in words."""


@dataclass
class Answer:
    """What came back: the samples in the order of the ask's. Empty where it was skipped."""

    question: Question
    samples: list[Sample] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, one that several samples share counted once."""
        return sum(len(prompt.tokens) for prompt in self.question.prompts) if self.samples else 0

    def extended(self, later: Answer) -> Answer:
        """With the samples of a later ask of the same record."""
        one, two = self.question, later.question
        both = Ask(one.ask.record, [*one.ask.orders, *two.ask.orders], [*one.ask.seeds, *two.ask.seeds], one.ask.hinted, two.ask.others)
        shifted = [replace(prompt, samples=[len(one.ask.orders) + sample for sample in prompt.samples]) for prompt in two.prompts]
        return Answer(Question(both, [*one.prompts, *shifted], one.skipped or two.skipped), [*self.samples, *later.samples])

    def row(self, text: bool = True) -> dict[str, Any]:
        """{id, source, samples, tokens (generated), prompt_tokens} for a file and, where it could not be asked, skipped: why.

        Args:
            text: keep the texts of the samples.
        """
        row = {
            "id": self.question.ask.record.id,
            "source": self.question.ask.record.source,
            "samples": [{name: value for name, value in sample.items() if text or name != "text"} for sample in self.samples],
            "tokens": sum(sample["tokens"] for sample in self.samples),
            "prompt_tokens": self.prompt_tokens,
        }
        return row | ({"skipped": self.question.skipped} if self.question.skipped else {})


def questions(asks: Iterable[Ask], prompter: Prompter, max_prompt_tokens: int) -> Iterator[Question]:
    """Render each ask; one whose prompt is longer than `max_prompt_tokens` is skipped, never cut."""
    for one in asks:
        by_order: dict[tuple[int, ...], list[int]] = {}
        for sample, order in enumerate(one.orders):
            by_order.setdefault(tuple(order), []).append(sample)
        prompts = []
        for order, samples in by_order.items():
            told = [hint_for(one.record, order, prompter.score_format.single)] if one.hinted else []
            told += [prompter.others(one.others)] if one.others else []
            text = prompter.render(one.record, order, "\n\n".join(told))
            prompts.append(Prompt(order, text, prompter.encode(text), samples))
        longest = max(len(prompt.tokens) for prompt in prompts)
        too_long = f"its prompt has {longest} tokens, more than {max_prompt_tokens}" if longest > max_prompt_tokens else None
        yield Question(one, prompts, too_long)


def requests(batch: Sequence[Question]) -> pa.RecordBatch:
    """REQUESTS of all prompts of the questions that are not skipped, numbered from 0."""
    prompts = [(question.ask, prompt) for question in batch if not question.skipped for prompt in question.prompts]
    columns = {
        "group": range(len(prompts)),
        "prompt_tokens": [prompt.tokens for _, prompt in prompts],
        "seeds": [[one.seeds[sample] for sample in prompt.samples] for one, prompt in prompts],
    }
    return pa.record_batch(columns, schema=REQUESTS)


def answers(batch: Sequence[Question], samples: pa.RecordBatch, meta_rewards: Sequence[float] | None, prompter: Prompter) -> list[Answer]:
    """What the samples say that were drawn for `requests(batch)`.

    Args:
        samples: SAMPLES schema, ordered by group and sample.
        meta_rewards: the meta RM's logit of each of the samples.
    """
    rows = iter(samples.select(["tokens", "logprobs", "text", "finish_reason", "certainty"]).to_pylist())
    metas = iter(meta_rewards if meta_rewards is not None else [])
    result = []
    for question in batch:
        if question.skipped:
            result.append(Answer(question))
            continue
        found: list[Sample] = [{}] * len(question.ask.orders)
        for prompt in question.prompts:
            for place in prompt.samples:
                found[place] = _sample(next(rows), prompt.order, prompter.score_format)
                if meta_rewards is not None:
                    found[place]["meta_reward"] = next(metas)
        result.append(Answer(question, found))
    return result


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
