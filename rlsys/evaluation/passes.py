"""Passes of an evaluation: k samples of each item, one greedy sample and, for pairs, a greedy sample in the other order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.evaluation.benchmarks import Benchmark, Item
from rlsys.judging.requests import JudgeRequest, JudgeResult, judge_request
from rlsys.prompts.rendering import shuffled

Row = dict[str, Any]


@dataclass(frozen=True)
class EvalPass:
    """One pass over items of a benchmark, written to one file."""

    name: str
    """samples, greedy or swapped."""
    items: tuple[Item, ...]
    ask: Callable[[Item], JudgeRequest]
    temperature: float
    text: bool
    """Whether to keep the generated texts."""
    settings: dict[str, Any]
    """JSON object of everything the rows depend on, besides model and prompt."""

    def row(self, item: Item, answer: JudgeResult) -> Row:
        """`JudgeResult.row` with the item's id, as several items may share a record."""
        return answer.row(self.text) | {"id": item.id}


def eval_passes(benchmark: Benchmark, k: int, temperature: float, seed: int, text: bool = False, swap: bool = True) -> list[EvalPass]:
    """Return the passes over a benchmark.

    Args:
        k: samples per item, each in a random order unless the benchmark fixes one.
        temperature, seed: for these samples.
        text: keep their texts; texts of greedy samples are always kept.
        swap: also judge pairs in the other order, unless the benchmark already does.
    """

    def sampled(item: Item) -> JudgeRequest:
        return judge_request(item.record, k, "eval", seed, item.id, order=item.order)

    settings = {"k": k, "temperature": temperature, "seed": seed, "text": text}
    passes = [
        EvalPass("samples", benchmark.items, sampled, temperature, text, settings | _fingerprint(benchmark.items)),
        EvalPass("greedy", benchmark.items, greedy, 0.0, True, _fingerprint(benchmark.items)),
    ]
    pairs = tuple(item for item in benchmark.items if item.record.n == 2 and item.order is None)
    if swap and pairs:
        passes.append(EvalPass("swapped", pairs, swapped, 0.0, True, _fingerprint(pairs)))
    return passes


def greedy(item: Item) -> JudgeRequest:
    """Request one sample in the benchmark's order or else, as for held-out rows, in an order determined by the record's id."""
    return judge_request(item.record, 1, "greedy", item.id, order=greedy_order(item))


def swapped(item: Item) -> JudgeRequest:
    """Request the `greedy` sample in the other order."""
    return judge_request(item.record, 1, "greedy", item.id, order=greedy_order(item)[::-1])


def greedy_order(item: Item) -> Sequence[int]:
    return item.order or shuffled(item.record.n, "heldout", item.record.id)


def _fingerprint(items: Sequence[Item]) -> dict[str, Any]:
    """Return the number of items and a hash of everything the judge is shown."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(json.dumps([item.id, item.order, item.record.context, item.record.responses]).encode())
    return {"items": len(items), "content": digest.hexdigest()}
